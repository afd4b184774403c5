/*
 * Segmentation of GSO frames and completion of checksums
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#ifndef QIO_PACKET_GSO_H
#define QIO_PACKET_GSO_H

#include "standard-headers/linux/virtio_net.h"

/**
 * QIOPacketGso:
 * @max_len: bytes of the longest segment, never more than the frame has
 *
 * A GSO frame that is being cut.  It owns nothing and needs no clean-up, so
 * that it can live on the stack.  All but @max_len is private.
 */
typedef struct QIOPacketGso {
    size_t max_len;

    const uint8_t *frame;
    size_t len;
    struct virtio_net_hdr hdr;
    bool whole;                 /* does not need to be cut */
    bool ipv6;
    bool tcp;

    /* Offsets in @frame */
    size_t ip;
    size_t transport;
    size_t payload;

    /* Of the next segment */
    size_t pos;                 /* of its payload, in @frame */
    uint16_t ip_id;
    uint32_t seq;

    /* The pseudo header's sum without its length field */
    uint16_t pseudo;
} QIOPacketGso;

/**
 * qio_packet_gso_init:
 * @gso: is filled in
 * @hdr: what the host says of @frame, in host byte order
 * @frame: the frame from its destination MAC address on, VLAN tags in place.
 *     It must stay as it is until the last segment is made.
 * @len: bytes at @frame
 * @reason: on failure set to a constant phrase, such as "it is a UFO frame"
 *
 * Prepare to cut a GSO frame of TCP or UDP over IPv4 or IPv6 into the
 * segments that Linux would make of it.  Each of them will be complete in
 * itself, that is, its vnet header is all zero.
 *
 * Returns: false if the frame cannot be cut
 */
bool qio_packet_gso_init(QIOPacketGso *gso, const struct virtio_net_hdr *hdr,
                         const uint8_t *frame, size_t len,
                         const char **reason);

/**
 * qio_packet_complete_init:
 * @gso: is filled in
 * @hdr: what the host says of @frame, in host byte order
 * @frame: as for qio_packet_gso_init(), but it need not be a GSO frame
 * @len: bytes at @frame
 * @reason: on failure set to a constant phrase
 *
 * Prepare to make frames that are complete in themselves: segments of a GSO
 * frame, or else the frame itself with its checksum filled in.
 *
 * Returns: false if the frame cannot be cut, or if it is not a GSO frame and
 *     its checksum is outside the frame
 */
bool qio_packet_complete_init(QIOPacketGso *gso,
                              const struct virtio_net_hdr *hdr,
                              const uint8_t *frame, size_t len,
                              const char **reason);

/**
 * qio_packet_gso_matches:
 * @hdr: what the host says of @frame, in host byte order
 * @frame: a GSO frame from its destination MAC address on, VLAN tags in place
 * @len: bytes at @frame
 *
 * AF_PACKET has no name for a packet in a UDP tunnel: Linux 6.18 describes the
 * inner packet, and does not say so.
 *
 * Returns: false if what is to be cut is not the outer packet of @frame
 */
bool qio_packet_gso_matches(const struct virtio_net_hdr *hdr,
                            const uint8_t *frame, size_t len);

/**
 * qio_packet_gso_limit:
 * @gso: as qio_packet_gso_init() has left it when it returned true
 * @max_len: most bytes that a segment should have
 *
 * Make TCP's segments shorter than the sender meant them to be, if they are
 * too long: its stream may be cut anywhere.  UDP's datagrams stay as they are.
 */
void qio_packet_gso_limit(QIOPacketGso *gso, size_t max_len);

/**
 * qio_packet_gso_next:
 * @gso: as qio_packet_gso_init() or qio_packet_complete_init() has left it when
 *     it returned true
 * @out: room for @gso->max_len bytes, outside the frame
 *
 * Make the next segment.
 *
 * Returns: its length in bytes, or 0 when there are no more
 */
size_t qio_packet_gso_next(QIOPacketGso *gso, uint8_t *out);

/**
 * qio_packet_fill_checksum:
 * @hdr: what the host says of @frame, in host byte order
 * @frame: a frame that is not a GSO frame, from its destination MAC address
 *     on, VLAN tags in place
 * @len: bytes at @frame
 *
 * Fill in the checksum if @hdr says that this is left to do.
 *
 * Returns: false, having done nothing, if the checksum is outside the frame
 */
bool qio_packet_fill_checksum(const struct virtio_net_hdr *hdr,
                              uint8_t *frame, size_t len);

#endif /* QIO_PACKET_GSO_H */
