/*
 * Switchover: the network cards that take part in a migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_CARDS_H
#define NET_SWITCHOVER_CARDS_H

#include "net/net.h"

/**
 * switchover_cards_give_way:
 * @netdev: a netdev
 *
 * A filter is about to save the frames of @netdev by a chardev: do not save
 * them by way of the migration's connection.  BQL.
 */
void switchover_cards_give_way(NetClientState *netdev);

/* Is there a destination that is sent the packets of cards?  BQL. */
bool switchover_cards_connected(void);

/* Packets of a card are saved from now on, or are for this VM again.  BQL. */
void switchover_cards_changed(void);

/* A card's NIC has all packets that had waited for it.  BQL. */
void switchover_cards_delivered(void);

/* A card's destination has told what its guest has.  BQL. */
void switchover_cards_acknowledged(void);

/**
 * switchover_cards_completed:
 *
 * The migration is complete: what else goes to the destination is bounded by
 * its max-bandwidth.  BQL.
 */
void switchover_cards_completed(void);

/**
 * switchover_cards_read:
 *
 * The migration's return path has ended: read what the destination says of the
 * frames.  BQL.
 */
void switchover_cards_read(void);

#endif /* NET_SWITCHOVER_CARDS_H */
