/*
 * Switchover: the source's side, which sends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Sends what the reader puts into the backlog, and frees what the destination's
 * guest has.  Until then each frame can still be delivered here, should this VM
 * run again, also when the migration was reported as completed.
 *
 * Theory of operation
 *
 * The sender's thread calls source_send(), which writes from the backlog's
 * cursor, frames where they lie.  With a chardev that only the main loop may
 * write, switchover_source_flush() does the same there.
 *
 *   event                     action
 *   VM has stopped            cursor to the oldest frame; START if the peer
 *                             has said HELLO
 *   peer has come, HELLO      the same; or with the frame that it names
 *   peer has gone             cursor to the oldest frame, if it has said HELLO;
 *                             else to the one that was not sent whole
 *   RECEIVED n                free the frames before n
 *   ANNOUNCED                 the reader empties the queues, then DONE
 *   VM runs again             send no more; the frames are this VM's
 *
 * A peer that says nothing is a redirector without control messages.  It gets
 * frames as filter-mirror sends them: the queue is 0, and without vnet headers
 * checksums are filled in and large frames segmented.  What its socket has
 * taken counts as received once the migration is complete, not before.
 */

#include "qemu/osdep.h"
#include "net/switchover/source.h"
#include "io/packet-gso.h"
#include "net/switchover/cards.h"
#include "net/switchover/identity.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "trace.h"

/* Bytes written in one turn, at most */
#define TURN_BYTES (1 * MiB)

/* Bytes that are converted for a peer without control messages, at most */
#define PLAIN_BYTES (128 * KiB)

/*
 * This process may end when no frame has come for SILENT_US, not before
 * SWITCHED_US after the guest was announced elsewhere: a network may need some
 * 50 ms to switch (OVN, activation-strategy=rarp).  One that goes on sending to
 * both hosts is not waited for after SWITCHED_MAX_US.
 */
#define SILENT_US (30 * 1000)
#define SWITCHED_US (100 * 1000)
#define SWITCHED_MAX_US (500 * 1000)

/*
 * A peer that has just come says HELLO in this time, or it is one that says
 * nothing: what it has taken before its HELLO it does not keep
 */
#define HELLO_MS 200

#define DRAIN_TIMEOUT_MS 1000

struct SwitchoverSource {
    Switchover *sw;
    SwitchoverTransport *t;
    bool enabled;               /* the filter's status */
    uint32_t drain_timeout;     /* ms */
    SwitchoverIdentity peer;    /* what the destination has said of itself */

    /* Changed while the threads pause */
    bool sending;               /* frames are for the destination */
    bool control;               /* the peer has said HELLO */
    bool spoken;                /* or an earlier one in this migration has */
    bool start;                 /* START comes next */
    SwitchoverIdentity identity; /* and before it that */
    bool broken;                /* the connection, but it was not closed yet */
    bool completed;             /* the migration was reported as completed */
    bool waiting;               /* the peer takes nothing now */
    GByteArray *plain;          /* what is written before the backlog goes on */
    size_t plain_rest;          /* bytes at its beginning that end a message */
    size_t plain_pos;           /* bytes of it that were written */
    size_t plain_len;           /* bytes of the backlog that it stands for */
    uint8_t *scratch;           /* room for a frame */

    bool peer_paused;           /* the destination's VM waits for 'cont' */
    bool refused;               /* the destination does not want the frames */
    int64_t begun;              /* when the VM had stopped, in us */
    int64_t announced;          /* when the destination has taken over, in us */
    bool had_peer;              /* since frames have been sent */
    int64_t connected;          /* when the peer has come, in us */
    QEMUTimer *hello;           /* it has not said HELLO */
    guint watch;                /* on the chardev, for the main loop */

    uint64_t received;          /* frames that a peer's guest has; atomic */
    uint64_t dropped_invalid;   /* checksum outside the frame; atomic */
    uint64_t dropped_gso;       /* large, cannot be segmented; atomic */
};

static SwitchoverBacklog *source_backlog(SwitchoverSource *src)
{
    return &src->sw->own;
}


/* A peer that knows only the messages of filter-mirror */

static void source_put_plain(SwitchoverSource *src, const void *hdr,
                             size_t hdr_len, const uint8_t *frame, size_t len)
{
    uint8_t head[SWITCHOVER_HEAD];

    switchover_message_put_head(head, 0, hdr_len, hdr_len + len);
    g_byte_array_append(src->plain, head,
                        src->t->vnet_hdr ? SWITCHOVER_HEAD : sizeof(uint32_t));
    g_byte_array_append(src->plain, hdr, hdr_len);
    g_byte_array_append(src->plain, frame, len);
}

/* Complete in itself: checksum filled in, or segmented */
static void source_put_complete(SwitchoverSource *src,
                                const struct virtio_net_hdr *hdr,
                                const uint8_t *frame, size_t len)
{
    QIOPacketGso gso;
    const char *reason;
    size_t n;

    if (!hdr->gso_type && !(hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)) {
        source_put_plain(src, NULL, 0, frame, len);
        return;
    }
    if (!src->scratch) {
        src->scratch = g_malloc(SWITCHOVER_FRAME_MAX);
    }
    if (!qio_packet_complete_init(&gso, hdr, frame, len, &reason)) {
        qatomic_inc(hdr->gso_type ? &src->dropped_gso : &src->dropped_invalid);
        return;
    }
    while ((n = qio_packet_gso_next(&gso, src->scratch))) {
        source_put_plain(src, NULL, 0, src->scratch, n);
    }
}

static void source_convert(SwitchoverSource *src, const uint8_t *buf)
{
    size_t hdr_len = lduw_be_p(buf + 6);
    size_t len = (uint32_t)ldl_be_p(buf) - hdr_len;
    const uint8_t *vnet_hdr = buf + SWITCHOVER_HEAD;
    struct virtio_net_hdr hdr = { 0 };

    if (src->t->vnet_hdr && hdr_len) {
        source_put_plain(src, vnet_hdr, hdr_len, vnet_hdr + hdr_len, len);
    } else if (src->t->vnet_hdr) {
        source_put_plain(src, &hdr, sizeof(hdr), vnet_hdr, len);
    } else {
        memcpy(&hdr, vnet_hdr, MIN(sizeof(hdr), hdr_len));
        source_put_complete(src, &hdr, vnet_hdr + hdr_len, len);
    }
}

/* Fill plain with what goes out before the backlog does, or instead of it */
static void source_fill_plain(SwitchoverSource *src)
{
    uint8_t buf[SWITCHOVER_CONTROL];
    const uint8_t *message;
    size_t len, n;

    g_byte_array_set_size(src->plain, 0);
    src->plain_pos = src->plain_len = src->plain_rest = 0;
    if (src->control) {
        if (src->start) {
            src->start = false;
            if (!src->t->introduced) {
                switchover_identity_put(&src->identity, src->plain);
            }
            switchover_message_put_control(buf, SWITCHOVER_START,
                                           source_backlog(src)->sent);
            g_byte_array_append(src->plain, buf, sizeof(buf));
        }
        return;
    }
    message = switchover_backlog_unsent(source_backlog(src), &len);
    while (message && src->plain_len < len && src->plain->len < PLAIN_BYTES) {
        n = switchover_message_len(message);
        if (!switchover_message_is_control(message)) {
            source_convert(src, message);
        }
        src->plain_len += n;
        message += n;
        if (!src->t->stream) {
            break;
        }
    }
}


/* Sending */

/* Returns bytes written, 0 if nothing can be written now, or -1 */
static ssize_t source_write(SwitchoverSource *src)
{
    SwitchoverBacklog *b = source_backlog(src);
    const uint8_t *buf;
    size_t len;
    ssize_t n;

    if (src->plain_pos == src->plain->len) {
        source_fill_plain(src);
    }
    if (src->plain->len) {
        buf = src->plain->data + src->plain_pos;
        len = src->plain->len - src->plain_pos;
    } else if (src->plain_len) {
        /* Frames that cannot be converted */
        switchover_backlog_advance(b, src->plain_len);
        return src->plain_len;
    } else {
        buf = switchover_backlog_unsent(b, &len);
        if (!buf) {
            return 0;
        }
    }

    if (!src->t->threaded && !src->plain->len) {
        len = MIN(len, switchover_message_len(buf));
    }
    n = switchover_transport_write(src->t, buf, len);
    if (n <= 0) {
        return n;
    }
    if (src->plain->len) {
        src->plain_pos += n;
        if (src->plain_pos >= src->plain_rest) {
            src->plain_rest = 0;
        }
        if (src->plain_pos == src->plain->len) {
            switchover_backlog_advance(b, src->plain_len);
            g_byte_array_set_size(src->plain, 0);
            src->plain_pos = src->plain_len = 0;
        }
    } else {
        switchover_backlog_advance(b, n);
    }
    return n;
}

static bool source_awaits_hello(SwitchoverSource *src)
{
    return src->t->connected && !src->control &&
           g_get_monotonic_time() - src->connected < HELLO_MS * 1000;
}

static bool source_can_send(SwitchoverSource *src)
{
    /* One that goes on for another is to say HELLO, and what it has */
    return (src->sending || src->plain_rest) && src->t->connected &&
           !src->broken && (src->control ||
                            (!src->t->introduced && !src->spoken &&
                             !source_awaits_hello(src)));
}

/* Is there anything that was not sent? */
static bool source_has_unsent(SwitchoverSource *src)
{
    size_t len;

    if (!src->sending) {
        return src->plain_rest;
    }
    return src->start || src->plain->len ||
           switchover_backlog_unsent(source_backlog(src), &len);
}

/* Frames that the socket of a peer has taken which says nothing */
static void source_free_sent(SwitchoverSource *src)
{
    uint64_t n;

    if (src->completed && !src->spoken) {
        n = switchover_backlog_acknowledge(source_backlog(src), UINT64_MAX);
        qatomic_set(&src->received, src->received + n);
        if (n) {
            switchover_reader_kick();
        }
    }
}

/* Send what the peer takes; returns whether to wait for it */
static bool source_send(SwitchoverSource *src)
{
    size_t written = 0;
    ssize_t n = 1;

    while (source_can_send(src) && written < TURN_BYTES &&
           (n = switchover_transport_flush(src->t)) > 0 &&
           source_has_unsent(src) && (n = source_write(src)) > 0) {
        written += n;
    }
    if (n < 0) {
        src->broken = true;
    }
    source_free_sent(src);
    src->waiting = n == 0;
    return src->waiting;
}

static int source_port_send(SwitchoverPort *port)
{
    Switchover *sw = container_of(port, Switchover, port);
    bool wait = source_send(sw->source);
    SwitchoverSource *src = sw->source;

    port->retry = source_awaits_hello(src) && src->sending;
    if (wait && src->t->throttled) {
        port->retry = true;
        return -1;
    }
    /* Writable at once means: go on in the next turn */
    return wait || (source_can_send(src) && source_has_unsent(src)) ?
           src->t->fd : -1;
}

static gboolean source_writable(void *do_not_use, GIOCondition cond,
                                void *opaque)
{
    SwitchoverSource *src = opaque;

    src->watch = 0;
    switchover_source_flush(src);
    return G_SOURCE_REMOVE;
}

void switchover_source_flush(SwitchoverSource *src)
{
    if (src->watch) {
        return;
    }
    if (src->t->threaded && src->sw->has_port) {
        switchover_sender_kick();
        return;
    }
    if (source_send(src)) {
        src->watch = switchover_transport_add_watch(src->t, source_writable,
                                                    src);
    } else if (source_can_send(src) && source_has_unsent(src)) {
        switchover_go_on(src->sw);
    }
}

/*
 * The peer has a part of a message: it stays in step only if it gets the rest,
 * whatever comes behind that.
 */
static void source_keep_rest(SwitchoverSource *src)
{
    SwitchoverBacklog *b = source_backlog(src);
    size_t head = src->t->vnet_hdr ? SWITCHOVER_HEAD : sizeof(uint32_t);
    size_t len = src->plain_rest;

    if (!src->plain->len) {
        switchover_backlog_copy_rest(b, src->plain);
        src->plain_rest = src->plain->len;
        return;
    }
    while (len < src->plain_pos) {
        const uint8_t *buf = src->plain->data + len;

        len += switchover_message_is_control(buf) ? SWITCHOVER_CONTROL :
               head + (uint32_t)ldl_be_p(buf);
    }
    g_byte_array_set_size(src->plain, len);
    g_byte_array_remove_range(src->plain, 0, src->plain_pos);
    src->plain_rest = src->plain->len;
}

/*
 * Go on with frame @number, for the same peer or @another one.  While the
 * threads pause.
 */
static void source_restart(SwitchoverSource *src, uint64_t number, bool start,
                           bool another)
{
    if (another) {
        g_byte_array_set_size(src->plain, 0);
        src->plain_rest = 0;
    } else {
        source_keep_rest(src);
    }
    src->plain_pos = src->plain_len = 0;
    src->start = start;
    switchover_identity_init(&src->identity, src->sw->nc);
    switchover_backlog_seek(source_backlog(src), number);
    src->sw->port.send = src->t->threaded ? source_port_send : NULL;
    src->sw->port.blocked = -1;
    if (src->sending && src->t->connected) {
        src->had_peer = true;
    }
}


/* What the peer says */

static void source_hello(SwitchoverSource *src, bool paused, uint64_t number)
{
    SwitchoverBacklog *b = source_backlog(src);

    trace_switchover_source_hello(src->t->name, paused, number);
    switchover_threads_pause();
    src->control = src->spoken = true;
    src->peer_paused = paused;
    if (src->sending) {
        /* Not 0 if it has seen our START, and frames */
        source_restart(src, number ?: b->head, true, false);
    }
    switchover_threads_resume();
    switchover_source_flush(src);
}

static void source_received(SwitchoverSource *src, uint64_t number)
{
    if (src->sending && src->control) {
        uint64_t n = switchover_backlog_acknowledge(source_backlog(src),
                                                    number);

        qatomic_set(&src->received, src->received + n);
        src->sw->drain_us = g_get_monotonic_time() - src->begun;
        switchover_cards_acknowledged();
        /* There is room for the reader again */
        switchover_reader_kick();
    }
}

static void source_announced(SwitchoverSource *src)
{
    Switchover *sw = src->sw;

    if (!src->sending || !src->control) {
        return;
    }
    switchover_threads_pause();
    src->announced = g_get_monotonic_time();
    src->peer_paused = false;
    if (sw->port.reading) {
        sw->port.announced = g_get_monotonic_time();
    } else {
        sw->port.emptied = sw->own.tail;
        switchover_backlog_append_control(&sw->own, SWITCHOVER_DONE, 0);
    }
    switchover_threads_resume();
    switchover_source_flush(src);
}

static bool source_control(void *opaque, uint32_t type, uint64_t value)
{
    SwitchoverSource *src = opaque;

    trace_switchover_control(src->t->name, type, value);
    if (switchover_identity_receive(&src->peer, type, value)) {
        return switchover_identity_check(src->sw->nc, &src->peer, src->t);
    }
    switch (type) {
    case SWITCHOVER_HELLO:
    case SWITCHOVER_HELLO_PAUSED:
        source_hello(src, type == SWITCHOVER_HELLO_PAUSED, value);
        break;
    case SWITCHOVER_PAUSED:
        src->peer_paused = true;
        break;
    case SWITCHOVER_REFUSED:
        src->refused = true;
        break;
    case SWITCHOVER_RECEIVED:
        source_received(src, value);
        break;
    case SWITCHOVER_ANNOUNCED:
        source_announced(src);
        break;
    default:
        /* Of a later version */
        break;
    }
    return true;
}

static void source_changed(void *opaque, bool connected)
{
    SwitchoverSource *src = opaque;
    SwitchoverBacklog *b = source_backlog(src);

    if (!connected && src->had_peer && !src->announced &&
        !src->t->may_return) {
        warn_report("%s: the destination's connection ended: frames of the VM "
                    "that are on the way are lost, unless it runs on here",
                    src->t->name);
    }
    switchover_threads_pause();
    switchover_transport_update_channel(src->t);
    src->control = connected && src->t->introduced;
    src->spoken |= src->control;
    src->broken = src->had_peer = false;
    if (src->watch) {
        g_source_remove(src->watch);
        src->watch = 0;
    }
    /* Of one that says what its guest has, the others are not received */
    source_restart(src, src->spoken ? b->head : b->sent,
                   src->control && src->sending, true);
    if (src->control && src->sending) {
        /* The destination has the VM's state: it may start */
        switchover_backlog_append_control(b, SWITCHOVER_FIRST, 0);
    }
    src->connected = g_get_monotonic_time();
    switchover_threads_resume();
    if (connected) {
        timer_mod(src->hello, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                  HELLO_MS + 1);
        switchover_source_flush(src);
    }
}

static void source_no_hello(void *opaque)
{
    switchover_source_flush(opaque);
}


/* What becomes of the VM */

void switchover_source_begin(SwitchoverSource *src)
{
    SwitchoverBacklog *b = source_backlog(src);

    if (src->watch) {
        /* The sender does that now */
        g_source_remove(src->watch);
        src->watch = 0;
    }
    switchover_threads_pause();
    src->sending = true;
    src->spoken = src->control;
    src->completed = src->refused = false;
    src->begun = g_get_monotonic_time();
    src->announced = 0;
    source_restart(src, b->head, src->control, false);
    switchover_threads_resume();
    switchover_source_flush(src);
}

void switchover_source_end(SwitchoverSource *src)
{
    SwitchoverBacklog *b = source_backlog(src);

    switchover_threads_pause();
    src->sending = src->had_peer = false;
    src->sw->port.announced = 0;
    source_restart(src, b->head, false, false);
    switchover_threads_resume();
    switchover_source_flush(src);
}

void switchover_source_completed(SwitchoverSource *src)
{
    switchover_threads_pause();
    src->completed = true;
    source_free_sent(src);
    switchover_threads_resume();
}

void switchover_source_send_now(SwitchoverSource *src)
{
    if (src->sw->port.send) {
        source_port_send(&src->sw->port);
    }
}

bool switchover_source_is_done(SwitchoverSource *src, bool ending,
                               uint64_t *progress)
{
    SwitchoverBacklog *b = source_backlog(src);
    uint64_t last = src->sw->port.emptied;
    bool unsent, waiting, silent, done;
    int64_t now;

    switchover_source_flush(src);
    switchover_threads_pause();
    unsent = source_has_unsent(src);
    waiting = src->waiting;
    now = g_get_monotonic_time();
    silent = now - src->sw->port.last_read > SILENT_US ||
             now - src->announced > SWITCHED_MAX_US;
    done = src->announced && !src->sw->port.announced && b->head >= last &&
           (!unsent || b->sent > last) &&
           now - src->announced > SWITCHED_US && silent;
    *progress += b->head + b->sent + src->plain_pos + !!src->announced;
    switchover_threads_resume();

    if (source_awaits_hello(src)) {
        return false;
    }
    if (!source_can_send(src) || src->refused) {
        return true;
    }
    if (src->control && src->peer_paused && !ending) {
        /* What the peer does not take now, it takes after 'cont' */
        return !unsent || waiting;
    }
    return src->control ? done : !unsent;
}

bool switchover_source_is_acknowledged(SwitchoverSource *src)
{
    bool all;

    switchover_threads_pause();
    all = src->completed && !src->sw->port.announced &&
          (src->refused || (src->announced && source_backlog(src)->head >=
                            src->sw->port.emptied));
    switchover_threads_resume();
    return all;
}

void switchover_source_warn(SwitchoverSource *src)
{
    SwitchoverBacklog *b = source_backlog(src);
    /* What comes once the guest was announced needs no acknowledgement */
    bool acknowledged = src->control && !src->announced;
    uint64_t n = b->tail - (acknowledged ? b->head : b->sent);

    if (src->refused) {
        switchover_count_drop(src->sw, &src->sw->dropped.no_peer, n,
                              "the destination does not take it over the "
                              "migration's connection");
    } else if (n && !src->peer_paused) {
        warn_report("%s: the migration is complete, but the destination has "
                    "not yet taken %" PRIu64 " frames of the VM: they are lost "
                    "if QEMU ends now", src->t->name, n);
    }
}


/* Set-up */

void switchover_source_set_enabled(SwitchoverSource *src, bool enabled)
{
    if (src->enabled == enabled) {
        return;
    }
    src->enabled = enabled;
    if (src->sw->begun) {
        switchover_threads_pause();
        src->sending = enabled;
        src->sw->port.reading = enabled && src->sw->has_fds;
        switchover_threads_resume();
        switchover_source_flush(src);
    } else {
        switchover_update_idle(src->sw);
    }
}

bool switchover_source_is_enabled(SwitchoverSource *src)
{
    return src->enabled && switchover_transport_is_possible(src->t);
}

void switchover_source_set_limit(SwitchoverSource *src, uint64_t hold_limit)
{
    switchover_threads_pause();
    src->sw->port.limit = hold_limit;
    switchover_threads_resume();
}

void switchover_source_set_timeout(SwitchoverSource *src, uint32_t ms)
{
    src->drain_timeout = ms;
}

uint32_t switchover_source_get_timeout(SwitchoverSource *src)
{
    return src->drain_timeout;
}

Switchover *switchover_source_get(SwitchoverSource *src)
{
    return src->sw;
}

static const SwitchoverTransportOps source_ops = {
    .changed = source_changed,
    .control = source_control,
};

SwitchoverSource *switchover_source_new(NetClientState *netdev,
                                        SwitchoverTransport *t,
                                        uint64_t hold_limit, Error **errp)
{
    Switchover *sw;
    SwitchoverSource *src;

    sw = switchover_get(netdev, errp);
    if (sw && sw->source) {
        error_setg(errp, "netdev '%s' has %s for the frames of a stopped VM "
                   "already; for several destinations use one with '-chardev "
                   "hub' as its outdev", netdev->name, sw->source->t->name);
        sw = NULL;
    }
    if (!sw) {
        switchover_transport_free(t);
        return NULL;
    }
    src = g_new0(SwitchoverSource, 1);
    src->sw = sw;
    src->t = t;
    src->drain_timeout = DRAIN_TIMEOUT_MS;
    src->plain = g_byte_array_new();
    src->hello = timer_new_ms(QEMU_CLOCK_REALTIME, source_no_hello, src);
    sw->source = src;
    switchover_source_set_limit(src, hold_limit);
    switchover_transport_start(t, &source_ops, src);
    return src;
}

void switchover_source_set_transport(SwitchoverSource *src,
                                     SwitchoverTransport *t)
{
    switchover_threads_pause();
    src->sw->port.send = NULL;
    src->control = src->broken = src->had_peer = false;
    switchover_transport_free(src->t);
    src->t = t;
    switchover_transport_start(t, &source_ops, src);
    switchover_threads_resume();
}

void switchover_source_free(SwitchoverSource *src)
{
    Switchover *sw = src->sw;

    if (src->completed && src->announced) {
        /* On its way to a VM that runs elsewhere */
        switchover_backlog_acknowledge(source_backlog(src), UINT64_MAX);
    }
    switchover_source_end(src);
    switchover_threads_pause();
    sw->port.send = NULL;
    switchover_threads_resume();
    switchover_transport_free(src->t);
    if (src->watch) {
        g_source_remove(src->watch);
    }
    sw->source = NULL;
    sw->begun = false;
    switchover_put(sw);
    timer_free(src->hello);
    g_byte_array_unref(src->plain);
    g_free(src->scratch);
    g_free(src);
}

void switchover_source_get_stats(SwitchoverSource *src, SwitchoverStats *stats)
{
    SwitchoverBacklog *b = source_backlog(src);

    switchover_get_stats(src->sw, stats);
    stats->connected = src->t->connected;
    WITH_QEMU_LOCK_GUARD(&b->lock) {
        stats->packets = b->sent_frames;
        stats->bytes = b->sent_bytes;
        stats->queued = src->sending ? b->tail - b->sent : 0;
        stats->queued_bytes = src->sending ? b->unsent : 0;
    }
    stats->acknowledged = qatomic_read(&src->received);
    stats->dropped.gso += qatomic_read(&src->dropped_gso);
    stats->dropped.invalid += qatomic_read(&src->dropped_invalid);
}
