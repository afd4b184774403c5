/*
 * Switchover: reading the queues of netdevs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * In each turn the reader reads up to TURN_FRAMES frames from each queue that
 * has some, into the port's backlog, and wakes the sender.  What is to be done
 * in the main loop, such as to deliver frames to the NIC, is done by the port's
 * BH, which the reader schedules.
 *
 * Once it has emptied the queues it rests for 1 ms, in which frames gather: to
 * wake up for each, and to send each, costs more CPU time than a small host has
 * at 50,000 frames/s.
 *
 * When a backlog reaches its limit, its queues are no longer polled: frames
 * stay in the kernel, which counts those that it has no room for.  While a VM
 * is on its way here, old frames are of less use than new ones, and give way.
 */

#include "qemu/osdep.h"
#include "net/switchover/reader.h"
#include "trace.h"

/* Frames that are read from one queue in one turn, at most */
#define TURN_FRAMES 64

/*
 * The announcement needs some time to pass through the network, and frames for
 * this host may be on their way.  DONE comes when the queues have been empty
 * for EMPTY_US, not before ANNOUNCED_US, and at the latest after
 * ANNOUNCED_MAX_US: a network that floods goes on for ever.
 */
#define EMPTY_US 1000
#define ANNOUNCED_US 2000
#define ANNOUNCED_MAX_US 20000

/* How long a frame is recent */
#define RECENT_US (100 * 1000)

/* How long a frame may take to get here */
#define AROUND_US (20 * 1000)

static bool port_reads(SwitchoverPort *port)
{
    return port->reading && !port->full;
}

static bool port_has_room(SwitchoverPort *port)
{
    SwitchoverBacklog *b = port->backlog;

    while (switchover_backlog_bytes(b) >= port->limit) {
        /* As long as frames may give way, no other thread frees any */
        if (!port->old || b->head >= MIN(port->old, b->tail)) {
            return false;
        }
        switchover_backlog_pop(b, b->head + 1);
        port->overwritten++;
    }
    return true;
}

/* Read some frames from one queue; returns whether it is empty now */
static bool port_read_queue(SwitchoverPort *port, unsigned queue, uint64_t *n)
{
    SwitchoverPortQueue *q = &port->queues[queue];

    for (unsigned i = 0; i < TURN_FRAMES; i++) {
        ssize_t len;

        if (switchover_threads_pausing()) {
            break;
        }
        if (!port_has_room(port)) {
            port->full = true;
            return false;
        }
        len = switchover_backlog_read(port->backlog, q->fd, queue, q->hdr_len);
        if (len < 0) {
            if (len != -EAGAIN && len != -EFAULT) {
                /*
                 * The interface is gone: poll() would return at once, for
                 * ever.  Linux says EFAULT when it is only down (6.18).
                 */
                trace_switchover_reader_gone(port, queue, -len);
                q->fd = -1;
            }
            return true;
        }
        if (len <= (ssize_t)q->hdr_len) {
            qatomic_inc(&port->invalid);
            continue;
        }
        ++*n;
    }
    return false;
}

/* After an announcement: does this host still get frames for the guest? */
static bool port_is_silent(SwitchoverPort *port, bool empty)
{
    int64_t now = g_get_monotonic_time();

    return !port_reads(port) || now - port->announced > ANNOUNCED_MAX_US ||
           (empty && now - port->announced > ANNOUNCED_US &&
            now - port->last_read > EMPTY_US);
}

bool switchover_reader_prepare(SwitchoverPort *port, GArray *fds)
{
    if (port->rest) {
        port->rest = false;
        return true;
    }
    port->full = !port_has_room(port);
    for (unsigned i = 0; port_reads(port) && i < port->n_queues; i++) {
        GPollFD pollfd = { .fd = port->queues[i].fd, .events = G_IO_IN };

        g_array_append_val(fds, pollfd);
    }
    /* Frames become old enough to give way */
    return port->announced || (port->full && port->ages);
}

uint64_t switchover_reader_recent(SwitchoverPort *port)
{
    int64_t now = g_get_monotonic_time();

    return now - port->last_read > RECENT_US ? port->backlog->tail :
           port->mark[now - port->marked <= RECENT_US];
}

static void port_mark(SwitchoverPort *port, int64_t now)
{
    if (now - port->marked > RECENT_US) {
        port->marked = now;
        port->mark[1] = now - port->last_read > RECENT_US ?
                        port->backlog->tail : port->mark[0];
        port->mark[0] = port->backlog->tail;
    }
    if (port->arrives && now - port->arrives > AROUND_US) {
        port->arrives = 0;
        qatomic_set(&port->around, port->backlog->tail);
    }
    if (port->ages) {
        port->old = switchover_reader_recent(port);
    }
}

void switchover_reader_turn(SwitchoverPort *port)
{
    bool empty = true;
    uint64_t n = 0;

    port_mark(port, g_get_monotonic_time());
    for (unsigned i = 0; port_reads(port) && i < port->n_queues; i++) {
        empty &= port_read_queue(port, i, &n);
    }
    if (n) {
        qatomic_set(&port->read, port->read + n);
        port->last_read = g_get_monotonic_time();
        port->rest = empty;
        switchover_sender_kick();
        if (port->bh) {
            qemu_bh_schedule(port->bh);
        }
    }
    if (port->announced && port_is_silent(port, empty)) {
        port->announced = 0;
        port->emptied = port->backlog->tail;
        switchover_backlog_append_control(port->backlog, SWITCHOVER_DONE, 0);
        switchover_sender_kick();
        if (port->bh) {
            qemu_bh_schedule(port->bh);
        }
        trace_switchover_reader_emptied(port, n);
    }
}
