/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sink - the peer of a net filter: reads its messages and counts the frames
 *
 *   sink --listen PATH --counters FILE [--vnet] [--rate BYTES/s | --stopped]
 *
 * Listens on a unix socket and accepts one connection after the other. As fast
 * as it can, or at a rate, or not at all (--stopped): then the connection is
 * up, and nobody reads it.
 *
 * A message is a length, with --vnet the length of the vnet header, the vnet
 * header, and the frame; lengths are of 32 bits, in network byte order. A
 * length that cannot be ends the program: the stream is out of step.
 */
#include "traffic.h"

#define BUFFER (1 << 20)
#define CHUNK 65536             /* of a slow reader */

static uint8_t buffer[BUFFER];

/* Count the whole messages in the N bytes at the buffer's begin. Returns how
 * many bytes those were. */
static size_t parse(struct counters *c, size_t n, bool vnet, uint64_t at)
{
    size_t done = 0, head = vnet ? 8 : 4;

    while (n - done >= head) {
        uint32_t len, header = 0;

        memcpy(&len, buffer + done, 4);
        len = ntohl(len);
        if (vnet) {
            memcpy(&header, buffer + done + 4, 4);
            header = ntohl(header);
        }
        if (len > FRAME_MAX || header > len) {
            errx(1, "out of step: length %u, vnet header %u", len, header);
        }
        if (n - done < head + len) {
            break;
        }
        count_frame(c, buffer + done + head + header, len - header,
                    len - header, at);
        done += head + len;
    }
    return done;
}

static void serve(int fd, struct counters *c, bool vnet, double rate)
{
    uint64_t begin = now(), taken = 0;
    size_t have = 0;

    for (;;) {
        size_t room = rate ? CHUNK : BUFFER - have;
        ssize_t r = read(fd, buffer + have, room);
        size_t used;

        if (r < 0 && errno == EINTR) {
            continue;
        }
        if (r <= 0) {
            return;
        }
        have += r;
        c->stream_bytes += r;
        used = parse(c, have, vnet, now());
        memmove(buffer, buffer + used, have - used);
        have -= used;
        if (rate) {
            uint64_t due;
            struct timespec t;

            taken += r;
            due = begin + taken * (double)SECOND / rate;
            t = (struct timespec) { due / SECOND, due % SECOND };
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "listen", 1, NULL, 'l' }, { "counters", 1, NULL, 'c' },
        { "vnet", 0, NULL, 'v' }, { "rate", 1, NULL, 'r' },
        { "stopped", 0, NULL, 's' }, { NULL, 0, NULL, 0 }
    };
    const char *path = NULL, *counters = NULL;
    bool vnet = false, stopped = false;
    struct counters *c;
    struct sockaddr_un a;
    double rate = 0;
    int o, listener, fd;

    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (o) {
        case 'l': path = optarg; break;
        case 'c': counters = optarg; break;
        case 'v': vnet = true; break;
        case 'r': rate = strtod(optarg, NULL); break;
        case 's': stopped = true; break;
        default: return 2;
        }
    }
    if (!path || !counters) {
        errx(2, "--listen PATH --counters FILE");
    }
    c = map_counters(counters);
    listener = unix_socket(path, &a);
    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) ||
        listen(listener, 1)) {
        err(1, "%s", path);
    }
    say_ready();
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        if (stopped) {
            pause();            /* until we are killed */
        }
        serve(fd, c, vnet, rate);
        close(fd);
    }
    err(1, "accept");
}
