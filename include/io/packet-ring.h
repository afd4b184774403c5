/*
 * Receive ring of an AF_PACKET socket
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#ifndef QIO_PACKET_RING_H
#define QIO_PACKET_RING_H

#include <linux/if_packet.h>

/*
 * QIOPacketRing: captured frames in memory that is shared with the kernel.
 * Its functions are for one thread at a time.
 */
typedef struct QIOPacketRing {
    uint8_t *map;               /* NULL: there is no ring */
    size_t size;                /* bytes */

    size_t block;               /* offset in @map of the oldest block */
    bool ours;                  /* the kernel has handed that block over */
    uint32_t left;              /* frames in it that have not been read */
    uint8_t *next;              /* the first of them */

    bool losing;                /* frames were dropped; for the user to clear */
} QIOPacketRing;

/* The smallest ring, in bytes: one block is filled while another is read */
#define QIO_PACKET_RING_MIN (256 * 1024)

/* The largest, in bytes; the kernel's own limit is 4 GiB */
#define QIO_PACKET_RING_MAX (1024 * 1024 * 1024)

/**
 * qio_packet_ring_init:
 * @ring: zeroed
 * @fd: an AF_PACKET socket that is not hooked to any protocol, with
 *     PACKET_VNET_HDR set
 * @size: bytes, from QIO_PACKET_RING_MIN to QIO_PACKET_RING_MAX; rounded up
 *     to whole blocks
 *
 * Give @fd a ring.  This takes about 20 ms for 32 MiB, as the kernel clears
 * the memory, and waits for an RCU grace period (Linux 6.18).
 *
 * Returns: 0, or -errno; then @fd receives without a ring as before
 */
int qio_packet_ring_init(QIOPacketRing *ring, int fd, size_t size);

/**
 * qio_packet_ring_cleanup:
 * @ring: the ring, or zeroed
 *
 * Unmap the memory.  The kernel keeps its side until the socket is closed.
 */
void qio_packet_ring_cleanup(QIOPacketRing *ring);

/**
 * qio_packet_ring_next:
 * @ring: the ring
 *
 * Read the oldest frame.  The memory that the last call returned goes back to
 * the kernel.
 *
 * Returns: the frame's header, the frame being at @tp_mac from it, behind its
 * vnet header; or NULL if the kernel has handed over no frame.  The reader may
 * write to all of it.
 */
struct tpacket3_hdr *qio_packet_ring_next(QIOPacketRing *ring);

/**
 * qio_packet_ring_holds:
 * @ring: the ring
 * @frame: what qio_packet_ring_next() has just returned
 * @vnet_hdr_len: bytes of the vnet header
 *
 * Where the kernel has no vnet header for a frame, it leaves in the ring what
 * was there before (Linux 6.18, tpacket_rcv()).
 *
 * Returns: whether @frame, with its vnet header, is inside its block
 */
bool qio_packet_ring_holds(QIOPacketRing *ring,
                           const struct tpacket3_hdr *frame,
                           size_t vnet_hdr_len);

#endif /* QIO_PACKET_RING_H */
