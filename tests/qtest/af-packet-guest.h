/*
 * A guest without code, for qtests: the driver of a virtio-net-pci
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The test is the driver: it fills and empties the rings in the VM's memory,
 * which it shares with QEMU, or with its vhost.
 *
 *   host  --- TAP --- QEMU or vhost --- VM's memory --- rings, the test
 *
 * A frame's bytes and its length follow from its number.  All of these assert
 * that they succeed; where they wait, they begin a new patience.
 */

#ifndef AF_PACKET_GUEST_H
#define AF_PACKET_GUEST_H

#include "af-packet-helpers.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_net.h"

/* With mergeable buffers, or virtio 1 */
#define GUEST_HDR_LEN sizeof(struct virtio_net_hdr_mrg_rxbuf)

/*
 * Buffers in each receive ring.  That may be larger: QEMU 10.0.13 gives all
 * rings 1,024 entries, whatever rx_queue_size says.
 */
#define GUEST_RX_BUFFERS 256

/* The machine type, "pc" unless a test changes it */
extern const char *guest_machine;

/* Pairs of queues, at most */
#define GUEST_PAIRS_MAX 8

typedef struct Guest {
    Env e;
    Tap *tap;                   /* made by QEMU; it or its vhost reads it */
    char *ram;                  /* shared with QEMU, begins at address 0 */
    int pairs;
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;      /* NULL: there is no driver */
    QVirtQueue *rx[GUEST_PAIRS_MAX], *tx[GUEST_PAIRS_MAX], *ctrl;
} Guest;

/* Why there can be no vhost here, or NULL if there can; after host_init() */
const char *why_no_vhost(void);

/* The shortest and the longest that Ethernet has, in turns */
size_t seq_len(uint32_t seq);

/*
 * Start QEMU with TAP @ifname, which has @pairs queues.  @device is more for
 * the NIC, such as ",mq=on", or NULL: @options has one.
 */
void guest_vm_start(Guest *g, const char *ifname, int pairs, bool vhost,
                    const char *device, const char *options);
void guest_vm_stop(Guest *g);
/* QEMU dies without doing anything any more; not to be stopped after that */
void guest_vm_kill(Guest *g);
/* All queues of the guest that are there get buffers, and are used */
void driver_start(Guest *g);
/* Both of them */
void guest_stop(Guest *g);

/*
 * The driver and the rings of @a are now in @b.  The driver must not have
 * received since the migration began: QEMU does not see what is written to
 * shared memory, and would not send it again.
 */
void guest_move(Guest *a, Guest *b);

/* The next frame of a ring, without its header, which is in @hdr, if any */
bool ring_poll(Guest *g, int pair, GByteArray *frame,
               struct virtio_net_hdr_mrg_rxbuf *hdr);
/*
 * The same of any ring, after some time.  A TAP with several queues takes one
 * for each flow, by a hash that differs from boot to boot (Linux 6.18).
 */
void ring_recv(Guest *g, GByteArray *frame,
               struct virtio_net_hdr_mrg_rxbuf *hdr);
/* The next frames are those from @begin to before @end */
void ring_expect(Guest *g, uint32_t begin, uint32_t end);

/* The guest sends a frame, which the host has when this returns */
void guest_send(Guest *g, uint32_t seq);

/* The host sends the frames from @begin to before @end */
void send_range(Guest *g, uint32_t begin, uint32_t end);
/* And all of them arrive, so that none is on its way */
void send_and_drain(Guest *g, uint32_t begin, uint32_t end);

#endif /* AF_PACKET_GUEST_H */
