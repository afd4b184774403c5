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
 * Theory of operation
 *
 * The frames come from, and go to, a QIOChannelPacket on the interface; all
 * knowledge of AF_PACKET is there.  Which interface a netdev has is asked of
 * the netdev (get_host_ifname), once, at set-up.
 *
 * Capture.  At most one message is under way to outdev.  While the peer does
 * not take it all, nothing is read from the socket: frames wait in its buffer
 * in the kernel, which counts those that find it full.  The same without a
 * peer.  A new peer gets the message from its first byte, so it is in step.
 *
 *   becomes active     attach the socket to the traffic
 *   becomes inactive   end the capture; what the socket holds still goes to
 *                      the peer, then detach it
 *   inactive, no peer  drop and count what it holds, lest a later peer takes
 *                      it for news
 *
 * Inject.  A frame is sent at once, or held: when the filter is inactive,
 * when the interface has no room, and behind other held frames, for frames
 * stay in order.  When hold_limit bytes are held, indev is no longer read;
 * the peer's socket fills up, and the peer waits.  The chain cannot be made
 * to wait: there a frame beyond the limit is dropped and counted.
 *
 *   becomes active     send what is held, until done or no room
 *   no room            try again when the timer fires, after 1 ms
 *   becomes inactive   stop the timer
 *   interface gone     while active, drop all, and count
 *
 * The redirector tells of "active" when the VM starts only after its devices
 * have started.  A frame that was injected before that could be read by QEMU
 * and then thrown away by the start of vhost.
 */

#include "qemu/osdep.h"
#include "net/filter-packet.h"
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

/* Frames that one turn of the main loop handles at most */
#define FILTER_PACKET_CAPTURE_BATCH 64
#define FILTER_PACKET_INJECT_BATCH 1024

#define FILTER_PACKET_HOLD_LIMIT (64 * MiB)

/* be32 message length, be32 vnet header length */
#define MSG_HDR_MAX (2 * sizeof(uint32_t))

struct FilterPacketHeld {
    QSIMPLEQ_ENTRY(FilterPacketHeld) next;
    struct virtio_net_hdr vnet_hdr;
    size_t len;
    uint8_t data[];
};

static const char *filter_packet_id(FilterPacket *p)
{
    return object_get_canonical_path_component(OBJECT(p->nf));
}

static void filter_packet_count_drop(FilterPacket *p, uint64_t *counter,
                                     const char *reason)
{
    trace_filter_packet_drop(filter_packet_id(p), reason);
    if (!(*counter)++) {
        warn_report("filter-redirector '%s': frame dropped: %s (more of these "
                    "are counted only)", filter_packet_id(p), reason);
    }
}

static void filter_packet_retry_in(FilterPacket *p, int64_t delay_us)
{
    timer_mod(p->retry, qemu_clock_get_us(QEMU_CLOCK_REALTIME) + delay_us);
}

static void filter_packet_set_gone(FilterPacket *p, Error *err)
{
    error_prepend(&err, "filter-redirector '%s': ", filter_packet_id(p));
    warn_report_err(err);
    p->gone = true;
}


/* Capture */

/* Write the message on, as far as the peer takes it */
static void filter_packet_write_message(FilterPacket *p)
{
    while (p->connected && p->msg_pos < p->msg_len) {
        int n = qemu_chr_fe_write(p->chr_out, p->msg + p->msg_pos,
                                  p->msg_len - p->msg_pos);

        if (n <= 0) {
            return;
        }
        p->msg_pos += n;
    }
    if (p->msg_pos == p->msg_len) {
        p->msg_pos = p->msg_len = 0;
    }
}

static void filter_packet_capture_update(FilterPacket *p);

static gboolean filter_packet_writable(void *do_not_use, GIOCondition cond,
                                       void *opaque)
{
    FilterPacket *p = opaque;

    p->msg_watch = 0;
    filter_packet_write_message(p);
    filter_packet_capture_update(p);
    return G_SOURCE_REMOVE;
}

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

static void filter_packet_to_outdev(FilterPacket *p,
                                    QIOChannelPacketFrame *frame)
{
    uint8_t *pos = p->msg;
    size_t vnet_hdr_len = 0;

    if (p->vnet_hdr) {
        vnet_hdr_len = MAX(p->nf->netdev->vnet_hdr_len,
                           sizeof(frame->vnet_hdr));
    } else if (!qio_channel_packet_complete_frame(p->ioc, frame)) {
        return;
    }

    stl_be_p(pos, vnet_hdr_len + frame->len);
    pos += sizeof(uint32_t);
    if (p->vnet_hdr) {
        stl_be_p(pos, vnet_hdr_len);
        pos += sizeof(uint32_t);
        filter_packet_put_vnet_hdr(pos, vnet_hdr_len, &frame->vnet_hdr);
        pos += vnet_hdr_len;
    }
    memcpy(pos, frame->data, frame->len);

    p->msg_pos = 0;
    p->msg_len = pos + frame->len - p->msg;
    filter_packet_write_message(p);
}

static void filter_packet_to_chain(FilterPacket *p,
                                   QIOChannelPacketFrame *frame)
{
    struct virtio_net_hdr_v1_hash_tunnel hdr;
    NetClientState *netdev = p->nf->netdev;
    struct iovec iov[2] = {
        { .iov_base = &hdr, .iov_len = netdev->vnet_hdr_len },
        { .iov_base = frame->data, .iov_len = frame->len },
    };
    int skip = !netdev->vnet_hdr_len;

    if (skip && !qio_channel_packet_complete_frame(p->ioc, frame)) {
        return;
    }
    assert(netdev->vnet_hdr_len <= sizeof(hdr));
    filter_packet_put_vnet_hdr((uint8_t *)&hdr, netdev->vnet_hdr_len,
                               &frame->vnet_hdr);
    qemu_netfilter_pass_to_next(netdev, QEMU_NET_PACKET_FLAG_COPY,
                                iov + skip, ARRAY_SIZE(iov) - skip, p->nf);
}

/* Leave the traffic; true if that drops what has not been read */
static bool filter_packet_capture_detach(FilterPacket *p)
{
    qemu_set_fd_handler(qio_channel_packet_get_fd(p->ioc), NULL, NULL, NULL);
    return qio_channel_packet_detach(p->ioc);
}

static void filter_packet_drop_no_peer(FilterPacket *p)
{
    filter_packet_count_drop(p, &p->dropped_no_peer,
                             "outdev had no peer to take it");
}

static void filter_packet_capture(void *opaque)
{
    FilterPacket *p = opaque;
    QIOChannelPacketFrame frame;
    Error *err = NULL;
    int ret;

    for (int i = 0; i < FILTER_PACKET_CAPTURE_BATCH && !p->msg_len; i++) {
        ret = qio_channel_packet_recv_frame(p->ioc, &frame, &err);
        if (ret == 0) {
            continue;
        }
        if (ret == QIO_CHANNEL_ERR_BLOCK) {
            if (!p->active) {
                filter_packet_capture_detach(p);
                p->state = FILTER_PACKET_DETACHED;
            }
            break;
        }
        if (ret < 0) {
            filter_packet_set_gone(p, err);
            break;
        }
        if (!p->has_outdev) {
            filter_packet_to_chain(p, &frame);
        } else if (p->connected && p->state != FILTER_PACKET_DROPPING) {
            filter_packet_to_outdev(p, &frame);
        } else {
            filter_packet_drop_no_peer(p);
        }
    }
    filter_packet_capture_update(p);
}

/* Idempotent: read the socket, and watch outdev, exactly when it is of use */
static void filter_packet_capture_update(FilterPacket *p)
{
    bool want_read;

    if (p->msg_len && p->connected && !p->msg_watch) {
        p->msg_watch = qemu_chr_fe_add_watch(p->chr_out, G_IO_OUT | G_IO_HUP,
                                             filter_packet_writable, p);
        if (!p->msg_watch) {
            /* A chardev that cannot be waited for, such as udp */
            p->msg_len = 0;
            filter_packet_count_drop(p, &p->dropped_no_peer,
                                     "outdev did not take it");
        }
    } else if (!(p->msg_len && p->connected) && p->msg_watch) {
        g_source_remove(p->msg_watch);
        p->msg_watch = 0;
    }

    if (!p->active && p->has_outdev && !p->connected) {
        if (p->msg_len) {
            p->msg_len = 0;
            filter_packet_drop_no_peer(p);
        }
        if (p->state == FILTER_PACKET_DRAINING) {
            p->state = filter_packet_capture_detach(p) ?
                       FILTER_PACKET_DETACHED : FILTER_PACKET_DROPPING;
        }
    }

    /* The end of the socket's frames is not an event: go on until it is met */
    if (!p->gone && !p->active && !p->msg_len &&
        p->state != FILTER_PACKET_DETACHED) {
        filter_packet_retry_in(p, 0);
    } else {
        timer_del(p->retry);
    }
    want_read = p->active && !p->gone && !p->msg_len &&
                (!p->has_outdev || p->connected);
    qemu_set_fd_handler(qio_channel_packet_get_fd(p->ioc),
                        want_read ? filter_packet_capture : NULL, NULL, p);
}

static void filter_packet_capture_set_active(FilterPacket *p)
{
    Error *err = NULL;

    p->state = p->active ? FILTER_PACKET_ATTACHED : FILTER_PACKET_DRAINING;
    if (!p->gone &&
        !qio_channel_packet_set_active(p->ioc, p->active, &err)) {
        filter_packet_set_gone(p, err);
    }
    filter_packet_capture_update(p);
}

/* The peer has nothing to say; but reading is how its end is noticed */
static int filter_packet_outdev_can_read(void *opaque)
{
    return 1;
}

static void filter_packet_outdev_read(void *opaque, const uint8_t *buf,
                                      int size)
{
}

static void filter_packet_outdev_event(void *opaque, QEMUChrEvent event)
{
    FilterPacket *p = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        p->connected = true;
        p->msg_pos = 0;
        filter_packet_write_message(p);
        break;
    case CHR_EVENT_CLOSED:
        p->connected = false;
        break;
    default:
        return;
    }
    trace_filter_packet_outdev(filter_packet_id(p), p->connected);
    filter_packet_capture_update(p);
}


/* Inject */

static void filter_packet_hold(FilterPacket *p,
                               const QIOChannelPacketFrame *frame)
{
    FilterPacketHeld *held = g_malloc(sizeof(*held) + frame->len);

    held->vnet_hdr = frame->vnet_hdr;
    held->len = frame->len;
    memcpy(held->data, frame->data, frame->len);
    QSIMPLEQ_INSERT_TAIL(&p->held, held, next);
    p->held_bytes += sizeof(*held) + held->len;
}

static void filter_packet_drop_first(FilterPacket *p)
{
    FilterPacketHeld *held = QSIMPLEQ_FIRST(&p->held);

    QSIMPLEQ_REMOVE_HEAD(&p->held, next);
    p->held_bytes -= sizeof(*held) + held->len;
    g_free(held);
}

static void filter_packet_drop_all(FilterPacket *p)
{
    while (!QSIMPLEQ_EMPTY(&p->held)) {
        filter_packet_drop_first(p);
    }
}

/* Done with the frame (true), or no room for it now (false)? */
static bool filter_packet_send(FilterPacket *p,
                               const QIOChannelPacketFrame *frame)
{
    Error *err = NULL;
    int ret;

    if (!p->gone) {
        ret = qio_channel_packet_send_frame(p->ioc, frame, &err);
        if (ret == -1) {
            filter_packet_set_gone(p, err);
        }
    }
    if (p->gone) {
        filter_packet_count_drop(p, &p->dropped_gone,
                                 "the host interface is gone");
        return true;
    }
    return ret != QIO_CHANNEL_ERR_BLOCK;
}

/* Send what is held, in order, until done, or no room, or a turn's share */
static void filter_packet_release(void *opaque)
{
    FilterPacket *p = opaque;
    FilterPacketHeld *held;
    int64_t delay_us = QIO_CHANNEL_PACKET_RETRY_US;
    int n = 0;

    while ((held = QSIMPLEQ_FIRST(&p->held))) {
        QIOChannelPacketFrame frame = {
            .vnet_hdr = held->vnet_hdr,
            .data = held->data,
            .len = held->len,
        };

        if (n == FILTER_PACKET_INJECT_BATCH) {
            delay_us = 0;
            break;
        }
        if (!filter_packet_send(p, &frame)) {
            break;
        }
        filter_packet_drop_first(p);
        n++;
    }
    if (n) {
        trace_filter_packet_release(filter_packet_id(p), n, p->held_bytes);
    }

    if (held) {
        filter_packet_retry_in(p, delay_us);
    }
    if (p->has_indev) {
        qemu_chr_fe_accept_input(p->chr_in);
    }
}

/* Takes the frame in any case */
static void filter_packet_inject(FilterPacket *p,
                                 const QIOChannelPacketFrame *frame)
{
    if (p->active && QSIMPLEQ_EMPTY(&p->held)) {
        if (filter_packet_send(p, frame)) {
            return;
        }
        filter_packet_retry_in(p, QIO_CHANNEL_PACKET_RETRY_US);
    }
    filter_packet_hold(p, frame);
}

static void filter_packet_inject_set_active(FilterPacket *p)
{
    if (p->active) {
        filter_packet_release(p);
    } else {
        timer_del(p->retry);
    }
}

ssize_t filter_packet_receive_iov(FilterPacket *p, unsigned flags,
                                  const struct iovec *iov, int iovcnt)
{
    g_autofree uint8_t *buf = NULL;
    QIOChannelPacketFrame frame = { 0 };
    size_t size = iov_size(iov, iovcnt);
    size_t vnet_hdr_len = flags & QEMU_NET_PACKET_FLAG_RAW ?
                          0 : p->nf->netdev->vnet_hdr_len;

    if (!p->out_netdev || p->has_indev || size <= vnet_hdr_len) {
        return 0;
    }

    if (p->held_bytes >= p->hold_limit && !QSIMPLEQ_EMPTY(&p->held)) {
        filter_packet_count_drop(p, &p->dropped_no_room,
                                 "'hold_limit' is reached");
        return size;
    }

    iov_to_buf(iov, iovcnt, 0, &frame.vnet_hdr,
               MIN(vnet_hdr_len, sizeof(frame.vnet_hdr)));
    frame.len = size - vnet_hdr_len;
    frame.data = buf = g_malloc(frame.len);
    iov_to_buf(iov, iovcnt, vnet_hdr_len, frame.data, frame.len);
    filter_packet_inject(p, &frame);
    return size;
}

int filter_packet_can_read(FilterPacket *p)
{
    bool sends = p->active && QSIMPLEQ_EMPTY(&p->held);

    return sends || p->held_bytes < p->hold_limit ? NET_BUFSIZE : 0;
}

void filter_packet_receive_message(FilterPacket *p, const SocketReadState *rs)
{
    QIOChannelPacketFrame frame;

    if (!qio_channel_packet_parse_payload((uint8_t *)rs->buf, rs->packet_len,
                                          rs->vnet_hdr_len, &frame)) {
        filter_packet_count_drop(p, &p->dropped_unusable, "the message has "
                                 "no room for the vnet header and a frame");
        return;
    }
    filter_packet_inject(p, &frame);
}


/* Both */

void filter_packet_set_active(FilterPacket *p, bool active)
{
    if (!p->ioc || p->active == active) {
        return;
    }
    p->active = active;
    trace_filter_packet_set_active(filter_packet_id(p), active,
                                   p->held_bytes);
    if (p->in_netdev) {
        filter_packet_capture_set_active(p);
    } else {
        filter_packet_inject_set_active(p);
    }
}

void filter_packet_init(FilterPacket *p, NetFilterState *nf,
                        CharFrontend *chr_in, CharFrontend *chr_out)
{
    p->nf = nf;
    p->chr_in = chr_in;
    p->chr_out = chr_out;
    p->hold_limit = FILTER_PACKET_HOLD_LIMIT;
    QSIMPLEQ_INIT(&p->held);
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

bool filter_packet_setup(FilterPacket *p, bool vnet_hdr, Error **errp)
{
    ERRP_GUARD();
    const char *option = p->in_netdev ? "in_netdev" : "out_netdev";
    const char *id = p->in_netdev ?: p->out_netdev;
    g_autofree char *ifname = NULL;
    NetClientState *nc;

    if (!id) {
        return true;
    }

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
        p->ioc = qio_channel_packet_new_ifname(ifname, p->in_netdev ?
                                               QIO_CHANNEL_PACKET_CAPTURE :
                                               QIO_CHANNEL_PACKET_INJECT,
                                               errp);
    }
    if (!p->ioc) {
        error_prepend(errp, "'%s': ", option);
        return false;
    }

    p->vnet_hdr = vnet_hdr;
    p->retry = timer_new_us(QEMU_CLOCK_REALTIME, p->in_netdev ?
                            filter_packet_capture : filter_packet_release, p);
    if (p->in_netdev && p->has_outdev) {
        p->msg = g_malloc(MSG_HDR_MAX +
                          sizeof(struct virtio_net_hdr_v1_hash_tunnel) +
                          NET_BUFSIZE);
        /* The others have no events for their peers, if they know them */
        p->connected = !qemu_chr_has_feature(qemu_chr_fe_get_driver(p->chr_out),
                                             QEMU_CHAR_FEATURE_RECONNECTABLE);
        qemu_chr_fe_set_handlers(p->chr_out, filter_packet_outdev_can_read,
                                 filter_packet_outdev_read,
                                 filter_packet_outdev_event, NULL, p, NULL,
                                 true);
    }
    return true;
}

void filter_packet_cleanup(FilterPacket *p)
{
    if (p->ioc) {
        qemu_set_fd_handler(qio_channel_packet_get_fd(p->ioc),
                            NULL, NULL, NULL);
        if (p->msg_watch) {
            g_source_remove(p->msg_watch);
        }
        filter_packet_drop_all(p);
        timer_free(p->retry);
        object_unref(OBJECT(p->ioc));
        p->ioc = NULL;
    }
    g_free(p->msg);
    g_free(p->in_netdev);
    g_free(p->out_netdev);
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

    if (visit_type_size(v, name, &p->hold_limit, errp) && p->has_indev &&
        p->ioc) {
        qemu_chr_fe_accept_input(p->chr_in);
    }
}

void filter_packet_class_init(ObjectClass *oc)
{
    object_class_property_add_str(oc, "in_netdev",
                                  filter_packet_get_in_netdev,
                                  filter_packet_set_in_netdev);
    object_class_property_add_str(oc, "out_netdev",
                                  filter_packet_get_out_netdev,
                                  filter_packet_set_out_netdev);
    object_class_property_add(oc, "hold_limit", "size",
                              filter_packet_get_hold_limit,
                              filter_packet_set_hold_limit, NULL, NULL);
}
