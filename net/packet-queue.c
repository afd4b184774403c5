/*
 * Net filters: messages that wait in memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Between a source of messages and a destination that may not take them now.
 * Both ends can cut a message: a stream that is read arrives in pieces of any
 * size, and a stream that is written is taken in such.
 *
 *   chunk     |############|##################|#########|......|
 *             0            pos              whole      len   size
 *              consumed     whole messages    a part of one
 *
 * The message of which pos has left a part begins at begin.
 *
 * A message that has no room in the rest of a chunk begins a new one; so the
 * whole messages of a chunk can be handed out in one piece.
 */

#include "qemu/osdep.h"
#include "net/packet-queue.h"
#include "net/net.h"
#include "qemu/bswap.h"
#include "qemu/iov.h"
#include "qemu/units.h"

#define CHUNK_SIZE (256 * KiB)

struct PacketQueueChunk {
    QSIMPLEQ_ENTRY(PacketQueueChunk) next;
    size_t begin;
    size_t pos;
    size_t whole;
    size_t len;
    uint8_t data[];
};

#define CHUNK_ROOM (CHUNK_SIZE - sizeof(PacketQueueChunk))

static size_t message_head(PacketQueue *q)
{
    return (q->vnet_hdr ? 2 : 1) * sizeof(uint32_t);
}

/* Length of the message at buf, whose first four bytes are there */
static size_t message_len(PacketQueue *q, const uint8_t *buf)
{
    return message_head(q) + (uint32_t)ldl_be_p(buf);
}

static void count_message(PacketQueue *q, NetFilterTraffic *traffic,
                          const uint8_t *buf)
{
    size_t len = message_len(q, buf) - message_head(q);
    size_t hdr_len = q->vnet_hdr ? (uint32_t)ldl_be_p(buf + 4) : 0;

    traffic->packets++;
    traffic->bytes += len - MIN(len, hdr_len);
}

void packet_queue_init(PacketQueue *q, bool vnet_hdr)
{
    QSIMPLEQ_INIT(&q->chunks);
    q->vnet_hdr = vnet_hdr;
}

static void packet_queue_remove_first(PacketQueue *q)
{
    PacketQueueChunk *chunk = QSIMPLEQ_FIRST(&q->chunks);

    QSIMPLEQ_REMOVE_HEAD(&q->chunks, next);
    if (q->spare) {
        g_free(chunk);
    } else {
        q->spare = chunk;
    }
}

/* A chunk behind the last; the part of a message at its end goes along */
static PacketQueueChunk *packet_queue_add_chunk(PacketQueue *q)
{
    PacketQueueChunk *last = QSIMPLEQ_LAST(&q->chunks, PacketQueueChunk, next);
    PacketQueueChunk *chunk = q->spare ?: g_malloc(CHUNK_SIZE);

    q->spare = NULL;
    chunk->begin = chunk->pos = chunk->whole = chunk->len = 0;
    if (last) {
        chunk->len = last->len - last->whole;
        memcpy(chunk->data, last->data + last->whole, chunk->len);
        last->len = last->whole;
    }
    QSIMPLEQ_INSERT_TAIL(&q->chunks, chunk, next);
    if (last && last->pos == last->len) {
        /* That part was all it had, so it is the first as well */
        packet_queue_remove_first(q);
    }
    return chunk;
}

/* The last chunk, with room for that many bytes more */
static PacketQueueChunk *packet_queue_reserve(PacketQueue *q, size_t len)
{
    PacketQueueChunk *last = QSIMPLEQ_LAST(&q->chunks, PacketQueueChunk, next);

    return last && len <= CHUNK_ROOM - last->len ? last :
           packet_queue_add_chunk(q);
}

void packet_queue_put(PacketQueue *q, const void *hdr, size_t hdr_len,
                      const struct iovec *iov, int iovcnt, size_t offset)
{
    size_t packet_len = iov_size(iov, iovcnt) - offset;
    size_t payload_len = packet_len + (hdr ? hdr_len : 0);
    size_t len = message_head(q) + payload_len;
    PacketQueueChunk *chunk = packet_queue_reserve(q, len);
    uint8_t *pos = chunk->data + chunk->len;

    assert(payload_len <= NET_BUFSIZE && chunk->len == chunk->whole);
    stl_be_p(pos, payload_len);
    if (q->vnet_hdr) {
        stl_be_p(pos + sizeof(uint32_t), hdr_len);
    }
    pos += message_head(q);
    if (hdr) {
        memcpy(pos, hdr, hdr_len);
        pos += hdr_len;
    }
    iov_to_buf(iov, iovcnt, offset, pos, packet_len);

    count_message(q, &q->in, chunk->data + chunk->len);
    chunk->len += len;
    chunk->whole = chunk->len;
    q->bytes += len;
    q->packets++;
}

/*
 * Put at most the rest of one message, or of its length.  Returns 0, or a
 * length that is too long.
 */
static uint32_t packet_queue_put_part(PacketQueue *q, const uint8_t **buf,
                                      size_t *len)
{
    PacketQueueChunk *chunk = packet_queue_reserve(q, sizeof(uint32_t));
    size_t part = chunk->len - chunk->whole;
    size_t whole = sizeof(uint32_t);
    uint32_t payload;
    size_t n;

    if (part >= whole) {
        whole = message_len(q, chunk->data + chunk->whole);
        chunk = packet_queue_reserve(q, whole - part);
    }
    n = MIN(*len, whole - part);
    memcpy(chunk->data + chunk->len, *buf, n);
    chunk->len += n;
    q->bytes += n;
    *buf += n;
    *len -= n;

    part += n;
    if (part >= sizeof(uint32_t)) {
        payload = ldl_be_p(chunk->data + chunk->whole);
        if (payload > NET_BUFSIZE) {
            return payload;
        }
        if (part == message_head(q) + payload) {
            count_message(q, &q->in, chunk->data + chunk->whole);
            chunk->whole = chunk->len;
            q->packets++;
        }
    }
    return 0;
}

uint32_t packet_queue_put_bytes(PacketQueue *q, const uint8_t *buf, size_t len)
{
    uint32_t too_long = 0;

    while (len && !too_long) {
        too_long = packet_queue_put_part(q, &buf, &len);
    }
    return too_long;
}

uint32_t packet_queue_complete(PacketQueue *q, const uint8_t **buf,
                               size_t *len)
{
    PacketQueueChunk *last;
    uint32_t too_long = 0;

    while (*len && !too_long &&
           (last = QSIMPLEQ_LAST(&q->chunks, PacketQueueChunk, next)) &&
           last->len > last->whole) {
        too_long = packet_queue_put_part(q, buf, len);
    }
    return too_long;
}

size_t packet_queue_whole(PacketQueue *q, const uint8_t *buf, size_t len)
{
    size_t pos = 0;

    while (len - pos >= message_head(q)) {
        uint32_t payload = ldl_be_p(buf + pos);

        if (payload > len - pos - message_head(q) || payload > NET_BUFSIZE) {
            break;
        }
        pos += message_head(q) + payload;
    }
    return pos;
}

void packet_queue_pass(PacketQueue *q, const uint8_t *buf, size_t len)
{
    for (size_t pos = 0; pos < len; pos += message_len(q, buf + pos)) {
        count_message(q, &q->in, buf + pos);
        count_message(q, &q->out, buf + pos);
    }
}

void packet_queue_truncate(PacketQueue *q)
{
    PacketQueueChunk *last = QSIMPLEQ_LAST(&q->chunks, PacketQueueChunk, next);

    if (last) {
        q->bytes -= last->len - last->whole;
        last->len = last->whole;
    }
}

uint8_t *packet_queue_peek(PacketQueue *q, size_t *len)
{
    PacketQueueChunk *chunk = QSIMPLEQ_FIRST(&q->chunks);

    *len = chunk ? chunk->whole - chunk->pos : 0;
    return *len ? chunk->data + chunk->pos : NULL;
}

void packet_queue_consume(PacketQueue *q, size_t len)
{
    PacketQueueChunk *chunk = QSIMPLEQ_FIRST(&q->chunks);

    assert(len <= chunk->whole - chunk->pos);
    chunk->pos += len;
    q->bytes -= len;
    while (chunk->begin < chunk->pos) {
        const uint8_t *buf = chunk->data + chunk->begin;

        if (chunk->begin + message_len(q, buf) > chunk->pos) {
            break;
        }
        count_message(q, &q->out, buf);
        chunk->begin += message_len(q, buf);
        q->packets--;
    }
    if (chunk->pos == chunk->len) {
        if (QSIMPLEQ_NEXT(chunk, next)) {
            packet_queue_remove_first(q);
        } else {
            chunk->begin = chunk->pos = chunk->whole = chunk->len = 0;
        }
    }
}

void packet_queue_rewind(PacketQueue *q)
{
    PacketQueueChunk *chunk = QSIMPLEQ_FIRST(&q->chunks);

    if (chunk) {
        q->bytes += chunk->pos - chunk->begin;
        chunk->pos = chunk->begin;
    }
}

uint64_t packet_queue_clear(PacketQueue *q)
{
    uint64_t n = q->packets;

    while (!QSIMPLEQ_EMPTY(&q->chunks)) {
        packet_queue_remove_first(q);
    }
    g_clear_pointer(&q->spare, g_free);
    q->bytes = 0;
    q->packets = 0;
    return n;
}

uint64_t packet_queue_drop(PacketQueue *q)
{
    NetFilterTraffic out = q->out;
    uint64_t n = q->packets;
    size_t len;

    while (packet_queue_peek(q, &len)) {
        packet_queue_consume(q, len);
    }
    q->out = out;
    return n;
}
