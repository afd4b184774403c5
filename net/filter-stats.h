/*
 * Net filters: what they are doing, and what they have done
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FILTER_STATS_H
#define NET_FILTER_STATS_H

#include "chardev/char-fe.h"
#include "net/filter.h"
#include "net/filter-packet.h"
#include "net/filter-writer.h"

/**
 * filter_stats_receive_iov:
 * @nf: a filter, to be given a packet of the chain
 * @direction: the packet's, not NET_FILTER_DIRECTION_ALL
 * @sender: where the packet comes from
 * @flags: QEMU_NET_PACKET_FLAG_*
 * @iov: the packet
 * @iovcnt: elements of @iov
 * @sent_cb: for the filter
 *
 * Give it to the filter, and count it.
 *
 * Returns: what the filter's receive_iov returned
 */
ssize_t filter_stats_receive_iov(NetFilterState *nf,
                                 NetFilterDirection direction,
                                 NetClientState *sender, unsigned flags,
                                 const struct iovec *iov, int iovcnt,
                                 NetPacketSent *sent_cb);

/**
 * filter_stats_count:
 * @traffic: a counter
 * @bytes: length of a packet, without its vnet header
 */
static inline void filter_stats_count(NetFilterTraffic *traffic, size_t bytes)
{
    traffic->packets++;
    traffic->bytes += bytes;
}

/**
 * filter_stats_add_indev:
 * @stats: what a filter says of itself
 * @chr: its source of packets
 * @traffic: what has come from there
 */
void filter_stats_add_indev(NetFilterStats *stats, CharFrontend *chr,
                            const NetFilterTraffic *traffic);

/**
 * filter_stats_add_writer:
 * @stats: what a filter says of itself
 * @w: its writer, which may not have been set up
 */
void filter_stats_add_writer(NetFilterStats *stats, FilterWriter *w);

/**
 * filter_stats_add_packet:
 * @stats: what a redirector says of itself
 * @p: its FilterPacket
 */
void filter_stats_add_packet(NetFilterStats *stats, FilterPacket *p);

#endif /* NET_FILTER_STATS_H */
