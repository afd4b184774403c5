/*
 * QEMU I/O channels AF_PACKET driver test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The channel has one end of a socketpair(AF_UNIX, SOCK_SEQPACKET), the test
 * plays the kernel at the other.  As with PACKET_VNET_HDR, each message
 * between them is a struct virtio_net_hdr and a frame:
 *
 *   test side              | channel under test      | test side
 *                          |                         |
 *   [vnet_hdr][frame] -----+--> capture, read face --+--> byte stream
 *   [vnet_hdr][frame] <----+--- inject, write face <-+--- byte stream
 *
 * Tested: the byte stream in both directions, in pieces of every size, with
 * and without vnet headers in it; what is dropped, and that it is counted and
 * that the stream stays in step; the checksums that a capture fills in,
 * against sums made by hand; back-pressure; watches; the frame face; errors
 * of use.  Needs no privileges.
 *
 * Not tested here, but with real interfaces in tests/qtest/af-packet-test.c:
 * the set-up of an AF_PACKET socket, directions, VLAN tags, which a socketpair
 * has no auxiliary data for, ENOBUFS, and an interface that goes away.
 */

#include "qemu/osdep.h"
#include "io/channel-packet.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"
#include "qemu/thread.h"

#define VNET_HDR_LEN sizeof(struct virtio_net_hdr)

/* The longest frame that has room for a VLAN tag and a vnet header */
#define FRAME_MAX (QIO_CHANNEL_PACKET_MAX - 4 - \
                   sizeof(struct virtio_net_hdr_v1_hash_tunnel))

/* No step of any test takes this long, in milliseconds */
#define TIME_LIMIT 120000

typedef struct Fixture {
    QIOChannelPacket *pioc;
    QIOChannel *ioc;
    int kernel;
} Fixture;

/* Frames in and messages out: how many, and to what end */
typedef struct Message {
    const char *name;
    struct virtio_net_hdr hdr;
    /* given bytes, or NULL for len bytes of a pattern */
    const char *bytes;
    size_t len;
    /* with the checksum filled in, if that makes a difference */
    const char *completed;
    /* or what it is cut into */
    struct {
        const char *bytes;
        size_t len;
    } segments[3];
    /* the counter that goes up when the stream has no vnet headers */
    size_t dropped;
    /* ... and when it has */
    size_t dropped_vnet;
} Message;

#define COUNTER(name) offsetof(QIOChannelPacketStats, name)

#define NEEDS_CSUM                                      \
    {                                                   \
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,           \
        .csum_start = 34,                               \
        .csum_offset = 6,                               \
    }

/* A UDP frame from 10.0.0.1:0x1234 to 10.0.0.2:0x5678, up to the ports */
#define UDP_FRAME(ip_len)                               \
    "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01"  \
    "\x08\x00\x45\x00\x00" ip_len "\x00\x00\x00\x00"    \
    "\x40\x11\x66\x00\x0a\x00\x00\x01\x0a\x00\x00\x02"  \
    "\x12\x34\x56\x78"

/* The same of TCP, up to the payload */
#define TCP_FRAME(ip_len, ip_id, ip_csum, seq, flags, csum) \
    "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01"      \
    "\x08\x00\x45\x00\x00" ip_len "\x01" ip_id "\x00\x00"   \
    "\x40\x06" ip_csum "\x0a\x00\x00\x01\x0a\x00\x00\x02"   \
    "\x12\x34\x56\x78\x00\x00\x00" seq "\x00\x00\x00\x00"   \
    "\x50" flags "\x01\x00" csum "\x00\x00"

/*
 * Three segments.  Sum of the pseudo header of the whole: 0a00 + 0001 + 0a00 +
 * 0002 + 0006 (TCP) + 001e (length) = 1427.  Each segment has its IP
 * identification and sequence number; PSH (08) is for the last one.  With its
 * own length the first sums up to 1421 + 1234 + 5678 + 0001 + 5010 + 0100 +
 * 6162 + 6364 = 192a4, 92a5, ~ 6d5a.
 */
#define TCP_GSO                                                         \
    .hdr = {                                                            \
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,                           \
        .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,                           \
        .hdr_len = 54,                                                  \
        .gso_size = 4,                                                  \
        .csum_start = 34,                                               \
        .csum_offset = 16,                                              \
    },                                                                  \
    .bytes = TCP_FRAME("\x32", "\x00", "\x65\xc4", "\x01", "\x18",      \
                       "\x14\x27") "abcdefghij",                        \
    .len = 64,                                                          \
    .segments = {                                                       \
        { TCP_FRAME("\x2c", "\x00", "\x65\xca", "\x01", "\x10",         \
                    "\x6d\x5a") "abcd", 58 },                           \
        { TCP_FRAME("\x2c", "\x01", "\x65\xc9", "\x05", "\x10",         \
                    "\x65\x4e") "efgh", 58 },                           \
        { TCP_FRAME("\x2a", "\x02", "\x65\xca", "\x09", "\x18",         \
                    "\xc8\xa8") "ij", 56 },                             \
    }

/*
 * The checksum field holds the sum of the pseudo header to begin with:
 * 0a00 + 0001 + 0a00 + 0002 + 0011 (UDP) + 000c (length) = 1420
 */
static const Message capture_messages[] = {
    {
        .name = "minimum",
        .len = 60,
    }, {
        /* 1234 + 5678 + 000c + 1420 + 6162 + 6364 = 1419e, 419f, ~ be60 */
        .name = "checksum",
        .hdr = NEEDS_CSUM,
        .bytes = UDP_FRAME("\x20") "\x00\x0c\x14\x20" "abcd",
        .completed = UDP_FRAME("\x20") "\x00\x0c\xbe\x60" "abcd",
        .len = 46,
    }, {
        /* 1234 + 5678 + 000d + 1421 + 6162 + 6364 + 6500 = 1a6a0, ~ 595e */
        .name = "checksum, odd length",
        .hdr = NEEDS_CSUM,
        .bytes = UDP_FRAME("\x21") "\x00\x0d\x14\x21" "abcde",
        .completed = UDP_FRAME("\x21") "\x00\x0d\x59\x5e" "abcde",
        .len = 47,
    }, {
        /* 1234 + 5678 + 000c + 1420 + 6162 + 21c5 = ffff, ~ 0: that is ffff */
        .name = "checksum of zero",
        .hdr = NEEDS_CSUM,
        .bytes = UDP_FRAME("\x20") "\x00\x0c\x14\x20" "ab\x21\xc5",
        .completed = UDP_FRAME("\x20") "\x00\x0c\xff\xff" "ab\x21\xc5",
        .len = 46,
    }, {
        .name = "checksum field in the last bytes",
        .hdr = {
            .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
            .csum_start = 14,
            .csum_offset = 4,
        },
        /* 0102 + fff0 + 0000 = 100f2, 00f3, ~ ff0c */
        .bytes = "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x88\xb5"
                 "\x01\x02\xff\xf0\x00\x00",
        .completed =
                 "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x88\xb5"
                 "\x01\x02\xff\xf0\xff\x0c",
        .len = 20,
    }, {
        .name = "valid checksum is left alone",
        .hdr.flags = VIRTIO_NET_HDR_F_DATA_VALID,
        .bytes = UDP_FRAME("\x20") "\x00\x0c\x14\x20" "abcd",
        .len = 46,
    }, {
        .name = "checksum outside the frame",
        .hdr = {
            .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
            .csum_start = 59,
            .csum_offset = 0,
        },
        .len = 60,
        .dropped = COUNTER(dropped_invalid),
    }, {
        .name = "GSO, to be cut into IP fragments",
        .hdr = {
            .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
            .gso_type = VIRTIO_NET_HDR_GSO_UDP,
            .hdr_len = 42,
            .gso_size = 2,
            .csum_start = 34,
            .csum_offset = 6,
        },
        .bytes = UDP_FRAME("\x20") "\x00\x0c\x14\x20" "abcd",
        .len = 46,
        .dropped = COUNTER(dropped_gso),
    }, {
        .name = "GSO",
        TCP_GSO,
    }, {
        .name = "GSO of what is in a tunnel",
        .hdr = {
            .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
            .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
            .hdr_len = 104,
            .gso_size = 1400,
            .csum_start = 84,
            .csum_offset = 16,
        },
        .bytes = UDP_FRAME("\x20") "\x00\x0c\x14\x20" "abcd",
        .len = 46,
        .dropped = COUNTER(dropped_gso),
        .dropped_vnet = COUNTER(dropped_gso),
    }, {
        .name = "full size",
        .len = 1514,
    }, {
        .name = "jumbo",
        .len = 9014,
    }, {
        .name = "longest",
        .len = FRAME_MAX,
    }, {
        .name = "truncated",
        .len = QIO_CHANNEL_PACKET_MAX + 1,
        .dropped = COUNTER(dropped_truncated),
        .dropped_vnet = COUNTER(dropped_truncated),
    }, {
        .name = "far too long",
        .len = 100000,
        .dropped = COUNTER(dropped_truncated),
        .dropped_vnet = COUNTER(dropped_truncated),
    },
};

static void fixture_init(Fixture *f, QIOChannelPacketMode mode, bool vnet)
{
    int fd[2];
    int size = 400 * 1024;
    int i;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd), ==, 0);
    for (i = 0; i < 2; i++) {
        /* Best effort: the default is enough for the longest message */
        setsockopt(fd[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }

    f->pioc = qio_channel_packet_new_socket(fd[0], mode);
    f->ioc = QIO_CHANNEL(f->pioc);
    f->kernel = fd[1];
    qio_channel_packet_set_vnet_hdr(f->pioc, vnet);
    g_assert_cmpint(qio_channel_packet_get_fd(f->pioc), ==, fd[0]);
}

static void fixture_clear(Fixture *f)
{
    object_unref(OBJECT(f->pioc));
    close(f->kernel);
}

/* Nothing but @expect may differ from zero */
static void assert_stats(Fixture *f, const QIOChannelPacketStats *expect)
{
    QIOChannelPacketStats stats;

    qio_channel_packet_get_stats(f->pioc, &stats);
    g_assert_cmpmem(&stats, sizeof(stats), expect, sizeof(*expect));
}

static void count(QIOChannelPacketStats *stats, size_t counter, uint64_t n)
{
    *(uint64_t *)((char *)stats + counter) += n;
}

static void append_be32(GByteArray *array, uint32_t value)
{
    value = cpu_to_be32(value);
    g_byte_array_append(array, (uint8_t *)&value, sizeof(value));
}

static void append_pattern(GByteArray *array, size_t len)
{
    size_t i;

    for (i = 0; i < len; i++) {
        uint8_t byte = i * 7 + (i >> 8) + len;

        g_byte_array_append(array, &byte, 1);
    }
}

static void append_frame(GByteArray *array, const char *bytes, size_t len)
{
    if (bytes) {
        g_byte_array_append(array, (const uint8_t *)bytes, len);
    } else {
        append_pattern(array, len);
    }
}

/* The kernel has a frame for the capture */
static void kernel_send(Fixture *f, const struct virtio_net_hdr *hdr,
                        const char *bytes, size_t len)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();

    g_byte_array_append(msg, (const uint8_t *)hdr, sizeof(*hdr));
    append_frame(msg, bytes, len);
    g_assert_cmpint(send(f->kernel, msg->data, msg->len, MSG_DONTWAIT),
                    ==, msg->len);
}

/*
 * Take from the kernel's end at most @max of the frames that were injected.
 * The log has the length of each message before it, as recv() gave it.
 */
static int kernel_recv(Fixture *f, GByteArray *log, int max)
{
    g_autofree uint8_t *buf = g_malloc(256 * 1024);
    int n;

    for (n = 0; n < max; n++) {
        ssize_t len = recv(f->kernel, buf, 256 * 1024, MSG_DONTWAIT);

        if (len < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            break;
        }
        append_be32(log, len);
        g_byte_array_append(log, buf, len);
    }
    return n;
}

static void append_log(GByteArray *log, const struct virtio_net_hdr *hdr,
                       const char *bytes, size_t len)
{
    append_be32(log, sizeof(*hdr) + len);
    g_byte_array_append(log, (const uint8_t *)hdr, sizeof(*hdr));
    append_frame(log, bytes, len);
}

/* A message of the stream; @vnet_hdr_len is -1 if the stream has none */
static void append_message(GByteArray *stream, int vnet_hdr_len,
                           const struct virtio_net_hdr *hdr,
                           const char *bytes, size_t len)
{
    static const uint8_t filler[64] = {
        [0 ... 63] = 0xee,
    };

    if (vnet_hdr_len < 0) {
        append_be32(stream, len);
    } else {
        int n = MIN(vnet_hdr_len, sizeof(*hdr));

        append_be32(stream, vnet_hdr_len + len);
        append_be32(stream, vnet_hdr_len);
        g_byte_array_append(stream, (const uint8_t *)hdr, n);
        g_byte_array_append(stream, filler, vnet_hdr_len - n);
    }
    append_frame(stream, bytes, len);
}

/* What a capture makes of it for a stream without vnet headers */
static void append_complete(GByteArray *stream, const Message *m)
{
    if (!m->segments[0].len) {
        append_message(stream, -1, NULL, m->completed ?: m->bytes, m->len);
        return;
    }
    for (int i = 0; i < ARRAY_SIZE(m->segments); i++) {
        append_message(stream, -1, NULL, m->segments[i].bytes,
                       m->segments[i].len);
    }
}

/* Read in pieces of @chunk bytes all that there is */
static void drain(Fixture *f, size_t chunk, GByteArray *out)
{
    g_autofree char *buf = g_malloc(chunk);
    ssize_t ret;

    while (true) {
        ret = qio_channel_read(f->ioc, buf, chunk, &error_abort);
        if (ret == QIO_CHANNEL_ERR_BLOCK) {
            break;
        }
        g_assert_cmpint(ret, >, 0);
        g_assert_cmpint(ret, <=, chunk);
        g_byte_array_append(out, (uint8_t *)buf, ret);
    }
}

/* Write in pieces of @chunk bytes; the kernel always has room */
static void feed(Fixture *f, const uint8_t *data, size_t len, size_t chunk,
                 GByteArray *log)
{
    while (len) {
        size_t n = MIN(len, chunk);
        ssize_t ret = qio_channel_write(f->ioc, (const char *)data, n,
                                        &error_abort);

        kernel_recv(f, log, INT_MAX);
        if (ret == QIO_CHANNEL_ERR_BLOCK) {
            continue;
        }
        g_assert_cmpint(ret, >, 0);
        g_assert_cmpint(ret, <=, n);
        data += ret;
        len -= ret;
    }
}

static const size_t chunks[] = { 1, 3, 7, 64, 4095, 1024 * 1024 };

/*
 * Each frame is followed by a small one, read together with it: by then the
 * stream has to be in step.
 */
static void test_capture(const void *opaque)
{
    static const struct virtio_net_hdr no_hdr;
    const Message *m = opaque;
    int vnet;
    int i;

    for (vnet = 0; vnet < 2; vnet++) {
        size_t dropped = vnet ? m->dropped_vnet : m->dropped;

        for (i = 0; i < ARRAY_SIZE(chunks); i++) {
            g_autoptr(GByteArray) expect = g_byte_array_new();
            g_autoptr(GByteArray) got = g_byte_array_new();
            QIOChannelPacketStats stats = { 0 };
            Fixture f;

            fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, vnet);
            kernel_send(&f, &m->hdr, m->bytes, m->len);
            kernel_send(&f, &no_hdr, NULL, 61);
            drain(&f, chunks[i], got);

            if (!dropped && vnet) {
                append_message(expect, VNET_HDR_LEN, &m->hdr, m->bytes, m->len);
            } else if (!dropped) {
                append_complete(expect, m);
            }
            append_message(expect, vnet ? VNET_HDR_LEN : -1, &no_hdr, NULL, 61);
            g_assert_cmpmem(got->data, got->len, expect->data, expect->len);

            /* A capture counts what it received, even if it cannot travel */
            qio_channel_packet_get_stats(f.pioc, &stats);
            g_assert_cmpint(stats.frames, >=, dropped ? 1 : 2);
            g_assert_cmpint(stats.bytes, >=, 61 + (dropped ? 0 : m->len));
            stats.frames = stats.bytes = 0;
            if (dropped) {
                count(&stats, dropped, -1);
            }
            g_assert(buffer_is_zero(&stats, sizeof(stats)));
            fixture_clear(&f);
        }
    }
}

/* Many frames in one read, and a read into many buffers */
static void test_capture_merged(void)
{
    static const struct virtio_net_hdr no_hdr;
    g_autoptr(GByteArray) expect = g_byte_array_new();
    uint8_t buf[1000];
    struct iovec iov[] = {
        { .iov_base = buf, .iov_len = 1 },
        { .iov_base = buf + 1, .iov_len = 70 },
        { .iov_base = buf + 71, .iov_len = 0 },
        { .iov_base = buf + 71, .iov_len = 5 },
        { .iov_base = buf + 76, .iov_len = 900 },
    };
    ssize_t got = 0;
    Fixture f;
    int i;

    fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, false);
    for (i = 0; i < 10; i++) {
        kernel_send(&f, &no_hdr, NULL, 60 + i);
        append_message(expect, -1, &no_hdr, NULL, 60 + i);
    }

    got = qio_channel_readv(f.ioc, iov, ARRAY_SIZE(iov), &error_abort);
    g_assert_cmpint(got, >, 71);
    while (got < expect->len) {
        ssize_t ret = qio_channel_read(f.ioc, (char *)buf + got,
                                       sizeof(buf) - got, &error_abort);

        g_assert_cmpint(ret, >, 0);
        got += ret;
    }
    g_assert_cmpmem(buf, got, expect->data, expect->len);
    assert_stats(&f, &(QIOChannelPacketStats) {
        .frames = 10,
        .bytes = 645,
    });
    fixture_clear(&f);
}

/* The same messages through the frame face */
static void test_capture_frames(void)
{
    QIOChannelPacketStats stats;
    QIOChannelPacketFrame frame;
    Fixture f;
    int i;

    fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, false);
    g_assert_cmpint(qio_channel_packet_recv_frame(f.pioc, &frame,
                                                  &error_abort),
                    ==, QIO_CHANNEL_ERR_BLOCK);

    for (i = 0; i < ARRAY_SIZE(capture_messages); i++) {
        const Message *m = &capture_messages[i];
        g_autoptr(GByteArray) expect = g_byte_array_new();
        int ret;

        kernel_send(&f, &m->hdr, m->bytes, m->len);
        ret = qio_channel_packet_recv_frame(f.pioc, &frame, &error_abort);
        g_assert_cmpint(ret, ==, !m->dropped_vnet);
        if (ret) {
            append_frame(expect, m->bytes, m->len);
            g_assert_cmpmem(frame.data, frame.len, expect->data, expect->len);
            g_assert_cmpmem(&frame.vnet_hdr, VNET_HDR_LEN,
                            &m->hdr, VNET_HDR_LEN);
        }
    }

    g_assert_cmpint(qio_channel_packet_recv_frame(f.pioc, &frame,
                                                  &error_abort),
                    ==, QIO_CHANNEL_ERR_BLOCK);
    qio_channel_packet_get_stats(f.pioc, &stats);
    g_assert_cmpint(stats.dropped_truncated, ==, 2);
    fixture_clear(&f);
}

typedef struct InjectMessage {
    const char *name;
    int vnet_hdr_len;           /* -1: no vnet headers in the stream */
    struct virtio_net_hdr hdr;
    size_t len;                 /* behind the vnet header */
    bool unusable;
    /* for a vnet header that is longer than its message */
    int missing;
} InjectMessage;

#define SOME_HDR                                        \
    {                                                   \
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,           \
        .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,           \
        .hdr_len = 54,                                  \
        .gso_size = 1460,                               \
        .csum_start = 34,                               \
        .csum_offset = 16,                              \
    }

static const InjectMessage inject_messages[] = {
    { .name = "minimum", .vnet_hdr_len = -1, .len = 60 },
    { .name = "full size", .vnet_hdr_len = -1, .len = 1514 },
    { .name = "jumbo", .vnet_hdr_len = -1, .len = 9014 },
    { .name = "longest", .vnet_hdr_len = -1, .len = QIO_CHANNEL_PACKET_MAX },
    { .name = "nothing", .vnet_hdr_len = -1, .len = 0, .unusable = true },

    { .name = "vnet 0", .vnet_hdr_len = 0, .len = 60 },
    { .name = "vnet 10", .vnet_hdr_len = 10, .hdr = SOME_HDR, .len = 60 },
    { .name = "vnet 12", .vnet_hdr_len = 12, .hdr = SOME_HDR, .len = 60 },
    { .name = "vnet 20", .vnet_hdr_len = 20, .hdr = SOME_HDR, .len = 60 },
    { .name = "vnet 10, zero", .vnet_hdr_len = 10, .len = 60 },
    { .name = "vnet 10, GSO", .vnet_hdr_len = 10, .hdr = SOME_HDR,
      .len = 20054 },
    { .name = "vnet 10, longest", .vnet_hdr_len = 10,
      .len = QIO_CHANNEL_PACKET_MAX - 10 },
    { .name = "vnet 12, longest", .vnet_hdr_len = 12,
      .len = QIO_CHANNEL_PACKET_MAX - 12 },

    { .name = "vnet 0, nothing", .vnet_hdr_len = 0, .len = 0,
      .unusable = true },
    { .name = "vnet 1", .vnet_hdr_len = 1, .len = 60, .unusable = true },
    { .name = "vnet 9", .vnet_hdr_len = 9, .len = 60, .unusable = true },
    { .name = "vnet 10, no frame", .vnet_hdr_len = 10, .len = 0,
      .unusable = true },
    { .name = "vnet 12, no frame", .vnet_hdr_len = 12, .len = 0,
      .unusable = true },
    { .name = "vnet 12 in 11", .vnet_hdr_len = 12, .len = 0, .missing = 1,
      .unusable = true },
    { .name = "vnet 10 in 0", .vnet_hdr_len = 10, .len = 0, .missing = 10,
      .unusable = true },
    { .name = "vnet 64 in 5", .vnet_hdr_len = 64, .len = 0, .missing = 59,
      .unusable = true },
};

static void append_inject(GByteArray *stream, const InjectMessage *m)
{
    guint start = stream->len;

    append_message(stream, m->vnet_hdr_len, &m->hdr, NULL, m->len);
    if (m->missing) {
        stl_be_p(stream->data + start, m->vnet_hdr_len + m->len - m->missing);
        g_byte_array_set_size(stream, stream->len - m->missing);
    }
}

/* Each message is followed by a good one, to see that nothing is off */
static void test_inject(const void *opaque)
{
    static const struct virtio_net_hdr no_hdr;
    const InjectMessage *m = opaque;
    bool vnet = m->vnet_hdr_len >= 0;
    int i;

    for (i = 0; i < ARRAY_SIZE(chunks); i++) {
        g_autoptr(GByteArray) stream = g_byte_array_new();
        g_autoptr(GByteArray) expect = g_byte_array_new();
        g_autoptr(GByteArray) got = g_byte_array_new();
        Fixture f;

        append_inject(stream, m);
        append_message(stream, vnet ? VNET_HDR_LEN : -1, &no_hdr, NULL, 61);
        if (!m->unusable) {
            append_log(expect, &m->hdr, NULL, m->len);
        }
        append_log(expect, &no_hdr, NULL, 61);

        fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, vnet);
        feed(&f, stream->data, stream->len, chunks[i], got);
        g_assert_cmpmem(got->data, got->len, expect->data, expect->len);
        assert_stats(&f, &(QIOChannelPacketStats) {
            .frames = 1 + !m->unusable,
            .bytes = 61 + (m->unusable ? 0 : m->len),
            .dropped_invalid = m->unusable,
        });
        fixture_clear(&f);
    }
}

/* One write up to each byte of the stream, one from there to the end */
static void test_inject_split(void)
{
    int vnet;

    for (vnet = 0; vnet < 2; vnet++) {
        g_autoptr(GByteArray) stream = g_byte_array_new();
        g_autoptr(GByteArray) expect = g_byte_array_new();
        size_t split;
        int i;

        for (i = 0; i < ARRAY_SIZE(inject_messages); i++) {
            const InjectMessage *m = &inject_messages[i];

            if (m->len <= 60 && (m->vnet_hdr_len >= 0) == vnet) {
                append_inject(stream, m);
                if (!m->unusable) {
                    append_log(expect, &m->hdr, NULL, m->len);
                }
            }
        }

        for (split = 0; split <= stream->len; split++) {
            g_autoptr(GByteArray) got = g_byte_array_new();
            Fixture f;

            fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, vnet);
            feed(&f, stream->data, split, split ?: 1, got);
            feed(&f, stream->data + split, stream->len - split,
                 stream->len, got);
            g_assert_cmpmem(got->data, got->len, expect->data, expect->len);
            fixture_clear(&f);
        }
    }
}

/* A frame must not wait for a byte of the next message */
static void test_inject_last_byte(void)
{
    static const struct virtio_net_hdr no_hdr;
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) got = g_byte_array_new();
    Fixture f;

    append_message(stream, -1, &no_hdr, NULL, 60);
    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, false);
    feed(&f, stream->data, stream->len - 1, stream->len, got);
    g_assert_cmpint(got->len, ==, 0);
    feed(&f, stream->data + stream->len - 1, 1, 1, got);
    g_assert_cmpint(got->len, ==, 4 + VNET_HDR_LEN + 60);
    fixture_clear(&f);
}

/* A length that cannot be: the stream is lost, what was before it is not */
static void test_inject_bad_length(void)
{
    static const struct virtio_net_hdr no_hdr;
    static const uint32_t lengths[] = {
        QIO_CHANNEL_PACKET_MAX + 1, 0x7fffffff, 0x80000000, UINT32_MAX,
    };
    int vnet;
    int i, j;

    for (i = 0; i < ARRAY_SIZE(lengths); i++) {
        for (vnet = 0; vnet < 2; vnet++) {
            g_autoptr(GByteArray) stream = g_byte_array_new();
            g_autoptr(GByteArray) log = g_byte_array_new();
            Error *err = NULL;
            ssize_t ret;
            size_t done = 0;
            Fixture f;

            append_message(stream, vnet ? VNET_HDR_LEN : -1, &no_hdr, NULL, 60);
            append_be32(stream, lengths[i]);
            append_be32(stream, VNET_HDR_LEN);
            append_pattern(stream, 100);

            fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, vnet);
            do {
                ret = qio_channel_write(f.ioc, (char *)stream->data + done,
                                        stream->len - done, &err);
                done += MAX(ret, 0);
            } while (ret >= 0 && done < stream->len);
            g_assert_cmpint(ret, ==, -1);
            error_free_or_abort(&err);
            g_assert_cmpint(kernel_recv(&f, log, INT_MAX), ==, 1);

            /* No good message heals the stream, whole or by the byte */
            ret = qio_channel_write(f.ioc, (char *)stream->data, 82, &err);
            g_assert_cmpint(ret, ==, -1);
            error_free_or_abort(&err);
            for (j = 0; j < ARRAY_SIZE(chunks); j++) {
                g_autofree char *zeros = g_malloc0(chunks[j]);

                ret = qio_channel_write(f.ioc, zeros, chunks[j], &err);
                g_assert_cmpint(ret, ==, -1);
                error_free_or_abort(&err);
            }
            g_assert_cmpint(kernel_recv(&f, log, INT_MAX), ==, 0);
            fixture_clear(&f);
        }
    }
}

/* The kernel can never take this one: dropped, and on with the next */
static void test_inject_too_big(void)
{
    static const struct virtio_net_hdr no_hdr;
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) expect = g_byte_array_new();
    g_autoptr(GByteArray) got = g_byte_array_new();
    int size = 4608;
    Fixture f;

    append_message(stream, -1, &no_hdr, NULL, 60000);
    append_message(stream, -1, &no_hdr, NULL, 60);
    append_log(expect, &no_hdr, NULL, 60);

    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, false);
    /* A message over the send buffer's size gives EMSGSIZE */
    setsockopt(qio_channel_packet_get_fd(f.pioc), SOL_SOCKET, SO_SNDBUF,
               &size, sizeof(size));
    feed(&f, stream->data, stream->len, stream->len, got);
    g_assert_cmpmem(got->data, got->len, expect->data, expect->len);
    assert_stats(&f, &(QIOChannelPacketStats) {
        .frames = 1,
        .bytes = 60,
        .dropped_mtu = 1,
    });
    fixture_clear(&f);
}

/* Enough to fill the socketpair some times over */
#define FULL_FRAMES 2000
#define FULL_LEN 1500

/*
 * The kernel has no room: the message is not accepted, or not its last byte,
 * and writing that again is what sends the frame.  Nothing is lost or doubled.
 */
static void test_inject_full(const void *opaque)
{
    static const struct virtio_net_hdr no_hdr;
    size_t chunk = GPOINTER_TO_SIZE(opaque);
    size_t message = sizeof(uint32_t) + FULL_LEN;
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) expect = g_byte_array_new();
    g_autoptr(GByteArray) got = g_byte_array_new();
    QIOChannelPacketStats stats;
    unsigned blocked = 0;
    unsigned received = 0;
    size_t done = 0;
    Fixture f;
    int i;

    for (i = 0; i < FULL_FRAMES; i++) {
        append_message(stream, -1, &no_hdr, NULL, FULL_LEN);
        stl_be_p(stream->data + stream->len - FULL_LEN, i);
        append_log(expect, &no_hdr, NULL, FULL_LEN);
        stl_be_p(expect->data + expect->len - FULL_LEN, i);
    }

    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, false);
    while (done < stream->len) {
        size_t n = MIN(chunk, stream->len - done);
        ssize_t ret = qio_channel_write(f.ioc, (char *)stream->data + done, n,
                                        &error_abort);

        g_assert_cmpint(ret, !=, 0);
        g_assert_cmpint(ret, <=, n);
        if (ret > 0) {
            done += ret;
        }
        if (ret > 0) {
            continue;
        }

        /* As full as that: nothing of a message is gone, or all but a byte */
        if (done % message) {
            g_assert_cmpint(done % message, ==, message - 1);
            ret = qio_channel_write(f.ioc, (char *)stream->data + done, 1,
                                    &error_abort);
            g_assert_cmpint(ret, ==, QIO_CHANNEL_ERR_BLOCK);
        }

        /* The messages before it have arrived, this one has not */
        blocked++;
        received += kernel_recv(&f, got, 1 + blocked % 50);
        g_assert_cmpint(received, <=, done / message);
    }
    kernel_recv(&f, got, INT_MAX);
    g_assert_cmpint(blocked, >, 1);
    g_assert_cmpmem(got->data, got->len, expect->data, expect->len);

    qio_channel_packet_get_stats(f.pioc, &stats);
    g_assert_cmpint(stats.frames, ==, FULL_FRAMES);
    g_assert_cmpint(stats.bytes, ==, FULL_FRAMES * FULL_LEN);
    g_assert_cmpint(stats.no_room, >=, blocked);
    fixture_clear(&f);
}

/* Many messages in one write, some of them not to be sent: order is kept */
static void test_inject_batch(void)
{
    static const struct virtio_net_hdr no_hdr;
    const struct virtio_net_hdr some_hdr = SOME_HDR;
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) expect = g_byte_array_new();
    g_autoptr(GByteArray) got = g_byte_array_new();
    QIOChannelPacketStats stats;
    int size = 65536;
    int unusable = 0;
    int too_big = 0;
    Fixture f;
    int i;

    for (i = 0; i < 1000; i++) {
        const struct virtio_net_hdr *hdr = i % 3 ? &some_hdr : &no_hdr;

        if (i % 130 == 100) {
            append_message(stream, VNET_HDR_LEN, hdr, NULL, 66000);
            too_big++;
        } else if (i % 7 == 0) {
            append_message(stream, VNET_HDR_LEN, hdr, NULL, 0);
            unusable++;
        } else {
            append_message(stream, VNET_HDR_LEN, hdr, NULL, 60 + i);
            append_log(expect, hdr, NULL, 60 + i);
        }
    }

    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, true);
    /* A message over the send buffer's size gives EMSGSIZE */
    setsockopt(qio_channel_packet_get_fd(f.pioc), SOL_SOCKET, SO_SNDBUF,
               &(int) { size / 2 }, sizeof(size));
    feed(&f, stream->data, stream->len, stream->len, got);
    g_assert_cmpmem(got->data, got->len, expect->data, expect->len);

    qio_channel_packet_get_stats(f.pioc, &stats);
    g_assert_cmpint(stats.frames, ==, 1000 - unusable - too_big);
    g_assert_cmpint(stats.dropped_invalid, ==, unusable);
    g_assert_cmpint(stats.dropped_mtu, ==, too_big);
    fixture_clear(&f);
}

typedef struct Watch {
    GMainContext *ctx;
    GIOCondition condition;     /* of the last time */
    unsigned fired;
    bool expired;
} Watch;

static gboolean watch_fired(QIOChannel *ioc, GIOCondition condition,
                            gpointer opaque)
{
    Watch *w = opaque;

    w->condition = condition;
    w->fired++;
    return G_SOURCE_CONTINUE;
}

static gboolean watch_expired(gpointer opaque)
{
    ((Watch *)opaque)->expired = true;
    return G_SOURCE_CONTINUE;
}

/* Both ways of making a watch, neither in the default context */
static GSource *watch_add(Watch *w, QIOChannel *ioc, GIOCondition condition,
                          bool create)
{
    GSource *source;

    if (create) {
        source = qio_channel_create_watch(ioc, condition);
        g_source_set_callback(source, (GSourceFunc)watch_fired, w, NULL);
        g_source_attach(source, w->ctx);
        g_source_unref(source);
    } else {
        guint id = qio_channel_add_watch_full(ioc, condition, watch_fired, w,
                                              NULL, w->ctx);
        source = g_main_context_find_source_by_id(w->ctx, id);
    }
    return source;
}

static void watch_run(Watch *w, unsigned fired)
{
    GSource *limit = g_timeout_source_new(TIME_LIMIT);

    g_source_set_callback(limit, watch_expired, w, NULL);
    g_source_attach(limit, w->ctx);
    while (w->fired < fired && !w->expired) {
        g_main_context_iteration(w->ctx, true);
    }
    g_assert_false(w->expired);
    g_source_destroy(limit);
    g_source_unref(limit);
}

static void watch_assert_quiet(Watch *w)
{
    unsigned fired = w->fired;
    int i;

    for (i = 0; i < 10; i++) {
        g_main_context_iteration(w->ctx, false);
    }
    g_assert_cmpint(w->fired, ==, fired);
}

static void test_watch_in(const void *opaque)
{
    static const struct virtio_net_hdr no_hdr;
    Watch w = { .ctx = g_main_context_new() };
    GSource *source;
    char buf[100];
    Fixture f;

    fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, false);
    source = watch_add(&w, f.ioc, G_IO_IN, opaque != NULL);
    watch_assert_quiet(&w);

    kernel_send(&f, &no_hdr, NULL, 60);
    watch_run(&w, 1);
    g_assert_cmpint(w.condition, ==, G_IO_IN);

    /* The socket is empty now, the message is not read to its end */
    g_assert_cmpint(qio_channel_read(f.ioc, buf, 1, &error_abort), ==, 1);
    watch_run(&w, 2);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, 62, &error_abort), ==, 62);
    watch_run(&w, 3);
    g_assert_cmpint(w.condition, ==, G_IO_IN);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, 10, &error_abort), ==, 1);
    watch_assert_quiet(&w);

    kernel_send(&f, &no_hdr, NULL, 60);
    watch_run(&w, 4);

    g_source_destroy(source);
    g_main_context_unref(w.ctx);
    fixture_clear(&f);
}

/*
 * Of a frame that is cut the socket knows nothing any more: not between two of
 * its segments, when a message has been read to its end; nor before the first,
 * when a read has given up after 64 drops.  There is more, nevertheless.
 */
static void test_watch_segments(const void *opaque)
{
    static const struct virtio_net_hdr no_hdr;
    static const Message m = { TCP_GSO };
    g_autoptr(GByteArray) expect = g_byte_array_new();
    g_autoptr(GByteArray) got = g_byte_array_new();
    Watch w = { .ctx = g_main_context_new() };
    GSource *source;
    char buf[100];
    Fixture f;

    append_complete(expect, &m);
    fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, false);
    source = watch_add(&w, f.ioc, G_IO_IN, opaque != NULL);
    for (int i = 0; i < 63; i++) {
        kernel_send(&f, &no_hdr, NULL, 0);
    }
    kernel_send(&f, &m.hdr, m.bytes, m.len);
    watch_run(&w, 1);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, 1, &error_abort),
                    ==, QIO_CHANNEL_ERR_BLOCK);
    for (int i = 0; i < ARRAY_SIZE(m.segments); i++) {
        ssize_t len = sizeof(uint32_t) + m.segments[i].len;

        watch_run(&w, w.fired + 1);
        g_assert_cmpint(w.condition, ==, G_IO_IN);
        g_assert_cmpint(qio_channel_read(f.ioc, buf, len, &error_abort),
                        ==, len);
        g_byte_array_append(got, (uint8_t *)buf, len);
    }
    g_assert_cmpmem(got->data, got->len, expect->data, expect->len);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, 1, &error_abort),
                    ==, QIO_CHANNEL_ERR_BLOCK);
    watch_assert_quiet(&w);

    g_source_destroy(source);
    g_main_context_unref(w.ctx);
    fixture_clear(&f);
}

/*
 * A packet socket without room polls as writable: time alone makes the watch
 * fire again, and not at once, or the main loop would spin.
 */
static void test_watch_out(const void *opaque)
{
    static const struct virtio_net_hdr no_hdr;
    Watch w = { .ctx = g_main_context_new() };
    g_autoptr(GByteArray) message = g_byte_array_new();
    g_autoptr(GByteArray) log = g_byte_array_new();
    GSource *source;
    size_t done = 0;
    ssize_t ret;
    int64_t start;
    Fixture f;
    int i;

    append_message(message, -1, &no_hdr, NULL, FULL_LEN);
    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, false);
    source = watch_add(&w, f.ioc, G_IO_OUT, opaque != NULL);
    watch_run(&w, 1);
    g_assert_cmpint(w.condition, ==, G_IO_OUT);

    do {
        ret = qio_channel_write(f.ioc, (char *)message->data + done,
                                message->len - done, &error_abort);
        done = ret > 0 ? (done + ret) % message->len : done;
    } while (ret != QIO_CHANNEL_ERR_BLOCK);
    g_assert_cmpint(done, ==, 0);

    start = g_get_monotonic_time();
    for (i = 0; i < 20; i++) {
        watch_run(&w, w.fired + 1);
        g_assert_cmpint(w.condition, ==, G_IO_OUT);
        ret = qio_channel_write(f.ioc, (char *)message->data, message->len,
                                &error_abort);
        g_assert_cmpint(ret, ==, QIO_CHANNEL_ERR_BLOCK);
    }
    g_assert_cmpint(g_get_monotonic_time() - start, >=,
                    20 * QIO_CHANNEL_PACKET_RETRY_US / 2);

    kernel_recv(&f, log, INT_MAX);
    watch_run(&w, w.fired + 1);
    ret = qio_channel_write(f.ioc, (char *)message->data, message->len,
                            &error_abort);
    g_assert_cmpint(ret, ==, message->len);
    g_assert_cmpint(kernel_recv(&f, log, INT_MAX), ==, 1);
    /* Room again: there is nothing to wait for */
    watch_run(&w, w.fired + 1);

    g_source_destroy(source);
    g_main_context_unref(w.ctx);
    fixture_clear(&f);
}

/* Out of step for good: who waits for anything must learn of it, and close */
static void test_watch_broken(const void *opaque)
{
    static const GIOCondition conditions[] = { G_IO_IN, G_IO_OUT, G_IO_HUP };
    char length[8] = { 0 };
    Error *err = NULL;
    Fixture f;
    int i;

    stl_be_p(length, 0x80000000);
    for (i = 0; i < ARRAY_SIZE(conditions); i++) {
        Watch w = { .ctx = g_main_context_new() };
        GSource *source;

        fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, i % 2);
        source = watch_add(&w, f.ioc, conditions[i], opaque != NULL);
        g_assert_cmpint(qio_channel_write(f.ioc, length, sizeof(length), &err),
                        ==, -1);
        error_free_or_abort(&err);
        watch_run(&w, 1);
        g_assert_cmpint(w.condition, ==, conditions[i]);
        g_source_destroy(source);
        g_main_context_unref(w.ctx);
        fixture_clear(&f);
    }
}

/* A blocking channel that has to wait makes a watch: this tells when */
static GSource *(*create_watch)(QIOChannel *ioc, GIOCondition condition);
static QemuSemaphore waiting;

static GSource *create_watch_and_tell(QIOChannel *ioc, GIOCondition condition)
{
    qemu_sem_post(&waiting);
    return create_watch(ioc, condition);
}

static void *thread_send(void *opaque)
{
    static const struct virtio_net_hdr no_hdr;

    g_assert_cmpint(qemu_sem_timedwait(&waiting, TIME_LIMIT), ==, 0);
    kernel_send(opaque, &no_hdr, NULL, 60);
    return NULL;
}

static void *thread_recv(void *opaque)
{
    g_autoptr(GByteArray) log = g_byte_array_new();
    unsigned n = 0;

    g_assert_cmpint(qemu_sem_timedwait(&waiting, TIME_LIMIT), ==, 0);
    while (n < FULL_FRAMES) {
        Fixture *f = opaque;
        GPollFD fd = { .fd = f->kernel, .events = G_IO_IN };

        g_assert_cmpint(g_poll(&fd, 1, TIME_LIMIT), ==, 1);
        n += kernel_recv(f, log, INT_MAX);
    }
    return NULL;
}

static void test_blocking(void)
{
    static const struct virtio_net_hdr no_hdr;
    g_autoptr(GByteArray) message = g_byte_array_new();
    QIOChannelClass *klass;
    char buf[64];
    GThread *thread;
    ssize_t done, ret;
    Fixture f;
    int i;

    append_message(message, -1, &no_hdr, NULL, 60);
    fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, false);
    qemu_sem_init(&waiting, 0);
    klass = QIO_CHANNEL_GET_CLASS(f.ioc);
    create_watch = klass->io_create_watch;
    klass->io_create_watch = create_watch_and_tell;
    qio_channel_set_blocking(f.ioc, true, &error_abort);
    thread = g_thread_new("send", thread_send, &f);
    for (done = 0; done < sizeof(buf); done += ret) {
        ret = qio_channel_read(f.ioc, buf + done, sizeof(buf) - done,
                               &error_abort);
        g_assert_cmpint(ret, >, 0);
    }
    g_assert_cmpmem(buf, sizeof(buf), message->data, message->len);
    g_thread_join(thread);

    /* And back */
    qio_channel_set_blocking(f.ioc, false, &error_abort);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, sizeof(buf), &error_abort),
                    ==, QIO_CHANNEL_ERR_BLOCK);
    fixture_clear(&f);

    g_byte_array_set_size(message, 0);
    append_message(message, -1, &no_hdr, NULL, FULL_LEN);
    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, false);
    qio_channel_set_blocking(f.ioc, true, &error_abort);
    thread = g_thread_new("recv", thread_recv, &f);
    for (i = 0; i < FULL_FRAMES; i++) {
        for (done = 0; done < message->len; done += ret) {
            ret = qio_channel_write(f.ioc, (char *)message->data + done,
                                    message->len - done, &error_abort);
            g_assert_cmpint(ret, >, 0);
        }
    }
    g_thread_join(thread);
    klass->io_create_watch = create_watch;
    qemu_sem_destroy(&waiting);
    fixture_clear(&f);
}

static void test_wrong_direction(void)
{
    static const struct virtio_net_hdr no_hdr;
    g_autoptr(GByteArray) log = g_byte_array_new();
    g_autoptr(GByteArray) message = g_byte_array_new();
    Error *err = NULL;
    char buf[100];
    Fixture f;

    append_message(message, -1, &no_hdr, NULL, 60);
    fixture_init(&f, QIO_CHANNEL_PACKET_CAPTURE, false);
    g_assert_cmpint(qio_channel_write(f.ioc, (char *)message->data,
                                      message->len, &err), ==, -1);
    error_free_or_abort(&err);
    g_assert_cmpint(kernel_recv(&f, log, INT_MAX), ==, 0);
    /* It is still good for what it is for */
    kernel_send(&f, &no_hdr, NULL, 60);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, sizeof(buf), &error_abort),
                    ==, 64);
    fixture_clear(&f);

    fixture_init(&f, QIO_CHANNEL_PACKET_INJECT, false);
    kernel_send(&f, &no_hdr, NULL, 60);
    g_assert_cmpint(qio_channel_read(f.ioc, buf, sizeof(buf), &err), ==, -1);
    error_free_or_abort(&err);
    g_assert_cmpint(qio_channel_write(f.ioc, (char *)message->data,
                                      message->len, &error_abort), ==, 64);
    g_assert_cmpint(kernel_recv(&f, log, INT_MAX), ==, 1);
    fixture_clear(&f);
}

static void test_close(void)
{
    QIOChannelPacketMode mode;

    for (mode = QIO_CHANNEL_PACKET_CAPTURE; mode <= QIO_CHANNEL_PACKET_INJECT;
         mode++) {
        QIOChannelPacketStats stats;
        Error *err = NULL;
        char buf[8] = { 0 };
        ssize_t ret;
        int fd;
        Fixture f;

        fixture_init(&f, mode, false);
        fd = qio_channel_packet_get_fd(f.pioc);
        g_assert_cmpint(qio_channel_close(f.ioc, &error_abort), ==, 0);
        g_assert_cmpint(fcntl(fd, F_GETFD), ==, -1);
        g_assert_cmpint(recv(f.kernel, buf, sizeof(buf), 0), ==, 0);

        /* The number may have a new owner by the time of these */
        g_assert_cmpint(dup2(f.kernel, fd), ==, fd);
        g_assert_cmpint(qio_channel_close(f.ioc, &error_abort), ==, 0);
        qio_channel_packet_get_stats(f.pioc, &stats);
        g_assert_cmpint(stats.frames, ==, 0);
        if (mode == QIO_CHANNEL_PACKET_CAPTURE) {
            ret = qio_channel_read(f.ioc, buf, sizeof(buf), &err);
        } else {
            stl_be_p(buf, 4);
            ret = qio_channel_write(f.ioc, buf, sizeof(buf), &err);
        }
        g_assert_cmpint(ret, ==, -1);
        error_free_or_abort(&err);
        fixture_clear(&f);
        g_assert_cmpint(fcntl(fd, F_GETFD), !=, -1);
        close(fd);
    }
}

/* Sockets that are not AF_PACKET are refused, and stay their owner's */
static void test_new_fd(void)
{
    int fd[8];
    int i;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), ==, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd + 2), ==, 0);
    g_assert_cmpint(pipe(fd + 4), ==, 0);
    fd[6] = socket(AF_INET, SOCK_DGRAM, 0);
    fd[7] = open("/dev/null", O_RDWR);

    for (i = 0; i < ARRAY_SIZE(fd); i++) {
        QIOChannelPacketMode mode = i % 2;
        Error *err = NULL;

        g_assert_cmpint(fd[i], !=, -1);
        g_assert_false(qio_channel_packet_is_packet_socket(fd[i]));
        g_assert_null(qio_channel_packet_new_fd(fd[i], mode, &err));
        g_assert_nonnull(err);
        g_assert_nonnull(strstr(error_get_pretty(err), "AF_PACKET"));
        error_free(err);
        g_assert_cmpint(close(fd[i]), ==, 0);
    }
    g_assert_false(qio_channel_packet_is_packet_socket(-1));
}

static void test_new_ifname(void)
{
    Error *err = NULL;

    /* No such name can be: an error with or without privileges */
    g_assert_null(qio_channel_packet_new_ifname("no/such/if",
                                                QIO_CHANNEL_PACKET_CAPTURE,
                                                &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "no/such/if"));
    error_free(err);
}

static void add_data_func(const char *dir, const char *name, const void *data,
                          GTestDataFunc func)
{
    g_autofree char *path = g_strdup_printf("/io/channel/packet/%s/%s",
                                            dir, name);

    g_test_add_data_func(g_strdelimit(path, " ,", '-'), data, func);
}

int main(int argc, char **argv)
{
    int i;

    /* Each drop is reported once for a channel, and there are hundreds */
    g_setenv("QTEST_SILENT_ERRORS", "1", true);

    module_call_init(MODULE_INIT_QOM);

    g_test_init(&argc, &argv, NULL);

    for (i = 0; i < ARRAY_SIZE(capture_messages); i++) {
        add_data_func("capture", capture_messages[i].name,
                      &capture_messages[i], test_capture);
    }
    g_test_add_func("/io/channel/packet/capture/merged", test_capture_merged);
    g_test_add_func("/io/channel/packet/capture/frames", test_capture_frames);

    for (i = 0; i < ARRAY_SIZE(inject_messages); i++) {
        add_data_func("inject", inject_messages[i].name,
                      &inject_messages[i], test_inject);
    }
    g_test_add_func("/io/channel/packet/inject/split", test_inject_split);
    g_test_add_func("/io/channel/packet/inject/last-byte",
                    test_inject_last_byte);
    g_test_add_func("/io/channel/packet/inject/bad-length",
                    test_inject_bad_length);
    g_test_add_func("/io/channel/packet/inject/too-big", test_inject_too_big);
    add_data_func("inject", "full/messages", GSIZE_TO_POINTER(4 + FULL_LEN),
                  test_inject_full);
    add_data_func("inject", "full/pieces", GSIZE_TO_POINTER(999),
                  test_inject_full);
    add_data_func("inject", "full/merged", GSIZE_TO_POINTER(65536),
                  test_inject_full);
    g_test_add_func("/io/channel/packet/inject/batch", test_inject_batch);

    add_data_func("watch", "in/add", NULL, test_watch_in);
    add_data_func("watch", "in/create", "", test_watch_in);
    add_data_func("watch", "segments/add", NULL, test_watch_segments);
    add_data_func("watch", "segments/create", "", test_watch_segments);
    add_data_func("watch", "out/add", NULL, test_watch_out);
    add_data_func("watch", "out/create", "", test_watch_out);
    add_data_func("watch", "broken/add", NULL, test_watch_broken);
    add_data_func("watch", "broken/create", "", test_watch_broken);

    g_test_add_func("/io/channel/packet/blocking", test_blocking);
    g_test_add_func("/io/channel/packet/wrong-direction",
                    test_wrong_direction);
    g_test_add_func("/io/channel/packet/close", test_close);
    g_test_add_func("/io/channel/packet/new-fd", test_new_fd);
    g_test_add_func("/io/channel/packet/new-ifname", test_new_ifname);

    return g_test_run();
}
