/*
 * Switchover: frames in memory, in order, until they are acknowledged
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The messages lie in chunks of 256 KiB, none across two of them.  A frame is
 * read straight to its place, behind the last message:
 *
 *   chunk   |  freed  |######|######|######|  room  |   -->  spill
 *           0       begin                 end     size
 *
 * How long it is, is known only then.  What the room is too small for goes into
 * a spill buffer; then the frame is copied to the beginning of a new chunk.  So
 * the rest of a chunk that stays empty is smaller than one frame.
 *
 * Memory is taken as it is used, and freed when the frames are, but for one
 * chunk.  A frame of 64 bytes takes 84 with its vnet header.
 */

#include "qemu/osdep.h"
#include "net/switchover/backlog.h"
#include "qemu/iov.h"
#include "qemu/lockable.h"
#include "qemu/units.h"

#define CHUNK_SIZE (256 * KiB)

struct SwitchoverChunk {
    QSIMPLEQ_ENTRY(SwitchoverChunk) next;
    size_t begin;               /* offset of the oldest message */
    size_t end;                 /* offset behind the newest message */
    uint8_t data[];
};

#define CHUNK_ROOM (CHUNK_SIZE - sizeof(SwitchoverChunk))

void switchover_backlog_init(SwitchoverBacklog *b)
{
    memset(b, 0, sizeof(*b));
    qemu_mutex_init(&b->lock);
    QSIMPLEQ_INIT(&b->chunks);
}

static SwitchoverChunk *backlog_last(SwitchoverBacklog *b)
{
    return QSIMPLEQ_LAST(&b->chunks, SwitchoverChunk, next);
}

static void backlog_remove_first(SwitchoverBacklog *b)
{
    SwitchoverChunk *chunk = QSIMPLEQ_FIRST(&b->chunks);

    if (b->cursor == chunk) {
        b->cursor = QSIMPLEQ_NEXT(chunk, next);
        b->cursor_pos = b->cursor_begin = b->cursor ? b->cursor->begin : 0;
    }
    QSIMPLEQ_REMOVE_HEAD(&b->chunks, next);
    if (b->spare) {
        g_free(chunk);
    } else {
        b->spare = chunk;
    }
}

uint64_t switchover_backlog_clear(SwitchoverBacklog *b)
{
    uint64_t n = b->tail - b->head;

    while (!QSIMPLEQ_EMPTY(&b->chunks)) {
        backlog_remove_first(b);
    }
    g_clear_pointer(&b->spare, g_free);
    g_clear_pointer(&b->spill, g_free);
    b->head = b->sent = b->tail = 0;
    b->bytes = b->unsent = 0;
    return n;
}

void switchover_backlog_destroy(SwitchoverBacklog *b)
{
    switchover_backlog_clear(b);
    qemu_mutex_destroy(&b->lock);
}

/* A chunk with room for @len bytes, at the end */
static SwitchoverChunk *backlog_reserve(SwitchoverBacklog *b, size_t len)
{
    SwitchoverChunk *chunk = backlog_last(b);

    if (chunk && len <= CHUNK_ROOM - chunk->end) {
        return chunk;
    }
    chunk = b->spare ?: g_malloc(CHUNK_SIZE);
    b->spare = NULL;
    chunk->begin = chunk->end = 0;
    QSIMPLEQ_INSERT_TAIL(&b->chunks, chunk, next);
    if (!b->cursor) {
        b->cursor = chunk;
        b->cursor_pos = b->cursor_begin = 0;
    }
    return chunk;
}

/* The message behind the end of @chunk is whole: count it */
static void backlog_commit(SwitchoverBacklog *b, SwitchoverChunk *chunk)
{
    const uint8_t *buf = chunk->data + chunk->end;
    size_t len = switchover_message_len(buf);

    chunk->end += len;
    b->bytes += len;
    b->unsent += len;
    b->peak_bytes = MAX(b->peak_bytes, b->bytes);
    if (!switchover_message_is_control(buf)) {
        b->tail++;
        b->peak = MAX(b->peak, b->tail - b->head);
    }
}

void switchover_backlog_append(SwitchoverBacklog *b, unsigned queue,
                               size_t hdr_len, const struct iovec *iov,
                               int iovcnt)
{
    size_t len = iov_size(iov, iovcnt);
    SwitchoverChunk *chunk;

    assert(len > hdr_len && len <= SWITCHOVER_FRAME_MAX);
    QEMU_LOCK_GUARD(&b->lock);
    chunk = backlog_reserve(b, SWITCHOVER_HEAD + len);
    switchover_message_put_head(chunk->data + chunk->end, queue, hdr_len, len);
    iov_to_buf(iov, iovcnt, 0, chunk->data + chunk->end + SWITCHOVER_HEAD, len);
    backlog_commit(b, chunk);
}

void switchover_backlog_append_control(SwitchoverBacklog *b,
                                       SwitchoverMessageType type,
                                       uint64_t value)
{
    SwitchoverChunk *chunk;

    QEMU_LOCK_GUARD(&b->lock);
    chunk = backlog_reserve(b, SWITCHOVER_CONTROL);
    switchover_message_put_control(chunk->data + chunk->end, type, value);
    backlog_commit(b, chunk);
}

ssize_t switchover_backlog_read(SwitchoverBacklog *b, int fd, unsigned queue,
                                size_t hdr_len)
{
    SwitchoverChunk *chunk;
    struct iovec iov[2];
    size_t room;
    ssize_t n;

    WITH_QEMU_LOCK_GUARD(&b->lock) {
        chunk = backlog_reserve(b, SWITCHOVER_HEAD + 1);
    }
    /* Nothing but this function writes behind the end of the last chunk */
    room = MIN(CHUNK_ROOM - chunk->end - SWITCHOVER_HEAD, SWITCHOVER_FRAME_MAX);
    iov[0].iov_base = chunk->data + chunk->end + SWITCHOVER_HEAD;
    iov[0].iov_len = room;
    if (room < SWITCHOVER_FRAME_MAX && !b->spill) {
        b->spill = g_malloc(SWITCHOVER_FRAME_MAX);
    }
    iov[1].iov_base = b->spill;
    iov[1].iov_len = SWITCHOVER_FRAME_MAX - room;

    n = RETRY_ON_EINTR(readv(fd, iov, iov[1].iov_len ? 2 : 1));
    if (n < 0) {
        return -errno;
    }
    if (n <= (ssize_t)hdr_len) {
        return n;
    }

    QEMU_LOCK_GUARD(&b->lock);
    if (n > (ssize_t)room) {
        chunk = backlog_reserve(b, CHUNK_ROOM);
        iov[1].iov_len = n - room;
        iov_to_buf(iov, 2, 0, chunk->data + SWITCHOVER_HEAD, n);
    }
    switchover_message_put_head(chunk->data + chunk->end, queue, hdr_len, n);
    backlog_commit(b, chunk);
    return n;
}

/* Free the oldest message */
static void backlog_pop_one(SwitchoverBacklog *b)
{
    SwitchoverChunk *chunk = QSIMPLEQ_FIRST(&b->chunks);
    const uint8_t *buf = chunk->data + chunk->begin;
    size_t len = switchover_message_len(buf);
    bool unsent = b->cursor == chunk && b->cursor_begin <= chunk->begin;

    if (!switchover_message_is_control(buf)) {
        b->head++;
        b->sent += unsent;
    }
    chunk->begin += len;
    b->bytes -= len;
    if (unsent) {
        b->unsent -= chunk->begin - b->cursor_pos;
        b->cursor_pos = b->cursor_begin = chunk->begin;
    }
    if (chunk->begin == chunk->end) {
        if (QSIMPLEQ_NEXT(chunk, next)) {
            backlog_remove_first(b);
        }
    }
}

/*
 * The chunk of the oldest message, with the control messages before it freed;
 * NULL if there is no frame.  A control message that has not been sent stays,
 * unless @unsent.
 */
static SwitchoverChunk *backlog_first(SwitchoverBacklog *b, bool unsent)
{
    SwitchoverChunk *chunk;

    while ((chunk = QSIMPLEQ_FIRST(&b->chunks))) {
        if (chunk->begin == chunk->end) {
            if (!QSIMPLEQ_NEXT(chunk, next)) {
                return NULL;
            }
            backlog_remove_first(b);
            continue;
        }
        if (!switchover_message_is_control(chunk->data + chunk->begin)) {
            return chunk;
        }
        if (!unsent && b->cursor == chunk && b->cursor_begin <= chunk->begin) {
            return NULL;
        }
        backlog_pop_one(b);
    }
    return NULL;
}

static void backlog_get_frame(const uint8_t *buf, uint64_t number,
                              SwitchoverFrame *frame)
{
    frame->number = number;
    frame->queue = lduw_be_p(buf + 4);
    frame->hdr_len = lduw_be_p(buf + 6);
    frame->data = buf + SWITCHOVER_HEAD;
    frame->len = (uint32_t)ldl_be_p(buf);
}

bool switchover_backlog_has(SwitchoverBacklog *b, uint64_t number,
                            SwitchoverIsFrame *is_frame, void *opaque)
{
    SwitchoverChunk *chunk;
    SwitchoverFrame frame;
    uint64_t n = b->head;

    QEMU_LOCK_GUARD(&b->lock);
    QSIMPLEQ_FOREACH(chunk, &b->chunks, next) {
        for (size_t pos = chunk->begin; pos < chunk->end;
             pos += switchover_message_len(chunk->data + pos)) {
            if (switchover_message_is_control(chunk->data + pos)) {
                continue;
            }
            backlog_get_frame(chunk->data + pos, n++, &frame);
            if (frame.number >= number && is_frame(opaque, &frame)) {
                return true;
            }
        }
    }
    return false;
}

bool switchover_backlog_peek(SwitchoverBacklog *b, SwitchoverFrame *frame)
{
    SwitchoverChunk *chunk;

    QEMU_LOCK_GUARD(&b->lock);
    chunk = backlog_first(b, true);
    if (!chunk) {
        return false;
    }
    backlog_get_frame(chunk->data + chunk->begin, b->head, frame);
    return true;
}

static void backlog_pop(SwitchoverBacklog *b, uint64_t number)
{
    while (b->head < number && backlog_first(b, number > b->sent)) {
        backlog_pop_one(b);
    }
}

void switchover_backlog_pop(SwitchoverBacklog *b, uint64_t number)
{
    QEMU_LOCK_GUARD(&b->lock);
    backlog_pop(b, MIN(number, b->tail));
}

uint64_t switchover_backlog_acknowledge(SwitchoverBacklog *b, uint64_t number)
{
    uint64_t before;

    QEMU_LOCK_GUARD(&b->lock);
    before = b->head;
    backlog_pop(b, MIN(number, b->sent));
    return b->head - before;
}

const uint8_t *switchover_backlog_unsent(SwitchoverBacklog *b, size_t *len)
{
    QEMU_LOCK_GUARD(&b->lock);
    while (b->cursor && b->cursor_pos == b->cursor->end &&
           QSIMPLEQ_NEXT(b->cursor, next)) {
        b->cursor = QSIMPLEQ_NEXT(b->cursor, next);
        b->cursor_pos = b->cursor_begin = b->cursor->begin;
    }
    *len = b->cursor ? b->cursor->end - b->cursor_pos : 0;
    return *len ? b->cursor->data + b->cursor_pos : NULL;
}

void switchover_backlog_advance(SwitchoverBacklog *b, size_t len)
{
    QEMU_LOCK_GUARD(&b->lock);
    b->cursor_pos += len;
    b->unsent -= len;
    while (b->cursor_begin < b->cursor_pos) {
        const uint8_t *buf = b->cursor->data + b->cursor_begin;
        size_t message = switchover_message_len(buf);

        if (b->cursor_begin + message > b->cursor_pos) {
            break;
        }
        b->cursor_begin += message;
        if (!switchover_message_is_control(buf)) {
            b->sent++;
            b->sent_frames++;
            b->sent_bytes += message - SWITCHOVER_HEAD - lduw_be_p(buf + 6);
        }
    }
}

void switchover_backlog_copy_rest(SwitchoverBacklog *b, GByteArray *rest)
{
    const uint8_t *buf;

    if (b->cursor && b->cursor_pos > b->cursor_begin) {
        buf = b->cursor->data + b->cursor_begin;
        g_byte_array_append(rest, b->cursor->data + b->cursor_pos,
                            b->cursor_begin + switchover_message_len(buf) -
                            b->cursor_pos);
    }
}

void switchover_backlog_seek(SwitchoverBacklog *b, uint64_t number)
{
    SwitchoverChunk *chunk;
    uint64_t n = b->head;

    QEMU_LOCK_GUARD(&b->lock);
    b->unsent = b->bytes;
    QSIMPLEQ_FOREACH(chunk, &b->chunks, next) {
        size_t pos = chunk->begin;

        while (pos < chunk->end && n < number) {
            const uint8_t *buf = chunk->data + pos;
            size_t len = switchover_message_len(buf);

            n += !switchover_message_is_control(buf);
            pos += len;
            b->unsent -= len;
        }
        b->cursor = chunk;
        b->cursor_pos = b->cursor_begin = pos;
        if (n >= number) {
            break;
        }
    }
    b->sent = n;
}

void switchover_backlog_prepend(SwitchoverBacklog *b, SwitchoverBacklog *other)
{
    b->tail = other->tail + (b->tail - b->head);
    b->head = other->head;
    b->peak = MAX(b->peak, b->tail - b->head);
    b->bytes += other->bytes;
    b->peak_bytes = MAX(b->peak_bytes, b->bytes);
    /* Not QSIMPLEQ_PREPEND(): it does not set the tail of an empty queue */
    QSIMPLEQ_CONCAT(&other->chunks, &b->chunks);
    QSIMPLEQ_CONCAT(&b->chunks, &other->chunks);
    other->bytes = other->unsent = 0;
    other->head = other->sent = other->tail = 0;
    other->cursor = NULL;
    switchover_backlog_seek(b, b->head);
}

uint64_t switchover_backlog_frames(SwitchoverBacklog *b)
{
    QEMU_LOCK_GUARD(&b->lock);
    return b->tail - b->head;
}

size_t switchover_backlog_bytes(SwitchoverBacklog *b)
{
    QEMU_LOCK_GUARD(&b->lock);
    return b->bytes;
}
