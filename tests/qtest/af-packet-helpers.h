/*
 * Host, guest and QEMU of the AF_PACKET qtests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * All of these assert that they succeed.  Where they wait, the limit is to the
 * time without progress: a slow or busy host is no reason to fail.
 * The picture of who is connected to whom is in af-packet-test.c.
 */

#ifndef AF_PACKET_HELPERS_H
#define AF_PACKET_HELPERS_H

#include <linux/if_ether.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include "libqtest.h"

/* As PACKET_VNET_HDR and a TAP have it, when nothing else is set */
#define VNET_HDR_LEN 10

/* The longest message of a stream: vnet header and frame */
#define WIRE_MAX (4096 + 65536)

/* For sockets and other files, made by the test's main() */
extern char *tmpdir;


/* Frames, each made from a sequence number and its length */

#define ETH_P_TEST 0x88b5       /* IEEE 802: local experimental */
#define SEQ_OFFSET ETH_HLEN
#define FRAME_LEN 100           /* when it does not matter */

extern const uint8_t mac_guest[ETH_ALEN];
extern const uint8_t mac_host[ETH_ALEN];

void frame_fill(uint8_t *frame, uint32_t seq, size_t len);
void assert_frame(const uint8_t *frame, size_t len, uint32_t seq,
                  size_t expected_len);

/* The sum of RFC 1071 before it is inverted, continued from @sum */
uint16_t inet_sum(const uint8_t *data, size_t len, uint32_t sum);
/* An IPv4 header for @len bytes behind it, from 10.1.0.1 to 10.1.0.2 */
void ip_header(uint8_t *ip, uint8_t proto, size_t len);
/* The sum of the pseudo header for the IPv4 packet at @ip */
uint16_t ip_pseudo_sum(const uint8_t *ip);


/*
 * A loop that waits: begin, and check in each turn.  The check fails when the
 * processes that the test has started, such as QEMU, have used no CPU time for
 * PATIENCE seconds; and, as they may also spin, after 20 times as long.  In the
 * loop there may be calls that wait themselves, but no other such loop.
 */
#define PATIENCE 30
#define PATIENCE_BOUND (20 * PATIENCE)

void patience_begin(void);
bool patience_over(void);
void patience_check(void);


/* Streams of framed packets */

void wait_fd(int fd, short events);
void write_all(int fd, const void *buf, size_t len);

/* One message: be32 length, then bytes, to be freed by the caller */
uint8_t *wire_recv(int fd, size_t *len);
void wire_expect(int fd, uint32_t seq, size_t len);
void wire_expect_range(int fd, uint32_t begin, uint32_t end, size_t len);

/*
 * One message with a vnet header: be32 length, be32 vnet header length, vnet
 * header, frame.  Returns the last two; the frame is at @hdr_len.
 */
uint8_t *wire_recv_vnet(int fd, struct virtio_net_hdr *hdr,
                        size_t *hdr_len, size_t *frame_len);

/*
 * Append a message to @wire; @vnet_hdr_len is -1 for a stream without vnet
 * headers, else the vnet header is @hdr, or all zero
 */
void wire_append(GByteArray *wire, int vnet_hdr_len,
                 const struct virtio_net_hdr *hdr,
                 const uint8_t *frame, size_t len);
void wire_append_seq(GByteArray *wire, int vnet_hdr_len, uint32_t seq,
                     size_t len);
void wire_send(int fd, uint32_t seq, size_t len);

/* A thread that sends much in large pieces, so that the test can receive */
typedef struct Sender {
    GThread *thread;
    GByteArray *wire;
    int fd;
} Sender;

void sender_start(Sender *s, int fd, GByteArray *wire);

/* Is there something to read now? */
bool readable(int fd);
/* How much of what was written to a Unix socket waits there to be read */
int unread_bytes(int fd);


/* The host: a network namespace with TAPs */

typedef struct Tap {
    char name[IFNAMSIZ];
    int vnet_hdr_len;           /* that its reader and its writer use */
    int fd;                     /* the guest's side, passed to QEMU */
    int host;                   /* sends as the host does */
} Tap;

/* Why there can be no TAPs here, or NULL if there can; see host_init() */
extern char *no_host;
/* May QEMU have receive buffers for thousands of frames? */
extern bool have_big_buffers;

/*
 * Become the host: root in a network namespace that is empty but for what the
 * tests put there.  Sets no_host if that is not possible.
 */
void host_init(void);

void host_ioctl(unsigned long request, void *arg);
/* Run a program of the host, by arguments with a space between; did it work? */
bool host_command(const char *line);
struct ifreq host_ifreq(const char *name);
void if_set_up(const char *name, bool up);
void if_set_mtu(const char *name, int mtu);
/* Takes the interface down for it, as some kernels ask for */
void if_rename(const char *name, const char *new_name);
/* False if that is not permitted, as to the root of a user namespace */
bool if_set_queue_len(const char *name, int len);
/* Frames that the reader of a TAP took, or that found the queue full */
uint64_t if_tx_packets(const char *name);
uint64_t if_tx_dropped(const char *name);

/* Wait until the kernel offers frames to no socket, or to some */
void wait_capturing(bool capturing);

/* All of the namespace's, whether they capture, inject or neither */
int count_packet_sockets(void);
/* An AF_PACKET socket, bound unless @name is NULL; QEMU does not inherit it */
int packet_socket(const char *name, int type, uint16_t proto);

/* The next frame tells the network where a guest is, to a socket for these */
void rarp_expect(int fd);

void tap_open(Tap *tap, const char *name);
void tap_close(Tap *tap);
void tap_set_offload(Tap *tap, unsigned offload);
/* False if the kernel does not know such offloads */
bool tap_try_offload(Tap *tap, unsigned offload);
void tap_set_vnet_hdr_len(Tap *tap, int len);
/* Delete the interface under its users */
void tap_delete(Tap *tap);

/* The frame is on its way into the TAP, and captured, when this returns */
void host_send(Tap *tap, uint32_t seq, size_t len);
void host_send_range(Tap *tap, uint32_t begin, uint32_t end, size_t len);
/* The guest of a TAP that QEMU does not read sends a frame */
void tap_send(Tap *tap, const struct virtio_net_hdr *hdr,
              const uint8_t *frame, size_t len);
/* And the next frame for it */
size_t tap_recv(Tap *tap, struct virtio_net_hdr *hdr,
                uint8_t *frame, size_t size);
void tap_expect(Tap *tap, uint32_t seq, size_t len);
void tap_expect_range(Tap *tap, uint32_t begin, uint32_t end, size_t len);


/* QEMU */

/* Bytes that a guest[] may have to read, if that can be had */
#define GUEST_ROOM (8 * 1024 * 1024)

typedef struct Env {
    QTestState *qts;
    Tap tap[2];
    int guest[2];
    int chr[2];
    char *listen;               /* path of chardev s0, which listens */
} Env;

/*
 * The environment variable with the binary that is started, where it is not
 * QTEST_QEMU_BINARY
 */
extern const char *qemu_binary_var;

/*
 * The variable with the binary of another QEMU, one without this feature, and
 * a machine type that both have, and that means the same to both
 */
#define QEMU_PEER "QTEST_QEMU_BINARY_PEER"
#define QEMU_PEER_MACHINE "pc-i440fx-10.0"

/* Why there is no such QEMU, or NULL if there is one */
const char *why_no_peer(void);

/* For a filter that is about the frames of a stopped VM */
#define ONLY_STOPPED ",enable_when_running=off,enable_when_stopped=on"

/* Captures that are added by filter_add() or @options have no receive ring */
extern bool no_ring;

/* A pair whose second end is for QEMU, which inherits it */
void socket_pair(int *fd);

/* An @e that has nothing yet; tests may add to it before they start QEMU */
void env_init(Env *e);
/*
 * Start QEMU with @taps TAPs, which @e has already or which are made, and with
 * @options.  A TAP's peer is a hub unless @options has a NIC for it.
 */
void env_start_full(Env *e, int taps, bool hub, const char *machine,
                    const char *options);
/* Both of these for the usual case */
void env_start(Env *e, int taps, const char *options);
/*
 * The same for a QEMU whose uid may be 0, but which has no capability, and
 * one with a guest on netdev g0 that has no TAP
 */
void env_start_unprivileged(Env *e, int taps, const char *options);
void env_start_no_tap(Env *e, const char *options);
/* With one TAP, and a VM that has memory and no guest */
void env_start_pc(Env *e, bool hub, const char *options);
/* And a virtio-net NIC, so that vnet headers pass through QEMU; no driver */
void env_start_virtio_net(Env *e, const char *options);
bool skip_virtio_net(void);
/* It stands for the guest: what QEMU reads from the TAP while the VM runs */
#define GUEST_READER "netdev=n0,queue=tx,outdev=c1,enable_when_stopped=off"
void env_stop(Env *e);

/* Add "a=b,c=on,d=5" to the arguments of a QMP command */
void put_props(QDict *dict, const char *props);
void assert_success(QDict *resp);
char *error_desc(QDict *resp);

QDict *object_add(Env *e, const char *type, const char *id,
                  const char *props);
void filter_add(Env *e, const char *id, const char *props);
void filter_del(Env *e, const char *id);
void filter_set_status(Env *e, const char *id, bool on);
/* A number of query-netfilter-stats, in one of its groups or (NULL) in none */
uint64_t filter_stat(Env *e, const char *id, const char *group,
                     const char *name);

/* Make @fd known to QEMU as @name */
void send_fd(Env *e, int fd, const char *name);
/* A socket chardev from @fd, or from a path that does not exist if it is -1 */
QDict *chardev_add(Env *e, const char *id, int fd, const char *options);

/* Has the socket chardev @id a peer? */
bool chardev_is_connected(Env *e, const char *id);

void vm_run(Env *e, bool run);
/* QEMU answers, and has been through its main loop some times */
void vm_answers(Env *e);
/* And what it had to write to @fd, it has written: there is nothing */
void assert_silent(Env *e, int fd);
/* QEMU stops as it is, and the kernel does not; or it goes on */
void vm_stall(Env *e, bool stall);

void migrate_capability(Env *e, const char *name);
/*
 * And postcopy-ram.  What the host has for it is not known before QEMU has
 * tried: if it cannot be had, the test is skipped.
 */
bool migrate_can_postcopy(Env *e);

/* Outgoing migrations; with a pause, migrate_continue() is to follow */
void migrate_pause(Env *e);
void migration_start(Env *e, const char *uri);
void migrate_continue(Env *e);
void wait_migration(Env *e, const char *status);
/* Up to the pause, and back from it: the VM runs again */
void migrate_to_pause(Env *e, const char *uri);
void migrate_cancel(Env *e);
/* The same in two steps, for a QEMU that is stalled at first */
void migrate_cancel_send(Env *e);
void migrate_cancel_wait(Env *e);

/*
 * For a QEMU that may hang: a monitor on the far end of @fd, which tells in
 * time whether there is an answer
 */
void mon_start(int fd);
void mon_answers(int fd);
/* Wait until QEMU has written this warning to a file; it did so once */
void wait_warned_once(Env *e, const char *path, const char *warning);
/* Wait until QEMU has read everything that the test wrote to @fd */
void wait_consumed(Env *e, int fd);
/*
 * With the VM stopped: wait until QEMU has read its one frame from tap[0].
 * The next ones are for tap_expect().
 */
void wait_tap_blocked(Env *e);
int listener_connect(Env *e);

/* Is there a tcpdump? */
bool have_tcpdump(void);
/*
 * It reads the frames from @begin to before @end in the file at @path, with
 * the lengths that @len gives, and no others
 */
void pcap_expect(const char *path, uint32_t begin, uint32_t end,
                 size_t (*len)(uint32_t seq));

/* No main loop that spins */
void assert_idle(Env *e);
int count_fds(Env *e);
/* Sockets may be closed a little later: wait until no more than @n are open */
void wait_fds(Env *e, int n);


/* Tests that need the host, and are skipped where there is none */

/* What their names begin with; to be set before they are added */
extern const char *suite;

/* Either @func, or @data_func with @data */
void add_host_test(const char *path, void (*func)(void),
                   void (*data_func)(const void *), const void *data,
                   bool without_ring);
void add_host_func(const char *path, void (*func)(void));
void add_host_variant(const char *path, const char *name,
                      void (*func)(const void *), const void *data);

#endif /* AF_PACKET_HELPERS_H */
