/*
 * Switchover: the threads, and what they know of a netdev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * While the state of a stopped VM is saved, the migration thread holds the BQL
 * and the main loop stands still.  The network does not: at 20,000 frames/s a
 * TAP's queue of 1,000 overflows after 50 ms.  So two threads, for all netdevs
 * of the process, go on without the BQL: the reader empties the queues, the
 * sender writes to the other host.
 *
 * They are two, since a write to a socket does the network's work as well: with
 * one thread, which at 50,000 frames/s came back to the queues only after up to
 * 16 ms, frames were lost.
 *
 * Theory of operation
 *
 * Each thread polls what its ports wait for, and then gives each port a turn.
 * Its lock is held during the turns, not while polling.  A thread with the BQL
 * gets both locks by pause(), which makes these two end their turns early; it
 * then changes the ports as it likes.  Between the threads there is only the
 * backlog, which has a lock of its own.
 *
 * There are no threads while there is no port: an idle VM costs nothing.
 */

#include "qemu/osdep.h"
#include "net/switchover/threads.h"
#include "net/switchover/reader.h"
#include "qemu/event_notifier.h"

/* How long "soon" is */
#define SOON_MS 1

typedef struct SwitchoverThread {
    const char *name;
    /* Add what the port waits for; returns whether it wants a turn soon */
    bool (*prepare)(SwitchoverPort *port, GArray *fds);
    void (*turn)(SwitchoverPort *port);

    QemuThread thread;
    QemuMutex lock;
    QemuCond resumed;
    EventNotifier event;        /* look at the ports */
    bool running;               /* @event is there; atomic */
    bool quit;
} SwitchoverThread;

static bool sender_prepare(SwitchoverPort *port, GArray *fds)
{
    GPollFD pollfd = { .fd = port->blocked, .events = G_IO_OUT };

    if (port->send && port->blocked >= 0) {
        g_array_append_val(fds, pollfd);
    }
    return port->retry;
}

static void sender_turn(SwitchoverPort *port)
{
    if (port->send) {
        port->blocked = port->send(port);
    }
}

enum { READER, SENDER, THREADS };

static SwitchoverThread threads[THREADS] = {
    [READER] = { .name = "switchover-rx", .prepare = switchover_reader_prepare,
                 .turn = switchover_reader_turn },
    [SENDER] = { .name = "switchover-tx", .prepare = sender_prepare,
                 .turn = sender_turn },
};

static QLIST_HEAD(, SwitchoverPort) ports = QLIST_HEAD_INITIALIZER(ports);
static int pauses;              /* how many wait for the locks; atomic */

static void __attribute__((constructor)) threads_init(void)
{
    for (int i = 0; i < THREADS; i++) {
        qemu_mutex_init(&threads[i].lock);
        qemu_cond_init(&threads[i].resumed);
    }
}

bool switchover_threads_pausing(void)
{
    return qatomic_read(&pauses);
}

static void *thread_run(void *opaque)
{
    g_autoptr(GArray) fds = g_array_new(false, true, sizeof(GPollFD));
    SwitchoverThread *t = opaque;
    GPollFD event = { .fd = event_notifier_get_fd(&t->event),
                      .events = G_IO_IN };
    SwitchoverPort *port;
    bool soon;

    qemu_mutex_lock(&t->lock);
    while (!t->quit) {
        if (switchover_threads_pausing()) {
            qemu_cond_wait(&t->resumed, &t->lock);
            continue;
        }
        g_array_set_size(fds, 0);
        g_array_append_val(fds, event);
        soon = false;
        QLIST_FOREACH(port, &ports, next) {
            soon |= t->prepare(port, fds);
        }
        qemu_mutex_unlock(&t->lock);
        g_poll((GPollFD *)fds->data, fds->len, soon ? SOON_MS : -1);
        event_notifier_test_and_clear(&t->event);
        qemu_mutex_lock(&t->lock);

        QLIST_FOREACH(port, &ports, next) {
            if (switchover_threads_pausing()) {
                break;
            }
            t->turn(port);
        }
    }
    qemu_mutex_unlock(&t->lock);
    return NULL;
}

static void thread_kick(SwitchoverThread *t)
{
    if (qatomic_load_acquire(&t->running)) {
        event_notifier_set(&t->event);
    }
}

void switchover_reader_kick(void)
{
    thread_kick(&threads[READER]);
}

void switchover_sender_kick(void)
{
    thread_kick(&threads[SENDER]);
}

void switchover_threads_pause(void)
{
    qatomic_inc(&pauses);
    for (int i = 0; i < THREADS; i++) {
        qemu_mutex_lock(&threads[i].lock);
    }
}

void switchover_threads_resume(void)
{
    qatomic_dec(&pauses);
    for (int i = 0; i < THREADS; i++) {
        qemu_cond_signal(&threads[i].resumed);
        qemu_mutex_unlock(&threads[i].lock);
        thread_kick(&threads[i]);
    }
}

/* Each may kick the other: the events are there before both, and after them */
static void threads_start(void)
{
    for (int i = 0; i < THREADS; i++) {
        threads[i].quit = false;
        event_notifier_init(&threads[i].event, false);
        qatomic_store_release(&threads[i].running, true);
    }
    for (int i = 0; i < THREADS; i++) {
        qemu_thread_create(&threads[i].thread, threads[i].name, thread_run,
                           &threads[i], QEMU_THREAD_JOINABLE);
    }
}

static void threads_join(void)
{
    for (int i = 0; i < THREADS; i++) {
        qemu_thread_join(&threads[i].thread);
    }
    for (int i = 0; i < THREADS; i++) {
        qatomic_set(&threads[i].running, false);
        event_notifier_cleanup(&threads[i].event);
    }
}

void switchover_port_add(SwitchoverPort *port)
{
    bool first;

    switchover_threads_pause();
    first = QLIST_EMPTY(&ports);
    QLIST_INSERT_HEAD(&ports, port, next);
    switchover_threads_resume();
    if (first) {
        threads_start();
    }
}

void switchover_port_remove(SwitchoverPort *port)
{
    bool last;

    switchover_threads_pause();
    QLIST_REMOVE(port, next);
    last = QLIST_EMPTY(&ports);
    for (int i = 0; i < THREADS; i++) {
        threads[i].quit = last;
    }
    switchover_threads_resume();
    if (last) {
        threads_join();
    }
}
