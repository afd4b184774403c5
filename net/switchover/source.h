/*
 * Switchover: the source's side, which sends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_SOURCE_H
#define NET_SWITCHOVER_SOURCE_H

#include "net/switchover/switchover.h"
#include "net/switchover/transport.h"

/**
 * switchover_source_new:
 * @netdev: the netdev whose frames are saved
 * @t: the way to the destination, from now on the source's own, also if there
 *     is an error
 * @hold_limit: bytes of frames that are kept, at most
 * @errp: pointer to a NULL-initialized error object
 *
 * Save the frames of @netdev in migrations of this VM.  BQL.
 *
 * Returns: NULL if that is not possible
 */
SwitchoverSource *switchover_source_new(NetClientState *netdev,
                                        SwitchoverTransport *t,
                                        uint64_t hold_limit, Error **errp);

/**
 * switchover_source_set_transport:
 * @src: a source that saves nothing now
 * @t: the way to the next destination, from now on the source's own
 *
 * BQL.
 */
void switchover_source_set_transport(SwitchoverSource *src,
                                     SwitchoverTransport *t);

/**
 * switchover_source_free:
 * @src: the source
 *
 * BQL.
 */
void switchover_source_free(SwitchoverSource *src);

/* Whether it is switched on, and can send: else nothing is saved.  BQL. */
void switchover_source_set_enabled(SwitchoverSource *src, bool enabled);
bool switchover_source_is_enabled(SwitchoverSource *src);

/* The filter's hold_limit, in bytes, and drain_timeout, in ms.  BQL. */
void switchover_source_set_limit(SwitchoverSource *src, uint64_t hold_limit);
void switchover_source_set_timeout(SwitchoverSource *src, uint32_t ms);
uint32_t switchover_source_get_timeout(SwitchoverSource *src);

/* For switchover.c: frames are saved, from number 0 on.  BQL. */
void switchover_source_begin(SwitchoverSource *src);

/* For switchover.c: they are for this VM, which is about to run.  BQL. */
void switchover_source_end(SwitchoverSource *src);

/* For switchover.c: the destination has taken over.  BQL. */
void switchover_source_completed(SwitchoverSource *src);

/* For switchover.c: frames have come.  BQL. */
void switchover_source_flush(SwitchoverSource *src);

/* Send what the peer takes.  While the threads pause. */
void switchover_source_send_now(SwitchoverSource *src);

/**
 * switchover_source_is_done:
 * @src: the source
 * @ending: whether frames that come now, to be sent once a destination that
 *     waits for 'cont' gets it, are of interest
 * @progress: is increased by what changes when something happens
 *
 * Returns: whether this process may end without a loss, as far as it can be
 *     known; also if there is nothing that could change it.  BQL.
 */
bool switchover_source_is_done(SwitchoverSource *src, bool ending,
                               uint64_t *progress);

/* Has the destination's guest all that came before it was announced?  BQL. */
bool switchover_source_is_acknowledged(SwitchoverSource *src);

/* Warn if the destination does not have all frames.  BQL. */
void switchover_source_warn(SwitchoverSource *src);

/* Fill in @stats.  BQL. */
void switchover_source_get_stats(SwitchoverSource *src, SwitchoverStats *stats);

Switchover *switchover_source_get(SwitchoverSource *src);

#endif /* NET_SWITCHOVER_SOURCE_H */
