/*
 * filter-redirector: the frames of a VM that is stopped by its migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FILTER_SWITCHOVER_H
#define NET_FILTER_SWITCHOVER_H

#include "migration/misc.h"
#include "net/filter-writer.h"
#include "system/runstate.h"

typedef struct FilterPacket FilterPacket;

/* What becomes of the frames in the netdev's queue */
typedef enum FilterSwitchoverState {
    FILTER_SWITCHOVER_OFF,      /* as without the filter */
    FILTER_SWITCHOVER_LEAVE,    /* they stay there */
    FILTER_SWITCHOVER_COPY,     /* sent to outdev, and kept for the guest */
    FILTER_SWITCHOVER_MOVE,     /* sent to outdev */
} FilterSwitchoverState;

/*
 * FilterSwitchover: the part of a redirector's state that deals with the frames
 * of a stopped VM.  All of its functions are for the main loop's thread, or any
 * other that holds the BQL.
 */
typedef struct FilterSwitchover {
    FilterPacket *packet;       /* NULL: not set up */
    NetFilterState *nf;
    FilterWriter *writer;

    VMChangeStateEntry *vmstate;
    NotifierWithReturn migration;

    bool active;                /* the filter is */
    bool stopped;               /* the VM is */
    bool migrating;             /* by a migration that notifies us */
    bool done;                  /* the destination is about to run */
    bool connected;             /* outdev's peer was, at the last look */
    bool sent;                  /* the copies, to this destination */
    bool resuming;              /* the VM is about to run again */
    FilterSwitchoverState state;
    bool reading;               /* QEMU reads the netdev's queue */

    uint64_t taken;             /* frames */
    unsigned ifindex;           /* of the host's interface; 0: not known */
    uint64_t queue_drops;       /* the last look at it; UINT64_MAX: none yet */
    uint64_t dropped_queue;     /* frames that the kernel had no room for */
} FilterSwitchover;

/**
 * filter_switchover_setup:
 * @sw: part of a redirector, zeroed
 * @packet: the redirector's FilterPacket, set up
 */
void filter_switchover_setup(FilterSwitchover *sw, FilterPacket *packet);

/**
 * filter_switchover_cleanup:
 * @sw: the switchover, which may not have been set up
 */
void filter_switchover_cleanup(FilterSwitchover *sw);

/**
 * filter_switchover_set_active:
 * @sw: the switchover
 * @active: whether the filter is active now
 */
void filter_switchover_set_active(FilterSwitchover *sw, bool active);

/**
 * filter_switchover_receive_iov:
 * @sw: the switchover
 * @sender: where the packet comes from
 * @flags: QEMU_NET_PACKET_FLAG_*
 * @iov: a packet from the chain
 * @iovcnt: elements of @iov
 *
 * Returns: the packet's size if it was taken, 0 if the chain goes on
 */
ssize_t filter_switchover_receive_iov(FilterSwitchover *sw,
                                      NetClientState *sender, unsigned flags,
                                      const struct iovec *iov, int iovcnt);

/**
 * filter_switchover_dropped_queue:
 * @sw: the switchover, which may not have been set up
 *
 * Returns: frames for the stopped VM that found the queue full, so far
 */
uint64_t filter_switchover_dropped_queue(FilterSwitchover *sw);

#endif /* NET_FILTER_SWITCHOVER_H */
