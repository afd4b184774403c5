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
 *   settling   both, the source's     WATCH_US have passed, and, with vhost,
 *              first                  the source has been silent for QUIET_US
 *   over       direct frames, by      a frame of the source comes: settling
 *              vhost
 *
 * A source that is gone, or says nothing, is not waited for.
 *
 * QEMU's own announcements, and the guest's, are held back until then
 * (announce_held of the netdev): they come before the VM runs, and the network
 * would bring frames that overtake the source's.
 *
 * A frame that the network brings to both hosts is to come once
 * (duplicates.c).  What came directly before the VM has stopped, its guest has
 * had at the source, or not, if the network has switched so early: then no
 * unicast comes from the source.  Just when the VM has stopped is not known
 * here.  So what came around that time, and not from the source, is dropped
 * only if other frames have come by both ways.  Broadcasts and multicast that
 * came before are dropped in any case.
 */

#include "qemu/osdep.h"
#include "net/switchover/arrival.h"
#include "io/packet-gso.h"
#include "migration/client-options.h"
#include "migration/misc.h"
#include "net/announce.h"
#include "net/switchover/duplicates.h"
#include "net/switchover/identity.h"
#include "net/vhost_net.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "standard-headers/linux/virtio_net.h"
#include "system/system.h"
#include "trace.h"

/* How long the source must be silent before vhost starts */
#define QUIET_US (20 * 1000)

/* How long after the announcement it is watched what comes by both ways */
#define WATCH_US (300 * 1000)

/* How long the barrier may take without a frame of the source */
#define BARRIER_US (1000 * 1000)

/* Reads of the chardev when the VM starts, at most: of 64 KiB each */
#define CATCH_UP_READS 64

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
    SwitchoverIdentity peer;    /* what the source has said of itself */
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

    SwitchoverDuplicates duplicates;
    uint8_t *scratch;           /* room for a frame, to complete it */
    bool unicast;               /* such a frame came from the source */
    bool looked[SWITCHOVER_CLASSES]; /* for frames that came both ways */
    bool floods[SWITCHOVER_CLASSES]; /* and there was one */
    int64_t announced;          /* when the guest was announced, in us */
    uint64_t announced_own;     /* frame of own that came after that */
    uint64_t judged;            /* frame of own that was not looked at yet */
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

/*
 * The bytes by which a frame is known, as they go over a wire: one host's TAP
 * may leave a checksum to the guest, and the other's not.
 */
static const uint8_t *arrival_bytes(SwitchoverArrival *a, const uint8_t *data,
                                    size_t hdr_len, size_t len)
{
    const uint8_t *frame = data + hdr_len;
    struct virtio_net_hdr hdr;

    if (hdr_len < sizeof(hdr)) {
        return frame;
    }
    memcpy(&hdr, data, sizeof(hdr));
    if (!(hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || hdr.gso_type) {
        return frame;
    }
    if (!a->scratch) {
        a->scratch = g_malloc(SWITCHOVER_FRAME_MAX);
    }
    memcpy(a->scratch, frame, len - hdr_len);
    qio_packet_fill_checksum(&hdr, a->scratch, len - hdr_len);
    return a->scratch;
}

typedef struct ArrivalSought {
    SwitchoverArrival *a;
    SwitchoverFrameClass class;
} ArrivalSought;

static bool arrival_is_flooded(void *opaque, const SwitchoverFrame *f)
{
    ArrivalSought *sought = opaque;
    SwitchoverArrival *a = sought->a;
    const uint8_t *frame = arrival_bytes(a, f->data, f->hdr_len, f->len);
    size_t len = f->len - f->hdr_len;

    return switchover_frame_class(frame, len) == sought->class &&
           switchover_duplicates_is_known(&a->duplicates, frame, len,
                                          g_get_monotonic_time());
}

/* Have other frames of that class come by both ways, or do some wait? */
static bool arrival_floods(SwitchoverArrival *a, SwitchoverFrameClass class)
{
    ArrivalSought sought = { .a = a, .class = class };

    if (a->in_packets && !a->looked[class]) {
        a->looked[class] = true;
        a->floods[class] = switchover_backlog_has(&a->sw->own, a->sw->stale,
                                                  arrival_is_flooded, &sought);
    }
    return a->floods[class] || a->duplicates.matched[class];
}

bool switchover_arrival_drops_direct(SwitchoverArrival *a,
                                     const SwitchoverFrame *f)
{
    bool announced = f->number >= a->announced_own;
    bool around = !announced && f->number < qatomic_read(&a->sw->port.around);
    int64_t since = announced ? a->announced : 0;
    size_t len = f->len - f->hdr_len;
    SwitchoverFrameClass class;
    const uint8_t *frame;
    bool had, drop;

    if (f->number < a->judged || !(a->t->connected || a->in_packets)) {
        return false;
    }
    a->judged = f->number + 1;
    frame = arrival_bytes(a, f->data, f->hdr_len, f->len);
    class = switchover_frame_class(frame, len);
    had = class == SWITCHOVER_UNICAST ?
          f->number < a->sw->stale && a->unicast : f->number < a->sw->early;
    drop = switchover_duplicates_direct(&a->duplicates, frame, len,
                                        g_get_monotonic_time(), since,
                                        a->t->connected && !around);
    drop |= had || (around && arrival_floods(a, class));
    a->flooded += drop;
    return drop;
}

/* Has a frame of the source come directly, or does it still come? */
static bool arrival_drops(SwitchoverArrival *a, const uint8_t *frame,
                          size_t len)
{
    SwitchoverFrameClass class = switchover_frame_class(frame, len);
    bool seen = a->phase != PHASE_OVER ||
                (a->sw->delivering && !a->sw->closing);

    a->unicast |= class == SWITCHOVER_UNICAST;
    if (!seen && switchover_duplicates_expects(&a->duplicates, class)) {
        return true;
    }
    return switchover_duplicates_from_source(&a->duplicates, frame, len,
                                             g_get_monotonic_time());
}

void switchover_arrival_finished(SwitchoverArrival *a)
{
    switchover_duplicates_settle(&a->duplicates, g_get_monotonic_time());
    a->announced_own = a->judged = 0;
}

static void arrival_acknowledge(SwitchoverArrival *a);

static void arrival_frame(void *opaque, unsigned queue, size_t hdr_len,
                          const uint8_t *data, size_t len)
{
    SwitchoverArrival *a = opaque;
    struct iovec iov = { .iov_base = (void *)data, .iov_len = len };

    if (hdr_len >= len ||
        (hdr_len && hdr_len < sizeof(struct virtio_net_hdr))) {
        switchover_count_drop(a->sw, &a->sw->dropped.invalid, 1,
                              "no room for a vnet header and a frame");
        return;
    }
    a->in_packets++;
    a->in_bytes += len - hdr_len;
    a->since = g_get_monotonic_time();
    if (arrival_drops(a, arrival_bytes(a, data, hdr_len, len),
                      len - hdr_len)) {
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
    switchover_identity_tell(a->sw->nc, a->t);
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
        switchover_duplicates_clear(&a->duplicates);
        a->unicast = false;
        memset(a->looked, 0, sizeof(a->looked));
        memset(a->floods, 0, sizeof(a->floods));
        switchover_arrives(a->sw);
    }
    a->control = true;
    a->done = false;
    a->base = number - a->theirs.tail;
    a->acknowledged = number;
}

static bool arrival_control(void *opaque, uint32_t type, uint64_t value)
{
    SwitchoverArrival *a = opaque;

    trace_switchover_control(a->t->name, type, value);
    if (switchover_identity_receive(&a->peer, type, value)) {
        return switchover_identity_check(a->sw->nc, &a->peer, a->t);
    } else if (type == SWITCHOVER_START) {
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
    return true;
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
    a->announced = g_get_monotonic_time();
    a->announced_own = a->sw->own.head +
                       switchover_backlog_frames(&a->sw->own);
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
    int64_t now = g_get_monotonic_time();

    return !switchover_backlog_frames(&a->theirs) &&
           (!a->t->connected ||
            ((!a->control || now - a->announced > WATCH_US) &&
             (!arrival_has_vhost(a) || now - a->since > QUIET_US)));
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
        a->sw->drain_us = g_get_monotonic_time() - a->sw->started;
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
    a->flooded += switchover_arrived(a->sw, a->unicast);
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
    switchover_duplicates_init(&a->duplicates);
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
    switchover_duplicates_destroy(&a->duplicates);
    g_free(a->scratch);
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
