/*
 * Switchover: frames in memory, in order, until they are acknowledged
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_BACKLOG_H
#define NET_SWITCHOVER_BACKLOG_H

#include "net/switchover/message.h"
#include "qemu/queue.h"
#include "qemu/thread.h"

typedef struct SwitchoverChunk SwitchoverChunk;

/*
 * SwitchoverBacklog: a queue of frames with a cursor.
 *
 *   head                 cursor                      tail
 *    | sent, not acknowledged | not sent yet           |
 *
 * Frames are appended at the tail, sent from the cursor, and freed from the
 * head.  Each lies there as the message that carries it (message.h), so that
 * what is sent needs no copy.
 *
 * Frames are counted from 0 by the 64-bit numbers head, sent and tail.
 *
 * One thread at a time may append, one at a time may use the cursor, and one
 * at a time may free; these three may be different ones.  Functions that need
 * more say so.
 */
typedef struct SwitchoverBacklog {
    QemuMutex lock;             /* for all that follows */
    QSIMPLEQ_HEAD(, SwitchoverChunk) chunks;
    SwitchoverChunk *spare;     /* an empty chunk, to be used next; or NULL */
    SwitchoverChunk *cursor;    /* the chunk of the next byte to be sent */
    size_t cursor_pos;          /* its offset in that chunk */
    size_t cursor_begin;        /* offset of the message that it is in */

    uint64_t head;              /* number of the oldest frame */
    uint64_t sent;              /* number of the frame at the cursor */
    uint64_t tail;              /* number of the next frame to be appended */
    size_t bytes;               /* of all messages from head to tail */
    size_t unsent;              /* of those behind the cursor */
    uint64_t peak;              /* largest number of frames so far */
    size_t peak_bytes;          /* largest number of bytes so far */
    uint64_t sent_frames;       /* frames sent so far, again and again */
    uint64_t sent_bytes;        /* their length without vnet headers */
    uint8_t *spill;             /* for what is read beyond the end of a chunk */
} SwitchoverBacklog;

/**
 * switchover_backlog_init:
 * @b: the backlog, uninitialized
 */
void switchover_backlog_init(SwitchoverBacklog *b);

/**
 * switchover_backlog_destroy:
 * @b: the backlog; no other thread uses it
 *
 * Free everything.
 */
void switchover_backlog_destroy(SwitchoverBacklog *b);

/**
 * switchover_backlog_clear:
 * @b: the backlog; no other thread uses it
 *
 * Drop all frames.  The next one gets number 0.
 *
 * Returns: how many were dropped
 */
uint64_t switchover_backlog_clear(SwitchoverBacklog *b);

/**
 * switchover_backlog_append:
 * @b: the backlog
 * @queue: number of the netdev's queue that the frame came from
 * @hdr_len: bytes of vnet header at the beginning of @iov
 * @iov: vnet header and frame, together at most SWITCHOVER_FRAME_MAX bytes
 * @iovcnt: elements of @iov
 */
void switchover_backlog_append(SwitchoverBacklog *b, unsigned queue,
                               size_t hdr_len, const struct iovec *iov,
                               int iovcnt);

/**
 * switchover_backlog_append_control:
 * @b: the backlog
 * @type: of the message
 * @value: of the message
 *
 * Append a message without a frame.  It is sent in its place between the
 * frames, has no number, and is freed with the frame before it.
 */
void switchover_backlog_append_control(SwitchoverBacklog *b,
                                       SwitchoverMessageType type,
                                       uint64_t value);

/**
 * switchover_backlog_read:
 * @b: the backlog
 * @fd: gives one frame for each read(2), and does not block
 * @queue: number of the netdev's queue that @fd is of
 * @hdr_len: bytes of vnet header that each frame has there
 *
 * Read one frame, and append it.
 *
 * Returns: bytes read, with the vnet header; or -errno, -EAGAIN among them.
 *     What is not longer than its vnet header is not appended.
 */
ssize_t switchover_backlog_read(SwitchoverBacklog *b, int fd, unsigned queue,
                                size_t hdr_len);

/**
 * switchover_backlog_peek:
 * @b: the backlog
 * @frame: is set to the oldest frame; valid until it is popped
 *
 * Returns: whether there is one
 */
bool switchover_backlog_peek(SwitchoverBacklog *b, SwitchoverFrame *frame);

/* Is this the frame?  It is valid only now. */
typedef bool SwitchoverIsFrame(void *opaque, const SwitchoverFrame *frame);

/**
 * switchover_backlog_has:
 * @b: the backlog
 * @number: of the first frame to look at
 * @is_frame: called with the lock held
 * @opaque: for @is_frame
 *
 * Returns: whether there is such a frame, from @number on
 */
bool switchover_backlog_has(SwitchoverBacklog *b, uint64_t number,
                            SwitchoverIsFrame *is_frame, void *opaque);

/**
 * switchover_backlog_pop:
 * @b: the backlog
 * @number: of the first frame that stays; others are not popped twice.  It may
 *     be beyond the cursor only if no other thread uses that.
 *
 * Free the frames before @number.
 */
void switchover_backlog_pop(SwitchoverBacklog *b, uint64_t number);

/**
 * switchover_backlog_acknowledge:
 * @b: the backlog
 * @number: of the first frame that stays
 *
 * Free the frames before @number, as far as they have been sent.
 *
 * Returns: how many were freed
 */
uint64_t switchover_backlog_acknowledge(SwitchoverBacklog *b, uint64_t number);

/**
 * switchover_backlog_unsent:
 * @b: the backlog
 * @len: is set to the number of bytes
 *
 * Returns: the bytes at the cursor, as far as they lie together; they end with
 *     a whole message.  NULL if all has been sent.
 */
const uint8_t *switchover_backlog_unsent(SwitchoverBacklog *b, size_t *len);

/**
 * switchover_backlog_advance:
 * @b: the backlog
 * @len: at most what switchover_backlog_unsent() has set
 *
 * Move the cursor on by @len bytes, which have been sent.
 */
void switchover_backlog_advance(SwitchoverBacklog *b, size_t len);

/**
 * switchover_backlog_copy_rest:
 * @b: the backlog; no other thread uses it
 * @rest: to append to
 *
 * Copy the rest of the message of which the cursor has passed a part, if any.
 */
void switchover_backlog_copy_rest(SwitchoverBacklog *b, GByteArray *rest);

/**
 * switchover_backlog_seek:
 * @b: the backlog; no other thread uses it
 * @number: of a frame
 *
 * Move the cursor to a frame; to the oldest, if that one is no longer here.
 */
void switchover_backlog_seek(SwitchoverBacklog *b, uint64_t number);

/**
 * switchover_backlog_prepend:
 * @b: a backlog; no other thread uses it
 * @other: another one; no other thread uses it
 *
 * Move all frames of @other in front of those of @b.  The frames of @b get new
 * numbers, and none counts as sent.
 */
void switchover_backlog_prepend(SwitchoverBacklog *b,
                                SwitchoverBacklog *other);

/**
 * switchover_backlog_frames:
 * @b: the backlog
 *
 * Returns: how many frames are in it
 */
uint64_t switchover_backlog_frames(SwitchoverBacklog *b);

/**
 * switchover_backlog_bytes:
 * @b: the backlog
 *
 * Returns: how many bytes are in it, with the headers of the messages
 */
size_t switchover_backlog_bytes(SwitchoverBacklog *b);

#endif /* NET_SWITCHOVER_BACKLOG_H */
