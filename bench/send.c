/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * send - numbered, time-stamped frames, at a given rate or as fast as possible
 *
 *   send --interface IF ...   onto IF, through an AF_PACKET socket
 *   send --stream PATH ...    as messages of QEMU's net filters, into a unix
 *                             socket on which somebody listens
 *   send --pcap FILE ...      into a capture file, for programs that replay one
 *
 * Batches of up to 64 frames go out with one sendmmsg() or write(). Without
 * --bypass the frames pass the interface's queueing discipline, and so are seen
 * by the other packet sockets on it; with it they are not, but a full TAP queue
 * is told (ENOBUFS), and the frame sent again: nothing is lost.
 *
 * With --rate, a batch is what is due in 100 us, at most 64 frames, and the
 * program spins until the next one is due. It then has the CPU for itself in
 * any case, which makes its own CPU time meaningless; --sleep makes it sleep.
 * What could not be sent in time is made up for: the rate is an average.
 *
 * The TAP must not have the offload of TCP segmentation switched off if --gso
 * is to send what it says.
 *
 * At the end one line of JSON on stdout says what was sent.
 */
#include "traffic.h"

#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>

#define BATCH 64
#define SLICE 100000            /* ns of frames in a batch */

static const uint8_t guest[] = { 0x52, 0x54, 0, 0x77, 0, 2 };
static const uint8_t host[] = { 0x52, 0x54, 0, 0x77, 0, 1 };

struct slot {
    uint32_t be_len, be_vnet_len;
    struct virtio_net_hdr vnet;
    uint8_t frame[FRAME_MAX];
};

static struct slot *slots;
static struct iovec iov[BATCH][4];
static struct mmsghdr messages[BATCH];

static uint16_t ip_checksum(const uint8_t *p)
{
    uint32_t sum = 0;
    int i;

    for (i = 0; i < 20; i += 2) {
        sum += p[i] << 8 | p[i + 1];
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return ~sum;
}

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = v >> 8;
    p[1] = v;
}

/* Headers and a payload that does not compress, for the slot S */
static void fill(struct slot *s, size_t size, bool gso)
{
    uint8_t *f = s->frame, *ip = f + ETHERNET, *l4 = ip + 20;
    size_t i, headers = gso ? TCP_HEADERS : UDP_HEADERS;

    memcpy(f, guest, 6);
    memcpy(f + 6, host, 6);
    put16(f + 12, ETHERTYPE_IP);
    ip[0] = 0x45;
    put16(ip + 2, size - ETHERNET);
    ip[8] = 64;
    ip[9] = gso ? IPPROTO_TCP : IPPROTO_UDP;
    memcpy(ip + 12, "\x0a\x4d\0\1\x0a\x4d\0\2", 8);
    put16(ip + 10, ip_checksum(ip));
    put16(l4, 5000);
    put16(l4 + 2, 9);
    if (gso) {
        l4[12] = 5 << 4;
        l4[13] = 0x10;                          /* ACK */
        put16(l4 + 14, 0xffff);
        s->vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        s->vnet.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        s->vnet.hdr_len = TCP_HEADERS;
        s->vnet.gso_size = MSS;
        s->vnet.csum_start = ETHERNET + 20;
        s->vnet.csum_offset = 16;
    } else {
        put16(l4 + 4, size - ETHERNET - 20);    /* no checksum: 0 */
    }
    for (i = headers; i < size; i++) {
        f[i] = i * 167 >> 3;
    }
}

static int open_interface(const char *name, bool vnet, bool bypass)
{
    struct sockaddr_ll a = {
        .sll_family = AF_PACKET,
        .sll_ifindex = if_nametoindex(name),
    };
    int one = 1, size = 32 << 20;
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        err(1, "AF_PACKET socket");
    }
    if (!a.sll_ifindex) {
        err(1, "%s", name);
    }
    if (vnet && setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one,
                           sizeof(one))) {
        err(1, "PACKET_VNET_HDR");
    }
    if (bypass && setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one,
                             sizeof(one))) {
        err(1, "PACKET_QDISC_BYPASS");
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a))) {
        err(1, "bind to %s", name);
    }
    return fd;
}

/* Send the first N messages. Returns how often it had to be tried again. */
static unsigned send_packets(int fd, unsigned n)
{
    unsigned done = 0, again = 0;

    while (done < n) {
        int r = sendmmsg(fd, messages + done, n - done, 0);

        if (r > 0) {
            done += r;
        } else if (errno == ENOBUFS || errno == EAGAIN) {
            struct timespec pause = { 0, 20000 };

            again++;
            nanosleep(&pause, NULL);    /* the queue is full: let it drain */
        } else {
            err(1, "sendmmsg");
        }
    }
    return again;
}

static void send_stream(int fd, unsigned n, unsigned parts)
{
    struct iovec *v = &iov[0][0], all[BATCH * 4];
    unsigned i, j, first = 0, count = 0;

    for (i = 0; i < n; i++) {
        for (j = 0; j < parts; j++) {
            all[count++] = v[i * 4 + j];
        }
    }
    while (first < count) {
        ssize_t r = writev(fd, all + first, count - first);

        if (r < 0) {
            err(1, "write");
        }
        while (first < count && (size_t)r >= all[first].iov_len) {
            r -= all[first++].iov_len;
        }
        if (first < count) {
            all[first].iov_base = (char *)all[first].iov_base + r;
            all[first].iov_len -= r;
        }
    }
}

static void write_pcap(const char *path, unsigned n, size_t size)
{
    uint32_t head[6] = { 0xa1b2c3d4, 4 << 16 | 2, 0, 0, 262144, 1 };
    FILE *f = fopen(path, "wb");
    unsigned i;

    if (!f) {
        err(1, "%s", path);
    }
    fwrite(head, sizeof(head), 1, f);
    for (i = 0; i < n; i++) {
        uint32_t record[4] = { 1 + i / 1000000, i % 1000000, size, size };
        struct slot *s = &slots[i % BATCH];
        struct tag t = { MAGIC, 1, i, 0 };

        memcpy(s->frame + UDP_HEADERS, &t, sizeof(t));
        fwrite(record, sizeof(record), 1, f);
        fwrite(s->frame, size, 1, f);
    }
    if (fclose(f)) {
        err(1, "%s", path);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "interface", 1, NULL, 'i' }, { "stream", 1, NULL, 's' },
        { "pcap", 1, NULL, 'p' }, { "size", 1, NULL, 'z' },
        { "count", 1, NULL, 'c' }, { "seconds", 1, NULL, 't' },
        { "rate", 1, NULL, 'r' }, { "run", 1, NULL, 'n' },
        { "gso", 0, NULL, 'g' }, { "vnet", 0, NULL, 'v' },
        { "bypass", 0, NULL, 'b' }, { "sleep", 0, NULL, 'l' },
        { "batch", 1, NULL, 'B' }, { NULL, 0, NULL, 0 }
    };
    const char *interface = NULL, *stream = NULL, *pcap = NULL;
    size_t size = 64;
    uint64_t count = UINT64_MAX, limit = 0, sent = 0, again = 0, begin, end;
    double seconds = 0, rate = 0;
    unsigned run = 1, batch = BATCH, parts, i;
    bool gso = false, vnet = false, bypass = false, asleep = false;
    struct sockaddr_un a;
    uint64_t cpu;
    int c, fd;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'i': interface = optarg; break;
        case 's': stream = optarg; break;
        case 'p': pcap = optarg; break;
        case 'z': size = strtoul(optarg, NULL, 0); break;
        case 'c': count = strtoull(optarg, NULL, 0); break;
        case 't': seconds = strtod(optarg, NULL); break;
        case 'r': rate = strtod(optarg, NULL); break;
        case 'n': run = strtoul(optarg, NULL, 0); break;
        case 'g': gso = vnet = true; break;
        case 'v': vnet = true; break;
        case 'b': bypass = true; break;
        case 'l': asleep = true; break;
        case 'B': batch = strtoul(optarg, NULL, 0); break;
        default: return 2;
        }
    }
    if (!interface + !stream + !pcap != 2 || size > FRAME_MAX ||
        size < (gso ? TCP_HEADERS : UDP_HEADERS) + sizeof(struct tag)) {
        errx(2, "one of --interface, --stream, --pcap; and a --size of %zu "
             "to %d", UDP_HEADERS + sizeof(struct tag), FRAME_MAX);
    }
    slots = calloc(BATCH, sizeof(*slots));
    if (!slots) {
        err(1, "memory");
    }
    parts = stream ? (vnet ? 4 : 2) : 1 + vnet;
    for (i = 0; i < BATCH; i++) {
        struct slot *s = &slots[i];
        unsigned part = 0;

        fill(s, size, gso);
        s->be_len = htonl(size + (vnet ? sizeof(s->vnet) : 0));
        s->be_vnet_len = htonl(sizeof(s->vnet));
        if (stream) {
            iov[i][part++] = (struct iovec){ &s->be_len, 4 };
        }
        if (stream && vnet) {
            iov[i][part++] = (struct iovec){ &s->be_vnet_len, 4 };
        }
        if (vnet) {
            iov[i][part++] = (struct iovec){ &s->vnet, sizeof(s->vnet) };
        }
        iov[i][part++] = (struct iovec){ s->frame, size };
        messages[i].msg_hdr.msg_iov = iov[i];
        messages[i].msg_hdr.msg_iovlen = part;
    }
    if (pcap) {
        write_pcap(pcap, count, size);
        return 0;
    }
    if (interface) {
        fd = open_interface(interface, vnet, bypass);
    } else {
        fd = unix_socket(stream, &a);
        if (connect(fd, (struct sockaddr *)&a, sizeof(a))) {
            err(1, "%s", stream);
        }
    }
    if (rate) {
        double due = rate * SLICE / SECOND;

        batch = due < 1 ? 1 : due < batch ? due : batch;
    }
    if (batch > BATCH) {
        batch = BATCH;
    }

    cpu = cpu_time();
    begin = now();
    limit = seconds ? begin + seconds * SECOND : UINT64_MAX;
    for (;;) {
        unsigned n = count - sent < batch ? count - sent : batch;
        uint64_t t = now();

        if (!n || t >= limit) {
            break;
        }
        if (rate) {
            uint64_t due = begin + sent * (double)SECOND / rate;

            if (due >= limit) {
                break;
            }
            if (asleep && t < due) {
                struct timespec at = { due / SECOND, due % SECOND };

                clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
                t = now();
            }
            while (t < due) {
                t = now();
            }
        }
        for (i = 0; i < n; i++) {
            struct tag g = { MAGIC, run, sent + i, t };

            memcpy(slots[i].frame + (gso ? TCP_HEADERS : UDP_HEADERS), &g,
                   sizeof(g));
        }
        if (interface) {
            again += send_packets(fd, n);
        } else {
            send_stream(fd, n, parts);
        }
        sent += n;
    }
    end = now();
    printf("{\"sent\": %llu, \"ns\": %llu, \"cpu_ns\": %llu, "
           "\"again\": %llu, \"begin\": %llu}\n", (unsigned long long)sent,
           (unsigned long long)(end - begin),
           (unsigned long long)(cpu_time() - cpu), (unsigned long long)again,
           (unsigned long long)begin);
    return 0;
}
