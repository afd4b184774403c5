/*
 * Net filters: copies of the packets that vhost moves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * No packet of a netdev with vhost comes along the chain of its filters while
 * the VM runs.  But a filter-redirector with in_netdev, and without outdev,
 * captures on the host's side of the netdev what the guest receives, and sends
 * copies along the chain: to the filters behind it or, with queue=rx, to those
 * before it.  There a filter that only looks at packets is of use.
 */

#include "qemu/osdep.h"
#include "net/filter-copies.h"
#include "net/filter-packet.h"
#include "net/net.h"
#include "qapi/error.h"

#ifdef CONFIG_AF_PACKET

/* Does @other send its copies to @nf, which is to be behind it, or before? */
static bool filter_copies_from(NetFilterState *other, NetFilterState *nf,
                               bool behind)
{
    NetFilterDirection copies = other->direction == NET_FILTER_DIRECTION_RX ?
                                NET_FILTER_DIRECTION_RX :
                                NET_FILTER_DIRECTION_TX;
    FilterPacket *p;

    if (!object_dynamic_cast(OBJECT(other), "filter-redirector")) {
        return false;
    }
    p = filter_packet_get(OBJECT(other));
    return p->in_netdev && !p->has_outdev &&
           behind == (copies == NET_FILTER_DIRECTION_TX) &&
           (nf->direction == NET_FILTER_DIRECTION_ALL ||
            nf->direction == copies);
}

/* @nf is not in the chain yet: its place follows from its properties */
static bool filter_gets_copies(NetFilterState *nf)
{
    bool behind = strcmp(nf->position, "head");
    NetClientState *netdev;
    NetFilterState *other;

    if (qemu_find_net_clients_except(nf->netdev_id, &netdev,
                                     NET_CLIENT_DRIVER_NIC, 1) < 1) {
        return false;
    }
    QTAILQ_FOREACH(other, &netdev->filters, next) {
        const char *id = object_get_canonical_path_component(OBJECT(other));
        bool here = g_str_has_prefix(nf->position, "id=") &&
                    !strcmp(nf->position + 3, id);

        if (here && nf->insert_before_flag) {
            behind = false;
        }
        if (filter_copies_from(other, nf, behind)) {
            return true;
        }
        if (here) {
            behind = false;
        }
    }
    return false;
}

bool filter_copies_reach(NetFilterState *nf, Error **errp)
{
    if (filter_gets_copies(nf)) {
        return true;
    }
    error_setg(errp, "Vhost is not supported: no packet of vhost netdev '%s' "
               "would reach this filter; put a filter-redirector before it, "
               "with 'in_netdev=%s' and without 'outdev'", nf->netdev_id,
               nf->netdev_id);
    return false;
}

#else /* !CONFIG_AF_PACKET */

bool filter_copies_reach(NetFilterState *nf, Error **errp)
{
    error_setg(errp, "Vhost is not supported");
    return false;
}

#endif
