/*
 * Net filters: messages that wait in memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_PACKET_QUEUE_H
#define NET_PACKET_QUEUE_H

#include "qapi/qapi-types-net-filter.h"
#include "qemu/queue.h"

typedef struct PacketQueueChunk PacketQueueChunk;

/*
 * PacketQueue: a queue of messages in the format of filter-mirror,
 * be32 length | [be32 vnet header length] | payload.  Bytes go in and out; the
 * queue knows where messages begin and end.
 *
 * The messages lie in chunks of 256 KiB, none across two of them.  Memory is
 * taken when it is used, and given back but for one chunk when it is not.
 */
typedef struct PacketQueue {
    QSIMPLEQ_HEAD(, PacketQueueChunk) chunks;
    PacketQueueChunk *spare;
    bool vnet_hdr;              /* messages carry a vnet header */
    size_t bytes;               /* in the queue, not consumed */
    uint64_t packets;           /* whole messages in the queue */
    NetFilterTraffic in;        /* whole messages that came */
    NetFilterTraffic out;       /* those that were consumed, and not dropped */
} PacketQueue;

/**
 * packet_queue_init:
 * @q: the queue, zeroed
 * @vnet_hdr: whether messages carry a vnet header
 */
void packet_queue_init(PacketQueue *q, bool vnet_hdr);

/**
 * packet_queue_clear:
 * @q: the queue, or zeroed
 *
 * Drop everything, and free all memory.
 *
 * Returns: how many messages that were, counting one that has been consumed in
 * part, but not one that was not whole
 */
uint64_t packet_queue_clear(PacketQueue *q);

/**
 * packet_queue_drop:
 * @q: the queue, of which nothing was consumed in part
 *
 * Drop all whole messages.
 *
 * Returns: how many
 */
uint64_t packet_queue_drop(PacketQueue *q);

/**
 * packet_queue_put:
 * @q: the queue
 * @hdr: @hdr_len bytes to put in front of @iov, or NULL if @iov has them
 * @hdr_len: the vnet header's length, 0 without
 * @iov: the packet
 * @iovcnt: elements of @iov
 * @offset: bytes at the beginning of @iov that are not for the message
 *
 * Put one message into the queue.
 */
void packet_queue_put(PacketQueue *q, const void *hdr, size_t hdr_len,
                      const struct iovec *iov, int iovcnt, size_t offset);

/**
 * packet_queue_put_bytes:
 * @q: the queue
 * @buf: a piece of the stream of messages, which goes on where the last ended
 * @len: bytes at @buf
 *
 * Returns: 0, or the length of a message which is longer than any may be: the
 * stream is out of step, and nothing that follows is in the queue
 */
uint32_t packet_queue_put_bytes(PacketQueue *q, const uint8_t *buf,
                                size_t len);

/**
 * packet_queue_complete:
 * @q: the queue
 * @buf: the next piece of the stream; is moved on behind what was taken
 * @len: bytes at @buf; is reduced likewise
 *
 * Put no more than what belongs to the message at the end that is not whole.
 *
 * Returns: as packet_queue_put_bytes()
 */
uint32_t packet_queue_complete(PacketQueue *q, const uint8_t **buf,
                               size_t *len);

/**
 * packet_queue_whole:
 * @q: the queue, whose messages are all whole
 * @buf: the next piece of the stream
 * @len: bytes at @buf
 *
 * Returns: how many of these bytes are whole messages
 */
size_t packet_queue_whole(PacketQueue *q, const uint8_t *buf, size_t len);

/**
 * packet_queue_pass:
 * @q: the queue, which is empty
 * @buf: whole messages that the destination took without the queue
 * @len: bytes at @buf
 *
 * Count them as if they had come and been consumed.
 */
void packet_queue_pass(PacketQueue *q, const uint8_t *buf, size_t len);

/**
 * packet_queue_truncate:
 * @q: the queue
 *
 * Drop the message at the end that is not whole, if any: the stream ended.
 */
void packet_queue_truncate(PacketQueue *q);

/**
 * packet_queue_peek:
 * @q: the queue
 * @len: is set to the bytes there are, at most 256 KiB
 *
 * Returns: the oldest bytes, up to the end of a message; NULL if there is no
 * whole message.  They are the queue's, and valid until it is changed.
 */
uint8_t *packet_queue_peek(PacketQueue *q, size_t *len);

/**
 * packet_queue_consume:
 * @q: the queue
 * @len: bytes, at most those that packet_queue_peek() returned
 */
void packet_queue_consume(PacketQueue *q, size_t len);

/**
 * packet_queue_rewind:
 * @q: the queue
 *
 * Undo packet_queue_consume() of a part of a message, so that its reader, a
 * new one, begins with a whole message.
 */
void packet_queue_rewind(PacketQueue *q);

#endif /* NET_PACKET_QUEUE_H */
