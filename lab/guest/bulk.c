/*
 * bulk - one end of a TCP connection that carries as much as it may
 *
 *   bulk sink PORT              take connections, one after the other, and
 *                               throw away what comes; runs in the guest
 *   bulk send HOST PORT MBIT    send at MBIT Mbit/s until SIGTERM; runs in the
 *                               client
 *
 * The sender looks every millisecond at what the peer has acknowledged
 * (TCP_INFO).  Each time without progress of 5 ms or more makes a line
 *
 *   stall BEGIN LENGTH          CLOCK_MONOTONIC, in ns
 *
 * and at the end, also one for a stall that has not ended:
 *
 *   total ACKED RETRANSMITTED   bytes, segments
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND  1000000000ull
#define STALL   (5 * SECOND / 1000)

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

static int sink(int fd, struct sockaddr_in *address)
{
    static char buf[65536];
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
        while (read(peer, buf, sizeof(buf)) > 0) {
            continue;
        }
        close(peer);
    }
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

static int send_bulk(int fd, struct sockaddr_in *address, unsigned mbit)
{
    static char buf[65536];
    unsigned rate = mbit * 125000;      /* bytes/s */
    uint64_t acked = 0, since, now;
    struct tcp_info info;

    setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate));
    if (connect(fd, (void *)address, sizeof(*address)) < 0) {
        return fail("connect");
    }
    signal(SIGTERM, end);
    since = now_ns();
    while (!ended) {
        ssize_t len = send(fd, buf, sizeof(buf), MSG_DONTWAIT | MSG_NOSIGNAL);

        if (len < 0 && errno != EAGAIN) {
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
    if (argc == 5 && !strcmp(argv[1], "send") &&
        inet_pton(AF_INET, argv[2], &address.sin_addr)) {
        address.sin_port = htons(atoi(argv[3]));
        return send_bulk(fd, &address, atoi(argv[4]));
    }
    fprintf(stderr, "usage: bulk sink PORT | bulk send HOST PORT MBIT\n");
    return 2;
}
