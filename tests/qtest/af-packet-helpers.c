/*
 * Host, guest and QEMU of the AF_PACKET qtests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/securebits.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "af-packet-helpers.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"

char *tmpdir;
char *no_host;
bool have_big_buffers;
bool no_ring;
const char *qemu_binary_var;


/* Frames */

const uint8_t mac_guest[ETH_ALEN] = { 0x02, 0, 0, 0, 0, 2 };
const uint8_t mac_host[ETH_ALEN] = { 0x02, 0, 0, 0, 0, 1 };

void frame_fill(uint8_t *frame, uint32_t seq, size_t len)
{
    size_t i;

    memcpy(frame, mac_guest, ETH_ALEN);
    memcpy(frame + ETH_ALEN, mac_host, ETH_ALEN);
    stw_be_p(frame + 2 * ETH_ALEN, ETH_P_TEST);
    for (i = ETH_HLEN; i < len; i++) {
        frame[i] = seq * 31 + i * 7 + (i >> 8);
    }
    if (len >= SEQ_OFFSET + sizeof(seq)) {
        stl_be_p(frame + SEQ_OFFSET, seq);
    }
}

void assert_frame(const uint8_t *frame, size_t len, uint32_t seq,
                  size_t expected_len)
{
    g_autofree uint8_t *expected = g_malloc(expected_len);

    frame_fill(expected, seq, expected_len);
    if (len >= SEQ_OFFSET + sizeof(seq)) {
        g_assert_cmpint(ldl_be_p(frame + SEQ_OFFSET), ==, seq);
    }
    g_assert_cmpmem(frame, len, expected, expected_len);
}

/* The long way round, unlike in the code under test */
uint16_t inet_sum(const uint8_t *data, size_t len, uint32_t sum)
{
    size_t i;

    for (i = 0; i < len; i++) {
        sum += i % 2 ? data[i] : data[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

void ip_header(uint8_t *ip, uint8_t proto, size_t len)
{
    memset(ip, 0, 20);
    ip[0] = 0x45;
    stw_be_p(ip + 2, 20 + len);
    ip[8] = 64;
    ip[9] = proto;
    stl_be_p(ip + 12, 0x0a010001);
    stl_be_p(ip + 16, 0x0a010002);
    stw_be_p(ip + 10, ~inet_sum(ip, 20, 0));
}

uint16_t ip_pseudo_sum(const uint8_t *ip)
{
    return inet_sum(ip + 12, 8, ip[9] + lduw_be_p(ip + 2) - 20);
}


/* Time limits */

typedef struct Patience {
    gint64 looked;              /* when, in microseconds */
    uint64_t ticks;             /* CPU time then; 0 before the first look */
    gint64 idle, total;         /* microseconds that count */
} Patience;

static __thread Patience of_loop;

/* The CPU time of all processes below @parent, in clock ticks */
static uint64_t cpu_time_below(int parent)
{
    g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
    const char *pid;
    uint64_t sum = 0;

    while ((pid = g_dir_read_name(proc))) {
        g_autofree char *path = g_strdup_printf("/proc/%s/stat", pid);
        g_autofree char *text = NULL;
        uint64_t user, sys;
        int ppid;

        if (!g_ascii_isdigit(*pid) ||
            !g_file_get_contents(path, &text, NULL, NULL)) {
            continue;           /* it has ended */
        }
        /* man proc_pid_stat; ")" ends the name, which may have some, too */
        g_assert_cmpint(sscanf(strrchr(text, ')'), ") %*c %d"
                               " %*d %*d %*d %*d %*u %*u %*u %*u %*u"
                               " %" SCNu64 " %" SCNu64, &ppid, &user, &sys),
                        ==, 3);
        if (ppid == parent) {
            sum += user + sys + cpu_time_below(atoi(pid));
        }
    }
    return sum;
}

static void patience_init(Patience *p)
{
    *p = (Patience) { .looked = g_get_monotonic_time() };
}

static void patience_look(Patience *p)
{
    gint64 now = g_get_monotonic_time();
    gint64 passed = now - p->looked;
    uint64_t ticks;

    if (passed < G_TIME_SPAN_SECOND) {
        return;
    }
    /* Not the time in which the test did not run either */
    passed = MIN(passed, 2 * G_TIME_SPAN_SECOND);
    ticks = cpu_time_below(getpid());
    p->idle = ticks == p->ticks ? p->idle + passed : 0;
    p->total += passed;
    p->ticks = ticks;
    p->looked = now;
}

static bool patience_is_over(const Patience *p)
{
    return p->idle >= PATIENCE * G_TIME_SPAN_SECOND ||
           p->total >= PATIENCE_BOUND * G_TIME_SPAN_SECOND;
}

void patience_begin(void)
{
    patience_init(&of_loop);
}

bool patience_over(void)
{
    patience_look(&of_loop);
    return patience_is_over(&of_loop);
}

void patience_check(void)
{
    g_assert_false(patience_over());
}


/* Waiting, reading and writing */

void wait_fd(int fd, short events)
{
    struct pollfd pfd = { .fd = fd, .events = events };
    Patience p;
    int n = RETRY_ON_EINTR(poll(&pfd, 1, 0));

    if (n == 0) {
        patience_init(&p);
        while ((n = RETRY_ON_EINTR(poll(&pfd, 1, 1000))) == 0) {
            patience_look(&p);
            g_assert_false(patience_is_over(&p));
        }
    }
    g_assert_cmpint(n, ==, 1);
}

bool readable(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    return RETRY_ON_EINTR(poll(&pfd, 1, 0)) == 1;
}

static void read_all(int fd, void *buf, size_t len)
{
    while (len) {
        ssize_t ret;

        wait_fd(fd, POLLIN);
        ret = read(fd, buf, len);
        g_assert_cmpint(ret, >, 0);
        buf = (char *)buf + ret;
        len -= ret;
    }
}

void write_all(int fd, const void *buf, size_t len)
{
    while (len) {
        ssize_t ret;

        wait_fd(fd, POLLOUT);
        ret = send(fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (ret < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            continue;
        }
        buf = (const char *)buf + ret;
        len -= ret;
    }
}

uint8_t *wire_recv(int fd, size_t *len)
{
    uint32_t be_len;
    uint8_t *buf;

    read_all(fd, &be_len, sizeof(be_len));
    *len = be32_to_cpu(be_len);
    g_assert_cmpint(*len, <=, WIRE_MAX);
    buf = g_malloc(*len);
    read_all(fd, buf, *len);
    return buf;
}

void wire_expect(int fd, uint32_t seq, size_t len)
{
    size_t got;
    g_autofree uint8_t *buf = wire_recv(fd, &got);

    assert_frame(buf, got, seq, len);
}

uint8_t *wire_recv_vnet(int fd, struct virtio_net_hdr *hdr,
                        size_t *hdr_len, size_t *frame_len)
{
    uint32_t head[2];
    uint8_t *buf;
    size_t len;

    read_all(fd, head, sizeof(head));
    len = be32_to_cpu(head[0]);
    *hdr_len = be32_to_cpu(head[1]);
    g_assert_cmpint(len, <=, WIRE_MAX);
    g_assert_cmpint(*hdr_len, >=, VNET_HDR_LEN);
    g_assert_cmpint(*hdr_len, <, len);
    buf = g_malloc(len);
    read_all(fd, buf, len);
    memcpy(hdr, buf, VNET_HDR_LEN);
    *frame_len = len - *hdr_len;
    return buf;
}

void wire_append(GByteArray *wire, int vnet_hdr_len,
                 const struct virtio_net_hdr *hdr,
                 const uint8_t *frame, size_t len)
{
    uint8_t head[8];

    stl_be_p(head, len + MAX(vnet_hdr_len, 0));
    stl_be_p(head + 4, vnet_hdr_len);
    g_byte_array_append(wire, head, vnet_hdr_len < 0 ? 4 : 8);
    if (vnet_hdr_len > 0) {
        g_autofree uint8_t *vnet = g_malloc0(MAX(vnet_hdr_len, VNET_HDR_LEN));

        if (hdr) {
            memcpy(vnet, hdr, VNET_HDR_LEN);
        }
        g_byte_array_append(wire, vnet, vnet_hdr_len);
    }
    g_byte_array_append(wire, frame, len);
}

void wire_append_seq(GByteArray *wire, int vnet_hdr_len, uint32_t seq,
                     size_t len)
{
    g_autofree uint8_t *frame = g_malloc(MAX(len, FRAME_LEN));

    frame_fill(frame, seq, len);
    wire_append(wire, vnet_hdr_len, NULL, frame, len);
}

void wire_send(int fd, uint32_t seq, size_t len)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();

    wire_append_seq(wire, -1, seq, len);
    write_all(fd, wire->data, wire->len);
}

void wire_expect_range(int fd, uint32_t begin, uint32_t end, size_t len)
{
    for (; begin < end; begin++) {
        wire_expect(fd, begin, len);
    }
}

static void *sender_run(void *opaque)
{
    const size_t piece = 64 * 1024;
    Sender *s = opaque;

    for (size_t pos = 0; pos < s->wire->len; pos += piece) {
        write_all(s->fd, s->wire->data + pos, MIN(piece, s->wire->len - pos));
    }
    return NULL;
}

void sender_start(Sender *s, int fd, GByteArray *wire)
{
    s->fd = fd;
    s->wire = wire;
    s->thread = g_thread_new("sender", sender_run, s);
}

int unread_bytes(int fd)
{
    int n;

    g_assert_cmpint(ioctl(fd, SIOCOUTQ, &n), ==, 0);
    return n;
}


/* The host: a network namespace with TAPs */

void host_ioctl(unsigned long request, void *arg)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(fd, !=, -1);
    g_assert_cmpint(ioctl(fd, request, arg), ==, 0);
    close(fd);
}

bool host_command(const char *line)
{
    g_auto(GStrv) argv = g_strsplit(line, " ", -1);
    int status = -1;

    return g_spawn_sync(NULL, argv, NULL,
                        G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL |
                        G_SPAWN_STDERR_TO_DEV_NULL,
                        NULL, NULL, NULL, NULL, &status, NULL) && status == 0;
}

struct ifreq host_ifreq(const char *name)
{
    struct ifreq ifr = { 0 };

    pstrcpy(ifr.ifr_name, sizeof(ifr.ifr_name), name);
    return ifr;
}

void if_set_up(const char *name, bool up)
{
    struct ifreq ifr = host_ifreq(name);

    ifr.ifr_flags = up ? IFF_UP : 0;
    host_ioctl(SIOCSIFFLAGS, &ifr);
}

void if_set_mtu(const char *name, int mtu)
{
    struct ifreq ifr = host_ifreq(name);

    ifr.ifr_mtu = mtu;
    host_ioctl(SIOCSIFMTU, &ifr);
}

void if_rename(const char *name, const char *new_name)
{
    struct ifreq ifr = host_ifreq(name);

    if_set_up(name, false);
    pstrcpy(ifr.ifr_newname, sizeof(ifr.ifr_newname), new_name);
    host_ioctl(SIOCSIFNAME, &ifr);
    if_set_up(new_name, true);
}

bool if_set_queue_len(const char *name, int len)
{
    struct ifreq ifr = host_ifreq(name);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok;

    ifr.ifr_qlen = len;
    ok = ioctl(fd, SIOCSIFTXQLEN, &ifr) == 0;
    close(fd);
    return ok;
}

/* The n-th number behind the name in /proc/net/dev */
static uint64_t if_counter(const char *name, int n)
{
    g_autofree char *text = NULL;
    g_autofree char *key = g_strdup_printf("%s:", name);
    char *p;
    uint64_t value = 0;

    g_assert_true(g_file_get_contents("/proc/thread-self/net/dev", &text,
                                      NULL, NULL));
    p = strstr(text, key);
    g_assert_nonnull(p);
    p += strlen(key);
    while (n-- >= 0) {
        value = g_ascii_strtoull(p, &p, 10);
    }
    return value;
}

uint64_t if_tx_packets(const char *name)
{
    return if_counter(name, 9);
}

uint64_t if_tx_dropped(const char *name)
{
    return if_counter(name, 11);
}

void wait_capturing(bool capturing)
{
    bool found;

    patience_begin();
    do {
        g_autofree char *text = NULL;

        patience_check();
        g_assert_true(g_file_get_contents("/proc/thread-self/net/packet",
                                          &text, NULL, NULL));
        /* Columns: sk, RefCnt, Type (SOCK_RAW), Proto (ETH_P_ALL), ... */
        found = g_regex_match_simple("^\\S+ +\\d+ +3 +0003 ", text,
                                     G_REGEX_MULTILINE, 0);
    } while (found != capturing);
}

int count_packet_sockets(void)
{
    g_autofree char *text = NULL;
    int n = 0;

    g_assert_true(g_file_get_contents("/proc/thread-self/net/packet", &text,
                                      NULL, NULL));
    for (char *p = text; (p = strchr(p, '\n')); p++) {
        n++;
    }
    return n;
}

int packet_socket(const char *name, int type, uint16_t proto)
{
    struct sockaddr_ll sll = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(proto),
        .sll_ifindex = name ? if_nametoindex(name) : 0,
    };
    int fd = socket(AF_PACKET, type | SOCK_CLOEXEC, 0);

    g_assert_cmpint(fd, !=, -1);
    if (name) {
        g_assert_cmpint(bind(fd, (struct sockaddr *)&sll, sizeof(sll)), ==, 0);
    }
    return fd;
}

void rarp_expect(int fd)
{
    uint8_t buf[FRAME_LEN];

    wait_fd(fd, POLLIN);
    g_assert_cmpint(recv(fd, buf, sizeof(buf), 0), >=, ETH_HLEN);
    g_assert_cmpint(lduw_be_p(buf + 2 * ETH_ALEN), ==, ETH_P_RARP);
}

void tap_open(Tap *tap, const char *name)
{
    struct ifreq ifr = host_ifreq(name);

    ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    pstrcpy(tap->name, sizeof(tap->name), name);
    tap->vnet_hdr_len = VNET_HDR_LEN;
    /* QEMU inherits this one, by its number */
    tap->fd = open("/dev/net/tun", O_RDWR);
    g_assert_cmpint(tap->fd, !=, -1);
    g_assert_cmpint(ioctl(tap->fd, TUNSETIFF, &ifr), ==, 0);
    if_set_up(name, true);
    tap->host = packet_socket(name, SOCK_RAW, 0);
}

void tap_close(Tap *tap)
{
    if (tap->fd != -1) {
        close(tap->fd);
        close(tap->host);
        tap->fd = tap->host = -1;
    }
}

bool tap_try_offload(Tap *tap, unsigned offload)
{
    return ioctl(tap->fd, TUNSETOFFLOAD, offload) == 0;
}

void tap_set_offload(Tap *tap, unsigned offload)
{
    g_assert_true(tap_try_offload(tap, offload));
}

void tap_set_vnet_hdr_len(Tap *tap, int len)
{
    g_assert_cmpint(ioctl(tap->fd, TUNSETVNETHDRSZ, &len), ==, 0);
    tap->vnet_hdr_len = len;
}

void tap_delete(Tap *tap)
{
    struct {
        struct nlmsghdr nlh;
        struct ifinfomsg ifi;
    } req = {
        .nlh.nlmsg_len = sizeof(req),
        .nlh.nlmsg_type = RTM_DELLINK,
        .nlh.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
        .ifi.ifi_index = if_nametoindex(tap->name),
    };
    struct {
        struct nlmsghdr nlh;
        struct nlmsgerr err;
    } ack;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    g_assert_cmpint(fd, !=, -1);
    g_assert_cmpint(send(fd, &req, sizeof(req), 0), ==, sizeof(req));
    g_assert_cmpint(recv(fd, &ack, sizeof(ack), 0), >=, sizeof(ack.nlh) + 4);
    g_assert_cmpint(ack.nlh.nlmsg_type, ==, NLMSG_ERROR);
    g_assert_cmpint(ack.err.error, ==, 0);
    close(fd);
}

void host_send(Tap *tap, uint32_t seq, size_t len)
{
    g_autofree uint8_t *frame = g_malloc(len);

    frame_fill(frame, seq, len);
    g_assert_cmpint(send(tap->host, frame, len, 0), ==, len);
}

void tap_send(Tap *tap, const struct virtio_net_hdr *hdr,
              const uint8_t *frame, size_t len)
{
    uint8_t more[64] = { 0 };
    struct iovec iov[] = {
        { .iov_base = (void *)hdr, .iov_len = VNET_HDR_LEN },
        { .iov_base = more, .iov_len = tap->vnet_hdr_len - VNET_HDR_LEN },
        { .iov_base = (void *)frame, .iov_len = len },
    };

    g_assert_cmpint(writev(tap->fd, iov, ARRAY_SIZE(iov)),
                    ==, tap->vnet_hdr_len + len);
}

void host_send_range(Tap *tap, uint32_t begin, uint32_t end, size_t len)
{
    for (; begin < end; begin++) {
        host_send(tap, begin, len);
    }
}

size_t tap_recv(Tap *tap, struct virtio_net_hdr *hdr,
                uint8_t *frame, size_t size)
{
    uint8_t buf[64 + WIRE_MAX];
    ssize_t len;

    wait_fd(tap->fd, POLLIN);
    len = read(tap->fd, buf, sizeof(buf));
    g_assert_cmpint(len, >, tap->vnet_hdr_len);
    len -= tap->vnet_hdr_len;
    g_assert_cmpint(len, <=, size);
    memcpy(hdr, buf, VNET_HDR_LEN);
    memcpy(frame, buf + tap->vnet_hdr_len, len);
    return len;
}

void tap_expect(Tap *tap, uint32_t seq, size_t len)
{
    g_autofree uint8_t *frame = g_malloc(WIRE_MAX);
    struct virtio_net_hdr hdr;
    size_t got = tap_recv(tap, &hdr, frame, WIRE_MAX);

    assert_frame(frame, got, seq, len);
}

void tap_expect_range(Tap *tap, uint32_t begin, uint32_t end, size_t len)
{
    for (; begin < end; begin++) {
        tap_expect(tap, begin, len);
    }
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd != -1) {
        /* Best effort: what needs it shows */
        if (write(fd, text, strlen(text)) < 0) {
            g_test_message("%s: %s", path, strerror(errno));
        }
        close(fd);
    }
}

static bool host_try(const char *what, int ret)
{
    if (ret < 0 && !no_host) {
        no_host = g_strdup_printf("needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, "
                                  "CAP_NET_RAW): %s: %s", what,
                                  strerror(errno));
    }
    return !no_host;
}

void host_init(void)
{
    struct ifreq ifr = host_ifreq("qtap0");
    int size = 16 * 1024 * 1024;
    int tun, packet;

    if (!host_try("namespaces", unshare(CLONE_NEWNET | CLONE_NEWNS)) ||
        !host_try("mounts", mount("none", "/", NULL, MS_REC | MS_PRIVATE,
                                  NULL))) {
        return;
    }

    ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    packet = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (host_try("/dev/net/tun", tun) && host_try("AF_PACKET", packet) &&
        host_try("TAP", ioctl(tun, TUNSETIFF, &ifr))) {
        have_big_buffers = setsockopt(packet, SOL_SOCKET, SO_RCVBUFFORCE,
                                      &size, sizeof(size)) == 0;
        /* No frames of the kernel's own */
        write_file("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        write_file("/proc/sys/net/ipv4/igmp_link_local_mcast_reports", "0");
    }
    if (tun != -1) {
        close(tun);
    }
    if (packet != -1) {
        close(packet);
    }
}


/* QEMU */

/* Two of the same kind would understand each other whatever they say */
static void assert_peer_is_stock(void)
{
    g_autofree char *line = g_strdup_printf("%s -object filter-redirector,help",
                                            getenv(QEMU_PEER));
    g_autofree char *help = NULL;

    g_assert_true(g_spawn_command_line_sync(line, &help, NULL, NULL, NULL));
    g_assert_nonnull(strstr(help, "indev="));
    g_assert_null(strstr(help, "in_netdev="));
}

const char *why_no_peer(void)
{
    if (!getenv(QEMU_PEER)) {
        return QEMU_PEER " does not name the other QEMU";
    }
    assert_peer_is_stock();
    return NULL;
}

void socket_pair(int *fd)
{
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), ==, 0);
    fcntl(fd[0], F_SETFD, FD_CLOEXEC);
}

void env_init(Env *e)
{
    int i;

    memset(e, 0, sizeof(*e));
    for (i = 0; i < 2; i++) {
        e->tap[i].fd = e->tap[i].host = -1;
        e->guest[i] = e->chr[i] = -1;
    }
}

/* What a test wants of its captures, with what it does not know of */
static char *capture_props(const char *props)
{
    g_auto(GStrv) parts = g_strsplit(props, ",in_netdev=", -1);

    return g_strjoinv(no_ring ? ",ring_size=0,in_netdev=" : ",in_netdev=",
                      parts);
}

void env_start_full(Env *e, int taps, bool hub, const char *machine,
                    const char *options)
{
    static const char *const names[] = { "qtap0", "qtap1" };
    static unsigned serial;
    g_autoptr(GString) args = g_string_new("");
    g_autofree char *more = capture_props(options);
    int size = GUEST_ROOM;
    int theirs[4];
    int n = 0;
    int i;

    g_string_append_printf(args, "-M %s -nodefaults ", machine);
    for (i = 0; i < taps; i++) {
        int fd[2];

        if (e->tap[i].fd == -1) {
            tap_open(&e->tap[i], names[i]);
        }
        g_string_append_printf(args, "-netdev tap,id=n%d,fd=%d ", i,
                               e->tap[i].fd);
        if (hub) {
            socket_pair(fd);
            /* Best effort: root may have room for many frames */
            if (setsockopt(fd[1], SOL_SOCKET, SO_SNDBUFFORCE, &size,
                           sizeof(size)) < 0) {
                g_test_message("SO_SNDBUFFORCE: %s", strerror(errno));
            }
            e->guest[i] = fd[0];
            theirs[n++] = fd[1];
            g_string_append_printf(args,
                "-netdev hubport,id=h%d,hubid=%d,netdev=n%d "
                "-netdev socket,id=g%d,fd=%d "
                "-netdev hubport,id=hg%d,hubid=%d,netdev=g%d ",
                i, i, i, i, fd[1], i, i, i);
        }
    }
    for (i = 0; i < 2; i++) {
        int fd[2];

        socket_pair(fd);
        e->chr[i] = fd[0];
        theirs[n++] = fd[1];
        g_string_append_printf(args, "-chardev socket,id=c%d,fd=%d ",
                               i, fd[1]);
    }
    e->listen = g_strdup_printf("%s/s%u", tmpdir, serial++);
    g_string_append_printf(args,
                           "-chardev socket,id=s0,path=%s,server=on,wait=off ",
                           e->listen);
    g_string_append(args, more);

    e->qts = qtest_init_ext(qemu_binary_var, args->str, NULL, true);
    while (n) {
        close(theirs[--n]);
    }
}

void env_start(Env *e, int taps, const char *options)
{
    env_init(e);
    env_start_full(e, taps, true, "none", options);
}

/* Its parent keeps what it has: securebits count when a program is executed */
void env_start_unprivileged(Env *e, int taps, const char *options)
{
    g_assert_cmpint(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT), ==, 0);
    env_start(e, taps, options);
    g_assert_cmpint(prctl(PR_SET_SECUREBITS, 0), ==, 0);
}

void env_start_no_tap(Env *e, const char *options)
{
    g_autofree char *args = NULL;
    int fd[2];

    env_init(e);
    socket_pair(fd);
    args = g_strdup_printf("-netdev socket,id=g0,fd=%d "
                           "-netdev hubport,id=hg0,hubid=0,netdev=g0 %s",
                           fd[1], options);
    g_assert_cmpint(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT), ==, 0);
    env_start_full(e, 0, true, "none", args);
    g_assert_cmpint(prctl(PR_SET_SECUREBITS, 0), ==, 0);
    e->guest[0] = fd[0];
    close(fd[1]);
}

void env_start_pc(Env *e, bool hub, const char *options)
{
    static const char bios[64 * 1024];
    g_autofree char *path = g_strdup_printf("%s/bios", tmpdir);
    g_autofree char *all = g_strdup_printf("-m 16 -bios %s %s", path, options);

    /* No firmware runs, but there must be some */
    g_assert_true(g_file_set_contents(path, bios, sizeof(bios), NULL));
    env_start_full(e, 1, hub, "pc", all);
    unlink(path);
}

void env_start_virtio_net(Env *e, const char *options)
{
    g_autofree char *all = g_strdup_printf("-device virtio-net-pci,netdev=n0,"
                                           "romfile= %s", options);

    env_start_pc(e, false, all);
}

bool skip_virtio_net(void)
{
    bool skip = !qtest_has_machine("pc") ||
                !qtest_has_device("virtio-net-pci");

    if (skip) {
        g_test_skip("no virtio-net-pci");
    }
    return skip;
}

void env_stop(Env *e)
{
    int i;

    qtest_quit(e->qts);
    for (i = 0; i < 2; i++) {
        tap_close(&e->tap[i]);
        if (e->guest[i] != -1) {
            close(e->guest[i]);
        }
        if (e->chr[i] != -1) {
            close(e->chr[i]);
        }
    }
    unlink(e->listen);
    g_free(e->listen);
}

void put_props(QDict *dict, const char *props)
{
    g_auto(GStrv) list = g_strsplit(props, ",", -1);
    char **p;

    for (p = list; *p; p++) {
        char *value = strchr(*p, '=');
        uint64_t number;

        if (!value) {
            g_assert_cmpint(strlen(*p), ==, 0);
            continue;
        }
        *value++ = '\0';
        if (strcmp(*p, "status") &&
            (!strcmp(value, "on") || !strcmp(value, "off"))) {
            qdict_put_bool(dict, *p, !strcmp(value, "on"));
        } else if (qemu_strtou64(value, NULL, 10, &number) == 0) {
            qdict_put_int(dict, *p, number);
        } else {
            qdict_put_str(dict, *p, value);
        }
    }
}

QDict *object_add(Env *e, const char *type, const char *id,
                  const char *props)
{
    QDict *args = qdict_new();

    qdict_put_str(args, "qom-type", type);
    qdict_put_str(args, "id", id);
    put_props(args, props);
    return qtest_qmp(e->qts, "{ 'execute': 'object-add', 'arguments': %p }",
                     args);
}

void assert_success(QDict *resp)
{
    g_assert_nonnull(resp);
    if (qdict_haskey(resp, "error")) {
        g_assert_cmpstr(qdict_get_str(qdict_get_qdict(resp, "error"), "desc"),
                        ==, "");
    }
    g_assert_true(qdict_haskey(resp, "return"));
    qobject_unref(resp);
}

char *error_desc(QDict *resp)
{
    char *desc;

    g_assert_nonnull(resp);
    g_assert_true(qdict_haskey(resp, "error"));
    desc = g_strdup(qdict_get_str(qdict_get_qdict(resp, "error"), "desc"));
    qobject_unref(resp);
    return desc;
}

void filter_add(Env *e, const char *id, const char *props)
{
    g_autofree char *all = capture_props(props);

    assert_success(object_add(e, "filter-redirector", id, all));
}

void filter_del(Env *e, const char *id)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'object-del',"
                             " 'arguments': { 'id': %s } }", id);
}

void filter_set_status(Env *e, const char *id, bool on)
{
    g_autofree char *path = g_strdup_printf("/objects/%s", id);

    qtest_qmp_assert_success(e->qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': 'status',"
                             " 'value': %s } }", path, on ? "on" : "off");
}

uint64_t filter_stat(Env *e, const char *id, const char *group,
                     const char *name)
{
    QDict *resp = qtest_qmp(e->qts, "{ 'execute': 'query-netfilter-stats',"
                            " 'arguments': { 'name': %s } }", id);
    QDict *filter = qobject_to(QDict, qlist_peek(qdict_get_qlist(resp,
                                                                 "return")));
    uint64_t n = qdict_get_uint(group ? qdict_get_qdict(filter, group) : filter,
                                name);

    qobject_unref(resp);
    return n;
}

void send_fd(Env *e, int fd, const char *name)
{
    qtest_qmp_fds_assert_success(e->qts, &fd, 1, "{ 'execute': 'getfd',"
                                 " 'arguments': { 'fdname': %s } }", name);
}

QDict *chardev_add(Env *e, const char *id, int fd, const char *options)
{
    QDict *data = qdict_new();

    put_props(data, options);
    if (fd != -1) {
        send_fd(e, fd, "fd0");
        qdict_put_obj(data, "addr", qobject_from_jsonf_nofail(
                      "{ 'type': 'fd', 'data': { 'str': 'fd0' } }"));
    } else {
        qdict_put_obj(data, "addr", qobject_from_jsonf_nofail(
                      "{ 'type': 'unix', 'data': { 'path': %s } }",
                      "/no/such/path"));
    }
    return qtest_qmp(e->qts, "{ 'execute': 'chardev-add', 'arguments': {"
                     " 'id': %s, 'backend': { 'type': 'socket',"
                     " 'data': %p } } }", id, data);
}

bool chardev_is_connected(Env *e, const char *id)
{
    QDict *resp = qtest_qmp(e->qts, "{ 'execute': 'query-chardev' }");
    bool found = false, connected = false;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *chr = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(chr, "label"), id)) {
            found = true;
            connected = !g_str_has_prefix(qdict_get_str(chr, "filename"),
                                          "disconnected:");
        }
    }
    qobject_unref(resp);
    g_assert_true(found);
    return connected;
}

void vm_run(Env *e, bool run)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': %s }",
                             run ? "cont" : "stop");
}

void vm_answers(Env *e)
{
    int i;

    for (i = 0; i < 5; i++) {
        qtest_qmp_assert_success(e->qts, "{ 'execute': 'query-status' }");
    }
}

void assert_silent(Env *e, int fd)
{
    vm_answers(e);
    g_assert_false(readable(fd));
}

void vm_stall(Env *e, bool stall)
{
    pid_t pid = qtest_pid(e->qts);
    siginfo_t info;

    g_assert_cmpint(kill(pid, stall ? SIGSTOP : SIGCONT), ==, 0);
    if (stall) {
        g_assert_cmpint(waitid(P_PID, pid, &info, WSTOPPED), ==, 0);
    }
}

void migrate_capability(Env *e, const char *name)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute':"
        " 'migrate-set-capabilities', 'arguments': { 'capabilities': ["
        " { 'capability': %s, 'state': true } ] } }", name);
}

bool migrate_can_postcopy(Env *e)
{
    QDict *resp = qtest_qmp(e->qts, "{ 'execute':"
        " 'migrate-set-capabilities', 'arguments': { 'capabilities': ["
        " { 'capability': 'postcopy-ram', 'state': true } ] } }");
    bool can = qdict_haskey(resp, "return");

    if (can) {
        qobject_unref(resp);
    } else {
        g_autofree char *desc = error_desc(resp);

        g_test_skip(desc);
    }
    return can;
}

void migrate_pause(Env *e)
{
    migrate_capability(e, "pause-before-switchover");
}

void migration_start(Env *e, const char *uri)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
}

void migrate_continue(Env *e)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'migrate-continue',"
                             " 'arguments': { 'state': 'pre-switchover' } }");
}

void wait_migration(Env *e, const char *status)
{
    patience_begin();
    for (;;) {
        QDict *resp = qtest_qmp_assert_success_ref(e->qts, "{ 'execute':"
                                                   " 'query-migrate' }");
        g_autofree char *now = g_strdup(qdict_get_try_str(resp, "status"));

        qobject_unref(resp);
        if (!g_strcmp0(now, status)) {
            return;
        }
        g_assert_cmpstr(now, !=, "failed");
        patience_check();
    }
}

void migrate_to_pause(Env *e, const char *uri)
{
    migration_start(e, uri);
    qtest_qmp_eventwait(e->qts, "STOP");
    wait_migration(e, "pre-switchover");
}

void migrate_cancel_send(Env *e)
{
    qtest_qmp_send(e->qts, "{ 'execute': 'migrate_cancel' }");
}

void migrate_cancel_wait(Env *e)
{
    assert_success(qtest_qmp_receive(e->qts));
    wait_migration(e, "cancelled");
    qtest_qmp_eventwait(e->qts, "RESUME");
}

void migrate_cancel(Env *e)
{
    migrate_cancel_send(e);
    migrate_cancel_wait(e);
}

/* Up to the answer, past greeting and events */
static void mon_expect_return(int fd)
{
    g_autoptr(GString) line = g_string_new("");
    char byte;

    while (!g_str_has_prefix(line->str, "{\"return\"")) {
        g_string_truncate(line, 0);
        do {
            read_all(fd, &byte, 1);
            g_string_append_c(line, byte);
        } while (byte != '\n');
        g_assert_false(g_str_has_prefix(line->str, "{\"error\""));
    }
}

void mon_start(int fd)
{
    static const char command[] = "{ 'execute': 'qmp_capabilities' }\n";

    write_all(fd, command, strlen(command));
    mon_expect_return(fd);
}

void mon_answers(int fd)
{
    static const char command[] = "{ 'execute': 'query-status' }\n";

    write_all(fd, command, strlen(command));
    mon_expect_return(fd);
}

void wait_warned_once(Env *e, const char *path, const char *warning)
{
    char *first = NULL;

    patience_begin();
    while (!first) {
        g_autofree char *text = NULL;

        patience_check();
        vm_answers(e);
        g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
        first = strstr(text, warning);
        g_assert_true(!first || !strstr(first + 1, warning));
    }
}

void wait_consumed(Env *e, int fd)
{
    patience_begin();
    while (unread_bytes(fd)) {
        patience_check();
        vm_answers(e);
    }
    vm_answers(e);
}

int listener_connect(Env *e)
{
    int fd = unix_connect(e->listen, NULL);

    g_assert_cmpint(fd, !=, -1);
    return fd;
}

void wait_tap_blocked(Env *e)
{
    patience_begin();
    while (!if_tx_packets(e->tap[0].name)) {
        patience_check();
        vm_answers(e);
    }
}

bool have_tcpdump(void)
{
    g_autofree char *path = g_find_program_in_path("tcpdump");

    return path;
}

/* A line of tcpdump -xx, "<tab>0x0000:  0200 0000 0002 ...", to @frame */
static void append_hex(GByteArray *frame, const char *line)
{
    for (const char *hex = strchr(line, ':') + 1; *hex; hex++) {
        if (g_ascii_isxdigit(*hex)) {
            uint8_t byte = g_ascii_xdigit_value(hex[0]) << 4 |
                           g_ascii_xdigit_value(hex[1]);

            g_byte_array_append(frame, &byte, 1);
            hex++;
        }
    }
}

void pcap_expect(const char *path, uint32_t begin, uint32_t end,
                 size_t (*len)(uint32_t seq))
{
    /* -Z: or it would become a user that is not everywhere */
    const char *argv[] = { "tcpdump", "-Z", "root", "-r", path, "-n", "-t",
                           "-xx", NULL };
    g_autoptr(GByteArray) frame = g_byte_array_new();
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    char **line;
    int status;

    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL,
                               G_SPAWN_SEARCH_PATH |
                               G_SPAWN_STDERR_TO_DEV_NULL,
                               NULL, NULL, &text, NULL, &status, NULL));
    g_assert_cmpint(status, ==, 0);
    lines = g_strsplit(text, "\n", -1);
    line = lines;
    for (; begin < end; begin++) {
        g_assert_nonnull(*line);
        g_byte_array_set_size(frame, 0);
        while (*++line && **line == '\t') {
            append_hex(frame, *line);
        }
        assert_frame(frame->data, frame->len, begin, len(begin));
    }
    g_assert_cmpstr(*line, ==, "");
}

/*
 * Nanoseconds that QEMU's main thread has run, or has waited for a CPU: the
 * first two numbers of schedstat (Documentation/scheduler/sched-stats.rst).
 */
static uint64_t vm_busy_ns(Env *e)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/schedstat",
                                            qtest_pid(e->qts));
    g_autofree char *text = NULL;
    uint64_t running, waiting;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%" SCNu64 " %" SCNu64, &running, &waiting),
                    ==, 2);
    return running + waiting;
}

/*
 * No main loop that spins: one would run or wait for a CPU all the time, on an
 * idle host as on a busy one.  One that sleeps, even if only for a millisecond
 * at a time, has some tenth of a second in which it did so for half of it.
 */
void assert_idle(Env *e)
{
    int64_t start;
    uint64_t busy;

    vm_answers(e);
    patience_begin();
    do {
        patience_check();
        start = g_get_monotonic_time();
        busy = vm_busy_ns(e);
        g_usleep(100 * 1000);
        busy = vm_busy_ns(e) - busy;
        start = g_get_monotonic_time() - start;
        g_test_message("idle: busy for %" PRIu64 " of %" PRId64 " us",
                       busy / 1000, start);
    } while (busy / 1000 > start / 2);
}

int count_fds(Env *e)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", qtest_pid(e->qts));
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    int n = 0;

    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

void wait_fds(Env *e, int n)
{
    patience_begin();
    while (count_fds(e) > n) {
        patience_check();
        vm_answers(e);
    }
}


/* Tests that need the host */

const char *suite;

typedef struct HostTest {
    void (*func)(void);
    void (*data_func)(const void *data);
    const void *data;
    bool no_ring;
} HostTest;

static void host_test_run(const void *opaque)
{
    const HostTest *t = opaque;

    no_ring = t->no_ring;
    if (no_host) {
        g_test_skip(no_host);
    } else if (t->func) {
        t->func();
    } else {
        t->data_func(t->data);
    }
}

void add_host_test(const char *path, void (*func)(void),
                   void (*data_func)(const void *), const void *data,
                   bool without_ring)
{
    HostTest *t = g_new0(HostTest, 1);
    g_autofree char *full = g_strdup_printf("%s/%s", suite, path);

    t->func = func;
    t->data_func = data_func;
    t->data = data;
    t->no_ring = without_ring;
    qtest_add_data_func_full(full, t, host_test_run, g_free);
}

void add_host_func(const char *path, void (*func)(void))
{
    add_host_test(path, func, NULL, NULL, false);
}

void add_host_variant(const char *path, const char *name,
                      void (*func)(const void *), const void *data)
{
    g_autofree char *full = g_strdup_printf("%s/%s", path, name);

    add_host_test(full, NULL, func, data, false);
}
