/*
 * QTest testcase for filter-redirector in a migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * A filter for the frames of a VM that its migration has stopped, with
 * in_netdev and a copy for the guest, or without.  The test is the destination:
 *
 *   host --> tap[0] --> n0 --> filter --> outdev --> chr[0]
 *                        |
 *                        +--> guest[0], while the VM runs
 *
 * or there is a second QEMU for it:
 *
 *   host --> tap[0] --> n0 --> filter --> m0
 *                                         |
 *                    guest[0] <-- n0 <-- filter
 *
 * As in af-packet-test.c, whose picture has the details, a frame's bytes follow
 * from its number, and "nothing arrives" is shown by a later frame that must
 * arrive, and is the first to do so.
 *
 * Most migrations pause before the switchover, with the VM stopped: there the
 * test has the time to send.  QEMU's main loop works then, which it does not
 * while the VM's state is saved.  For that moment the stream of the migration
 * goes into a pipe of one page, which is not read: QEMU stands still in the
 * middle of it, and answers no peer, until the test takes a page away.
 *
 * Tested: who gets the frames of a VM that stops and runs again, whose
 * migration completes, fails or is cancelled, that is saved to a file or as a
 * snapshot, or is restarted in place (cpr-reboot); that they leave before the
 * destination can run and before the end is reported; precopy, postcopy,
 * multifd, a VM that was stopped before, or is migrated on before it ran; peers
 * that are slow or missing; frames that both hosts get, or that a capture
 * copies; many migrations in a row; two netdevs; limits, leaks.
 *
 * Not tested: vhost, a guest's rings, announcements: see switchover-test.c; a
 * guest that runs.
 *
 * Needs root, which unshare(1) gives in a user namespace, too.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <glib-unix.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sched.h>
#include "af-packet-helpers.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"

static char *migration_file;

/* More than QEMU reads in one go, less than the queue of a TAP */
#define MANY 300

/* Of which a socket does not have room for that many */
#define BIG_LEN 9014

/* The VM runs, and no frame is on its way */
static void flush_to_guest(Env *e, uint32_t seq)
{
    host_send_range(&e->tap[0], seq, seq + 10, FRAME_LEN);
    wire_expect_range(e->guest[0], seq, seq + 10, FRAME_LEN);
}

static void switchover_start(Env *e, const char *in_netdev, const char *outdev,
                             const char *props)
{
    g_autofree char *all =
        g_strdup_printf("netdev=n0,%soutdev=%s" ONLY_STOPPED "%s",
                        in_netdev, outdev, props);

    env_start(e, 1, "");
    if (!if_set_queue_len(e->tap[0].name, 1000)) {
        g_test_message("the length of the TAP's queue is not ours");
    }
    filter_add(e, "f0", all);
    migrate_pause(e);
    flush_to_guest(e, 0);
}

static void assert_activity_fixed(Env *e, const char *property)
{
    g_autofree char *desc =
        error_desc(qtest_qmp(e->qts, "{ 'execute': 'qom-set', 'arguments':"
                             " { 'path': '/objects/f0', 'property': %s,"
                             " 'value': true } }", property));

    g_assert_cmpstr(desc, ==, "'enable_when_running' and "
                    "'enable_when_stopped' of a filter for the frames of a "
                    "stopped VM cannot be changed; make a new filter");
}

static void switchover_stop(Env *e)
{
    env_stop(e);
    unlink(strchr(migration_file, ':') + 1);
}

/*
 * The VM stops and runs again, without a migration: all frames stay where they
 * are, and are the guest's
 */
static void test_stop(const void *opaque)
{
    uint64_t taken;
    Env e;

    switchover_start(&e, opaque, "c0", "");
    for (uint32_t seq = 1000; seq <= 5000; seq += 1000) {
        taken = if_tx_packets(e.tap[0].name);
        vm_run(&e, false);
        host_send_range(&e.tap[0], seq, seq + MANY, FRAME_LEN);
        vm_answers(&e);
        g_assert_cmpint(if_tx_packets(e.tap[0].name), ==, taken);
        vm_run(&e, true);
        wire_expect_range(e.guest[0], seq, seq + MANY, FRAME_LEN);
        flush_to_guest(&e, seq + MANY);
    }
    assert_silent(&e, e.chr[0]);
    assert_activity_fixed(&e, "enable_when_running");
    assert_activity_fixed(&e, "enable_when_stopped");
    switchover_stop(&e);
}

/* The messages have an empty vnet header: the guest's NIC knows of none */
static void switchover_expect(int fd, bool vnet, uint32_t begin, uint32_t end,
                              size_t len)
{
    for (; begin < end; begin++) {
        if (vnet) {
            struct virtio_net_hdr hdr;
            size_t hdr_len, got;
            g_autofree uint8_t *buf = wire_recv_vnet(fd, &hdr, &hdr_len, &got);

            g_assert_cmpint(hdr_len, ==, VNET_HDR_LEN);
            g_assert_true(buffer_is_zero(&hdr, sizeof(hdr)));
            assert_frame(buf + hdr_len, got, begin, len);
        } else {
            wire_expect(fd, begin, len);
        }
    }
}

typedef struct Switchover {
    const char *name;
    const char *in_netdev;
    bool vnet;
} Switchover;

static const Switchover switchovers[] = {
    { "copy", "in_netdev=n0,", false },
    { "copy-vnet", "in_netdev=n0,", true },
    { "no-copy", "", false },
    { "no-copy-vnet", "", true },
};

/* Frames from the stop of the VM on are the destination's, before is before */
static void test_complete(const void *opaque)
{
    const Switchover *s = opaque;
    Env e;

    switchover_start(&e, s->in_netdev, "c0",
                     s->vnet ? ",vnet_hdr_support=on" : "");
    host_send_range(&e.tap[0], 10, 10 + MANY, FRAME_LEN);
    wire_expect_range(e.guest[0], 10, 10 + MANY, FRAME_LEN);

    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 1000, 1000 + MANY, FRAME_LEN);
    switchover_expect(e.chr[0], s->vnet, 1000, 1000 + MANY, FRAME_LEN);
    assert_silent(&e, e.chr[0]);
    host_send_range(&e.tap[0], 1000 + MANY, 1000 + 2 * MANY, 64);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    host_send_range(&e.tap[0], 1000 + 2 * MANY, 1000 + 3 * MANY, 64);
    switchover_expect(e.chr[0], s->vnet, 1000 + MANY, 1000 + 3 * MANY, 64);

    /* For as long as this QEMU is there */
    for (uint32_t seq = 3000; seq < 3010; seq++) {
        host_send(&e.tap[0], seq, FRAME_LEN);
        switchover_expect(e.chr[0], s->vnet, seq, seq + 1, FRAME_LEN);
    }
    assert_silent(&e, e.chr[0]);
    assert_silent(&e, e.guest[0]);
    assert_idle(&e);

    /* The VM is to run here all the same: with what comes now */
    vm_run(&e, true);
    flush_to_guest(&e, 4000);
    assert_silent(&e, e.chr[0]);
    switchover_stop(&e);
}

/*
 * The migration fails after the VM was stopped: the guest gets all, whether it
 * has been sent to outdev or not.  The next migration sends only what is new,
 * in step, though the peer has read nothing up to then.  Frames are long, so
 * that its socket ends up with a part of one.
 */
static void test_cancel(const void *opaque)
{
    const Switchover *s = opaque;
    uint32_t seq = 1000;
    uint32_t next = 1000;
    uint8_t *buf;
    size_t len;
    Env e;

    switchover_start(&e, s->in_netdev, "c0", "");
    if_set_mtu(e.tap[0].name, 9000);
    for (int i = 0; i < 3; i++) {
        uint64_t taken = if_tx_packets(e.tap[0].name);

        migrate_to_pause(&e, migration_file);
        host_send_range(&e.tap[0], seq, seq + MANY, BIG_LEN);
        patience_begin();
        while (if_tx_packets(e.tap[0].name) < taken + MANY) {
            patience_check();
            vm_answers(&e);
        }
        /* It is sent to after it had time to say HELLO, and did not */
        wait_fd(e.chr[0], POLLIN);
        migrate_cancel(&e);
        wire_expect_range(e.guest[0], seq, seq + MANY, BIG_LEN);
        flush_to_guest(&e, seq + MANY);
        seq += 1000;
    }

    /* What the socket had room for went there, and nothing since */
    while (readable(e.chr[0])) {
        buf = wire_recv(e.chr[0], &len);
        assert_frame(buf, len, next++, BIG_LEN);
        g_free(buf);
    }
    g_test_message("the socket had room for %u", next - 1000);
    g_assert_cmpint(next, >, 1000);
    g_assert_cmpint(next, <, 1000 + MANY);

    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], seq, seq + MANY, BIG_LEN);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    host_send_range(&e.tap[0], seq + MANY, seq + 2 * MANY, BIG_LEN);
    wire_expect_range(e.chr[0], seq, seq + 2 * MANY, BIG_LEN);
    assert_silent(&e, e.chr[0]);
    assert_silent(&e, e.guest[0]);
    switchover_stop(&e);
}

/*
 * The same while frames come all the time: those that QEMU has not read when
 * the VM runs again are behind those that it gives back
 */
static void test_cancel_busy(const void *opaque)
{
    Env e;

    switchover_start(&e, opaque, "c0", "");
    for (uint32_t seq = 1000; seq <= 5000; seq += 1000) {
        migrate_to_pause(&e, migration_file);
        host_send_range(&e.tap[0], seq, seq + 100, FRAME_LEN);
        vm_answers(&e);
        vm_stall(&e, true);
        host_send_range(&e.tap[0], seq + 100, seq + 800, FRAME_LEN);
        migrate_cancel_send(&e);
        vm_stall(&e, false);
        migrate_cancel_wait(&e);
        wire_expect_range(e.guest[0], seq, seq + 800, FRAME_LEN);
    }
    switchover_stop(&e);
}

/* Without in_netdev there is nothing to open, or to have a privilege for */
static void test_unprivileged(void)
{
    int before;
    Env e;

    /* One will be the test's own, to send from */
    before = count_packet_sockets() + 1;
    env_start_unprivileged(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
                           "outdev=c0" ONLY_STOPPED);
    migrate_pause(&e);
    flush_to_guest(&e, 0);
    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 10, 20, FRAME_LEN);
    wire_expect_range(e.chr[0], 10, 20, FRAME_LEN);
    g_assert_cmpint(count_packet_sockets(), ==, before);
    migrate_cancel(&e);
    wire_expect_range(e.guest[0], 10, 20, FRAME_LEN);

    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 20, 30, FRAME_LEN);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    wire_expect_range(e.chr[0], 20, 30, FRAME_LEN);
    g_assert_cmpint(count_packet_sockets(), ==, before);
    switchover_stop(&e);
}

/* A peer that never came costs nothing; one that comes later gets all */
static void test_no_peer(const void *opaque)
{
    Env e;
    int fd;

    switchover_start(&e, opaque, "s0", "");
    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 1000, 1000 + MANY, 1400);
    vm_answers(&e);
    migrate_cancel(&e);
    wire_expect_range(e.guest[0], 1000, 1000 + MANY, 1400);
    flush_to_guest(&e, 1000 + MANY);

    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 2000, 2000 + MANY, 1400);
    vm_answers(&e);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    host_send_range(&e.tap[0], 2000 + MANY, 2000 + 2 * MANY, 1400);
    assert_idle(&e);
    fd = listener_connect(&e);
    wire_expect_range(fd, 2000, 2000 + 2 * MANY, 1400);
    assert_silent(&e, fd);
    close(fd);
    switchover_stop(&e);
}

/*
 * One warning each: the connection ends while it carries the VM's frames, not
 * before; and the migration ends before all have been taken
 */
static void test_warnings(void)
{
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", path);
    g_autofree char *text = NULL;
    Env e;
    int fd;

    env_start(&e, 1, options);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=s0" ONLY_STOPPED);
    migrate_pause(&e);
    flush_to_guest(&e, 0);
    vm_run(&e, false);
    fd = listener_connect(&e);
    vm_answers(&e);
    vm_run(&e, true);
    close(fd);
    vm_answers(&e);

    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 100, 110, FRAME_LEN);
    vm_answers(&e);
    fd = listener_connect(&e);
    wire_expect_range(fd, 100, 110, FRAME_LEN);
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_null(strstr(text, "connection ended"));
    close(fd);
    wait_warned_once(&e, path, "the destination's connection ended");

    host_send_range(&e.tap[0], 110, 120, FRAME_LEN);
    patience_begin();
    while (filter_stat(&e, "f0", "switchover", "read") < 20) {
        patience_check();
    }
    migrate_continue(&e);
    wait_migration(&e, "completed");
    wait_warned_once(&e, path, "the destination has not yet taken 10 frames");
    switchover_stop(&e);
    unlink(path);
}

/* QEMU does not wait for a peer that does not read */
static void test_slow_peer(const void *opaque)
{
    uint64_t taken;
    Env e;

    switchover_start(&e, opaque, "c0", ",hold_limit=1048576");
    taken = if_tx_packets(e.tap[0].name);
    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 1000, 1000 + 2 * MANY, 1400);
    vm_answers(&e);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    host_send_range(&e.tap[0], 1000 + 2 * MANY, 1000 + 3 * MANY, 1400);
    assert_idle(&e);
    g_assert_cmpint(if_tx_packets(e.tap[0].name), <, taken + 3 * MANY);
    g_assert_cmpint(if_tx_dropped(e.tap[0].name), ==, 0);
    wire_expect_range(e.chr[0], 1000, 1000 + 3 * MANY, 1400);
    assert_silent(&e, e.chr[0]);
    assert_silent(&e, e.guest[0]);

    /* What the TAP's queue has no room for is counted, now as before */
    for (uint32_t seq = 2000; !if_tx_dropped(e.tap[0].name); seq++) {
        g_assert_cmpint(seq, <, 12000);
        host_send(&e.tap[0], seq, 1400);
    }
    vm_answers(&e);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "queue-full"),
                    ==, if_tx_dropped(e.tap[0].name));
    switchover_stop(&e);
}

/* A peer that reads while the migration ends has all before that is told */
static gpointer slow_reader(gpointer opaque)
{
    int *fd = opaque;

    for (uint32_t seq = 1000; seq < 1000 + MANY; seq++) {
        wire_expect(*fd, seq, BIG_LEN);
        /* Its pace: much slower than a migration that does not wait */
        g_usleep(1000);
    }
    return NULL;
}

static void test_drain(const void *opaque)
{
    GThread *thread;
    Env e;

    switchover_start(&e, opaque, "c0", ",drain_timeout=10000");
    if_set_mtu(e.tap[0].name, 9000);
    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 1000, 1000 + MANY, BIG_LEN);
    vm_answers(&e);
    thread = g_thread_new("reader", slow_reader, &e.chr[0]);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    /* As good as dead */
    vm_stall(&e, true);
    g_thread_join(thread);
    g_assert_false(readable(e.chr[0]));
    vm_stall(&e, false);
    assert_silent(&e, e.chr[0]);
    switchover_stop(&e);
}

/*
 * No more copies than hold_limit, and what QEMU reads in one go: the others
 * wait in the TAP, for the guest or for the destination
 */
static void test_hold_limit(void)
{
    const uint64_t limit = 65536;
    uint64_t taken;
    Env e;

    switchover_start(&e, "in_netdev=n0,", "c0", ",hold_limit=65536");
    taken = if_tx_packets(e.tap[0].name) + limit / 1400 + 100;
    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 1000, 1000 + MANY, 1400);
    wire_expect_range(e.chr[0], 1000, 1000 + limit / 1500, 1400);
    vm_answers(&e);
    g_assert_cmpint(if_tx_packets(e.tap[0].name), <, taken);
    while (readable(e.chr[0])) {
        size_t len;

        g_free(wire_recv(e.chr[0], &len));
    }
    assert_idle(&e);
    migrate_cancel(&e);
    wire_expect_range(e.guest[0], 1000, 1000 + MANY, 1400);
    flush_to_guest(&e, 1000 + MANY);

    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 2000, 2000 + MANY, 1400);
    wire_expect_range(e.chr[0], 2000, 2000 + limit / 1500, 1400);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    wire_expect_range(e.chr[0], 2000 + limit / 1500, 2000 + MANY, 1400);
    host_send_range(&e.tap[0], 3000, 3000 + MANY, 1400);
    wire_expect_range(e.chr[0], 3000, 3000 + MANY, 1400);
    assert_silent(&e, e.chr[0]);
    switchover_stop(&e);
}

/* The filter is off for a while, or goes, in the stopped VM */
static void test_off(const void *opaque)
{
    uint64_t taken;
    Env e;

    switchover_start(&e, opaque, "c0", "");
    taken = if_tx_packets(e.tap[0].name);
    vm_run(&e, false);
    host_send_range(&e.tap[0], 1000, 1010, FRAME_LEN);
    vm_answers(&e);
    g_assert_cmpint(if_tx_packets(e.tap[0].name), ==, taken);
    filter_set_status(&e, "f0", false);
    host_send_range(&e.tap[0], 1010, 1020, FRAME_LEN);
    /* QEMU has one, as without the filter */
    patience_begin();
    while (if_tx_packets(e.tap[0].name) == taken) {
        patience_check();
        vm_answers(&e);
    }
    filter_set_status(&e, "f0", true);
    host_send_range(&e.tap[0], 1020, 1030, FRAME_LEN);
    vm_answers(&e);
    vm_run(&e, true);
    wire_expect_range(e.guest[0], 1000, 1030, FRAME_LEN);

    /* What has been copied goes with the filter; the rest is the guest's */
    migrate_to_pause(&e, migration_file);
    host_send_range(&e.tap[0], 2000, 2000 + MANY, FRAME_LEN);
    wire_expect_range(e.chr[0], 2000, 2000 + MANY, FRAME_LEN);
    /* It is not sent again */
    filter_set_status(&e, "f0", false);
    filter_set_status(&e, "f0", true);
    assert_silent(&e, e.chr[0]);
    filter_del(&e, "f0");
    host_send_range(&e.tap[0], 3000, 3000 + MANY, FRAME_LEN);
    vm_answers(&e);
    migrate_cancel(&e);
    wire_expect_range(e.guest[0], 3000, 3000 + MANY, FRAME_LEN);
    flush_to_guest(&e, 3000 + MANY);
    assert_silent(&e, e.chr[0]);
    switchover_stop(&e);
}

static void test_two(void)
{
    Env e;

    env_start(&e, 2, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
    filter_add(&e, "f1", "netdev=n1,in_netdev=n1,outdev=c1" ONLY_STOPPED);
    migrate_pause(&e);
    for (int turn = 0; turn < 2; turn++) {
        uint32_t seq = turn * 10000;

        for (int i = 0; i < 2; i++) {
            host_send_range(&e.tap[i], seq, seq + 10, FRAME_LEN + i);
            wire_expect_range(e.guest[i], seq, seq + 10, FRAME_LEN + i);
        }
        migrate_to_pause(&e, migration_file);
        for (uint32_t n = seq + 1000; n < seq + 1000 + MANY; n++) {
            host_send(&e.tap[0], n, FRAME_LEN);
            host_send(&e.tap[1], n, FRAME_LEN + 1);
        }
        for (int i = 0; i < 2; i++) {
            wire_expect_range(e.chr[i], seq + 1000, seq + 1000 + MANY,
                              FRAME_LEN + i);
        }
        if (turn == 0) {
            migrate_cancel(&e);
            for (int i = 0; i < 2; i++) {
                wire_expect_range(e.guest[i], seq + 1000, seq + 1000 + MANY,
                                  FRAME_LEN + i);
            }
        }
    }
    migrate_continue(&e);
    wait_migration(&e, "completed");
    for (int i = 0; i < 2; i++) {
        host_send_range(&e.tap[i], 20000, 20010, FRAME_LEN + i);
        wire_expect_range(e.chr[i], 20000, 20010, FRAME_LEN + i);
        assert_silent(&e, e.guest[i]);
    }
    switchover_stop(&e);
}

/* The next QEMU on a way of many, with both filters */
static void hop_start(Env *e, Tap *tap, int hop)
{
    g_autofree char *out =
        g_strdup_printf("-chardev socket,id=out,path=%s/m%d,server=on,wait=off "
                        "-object filter-redirector,id=out0,netdev=n0,"
                        "in_netdev=n0,outdev=out" ONLY_STOPPED, tmpdir, hop);
    g_autofree char *in =
        g_strdup_printf("-incoming unix:%s/migration "
                        "-chardev socket,id=in,path=%s/m%d "
                        "-object filter-redirector,id=in0,netdev=n0,"
                        "indev=in,out_netdev=n0", tmpdir, tmpdir, hop - 1);
    g_autofree char *options = g_strdup_printf("%s %s", out, hop ? in : "");

    env_init(e);
    pstrcpy(e->tap[0].name, sizeof(e->tap[0].name), tap->name);
    e->tap[0].fd = dup(tap->fd);
    e->tap[0].host = fcntl(tap->host, F_DUPFD_CLOEXEC, 0);
    env_start_full(e, 1, true, "none", options);
    migrate_pause(e);
}

/* The first two of them, each with a TAP */
static void pair_start(Env *from, Env *to, Tap *tap)
{
    tap_open(&tap[0], "qtap0");
    tap_open(&tap[1], "qtap1");
    hop_start(from, &tap[0], 0);
    hop_start(to, &tap[1], 1);
}

static void pair_stop(Env *from, Env *to, Tap *tap, const char *uri)
{
    g_autofree char *path = g_strdup_printf("%s/m0", tmpdir);

    env_stop(from);
    env_stop(to);
    tap_close(&tap[0]);
    tap_close(&tap[1]);
    unlink(path);
    unlink(strchr(uri, ':') + 1);
}

/*
 * There and back many times.  The network sends to the old place until it has
 * learnt of the new one, all the time; the guest gets everything.
 */
static void test_ping_pong(void)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", tmpdir);
    uint32_t seq = 0;
    Tap tap[2];
    Env e[2];
    int hop;

    tap_open(&tap[0], "qtap0");
    tap_open(&tap[1], "qtap1");
    hop_start(&e[0], &tap[0], 0);
    for (hop = 0; hop < 20; hop++) {
        g_autofree char *path = g_strdup_printf("%s/m%d", tmpdir, hop);
        Env *from = &e[hop % 2];
        Env *to = &e[(hop + 1) % 2];

        hop_start(to, &tap[(hop + 1) % 2], hop + 1);
        flush_to_guest(from, seq);
        seq += 10;
        migrate_to_pause(from, uri);
        host_send_range(&from->tap[0], seq, seq + 100, FRAME_LEN);
        migrate_continue(from);
        host_send_range(&from->tap[0], seq + 100, seq + 200, FRAME_LEN);
        qtest_qmp_eventwait(to->qts, "RESUME");
        host_send_range(&from->tap[0], seq + 200, seq + 250, FRAME_LEN);
        wire_expect_range(to->guest[0], seq, seq + 250, FRAME_LEN);
        seq += 250;
        wait_migration(from, "completed");
        flush_to_guest(to, seq);
        seq += 10;
        assert_silent(from, from->guest[0]);
        env_stop(from);
        unlink(path);
    }
    assert_silent(&e[hop % 2], e[hop % 2].guest[0]);
    env_stop(&e[hop % 2]);
    tap_close(&tap[0]);
    tap_close(&tap[1]);
    unlink(strchr(uri, ':') + 1);
}

/* What the network sends to all, and so to both hosts */
static void flood(Env *e, uint32_t seq)
{
    uint8_t frame[FRAME_LEN];

    frame_fill(frame, seq, FRAME_LEN);
    memset(frame, 0xff, ETH_ALEN);
    g_assert_cmpint(send(e->tap[0].host, frame, FRAME_LEN, 0), ==, FRAME_LEN);
}

static void flood_expect(Env *e, uint32_t seq)
{
    g_autofree uint8_t *frame = NULL;
    size_t len;

    frame = wire_recv(e->guest[0], &len);
    g_assert_cmpint(frame[0], ==, 0xff);
    memcpy(frame, mac_guest, ETH_ALEN);
    assert_frame(frame, len, seq, FRAME_LEN);
}

/* The guest gets what is sent to all once: from where it runs, or stopped */
static void test_flooded(void)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", tmpdir);
    uint64_t flooded;
    Env from, to;
    Tap tap[2];

    pair_start(&from, &to, tap);
    flush_to_guest(&from, 0);
    for (uint32_t seq = 100; seq < 120; seq++) {
        flood(&to, seq);
        flood(&from, seq);
        flood_expect(&from, seq);
    }
    migrate_to_pause(&from, uri);
    for (uint32_t seq = 200; seq < 220; seq++) {
        flood(&to, seq);
        flood(&from, seq);
    }
    migrate_continue(&from);
    wait_migration(&from, "completed");
    qtest_qmp_eventwait(to.qts, "RESUME");
    for (uint32_t seq = 200; seq < 220; seq++) {
        flood_expect(&to, seq);
    }
    flood(&to, 300);
    flood_expect(&to, 300);
    assert_silent(&to, to.guest[0]);

    /* As long as the source lives, from the moment of the announcement */
    flooded = filter_stat(&to, "in0", NULL, "flooded");
    patience_begin();
    while (filter_stat(&to, "in0", NULL, "flooded") == flooded) {
        patience_check();
        flood(&from, 301);
    }
    vm_answers(&to);
    while (readable(to.guest[0])) {
        flood_expect(&to, 301);
    }
    for (uint32_t seq = 400; seq < 420; seq++) {
        flood(&from, seq);
        flood(&to, seq);
        flood_expect(&to, seq);
    }
    host_send(&from.tap[0], 420, FRAME_LEN);
    wire_expect(to.guest[0], 420, FRAME_LEN);
    assert_silent(&to, to.guest[0]);
    assert_silent(&from, from.guest[0]);
    pair_stop(&from, &to, tap, uri);
}

/* Nothing is injected where the VM does not come to run */
static void test_cancel_destination(void)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", tmpdir);
    Env from, to;
    Tap tap[2];

    pair_start(&from, &to, tap);
    flush_to_guest(&from, 0);
    migrate_to_pause(&from, uri);
    host_send_range(&from.tap[0], 100, 100 + MANY, FRAME_LEN);
    patience_begin();
    while (filter_stat(&to, "in0", "held", "packets") < MANY) {
        patience_check();
    }
    qtest_set_expected_status(to.qts, EXIT_FAILURE);
    migrate_cancel(&from);
    wire_expect_range(from.guest[0], 100, 100 + MANY, FRAME_LEN);
    flush_to_guest(&from, 1000);
    qtest_wait_qemu(to.qts);
    g_assert_cmpint(if_tx_packets(tap[1].name), ==, 0);
    assert_silent(&from, from.guest[0]);
    pair_stop(&from, &to, tap, uri);
}

/* A stopped VM that is migrated on, before it ever ran here */
static void test_paused_on(void)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", tmpdir);
    g_autofree char *path = g_strdup_printf("%s/m1", tmpdir);
    Env from, to;
    Tap tap[2];
    int fd;

    pair_start(&from, &to, tap);
    to.listen = path;
    flush_to_guest(&from, 0);
    vm_run(&from, false);
    migration_start(&from, uri);
    wait_migration(&from, "pre-switchover");
    migrate_continue(&from);
    wait_migration(&from, "completed");
    wait_migration(&to, "completed");

    fd = listener_connect(&to);
    migration_start(&to, migration_file);
    wait_migration(&to, "pre-switchover");
    host_send_range(&to.tap[0], 100, 100 + MANY, FRAME_LEN);
    migrate_continue(&to);
    wait_migration(&to, "completed");
    wire_expect_range(fd, 100, 100 + MANY, FRAME_LEN);
    host_send_range(&to.tap[0], 1000, 1000 + MANY, FRAME_LEN);
    wire_expect_range(fd, 1000, 1000 + MANY, FRAME_LEN);
    assert_silent(&to, fd);
    close(fd);
    to.listen = NULL;
    pair_stop(&from, &to, tap, uri);
    unlink(path);
    unlink(strchr(migration_file, ':') + 1);
}

/* What a capture in front of it copies has gone its own way */
static void test_capture(void)
{
    uint32_t next;
    size_t len;
    Env e;

    switchover_start(&e, "in_netdev=n0,", "c0", "");
    filter_add(&e, "cap", "netdev=n0,in_netdev=n0,enable_when_stopped=on,"
               "position=head");
    for (uint32_t seq = 1000; seq <= 3000; seq += 1000) {
        g_autofree uint8_t *frame = NULL;

        host_send_range(&e.tap[0], seq, seq + MANY, FRAME_LEN);
        migrate_to_pause(&e, migration_file);
        host_send_range(&e.tap[0], seq + MANY, seq + 2 * MANY, FRAME_LEN);
        /* The first that the guest has not had */
        frame = wire_recv(e.chr[0], &len);
        next = ldl_be_p(frame + SEQ_OFFSET);
        assert_frame(frame, len, next, FRAME_LEN);
        g_assert_cmpint(next, <=, seq + MANY);
        wire_expect_range(e.chr[0], next + 1, seq + 2 * MANY, FRAME_LEN);
        assert_silent(&e, e.chr[0]);
        migrate_cancel(&e);
        wire_expect_range(e.guest[0], seq, seq + 2 * MANY, FRAME_LEN);
        assert_silent(&e, e.guest[0]);
    }
    switchover_stop(&e);
}

/* A filter that is made in the middle of the migration */
static void test_late(const void *opaque)
{
    g_autofree char *props = g_strdup_printf("netdev=n0,%soutdev=c0"
                                             ONLY_STOPPED, (char *)opaque);
    Env e;

    env_start(&e, 1, "");
    migrate_pause(&e);
    flush_to_guest(&e, 0);
    migrate_to_pause(&e, migration_file);
    filter_add(&e, "f0", props);
    host_send_range(&e.tap[0], 100, 100 + MANY, FRAME_LEN);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    wire_expect_range(e.chr[0], 100, 100 + MANY, FRAME_LEN);
    switchover_stop(&e);
}

/* Memory of QEMU in KiB */
static long vm_rss(Env *e)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            qtest_pid(e->qts));
    g_autofree char *text = NULL;
    char *line;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    line = strstr(text, "VmRSS:");
    g_assert_nonnull(line);
    return g_ascii_strtoll(line + strlen("VmRSS:"), NULL, 10);
}

/* A VM that is to migrate and does not, again and again */
static void test_leak(void)
{
    uint32_t seq = 10;
    int fds = 0;
    long rss = 0;
    Env e;

    switchover_start(&e, "in_netdev=n0,", "c0", "");
    for (int i = 0; i < 100; i++) {
        migrate_to_pause(&e, migration_file);
        host_send_range(&e.tap[0], seq, seq + MANY, 1400);
        wire_expect_range(e.chr[0], seq, seq + MANY, 1400);
        migrate_cancel(&e);
        wire_expect_range(e.guest[0], seq, seq + MANY, 1400);
        seq += MANY;
        if (i == 9) {
            fds = count_fds(&e);
            rss = vm_rss(&e);
        }
    }
    wait_fds(&e, fds);
    g_test_message("%ld KiB, then %ld", rss, vm_rss(&e));
    /* One turn's frames have 400 KiB */
    g_assert_cmpint(vm_rss(&e), <, rss + 2048);
    switchover_stop(&e);
}

/* What happens in which order */

#define PAGE 4096

/* A source in the middle of its last bytes */
typedef struct Stream {
    Env e;
    int fd[2];                  /* a pipe for them */
    bool answered;              /* has QEMU, that it goes on? */
    uint64_t taken;             /* frames that QEMU took before */
} Stream;

/* Wait for an event of capability "events", while QEMU may not answer */
static void stream_wait_event(Stream *s, const char *status)
{
    g_autofree char *now = NULL;

    do {
        QDict *msg = qtest_qmp_event_ref(s->e.qts, "MIGRATION") ?:
                     qtest_qmp_receive_dict(s->e.qts);

        g_assert_false(qdict_haskey(msg, "error"));
        s->answered |= qdict_haskey(msg, "return");
        if (!g_strcmp0(qdict_get_try_str(msg, "event"), "MIGRATION")) {
            g_free(now);
            now = g_strdup(qdict_get_str(qdict_get_qdict(msg, "data"),
                                         "status"));
            g_assert_cmpstr(now, !=, "failed");
        }
        qobject_unref(msg);
    } while (g_strcmp0(now, status));
}

static void stream_start(Stream *s, const char *in_netdev, bool paused)
{
    Env *e = &s->e;
    int *fd = s->fd;
    g_autofree char *filter =
        g_strdup_printf("-object filter-redirector,id=f0,netdev=n0,%soutdev=c0"
                        ONLY_STOPPED, in_netdev);
    char page[PAGE];

    env_init(e);
    env_start_virtio_net(e, filter);
    migrate_capability(e, "events");
    migrate_pause(e);

    /* There is room for all up to the pause */
    g_assert_true(g_unix_open_pipe(fd, FD_CLOEXEC, NULL));
    g_assert_cmpint(fcntl(fd[1], F_SETPIPE_SZ, 1 * MiB), >=, 1 * MiB);
    send_fd(e, fd[1], "stream");
    if (paused) {
        vm_run(e, false);
    }
    migration_start(e, "fd:stream");
    wait_migration(e, "pre-switchover");
    while (readable(fd[0])) {
        g_assert_cmpint(read(fd[0], page, PAGE), >, 0);
    }
    g_assert_cmpint(fcntl(fd[1], F_SETPIPE_SZ, PAGE), ==, PAGE);

    /* The answer may have to wait until QEMU has got rid of its bytes */
    qtest_qmp_send(e->qts, "{ 'execute': 'migrate-continue',"
                   " 'arguments': { 'state': 'pre-switchover' } }");
    s->answered = false;
    stream_wait_event(s, "device");
    s->taken = if_tx_packets(e->tap[0].name);
}

static void stream_stop(Stream *s)
{
    if (!s->answered) {
        assert_success(qtest_qmp_receive(s->e.qts));
    }
    wait_migration(&s->e, "completed");
    assert_silent(&s->e, s->e.chr[0]);
    close(s->fd[0]);
    switchover_stop(&s->e);
}

/*
 * Until there is something for the peer, read a page of the stream each time
 * that QEMU stands still
 */
static void stream_wait_frame(Stream *s)
{
    char page[PAGE];

    patience_begin();
    for (;;) {
        struct pollfd full = { .fd = s->fd[1], .events = POLLOUT };
        /* In this order: a frame leaves before the page that comes after it */
        bool stands_still = RETRY_ON_EINTR(poll(&full, 1, 0)) == 0;

        if (readable(s->e.chr[0])) {
            return;
        }
        patience_check();
        /* Once the reader has frames, they come, and the state can wait */
        if (stands_still && if_tx_packets(s->e.tap[0].name) == s->taken) {
            g_assert_cmpint(read(s->fd[0], page, PAGE), >, 0);
        }
        /* A pace that leaves the reader some time, which rests for 1 ms */
        g_usleep(2000);
    }
}

/*
 * The destination starts its VM when it has the last bytes of the stream.  All
 * frames that have come by then are on their way before.
 */
static void test_saved(void)
{
    size_t rest = 0;
    char page[PAGE];
    ssize_t n;
    Stream s;

    if (skip_virtio_net()) {
        return;
    }
    stream_start(&s, "in_netdev=n0,", false);
    host_send_range(&s.e.tap[0], 1000, 1000 + MANY, FRAME_LEN);
    /* QEMU stands still: nothing reads its stream */
    wire_expect_range(s.e.chr[0], 1000, 1000 + MANY, FRAME_LEN);
    close(s.fd[1]);
    while ((n = RETRY_ON_EINTR(read(s.fd[0], page, PAGE))) > 0) {
        rest += n;
    }
    g_assert_cmpint(n, ==, 0);
    g_test_message("%zu bytes came after the frames", rest);
    /* More than QEMU gets rid of without anybody who reads */
    g_assert_cmpint(rest, >, PAGE);
    stream_stop(&s);
}

/* One CPU for all threads of a process, 0 for the test, and back again */
static void set_cpu(pid_t pid, bool one)
{
    static cpu_set_t before;
    g_autofree char *path = g_strdup_printf("/proc/%d/task",
                                            pid ? pid : getpid());
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *thread;
    cpu_set_t set;

    if (!CPU_COUNT(&before)) {
        g_assert_cmpint(sched_getaffinity(0, sizeof(before), &before), ==, 0);
    }
    set = before;
    for (int i = 0; one && i < CPU_SETSIZE; i++) {
        if (CPU_COUNT(&set) > 1) {
            CPU_CLR(i, &set);
        }
    }
    while ((thread = g_dir_read_name(dir))) {
        g_assert_cmpint(sched_setaffinity(atoi(thread), sizeof(set), &set),
                        ==, 0);
    }
}

static void set_scheduler(pid_t thread, int policy, int priority)
{
    struct sched_param param = { .sched_priority = priority };

    /* Best effort: without it a fault may remain unseen */
    if (sched_setscheduler(thread, policy, &param) < 0) {
        g_test_message("sched_setscheduler: %s", strerror(errno));
    }
}

/*
 * The worst host: QEMU's main loop gets no CPU while the migration's thread can
 * use it, and neither does when it has told the test something
 */
static void starve(Env *e, bool on)
{
    pid_t pid = qtest_pid(e->qts);

    set_cpu(pid, on);
    set_cpu(0, on);
    set_scheduler(pid, on ? SCHED_IDLE : SCHED_OTHER, 0);
    set_scheduler(0, on ? SCHED_FIFO : SCHED_OTHER, on);
}

/*
 * When the migration is said to be complete the source may be killed, and what
 * it has written is all that the destination will ever get
 */
static void test_completing(const void *opaque)
{
    const char *in_netdev = opaque;
    uint32_t seq = 1000;
    Stream s;

    if (skip_virtio_net()) {
        return;
    }
    stream_start(&s, in_netdev, false);
    if (in_netdev[0]) {
        /* Past the moment of test_saved() */
        host_send(&s.e.tap[0], seq, FRAME_LEN);
        stream_wait_frame(&s);
        wire_expect(s.e.chr[0], seq++, FRAME_LEN);
    }
    host_send_range(&s.e.tap[0], seq, seq + MANY, FRAME_LEN);
    starve(&s.e, true);
    g_assert_cmpint(fcntl(s.fd[1], F_SETPIPE_SZ, 1 * MiB), >=, 1 * MiB);
    stream_wait_event(&s, "completed");
    /* As good as dead */
    vm_stall(&s.e, true);
    starve(&s.e, false);
    for (uint32_t end = seq + MANY; seq < end; seq++) {
        g_assert_true(readable(s.e.chr[0]));
        wire_expect(s.e.chr[0], seq, FRAME_LEN);
    }
    g_assert_false(readable(s.e.chr[0]));
    vm_stall(&s.e, false);
    close(s.fd[1]);
    stream_stop(&s);
}

/*
 * A paused VM stays so when its migration fails at the very end.  The next
 * destination gets all of its frames, once, though the first has not read what
 * was for it.
 */
static void test_paused_again(void)
{
    uint32_t first = 1000;
    size_t len;
    Stream s;

    if (skip_virtio_net()) {
        return;
    }
    stream_start(&s, "in_netdev=n0,", true);
    if_set_mtu(s.e.tap[0].name, 9000);
    host_send_range(&s.e.tap[0], 1000, 1000 + MANY, BIG_LEN);
    stream_wait_frame(&s);
    close(s.fd[0]);
    close(s.fd[1]);
    if (!s.answered) {
        assert_success(qtest_qmp_receive(s.e.qts));
    }
    wait_migration(&s.e, "failed");

    migration_start(&s.e, migration_file);
    wait_migration(&s.e, "pre-switchover");
    migrate_continue(&s.e);
    wait_migration(&s.e, "completed");
    for (uint32_t seq = 1000; seq < 1000 + MANY;) {
        g_autofree uint8_t *frame = wire_recv(s.e.chr[0], &len);

        if (seq > 1000 && ldl_be_p(frame + SEQ_OFFSET) == 1000) {
            g_assert_cmpint(first, ==, 1000);
            first = seq;
            seq = 1000;
        }
        assert_frame(frame, len, seq++, BIG_LEN);
    }
    g_test_message("the first destination got %u", first - 1000);
    g_assert_cmpint(first, >, 1000);
    assert_silent(&s.e, s.e.chr[0]);
    switchover_stop(&s.e);
}


/* From one QEMU to another */

typedef struct Transfer {
    const char *name;
    const char *in_netdev;
    const char *caps[2];
    bool postcopy;
    bool paused;                /* the VM is stopped before and after */
} Transfer;

static const Transfer transfers[] = {
    { "multifd/copy", "in_netdev=n0,", { "return-path", "multifd" } },
    { "multifd/no-copy", "", { "return-path", "multifd" } },
    { "postcopy/copy", "in_netdev=n0,", { "postcopy-ram" }, .postcopy = true },
    { "postcopy/no-copy", "", { "postcopy-ram" }, .postcopy = true },
    { "paused/copy", "in_netdev=n0,", { "return-path" }, .paused = true },
    { "paused/no-copy", "", { "return-path" }, .paused = true },
};

static bool skip_pc(void)
{
    bool skip = !qtest_has_machine("pc");

    if (skip) {
        g_test_skip("no pc");
    }
    return skip;
}

/* Memory that is not zero, so that there is something to do */
#define RAM_BEGIN (1 * MiB)
#define RAM_SIZE (8 * MiB)

/* What the host has for userfaultfd is not known before QEMU has tried */
static bool transfer_capability(Env *e, const char *name)
{
    QDict *resp = qtest_qmp(e->qts, "{ 'execute':"
        " 'migrate-set-capabilities', 'arguments': { 'capabilities': ["
        " { 'capability': %s, 'state': true } ] } }", name);
    g_autofree char *desc = NULL;

    if (qdict_haskey(resp, "return")) {
        qobject_unref(resp);
        return true;
    }
    desc = error_desc(resp);
    g_assert_cmpstr(name, ==, "postcopy-ram");
    g_test_skip(desc);
    return false;
}

/* Returns false, with neither of them started, if the test is to be skipped */
static bool transfer_start(const Transfer *t, const char *uri, Env *from,
                           Env *to)
{
    g_autofree char *incoming =
        g_strdup_printf("-incoming defer "
                        "-chardev socket,id=m0,path=%s/m0,server=on,wait=off "
                        "-object filter-redirector,id=f0,netdev=n0,"
                        "indev=m0,out_netdev=n0", tmpdir);
    g_autofree char *outgoing =
        g_strdup_printf("-chardev socket,id=m0,path=%s/m0 "
                        "-object filter-redirector,id=f0,netdev=n0,%soutdev=m0"
                        ONLY_STOPPED, tmpdir, t->in_netdev);

    if (skip_pc()) {
        return false;
    }
    env_init(to);
    tap_open(&to->tap[0], "qtap2");
    env_start_pc(to, true, incoming);
    for (int i = 0; i < ARRAY_SIZE(t->caps) && t->caps[i]; i++) {
        if (!transfer_capability(to, t->caps[i])) {
            env_stop(to);
            return false;
        }
    }
    qtest_qmp_assert_success(to->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);

    env_init(from);
    env_start_pc(from, true, outgoing);
    migrate_pause(from);
    for (int i = 0; i < ARRAY_SIZE(t->caps) && t->caps[i]; i++) {
        migrate_capability(from, t->caps[i]);
    }
    qtest_memset(from->qts, RAM_BEGIN, 0x5a, RAM_SIZE);
    return true;
}

static void migrate_bandwidth(Env *e, const char *name, uint64_t bytes)
{
    QDict *args = qdict_new();

    qdict_put_int(args, name, bytes);
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': %p }", args);
}

static void assert_run_state(Env *e, const char *state)
{
    QDict *resp = qtest_qmp_assert_success_ref(e->qts, "{ 'execute':"
                                               " 'query-status' }");

    g_assert_cmpstr(qdict_get_str(resp, "status"), ==, state);
    qobject_unref(resp);
}

/* The VM is here and a part of its memory there; returns the next frame */
static uint32_t transfer_in_postcopy(Env *from, Env *to, uint32_t seq,
                                     int on_their_way)
{
    qtest_qmp_eventwait(to->qts, "RESUME");
    wait_migration(from, "postcopy-active");
    wire_expect_range(to->guest[0], seq, seq + on_their_way, FRAME_LEN);
    seq += on_their_way;
    host_send_range(&from->tap[0], seq, seq + MANY, FRAME_LEN);
    wire_expect_range(to->guest[0], seq, seq + MANY, FRAME_LEN);
    wait_migration(from, "postcopy-active");
    migrate_bandwidth(from, "max-postcopy-bandwidth", 0);
    return seq + MANY;
}

/* What the source has sent, and what is here, is what the test thinks */
static void assert_transferred(const Transfer *t, Env *from, Env *to)
{
    QDict *resp = qtest_qmp_assert_success_ref(from->qts, "{ 'execute':"
                                               " 'query-migrate' }");
    QDict *ram = qdict_get_qdict(resp, "ram");
    uint8_t byte;

    g_assert_true(!g_str_has_prefix(t->name, "multifd") ||
                  qdict_get_int(ram, "multifd-bytes") >= RAM_SIZE);
    qobject_unref(resp);
    qtest_memread(to->qts, RAM_BEGIN + RAM_SIZE - 1, &byte, 1);
    g_assert_cmpint(byte, ==, 0x5a);
    assert_run_state(to, "running");
}

/*
 * Frames come before the source is told to go on, while it does so, while
 * postcopy has a VM here and memory there, and after the end.  The guest gets
 * them all, in order.
 */
static void test_transfer(const void *opaque)
{
    const Transfer *t = opaque;
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", tmpdir);
    g_autofree char *path = g_strdup_printf("%s/m0", tmpdir);
    uint32_t seq = 1000;
    Env from, to;

    if (!transfer_start(t, uri, &from, &to)) {
        return;
    }
    flush_to_guest(&from, 0);
    if (t->paused) {
        vm_run(&from, false);
        host_send_range(&from.tap[0], 900, seq, FRAME_LEN);
    }
    if (t->postcopy) {
        /* It does not get done before postcopy begins, or is to end */
        migrate_bandwidth(&from, "max-bandwidth", 64 * KiB);
        migrate_bandwidth(&from, "max-postcopy-bandwidth", 4 * KiB);
    }
    migration_start(&from, uri);
    if (t->postcopy) {
        qtest_qmp_assert_success(from.qts,
                                 "{ 'execute': 'migrate-start-postcopy' }");
    }
    wait_migration(&from, "pre-switchover");
    host_send_range(&from.tap[0], seq, seq + MANY, FRAME_LEN);
    migrate_continue(&from);
    host_send_range(&from.tap[0], seq + MANY, seq + 2 * MANY, FRAME_LEN);

    if (t->postcopy) {
        seq = transfer_in_postcopy(&from, &to, seq, 2 * MANY);
    }
    wait_migration(&from, "completed");
    wait_migration(&to, "completed");
    if (t->paused) {
        assert_silent(&to, to.guest[0]);
        assert_run_state(&to, "paused");
        vm_run(&to, true);
        wire_expect_range(to.guest[0], 900, seq, FRAME_LEN);
    }
    if (!t->postcopy) {
        wire_expect_range(to.guest[0], seq, seq + 2 * MANY, FRAME_LEN);
        seq += 2 * MANY;
    }
    host_send_range(&from.tap[0], seq, seq + MANY, FRAME_LEN);
    wire_expect_range(to.guest[0], seq, seq + MANY, FRAME_LEN);
    assert_silent(&from, from.guest[0]);
    assert_silent(&to, to.guest[0]);
    assert_transferred(t, &from, &to);
    env_stop(&from);
    env_stop(&to);
    unlink(path);
    unlink(strchr(uri, ':') + 1);
}

/* The migration of a stopped VM fails: the frames wait, and are the guest's */
static void test_paused_cancel(const void *opaque)
{
    Env e;

    switchover_start(&e, opaque, "c0", "");
    for (uint32_t seq = 1000; seq <= 3000; seq += 1000) {
        vm_run(&e, false);
        host_send_range(&e.tap[0], seq, seq + 10, FRAME_LEN);
        migration_start(&e, migration_file);
        wait_migration(&e, "pre-switchover");
        host_send_range(&e.tap[0], seq + 10, seq + 20, FRAME_LEN);
        vm_answers(&e);
        qtest_qmp_assert_success(e.qts, "{ 'execute': 'migrate_cancel' }");
        wait_migration(&e, "cancelled");
        host_send_range(&e.tap[0], seq + 20, seq + 30, FRAME_LEN);
        assert_run_state(&e, "paused");
        assert_silent(&e, e.guest[0]);
        vm_run(&e, true);
        wire_expect_range(e.guest[0], seq, seq + 30, FRAME_LEN);
        flush_to_guest(&e, seq + 30);
    }
    switchover_stop(&e);
}


/* Without a destination */

/* Of a VM that is not the destination's, nothing has been taken */
static void stopped_send(Env *e, uint32_t begin, uint32_t end)
{
    uint64_t taken = if_tx_packets(e->tap[0].name);

    host_send_range(&e->tap[0], begin, end, FRAME_LEN);
    vm_answers(e);
    g_assert_cmpint(if_tx_packets(e->tap[0].name), ==, taken);
}

/* The VM's state goes into a file, there is no peer, and the VM runs on here */
static void test_file(const void *opaque)
{
    Env e;
    int fd;

    switchover_start(&e, opaque, "s0", "");
    for (uint32_t seq = 1000; seq <= 3000; seq += 1000) {
        migrate_to_pause(&e, migration_file);
        host_send_range(&e.tap[0], seq, seq + MANY, FRAME_LEN);
        vm_answers(&e);
        migrate_continue(&e);
        wait_migration(&e, "completed");
        host_send_range(&e.tap[0], seq + MANY, seq + 2 * MANY, FRAME_LEN);
        vm_answers(&e);
        vm_run(&e, true);
        wire_expect_range(e.guest[0], seq, seq + 2 * MANY, FRAME_LEN);
        flush_to_guest(&e, seq + 2 * MANY);
    }
    /* Nothing of all that is left for one */
    fd = listener_connect(&e);
    assert_silent(&e, fd);
    close(fd);
    switchover_stop(&e);
}

/*
 * A migration to the same host, whose TAP stays: there is no other place for
 * the frames.  Also after a migration of the other kind.
 */
static void test_cpr(const void *opaque)
{
    Env e;

    switchover_start(&e, opaque, "c0", "");
    for (uint32_t seq = 1000; seq <= 2000; seq += 1000) {
        qtest_qmp_assert_success(e.qts, "{ 'execute': 'migrate-set-parameters',"
                                 " 'arguments': { 'mode': 'cpr-reboot' } }");
        migrate_to_pause(&e, migration_file);
        stopped_send(&e, seq, seq + 100);
        migrate_continue(&e);
        wait_migration(&e, "completed");
        stopped_send(&e, seq + 100, seq + 200);
        vm_run(&e, true);
        wire_expect_range(e.guest[0], seq, seq + 200, FRAME_LEN);
        flush_to_guest(&e, seq + 200);

        qtest_qmp_assert_success(e.qts, "{ 'execute': 'migrate-set-parameters',"
                                 " 'arguments': { 'mode': 'normal' } }");
        migrate_to_pause(&e, migration_file);
        migrate_continue(&e);
        wait_migration(&e, "completed");
        vm_run(&e, true);
        flush_to_guest(&e, seq + 300);
    }
    assert_silent(&e, e.chr[0]);
    switchover_stop(&e);
}

/* Snapshots, into a disk that the VM does not have otherwise */

static void job_wait(Env *e, const char *id)
{
    g_autofree char *status = NULL;
    QDict *resp, *job;

    while (g_strcmp0(status, "concluded")) {
        QDict *event = qtest_qmp_eventwait_ref(e->qts, "JOB_STATUS_CHANGE");

        g_free(status);
        status = g_strdup(qdict_get_str(qdict_get_qdict(event, "data"),
                                        "status"));
        qobject_unref(event);
    }
    resp = qtest_qmp(e->qts, "{ 'execute': 'query-jobs' }");
    job = qobject_to(QDict, qlist_peek(qdict_get_qlist(resp, "return")));
    g_assert_cmpstr(qdict_get_str(job, "id"), ==, id);
    g_assert_cmpstr(qdict_get_try_str(job, "error"), ==, NULL);
    qobject_unref(resp);
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'job-dismiss',"
                             " 'arguments': { 'id': %s } }", id);
}

static void disk_create(Env *e, const char *path)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'blockdev-create',"
                             " 'arguments': { 'job-id': 'file', 'options': {"
                             " 'driver': 'file', 'filename': %s,"
                             " 'size': 0 } } }", path);
    job_wait(e, "file");
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'blockdev-add',"
                             " 'arguments': { 'driver': 'file',"
                             " 'node-name': 'file0', 'filename': %s } }", path);
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'blockdev-create',"
                             " 'arguments': { 'job-id': 'qcow2', 'options': {"
                             " 'driver': 'qcow2', 'file': 'file0',"
                             " 'size': 1048576 } } }");
    job_wait(e, "qcow2");
    qtest_qmp_assert_success(e->qts, "{ 'execute': 'blockdev-add',"
                             " 'arguments': { 'driver': 'qcow2',"
                             " 'node-name': 'disk0', 'file': 'file0' } }");
}

static void snapshot_start(Env *e, const char *command, const char *tag)
{
    qtest_qmp_assert_success(e->qts, "{ 'execute': %s, 'arguments': {"
                             " 'job-id': 'snapshot', 'tag': %s,"
                             " 'vmstate': 'disk0', 'devices': [ 'disk0' ] } }",
                             command, tag);
}

/* A snapshot of the running VM stops it for a moment; or it was stopped */
static void test_snapshot(const void *opaque)
{
    static const char *const commands[] = { "snapshot-save", "snapshot-load" };
    const char *in_netdev = opaque;
    g_autofree char *disk = g_strdup_printf("%s/disk", tmpdir);
    g_autofree char *options =
        g_strdup_printf("-object filter-redirector,id=f0,netdev=n0,"
                        "%soutdev=c0" ONLY_STOPPED, in_netdev);
    uint32_t seq = 1000;
    Env e;

    if (skip_pc()) {
        return;
    }
    env_init(&e);
    env_start_pc(&e, true, options);
    /* What takes a while to be saved */
    qtest_memset(e.qts, RAM_BEGIN, 0x5a, RAM_SIZE);
    disk_create(&e, disk);
    flush_to_guest(&e, 0);
    for (int i = 0; i < 2 * ARRAY_SIZE(commands); i++, seq += 1000) {
        const char *command = commands[i / 2];
        bool stopped = i % 2;

        if (stopped) {
            vm_run(&e, false);
            stopped_send(&e, seq, seq + MANY);
            snapshot_start(&e, command, "stopped");
            job_wait(&e, "snapshot");
            stopped_send(&e, seq + MANY, seq + 2 * MANY);
            vm_run(&e, true);
        } else {
            snapshot_start(&e, command, "running");
            qtest_qmp_eventwait(e.qts, "STOP");
            host_send_range(&e.tap[0], seq, seq + 2 * MANY, FRAME_LEN);
            job_wait(&e, "snapshot");
        }
        wire_expect_range(e.guest[0], seq, seq + 2 * MANY, FRAME_LEN);
        flush_to_guest(&e, seq + 2 * MANY);
        assert_run_state(&e, "running");
    }
    assert_silent(&e, e.chr[0]);
    env_stop(&e);
    unlink(disk);
}


/* The tests */

static void add_host_both(const char *path, void (*func)(const void *))
{
    add_host_variant(path, "copy", func, "in_netdev=n0,");
    add_host_variant(path, "no-copy", func, "");
}

int main(int argc, char **argv)
{
    int ret;
    int i;

    g_test_init(&argc, &argv, NULL);

    tmpdir = g_dir_make_tmp("af-packet-migration-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    migration_file = g_strdup_printf("file:%s/migration", tmpdir);
    host_init();
    suite = "/af-packet-migration";

    add_host_both("stop", test_stop);
    for (i = 0; i < ARRAY_SIZE(switchovers); i++) {
        add_host_variant("complete", switchovers[i].name,
                         test_complete, &switchovers[i]);
        if (!switchovers[i].vnet) {
            add_host_variant("cancel", switchovers[i].name,
                             test_cancel, &switchovers[i]);
        }
    }
    add_host_both("cancel-busy", test_cancel_busy);
    add_host_func("unprivileged", test_unprivileged);
    add_host_both("no-peer", test_no_peer);
    add_host_both("slow-peer", test_slow_peer);
    add_host_both("drain", test_drain);
    add_host_func("warnings", test_warnings);
    add_host_func("hold-limit", test_hold_limit);
    add_host_both("off", test_off);
    add_host_func("two", test_two);
    add_host_func("ping-pong", test_ping_pong);
    add_host_func("flooded", test_flooded);
    add_host_func("cancel/destination", test_cancel_destination);
    add_host_func("capture", test_capture);
    add_host_both("late", test_late);
    add_host_func("leak", test_leak);

    add_host_func("saved", test_saved);
    add_host_both("completing", test_completing);
    for (i = 0; i < ARRAY_SIZE(transfers); i++) {
        add_host_variant("transfer", transfers[i].name, test_transfer,
                         &transfers[i]);
    }
    add_host_both("paused/cancel", test_paused_cancel);
    add_host_func("paused/again", test_paused_again);
    add_host_func("paused/on", test_paused_on);
    add_host_both("file", test_file);
    add_host_both("cpr-reboot", test_cpr);
    add_host_both("snapshot", test_snapshot);

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(migration_file);
    g_free(no_host);
    return ret;
}
