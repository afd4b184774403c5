/*
 * QEMU I/O channels AF_PACKET driver
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

/*
 * Captures the frames that the host sends towards a network interface, or
 * injects frames there.  The interface is the host's end of a TAP device, so
 * these are the frames that the guest receives, by whatever way: with
 * vhost-net the kernel does, and QEMU sees no frame, but this socket does.
 *
 * Theory of operation
 *
 * Capture.  Of the directions that AF_PACKET knows, PACKET_OUTGOING is the
 * one from the host into the TAP.  A classic BPF program lets only that pass;
 * it is attached before the socket is bound to ETH_P_ALL, as the socket would
 * else queue a few foreign frames first.  An adopted socket may hold such
 * frames already, so the direction of each frame is looked at again.
 *
 * The frame that the guest gets is not quite the frame in the socket's
 * buffer.  What is missing travels beside it and is put back here:
 *   - a checksum that is to be filled in by the receiver, and the segment
 *     size of a GSO frame: in the vnet header (PACKET_VNET_HDR);
 *   - an outer VLAN tag: in the auxiliary data (PACKET_AUXDATA).
 *
 * Frames are read from a ring (io/packet-ring.c), which is set up before the
 * socket is hooked to the traffic.  What the ring does not have is asked of
 * the socket: errors, and frames where there is no ring, as in a socket that
 * was adopted while it captured, or where the kernel refused one.
 *
 * A capture must begin at once, and must cost nothing before and after.  A
 * new socket is bound to its interface with protocol 0, which hooks it to
 * nothing; to bind it to ETH_P_ALL then takes microseconds.  There is no way
 * back: bind() takes 0 for "the protocol as before", and every other change
 * of a bound socket, closing it too, waits for an RCU grace period, 8 to
 * 16 ms (times and behaviour: Linux 6.18).  Therefore:
 *   - PACKET_IGNORE_OUTGOING ends the capture, immediately, even where the
 *     process that made the socket has locked its filter;
 *   - when all has been read, or shall not be, a new socket takes the place of
 *     the old one, which a thread closes.
 * Without CAP_NET_RAW there is no new socket.  Then the old one stays hooked,
 * with its ring, and costs the host a little: a look at that flag for each
 * frame to the guest, and a run of the filter for each frame from there.
 *
 * Inject.  PACKET_QDISC_BYPASS hands the frame to the TAP's driver directly.
 * This is what makes a full TAP queue visible, as ENOBUFS; through a qdisc
 * the frame would be dropped behind a successful send (Linux 6.18).  It also
 * hides the frame from every capture, so that inject and capture on the same
 * interface make no loop.  ENOBUFS is not an error here: the frame is kept
 * by the caller, who tries again after a millisecond.
 *
 * The byte stream is a thin layer over the frames.  Reading puts a head in
 * front of each frame.  Writing sends the whole messages that it is given, in
 * batches, straight from the writer's memory; if there is no room for a frame,
 * its message is not accepted.  Only a message that comes in pieces is
 * collected here; then it is the last byte that is not accepted.  So the writer
 * knows of the back-pressure, and sends the frame by writing the rest again.
 * Nothing needs to be flushed behind the writer's back.
 *
 * Interface states, as seen in errors of the socket (Linux 6.18):
 *   down     ENETDOWN once when receiving, at each frame when sending; the
 *            capture goes on by itself once the interface is up
 *   gone     deleted, or moved to another namespace: the socket is bound to
 *            index -1 and stays useless; reading and writing fail.  The kernel
 *            does not tell when it follows on "down", so a watch looks every
 *            second.
 */

#include "qemu/osdep.h"

#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>

#include "io/channel-packet.h"
#include "io/channel-util.h"
#include "io/packet-gso.h"
#include "io/packet-ring.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/sockets.h"
#include "qemu/thread.h"
#include "qemu/units.h"
#include "trace.h"

/* While the interface is down, look this often whether it is gone */
#define PACKET_DOWN_CHECK_US (1000 * 1000)

/*
 * A full queue and an interface that does not take GSO frames look the same.
 * One that cannot be cut is dropped after this time.
 */
#define PACKET_GSO_RETRY_US (1000 * 1000)

/* Frames of the stream that are dropped before a read gives the loop back */
#define PACKET_MAX_DROPS 64

/*
 * Receive buffer asked for, in bytes.  The default, 208 KiB, holds 93 frames
 * of 1514 bytes: 1 ms of 1 Gb/s.  Without CAP_NET_ADMIN the kernel grants at
 * most net.core.rmem_max.
 */
#define PACKET_RCVBUF (32 * MiB)

/*
 * Without a ring the kernel does not tell, with a frame, that others have found
 * the buffer full.  It is asked when all is read, or after so many frames.
 */
#define PACKET_DROPS_CHECK 512

#define VLAN_TAG_LEN 4

/* be32 message length, be32 vnet header length */
#define MSG_HDR_MAX 8

/* Frames in one system call; system calls in one write to the stream */
#define PACKET_BATCH 64
#define PACKET_MAX_BATCHES 8

/*
 * The longest frame from the kernel, so that with its tag and any vnet header
 * that a caller puts in front it is not too long for a message
 */
#define PACKET_FRAME_MAX \
    (QIO_CHANNEL_PACKET_MAX - VLAN_TAG_LEN - \
     sizeof(struct virtio_net_hdr_v1_hash_tunnel))

struct QIOChannelPacket {
    QIOChannel parent;

    QIOChannelPacketMode mode;
    bool vnet_hdr;              /* the stream carries vnet headers */
    bool blocking;

    int fd;
    int ifindex;
    char *ifname;
    bool hooked;                /* the kernel offers it frames */
    size_t ring_size;           /* bytes to ask for; 0: no ring */
    QIOPacketRing ring;
    bool down;                  /* the interface is, or was a moment ago */
    bool gone;                  /* the interface is, for ever */
    int64_t down_check_at;      /* look again whether it is gone, in us */
    bool broken;                /* what is written is out of step for good */
    int64_t retry_at;           /* no room until then, in us; 0: there is */

    /* A frame from the socket, or the message written so far */
    uint8_t *buf;
    size_t len;                 /* of the latter */

    /* To be read from the stream: rest of a message's head, and its frame */
    uint8_t head[MSG_HDR_MAX + sizeof(struct virtio_net_hdr)];
    struct iovec rest[2];

    /* A GSO frame that is cut: to be read, or because it was refused */
    uint8_t *segment;
    QIOPacketGso gso;
    bool cutting;
    unsigned segments_done;
    bool segments_sent;         /* one of those at least */
    int64_t gso_until;          /* if it cannot be cut, drop it then, in us */
    bool gso_refused;           /* it was so with the last one */

    /* For sendmmsg() */
    struct mmsghdr msgs[PACKET_BATCH];
    struct iovec iovs[2 * PACKET_BATCH];

    /* Frames that the kernel has queued, and those taken from there */
    uint64_t queued;
    uint64_t taken;
    unsigned unchecked;         /* of those without a ring: see above */

    QIOChannelPacketStats stats;
};

typedef struct QIOChannelPacketSource {
    GSource parent;
    QIOChannelPacket *ioc;
    GIOCondition condition;
    GPollFD fd;
} QIOChannelPacketSource;

static void packet_count_drop(QIOChannelPacket *pioc, uint64_t *counter,
                              uint64_t n, const char *reason)
{
    if (!n) {
        return;
    }
    trace_qio_channel_packet_drop(pioc, pioc->ifname, n, reason);
    if (!*counter) {
        warn_report("host interface '%s': frame dropped: %s "
                    "(more of these are counted only)", pioc->ifname, reason);
    }
    *counter += n;
}

/* Is the socket bound to nothing any more? */
static bool packet_is_gone(QIOChannelPacket *pioc)
{
    struct sockaddr_ll sll = { 0 };
    socklen_t len = sizeof(sll);

    return pioc->gone ||
           (pioc->ifindex > 0 &&
            (getsockname(pioc->fd, (struct sockaddr *)&sll, &len) < 0 ||
             sll.sll_ifindex != pioc->ifindex));
}

static void packet_set_gone(QIOChannelPacket *pioc)
{
    if (!pioc->gone) {
        trace_qio_channel_packet_gone(pioc, pioc->ifname);
        pioc->gone = true;
    }
}

/* A frame passed, so the interface is up */
static void packet_set_up(QIOChannelPacket *pioc)
{
    if (pioc->down) {
        trace_qio_channel_packet_up(pioc, pioc->ifname);
        pioc->down = false;
    }
}

/* The interface is down, the socket said: is it gone? */
static bool packet_check_gone(QIOChannelPacket *pioc)
{
    if (!pioc->down) {
        trace_qio_channel_packet_down(pioc, pioc->ifname);
        warn_report("host interface '%s' is down or gone", pioc->ifname);
        pioc->down = true;
    }
    pioc->down_check_at = g_get_monotonic_time() + PACKET_DOWN_CHECK_US;
    if (packet_is_gone(pioc)) {
        packet_set_gone(pioc);
    }
    return pioc->gone;
}

static int packet_error_gone(QIOChannelPacket *pioc, Error **errp)
{
    packet_set_gone(pioc);
    error_setg(errp, "host interface '%s' is gone", pioc->ifname);
    return -1;
}

/* Take what the kernel counted since the last call: reading clears it */
static void packet_update_kernel_drops(QIOChannelPacket *pioc)
{
    struct tpacket_stats st = { 0 };
    socklen_t len = sizeof(st);

    pioc->unchecked = 0;
    if (pioc->fd != -1 && pioc->mode == QIO_CHANNEL_PACKET_CAPTURE &&
        !getsockopt(pioc->fd, SOL_PACKET, PACKET_STATISTICS, &st, &len)) {
        pioc->queued += st.tp_packets - st.tp_drops;
        packet_count_drop(pioc, &pioc->stats.dropped_kernel, st.tp_drops,
                          pioc->ring.map ? "the receive ring was full" :
                          "the receive buffer was full");
    }
}


/* Set-up */

static const char *packet_mode(QIOChannelPacket *pioc)
{
    return pioc->mode == QIO_CHANNEL_PACKET_CAPTURE ? "capture" : "inject";
}

static QIOChannelPacket *packet_new(int fd, QIOChannelPacketMode mode)
{
    QIOChannelPacket *pioc =
        QIO_CHANNEL_PACKET(object_new(TYPE_QIO_CHANNEL_PACKET));

    pioc->fd = fd;
    pioc->mode = mode;
    pioc->buf = g_malloc(MSG_HDR_MAX + QIO_CHANNEL_PACKET_MAX);
    pioc->segment = g_malloc(QIO_CHANNEL_PACKET_MAX);
    pioc->ring_size = QIO_CHANNEL_PACKET_RING_SIZE;
    return pioc;
}

static bool packet_bind(QIOChannelPacket *pioc, uint16_t proto, Error **errp)
{
    struct sockaddr_ll sll = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(proto),
        .sll_ifindex = pioc->ifindex,
    };

    if (bind(pioc->fd, (struct sockaddr *)&sll, sizeof(sll)) < 0) {
        error_setg_errno(errp, errno,
                         "cannot bind the packet socket to interface '%s'",
                         pioc->ifname);
        return false;
    }
    return true;
}

/* Fill in ifindex from the name */
static bool packet_find_index(QIOChannelPacket *pioc, Error **errp)
{
    struct ifreq ifr = { 0 };

    pstrcpy(ifr.ifr_name, sizeof(ifr.ifr_name), pioc->ifname);
    if (ioctl(pioc->fd, SIOCGIFINDEX, &ifr) < 0) {
        error_setg_errno(errp, errno, "cannot find interface '%s' in QEMU's "
                         "network namespace", pioc->ifname);
        return false;
    }
    pioc->ifindex = ifr.ifr_ifindex;
    return true;
}

/* Fill in ifname from ifindex */
static bool packet_find_name(QIOChannelPacket *pioc, Error **errp)
{
    struct ifreq ifr = { .ifr_ifindex = pioc->ifindex };

    if (ioctl(pioc->fd, SIOCGIFNAME, &ifr) < 0) {
        error_setg_errno(errp, errno, "cannot find the name of interface %d",
                         pioc->ifindex);
        return false;
    }
    g_free(pioc->ifname);
    pioc->ifname = g_strdup(ifr.ifr_name);
    return true;
}

/* Fill in ifindex, ifname and hooked from what the socket is bound to */
static bool packet_bound_interface(QIOChannelPacket *pioc, Error **errp)
{
    struct sockaddr_ll sll = { 0 };
    socklen_t len = sizeof(sll);

    if (getsockname(pioc->fd, (struct sockaddr *)&sll, &len) < 0) {
        error_setg_errno(errp, errno, "cannot query the packet socket");
        return false;
    }
    if (sll.sll_ifindex <= 0) {
        error_setg(errp, "the AF_PACKET fd must be bound to an interface");
        return false;
    }
    pioc->ifindex = sll.sll_ifindex;
    pioc->hooked = sll.sll_protocol;
    return packet_find_name(pioc, errp);
}

static bool packet_check_interface(QIOChannelPacket *pioc, Error **errp)
{
    struct ethtool_drvinfo drv = { .cmd = ETHTOOL_GDRVINFO };
    struct ifreq ifr = { 0 };

    pstrcpy(ifr.ifr_name, sizeof(ifr.ifr_name), pioc->ifname);
    if (ioctl(pioc->fd, SIOCGIFHWADDR, &ifr) < 0) {
        error_setg_errno(errp, errno, "cannot query interface '%s'",
                         pioc->ifname);
        return false;
    }
    if (ifr.ifr_hwaddr.sa_family != ARPHRD_ETHER) {
        error_setg(errp, "'%s' is not an Ethernet interface", pioc->ifname);
        return false;
    }

    /*
     * What a guest behind a macvtap receives comes from the lower device; it
     * is PACKET_HOST, and PACKET_OUTGOING are the guest's own frames (Linux
     * 6.18).  Both kinds answer with the same driver name.
     */
    ifr.ifr_data = (char *)&drv;
    if (ioctl(pioc->fd, SIOCETHTOOL, &ifr) == 0 &&
        !strcmp(drv.driver, "macvlan")) {
        error_setg(errp, "'%s' is a macvlan or macvtap interface, whose "
                   "directions are reversed; use a TAP", pioc->ifname);
        return false;
    }
    return true;
}

static bool packet_setsockopt(QIOChannelPacket *pioc, int opt,
                              const char *name, Error **errp)
{
    int one = 1;

    if (setsockopt(pioc->fd, SOL_PACKET, opt, &one, sizeof(one)) < 0) {
        error_setg_errno(errp, errno, "cannot set %s on interface '%s'",
                         name, pioc->ifname);
        return false;
    }
    return true;
}

/* Let outgoing frames pass, or nothing */
static bool packet_set_filter(QIOChannelPacket *pioc, bool pass, Error **errp)
{
    struct sock_filter insns[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, SKF_AD_OFF + SKF_AD_PKTTYPE),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, pass ? UINT32_MAX : 0),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog prog = {
        .len = ARRAY_SIZE(insns),
        .filter = insns,
    };

    /* EPERM: the process that made the socket has locked a filter */
    if (setsockopt(pioc->fd, SOL_SOCKET, SO_ATTACH_FILTER,
                   &prog, sizeof(prog)) < 0 && errno != EPERM) {
        error_setg_errno(errp, errno, "cannot filter for outgoing frames on "
                         "interface '%s'", pioc->ifname);
        return false;
    }
    return true;
}

/* Everything but binding to a protocol, on a socket with an interface */
static bool packet_configure(QIOChannelPacket *pioc, Error **errp)
{
    int rcvbuf = PACKET_RCVBUF;

    if (!packet_check_interface(pioc, errp) ||
        !packet_setsockopt(pioc, PACKET_VNET_HDR, "PACKET_VNET_HDR", errp)) {
        return false;
    }

    if (pioc->mode == QIO_CHANNEL_PACKET_INJECT) {
        return packet_setsockopt(pioc, PACKET_QDISC_BYPASS,
                                 "PACKET_QDISC_BYPASS", errp);
    }

    if (setsockopt(pioc->fd, SOL_SOCKET, SO_RCVBUFFORCE,
                   &rcvbuf, sizeof(rcvbuf)) < 0) {
        setsockopt(pioc->fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof(rcvbuf));
    }
    return packet_setsockopt(pioc, PACKET_AUXDATA, "PACKET_AUXDATA", errp) &&
           packet_set_filter(pioc, true, errp);
}

/* Open a socket, on the interface of that index, or by name if it is 0 */
static QIOChannelPacket *packet_open(int ifindex, const char *ifname,
                                     QIOChannelPacketMode mode, Error **errp)
{
    g_autoptr(QIOChannelPacket) pioc = NULL;
    int fd = qemu_socket(AF_PACKET, SOCK_RAW, 0);

    if (fd < 0) {
        error_setg_errno(errp, errno,
                         "cannot open a packet socket on '%s'%s", ifname,
                         errno == EPERM ? ", which needs CAP_NET_RAW; "
                         "without it, let qemu-packet-helper open one, by "
                         "'packet_helper', or pass an AF_PACKET socket to a "
                         "chardev, by 'fd' with 'af-packet-mode'" : "");
        return NULL;
    }

    pioc = packet_new(fd, mode);
    pioc->ifindex = ifindex;
    pioc->ifname = g_strdup(ifname);
    /* Protocol 0: nothing is queued for reading */
    if (!(ifindex ? packet_find_name(pioc, errp) :
                    packet_find_index(pioc, errp)) ||
        !packet_configure(pioc, errp) ||
        !packet_bind(pioc, 0, errp)) {
        return NULL;
    }
    return g_steal_pointer(&pioc);
}

QIOChannelPacket *
qio_channel_packet_new_ifname(const char *ifname, QIOChannelPacketMode mode,
                              Error **errp)
{
    QIOChannelPacket *pioc = packet_open(0, ifname, mode, errp);

    if (pioc) {
        trace_qio_channel_packet_new(pioc, pioc->fd, pioc->ifname,
                                     packet_mode(pioc));
    }
    return pioc;
}

bool qio_channel_packet_may_open(void)
{
    int fd = qemu_socket(AF_PACKET, SOCK_RAW, 0);

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0 || errno != EPERM;
}

bool qio_channel_packet_is_packet_socket(int fd)
{
    int domain;
    socklen_t len = sizeof(domain);

    return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) &&
           domain == AF_PACKET;
}

QIOChannelPacket *
qio_channel_packet_new_fd(int fd, QIOChannelPacketMode mode, Error **errp)
{
    g_autoptr(QIOChannelPacket) pioc = NULL;
    int type;
    socklen_t len = sizeof(type);

    if (!qio_channel_packet_is_packet_socket(fd) ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
        type != SOCK_RAW) {
        error_setg(errp, "the AF_PACKET fd must be of type SOCK_RAW");
        return NULL;
    }

    pioc = packet_new(fd, mode);
    /* A capture that already runs must not miss a frame: it is not rebound */
    if (!packet_bound_interface(pioc, errp) ||
        !packet_configure(pioc, errp) ||
        (mode == QIO_CHANNEL_PACKET_INJECT &&
         !packet_set_filter(pioc, false, errp))) {
        pioc->fd = -1;
        return NULL;
    }

    trace_qio_channel_packet_new(pioc, fd, pioc->ifname, packet_mode(pioc));
    return g_steal_pointer(&pioc);
}

QIOChannelPacket *
qio_channel_packet_new_socket(int fd, QIOChannelPacketMode mode)
{
    QIOChannelPacket *pioc = packet_new(fd, mode);

    pioc->ifname = g_strdup("test");
    pioc->ring_size = 0;
    return pioc;
}

void qio_channel_packet_set_vnet_hdr(QIOChannelPacket *pioc, bool enabled)
{
    pioc->vnet_hdr = enabled;
}

void qio_channel_packet_set_ring_size(QIOChannelPacket *pioc, size_t size)
{
    assert(!size ||
           (size >= QIO_PACKET_RING_MIN && size <= QIO_PACKET_RING_MAX));
    pioc->ring_size = size;
}

void qio_channel_packet_prepare(QIOChannelPacket *pioc)
{
    int ret;

    assert(pioc->mode == QIO_CHANNEL_PACKET_CAPTURE);
    /* To give a hooked socket a ring would drop what it has queued */
    if (!pioc->ring_size || pioc->ring.map || pioc->hooked || pioc->gone) {
        return;
    }
    ret = qio_packet_ring_init(&pioc->ring, pioc->fd, pioc->ring_size);
    trace_qio_channel_packet_ring(pioc, pioc->ifname, pioc->ring_size, ret);
    if (ret < 0) {
        warn_report_once("host interface '%s': no receive ring of %zu bytes "
                         "(%s); capturing frame by frame, at a higher cost",
                         pioc->ifname, pioc->ring_size, strerror(-ret));
    }
}

bool qio_channel_packet_set_active(QIOChannelPacket *pioc, bool active,
                                   Error **errp)
{
    int ignore = !active;

    assert(pioc->mode == QIO_CHANNEL_PACKET_CAPTURE);
    trace_qio_channel_packet_set_active(pioc, pioc->ifname, active);

    if (active) {
        qio_channel_packet_prepare(pioc);
    }

    /* Since Linux 4.20 */
    if (setsockopt(pioc->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING,
                   &ignore, sizeof(ignore)) < 0) {
        error_setg_errno(errp, errno, "cannot set PACKET_IGNORE_OUTGOING on "
                         "interface '%s'", pioc->ifname);
        return false;
    }
    if (active && !packet_bind(pioc, ETH_P_ALL, errp)) {
        return false;
    }
    pioc->hooked |= active;
    return true;
}

typedef struct PacketClose {
    int fd;
    QIOPacketRing ring;
} PacketClose;

static void *packet_close_thread(void *opaque)
{
    g_autofree PacketClose *old = opaque;

    qio_packet_ring_cleanup(&old->ring);
    close(old->fd);
    return NULL;
}

bool qio_channel_packet_detach(QIOChannelPacket *pioc)
{
    g_autoptr(QIOChannelPacket) fresh = NULL;
    PacketClose *old;
    QemuThread thread;

    if (!(pioc->hooked || pioc->ring.map) || pioc->gone) {
        return true;
    }
    fresh = packet_open(pioc->ifindex, pioc->ifname, pioc->mode, NULL);
    if (!fresh) {
        return false;
    }

    trace_qio_channel_packet_detach(pioc, pioc->ifname);
    packet_update_kernel_drops(pioc);
    packet_count_drop(pioc, &pioc->stats.dropped_unread,
                      pioc->queued - MIN(pioc->queued, pioc->taken),
                      "not read when the capture ended");
    pioc->queued = pioc->taken = 0;

    old = g_new(PacketClose, 1);
    old->fd = pioc->fd;
    old->ring = pioc->ring;
    qemu_thread_create(&thread, "packet-close", packet_close_thread, old,
                       QEMU_THREAD_DETACHED);
    pioc->fd = fresh->fd;
    pioc->hooked = false;
    memset(&pioc->ring, 0, sizeof(pioc->ring));
    fresh->fd = -1;
    g_free(pioc->ifname);
    pioc->ifname = g_steal_pointer(&fresh->ifname);
    return true;
}

int qio_channel_packet_get_fd(QIOChannelPacket *pioc)
{
    return pioc->fd;
}

const char *qio_channel_packet_get_ifname(QIOChannelPacket *pioc)
{
    return pioc->ifname;
}

QIOChannelPacketLink qio_channel_packet_get_link(QIOChannelPacket *pioc)
{
    struct ifreq ifr = { 0 };

    if (!pioc->ifindex && !pioc->gone) {
        /* A test's socket */
        return QIO_CHANNEL_PACKET_LINK_UP;
    }
    if (packet_is_gone(pioc) || !packet_find_name(pioc, NULL)) {
        return QIO_CHANNEL_PACKET_LINK_GONE;
    }
    pstrcpy(ifr.ifr_name, sizeof(ifr.ifr_name), pioc->ifname);
    return ioctl(pioc->fd, SIOCGIFFLAGS, &ifr) == 0 &&
           (ifr.ifr_flags & IFF_UP) ? QIO_CHANNEL_PACKET_LINK_UP :
                                      QIO_CHANNEL_PACKET_LINK_DOWN;
}

void qio_channel_packet_get_stats(QIOChannelPacket *pioc,
                                  QIOChannelPacketStats *stats)
{
    packet_update_kernel_drops(pioc);
    *stats = pioc->stats;
}

bool qio_channel_packet_is_empty(QIOChannelPacket *pioc)
{
    packet_update_kernel_drops(pioc);
    return pioc->queued <= pioc->taken;
}


/* Frames */

/*
 * Put the tag back, if the kernel moved one beside the frame; there is room
 * for it in front
 */
static void packet_insert_vlan_tag(QIOChannelPacketFrame *frame,
                                   uint32_t status, uint16_t tci,
                                   uint16_t tpid)
{
    if (!(status & TP_STATUS_VLAN_VALID)) {
        return;
    }
    if (!(status & TP_STATUS_VLAN_TPID_VALID)) {
        tpid = ETH_P_8021Q;
    }

    frame->data -= VLAN_TAG_LEN;
    frame->len += VLAN_TAG_LEN;
    memmove(frame->data, frame->data + VLAN_TAG_LEN, 2 * ETH_ALEN);
    stw_be_p(frame->data + 2 * ETH_ALEN, tpid);
    stw_be_p(frame->data + 2 * ETH_ALEN + 2, tci);

    /* The kernel gave the offsets for the frame without the tag */
    if (frame->vnet_hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        frame->vnet_hdr.csum_start += VLAN_TAG_LEN;
    }
    if (frame->vnet_hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        frame->vnet_hdr.hdr_len += VLAN_TAG_LEN;
    }
}

/* Receiving failed with errno: what of it? */
static int packet_recv_error(QIOChannelPacket *pioc, Error **errp)
{
    switch (errno) {
    case EAGAIN:
        if (pioc->gone) {
            return packet_error_gone(pioc, errp);
        }
        if (pioc->unchecked) {
            packet_update_kernel_drops(pioc);
        }
        return QIO_CHANNEL_ERR_BLOCK;
    case EINVAL:
        /* A GSO type without a name in the vnet header; the frame is gone */
        pioc->taken++;
        packet_count_drop(pioc, &pioc->stats.dropped_gso, 1,
                          "unknown GSO type");
        return 0;
    case ENETDOWN:
        if (!packet_check_gone(pioc)) {
            return 0;
        }
        /* fall through */
    case ENXIO:
    case ENODEV:
        return packet_error_gone(pioc, errp);
    default:
        error_setg_errno(errp, errno, "cannot receive from interface '%s'",
                         pioc->ifname);
        return -1;
    }
}

/* A frame that was received: is it one of ours, and whole? */
static bool packet_check_frame(QIOChannelPacket *pioc, int pkttype,
                               size_t len, size_t captured)
{
    pioc->taken++;
    packet_set_up(pioc);
    if (pkttype != PACKET_OUTGOING) {
        return false;
    }
    if (captured < len || len > PACKET_FRAME_MAX) {
        packet_count_drop(pioc, &pioc->stats.dropped_truncated, 1,
                          "longer than the buffer");
        return false;
    }
    if (!len) {
        packet_count_drop(pioc, &pioc->stats.dropped_invalid, 1, "empty");
        return false;
    }
    pioc->stats.frames++;
    pioc->stats.bytes += len;
    return true;
}

/* The same returns as qio_channel_packet_recv_frame(), without errors */
static int packet_recv_from_ring(QIOChannelPacket *pioc,
                                 QIOChannelPacketFrame *frame)
{
    struct tpacket3_hdr *hdr = qio_packet_ring_next(&pioc->ring);
    struct sockaddr_ll *sll;

    if (pioc->ring.losing) {
        pioc->ring.losing = false;
        packet_update_kernel_drops(pioc);
    }
    if (!hdr) {
        return QIO_CHANNEL_ERR_BLOCK;
    }
    if (!qio_packet_ring_holds(&pioc->ring, hdr, sizeof(frame->vnet_hdr))) {
        pioc->taken++;
        packet_count_drop(pioc, &pioc->stats.dropped_invalid, 1,
                          "the kernel could not describe it");
        return 0;
    }
    sll = (void *)((uint8_t *)hdr + TPACKET_ALIGN(sizeof(*hdr)));
    if (!packet_check_frame(pioc, sll->sll_pkttype, hdr->tp_len,
                            hdr->tp_snaplen)) {
        return 0;
    }

    frame->data = (uint8_t *)hdr + hdr->tp_mac;
    frame->len = hdr->tp_len;
    memcpy(&frame->vnet_hdr, frame->data - sizeof(frame->vnet_hdr),
           sizeof(frame->vnet_hdr));
    packet_insert_vlan_tag(frame, hdr->tp_status, hdr->hv1.tp_vlan_tci,
                           hdr->hv1.tp_vlan_tpid);
    return 1;
}

static int packet_recv_from_socket(QIOChannelPacket *pioc,
                                   QIOChannelPacketFrame *frame, Error **errp)
{
    union {
        struct cmsghdr hdr;
        char buf[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
    } control;
    /* A test's socket has no addresses */
    struct sockaddr_ll sll = { .sll_pkttype = PACKET_OUTGOING };
    struct iovec iov[2] = {
        {
            .iov_base = &frame->vnet_hdr,
            .iov_len = sizeof(frame->vnet_hdr),
        }, {
            .iov_base = pioc->buf + VLAN_TAG_LEN,
            .iov_len = PACKET_FRAME_MAX,
        },
    };
    struct msghdr msg = {
        .msg_name = &sll,
        .msg_namelen = sizeof(sll),
        .msg_iov = iov,
        .msg_iovlen = ARRAY_SIZE(iov),
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    struct tpacket_auxdata aux = { 0 };
    struct cmsghdr *cmsg;
    ssize_t len;

    /* MSG_TRUNC: the length before it was cut */
    len = RETRY_ON_EINTR(recvmsg(pioc->fd, &msg, MSG_DONTWAIT | MSG_TRUNC));
    if (len < 0) {
        return packet_recv_error(pioc, errp);
    }
    if (len == 0) {
        /* Only a test's socket has a peer that can close */
        return packet_error_gone(pioc, errp);
    }
    if (++pioc->unchecked == PACKET_DROPS_CHECK) {
        packet_update_kernel_drops(pioc);
    }

    frame->data = pioc->buf + VLAN_TAG_LEN;
    frame->len = len - MIN(len, sizeof(frame->vnet_hdr));
    for (cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        if (cmsg->cmsg_level == SOL_PACKET &&
            cmsg->cmsg_type == PACKET_AUXDATA) {
            memcpy(&aux, CMSG_DATA(cmsg), sizeof(aux));
        }
    }
    /* A socket's filter may have cut it, too */
    if (!packet_check_frame(pioc, sll.sll_pkttype,
                            MAX(frame->len, aux.tp_len),
                            MIN(frame->len, PACKET_FRAME_MAX))) {
        return 0;
    }
    packet_insert_vlan_tag(frame, aux.tp_status, aux.tp_vlan_tci,
                           aux.tp_vlan_tpid);
    return 1;
}

int qio_channel_packet_recv_frame(QIOChannelPacket *pioc,
                                  QIOChannelPacketFrame *frame,
                                  Error **errp)
{
    int ret = QIO_CHANNEL_ERR_BLOCK;

    assert(pioc->mode == QIO_CHANNEL_PACKET_CAPTURE);
    if (pioc->ring.map) {
        ret = packet_recv_from_ring(pioc, frame);
    }
    if (ret == QIO_CHANNEL_ERR_BLOCK) {
        /* With a ring, this tells what is wrong with the interface */
        ret = packet_recv_from_socket(pioc, frame, errp);
    }
    if (ret == 1 && frame->vnet_hdr.gso_type &&
        !qio_packet_gso_matches(&frame->vnet_hdr, frame->data, frame->len)) {
        packet_count_drop(pioc, &pioc->stats.dropped_gso, 1,
                          "it is a GSO frame in a tunnel");
        return 0;
    }
    return ret;
}

static void packet_set_room(QIOChannelPacket *pioc)
{
    if (pioc->retry_at) {
        trace_qio_channel_packet_room(pioc, pioc->ifname, true);
        pioc->retry_at = 0;
    }
}

/*
 * The kernel refused a frame with errno: what of it?  Returns 1 if the frame
 * is done with, 0 if there is no room for it now, -1 if the interface is gone.
 */
static int packet_send_error(QIOChannelPacket *pioc, Error **errp)
{
    switch (errno) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        pioc->stats.no_room++;
        if (!pioc->retry_at) {
            trace_qio_channel_packet_room(pioc, pioc->ifname, false);
        }
        pioc->retry_at = g_get_monotonic_time() + QIO_CHANNEL_PACKET_RETRY_US;
        return 0;
    case EMSGSIZE:
        packet_count_drop(pioc, &pioc->stats.dropped_mtu, 1,
                          "longer than the interface's MTU allows");
        return 1;
    case ENETDOWN:
        if (!packet_check_gone(pioc)) {
            packet_count_drop(pioc, &pioc->stats.dropped_down, 1,
                              "the interface is down");
            return 1;
        }
        /* fall through */
    case ENXIO:
    case ENODEV:
    case EPIPE:
    case ECONNRESET:
    case EBADF:
        return packet_error_gone(pioc, errp);
    default:
        packet_count_drop(pioc, &pioc->stats.dropped_invalid, 1,
                          "refused by the kernel");
        return 1;
    }
}

/* The longest frame like this one that the interface takes, but for GSO */
static size_t packet_max_len(QIOChannelPacket *pioc,
                             const QIOChannelPacketFrame *frame)
{
    struct ifreq ifr = { 0 };

    if (!packet_find_name(pioc, NULL)) {
        return SIZE_MAX;
    }
    pstrcpy(ifr.ifr_name, sizeof(ifr.ifr_name), pioc->ifname);
    if (ioctl(pioc->fd, SIOCGIFMTU, &ifr) < 0) {
        return SIZE_MAX;
    }
    return ifr.ifr_mtu + ETH_HLEN +
           (frame->len >= ETH_HLEN &&
            lduw_be_p(frame->data + 2 * ETH_ALEN) == ETH_P_8021Q ?
            VLAN_TAG_LEN : 0);
}

/*
 * The kernel refused a GSO frame with ENOBUFS: there is no room for it, or the
 * interface does not take such frames.  The qdisc would have it cut for the
 * latter, but is bypassed (Linux 6.18).  So cut it here; if the first segment
 * is refused too, then it is for lack of room.  The frame comes again until
 * its last segment is sent.  Returns as above.
 */
static int packet_send_segments(QIOChannelPacket *pioc,
                                const QIOChannelPacketFrame *frame,
                                Error **errp)
{
    static const struct virtio_net_hdr no_hdr;
    QIOPacketGso gso;
    const char *reason;
    struct iovec iov[2] = {
        { .iov_base = (void *)&no_hdr, .iov_len = sizeof(no_hdr) },
        { .iov_base = pioc->segment },
    };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = ARRAY_SIZE(iov) };
    int64_t now = g_get_monotonic_time();
    unsigned n = 0;
    int ret;

    if (!qio_packet_gso_init(&gso, &frame->vnet_hdr, frame->data, frame->len,
                             &reason)) {
        pioc->gso_until = pioc->gso_until ?: now + PACKET_GSO_RETRY_US;
        if (now < pioc->gso_until && !pioc->gso_refused) {
            errno = ENOBUFS;
            return packet_send_error(pioc, errp);
        }
        pioc->gso_until = 0;
        pioc->gso_refused = true;
        packet_count_drop(pioc, &pioc->stats.dropped_gso, 1, reason);
        return 1;
    }
    qio_packet_gso_limit(&gso, packet_max_len(pioc, frame));
    assert(gso.max_len <= QIO_CHANNEL_PACKET_MAX);

    while ((iov[1].iov_len = qio_packet_gso_next(&gso, pioc->segment))) {
        if (n++ < pioc->segments_done) {
            continue;
        }
        if (RETRY_ON_EINTR(sendmsg(pioc->fd, &msg,
                                   MSG_DONTWAIT | MSG_NOSIGNAL)) < 0) {
            ret = packet_send_error(pioc, errp);
            if (ret <= 0) {
                return ret;
            }
        } else {
            pioc->segments_sent = true;
        }
        pioc->segments_done++;
    }
    packet_set_room(pioc);
    if (pioc->segments_sent) {
        pioc->stats.frames++;
        pioc->stats.bytes += frame->len;
    }
    pioc->segments_done = 0;
    pioc->segments_sent = false;
    return 1;
}

/*
 * Hand frames to the interface.  Returns how many are done with, one way or
 * the other, which is less than n if there is no room for the next; -1 if the
 * interface is gone.
 */
static ssize_t packet_send_frames(QIOChannelPacket *pioc,
                                  const QIOChannelPacketFrame *frames,
                                  size_t n, Error **errp)
{
    size_t done = 0;

    while (done < n) {
        size_t batch = MIN(n - done, PACKET_BATCH);
        int ret;

        for (size_t i = 0; i < batch; i++) {
            const QIOChannelPacketFrame *frame = &frames[done + i];
            struct iovec *iov = &pioc->iovs[2 * i];

            iov[0].iov_base = (void *)&frame->vnet_hdr;
            iov[0].iov_len = sizeof(frame->vnet_hdr);
            iov[1].iov_base = frame->data;
            iov[1].iov_len = frame->len;
            pioc->msgs[i].msg_hdr = (struct msghdr) {
                .msg_iov = iov,
                .msg_iovlen = 2,
            };
        }

        if (pioc->segments_done) {
            /* The rest of a frame that was begun */
            ret = packet_send_segments(pioc, &frames[done], errp);
            if (ret <= 0) {
                return ret < 0 ? ret : done;
            }
            done += ret;
            continue;
        }

        ret = RETRY_ON_EINTR(sendmmsg(pioc->fd, pioc->msgs, batch,
                                      MSG_DONTWAIT | MSG_NOSIGNAL));
        if (ret > 0) {
            packet_set_up(pioc);
            packet_set_room(pioc);
            pioc->gso_until = 0;
            pioc->stats.frames += ret;
            for (int i = 0; i < ret; i++) {
                pioc->stats.bytes += frames[done + i].len;
                pioc->gso_refused &= !frames[done + i].vnet_hdr.gso_type;
            }
        } else {
            /* About the first frame: an error of a later one comes again */
            ret = errno == ENOBUFS && frames[done].vnet_hdr.gso_type ?
                  packet_send_segments(pioc, &frames[done], errp) :
                  packet_send_error(pioc, errp);
            if (ret <= 0) {
                return ret < 0 ? ret : done;
            }
        }
        done += ret;
    }
    return done;
}


/* The byte stream */

/* The frame is what is to be read next */
static void packet_make_message(QIOChannelPacket *pioc,
                                const struct virtio_net_hdr *hdr,
                                uint8_t *data, size_t len)
{
    uint8_t *head = pioc->head;

    if (pioc->vnet_hdr) {
        stl_be_p(head, sizeof(*hdr) + len);
        stl_be_p(head + 4, sizeof(*hdr));
        memcpy(head + 8, hdr, sizeof(*hdr));
        head += 8 + sizeof(*hdr);
    } else {
        stl_be_p(head, len);
        head += 4;
    }
    pioc->rest[0].iov_base = pioc->head;
    pioc->rest[0].iov_len = head - pioc->head;
    pioc->rest[1].iov_base = data;
    pioc->rest[1].iov_len = len;
}

/* Make a message of the next frame: the same returns as receiving a frame */
static int packet_recv_message(QIOChannelPacket *pioc, Error **errp)
{
    static const struct virtio_net_hdr no_hdr;
    QIOChannelPacketFrame frame;
    const char *reason;
    size_t len;
    int ret;

    if (pioc->cutting) {
        len = qio_packet_gso_next(&pioc->gso, pioc->segment);
        pioc->cutting = len;
        if (len) {
            packet_make_message(pioc, &no_hdr, pioc->segment, len);
            return 1;
        }
    }

    ret = qio_channel_packet_recv_frame(pioc, &frame, errp);
    if (ret != 1) {
        return ret;
    }
    if (!pioc->vnet_hdr && frame.vnet_hdr.gso_type) {
        pioc->cutting = qio_packet_gso_init(&pioc->gso, &frame.vnet_hdr,
                                            frame.data, frame.len, &reason);
        if (!pioc->cutting) {
            packet_count_drop(pioc, &pioc->stats.dropped_gso, 1, reason);
        }
        return 0;
    }
    if (!pioc->vnet_hdr && !qio_packet_fill_checksum(&frame.vnet_hdr,
                                                     frame.data, frame.len)) {
        packet_count_drop(pioc, &pioc->stats.dropped_invalid, 1,
                          "the checksum is outside the frame");
        return 0;
    }
    packet_make_message(pioc, &frame.vnet_hdr, frame.data, frame.len);
    return 1;
}

/* Bytes of the message that are still to be read */
static size_t packet_rest(QIOChannelPacket *pioc)
{
    return pioc->rest[0].iov_len + pioc->rest[1].iov_len;
}

static ssize_t qio_channel_packet_readv(QIOChannel *ioc,
                                        const struct iovec *iov, size_t niov,
                                        int **fds, size_t *nfds, int flags,
                                        Error **errp)
{
    QIOChannelPacket *pioc = QIO_CHANNEL_PACKET(ioc);
    size_t want = iov_size(iov, niov);
    size_t done = 0;
    int drops = 0;

    if (pioc->mode != QIO_CHANNEL_PACKET_CAPTURE) {
        error_setg(errp, "a packet channel that injects cannot be read");
        return -1;
    }

    while (done < want) {
        struct iovec *rest = &pioc->rest[pioc->rest[0].iov_len ? 0 : 1];
        size_t n = iov_from_buf(iov, niov, done, rest->iov_base,
                                MIN(want - done, rest->iov_len));
        Error *err = NULL;
        int ret;

        done += n;
        rest->iov_base += n;
        rest->iov_len -= n;
        if (packet_rest(pioc)) {
            continue;
        }

        ret = packet_recv_message(pioc, &err);
        if (ret == 0 && ++drops == PACKET_MAX_DROPS) {
            ret = QIO_CHANNEL_ERR_BLOCK;
        }
        if (ret == QIO_CHANNEL_ERR_BLOCK && !done && pioc->blocking) {
            qio_channel_wait(ioc, G_IO_IN);
            drops = 0;
            ret = 0;
        }
        if (ret < 0) {
            if (done) {
                /* An error comes again at the next call */
                error_free(err);
                break;
            }
            error_propagate(errp, err);
            return ret;
        }
    }
    return done;
}

/*
 * Find the frame in the message at buf; it has no bytes if there is no room
 * for one, or for the vnet header.  Returns the message's length; 0 if it is
 * not whole; -1 if it is too long.
 */
static ssize_t packet_parse_message(QIOChannelPacket *pioc, uint8_t *buf,
                                    size_t len, QIOChannelPacketFrame *frame)
{
    const size_t head = pioc->vnet_hdr ? MSG_HDR_MAX : sizeof(uint32_t);
    size_t vnet_hdr_len = 0;
    size_t size;

    if (len < sizeof(uint32_t)) {
        return 0;
    }
    size = (uint32_t)ldl_be_p(buf);
    if (size > QIO_CHANNEL_PACKET_MAX) {
        return -1;
    }
    if (len < head + size) {
        return 0;
    }

    frame->data = buf + head;
    frame->len = size;
    memset(&frame->vnet_hdr, 0, sizeof(frame->vnet_hdr));
    if (pioc->vnet_hdr) {
        vnet_hdr_len = (uint32_t)ldl_be_p(buf + sizeof(uint32_t));
        if (vnet_hdr_len >= size ||
            (vnet_hdr_len && vnet_hdr_len < sizeof(frame->vnet_hdr))) {
            frame->len = 0;
        } else if (vnet_hdr_len) {
            /* What follows the first fields is of no use to the kernel */
            memcpy(&frame->vnet_hdr, frame->data, sizeof(frame->vnet_hdr));
            frame->data += vnet_hdr_len;
            frame->len -= vnet_hdr_len;
        }
    }
    return head + size;
}

/*
 * Send the whole messages in buf, in one go as far as they are good.  Returns
 * the bytes that are done with, which end before a message that has no room
 * now or is not whole; -1 on error.  QIO_CHANNEL_ERR_BLOCK: no room for the
 * first.
 */
static ssize_t packet_send_messages(QIOChannelPacket *pioc, uint8_t *buf,
                                    size_t len, Error **errp)
{
    ERRP_GUARD();
    QEMU_UNINITIALIZED QIOChannelPacketFrame frames[PACKET_BATCH];
    QEMU_UNINITIALIZED size_t ends[PACKET_BATCH];
    size_t pos = 0;
    size_t n = 0;
    ssize_t ret = 1;
    ssize_t done;

    while (n < PACKET_BATCH) {
        ret = packet_parse_message(pioc, buf + pos, len - pos, &frames[n]);
        if (ret <= 0) {
            break;
        }
        if (!frames[n].len && n) {
            break;
        }
        pos += ret;
        if (!frames[n].len) {
            packet_count_drop(pioc, &pioc->stats.dropped_invalid, 1,
                              "the message has no room for the vnet header "
                              "and a frame");
            return pos;
        }
        ends[n++] = pos;
    }

    if (!n && ret < 0) {
        error_setg(errp, "message of %" PRIu32 " bytes for interface '%s', "
                   "at most %d are possible", ldl_be_p(buf), pioc->ifname,
                   QIO_CHANNEL_PACKET_MAX);
        /* Few callers pass the error on */
        warn_report("%s", error_get_pretty(*errp));
        pioc->broken = true;
        return -1;
    }
    if (!n) {
        return 0;
    }

    done = packet_send_frames(pioc, frames, n, errp);
    if (done <= 0) {
        return done ?: QIO_CHANNEL_ERR_BLOCK;
    }
    return ends[done - 1];
}

/*
 * Add to the message in pioc->buf what belongs to it, and send it once it is
 * whole.  Returns the bytes taken, or as above.
 */
static ssize_t packet_collect_message(QIOChannelPacket *pioc,
                                      const uint8_t *buf, size_t len,
                                      Error **errp)
{
    size_t end = sizeof(uint32_t);
    ssize_t ret;

    if (pioc->len >= end) {
        end += (uint32_t)ldl_be_p(pioc->buf);
        end += pioc->vnet_hdr ? sizeof(uint32_t) : 0;
    }
    len = MIN(len, end - pioc->len);
    memcpy(pioc->buf + pioc->len, buf, len);
    pioc->len += len;

    ret = packet_send_messages(pioc, pioc->buf, pioc->len, errp);
    if (ret == QIO_CHANNEL_ERR_BLOCK) {
        pioc->len--;
        len--;
        return len ?: ret;
    }
    if (ret) {
        pioc->len = 0;
    }
    return ret < 0 ? ret : len;
}

static ssize_t qio_channel_packet_writev(QIOChannel *ioc,
                                         const struct iovec *iov, size_t niov,
                                         int *fds, size_t nfds, int flags,
                                         Error **errp)
{
    QIOChannelPacket *pioc = QIO_CHANNEL_PACKET(ioc);
    size_t done = 0;
    size_t pos = 0;             /* in the first element of iov */

    if (pioc->mode != QIO_CHANNEL_PACKET_INJECT) {
        error_setg(errp, "a packet channel that captures cannot be written");
        return -1;
    }
    if (pioc->broken) {
        error_setg(errp, "the stream for interface '%s' is out of step",
                   pioc->ifname);
        return -1;
    }

    for (int batch = 0; batch < PACKET_MAX_BATCHES && niov; batch++) {
        uint8_t *buf = iov->iov_base + pos;
        size_t len = iov->iov_len - pos;
        ssize_t n = 0;

        if (!pioc->len) {
            n = packet_send_messages(pioc, buf, len, errp);
        }
        if (n == 0) {
            n = packet_collect_message(pioc, buf, len, errp);
        }
        if (n == QIO_CHANNEL_ERR_BLOCK) {
            if (done) {
                break;
            }
            if (!pioc->blocking) {
                return n;
            }
            qio_channel_wait(ioc, G_IO_OUT);
            batch--;
            continue;
        }
        if (n < 0) {
            return n;
        }
        done += n;
        pos += n;
        while (niov && pos == iov->iov_len) {
            iov++;
            niov--;
            pos = 0;
        }
    }
    return done;
}

static int qio_channel_packet_set_blocking(QIOChannel *ioc, bool enabled,
                                           Error **errp)
{
    QIO_CHANNEL_PACKET(ioc)->blocking = enabled;
    return 0;
}

static int qio_channel_packet_close(QIOChannel *ioc, Error **errp)
{
    QIOChannelPacket *pioc = QIO_CHANNEL_PACKET(ioc);

    if (pioc->fd != -1) {
        packet_update_kernel_drops(pioc);
        qio_packet_ring_cleanup(&pioc->ring);
        pioc->rest[0].iov_len = pioc->rest[1].iov_len = 0;
        pioc->cutting = false;
        close(pioc->fd);
        pioc->fd = -1;
    }
    return 0;
}

static void qio_channel_packet_set_aio_fd_handler(QIOChannel *ioc,
                                                  AioContext *read_ctx,
                                                  IOHandler *io_read,
                                                  AioContext *write_ctx,
                                                  IOHandler *io_write,
                                                  void *opaque)
{
    QIOChannelPacket *pioc = QIO_CHANNEL_PACKET(ioc);

    qio_channel_util_set_aio_fd_handler(pioc->fd, read_ctx, io_read,
                                        pioc->fd, write_ctx, io_write,
                                        opaque);
}


/*
 * Watches.  The file descriptor alone does not tell: bytes of a message may
 * wait in the buffer, and a packet socket always polls as writable.
 */

static GIOCondition packet_source_ready(QIOChannelPacketSource *source)
{
    QIOChannelPacket *pioc = source->ioc;
    GIOCondition ready = source->fd.revents;

    if (pioc->gone || pioc->broken) {
        ready |= G_IO_IN | G_IO_OUT | G_IO_HUP;
    }
    if (pioc->mode == QIO_CHANNEL_PACKET_CAPTURE) {
        if (packet_rest(pioc) || pioc->cutting) {
            ready |= G_IO_IN;
        }
    } else if (!pioc->retry_at || g_get_monotonic_time() >= pioc->retry_at) {
        ready |= G_IO_OUT;
    }
    return ready & source->condition;
}

static gboolean packet_source_prepare(GSource *gsource, gint *timeout)
{
    QIOChannelPacketSource *source = (QIOChannelPacketSource *)gsource;

    *timeout = -1;
    source->fd.revents = 0;
    if (source->ioc->down && !source->ioc->gone) {
        if (g_get_monotonic_time() >= source->ioc->down_check_at) {
            packet_check_gone(source->ioc);
        }
        *timeout = PACKET_DOWN_CHECK_US / 1000;
    }
    if (packet_source_ready(source)) {
        return true;
    }
    if ((source->condition & G_IO_OUT) && source->ioc->retry_at) {
        *timeout = QIO_CHANNEL_PACKET_RETRY_US / 1000;
    }
    return false;
}

static gboolean packet_source_check(GSource *gsource)
{
    QIOChannelPacketSource *source = (QIOChannelPacketSource *)gsource;

    if (source->ioc->ifindex && (source->fd.revents & (G_IO_ERR | G_IO_HUP))) {
        int err;
        socklen_t len = sizeof(err);

        /* Take the error, or poll() reports it for ever */
        getsockopt(source->ioc->fd, SOL_SOCKET, SO_ERROR, &err, &len);
        packet_check_gone(source->ioc);
        source->fd.revents &= ~(G_IO_ERR | G_IO_HUP);
    }
    return packet_source_ready(source) != 0;
}

static gboolean packet_source_dispatch(GSource *gsource, GSourceFunc callback,
                                       gpointer user_data)
{
    QIOChannelPacketSource *source = (QIOChannelPacketSource *)gsource;
    QIOChannelFunc func = (QIOChannelFunc)callback;

    return func(QIO_CHANNEL(source->ioc), packet_source_ready(source),
                user_data);
}

static void packet_source_finalize(GSource *gsource)
{
    object_unref(OBJECT(((QIOChannelPacketSource *)gsource)->ioc));
}

static GSourceFuncs packet_source_funcs = {
    packet_source_prepare,
    packet_source_check,
    packet_source_dispatch,
    packet_source_finalize
};

static GSource *qio_channel_packet_create_watch(QIOChannel *ioc,
                                                GIOCondition condition)
{
    QIOChannelPacket *pioc = QIO_CHANNEL_PACKET(ioc);
    GSource *gsource = g_source_new(&packet_source_funcs,
                                    sizeof(QIOChannelPacketSource));
    QIOChannelPacketSource *source = (QIOChannelPacketSource *)gsource;

    source->ioc = QIO_CHANNEL_PACKET(object_ref(OBJECT(ioc)));
    source->condition = condition;
    source->fd.fd = pioc->fd;
    source->fd.events = condition & ~G_IO_OUT;
    if (pioc->mode == QIO_CHANNEL_PACKET_INJECT) {
        /* What an adopted socket had queued before is not for reading */
        source->fd.events &= ~G_IO_IN;
    }
    g_source_add_poll(gsource, &source->fd);
    return gsource;
}

static void qio_channel_packet_init(Object *obj)
{
    QIO_CHANNEL_PACKET(obj)->fd = -1;
}

static void qio_channel_packet_finalize(Object *obj)
{
    QIOChannelPacket *pioc = QIO_CHANNEL_PACKET(obj);

    qio_channel_packet_close(QIO_CHANNEL(obj), NULL);
    g_free(pioc->ifname);
    g_free(pioc->buf);
    g_free(pioc->segment);
}

static void qio_channel_packet_class_init(ObjectClass *klass, const void *data)
{
    QIOChannelClass *ioc_klass = QIO_CHANNEL_CLASS(klass);

    ioc_klass->io_writev = qio_channel_packet_writev;
    ioc_klass->io_readv = qio_channel_packet_readv;
    ioc_klass->io_set_blocking = qio_channel_packet_set_blocking;
    ioc_klass->io_close = qio_channel_packet_close;
    ioc_klass->io_create_watch = qio_channel_packet_create_watch;
    ioc_klass->io_set_aio_fd_handler = qio_channel_packet_set_aio_fd_handler;
}

static const TypeInfo qio_channel_packet_info = {
    .parent = TYPE_QIO_CHANNEL,
    .name = TYPE_QIO_CHANNEL_PACKET,
    .instance_size = sizeof(QIOChannelPacket),
    .instance_init = qio_channel_packet_init,
    .instance_finalize = qio_channel_packet_finalize,
    .class_init = qio_channel_packet_class_init,
};

static void qio_channel_packet_register_types(void)
{
    type_register_static(&qio_channel_packet_info);
}

type_init(qio_channel_packet_register_types);
