/*
 * Switchover: frames by way of the migration's own connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_TRANSPORT_MIGRATION_H
#define NET_SWITCHOVER_TRANSPORT_MIGRATION_H

#include "net/switchover/transport.h"
#include "net/switchover.h"

/* Cards of one VM, at most */
#define SWITCHOVER_CARDS_MAX 1024

/*
 * SwitchoverLink: the connection of a migration, shared by the VM's cards, at
 * one of its ends
 */
typedef struct SwitchoverLink SwitchoverLink;

/**
 * switchover_link_new:
 * @source: whether this is the source's end
 *
 * Returns: a link without cards and connection.  BQL.
 */
SwitchoverLink *switchover_link_new(bool source);

/**
 * switchover_link_free:
 * @link: the link; NULL: do nothing
 *
 * Close the connection, if it was opened, and free the link.  Its transports
 * stay, without a peer.  BQL.
 */
void switchover_link_free(SwitchoverLink *link);

/**
 * switchover_link_add:
 * @link: the link
 * @name: of the netdev, for messages
 *
 * Returns: the way of one card; their numbers begin with 0.  BQL.
 */
SwitchoverTransport *switchover_link_add(SwitchoverLink *link,
                                         const char *name);

/**
 * switchover_link_skip:
 * @link: the link
 *
 * The next number is that of a card which is not here.  BQL.
 */
void switchover_link_skip(SwitchoverLink *link);

/**
 * switchover_link_is_possible:
 * @ioc: a migration's channel
 *
 * Returns: whether a link can use it
 */
bool switchover_link_is_possible(QIOChannel *ioc);

/* Have its cards a peer?  BQL. */
bool switchover_link_is_connected(SwitchoverLink *link);

/* Returns: how many cards it has, skipped ones included.  BQL. */
unsigned switchover_link_cards(SwitchoverLink *link);

/* The peer has a link, too.  Any thread. */
void switchover_link_set_heard(SwitchoverLink *link);
bool switchover_link_is_heard(SwitchoverLink *link);

/**
 * switchover_link_attach:
 * @link: the link
 * @ioc: the migration's channel, from now on kept open until the link is freed
 *
 * BQL.
 */
void switchover_link_attach(SwitchoverLink *link, QIOChannel *ioc);

/* Is it attached to @ioc?  Any thread, while no other one attaches. */
bool switchover_link_has(SwitchoverLink *link, QIOChannel *ioc);

/**
 * switchover_link_connect:
 * @link: the link
 *
 * The cards have a peer.  BQL.
 */
void switchover_link_connect(SwitchoverLink *link);

/**
 * switchover_link_own:
 * @link: attached
 *
 * No other writes to the channel any more.  BQL.
 */
void switchover_link_own(SwitchoverLink *link);

/* At the destination: tell the source of cards that were skipped.  BQL. */
void switchover_link_refuse(SwitchoverLink *link);

/* At the destination: before that, use messages on the return path.  BQL. */
void switchover_link_use_messages(SwitchoverLink *link,
                                  SwitchoverTellSource *tell_source);

/**
 * switchover_link_take:
 * @link: the source's, and its channel is not its own yet
 * @buf: for what waits to be sent
 * @len: of @buf
 *
 * Any thread.
 *
 * Returns: how many bytes were taken, for a command in the migration's stream
 */
size_t switchover_link_take(SwitchoverLink *link, uint8_t *buf, size_t len);

/**
 * switchover_link_set_rate:
 * @link: the source's
 * @rate: bytes of frames per second that are written to its own channel from
 *     now on, at most; 0: any number
 *
 * Any thread.
 */
void switchover_link_set_rate(SwitchoverLink *link, uint64_t rate);

/**
 * switchover_link_give:
 * @link: the link
 * @buf: what came by a command, a message, or was read ahead of them
 * @len: of @buf
 *
 * Any thread.
 *
 * Returns: false if too much waits already, for a peer that is to be trusted
 */
bool switchover_link_give(SwitchoverLink *link, const uint8_t *buf, size_t len);

/* Handle that now.  BQL. */
void switchover_link_handle(SwitchoverLink *link);

/*
 * At the destination: handle bytes that the main thread has loaded.  In
 * postcopy these are of the package with the VM's state, and the listen thread
 * gives what comes behind it, maybe before it is loaded: that waits for the BH.
 * BQL.
 */
void switchover_link_load(SwitchoverLink *link, const uint8_t *buf, size_t len);

/*
 * In postcopy: the connection has broken; there is another one, by @ioc at the
 * destination, NULL at the source.  Any thread.
 */
void switchover_link_lose(SwitchoverLink *link);
void switchover_link_return(SwitchoverLink *link, QIOChannel *ioc);

/**
 * switchover_link_read:
 * @link: attached
 *
 * No other reads from the channel any more: read from now on.  BQL.
 */
void switchover_link_read(SwitchoverLink *link);

#endif /* NET_SWITCHOVER_TRANSPORT_MIGRATION_H */
