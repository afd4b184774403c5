/*
 * Net filters: packets to a chardev, without waiting for its peer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * filter-mirror and filter-redirector send packets to their outdev, one
 * message for each: be32 length | [be32 vnet header length] | packet.  The
 * peer can be slow, or dead, and QEMU's main loop, the guest's too, must not
 * wait for it.
 *
 * Theory of operation
 *
 * Messages are put into a queue in memory and written from there, many with
 * one system call: those of the chain at the end of the main loop's turn,
 * captured frames after each batch.  What the peer does not take waits for a
 * watch on the chardev.
 *
 * Two kinds of sources meet a queue that does not drain in two ways:
 *
 *   the chain    cannot wait.  Up to 4 MiB are queued, then packets are
 *                dropped and counted; also when there is no peer.
 *   a capture    can wait, in its receive ring.  It asks whether the writer
 *                wants more, which is so as long as the peer keeps up.
 *
 * Chardevs that are not sockets are written message by message, since each
 * write may become a datagram.
 *
 * When the peer goes, packets of the chain that have not been sent are dropped
 * and counted; captured frames stay, and a new peer gets them.  In both cases
 * it begins with a whole message, so it is in step.
 */

#include "qemu/osdep.h"
#include "net/filter-writer.h"
#include "net/net.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "standard-headers/linux/virtio_net.h"
#include "trace.h"

/* Bytes in the queue at which it is written, and a capture has to wait */
#define FILTER_WRITER_BATCH (128 * KiB)

/* Bytes to write in one turn of the main loop, at most */
#define FILTER_WRITER_TURN (512 * KiB)

/* Bytes in the queue above which packets of the chain are dropped */
#define FILTER_WRITER_LIMIT (4 * MiB)

static const char *filter_id(NetFilterState *nf)
{
    return object_get_canonical_path_component(OBJECT(nf));
}

void filter_count_drop(NetFilterState *nf, uint64_t *counter, uint64_t n,
                       const char *reason)
{
    if (!n) {
        return;
    }
    trace_filter_count_drop(filter_id(nf), n, reason);
    if (!*counter) {
        warn_report("%s '%s': packet dropped: %s (more of these are counted "
                    "only)", object_get_typename(OBJECT(nf)), filter_id(nf),
                    reason);
    }
    *counter += n;
}

void filter_writer_count_no_peer(FilterWriter *w, uint64_t n)
{
    filter_count_drop(w->nf, &w->dropped_no_peer, n,
                      "outdev has no peer to take it");
}

static gboolean filter_writer_writable(void *do_not_use, GIOCondition cond,
                                       void *opaque)
{
    FilterWriter *w = opaque;

    w->watch = 0;
    filter_writer_flush(w);
    return G_SOURCE_REMOVE;
}

static void filter_writer_update_watch(FilterWriter *w)
{
    bool want = w->connected && w->queue.bytes;

    if (want && !w->watch) {
        w->watch = qemu_chr_fe_add_watch(w->chr, G_IO_OUT | G_IO_HUP,
                                         filter_writer_writable, w);
        if (!w->watch) {
            /* A chardev that cannot be waited for, such as udp */
            filter_count_drop(w->nf, &w->dropped_no_room,
                              packet_queue_clear(&w->queue),
                              "outdev did not take it");
        }
    } else if (!want && w->watch) {
        g_source_remove(w->watch);
        w->watch = 0;
    }
    if (w->waiting != (w->watch != 0)) {
        w->waiting = !w->waiting;
        trace_filter_writer_waiting(filter_id(w->nf), w->waiting,
                                    w->queue.packets, w->queue.bytes);
    }
}

static void filter_writer_flush_soon(FilterWriter *w)
{
    qemu_bh_schedule(w->flush_bh);
}

void filter_writer_flush(FilterWriter *w)
{
    bool full = w->queue.bytes;
    size_t written = 0;
    uint8_t *buf;
    size_t len;

    while (w->connected && (buf = packet_queue_peek(&w->queue, &len))) {
        int n;

        if (written >= FILTER_WRITER_TURN) {
            filter_writer_flush_soon(w);
            return;
        }
        n = qemu_chr_fe_write(w->chr, buf, len);
        if (n <= 0) {
            if (n < 0 && errno != EAGAIN && !w->one_by_one) {
                /* The reading side may never learn of it */
                qemu_chr_fe_disconnect(w->chr);
            }
            break;
        }
        written += n;
        packet_queue_consume(&w->queue, n);
    }
    filter_writer_update_watch(w);
    if (full && !w->queue.bytes && w->changed) {
        w->changed(w->opaque);
    }
}

bool filter_writer_wants_more(FilterWriter *w)
{
    if (w->queue.bytes >= FILTER_WRITER_BATCH && !w->watch) {
        filter_writer_flush(w);
    }
    return w->connected && !w->watch && w->queue.bytes < FILTER_WRITER_BATCH;
}

void filter_writer_put_frame(FilterWriter *w, const void *hdr, size_t hdr_len,
                             void *frame, size_t len)
{
    struct iovec iov = { .iov_base = frame, .iov_len = len };

    packet_queue_put(&w->queue, hdr, hdr_len, &iov, 1, 0);
    if (w->one_by_one) {
        filter_writer_flush(w);
    }
}

void filter_writer_put_packet(FilterWriter *w, unsigned flags,
                              const struct iovec *iov, int iovcnt)
{
    static const struct virtio_net_hdr_v1_hash_tunnel no_hdr;
    size_t hdr_len = w->queue.vnet_hdr ? w->nf->netdev->vnet_hdr_len : 0;
    /* QEMU's own packets have none */
    bool add_hdr = hdr_len && (flags & QEMU_NET_PACKET_FLAG_RAW);
    size_t size = iov_size(iov, iovcnt);

    assert(hdr_len <= sizeof(no_hdr));
    if (!size) {
        return;
    }
    if (size + (add_hdr ? hdr_len : 0) > NET_BUFSIZE) {
        filter_count_drop(w->nf, &w->dropped_too_big, 1,
                          "longer than a message may be");
        return;
    }
    if (!w->connected) {
        filter_writer_count_no_peer(w, 1);
        return;
    }
    if (w->queue.bytes >= FILTER_WRITER_LIMIT) {
        filter_count_drop(w->nf, &w->dropped_no_room, 1,
                          "outdev's peer does not keep up");
        return;
    }

    packet_queue_put(&w->queue, add_hdr ? &no_hdr : NULL, hdr_len,
                     iov, iovcnt, 0);
    if (w->watch) {
        return;
    }
    if (w->one_by_one || w->queue.bytes >= FILTER_WRITER_BATCH) {
        filter_writer_flush(w);
    } else {
        filter_writer_flush_soon(w);
    }
}

/* The peer has nothing to say; but reading is how its end is noticed */
static int filter_writer_can_read(void *opaque)
{
    return 4 * KiB;
}

static void filter_writer_read(void *opaque, const uint8_t *buf, int size)
{
}

static void filter_writer_event(void *opaque, QEMUChrEvent event)
{
    FilterWriter *w = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        w->connected = true;
        filter_writer_flush(w);
        break;
    case CHR_EVENT_CLOSED:
        w->connected = false;
        if (w->changed) {
            packet_queue_rewind(&w->queue);
        } else {
            filter_writer_count_no_peer(w, packet_queue_clear(&w->queue));
        }
        filter_writer_update_watch(w);
        break;
    default:
        return;
    }
    trace_filter_writer_event(filter_id(w->nf), w->connected,
                              w->queue.packets, w->queue.bytes);
    if (w->changed) {
        w->changed(w->opaque);
    }
}

static void filter_writer_flush_bh(void *opaque)
{
    filter_writer_flush(opaque);
}

void filter_writer_setup(FilterWriter *w, NetFilterState *nf,
                         CharFrontend *chr, bool vnet_hdr)
{
    w->nf = nf;
    w->chr = chr;
    packet_queue_init(&w->queue, vnet_hdr);
    w->flush_bh = qemu_bh_new(filter_writer_flush_bh, w);
    /* Only these have events for their peers, and are streams for sure */
    w->one_by_one = !qemu_chr_has_feature(qemu_chr_fe_get_driver(chr),
                                          QEMU_CHAR_FEATURE_RECONNECTABLE);
    w->connected = w->one_by_one;
    qemu_chr_fe_set_handlers(chr, filter_writer_can_read, filter_writer_read,
                             filter_writer_event, NULL, w, NULL, true);
}

void filter_writer_on_change(FilterWriter *w, void (*changed)(void *opaque),
                             void *opaque)
{
    w->changed = changed;
    w->opaque = opaque;
}

void filter_writer_cleanup(FilterWriter *w)
{
    if (!w->chr) {
        return;
    }
    if (w->watch) {
        g_source_remove(w->watch);
        w->watch = 0;
    }
    qemu_bh_delete(w->flush_bh);
    packet_queue_clear(&w->queue);
    w->chr = NULL;
}
