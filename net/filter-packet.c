/*
 * filter-redirector: a host network interface as its source or destination
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * With in_netdev a redirector captures what the host sends to a netdev's
 * interface, with out_netdev it injects frames there.  Neither depends on the
 * frames passing through QEMU, so both work where vhost-net moves them.
 *
 *   in_netdev          -> the filters behind this one (a copy: the original
 *                         has taken its own way, so it ends there)
 *   in_netdev, outdev  -> a message to outdev
 *   out_netdev         <- the packets that reach this filter in the chain
 *   indev, out_netdev  <- messages from indev
 *
 * Without either, what comes from indev gets the vnet header that the filter's
 * netdev has, on its way to the chain: that of the message may be longer or
 * shorter.
 *
 * Theory of operation
 *
 * The frames come from, and go to, a QIOChannelPacket on the interface; all
 * knowledge of AF_PACKET is there.  Which interface a netdev has is asked of
 * the netdev (get_host_ifname), once, at set-up.
 *
 * Capture.  Frames are read in batches and given to the filter's writer, as
 * long as the peer keeps up.  While it does not, and while there is none,
 * nothing is read: frames wait in the receive ring, and the kernel counts
 * those that find it full.
 *
 *   migration starts   set up the ring, if the filter is to be active when
 *                      the VM stops; else that is done when it is activated
 *   becomes active     attach the socket to the traffic
 *   becomes inactive   end the capture; what the ring holds still goes to the
 *                      peer, then detach the socket
 *   inactive, no peer  drop and count what it holds, lest a later peer takes
 *                      it for news
 *
 * Inject.  The stream of messages goes into a queue, and from there to the
 * interface, in order.  It stays in the queue, held, when the filter is
 * inactive and when the interface has no room.  When hold_limit bytes are
 * held, indev is no longer read; the peer's socket fills up, and the peer
 * waits.  The chain cannot be made to wait: there a frame beyond the limit is
 * dropped and counted.
 *
 *   becomes active     send what is held, until done or no room
 *   no room            try again when the timer fires, after 1 ms
 *   becomes inactive   stop the timer
 *   interface gone     while active, drop all, and count
 *
 *
 * The redirector tells of "active" when the VM starts only after its devices
 * have started.  A frame that was injected before that could be read by QEMU
 * and then thrown away by the start of vhost.
 */

#include "qemu/osdep.h"
#include "net/filter-packet.h"
#include "chardev/char-socket.h"
#include "io/packet-gso.h"
#include "io/packet-ring.h"
#include "net/filter-activity.h"
#include "net/filter-stats.h"
#include "net/net.h"
#include "net/packet-helper.h"
#include "net/switchover/cards.h"
#include "net/switchover/transport-chardev.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "trace.h"

QEMU_BUILD_BUG_ON(QIO_CHANNEL_PACKET_MAX != NET_BUFSIZE);

/*
 * What a capture handles in one turn of the main loop, at most.  An injection
 * handles one write to the interface's channel.
 */
#define FILTER_PACKET_TURN_FRAMES 512
#define FILTER_PACKET_TURN_BYTES (256 * KiB)

/*
 * After the end of a capture look for frames this often, and so long.  The ring
 * hands over each after some milliseconds at most.
 */
#define FILTER_PACKET_DRAIN_POLL_US 200
#define FILTER_PACKET_DRAIN_US (100 * 1000)

#define FILTER_PACKET_HOLD_LIMIT (64 * MiB)
#define FILTER_PACKET_DRAIN_TIMEOUT 1000 /* ms */
#define FILTER_PACKET_DRAIN_TIMEOUT_MAX 10000
#define FILTER_PACKET_PEER_TIMEOUT 10000 /* ms */
#define FILTER_PACKET_PEER_TIMEOUT_MIN 1000
#define FILTER_PACKET_PEER_TIMEOUT_MAX (3600 * 1000)

const char *filter_packet_id(FilterPacket *p)
{
    return object_get_canonical_path_component(OBJECT(p->nf));
}

static void filter_packet_go_on_in(FilterPacket *p, int64_t delay_us)
{
    timer_mod(p->timer, qemu_clock_get_us(QEMU_CLOCK_REALTIME) + delay_us);
}

static void filter_packet_set_gone(FilterPacket *p, Error *err)
{
    error_prepend(&err, "filter-redirector '%s': ", filter_packet_id(p));
    warn_report_err(err);
    trace_filter_packet_gone(filter_packet_id(p),
                             qio_channel_packet_get_ifname(p->ioc));
    p->gone = true;
}


/* Capture */

static void filter_packet_capture(void *opaque);
static void filter_packet_capture_update(void *opaque);

/*
 * A vnet header of @len bytes from the 10 of the socket: netdevs have longer
 * ones, whose further fields are for the receiver to set
 */
static void filter_packet_put_vnet_hdr(uint8_t *buf, size_t len,
                                       const struct virtio_net_hdr *hdr)
{
    memset(buf, 0, len);
    memcpy(buf, hdr, MIN(len, sizeof(*hdr)));
}

/* Room for a segment, and behind that for the frame that it is cut from */
static uint8_t *filter_packet_bufs(FilterPacket *p)
{
    if (!p->bufs) {
        p->bufs = g_malloc(2 * QIO_CHANNEL_PACKET_MAX);
    }
    return p->bufs;
}

static void filter_packet_drop_invalid(FilterPacket *p)
{
    filter_count_drop(p->nf, &p->dropped_invalid, 1,
                      "there is no room for its vnet header and a frame, or "
                      "its checksum is outside the frame");
}

/*
 * Without vnet headers on the way every frame must be complete in itself: fill
 * in its checksum, or cut it into segments, or drop and count it.
 */
static void filter_packet_complete(FilterPacket *p,
                                   QIOChannelPacketFrame *frame,
                                   void (*emit)(FilterPacket *p,
                                                QIOChannelPacketFrame *frame))
{
    static const struct virtio_net_hdr no_hdr;
    QIOPacketGso gso;
    const char *reason;

    if (!frame->vnet_hdr.gso_type) {
        if (!qio_packet_fill_checksum(&frame->vnet_hdr, frame->data,
                                      frame->len)) {
            filter_packet_drop_invalid(p);
            return;
        }
        frame->vnet_hdr = no_hdr;
        emit(p, frame);
        return;
    }

    if (!qio_packet_gso_init(&gso, &frame->vnet_hdr, frame->data, frame->len,
                             &reason)) {
        filter_count_drop(p->nf, &p->dropped_gso, 1, reason);
        return;
    }
    frame->vnet_hdr = no_hdr;
    frame->data = filter_packet_bufs(p);
    while ((frame->len = qio_packet_gso_next(&gso, frame->data))) {
        emit(p, frame);
    }
}

static void filter_packet_emit_to_outdev(FilterPacket *p,
                                         QIOChannelPacketFrame *frame)
{
    struct virtio_net_hdr_v1_hash_tunnel hdr;
    size_t hdr_len = 0;

    if (p->vnet_hdr) {
        hdr_len = MAX(p->nf->netdev->vnet_hdr_len, sizeof(frame->vnet_hdr));
        assert(hdr_len <= sizeof(hdr));
        filter_packet_put_vnet_hdr((uint8_t *)&hdr, hdr_len, &frame->vnet_hdr);
    }
    filter_writer_put_frame(p->writer, p->vnet_hdr ? &hdr : NULL, hdr_len,
                            frame->data, frame->len);
}

static void filter_packet_to_outdev(FilterPacket *p,
                                    QIOChannelPacketFrame *frame)
{
    if (p->vnet_hdr) {
        filter_packet_emit_to_outdev(p, frame);
    } else {
        filter_packet_complete(p, frame, filter_packet_emit_to_outdev);
    }
}

static void filter_packet_emit_to_chain(FilterPacket *p,
                                        QIOChannelPacketFrame *frame)
{
    struct virtio_net_hdr_v1_hash_tunnel hdr;
    NetClientState *netdev = p->nf->netdev;
    struct iovec iov[2] = {
        { .iov_base = &hdr, .iov_len = netdev->vnet_hdr_len },
        { .iov_base = frame->data, .iov_len = frame->len },
    };
    int skip = !netdev->vnet_hdr_len;

    assert(netdev->vnet_hdr_len <= sizeof(hdr));
    filter_packet_put_vnet_hdr((uint8_t *)&hdr, netdev->vnet_hdr_len,
                               &frame->vnet_hdr);
    if (p->in_netdev) {
        qemu_netfilter_pass_to_next(netdev, QEMU_NET_PACKET_FLAG_COPY,
                                    iov + skip, ARRAY_SIZE(iov) - skip, p->nf);
    } else {
        p->pass(p->nf, iov + skip, ARRAY_SIZE(iov) - skip);
    }
}

static void filter_packet_to_chain(FilterPacket *p,
                                   QIOChannelPacketFrame *frame)
{
    if (p->nf->netdev->vnet_hdr_len) {
        filter_packet_emit_to_chain(p, frame);
    } else {
        filter_packet_complete(p, frame, filter_packet_emit_to_chain);
    }
}

/* Let the main loop read the socket, or not; telling it the same costs much */
static void filter_packet_watch(FilterPacket *p, bool watch)
{
    if (p->watching != watch) {
        p->watching = watch;
        qemu_set_fd_handler(qio_channel_packet_get_fd(p->ioc),
                            watch ? filter_packet_capture : NULL, NULL, p);
    }
}

/* Leave the traffic; true if that drops what has not been read */
static bool filter_packet_capture_detach(FilterPacket *p)
{
    filter_packet_watch(p, false);
    return qio_channel_packet_detach(p->ioc);
}

/* Can the frame that comes next go on? */
static bool filter_packet_wants_frame(FilterPacket *p)
{
    return !p->has_outdev || p->state == FILTER_PACKET_DROPPING ||
           filter_writer_wants_more(p->writer);
}

static void filter_packet_capture(void *opaque)
{
    FilterPacket *p = opaque;
    QIOChannelPacketFrame frame;
    Error *err = NULL;
    size_t bytes = 0;
    int ret;

    for (int i = 0; i < FILTER_PACKET_TURN_FRAMES &&
                    bytes < FILTER_PACKET_TURN_BYTES &&
                    filter_packet_wants_frame(p); i++) {
        ret = qio_channel_packet_recv_frame(p->ioc, &frame, &err);
        if (ret == 0) {
            continue;
        }
        if (ret == QIO_CHANNEL_ERR_BLOCK) {
            if (!p->active &&
                (qio_channel_packet_is_empty(p->ioc) ||
                 g_get_monotonic_time() >= p->drain_until)) {
                filter_packet_capture_detach(p);
                p->state = FILTER_PACKET_DETACHED;
            }
            break;
        }
        if (ret < 0) {
            filter_packet_set_gone(p, err);
            break;
        }
        bytes += frame.len;
        if (!p->has_outdev) {
            filter_packet_to_chain(p, &frame);
        } else if (p->state != FILTER_PACKET_DROPPING) {
            filter_packet_to_outdev(p, &frame);
        } else {
            filter_writer_count_no_peer(p->writer, 1);
        }
    }
    if (p->has_outdev) {
        filter_writer_flush(p->writer);
    }
    filter_packet_capture_update(p);
}

/* Idempotent: read the socket exactly when it is of use */
static void filter_packet_capture_update(void *opaque)
{
    FilterPacket *p = opaque;
    bool wants = !p->has_outdev || filter_writer_wants_more(p->writer);

    if (!p->active && p->has_outdev && !p->writer->connected) {
        filter_writer_count_no_peer(p->writer,
                                    packet_queue_clear(&p->writer->queue));
        if (p->state == FILTER_PACKET_DRAINING) {
            p->state = filter_packet_capture_detach(p) ?
                       FILTER_PACKET_DETACHED : FILTER_PACKET_DROPPING;
        }
    }

    /* The end of the socket's frames is not an event: go on until it is met */
    if (!p->gone && !p->active && p->state != FILTER_PACKET_DETACHED &&
        (wants || p->state == FILTER_PACKET_DROPPING)) {
        filter_packet_go_on_in(p, FILTER_PACKET_DRAIN_POLL_US);
    } else {
        timer_del(p->timer);
    }
    filter_packet_watch(p, wants && p->active && !p->gone);
}

static void filter_packet_capture_set_active(FilterPacket *p)
{
    Error *err = NULL;

    p->state = p->active ? FILTER_PACKET_ATTACHED : FILTER_PACKET_DRAINING;
    p->drain_until = g_get_monotonic_time() + FILTER_PACKET_DRAIN_US;
    if (!p->gone &&
        !qio_channel_packet_set_active(p->ioc, p->active, &err)) {
        filter_packet_set_gone(p, err);
    }
    filter_packet_capture_update(p);
}

static int filter_packet_migration(NotifierWithReturn *notifier,
                                   MigrationEvent *event, Error **errp)
{
    FilterPacket *p = container_of(notifier, FilterPacket, migration);

    if (p->state == FILTER_PACKET_DETACHED && !p->gone && p->nf->on &&
        filter_activity_get(OBJECT(p->nf))->when_stopped) {
        if (event->type == MIG_EVENT_PRECOPY_SETUP) {
            trace_filter_packet_armed(filter_packet_id(p));
            qio_channel_packet_prepare(p->ioc);
        } else if (event->type == MIG_EVENT_PRECOPY_FAILED) {
            filter_packet_capture_detach(p);
        }
    }
    return 0;
}


/* Inject */

static void filter_packet_drop_held(FilterPacket *p)
{
    filter_count_drop(p->nf, &p->dropped_gone, packet_queue_drop(&p->held),
                      "the host interface is gone");
}

/* Whether anything waits for its injection changes: tell */
static void filter_packet_trace_held(FilterPacket *p)
{
    if (p->holds != (p->held.packets > 0)) {
        p->holds = !p->holds;
        trace_filter_packet_held(filter_packet_id(p), p->holds,
                                 p->held.packets, p->held.bytes);
    }
}

/* Send what is held, in order, until done, or no room, or a turn's share */
static void filter_packet_release(void *opaque)
{
    FilterPacket *p = opaque;
    Error *err = NULL;
    uint8_t *buf;
    size_t len;
    ssize_t n = 0;

    buf = packet_queue_peek(&p->held, &len);
    if (buf && !p->gone) {
        n = qio_channel_write(QIO_CHANNEL(p->ioc), (char *)buf, len, &err);
        if (n > 0) {
            packet_queue_consume(&p->held, n);
        } else if (n < 0 && n != QIO_CHANNEL_ERR_BLOCK) {
            filter_packet_set_gone(p, err);
        }
        trace_filter_packet_release(filter_packet_id(p), n, p->held.packets,
                                    p->held.bytes);
    }
    if (p->gone) {
        filter_packet_drop_held(p);
    }
    filter_packet_trace_held(p);

    if (packet_queue_peek(&p->held, &len)) {
        filter_packet_go_on_in(p, n > 0 ? 0 : QIO_CHANNEL_PACKET_RETRY_US);
    }
    if (p->not_read && filter_packet_can_read(p)) {
        qemu_chr_fe_accept_input(p->chr_in);
    }
}

static void filter_packet_inject_set_active(FilterPacket *p)
{
    if (p->active) {
        filter_packet_release(p);
    } else {
        timer_del(p->timer);
    }
}

/*
 * The vnet header of a packet from the chain, which is @hdr_len bytes long
 * there.  Its fields are in the host's byte order, and stay so on the wire,
 * as in every QEMU.  Returns false if the packet is dropped, and counted.
 */
static bool filter_packet_parse(FilterPacket *p, unsigned flags,
                                const struct iovec *iov, int iovcnt,
                                struct virtio_net_hdr *hdr, size_t *hdr_len)
{
    size_t size = iov_size(iov, iovcnt);

    memset(hdr, 0, sizeof(*hdr));
    *hdr_len = flags & QEMU_NET_PACKET_FLAG_RAW ?
               0 : p->nf->netdev->vnet_hdr_len;
    if (size <= *hdr_len || size - *hdr_len > NET_BUFSIZE -
                            sizeof(struct virtio_net_hdr_v1_hash_tunnel)) {
        filter_count_drop(p->nf, &p->dropped_too_big, 1,
                          "empty, or longer than a message may be");
        return false;
    }
    iov_to_buf(iov, iovcnt, 0, hdr, MIN(*hdr_len, sizeof(*hdr)));
    return true;
}

static void filter_packet_keep(FilterPacket *p, unsigned flags,
                               const struct iovec *iov, int iovcnt)
{
    struct virtio_net_hdr hdr;
    size_t hdr_len;

    if (filter_packet_parse(p, flags, iov, iovcnt, &hdr, &hdr_len)) {
        packet_queue_put(&p->held, &hdr, sizeof(hdr), iov, iovcnt, hdr_len);
    }
}

ssize_t filter_packet_receive_iov(FilterPacket *p, NetClientState *sender,
                                  unsigned flags, const struct iovec *iov,
                                  int iovcnt)
{
    size_t size = iov_size(iov, iovcnt);

    if (p->source) {
        return switchover_receive_iov(switchover_source_get(p->source), sender,
                                      flags, iov, iovcnt);
    }
    if (p->arrival) {
        return switchover_receive_iov(switchover_arrival_get(p->arrival),
                                      sender, flags, iov, iovcnt);
    }
    if (!p->active || !p->out_netdev || p->has_indev) {
        return 0;
    }
    if (p->held.bytes && p->held.bytes >= p->hold_limit) {
        filter_count_drop(p->nf, &p->dropped_no_room, 1,
                          "'hold_limit' is reached");
        return size;
    }
    filter_packet_keep(p, flags, iov, iovcnt);
    if (!timer_pending(p->timer)) {
        /* Together with those that come in this turn */
        filter_packet_go_on_in(p, 0);
    }
    return size;
}

int filter_packet_can_read(FilterPacket *p)
{
    size_t len;
    /* A message that is not whole must not wait for its rest */
    bool sends = p->active && !packet_queue_peek(&p->held, &len);
    bool not_read = !sends && p->held.bytes >= p->hold_limit;

    if (p->not_read != not_read) {
        p->not_read = not_read;
        trace_filter_packet_not_read(filter_packet_id(p), not_read,
                                     p->held.packets, p->held.bytes);
    }
    return p->not_read ? 0 : NET_BUFSIZE;
}

/*
 * With nothing held there is no need to copy: inject straight from the buffer
 * in which the chardev has read.  Returns the bytes that are done with.
 */
static size_t filter_packet_inject_bytes(FilterPacket *p, const uint8_t *buf,
                                         size_t len)
{
    Error *err = NULL;
    ssize_t n = 0;

    len = packet_queue_whole(&p->held, buf, len);
    if (len) {
        n = qio_channel_write(QIO_CHANNEL(p->ioc), (const char *)buf, len,
                              &err);
    }
    if (n == -1) {
        filter_packet_set_gone(p, err);
    }
    packet_queue_pass(&p->held, buf, MAX(n, 0));
    return MAX(n, 0);
}

int filter_packet_receive_bytes(FilterPacket *p, const uint8_t *buf,
                                size_t len)
{
    uint32_t too_long;
    size_t n;

    too_long = packet_queue_complete(&p->held, &buf, &len);
    if (p->active && !timer_pending(p->timer)) {
        filter_packet_release(p);
        if (!p->held.bytes && !p->gone) {
            n = filter_packet_inject_bytes(p, buf, len);
            buf += n;
            len -= n;
        }
    }
    if (!too_long) {
        too_long = packet_queue_put_bytes(&p->held, buf, len);
    }

    if (too_long) {
        error_report("filter-redirector '%s': packet of %" PRIu32 " bytes "
                     "announced, at most %d are possible: connection "
                     "terminated", filter_packet_id(p), too_long, NET_BUFSIZE);
        packet_queue_truncate(&p->held);
    }
    if (p->active && !timer_pending(p->timer)) {
        filter_packet_release(p);
    }
    filter_packet_trace_held(p);
    return too_long ? -1 : 0;
}

void filter_packet_indev_closed(FilterPacket *p)
{
    packet_queue_truncate(&p->held);
}


/* From indev to the chain */

void filter_packet_receive_message(FilterPacket *p, SocketReadState *rs,
                                   NetFilterTraffic *received)
{
    struct iovec iov = { .iov_base = rs->buf, .iov_len = rs->packet_len };
    size_t hdr_len = rs->vnet_hdr ? rs->vnet_hdr_len : 0;
    QIOChannelPacketFrame frame = { 0 };

    if (hdr_len >= rs->packet_len ||
        (hdr_len && hdr_len < sizeof(frame.vnet_hdr))) {
        filter_packet_drop_invalid(p);
        return;
    }
    filter_stats_count(received, rs->packet_len - hdr_len);
    if (!rs->vnet_hdr || hdr_len == p->nf->netdev->vnet_hdr_len) {
        p->pass(p->nf, &iov, 1);
        return;
    }
    iov_to_buf(&iov, 1, 0, &frame.vnet_hdr,
               MIN(hdr_len, sizeof(frame.vnet_hdr)));
    frame.data = rs->buf + hdr_len;
    frame.len = rs->packet_len - hdr_len;
    filter_packet_to_chain(p, &frame);
}


/* All */

void filter_packet_set_active(FilterPacket *p, bool active)
{
    if (p->source) {
        switchover_source_set_enabled(p->source, p->nf->on);
    } else if (p->arrival) {
        switchover_arrival_set_enabled(p->arrival, p->nf->on);
    }
    if (!p->ioc || p->active == active) {
        return;
    }
    p->active = active;
    if (p->in_netdev) {
        filter_packet_capture_set_active(p);
    } else {
        filter_packet_inject_set_active(p);
    }
}

void filter_packet_init(FilterPacket *p, NetFilterState *nf,
                        CharFrontend *chr_in, FilterWriter *writer,
                        FilterPacketPass *pass)
{
    p->nf = nf;
    p->chr_in = chr_in;
    p->writer = writer;
    p->pass = pass;
    p->ring_size = QIO_CHANNEL_PACKET_RING_SIZE;
    p->hold_limit = FILTER_PACKET_HOLD_LIMIT;
    p->drain_timeout = FILTER_PACKET_DRAIN_TIMEOUT;
    p->peer_timeout = FILTER_PACKET_PEER_TIMEOUT;
}

bool filter_packet_check(FilterPacket *p, const char *indev,
                         const char *outdev, Error **errp)
{
    const struct {
        const char *names[2];
        bool set;
    } conflicts[] = {
        { { "in_netdev", "out_netdev" }, p->in_netdev && p->out_netdev },
        { { "in_netdev", "indev" }, p->in_netdev && indev },
        { { "out_netdev", "outdev" }, p->out_netdev && outdev },
    };

    if (!indev && !outdev && !p->in_netdev && !p->out_netdev) {
        error_setg(errp, "filter-redirector needs at least one of 'indev', "
                   "'outdev', 'in_netdev' and 'out_netdev'");
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(conflicts); i++) {
        if (conflicts[i].set) {
            error_setg(errp, "'%s' and '%s' cannot be used together",
                       conflicts[i].names[0], conflicts[i].names[1]);
            return false;
        }
    }
    if (p->out_netdev && !indev && p->nf->direction != NET_FILTER_DIRECTION_RX
        && !strcmp(p->out_netdev, p->nf->netdev_id)) {
        error_setg(errp, "'out_netdev' on the filter's own netdev '%s' would "
                   "feed frames back to itself; use 'indev', 'queue=rx' or "
                   "another netdev", p->out_netdev);
        return false;
    }

    p->has_indev = indev;
    p->has_outdev = outdev;
    return true;
}

/*
 * Is this about the frames that a migration would lose?  To be active in the
 * stopped VM only, with the filter's own netdev as the source, says so.
 */
static bool filter_packet_is_source(FilterPacket *p)
{
    FilterActivity *act = filter_activity_get(OBJECT(p->nf));

    return p->has_outdev && !p->has_indev &&
           act->when_stopped && !act->when_running &&
           p->nf->direction != NET_FILTER_DIRECTION_RX &&
           (!p->in_netdev || !strcmp(p->in_netdev, p->nf->netdev_id));
}

/* Likewise at the destination: the VM waits for its incoming migration */
static bool filter_packet_is_arrival(FilterPacket *p)
{
    FilterActivity *act = filter_activity_get(OBJECT(p->nf));

    return p->has_indev && !p->has_outdev && !p->in_netdev &&
           runstate_check(RUN_STATE_INMIGRATE) && act->when_running &&
           p->nf->direction == NET_FILTER_DIRECTION_ALL &&
           (!p->out_netdev || !strcmp(p->out_netdev, p->nf->netdev_id));
}

FilterPacketRole filter_packet_role(FilterPacket *p)
{
    return filter_packet_is_source(p) ? FILTER_PACKET_SOURCE :
           filter_packet_is_arrival(p) ? FILTER_PACKET_ARRIVAL :
           p->in_netdev ? FILTER_PACKET_CAPTURE :
           p->out_netdev ? FILTER_PACKET_INJECT : FILTER_PACKET_CHAIN;
}

bool filter_packet_check_chardev(FilterPacketRole role, const char *option,
                                 Chardev *chr, Error **errp)
{
    bool mux = object_dynamic_cast(OBJECT(chr), TYPE_CHARDEV_MUX);
    bool telnet = object_dynamic_cast(OBJECT(chr), TYPE_CHARDEV_SOCKET) &&
                  SOCKET_CHARDEV(chr)->is_telnet;

    if (role != FILTER_PACKET_CHAIN && (mux || telnet)) {
        error_setg(errp, "'%s': chardev '%s' has %s=on, which changes what is "
                   "sent; give the filter a chardev without", option,
                   chr->label, mux ? "mux" : "telnet");
        return false;
    }
    return true;
}

bool filter_packet_needs_chain(FilterPacket *p)
{
    switch (filter_packet_role(p)) {
    case FILTER_PACKET_SOURCE:
    case FILTER_PACKET_ARRIVAL:
        return false;
    case FILTER_PACKET_CAPTURE:
        return !p->has_outdev;
    case FILTER_PACKET_INJECT:
        return !p->has_indev;
    default:
        return true;
    }
}

/* Open the netdev's interface */
static bool filter_packet_open(FilterPacket *p, const char *option,
                               const char *id, QIOChannelPacketMode mode,
                               Error **errp)
{
    ERRP_GUARD();
    g_autofree char *ifname = NULL;
    NetClientState *nc;

    if (qemu_find_net_clients_except(id, &nc, NET_CLIENT_DRIVER_NIC, 1) < 1) {
        error_setg(errp, "'%s': netdev '%s' not found", option, id);
        return false;
    }
    if (!nc->info->get_host_ifname) {
        error_setg(errp, "'%s': netdev '%s' (%s) has no host network "
                   "interface", option, id,
                   NetClientDriver_str(nc->info->type));
        return false;
    }
    ifname = nc->info->get_host_ifname(nc, errp);
    if (ifname) {
        p->ioc = p->packet_helper && !qio_channel_packet_may_open() ?
                 packet_helper_open(p->packet_helper, ifname, mode, errp) :
                 qio_channel_packet_new_ifname(ifname, mode, errp);
    }
    if (!p->ioc) {
        error_prepend(errp, "'%s': ", option);
        return false;
    }
    trace_filter_packet_open(filter_packet_id(p), option, id, ifname, p->ioc);
    return true;
}

bool filter_packet_setup(FilterPacket *p, CharFrontend *chr_out, bool vnet_hdr,
                         Error **errp)
{
    FilterPacketRole role = filter_packet_role(p);
    NetClientState *netdev = p->nf->netdev;
    SwitchoverTransport *t;

    p->vnet_hdr = vnet_hdr;
    switch (role) {
    case FILTER_PACKET_SOURCE:
        switchover_cards_give_way(netdev);
        p->chr_out = chr_out;
        t = switchover_transport_chardev_new(chr_out, filter_packet_id(p),
                                             vnet_hdr, p->peer_timeout);
        p->source = switchover_source_new(netdev, t, p->hold_limit, errp);
        if (!p->source) {
            return false;
        }
        filter_activity_get(OBJECT(p->nf))->fixed = true;
        switchover_source_set_timeout(p->source, p->drain_timeout);
        return true;
    case FILTER_PACKET_ARRIVAL:
        switchover_cards_give_way(netdev);
        t = switchover_transport_chardev_new(p->chr_in, filter_packet_id(p),
                                             vnet_hdr, p->peer_timeout);
        p->arrival = switchover_arrival_new(netdev, t, p->hold_limit, errp);
        return p->arrival;
    case FILTER_PACKET_CAPTURE:
        if (!filter_packet_open(p, "in_netdev", p->in_netdev,
                                QIO_CHANNEL_PACKET_CAPTURE, errp)) {
            return false;
        }
        p->timer = timer_new_us(QEMU_CLOCK_REALTIME, filter_packet_capture, p);
        qio_channel_packet_set_ring_size(p->ioc, p->ring_size);
        filter_writer_on_change(p->writer, filter_packet_capture_update, p);
        migration_add_notifier(&p->migration, filter_packet_migration);
        return true;
    case FILTER_PACKET_INJECT:
        if (!filter_packet_open(p, "out_netdev", p->out_netdev,
                                QIO_CHANNEL_PACKET_INJECT, errp)) {
            return false;
        }
        p->timer = timer_new_us(QEMU_CLOCK_REALTIME, filter_packet_release, p);
        /* What comes from the chain always has a vnet header */
        qio_channel_packet_set_vnet_hdr(p->ioc, vnet_hdr || !p->has_indev);
        packet_queue_init(&p->held, vnet_hdr || !p->has_indev);
        return true;
    default:
        return true;
    }
}

void filter_packet_cleanup(FilterPacket *p)
{
    g_clear_pointer(&p->source, switchover_source_free);
    g_clear_pointer(&p->arrival, switchover_arrival_free);
    if (p->ioc) {
        filter_packet_watch(p, false);
        migration_remove_notifier(&p->migration);
        packet_queue_clear(&p->held);
        timer_free(p->timer);
        object_unref(OBJECT(p->ioc));
        p->ioc = NULL;
    }
    g_free(p->bufs);
    g_free(p->in_netdev);
    g_free(p->out_netdev);
    g_free(p->packet_helper);
}


/* Properties */

static char *filter_packet_get_in_netdev(Object *obj, Error **errp)
{
    return g_strdup(filter_packet_get(obj)->in_netdev);
}

static char *filter_packet_get_out_netdev(Object *obj, Error **errp)
{
    return g_strdup(filter_packet_get(obj)->out_netdev);
}

static void filter_packet_set_netdev(FilterPacket *p, char **netdev,
                                     const char *value, Error **errp)
{
    if (p->nf->netdev) {
        error_setg(errp, "the netdev of a filter cannot be changed");
        return;
    }
    g_free(*netdev);
    *netdev = g_strdup(value);
}

static void filter_packet_set_in_netdev(Object *obj, const char *value,
                                        Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);

    filter_packet_set_netdev(p, &p->in_netdev, value, errp);
}

static void filter_packet_set_out_netdev(Object *obj, const char *value,
                                         Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);

    filter_packet_set_netdev(p, &p->out_netdev, value, errp);
}

static char *filter_packet_get_helper(Object *obj, Error **errp)
{
    return g_strdup(filter_packet_get(obj)->packet_helper);
}

static void filter_packet_set_helper(Object *obj, const char *value,
                                     Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);

    if (p->nf->netdev) {
        error_setg(errp, "the 'packet_helper' of a filter cannot be changed");
        return;
    }
    g_free(p->packet_helper);
    p->packet_helper = g_strdup(value);
}

static char *filter_packet_get_interface(Object *obj, Error **errp)
{
    QIOChannelPacket *ioc = filter_packet_get(obj)->ioc;

    if (!ioc) {
        return NULL;
    }
    qio_channel_packet_get_link(ioc);
    return g_strdup(qio_channel_packet_get_ifname(ioc));
}

static void filter_packet_get_hold_limit(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    visit_type_size(v, name, &filter_packet_get(obj)->hold_limit, errp);
}

static void filter_packet_set_hold_limit(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);

    uint64_t value;

    if (!visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (!value) {
        error_setg(errp, "'hold_limit' must be at least 1 byte: without memory "
                   "for packets none would be saved");
        return;
    }
    p->hold_limit = value;
    if (p->source) {
        switchover_source_set_limit(p->source, value);
    } else if (p->arrival) {
        switchover_arrival_set_limit(p->arrival, value);
    } else if (p->has_indev && p->ioc) {
        qemu_chr_fe_accept_input(p->chr_in);
    }
}

static void filter_packet_get_peer_timeout(Object *obj, Visitor *v,
                                           const char *name, void *opaque,
                                           Error **errp)
{
    visit_type_uint32(v, name, &filter_packet_get(obj)->peer_timeout, errp);
}

static void filter_packet_set_peer_timeout(Object *obj, Visitor *v,
                                           const char *name, void *opaque,
                                           Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);
    uint32_t ms;

    if (!visit_type_uint32(v, name, &ms, errp)) {
        return;
    }
    if (p->nf->netdev) {
        error_setg(errp, "the 'peer_timeout' of a filter cannot be changed");
    } else if (ms && (ms < FILTER_PACKET_PEER_TIMEOUT_MIN ||
                      ms > FILTER_PACKET_PEER_TIMEOUT_MAX)) {
        error_setg(errp, "'peer_timeout' must be 0, or from %d to %d ms",
                   FILTER_PACKET_PEER_TIMEOUT_MIN,
                   FILTER_PACKET_PEER_TIMEOUT_MAX);
    } else {
        p->peer_timeout = ms;
    }
}

static void filter_packet_get_drain_timeout(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    visit_type_uint32(v, name, &filter_packet_get(obj)->drain_timeout, errp);
}

static void filter_packet_set_drain_timeout(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);
    uint32_t ms;

    if (!visit_type_uint32(v, name, &ms, errp)) {
        return;
    }
    if (ms > FILTER_PACKET_DRAIN_TIMEOUT_MAX) {
        error_setg(errp, "'drain_timeout' must be at most %d ms",
                   FILTER_PACKET_DRAIN_TIMEOUT_MAX);
        return;
    }
    p->drain_timeout = ms;
    if (p->source) {
        switchover_source_set_timeout(p->source, ms);
    }
}

static void filter_packet_get_ring_size(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    visit_type_size(v, name, &filter_packet_get(obj)->ring_size, errp);
}

static void filter_packet_set_ring_size(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    FilterPacket *p = filter_packet_get(obj);
    uint64_t size;

    if (!visit_type_size(v, name, &size, errp)) {
        return;
    }
    if (p->nf->netdev) {
        error_setg(errp, "the 'ring_size' of a filter cannot be changed");
        return;
    }
    if (size && (size < QIO_PACKET_RING_MIN || size > QIO_PACKET_RING_MAX)) {
        error_setg(errp, "'ring_size' must be 0, or from %d to %d bytes",
                   QIO_PACKET_RING_MIN, QIO_PACKET_RING_MAX);
        return;
    }
    p->ring_size = size;
}

void filter_packet_class_init(ObjectClass *oc)
{
    object_class_property_add_str(oc, "in_netdev",
                                  filter_packet_get_in_netdev,
                                  filter_packet_set_in_netdev);
    object_class_property_add_str(oc, "out_netdev",
                                  filter_packet_get_out_netdev,
                                  filter_packet_set_out_netdev);
    object_class_property_add_str(oc, "interface", filter_packet_get_interface,
                                  NULL);
    object_class_property_add_str(oc, "packet_helper",
                                  filter_packet_get_helper,
                                  filter_packet_set_helper);
    object_class_property_add(oc, "ring_size", "size",
                              filter_packet_get_ring_size,
                              filter_packet_set_ring_size, NULL, NULL);
    object_class_property_add(oc, "hold_limit", "size",
                              filter_packet_get_hold_limit,
                              filter_packet_set_hold_limit, NULL, NULL);
    object_class_property_add(oc, "drain_timeout", "uint32",
                              filter_packet_get_drain_timeout,
                              filter_packet_set_drain_timeout, NULL, NULL);
    object_class_property_add(oc, "peer_timeout", "uint32",
                              filter_packet_get_peer_timeout,
                              filter_packet_set_peer_timeout, NULL, NULL);
}
