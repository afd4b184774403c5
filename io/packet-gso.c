/*
 * Segmentation of GSO frames and completion of checksums
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

/*
 * Does in software what the host has left to a network interface: it makes
 * the frames that its own software would have made, had the interface not
 * offered to do so.  A receiver that knows no vnet header can take these.
 *
 * A GSO frame is one packet with up to 64 KiB of payload, to be cut every
 * gso_size bytes:
 *
 *   | Ethernet, tags | IP, options | TCP or UDP | payload                 |
 *
 *   | headers                                   | gso_size |
 *   | headers, adjusted                         | gso_size |
 *   | headers, adjusted                         | rest  |
 *
 * What differs from segment to segment (verified against Linux 6.18, with all
 * of this in tests/unit/test-packet-gso.c):
 *   IPv4   total length; identification, which counts up; header checksum
 *   IPv6   payload length
 *   TCP    sequence number; PSH and FIN, only in the last; CWR, only in the
 *          first, whether VIRTIO_NET_HDR_GSO_ECN is set or not; checksum
 *   UDP    length; checksum
 *
 * Lengths come from the frame's own length, never from a header.  The vnet
 * header's hdr_len is a hint for allocators, and not looked at.
 *
 * Checksums: the field holds the sum of the pseudo header, with the length of
 * the frame as a whole.  The length of the segment takes the place of that,
 * which in ones' complement arithmetic is a subtraction and an addition.  So
 * what the sender has put there is kept, and a wrong sum stays wrong, as it
 * does in Linux.  In a TCP frame that has its checksum already, the pseudo
 * header's sum is made from the addresses.
 *
 * Frames whose payload is not longer than gso_size are passed whole, with
 * nothing changed but the checksum.
 */

#include "qemu/osdep.h"

#include <linux/if_ether.h>
#include <netinet/in.h>

#include "io/packet-gso.h"
#include "qemu/bswap.h"

/* Linux 6.18 cuts frames with as many tags, and no more */
#define VLAN_TAGS_MAX 7
#define VLAN_TAG_LEN 4

#define IPV4_HLEN 20
#define IPV4_LENGTH 2
#define IPV4_ID 4
#define IPV4_PROTOCOL 9
#define IPV4_CHECKSUM 10
#define IPV4_SOURCE 12

#define IPV6_HLEN 40
#define IPV6_LENGTH 4
#define IPV6_NEXT 6
#define IPV6_SOURCE 8
/* The first option in the header of hop-by-hop options */
#define IPV6_OPTION 2
#define IPV6_OPTION_JUMBO 0xc2

#define TCP_HLEN 20
#define TCP_SEQ 4
#define TCP_DATA_OFFSET 12
#define TCP_FLAGS 13
#define TCP_CHECKSUM 16

#define TCP_FIN 0x01
#define TCP_PSH 0x08
#define TCP_CWR 0x80

#define UDP_HLEN 8
#define UDP_LENGTH 4
#define UDP_CHECKSUM 6

static uint16_t sum_fold(uint64_t sum)
{
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/*
 * The ones' complement sum (RFC 1071) of @len bytes as big-endian 16-bit words.
 * The words may be summed up in any byte order, and two of them at a time, as
 * long as the carries are kept: each turn of the loop adds less than 2^33.
 */
static uint16_t sum_bytes(const uint8_t *data, size_t len)
{
    uint64_t even = 0, odd = 0, word;

    for (; len >= 2 * sizeof(word); len -= 2 * sizeof(word)) {
        word = ldq_he_p(data);
        even += (uint32_t)word + (word >> 32);
        word = ldq_he_p(data + sizeof(word));
        odd += (uint32_t)word + (word >> 32);
        data += 2 * sizeof(word);
    }
    even = (uint64_t)sum_fold(even) + sum_fold(odd);
    while (len) {
        size_t n = MIN(len, sizeof(word));

        word = 0;
        memcpy(&word, data, n);
        even += (uint32_t)word + (word >> 32);
        data += n;
        len -= n;
    }
    return be16_to_cpu(sum_fold(even));
}

/* Is there no checksum to fill in, or a place for it? */
static bool checksum_fits(const struct virtio_net_hdr *hdr, size_t len)
{
    return !(hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) ||
           hdr->csum_start + hdr->csum_offset + sizeof(uint16_t) <= len;
}

bool qio_packet_fill_checksum(const struct virtio_net_hdr *hdr,
                              uint8_t *frame, size_t len)
{
    size_t field = hdr->csum_start + hdr->csum_offset;
    uint16_t sum;

    if (!checksum_fits(hdr, len)) {
        return false;
    }
    if (!(hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)) {
        return true;
    }
    /*
     * The field holds the pseudo header's sum.  A checksum of 0 is sent as
     * 0xffff, for in UDP 0 means that there is none.
     */
    sum = ~sum_bytes(frame + hdr->csum_start, len - hdr->csum_start);
    stw_be_p(frame + field, sum ?: 0xffff);
    return true;
}

/* Find the IP header; return its ethertype, or 0 */
static uint16_t gso_find_ip(QIOPacketGso *gso)
{
    size_t type = offsetof(struct ethhdr, h_proto);
    int tags;

    for (tags = 0; tags <= VLAN_TAGS_MAX; tags++) {
        uint16_t proto;

        if (type + sizeof(proto) > gso->len) {
            break;
        }
        proto = lduw_be_p(gso->frame + type);
        if (proto != ETH_P_8021Q && proto != ETH_P_8021AD) {
            gso->ip = type + sizeof(proto);
            return proto;
        }
        type += VLAN_TAG_LEN;
    }
    return 0;
}

/* Find the transport header; return its protocol, or -1 */
static int gso_find_transport(QIOPacketGso *gso)
{
    const uint8_t *ip = gso->frame + gso->ip;
    size_t left = gso->len - gso->ip;
    size_t hlen = gso->ipv6 ? IPV6_HLEN : IPV4_HLEN;
    uint8_t proto;

    if (hlen > left) {
        return -1;
    }
    if (!gso->ipv6) {
        proto = ip[IPV4_PROTOCOL];
        hlen = (ip[0] & 0xf) * 4;
        if (hlen < IPV4_HLEN) {
            return -1;
        }
    } else {
        proto = ip[IPV6_NEXT];
        while (proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING ||
               proto == IPPROTO_DSTOPTS) {
            if (hlen + 2 > left) {
                return -1;
            }
            proto = ip[hlen];
            hlen += (ip[hlen + 1] + 1) * 8;
        }
    }
    if (hlen > left) {
        return -1;
    }
    gso->transport = gso->ip + hlen;
    return proto;
}

/* Find all headers, and see that they are what the vnet header says */
static bool gso_parse(QIOPacketGso *gso, size_t hlen, const char **reason)
{
    const struct virtio_net_hdr *hdr = &gso->hdr;
    uint8_t type = hdr->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    const uint8_t *transport;
    size_t max;

    switch (gso_find_ip(gso)) {
    case ETH_P_IP:
        gso->ipv6 = false;
        break;
    case ETH_P_IPV6:
        gso->ipv6 = true;
        break;
    default:
        *reason = "it is a GSO frame of neither IPv4 nor IPv6";
        return false;
    }
    if (type == (gso->ipv6 ? VIRTIO_NET_HDR_GSO_TCPV4 :
                             VIRTIO_NET_HDR_GSO_TCPV6)) {
        *reason = "it is a GSO frame of another IP version than announced";
        return false;
    }
    if (gso_find_transport(gso) != (gso->tcp ? IPPROTO_TCP : IPPROTO_UDP)) {
        *reason = "it is a GSO frame of another protocol than announced";
        return false;
    }
    if (gso->transport + hlen > gso->len) {
        *reason = "it is a GSO frame without payload";
        return false;
    }
    if ((hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) &&
        hdr->csum_start != gso->transport) {
        *reason = "it is a GSO frame with a wrong checksum start";
        return false;
    }

    transport = gso->frame + gso->transport;
    if (gso->tcp) {
        hlen = (transport[TCP_DATA_OFFSET] >> 4) * 4;
        if (hlen < TCP_HLEN || gso->transport + hlen > gso->len) {
            *reason = "it is a GSO frame with a malformed TCP header";
            return false;
        }
        gso->seq = ldl_be_p(transport + TCP_SEQ);
    }
    gso->payload = gso->transport + hlen;
    gso->max_len = gso->payload + hdr->gso_size;
    if (gso->len <= gso->max_len) {
        gso->whole = true;
        gso->max_len = gso->len;
        return true;
    }

    max = UINT16_MAX + (gso->ipv6 ? IPV6_HLEN : 0);
    if (gso->max_len - gso->ip > max) {
        *reason = "it is a GSO frame with segments that are too long for IP";
        return false;
    }
    /* Its option with the length would have to be removed from each segment */
    if (gso->ipv6 && gso->len - gso->ip > max &&
        gso->frame[gso->ip + IPV6_NEXT] == IPPROTO_HOPOPTS &&
        gso->frame[gso->ip + IPV6_HLEN + IPV6_OPTION] == IPV6_OPTION_JUMBO) {
        *reason = "it is an IPv6 jumbogram";
        return false;
    }
    return true;
}

/* What does not change from segment to segment in the pseudo header's sum */
static uint16_t gso_pseudo_sum(const QIOPacketGso *gso)
{
    const uint8_t *ip = gso->frame + gso->ip;
    const uint8_t *transport = gso->frame + gso->transport;
    uint16_t length;

    if (!(gso->hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)) {
        return sum_fold(IPPROTO_TCP +
                        (uint64_t)(gso->ipv6 ?
                                   sum_bytes(ip + IPV6_SOURCE, 2 * 16) :
                                   sum_bytes(ip + IPV4_SOURCE, 2 * 4)));
    }
    if (gso->tcp) {
        length = ~sum_fold(gso->len - gso->transport);
        return sum_fold((uint64_t)lduw_be_p(transport + TCP_CHECKSUM) + length);
    }
    /* Unlike TCP's, UDP's header has the length that is in the sum */
    length = ~lduw_be_p(transport + UDP_LENGTH);
    return sum_fold((uint64_t)lduw_be_p(transport + UDP_CHECKSUM) + length);
}

bool qio_packet_gso_matches(const struct virtio_net_hdr *hdr,
                            const uint8_t *frame, size_t len)
{
    uint8_t type = hdr->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    bool udp = type == VIRTIO_NET_HDR_GSO_UDP ||
               type == VIRTIO_NET_HDR_GSO_UDP_L4;
    QIOPacketGso gso = { .frame = frame, .len = len };
    uint16_t ethertype = gso_find_ip(&gso);

    gso.ipv6 = ethertype == ETH_P_IPV6;
    return (gso.ipv6 || ethertype == ETH_P_IP) &&
           gso_find_transport(&gso) == (udp ? IPPROTO_UDP : IPPROTO_TCP) &&
           (!(hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) ||
            hdr->csum_start == gso.transport);
}

bool qio_packet_gso_init(QIOPacketGso *gso, const struct virtio_net_hdr *hdr,
                         const uint8_t *frame, size_t len,
                         const char **reason)
{
    bool needs_csum = hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
    size_t hlen;

    *gso = (QIOPacketGso) {
        .max_len = len,
        .frame = frame,
        .len = len,
        .hdr = *hdr,
    };

    if (hdr->gso_type & VIRTIO_NET_HDR_GSO_UDP_TUNNEL) {
        *reason = "it is a GSO frame in a UDP tunnel";
        return false;
    }
    switch (hdr->gso_type) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV6:
    case VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN:
    case VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN:
        gso->tcp = true;
        hlen = TCP_HLEN;
        break;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        hlen = UDP_HLEN;
        break;
    case VIRTIO_NET_HDR_GSO_UDP:
    case VIRTIO_NET_HDR_GSO_UDP | VIRTIO_NET_HDR_GSO_ECN:
        *reason = "it is a UFO frame";
        return false;
    default:
        *reason = "it is a GSO frame of an unknown type";
        return false;
    }
    if (!hdr->gso_size) {
        *reason = "it is a GSO frame without a segment size";
        return false;
    }
    if (needs_csum ?
        hdr->csum_offset != (gso->tcp ? TCP_CHECKSUM : UDP_CHECKSUM) :
        !gso->tcp) {
        *reason = "it is a GSO frame with a wrong checksum offset";
        return false;
    }

    /* A frame that is not cut is none of our business, but for its checksum */
    if (needs_csum) {
        size_t payload = hdr->csum_start + hlen;

        if (payload > len) {
            *reason = "it is a GSO frame without payload";
            return false;
        }
        if (len - payload <= hdr->gso_size) {
            gso->whole = true;
            return true;
        }
    }

    if (!gso_parse(gso, hlen, reason)) {
        return false;
    }
    if (!gso->whole) {
        gso->pos = gso->payload;
        if (!gso->ipv6) {
            gso->ip_id = lduw_be_p(frame + gso->ip + IPV4_ID);
        }
        gso->pseudo = gso_pseudo_sum(gso);
    }
    return true;
}

bool qio_packet_complete_init(QIOPacketGso *gso,
                              const struct virtio_net_hdr *hdr,
                              const uint8_t *frame, size_t len,
                              const char **reason)
{
    if (hdr->gso_type) {
        return qio_packet_gso_init(gso, hdr, frame, len, reason);
    }
    if (!checksum_fits(hdr, len)) {
        *reason = "its checksum is outside the frame";
        return false;
    }
    *gso = (QIOPacketGso) {
        .max_len = len,
        .frame = frame,
        .len = len,
        .hdr = *hdr,
        .whole = true,
    };
    return true;
}

void qio_packet_gso_limit(QIOPacketGso *gso, size_t max_len)
{
    struct virtio_net_hdr hdr = gso->hdr;
    const char *reason;
    QIOPacketGso cut;

    if (!gso->tcp || gso->max_len <= max_len) {
        return;
    }
    /* A frame that was to be passed whole has not been looked at yet */
    hdr.gso_size = 1;
    if (qio_packet_gso_init(&cut, &hdr, gso->frame, gso->len, &reason) &&
        !cut.whole && cut.payload < max_len) {
        cut.max_len = max_len;
        cut.hdr.gso_size = max_len - cut.payload;
        *gso = cut;
    }
}

static size_t gso_next_whole(QIOPacketGso *gso, uint8_t *out)
{
    bool ok;

    if (gso->pos == gso->len) {
        return 0;
    }
    gso->pos = gso->len;
    memcpy(out, gso->frame, gso->len);
    ok = qio_packet_fill_checksum(&gso->hdr, out, gso->len);
    assert(ok);
    return gso->len;
}

size_t qio_packet_gso_next(QIOPacketGso *gso, uint8_t *out)
{
    size_t payload = MIN(gso->len - gso->pos, gso->hdr.gso_size);
    size_t len = gso->payload + payload;
    uint8_t *ip = out + gso->ip;
    uint8_t *transport = out + gso->transport;
    uint8_t *checksum;
    uint16_t sum;

    if (gso->whole) {
        return gso_next_whole(gso, out);
    }
    if (!payload) {
        return 0;
    }
    memcpy(out, gso->frame, gso->payload);
    memcpy(out + gso->payload, gso->frame + gso->pos, payload);

    if (gso->ipv6) {
        stw_be_p(ip + IPV6_LENGTH, len - gso->ip - IPV6_HLEN);
    } else {
        stw_be_p(ip + IPV4_LENGTH, len - gso->ip);
        stw_be_p(ip + IPV4_ID, gso->ip_id++);
        stw_be_p(ip + IPV4_CHECKSUM, 0);
        sum = ~sum_bytes(ip, (ip[0] & 0xf) * 4);
        stw_be_p(ip + IPV4_CHECKSUM, sum);
    }

    if (gso->tcp) {
        stl_be_p(transport + TCP_SEQ, gso->seq);
        gso->seq += payload;
        if (gso->pos > gso->payload) {
            transport[TCP_FLAGS] &= ~TCP_CWR;
        }
        if (gso->pos + payload < gso->len) {
            transport[TCP_FLAGS] &= ~(TCP_PSH | TCP_FIN);
        }
        checksum = transport + TCP_CHECKSUM;
    } else {
        stw_be_p(transport + UDP_LENGTH, len - gso->transport);
        checksum = transport + UDP_CHECKSUM;
    }

    len -= gso->transport;
    stw_be_p(checksum, sum_fold((uint64_t)gso->pseudo + len));
    sum = ~sum_bytes(transport, len);
    stw_be_p(checksum, gso->tcp ? sum : sum ?: 0xffff);

    gso->pos += payload;
    return gso->transport + len;
}
