/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * traffic.h - what the bench's traffic programs share
 *
 * A frame is IPv4 with UDP, or with TCP if the host shall leave its
 * segmentation to the receiver (GSO). Its payload begins with a tag: a magic
 * number, the number of the run, the frame's number within the run, and the
 * time of sending (CLOCK_MONOTONIC). So any receiver can count the frames of
 * this run, see their order, and measure the time that they took.
 *
 * Receivers keep their counts in a file that the harness maps, too: it reads
 * them at any time, without asking anybody. One writer, aligned 64 bit words.
 */
#ifndef BENCH_TRAFFIC_H
#define BENCH_TRAFFIC_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECOND 1000000000ULL

#define ETHERNET 14
#define UDP_HEADERS (ETHERNET + 20 + 8)
#define TCP_HEADERS (ETHERNET + 20 + 20)
#define MSS 1448
#define MAGIC 0x42454e43
#define FRAME_MAX (65536 + 4096)        /* QEMU's limit, too */

struct tag {
    uint32_t magic;
    uint32_t run;
    uint32_t seq;
    uint64_t ns;
} __attribute__((packed));

/* Latencies: 16 steps per factor of two, so 6 % wide */
#define STEPS 16
#define BUCKETS (40 * STEPS)

struct counters {
    uint64_t frames;            /* of the present run */
    uint64_t bytes;
    uint64_t run;
    uint64_t disordered;        /* not the successor of the one before */
    uint64_t foreign;           /* frames that are not ours, or of no run */
    uint64_t last_ns;           /* arrival of the last one */
    uint64_t stream_bytes;      /* all that came in, with framing */
    uint64_t spare;
    uint64_t latency[BUCKETS];
};

static inline uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static inline uint64_t cpu_time(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static inline unsigned bucket(uint64_t ns)
{
    unsigned e, b;

    if (ns < STEPS) {
        return ns;
    }
    e = 63 - __builtin_clzll(ns);               /* >= 4 */
    b = (e - 3) * STEPS + ((ns >> (e - 4)) & (STEPS - 1));
    return b < BUCKETS ? b : BUCKETS - 1;
}

/* The counters in the file PATH, which the harness has made. */
static inline struct counters *map_counters(const char *path)
{
    int fd = open(path, O_RDWR);
    void *p;

    if (fd < 0) {
        err(1, "%s", path);
    }
    p = mmap(NULL, sizeof(struct counters), PROT_READ | PROT_WRITE,
             MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        err(1, "%s", path);
    }
    close(fd);
    return p;
}

/*
 * Count the frame of LEN bytes at F, of which HAVE are there.
 * @at: when it was received; 0 if latency is not to be measured
 */
static inline void count_frame(struct counters *c, const uint8_t *f,
                               size_t len, size_t have, uint64_t at)
{
    static uint32_t next;
    struct tag t;
    size_t offset = UDP_HEADERS;

    if (have > 23 && f[23] == IPPROTO_TCP) {
        offset = TCP_HEADERS;
    }
    if (have < offset + sizeof(t)) {
        c->foreign++;
        return;
    }
    memcpy(&t, f + offset, sizeof(t));
    if (t.magic != MAGIC || t.run < c->run) {
        c->foreign++;
        return;
    }
    if (t.run != c->run) {
        c->frames = c->bytes = c->disordered = 0;
        memset(c->latency, 0, sizeof(c->latency));
        next = 0;
        c->run = t.run;
    }
    c->disordered += t.seq != next;
    next = t.seq + 1;
    c->bytes += len;
    if (at) {
        c->latency[bucket(at - t.ns)]++;
        c->last_ns = at;
    }
    __atomic_store_n(&c->frames, c->frames + 1, __ATOMIC_RELEASE);
}

/* Tell the harness that we are set up. */
static inline void say_ready(void)
{
    printf("ready\n");
    fflush(stdout);
}

static inline int unix_socket(const char *path, struct sockaddr_un *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        err(1, "socket");
    }
    memset(a, 0, sizeof(*a));
    a->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(a->sun_path)) {
        errx(1, "%s: too long for a socket", path);
    }
    strcpy(a->sun_path, path);
    return fd;
}

#endif
