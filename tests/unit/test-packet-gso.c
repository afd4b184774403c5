/*
 * Segmentation of GSO frames and completion of checksums: test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Three parts:
 *
 *   - frames made by hand: what a guest must get, byte by byte, with the sums
 *     spelled out; frames that must be refused;
 *   - 20,000 frames and vnet headers with random damage, in memory that ends
 *     where the frame ends: nothing outside of it is read or written;
 *   - the same traffic through Linux, as root.  A TAP without offloads makes
 *     the kernel do what we do:
 *
 *         random frame --+--> packet socket -> kernel's GSO -> TAP --+
 *                        |                                           = ?
 *                        +--> qio_packet_gso_next() -----------------+
 *
 *     GSO frames of all forms, frames with damage, and frames that only lack
 *     a checksum.  Wherever the kernel delivers something, it must be the
 *     same as ours.
 *
 * The random part is reproducible: PACKET_GSO_SEED sets the seed, which is
 * printed.  "-m perf" adds a measurement of the speed.
 */

#include "qemu/osdep.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/utsname.h>

#include "io/packet-gso.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"

/* Room for every header and 64 KiB, as in a QIOChannelPacket */
#define FRAME_MAX (4096 + 65536)

/* Nothing that the kernel does takes this long, in milliseconds */
#define TIME_LIMIT 120000

#define BOUNDS_FRAMES 20000
#define KERNEL_GSO_FRAMES 20000
#define KERNEL_DAMAGED_FRAMES 20000
#define KERNEL_CHECKSUM_FRAMES 5000

#define MACS "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01"
#define MACS_LEN 12

static uint32_t seed;

/* A frame, as it comes from the host */
typedef struct Frame {
    struct virtio_net_hdr hdr;
    uint8_t data[FRAME_MAX];
    size_t len;
    /* Offsets, for who wants to change something */
    size_t transport;
    size_t payload;
} Frame;

/* What becomes of it */
typedef struct Segments {
    bool accepted;
    const char *reason;         /* if it is not */
    GByteArray *data;           /* all of them */
    GArray *ends;               /* offset of the end of each: size_t */
} Segments;

static void segments_init(Segments *segs)
{
    segs->data = g_byte_array_new();
    segs->ends = g_array_new(false, false, sizeof(size_t));
}

static void segments_cleanup(Segments *segs)
{
    g_byte_array_unref(segs->data);
    g_array_unref(segs->ends);
}

static void segments_clear(Segments *segs)
{
    segs->accepted = false;
    segs->reason = NULL;
    g_byte_array_set_size(segs->data, 0);
    g_array_set_size(segs->ends, 0);
}

static const uint8_t *segments_get(Segments *segs, unsigned i, size_t *len)
{
    size_t *ends = (size_t *)segs->ends->data;
    size_t start = i ? ends[i - 1] : 0;

    *len = ends[i] - start;
    return segs->data->data + start;
}

static void segments_append(Segments *segs, const uint8_t *data, size_t len)
{
    g_byte_array_append(segs->data, data, len);
    len = segs->data->len;
    g_array_append_val(segs->ends, len);
}

/* Do with @frame what is to be done, by the code under test */
static void complete(Frame *frame, Segments *segs)
{
    static uint8_t out[FRAME_MAX];
    QIOPacketGso gso;
    size_t len;

    segments_clear(segs);
    segs->accepted = qio_packet_complete_init(&gso, &frame->hdr, frame->data,
                                              frame->len, &segs->reason);
    if (segs->accepted) {
        while ((len = qio_packet_gso_next(&gso, out))) {
            g_assert_cmpint(len, <=, gso.max_len);
            segments_append(segs, out, len);
        }
        g_assert_cmpint(qio_packet_gso_next(&gso, out), ==, 0);
    }
}


/* By hand */

#define IP_ADDRS "\x0a\x00\x00\x01\x0a\x00\x00\x02"

/* 10.0.0.1 to 10.0.0.2, protocol 6; total length, id and checksum vary */
#define IPV4_TCP(len, id, sum)                                          \
    "\x08\x00" "\x45\x00\x00" len id "\x40\x00\x40\x06" sum IP_ADDRS

#define IPV4_UDP(len, id, sum)                                          \
    "\x08\x00" "\x45\x00\x00" len id "\x40\x00\x40\x11" sum IP_ADDRS

/* Port 0x1234 to 0x5678, acknowledgement 5, window 0x100 */
#define TCP(seq, flags, sum)                                            \
    "\x12\x34\x56\x78" seq "\x00\x00\x00\x05\x50" flags "\x01\x00" sum      \
    "\x00\x00"

#define UDP(len, sum) "\x12\x34\x56\x78\x00" len sum

/* fd00::1 to fd00::2, with one header of destination options, then UDP */
#define IPV6_DSTOPTS_UDP(len)                                           \
    "\x86\xdd" "\x60\x00\x00\x00\x00" len "\x3c\x40"                    \
    "\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"  \
    "\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"  \
    "\x11\x00\x01\x04\x00\x00\x00\x00"

#define TAG "\x81\x00\x00\x05"

#define BYTES(s) { (const uint8_t *)(s), sizeof(s) - 1 }

typedef struct Bytes {
    const uint8_t *data;
    size_t len;
} Bytes;

typedef struct Example {
    const char *name;
    struct virtio_net_hdr hdr;
    Bytes frame;
    Bytes segments[4];
} Example;

#define HDR(type, size, start, offset) {                                \
    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,                               \
    .gso_type = VIRTIO_NET_HDR_GSO_##type,                              \
    .gso_size = size,                                                   \
    .csum_start = start,                                                \
    .csum_offset = offset,                                              \
}

/*
 * 14 bytes of Ethernet, 20 of IPv4, 20 of TCP, and 5 bytes of payload, which
 * make a checksum start of 34.  All counters are about to wrap around, and
 * the flags are CWR, ACK, PSH and FIN.
 *
 * IP checksums:
 *   4500 + 002a + ffff + 4000 + 4006 + 0a00 + 0001 + 0a00 + 0002 = 1d932,
 *   d933, ~ 26cc; with id 0000 the same; with length 0029 and id 0001, too
 *
 * Sum of the pseudo header, of the frame (length 25 = 0019), and a segment:
 *   0a00 + 0001 + 0a00 + 0002 + 0006 + 0019 = 1422, with 0016 141f,
 *   with 0015 141e
 *
 * TCP checksums:
 *   1234 + 5678 + ffff + fffe + 0000 + 0005 + 5090 + 0100 + 141f + 6162 =
 *   32fbf, 2fc2, ~ d03d
 *   1234 + 5678 + 0000 + 0000 + 0000 + 0005 + 5010 + 0100 + 141f + 6364 =
 *   13144, 3145, ~ ceba
 *   1234 + 5678 + 0000 + 0002 + 0000 + 0005 + 5019 + 0100 + 141e + 6500 =
 *   132ea, 32eb, ~ cd14
 */
#define TCP4_FRAME                                                      \
    BYTES(MACS IPV4_TCP("\x2d", "\xff\xff", "\x00\x00")                 \
          TCP("\xff\xff\xff\xfe", "\x99", "\x14\x22") "abcde")
#define TCP4_SEGMENTS {                                                 \
    BYTES(MACS IPV4_TCP("\x2a", "\xff\xff", "\x26\xcc")                 \
          TCP("\xff\xff\xff\xfe", "\x90", "\xd0\x3d") "ab"),            \
    BYTES(MACS IPV4_TCP("\x2a", "\x00\x00", "\x26\xcc")                 \
          TCP("\x00\x00\x00\x00", "\x10", "\xce\xba") "cd"),            \
    BYTES(MACS IPV4_TCP("\x29", "\x00\x01", "\x26\xcc")                 \
          TCP("\x00\x00\x00\x02", "\x19", "\xcd\x14") "e"),             \
}

static const Example examples[] = {
    {
        .name = "tcp4",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .frame = TCP4_FRAME,
        .segments = TCP4_SEGMENTS,
    }, {
        /* That there is CWR in the frame changes nothing */
        .name = "tcp4 ecn",
        .hdr = HDR(TCPV4 | VIRTIO_NET_HDR_GSO_ECN, 2, 34, 16),
        .frame = TCP4_FRAME,
        .segments = TCP4_SEGMENTS,
    }, {
        /* With its checksum, ~ 1234 + 5678 + ... = 5555, or any other value */
        .name = "tcp4 with checksum",
        .hdr = { .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 2 },
        .frame =
            BYTES(MACS IPV4_TCP("\x2d", "\xff\xff", "\x00\x00")
                  TCP("\xff\xff\xff\xfe", "\x99", "\x55\x55") "abcde"),
        .segments = TCP4_SEGMENTS,
    }, {
        /*
         * fd00 + 0001 + fd00 + 0002 + 0011 + 000d = 1fa21, fa22; with 000a,
         * the length of the segment, fa1f; with 0009 fa1e.  The payload is
         * chosen for a first sum of 0, which is ffff:
         * 1234 + 5678 + 000a + fa1f + 9d29 = 1fffe, ffff
         * 1234 + 5678 + 000a + fa1f + 6364 = 1c639, c63a, ~ 39c5
         * 1234 + 5678 + 0009 + fa1e + 6500 = 1c7d3, c7d4, ~ 382b
         */
        .name = "udp6 with options and tag",
        .hdr = HDR(UDP_L4, 2, 66, 6),
        .frame =
            BYTES(MACS TAG IPV6_DSTOPTS_UDP("\x15") UDP("\x0d", "\xfa\x22")
                  "\x9d\x29" "cde"),
        .segments = {
            BYTES(MACS TAG IPV6_DSTOPTS_UDP("\x12") UDP("\x0a", "\xff\xff")
                  "\x9d\x29"),
            BYTES(MACS TAG IPV6_DSTOPTS_UDP("\x12") UDP("\x0a", "\x39\xc5")
                  "cd"),
            BYTES(MACS TAG IPV6_DSTOPTS_UDP("\x11") UDP("\x09", "\x38\x2b")
                  "e"),
        },
    }, {
        /*
         * Fits into one segment: nothing changes but the checksum, which is
         * 1234 + 5678 + 000a + 141f + ... in the other examples; here
         * 0a00 + 0001 + 0a00 + 0002 + 0011 + 000a = 141e,
         * 1234 + 5678 + 000a + 141e + 6162 = de36, ~ 21c9
         */
        .name = "udp4 whole",
        .hdr = HDR(UDP_L4, 2, 34, 6),
        .frame =
            BYTES(MACS IPV4_UDP("\x1e", "\x00\x07", "\x12\x34")
                  UDP("\x0a", "\x14\x1e") "ab"),
        .segments = {
            BYTES(MACS IPV4_UDP("\x1e", "\x00\x07", "\x12\x34")
                  UDP("\x0a", "\x21\xc9") "ab"),
        },
    },
};

static const Example checksum_examples[] = {
    {
        /* As in the first segment of the first example */
        .name = "checksum",
        .hdr = HDR(NONE, 0, 34, 16),
        .frame =
            BYTES(MACS IPV4_TCP("\x2a", "\xff\xff", "\x12\x34")
                  TCP("\xff\xff\xff\xfe", "\x90", "\x14\x1f") "ab"),
        .segments = {
            BYTES(MACS IPV4_TCP("\x2a", "\xff\xff", "\x12\x34")
                  TCP("\xff\xff\xff\xfe", "\x90", "\xd0\x3d") "ab"),
        },
    }, {
        /* d03d more, to make it ffff, ~ 0000; not for UDP alone */
        .name = "checksum of zero",
        .hdr = HDR(NONE, 0, 34, 16),
        .frame =
            BYTES(MACS IPV4_TCP("\x2c", "\xff\xff", "\x12\x34")
                  TCP("\xff\xff\xff\xfe", "\x90", "\x14\x1f") "ab\xd0\x3d"),
        .segments = {
            BYTES(MACS IPV4_TCP("\x2c", "\xff\xff", "\x12\x34")
                  TCP("\xff\xff\xff\xfe", "\x90", "\xff\xff") "ab\xd0\x3d"),
        },
    }, {
        .name = "no checksum",
        .frame = TCP4_FRAME,
        .segments = { TCP4_FRAME },
    },
};

static void test_example(const void *opaque)
{
    const Example *e = opaque;
    static Frame frame;
    Segments segs;
    int i;

    frame.hdr = e->hdr;
    frame.len = e->frame.len;
    memcpy(frame.data, e->frame.data, frame.len);
    segments_init(&segs);
    complete(&frame, &segs);
    g_assert_true(segs.accepted);
    for (i = 0; e->segments[i].data; i++) {
        const uint8_t *data;
        size_t len;

        g_assert_cmpint(i, <, segs.ends->len);
        data = segments_get(&segs, i, &len);
        g_assert_cmpmem(data, len, e->segments[i].data, e->segments[i].len);
    }
    g_assert_cmpint(segs.ends->len, ==, i);
    /* It is still the caller's */
    g_assert_cmpmem(frame.data, frame.len, e->frame.data, e->frame.len);
    segments_cleanup(&segs);
}

/* The first example, with one thing wrong */
typedef struct Refusal {
    const char *name;
    const char *reason;
    struct virtio_net_hdr hdr;
    size_t offset;              /* in the frame, if not 0 */
    uint8_t byte;               /* to be there */
    size_t len;                 /* of the frame, if not 0 */
} Refusal;

static const Refusal refusals[] = {
    {
        .name = "none",
        .reason = "unknown type",
        .hdr = HDR(NONE, 2, 34, 16),
    }, {
        .name = "none with ecn",
        .reason = "unknown type",
        .hdr = HDR(ECN, 2, 34, 16),
    }, {
        .name = "unknown type",
        .reason = "unknown type",
        .hdr = { .gso_type = 2, .gso_size = 2 },
    }, {
        .name = "ufo",
        .reason = "UFO",
        .hdr = HDR(UDP, 2, 34, 6),
    }, {
        .name = "udp with ecn",
        .reason = "unknown type",
        .hdr = HDR(UDP_L4 | VIRTIO_NET_HDR_GSO_ECN, 2, 34, 6),
    }, {
        .name = "tunnel ipv4",
        .reason = "tunnel",
        .hdr = HDR(TCPV4 | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4, 2, 34, 16),
    }, {
        .name = "tunnel ipv6",
        .reason = "tunnel",
        .hdr = HDR(TCPV4 | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6, 2, 34, 16),
    }, {
        .name = "no segment size",
        .reason = "without a segment size",
        .hdr = HDR(TCPV4, 0, 34, 16),
    }, {
        .name = "tcp checksum offset",
        .reason = "checksum offset",
        .hdr = HDR(TCPV4, 2, 34, 6),
    }, {
        .name = "udp checksum offset",
        .reason = "checksum offset",
        .hdr = HDR(UDP_L4, 2, 34, 16),
    }, {
        .name = "udp with checksum",
        .reason = "checksum offset",
        .hdr = { .gso_type = VIRTIO_NET_HDR_GSO_UDP_L4, .gso_size = 2 },
    }, {
        .name = "checksum start before tcp",
        .reason = "checksum start",
        .hdr = HDR(TCPV4, 2, 32, 16),
    }, {
        .name = "checksum start behind tcp",
        .reason = "checksum start",
        .hdr = HDR(TCPV4, 2, 36, 16),
    }, {
        .name = "checksum start outside",
        .reason = "without payload",
        .hdr = HDR(TCPV4, 2, 65535, 16),
    }, {
        .name = "other protocol",
        .reason = "another protocol",
        .hdr = HDR(UDP_L4, 2, 34, 6),
    }, {
        .name = "other ip version",
        .reason = "another IP version",
        .hdr = HDR(TCPV6, 2, 34, 16),
    }, {
        .name = "not ip",
        .reason = "neither IPv4 nor IPv6",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .offset = 12,
        .byte = 0x91,
    }, {
        .name = "short ip header",
        .reason = "another protocol",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .offset = 14,
        .byte = 0x44,
    }, {
        .name = "long ip header",
        .reason = "another protocol",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .offset = 14,
        .byte = 0x4f,
    }, {
        .name = "short tcp header",
        .reason = "malformed TCP header",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .offset = 46,
        .byte = 0x40,
    }, {
        .name = "long tcp header",
        .reason = "malformed TCP header",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .offset = 46,
        .byte = 0x70,
    }, {
        .name = "no tcp header",
        .reason = "without payload",
        .hdr = HDR(TCPV4, 2, 34, 16),
        .len = 53,
    }, {
        .name = "no ip header",
        .reason = "another protocol",
        .hdr = { .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 2 },
        .len = 33,
    }, {
        .name = "no ethertype",
        .reason = "neither IPv4 nor IPv6",
        .hdr = { .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 2 },
        .len = 13,
    },
};

static void test_refusal(const void *opaque)
{
    const Refusal *r = opaque;
    const Bytes *example = &examples[0].frame;
    g_autofree uint8_t *frame = g_memdup2(example->data, example->len);
    const char *reason = NULL;
    QIOPacketGso gso;

    if (r->offset) {
        frame[r->offset] = r->byte;
    }
    g_assert_false(qio_packet_gso_init(&gso, &r->hdr, frame,
                                       r->len ?: example->len, &reason));
    g_assert_nonnull(reason);
    g_assert_nonnull(strstr(reason, r->reason));
}

/* Not a GSO frame: the checksum must have a place in it, if there is one */
static void test_refusal_outside(void)
{
    const Bytes *example = &examples[0].frame;
    struct virtio_net_hdr hdr = HDR(NONE, 0, example->len - 2, 0);
    const char *reason = NULL;
    QIOPacketGso gso;

    g_assert_true(qio_packet_complete_init(&gso, &hdr, example->data,
                                           example->len, &reason));
    hdr.csum_offset++;
    g_assert_false(qio_packet_complete_init(&gso, &hdr, example->data,
                                            example->len, &reason));
    g_assert_nonnull(strstr(reason, "outside the frame"));
    hdr.flags = 0;
    g_assert_true(qio_packet_complete_init(&gso, &hdr, example->data,
                                           example->len, &reason));
}

/* IP knows no packets over 64 KiB */
static void test_refusal_long(void)
{
    static Frame frame;
    const char *reason = NULL;
    QIOPacketGso gso;

    frame.hdr = (struct virtio_net_hdr) HDR(TCPV4, 65496, 34, 16);
    memcpy(frame.data, examples[0].frame.data, 54);
    g_assert_false(qio_packet_gso_init(&gso, &frame.hdr, frame.data, 66000,
                                       &reason));
    g_assert_nonnull(strstr(reason, "too long"));
    /* One byte less makes 65535 bytes of IP */
    frame.hdr.gso_size--;
    g_assert_true(qio_packet_gso_init(&gso, &frame.hdr, frame.data, 66000,
                                      &reason));
    g_assert_cmpint(gso.max_len, ==, 14 + 65535);
}

/* TCP over IPv6, with the hop-by-hop option of a packet over 64 KiB */
static void test_refusal_jumbogram(void)
{
    static const Bytes headers =
        BYTES(MACS "\x86\xdd" "\x60\x00\x00\x00\x00\x00\x00\x40"
              "\xfd\x00\x00\x00\x00\x00\x00\x00"
              "\x00\x00\x00\x00\x00\x00\x00\x01"
              "\xfd\x00\x00\x00\x00\x00\x00\x00"
              "\x00\x00\x00\x00\x00\x00\x00\x02"
              "\x06\x00\xc2\x04\x00\x01\x00\x01"
              TCP("\x00\x00\x00\x00", "\x10", "\x00\x00"));
    static Frame frame;
    const char *reason = NULL;
    QIOPacketGso gso;

    frame.hdr = (struct virtio_net_hdr) HDR(TCPV6, 1440, 62, 16);
    memcpy(frame.data, headers.data, headers.len);
    g_assert_false(qio_packet_gso_init(&gso, &frame.hdr, frame.data,
                                       14 + 40 + 65536, &reason));
    g_assert_nonnull(strstr(reason, "jumbogram"));
    /* In a shorter frame the option means nothing */
    g_assert_true(qio_packet_gso_init(&gso, &frame.hdr, frame.data,
                                      14 + 40 + 65535, &reason));
}

/* Byte by byte: the sum of big-endian words, and its complement */
static uint16_t simple_checksum(const uint8_t *data, size_t len)
{
    uint32_t sum = 0;
    size_t i;

    for (i = 0; i < len; i++) {
        sum += data[i] << (i % 2 ? 0 : 8);
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return ~sum;
}

/* All lengths, alignments, and a sum with many carries */
static void test_checksum(void)
{
    struct virtio_net_hdr hdr = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM };
    uint8_t buf[512], expect[512];
    size_t len;
    int align, i;

    for (len = 2; len < 400; len++) {
        for (align = 0; align < 9; align++) {
            uint16_t sum;

            for (i = 0; i < sizeof(buf); i++) {
                buf[i] = len % 3 ? 0xff - i * len % 7 : i * len;
            }
            hdr.csum_start = len % 11;
            hdr.csum_offset = len % 5;
            memcpy(expect, buf, sizeof(buf));
            if (hdr.csum_start + hdr.csum_offset + 2 > len) {
                g_assert_false(qio_packet_fill_checksum(&hdr, buf + align,
                                                        len));
            } else {
                sum = simple_checksum(buf + align + hdr.csum_start,
                                      len - hdr.csum_start);
                stw_be_p(expect + align + hdr.csum_start + hdr.csum_offset,
                         sum ?: 0xffff);
                g_assert_true(qio_packet_fill_checksum(&hdr, buf + align,
                                                       len));
            }
            g_assert_cmpmem(buf, sizeof(buf), expect, sizeof(expect));
        }
    }

    /* Nothing to do */
    hdr.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    hdr.csum_start = 65535;
    memcpy(expect, buf, sizeof(buf));
    g_assert_true(qio_packet_fill_checksum(&hdr, buf, sizeof(buf)));
    g_assert_cmpmem(buf, sizeof(buf), expect, sizeof(expect));
}


/* Random frames */

static uint32_t below(GRand *rand, uint32_t end)
{
    return g_rand_int(rand) % end;
}

static bool one_in(GRand *rand, uint32_t n)
{
    return below(rand, n) == 0;
}

static void random_bytes(GRand *rand, uint8_t *data, size_t len)
{
    size_t i;

    for (i = 0; i < len; i += 4) {
        uint32_t word = g_rand_int(rand);

        memcpy(data + i, &word, MIN(4, len - i));
    }
}

static uint8_t *add(Frame *frame, size_t len)
{
    uint8_t *p = frame->data + frame->len;

    frame->len += len;
    g_assert_cmpint(frame->len, <=, FRAME_MAX);
    return p;
}

static uint8_t *add_random(GRand *rand, Frame *frame, size_t len)
{
    uint8_t *p = add(frame, len);

    random_bytes(rand, p, len);
    return p;
}

/* IPv6 headers up to the transport header; return the sum of addresses */
static uint32_t random_ipv6(GRand *rand, Frame *frame, uint8_t proto)
{
    static const uint8_t ext[] = { IPPROTO_DSTOPTS, IPPROTO_ROUTING };
    uint8_t *p = add_random(rand, frame, 40);
    uint8_t *next = p + 6;
    uint32_t sum = (uint16_t)~simple_checksum(p + 8, 32);
    int n = one_in(rand, 2) ? below(rand, 4) : 0;
    int i;

    p[0] = 0x60;
    for (i = 0; i < n; i++) {
        bool first = i == 0 && one_in(rand, 3);
        bool jumbo = first && one_in(rand, 3);
        uint8_t words = !jumbo && one_in(rand, 4) ? below(rand, 20) : 0;

        *next = first ? IPPROTO_HOPOPTS :
                one_in(rand, 100) ? IPPROTO_FRAGMENT : ext[below(rand, 2)];
        p = add_random(rand, frame, (words + 1) * 8);
        p[1] = words;
        next = p;
        if (jumbo) {
            /* The only option; Linux would have no more headers in that case */
            p[2] = 0xc2;
            p[3] = 4;
            break;
        }
    }
    *next = proto;
    return sum;
}

static uint32_t random_ipv4(GRand *rand, Frame *frame, uint8_t proto)
{
    size_t hlen = one_in(rand, 3) ? 20 + 4 * below(rand, 11) : 20;
    uint8_t *p = add_random(rand, frame, hlen);

    p[0] = 0x40 | hlen / 4;
    p[6] &= 0x40;
    p[7] = 0;
    p[9] = proto;
    if (one_in(rand, 10)) {
        stw_be_p(p + 4, 0xffff - below(rand, 4));
    }
    return (uint16_t)~simple_checksum(p + 12, 8);
}

static uint16_t random_gso_size(GRand *rand)
{
    switch (below(rand, 8)) {
    case 0:
        return 1 + below(rand, 16);
    case 1:
        return 17 + below(rand, 200);
    case 2:
        return 536;
    case 3:
        return 1220 + below(rand, 241);
    case 4:
        return 1448;
    case 5:
        return 8960;
    case 6:
        return 1 + below(rand, 65534);
    default:
        return 200 + below(rand, 2000);
    }
}

static size_t random_payload(GRand *rand, size_t gso_size)
{
    switch (below(rand, 6)) {
    case 0:
        return 1 + below(rand, 16);
    case 1:
        return 1 + below(rand, 3000);
    case 2:
        return gso_size * (1 + below(rand, 9)) + below(rand, 3) - 1;
    case 3:
        return 64000 + below(rand, 5000);
    case 4:
        return 1 + below(rand, 65535);
    default:
        return gso_size * (1 + below(rand, 10)) + below(rand, gso_size);
    }
}

/* A frame that a sender could have made, but for a few odd fields */
static void random_frame(GRand *rand, Frame *frame)
{
    bool ipv6 = one_in(rand, 2);
    bool tcp = !one_in(rand, 3);
    int tags = !one_in(rand, 200) ? MAX(below(rand, 6), 2) - 2 :
               below(rand, 10);
    size_t gso_size = random_gso_size(rand);
    size_t payload = random_payload(rand, gso_size);
    size_t max = tcp ? (one_in(rand, 500) ? 10000 : 200) : 128;
    size_t ip, tail, csum_offset;
    uint32_t sum;
    uint8_t *p;

    frame->len = 0;
    memcpy(add(frame, MACS_LEN), MACS, MACS_LEN);
    while (tags--) {
        p = add_random(rand, frame, 4);
        stw_be_p(p, one_in(rand, 2) ? ETH_P_8021Q : ETH_P_8021AD);
    }
    stw_be_p(add(frame, 2), ipv6 ? ETH_P_IPV6 : ETH_P_IP);

    ip = frame->len;
    if (ipv6) {
        sum = random_ipv6(rand, frame, tcp ? IPPROTO_TCP : IPPROTO_UDP);
    } else {
        sum = random_ipv4(rand, frame, tcp ? IPPROTO_TCP : IPPROTO_UDP);
    }

    frame->transport = frame->len;
    if (tcp) {
        size_t hlen = one_in(rand, 2) ? 20 + 4 * below(rand, 11) : 20;

        p = add_random(rand, frame, hlen);
        p[12] = (hlen / 4) << 4 | (p[12] & 0xf);
        csum_offset = 16;
        sum += IPPROTO_TCP;
        if (one_in(rand, 10)) {
            stl_be_p(p + 4, -below(rand, 70000));
        }
    } else {
        p = add_random(rand, frame, 8);
        csum_offset = 6;
        sum += IPPROTO_UDP;
    }

    frame->payload = frame->len;
    if (one_in(rand, 50)) {
        /* More than the length fields of IP and UDP can hold */
        payload = FRAME_MAX - frame->len - below(rand, 4000);
        if (one_in(rand, 5)) {
            gso_size = 65534 - below(rand, 100);
        }
    } else {
        payload = MIN(payload, 65535 - (frame->len - ip));
    }
    if (payload > max * gso_size) {
        payload = max * gso_size - below(rand, gso_size);
    }
    if (one_in(rand, 10)) {
        memset(add(frame, payload), one_in(rand, 2) ? 0xff : 0, payload);
    } else {
        add_random(rand, frame, payload);
    }

    tail = frame->len - frame->transport;
    p = frame->data + frame->transport;
    sum += tail;
    sum = (sum & 0xffff) + (sum >> 16);
    if (!one_in(rand, 20)) {
        stw_be_p(p + csum_offset, sum);
    }
    if (!tcp && !one_in(rand, 20)) {
        stw_be_p(p + 4, tail);
    }
    p = frame->data + ip;
    if (!one_in(rand, 20)) {
        stw_be_p(p + (ipv6 ? 4 : 2), frame->len - ip - (ipv6 ? 40 : 0));
    }

    frame->hdr = (struct virtio_net_hdr) {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = !tcp ? VIRTIO_NET_HDR_GSO_UDP_L4 :
                    ipv6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4,
        .gso_size = gso_size,
        .hdr_len = one_in(rand, 2) ? frame->payload :
                   below(rand, MIN(frame->len, 2000)),
        .csum_start = frame->transport,
        .csum_offset = csum_offset,
    };
    if (tcp && one_in(rand, 3)) {
        frame->hdr.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
    }
    if (tcp && one_in(rand, 20)) {
        frame->hdr.flags = 0;
    }
}

/*
 * Let the checksum of the first segment be 0, by the first word of the
 * payload: it becomes what the checksum would have been without it.
 */
static void make_zero_checksum(Frame *frame, Segments *segs)
{
    const uint8_t *data;
    size_t len;
    uint16_t sum;

    if (frame->payload + 2 > frame->len) {
        return;
    }
    stw_be_p(frame->data + frame->payload, 0);
    complete(frame, segs);
    if (!segs->accepted) {
        return;
    }
    data = segments_get(segs, 0, &len);
    sum = lduw_be_p(data + frame->transport + frame->hdr.csum_offset);
    if (len >= frame->payload + 2) {
        stw_be_p(frame->data + frame->payload, sum);
    }
}

/* One to three things wrong; addresses and @keep flags stay */
static void damage(GRand *rand, Frame *frame, uint8_t keep)
{
    static const uint8_t types[] = {
        0, 1, 2, 3, 4, 5, 0x80, 0x81, 0x84, 0x85, 0x83, 0x21, 0x41, 0x25, 0x44,
    };
    uint8_t flags = frame->hdr.flags;
    int n = 1 + below(rand, 3);
    int i;

    for (i = 0; i < n; i++) {
        size_t hlen = MIN(frame->payload + 8, frame->len) - MACS_LEN;

        switch (below(rand, 10)) {
        case 0:
            frame->len = MACS_LEN + 2 +
                         below(rand, frame->len - MACS_LEN - 1);
            break;
        case 1:
            frame->len = MIN(frame->len,
                             MAX(frame->payload, 16) + below(rand, 4) - 2);
            break;
        case 2:
            ((uint8_t *)&frame->hdr)[below(rand, sizeof(frame->hdr))] =
                g_rand_int(rand);
            break;
        case 3:
            ((uint8_t *)&frame->hdr)[below(rand, sizeof(frame->hdr))] ^=
                1 << below(rand, 8);
            break;
        case 4:
            frame->hdr.gso_type = types[below(rand, ARRAY_SIZE(types))];
            break;
        case 5:
            frame->hdr.csum_start += 2 * below(rand, 20) - 20;
            break;
        case 6:
            frame->hdr.gso_size = frame->len - frame->payload +
                                  below(rand, 60) - 30;
            break;
        case 7:
            frame->data[MACS_LEN + below(rand, 2)] ^= 1 << below(rand, 8);
            break;
        case 8:
            frame->data[MACS_LEN + below(rand, hlen)] = g_rand_int(rand);
            break;
        default:
            frame->data[MACS_LEN + below(rand, hlen)] ^= 1 << below(rand, 8);
            break;
        }
        if (frame->payload > frame->len) {
            frame->payload = frame->len;
        }
    }
    frame->hdr.flags = (frame->hdr.flags & ~keep) | (flags & keep);
}


/* Bounds */

typedef struct Guarded {
    uint8_t *map;
    size_t size;
} Guarded;

/* Memory with a page behind it that must not be touched */
static void guarded_init(Guarded *g)
{
    size_t page = qemu_real_host_page_size();

    g->size = ROUND_UP(FRAME_MAX, page);
    g->map = mmap(NULL, g->size + page, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(g->map != MAP_FAILED);
    g_assert_cmpint(mprotect(g->map + g->size, page, PROT_NONE), ==, 0);
}

static void guarded_cleanup(Guarded *g)
{
    munmap(g->map, g->size + qemu_real_host_page_size());
}

static uint8_t *guarded_get(Guarded *g, size_t len)
{
    return g->map + g->size - len;
}

/* Every second time in memory from malloc, for those who watch over that */
static void test_bounds(void)
{
    g_autofree Frame *frame = g_new(Frame, 1);
    GRand *rand = g_rand_new_with_seed(seed);
    unsigned accepted = 0;
    Guarded in, out;
    int i;

    guarded_init(&in);
    guarded_init(&out);
    for (i = 0; i < BOUNDS_FRAMES; i++) {
        bool guarded = i % 2;
        const char *reason = NULL;
        size_t len, total = 0;
        QIOPacketGso gso;
        uint8_t *data, *seg;

        random_frame(rand, frame);
        if (frame->len > frame->payload + 1000 && !one_in(rand, 10)) {
            frame->len = frame->payload + below(rand, 1000);
        }
        damage(rand, frame, 0);
        if (one_in(rand, 3)) {
            /* Cut off in the headers, with no checksum start to give it away */
            frame->hdr.flags = 0;
            frame->len = 1 + below(rand, frame->payload + 1);
        }
        data = guarded ? guarded_get(&in, frame->len) : g_malloc(frame->len);
        memcpy(data, frame->data, frame->len);

        if (!qio_packet_gso_init(&gso, &frame->hdr, data, frame->len,
                                 &reason)) {
            g_assert_nonnull(reason);
        } else {
            accepted++;
            g_assert_cmpint(gso.max_len, <=, frame->len);
            seg = guarded ? guarded_get(&out, gso.max_len) :
                            g_malloc(gso.max_len);
            while ((len = qio_packet_gso_next(&gso, seg))) {
                g_assert_cmpint(len, <=, gso.max_len);
                g_assert_cmpint(len, >=, gso.payload);
                total += len - gso.payload;
            }
            g_assert_cmpint(total, ==, frame->len - gso.payload);
            if (!guarded) {
                g_free(seg);
            }
        }
        g_assert_cmpmem(data, frame->len, frame->data, frame->len);

        qio_packet_fill_checksum(&frame->hdr, data, frame->len);
        if (!guarded) {
            g_free(data);
        }
    }
    /* Damage is not all that there is */
    g_assert_cmpint(accepted, >, BOUNDS_FRAMES / 10);
    g_assert_cmpint(accepted, <, BOUNDS_FRAMES * 9 / 10);
    guarded_cleanup(&in);
    guarded_cleanup(&out);
    g_rand_free(rand);
}


/* The kernel */

typedef struct Kernel {
    int tap;
    int packet;
    uint32_t markers;
} Kernel;

#define TAP_NAME "gso0"

/* A frame may be as long as this without being a GSO frame */
#define TAP_MTU (65535 - ETH_HLEN)

/* Return why not */
static const char *kernel_init(Kernel *kernel)
{
    static bool unshared;
    struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
    struct sockaddr_ll sll = { .sll_family = AF_PACKET };
    int one = 1, size = 4 * 1024 * 1024;

    *kernel = (Kernel) { .tap = -1, .packet = -1 };
    if (!unshared) {
        if (unshare(CLONE_NEWNET) < 0) {
            return "needs root, for a network namespace";
        }
        unshared = true;
    }
    kernel->tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (kernel->tap < 0) {
        return "needs /dev/net/tun";
    }
    pstrcpy(ifr.ifr_name, sizeof(ifr.ifr_name), TAP_NAME);
    g_assert_cmpint(ioctl(kernel->tap, TUNSETIFF, &ifr), ==, 0);
    g_assert_cmpint(ioctl(kernel->tap, TUNSETOFFLOAD, 0), ==, 0);

    kernel->packet = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    g_assert_cmpint(kernel->packet, !=, -1);
    /* Every segment of a frame waits in the queue */
    ifr.ifr_qlen = 70000;
    g_assert_cmpint(ioctl(kernel->packet, SIOCSIFTXQLEN, &ifr), ==, 0);
    ifr.ifr_mtu = TAP_MTU;
    g_assert_cmpint(ioctl(kernel->packet, SIOCSIFMTU, &ifr), ==, 0);
    ifr.ifr_flags = IFF_UP;
    g_assert_cmpint(ioctl(kernel->packet, SIOCSIFFLAGS, &ifr), ==, 0);

    /*
     * No PACKET_QDISC_BYPASS: with it Linux 6.18 refuses every frame that it
     * would have to cut, with ENOBUFS.
     */
    g_assert_cmpint(setsockopt(kernel->packet, SOL_PACKET, PACKET_VNET_HDR,
                               &one, sizeof(one)), ==, 0);
    setsockopt(kernel->packet, SOL_SOCKET, SO_SNDBUFFORCE,
               &size, sizeof(size));
    sll.sll_ifindex = if_nametoindex(TAP_NAME);
    g_assert_cmpint(bind(kernel->packet, (struct sockaddr *)&sll, sizeof(sll)),
                    ==, 0);
    return NULL;
}

static void kernel_cleanup(Kernel *kernel)
{
    if (kernel->tap != -1) {
        close(kernel->tap);
    }
    if (kernel->packet != -1) {
        close(kernel->packet);
    }
}

static bool kernel_send(Kernel *kernel, const struct virtio_net_hdr *hdr,
                        const uint8_t *data, size_t len)
{
    struct iovec iov[] = {
        { .iov_base = (void *)hdr, .iov_len = sizeof(*hdr) },
        { .iov_base = (void *)data, .iov_len = len },
    };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = ARRAY_SIZE(iov) };

    return sendmsg(kernel->packet, &msg, MSG_DONTWAIT) == sizeof(*hdr) + len;
}

/* Do with @frame what is to be done, by the kernel */
static void kernel_complete(Kernel *kernel, Frame *frame, Segments *segs)
{
    static const struct virtio_net_hdr no_hdr;
    static uint8_t buf[FRAME_MAX];
    struct pollfd pfd = { .fd = kernel->tap, .events = POLLIN };
    struct virtio_net_hdr hdr;
    struct iovec iov[] = {
        { .iov_base = &hdr, .iov_len = sizeof(hdr) },
        { .iov_base = buf, .iov_len = sizeof(buf) },
    };
    uint8_t marker[60] = MACS "\x88\xb5";

    segments_clear(segs);
    if (!kernel_send(kernel, &frame->hdr, frame->data, frame->len)) {
        g_assert_true(errno == EINVAL || errno == EMSGSIZE);
    }

    /* A segment is refused without a word; this shows where they end */
    stl_be_p(marker + ETH_HLEN, ++kernel->markers);
    g_assert_true(kernel_send(kernel, &no_hdr, marker, sizeof(marker)));

    while (true) {
        ssize_t len = readv(kernel->tap, iov, ARRAY_SIZE(iov));

        if (len < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            g_assert_cmpint(poll(&pfd, 1, TIME_LIMIT), ==, 1);
            continue;
        }
        g_assert_cmpint(len, >=, sizeof(hdr) + ETH_HLEN);
        len -= sizeof(hdr);
        if (memcmp(buf, MACS, MACS_LEN)) {
            /* The interface's own, as neighbour discovery */
            continue;
        }
        if (len == sizeof(marker) && !memcmp(buf, marker, len)) {
            break;
        }
        g_assert_cmpint(hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM, ==, 0);
        g_assert_cmpint(hdr.gso_type, ==, VIRTIO_NET_HDR_GSO_NONE);
        segs->accepted = true;
        segments_append(segs, buf, len);
    }
}

static void dump(const char *who, const uint8_t *data, size_t len)
{
    GString *s = g_string_new(NULL);
    size_t i;

    for (i = 0; i < MIN(len, 160); i++) {
        g_string_append_printf(s, "%s%02x", i % 2 ? "" : " ", data[i]);
    }
    g_test_message("%s: %zu bytes:%s", who, len, s->str);
    g_string_free(s, true);
}

static void dump_frame(const char *what, int n, Frame *frame)
{
    g_test_message("PACKET_GSO_SEED=%" PRIu32 ", frame %d: %s", seed, n, what);
    g_test_message("flags 0x%x type 0x%x size %u hdr_len %u csum %u + %u",
                   frame->hdr.flags, frame->hdr.gso_type, frame->hdr.gso_size,
                   frame->hdr.hdr_len, frame->hdr.csum_start,
                   frame->hdr.csum_offset);
    dump("frame", frame->data, frame->len);
}

static void assert_same(int n, Frame *frame, Segments *ours, Segments *theirs)
{
    const uint8_t *a, *b;
    size_t alen, blen;
    int i;

    if (!ours->accepted && !theirs->accepted) {
        return;
    }
    if (ours->ends->len == theirs->ends->len &&
        ours->data->len == theirs->data->len &&
        !memcmp(ours->data->data, theirs->data->data, ours->data->len) &&
        !memcmp(ours->ends->data, theirs->ends->data,
                ours->ends->len * sizeof(size_t))) {
        return;
    }
    dump_frame("differs from the kernel's", n, frame);
    g_test_message("segments: %u, kernel's %u", ours->ends->len,
                   theirs->ends->len);
    for (i = 0; i < MIN(ours->ends->len, theirs->ends->len); i++) {
        a = segments_get(ours, i, &alen);
        b = segments_get(theirs, i, &blen);
        if (alen != blen || memcmp(a, b, alen)) {
            g_test_message("segment %d", i);
            dump("ours", a, alen);
            dump("kernel's", b, blen);
            break;
        }
    }
    g_assert_not_reached();
}

/*
 * Return why the kernel refuses a frame that we accept, or NULL.  None of
 * these are frames that a kernel gives to anybody.
 */
static const char *kernel_is_stricter(Frame *frame)
{
    const struct virtio_net_hdr *hdr = &frame->hdr;
    bool gso = hdr->gso_type != VIRTIO_NET_HDR_GSO_NONE;
    bool tcp = gso && hdr->gso_type != VIRTIO_NET_HDR_GSO_UDP_L4;
    bool tcp6 = tcp && (hdr->gso_type & VIRTIO_NET_HDR_GSO_TCPV6);
    size_t payload = frame->len - hdr->csum_start - (tcp ? 20 : 8);

    if (hdr->hdr_len > frame->len) {
        return "hdr_len outside of the frame";
    }
    if (gso && !(hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)) {
        uint16_t proto = lduw_be_p(frame->data + MACS_LEN);

        if (proto == ETH_P_8021Q || proto == ETH_P_8021AD) {
            return "tagged, and has a checksum";
        }
    }
    if (hdr->csum_start < (tcp6 ? 40 : 20)) {
        return "checksum start where the IP header is";
    }
    if (hdr->csum_start > 60000) {
        return "checksum start that has no room in an skb";
    }
    if (!gso) {
        return frame->len > ETH_HLEN + TAP_MTU ? "longer than the MTU" : NULL;
    }
    if (hdr->gso_size == UINT16_MAX) {
        return "gso_size of 65535, which means something else there";
    }
    if (!tcp && payload > 64 * hdr->gso_size) {
        return "more than 64 (in old kernels) or 128 segments of UDP";
    }
    if (tcp && payload > hdr->gso_size &&
        payload - (frame->data[hdr->csum_start + 12] >> 4) * 4 + 20 <=
        hdr->gso_size) {
        return "a single segment, unless TCP's options are payload";
    }
    return NULL;
}

/* Return why the kernel delivers a frame that we refuse, or NULL */
static const char *kernel_is_laxer(Frame *frame, const char *reason)
{
    size_t type = MACS_LEN;

    if ((frame->hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) ==
        VIRTIO_NET_HDR_GSO_UDP) {
        return "UFO, for which the kernel makes IP fragments";
    }
    if (lduw_be_p(frame->data + type) == 0) {
        return "no ethertype, which the kernel replaces";
    }
    if (!(frame->hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) &&
        frame->len - frame->transport - 20 <= frame->hdr.gso_size) {
        return "nothing to do, in a frame with headers that cannot be cut";
    }
    if (frame->len > 65535 && strstr(reason, "too long for IP")) {
        return "segments that are too long: the IP header has length % 65536";
    }
    if (frame->len > 65535 && strstr(reason, "jumbogram")) {
        return "a jumbogram, of which the kernel makes ordinary packets";
    }
    return NULL;
}

typedef struct Counts {
    unsigned frames;
    unsigned cut;
    unsigned whole;
    unsigned refused;
    unsigned segments;
    unsigned zero;              /* segments with a checksum of 0 or ffff */
    GHashTable *differences;    /* count by reason */
} Counts;

static void count_zero(Counts *counts, Frame *frame, Segments *segs)
{
    size_t field = frame->hdr.csum_start + frame->hdr.csum_offset;
    int i;

    for (i = 0; i < segs->ends->len; i++) {
        size_t len;
        const uint8_t *data = segments_get(segs, i, &len);
        uint16_t sum = field + 2 <= len ? lduw_be_p(data + field) : 1;

        counts->zero += sum == 0 || sum == 0xffff;
    }
}

/* Whether this kernel is the one that kernel_is_...() are about */
static bool kernel_is_known(void)
{
    struct utsname name;

    return uname(&name) == 0 && g_str_has_prefix(name.release, "6.18.");
}

static void compare(Kernel *kernel, Counts *counts, Frame *frame,
                    Segments *ours, Segments *theirs)
{
    const char *why;
    unsigned n;

    complete(frame, ours);
    kernel_complete(kernel, frame, theirs);
    counts->frames++;

    if (ours->accepted == theirs->accepted) {
        assert_same(counts->frames, frame, ours, theirs);
        count_zero(counts, frame, ours);
        counts->segments += ours->ends->len;
        counts->refused += ours->ends->len == 0;
        counts->whole += ours->ends->len == 1;
        counts->cut += ours->ends->len > 1;
        return;
    }

    why = ours->accepted ? kernel_is_stricter(frame) :
                           kernel_is_laxer(frame, ours->reason);
    if (!why) {
        why = ours->accepted ? "refused, but not by us" : ours->reason;
        dump_frame(why, counts->frames, frame);
        /* What becomes of broken frames is not the same in all kernels */
        if (ours->accepted || kernel_is_known()) {
            g_assert_not_reached();
        }
    }
    n = GPOINTER_TO_UINT(g_hash_table_lookup(counts->differences, why)) + 1;
    g_hash_table_insert(counts->differences, (void *)why, GUINT_TO_POINTER(n));
}

static void counts_print(Counts *counts)
{
    GHashTableIter iter;
    gpointer why, n;

    g_test_message("%u frames: %u cut, %u whole, %u refused; "
                   "%u segments the same as the kernel's, "
                   "%u of them with a checksum of 0 or ffff",
                   counts->frames, counts->cut, counts->whole,
                   counts->refused, counts->segments, counts->zero);
    g_hash_table_iter_init(&iter, counts->differences);
    while (g_hash_table_iter_next(&iter, &why, &n)) {
        g_test_message("not the same: %u times: %s", GPOINTER_TO_UINT(n),
                       (char *)why);
    }
}

/* Make a frame; the segments are to work with */
typedef void Maker(GRand *rand, Frame *frame, Segments *segs);

/* Return whether the test could run */
static bool kernel_test(Counts *counts, int frames, Maker *make)
{
    g_autofree Frame *frame = g_new(Frame, 1);
    GRand *rand = g_rand_new_with_seed(seed);
    Segments ours, theirs;
    const char *why_not;
    Kernel kernel;

    why_not = kernel_init(&kernel);
    *counts = (Counts) { .differences = g_hash_table_new(NULL, NULL) };
    segments_init(&ours);
    segments_init(&theirs);
    if (why_not) {
        g_test_skip(why_not);
    } else {
        g_test_message("PACKET_GSO_SEED=%" PRIu32, seed);
        while (counts->frames < frames) {
            make(rand, frame, &ours);
            compare(&kernel, counts, frame, &ours, &theirs);
        }
        counts_print(counts);
    }
    segments_cleanup(&ours);
    segments_cleanup(&theirs);
    kernel_cleanup(&kernel);
    g_rand_free(rand);
    g_hash_table_unref(counts->differences);
    return !why_not;
}

static void make_gso(GRand *rand, Frame *frame, Segments *segs)
{
    random_frame(rand, frame);
    if (one_in(rand, 10)) {
        make_zero_checksum(frame, segs);
    }
}

static void test_kernel_gso(void)
{
    Counts counts;

    if (kernel_test(&counts, KERNEL_GSO_FRAMES, make_gso)) {
        g_assert_cmpint(counts.cut, >, KERNEL_GSO_FRAMES / 2);
        g_assert_cmpint(counts.whole, >, KERNEL_GSO_FRAMES / 10);
        g_assert_cmpint(counts.zero, >, KERNEL_GSO_FRAMES / 50);
    }
}

static void make_damaged(GRand *rand, Frame *frame, Segments *segs)
{
    random_frame(rand, frame);
    /* Else the kernel looks at it in another way than when it cuts frames */
    frame->hdr.flags |= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    damage(rand, frame, VIRTIO_NET_HDR_F_NEEDS_CSUM);
    /* A hint, which the kernel believes, and to which it allocates memory */
    if (!one_in(rand, 100)) {
        frame->hdr.hdr_len %= MIN(frame->len, 2000);
    }
}

static void test_kernel_damaged(void)
{
    Counts counts;

    if (kernel_test(&counts, KERNEL_DAMAGED_FRAMES, make_damaged)) {
        g_assert_cmpint(counts.cut, >, KERNEL_DAMAGED_FRAMES / 20);
        g_assert_cmpint(counts.refused, >, KERNEL_DAMAGED_FRAMES / 20);
    }
}

static void make_checksum(GRand *rand, Frame *frame, Segments *segs)
{
    do {
        random_frame(rand, frame);
    } while (frame->len > ETH_HLEN + TAP_MTU);
    frame->hdr.gso_type = VIRTIO_NET_HDR_GSO_NONE;
    frame->hdr.gso_size = one_in(rand, 2) ? g_rand_int(rand) : 0;
    switch (below(rand, 4)) {
    case 0:
        /* Anywhere */
        frame->hdr.csum_start = 20 + below(rand, frame->len - 21);
        frame->hdr.csum_offset =
            below(rand, frame->len - frame->hdr.csum_start - 1);
        break;
    case 1:
        make_zero_checksum(frame, segs);
        break;
    }
}

static void test_kernel_checksum(void)
{
    Counts counts;

    if (kernel_test(&counts, KERNEL_CHECKSUM_FRAMES, make_checksum)) {
        g_assert_cmpint(counts.zero, >, KERNEL_CHECKSUM_FRAMES / 50);
    }
}

/* Shorter segments than the sender meant, of TCP; UDP's stay as they are */
static void test_limit(void)
{
    static const uint16_t sizes[] = { 1460, 1461, 8948, 20000 };
    static Frame frame;
    static uint8_t out[FRAME_MAX];
    const size_t payload = 20000;
    const char *reason;
    QIOPacketGso gso;

    memcpy(frame.data, examples[0].frame.data, 54);
    for (int i = 0; i < ARRAY_SIZE(sizes); i++) {
        size_t len, done = 0;

        frame.hdr = (struct virtio_net_hdr) HDR(TCPV4, sizes[i], 34, 16);
        g_assert_true(qio_packet_gso_init(&gso, &frame.hdr, frame.data,
                                          54 + payload, &reason));
        qio_packet_gso_limit(&gso, 1514);
        g_assert_cmpint(gso.max_len, ==, 1514);
        while ((len = qio_packet_gso_next(&gso, out))) {
            g_assert_cmpint(len, ==, 54 + MIN(1460, payload - done));
            done += len - 54;
        }
        g_assert_cmpint(done, ==, payload);
    }

    frame.data[23] = IPPROTO_UDP;
    frame.hdr = (struct virtio_net_hdr) HDR(UDP_L4, 8948, 34, 6);
    g_assert_true(qio_packet_gso_init(&gso, &frame.hdr, frame.data,
                                      54 + payload, &reason));
    qio_packet_gso_limit(&gso, 1514);
    g_assert_cmpint(gso.max_len, ==, 42 + 8948);
}

/* The most frequent case: TCP over IPv4 in full-size frames */
static void test_speed(void)
{
    static Frame frame;
    static uint8_t out[FRAME_MAX];
    const int runs = 20000;
    int64_t start = g_get_monotonic_time();
    int i;

    frame.hdr = (struct virtio_net_hdr) HDR(TCPV4, 1448, 34, 16);
    memcpy(frame.data, examples[0].frame.data, 54);
    for (i = 0; i < runs; i++) {
        const char *reason;
        QIOPacketGso gso;

        g_assert_true(qio_packet_gso_init(&gso, &frame.hdr, frame.data,
                                          14 + 65535, &reason));
        while (qio_packet_gso_next(&gso, out)) {
            /* nothing */
        }
    }
    g_test_message("%" PRId64 " ns for a frame of 64 KiB",
                   (g_get_monotonic_time() - start) * 1000 / runs);
}

static void add_data_func(const char *dir, const char *name, const void *data,
                          GTestDataFunc func)
{
    g_autofree char *path = g_strdup_printf("/io/packet-gso/%s/%s", dir, name);

    g_test_add_data_func(g_strdelimit(path, " ", '-'), data, func);
}

int main(int argc, char **argv)
{
    const char *env = g_getenv("PACKET_GSO_SEED");
    int i;

    g_test_init(&argc, &argv, NULL);
    seed = g_random_int();
    if (env) {
        g_assert_cmpint(qemu_strtoui(env, NULL, 0, &seed), ==, 0);
    }

    for (i = 0; i < ARRAY_SIZE(examples); i++) {
        add_data_func("example", examples[i].name, &examples[i], test_example);
    }
    for (i = 0; i < ARRAY_SIZE(checksum_examples); i++) {
        add_data_func("example", checksum_examples[i].name,
                      &checksum_examples[i], test_example);
    }
    for (i = 0; i < ARRAY_SIZE(refusals); i++) {
        add_data_func("refusal", refusals[i].name, &refusals[i], test_refusal);
    }
    g_test_add_func("/io/packet-gso/refusal/too-long", test_refusal_long);
    g_test_add_func("/io/packet-gso/refusal/checksum-outside",
                    test_refusal_outside);
    g_test_add_func("/io/packet-gso/refusal/jumbogram",
                    test_refusal_jumbogram);
    g_test_add_func("/io/packet-gso/checksum", test_checksum);
    g_test_add_func("/io/packet-gso/bounds", test_bounds);
    g_test_add_func("/io/packet-gso/limit", test_limit);
    g_test_add_func("/io/packet-gso/kernel/gso", test_kernel_gso);
    g_test_add_func("/io/packet-gso/kernel/damaged", test_kernel_damaged);
    g_test_add_func("/io/packet-gso/kernel/checksum", test_kernel_checksum);
    if (g_test_perf()) {
        g_test_add_func("/io/packet-gso/speed", test_speed);
    }

    return g_test_run();
}
