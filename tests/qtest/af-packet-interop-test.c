/*
 * QTest testcase for filters with another QEMU at the other end
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The other QEMU is one without this feature, older or newer:
 * QTEST_QEMU_BINARY_PEER names its binary.  The messages between the two have
 * had the same format for long, and both must find in them what the other has
 * put there.  Migrations between the two are in switchover-peers-test.c.
 *
 *   capture   host -> TAP -> in_netdev -> peer's filter-redirector -> its
 *             guest, or its network
 *   chain     host -> TAP -> filter-mirror or filter-redirector -> the same
 *   inject    host -> peer's TAP -> its filter-mirror or filter-redirector ->
 *             out_netdev -> TAP -> guest
 *   compare   host -> TAP -> two filters of one QEMU -> colo-compare of the
 *             other -> a filter of the first -> guest; in both directions
 *
 * All with vnet headers between the two, and without.  Where the
 * peer has vnet headers, it has a virtio-net NIC, without a driver.
 *
 * What is sent leaves a checksum, or the segmentation, to be done.  Without
 * vnet headers it arrives complete, as the peer cannot know that there is
 * anything to do.
 *
 * Needs root and the other binary; all is skipped without.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/ioctl.h>
#include "af-packet-helpers.h"
#include "net/tap-linux.h"
#include "qobject/qdict.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"

#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)

/* Bytes of TCP's payload; those of a segment */
#define PAYLOAD 20001
#define GSO_SIZE 1400
#define HEADERS 54


/* What the host sends */

enum { COMPLETE, CHECKSUM, SEGMENTS, FRAMES };

typedef struct Frame {
    struct virtio_net_hdr hdr;
    size_t len;
    uint8_t data[HEADERS + PAYLOAD];
} Frame;

/* TCP over IPv4, with this to be done */
static void make_frame(Frame *f, int left)
{
    size_t payload = left == SEGMENTS ? PAYLOAD : 999;
    uint8_t *ip = f->data + ETH_HLEN;
    uint8_t *tcp = ip + 20;

    f->len = HEADERS + payload;
    frame_fill(f->data, left, f->len);
    stw_be_p(f->data + 2 * ETH_ALEN, ETH_P_IP);
    ip_header(ip, IPPROTO_TCP, 20 + payload);
    memset(tcp, 0, 20);
    stw_be_p(tcp, 1000 + left);
    stw_be_p(tcp + 2, 2000);
    tcp[12] = 5 << 4;
    tcp[13] = 0x10;
    stw_be_p(tcp + 16, ip_pseudo_sum(ip));

    memset(&f->hdr, 0, sizeof(f->hdr));
    if (left == COMPLETE) {
        stw_be_p(tcp + 16, ~inet_sum(tcp, f->len - 34, 0));
        return;
    }
    f->hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    f->hdr.csum_start = 34;
    f->hdr.csum_offset = 16;
    if (left == SEGMENTS) {
        f->hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
        f->hdr.gso_size = GSO_SIZE;
        f->hdr.hdr_len = HEADERS;
    }
}

static void host_has_offloads(Tap *tap)
{
    int one = 1;

    tap_set_offload(tap, OFFLOADS);
    g_assert_cmpint(setsockopt(tap->host, SOL_PACKET, PACKET_VNET_HDR, &one,
                               sizeof(one)), ==, 0);
}

static void host_send_frame(Tap *tap, const Frame *f)
{
    struct iovec iov[] = {
        { .iov_base = (void *)&f->hdr, .iov_len = sizeof(f->hdr) },
        { .iov_base = (void *)f->data, .iov_len = f->len },
    };

    g_assert_cmpint(writev(tap->host, iov, 2), ==, sizeof(f->hdr) + f->len);
}

/* Where frames come out: without vnet headers, or with */
typedef uint8_t *Receive(void *from, struct virtio_net_hdr *hdr, size_t *len);

static uint8_t *receive_wire(void *from, struct virtio_net_hdr *hdr,
                             size_t *len)
{
    memset(hdr, 0, sizeof(*hdr));
    return wire_recv(*(int *)from, len);
}

static uint8_t *receive_tap(void *from, struct virtio_net_hdr *hdr,
                            size_t *len)
{
    uint8_t *buf = g_malloc(WIRE_MAX);

    *len = tap_recv(from, hdr, buf, WIRE_MAX);
    return buf;
}

/* What a guest has sent, on the host's side of its TAP */
static uint8_t *receive_host(void *from, struct virtio_net_hdr *hdr,
                             size_t *len)
{
    uint8_t *buf = g_malloc(WIRE_MAX);
    struct iovec iov[] = {
        { .iov_base = hdr, .iov_len = sizeof(*hdr) },
        { .iov_base = buf, .iov_len = WIRE_MAX },
    };
    ssize_t ret;

    wait_fd(*(int *)from, POLLIN);
    ret = readv(*(int *)from, iov, 2);
    g_assert_cmpint(ret, >, sizeof(*hdr));
    *len = ret - sizeof(*hdr);
    return buf;
}

/* With what is to be done, as it was sent; or done */
static void expect_frame(const Frame *f, bool vnet, Receive *receive,
                         void *from)
{
    size_t done = 0;

    while (done < f->len - HEADERS) {
        struct virtio_net_hdr hdr;
        size_t len;
        g_autofree uint8_t *buf = receive(from, &hdr, &len);
        const uint8_t *ip = buf + ETH_HLEN;

        g_assert_cmpint(len, >, HEADERS);
        if (vnet) {
            g_assert_cmpmem(buf, len, f->data, f->len);
            g_assert_cmpmem(&hdr, sizeof(hdr), &f->hdr, sizeof(f->hdr));
            return;
        }
        g_assert_cmpint(hdr.flags | hdr.gso_type, ==, 0);
        g_assert_cmpint(len, <=, 1514);
        g_assert_cmpmem(buf, 34 - 20, f->data, 34 - 20);
        g_assert_cmpmem(buf + HEADERS, len - HEADERS,
                        f->data + HEADERS + done, len - HEADERS);
        g_assert_cmphex(inet_sum(ip, 20, 0), ==, 0xffff);
        g_assert_cmphex(inet_sum(ip + 20, len - 34, ip_pseudo_sum(ip)),
                        ==, 0xffff);
        done += len - HEADERS;
    }
}

static void send_and_expect(Tap *tap, bool vnet, Receive *receive, void *from)
{
    g_autofree Frame *f = g_new(Frame, 1);

    for (int i = 0; i < FRAMES; i++) {
        make_frame(f, i);
        host_send_frame(tap, f);
        expect_frame(f, vnet, receive, from);
    }
}


/* Two QEMUs */

#define VIRTIO_NET "-m 16 -bios %s/bios " \
                   "-device virtio-net-pci,netdev=n0,romfile= "

/*
 * Start one whose TAPs have these names; with a NIC it has vnet headers,
 * without it has hubs, and a guest behind each
 */
static void start(Env *e, const char *binary_var, const char *const *names,
                  int taps, bool nic, const char *options)
{
    g_autofree char *bios = g_malloc(64 * KiB);
    g_autofree char *path = g_strdup_printf("%s/bios", tmpdir);
    g_autofree char *device = g_strdup_printf(VIRTIO_NET, tmpdir);
    g_autofree char *all = g_strconcat(nic ? device : "", options, NULL);

    /* The hlt instruction, should it have an accelerator that runs it */
    memset(bios, 0xf4, 64 * KiB);
    g_assert_true(g_file_set_contents(path, bios, 64 * KiB, NULL));
    env_init(e);
    for (int i = 0; i < taps; i++) {
        tap_open(&e->tap[i], names[i]);
    }
    qemu_binary_var = binary_var;
    env_start_full(e, taps, !nic, nic ? QEMU_PEER_MACHINE : "none", all);
    qemu_binary_var = NULL;
    for (int i = 0; i < taps; i++) {
        host_has_offloads(&e->tap[i]);
    }
    unlink(path);
}

static void start_ours(Env *e, int taps, bool nic, const char *options)
{
    static const char *const names[] = { "qtap0", "qtap1" };

    start(e, NULL, names, taps, nic, options);
}

static void start_peer(Env *e, bool nic, const char *options)
{
    static const char *const names[] = { "qpeer0" };

    start(e, QEMU_PEER, names, 1, nic, options);
}

/* A stopped VM: QEMU takes one frame, and from then on the test can read */
static void stop_reading(Env *e, int i)
{
    const Frame f = { .len = FRAME_LEN };

    host_send_frame(&e->tap[i], &f);
    patience_begin();
    while (!if_tx_packets(e->tap[i].name)) {
        patience_check();
        vm_answers(e);
    }
}

/* To receive what a guest sends, with vnet headers */
static int host_listen(Tap *tap)
{
    int fd = packet_socket(tap->name, SOCK_RAW, ETH_P_ALL);
    int one = 1;

    g_assert_cmpint(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one,
                               sizeof(one)), ==, 0);
    g_assert_cmpint(setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one,
                               sizeof(one)), ==, 0);
    return fd;
}

static char *connect_to(const Env *e)
{
    return g_strdup_printf("-chardev socket,id=m0,path=%s ", e->listen);
}

static void add(Env *e, const char *type, const char *id, const char *props,
                bool vnet)
{
    g_autofree char *all = g_strconcat(props, vnet ? ",vnet_hdr_support=on" :
                                                     "", NULL);

    assert_success(object_add(e, type, id, all));
}

/* The peer gives what comes from our filter to its guest, or to the network */
static void give_to_peer(const char *type, const char *props, bool chain,
                         bool vnet)
{
    g_autofree char *chardev = NULL;
    Env ours, peer;

    start_ours(&ours, 1, chain && vnet, "");
    if (chain && !vnet) {
        /* As in every QEMU, nothing is done about what is left to be done */
        tap_set_offload(&ours.tap[0], 0);
    }
    add(&ours, type, "f0", props, vnet);
    if (chain && vnet) {
        /* The NIC, without a driver, takes nothing */
        add(&ours, "filter-redirector", "f1", "netdev=n0,queue=tx,outdev=c0",
            vnet);
    }
    chardev = connect_to(&ours);
    start_peer(&peer, vnet, chardev);
    add(&peer, "filter-redirector", "f0",
        vnet ? "netdev=n0,queue=rx,indev=m0" : "netdev=n0,queue=tx,indev=m0",
        vnet);
    /* A chain does not wait for a peer */
    vm_answers(&ours);
    if (vnet) {
        int fd = host_listen(&peer.tap[0]);

        send_and_expect(&ours.tap[0], vnet, receive_host, &fd);
        close(fd);
    } else {
        send_and_expect(&ours.tap[0], vnet, receive_wire, &peer.guest[0]);
    }
    env_stop(&peer);
    env_stop(&ours);
}

static void test_capture(const void *opaque)
{
    give_to_peer("filter-redirector", "netdev=n0,in_netdev=n0,outdev=s0",
                 false, opaque);
}

static void test_chain_mirror(const void *opaque)
{
    give_to_peer("filter-mirror", "netdev=n0,queue=tx,outdev=s0", true,
                 opaque);
}

static void test_chain_redirector(const void *opaque)
{
    give_to_peer("filter-redirector", "netdev=n0,queue=tx,outdev=s0", true,
                 opaque);
}

/* We inject what the peer's guest has received, or what is taken from it */
static void inject(const char *type, bool vnet)
{
    g_autofree char *chardev = NULL;
    g_autofree char *options = NULL;
    Env ours, peer;

    start_peer(&peer, vnet, "");
    chardev = connect_to(&peer);
    options = g_strconcat("-S ", chardev, NULL);
    start_ours(&ours, 1, false, options);
    stop_reading(&ours, 0);
    add(&ours, "filter-redirector", "f0",
        "netdev=n0,indev=m0,out_netdev=n0,enable_when_stopped=on", vnet);
    if (!vnet) {
        /* The peer does nothing about what is left to be done */
        tap_set_offload(&peer.tap[0], 0);
    }
    add(&peer, type, "f0", "netdev=n0,queue=tx,outdev=s0", vnet);
    if (vnet) {
        /* Its NIC, without a driver, takes nothing */
        add(&peer, "filter-redirector", "f1", "netdev=n0,queue=tx,outdev=c0",
            vnet);
    }
    send_and_expect(&peer.tap[0], vnet, receive_tap, &ours.tap[0]);
    env_stop(&peer);
    env_stop(&ours);
}

static void test_inject_mirror(const void *opaque)
{
    inject("filter-mirror", opaque);
}

static void test_inject_redirector(const void *opaque)
{
    inject("filter-redirector", opaque);
}

/* What comes once only it gives up after 10 minutes, as hosts are slow */
#define COMPARE                                                           \
    "-object iothread,id=t0 "                                             \
    "-chardev socket,id=pri,path=%s/pri,server=on,wait=off "              \
    "-chardev socket,id=sec,path=%s/sec,server=on,wait=off "              \
    "-chardev socket,id=out,path=%s/out,server=on,wait=off "              \
    "-object colo-compare,id=cmp,primary_in=pri,secondary_in=sec,"        \
    "outdev=out,iothread=t0,compare_timeout=600000%s "
#define FILTERS                                                           \
    "-chardev socket,id=pri,path=%s/pri "                                 \
    "-chardev socket,id=sec,path=%s/sec "                                 \
    "-chardev socket,id=out,path=%s/out "

static const char *const compare_ids[] = { "pri", "sec", "out" };

static void compare_unlink(void)
{
    for (int i = 0; i < ARRAY_SIZE(compare_ids); i++) {
        g_autofree char *path = g_strdup_printf("%s/%s", tmpdir,
                                                compare_ids[i]);

        unlink(path);
    }
}

/* A socket that has not been accepted yet takes nothing */
static void compare_wait(Env *e)
{
    for (int i = 0; i < ARRAY_SIZE(compare_ids); i++) {
        patience_begin();
        while (!chardev_is_connected(e, compare_ids[i])) {
            patience_check();
        }
    }
}

/* What comes from two filters is the same, and goes on to a third */
static void add_filters(Env *e, const char *const *types, char **props,
                        bool vnet)
{
    for (int i = 0; i < ARRAY_SIZE(compare_ids); i++) {
        add(e, types[i], compare_ids[i], props[i], vnet);
    }
}

/* The peer compares what we capture, and we inject what it lets pass */
static void test_compare_peer(const void *opaque)
{
    static const char *const types[] = {
        "filter-redirector", "filter-redirector", "filter-redirector"
    };
    static const char *const props[] = {
        "netdev=n0,in_netdev=n0,outdev=pri,enable_when_stopped=on",
        "netdev=n0,in_netdev=n0,outdev=sec,enable_when_stopped=on",
        "netdev=n1,indev=out,out_netdev=n1,enable_when_stopped=on",
    };
    bool vnet = opaque;
    g_autofree char *compare =
        g_strdup_printf(COMPARE, tmpdir, tmpdir, tmpdir,
                        vnet ? ",vnet_hdr_support=on" : "");
    g_autofree char *filters = g_strdup_printf("-S " FILTERS, tmpdir, tmpdir,
                                               tmpdir);
    Env ours, peer;

    start_peer(&peer, false, compare);
    start_ours(&ours, 2, false, filters);
    stop_reading(&ours, 1);
    compare_wait(&peer);
    add_filters(&ours, types, (char **)props, vnet);
    send_and_expect(&ours.tap[0], vnet, receive_tap, &ours.tap[1]);
    env_stop(&ours);
    env_stop(&peer);
    compare_unlink();
}

/* We compare what the peer's guest receives, and it gets what we let pass */
static void test_compare_ours(const void *opaque)
{
    static const char *const types[] = {
        "filter-mirror", "filter-redirector", "filter-redirector"
    };
    bool vnet = opaque;
    const char *props[] = {
        "netdev=n0,queue=tx,outdev=pri",
        "netdev=n0,queue=tx,outdev=sec",
        vnet ? "netdev=n0,queue=rx,indev=out" : "netdev=n0,queue=tx,indev=out",
    };
    g_autofree char *compare =
        g_strdup_printf(COMPARE, tmpdir, tmpdir, tmpdir,
                        vnet ? ",vnet_hdr_support=on" : "");
    g_autofree char *filters = g_strdup_printf(FILTERS, tmpdir, tmpdir,
                                               tmpdir);
    Env ours, peer;

    start_ours(&ours, 1, false, compare);
    start_peer(&peer, vnet, filters);
    compare_wait(&ours);
    add_filters(&peer, types, (char **)props, vnet);
    if (vnet) {
        int fd = host_listen(&peer.tap[0]);

        send_and_expect(&peer.tap[0], vnet, receive_host, &fd);
        close(fd);
    } else {
        tap_set_offload(&peer.tap[0], 0);
        send_and_expect(&peer.tap[0], vnet, receive_wire, &peer.guest[0]);
    }
    env_stop(&peer);
    env_stop(&ours);
    compare_unlink();
}


static const char *no_peer;

static void skip(const void *opaque)
{
    g_test_skip(no_host ?: no_peer);
}

static void add_case(const char *name, const char *variant, const void *opaque,
                     void (*func)(const void *data))
{
    g_autofree char *path = g_strdup_printf("/af-packet/interop/%s/%s", name,
                                            variant);

    qtest_add_data_func(path, opaque, no_host || no_peer ? skip : func);
}

static void add_test(const char *name, void (*func)(const void *data))
{
    add_case(name, "plain", NULL, func);
    add_case(name, "vnet", "", func);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    tmpdir = g_dir_make_tmp("af-packet-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();
    no_peer = why_no_peer();

    add_test("capture", test_capture);
    add_test("chain/mirror", test_chain_mirror);
    add_test("chain/redirector", test_chain_redirector);
    add_test("inject/mirror", test_inject_mirror);
    add_test("inject/redirector", test_inject_redirector);
    add_test("compare/peer", test_compare_peer);
    add_test("compare/ours", test_compare_ours);

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
