/*
 * Switchover: the thread that reads the queues of netdevs, and sends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * While the state of a stopped VM is saved, the migration thread holds the BQL
 * and the main loop stands still.  The network does not: at 20,000 frames/s a
 * TAP's queue of 1,000 overflows after 50 ms.  So a thread of its own reads the
 * queues, one for all netdevs of the process.  It never takes the BQL.
 *
 * Theory of operation
 *
 * The thread polls the queues of all ports that read, and the connections of
 * those that wait to send.  In each turn it reads up to TURN_FRAMES frames from
 * each queue that has some, into the port's backlog, and lets the port send.
 * What a port must do in the main loop, such as to deliver frames to its NIC,
 * is done by its BH, which the thread schedules.
 *
 * When a backlog reaches its limit, its queues are no longer polled: frames
 * stay in the kernel, which counts those that it has no room for.
 *
 * The lock is held during a turn, not while polling.  Who has the BQL gets the
 * lock by pause(), which makes the thread end its turn early; it then changes
 * the ports as it likes.
 *
 * There is no thread while there is no port: an idle VM costs nothing.
 */

#include "qemu/osdep.h"
#include "net/switchover/reader.h"
#include "qemu/event_notifier.h"
#include "qemu/lockable.h"
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

static struct {
    QemuThread thread;
    bool running;
    QemuMutex lock;
    QemuCond resumed;
    EventNotifier event;        /* look at the ports */
    int pauses;                 /* who waits for the lock; atomic */
    bool quit;
    QLIST_HEAD(, SwitchoverPort) ports;
} reader = {
    .ports = QLIST_HEAD_INITIALIZER(reader.ports),
};

static void __attribute__((constructor)) reader_init(void)
{
    qemu_mutex_init(&reader.lock);
    qemu_cond_init(&reader.resumed);
}

static void reader_poll_add(GArray *fds, int fd, short events)
{
    GPollFD pollfd = { .fd = fd, .events = events };

    g_array_append_val(fds, pollfd);
}

static bool port_reads(SwitchoverPort *port)
{
    return port->reading && !port->full;
}

static void reader_poll_prepare(GArray *fds)
{
    SwitchoverPort *port;

    g_array_set_size(fds, 0);
    reader_poll_add(fds, event_notifier_get_fd(&reader.event), G_IO_IN);
    QLIST_FOREACH(port, &reader.ports, next) {
        port->full = switchover_backlog_bytes(port->backlog) >= port->limit;
        for (unsigned i = 0; port_reads(port) && i < port->n_queues; i++) {
            reader_poll_add(fds, port->queues[i].fd, G_IO_IN);
        }
        if (port->send && port->blocked >= 0) {
            reader_poll_add(fds, port->blocked, G_IO_OUT);
        }
    }
}

/* Read some frames from one queue; returns whether it is empty now */
static bool port_read_queue(SwitchoverPort *port, unsigned queue, uint64_t *n)
{
    SwitchoverReaderQueue *q = &port->queues[queue];

    for (unsigned i = 0; i < TURN_FRAMES; i++) {
        ssize_t len;

        if (qatomic_read(&reader.pauses)) {
            break;
        }
        if (switchover_backlog_bytes(port->backlog) >= port->limit) {
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

static void port_turn(SwitchoverPort *port)
{
    bool empty = true;
    uint64_t n = 0;

    for (unsigned i = 0; port_reads(port) && i < port->n_queues; i++) {
        empty &= port_read_queue(port, i, &n);
    }
    if (n) {
        qatomic_set(&port->read, port->read + n);
        port->last_read = g_get_monotonic_time();
    }
    if (port->announced && port_is_silent(port, empty)) {
        port->announced = 0;
        port->emptied = port->backlog->tail;
        switchover_backlog_append_control(port->backlog, SWITCHOVER_DONE, 0);
        trace_switchover_reader_emptied(port, n);
    }
    if (port->send) {
        port->blocked = port->send(port);
    }
    if (n && port->bh) {
        qemu_bh_schedule(port->bh);
    }
}

static void *reader_thread(void *opaque)
{
    g_autoptr(GArray) fds = g_array_new(false, true, sizeof(GPollFD));
    SwitchoverPort *port;
    bool soon = false;

    qemu_mutex_lock(&reader.lock);
    while (!reader.quit) {
        if (qatomic_read(&reader.pauses)) {
            qemu_cond_wait(&reader.resumed, &reader.lock);
            continue;
        }
        reader_poll_prepare(fds);
        qemu_mutex_unlock(&reader.lock);
        g_poll((GPollFD *)fds->data, fds->len, soon ? 1 : -1);
        event_notifier_test_and_clear(&reader.event);
        qemu_mutex_lock(&reader.lock);

        soon = false;
        QLIST_FOREACH(port, &reader.ports, next) {
            if (qatomic_read(&reader.pauses)) {
                break;
            }
            port_turn(port);
            soon |= port->announced || port->retry;
        }
    }
    qemu_mutex_unlock(&reader.lock);
    return NULL;
}

void switchover_reader_pause(void)
{
    qatomic_inc(&reader.pauses);
    qemu_mutex_lock(&reader.lock);
}

void switchover_reader_resume(void)
{
    qatomic_dec(&reader.pauses);
    qemu_cond_signal(&reader.resumed);
    qemu_mutex_unlock(&reader.lock);
    switchover_reader_kick();
}

void switchover_reader_kick(void)
{
    if (qatomic_read(&reader.running)) {
        event_notifier_set(&reader.event);
    }
}

void switchover_reader_add(SwitchoverPort *port)
{
    bool first;

    switchover_reader_pause();
    first = QLIST_EMPTY(&reader.ports);
    QLIST_INSERT_HEAD(&reader.ports, port, next);
    switchover_reader_resume();
    if (first) {
        reader.quit = false;
        event_notifier_init(&reader.event, false);
        qemu_thread_create(&reader.thread, "switchover", reader_thread, NULL,
                           QEMU_THREAD_JOINABLE);
        qatomic_set(&reader.running, true);
    }
}

void switchover_reader_remove(SwitchoverPort *port)
{
    bool last;

    switchover_reader_pause();
    QLIST_REMOVE(port, next);
    last = QLIST_EMPTY(&reader.ports);
    reader.quit = last;
    switchover_reader_resume();
    if (last) {
        qemu_thread_join(&reader.thread);
        qatomic_set(&reader.running, false);
        event_notifier_cleanup(&reader.event);
    }
}
