/*
 * Receive ring of an AF_PACKET socket
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

/*
 * A TPACKET_V3 ring: blocks of memory that the kernel fills with frames, and
 * hands over one by one.  To read a frame takes no system call, and one wakeup
 * serves a block of frames: a fiftieth of the time of recvmsg() per frame.
 *
 *      block 0         block 1         block 2          ...
 *   | read, given  | handed over, |  being filled  |  empty  |
 *   | back: KERNEL | USER         |  KERNEL        |  KERNEL |
 *
 * A block is handed over when the next frame has no room in it, or
 * RING_TIMEOUT_MS after its first frame.  Both have their price:
 *
 *   - A frame waits up to the timeout before the reader hears of it.
 *   - Each timeout with a frame in it is a wakeup.  At 20,000 frames/s that is
 *     most of what a capture costs.
 *   - While the reader is away each timeout with a frame in it takes a block,
 *     however empty.  Then the ring lasts for blocks x timeout, one second with
 *     the default size of 32 MiB, even if its memory is hardly used.
 *
 * Blocks are as small as the longest frame allows.  A frame without a free
 * block is dropped, and counted in PACKET_STATISTICS; the next block tells of
 * it.
 */

#include "qemu/osdep.h"

#include <sys/mman.h>

#include "io/packet-ring.h"
#include "qemu/atomic.h"

/* Holds a frame of 64 KiB and its headers; the kernel wants whole pages */
#define RING_BLOCK_SIZE (128 * 1024)

#define RING_TIMEOUT_MS 4

/* The kernel checks this for consistency, and uses nothing of it */
#define RING_FRAME_SIZE 2048

int qio_packet_ring_init(QIOPacketRing *ring, int fd, size_t size)
{
    size_t blocks = DIV_ROUND_UP(size, RING_BLOCK_SIZE);
    struct tpacket_req3 req = {
        .tp_block_size = RING_BLOCK_SIZE,
        .tp_block_nr = blocks,
        .tp_frame_size = RING_FRAME_SIZE,
        .tp_frame_nr = blocks * (RING_BLOCK_SIZE / RING_FRAME_SIZE),
        .tp_retire_blk_tov = RING_TIMEOUT_MS,
    };
    int version = TPACKET_V3;
    void *map;

    assert(!ring->map);
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION,
                   &version, sizeof(version)) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req)) < 0) {
        return -errno;
    }

    size = blocks * RING_BLOCK_SIZE;
    map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        int ret = -errno;

        memset(&req, 0, sizeof(req));
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req));
        return ret;
    }
    *ring = (QIOPacketRing) { .map = map, .size = size };
    return 0;
}

void qio_packet_ring_cleanup(QIOPacketRing *ring)
{
    if (ring->map) {
        munmap(ring->map, ring->size);
    }
    memset(ring, 0, sizeof(*ring));
}

bool qio_packet_ring_holds(QIOPacketRing *ring,
                           const struct tpacket3_hdr *frame,
                           size_t vnet_hdr_len)
{
    size_t pos = (uint8_t *)frame - (ring->map + ring->block);

    return frame->tp_mac >= TPACKET_ALIGN(sizeof(*frame)) +
                            sizeof(struct sockaddr_ll) + vnet_hdr_len &&
           (uint64_t)pos + frame->tp_mac + frame->tp_snaplen <= RING_BLOCK_SIZE;
}

struct tpacket3_hdr *qio_packet_ring_next(QIOPacketRing *ring)
{
    struct tpacket3_hdr *frame;

    while (!ring->left) {
        struct tpacket_block_desc *desc = (void *)(ring->map + ring->block);

        if (ring->ours) {
            /* Whatever was read or written there comes before */
            qatomic_store_release(&desc->hdr.bh1.block_status,
                                  TP_STATUS_KERNEL);
            ring->ours = false;
            ring->block = (ring->block + RING_BLOCK_SIZE) % ring->size;
            continue;
        }
        if (!(qatomic_load_acquire(&desc->hdr.bh1.block_status) &
              TP_STATUS_USER)) {
            return NULL;
        }
        ring->ours = true;
        ring->losing |= desc->hdr.bh1.block_status & TP_STATUS_LOSING;
        ring->left = desc->hdr.bh1.num_pkts;
        ring->next = (uint8_t *)desc + desc->hdr.bh1.offset_to_first_pkt;
    }

    frame = (struct tpacket3_hdr *)ring->next;
    ring->next += frame->tp_next_offset;
    ring->left--;
    return frame;
}
