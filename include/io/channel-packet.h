/*
 * QEMU I/O channels AF_PACKET driver
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#ifndef QIO_CHANNEL_PACKET_H
#define QIO_CHANNEL_PACKET_H

#include "io/channel.h"
#include "qom/object.h"
#include "standard-headers/linux/virtio_net.h"

#define TYPE_QIO_CHANNEL_PACKET "qio-channel-packet"
OBJECT_DECLARE_SIMPLE_TYPE(QIOChannelPacket, QIO_CHANNEL_PACKET)

/*
 * Most bytes that one message of the stream may carry behind its header:
 * vnet header and frame.  The same number as NET_BUFSIZE, which io/ cannot
 * see: 64 KiB of GSO payload and room for every header.
 */
#define QIO_CHANNEL_PACKET_MAX (4096 + 65536)

/* Bytes of the ring that a capture sets up, unless told otherwise */
#define QIO_CHANNEL_PACKET_RING_SIZE (32 * 1024 * 1024)

/* Wait this long, in microseconds, before a frame without room is retried */
#define QIO_CHANNEL_PACKET_RETRY_US 1000

/**
 * QIOChannelPacket:
 *
 * The QIOChannelPacket object captures the Ethernet frames which the host
 * sends towards a network interface, or injects frames there, through an
 * AF_PACKET socket.  It has two faces on the same socket:
 *
 *  - the QIOChannel face is a byte stream of messages,
 *    be32 length | [be32 vnet header length] | [vnet header] frame,
 *    the format of filter-mirror, filter-redirector and colo-compare.  A
 *    capturing channel can only be read, an injecting one only be written;
 *
 *  - qio_channel_packet_recv_frame() spares the reader the stream.
 *
 * Use one face of a channel or the other, from one thread at a time.  All
 * operations are non-blocking unless qio_channel_set_blocking() says
 * otherwise, which concerns the QIOChannel face alone.
 */

/**
 * QIOChannelPacketMode:
 * @QIO_CHANNEL_PACKET_CAPTURE: receive what the host sends to the interface
 * @QIO_CHANNEL_PACKET_INJECT: send to the interface as the host does
 */
typedef enum QIOChannelPacketMode {
    QIO_CHANNEL_PACKET_CAPTURE,
    QIO_CHANNEL_PACKET_INJECT,
} QIOChannelPacketMode;

/**
 * QIOChannelPacketFrame:
 * @vnet_hdr: checksum and GSO metadata in host byte order; all zero for a
 *     frame that is complete in itself
 * @data: the frame from its destination MAC address on, VLAN tags in place.
 *     The memory is the channel's and valid until the next call on it.
 * @len: bytes at @data
 */
typedef struct QIOChannelPacketFrame {
    struct virtio_net_hdr vnet_hdr;
    uint8_t *data;
    size_t len;
} QIOChannelPacketFrame;

/**
 * QIOChannelPacketStats:
 * @frames: frames that have been captured or injected
 * @bytes: the same in bytes, without vnet headers
 * @dropped_kernel: frames that found the ring or the receive buffer full
 * @dropped_unread: captured frames that a detach has thrown away
 * @dropped_truncated: captured frames that were too long for the buffer
 * @dropped_gso: GSO frames that would have to be cut, and cannot be
 * @dropped_mtu: frames or segments over the MTU of the interface
 * @dropped_invalid: frames that the kernel refuses, or messages that hold
 *     no usable frame
 * @dropped_down: frames for an interface that is down
 * @no_room: times that the interface's queue was full; nothing is lost
 *
 * Everything since the channel was made.
 */
typedef struct QIOChannelPacketStats {
    uint64_t frames;
    uint64_t bytes;
    uint64_t dropped_kernel;
    uint64_t dropped_unread;
    uint64_t dropped_truncated;
    uint64_t dropped_gso;
    uint64_t dropped_mtu;
    uint64_t dropped_invalid;
    uint64_t dropped_down;
    uint64_t no_room;
} QIOChannelPacketStats;

/**
 * qio_channel_packet_new_ifname:
 * @ifname: name of a network interface in QEMU's network namespace
 * @mode: whether to capture or to inject
 * @errp: pointer to a NULL-initialized error object
 *
 * Open an AF_PACKET socket on @ifname, which needs CAP_NET_RAW.  A capturing
 * channel starts inactive, see qio_channel_packet_set_active().
 *
 * Returns: the new channel, or NULL on error
 */
QIOChannelPacket *
qio_channel_packet_new_ifname(const char *ifname, QIOChannelPacketMode mode,
                              Error **errp);

/**
 * qio_channel_packet_may_open:
 *
 * Returns: false if qio_channel_packet_new_ifname() would fail because
 * CAP_NET_RAW is missing
 */
bool qio_channel_packet_may_open(void);

/**
 * qio_channel_packet_new_fd:
 * @fd: an AF_PACKET socket of type SOCK_RAW, bound to an interface
 * @mode: whether to capture or to inject
 * @errp: pointer to a NULL-initialized error object
 *
 * Adopt a socket that another process has opened; this needs no privilege.
 * On success the channel owns @fd, on failure the caller still does.  If @fd
 * is capturing already, it goes on without a gap, and the channel yields what
 * it has captured; qio_channel_packet_set_active() makes sure that it is.
 *
 * Returns: the new channel, or NULL on error
 */
QIOChannelPacket *
qio_channel_packet_new_fd(int fd, QIOChannelPacketMode mode, Error **errp);

/**
 * qio_channel_packet_new_socket:
 * @fd: a connected socket that keeps message boundaries
 * @mode: whether to capture or to inject
 *
 * Wrap a socket that behaves as an AF_PACKET socket with PACKET_VNET_HDR
 * does, without a look at it: each message is a struct virtio_net_hdr and a
 * frame.  For tests.  The channel owns @fd.
 *
 * Returns: the new channel
 */
QIOChannelPacket *
qio_channel_packet_new_socket(int fd, QIOChannelPacketMode mode);

/**
 * qio_channel_packet_is_packet_socket:
 * @fd: a file descriptor
 *
 * Returns: true if @fd is a socket of the family AF_PACKET
 */
bool qio_channel_packet_is_packet_socket(int fd);

/**
 * qio_channel_packet_set_vnet_hdr:
 * @ioc: the channel
 * @enabled: whether the messages of the stream carry a vnet header
 *
 * Choose the form of the stream before its first byte; off by default.
 * Without vnet headers a capturing channel fills in the checksums that the
 * host has left to the interface, and cuts GSO frames into segments.
 */
void qio_channel_packet_set_vnet_hdr(QIOChannelPacket *ioc, bool enabled);

/**
 * qio_channel_packet_set_ring_size:
 * @ioc: a capturing channel that has not been prepared or activated
 * @size: bytes, from QIO_PACKET_RING_MIN to QIO_PACKET_RING_MAX; or 0, to
 *     receive each frame by a system call, into the socket's receive buffer
 */
void qio_channel_packet_set_ring_size(QIOChannelPacket *ioc, size_t size);

/**
 * qio_channel_packet_prepare:
 * @ioc: a capturing channel
 *
 * Set up the ring, which takes its time (qio_packet_ring_init()), so that to
 * activate @ioc takes none.  A channel that has none by then sets it up when
 * it is activated.  If the kernel refuses, @ioc captures without a ring.
 */
void qio_channel_packet_prepare(QIOChannelPacket *ioc);

/**
 * qio_channel_packet_set_active:
 * @ioc: a capturing channel
 * @active: whether frames are to be captured
 * @errp: pointer to a NULL-initialized error object
 *
 * Begin or end the capture, with effect from the next frame.  What was
 * captured before the end stays readable; call qio_channel_packet_detach()
 * when it is read.
 *
 * Returns: true on success, false on error
 */
bool qio_channel_packet_set_active(QIOChannelPacket *ioc, bool active,
                                   Error **errp);

/**
 * qio_channel_packet_detach:
 * @ioc: a capturing channel that is not active
 *
 * Let the socket cost the host's senders nothing until the capture begins
 * again, and give the ring's memory back.  What has not been read is dropped
 * and counted.  The file descriptor changes: remove its handlers before.
 *
 * Returns: false if nothing was done, as CAP_NET_RAW is missing by now
 */
bool qio_channel_packet_detach(QIOChannelPacket *ioc);

/**
 * qio_channel_packet_is_empty:
 * @ioc: a capturing channel that is not active
 *
 * A ring hands frames over with a delay of milliseconds; until then there is
 * nothing to read, and no event.
 *
 * Returns: true if all that was captured has been read
 */
bool qio_channel_packet_is_empty(QIOChannelPacket *ioc);

/**
 * qio_channel_packet_recv_frame:
 * @ioc: a capturing channel
 * @frame: is filled in when a frame is returned
 * @errp: pointer to a NULL-initialized error object
 *
 * Take one frame from the kernel.
 *
 * Returns: 1 with a frame; 0 if one was dropped and counted, and more may
 * wait; QIO_CHANNEL_ERR_BLOCK if none waits; -1 if the interface is gone
 */
int qio_channel_packet_recv_frame(QIOChannelPacket *ioc,
                                  QIOChannelPacketFrame *frame,
                                  Error **errp);

/**
 * qio_channel_packet_get_fd:
 * @ioc: the channel
 *
 * Returns: the socket, to be polled; it remains the channel's
 */
int qio_channel_packet_get_fd(QIOChannelPacket *ioc);

/**
 * qio_channel_packet_get_ifname:
 * @ioc: the channel
 *
 * Returns: the interface's name when the channel was made, or when it was
 * looked at later; the channel's, and valid until it is looked at again
 */
const char *qio_channel_packet_get_ifname(QIOChannelPacket *ioc);

/**
 * QIOChannelPacketLink:
 * @QIO_CHANNEL_PACKET_LINK_UP: the interface can be used
 * @QIO_CHANNEL_PACKET_LINK_DOWN: it is there, but has not been brought up
 * @QIO_CHANNEL_PACKET_LINK_GONE: it was deleted, or moved to another network
 *     namespace, and the channel is of no more use
 */
typedef enum QIOChannelPacketLink {
    QIO_CHANNEL_PACKET_LINK_UP,
    QIO_CHANNEL_PACKET_LINK_DOWN,
    QIO_CHANNEL_PACKET_LINK_GONE,
} QIOChannelPacketLink;

/**
 * qio_channel_packet_get_link:
 * @ioc: the channel
 *
 * Look at the interface: at its name, too, which may have changed.
 *
 * Returns: its state
 */
QIOChannelPacketLink qio_channel_packet_get_link(QIOChannelPacket *ioc);

/**
 * qio_channel_packet_get_stats:
 * @ioc: the channel
 * @stats: is filled in
 */
void qio_channel_packet_get_stats(QIOChannelPacket *ioc,
                                  QIOChannelPacketStats *stats);

#endif /* QIO_CHANNEL_PACKET_H */
