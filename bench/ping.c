/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ping - round trips of QEMU's monitor: how long is its main loop away?
 *
 *   ping --connect PATH --interval US --counters FILE
 *
 * Sends query-name again and again, the next one US after the answer to the
 * last, and counts the times in the latency histogram of FILE (frames: how
 * many; spare: the longest, in ns), until it is killed. Runs with real-time
 * priority if it may, so that a busy CPU does not keep it from looking at the
 * clock.
 */
#include "traffic.h"

#include <sched.h>

static char buffer[65536];
static size_t have;

/* Read until a line that holds WHAT; other lines are events. */
static void expect(int fd, const char *what)
{
    for (;;) {
        char *end = memchr(buffer, '\n', have);
        ssize_t r;

        if (end) {
            size_t line = end + 1 - buffer;
            bool found, failed;

            *end = 0;
            found = strstr(buffer, what);
            failed = strstr(buffer, "\"error\"");
            if (failed) {
                errx(1, "QMP: %s", buffer);
            }
            memmove(buffer, buffer + line, have - line);
            have -= line;
            if (found) {
                return;
            }
            continue;
        }
        r = read(fd, buffer + have, sizeof(buffer) - 1 - have);
        if (r <= 0) {
            errx(1, "QMP: connection closed");
        }
        have += r;
    }
}

static void command(int fd, const char *text)
{
    if (write(fd, text, strlen(text)) < 0) {
        err(1, "QMP");
    }
    expect(fd, "\"return\"");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "connect", 1, NULL, 'o' }, { "interval", 1, NULL, 'i' },
        { "counters", 1, NULL, 'c' }, { NULL, 0, NULL, 0 }
    };
    struct sched_param priority = { .sched_priority = 1 };
    const char *path = NULL, *counters = NULL;
    unsigned long interval = 0;
    struct counters *c;
    struct sockaddr_un a;
    int o, fd;

    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (o) {
        case 'o': path = optarg; break;
        case 'i': interval = strtoul(optarg, NULL, 0) * 1000; break;
        case 'c': counters = optarg; break;
        default: return 2;
        }
    }
    if (!path || !counters) {
        errx(2, "--connect PATH --counters FILE");
    }
    c = map_counters(counters);
    fd = unix_socket(path, &a);
    if (connect(fd, (struct sockaddr *)&a, sizeof(a))) {
        err(1, "%s", path);
    }
    expect(fd, "\"QMP\"");
    command(fd, "{\"execute\": \"qmp_capabilities\"}\n");
    sched_setscheduler(0, SCHED_FIFO, &priority);
    say_ready();
    for (;;) {
        uint64_t begin = now(), took;
        struct timespec t;

        command(fd, "{\"execute\": \"query-name\"}\n");
        took = now() - begin;
        c->latency[bucket(took)]++;
        c->spare = took > c->spare ? took : c->spare;
        __atomic_store_n(&c->frames, c->frames + 1, __ATOMIC_RELEASE);
        begin += took + interval;
        t = (struct timespec) { begin / SECOND, begin % SECOND };
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    }
}
