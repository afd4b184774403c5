/*
 * Net filters: what they are doing, and what they have done
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * QMP query-netfilter-stats and HMP "info netfilter-stats".
 *
 * Packets of the chain are counted here, where they enter a filter, whatever
 * its class is.  What only a class knows it adds to the answer in its get_stats
 * callback: where else its packets come from and go to, and which it has lost,
 * and why.
 *
 * Counters are plain integers, which are always on.  All code that moves
 * packets holds the BQL, and so do these commands.  A packet is counted as long
 * as it is in the host's or the guest's view: from its destination MAC address
 * on, without the vnet header and without framing.
 *
 * What the kernel counts is read when statistics are asked for.
 */

#include "qemu/osdep.h"
#include "net/filter-stats.h"
#include "chardev/char-socket-packet.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-net-filter.h"
#include "qapi/util.h"
#include "qemu/iov.h"
#include "qobject/qdict.h"

/* Packets of the chain */

ssize_t filter_stats_receive_iov(NetFilterState *nf,
                                 NetFilterDirection direction,
                                 NetClientState *sender, unsigned flags,
                                 const struct iovec *iov, int iovcnt,
                                 NetPacketSent *sent_cb)
{
    NetFilterChainTraffic *chain =
        direction == NET_FILTER_DIRECTION_TX ? &nf->tx : &nf->rx;
    size_t size = iov_size(iov, iovcnt);
    size_t hdr_len = flags & QEMU_NET_PACKET_FLAG_RAW ?
                     0 : nf->netdev->vnet_hdr_len;
    ssize_t ret;

    chain->packets++;
    chain->bytes += size - MIN(size, hdr_len);
    ret = NETFILTER_GET_CLASS(nf)->receive_iov(nf, sender, flags, iov, iovcnt,
                                               sent_cb);
    chain->taken += ret != 0;
    return ret;
}


/* What classes have in common */

static NetFilterDrops *filter_stats_drops(NetFilterStats *stats)
{
    if (!stats->dropped) {
        stats->dropped = g_new0(NetFilterDrops, 1);
    }
    return stats->dropped;
}

#ifdef CONFIG_AF_PACKET

static void filter_stats_add_channel(NetFilterStats *stats,
                                     QIOChannelPacketStats *counted)
{
    NetFilterDrops *drops = filter_stats_drops(stats);

    drops->ring_full += counted->dropped_kernel;
    drops->unread += counted->dropped_unread;
    drops->truncated += counted->dropped_truncated;
    drops->gso += counted->dropped_gso;
    drops->mtu += counted->dropped_mtu;
    drops->invalid += counted->dropped_invalid;
    drops->interface_down += counted->dropped_down;
}

/* A chardev that carries the frames of an interface loses some, too */
static void filter_stats_add_chardev(NetFilterStats *stats, CharFrontend *chr)
{
    QIOChannelPacket *ioc =
        qemu_chr_packet_channel(qemu_chr_fe_get_driver(chr));
    QIOChannelPacketStats counted;

    if (ioc) {
        qio_channel_packet_get_stats(ioc, &counted);
        filter_stats_add_channel(stats, &counted);
    }
}

#else

static void filter_stats_add_chardev(NetFilterStats *stats, CharFrontend *chr)
{
}

#endif

static NetFilterChardev *filter_stats_chardev(NetFilterStats *stats,
                                              CharFrontend *chr,
                                              bool connected,
                                              const NetFilterTraffic *traffic)
{
    NetFilterChardev *c = g_new0(NetFilterChardev, 1);

    filter_stats_add_chardev(stats, chr);
    c->chardev = g_strdup(qemu_chr_fe_get_driver(chr)->label);
    c->connected = connected;
    c->packets = traffic->packets;
    c->bytes = traffic->bytes;
    return c;
}

void filter_stats_add_indev(NetFilterStats *stats, CharFrontend *chr,
                            const NetFilterTraffic *traffic)
{
    stats->indev = filter_stats_chardev(stats, chr,
                                        qemu_chr_fe_backend_open(chr),
                                        traffic);
}

void filter_stats_add_writer(NetFilterStats *stats, FilterWriter *w)
{
    NetFilterDrops *drops = filter_stats_drops(stats);

    if (!w->chr) {
        return;
    }
    stats->outdev = filter_stats_chardev(stats, w->chr, w->connected,
                                         &w->queue.out);
    stats->outdev->queued = g_new0(NetFilterQueue, 1);
    stats->outdev->queued->packets = w->queue.packets;
    stats->outdev->queued->size = w->queue.bytes;
    drops->no_peer += w->dropped_no_peer;
    drops->slow_peer += w->dropped_no_room;
    drops->too_big += w->dropped_too_big;
}

#ifdef CONFIG_AF_PACKET

static NetFilterInterface *
filter_stats_interface(QIOChannelPacket *ioc, const char *netdev,
                       const QIOChannelPacketStats *counted)
{
    static const NetFilterInterfaceState states[] = {
        [QIO_CHANNEL_PACKET_LINK_UP] = NET_FILTER_INTERFACE_STATE_UP,
        [QIO_CHANNEL_PACKET_LINK_DOWN] = NET_FILTER_INTERFACE_STATE_DOWN,
        [QIO_CHANNEL_PACKET_LINK_GONE] = NET_FILTER_INTERFACE_STATE_GONE,
    };
    NetFilterInterface *i = g_new0(NetFilterInterface, 1);

    i->state = states[qio_channel_packet_get_link(ioc)];
    i->interface = g_strdup(qio_channel_packet_get_ifname(ioc));
    i->netdev = g_strdup(netdev);
    i->packets = counted->frames;
    i->bytes = counted->bytes;
    return i;
}

static NetFilterHeld *filter_stats_held(FilterPacket *p, uint64_t no_room)
{
    NetFilterHeld *held = g_new0(NetFilterHeld, 1);

    held->packets = p->held.packets;
    held->size = p->held.bytes;
    held->limit = p->hold_limit;
    held->no_room = no_room;
    return held;
}

static void filter_stats_add_switchover(NetFilterStats *stats,
                                        CharFrontend *chr,
                                        const SwitchoverStats *s, bool source)
{
    NetFilterTraffic traffic = { .packets = s->packets, .bytes = s->bytes };
    NetFilterDrops *drops = filter_stats_drops(stats);
    NetFilterChardev *c = filter_stats_chardev(stats, chr, s->connected,
                                               &traffic);

    if (source) {
        c->queued = g_new0(NetFilterQueue, 1);
        c->queued->packets = s->queued;
        c->queued->size = s->queued_bytes;
        stats->outdev = c;
    } else {
        stats->indev = c;
        stats->has_flooded = true;
        stats->flooded = s->flooded;
    }
    stats->held = g_new0(NetFilterHeld, 1);
    stats->held->packets = s->held;
    stats->held->size = s->held_bytes;
    stats->held->limit = s->limit;
    stats->switchover = g_new0(NetFilterSwitchover, 1);
    *stats->switchover = (NetFilterSwitchover) {
        .read = s->read,
        .sent = s->sent,
        .acknowledged = s->acknowledged,
        .delivered = s->delivered,
        .given_back = s->given_back,
        .direct = s->direct,
        .peak = s->peak,
        .peak_size = s->peak_bytes,
        .drain_time = s->drain_us,
    };
    drops->queue_full += s->dropped.queue_full;
    drops->invalid += s->dropped.invalid;
    drops->gso += s->dropped.gso;
    drops->guest += s->dropped.guest;
    drops->no_peer += s->dropped.no_peer;
}

static void filter_stats_add_interface(NetFilterStats *stats, FilterPacket *p)
{
    QIOChannelPacketStats counted;
    NetFilterInterface *i;

    qio_channel_packet_get_stats(p->ioc, &counted);
    filter_stats_add_channel(stats, &counted);
    i = filter_stats_interface(p->ioc, p->in_netdev ?: p->out_netdev,
                               &counted);
    if (p->in_netdev) {
        stats->in_netdev = i;
    } else {
        stats->out_netdev = i;
        stats->held = filter_stats_held(p, counted.no_room);
    }
}

void filter_stats_add_packet(NetFilterStats *stats, FilterPacket *p)
{
    NetFilterDrops *drops = filter_stats_drops(stats);
    SwitchoverStats s;

    drops->hold_limit += p->dropped_no_room;
    drops->too_big += p->dropped_too_big;
    drops->gso += p->dropped_gso;
    drops->invalid += p->dropped_invalid;
    drops->interface_gone += p->dropped_gone;
    if (p->ioc) {
        filter_stats_add_interface(stats, p);
    } else if (p->source) {
        switchover_source_get_stats(p->source, &s);
        filter_stats_add_switchover(stats, p->chr_out, &s, true);
    } else if (p->arrival) {
        switchover_arrival_get_stats(p->arrival, &s);
        filter_stats_add_switchover(stats, p->chr_in, &s, false);
    }
}

#else

void filter_stats_add_packet(NetFilterStats *stats, FilterPacket *p)
{
}

#endif


/* QMP */

static const char *filter_id(NetFilterState *nf)
{
    return object_get_canonical_path_component(OBJECT(nf));
}

static NetFilterStats *filter_stats_of(NetFilterState *nf)
{
    NetFilterClass *nfc = NETFILTER_GET_CLASS(nf);
    NetFilterStats *stats = g_new0(NetFilterStats, 1);

    stats->name = g_strdup(filter_id(nf));
    stats->type = qapi_enum_parse(&ObjectType_lookup,
                                  object_get_typename(OBJECT(nf)), -1,
                                  &error_abort);
    stats->netdev = g_strdup(nf->netdev_id);
    stats->queue = nf->direction;
    stats->enabled = stats->active = nf->on;
    stats->tx = g_memdup2(&nf->tx, sizeof(nf->tx));
    stats->rx = g_memdup2(&nf->rx, sizeof(nf->rx));
    if (nfc->get_stats) {
        nfc->get_stats(nf, stats);
    }
    return stats;
}

NetFilterStatsList *qmp_query_netfilter_stats(const char *name, Error **errp)
{
    NetFilterStatsList *list = NULL, **tail = &list;
    NetClientState *nc;
    NetFilterState *nf;

    QTAILQ_FOREACH(nc, &net_clients, next) {
        QTAILQ_FOREACH(nf, &nc->filters, next) {
            if (!name || !strcmp(name, filter_id(nf))) {
                QAPI_LIST_APPEND(tail, filter_stats_of(nf));
            }
        }
    }
    if (name && !list) {
        error_setg(errp, "net filter '%s' not found; leave 'name' out for all "
                   "filters that there are", name);
    }
    return list;
}


/* HMP */

static void print_chain(Monitor *mon, const char *name,
                        NetFilterChainTraffic *chain)
{
    monitor_printf(mon, "  %s: packets=%" PRIu64 " bytes=%" PRIu64
                   " taken=%" PRIu64 "\n", name, chain->packets, chain->bytes,
                   chain->taken);
}

static void print_chardev(Monitor *mon, const char *name, NetFilterChardev *c)
{
    if (!c) {
        return;
    }
    monitor_printf(mon, "  %s: %s (%s) packets=%" PRIu64 " bytes=%" PRIu64,
                   name, c->chardev, c->connected ? "connected" : "no peer",
                   c->packets, c->bytes);
    if (c->queued) {
        monitor_printf(mon, " queued=%" PRIu64 " queued_size=%" PRIu64,
                       c->queued->packets, c->queued->size);
    }
    monitor_printf(mon, "\n");
}

static void print_interface(Monitor *mon, const char *name,
                            NetFilterInterface *i)
{
    if (i) {
        monitor_printf(mon, "  %s: %s (%s, %s) packets=%" PRIu64
                       " bytes=%" PRIu64 "\n", name, i->netdev, i->interface,
                       NetFilterInterfaceState_str(i->state), i->packets,
                       i->bytes);
    }
}

static void print_held(Monitor *mon, NetFilterHeld *held)
{
    if (held) {
        monitor_printf(mon, "  held: packets=%" PRIu64 " size=%" PRIu64
                       " limit=%" PRIu64 " no_room=%" PRIu64 "\n",
                       held->packets, held->size, held->limit, held->no_room);
    }
}

static void print_switchover(Monitor *mon, NetFilterSwitchover *s)
{
    if (s) {
        monitor_printf(mon, "  switchover: read=%" PRIu64 " sent=%" PRIu64
                       " acknowledged=%" PRIu64 " delivered=%" PRIu64
                       " given_back=%" PRIu64 " direct=%" PRIu64
                       " peak=%" PRIu64 " peak_size=%" PRIu64
                       " drain_time=%" PRIu64 "us\n", s->read, s->sent,
                       s->acknowledged, s->delivered, s->given_back, s->direct,
                       s->peak, s->peak_size, s->drain_time);
    }
}

/* Only those that there are: the others would hide them */
static void print_dropped(Monitor *mon, NetFilterDrops *d)
{
    const struct {
        const char *name;
        uint64_t n;
    } drops[] = {
        { "ring-full", d->ring_full },
        { "queue-full", d->queue_full },
        { "unread", d->unread },
        { "truncated", d->truncated },
        { "too-big", d->too_big },
        { "mtu", d->mtu },
        { "gso", d->gso },
        { "invalid", d->invalid },
        { "interface-down", d->interface_down },
        { "interface-gone", d->interface_gone },
        { "hold-limit", d->hold_limit },
        { "no-peer", d->no_peer },
        { "slow-peer", d->slow_peer },
        { "guest", d->guest },
    };
    bool any = false;

    monitor_printf(mon, "  dropped:");
    for (size_t i = 0; i < ARRAY_SIZE(drops); i++) {
        if (drops[i].n) {
            monitor_printf(mon, " %s=%" PRIu64, drops[i].name, drops[i].n);
            any = true;
        }
    }
    monitor_printf(mon, "%s\n", any ? "" : " none");
}

void hmp_info_netfilter_stats(Monitor *mon, const QDict *qdict)
{
    const char *name = qdict_get_try_str(qdict, "name");
    Error *err = NULL;
    g_autoptr(NetFilterStatsList) list = qmp_query_netfilter_stats(name, &err);

    hmp_handle_error(mon, err);
    for (NetFilterStatsList *l = list; l; l = l->next) {
        NetFilterStats *f = l->value;

        monitor_printf(mon, "%s: type=%s,netdev=%s,queue=%s,status=%s,%s\n",
                       f->name, ObjectType_str(f->type), f->netdev,
                       NetFilterDirection_str(f->queue),
                       f->enabled ? "on" : "off",
                       f->active ? "active" : "inactive");
        print_chain(mon, "tx", f->tx);
        print_chain(mon, "rx", f->rx);
        print_chardev(mon, "indev", f->indev);
        print_interface(mon, "in_netdev", f->in_netdev);
        print_chardev(mon, "outdev", f->outdev);
        print_interface(mon, "out_netdev", f->out_netdev);
        print_held(mon, f->held);
        print_switchover(mon, f->switchover);
        if (f->has_flooded) {
            monitor_printf(mon, "  flooded: packets=%" PRIu64 "\n",
                           f->flooded);
        }
        if (f->dropped) {
            print_dropped(mon, f->dropped);
        }
    }
}
