/*
 * A guest without code, for qtests: the driver of a virtio-net-pci
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/if_packet.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include "af-packet-guest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ring.h"

#define RAM_MIB 16
#define NIC_SLOT 4

/* Longer frames take several of these */
#define RX_BUF_LEN 2048

#define FEATURES ((1ULL << VIRTIO_F_VERSION_1) |        \
                  (1ULL << VIRTIO_NET_F_MRG_RXBUF) |    \
                  (1ULL << VIRTIO_NET_F_CSUM) |         \
                  (1ULL << VIRTIO_NET_F_GUEST_CSUM) |   \
                  (1ULL << VIRTIO_NET_F_GUEST_TSO4))

#define MQ_FEATURES ((1ULL << VIRTIO_NET_F_CTRL_VQ) |   \
                     (1ULL << VIRTIO_NET_F_MQ))

const char *guest_machine = "pc";

const char *why_no_vhost(void)
{
    if (no_host) {
        return no_host;
    }
    return access("/dev/vhost-net", R_OK | W_OK) < 0 ?
           "no /dev/vhost-net: run it by lab/vm" : NULL;
}

size_t seq_len(uint32_t seq)
{
    return seq % 2 ? 1514 : 64;
}

void guest_vm_start(Guest *g, const char *ifname, int pairs, bool vhost,
                    const char *device, const char *options)
{
    g_autofree char *bios = g_malloc(64 * KiB);
    g_autofree char *path = g_strdup_printf("%s/bios", tmpdir);
    g_autofree char *machine = g_strdup_printf("%s,memory-backend=ram0",
                                               guest_machine);
    g_autofree char *ram = g_strdup_printf("%s/ram", tmpdir);
    g_autofree char *nic =
        g_strdup_printf("-device virtio-net-pci,netdev=n0,romfile=,addr=%d%s",
                        NIC_SLOT, device ?: "");
    g_autofree char *args =
        g_strdup_printf("-m %d -bios %s "
                        "-object memory-backend-file,id=ram0,mem-path=%s,"
                        "size=%dM,share=on "
                        "-netdev tap,id=n0,ifname=%s,script=no,downscript=no,"
                        "queues=%d,%s %s %s", RAM_MIB, path, ram, RAM_MIB,
                        ifname, pairs,
                        vhost ? "vhost=on,vhostforce=on" : "vhost=off",
                        device ? nic : "", options);
    int fd;

    /* The hlt instruction, should it have an accelerator that runs it */
    memset(bios, 0xf4, 64 * KiB);
    g_assert_true(g_file_set_contents(path, bios, 64 * KiB, NULL));
    memset(g, 0, sizeof(*g));
    env_init(&g->e);
    env_start_full(&g->e, 0, false, machine, args);
    unlink(path);

    fd = open(ram, O_RDWR | O_CLOEXEC);
    g_assert_cmpint(fd, !=, -1);
    unlink(ram);
    g->ram = mmap(NULL, RAM_MIB * MiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                  0);
    g_assert_true(g->ram != MAP_FAILED);
    close(fd);

    g->pairs = pairs;
    g->tap = &g->e.tap[0];
    pstrcpy(g->tap->name, sizeof(g->tap->name), ifname);
    if_set_up(ifname, true);
    g->tap->host = packet_socket(ifname, SOCK_RAW, 0);
}

void guest_vm_stop(Guest *g)
{
    close(g->tap->host);
    munmap(g->ram, RAM_MIB * MiB);
    env_stop(&g->e);
}

void guest_vm_kill(Guest *g)
{
    pid_t pid = qtest_pid(g->e.qts);
    siginfo_t info;

    g_assert_cmpint(kill(pid, SIGKILL), ==, 0);
    g_assert_cmpint(waitid(P_PID, pid, &info, WEXITED | WNOWAIT), ==, 0);
    /* It would be an error to qtest_quit(): its QTestState stays */
    g_assert_false(qtest_probe_child(g->e.qts));
    g->e.qts = NULL;
}

/* The receive ring in the memory of @g, with all of its buffers */
static struct vring ring_of(Guest *g, int pair)
{
    QVirtQueue *rx = g->rx[pair];

    return (struct vring) {
        .num = rx->size,
        .desc = (void *)(g->ram + rx->desc),
        .avail = (void *)(g->ram + rx->avail),
        .used = (void *)(g->ram + rx->used),
    };
}

static void ring_give(Guest *g, int pair, uint32_t id)
{
    struct vring ring = ring_of(g, pair);
    uint16_t idx = lduw_le_p(&ring.avail->idx);

    stw_le_p(&ring.avail->ring[idx % ring.num], id);
    /* The entry before the index */
    smp_wmb();
    stw_le_p(&ring.avail->idx, idx + 1);
    /* The index before the flags are read */
    smp_mb();
}

static void ring_start(Guest *g, int pair)
{
    struct vring ring;
    uint64_t buf;
    int i;

    g->rx[pair] = qvirtqueue_setup(&g->dev->vdev, &g->alloc, 2 * pair);
    ring = ring_of(g, pair);
    g_assert_cmpint(ring.num, >=, GUEST_RX_BUFFERS);
    buf = guest_alloc(&g->alloc, RX_BUF_LEN * GUEST_RX_BUFFERS);
    for (i = 0; i < GUEST_RX_BUFFERS; i++) {
        stq_le_p(&ring.desc[i].addr, buf + i * RX_BUF_LEN);
        stl_le_p(&ring.desc[i].len, RX_BUF_LEN);
        stw_le_p(&ring.desc[i].flags, VRING_DESC_F_WRITE);
        ring_give(g, pair, i);
    }
    g->tx[pair] = qvirtqueue_setup(&g->dev->vdev, &g->alloc, 2 * pair + 1);
}

/* Let the device use all pairs of queues */
static void driver_set_pairs(Guest *g)
{
    struct {
        struct virtio_net_ctrl_hdr hdr;
        uint16_t pairs;
        uint8_t ack;
    } QEMU_PACKED cmd = {
        .hdr.class = VIRTIO_NET_CTRL_MQ,
        .hdr.cmd = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
        .pairs = cpu_to_le16(g->pairs),
        .ack = VIRTIO_NET_ERR,
    };
    uint64_t addr = guest_alloc(&g->alloc, sizeof(cmd));
    uint32_t id;

    qtest_memwrite(g->e.qts, addr, &cmd, sizeof(cmd));
    id = qvirtqueue_add(g->e.qts, g->ctrl, addr, sizeof(cmd.hdr), false, true);
    qvirtqueue_add(g->e.qts, g->ctrl, addr + sizeof(cmd.hdr),
                   sizeof(cmd.pairs), false, true);
    qvirtqueue_add(g->e.qts, g->ctrl, addr + offsetof(typeof(cmd), ack),
                   sizeof(cmd.ack), true, false);
    qvirtqueue_kick(g->e.qts, &g->dev->vdev, g->ctrl, id);
    patience_begin();
    while (!qvirtqueue_get_buf(g->e.qts, g->ctrl, NULL, NULL)) {
        patience_check();
    }
    g_assert_cmpint(qtest_readb(g->e.qts, addr + offsetof(typeof(cmd), ack)),
                    ==, VIRTIO_NET_OK);
}

void driver_start(Guest *g)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(NIC_SLOT, 0) };
    uint64_t features = FEATURES | (g->pairs > 1 ? MQ_FEATURES : 0);
    QVirtioDevice *vdev;

    pc_alloc_init(&g->alloc, g->e.qts, ALLOC_NO_FLAGS);
    g->bus = qpci_new_pc(g->e.qts, &g->alloc);
    g->dev = virtio_pci_new(g->bus, &addr);
    g_assert_nonnull(g->dev);
    qvirtio_pci_device_enable(g->dev);
    vdev = &g->dev->vdev;
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) & features);
    for (int i = 0; i < g->pairs; i++) {
        ring_start(g, i);
    }
    if (g->pairs > 1) {
        g->ctrl = qvirtqueue_setup(vdev, &g->alloc, 2 * g->pairs);
    }
    qvirtio_set_driver_ok(vdev);
    if (g->pairs > 1) {
        driver_set_pairs(g);
    }
}

void guest_stop(Guest *g)
{
    const QVirtioBus *bus = g->dev->vdev.bus;

    /* QEMU has not tried to use a ring behind vhost's back */
    g_assert_cmphex(bus->get_status(&g->dev->vdev) &
                    VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    for (int i = 0; i < g->pairs; i++) {
        qvirtqueue_cleanup(bus, g->tx[i], &g->alloc);
        qvirtqueue_cleanup(bus, g->rx[i], &g->alloc);
    }
    if (g->ctrl) {
        qvirtqueue_cleanup(bus, g->ctrl, &g->alloc);
    }
    qvirtio_pci_device_disable(g->dev);
    g_free(g->dev->pdev);
    g_free(g->dev);
    qpci_free_pc(g->bus);
    alloc_destroy(&g->alloc);
    guest_vm_stop(g);
}

void guest_move(Guest *a, Guest *b)
{
    b->bus = a->bus;
    b->dev = a->dev;
    b->ctrl = a->ctrl;
    memcpy(b->rx, a->rx, sizeof(b->rx));
    memcpy(b->tx, a->tx, sizeof(b->tx));
    b->alloc = a->alloc;
    b->bus->qts = b->e.qts;
}

/* A used buffer to the end of @frame, and back to the device */
static bool ring_take(Guest *g, int pair, GByteArray *frame)
{
    struct vring ring = ring_of(g, pair);
    QVirtQueue *rx = g->rx[pair];
    struct vring_used_elem *elem;
    uint32_t id, len;

    if (lduw_le_p(&ring.used->idx) == rx->last_used_idx) {
        return false;
    }
    /* The index before the entry */
    smp_rmb();
    elem = &ring.used->ring[rx->last_used_idx++ % ring.num];
    id = ldl_le_p(&elem->id);
    len = ldl_le_p(&elem->len);
    g_assert_cmpint(id, <, ring.num);
    g_assert_cmpint(len, <=, RX_BUF_LEN);
    g_byte_array_append(frame, (uint8_t *)g->ram +
                        ldq_le_p(&ring.desc[id].addr), len);

    ring_give(g, pair, id);
    if (!(lduw_le_p(&ring.used->flags) & VRING_USED_F_NO_NOTIFY)) {
        g->dev->vdev.bus->virtqueue_kick(&g->dev->vdev, rx);
    }
    return true;
}

bool ring_poll(Guest *g, int pair, GByteArray *frame,
               struct virtio_net_hdr_mrg_rxbuf *hdr)
{
    g_byte_array_set_size(frame, 0);
    if (!ring_take(g, pair, frame)) {
        return false;
    }
    g_assert_cmpint(frame->len, >, GUEST_HDR_LEN);
    memcpy(hdr, frame->data, GUEST_HDR_LEN);
    /* All buffers of a frame become used at once */
    for (int n = lduw_le_p(&hdr->num_buffers); n > 1; n--) {
        g_assert_true(ring_take(g, pair, frame));
    }
    g_byte_array_remove_range(frame, 0, GUEST_HDR_LEN);
    return true;
}

void ring_recv(Guest *g, GByteArray *frame,
               struct virtio_net_hdr_mrg_rxbuf *hdr)
{
    patience_begin();
    for (int pair = 0; !ring_poll(g, pair, frame, hdr);
         pair = (pair + 1) % g->pairs) {
        patience_check();
        g_thread_yield();
    }
}

void ring_expect(Guest *g, uint32_t begin, uint32_t end)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;

    for (; begin < end; begin++) {
        ring_recv(g, frame, &hdr);
        assert_frame(frame->data, frame->len, begin, seq_len(begin));
        g_assert_cmpint(hdr.hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM, ==, 0);
        g_assert_cmpint(hdr.hdr.gso_type, ==, VIRTIO_NET_HDR_GSO_NONE);
    }
}

void guest_send(Guest *g, uint32_t seq)
{
    uint8_t buf[GUEST_HDR_LEN + FRAME_LEN] = { 0 };
    uint64_t addr = guest_alloc(&g->alloc, sizeof(buf));
    uint32_t id;

    frame_fill(buf + GUEST_HDR_LEN, seq, FRAME_LEN);
    qtest_memwrite(g->e.qts, addr, buf, sizeof(buf));
    id = qvirtqueue_add(g->e.qts, g->tx[0], addr, sizeof(buf), false, false);
    qvirtqueue_kick(g->e.qts, &g->dev->vdev, g->tx[0], id);
    patience_begin();
    while (!qvirtqueue_get_buf(g->e.qts, g->tx[0], NULL, NULL)) {
        patience_check();
    }
}

void send_range(Guest *g, uint32_t begin, uint32_t end)
{
    for (; begin < end; begin++) {
        host_send(g->tap, begin, seq_len(begin));
    }
}

void send_and_drain(Guest *g, uint32_t begin, uint32_t end)
{
    send_range(g, begin, end);
    ring_expect(g, begin, end);
}
