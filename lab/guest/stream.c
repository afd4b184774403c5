/*
 * stream - one end of a numbered UDP stream in both directions
 *
 * The same program runs in the client's namespace and, as the last step of
 * init, in the guest.  It sends numbered packets to its peer at a fixed rate
 * and records each packet that it gets: when it arrived, its number, and when
 * it was sent.  It does not judge: the harness fetches the records of both
 * ends and counts what was lost, duplicated or reordered (harness/count.py).
 * Only damage is seen here, as the payload is not kept.
 *
 *   stream PORT
 *
 * Data and control share one socket, and therefore one queue: the answer to
 * a control message proves that every data packet sent before it either has
 * arrived or never will.
 *
 * A data packet is little-endian: "LABD", run, number, size (32 bits each),
 * time of sending (64 bits, CLOCK_MONOTONIC of the sender in ns), filler that
 * depends on the number, CRC-32 of everything before it.  A packet whose size
 * or CRC is wrong is counted as damaged.
 *
 * A control message is one line of text, "ID COMMAND ARGUMENTS"; the answer
 * starts with the same ID and goes to the sender.  Every command can safely be
 * repeated, so that the asker just asks again when an answer does not come:
 *
 *   set RUN HOST PORT RATE SIZE DIRTY
 *                   forget the last run; record packets of this one; be ready
 *                   to send RATE packets/s of SIZE bytes to HOST:PORT, and to
 *                   write to DIRTY MiB of memory every 100 ms.  HOST may be
 *                   several addresses, A,B,..., which get a packet in turn
 *   join GROUP ADDRESS
 *                   receive what is sent to this multicast address, too, by
 *                   the interface that has ADDRESS
 *   go              do so
 *   rate RATE       send at this rate from now on; answer as for status
 *   wait sent|received N
 *                   answer once that many packets were sent, or received
 *   stop            send no more, dirty no more; answer as for status
 *   status          answer with all counters, and CLOCK_MONOTONIC in ns
 *   fetch N         answer with records from number N on, binary
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC           0x4442414cu     /* "LABD" */
#define MAX_PAYLOAD     65000
#define MAX_RECORDS     (1 << 20)
#define RECORDS_PER_MSG 50
#define BATCH           64              /* packets before looking elsewhere */
#define SECOND          1000000000ull
#define DIRTY_PERIOD    (SECOND / 10)
/* At most so many packets; a TAP's queue has 1,000 by default */
#define CATCH_UP        500
#define PAGE            4096
#define MAX_PEERS       8

struct header {
    uint32_t magic;
    uint32_t run;
    uint32_t seq;
    uint32_t size;
    uint64_t sent_ns;
} __attribute__((packed));

struct record {
    uint64_t arrival_ns;                /* our clock */
    uint64_t sent_ns;                   /* the peer's clock */
    uint32_t seq;
} __attribute__((packed));

static struct {
    int fd;

    /* what the last set command asked for */
    uint32_t run;
    struct sockaddr_in peer[MAX_PEERS];
    unsigned peers;
    uint64_t interval_ns;               /* 0: send nothing */
    uint32_t size;
    uint8_t *memory;
    size_t memory_size;

    bool going;
    uint64_t next_send_ns;
    uint64_t next_dirty_ns;

    /* the one pending wait command; id empty: none */
    char waiter_id[32];
    struct sockaddr_in waiter;
    const uint32_t *waiter_counter;
    uint32_t waiter_count;

    uint32_t sent;
    uint32_t send_errors;
    uint32_t received;                  /* number of records */
    uint32_t damaged;
    uint32_t foreign;                   /* intact, but of another run */
    uint64_t checksum_errors_before;
    uint64_t buffer_errors_before;
} s;

static struct record records[MAX_RECORDS];
static uint32_t crc_table[256];

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int k = 0; k < 8; k++) {
            c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        }
        crc_table[i] = c;
    }
}

static uint32_t crc32(const uint8_t *p, size_t n)
{
    uint32_t c = ~0u;

    while (n--) {
        c = crc_table[(c ^ *p++) & 0xff] ^ (c >> 8);
    }
    return ~c;
}

/*
 * What the kernel threw away before we could see it: wrong UDP checksums, and
 * a full socket buffer or UDP account, which is a fault of the lab and not of
 * the network.
 */
static void kernel_drops(uint64_t *checksum, uint64_t *buffer)
{
    FILE *f = fopen("/proc/net/snmp", "r");
    char line[512];
    uint64_t account;

    *checksum = *buffer = 0;
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "Udp: %*u %*u %*u %*u %" SCNu64 " %*u %" SCNu64
                   " %*u %" SCNu64, buffer, checksum, &account) == 3) {
            *buffer += account;
            break;
        }
    }
    if (f) {
        fclose(f);
    }
}

static bool send_one(void)
{
    static uint8_t buf[MAX_PAYLOAD];
    struct header h = { MAGIC, s.run, s.sent, s.size, now_ns() };
    size_t body = s.size - sizeof(uint32_t);
    uint32_t crc;

    memcpy(buf, &h, sizeof(h));
    for (size_t i = sizeof(h); i < body; i++) {
        buf[i] = h.seq + i * 7;
    }
    crc = crc32(buf, body);
    memcpy(buf + body, &crc, sizeof(crc));
    if (sendto(s.fd, buf, s.size, 0, (void *)&s.peer[s.sent % s.peers],
               sizeof(s.peer[0])) < 0) {
        s.send_errors++;                /* the number is used again */
        return false;
    }
    s.sent++;
    return true;
}

static void take_data(const uint8_t *buf, size_t len)
{
    struct header h;
    uint32_t crc;

    if (len >= sizeof(h) + sizeof(crc)) {
        memcpy(&h, buf, sizeof(h));
        memcpy(&crc, buf + len - sizeof(crc), sizeof(crc));
        if (h.magic == MAGIC && h.size == len &&
            crc == crc32(buf, len - sizeof(crc))) {
            if (h.run != s.run) {
                s.foreign++;
            } else if (s.received < MAX_RECORDS) {
                records[s.received++] =
                    (struct record) { now_ns(), h.sent_ns, h.seq };
            }
            return;
        }
    }
    s.damaged++;
}

static void answer(const struct sockaddr_in *to, const void *buf, size_t len)
{
    /* a lost answer is asked for again */
    (void)!sendto(s.fd, buf, len, 0, (const void *)to, sizeof(*to));
}

static bool set(const char *arguments)
{
    unsigned run, port, rate, size, dirty;
    char hosts[200], *rest = hosts, *host;

    if (sscanf(arguments, "%u %199s %u %u %u %u",
               &run, hosts, &port, &rate, &size, &dirty) != 6 ||
        size < sizeof(struct header) + sizeof(uint32_t) || size > MAX_PAYLOAD) {
        return false;
    }
    if (run == s.run) {
        return true;                    /* asked again */
    }
    s.run = run;
    s.peers = 0;
    while (s.peers < MAX_PEERS && (host = strsep(&rest, ","))) {
        struct sockaddr_in *peer = &s.peer[s.peers++];

        *peer = (struct sockaddr_in) { .sin_family = AF_INET,
                                       .sin_port = htons(port) };
        inet_pton(AF_INET, host, &peer->sin_addr);
    }
    s.interval_ns = rate ? SECOND / rate : 0;
    s.size = size;
    s.sent = s.send_errors = s.received = s.damaged = s.foreign = 0;
    kernel_drops(&s.checksum_errors_before, &s.buffer_errors_before);
    s.memory_size = (size_t)dirty << 20;
    s.memory = realloc(s.memory, s.memory_size);
    s.going = false;
    return true;
}

/* Asked again, it is a member already. */
static bool join(const char *arguments)
{
    struct ip_mreq m;
    char group[20], address[20];

    return sscanf(arguments, "%19s %19s", group, address) == 2 &&
           inet_pton(AF_INET, group, &m.imr_multiaddr) == 1 &&
           inet_pton(AF_INET, address, &m.imr_interface) == 1 &&
           (!setsockopt(s.fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &m, sizeof(m)) ||
            errno == EADDRINUSE);
}

static void go(void)
{
    if (!s.going) {
        s.next_send_ns = s.next_dirty_ns = now_ns();
        s.going = true;
    }
}

static void set_rate(unsigned rate)
{
    s.interval_ns = rate ? SECOND / rate : 0;
    s.next_send_ns = now_ns();
}

static void answer_error(const char *id, const struct sockaddr_in *to)
{
    char text[64];

    answer(to, text, snprintf(text, sizeof(text), "%s error", id));
}

static void answer_status(const char *id, const struct sockaddr_in *to)
{
    uint64_t checksum, buffer;
    char text[512];

    kernel_drops(&checksum, &buffer);
    answer(to, text,
           snprintf(text, sizeof(text),
                    "%s sent=%u send_errors=%u received=%u damaged=%u "
                    "foreign=%u checksum_errors=%" PRIu64
                    " buffer_errors=%" PRIu64 " clock=%" PRIu64,
                    id, s.sent, s.send_errors, s.received, s.damaged,
                    s.foreign, checksum - s.checksum_errors_before,
                    buffer - s.buffer_errors_before, now_ns()));
}

static void answer_records(const char *id, const struct sockaddr_in *to,
                           uint32_t first)
{
    char buf[64 + RECORDS_PER_MSG * sizeof(struct record)];
    uint32_t count = first < s.received ? s.received - first : 0;
    int len;

    if (count > RECORDS_PER_MSG) {
        count = RECORDS_PER_MSG;
    }
    len = snprintf(buf, 64, "%s ", id);
    memcpy(buf + len, records + first, count * sizeof(struct record));
    answer(to, buf, len + count * sizeof(struct record));
}

static void take_control(char *line, const struct sockaddr_in *from)
{
    char id[32], command[16], counter[16];
    unsigned n;
    int arguments = 0;

    if (sscanf(line, "%31s %15s %n", id, command, &arguments) < 2) {
        s.damaged++;                    /* it only looked like one */
        return;
    }
    line += arguments;
    if (!strcmp(command, "set") && set(line)) {
        answer_status(id, from);
    } else if (!strcmp(command, "join") && join(line)) {
        answer_status(id, from);
    } else if (!strcmp(command, "go")) {
        go();
        answer_status(id, from);
    } else if (!strcmp(command, "rate") && sscanf(line, "%u", &n) == 1) {
        set_rate(n);
        answer_status(id, from);
    } else if (!strcmp(command, "stop")) {
        s.going = false;
        answer_status(id, from);
    } else if (!strcmp(command, "status")) {
        answer_status(id, from);
    } else if (!strcmp(command, "fetch") && sscanf(line, "%u", &n) == 1) {
        answer_records(id, from, n);
    } else if (!strcmp(command, "wait") &&
               sscanf(line, "%15s %u", counter, &n) == 2) {
        strcpy(s.waiter_id, id);
        s.waiter = *from;
        s.waiter_counter = strcmp(counter, "sent") ? &s.received : &s.sent;
        s.waiter_count = n;
    } else {
        answer_error(id, from);
    }
}

/* Take what has arrived, at most one batch. */
static void receive(void)
{
    static uint8_t buf[MAX_PAYLOAD + 1];
    struct sockaddr_in from;

    for (int i = 0; i < BATCH; i++) {
        socklen_t from_len = sizeof(from);
        ssize_t len = recvfrom(s.fd, buf, MAX_PAYLOAD, MSG_DONTWAIT,
                               (void *)&from, &from_len);
        if (len < 0) {
            return;
        }
        buf[len] = 0;
        if (len && buf[0] >= '0' && buf[0] <= '9') {
            take_control((char *)buf, &from);
        } else {
            take_data(buf, len);
        }
    }
}

/* Do what is due; return when the next thing is, 0 for never. */
static uint64_t run_timers(void)
{
    uint64_t now = now_ns(), next = 0;

    if (s.going && s.interval_ns) {
        /* after some time without the CPU, do not send much faster than asked */
        if (now > s.next_send_ns + CATCH_UP * s.interval_ns) {
            s.next_send_ns = now;
        }
        for (int i = 0; i < BATCH && s.next_send_ns <= now; i++) {
            if (!send_one()) {
                s.next_send_ns = now + s.interval_ns;
                break;
            }
            s.next_send_ns += s.interval_ns;
        }
        next = s.next_send_ns;
    }
    if (s.going && s.memory_size) {
        if (s.next_dirty_ns <= now) {
            for (size_t i = 0; i < s.memory_size; i += PAGE) {
                s.memory[i]++;
            }
            s.next_dirty_ns = now + DIRTY_PERIOD;
        }
        if (!next || s.next_dirty_ns < next) {
            next = s.next_dirty_ns;
        }
    }
    if (s.waiter_id[0] && *s.waiter_counter >= s.waiter_count) {
        answer_status(s.waiter_id, &s.waiter);
        s.waiter_id[0] = 0;
    }
    return next;
}

int main(int argc, char **argv)
{
    struct sockaddr_in any = { .sin_family = AF_INET };
    int room = 48 << 20;    /* bytes; the kernel doubles it */

    if (argc != 2) {
        fprintf(stderr, "usage: stream PORT\n");
        return 2;
    }
    any.sin_port = htons(atoi(argv[1]));
    s.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(s.fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
    if (bind(s.fd, (void *)&any, sizeof(any)) < 0) {
        fprintf(stderr, "stream: cannot bind UDP port %s: %s\n", argv[1],
                strerror(errno));
        return 1;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    crc_init();

    for (;;) {
        struct pollfd p = { .fd = s.fd, .events = POLLIN };
        uint64_t next = run_timers(), now = now_ns();
        uint64_t rest = next > now ? next - now : 0;
        struct timespec t = { rest / SECOND, rest % SECOND };

        if (ppoll(&p, 1, next ? &t : NULL, NULL) > 0) {
            receive();
        }
    }
}
