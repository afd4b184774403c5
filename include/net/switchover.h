/*
 * Switchover: what the rest of QEMU calls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_NET_SWITCHOVER_H
#define QEMU_NET_SWITCHOVER_H

#include "net/net.h"
#include "qapi/qapi-types-migration.h"

/* Send to the source, in postcopy, what it is to know.  BQL. */
typedef int SwitchoverTellSource(void *buf, uint16_t len);

#ifdef CONFIG_AF_PACKET

/**
 * switchover_init:
 * @tell_source: how to do that
 *
 * Save the packets of each migration from now on.  Called once.
 */
void switchover_init(SwitchoverTellSource *tell_source);

/**
 * switchover_set_vnet_hdr_len:
 * @nc: a netdev's queue
 * @len: of the vnet headers from now on
 *
 * As qemu_set_vnet_hdr_len(), while no thread reads.  BQL.
 */
void switchover_set_vnet_hdr_len(NetClientState *nc, int len);

/**
 * switchover_wait:
 *
 * Wait until the frames that have reached this host for its VM are with the
 * destination, or there has been no progress for drain_timeout.  For the
 * migration's thread, without the BQL, when the migration is about to be
 * reported as completed.
 */
void switchover_wait(void);

/**
 * switchover_query_packets:
 *
 * BQL.
 *
 * Returns: what has become of packets that go by the connection of a migration
 *     to this host or, if there is one, from it; NULL: none have
 */
MigrationPacketsList *switchover_query_packets(void);

/**
 * switchover_ping:
 * @f: the migration's stream
 * @value: of PING
 *
 * Returns: the value that asks the destination whether it takes packets.  Any
 *     thread.
 */
uint32_t switchover_ping(QEMUFile *f, uint32_t value);

/**
 * switchover_pong:
 * @value: of PONG, which may tell that the destination takes packets
 *
 * Any thread.
 */
void switchover_pong(uint32_t value);

/**
 * switchover_is_answered:
 *
 * Returns: whether it is known if the destination takes packets.  Before that
 *     the VM is not to be stopped for its migration.  Any thread.
 */
bool switchover_is_answered(void);

/**
 * switchover_answer:
 * @f: the migration's stream
 * @value: of PING
 *
 * Returns: the value of PONG.  BQL.
 */
uint32_t switchover_answer(QEMUFile *f, uint32_t value);

/**
 * switchover_get_cards:
 *
 * Returns: what the destination is to know before it gets the VM's devices;
 *     NULL: nothing.  The VM has stopped.  BQL.
 */
GByteArray *switchover_get_cards(void);

/**
 * switchover_get_frames:
 * @buf: for bytes that the destination is to have
 * @len: of @buf
 * @all: what has come by now, and the destination is to have before its VM
 *     runs.  BQL; without it any thread.
 *
 * For postcopy, where the stream goes on while the VM runs.
 *
 * Returns: bytes in @buf
 */
size_t switchover_get_frames(uint8_t *buf, size_t len, bool all);

/**
 * switchover_return_path:
 * @buf: what the destination has sent on the return path
 * @len: of @buf
 *
 * Any thread.
 */
void switchover_return_path(const uint8_t *buf, size_t len);

/**
 * switchover_load_frames:
 * @f: the migration's stream, at what switchover_get_frames() has returned
 * @len: its length
 *
 * Any thread.
 *
 * Returns: 0; or a negative errno, which was reported
 */
int switchover_load_frames(QEMUFile *f, size_t len);

/**
 * switchover_channel_lost:
 * @source: whether this is the source
 *
 * The migration's connection has broken in postcopy.  Any thread.
 */
void switchover_channel_lost(bool source);

/**
 * switchover_channel_back:
 * @f: the stream of the next connection
 * @source: whether this is the source
 *
 * Any thread.
 */
void switchover_channel_back(QEMUFile *f, bool source);

/**
 * switchover_load_cards:
 * @f: the migration's stream, at what switchover_get_cards() has returned
 * @len: its length
 *
 * BQL.
 *
 * Returns: 0; or a negative errno, which was reported
 */
int switchover_load_cards(QEMUFile *f, size_t len);

/**
 * switchover_state_sent:
 * @f: the migration's stream, to which nothing more is written
 *
 * Send packets on its channel from now on.  BQL.
 */
void switchover_state_sent(QEMUFile *f);

/**
 * switchover_keep_channel:
 * @f: a file of the migration's connection
 * @ended: without success
 *
 * Free @f, but leave its channel open, if packets use that.  At the
 * destination, for the file that is written and then for the one that is read.
 *
 * Returns: whether @f was freed
 */
bool switchover_keep_channel(QEMUFile *f, bool ended);

#else

static inline void switchover_set_vnet_hdr_len(NetClientState *nc, int len)
{
    qemu_set_vnet_hdr_len(nc, len);
}

static inline void switchover_init(SwitchoverTellSource *tell_source)
{
}

static inline void switchover_wait(void)
{
}

static inline MigrationPacketsList *switchover_query_packets(void)
{
    return NULL;
}

static inline uint32_t switchover_ping(QEMUFile *f, uint32_t value)
{
    return value;
}

static inline void switchover_pong(uint32_t value)
{
}

static inline bool switchover_is_answered(void)
{
    return true;
}

static inline uint32_t switchover_answer(QEMUFile *f, uint32_t value)
{
    return value;
}

static inline GByteArray *switchover_get_cards(void)
{
    return NULL;
}

static inline size_t switchover_get_frames(uint8_t *buf, size_t len, bool all)
{
    return 0;
}

static inline void switchover_return_path(const uint8_t *buf, size_t len)
{
}

static inline int switchover_load_frames(QEMUFile *f, size_t len)
{
    return -ENOTSUP;
}

static inline void switchover_channel_lost(bool source)
{
}

static inline void switchover_channel_back(QEMUFile *f, bool source)
{
}

static inline int switchover_load_cards(QEMUFile *f, size_t len)
{
    return -ENOTSUP;
}

static inline void switchover_state_sent(QEMUFile *f)
{
}

static inline bool switchover_keep_channel(QEMUFile *f, bool ended)
{
    return false;
}

#endif

#endif /* QEMU_NET_SWITCHOVER_H */
