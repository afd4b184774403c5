/*
 * filter-redirector: the frames of a VM that is stopped by its migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * When a VM stops, the network goes on sending to it.  The frames wait in the
 * queue of its netdev, a TAP device in the kernel: exactly those that the guest
 * has not had, in order, with checksum and GSO metadata.  vhost puts back what
 * it had taken out and not delivered (Linux 6.18).  And from then on it is
 * QEMU's own handler that reads this queue, through the chain of filters.
 *
 * So a redirector of a stopped VM needs no cut in the stream of frames, and no
 * privilege, to find what a migration would lose: it takes what comes along
 * the chain.
 *
 * Theory of operation
 *
 * This is for redirectors that send the frames of their own netdev to outdev,
 * and are active when the VM is stopped but not when it runs.
 *
 *   VM stops for its migration     send the frames to the destination, and keep
 *                                  a copy of each: the migration may fail yet
 *   ... and they cannot be         leave them in the queue
 *       given back
 *   VM's state is saved            before its last bytes are sent: catch up
 *   migration is complete          before anybody is told so: catch up.  Drop
 *                                  the copies once the peer has all; send what
 *                                  still comes
 *   VM runs again                  give the copies back: inject them on the
 *                                  netdev's interface, before vhost starts; do
 *                                  not send what has not been sent
 *   VM stops for another reason    leave them in the queue
 *
 * To catch up is to send what is in the queue at once.  The main loop does the
 * same as soon as it runs, but the destination does not wait for it: it would
 * start its VM, and let the network know, before it has these frames.  And
 * whoever hears that the migration is complete may kill this process; so that
 * is said only when the peer has taken all, or after drain_timeout.
 *
 * To leave frames in the queue is to switch off QEMU's reading of it.  That is
 * also what happens when the copies reach hold_limit, and after the migration
 * when there is no peer, or it does not keep up.  What then finds the queue
 * full is dropped by the kernel: its length, txqueuelen, is the limit for the
 * time in which QEMU's main loop is away, which is about the downtime.
 */

#include "qemu/osdep.h"
#include "net/filter-switchover.h"
#include "migration/client-options.h"
#include "net/filter-activity.h"
#include "net/filter-packet.h"
#include "net/link-stats.h"
#include "net/net.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/units.h"
#include "trace.h"
#include <net/if.h>

/*
 * In front of each device, whose priority is its depth in the device tree:
 * first when the VM starts, last when it stops
 */
#define SWITCHOVER_VMSTATE_PRIORITY INT_MIN

/* Bytes over hold_limit that are taken, to keep the order, for a moment */
#define SWITCHOVER_REST (64 * MiB)

/* How often to try again to write to a peer that does not take all at once */
#define SWITCHOVER_DRAIN_POLL_US 1000

/* Frames that are taken in one go, at most: ten times the usual queue */
#define SWITCHOVER_CATCH_UP 10000

static FilterSwitchoverState filter_switchover_next(FilterSwitchover *sw)
{
    if (sw->resuming) {
        return sw->state;
    }
    if (!sw->stopped || !sw->active) {
        return FILTER_SWITCHOVER_OFF;
    }
    if (sw->migrating && runstate_check(RUN_STATE_POSTMIGRATE)) {
        return FILTER_SWITCHOVER_MOVE;
    }
    if (sw->migrating && runstate_check(RUN_STATE_FINISH_MIGRATE)) {
        /* In postcopy "done" comes first, and the source may yet run again */
        return sw->packet->ioc ? FILTER_SWITCHOVER_COPY :
               sw->done ? FILTER_SWITCHOVER_MOVE : FILTER_SWITCHOVER_LEAVE;
    }
    return FILTER_SWITCHOVER_LEAVE;
}

static void filter_switchover_read(FilterSwitchover *sw, bool enable)
{
    sw->reading = enable;
    sw->nf->netdev->info->poll(sw->nf->netdev, enable);
}

/* Enter the state that is right now; shall QEMU read the netdev's queue? */
static bool filter_switchover_wants_more(FilterSwitchover *sw)
{
    static const char *const names[] = {
        [FILTER_SWITCHOVER_OFF] = "off",
        [FILTER_SWITCHOVER_LEAVE] = "leave",
        [FILTER_SWITCHOVER_COPY] = "copy",
        [FILTER_SWITCHOVER_MOVE] = "move",
    };
    FilterPacket *p = sw->packet;
    FilterSwitchoverState state = filter_switchover_next(sw);

    if (state != sw->state) {
        trace_filter_switchover_state(filter_packet_id(p), names[state],
                                      sw->taken, p->held.packets,
                                      p->held.bytes);
        if (state >= FILTER_SWITCHOVER_COPY && !sw->sent) {
            /* What an earlier migration has left, and the guest not had */
            filter_packet_resend(p);
            sw->sent = true;
        }
        sw->state = state;
    }

    switch (state) {
    case FILTER_SWITCHOVER_OFF:
        return true;
    case FILTER_SWITCHOVER_COPY:
        /* As long as there is memory: else the order would not be kept */
        return p->held.bytes < p->hold_limit;
    case FILTER_SWITCHOVER_MOVE:
        if (!sw->writer->queue.bytes) {
            packet_queue_clear(&p->held);
        }
        return p->held.bytes < p->hold_limit &&
               filter_writer_wants_more(sw->writer);
    default:
        return false;
    }
}

/* Idempotent */
static void filter_switchover_update(void *opaque)
{
    FilterSwitchover *sw = opaque;

    if (sw->stopped) {
        bool read = filter_switchover_wants_more(sw);

        if (sw->connected && !sw->writer->connected &&
            sw->state >= FILTER_SWITCHOVER_COPY) {
            warn_report("filter-redirector '%s': outdev's connection ended: "
                        "frames of the VM that are on the way are lost, unless "
                        "it runs on here", filter_packet_id(sw->packet));
        }
        sw->connected = sw->writer->connected;
        if (read != sw->reading) {
            filter_switchover_read(sw, read);
        }
    }
}

/* Take some frames from the queue at once; false if there is none */
static bool filter_switchover_read_now(FilterSwitchover *sw)
{
    NetClientState *netdev = sw->nf->netdev;
    uint64_t taken = sw->taken;

    if (netdev->info->read_now) {
        netdev->info->read_now(netdev);
    }
    return sw->taken > taken;
}

/*
 * Do what the main loop would do, had it the time: while the VM's state is
 * saved it has none, and the destination does not wait for it.
 */
static void filter_switchover_catch_up(FilterSwitchover *sw)
{
    uint64_t last = sw->taken + SWITCHOVER_CATCH_UP;

    filter_switchover_update(sw);
    do {
        filter_writer_flush(sw->writer);
    } while (sw->state >= FILTER_SWITCHOVER_COPY && sw->reading &&
             sw->taken < last && filter_switchover_read_now(sw));
}

/* The migration is complete, and may be seen as such when this returns */
static void filter_switchover_drain(FilterSwitchover *sw)
{
    FilterWriter *w = sw->writer;
    int64_t end = g_get_monotonic_time() +
                  sw->packet->drain_timeout * (int64_t)1000;

    while (w->connected && w->queue.bytes && g_get_monotonic_time() < end) {
        g_usleep(SWITCHOVER_DRAIN_POLL_US);
        filter_switchover_catch_up(sw);
    }
    if (w->queue.packets) {
        warn_report("filter-redirector '%s': the migration is complete, but "
                    "outdev's peer has not yet taken %" PRIu64 " frames of the "
                    "VM: they are lost if QEMU ends now",
                    filter_packet_id(sw->packet), w->queue.packets);
    }
}

/* What is still in the queue goes behind the copies, not before them */
static void filter_switchover_read_rest(FilterSwitchover *sw)
{
    FilterPacket *p = sw->packet;

    sw->resuming = true;
    while (p->held.bytes && p->held.bytes < p->hold_limit + SWITCHOVER_REST &&
           filter_switchover_read_now(sw)) {
        /* The frames are with the copies */
    }
    sw->resuming = false;
}

/* The kernel counts the frames that find the queue full: have a look */
static void filter_switchover_look_at_queue(FilterSwitchover *sw)
{
    uint64_t dropped;

    if (sw->active && sw->ifindex &&
        net_link_tx_dropped(sw->ifindex, &dropped)) {
        if (sw->stopped && sw->queue_drops != UINT64_MAX) {
            filter_count_drop(sw->nf, &sw->dropped_queue,
                              dropped - sw->queue_drops,
                              "the queue of the netdev's host interface is "
                              "full, or it is down");
        }
        sw->queue_drops = dropped;
    }
}

static void filter_switchover_vm_change_state(void *opaque, bool running,
                                              RunState state)
{
    FilterSwitchover *sw = opaque;

    if (running) {
        if (sw->stopped) {
            filter_switchover_read_rest(sw);
            filter_switchover_look_at_queue(sw);
            sw->sent = false;
            /* If it was, that migration is over, and the next may be cpr's */
            sw->migrating = sw->migrating && !sw->done;
            sw->stopped = false;
            sw->state = FILTER_SWITCHOVER_OFF;
            trace_filter_switchover_give_back(filter_packet_id(sw->packet),
                                              sw->packet->held.packets,
                                              sw->packet->held.bytes);
            filter_packet_give_back(sw->packet);
            filter_writer_discard(sw->writer, !sw->packet->ioc);
            filter_switchover_read(sw, true);
        }
    } else {
        filter_switchover_look_at_queue(sw);
        sw->stopped = true;
        sw->connected = sw->writer->connected;
        filter_packet_give_back_later(sw->packet);
        /* Whatever the devices have left it at */
        filter_switchover_read(sw, filter_switchover_wants_more(sw));
    }
}

static int filter_switchover_migration(NotifierWithReturn *notifier,
                                       MigrationEvent *event, Error **errp)
{
    FilterSwitchover *sw = container_of(notifier, FilterSwitchover, migration);

    switch (event->type) {
    case MIG_EVENT_PRECOPY_SETUP:
        trace_filter_switchover_armed(filter_packet_id(sw->packet));
        sw->migrating = true;
        sw->done = false;
        /* A VM that was never started here may be migrated on */
        filter_activity_update(filter_activity_get(OBJECT(sw->nf)));
        break;
    case MIG_EVENT_PRECOPY_FAILED:
        sw->migrating = false;
        sw->sent = false;
        if (sw->packet->ioc) {
            /* The guest gets the copies, or the next destination does */
            filter_writer_discard(sw->writer, false);
        }
        filter_switchover_update(sw);
        break;
    case MIG_EVENT_PRECOPY_SAVED:
        filter_switchover_catch_up(sw);
        break;
    case MIG_EVENT_PRECOPY_DONE:
    case MIG_EVENT_COMPLETING:
        /* After a background snapshot, the VM runs already */
        sw->done = sw->stopped;
        sw->migrating = sw->stopped;
        filter_switchover_look_at_queue(sw);
        filter_switchover_catch_up(sw);
        if (event->type == MIG_EVENT_COMPLETING) {
            filter_switchover_drain(sw);
        }
        break;
    default:
        break;
    }
    return 0;
}

static void filter_switchover_taken(void *opaque, unsigned flags,
                                    const uint8_t *data, size_t size)
{
    FilterSwitchover *sw = opaque;
    struct iovec iov = { .iov_base = (void *)data, .iov_len = size };

    sw->taken++;
    filter_packet_keep(sw->packet, flags, &iov, 1);
}

void filter_switchover_set_active(FilterSwitchover *sw, bool active)
{
    NetClientState *netdev = sw->nf->netdev;

    sw->active = active;
    if (active && !sw->stopped && sw->packet->ioc && netdev->peer) {
        /*
         * The VM is about to stop.  QEMU drops what it has read for a guest
         * that had no receive buffer, one frame without vhost: keep it with
         * the copies, as the first.
         */
        qemu_net_queue_take(netdev->peer->incoming_queue, netdev,
                            filter_switchover_taken, sw);
    }
    filter_switchover_update(sw);
}

ssize_t filter_switchover_receive_iov(FilterSwitchover *sw,
                                      NetClientState *sender, unsigned flags,
                                      const struct iovec *iov, int iovcnt)
{
    /* A capture's copies are of frames that take their own way */
    if ((sw->state < FILTER_SWITCHOVER_COPY && !sw->resuming) ||
        sender != sw->nf->netdev || (flags & QEMU_NET_PACKET_FLAG_COPY)) {
        return 0;
    }
    sw->taken++;
    if (sw->resuming) {
        filter_packet_keep(sw->packet, flags, iov, iovcnt);
    } else {
        filter_packet_take(sw->packet, flags, iov, iovcnt);
        filter_switchover_update(sw);
    }
    return iov_size(iov, iovcnt);
}

uint64_t filter_switchover_dropped_queue(FilterSwitchover *sw)
{
    filter_switchover_look_at_queue(sw);
    return sw->dropped_queue;
}

void filter_switchover_setup(FilterSwitchover *sw, FilterPacket *packet)
{
    NetClientState *netdev = packet->nf->netdev;
    g_autofree char *ifname = netdev->info->get_host_ifname ?
        netdev->info->get_host_ifname(netdev, NULL) : NULL;

    sw->packet = packet;
    sw->nf = packet->nf;
    sw->ifindex = ifname ? if_nametoindex(ifname) : 0;
    sw->queue_drops = UINT64_MAX;
    sw->writer = packet->writer;
    sw->stopped = !runstate_is_live(runstate_get());
    sw->migrating = migration_is_running() && migrate_mode() == MIG_MODE_NORMAL;
    sw->reading = true;
    sw->vmstate = qemu_add_vm_change_state_handler_prio(
        filter_switchover_vm_change_state, sw, SWITCHOVER_VMSTATE_PRIORITY);
    migration_add_notifier(&sw->migration, filter_switchover_migration);
    filter_writer_on_change(sw->writer, filter_switchover_update, sw);
}

void filter_switchover_cleanup(FilterSwitchover *sw)
{
    if (!sw->packet) {
        return;
    }
    qemu_del_vm_change_state_handler(sw->vmstate);
    migration_remove_notifier(&sw->migration);
    if (sw->stopped && !sw->reading) {
        filter_switchover_read(sw, true);
    }
    sw->packet = NULL;
}
