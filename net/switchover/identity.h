/*
 * Switchover: whose frames come by a chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_IDENTITY_H
#define NET_SWITCHOVER_IDENTITY_H

#include "net/switchover/transport.h"

/* SwitchoverIdentity: a VM, and one of its network cards */
typedef struct SwitchoverIdentity {
    uint64_t vm[2];             /* its UUID, in two halves; or 0: it has none */
    uint64_t card;              /* MAC address, or 0; vnet header's length */
} SwitchoverIdentity;

/* Set @id to that of this VM, and of the card that @netdev belongs to.  BQL. */
void switchover_identity_init(SwitchoverIdentity *id, NetClientState *netdev);

/* Append the control messages that tell @id to @buf */
void switchover_identity_put(const SwitchoverIdentity *id, GByteArray *buf);

/* Tell the peer.  For a side that sends no frames.  BQL. */
void switchover_identity_tell(NetClientState *netdev, SwitchoverTransport *t);

/**
 * switchover_identity_receive:
 * @id: of the peer, as far as it is known
 * @type: of a control message
 * @value: of that
 *
 * Returns: whether @id is now known
 */
bool switchover_identity_receive(SwitchoverIdentity *id, uint32_t type,
                                 uint64_t value);

/**
 * switchover_identity_check:
 * @netdev: of this side
 * @peer: of the other one
 * @t: the way to it
 *
 * What one side does not know is not compared, nor is the vnet header: it is
 * converted.  BQL.
 *
 * Returns: false, with a message, if they are not the same
 */
bool switchover_identity_check(NetClientState *netdev,
                               const SwitchoverIdentity *peer,
                               SwitchoverTransport *t);

#endif /* NET_SWITCHOVER_IDENTITY_H */
