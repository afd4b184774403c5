/*
 * Switchover: the destination's side, which receives
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_ARRIVAL_H
#define NET_SWITCHOVER_ARRIVAL_H

#include "net/switchover/switchover.h"
#include "net/switchover/transport.h"

/**
 * switchover_arrival_new:
 * @netdev: the netdev whose guest gets the frames
 * @t: the way from the source, from now on the arrival's own, also if there is
 *     an error
 * @hold_limit: bytes of frames that are kept, at most
 * @errp: pointer to a NULL-initialized error object
 *
 * Receive what the source of this VM's migration saves.  The VM waits for its
 * incoming migration.  BQL.
 *
 * Returns: NULL if that is not possible
 */
SwitchoverArrival *switchover_arrival_new(NetClientState *netdev,
                                          SwitchoverTransport *t,
                                          uint64_t hold_limit, Error **errp);

/**
 * switchover_arrival_free:
 * @a: the arrival
 *
 * BQL.
 */
void switchover_arrival_free(SwitchoverArrival *a);

/* Whether the filter's status is on: else nothing is received.  BQL. */
void switchover_arrival_set_enabled(SwitchoverArrival *a, bool enabled);

/* The filter's hold_limit, in bytes.  BQL. */
void switchover_arrival_set_limit(SwitchoverArrival *a, uint64_t hold_limit);

/* For switchover.c: the VM is about to run; whether to hold.  BQL. */
bool switchover_arrival_before_start(SwitchoverArrival *a);

/* For switchover.c: the VM's devices have started.  BQL. */
void switchover_arrival_after_start(SwitchoverArrival *a);

/* For switchover.c: frames of the source that wait.  BQL. */
SwitchoverBacklog *switchover_arrival_backlog(SwitchoverArrival *a);

/* For switchover.c: may frames of this host's queues be delivered?  BQL. */
bool switchover_arrival_allows_direct(SwitchoverArrival *a);

/* For switchover.c: is a frame of this host's queues to be dropped?  BQL. */
bool switchover_arrival_drops_direct(SwitchoverArrival *a,
                                     const SwitchoverFrame *frame);

/* For switchover.c: frames were delivered; go on to the next step.  BQL. */
void switchover_arrival_step(SwitchoverArrival *a);

/* For switchover.c: is there a reason for vhost to wait?  BQL. */
bool switchover_arrival_is_over(SwitchoverArrival *a);

/* For switchover.c: vhost, or QEMU's own reading, is about to begin.  BQL. */
void switchover_arrival_finished(SwitchoverArrival *a);

/* For switchover.c: the guest takes nothing: announce it all the same.  BQL. */
void switchover_arrival_hurry(SwitchoverArrival *a);

/* For switchover.c: the guest takes nothing: drop the frames.  BQL. */
void switchover_arrival_give_up(SwitchoverArrival *a);

/* Fill in @stats.  BQL. */
void switchover_arrival_get_stats(SwitchoverArrival *a, SwitchoverStats *stats);

Switchover *switchover_arrival_get(SwitchoverArrival *a);

#endif /* NET_SWITCHOVER_ARRIVAL_H */
