/*
 * QTest testcase for query-netfilter-stats, and what else shows net filters
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The test sends frames and asks QEMU what has become of them: every member of
 * query-netfilter-stats has a test here that makes it move, and for a lost
 * frame one reason counts it, and no other.  So the picture is that of
 * af-packet-test.c; without a TAP it is
 *
 *   guest[0] <--> g0, its filters <--> hub <--> g1 <--> guest[1]
 *                     |
 *                     +--> outdev, indev <--> chr[]
 *
 * What guest[0] sends is "tx" of g0, what guest[1] sends "rx".
 *
 * Tested besides: the order of filters; filter-dump on copies of a capture,
 * read by tcpdump; HMP info netfilter-stats, info network, query-chardev; that
 * trace events tell a filter's story, with the IDs that join them.
 *
 * Not tested: that frames are right, which the other af-packet tests are for;
 * filter-dump with vhost, see af-packet-vhost-test.c.
 *
 * All but the errors needs root, which unshare(1) gives in a user namespace.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <sys/syscall.h>
#include "af-packet-helpers.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"


/* Answers */

static QDict *stats_of(Env *e, const char *id)
{
    QDict *resp = qtest_qmp(e->qts, "{ 'execute': 'query-netfilter-stats',"
                            " 'arguments': { 'name': %s } }", id);
    QList *list = qdict_get_qlist(resp, "return");
    QDict *stats;

    g_assert_nonnull(list);
    g_assert_cmpint(qlist_size(list), ==, 1);
    stats = qobject_to(QDict, qlist_peek(list));
    qobject_ref(stats);
    qobject_unref(resp);
    g_assert_cmpstr(qdict_get_str(stats, "name"), ==, id);
    return stats;
}

/* The member at "a.b.c", to be unreferenced by the caller; NULL if absent */
static QObject *member(Env *e, const char *id, const char *path)
{
    g_auto(GStrv) names = g_strsplit(path, ".", -1);
    QObject *obj = QOBJECT(stats_of(e, id));

    for (char **name = names; obj && *name; name++) {
        QObject *next = qdict_get(qobject_to(QDict, obj), *name);

        if (next) {
            qobject_ref(next);
        }
        qobject_unref(obj);
        obj = next;
    }
    return obj;
}

static uint64_t count(Env *e, const char *id, const char *path)
{
    QObject *obj = member(e, id, path);
    uint64_t n;

    g_assert_nonnull(obj);
    n = qnum_get_uint(qobject_to(QNum, obj));
    qobject_unref(obj);
    return n;
}

static void assert_string(Env *e, const char *id, const char *path,
                          const char *value)
{
    QObject *obj = member(e, id, path);

    g_assert_nonnull(obj);
    g_assert_cmpstr(qstring_get_str(qobject_to(QString, obj)), ==, value);
    qobject_unref(obj);
}

static bool is_true(Env *e, const char *id, const char *path)
{
    QObject *obj = member(e, id, path);
    bool value;

    g_assert_nonnull(obj);
    value = qbool_get_bool(qobject_to(QBool, obj));
    qobject_unref(obj);
    return value;
}

static void assert_absent(Env *e, const char *id, const char *path)
{
    g_assert_null(member(e, id, path));
}

/* It gets there, and not further */
static void wait_count(Env *e, const char *id, const char *path, uint64_t n)
{
    patience_begin();
    while (count(e, id, path) < n) {
        patience_check();
    }
    vm_answers(e);
    g_assert_cmpint(count(e, id, path), ==, n);
}

static void wait_traffic(Env *e, const char *id, const char *path,
                         uint64_t packets, uint64_t bytes)
{
    g_autofree char *p = g_strdup_printf("%s.packets", path);
    g_autofree char *b = g_strdup_printf("%s.bytes", path);

    wait_count(e, id, p, packets);
    g_assert_cmpint(count(e, id, b), ==, bytes);
}

static void wait_bool(Env *e, const char *id, const char *path, bool value)
{
    patience_begin();
    while (is_true(e, id, path) != value) {
        patience_check();
    }
}

/* All that is lost was lost for this reason; NULL: nothing is */
static void assert_dropped(Env *e, const char *id, const char *reason,
                           uint64_t n)
{
    QObject *dropped = member(e, id, "dropped");
    const QDictEntry *entry;
    QDict *dict = qobject_to(QDict, dropped);
    bool found = !reason;

    for (entry = qdict_first(dict); entry; entry = qdict_next(dict, entry)) {
        const char *name = qdict_entry_key(entry);
        bool here = !g_strcmp0(name, reason);

        found |= here;
        if (qdict_get_int(dict, name) != (here ? n : 0)) {
            g_test_message("%s: %" PRId64, name, qdict_get_int(dict, name));
        }
        g_assert_cmpint(qdict_get_int(dict, name), ==, here ? n : 0);
    }
    g_assert_true(found);
    qobject_unref(dropped);
}

static void wait_dropped(Env *e, const char *id, const char *reason,
                         uint64_t n)
{
    g_autofree char *path = g_strdup_printf("dropped.%s", reason);

    wait_count(e, id, path, n);
    assert_dropped(e, id, reason, n);
}

static void assert_link(Env *e, const char *id, const char *path,
                        const char *interface, const char *state)
{
    g_autofree char *i = g_strdup_printf("%s.interface", path);
    g_autofree char *s = g_strdup_printf("%s.state", path);

    assert_string(e, id, i, interface);
    assert_string(e, id, s, state);
}


/* Names */

static void test_errors(void)
{
    Env e = { .qts = qtest_init("-M none -nodefaults "
                                "-netdev hubport,id=h0,hubid=0 "
                                "-object filter-dump,id=f0,netdev=h0,"
                                "file=/dev/null "
                                "-object memory-backend-ram,id=m0,size=4k") };
    static const char *const names[] = { "nope", "h0", "m0", "" };
    QDict *resp;

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_autofree char *expected =
            g_strdup_printf("net filter '%s' not found; leave 'name' out for "
                            "all filters that there are", names[i]);
        g_autofree char *desc = error_desc(
            qtest_qmp(e.qts, "{ 'execute': 'query-netfilter-stats',"
                      " 'arguments': { 'name': %s } }", names[i]));

        g_assert_cmpstr(desc, ==, expected);
    }
    assert_absent(&e, "f0", "dropped");
    filter_del(&e, "f0");
    resp = qtest_qmp(e.qts, "{ 'execute': 'query-netfilter-stats' }");
    g_assert_true(qlist_empty(qdict_get_qlist(resp, "return")));
    qobject_unref(resp);
    qtest_quit(e.qts);
}

/* Without a TAP, as shown above */
static void chain_start(Env *e, const char *options)
{
    g_autofree char *all = NULL;
    int fd[2];

    socket_pair(fd);
    all = g_strdup_printf("-netdev socket,id=g1,fd=%d "
                          "-netdev hubport,id=hg1,hubid=0,netdev=g1 %s",
                          fd[1], options);
    env_start_no_tap(e, all);
    close(fd[1]);
    e->guest[1] = fd[0];
}

/* In the order of the chain for the guest, whatever that of their making */
static void test_order(void)
{
    static const char *const names[] = { "first", "second", "third" };
    const QListEntry *entry;
    int i = 0;
    QDict *resp;
    Env e;

    chain_start(&e, "");
    assert_success(object_add(&e, "filter-dump", "second",
                              "netdev=g0,file=/dev/null"));
    assert_success(object_add(&e, "filter-dump", "third",
                              "netdev=g0,file=/dev/null,queue=rx"));
    assert_success(object_add(&e, "filter-dump", "first",
                              "netdev=g0,file=/dev/null,position=head"));
    resp = qtest_qmp(e.qts, "{ 'execute': 'query-netfilter-stats' }");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *f = qobject_to(QDict, qlist_entry_obj(entry));

        g_assert_cmpint(i, <, ARRAY_SIZE(names));
        g_assert_cmpstr(qdict_get_str(f, "name"), ==, names[i++]);
        g_assert_cmpstr(qdict_get_str(f, "netdev"), ==, "g0");
    }
    g_assert_cmpint(i, ==, ARRAY_SIZE(names));
    qobject_unref(resp);
    assert_string(&e, "second", "queue", "all");
    assert_string(&e, "third", "queue", "rx");
    env_stop(&e);
}


/* Packets of the chain, and what every class has */

static const struct Type {
    const char *type;
    const char *props;
    bool takes;                 /* what it gets does not go on */
} types[] = {
    { "filter-buffer", "interval=1000000000", true },
    { "filter-dump", "file=/dev/null", false },
    { "filter-mirror", "outdev=c0", false },
    { "filter-redirector", "outdev=c0", true },
    { "filter-replay", "", false },
    { "filter-rewriter", "", false },
};

static void send_frames(int fd, int n, size_t len)
{
    while (n--) {
        wire_send(fd, n, len);
    }
}

static void test_type(Env *e, const struct Type *t)
{
    g_autofree char *props = g_strdup_printf("netdev=g0,%s", t->props);
    g_autofree char *rx = g_strdup_printf("netdev=g0,queue=rx,%s", t->props);

    assert_success(object_add(e, t->type, "f0", props));
    assert_string(e, "f0", "type", t->type);
    g_assert_true(is_true(e, "f0", "enabled"));
    g_assert_true(is_true(e, "f0", "active"));

    send_frames(e->guest[0], 3, 200);
    wait_traffic(e, "f0", "tx", 3, 600);
    send_frames(e->guest[1], 2, 300);
    wait_traffic(e, "f0", "rx", 2, 600);
    g_assert_cmpint(count(e, "f0", "tx.packets"), ==, 3);
    g_assert_cmpint(count(e, "f0", "tx.taken"), ==, t->takes ? 3 : 0);
    g_assert_cmpint(count(e, "f0", "rx.taken"), ==, t->takes ? 2 : 0);

    /* One that is off gets none, one for a direction those of that */
    filter_set_status(e, "f0", false);
    g_assert_false(is_true(e, "f0", "enabled"));
    g_assert_false(is_true(e, "f0", "active"));
    send_frames(e->guest[0], 1, FRAME_LEN);
    wait_consumed(e, e->guest[0]);
    g_assert_cmpint(count(e, "f0", "tx.packets"), ==, 3);
    filter_del(e, "f0");

    assert_success(object_add(e, t->type, "f1", rx));
    send_frames(e->guest[0], 1, FRAME_LEN);
    wait_consumed(e, e->guest[0]);
    send_frames(e->guest[1], 1, FRAME_LEN);
    wait_traffic(e, "f1", "rx", 1, FRAME_LEN);
    g_assert_cmpint(count(e, "f1", "tx.packets"), ==, 0);
    filter_del(e, "f1");
}

/* All that there are; a new one has to be added here */
static void test_types(void)
{
    const QListEntry *entry;
    QDict *resp;
    Env e;

    chain_start(&e, "");
    resp = qtest_qmp(e.qts, "{ 'execute': 'qom-list-types', 'arguments':"
                     " { 'implements': 'netfilter' } }");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        const char *name =
            qdict_get_str(qobject_to(QDict, qlist_entry_obj(entry)), "name");
        bool found = false;

        for (int i = 0; i < ARRAY_SIZE(types); i++) {
            if (!strcmp(name, types[i].type)) {
                g_test_message("%s", name);
                test_type(&e, &types[i]);
                found = true;
            }
        }
        g_assert_true(found);
    }
    qobject_unref(resp);
    env_stop(&e);
}

/* n0 has a NIC, and so vnet headers; false if there is none in this QEMU */
static bool virtio_net_start(Env *e)
{
    static const char bios[64 * 1024];
    g_autofree char *path = g_strdup_printf("%s/bios", tmpdir);
    g_autofree char *options = g_strdup_printf("-bios %s -device "
        "virtio-net-pci,netdev=n0,romfile=", path);

    if (!qtest_has_machine("pc") || !qtest_has_device("virtio-net-pci")) {
        g_test_skip("no virtio-net-pci");
        return false;
    }
    g_assert_true(g_file_set_contents(path, bios, sizeof(bios), NULL));
    env_init(e);
    env_start_full(e, 1, false, "pc", options);
    unlink(path);
    return true;
}

/* A vnet header in front of the frame does not count */
static void test_vnet_hdr(void)
{
    Env e;

    if (!virtio_net_start(&e)) {
        return;
    }
    filter_add(&e, "f0", "netdev=n0,queue=tx,outdev=c0,vnet_hdr_support=on");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wait_traffic(&e, "f0", "tx", 1, FRAME_LEN);
    wait_traffic(&e, "f0", "outdev", 1, FRAME_LEN);
    env_stop(&e);
}


/* Character devices */

static void test_outdev(void)
{
    int fd;
    Env e;

    chain_start(&e, "");
    assert_success(object_add(&e, "filter-mirror", "f0",
                              "netdev=g0,queue=tx,outdev=s0"));
    assert_string(&e, "f0", "outdev.chardev", "s0");
    g_assert_false(is_true(&e, "f0", "outdev.connected"));
    send_frames(e.guest[0], 2, FRAME_LEN);
    wait_dropped(&e, "f0", "no-peer", 2);
    g_assert_cmpint(count(&e, "f0", "outdev.packets"), ==, 0);

    fd = listener_connect(&e);
    wait_bool(&e, "f0", "outdev.connected", true);
    send_frames(e.guest[0], 3, 200);
    wait_traffic(&e, "f0", "outdev", 3, 600);
    assert_dropped(&e, "f0", "no-peer", 2);
    close(fd);
    wait_bool(&e, "f0", "outdev.connected", false);
    send_frames(e.guest[0], 1, FRAME_LEN);
    wait_dropped(&e, "f0", "no-peer", 3);
    env_stop(&e);
}

static void test_slow_peer(void)
{
    const int n = 100;
    uint64_t queued, lost;
    Env e;

    chain_start(&e, "");
    filter_add(&e, "f0", "netdev=g0,queue=tx,outdev=c0");
    for (int i = 0; i < n; i++) {
        wire_send(e.guest[0], i, 60000);
    }
    wait_count(&e, "f0", "tx.packets", n);
    queued = count(&e, "f0", "outdev.queued.packets");
    lost = count(&e, "f0", "dropped.slow-peer");
    assert_dropped(&e, "f0", "slow-peer", lost);
    g_test_message("%" PRIu64 " queued, %" PRIu64 " lost", queued, lost);
    g_assert_cmpint(queued, >=, 4 * 1024 * 1024 / 60004);
    g_assert_cmpint(lost, >=, 10);
    g_assert_cmpint(count(&e, "f0", "outdev.packets") + queued + lost, ==, n);
    g_assert_cmpint(count(&e, "f0", "outdev.queued.size"), >,
                    4 * 1024 * 1024);

    /* All that was not lost */
    for (int i = 0; i < n - lost; i++) {
        wire_expect(e.chr[0], i, 60000);
    }
    wait_traffic(&e, "f0", "outdev", n - lost, (n - lost) * 60000);
    g_assert_cmpint(count(&e, "f0", "outdev.queued.packets"), ==, 0);
    g_assert_cmpint(count(&e, "f0", "outdev.queued.size"), ==, 0);
    env_stop(&e);
}

/* From indev into the chain, with a vnet header and without */
static void test_indev(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    int fd;
    Env e;

    chain_start(&e, "");
    filter_add(&e, "f0", "netdev=g0,queue=tx,indev=s0");
    filter_add(&e, "f1", "netdev=g0,queue=tx,indev=c0,vnet_hdr_support=on");
    g_assert_false(is_true(&e, "f0", "indev.connected"));
    fd = listener_connect(&e);
    wait_bool(&e, "f0", "indev.connected", true);
    send_frames(fd, 3, 200);
    wait_traffic(&e, "f0", "indev", 3, 600);
    assert_string(&e, "f0", "indev.chardev", "s0");
    close(fd);
    wait_bool(&e, "f0", "indev.connected", false);

    wire_append_seq(wire, 12, 1, FRAME_LEN);
    write_all(e.chr[0], wire->data, wire->len);
    wait_traffic(&e, "f1", "indev", 1, FRAME_LEN);
    assert_absent(&e, "f1", "outdev");
    assert_dropped(&e, "f1", NULL, 0);
    env_stop(&e);
}


/* Capture */

static void test_capture(void)
{
    Env e;

    env_start(&e, 1, "-S");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,"
               "enable_when_stopped=on");
    assert_string(&e, "f0", "in-netdev.netdev", "n0");
    assert_link(&e, "f0", "in-netdev", "qtap0", "up");
    for (int i = 0; i < 3; i++) {
        host_send(&e.tap[0], i, 200);
    }
    wait_traffic(&e, "f0", "in-netdev", 3, 600);
    wait_traffic(&e, "f0", "outdev", 3, 600);
    assert_absent(&e, "f0", "held");
    assert_absent(&e, "f0", "out-netdev");
    assert_absent(&e, "f0", "given-back");
    assert_dropped(&e, "f0", NULL, 0);

    /* The interface as it is, not as it was when the filter was made */
    wait_tap_blocked(&e);
    if_rename("qtap0", "qtap5");
    assert_link(&e, "f0", "in-netdev", "qtap5", "up");
    if_set_up("qtap5", false);
    assert_link(&e, "f0", "in-netdev", "qtap5", "down");
    pstrcpy(e.tap[0].name, sizeof(e.tap[0].name), "qtap5");
    tap_delete(&e.tap[0]);
    assert_link(&e, "f0", "in-netdev", "qtap5", "gone");
    g_assert_cmpint(count(&e, "f0", "in-netdev.packets"), ==, 3);
    env_stop(&e);
}

static void test_ring_full(void)
{
    const int n = 2000;
    uint64_t got;
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,"
               "ring_size=262144");
    vm_stall(&e, true);
    for (int i = 0; i < n; i++) {
        host_send(&e.tap[0], i, 1400);
    }
    vm_stall(&e, false);
    patience_begin();
    do {
        patience_check();
        got = count(&e, "f0", "in-netdev.packets");
    } while (got + count(&e, "f0", "dropped.ring-full") < n);
    g_test_message("%" PRIu64 " of %d", got, n);
    g_assert_cmpint(got, >, 0);
    g_assert_cmpint(got, <, n);
    assert_dropped(&e, "f0", "ring-full", n - got);
    env_stop(&e);
}

/*
 * Set an option of QEMU's packet sockets behind its back, which root may do.
 * False if it is not allowed.
 */
static bool set_captures(Env *e, int opt, const void *value, socklen_t len)
{
    int pidfd = syscall(SYS_pidfd_open, qtest_pid(e->qts), 0);
    int n = 0;

    for (int i = 0; pidfd != -1 && i < 1024; i++) {
        int fd = syscall(SYS_pidfd_getfd, pidfd, i, 0);
        int domain = 0;
        socklen_t optlen = sizeof(domain);

        if (fd == -1) {
            continue;
        }
        if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &optlen) &&
            domain == AF_PACKET) {
            g_assert_cmpint(setsockopt(fd, SOL_SOCKET, opt, value, len), ==,
                            0);
            n++;
        }
        close(fd);
    }
    if (pidfd != -1) {
        close(pidfd);
    }
    if (!n) {
        g_test_skip("no access to QEMU's files (pidfd_getfd, Linux 5.6)");
    }
    return n;
}

/*
 * The same of a socket buffer, where there is no ring: twice some frames find
 * it full.  The first loss is reported without a query.
 */
#define BUFFER_WAS_FULL "frame dropped: the receive buffer was full"

static void overflow_buffer(Env *e, Tap *tap, const char *log,
                            const char *got_path)
{
    const int n = 1000;

    for (int i = 1; i <= 2; i++) {
        uint64_t got;

        vm_stall(e, true);
        host_send_range(tap, 0, n, 1400);
        vm_stall(e, false);
        wait_warned_once(e, log, BUFFER_WAS_FULL);
        patience_begin();
        do {
            patience_check();
            got = count(e, "f0", got_path);
        } while (got + count(e, "f0", "dropped.ring-full") < i * n);
        g_test_message("%" PRIu64 " of %d", got, i * n);
        g_assert_cmpint(got, >, 0);
        assert_dropped(e, "f0", "ring-full", i * n - got);
        g_assert_cmpint(i * n - got, >, 0);
    }
}

static void test_buffer_full(void)
{
    g_autofree char *log = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", log);
    int size = 64 * 1024;
    Env e;

    env_start(&e, 1, options);
    filter_add(&e, "f0", "netdev=n0,queue=tx,in_netdev=n0,ring_size=0");
    if (set_captures(&e, SO_RCVBUF, &size, sizeof(size))) {
        overflow_buffer(&e, &e.tap[0], log, "in-netdev.packets");
    }
    env_stop(&e);
    unlink(log);
}

/* A socket that captures when it is passed has to go on without a ring */
static void test_buffer_full_chardev(void)
{
    g_autofree char *log = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = NULL;
    int size = 64 * 1024;
    Tap tap;
    Env e;
    int fd;

    tap_open(&tap, "qtap3");
    fd = packet_socket("qtap3", SOCK_RAW, ETH_P_ALL);
    fcntl(fd, F_SETFD, 0);
    options = g_strdup_printf("-chardev socket,id=p0,fd=%d,"
                              "af-packet-mode=capture 2>>%s", fd, log);
    chain_start(&e, options);
    g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size,
                               sizeof(size)), ==, 0);
    close(fd);
    filter_add(&e, "f0", "netdev=g0,queue=tx,indev=p0");
    overflow_buffer(&e, &tap, log, "indev.packets");
    env_stop(&e);
    tap_close(&tap);
    unlink(log);
}

/* It is reported while there is more to read than the peer takes, too */
static void test_buffer_full_busy(void)
{
    g_autofree char *log = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", log);
    int size = 4 * 1024 * 1024;
    Env e;

    if (!have_big_buffers) {
        g_test_skip("needs root, for a large receive buffer");
        return;
    }
    env_start(&e, 1, options);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,ring_size=0");
    if (set_captures(&e, SO_RCVBUFFORCE, &size, sizeof(size))) {
        vm_stall(&e, true);
        host_send_range(&e.tap[0], 0, 20000, FRAME_LEN);
        vm_stall(&e, false);
        wait_warned_once(&e, log, BUFFER_WAS_FULL);
    }
    env_stop(&e);
    unlink(log);
}

/* Captured, but there is no peer, and then the capture ends */
static void test_unread(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=s0");
    for (int i = 0; i < 5; i++) {
        host_send(&e.tap[0], i, FRAME_LEN);
    }
    wait_count(&e, "f0", "tx.packets", 5);
    assert_dropped(&e, "f0", NULL, 0);
    filter_set_status(&e, "f0", false);
    wait_dropped(&e, "f0", "unread", 5);
    g_assert_cmpint(count(&e, "f0", "in-netdev.packets"), ==, 0);
    env_stop(&e);
}

/*
 * QEMU asks for whole frames, and its buffers have room for them.  So the test
 * puts another filter on its socket.
 */
static void test_truncated(void)
{
    struct sock_filter insn = BPF_STMT(BPF_RET | BPF_K, FRAME_LEN);
    struct sock_fprog prog = { .len = 1, .filter = &insn };
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    if (!set_captures(&e, SO_ATTACH_FILTER, &prog, sizeof(prog))) {
        env_stop(&e);
        return;
    }
    host_send(&e.tap[0], 1, FRAME_LEN + 1);
    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.chr[0], 2, FRAME_LEN);
    wait_dropped(&e, "f0", "truncated", 1);
    g_assert_cmpint(count(&e, "f0", "in-netdev.packets"), ==, 1);
    env_stop(&e);
}


/* Inject */

static void test_inject(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,hold_limit=5000"
               ONLY_STOPPED);
    g_assert_true(is_true(&e, "f0", "enabled"));
    g_assert_false(is_true(&e, "f0", "active"));
    assert_string(&e, "f0", "out-netdev.netdev", "n0");
    assert_link(&e, "f0", "out-netdev", "qtap0", "up");

    /* Held: each with its length in front.  The last is not whole. */
    for (int i = 0; i < 4; i++) {
        wire_append_seq(wire, -1, i, 200);
    }
    write_all(e.chr[0], wire->data, wire->len - 50);
    wait_traffic(&e, "f0", "indev", 3, 600);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "held.size"), ==, wire->len - 50);
    g_assert_cmpint(count(&e, "f0", "held.limit"), ==, 5000);
    write_all(e.chr[0], wire->data + wire->len - 50, 50);
    wait_count(&e, "f0", "held.packets", 4);
    g_assert_cmpint(count(&e, "f0", "out-netdev.packets"), ==, 0);

    vm_run(&e, false);
    g_assert_true(is_true(&e, "f0", "active"));
    wait_traffic(&e, "f0", "out-netdev", 4, 800);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 0);
    g_assert_cmpint(count(&e, "f0", "held.size"), ==, 0);

    /* Directly: two whole ones and a part, and then the rest */
    write_all(e.chr[0], wire->data, 2 * 204 + 50);
    wait_traffic(&e, "f0", "indev", 6, 1200);
    write_all(e.chr[0], wire->data + 2 * 204 + 50, 154);
    wait_traffic(&e, "f0", "indev", 7, 1400);
    wait_traffic(&e, "f0", "out-netdev", 7, 1400);
    assert_dropped(&e, "f0", NULL, 0);
    env_stop(&e);
}

/* A VM that arrives from this file runs without a memory or a NIC's state */
static char *migration_file_make(void)
{
    g_autofree char *path = g_strdup_printf("%s/migration", tmpdir);
    char *uri = g_strdup_printf("file:%s", path);
    Env e;

    env_start(&e, 0, "");
    migration_start(&e, uri);
    wait_migration(&e, "completed");
    env_stop(&e);
    return uri;
}

static void migration_file_load(Env *e, const char *uri)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    qtest_qmp_eventwait(e->qts, "RESUME");
    unlink(strchr(uri, ':') + 1);
}

/* A broadcast from the source that is in this host's queue, too */
static void test_flooded(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autofree char *uri = migration_file_make();
    uint8_t frame[FRAME_LEN];
    Env e;

    env_start(&e, 1, "-incoming defer");
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0");
    frame_fill(frame, 1, FRAME_LEN);
    memset(frame, 0xff, ETH_ALEN);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(send(e.tap[0].host, frame, FRAME_LEN, 0), ==,
                        FRAME_LEN);
    }
    host_send(&e.tap[0], 3, FRAME_LEN);
    wire_append(wire, -1, NULL, frame, FRAME_LEN);
    wire_append_seq(wire, -1, 2, FRAME_LEN);
    write_all(e.chr[0], wire->data, wire->len);
    wait_traffic(&e, "f0", "indev", 2, 2 * FRAME_LEN);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 2);

    migration_file_load(&e, uri);
    wait_count(&e, "f0", "switchover.direct", 1);
    wait_count(&e, "f0", "switchover.delivered", 2);
    wait_count(&e, "f0", "flooded", 2);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 0);
    g_assert_cmpint(count(&e, "f0", "switchover.read"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "tx.packets"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "tx.taken"), ==, 0);
    assert_absent(&e, "f0", "out-netdev");
    assert_dropped(&e, "f0", NULL, 0);
    env_stop(&e);
}

/* One of each kind that cannot be injected */
static void test_inject_dropped(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "mtu", "netdev=n0,indev=c0,out_netdev=n0");
    filter_add(&e, "invalid", "netdev=n0,indev=c1,out_netdev=n0");
    filter_add(&e, "down", "netdev=n0,indev=s0,out_netdev=n0");
    wire_send(e.chr[0], 1, 1515);
    wait_dropped(&e, "mtu", "mtu", 1);
    wire_send(e.chr[1], 1, 13);
    wait_dropped(&e, "invalid", "invalid", 1);
    g_assert_cmpint(count(&e, "mtu", "indev.packets"), ==, 1);
    g_assert_cmpint(count(&e, "mtu", "out-netdev.packets"), ==, 0);
    env_stop(&e);
}

static void test_inject_no_interface(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "down", "netdev=n0,indev=c0,out_netdev=n0,"
               "enable_when_stopped=on");
    filter_add(&e, "gone", "netdev=n0,indev=c1,out_netdev=n0,"
               "enable_when_stopped=on");
    /* QEMU's TAP backend polls a deleted TAP for ever */
    vm_run(&e, false);
    host_send(&e.tap[0], 1, FRAME_LEN);
    wait_tap_blocked(&e);
    if_set_up("qtap0", false);
    wire_send(e.chr[0], 1, FRAME_LEN);
    wait_dropped(&e, "down", "interface-down", 1);
    assert_link(&e, "down", "out-netdev", "qtap0", "down");
    tap_delete(&e.tap[0]);
    send_frames(e.chr[1], 3, FRAME_LEN);
    wait_dropped(&e, "gone", "interface-gone", 3);
    assert_link(&e, "gone", "out-netdev", "qtap0", "gone");
    assert_dropped(&e, "down", "interface-down", 1);
    env_stop(&e);
}

/* A UDP packet for IP fragments: an interface that takes none, nor QEMU */
static void test_inject_gso(void)
{
    const size_t len = 3000;
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autofree uint8_t *frame = g_malloc(len);
    struct virtio_net_hdr hdr = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = VIRTIO_NET_HDR_GSO_UDP,
        .gso_size = cpu_to_le16(1400),
        .hdr_len = cpu_to_le16(ETH_HLEN + 28),
        .csum_start = cpu_to_le16(ETH_HLEN + 20),
        .csum_offset = cpu_to_le16(6),
    };
    Env e;

    frame_fill(frame, 1, len);
    stw_be_p(frame + 2 * ETH_ALEN, ETH_P_IP);
    ip_header(frame + ETH_HLEN, IPPROTO_UDP, len - ETH_HLEN - 20);
    stw_be_p(frame + ETH_HLEN + 24, len - ETH_HLEN - 20);
    stw_be_p(frame + ETH_HLEN + 26, ip_pseudo_sum(frame + ETH_HLEN));
    wire_append(wire, VNET_HDR_LEN, &hdr, frame, len);

    env_start(&e, 1, "-S");
    tap_set_offload(&e.tap[0], 0);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "vnet_hdr_support=on,enable_when_stopped=on");
    write_all(e.chr[0], wire->data, wire->len);
    wait_traffic(&e, "f0", "indev", 1, len);
    wait_dropped(&e, "f0", "gso", 1);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 0);
    env_stop(&e);
}

/* The TAP's queue has room for a part, and then for all */
static void test_no_room(void)
{
    const int n = 50;
    Env e;

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    if (!if_set_queue_len("qtap0", 10)) {
        g_test_skip("needs root to set the length of a TAP's queue");
        tap_close(&e.tap[0]);
        return;
    }
    env_start_full(&e, 1, true, "none", "-S");
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_tap_blocked(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "enable_when_stopped=on");
    for (int i = 0; i < n; i++) {
        wire_send(e.chr[0], i, FRAME_LEN);
    }
    wait_traffic(&e, "f0", "indev", n, n * FRAME_LEN);
    g_assert_cmpint(count(&e, "f0", "held.no-room"), >, 0);
    g_assert_cmpint(count(&e, "f0", "held.packets") +
                    count(&e, "f0", "out-netdev.packets"), ==, n);
    g_assert_cmpint(count(&e, "f0", "held.packets"), >, 0);
    for (int i = 0; i < n; i++) {
        tap_expect(&e.tap[0], i, FRAME_LEN);
    }
    wait_traffic(&e, "f0", "out-netdev", n, n * FRAME_LEN);
    assert_dropped(&e, "f0", NULL, 0);
    env_stop(&e);
}

/* Packets of the chain cannot be made to wait */
static void test_chain_out(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=g0,queue=tx,out_netdev=n0,hold_limit=1");
    wire_send(e.guest[0], 1, WIRE_MAX);
    wait_dropped(&e, "f0", "too-big", 1);

    /* Both are read before the first can be injected */
    wire_append_seq(wire, -1, 2, FRAME_LEN);
    wire_append_seq(wire, -1, 3, FRAME_LEN);
    write_all(e.guest[0], wire->data, wire->len);
    wait_count(&e, "f0", "dropped.hold-limit", 1);
    wait_traffic(&e, "f0", "tx", 3, WIRE_MAX + 2 * FRAME_LEN);
    g_assert_cmpint(count(&e, "f0", "tx.taken"), ==, 3);
    wait_traffic(&e, "f0", "out-netdev", 1, FRAME_LEN);
    assert_absent(&e, "f0", "indev");
    env_stop(&e);
}


/* The frames of a VM that stops */

static void test_switchover(void)
{
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
    assert_absent(&e, "f0", "in-netdev");
    assert_absent(&e, "f0", "given-back");
    migrate_pause(&e);
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_traffic(&e, "f0", "tx", 1, FRAME_LEN);
    g_assert_cmpint(count(&e, "f0", "tx.taken"), ==, 0);

    migrate_to_pause(&e, uri);
    for (int i = 1; i <= 3; i++) {
        host_send(&e.tap[0], i, 200);
    }
    wait_traffic(&e, "f0", "outdev", 3, 600);
    /* They have not been in the chain */
    g_assert_cmpint(count(&e, "f0", "tx.packets"), ==, 1);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "switchover.read"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "switchover.sent"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "switchover.acknowledged"), ==, 0);
    g_assert_cmpint(count(&e, "f0", "switchover.given-back"), ==, 0);
    g_assert_cmpint(count(&e, "f0", "switchover.peak"), ==, 3);
    g_assert_cmpint(count(&e, "f0", "switchover.peak-size"), ==,
                    3 * (8 + VNET_HDR_LEN + 200));

    migrate_cancel(&e);
    wait_count(&e, "f0", "switchover.given-back", 3);
    wait_traffic(&e, "f0", "tx", 4, FRAME_LEN + 600);
    g_assert_cmpint(count(&e, "f0", "held.packets"), ==, 0);
    for (int i = 0; i <= 3; i++) {
        wire_expect(e.guest[0], i, i ? 200 : FRAME_LEN);
    }
    assert_dropped(&e, "f0", NULL, 0);

    /* Once the migration is complete, its peer has what it has taken */
    migrate_to_pause(&e, uri);
    host_send(&e.tap[0], 4, 200);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    wait_count(&e, "f0", "switchover.acknowledged", 1);
    wait_count(&e, "f0", "held.packets", 0);
    g_assert_cmpint(count(&e, "f0", "switchover.peak"), ==, 3);
    env_stop(&e);
    unlink(strchr(uri, ':') + 1);
}

/*
 * For a guest whose NIC has no vnet headers, what they say must be done: it
 * cannot with these.  They come from the source, as the kernel would not have
 * them.
 */
static void test_metadata(void)
{
    g_autofree char *uri = migration_file_make();
    g_autoptr(GByteArray) wire = g_byte_array_new();
    struct virtio_net_hdr checksum = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .csum_start = cpu_to_le16(FRAME_LEN),
    };
    struct virtio_net_hdr gso = {
        .gso_type = VIRTIO_NET_HDR_GSO_UDP,
        .gso_size = cpu_to_le16(10),
        .hdr_len = cpu_to_le16(ETH_HLEN + 28),
    };
    uint8_t frame[FRAME_LEN];
    Env e;

    env_start(&e, 1, "-incoming defer");
    filter_add(&e, "f0", "netdev=n0,indev=c0,vnet_hdr_support=on");
    frame_fill(frame, 1, FRAME_LEN);
    wire_append(wire, VNET_HDR_LEN, &checksum, frame, FRAME_LEN);
    wire_append(wire, VNET_HDR_LEN, &gso, frame, FRAME_LEN);
    wire_append(wire, VNET_HDR_LEN, &gso, frame, FRAME_LEN);
    wire_append_seq(wire, VNET_HDR_LEN, 2, FRAME_LEN);
    write_all(e.chr[0], wire->data, wire->len);
    wait_traffic(&e, "f0", "indev", 4, 4 * FRAME_LEN);
    migration_file_load(&e, uri);
    wire_expect(e.guest[0], 2, FRAME_LEN);
    wait_count(&e, "f0", "held.packets", 0);
    g_assert_cmpint(count(&e, "f0", "dropped.invalid"), ==, 1);
    g_assert_cmpint(count(&e, "f0", "dropped.gso"), ==, 2);
    g_assert_cmpint(count(&e, "f0", "tx.packets"), ==, 1);
    env_stop(&e);
}

/* Those that the TAP's queue had no room for meanwhile */
static void test_queue_full(void)
{
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    Env e;

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    if (!if_set_queue_len("qtap0", 10)) {
        g_test_skip("needs root to set the length of a TAP's queue");
        tap_close(&e.tap[0]);
        return;
    }
    env_start_full(&e, 1, true, "none", "");
    filter_add(&e, "f0", "netdev=n0,outdev=c0" ONLY_STOPPED ",hold_limit=1");
    migrate_pause(&e);
    migrate_to_pause(&e, uri);
    /* Then the limit is reached */
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_count(&e, "f0", "switchover.read", 1);
    assert_dropped(&e, "f0", NULL, 0);
    for (int i = 1; i <= 30; i++) {
        host_send(&e.tap[0], i, FRAME_LEN);
    }
    g_assert_cmpint(if_tx_dropped("qtap0"), ==, 20);
    wait_dropped(&e, "f0", "queue-full", 20);
    g_assert_cmpint(count(&e, "f0", "switchover.read"), ==, 1);
    migrate_cancel(&e);
    for (int i = 0; i <= 10; i++) {
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    assert_dropped(&e, "f0", "queue-full", 20);
    env_stop(&e);
    unlink(strchr(uri, ':') + 1);
}


/* filter-dump on what another filter captures */

static size_t dump_len(uint32_t seq)
{
    return FRAME_LEN + seq;
}

static void test_dump(void)
{
    g_autofree char *path = g_strdup_printf("%s/pcap", tmpdir);
    g_autofree char *props = g_strdup_printf("netdev=n0,queue=tx,file=%s",
                                             path);
    Env e;

    if (!have_tcpdump()) {
        g_test_skip("no tcpdump");
        return;
    }
    env_start(&e, 2, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,in_netdev=n1");
    assert_success(object_add(&e, "filter-dump", "dump", props));
    for (int i = 0; i < 10; i++) {
        host_send(&e.tap[1], i, dump_len(i));
        wire_expect(e.guest[1], i, dump_len(i));
    }
    wait_count(&e, "dump", "tx.packets", 10);
    g_assert_cmpint(count(&e, "dump", "tx.bytes"), ==, 10 * FRAME_LEN + 45);
    env_stop(&e);
    pcap_expect(path, 0, 10, dump_len);
    unlink(path);
}


/* For people */

static void assert_hmp(Env *e, const char *command, const char *text)
{
    g_autofree char *said = qtest_hmp(e->qts, "%s", command);
    g_auto(GStrv) parts = g_strsplit(said, "\r\n", -1);
    g_autofree char *lines = g_strjoinv("\n", parts);

    if (!strstr(lines, text)) {
        g_test_message("%s", lines);
    }
    g_assert_nonnull(strstr(lines, text));
}

static void test_hmp(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "cap", "netdev=n0,queue=tx,in_netdev=n0,outdev=c0");
    filter_add(&e, "inj", "netdev=n0,queue=tx,indev=c1,out_netdev=n0,"
               "hold_limit=1000");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    wire_send(e.chr[1], 1, 13);
    wait_dropped(&e, "inj", "invalid", 1);
    wait_traffic(&e, "inj", "tx", 1, FRAME_LEN);

    assert_hmp(&e, "info netfilter-stats",
               "cap: type=filter-redirector,netdev=n0,queue=tx,status=on,"
               "active\n"
               "  tx: packets=1 bytes=100 taken=0\n"
               "  rx: packets=0 bytes=0 taken=0\n"
               "  in_netdev: n0 (qtap0, up) packets=1 bytes=100\n"
               "  outdev: c0 (connected) packets=1 bytes=100 queued=0"
               " queued_size=0\n"
               "  dropped: none\n"
               "inj: ");
    assert_hmp(&e, "info netfilter-stats inj",
               "inj: type=filter-redirector,netdev=n0,queue=tx,status=on,"
               "active\n"
               "  tx: packets=1 bytes=100 taken=0\n"
               "  rx: packets=0 bytes=0 taken=0\n"
               "  indev: c1 (connected) packets=1 bytes=13\n"
               "  out_netdev: n0 (qtap0, up) packets=0 bytes=0\n"
               "  held: packets=0 size=0 limit=1000 no_room=0\n"
               "  dropped: invalid=1\n");
    filter_add(&e, "f0", "netdev=n0,queue=tx,outdev=s0" ONLY_STOPPED);
    assert_hmp(&e, "info netfilter-stats f0",
               "f0: type=filter-redirector,netdev=n0,queue=tx,status=on,"
               "inactive\n"
               "  tx: packets=0 bytes=0 taken=0\n"
               "  rx: packets=0 bytes=0 taken=0\n"
               "  outdev: s0 (no peer) packets=0 bytes=0 queued=0"
               " queued_size=0\n"
               "  held: packets=0 size=0 limit=67108864 no_room=0\n"
               "  switchover: read=0 sent=0 acknowledged=0 delivered=0"
               " given_back=0 direct=0 peak=0 peak_size=0 drain_time=0us\n"
               "  dropped: none\n");
    assert_hmp(&e, "info netfilter-stats nope",
               "Error: net filter 'nope' not found; ");

    /* What the endpoints are */
    assert_hmp(&e, "info network", ",in_netdev=n0,");
    assert_hmp(&e, "info network", ",interface=qtap0,");
    assert_hmp(&e, "info network", ",active=true");
    env_stop(&e);
}

static void assert_filename(Env *e, const char *chardev, const char *filename)
{
    QDict *resp = qtest_qmp(e->qts, "{ 'execute': 'query-chardev' }");
    const QListEntry *entry;
    bool found = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *chr = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(chr, "label"), chardev)) {
            g_assert_cmpstr(qdict_get_str(chr, "filename"), ==, filename);
            found = true;
        }
    }
    g_assert_true(found);
    qobject_unref(resp);
}

static void test_chardev(void)
{
    g_autofree char *options = NULL;
    int fd[2];
    Tap tap;
    Env e;

    tap_open(&tap, "qtap3");
    for (int i = 0; i < 2; i++) {
        fd[i] = packet_socket("qtap3", SOCK_RAW, 0);
        fcntl(fd[i], F_SETFD, 0);
    }
    options = g_strdup_printf("-chardev socket,id=p0,fd=%d,"
                              "af-packet-mode=capture "
                              "-chardev socket,id=p1,fd=%d,"
                              "af-packet-mode=inject,af-packet-vnet-hdr=on",
                              fd[0], fd[1]);
    chain_start(&e, options);
    assert_filename(&e, "p0", "packet:qtap3,af-packet-mode=capture");
    assert_filename(&e, "p1", "packet:qtap3,af-packet-mode=inject,"
                    "af-packet-vnet-hdr=on");
    close(fd[0]);
    close(fd[1]);

    /* What such a chardev loses is lost by its filter */
    filter_add(&e, "f0", "netdev=g0,queue=tx,outdev=p1,vnet_hdr_support=on");
    send_frames(e.guest[0], 1, 1515);
    wait_dropped(&e, "f0", "mtu", 1);
    g_assert_cmpint(count(&e, "f0", "outdev.packets"), ==, 1);
    env_stop(&e);
    tap_close(&tap);
}


/* Trace events */

#ifdef CONFIG_TRACE_LOG

/* The next of these lines in the file, behind *@pos */
static void wait_line(Env *e, const char *path, size_t *pos, const char *line)
{
    patience_begin();
    while (true) {
        g_autofree char *text = NULL;
        char *found;

        vm_answers(e);
        if (g_file_get_contents(path, &text, NULL, NULL)) {
            found = strstr(text + *pos, line);
            if (found) {
                *pos = found + strlen(line) - text;
                return;
            }
            if (patience_over()) {
                g_test_message("no '%s' in", line);
                g_test_message("%s", text + *pos);
            }
        }
        patience_check();
    }
}

/* As in the manual */
#define TRACE_OPTIONS "-trace 'filter_*' -trace 'qio_channel_packet_*' "      \
                      "-trace 'tcp_chr_packet_*' -trace 'packet_helper_*' "    \
                      "-trace 'switchover_*' "

static void trace_start(Env *e, int taps, const char *path)
{
    g_autofree char *options = g_strdup_printf(TRACE_OPTIONS "-D %s", path);

    env_start(e, taps, options);
}

static void test_trace_capture(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    size_t pos = 0;
    int fd;
    Env e;

    trace_start(&e, 1, path);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=s0");
    wait_line(&e, path, &pos, "ifname=qtap0 mode=capture\n");
    wait_line(&e, path, &pos,
              "filter_packet_open id=f0 in_netdev=n0 ifname=qtap0 ioc=0x");
    wait_line(&e, path, &pos,
              "filter_activity_update id=f0 active=1 status=1 vm_running=1");
    wait_line(&e, path, &pos, "ifname=qtap0 active=1\n");
    fd = listener_connect(&e);
    wait_line(&e, path, &pos,
              "filter_writer_event id=f0 outdev connected=1 "
              "queued_packets=0 queued_bytes=0\n");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(fd, 1, FRAME_LEN);
    if_set_up("qtap0", false);
    wait_line(&e, path, &pos, "qio_channel_packet_down ");
    if_set_up("qtap0", true);
    host_send(&e.tap[0], 2, FRAME_LEN);
    wait_line(&e, path, &pos, "qio_channel_packet_up ");
    wire_expect(fd, 2, FRAME_LEN);
    close(fd);
    wait_line(&e, path, &pos, "filter_writer_event id=f0 outdev connected=0 ");
    filter_set_status(&e, "f0", false);
    wait_line(&e, path, &pos,
              "filter_activity_update id=f0 active=0 status=0 vm_running=1\n");
    wait_line(&e, path, &pos, "ifname=qtap0 active=0\n");
    wait_line(&e, path, &pos, "qio_channel_packet_detach ");
    env_stop(&e);
    unlink(path);
}

static void test_trace_inject(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autoptr(GByteArray) wire = g_byte_array_new();
    size_t pos = 0;
    int fd;
    Env e;

    trace_start(&e, 1, path);
    filter_add(&e, "f0", "netdev=n0,indev=s0,out_netdev=n0,hold_limit=300"
               ONLY_STOPPED);
    wait_line(&e, path, &pos,
              "filter_packet_open id=f0 out_netdev=n0 ifname=qtap0 ioc=0x");
    fd = listener_connect(&e);
    wait_line(&e, path, &pos, "filter_redirector_event id=f0 indev "
              "connected=1\n");
    for (int i = 0; i < 4; i++) {
        wire_append_seq(wire, -1, i, FRAME_LEN);
    }
    write_all(fd, wire->data, wire->len);
    wait_line(&e, path, &pos,
              "filter_packet_held id=f0 held=1 packets=4 bytes=416\n");
    wait_line(&e, path, &pos, "filter_packet_not_read id=f0 not_read=1 "
              "held_packets=4 held_bytes=416\n");
    vm_run(&e, false);
    wait_line(&e, path, &pos, "filter_activity_update id=f0 active=1 "
              "status=1 vm_running=0\n");
    wait_line(&e, path, &pos, "filter_packet_release id=f0 bytes=416 "
              "held_packets=0 held_bytes=0\n");
    wait_line(&e, path, &pos, "filter_packet_held id=f0 held=0 ");
    wait_line(&e, path, &pos, "filter_packet_not_read id=f0 not_read=0 ");
    close(fd);
    wait_line(&e, path, &pos, "filter_redirector_event id=f0 indev "
              "connected=0\n");
    env_stop(&e);
    unlink(path);
}

/* The peer does not read, and then it does */
static void test_trace_back_pressure(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    const int n = 400;
    size_t pos = 0;
    Env e;

    trace_start(&e, 1, path);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    for (int i = 0; i < n; i++) {
        host_send(&e.tap[0], i, 1400);
    }
    wait_line(&e, path, &pos, "filter_writer_waiting id=f0 waiting=1 ");
    for (int i = 0; i < n; i++) {
        wire_expect(e.chr[0], i, 1400);
    }
    wait_line(&e, path, &pos, "filter_writer_waiting id=f0 waiting=0 "
              "queued_packets=0 queued_bytes=0\n");
    env_stop(&e);
    unlink(path);
}

static void test_trace_no_room(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autofree char *options = g_strdup_printf("-S " TRACE_OPTIONS "-D %s",
                                               path);
    size_t pos = 0;
    Env e;

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    if (!if_set_queue_len("qtap0", 10)) {
        g_test_skip("needs root to set the length of a TAP's queue");
        tap_close(&e.tap[0]);
        return;
    }
    env_start_full(&e, 1, true, "none", options);
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_tap_blocked(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "enable_when_stopped=on");
    for (int i = 0; i < 20; i++) {
        wire_send(e.chr[0], i, FRAME_LEN);
    }
    wait_line(&e, path, &pos, "ifname=qtap0 room=0\n");
    wait_line(&e, path, &pos, "filter_packet_held id=f0 held=1 ");
    for (int i = 0; i < 20; i++) {
        tap_expect(&e.tap[0], i, FRAME_LEN);
    }
    wait_line(&e, path, &pos, "ifname=qtap0 room=1\n");
    wait_line(&e, path, &pos, "filter_packet_held id=f0 held=0 ");
    tap_delete(&e.tap[0]);
    wire_send(e.chr[0], 1, FRAME_LEN);
    wait_line(&e, path, &pos, "qio_channel_packet_gone ");
    wait_line(&e, path, &pos, "filter_packet_gone id=f0 ifname=qtap0\n");
    wait_line(&e, path, &pos, "filter_count_drop id=f0 n=1 reason=the host "
              "interface is gone\n");
    env_stop(&e);
    unlink(path);
}

static void test_trace_switchover(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    size_t pos = 0;
    Env e;

    trace_start(&e, 1, path);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
    wait_line(&e, path, &pos, "switchover_transport name=filter-redirector "
              "'f0' connected=1\n");
    migrate_pause(&e);
    migrate_to_pause(&e, uri);
    wait_line(&e, path, &pos, "switchover_begin netdev=n0 frames=0\n");
    host_send_range(&e.tap[0], 0, 900, FRAME_LEN);
    wire_expect_range(e.chr[0], 0, 900, FRAME_LEN);
    migrate_cancel(&e);
    wait_line(&e, path, &pos, "switchover_give_back netdev=n0 frames=900 ");
    wait_line(&e, path, &pos, "switchover_hold netdev=n0 frames=900 ");
    wait_line(&e, path, &pos, "switchover_finish netdev=n0 delivered=0"
              " given_back=900 direct=0 ");
    migrate_to_pause(&e, uri);
    migrate_continue(&e);
    wait_line(&e, path, &pos, "switchover_begin netdev=n0 frames=0\n");
    wait_migration(&e, "completed");
    wait_line(&e, path, &pos, "switchover_wait done=1 ");
    env_stop(&e);
    unlink(path);
    unlink(strchr(uri, ':') + 1);
}

/* A capture for a stopped VM which is not one for its migration */
static void test_trace_armed(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    size_t pos = 0;
    Env e;

    trace_start(&e, 1, path);
    filter_add(&e, "f0", "netdev=n0,queue=rx,in_netdev=n0,outdev=c0"
               ONLY_STOPPED);
    migrate_pause(&e);
    migrate_to_pause(&e, uri);
    wait_line(&e, path, &pos, "filter_packet_armed id=f0\n");
    wait_line(&e, path, &pos, "qio_channel_packet_ring ");
    wait_line(&e, path, &pos,
              "filter_activity_update id=f0 active=1 status=1 vm_running=0\n");
    wait_line(&e, path, &pos, "ifname=qtap0 active=1\n");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    migrate_cancel(&e);
    wait_line(&e, path, &pos, "ifname=qtap0 active=0\n");
    wait_line(&e, path, &pos, "qio_channel_packet_detach ");
    env_stop(&e);
    unlink(path);
    unlink(strchr(uri, ':') + 1);
}

/* The destination, when its VM runs and nothing is held any more */
static void test_trace_announce(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autofree char *uri = migration_file_make();
    g_autofree char *options =
        g_strdup_printf("-incoming defer " TRACE_OPTIONS "-D %s", path);
    size_t pos = 0;
    Env b;

    env_start(&b, 1, options);
    filter_add(&b, "f0", "netdev=n0,indev=c0,out_netdev=n0");
    wire_send(b.chr[0], 1, FRAME_LEN);
    wait_count(&b, "f0", "held.packets", 1);
    migration_file_load(&b, uri);
    wait_line(&b, path, &pos, "switchover_hold netdev=n0 frames=0 ");
    wait_line(&b, path, &pos, "switchover_arrival_phase name="
              "filter-redirector 'f0' phase=backlog"
              " received=1 frames=1\n");
    wait_line(&b, path, &pos, "switchover_arrival_announce name="
              "filter-redirector 'f0' nic=h0\n");
    wait_line(&b, path, &pos, "switchover_arrival_phase name="
              "filter-redirector 'f0' phase=over"
              " received=1 frames=0\n");
    wait_line(&b, path, &pos, "switchover_finish netdev=n0 delivered=1"
              " given_back=0 direct=0 ");
    wire_expect(b.guest[0], 1, FRAME_LEN);
    env_stop(&b);
    unlink(path);
}

/* Which channel, on which interface, a chardev has */
static void test_trace_chardev(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autofree char *line = NULL;
    g_autofree char *text = NULL;
    size_t pos = 0;
    const char *ioc;
    Tap tap;
    Env e;
    int fd;

    tap_open(&tap, "qtap3");
    trace_start(&e, 1, path);
    fd = packet_socket("qtap3", SOCK_RAW, 0);
    assert_success(chardev_add(&e, "p0", fd, "af-packet-mode=inject"));
    close(fd);
    wait_line(&e, path, &pos,
              "tcp_chr_packet_set_fd label=p0 ifname=qtap3 ioc=");
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    ioc = text + pos;
    line = g_strdup_printf("qio_channel_packet_drop Packet drop ioc=%.*s "
                           "ifname=qtap3 n=1 ", (int)strcspn(ioc, "\n"), ioc);

    filter_add(&e, "f0", "netdev=g0,queue=tx,outdev=p0");
    wire_send(e.guest[0], 1, 1515);
    wait_line(&e, path, &pos, line);
    env_stop(&e);
    tap_close(&tap);
    unlink(path);
}

/* What a helper has answered, here one that refuses */
static void test_trace_helper(void)
{
    g_autofree char *path = g_strdup_printf("%s/trace", tmpdir);
    g_autofree char *helper = g_strdup_printf("%s/helper", tmpdir);
    g_autofree char *options = g_strdup_printf(TRACE_OPTIONS "-D %s", path);
    g_autofree char *props =
        g_strdup_printf("netdev=n0,in_netdev=n0,outdev=c0,packet_helper=%s",
                        helper);
    g_autofree char *line =
        g_strdup_printf("packet_helper_result path=%s pid=", helper);
    g_autofree char *desc = NULL;
    size_t pos = 0;
    Env e;

    g_assert_true(g_file_set_contents(helper, "#!/bin/sh\necho no\nexit 3\n",
                                      -1, NULL));
    g_assert_cmpint(chmod(helper, 0755), ==, 0);
    env_start_unprivileged(&e, 1, options);
    desc = error_desc(object_add(&e, "filter-redirector", "f0", props));
    g_assert_cmpstr(desc, ==, "'in_netdev': 'packet_helper': no");
    wait_line(&e, path, &pos, line);
    wait_line(&e, path, &pos, " status=0x300 fd=-1 said=no\n");
    env_stop(&e);
    unlink(helper);
    unlink(path);
}

#endif


/* Tests that need the host */

static const struct HostTest {
    const char *name;
    void (*func)(void);
} host_tests[] = {
    { "order", test_order },
    { "types", test_types },
    { "vnet-hdr", test_vnet_hdr },
    { "outdev", test_outdev },
    { "slow-peer", test_slow_peer },
    { "indev", test_indev },
    { "capture", test_capture },
    { "ring-full", test_ring_full },
    { "buffer-full/filter", test_buffer_full },
    { "buffer-full/chardev", test_buffer_full_chardev },
    { "buffer-full/busy", test_buffer_full_busy },
    { "unread", test_unread },
    { "truncated", test_truncated },
    { "inject", test_inject },
    { "flooded", test_flooded },
    { "inject-dropped", test_inject_dropped },
    { "no-interface", test_inject_no_interface },
    { "gso", test_inject_gso },
    { "no-room", test_no_room },
    { "chain-out", test_chain_out },
    { "switchover", test_switchover },
    { "metadata", test_metadata },
    { "queue-full", test_queue_full },
    { "dump", test_dump },
    { "hmp", test_hmp },
    { "chardev", test_chardev },
#ifdef CONFIG_TRACE_LOG
    { "trace/capture", test_trace_capture },
    { "trace/inject", test_trace_inject },
    { "trace/back-pressure", test_trace_back_pressure },
    { "trace/no-room", test_trace_no_room },
    { "trace/switchover", test_trace_switchover },
    { "trace/armed", test_trace_armed },
    { "trace/announce", test_trace_announce },
    { "trace/chardev", test_trace_chardev },
    { "trace/helper", test_trace_helper },
#endif
};

static void host_test_run(const void *opaque)
{
    const struct HostTest *t = opaque;

    if (no_host) {
        g_test_skip(no_host);
    } else {
        t->func();
    }
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);

    tmpdir = g_dir_make_tmp("netfilter-stats-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();

    qtest_add_func("/netfilter-stats/errors", test_errors);
    for (int i = 0; i < ARRAY_SIZE(host_tests); i++) {
        g_autofree char *path = g_strdup_printf("/netfilter-stats/%s",
                                                host_tests[i].name);

        qtest_add_data_func(path, &host_tests[i], host_test_run);
    }

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
