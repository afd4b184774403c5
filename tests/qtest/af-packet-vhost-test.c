/*
 * QTest testcase for filter-redirector on a netdev whose frames vhost moves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The test is the host, the far end of every chardev, and the guest's driver:
 * it fills and empties the rings of a virtio-net-pci, which a real vhost-net
 * works on.  No guest code runs.
 *
 *   test side     |  kernel     | QEMU side (-M pc)              | test side
 *                 |             |                                |
 *   host          |             |                                | guest
 *   tap[0].host --+-> TAP ------+-> vhost ------ guest memory ---+-> rings
 *   (AF_PACKET)   |  |  ^   |   |                                | (libqos)
 *                 |  |  |   +...+...> n0, its filters: only while|
 *                 |  |  |       |     the VM is stopped          |
 *                 |  |  +-------+-- inject  <-- out_netdev=n0    |
 *                 |  +----------+-> capture --> in_netdev=n0     |
 *                 |             |                                |
 *                 |   chardevs of the filters: c0, c1 <------------> chr[]
 *
 * For migration there are two of these, each with its own TAP, and a Unix
 * socket between their filters.  After it the same driver goes on with the
 * destination's memory and registers, as a real one would.
 *
 * As in af-packet-test.c a frame's bytes follow from its number, and "nothing
 * arrives" is shown by a later frame that must arrive, and is the first to.
 *
 * Tested: that vhost runs, so that the rest means something; capture, inject
 * and metadata against what the receive ring gets; which filters are refused;
 * stop and cont; status; several queues; migration, with frames that come
 * while both VMs are stopped and after that.
 *
 * Not tested: frames on their way to the guest at the very moment of a stop;
 * speed; interrupts; what af-packet-test.c tests without vhost, since it does
 * not depend on who empties the TAP.
 *
 * Needs root, and a /dev/vhost-net; all is skipped where these are missing.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <linux/if_packet.h>
#include <netinet/in.h>
#include <poll.h>
#include "af-packet-guest.h"
#include "qobject/qdict.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"

/* More than a ring holds, less than the queue of a TAP */
#define MANY 300


/* The guest */

static void vm_start(Guest *g, const char *ifname, const char *options)
{
    guest_vm_start(g, ifname, 1, true, "", options);
}

static void guest_start(Guest *g, const char *options)
{
    vm_start(g, "qtap0", options);
    driver_start(g);
}

/* The next messages of a capture are those frames */
static void capture_expect(int fd, uint32_t begin, uint32_t end)
{
    for (; begin < end; begin++) {
        wire_expect(fd, begin, seq_len(begin));
    }
}

/* The same of a filter that gets its packets from the chain */
static void chain_expect(int fd, uint32_t begin, uint32_t end)
{
    for (; begin < end; begin++) {
        struct virtio_net_hdr hdr;
        size_t hdr_len, len;
        g_autofree uint8_t *buf = wire_recv_vnet(fd, &hdr, &hdr_len, &len);

        g_assert_cmpint(hdr_len, ==, GUEST_HDR_LEN);
        g_assert_true(buffer_is_zero(&hdr, sizeof(hdr)));
        assert_frame(buf + hdr_len, len, begin, seq_len(begin));
    }
}

/* Until so many frames have been taken from the TAP, by vhost or by QEMU */
static void wait_tx_packets(Guest *g, uint64_t n)
{
    patience_begin();
    while (if_tx_packets(g->tap->name) < n) {
        patience_check();
        vm_answers(&g->e);
    }
}


/* vhost */

/*
 * A filter in the chain that is always active gets no frame that the guest
 * gets, and gets the first one that comes when the VM is stopped
 */
static void assert_vhost_runs(Guest *g, uint32_t begin)
{
    uint32_t end = begin + MANY;

    filter_add(&g->e, "chain", "netdev=n0,queue=tx,outdev=c0,"
               "enable_when_stopped=on,vnet_hdr_support=on");
    send_and_drain(g, begin, end);
    vm_run(&g->e, false);
    send_range(g, end, end + 1);
    chain_expect(g->e.chr[0], end, end + 1);
}

static void test_running(const void *data)
{
    Guest g;

    guest_start(&g, "");
    assert_vhost_runs(&g, 0);
    guest_stop(&g);
}


/* Capture and inject */

static void test_capture(const void *data)
{
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    guest_send(&g, 1000);
    send_range(&g, 0, MANY);
    ring_expect(&g, 0, MANY);
    capture_expect(g.e.chr[0], 0, MANY);

    /* Again, the other way round */
    send_range(&g, MANY, 2 * MANY);
    capture_expect(g.e.chr[0], MANY, 2 * MANY);
    ring_expect(&g, MANY, 2 * MANY);
    guest_stop(&g);
}

/* A copy goes to the filters behind, and none of it to the guest */
static void test_capture_chain(const void *data)
{
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,queue=tx,in_netdev=n0");
    filter_add(&g.e, "f1", "netdev=n0,queue=tx,outdev=c0,"
               "enable_when_stopped=on,vnet_hdr_support=on");
    send_range(&g, 0, MANY);
    /* First: QEMU does nothing else while a peer of the chain is slow */
    chain_expect(g.e.chr[0], 0, MANY);
    ring_expect(&g, 0, MANY);

    /* The NIC would take them for its ring, which is vhost's */
    filter_del(&g.e, "f1");
    send_and_drain(&g, MANY, 2 * MANY);
    vm_answers(&g.e);
    guest_stop(&g);
}

/*
 * One for the frames of a VM that migrates leaves them alone when it does not:
 * the guest has all, when it runs again
 */
static void test_stopped_switchover(const void *data)
{
    uint64_t taken;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", data);
    send_and_drain(&g, 0, 10);
    for (uint32_t seq = 1000; seq <= 10000; seq += 1000) {
        taken = if_tx_packets(g.tap->name);
        vm_run(&g.e, false);
        send_range(&g, seq, seq + MANY);
        vm_answers(&g.e);
        g_assert_cmpint(if_tx_packets(g.tap->name), ==, taken);
        vm_run(&g.e, true);
        ring_expect(&g, seq, seq + MANY);
        send_and_drain(&g, seq + MANY, seq + 2 * MANY);
    }
    assert_silent(&g.e, g.e.chr[0]);
    guest_stop(&g);
}

static void append_range(GByteArray *wire, int vnet_hdr_len, uint32_t begin,
                         uint32_t end)
{
    for (; begin < end; begin++) {
        wire_append_seq(wire, vnet_hdr_len, begin, seq_len(begin));
    }
}

static void test_inject(const void *data)
{
    bool vnet = data;
    int hdr_len = vnet ? GUEST_HDR_LEN : -1;
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autoptr(GByteArray) held = g_byte_array_new();
    Sender s;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", vnet ?
               "netdev=n0,indev=c0,out_netdev=n0,vnet_hdr_support=on" :
               "netdev=n0,indev=c0,out_netdev=n0");
    append_range(wire, hdr_len, 0, MANY);
    sender_start(&s, g.e.chr[0], wire);
    ring_expect(&g, 0, MANY);
    g_thread_join(s.thread);

    /* What the VM gets while it is stopped waits, and so does the first */
    vm_run(&g.e, false);
    append_range(held, hdr_len, MANY, 2 * MANY);
    sender_start(&s, g.e.chr[0], held);
    g_thread_join(s.thread);
    wait_consumed(&g.e, g.e.chr[0]);
    g_assert_cmpint(if_tx_packets(g.tap->name), ==, MANY);
    vm_run(&g.e, true);
    ring_expect(&g, MANY, 2 * MANY);

    /* Directly again, and past the filter */
    g_byte_array_set_size(wire, 0);
    append_range(wire, hdr_len, 2 * MANY, 2 * MANY + 2);
    write_all(g.e.chr[0], wire->data, wire->len);
    ring_expect(&g, 2 * MANY, 2 * MANY + 2);
    send_and_drain(&g, 2 * MANY + 2, 2 * MANY + 4);
    guest_stop(&g);
}


/* Options */

#define NOT_SUPPORTED "Vhost is not supported"
#define NO_COPIES                                                           \
    "Vhost is not supported: no packet of vhost netdev 'n0' would reach "   \
    "this filter; put a filter-redirector before it, with 'in_netdev=n0' "  \
    "and without 'outdev'"
#define CANNOT_FEED                                                         \
    "'indev' cannot feed the chain of vhost netdev 'n0', whose NIC takes "  \
    "nothing from it; use 'out_netdev=n0' to inject on its host interface"

static const struct {
    const char *type;
    const char *props;
    const char *error;
} gate_errors[] = {
    { "filter-mirror", "netdev=n0,outdev=c0", NOT_SUPPORTED },
    { "filter-buffer", "netdev=n0,interval=1000", NOT_SUPPORTED },
    { "filter-dump", "netdev=n0,file=/dev/null", NO_COPIES },
    { "filter-redirector", "netdev=n0,indev=c0", CANNOT_FEED },
    { "filter-redirector", "netdev=n0,indev=c0,outdev=c1", CANNOT_FEED },
    { "filter-redirector", "netdev=n0,indev=c0,enable_when_stopped=on",
      CANNOT_FEED },
    { "filter-redirector", "netdev=n0,outdev=c0",
      "Vhost is not supported: the chain of vhost netdev 'n0' sees no packet "
      "while the VM runs; use 'in_netdev', or 'enable_when_stopped=on' for "
      "those of a stopped VM" },
    /* What is wrong without vhost, too, comes first */
    { "filter-redirector", "netdev=n0,in_netdev=n0,indev=c0",
      "'in_netdev' and 'indev' cannot be used together" },
    { "filter-redirector", "netdev=n0,in_netdev=n0,out_netdev=n0",
      "'in_netdev' and 'out_netdev' cannot be used together" },
    { "filter-redirector", "netdev=n0,out_netdev=n0,outdev=c0",
      "'out_netdev' and 'outdev' cannot be used together" },
    { "filter-redirector", "netdev=n0",
      "filter-redirector needs at least one of 'indev', 'outdev', "
      "'in_netdev' and 'out_netdev'" },
};

static void test_errors(const void *data)
{
    Guest g;
    int i;

    guest_start(&g, "");
    for (i = 0; i < ARRAY_SIZE(gate_errors); i++) {
        g_autofree char *desc = error_desc(object_add(&g.e,
                                                      gate_errors[i].type,
                                                      "f0",
                                                      gate_errors[i].props));

        g_assert_cmpstr(desc, ==, gate_errors[i].error);
    }
    /* Nothing of them is left, and vhost has not noticed */
    filter_add(&g.e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&g.e, "f1", "netdev=n0,indev=c1,out_netdev=n0");
    send_and_drain(&g, 0, 2);
    capture_expect(g.e.chr[0], 0, 2);
    guest_stop(&g);
}

/* filter-dump is allowed where copies come by, and nowhere else */
static void test_dump_errors(const void *data)
{
    static const struct {
        const char *redirector;
        const char *dump;
        bool good;
    } places[] = {
        { "queue=tx,in_netdev=n0", "", true },
        { "queue=all,in_netdev=n0", "queue=tx", true },
        { "queue=all,in_netdev=n0", "queue=rx", false },
        { "queue=tx,in_netdev=n0", "position=head", false },
        { "queue=tx,in_netdev=n0", "position=id=f0", true },
        { "queue=tx,in_netdev=n0", "position=id=f0,insert=before", false },
        { "queue=rx,in_netdev=n0", "", false },
        { "queue=rx,in_netdev=n0", "position=head", true },
        { "queue=rx,in_netdev=n0", "position=head,queue=tx", false },
        { "queue=tx,in_netdev=n0,outdev=c0", "", false },
        { "indev=c0,out_netdev=n0", "", false },
    };
    Guest g;

    guest_start(&g, "");
    for (int i = 0; i < ARRAY_SIZE(places); i++) {
        g_autofree char *redirector =
            g_strdup_printf("netdev=n0,%s", places[i].redirector);
        g_autofree char *dump =
            g_strdup_printf("netdev=n0,file=/dev/null,%s", places[i].dump);
        QDict *resp;

        g_test_message("%s; %s", redirector, dump);
        filter_add(&g.e, "f0", redirector);
        resp = object_add(&g.e, "filter-dump", "dump", dump);
        if (places[i].good) {
            assert_success(resp);
            filter_del(&g.e, "dump");
        } else {
            g_autofree char *desc = error_desc(resp);

            g_assert_cmpstr(desc, ==, NO_COPIES);
        }
        filter_del(&g.e, "f0");
    }
    guest_stop(&g);
}

/* What the guest receives, as tcpdump reads it; the last filter has it, too */
static void test_dump(const void *data)
{
    g_autofree char *path = g_strdup_printf("%s/pcap", tmpdir);
    g_autofree char *props = g_strdup_printf("netdev=n0,queue=tx,file=%s",
                                             path);
    Guest g;

    if (!have_tcpdump()) {
        g_test_skip("no tcpdump");
        return;
    }
    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,queue=tx,in_netdev=n0");
    assert_success(object_add(&g.e, "filter-dump", "dump", props));
    filter_add(&g.e, "f1", "netdev=n0,queue=tx,outdev=c0,"
               "enable_when_stopped=on,vnet_hdr_support=on");
    guest_send(&g, 1000);
    send_range(&g, 0, MANY);
    chain_expect(g.e.chr[0], 0, MANY);
    ring_expect(&g, 0, MANY);
    guest_stop(&g);
    pcap_expect(path, 0, MANY, seq_len);
    unlink(path);
}


/* Stopped VMs */

/* What the host sends while the VM is stopped reaches a chain filter */
static void test_stopped_chain(const void *data)
{
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,queue=tx,outdev=c0,"
               "enable_when_stopped=on,vnet_hdr_support=on");
    send_and_drain(&g, 0, 10);
    vm_run(&g.e, false);
    send_range(&g, 10, 10 + MANY);
    chain_expect(g.e.chr[0], 10, 10 + MANY);
    vm_run(&g.e, true);
    send_and_drain(&g, 10 + MANY, 20 + MANY);
    vm_run(&g.e, false);
    send_range(&g, 20 + MANY, 30 + MANY);
    chain_expect(g.e.chr[0], 20 + MANY, 30 + MANY);
    guest_stop(&g);
}

/*
 * The same with a capture, which leaves the frames to the TAP.  The guest has
 * them when it runs, except for the first: that one QEMU has read, and throws
 * away when vhost starts.
 */
static void test_stopped_capture(const void *data)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;
    uint32_t begin, end, first;
    uint64_t taken;
    int i;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,queue=rx,in_netdev=n0,outdev=c0"
               ONLY_STOPPED);
    send_and_drain(&g, 0, 10);
    for (i = 1; i <= 5; i++) {
        begin = i * 1000;
        end = begin + 50 * i;
        taken = if_tx_packets(g.tap->name);
        vm_run(&g.e, false);
        send_range(&g, begin, end);
        wait_tx_packets(&g, taken + 1);
        capture_expect(g.e.chr[0], begin, end);
        vm_run(&g.e, true);

        ring_recv(&g, frame, &hdr);
        first = ldl_be_p(frame->data + SEQ_OFFSET);
        g_assert_cmpint(first, >=, begin);
        g_assert_cmpint(first, <=, begin + 1);
        assert_frame(frame->data, frame->len, first, seq_len(first));
        ring_expect(&g, first + 1, end);
        send_and_drain(&g, end, end + 10);
    }
    guest_stop(&g);
}


/* Frames of which the host leaves something to the network card */

#define TCP_OFFSET (ETH_HLEN + 20)
#define PAYLOAD_OFFSET (TCP_OFFSET + 20)
#define GSO_SIZE 1448

/* A TCP segment to be cut in pieces, without its checksum */
static size_t gso_frame(uint8_t *frame, size_t payload,
                        struct virtio_net_hdr *hdr)
{
    size_t len = PAYLOAD_OFFSET + payload;

    frame_fill(frame, 1, len);
    stw_be_p(frame + 2 * ETH_ALEN, ETH_P_IP);
    ip_header(frame + ETH_HLEN, IPPROTO_TCP, 20 + payload);
    memset(frame + TCP_OFFSET, 0, 20);
    frame[TCP_OFFSET + 12] = 5 << 4;
    stw_be_p(frame + TCP_OFFSET + 16, ip_pseudo_sum(frame + ETH_HLEN));

    memset(hdr, 0, sizeof(*hdr));
    hdr->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    hdr->csum_start = cpu_to_le16(TCP_OFFSET);
    hdr->csum_offset = cpu_to_le16(16);
    if (payload > GSO_SIZE) {
        hdr->gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        hdr->gso_size = cpu_to_le16(GSO_SIZE);
        hdr->hdr_len = cpu_to_le16(PAYLOAD_OFFSET);
    }
    return len;
}

/*
 * The host sends it, the guest gets it, the filter has captured it; then the
 * captured message is injected, and the guest gets the same again
 */
static void test_metadata(const void *data)
{
    static const size_t payloads[] = { 100, 1448, 5000, 60000 };
    g_autoptr(GByteArray) got = g_byte_array_new();
    g_autoptr(GByteArray) again = g_byte_array_new();
    g_autofree uint8_t *buf = g_malloc(VNET_HDR_LEN + 65536);
    struct virtio_net_hdr_mrg_rxbuf got_hdr, again_hdr;
    struct virtio_net_hdr wire_hdr;
    int fd, on = 1;
    size_t i;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,"
               "vnet_hdr_support=on");
    filter_add(&g.e, "f1", "netdev=n0,indev=c1,out_netdev=n0,"
               "vnet_hdr_support=on");
    fd = packet_socket(g.tap->name, SOCK_RAW, 0);
    g_assert_cmpint(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on,
                               sizeof(on)), ==, 0);

    for (i = 0; i < ARRAY_SIZE(payloads); i++) {
        g_autofree uint8_t *msg = NULL;
        struct virtio_net_hdr *hdr = (struct virtio_net_hdr *)buf;
        uint8_t *frame = buf + VNET_HDR_LEN;
        size_t len = gso_frame(frame, payloads[i], hdr);
        size_t hdr_len, wire_len;
        uint32_t head[2];

        g_assert_cmpint(send(fd, buf, VNET_HDR_LEN + len, 0), ==,
                        VNET_HDR_LEN + len);
        ring_recv(&g, got, &got_hdr);
        g_assert_cmpmem(got->data, got->len, frame, len);
        g_assert_cmpmem(&got_hdr, VNET_HDR_LEN, hdr, VNET_HDR_LEN);

        msg = wire_recv_vnet(g.e.chr[0], &wire_hdr, &hdr_len, &wire_len);
        g_assert_cmpint(hdr_len, ==, GUEST_HDR_LEN);
        g_assert_cmpmem(msg + hdr_len, wire_len, frame, len);
        g_assert_cmpmem(&wire_hdr, VNET_HDR_LEN, &got_hdr, VNET_HDR_LEN);

        head[0] = cpu_to_be32(hdr_len + wire_len);
        head[1] = cpu_to_be32(hdr_len);
        write_all(g.e.chr[1], head, sizeof(head));
        write_all(g.e.chr[1], msg, hdr_len + wire_len);
        ring_recv(&g, again, &again_hdr);
        g_assert_cmpmem(again->data, again->len, got->data, got->len);
        g_assert_cmpmem(&again_hdr, GUEST_HDR_LEN, &got_hdr, GUEST_HDR_LEN);
    }
    close(fd);
    guest_stop(&g);
}


/* Status */

#define WINDOW 500              /* frames, fits into the queue of the TAP */
#define TOGGLES 50

/* A thread of the host that sends all the time, but not too far ahead */
typedef struct Flow {
    Tap *tap;
    int sent;                   /* the thread's, until it has been joined */
    int received, done;         /* atomic */
} Flow;

static void *flow_run(void *opaque)
{
    Flow *f = opaque;

    while (!g_atomic_int_get(&f->done)) {
        if (f->sent - g_atomic_int_get(&f->received) < WINDOW) {
            host_send(f->tap, f->sent, seq_len(f->sent));
            f->sent++;
        } else {
            g_thread_yield();
        }
    }
    return NULL;
}

/* The next captured frame is one of the host's, no older than @next */
static uint32_t capture_next(int fd, uint32_t next)
{
    size_t len;
    g_autofree uint8_t *frame = wire_recv(fd, &len);
    uint32_t seq;

    g_assert_cmpint(len, >=, SEQ_OFFSET + sizeof(seq));
    seq = ldl_be_p(frame + SEQ_OFFSET);
    g_assert_cmpint(seq, >=, next);
    assert_frame(frame, len, seq, seq_len(seq));
    return seq + 1;
}

static void test_status(const void *data)
{
    Flow f = { 0 };
    GThread *thread;
    uint32_t next = 0;
    int i, n, captured = 0;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    f.tap = g.tap;
    thread = g_thread_new("flow", flow_run, &f);

    for (i = 0; i < 2 * TOGGLES; i++) {
        struct pollfd pfd = { .fd = g.e.chr[0], .events = POLLIN };

        filter_set_status(&g.e, "f0", i % 2);
        for (n = 0; n < 20; n++) {
            ring_expect(&g, f.received, f.received + 1);
            g_atomic_int_inc(&f.received);
            if (poll(&pfd, 1, 0) == 1) {
                next = capture_next(g.e.chr[0], next);
                captured++;
            }
        }
    }
    g_atomic_int_set(&f.done, 1);
    g_thread_join(thread);
    ring_expect(&g, f.received, f.sent);

    /* It is on since the last turn, and has all that came later */
    send_range(&g, f.sent, f.sent + MANY);
    ring_expect(&g, f.sent, f.sent + MANY);
    while (next < f.sent) {
        next = capture_next(g.e.chr[0], next);
        captured++;
    }
    g_test_message("%d of %d frames captured", captured, f.sent);
    g_assert_cmpint(next, <=, f.sent + 1);
    capture_expect(g.e.chr[0], next, f.sent + MANY);

    /* And nothing while it is off */
    next = f.sent + MANY;
    filter_set_status(&g.e, "f0", false);
    send_and_drain(&g, next, next + 10);
    filter_set_status(&g.e, "f0", true);
    send_and_drain(&g, next + 10, next + 20);
    capture_expect(g.e.chr[0], next + 10, next + 20);
    guest_stop(&g);
}

/* The same of an injection: what comes while it is off waits */
static void test_status_inject(const void *data)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    Sender s;
    int i;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", "netdev=n0,indev=c0,out_netdev=n0");
    append_range(wire, -1, 0, 20 * TOGGLES);
    sender_start(&s, g.e.chr[0], wire);
    for (i = 0; i < 2 * TOGGLES; i++) {
        filter_set_status(&g.e, "f0", i % 2);
        if (i % 2) {
            ring_expect(&g, i / 2 * 20, i / 2 * 20 + 20);
        }
    }
    g_thread_join(s.thread);
    guest_stop(&g);
}


/* Several queues */

static void test_multiqueue(const void *data)
{
    static const char *const props[] = {
        "netdev=n0,in_netdev=n0",
        "netdev=n0,outdev=c0,enable_when_stopped=on",
    };
    Guest g;
    int i;

    guest_vm_start(&g, "qtap0", 2, true, ",mq=on",
                   "-netdev hubport,id=h0,hubid=0");
    driver_start(&g);
    for (i = 0; i < ARRAY_SIZE(props); i++) {
        g_autofree char *desc = error_desc(object_add(&g.e,
                                                      "filter-redirector",
                                                      "f0", props[i]));

        g_assert_true(g_str_has_prefix(desc, "multiqueue is not supported: "));
    }

    /* The frames of a stopped VM come from all queues */
    filter_add(&g.e, "f0", "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
    filter_del(&g.e, "f0");

    /* There is one interface; a filter may be on its netdev, or on another */
    filter_add(&g.e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&g.e, "f1", "netdev=h0,indev=c1,out_netdev=n0");
    send_and_drain(&g, 0, MANY);
    capture_expect(g.e.chr[0], 0, MANY);
    wire_send(g.e.chr[1], MANY, seq_len(MANY));
    ring_expect(&g, MANY, MANY + 1);
    guest_stop(&g);
}


/* Migration */

typedef struct Migration {
    const char *name;
    const char *in_netdev;      /* for a copy of what is sent */
    const char *vnet;
} Migration;

static const Migration migrations[] = {
    { "copy", "in_netdev=n0,", "" },
    { "copy-vnet", "in_netdev=n0,", ",vnet_hdr_support=on" },
    { "no-copy", "", "" },
    { "no-copy-vnet", "", ",vnet_hdr_support=on" },
};

/*
 * The options of the manual, on both sides.  The frames that the network sends
 * to the source's TAP while the guest runs nowhere, and later, until the
 * network has learnt, all reach the guest at the destination: the first first,
 * and none twice.  The network is told once, and not before that guest runs.
 */
static void test_migration(const void *data)
{
    const Migration *m = data;
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", tmpdir);
    g_autofree char *cap = NULL;
    g_autofree char *inj = NULL;
    Guest a, b;
    int rarp;

    inj = g_strdup_printf("-incoming %s "
                          "-chardev socket,id=m0,path=%s/m0,server=on,wait=off "
                          "-object filter-redirector,id=inj0,netdev=n0,"
                          "indev=m0,out_netdev=n0%s", uri, tmpdir, m->vnet);
    vm_start(&b, "qtap1", inj);
    rarp = packet_socket(b.tap->name, SOCK_RAW, ETH_P_RARP);
    qtest_qmp_assert_success(b.e.qts, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'announce-rounds': 1 } }");

    cap = g_strdup_printf("-chardev socket,id=m0,path=%s/m0,reconnect-ms=500 "
                          "-object filter-redirector,id=cap0,netdev=n0,"
                          "%soutdev=m0" ONLY_STOPPED "%s",
                          tmpdir, m->in_netdev, m->vnet);
    guest_start(&a, cap);
    migrate_pause(&a.e);
    send_and_drain(&a, 0, MANY);

    migration_start(&a.e, uri);
    qtest_qmp_eventwait(a.e.qts, "STOP");
    send_range(&a, MANY, 2 * MANY);
    wait_migration(&a.e, "pre-switchover");
    send_range(&a, 2 * MANY, 2 * MANY + 10);
    g_assert_cmpint(if_tx_packets(b.tap->name), ==, 0);
    g_assert_false(readable(rarp));
    migrate_continue(&a.e);
    send_range(&a, 2 * MANY + 10, 2 * MANY + 20);
    qtest_qmp_eventwait(b.e.qts, "RESUME");
    guest_move(&a, &b);
    send_range(&a, 2 * MANY + 20, 2 * MANY + 30);
    ring_expect(&b, MANY, 2 * MANY + 30);
    rarp_expect(rarp);

    /* From here on both ways go on, until the source is gone */
    send_range(&a, 2 * MANY + 30, 3 * MANY);
    ring_expect(&b, 2 * MANY + 30, 3 * MANY);
    send_and_drain(&b, 3 * MANY, 3 * MANY + 10);
    wait_migration(&a.e, "completed");
    guest_vm_stop(&a);
    guest_send(&b, 0);
    assert_silent(&b.e, rarp);
    close(rarp);
    assert_vhost_runs(&b, 3 * MANY + 10);
    guest_stop(&b);
}

/* A migration that does not happen: the guest goes on, and has lost nothing */
static void test_migration_cancel(const void *data)
{
    const Migration *m = data;
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    g_autofree char *props =
        g_strdup_printf("netdev=n0,%soutdev=c0" ONLY_STOPPED, m->in_netdev);
    uint32_t seq;
    Guest g;

    guest_start(&g, "");
    filter_add(&g.e, "f0", props);
    migrate_pause(&g.e);
    send_and_drain(&g, 0, 10);
    for (seq = 1000; seq <= 5000; seq += 1000) {
        migrate_to_pause(&g.e, uri);
        send_range(&g, seq, seq + MANY);
        capture_expect(g.e.chr[0], seq, seq + MANY);
        assert_silent(&g.e, g.e.chr[0]);
        /* Some that QEMU has not read when the VM runs again */
        vm_stall(&g.e, true);
        send_range(&g, seq + MANY, seq + 2 * MANY);
        migrate_cancel_send(&g.e);
        vm_stall(&g.e, false);
        migrate_cancel_wait(&g.e);
        ring_expect(&g, seq, seq + 2 * MANY);
        send_and_drain(&g, seq + 2 * MANY, seq + 3 * MANY);
        while (readable(g.e.chr[0])) {
            size_t len;

            g_free(wire_recv(g.e.chr[0], &len));
        }
    }

    migrate_to_pause(&g.e, uri);
    send_range(&g, seq, seq + MANY);
    migrate_continue(&g.e);
    wait_migration(&g.e, "completed");
    send_range(&g, seq + MANY, seq + 2 * MANY);
    capture_expect(g.e.chr[0], seq, seq + 2 * MANY);
    assert_silent(&g.e, g.e.chr[0]);
    guest_stop(&g);
    unlink(strchr(uri, ':') + 1);
}


/* Why there can be no vhost here, or NULL if there can */
static const char *no_vhost;

static void test_skip(const void *data)
{
    g_test_skip(no_vhost);
}

static void add_vhost_test(const char *path, void (*func)(const void *),
                           const void *data)
{
    g_autofree char *full = g_strdup_printf("/af-packet-vhost/%s", path);

    qtest_add_data_func(full, data, no_vhost ? test_skip : func);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);

    tmpdir = g_dir_make_tmp("af-packet-vhost.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();
    no_vhost = no_host;
    if (!no_vhost && access("/dev/vhost-net", R_OK | W_OK) < 0) {
        no_vhost = "no /dev/vhost-net: run it by lab/vm";
    } else if (!no_vhost && (!qtest_has_machine("pc") ||
                             !qtest_has_device("virtio-net-pci"))) {
        no_vhost = "no virtio-net-pci";
    }

    add_vhost_test("running", test_running, NULL);
    add_vhost_test("capture/outdev", test_capture, NULL);
    add_vhost_test("capture/chain", test_capture_chain, NULL);
    add_vhost_test("inject/plain", test_inject, NULL);
    add_vhost_test("inject/vnet", test_inject, "");
    add_vhost_test("metadata", test_metadata, NULL);
    add_vhost_test("errors", test_errors, NULL);
    add_vhost_test("dump/errors", test_dump_errors, NULL);
    add_vhost_test("dump/capture", test_dump, NULL);
    add_vhost_test("stopped/chain", test_stopped_chain, NULL);
    add_vhost_test("stopped/capture", test_stopped_capture, NULL);
    add_vhost_test("stopped/switchover/copy", test_stopped_switchover,
                   "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
    add_vhost_test("stopped/switchover/no-copy", test_stopped_switchover,
                   "netdev=n0,outdev=c0" ONLY_STOPPED);
    add_vhost_test("status/capture", test_status, NULL);
    add_vhost_test("status/inject", test_status_inject, NULL);
    add_vhost_test("multiqueue", test_multiqueue, NULL);
    for (int i = 0; i < ARRAY_SIZE(migrations); i++) {
        const Migration *m = &migrations[i];
        g_autofree char *path = g_strdup_printf("migration/%s", m->name);
        g_autofree char *cancel = g_strdup_printf("cancel/%s", m->name);

        add_vhost_test(path, test_migration, m);
        if (!m->vnet[0]) {
            add_vhost_test(cancel, test_migration_cancel, m);
        }
    }

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
