/*
 * bulk - one end of a TCP connection that carries as much as it may
 *
 *   bulk sink PORT                  take connections, one after the other;
 *                                   runs in the guest
 *   bulk send HOST PORT MBIT [MB]   send at MBIT Mbit/s until SIGTERM, or MB
 *                                   million bytes; runs in the client
 *
 * Without MB all bytes are zeros, which the sink throws away.  With MB the first
 * one is not zero, the others are pseudo-random, and the sink answers the end of
 * the stream with the SHA-256 of all of them.
 *
 * The sender looks every millisecond at what the peer has acknowledged
 * (TCP_INFO).  Each time without progress of 5 ms or more makes a line
 *
 *   stall BEGIN LENGTH          CLOCK_MONOTONIC, in ns
 *
 * and at the end, also one for a stall that has not ended.  With MB:
 *
 *   time BEGIN END              connected; all is acknowledged
 *   sent DIGEST                 hexadecimal
 *   received DIGEST             what the sink says
 *
 * and in any case the last line is
 *
 *   total ACKED RETRANSMITTED   bytes, segments
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <nettle/sha2.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND  1000000000ull
#define STALL   (5 * SECOND / 1000)
#define ROUND   8                       /* writes before looking at the clock */

/* What is sent: @buf from @begin to @end, and then more */
struct source {
    bool random;
    uint64_t left;                      /* bytes that are not in @buf yet */
    uint64_t state;                     /* of the generator, never 0 */
    struct sha256_ctx sha;              /* of all that was in @buf */
    size_t begin, end;
    uint64_t buf[8192];
};

static volatile sig_atomic_t ended;

static void end(int signal)
{
    ended = signal;
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static int fail(const char *step)
{
    fprintf(stderr, "bulk: %s: %s\n", step, strerror(errno));
    return 1;
}

static void hex(struct sha256_ctx *sha, char text[2 * SHA256_DIGEST_SIZE + 1])
{
    uint8_t digest[SHA256_DIGEST_SIZE];

    sha256_digest(sha, sizeof(digest), digest);
    for (int i = 0; i < SHA256_DIGEST_SIZE; i++) {
        sprintf(text + 2 * i, "%02x", digest[i]);
    }
}

static void take(int peer)
{
    static char buf[65536];
    char text[2 * SHA256_DIGEST_SIZE + 1];
    struct sha256_ctx sha;
    ssize_t len = read(peer, buf, sizeof(buf));
    bool answer = len > 0 && buf[0];

    sha256_init(&sha);
    while (len > 0) {
        if (answer) {
            sha256_update(&sha, len, (uint8_t *)buf);
        }
        len = read(peer, buf, sizeof(buf));
    }
    if (answer && len == 0) {
        hex(&sha, text);
        send(peer, text, strlen(text), MSG_NOSIGNAL);
    }
    close(peer);
}

static int sink(int fd, struct sockaddr_in *address)
{
    int one = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (void *)address, sizeof(*address)) < 0 || listen(fd, 1) < 0) {
        return fail("listen");
    }
    for (;;) {
        int peer = accept(fd, NULL, NULL);

        if (peer < 0) {
            return fail("accept");
        }
        take(peer);
    }
}

static void source_init(struct source *s, uint64_t mb)
{
    s->random = mb;
    s->left = mb ? mb * 1000000 : UINT64_MAX;
    s->state = now_ns() | 1;
    sha256_init(&s->sha);
}

/* Have something in the buffer, unless there is nothing left */
static void source_fill(struct source *s)
{
    if (s->begin < s->end) {
        return;
    }
    s->begin = 0;
    s->end = s->left < sizeof(s->buf) ? s->left : sizeof(s->buf);
    s->left -= s->end;
    if (!s->random) {
        return;
    }
    for (size_t i = 0; i < s->end; i += sizeof(s->buf[0])) {
        s->state ^= s->state << 13;
        s->state ^= s->state >> 7;
        s->state ^= s->state << 17;
        s->buf[i / sizeof(s->buf[0])] = s->state;
    }
    *(uint8_t *)s->buf |= 1;            /* the first of all must not be 0 */
    sha256_update(&s->sha, s->end, (uint8_t *)s->buf);
}

/* Send what the socket takes now, if not too much; false: an error */
static bool send_some(int fd, struct source *s)
{
    for (int i = 0; i < ROUND; i++) {
        ssize_t len;

        source_fill(s);
        if (s->begin == s->end) {
            break;
        }
        len = send(fd, (char *)s->buf + s->begin, s->end - s->begin,
                   MSG_DONTWAIT | MSG_NOSIGNAL);
        if (len < 0) {
            return errno == EAGAIN;
        }
        s->begin += len;
    }
    return true;
}

static struct tcp_info tcp_info(int fd)
{
    struct tcp_info info = {};
    socklen_t len = sizeof(info);

    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len);
    return info;
}

static void report(uint64_t since, uint64_t now)
{
    if (now - since >= STALL) {
        printf("stall %llu %llu\n", (unsigned long long)since,
               (unsigned long long)(now - since));
    }
}

/* The end of a stream of known length.  0, or 1 for an error. */
static int finish(int fd, struct source *s, uint64_t begin, uint64_t now)
{
    char sent[2 * SHA256_DIGEST_SIZE + 1], received[2 * SHA256_DIGEST_SIZE + 1] = "";

    shutdown(fd, SHUT_WR);
    if (recv(fd, received, sizeof(received) - 1, MSG_WAITALL) !=
        sizeof(received) - 1) {
        return fail("the sink's answer");
    }
    hex(&s->sha, sent);
    printf("time %llu %llu\nsent %s\nreceived %s\n", (unsigned long long)begin,
           (unsigned long long)now, sent, received);
    return 0;
}

static int send_bulk(int fd, struct sockaddr_in *address, unsigned mbit,
                     unsigned mb)
{
    static struct source s;
    unsigned rate = mbit * 125000;      /* bytes/s */
    uint64_t acked = 0, begin, since, now;
    struct tcp_info info;

    setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate));
    if (connect(fd, (void *)address, sizeof(*address)) < 0) {
        return fail("connect");
    }
    source_init(&s, mb);
    signal(SIGTERM, end);
    begin = since = now = now_ns();
    while (!ended && !(mb && acked >= mb * 1000000ull)) {
        if (!send_some(fd, &s)) {
            return fail("send");
        }
        nanosleep(&(struct timespec) { .tv_nsec = SECOND / 1000 }, NULL);
        info = tcp_info(fd);
        now = now_ns();
        if (info.tcpi_bytes_acked > acked) {
            report(since, now);
            acked = info.tcpi_bytes_acked;
            since = now;
        }
    }
    report(since, now_ns());
    if (mb && finish(fd, &s, begin, now)) {
        return 1;
    }
    info = tcp_info(fd);
    printf("total %llu %u\n", (unsigned long long)info.tcpi_bytes_acked,
           info.tcpi_total_retrans);
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (argc == 3 && !strcmp(argv[1], "sink")) {
        address.sin_port = htons(atoi(argv[2]));
        return sink(fd, &address);
    }
    if ((argc == 5 || argc == 6) && !strcmp(argv[1], "send") &&
        inet_pton(AF_INET, argv[2], &address.sin_addr)) {
        address.sin_port = htons(atoi(argv[3]));
        return send_bulk(fd, &address, atoi(argv[4]),
                         argc == 6 ? atoi(argv[5]) : 0);
    }
    fprintf(stderr,
            "usage: bulk sink PORT | bulk send HOST PORT MBIT [MB]\n");
    return 2;
}
