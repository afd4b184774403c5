/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * read - counts the frames at an interface, in one of three ways
 *
 *   read --tap FD              as the guest's side of a TAP, whose file it has
 *                              inherited
 *   read --packet IF           with one recvfrom() per frame
 *   read --ring IF             with a TPACKET_V3 ring
 *   ... --counters FILE [--outgoing] [--incoming] [--vnet] [--latency]
 *       [--touch]
 *
 * The ring is set up as QEMU's: 32 MiB in blocks of 1 MiB, each retired after
 * 1 ms at the latest. Without --latency a frame's arrival is not looked at, and
 * of its bytes only the tag is: the ring is then the floor for whoever wants to
 * know that a frame was there. --touch copies each frame, as somebody must who
 * wants to hand it on.
 */
#include "traffic.h"

#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/ioctl.h>

#define BLOCK (1 << 20)
#define BLOCKS 32
#define RETIRE 1                /* ms */
#define VNET sizeof(struct virtio_net_hdr)

static uint8_t buffer[FRAME_MAX + 64];
static bool vnet, latency, touch;
static int direction = -1;      /* PACKET_OUTGOING: only these; PACKET_HOST:
                                 * all but these */

static void set_filter(int fd)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, SKF_AD_OFF + SKF_AD_PKTTYPE),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING,
                 direction != PACKET_OUTGOING, direction == PACKET_OUTGOING),
        BPF_STMT(BPF_RET | BPF_K, 0x40000),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = { 4, code };

    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program,
                   sizeof(program))) {
        err(1, "SO_ATTACH_FILTER");
    }
}

static int open_packet(const char *name, uint8_t **ring)
{
    struct sockaddr_ll a = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ALL),
        .sll_ifindex = if_nametoindex(name),
    };
    int version = TPACKET_V3, one = 1, size = 32 << 20;
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

    if (fd < 0 || !a.sll_ifindex) {
        err(1, "%s", name);
    }
    if (vnet && setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one,
                           sizeof(one))) {
        err(1, "PACKET_VNET_HDR");
    }
    if (direction >= 0) {
        set_filter(fd);
    }
    if (ring) {
        struct tpacket_req3 r = {
            .tp_block_size = BLOCK,
            .tp_block_nr = BLOCKS,
            .tp_frame_size = TPACKET_ALIGNMENT << 7,
            .tp_frame_nr = BLOCK / (TPACKET_ALIGNMENT << 7) * BLOCKS,
            .tp_retire_blk_tov = RETIRE,
        };

        if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version,
                       sizeof(version)) ||
            setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &r, sizeof(r))) {
            err(1, "ring");
        }
        *ring = mmap(NULL, (size_t)BLOCK * BLOCKS, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE, fd, 0);
        if (*ring == MAP_FAILED) {
            err(1, "mmap of the ring");
        }
    } else {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    }
    if (bind(fd, (struct sockaddr *)&a, sizeof(a))) {
        err(1, "bind to %s", name);
    }
    return fd;
}

/* Any file that gives one frame per read() */
static void read_frames(int fd, struct counters *c)
{
    size_t skip = vnet ? VNET : 0;

    for (;;) {
        ssize_t r = read(fd, buffer, sizeof(buffer));

        if (r < 0 && errno == EAGAIN) {
            struct pollfd p = { fd, POLLIN, 0 };

            poll(&p, 1, -1);
        } else if (r < 0 && errno != EINTR) {
            err(1, "read");
        } else if (r > (ssize_t)skip) {
            count_frame(c, buffer + skip, r - skip, r - skip,
                        latency ? now() : 0);
        }
    }
}

static void read_ring(int fd, uint8_t *ring, struct counters *c)
{
    unsigned n, block = 0;

    for (;; block = (block + 1) % BLOCKS) {
        struct tpacket_block_desc *b = (void *)(ring + (size_t)block * BLOCK);
        struct tpacket_hdr_v1 *h = &b->hdr.bh1;
        struct tpacket3_hdr *p;

        while (!(__atomic_load_n(&h->block_status, __ATOMIC_ACQUIRE) &
                 TP_STATUS_USER)) {
            struct pollfd wait = { fd, POLLIN, 0 };

            poll(&wait, 1, -1);
        }
        p = (void *)((uint8_t *)b + h->offset_to_first_pkt);
        for (n = h->num_pkts; n; n--) {
            uint8_t *f = (uint8_t *)p + p->tp_mac;

            if (touch) {
                memcpy(buffer, f, p->tp_snaplen);
                f = buffer;
            }
            count_frame(c, f, p->tp_len, p->tp_snaplen, latency ? now() : 0);
            p = (void *)((uint8_t *)p + p->tp_next_offset);
        }
        __atomic_store_n(&h->block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "tap", 1, NULL, 't' }, { "packet", 1, NULL, 'p' },
        { "ring", 1, NULL, 'r' }, { "counters", 1, NULL, 'c' },
        { "outgoing", 0, NULL, 'o' }, { "incoming", 0, NULL, 'i' },
        { "vnet", 0, NULL, 'v' }, { "latency", 0, NULL, 'l' },
        { "touch", 0, NULL, 'T' }, { NULL, 0, NULL, 0 }
    };
    const char *packet = NULL, *on_ring = NULL, *counters = NULL;
    struct counters *c;
    uint8_t *ring = NULL;
    int o, fd = -1;

    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (o) {
        case 't': fd = atoi(optarg); break;
        case 'p': packet = optarg; break;
        case 'r': on_ring = optarg; break;
        case 'c': counters = optarg; break;
        case 'o': direction = PACKET_OUTGOING; break;
        case 'i': direction = PACKET_HOST; break;
        case 'v': vnet = true; break;
        case 'l': latency = true; break;
        case 'T': touch = true; break;
        default: return 2;
        }
    }
    if ((fd < 0) + !packet + !on_ring != 2 || !counters) {
        errx(2, "one of --tap, --packet, --ring; and --counters");
    }
    c = map_counters(counters);
    if (on_ring) {
        fd = open_packet(on_ring, &ring);
    } else if (packet) {
        fd = open_packet(packet, NULL);
    }
    say_ready();
    if (ring) {
        read_ring(fd, ring, c);
    }
    read_frames(fd, c);
}
