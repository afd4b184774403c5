/*
 * Net filters: packets to a chardev, without waiting for its peer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FILTER_WRITER_H
#define NET_FILTER_WRITER_H

#include "chardev/char-fe.h"
#include "net/filter.h"
#include "net/packet-queue.h"

/*
 * FilterWriter: the part of a filter's state behind its outdev.  All of its
 * functions are for the main loop's thread, or any other that holds the BQL.
 */
typedef struct FilterWriter {
    NetFilterState *nf;
    CharFrontend *chr;          /* NULL: not set up */
    void (*changed)(void *opaque);
    void *opaque;

    bool one_by_one;            /* messages */
    bool connected;
    guint watch;
    bool waiting;               /* for the peer, as the trace has it */
    QEMUBH *flush_bh;
    PacketQueue queue;

    uint64_t dropped_no_peer;   /* packets */
    uint64_t dropped_no_room;   /* packets */
    uint64_t dropped_too_big;   /* packets */
} FilterWriter;

/**
 * filter_writer_setup:
 * @w: part of @nf, zeroed
 * @nf: the filter
 * @chr: its outdev, initialized, from now on used by @w alone
 * @vnet_hdr: whether messages carry a vnet header
 */
void filter_writer_setup(FilterWriter *w, NetFilterState *nf,
                         CharFrontend *chr, bool vnet_hdr);

/**
 * filter_writer_cleanup:
 * @w: the writer, which may not have been set up
 *
 * Release everything.  To be called before outdev is.
 */
void filter_writer_cleanup(FilterWriter *w);

/**
 * filter_writer_on_change:
 * @w: the writer, of a source that can be made to wait
 * @changed: called when the peer came or went, or @w has been written out
 * @opaque: for @changed
 */
void filter_writer_on_change(FilterWriter *w, void (*changed)(void *opaque),
                             void *opaque);

/**
 * filter_writer_put_packet:
 * @w: the writer
 * @flags: QEMU_NET_PACKET_FLAG_*
 * @iov: a packet from the chain, with the netdev's vnet header if it has one
 * @iovcnt: elements of @iov
 *
 * Send a packet, in this turn of the main loop or as soon as the peer takes
 * it.  Without a peer, and when the writer is full, it is dropped and counted:
 * the chain cannot be made to wait.
 */
void filter_writer_put_packet(FilterWriter *w, unsigned flags,
                              const struct iovec *iov, int iovcnt);

/**
 * filter_writer_wants_more:
 * @w: the writer
 *
 * For a source that can be made to wait.
 *
 * Returns: whether there is a peer, and it has taken nearly everything
 */
bool filter_writer_wants_more(FilterWriter *w);

/**
 * filter_writer_put_frame:
 * @w: the writer, which wants more
 * @hdr: a vnet header, or NULL without
 * @hdr_len: its length, or 0
 * @frame: the frame
 * @len: its length
 *
 * Send a frame; its sender calls filter_writer_flush() after a batch of them.
 */
void filter_writer_put_frame(FilterWriter *w, const void *hdr, size_t hdr_len,
                             void *frame, size_t len);

/**
 * filter_writer_flush:
 * @w: the writer
 *
 * Write, as far as the peer takes it.
 */
void filter_writer_flush(FilterWriter *w);

/**
 * filter_writer_count_no_peer:
 * @w: the writer
 * @n: packets that were dropped because there was no peer
 */
void filter_writer_count_no_peer(FilterWriter *w, uint64_t n);

/**
 * filter_count_drop:
 * @nf: the filter
 * @counter: one of its counters of dropped packets
 * @n: packets that were dropped
 * @reason: why; the same for all on @counter
 *
 * Count them; report the first.
 */
void filter_count_drop(NetFilterState *nf, uint64_t *counter, uint64_t n,
                       const char *reason);

#endif /* NET_FILTER_WRITER_H */
