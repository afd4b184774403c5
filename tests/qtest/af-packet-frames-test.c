/*
 * QTest testcase for the frames that filter-redirector captures and injects:
 * are they those that the guest would have received?
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * What a guest receives is what the reader of its TAP reads.  Here the test is
 * this reader; QEMU, whose VM is stopped, has taken one frame from the TAP and
 * waits.  The captured frames go into other TAPs, which the test reads, too:
 *
 *   another guest       the host                          | read by the test
 *                                                         |
 *   other.fd --> other --> bridge -+-> tap[0] ------------+-> the guest's view
 *                                  |     |                |
 *                                  |   QEMU: capture      |
 *                                  |     |                |
 *                                  |     +- inject -> out[VNET] -> the same
 *                                  |     +- inject -> out[CUT]  -> complete
 *                                  |     +- inject -> out[PLAIN] -> complete
 *                                  |                      |
 *                                  +-> whole -------------+-> complete
 *
 * The other guest leaves work to be done to its frames, a checksum or the
 * segmentation; tap[0] lets the host leave it undone, and so does out[VNET].
 * The TAP "whole" does not: what the kernel makes for it of the same frame is
 * the reference for out[CUT], which does not take unfinished frames either, and
 * for out[PLAIN], to which frames come without vnet headers.
 *
 * The kernel's own differences, which are allowed:
 *   - hdr_len, a hint, which the kernel takes from how a frame lies in memory;
 *     if it is another, it must be between the end of the headers and that of
 *     the frame;
 *   - VIRTIO_NET_HDR_F_DATA_VALID, which an AF_PACKET socket cannot pass on.
 *
 * Tested: VLAN tags of each kind; TCP and UDP over IPv4 and IPv6, with nothing
 * left to do, the checksum, and the segmentation (TSO, USO); frames up to
 * 64 KiB; the same when a migration takes them from the TAP's queue, gives them
 * back and sends them again; vnet headers of different lengths; an interface
 * with a shorter MTU; truncated frames; UDP tunnels; a TAP with several queues;
 * what is in front of the TAP: bridges with and without VLAN filtering, a
 * router, Open vSwitch.
 *
 * Not tested: real traffic (lab/exact); random super-frames
 * (tests/unit/test-packet-gso.c); macvtap (af-packet-test.c).
 *
 * Needs root; all is skipped without.
 */

#include "qemu/osdep.h"
#include "standard-headers/linux/virtio_net.h"
#include <glib/gstdio.h>
#include <linux/filter.h>
#include <linux/if_bridge.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "af-packet-helpers.h"
#include "net/tap-linux.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"


/* Frames of the other guest */

/* What it leaves to be done */
typedef enum Left {
    LEFT_NOTHING,
    LEFT_CHECKSUM,
    LEFT_SEGMENTS,
    LEFT_MAX
} Left;

typedef struct Shape {
    const uint32_t *tags;       /* TPID and TCI of each, then 0 */
    bool ipv6;
    bool tcp;
    Left left;
    size_t payload;             /* bytes behind the TCP or UDP header */
    size_t gso_size;
} Shape;

static const uint32_t tags[][4] = {
    { 0 },
    { 0x81006005 },                     /* PCP 3, VID 5 */
    { 0x8100a000 },                     /* priority tag: PCP 5, no VID */
    { 0x88a80064, 0x81006005 },         /* QinQ, IEEE 802.1ad */
    { 0x81000064, 0x81006005 },         /* QinQ, as older switches have it */
    { 0x88a80064, 0x81000065, 0x8100b000 },
};

static const uint32_t no_tags[] = { 0 };

typedef struct Frame {
    struct virtio_net_hdr hdr;
    size_t len;
    size_t ip;                  /* offsets of headers */
    size_t transport;
    size_t payload;
    uint8_t data[WIRE_MAX * 2];
} Frame;

static uint16_t pseudo_sum(const Frame *f, bool ipv6, uint8_t proto)
{
    const uint8_t *ip = f->data + f->ip;
    size_t len = f->len - f->transport;

    return ipv6 ? inet_sum(ip + 8, 32, proto + (len >> 16) + (len & 0xffff)) :
                  inet_sum(ip + 12, 8, proto + len);
}

static void fill_ipv6(uint8_t *ip, uint8_t proto, size_t len)
{
    memset(ip, 0, 40);
    ip[0] = 0x60;
    stw_be_p(ip + 4, len > 0xffff ? 0 : len);
    ip[6] = proto;
    ip[7] = 64;
    ip[8] = ip[24] = 0xfd;
    ip[23] = 1;
    ip[39] = 2;
}

static void fill_transport(uint8_t *p, bool tcp, size_t len)
{
    memset(p, 0, tcp ? 20 : 8);
    stw_be_p(p, 1000);                  /* ports */
    stw_be_p(p + 2, 2000);
    if (tcp) {
        stl_be_p(p + 4, 0xfffff000);    /* the sequence number wraps */
        p[12] = 5 << 4;                 /* header length in words */
        p[13] = 0x18;                   /* ACK, PSH */
    } else {
        stw_be_p(p + 4, len);
    }
}

static void make_frame(Frame *f, const Shape *s)
{
    uint8_t proto = s->tcp ? IPPROTO_TCP : IPPROTO_UDP;
    size_t pos = 2 * ETH_ALEN;
    uint16_t csum_offset = s->tcp ? 16 : 6;
    uint8_t *field;

    for (int i = 0; s->tags[i]; i++, pos += 4) {
        stl_be_p(f->data + pos, s->tags[i]);
    }
    stw_be_p(f->data + pos, s->ipv6 ? ETH_P_IPV6 : ETH_P_IP);
    f->ip = pos + 2;
    f->transport = f->ip + (s->ipv6 ? 40 : 20);
    f->payload = f->transport + (s->tcp ? 20 : 8);
    f->len = f->payload + s->payload;
    g_assert_cmpint(f->len, <=, sizeof(f->data));

    memcpy(f->data, mac_guest, ETH_ALEN);
    memcpy(f->data + ETH_ALEN, mac_host, ETH_ALEN);
    if (s->ipv6) {
        fill_ipv6(f->data + f->ip, proto, f->len - f->transport);
    } else {
        ip_header(f->data + f->ip, proto, f->len - f->transport);
    }
    fill_transport(f->data + f->transport, s->tcp, f->len - f->transport);
    for (size_t i = 0; i < s->payload; i++) {
        f->data[f->payload + i] = i * 7 + (i >> 8);
    }

    field = f->data + f->transport + csum_offset;
    stw_be_p(field, pseudo_sum(f, s->ipv6, proto));
    memset(&f->hdr, 0, sizeof(f->hdr));
    if (s->left == LEFT_NOTHING) {
        uint16_t sum = ~inet_sum(f->data + f->transport,
                                 f->len - f->transport, 0);

        stw_be_p(field, sum ?: 0xffff);
        return;
    }
    f->hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    f->hdr.csum_start = f->transport;
    f->hdr.csum_offset = csum_offset;
    if (s->left == LEFT_SEGMENTS) {
        f->hdr.gso_type = !s->tcp ? VIRTIO_NET_HDR_GSO_UDP_L4 :
                          s->ipv6 ? VIRTIO_NET_HDR_GSO_TCPV6 :
                                    VIRTIO_NET_HDR_GSO_TCPV4;
        f->hdr.gso_size = s->gso_size;
        f->hdr.hdr_len = f->payload;
    }
}


/* Frames that have arrived */

typedef struct Received {
    struct virtio_net_hdr hdr;
    size_t len;
    uint8_t data[];
} Received;

static Received *received_new(const struct virtio_net_hdr *hdr,
                              const uint8_t *data, size_t len)
{
    Received *r = g_malloc(sizeof(*r) + len);

    r->hdr = *hdr;
    r->len = len;
    memcpy(r->data, data, len);
    return r;
}

/* All up to a marker */
static GPtrArray *collect(Tap *tap, uint32_t marker)
{
    GPtrArray *frames = g_ptr_array_new_with_free_func(g_free);
    g_autofree uint8_t *buf = g_malloc(WIRE_MAX);
    uint8_t end[FRAME_LEN];

    frame_fill(end, marker, sizeof(end));
    while (true) {
        struct virtio_net_hdr hdr;
        size_t len = tap_recv(tap, &hdr, buf, WIRE_MAX);

        if (len == sizeof(end) && !memcmp(buf, end, len)) {
            return frames;
        }
        g_ptr_array_add(frames, received_new(&hdr, buf, len));
    }
}

/* Of a stream of messages */
static GPtrArray *collect_messages(int fd, bool vnet, size_t n)
{
    GPtrArray *frames = g_ptr_array_new_with_free_func(g_free);

    while (frames->len < n) {
        struct virtio_net_hdr hdr = { 0 };
        size_t hdr_len = 0;
        size_t len;
        g_autofree uint8_t *buf = vnet ?
            wire_recv_vnet(fd, &hdr, &hdr_len, &len) : wire_recv(fd, &len);

        g_ptr_array_add(frames, received_new(&hdr, buf + hdr_len, len));
    }
    return frames;
}

static void assert_same_metadata(const Received *a, const Received *b)
{
    g_assert_cmphex(a->hdr.flags & ~VIRTIO_NET_HDR_F_DATA_VALID,
                    ==, b->hdr.flags & ~VIRTIO_NET_HDR_F_DATA_VALID);
    if (a->hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        g_assert_cmpint(a->hdr.csum_start, ==, b->hdr.csum_start);
        g_assert_cmpint(a->hdr.csum_offset, ==, b->hdr.csum_offset);
    }
    g_assert_cmphex(a->hdr.gso_type, ==, b->hdr.gso_type);
    if (a->hdr.gso_type) {
        g_assert_cmpint(a->hdr.gso_size, ==, b->hdr.gso_size);
        if (b->hdr.hdr_len != a->hdr.hdr_len) {
            g_assert_cmpint(b->hdr.hdr_len, >=, b->hdr.csum_start +
                            b->hdr.csum_offset + 2);
            g_assert_cmpint(b->hdr.hdr_len, <=, b->len);
        }
    }
}

static void assert_same(GPtrArray *a, GPtrArray *b)
{
    for (size_t i = 0; i < MIN(a->len, b->len); i++) {
        const Received *ra = g_ptr_array_index(a, i);
        const Received *rb = g_ptr_array_index(b, i);

        g_assert_cmpmem(ra->data, ra->len, rb->data, rb->len);
        assert_same_metadata(ra, rb);
    }
    g_assert_cmpint(a->len, ==, b->len);
}


/* The host, with another guest */

enum { VNET, CUT, PLAIN, OUT_MAX };

typedef struct Net {
    Env e;
    Tap other;
    Tap whole;
    Tap out[OUT_MAX];
    uint32_t marker;
    unsigned compared;          /* frames that the guest has received */
    unsigned needs_csum;        /* those without a checksum among them */
    unsigned gso;               /* GSO frames among them */
} Net;

#define OFFLOADS_TSO (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
#define OFFLOADS_USO (OFFLOADS_TSO | TUN_F_USO4 | TUN_F_USO6)

static void net_open(Net *n, int mtu)
{
    Tap *tap[] = { &n->e.tap[0], &n->other, &n->whole,
                   &n->out[VNET], &n->out[CUT], &n->out[PLAIN] };

    memset(n, 0, sizeof(*n));
    env_init(&n->e);
    for (int i = 0; i < ARRAY_SIZE(tap); i++) {
        g_autofree char *name = g_strdup_printf("qtap%d", i);

        tap_open(tap[i], name);
        tap_set_offload(tap[i], 0);
        if_set_mtu(name, mtu);
    }
}

static bool add_port(const char *bridge, Tap *tap)
{
    g_autofree char *line = g_strdup_printf("ip link set %s master %s",
                                            tap->name, bridge);

    return host_command(line);
}

/* Bridge tap[0], other and whole; @options are those of ip link add */
static bool net_bridge(Net *n, const char *options)
{
    g_autofree char *line = g_strdup_printf("ip link add qbr0 type bridge%s",
                                            options);

    return host_command(line) && add_port("qbr0", &n->e.tap[0]) &&
           add_port("qbr0", &n->other) && add_port("qbr0", &n->whole) &&
           host_command("ip link set qbr0 up");
}

/* The VM is stopped, its one frame taken; offloads of tap[0] and out[VNET] */
static void net_start(Net *n, unsigned offload)
{
    static const char *const vnet[OUT_MAX] = {
        ",vnet_hdr_support=on", ",vnet_hdr_support=on", ""
    };

    env_start_full(&n->e, 1, true, "none", "-S");
    host_send(&n->e.tap[0], 0, FRAME_LEN);
    wait_tap_blocked(&n->e);
    tap_set_offload(&n->e.tap[0], offload);
    tap_set_offload(&n->out[VNET], offload);

    for (int i = 0; i < OUT_MAX; i++) {
        int packet = packet_socket(n->out[i].name, SOCK_RAW, 0);
        g_autofree char *chr = g_strdup_printf("inject%d", i);
        g_autofree char *id = g_strdup_printf("f%d", i);
        g_autofree char *props =
            g_strdup_printf("netdev=n0,in_netdev=n0,outdev=%s,"
                            "enable_when_stopped=on%s", chr, vnet[i]);

        assert_success(chardev_add(&n->e, chr, packet, i == PLAIN ?
                                   "af-packet-mode=inject" :
                                   "af-packet-mode=inject,"
                                   "af-packet-vnet-hdr=on"));
        close(packet);
        filter_add(&n->e, id, props);
    }
}

static void net_close(Net *n)
{
    if (n->e.qts) {
        env_stop(&n->e);
    } else {
        tap_close(&n->e.tap[0]);
    }
    tap_close(&n->other);
    tap_close(&n->whole);
    for (int i = 0; i < OUT_MAX; i++) {
        tap_close(&n->out[i]);
    }
    host_command("ip link del qbr0");
}

static void net_send(Net *n, const Frame *f)
{
    static const struct virtio_net_hdr none;
    uint8_t end[FRAME_LEN];

    if (f) {
        tap_send(&n->other, &f->hdr, f->data, f->len);
    }
    frame_fill(end, ++n->marker, sizeof(end));
    tap_send(&n->other, &none, end, sizeof(end));
}

/*
 * The frame, which is sent by the other guest, arrives in one piece or several
 * at each of the TAPs
 */
static void net_check(Net *n, const Frame *f)
{
    g_autoptr(GPtrArray) guest = NULL;
    g_autoptr(GPtrArray) whole = NULL;

    net_send(n, f);
    guest = collect(&n->e.tap[0], n->marker);
    whole = collect(&n->whole, n->marker);
    g_assert_cmpint(guest->len, >, 0);
    n->compared += guest->len;
    for (size_t i = 0; i < guest->len; i++) {
        const Received *r = g_ptr_array_index(guest, i);

        n->needs_csum += r->hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
        n->gso += r->hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE;
    }
    for (int i = 0; i < OUT_MAX; i++) {
        g_autoptr(GPtrArray) out = collect(&n->out[i], n->marker);

        assert_same(i == VNET ? guest : whole, out);
    }
}

/*
 * Bytes that are less for the payload in a frame without GSO.  The MTU of an
 * interface does not count one tag of 802.1Q, but all others (Linux 6.18).
 */
static size_t headers_len(const Shape *s)
{
    size_t len = (s->ipv6 ? 40 : 20) + (s->tcp ? 20 : 8);

    for (int i = 0; s->tags[i]; i++) {
        len += i || s->tags[0] >> 16 != ETH_P_8021Q ? 4 : 0;
    }
    return len;
}

/* A frame of less than 64 KiB: longer ones the kernel cuts for every TAP */
#define GSO_PAYLOAD 65400

static void net_check_shapes(Net *n, int mtu, bool uso,
                             void (*check)(Net *n, const Frame *f))
{
    g_autofree Frame *f = g_new(Frame, 1);

    for (int i = 0; i < ARRAY_SIZE(tags) * 2 * 2 * LEFT_MAX; i++) {
        Shape s = {
            .ipv6 = i & 1,
            .tcp = i & 2,
            .left = i / 4 % LEFT_MAX,
            .tags = tags[i / 4 / LEFT_MAX],
            .gso_size = MIN(mtu, 16000) - 72,
        };

        if (s.left == LEFT_SEGMENTS && !s.tcp && !uso) {
            continue;
        }
        for (int j = 0; j < 3; j++) {
            static const size_t payloads[] = { 2, 999 };

            s.payload = j < 2 ? payloads[j] :
                        s.left == LEFT_SEGMENTS ? GSO_PAYLOAD :
                        mtu - headers_len(&s);
            make_frame(f, &s);
            check(n, f);
        }
    }
}

typedef struct Exact {
    const char *name;
    unsigned offload;
    int mtu;
    int vnet_hdr_len[2];        /* of tap[0] and of out[VNET] */
    bool no_ring;
} Exact;

static const Exact exacts[] = {
    { "nothing", 0, 1500, { 10, 10 } },
    { "checksum", TUN_F_CSUM, 1500, { 10, 10 } },
    { "tso", OFFLOADS_TSO, 1500, { 10, 10 } },
    { "uso", OFFLOADS_USO, 1500, { 10, 10 } },
    { "no-ring", OFFLOADS_TSO, 1500, { 10, 10 }, true },
    { "jumbo", OFFLOADS_TSO, 9000, { 10, 12 } },
    { "64k", OFFLOADS_TSO, 65521, { 12, 10 } },
};

static void test_exact(const void *opaque)
{
    const Exact *t = opaque;
    bool uso = t->offload & TUN_F_USO4;
    Net n;

    net_open(&n, t->mtu);
    if (!net_bridge(&n, "")) {
        g_test_skip("no iproute2, or a kernel without bridges");
    } else if (!tap_try_offload(&n.other, t->offload)) {
        g_test_skip("the kernel has no such offloads (USO: since Linux 6.2)");
    } else {
        no_ring = t->no_ring;
        net_start(&n, t->offload);
        no_ring = false;
        tap_set_vnet_hdr_len(&n.e.tap[0], t->vnet_hdr_len[0]);
        tap_set_vnet_hdr_len(&n.out[VNET], t->vnet_hdr_len[1]);
        net_check_shapes(&n, t->mtu, uso, net_check);
        g_test_message("%u frames to the guest, %u without a checksum, %u GSO",
                       n.compared, n.needs_csum, n.gso);
        g_assert_cmpint(n.needs_csum > 0, ==, (t->offload & TUN_F_CSUM) != 0);
        g_assert_cmpint(n.gso > 0, ==, (t->offload & TUN_F_TSO4) != 0);
    }
    net_close(&n);
}


/* The same frames, on their way to the guest of a VM that migrates */

/*
 *   other.fd --> other --> bridge -+-> tap[0] --> QEMU: take --> c0
 *                                  |     ^         |
 *                                  |     +- give --+--> filter --> c1
 *                                  |       back
 *                                  +-> out[VNET]   as tap[0]
 *                                  +-> whole       complete
 */
typedef struct Switchover {
    Net n;
    bool vnet;                  /* headers, to c0 */
    GPtrArray *guest;           /* what it would have received */
    GPtrArray *sent;            /* the same as it goes to c0 */
} Switchover;

static void append_all(GPtrArray *to, GPtrArray *from, uint32_t marker)
{
    static const struct virtio_net_hdr none;
    uint8_t end[FRAME_LEN];

    for (size_t i = 0; i < from->len; i++) {
        const Received *r = g_ptr_array_index(from, i);

        g_ptr_array_add(to, received_new(&r->hdr, r->data, r->len));
    }
    frame_fill(end, marker, sizeof(end));
    g_ptr_array_add(to, received_new(&none, end, sizeof(end)));
}

static void switchover_check(Net *n, const Frame *f)
{
    Switchover *s = container_of(n, Switchover, n);
    g_autoptr(GPtrArray) guest = NULL;
    g_autoptr(GPtrArray) whole = NULL;
    g_autoptr(GPtrArray) expect = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) got = NULL;

    net_send(n, f);
    guest = collect(&n->out[VNET], n->marker);
    whole = collect(&n->whole, n->marker);
    append_all(s->guest, guest, n->marker);
    append_all(s->sent, s->vnet ? guest : whole, n->marker);
    append_all(expect, s->vnet ? guest : whole, n->marker);
    got = collect_messages(n->e.chr[0], s->vnet, expect->len);
    assert_same(expect, got);
}

static void switchover_frames(Switchover *s, bool uso)
{
    g_ptr_array_set_size(s->guest, 0);
    g_ptr_array_set_size(s->sent, 0);
    net_check_shapes(&s->n, 1500, uso, switchover_check);
    g_assert_cmpint(s->guest->len, >, 100);
}

static int compare_received(const void *a, const void *b)
{
    const Received *ra = *(Received **)a;
    const Received *rb = *(Received **)b;

    if (ra->len != rb->len) {
        return ra->len < rb->len ? -1 : 1;
    }
    return memcmp(ra->data, rb->data, ra->len) ?:
           ra->hdr.gso_type - rb->hdr.gso_type;
}

/*
 * Taken and given back to the guest; to a guest that takes nothing, so that the
 * next migration sends again what is left; and taken after the end
 */
static void switchover_run(Switchover *s, const char *uri, bool uso)
{
    Env *e = &s->n.e;
    g_autoptr(GPtrArray) back = NULL;
    g_autoptr(GPtrArray) again = NULL;

    migrate_to_pause(e, uri);
    switchover_frames(s, uso);
    migrate_cancel(e);
    back = collect_messages(e->chr[1], true, s->guest->len);
    assert_same(s->guest, back);
    filter_del(e, "reader");

    migrate_to_pause(e, uri);
    switchover_frames(s, uso);
    migrate_cancel(e);
    migrate_to_pause(e, uri);
    again = collect_messages(e->chr[0], s->vnet, s->sent->len);
    /* The first of them were in the TAP's queue by then, and come last */
    g_ptr_array_sort(s->sent, compare_received);
    g_ptr_array_sort(again, compare_received);
    assert_same(s->sent, again);

    migrate_continue(e);
    wait_migration(e, "completed");
    switchover_frames(s, uso);
    assert_silent(e, e->chr[0]);
    assert_silent(e, e->chr[1]);
}

static void test_switchover(const void *opaque)
{
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    Switchover s = {
        .guest = g_ptr_array_new_with_free_func(g_free),
        .sent = g_ptr_array_new_with_free_func(g_free),
    };
    Net *n = &s.n;
    bool uso;

    net_open(n, 1500);
    s.vnet = opaque;
    uso = tap_try_offload(&n->out[VNET], OFFLOADS_USO);
    if (!net_bridge(n, "") || !add_port("qbr0", &n->out[VNET]) ||
        !if_set_queue_len("qtap0", 10)) {
        g_test_skip("no iproute2, or a kernel without bridges");
    } else if (!skip_virtio_net()) {
        env_start_virtio_net(&n->e, "");
        filter_add(&n->e, "reader", GUEST_READER ",vnet_hdr_support=on");
        filter_add(&n->e, "f0", s.vnet ?
                   "netdev=n0,in_netdev=n0,outdev=c0,vnet_hdr_support=on"
                   ONLY_STOPPED :
                   "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
        tap_set_offload(&n->e.tap[0], uso ? OFFLOADS_USO : OFFLOADS_TSO);
        tap_set_offload(&n->out[VNET], uso ? OFFLOADS_USO : OFFLOADS_TSO);
        migrate_pause(&n->e);
        switchover_run(&s, uri, uso);
        unlink(strchr(uri, ':') + 1);
    }
    net_close(n);
    g_ptr_array_unref(s.guest);
    g_ptr_array_unref(s.sent);
}


/* Backends with vnet headers of different lengths, and the wire between */

static void test_vnet_hdr_len(void)
{
    static const int lens[] = { 10, 12, 20, 24 };
    const Shape s = {
        .tags = tags[1], .tcp = true, .left = LEFT_SEGMENTS,
        .payload = 20001, .gso_size = 1400,
    };
    g_autofree Frame *f = g_new(Frame, 1);
    g_autofree uint8_t *buf = g_malloc(WIRE_MAX);
    struct virtio_net_hdr got;
    Env e;

    env_start(&e, 1, "-S");
    tap_set_offload(&e.tap[0], OFFLOADS_TSO);
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_tap_blocked(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "vnet_hdr_support=on,enable_when_stopped=on");
    make_frame(f, &s);
    for (int i = 0; i < ARRAY_SIZE(lens); i++) {
        for (int j = 0; j < ARRAY_SIZE(lens); j++) {
            g_autoptr(GByteArray) wire = g_byte_array_new();
            size_t len;

            tap_set_vnet_hdr_len(&e.tap[0], lens[j]);
            wire_append(wire, lens[i], &f->hdr, f->data, f->len);
            write_all(e.chr[0], wire->data, wire->len);
            len = tap_recv(&e.tap[0], &got, buf, WIRE_MAX);
            g_assert_cmpmem(buf, len, f->data, f->len);
            g_assert_cmpmem(&got, sizeof(got), &f->hdr, sizeof(f->hdr));
        }
    }
    env_stop(&e);
}


/*
 * From indev to a chain, whose netdev has a vnet header of its own length: that
 * which the frame came with, made longer or shorter
 */
static void test_vnet_hdr_len_chain(void)
{
    static const int lens[] = { 0, 10, 12, 20, 24 };
    const struct virtio_net_hdr none = { 0 };
    const Shape shape = {
        .tags = tags[1], .tcp = true, .left = LEFT_SEGMENTS,
        .payload = 20001, .gso_size = 1400,
    };
    g_autofree Frame *f = g_new(Frame, 1);
    Env e;

    if (skip_virtio_net()) {
        return;
    }
    env_init(&e);
    env_start_virtio_net(&e, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,indev=c0,vnet_hdr_support=on");
    filter_add(&e, "f1", "netdev=n0,queue=tx,outdev=c1,vnet_hdr_support=on");
    make_frame(f, &shape);
    for (int i = 0; i < ARRAY_SIZE(lens); i++) {
        g_autoptr(GByteArray) wire = g_byte_array_new();
        g_autoptr(GPtrArray) got = NULL;
        const Received *r;

        wire_append(wire, lens[i], &f->hdr, f->data, f->len);
        write_all(e.chr[0], wire->data, wire->len);
        got = collect_messages(e.chr[1], true, 1);
        r = g_ptr_array_index(got, 0);
        g_assert_cmpmem(r->data, r->len, f->data, f->len);
        g_assert_cmpmem(&r->hdr, sizeof(r->hdr), lens[i] ? &f->hdr : &none,
                        sizeof(f->hdr));
    }
    env_stop(&e);
}


/* An interface whose MTU is too small */

/* A stopped QEMU whose warnings are in the file at @path, and inject f0 */
static void inject_start(Env *e, const char *path, unsigned offload)
{
    g_autofree char *options = g_strdup_printf("-S 2>>%s", path);

    env_start(e, 1, options);
    tap_set_offload(&e->tap[0], offload);
    host_send(&e->tap[0], 0, FRAME_LEN);
    wait_tap_blocked(e);
    filter_add(e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "vnet_hdr_support=on,enable_when_stopped=on");
}

static void inject(Env *e, const Frame *f)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();

    wire_append(wire, VNET_HDR_LEN, &f->hdr, f->data, f->len);
    write_all(e->chr[0], wire->data, wire->len);
}

static void inject_marker(Env *e, uint32_t seq)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();

    wire_append_seq(wire, VNET_HDR_LEN, seq, FRAME_LEN);
    write_all(e->chr[0], wire->data, wire->len);
}

/* Each of these is counted, and the first of them reported */
static void test_mtu(void)
{
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    Shape s = { .tags = no_tags, .payload = 1473 };
    g_autofree Frame *f = g_new(Frame, 1);
    g_autoptr(GPtrArray) out = NULL;
    Env e;

    inject_start(&e, path, OFFLOADS_TSO);
    make_frame(f, &s);
    g_assert_cmpint(f->len, ==, 1515);
    inject(&e, f);
    s.left = LEFT_CHECKSUM;
    s.payload = 9000;
    make_frame(f, &s);
    inject(&e, f);
    s.tags = tags[1];
    s.payload = 1473;
    make_frame(f, &s);
    g_assert_cmpint(f->len, ==, 1519);
    inject(&e, f);
    inject_marker(&e, 1);
    tap_expect(&e.tap[0], 1, FRAME_LEN);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "mtu"), ==, 3);
    wait_warned_once(&e, path, "longer than the interface's MTU allows");

    /* A tag does not count */
    s.payload = 1472;
    make_frame(f, &s);
    inject(&e, f);
    inject_marker(&e, 2);
    out = collect(&e.tap[0], 2);
    g_assert_cmpint(out->len, ==, 1);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "mtu"), ==, 3);
    env_stop(&e);
    unlink(path);
}

/* The checksums in the frame @r, whose headers are where @f has them */
static void assert_checksums(const Received *r, const Frame *f, bool ipv6)
{
    const uint8_t *ip = r->data + f->ip;
    size_t len = r->len - f->transport;
    uint16_t addresses = ipv6 ? inet_sum(ip + 8, 32, 0) :
                                inet_sum(ip + 12, 8, 0);

    if (!ipv6) {
        g_assert_cmphex(inet_sum(ip, 20, 0), ==, 0xffff);
    }
    g_assert_cmphex(inet_sum(r->data + f->transport, len,
                             addresses + ip[ipv6 ? 6 : 9] + len), ==, 0xffff);
}

/* The complete frames in @out, none over the MTU, have the payload of @f */
static void assert_stream(const Frame *f, GPtrArray *out, bool ipv6)
{
    const bool tcp = f->payload - f->transport == 20;
    const size_t most = f->ip + 1500;
    size_t done = 0;

    g_assert_cmpint(out->len, ==,
                    DIV_ROUND_UP(f->len - f->payload, most - f->payload));
    for (size_t i = 0; i < out->len; i++) {
        const Received *r = g_ptr_array_index(out, i);

        g_assert_cmpint(r->len, <=, most);
        g_assert_cmpint(r->hdr.flags | r->hdr.gso_type, ==, 0);
        if (tcp) {
            g_assert_cmpint((uint32_t)ldl_be_p(r->data + f->transport + 4),
                            ==, (uint32_t)(0xfffff000 + done));
        }
        assert_checksums(r, f, ipv6);
        g_assert_cmpmem(r->data + f->payload, r->len - f->payload,
                        f->data + f->payload + done, r->len - f->payload);
        done += r->len - f->payload;
    }
    g_assert_cmpint(done, ==, f->len - f->payload);
}

/*
 * A large packet from a host with jumbo frames: the stream of TCP is cut as
 * this interface allows; the datagrams of UDP cannot be
 */
static void test_mtu_gso(void)
{
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree Frame *f = g_new(Frame, 1);
    Env e;

    inject_start(&e, path, 0);
    for (int i = 0; i < 8; i++) {
        Shape s = {
            .tags = tags[i / 4],
            .ipv6 = i & 1,
            .tcp = i & 2,
            .left = LEFT_SEGMENTS,
            .payload = 20001,
            .gso_size = 8948,
        };
        g_autoptr(GPtrArray) out = NULL;

        make_frame(f, &s);
        inject(&e, f);
        inject_marker(&e, i + 1);
        out = collect(&e.tap[0], i + 1);
        if (s.tcp) {
            assert_stream(f, out, s.ipv6);
        } else {
            g_assert_cmpint(out->len, ==, 0);
        }
    }
    /* Four frames of UDP, of three datagrams each; all others, and markers */
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "mtu"), ==, 12);
    g_assert_cmpint(filter_stat(&e, "f0", "out-netdev", "packets"), ==, 4 + 8);

    /* One that is not cut has any segment size */
    tap_set_offload(&e.tap[0], OFFLOADS_TSO);
    {
        const Shape s = {
            .tags = no_tags, .tcp = true, .left = LEFT_SEGMENTS,
            .payload = 20001, .gso_size = 8948,
        };
        g_autoptr(GPtrArray) out = NULL;
        const Received *r;

        make_frame(f, &s);
        inject(&e, f);
        inject_marker(&e, 9);
        out = collect(&e.tap[0], 9);
        g_assert_cmpint(out->len, ==, 1);
        r = g_ptr_array_index(out, 0);
        g_assert_cmpmem(r->data, r->len, f->data, f->len);
        g_assert_cmpmem(&r->hdr, sizeof(r->hdr), &f->hdr, sizeof(f->hdr));
    }
    env_stop(&e);
    unlink(path);
}

/*
 * From indev to a chain whose netdev has no vnet header, so that the frames
 * must be complete
 */
static void test_complete_chain(void)
{
    static const uint8_t too_long[] = {
        0, 0, 0, 100, 0, 0, 0, 100, [107] = 0,
    };
    static const uint8_t too_short[] = { 0, 0, 0, 60, 0, 0, 0, 9, [67] = 0 };
    g_autofree Frame *f = g_new(Frame, 1);
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,indev=c0,vnet_hdr_support=on");
    for (int i = 0; i < 2 * LEFT_MAX; i++) {
        Shape s = {
            .tags = no_tags,
            .ipv6 = i & 1,
            .tcp = true,
            .left = i / 2,
            .payload = i / 2 == LEFT_SEGMENTS ? 20001 : 1001,
            .gso_size = i & 1 ? 1440 : 1460,
        };
        g_autoptr(GPtrArray) out = NULL;

        make_frame(f, &s);
        inject(&e, f);
        out = collect_messages(e.guest[0], false,
                               DIV_ROUND_UP(s.payload, s.gso_size));
        assert_stream(f, out, s.ipv6);
    }

    write_all(e.chr[0], too_long, sizeof(too_long));
    write_all(e.chr[0], too_short, sizeof(too_short));
    inject_marker(&e, 1);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "invalid"), ==, 2);
    g_assert_cmpint(filter_stat(&e, "f0", "indev", "packets"),
                    ==, 2 * LEFT_MAX + 1);
    env_stop(&e);
}


/* Truncated frames */

/*
 * The process that made this socket wants 60 bytes of each frame.  A frame with
 * less than all of its bytes is of no use.
 */
static void test_truncated(void)
{
    struct sock_filter insns[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, SKF_AD_OFF + SKF_AD_PKTTYPE),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 60),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog prog = { .len = ARRAY_SIZE(insns), .filter = insns };
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", path);
    int one = 1;
    int packet;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap0");
    packet = packet_socket(NULL, SOCK_RAW, 0);
    g_assert_cmpint(setsockopt(packet, SOL_SOCKET, SO_ATTACH_FILTER, &prog,
                               sizeof(prog)), ==, 0);
    g_assert_cmpint(setsockopt(packet, SOL_SOCKET, SO_LOCK_FILTER, &one,
                               sizeof(one)), ==, 0);
    {
        struct sockaddr_ll sll = {
            .sll_family = AF_PACKET,
            .sll_protocol = htons(ETH_P_ALL),
            .sll_ifindex = if_nametoindex(tap.name),
        };

        g_assert_cmpint(bind(packet, (struct sockaddr *)&sll, sizeof(sll)),
                        ==, 0);
    }
    env_start_no_tap(&e, options);
    assert_success(chardev_add(&e, "capture", packet,
                               "af-packet-mode=capture"));
    close(packet);
    filter_add(&e, "f0", "netdev=g0,queue=rx,indev=capture");
    host_send(&tap, 1, 60);
    host_send(&tap, 2, 61);
    host_send(&tap, 3, 1514);
    host_send(&tap, 4, 60);
    wire_expect(e.guest[0], 1, 60);
    wire_expect(e.guest[0], 4, 60);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "truncated"), ==, 2);
    wait_warned_once(&e, path, "longer than the buffer");
    env_stop(&e);
    tap_close(&tap);
    unlink(path);
}


/* Packets in a UDP tunnel */

/* What the vnet header says of those, in a TAP since Linux 6.17 */
#define TUNNEL_HDR_LEN sizeof(struct virtio_net_hdr_v1_hash_tunnel)
#define OFFLOADS_TUNNEL \
    (OFFLOADS_USO | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM)

/* TCP over IPv4 over Ethernet in VXLAN over IPv4, to be cut */
static void make_tunnel(Frame *f, struct virtio_net_hdr_v1_hash_tunnel *hdr)
{
    const Shape s = {
        .tags = no_tags, .tcp = true, .left = LEFT_SEGMENTS,
        .payload = 20001, .gso_size = 1300,
    };
    const size_t outer = ETH_HLEN + 20 + 8 + 8;
    uint8_t *udp = f->data + ETH_HLEN + 20;

    make_frame(f, &s);
    memmove(f->data + outer, f->data, f->len);
    f->len += outer;
    ip_header(f->data + ETH_HLEN, IPPROTO_UDP, f->len - ETH_HLEN - 20);
    stw_be_p(udp, 50000);
    stw_be_p(udp + 2, 4789);
    stw_be_p(udp + 4, f->len - ETH_HLEN - 20);
    stw_be_p(udp + 6, 0);
    stq_be_p(udp + 8, 0x0800000000002a00);
    f->ip += outer;
    f->transport += outer;
    f->payload += outer;

    f->hdr.gso_type |= VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4;
    f->hdr.hdr_len = f->payload;
    f->hdr.csum_start = f->transport;
    memset(hdr, 0, sizeof(*hdr));
    memcpy(hdr, &f->hdr, sizeof(f->hdr));
    hdr->outer_th_offset = cpu_to_le16(ETH_HLEN + 20);
    hdr->inner_nh_offset = cpu_to_le16(f->ip);
}

static void tunnel_send(Tap *tap, const Frame *f,
                        struct virtio_net_hdr_v1_hash_tunnel *hdr)
{
    struct iovec iov[] = {
        { .iov_base = hdr, .iov_len = sizeof(*hdr) },
        { .iov_base = (void *)f->data, .iov_len = f->len },
    };

    g_assert_cmpint(writev(tap->fd, iov, 2), ==, sizeof(*hdr) + f->len);
}

/*
 * To a guest that does not know tunnels the kernel gives segments, which are
 * captured as such.  For one that does there is no vnet header in AF_PACKET:
 * the frame is not captured, but counted, and nothing wrong takes its place.
 */
static void test_tunnel(const void *opaque)
{
    bool guest_knows = opaque;
    struct virtio_net_hdr_v1_hash_tunnel hdr;
    g_autofree Frame *f = g_new(Frame, 1);
    g_autoptr(GPtrArray) guest = NULL;
    g_autoptr(GPtrArray) whole = NULL;
    Net n;

    net_open(&n, 1500);
    if (!net_bridge(&n, "")) {
        g_test_skip("no iproute2, or a kernel without bridges");
        goto out;
    }
    tap_set_vnet_hdr_len(&n.other, TUNNEL_HDR_LEN);
    if (!tap_try_offload(&n.other, OFFLOADS_TUNNEL)) {
        g_test_skip("a kernel without tunnels in vnet headers (since 6.17)");
        goto out;
    }
    net_start(&n, OFFLOADS_USO);
    if (guest_knows) {
        tap_set_vnet_hdr_len(&n.e.tap[0], TUNNEL_HDR_LEN);
        tap_set_offload(&n.e.tap[0], OFFLOADS_TUNNEL);
        tap_set_vnet_hdr_len(&n.out[VNET], TUNNEL_HDR_LEN);
        tap_set_offload(&n.out[VNET], OFFLOADS_TUNNEL);
    }
    make_tunnel(f, &hdr);
    tunnel_send(&n.other, f, &hdr);
    net_send(&n, NULL);
    guest = collect(&n.e.tap[0], n.marker);
    whole = collect(&n.whole, n.marker);
    g_test_message("%u frames to the guest, %u whole", guest->len, whole->len);
    for (int i = 0; i < OUT_MAX; i++) {
        g_autoptr(GPtrArray) out = collect(&n.out[i], n.marker);

        if (guest_knows) {
            g_assert_cmpint(out->len, ==, 0);
        } else {
            assert_same(i == VNET ? guest : whole, out);
        }
    }
    if (guest_knows) {
        const Received *r = g_ptr_array_index(guest, 0);

        for (int i = 0; i < OUT_MAX; i++) {
            g_autofree char *id = g_strdup_printf("f%d", i);

            g_assert_cmpint(filter_stat(&n.e, id, "dropped", "gso"), ==, 1);
            /* Not by who had to inject it: that was sent the marker only */
            g_assert_cmpint(filter_stat(&n.e, id, "outdev", "packets"), ==, 1);
        }
        g_assert_cmpint(guest->len, ==, 1);
        g_assert_cmphex(r->hdr.gso_type, ==, f->hdr.gso_type);
    } else {
        g_assert_cmpint(guest->len, ==, 16);
    }

out:
    net_close(&n);
}

/* From a peer that knows more than this host's AF_PACKET */
static void test_tunnel_inject(void)
{
    struct virtio_net_hdr_v1_hash_tunnel hdr;
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree Frame *f = g_new(Frame, 1);
    g_autoptr(GPtrArray) out = NULL;
    Env e;

    inject_start(&e, path, OFFLOADS_TSO);
    make_tunnel(f, &hdr);
    inject(&e, f);
    inject(&e, f);
    inject_marker(&e, 1);
    out = collect(&e.tap[0], 1);
    g_assert_cmpint(out->len, ==, 0);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "invalid") +
                    filter_stat(&e, "f0", "dropped", "gso"), ==, 2);
    env_stop(&e);
    unlink(path);
}


/* A TAP with several queues */

#define QUEUES 4

static void mq_open(int *fd)
{
    struct ifreq ifr = host_ifreq("qtap0");

    ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    for (int i = 0; i < QUEUES; i++) {
        fd[i] = open("/dev/net/tun", O_RDWR);
        g_assert_cmpint(fd[i], !=, -1);
        g_assert_cmpint(ioctl(fd[i], TUNSETIFF, &ifr), ==, 0);
    }
    if_set_up("qtap0", true);
}

/* Frame number @seq, of one of many flows */
static void mq_send(int host, Frame *f, uint32_t seq)
{
    const Shape s = { .tags = no_tags, .payload = 100 };

    make_frame(f, &s);
    stw_be_p(f->data + f->transport, 1000 + seq % 64);
    stw_be_p(f->data + f->transport + 6, 0);
    stl_be_p(f->data + f->payload, seq);
    g_assert_cmpint(send(host, f->data, f->len, 0), ==, f->len);
}

static void mq_expect(int fd, const Frame *f, uint32_t seq)
{
    size_t len;
    g_autofree uint8_t *buf = wire_recv(fd, &len);

    g_assert_cmpint(len, ==, f->len);
    g_assert_cmpint(ldl_be_p(buf + f->payload), ==, seq);
}

/* The kernel spreads the frames over the queues; the capture has all of them */
static void test_multiqueue_chardev(void)
{
    const int n = 256;
    g_autofree Frame *f = g_new(Frame, 1);
    int used = 0;
    int fd[QUEUES];
    int packet, host;
    Env e;

    mq_open(fd);
    packet = packet_socket("qtap0", SOCK_RAW, ETH_P_ALL);
    host = packet_socket("qtap0", SOCK_RAW, 0);
    env_start_no_tap(&e, "");
    assert_success(chardev_add(&e, "capture", packet,
                               "af-packet-mode=capture"));
    close(packet);
    filter_add(&e, "f0", "netdev=g0,queue=rx,indev=capture");
    for (int i = 0; i < n; i++) {
        mq_send(host, f, i);
        mq_expect(e.guest[0], f, i);
    }
    for (int i = 0; i < QUEUES; i++) {
        used += readable(fd[i]);
        close(fd[i]);
    }
    g_test_message("%d queues used", used);
    g_assert_cmpint(used, >, 1);
    close(host);
    env_stop(&e);
}

/* The same by netdev, which a filter that needs no chain may be on itself */
static void test_multiqueue_netdev(void)
{
    static const struct {
        const char *props;
        bool allowed;
    } filters[] = {
        { "netdev=n0,in_netdev=n0,outdev=c0", true },
        { "netdev=n0,indev=c0,out_netdev=n0", true },
        { "netdev=n0,in_netdev=n0,outdev=c0,enable_when_stopped=on", true },
        { "netdev=n0,outdev=c0", false },
        { "netdev=n0,indev=c0", false },
        { "netdev=n0,in_netdev=n0", false },
        { "netdev=n0,queue=rx,out_netdev=n0", false },
        { "netdev=n0,in_netdev=n0,outdev=c0,enable_when_running=off,"
          "enable_when_stopped=on", true },
    };
    const int n = 256;
    g_autofree char *options = NULL;
    g_autofree Frame *f = g_new(Frame, 1);
    int fd[QUEUES];
    int host;
    Env e;

    mq_open(fd);
    host = packet_socket("qtap0", SOCK_RAW, 0);
    env_init(&e);
    options = g_strdup_printf("-netdev tap,id=n0,fds=%d:%d:%d:%d",
                              fd[0], fd[1], fd[2], fd[3]);
    env_start_full(&e, 0, true, "none", options);
    for (int i = 0; i < ARRAY_SIZE(filters); i++) {
        if (filters[i].allowed) {
            filter_add(&e, "f0", filters[i].props);
            filter_del(&e, "f0");
        } else {
            g_autofree char *desc =
                error_desc(object_add(&e, "filter-redirector", "f0",
                                      filters[i].props));

            g_assert_nonnull(strstr(desc, "multiqueue is not supported"));
        }
    }
    filter_add(&e, "f0", filters[0].props);
    for (int i = 0; i < n; i++) {
        mq_send(host, f, i);
        mq_expect(e.chr[0], f, i);
    }
    filter_add(&e, "f1", "netdev=n0,indev=c1,out_netdev=n0");
    for (int i = 0; i < QUEUES; i++) {
        close(fd[i]);
    }
    close(host);
    env_stop(&e);
}


/* What is in front of the TAP */

/* The guest is in VLAN 5: without a tag, or with one */
static void test_bridge_vlan(const void *opaque)
{
    const char *access = opaque;
    g_autofree char *guest =
        g_strdup_printf("bridge vlan add dev qtap0 vid 5%s", access);
    g_autofree char *whole =
        g_strdup_printf("bridge vlan add dev qtap2 vid 5%s", access);
    g_autofree Frame *f = g_new(Frame, 1);
    Net n;

    net_open(&n, 1500);
    if (!net_bridge(&n, " vlan_filtering 1") ||
        !host_command("bridge vlan add dev qtap1 vid 5") ||
        !host_command(guest) || !host_command(whole)) {
        g_test_skip("no iproute2, or a kernel without VLAN filtering: that of "
                    "lab/vm has it");
        net_close(&n);
        return;
    }
    net_start(&n, OFFLOADS_TSO);
    for (int i = 0; i < 2 * LEFT_MAX; i++) {
        Shape s = {
            .tags = tags[1],
            .ipv6 = i & 1,
            .tcp = true,
            .left = i / 2,
            .payload = i / 2 == LEFT_SEGMENTS ? 20001 : 1001,
            .gso_size = 1400,
        };

        make_frame(f, &s);
        net_check(&n, f);
    }
    net_close(&n);
}

static void set_address(const char *ifname, const char *address)
{
    g_autofree char *line = g_strdup_printf("ip address add %s dev %s",
                                            address, ifname);

    g_assert_true(host_command(line));
}

static void set_sysctl(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    g_assert_cmpint(fd, !=, -1);
    g_assert_cmpint(write(fd, value, strlen(value)), ==, strlen(value));
    close(fd);
}

static void *mac_of(const char *ifname, uint8_t *mac)
{
    struct ifreq ifr = host_ifreq(ifname);

    host_ioctl(SIOCGIFHWADDR, &ifr);
    return memcpy(mac, ifr.ifr_hwaddr.sa_data, ETH_ALEN);
}

/* The host routes to the TAP, without a bridge; "whole" gets nothing */
static void test_routed(void)
{
    g_autofree Frame *f = g_new(Frame, 1);
    Net n;

    net_open(&n, 1500);
    if (!host_command("ip link set qtap0 up")) {
        g_test_skip("no iproute2");
        net_close(&n);
        return;
    }
    set_sysctl("/proc/sys/net/ipv4/ip_forward", "1");
    set_address("qtap1", "10.1.0.0/31");
    set_address("qtap0", "10.1.0.3/31");
    g_assert_true(host_command("ip neighbour add 10.1.0.2 lladdr "
                               "02:00:00:00:00:02 dev qtap0 nud permanent"));
    net_start(&n, OFFLOADS_TSO);

    for (int i = 0; i < 2 * LEFT_MAX; i++) {
        g_autoptr(GPtrArray) guest = NULL;
        uint32_t marker = i + 1;
        uint8_t end[FRAME_LEN];
        Shape s = {
            .tags = no_tags,
            .tcp = i < LEFT_MAX,
            .left = i % LEFT_MAX,
            .payload = i % LEFT_MAX == LEFT_SEGMENTS ? 20001 : 1001,
            .gso_size = 1460,
        };
        const Received *r;

        if (!s.tcp && s.left == LEFT_SEGMENTS) {
            continue;
        }
        make_frame(f, &s);
        mac_of("qtap1", f->data);
        tap_send(&n.other, &f->hdr, f->data, f->len);
        frame_fill(end, marker, sizeof(end));
        g_assert_cmpint(send(n.e.tap[0].host, end, sizeof(end), 0),
                        ==, sizeof(end));
        guest = collect(&n.e.tap[0], marker);
        g_assert_cmpint(guest->len, ==, 1);
        r = g_ptr_array_index(guest, 0);
        g_assert_cmpmem(r->data + f->payload, r->len - f->payload,
                        f->data + f->payload, f->len - f->payload);
        for (int j = 0; j < OUT_MAX; j++) {
            g_autoptr(GPtrArray) out = collect(&n.out[j], marker);

            if (j == VNET) {
                assert_same(guest, out);
            } else {
                assert_stream(f, out, false);
            }
        }
    }
    set_sysctl("/proc/sys/net/ipv4/ip_forward", "0");
    net_close(&n);
}


/* Open vSwitch, its datapath in user space, which needs no kernel module */

typedef struct Ovs {
    char *dir;
    GPid db;
    GPid vswitchd;
} Ovs;

static void die_with_parent(void *opaque)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static GPid ovs_daemon(Ovs *ovs, const char *line)
{
    g_auto(GStrv) argv = g_strsplit(line, " ", -1);
    GPid pid;

    return g_spawn_async(ovs->dir, argv, NULL,
                         G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD |
                         G_SPAWN_STDOUT_TO_DEV_NULL |
                         G_SPAWN_STDERR_TO_DEV_NULL,
                         die_with_parent, NULL, &pid, NULL) ? pid : 0;
}

static void ovs_end(GPid pid)
{
    if (pid) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
}

static void ovs_close(Ovs *ovs)
{
    static const char *const names[] = {
        "db", ".db.~lock~", "sock", "o", "v", "qbr0.mgmt", "qbr0.snoop"
    };

    ovs_end(ovs->vswitchd);
    ovs_end(ovs->db);
    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_autofree char *path = g_build_filename(ovs->dir, names[i], NULL);

        unlink(path);
    }
    g_rmdir(ovs->dir);
    g_free(ovs->dir);
}

/* All ports are in VLAN 5: the other guest's with a tag, or without */
static bool ovs_open(Ovs *ovs)
{
    g_autofree char *db = NULL;
    g_autofree char *ports = NULL;

    ovs->db = ovs->vswitchd = 0;
    ovs->dir = g_strdup_printf("%s/ovs", tmpdir);
    g_mkdir(ovs->dir, 0700);
    db = g_strdup_printf("ovsdb-tool create %s/db", ovs->dir);
    ports = g_strdup_printf("ovs-vsctl --db=unix:%s/sock --retry --timeout=600 "
                            "add-br qbr0 "
                            "-- set bridge qbr0 datapath_type=netdev "
                            "-- add-port qbr0 qtap1 tag=5 "
                            "vlan_mode=native-untagged "
                            "-- add-port qbr0 qtap0 tag=5 "
                            "-- add-port qbr0 qtap2 tag=5", ovs->dir);
    if (!host_command(db)) {
        return false;
    }
    g_setenv("OVS_RUNDIR", ovs->dir, true);
    ovs->db = ovs_daemon(ovs, "ovsdb-server db --remote=punix:sock "
                         "--unixctl=o");
    ovs->vswitchd = ovs_daemon(ovs, "ovs-vswitchd unix:sock --unixctl=v");
    return ovs->db && ovs->vswitchd && host_command(ports);
}

/*
 * It reads from a TAP without vnet header: a checksum that is not filled in
 * stays so for good (3.1).  The guest gets it so, and so does a capture.
 */
static void test_ovs(void)
{
    g_autofree char *path = g_find_program_in_path("ovs-vswitchd");
    g_autofree Frame *f = g_new(Frame, 1);
    Ovs ovs;
    Net n;

    if (!path) {
        g_test_skip("no Open vSwitch (package openvswitch-switch)");
        return;
    }
    net_open(&n, 1500);
    g_assert_true(ovs_open(&ovs));
    net_start(&n, OFFLOADS_TSO);
    for (int i = 0; i < 8; i++) {
        const Shape s = {
            .tags = tags[1],
            .ipv6 = i & 1,
            .tcp = i & 2,
            .left = i & 4 ? LEFT_CHECKSUM : LEFT_NOTHING,
            .payload = 1001,
        };

        make_frame(f, &s);
        net_check(&n, f);
    }
    g_assert_cmpint(n.compared, ==, 8);
    g_assert_cmpint(n.needs_csum, ==, 0);
    ovs_close(&ovs);
    net_close(&n);
}


static void add_test(const char *path, void (*func)(const void *),
                     const void *data)
{
    g_autofree char *full = g_strdup_printf("/af-packet/frames/%s", path);

    qtest_add_data_func(full, data, func);
}

/* Tests without data, and what to do where there are no TAPs */
typedef struct Plain {
    const char *path;
    void (*func)(void);
} Plain;

static const Plain plain_tests[] = {
    { "vnet-hdr-len/inject", test_vnet_hdr_len },
    { "vnet-hdr-len/chain", test_vnet_hdr_len_chain },
    { "vnet-hdr-len/none", test_complete_chain },
    { "mtu/frames", test_mtu },
    { "mtu/gso", test_mtu_gso },
    { "truncated", test_truncated },
    { "tunnel/inject", test_tunnel_inject },
    { "multiqueue/chardev", test_multiqueue_chardev },
    { "multiqueue/netdev", test_multiqueue_netdev },
    { "routed", test_routed },
    { "ovs", test_ovs },
};

static void run_plain(const void *opaque)
{
    ((const Plain *)opaque)->func();
}

static void skip_all(const void *opaque)
{
    g_test_skip(no_host);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    tmpdir = g_dir_make_tmp("af-packet-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();

    for (int i = 0; i < ARRAY_SIZE(exacts); i++) {
        g_autofree char *path = g_strdup_printf("exact/%s", exacts[i].name);

        add_test(path, no_host ? skip_all : test_exact, &exacts[i]);
    }
    for (int i = 0; i < ARRAY_SIZE(plain_tests); i++) {
        add_test(plain_tests[i].path, no_host ? skip_all : run_plain,
                 &plain_tests[i]);
    }
    add_test("switchover/plain", no_host ? skip_all : test_switchover, NULL);
    add_test("switchover/vnet", no_host ? skip_all : test_switchover, "");
    add_test("tunnel/guest-unaware", no_host ? skip_all : test_tunnel, NULL);
    add_test("tunnel/guest-aware", no_host ? skip_all : test_tunnel, "");
    add_test("bridge-vlan/access", no_host ? skip_all : test_bridge_vlan,
             " pvid untagged");
    add_test("bridge-vlan/tagged", no_host ? skip_all : test_bridge_vlan, "");

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
