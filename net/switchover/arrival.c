/*
 * Switchover: the destination's side, which receives
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Frames of the source come before those that reach this host directly, so the
 * guest gets all in the order in which they were sent to it.
 *
 * Theory of operation
 *
 *   phase      the guest gets         until
 *   waiting    nothing                the VM starts
 *   backlog    the source's frames    it has all that had come by then; then
 *                                     its new location is announced
 *   barrier    the source's frames    the source has sent all that had reached
 *                                     it when the announcement did (DONE)
 *   settling   both, the source's     the source has been silent for QUIET_US;
 *              first                  without vhost, at once
 *   over       direct frames, by      a frame of the source comes: settling
 *              vhost
 *
 * A source that is gone, or says nothing, is not waited for.
 *
 * QEMU's own announcements, and the guest's, are held back until then
 * (announce_held of the netdev): they come before the VM runs, and the network
 * would bring frames that overtake the source's.
 *
 * Broadcast and multicast frames reach both hosts.  Each is to come once: those
 * of both ways are matched by their bytes, once per occurrence.  What lies in
 * this host's queue when the VM starts, and is older than the switchover, the
 * guest has had at the source.
 */

#include "qemu/osdep.h"
#include "net/switchover/arrival.h"
#include "migration/client-options.h"
#include "migration/misc.h"
#include "net/announce.h"
#include "net/vhost_net.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "standard-headers/linux/virtio_net.h"
#include "system/system.h"
#include "trace.h"

/* How long the source must be silent before vhost starts */
#define QUIET_US (20 * 1000)

/* How long the barrier may take without a frame of the source */
#define BARRIER_US (1000 * 1000)

/* Reads of the chardev when the VM starts, at most: of 64 KiB each */
#define CATCH_UP_READS 64

/* Different broadcast and multicast frames that are remembered, at most */
#define GROUPS_MAX 65536

typedef enum SwitchoverPhase {
    PHASE_WAITING,
    PHASE_BACKLOG,
    PHASE_BARRIER,
    PHASE_SETTLING,
    PHASE_OVER,
} SwitchoverPhase;

struct SwitchoverArrival {
    Switchover *sw;
    SwitchoverTransport *t;
    SwitchoverBacklog theirs;   /* the source's frames */
    uint64_t limit;             /* of its bytes */
    bool enabled;               /* the filter's status */
    bool not_read;              /* the chardev, as the limit is reached */
    bool control;               /* the source has said START */
    bool paused;                /* the VM waits for 'cont' */
    bool awaits_first;          /* the source has not said FIRST */

    SwitchoverPhase phase;
    int64_t since;              /* when it began, or a frame came, in us */
    uint64_t base;              /* the source's number of frame 0 of theirs */
    uint64_t announce_at;       /* frame of theirs that comes after it */
    bool done;                  /* the source has said DONE */
    uint64_t done_at;           /* frame of theirs that comes after that */
    uint64_t acknowledged;      /* the last number that the source was told */
    AnnounceTimer announce;

    /* Hash of a frame -> how many more times it came from the source */
    GHashTable *groups;
    uint64_t in_packets;        /* frames of the source */
    uint64_t in_bytes;          /* their length without vnet headers */
    uint64_t flooded;           /* frames that came both ways, dropped once */
};

static bool arrival_has_vhost(SwitchoverArrival *a)
{
    return get_vhost_net(a->sw->nc);
}

static void arrival_set_phase(SwitchoverArrival *a, SwitchoverPhase phase)
{
    static const char *const names[] = {
        [PHASE_WAITING] = "waiting",
        [PHASE_BACKLOG] = "backlog",
        [PHASE_BARRIER] = "barrier",
        [PHASE_SETTLING] = "settling",
        [PHASE_OVER] = "over",
    };

    if (a->phase != phase) {
        a->phase = phase;
        a->since = g_get_monotonic_time();
        trace_switchover_arrival_phase(a->t->name, names[phase], a->in_packets,
                                       switchover_backlog_frames(&a->theirs));
    }
}


/* What reaches both hosts */

/* FNV-1a, of 64 bits */
static uint64_t arrival_hash(const uint8_t *frame, size_t len)
{
    uint64_t hash = 0xcbf29ce484222325;

    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ frame[i]) * 0x100000001b3;
    }
    return hash;
}

/*
 * The frame came from the source, or (@step -1) directly.  Returns whether it
 * has come the other way before.
 */
static bool arrival_is_known(SwitchoverArrival *a, const uint8_t *frame,
                             size_t len, int step)
{
    void *key = (void *)(uintptr_t)arrival_hash(frame, len);
    int n = GPOINTER_TO_INT(g_hash_table_lookup(a->groups, key));

    if (n + step == 0) {
        g_hash_table_remove(a->groups, key);
    } else if (g_hash_table_size(a->groups) < GROUPS_MAX) {
        g_hash_table_insert(a->groups, key, GINT_TO_POINTER(n + step));
    }
    return (n < 0) != (step < 0) && n;
}

static bool arrival_is_group(const uint8_t *frame, size_t len)
{
    return len && (frame[0] & 1);
}

bool switchover_arrival_drops_direct(SwitchoverArrival *a,
                                     const SwitchoverFrame *f)
{
    const uint8_t *frame = f->data + f->hdr_len;
    size_t len = f->len - f->hdr_len;

    if (!arrival_is_group(frame, len) ||
        !(a->t->connected || g_hash_table_size(a->groups))) {
        return false;
    }
    if (f->number < a->sw->stale || arrival_is_known(a, frame, len, -1)) {
        a->flooded++;
        return true;
    }
    return false;
}

static void arrival_acknowledge(SwitchoverArrival *a);

static void arrival_frame(void *opaque, unsigned queue, size_t hdr_len,
                          const uint8_t *data, size_t len)
{
    SwitchoverArrival *a = opaque;
    struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
    const uint8_t *frame = data + hdr_len;

    if (hdr_len >= len ||
        (hdr_len && hdr_len < sizeof(struct virtio_net_hdr))) {
        switchover_count_drop(a->sw, &a->sw->dropped.invalid, 1,
                              "no room for a vnet header and a frame");
        return;
    }
    a->in_packets++;
    a->in_bytes += len - hdr_len;
    a->since = g_get_monotonic_time();
    if (arrival_is_group(frame, len - hdr_len) &&
        (a->phase == PHASE_OVER ||
         arrival_is_known(a, frame, len - hdr_len, 1))) {
        a->flooded++;
        a->base++;
        if (a->phase == PHASE_OVER) {
            arrival_acknowledge(a);
        }
        return;
    }
    switchover_backlog_append(&a->theirs, queue, hdr_len, &iov, 1);
    if (a->sw->vm_running) {
        if (a->phase == PHASE_OVER) {
            arrival_set_phase(a, PHASE_SETTLING);
            switchover_hold(a->sw);
        }
        switchover_go_on(a->sw);
    }
}


/* The source */

static void arrival_hello(SwitchoverArrival *a)
{
    if (!a->t->connected || !a->enabled) {
        return;
    }
    if (a->t->introduced) {
        a->paused |= !a->sw->vm_running;
        if (a->paused) {
            switchover_transport_control(a->t, SWITCHOVER_PAUSED, 0);
        }
        return;
    }
    switchover_transport_control(a->t, a->paused ? SWITCHOVER_HELLO_PAUSED :
                                 SWITCHOVER_HELLO,
                                 a->control ? a->base + a->theirs.tail : 0);
    if (a->phase >= PHASE_BARRIER) {
        /* It may not have come by an earlier connection */
        switchover_transport_control(a->t, SWITCHOVER_ANNOUNCED, 0);
    }
}

static void arrival_start(SwitchoverArrival *a, uint64_t number)
{
    bool goes_on = a->control && number == a->base + a->theirs.tail;

    if (a->phase == PHASE_WAITING && !goes_on) {
        /* Of an earlier attempt, whose guest has had these frames */
        switchover_backlog_clear(&a->theirs);
        g_hash_table_remove_all(a->groups);
    }
    a->control = true;
    a->done = false;
    a->base = number - a->theirs.tail;
    a->acknowledged = number;
}

static void arrival_control(void *opaque, uint32_t type, uint64_t value)
{
    SwitchoverArrival *a = opaque;

    trace_switchover_control(a->t->name, type, value);
    if (type == SWITCHOVER_START) {
        arrival_start(a, value);
    } else if (type == SWITCHOVER_FIRST) {
        a->awaits_first = false;
        a->announce_at = a->theirs.tail;
        switchover_go_on(a->sw);
    } else if (type == SWITCHOVER_DONE) {
        a->done = true;
        a->done_at = a->theirs.tail;
        switchover_go_on(a->sw);
    }
}

static void arrival_changed(void *opaque, bool connected)
{
    SwitchoverArrival *a = opaque;

    if (connected) {
        arrival_hello(a);
        return;
    }
    a->awaits_first = false;
    if (a->phase != PHASE_WAITING) {
        switchover_go_on(a->sw);
    }
}

static bool arrival_can_receive(void *opaque)
{
    SwitchoverArrival *a = opaque;
    bool not_read = switchover_backlog_bytes(&a->theirs) >= a->limit;
    uint64_t frames = switchover_backlog_frames(&a->theirs);

    if (a->not_read != not_read) {
        a->not_read = not_read;
        trace_switchover_arrival_not_read(a->t->name, not_read, frames);
    }
    return a->enabled && !not_read;
}

/* Tell what the guest has */
static void arrival_acknowledge(SwitchoverArrival *a)
{
    uint64_t number = a->base + a->theirs.head;

    if (a->control && a->t->connected && number != a->acknowledged) {
        a->acknowledged = number;
        switchover_transport_control(a->t, SWITCHOVER_RECEIVED, number);
    }
    if (a->not_read) {
        switchover_transport_accept_input(a->t);
    }
}

/* Tell the network, and then the source, where the guest is now */
static void arrival_announce(SwitchoverArrival *a)
{
    NetClientState *nic = a->sw->nc->peer;
    strList name = { 0 };
    AnnounceParameters params = *migrate_announce_params();

    a->sw->nc->announce_held = false;
    if (nic) {
        name.value = nic->name;
        params.has_interfaces = true;
        params.interfaces = &name;
        if (params.rounds && !a->paused) {
            /* The others are QEMU's, which have begun already */
            params.rounds = 1;
        }
        trace_switchover_arrival_announce(a->t->name, nic->name);
        qemu_announce_self(&a->announce, &params);
    }
    a->done = false;
    if (a->control) {
        switchover_transport_control(a->t, SWITCHOVER_ANNOUNCED, 0);
    }
}


/* The phases */

/* Does the guest have what had come before it may be announced? */
static bool arrival_has_backlog(SwitchoverArrival *a)
{
    if (a->awaits_first) {
        return g_get_monotonic_time() - a->since > BARRIER_US;
    }
    return a->theirs.head >= a->announce_at ||
           !switchover_backlog_frames(&a->theirs);
}

static bool arrival_has_passed_barrier(SwitchoverArrival *a)
{
    return (a->done && a->theirs.head >= a->done_at) || !a->t->connected ||
           !a->control ||
           g_get_monotonic_time() - a->since > BARRIER_US;
}

static bool arrival_is_settled(SwitchoverArrival *a)
{
    return !switchover_backlog_frames(&a->theirs) &&
           (!arrival_has_vhost(a) || !a->t->connected ||
            g_get_monotonic_time() - a->since > QUIET_US);
}

void switchover_arrival_step(SwitchoverArrival *a)
{
    if (a->phase == PHASE_BACKLOG && arrival_has_backlog(a)) {
        arrival_acknowledge(a);
        arrival_announce(a);
        arrival_set_phase(a, PHASE_BARRIER);
    }
    if (a->phase == PHASE_BARRIER && arrival_has_passed_barrier(a)) {
        arrival_set_phase(a, PHASE_SETTLING);
    }
    if (a->phase == PHASE_SETTLING && arrival_is_settled(a)) {
        arrival_set_phase(a, PHASE_OVER);
    }
    arrival_acknowledge(a);
}

bool switchover_arrival_before_start(SwitchoverArrival *a)
{
    return a->enabled && a->phase != PHASE_OVER;
}

void switchover_arrival_after_start(SwitchoverArrival *a)
{
    if (a->phase != PHASE_WAITING || !a->enabled) {
        return;
    }
    /*
     * While QEMU loaded its last state it did not read the chardev.  The source
     * is about to be told that the migration is complete: catch up.
     */
    for (int i = 0; i < CATCH_UP_READS && arrival_can_receive(a); i++) {
        uint64_t before = a->in_packets;

        switchover_transport_read_now(a->t);
        if (a->in_packets == before) {
            break;
        }
    }
    a->announce_at = a->theirs.tail;
    arrival_set_phase(a, PHASE_BACKLOG);
}

SwitchoverBacklog *switchover_arrival_backlog(SwitchoverArrival *a)
{
    return &a->theirs;
}

bool switchover_arrival_allows_direct(SwitchoverArrival *a)
{
    return a->phase >= PHASE_SETTLING || !a->enabled;
}

bool switchover_arrival_is_over(SwitchoverArrival *a)
{
    return a->phase == PHASE_OVER || !a->enabled;
}

void switchover_arrival_hurry(SwitchoverArrival *a)
{
    if (a->phase == PHASE_BACKLOG) {
        a->awaits_first = false;
        a->announce_at = a->theirs.head;
        switchover_arrival_step(a);
    }
}

void switchover_arrival_give_up(SwitchoverArrival *a)
{
    uint64_t n = switchover_backlog_frames(&a->theirs);

    switchover_backlog_pop(&a->theirs, a->theirs.head + n);
    switchover_count_drop(a->sw, &a->sw->dropped.guest, n,
                          "the guest took no frame for 10 seconds");
}


/* Set-up */

void switchover_arrival_set_enabled(SwitchoverArrival *a, bool enabled)
{
    if (a->enabled != enabled) {
        a->enabled = enabled;
        a->sw->nc->announce_held = enabled && a->phase < PHASE_BARRIER;
        arrival_hello(a);
        switchover_transport_accept_input(a->t);
        switchover_update_idle(a->sw);
        switchover_go_on(a->sw);
    }
}

void switchover_arrival_set_limit(SwitchoverArrival *a, uint64_t hold_limit)
{
    a->limit = hold_limit;
    if (!a->sw->source) {
        switchover_threads_pause();
        a->sw->port.limit = hold_limit;
        switchover_threads_resume();
    }
    switchover_transport_accept_input(a->t);
}

Switchover *switchover_arrival_get(SwitchoverArrival *a)
{
    return a->sw;
}

SwitchoverArrival *switchover_arrival_new(NetClientState *netdev,
                                          SwitchoverTransport *t,
                                          uint64_t hold_limit, Error **errp)
{
    static const SwitchoverTransportOps ops = {
        .changed = arrival_changed,
        .control = arrival_control,
        .frame = arrival_frame,
        .can_receive = arrival_can_receive,
    };
    Switchover *sw = switchover_get(netdev, errp);
    SwitchoverArrival *a;

    if (sw && sw->arrival) {
        error_setg(errp, "netdev '%s' has %s for the frames of its VM's source "
                   "already; use that one", netdev->name,
                   sw->arrival->t->name);
        sw = NULL;
    }
    if (!sw) {
        switchover_transport_free(t);
        return NULL;
    }
    a = g_new0(SwitchoverArrival, 1);
    a->sw = sw;
    a->t = t;
    a->enabled = true;
    a->paused = !autostart;
    a->control = a->awaits_first = t->introduced;
    a->groups = g_hash_table_new(NULL, NULL);
    switchover_backlog_init(&a->theirs);
    sw->arrival = a;
    netdev->announce_held = true;
    switchover_transport_start(t, &ops, a);
    switchover_arrival_set_limit(a, hold_limit);
    switchover_update_idle(sw);
    return a;
}

void switchover_arrival_free(SwitchoverArrival *a)
{
    Switchover *sw = a->sw;
    uint64_t n = switchover_backlog_frames(&a->theirs);

    switchover_transport_free(a->t);
    switchover_count_drop(sw, &sw->dropped.no_peer, n,
                          "not delivered when its filter, or QEMU, ended");
    qemu_announce_timer_del(&a->announce, false);
    sw->arrival = NULL;
    sw->nc->announce_held = false;
    switchover_put(sw);
    switchover_backlog_destroy(&a->theirs);
    g_hash_table_unref(a->groups);
    g_free(a);
}

void switchover_arrival_get_stats(SwitchoverArrival *a, SwitchoverStats *stats)
{
    switchover_get_stats(a->sw, stats);
    stats->connected = a->t->connected;
    stats->packets = a->in_packets;
    stats->bytes = a->in_bytes;
    stats->held = switchover_backlog_frames(&a->theirs);
    stats->held_bytes = switchover_backlog_bytes(&a->theirs);
    stats->limit = a->limit;
    stats->flooded = a->flooded;
}
