/*
 * QTest testcase for host interfaces in filter-redirector and socket chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The test is the host, the guest, and the far end of every chardev.  It runs
 * in a network namespace of its own, with real TAPs:
 *
 *   test side     | QEMU side (-M none)                     | test side
 *                 |                                         |
 *   host          |          +-> filters -+                 | guest
 *   tap[0].host ----> TAP ---+-> n0 ------+--> hub --> g0 ---> guest[0]
 *   (AF_PACKET)   |   |  ^                                  | (be32 length,
 *                 |   |  |                                  |  frame)
 *                 |   |  +--- inject  <-- out_netdev=n0     |
 *                 |   +-----> capture --> in_netdev=n0      |
 *                 |                                         |
 *                 |   chardevs of the filters: c0, c1 <------> chr[0], chr[1]
 *                 |   and s0, which listens <----------------> listen
 *
 * and the same again with tap[1], n1, g1, guest[1].  guest[] stands where the
 * NIC would be: it reads what a guest would receive, and what it writes goes
 * out through n0.  The TAP and its file descriptor are the test's; QEMU has
 * them as -netdev tap,fd=N.  The chardev tests have no -netdev for the TAP,
 * the test reads there what has been injected, vnet header and all.
 *
 * A hub does not keep the order of frames when one of its ports is full, so
 * guest[] only gets what its socket has room for.  Where more is needed, the
 * VM is stopped: QEMU then keeps the first frame that it reads from the TAP
 * for later, and reads no more.  From then on the test can read the TAP.
 *
 * "Nothing arrives" is always shown by a later frame that must arrive, and is
 * the first to do so.  Frames carry a sequence number, and the rest of their
 * bytes follow from it and from their length.
 *
 * Tested: each option error, by object-add or chardev-add and on the command
 * line; each row of in and out; exact frames from 14 to 9014 bytes, VLAN tags,
 * checksum and GSO metadata; when a filter is active and what happens to
 * frames while it is not; limits, back-pressure and full queues; a QEMU that
 * is stalled; disconnects, interfaces that go away, objects that go away,
 * leaks.  Captures are tested with a receive ring and without.
 *
 * Not tested: frames that vhost moves, which needs /dev/vhost-net and a guest
 * (see af-packet-vhost-test.c); migration (see af-packet-migration-test.c);
 * speed.
 * The byte stream itself is tested in tests/unit/test-io-channel-packet.c.
 *
 * Needs root, which unshare(1) gives in a user namespace, too; else only the
 * option errors are tested.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <linux/if_bridge.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include "af-packet-helpers.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"


/* Option errors */

/*
 * QEMU does not start with @args, and says why: "qemu-system-x: error", or
 * with @option for an option that it knows the place of, an "-option argument"
 * between the two
 */
static void assert_command_line_error(const char *args, const char *option,
                                      const char *error)
{
    /* Bad even if all else is good, so that QEMU always exits */
    g_autofree char *line =
        g_strdup_printf("%s -M none -nodefaults -display none %s "
                        "-device no-such-device",
                        qtest_qemu_binary(NULL), args);
    g_auto(GStrv) argv = g_strsplit(line, " ", -1);
    g_autofree char *name = g_path_get_basename(argv[0]);
    g_autofree char *prefix = option ?
                              g_strdup_printf("%s: %s: ", name, option) :
                              g_strdup_printf("%s: ", name);
    g_autofree char *text = NULL;
    char *start;
    int status = 0;

    g_assert_true(g_spawn_sync(NULL, argv, NULL,
                               G_SPAWN_LEAVE_DESCRIPTORS_OPEN |
                               G_SPAWN_STDOUT_TO_DEV_NULL,
                               NULL, NULL, NULL, &text, &status, NULL));
    g_assert_cmpint(status, !=, 0);
    /* Behind warnings, if there are any */
    start = g_strrstr(text, prefix);
    if (start) {
        start += strlen(prefix);
        start[strcspn(start, "\n")] = '\0';
    }
    g_assert_cmpstr(start ?: text, ==, error);
}

typedef struct OptionError {
    const char *props;
    const char *error;
} OptionError;

static const OptionError filter_errors[] = {
    {
        "netdev=h0,in_netdev=h0,out_netdev=h1",
        "'in_netdev' and 'out_netdev' cannot be used together"
    }, {
        "netdev=h0,in_netdev=h0,indev=x0",
        "'in_netdev' and 'indev' cannot be used together"
    }, {
        "netdev=h0,out_netdev=h1,outdev=x0",
        "'out_netdev' and 'outdev' cannot be used together"
    }, {
        "netdev=h0",
        "filter-redirector needs at least one of 'indev', 'outdev', "
        "'in_netdev' and 'out_netdev'"
    }, {
        "netdev=h0,in_netdev=nope,outdev=x0",
        "'in_netdev': netdev 'nope' not found"
    }, {
        "netdev=h0,in_netdev=nope",
        "'in_netdev': netdev 'nope' not found"
    }, {
        "netdev=h0,indev=x0,out_netdev=nope",
        "'out_netdev': netdev 'nope' not found"
    }, {
        "netdev=h0,in_netdev=h0,outdev=x0",
        "'in_netdev': netdev 'h0' (hubport) has no host network interface"
    }, {
        "netdev=h0,queue=tx,out_netdev=h1",
        "'out_netdev': netdev 'h1' (hubport) has no host network interface"
    }, {
        "netdev=h0,indev=x0,out_netdev=d0",
        "'out_netdev': netdev 'd0' (stream) has no host network interface"
    }, {
        "netdev=h0,in_netdev=h0,outdev=x0,"
        "enable_when_running=off,enable_when_stopped=off",
        "'enable_when_running' and 'enable_when_stopped' are both off: "
        "the filter would never be active"
    }, {
        "netdev=h0,in_netdev=h0,outdev=x0,enable_when_running=off",
        "'enable_when_running' and 'enable_when_stopped' are both off: "
        "the filter would never be active"
    }, {
        "netdev=h0,outdev=x0,enable_when_running=off,enable_when_stopped=off",
        "'enable_when_running' and 'enable_when_stopped' are both off: "
        "the filter would never be active"
    }, {
        "netdev=h0,indev=x0,outdev=x0",
        "'indev' and 'outdev' could not be same for filter redirector"
    }, {
        "netdev=h0,indev=nope,outdev=x0",
        "IN Device 'nope' not found"
    }, {
        "netdev=h0,indev=x0,outdev=nope",
        "OUT Device 'nope' not found"
    }, {
        "netdev=h0,in_netdev=h0,outdev=x0,ring_size=262143",
        "'ring_size' must be 0, or from 262144 to 1073741824 bytes"
    }, {
        "netdev=h0,in_netdev=h0,outdev=x0,ring_size=1073741825",
        "'ring_size' must be 0, or from 262144 to 1073741824 bytes"
    }, {
        "netdev=h0,outdev=x0" ONLY_STOPPED ",drain_timeout=10001",
        "'drain_timeout' must be at most 10000 ms"
    },
};

#define OPTIONS_NETDEVS                                 \
    "-netdev hubport,id=h0,hubid=0 "                    \
    "-netdev hubport,id=h1,hubid=0 "                    \
    "-netdev stream,id=d0,server=on,addr.type=unix,addr.path="

static void assert_netdev_fixed(Env *e, const char *id, const char *property)
{
    g_autofree char *path = g_strdup_printf("/objects/%s", id);
    g_autofree char *desc =
        error_desc(qtest_qmp(e->qts, "{ 'execute': 'qom-set', 'arguments':"
                             " { 'path': %s, 'property': %s,"
                             " 'value': 'n1' } }", path, property));

    g_assert_cmpstr(desc, ==, "the netdev of a filter cannot be changed");
}

static void assert_ring_size_fixed(Env *e, const char *id, uint64_t size)
{
    g_autofree char *path = g_strdup_printf("/objects/%s", id);
    g_autofree char *desc =
        error_desc(qtest_qmp(e->qts, "{ 'execute': 'qom-set', 'arguments':"
                             " { 'path': %s, 'property': 'ring_size',"
                             " 'value': %" PRIu64 " } }", path, size));

    g_assert_cmpstr(desc, ==, "the 'ring_size' of a filter cannot be changed");
}

static void test_filter_errors_qmp(void)
{
    Env e;
    int i;

    env_init(&e);
    e.qts = qtest_initf("-M none -nodefaults " OPTIONS_NETDEVS "%s/d0 "
                        "-chardev null,id=x0 -chardev null,id=x1", tmpdir);
    for (i = 0; i < ARRAY_SIZE(filter_errors); i++) {
        g_autofree char *desc = error_desc(object_add(&e, "filter-redirector",
                                                      "f0",
                                                      filter_errors[i].props));

        g_assert_cmpstr(desc, ==, filter_errors[i].error);
    }

    /* Nothing of those is left: the name and the chardevs are free */
    filter_add(&e, "f0", "netdev=h0,indev=x0,outdev=x1");
    assert_netdev_fixed(&e, "f0", "in_netdev");
    assert_netdev_fixed(&e, "f0", "out_netdev");
    assert_ring_size_fixed(&e, "f0", 0);
    assert_ring_size_fixed(&e, "f0", 1048576);
    filter_del(&e, "f0");
    filter_add(&e, "f0", "netdev=h0,indev=x1,outdev=x0,"
               "enable_when_stopped=off,hold_limit=1000,ring_size=262144");
    filter_del(&e, "f0");
    qtest_quit(e.qts);
}

static void test_filter_errors_command_line(void)
{
    g_autofree char *path = g_strdup_printf("%s/d0", tmpdir);
    int i;

    for (i = 0; i < ARRAY_SIZE(filter_errors); i++) {
        g_autofree char *args =
            g_strdup_printf(OPTIONS_NETDEVS "%s -chardev null,id=x0 "
                            "-object filter-redirector,id=f0,%s",
                            path, filter_errors[i].props);

        assert_command_line_error(args, NULL, filter_errors[i].error);
        /* A QEMU that ends like this does not clean up */
        unlink(path);
    }
}

/* What is not even a number, each input has its own words for */
static void test_filter_errors_not_a_size(void)
{
    static const char *const values[] = { "x", "0.5", "-1", "" };
    g_autofree char *desc = NULL;
    Env e;
    int i;

    for (i = 0; i < ARRAY_SIZE(values); i++) {
        g_autofree char *option =
            g_strdup_printf("-object filter-redirector,id=f0,netdev=h0,"
                            "outdev=x0,ring_size=%s", values[i]);
        g_autofree char *args =
            g_strdup_printf("-netdev hubport,id=h0,hubid=0 "
                            "-chardev null,id=x0 %s", option);

        assert_command_line_error(args, option,
                                  "Parameter 'ring_size' expects a size value");
    }

    env_init(&e);
    e.qts = qtest_init("-M none -nodefaults -netdev hubport,id=h0,hubid=0 "
                       "-chardev null,id=x0");
    desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                 "netdev=h0,outdev=x0,ring_size=x"));
    g_assert_cmpstr(desc, ==, "Parameter 'ring_size' expects uint64");
    filter_add(&e, "f0", "netdev=h0,outdev=x0,ring_size=1073741824");
    qtest_quit(e.qts);
}

/* -netdev user is what most people would try first */
static void test_filter_errors_user(void)
{
    g_autofree char *desc = NULL;
    QDict *resp;
    Env e;

    env_init(&e);
    e.qts = qtest_init("-M none -nodefaults -chardev null,id=x0");
    resp = qtest_qmp(e.qts, "{ 'execute': 'netdev_add', 'arguments':"
                     " { 'type': 'user', 'id': 'u0' } }");
    if (qdict_haskey(resp, "error")) {
        g_test_skip("QEMU was built without slirp");
    } else {
        desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                     "netdev=u0,in_netdev=u0,outdev=x0"));
        g_assert_cmpstr(desc, ==, "'in_netdev': netdev 'u0' (user) has no "
                        "host network interface");
    }
    qobject_unref(resp);
    qtest_quit(e.qts);
}

typedef enum FdKind {
    FD_NONE,                    /* another address type */
    FD_STREAM,
    FD_PIPE,
    FD_PACKET,                  /* the following need a host */
    FD_PACKET_DGRAM,
    FD_PACKET_UNBOUND,
} FdKind;

typedef struct ChardevError {
    FdKind fd;
    const char *options;
    const char *error;
} ChardevError;

#define INCOMPATIBLE(option) \
    "'af-packet-mode' option is incompatible with '" option "' option"

static const ChardevError chardev_errors[] = {
    {
        FD_NONE, "af-packet-mode=capture",
        "'af-packet-mode' option requires 'fd' address type"
    }, {
        FD_NONE, "af-packet-mode=inject,af-packet-vnet-hdr=on",
        "'af-packet-mode' option requires 'fd' address type"
    }, {
        FD_STREAM, "af-packet-mode=capture",
        "'af-packet-mode' requires an AF_PACKET fd"
    }, {
        FD_STREAM, "af-packet-mode=inject",
        "'af-packet-mode' requires an AF_PACKET fd"
    }, {
        /* Found out before anybody looks at the mode */
        FD_PIPE, "af-packet-mode=capture",
        "File descriptor 'fd0' is not a socket"
    }, {
        FD_STREAM, "af-packet-mode=capture,telnet=on", INCOMPATIBLE("telnet")
    }, {
        FD_STREAM, "af-packet-mode=capture,tn3270=on", INCOMPATIBLE("tn3270")
    }, {
        FD_STREAM, "af-packet-mode=inject,websocket=on",
        INCOMPATIBLE("websocket")
    }, {
        FD_STREAM, "af-packet-mode=inject,tls-creds=tls0",
        INCOMPATIBLE("tls-creds")
    }, {
        FD_STREAM, "af-packet-mode=capture,server=on", INCOMPATIBLE("server")
    }, {
        FD_STREAM, "af-packet-mode=capture,reconnect-ms=1000",
        INCOMPATIBLE("reconnect-ms")
    }, {
        FD_STREAM, "af-packet-mode=inject,wait=off", INCOMPATIBLE("wait")
    }, {
        FD_STREAM, "af-packet-vnet-hdr=on",
        "'af-packet-vnet-hdr' option requires 'af-packet-mode' option"
    }, {
        FD_STREAM, "af-packet-mode=x",
        "Parameter 'af-packet-mode' does not accept value 'x'"
    }, {
        FD_PACKET_DGRAM, "af-packet-mode=capture",
        "'af-packet-mode': the AF_PACKET fd must be of type SOCK_RAW"
    }, {
        FD_PACKET_UNBOUND, "af-packet-mode=capture",
        "'af-packet-mode': the AF_PACKET fd must be bound to an interface"
    }, {
        FD_PACKET_UNBOUND, "af-packet-mode=inject",
        "'af-packet-mode': the AF_PACKET fd must be bound to an interface"
    }, {
        FD_PACKET, "server=off",
        "Unable to query remote socket address: Operation not supported"
    },
};

/* Returns the fd for QEMU; @other is to be kept open */
static int open_fd(FdKind kind, const char *ifname, int *other)
{
    int fd[2] = { -1, -1 };

    switch (kind) {
    case FD_NONE:
        break;
    case FD_STREAM:
        socket_pair(fd);
        break;
    case FD_PIPE:
        g_assert_cmpint(pipe(fd), ==, 0);
        break;
    case FD_PACKET:
        fd[1] = packet_socket(ifname, SOCK_RAW, ETH_P_ALL);
        break;
    case FD_PACKET_DGRAM:
        fd[1] = packet_socket(ifname, SOCK_DGRAM, ETH_P_ALL);
        break;
    case FD_PACKET_UNBOUND:
        fd[1] = packet_socket(NULL, SOCK_RAW, 0);
        break;
    }
    if (fd[1] != -1) {
        fcntl(fd[1], F_SETFD, 0);
    }
    *other = fd[0];
    return fd[1];
}

static void close_fd(int fd)
{
    if (fd != -1) {
        close(fd);
    }
}

static void chardev_errors_qmp(FdKind first, FdKind last, const char *ifname)
{
    Env e;
    int i;

    env_init(&e);
    e.qts = qtest_init("-M none -nodefaults");
    for (i = 0; i < ARRAY_SIZE(chardev_errors); i++) {
        const ChardevError *c = &chardev_errors[i];
        g_autofree char *desc = NULL;
        g_autofree char *expected = NULL;
        int other;
        int fd;

        if (c->fd < first || c->fd > last) {
            continue;
        }
        fd = open_fd(c->fd, ifname, &other);
        desc = error_desc(chardev_add(&e, "c0", fd, c->options));
        expected = g_strdup_printf("Failed to add chardev 'c0': %s", c->error);
        if (strcmp(desc, c->error)) {
            g_assert_cmpstr(desc, ==, expected);
        }
        if (fd != -1) {
            /* Gone if QEMU took it, else this takes it back */
            qobject_unref(qtest_qmp(e.qts, "{ 'execute': 'closefd',"
                                    " 'arguments': { 'fdname': 'fd0' } }"));
        }
        close_fd(fd);
        close_fd(other);
    }
    qtest_quit(e.qts);
}

static void chardev_errors_command_line(FdKind first, FdKind last,
                                        const char *ifname)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(chardev_errors); i++) {
        const ChardevError *c = &chardev_errors[i];
        g_autofree char *addr = NULL;
        g_autofree char *option = NULL;
        g_autofree char *error = NULL;
        int other;
        int fd;

        if (c->fd < first || c->fd > last) {
            continue;
        }
        fd = open_fd(c->fd, ifname, &other);
        addr = fd != -1 ? g_strdup_printf("fd=%d", fd) :
                          g_strdup("path=/no/such/path");
        option = g_strdup_printf("-chardev socket,id=c0,%s,%s", addr,
                                 c->options);
        if (c->fd == FD_PIPE) {
            error = g_strdup_printf("File descriptor '%d' is not a socket", fd);
        }
        assert_command_line_error(option, option, error ?: c->error);
        close_fd(fd);
        close_fd(other);
    }
}

static void test_chardev_errors_qmp(void)
{
    chardev_errors_qmp(FD_NONE, FD_PIPE, NULL);
}

static void test_chardev_errors_command_line(void)
{
    chardev_errors_command_line(FD_NONE, FD_PIPE, NULL);
}

static void test_chardev_errors_packet(void)
{
    Tap tap;

    tap_open(&tap, "qtap0");
    chardev_errors_qmp(FD_PACKET, FD_PACKET_UNBOUND, tap.name);
    chardev_errors_command_line(FD_PACKET, FD_PACKET_UNBOUND, tap.name);
    tap_close(&tap);
}

/*
 * Others that take a fd get no further with such a socket than before.  They
 * connect from a thread, which knows the fd by its number only.
 */
static void test_netdev_errors_packet(void)
{
    g_autofree char *name = NULL;
    g_autofree char *info = NULL;
    int packet;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap0");
    packet = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    fcntl(packet, F_SETFD, 0);
    name = g_strdup_printf("%d", packet);
    env_start(&e, 0, "");
    qtest_qmp_assert_success(e.qts, "{ 'execute': 'netdev_add', 'arguments':"
                             " { 'type': 'stream', 'id': 'st0',"
                             " 'server': false, 'addr':"
                             " { 'type': 'fd', 'str': %s } } }", name);
    patience_begin();
    do {
        g_free(info);
        info = qtest_hmp(e.qts, "info network");
        patience_check();
    } while (strstr(info, "connecting"));
    g_assert_nonnull(strstr(info, "error: "));
    env_stop(&e);
    close(packet);
    tap_close(&tap);
}

/* What is sent from the chain to where the chain begins comes round again */
static void test_filter_errors_own_netdev(void)
{
    static const char error[] =
        "'out_netdev' on the filter's own netdev 'n0' would feed frames back "
        "to itself; use 'indev', 'queue=rx' or another netdev";
    static const char *const props[] = {
        "netdev=n0,out_netdev=n0",
        "netdev=n0,queue=all,out_netdev=n0",
        "netdev=n0,queue=tx,out_netdev=n0",
    };
    Env e;
    int i;

    env_start(&e, 2, "");
    for (i = 0; i < ARRAY_SIZE(props); i++) {
        g_autofree char *desc = error_desc(object_add(&e, "filter-redirector",
                                                      "f0", props[i]));
        g_autofree char *args =
            g_strdup_printf("-netdev tap,id=n0,fd=%d "
                            "-object filter-redirector,id=f0,%s",
                            e.tap[0].fd, props[i]);

        g_assert_cmpstr(desc, ==, error);
        assert_command_line_error(args, NULL, error);
    }
    filter_add(&e, "f0", "netdev=n0,queue=rx,out_netdev=n0");
    filter_add(&e, "f1", "netdev=n0,indev=c0,out_netdev=n0");
    filter_add(&e, "f2", "netdev=n0,queue=tx,out_netdev=n1");
    filter_add(&e, "f3", "netdev=n0,in_netdev=n0,outdev=c1");
    assert_netdev_fixed(&e, "f0", "out_netdev");
    assert_netdev_fixed(&e, "f3", "in_netdev");
    assert_netdev_fixed(&e, "f3", "out_netdev");
    env_stop(&e);
}

/* On a netdev whose frames vhost moves: what does not need to see them */
static void test_filter_errors_vhost(void)
{
    static const char *const good[] = {
        "netdev=v0,in_netdev=v0,outdev=c0",
        "netdev=v0,in_netdev=v0",
        "netdev=v0,indev=c0,out_netdev=v0",
        "netdev=v0,queue=tx,outdev=c0,enable_when_stopped=on",
    };
    /* Wrong on any netdev: vhost is not to blame */
    static const OptionError bad[] = {
        {
            "netdev=v0,in_netdev=v0,indev=c0",
            "'in_netdev' and 'indev' cannot be used together"
        }, {
            "netdev=v0,out_netdev=v0,outdev=c0",
            "'out_netdev' and 'outdev' cannot be used together"
        },
    };
    g_autofree char *options = NULL;
    g_autofree char *desc = NULL;
    Tap tap;
    Env e;
    int i;

    if (access("/dev/vhost-net", R_OK | W_OK) < 0) {
        g_test_skip("no /dev/vhost-net");
        return;
    }

    tap_open(&tap, "qtap0");
    options = g_strdup_printf("-netdev tap,id=v0,fd=%d,vhost=on", tap.fd);
    env_start(&e, 0, options);
    for (i = 0; i < ARRAY_SIZE(good); i++) {
        filter_add(&e, "f0", good[i]);
        filter_del(&e, "f0");
    }
    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_free(desc);
        desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                     bad[i].props));
        g_assert_cmpstr(desc, ==, bad[i].error);
    }
    g_free(desc);

    desc = error_desc(object_add(&e, "filter-mirror", "f0",
                                 "netdev=v0,outdev=c0"));
    g_assert_cmpstr(desc, ==, "Vhost is not supported");
    g_free(desc);
    desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                 "netdev=v0,indev=c0"));
    g_assert_nonnull(strstr(desc, "out_netdev=v0"));
    g_free(desc);
    desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                 "netdev=v0,queue=tx,outdev=c0,"
                                 "enable_when_stopped=off"));
    g_assert_nonnull(strstr(desc, "in_netdev"));
    env_stop(&e);
    tap_close(&tap);
}

static void test_filter_errors_eperm(void)
{
    static const struct {
        const char *props;
        const char *start;
    } cases[] = {
        {
            "netdev=n0,in_netdev=n0,outdev=c0",
            "'in_netdev': cannot open a packet socket on 'qtap0'"
        }, {
            "netdev=n0,indev=c0,out_netdev=n0",
            "'out_netdev': cannot open a packet socket on 'qtap0'"
        },
    };
    Env e;
    int i;

    env_start_unprivileged(&e, 1, "");
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *desc = error_desc(object_add(&e, "filter-redirector",
                                                      "f0", cases[i].props));

        if (!g_str_has_prefix(desc, cases[i].start)) {
            g_assert_cmpstr(desc, ==, cases[i].start);
        }
        g_assert_nonnull(strstr(desc, "CAP_NET_RAW"));
        g_assert_nonnull(strstr(desc, "af-packet-mode"));
    }
    env_stop(&e);
}

/*
 * The TAP is in another network namespace than QEMU, and all that its fd tells
 * is a name, which an interface here has, too
 */
static void test_filter_errors_namespace(void)
{
    int outside = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    g_autofree char *desc = NULL;
    Tap here;
    Env e;

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    g_assert_cmpint(unshare(CLONE_NEWNET), ==, 0);
    tap_open(&here, "qtap0");
    env_start_full(&e, 1, true, "none", "");
    desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                 "netdev=n0,in_netdev=n0,outdev=c0"));
    g_assert_cmpstr(desc, ==, "'in_netdev': interface 'qtap0' of netdev 'n0' "
                    "is not in QEMU's network namespace");
    env_stop(&e);
    tap_close(&here);
    g_assert_cmpint(setns(outside, CLONE_NEWNET), ==, 0);
    close(outside);
}

/*
 * A fd for the macvtap @name.  Its device node is nobody's but the test's, as
 * the number in the name is that of the interface, in any namespace.
 */
static int macvtap_open(const char *name)
{
    g_autofree char *sys = g_strdup_printf("%s/sys", tmpdir);
    g_autofree char *node = g_strdup_printf("%s/macvtap", tmpdir);
    g_autofree char *path =
        g_strdup_printf("%s/class/net/%s/macvtap/tap%u/dev", sys, name,
                        if_nametoindex(name));
    g_autofree char *text = NULL;
    unsigned major, minor;
    int fd = -1;

    g_mkdir(sys, 0700);
    if (mount("sysfs", sys, "sysfs", 0, NULL) == 0) {
        if (g_file_get_contents(path, &text, NULL, NULL) &&
            sscanf(text, "%u:%u", &major, &minor) == 2 &&
            mknod(node, S_IFCHR | 0600, makedev(major, minor)) == 0) {
            fd = open(node, O_RDWR);
            unlink(node);
        }
        umount(sys);
    }
    g_rmdir(sys);
    return fd;
}

/* The guest of a macvtap is on the other side: OUTGOING is what it sends */
static void test_filter_errors_macvtap(void)
{
    g_autofree char *options = NULL;
    g_autofree char *chardev = NULL;
    g_autofree char *desc = NULL;
    int packet;
    int fd = -1;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap0");
    if (!host_command("ip link add link qtap0 name qmacvtap0 type macvtap")) {
        g_test_skip("no iproute2, or a kernel without macvtap");
        tap_close(&tap);
        return;
    }

    packet = packet_socket("qmacvtap0", SOCK_RAW, 0);
    fcntl(packet, F_SETFD, 0);
    chardev = g_strdup_printf("-chardev socket,id=c0,fd=%d,"
                              "af-packet-mode=capture", packet);
    assert_command_line_error(chardev, chardev,
                              "'af-packet-mode': 'qmacvtap0' is a macvlan or "
                              "macvtap interface, whose directions are "
                              "reversed; use a TAP");
    close(packet);

    fd = macvtap_open("qmacvtap0");
    if (fd == -1) {
        g_test_skip("cannot open the macvtap");
    } else {
        env_init(&e);
        options = g_strdup_printf("-netdev tap,id=m0,fd=%d", fd);
        env_start_full(&e, 0, true, "none", options);
        desc = error_desc(object_add(&e, "filter-redirector", "f0",
                                     "netdev=m0,in_netdev=m0,outdev=c0"));
        g_assert_cmpstr(desc, ==, "'in_netdev': 'qmacvtap0' is a macvlan or "
                        "macvtap interface, whose directions are reversed; "
                        "use a TAP");
        env_stop(&e);
        close(fd);
    }
    tap_close(&tap);
}


/* Capture and inject: exact frames */

static const size_t frame_sizes[] = { 60, 61, 590, 1514, 9014 };

/* host -> TAP -> capture -> chardev, and the guest gets its own */
static void test_capture_exact(void)
{
    Env e;
    int i;

    env_start(&e, 1, "");
    if_set_mtu(e.tap[0].name, 9000);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,in_netdev=n0,outdev=c1,"
               "vnet_hdr_support=on");
    for (i = 0; i < ARRAY_SIZE(frame_sizes); i++) {
        struct virtio_net_hdr hdr;
        size_t hdr_len, len;
        g_autofree uint8_t *buf = NULL;

        host_send(&e.tap[0], i, frame_sizes[i]);
        wire_expect(e.chr[0], i, frame_sizes[i]);
        wire_expect(e.guest[0], i, frame_sizes[i]);

        buf = wire_recv_vnet(e.chr[1], &hdr, &hdr_len, &len);
        g_assert_true(buffer_is_zero(&hdr, sizeof(hdr)));
        assert_frame(buf + hdr_len, len, i, frame_sizes[i]);
    }
    env_stop(&e);
}

/* Many at once: all there, in order */
static void test_capture_burst(void)
{
    const int n = 500;
    Env e;
    int i;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "in_netdev=n0,outdev=c0");
    for (i = 0; i < n; i++) {
        host_send(&e.tap[0], i, 60 + i);
        /* Before the default receive buffer of a packet socket is full */
        if (i % 50 == 49) {
            for (int j = i - 49; j <= i; j++) {
                wire_expect(e.chr[0], j, 60 + j);
            }
        }
    }
    env_stop(&e);
}

/* What the guest sends passes through the same TAP, and is not captured */
static void test_capture_direction(void)
{
    g_autofree uint8_t *buf = g_malloc(WIRE_MAX);
    ssize_t len;
    int host;
    Env e;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "in_netdev=n0,outdev=c0");
    host = packet_socket(e.tap[0].name, SOCK_RAW, ETH_P_TEST);
    wire_send(e.guest[0], 1, FRAME_LEN);
    wait_fd(host, POLLIN);
    len = recv(host, buf, WIRE_MAX, 0);
    assert_frame(buf, len, 1, FRAME_LEN);

    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.chr[0], 2, FRAME_LEN);
    close(host);
    env_stop(&e);
}

/*
 * The kernel's own UDP leaves the checksum to the interface if that can do it.
 * Without vnet headers in the stream, it has to be in the frame.
 */
static void test_capture_checksum(void)
{
    static const char text[] = "The checksum of this is left to others";
    struct sockaddr_in sin = { .sin_family = AF_INET };
    struct ifreq ifr = host_ifreq("qtap0");
    struct arpreq arp = { .arp_flags = ATF_PERM | ATF_COM };
    struct virtio_net_hdr hdr;
    size_t hdr_len, len;
    uint8_t *frame;
    int fd, i;
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,in_netdev=n0,outdev=c1,"
               "vnet_hdr_support=on");
    tap_set_offload(&e.tap[0], TUN_F_CSUM);

    sin.sin_addr.s_addr = htonl(0x0a010001);
    memcpy(&ifr.ifr_addr, &sin, sizeof(sin));
    host_ioctl(SIOCSIFADDR, &ifr);
    sin.sin_addr.s_addr = htonl(0x0a010002);
    memcpy(&arp.arp_pa, &sin, sizeof(sin));
    arp.arp_ha.sa_family = ARPHRD_ETHER;
    memcpy(arp.arp_ha.sa_data, mac_guest, ETH_ALEN);
    pstrcpy(arp.arp_dev, sizeof(arp.arp_dev), e.tap[0].name);
    host_ioctl(SIOCSARP, &arp);

    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sin.sin_port = htons(4242);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), ==, 0);

    /* An even and an odd number of bytes */
    for (i = 0; i < 2; i++) {
        size_t udp_len = 8 + sizeof(text) - i;
        uint16_t sum;

        g_assert_cmpint(send(fd, text, sizeof(text) - i, 0),
                        ==, sizeof(text) - i);

        frame = wire_recv(e.chr[0], &len);
        g_assert_cmpint(len, ==, 34 + udp_len);
        g_assert_cmpmem(frame, ETH_ALEN, mac_guest, ETH_ALEN);
        g_assert_cmpmem(frame + 42, len - 42, text, sizeof(text) - i);
        sum = inet_sum(frame + 34, udp_len, ip_pseudo_sum(frame + 14));
        g_assert_cmphex(lduw_be_p(frame + 40), !=, 0);
        g_assert_cmphex(sum, ==, 0xffff);
        g_free(frame);

        frame = wire_recv_vnet(e.chr[1], &hdr, &hdr_len, &len);
        g_assert_cmpint(len, ==, 34 + udp_len);
        g_assert_cmpint(hdr.flags, ==, VIRTIO_NET_HDR_F_NEEDS_CSUM);
        g_assert_cmpint(hdr.gso_type, ==, VIRTIO_NET_HDR_GSO_NONE);
        g_assert_cmpint(hdr.csum_start, ==, 34);
        g_assert_cmpint(hdr.csum_offset, ==, 6);
        g_assert_cmphex(lduw_be_p(frame + hdr_len + 40),
                        ==, ip_pseudo_sum(frame + hdr_len + 14));
        g_free(frame);
    }
    close(fd);
    env_stop(&e);
}

/*
 * Another guest, with tap[1] for its NIC, sends through a bridge:
 *
 *   test: tap[1].fd --> bridge --> tap[0] --> QEMU
 *
 * Its frames come with its metadata, and a VLAN tag leaves the frame on the
 * way, as it does on the way from a real NIC.
 */
static bool bridge_open(Env *e)
{
    struct ifreq ifr = host_ifreq("qbr0");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok = ioctl(fd, SIOCBRADDBR, "qbr0") == 0;
    int i;

    close(fd);
    if (!ok) {
        g_test_skip("the kernel has no bridges");
        return false;
    }
    tap_open(&e->tap[0], "qtap0");
    tap_open(&e->tap[1], "qtap1");
    for (i = 0; i < 2; i++) {
        ifr.ifr_ifindex = if_nametoindex(e->tap[i].name);
        host_ioctl(SIOCBRADDIF, &ifr);
    }
    if_set_up("qbr0", true);
    return true;
}

static void bridge_close(void)
{
    if_set_up("qbr0", false);
    host_ioctl(SIOCBRDELBR, (void *)"qbr0");
}

static void test_capture_vlan(void)
{
    static const uint8_t tag[] = { 0x81, 0x00, 0x60, 0x05 };
    const size_t tagged_len = FRAME_LEN + sizeof(tag);
    uint8_t frame[FRAME_LEN + sizeof(tag)];
    uint8_t completed[FRAME_LEN + sizeof(tag)];
    struct virtio_net_hdr hdr = { 0 };
    uint8_t *buf;
    size_t hdr_len, len;
    int i;
    Env e;

    env_init(&e);
    if (!bridge_open(&e)) {
        return;
    }
    env_start_full(&e, 1, true, "none", "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,in_netdev=n0,outdev=c1,"
               "vnet_hdr_support=on");
    tap_set_offload(&e.tap[0], TUN_F_CSUM);

    /* First a complete frame, then one whose checksum is to be filled in */
    for (i = 0; i < 2; i++) {
        frame_fill(frame, i, FRAME_LEN);
        memmove(frame + 16, frame + 12, FRAME_LEN - 12);
        memcpy(frame + 12, tag, sizeof(tag));
        memcpy(completed, frame, tagged_len);
        if (i == 1) {
            hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            hdr.csum_start = 38;
            hdr.csum_offset = 16;
            stw_be_p(completed + 54, ~inet_sum(frame + 38, tagged_len - 38, 0));
        }
        tap_send(&e.tap[1], &hdr, frame, tagged_len);

        buf = wire_recv(e.chr[0], &len);
        g_assert_cmpmem(buf, len, completed, tagged_len);
        g_free(buf);

        buf = wire_recv_vnet(e.chr[1], &hdr, &hdr_len, &len);
        g_assert_cmpmem(buf + hdr_len, len, frame, tagged_len);
        g_assert_cmpint(hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM, ==,
                        i == 1 ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0);
        if (i == 1) {
            g_assert_cmpint(hdr.csum_start, ==, 38);
            g_assert_cmpint(hdr.csum_offset, ==, 16);
        }
        g_free(buf);
    }
    env_stop(&e);
    bridge_close();
}

/* A TCP segment of 20000 bytes, tagged or not, and the metadata to cut it */
#define GSO_PAYLOAD 20000
#define GSO_LEN (54 + GSO_PAYLOAD)

static void gso_fill(uint8_t *frame, size_t tag_len, struct virtio_net_hdr *hdr)
{
    uint8_t *ip = frame + 14 + tag_len;

    *hdr = (struct virtio_net_hdr) {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
        .hdr_len = 54 + tag_len,
        .gso_size = 1400,
        .csum_start = 34 + tag_len,
        .csum_offset = 16,
    };
    frame_fill(frame, 0, GSO_LEN + tag_len);
    if (tag_len) {
        stl_be_p(frame + 12, 0x81006005);
    }
    stw_be_p(ip - 2, ETH_P_IP);
    ip_header(ip, IPPROTO_TCP, 20 + GSO_PAYLOAD);
    memset(ip + 20, 0, 20);
    stw_be_p(ip + 20, 1000);            /* ports */
    stw_be_p(ip + 22, 2000);
    ip[32] = 5 << 4;                    /* header length in words */
    ip[33] = 0x10;                      /* ACK */
    stw_be_p(ip + 36, ip_pseudo_sum(ip));
}

/* It is the one with the bytes from @done on; returns how many these are */
static size_t assert_segment(const uint8_t *segment, size_t len,
                             const struct virtio_net_hdr *hdr,
                             const uint8_t *frame, size_t tag_len, size_t done)
{
    size_t n = MIN(hdr->gso_size, GSO_PAYLOAD - done);
    const uint8_t *ip = segment + 14 + tag_len;

    g_assert_cmpint(len, ==, hdr->hdr_len + n);
    g_assert_cmpmem(segment, 14 + tag_len, frame, 14 + tag_len);
    g_assert_cmpint(lduw_be_p(ip + 2), ==, 40 + n);
    g_assert_cmphex(inet_sum(ip, 20, 0), ==, 0xffff);
    g_assert_cmpint(ldl_be_p(ip + 24), ==, done);
    g_assert_cmphex(inet_sum(ip + 20, 20 + n, ip_pseudo_sum(ip)), ==, 0xffff);
    g_assert_cmpmem(ip + 40, n, frame + hdr->hdr_len + done, n);
    return n;
}

/*
 * It travels with its metadata; where there is no place for that, it is cut
 * into segments that need none.
 */
static void test_capture_gso(const void *opaque)
{
    const size_t tag_len = opaque ? 4 : 0;
    const size_t len = GSO_LEN + tag_len;
    g_autofree uint8_t *frame = g_malloc(len);
    g_autofree uint8_t *buf = NULL;
    struct virtio_net_hdr none = { 0 };
    struct virtio_net_hdr got, hdr;
    uint8_t marker[FRAME_LEN];
    size_t hdr_len, got_len;
    size_t done;
    Env e;

    env_init(&e);
    if (!bridge_open(&e)) {
        return;
    }
    env_start_full(&e, 1, true, "none", "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,in_netdev=n0,outdev=c1,"
               "vnet_hdr_support=on");
    tap_set_offload(&e.tap[0], TUN_F_CSUM | TUN_F_TSO4);

    gso_fill(frame, tag_len, &hdr);
    tap_send(&e.tap[1], &hdr, frame, len);

    buf = wire_recv_vnet(e.chr[1], &got, &hdr_len, &got_len);
    g_assert_cmpmem(buf + hdr_len, got_len, frame, len);
    g_assert_cmpint(got.flags, ==, hdr.flags);
    g_assert_cmpint(got.gso_type, ==, hdr.gso_type);
    g_assert_cmpint(got.hdr_len, ==, hdr.hdr_len);
    g_assert_cmpint(got.gso_size, ==, hdr.gso_size);
    g_assert_cmpint(got.csum_start, ==, hdr.csum_start);
    g_assert_cmpint(got.csum_offset, ==, hdr.csum_offset);

    for (done = 0; done < GSO_PAYLOAD; ) {
        g_autofree uint8_t *segment = wire_recv(e.chr[0], &got_len);

        done += assert_segment(segment, got_len, &hdr, frame, tag_len, done);
    }

    frame_fill(marker, 1, sizeof(marker));
    tap_send(&e.tap[1], &none, marker, sizeof(marker));
    wire_expect(e.chr[0], 1, sizeof(marker));

    env_stop(&e);
    bridge_close();
}

/* chardev -> inject -> TAP -> guest */
static void test_inject_exact(void)
{
    static const int vnet_hdr_len[] = { 0, 10, 12, 20 };
    Env e;
    int i;

    env_start(&e, 1, "");
    if_set_mtu(e.tap[0].name, 9000);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0");
    for (i = 0; i < ARRAY_SIZE(frame_sizes); i++) {
        wire_send(e.chr[0], i, frame_sizes[i]);
        wire_expect(e.guest[0], i, frame_sizes[i]);
    }

    filter_add(&e, "f1", "netdev=n0,indev=c1,out_netdev=n0,"
               "vnet_hdr_support=on");
    for (i = 0; i < ARRAY_SIZE(vnet_hdr_len); i++) {
        g_autoptr(GByteArray) wire = g_byte_array_new();

        wire_append_seq(wire, vnet_hdr_len[i], i, FRAME_LEN);
        write_all(e.chr[1], wire->data, wire->len);
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    env_stop(&e);
}

/* In the smallest pieces that there are, and many in one */
static void test_inject_pieces(void)
{
    g_autoptr(GByteArray) wire = g_byte_array_new();
    Env e;
    int i;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "indev=c0,out_netdev=n0");
    for (i = 0; i < 4; i++) {
        wire_append_seq(wire, -1, i, 60 + i);
    }
    for (i = 0; i < wire->len; i++) {
        write_all(e.chr[0], wire->data + i, 1);
        wait_consumed(&e, e.chr[0]);
    }
    for (i = 0; i < 4; i++) {
        wire_expect(e.guest[0], i, 60 + i);
    }

    g_byte_array_set_size(wire, 0);
    for (i = 0; i < 50; i++) {
        wire_append_seq(wire, -1, i, 60 + i);
    }
    for (i = 0; i < 20; i++) {
        int j;

        write_all(e.chr[0], wire->data, wire->len);
        for (j = 0; j < 50; j++) {
            wire_expect(e.guest[0], j, 60 + j);
        }
    }
    env_stop(&e);
}

/* Messages without a frame that can be injected; the next one is good */
static void test_inject_unusable(const void *opaque)
{
    /* length of the frame; of the vnet header; bytes too few for it */
    static const struct {
        size_t len;
        int vnet_hdr_len;
        int missing;
    } messages[] = {
        { 0, -1, 0 },           /* nothing */
        { 13, -1, 0 },          /* less than an Ethernet header */
        { 1515, -1, 0 },        /* over the MTU */
        { 9014, -1, 0 },
        { 60000, -1, 0 },
        { 0, 0, 0 },
        { FRAME_LEN, 1, 0 },    /* less than the shortest vnet header */
        { FRAME_LEN, 9, 0 },
        { 0, 10, 0 },
        { 0, 12, 0 },
        { 0, 12, 1 },           /* more than the message has */
        { 0, 4000, 3900 },
        { 9014, 10, 0 },
    };
    bool vnet = opaque != NULL;
    uint32_t seq = 0;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", vnet ?
               "netdev=n0,indev=c0,out_netdev=n0,vnet_hdr_support=on" :
               "netdev=n0,indev=c0,out_netdev=n0");
    for (i = 0; i < ARRAY_SIZE(messages); i++) {
        g_autoptr(GByteArray) wire = g_byte_array_new();

        if (vnet != (messages[i].vnet_hdr_len >= 0)) {
            continue;
        }
        wire_append_seq(wire, messages[i].vnet_hdr_len, seq++,
                        messages[i].len);
        if (messages[i].missing) {
            g_byte_array_set_size(wire, wire->len - messages[i].missing);
            stl_be_p(wire->data, wire->len - 8);
        }
        wire_append_seq(wire, vnet ? VNET_HDR_LEN : -1, seq, FRAME_LEN);
        write_all(e.chr[0], wire->data, wire->len);
        wire_expect(e.guest[0], seq++, FRAME_LEN);
    }
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "invalid"),
                    ==, vnet ? 7 : 2);
    g_assert_cmpint(filter_stat(&e, "f0", "dropped", "mtu"),
                    ==, vnet ? 1 : 3);
    env_stop(&e);
}

/*
 * Thousands at once, one in seven of them unusable: all others, in order.
 * They come while the filter sends them, or have been held.
 */
static void test_inject_many(const void *opaque)
{
    const int n = 5000;
    bool held = opaque != NULL;
    g_autoptr(GByteArray) wire = g_byte_array_new();
    Sender sender;
    Env e;
    int i;

    for (i = 0; i < n; i++) {
        size_t start = wire->len;

        wire_append_seq(wire, VNET_HDR_LEN, i, FRAME_LEN);
        if (i % 7 == 3) {
            /* The vnet header is longer than the message */
            stl_be_p(wire->data + start + 4, VNET_HDR_LEN + FRAME_LEN + 1);
        }
    }

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "vnet_hdr_support=on,enable_when_running=off,"
               "enable_when_stopped=on");
    if (!held) {
        vm_run(&e, false);
    }
    sender_start(&sender, e.chr[0], wire);
    if (held) {
        g_thread_join(sender.thread);
        wait_consumed(&e, e.chr[0]);
        vm_run(&e, false);
    }

    wait_tap_blocked(&e);
    for (i = 1; i < n; i++) {
        if (i % 7 != 3) {
            tap_expect(&e.tap[0], i, FRAME_LEN);
        }
    }
    if (!held) {
        g_thread_join(sender.thread);
    }
    vm_run(&e, true);
    wire_expect(e.guest[0], 0, FRAME_LEN);
    host_send(&e.tap[0], n, FRAME_LEN);
    wire_expect(e.guest[0], n, FRAME_LEN);
    env_stop(&e);
}

/* The longest message that the format knows is no error, whatever becomes */
static void test_inject_longest(void)
{
    Env e;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "indev=c0,out_netdev=n0");
    wire_send(e.chr[0], 1, WIRE_MAX);
    wire_send(e.chr[0], 2, FRAME_LEN);
    wire_expect(e.guest[0], 2, FRAME_LEN);
    env_stop(&e);
}

/*
 * The whole way, with command lines only:
 * host -> tap[0] -> capture -> Unix socket -> inject -> tap[1] -> guest
 */
static void test_capture_inject(const void *opaque)
{
    const char *vnet = opaque;
    const int n = 300;
    g_autofree char *options =
        g_strdup_printf("-chardev socket,id=m0,path=%s/m0,server=on,wait=off "
                        "-chardev socket,id=m1,path=%s/m0 "
                        "-object filter-redirector,id=f0,netdev=n0,"
                        "in_netdev=n0,outdev=m0%s "
                        "-object filter-redirector,id=f1,netdev=n1,"
                        "indev=m1,out_netdev=n1%s",
                        tmpdir, tmpdir, vnet, vnet);
    g_autofree char *path = g_strdup_printf("%s/m0", tmpdir);
    Env e;
    int i, j;

    env_start(&e, 2, options);
    if_set_mtu(e.tap[0].name, 9000);
    if_set_mtu(e.tap[1].name, 9000);
    for (i = 0; i < ARRAY_SIZE(frame_sizes); i++) {
        host_send(&e.tap[0], i, frame_sizes[i]);
        wire_expect(e.guest[1], i, frame_sizes[i]);
        wire_expect(e.guest[0], i, frame_sizes[i]);
    }
    for (i = 0; i < n; i += 50) {
        for (j = 0; j < 50; j++) {
            host_send(&e.tap[0], i + j, FRAME_LEN);
        }
        for (j = 0; j < 50; j++) {
            wire_expect(e.guest[1], i + j, FRAME_LEN);
            wire_expect(e.guest[0], i + j, FRAME_LEN);
        }
    }
    env_stop(&e);
    unlink(path);
}

/*
 * And with the metadata, straight from one host interface to another:
 * another guest -> bridge -> tap[0] -> capture -> inject -> TAP, read here
 */
static void test_capture_inject_metadata(void)
{
    struct virtio_net_hdr hdr = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .csum_start = 38,
        .csum_offset = 6,
    };
    struct virtio_net_hdr got;
    uint8_t frame[FRAME_LEN + 4];
    uint8_t buf[FRAME_LEN + 4];
    size_t len;
    int packet;
    Tap out;
    Env e;

    env_init(&e);
    if (!bridge_open(&e)) {
        return;
    }
    env_start_full(&e, 1, true, "none", "");
    tap_open(&out, "qtap2");
    packet = packet_socket(out.name, SOCK_RAW, 0);
    tap_set_offload(&e.tap[0], TUN_F_CSUM);
    tap_set_offload(&out, TUN_F_CSUM);
    assert_success(chardev_add(&e, "inject", packet, "af-packet-mode=inject,"
                               "af-packet-vnet-hdr=on"));
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=inject,"
               "vnet_hdr_support=on");

    /* UDP with a VLAN tag, its checksum left to the interface */
    frame_fill(frame, 0, sizeof(frame));
    stl_be_p(frame + 12, 0x81000005);
    stw_be_p(frame + 16, ETH_P_IP);
    ip_header(frame + 18, IPPROTO_UDP, sizeof(frame) - 38);
    stw_be_p(frame + 42, sizeof(frame) - 38);
    stw_be_p(frame + 44, ip_pseudo_sum(frame + 18));
    tap_send(&e.tap[1], &hdr, frame, sizeof(frame));

    len = tap_recv(&out, &got, buf, sizeof(buf));
    g_assert_cmpmem(buf, len, frame, sizeof(frame));
    g_assert_cmpint(got.flags, ==, hdr.flags);
    g_assert_cmpint(got.csum_start, ==, hdr.csum_start);
    g_assert_cmpint(got.csum_offset, ==, hdr.csum_offset);

    close(packet);
    env_stop(&e);
    tap_close(&out);
    bridge_close();
}


/* The rows of in and out that go through the chain */

/*
 * What n1 receives is copied into the chain of n0.  A filter behind sees it,
 * the NIC of n0 does not, as no frame of n0 has been added to the traffic.
 */
static void test_chain_copy(void)
{
    Env e;

    env_start(&e, 2, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,in_netdev=n1");
    assert_success(object_add(&e, "filter-mirror", "mirror",
                              "netdev=n0,queue=tx,outdev=c0"));
    host_send(&e.tap[1], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    wire_expect(e.guest[1], 1, FRAME_LEN);
    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.chr[0], 2, FRAME_LEN);
    wire_expect(e.guest[0], 2, FRAME_LEN);

    /* No filter behind: the copy has nowhere to go */
    filter_del(&e, "mirror");
    host_send(&e.tap[1], 3, FRAME_LEN);
    wire_expect(e.guest[1], 3, FRAME_LEN);
    vm_answers(&e);
    host_send(&e.tap[0], 4, FRAME_LEN);
    wire_expect(e.guest[0], 4, FRAME_LEN);
    env_stop(&e);
}

/*
 * The same on one netdev, the usual case: behind the filter each frame passes
 * twice, as itself and as its copy; the guest gets it once.
 */
static void test_chain_copy_own(void)
{
    Env e;
    int i;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,queue=tx,"
              "in_netdev=n0 "
              "-object filter-mirror,id=mirror,netdev=n0,queue=tx,outdev=c0");
    for (i = 0; i < 10; i++) {
        host_send(&e.tap[0], i, FRAME_LEN);
        wire_expect(e.chr[0], i, FRAME_LEN);
        wire_expect(e.chr[0], i, FRAME_LEN);
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    env_stop(&e);
}

/* A filter in front of the one that captures must not see the copy */
static void test_chain_copy_position(void)
{
    Env e;

    env_start(&e, 2, "");
    assert_success(object_add(&e, "filter-mirror", "before",
                              "netdev=n0,queue=tx,outdev=c0"));
    filter_add(&e, "f0", "netdev=n0,queue=tx,in_netdev=n1");
    assert_success(object_add(&e, "filter-mirror", "behind",
                              "netdev=n0,queue=tx,outdev=c1"));
    host_send(&e.tap[1], 1, FRAME_LEN);
    wire_expect(e.chr[1], 1, FRAME_LEN);
    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.chr[0], 2, FRAME_LEN);
    wire_expect(e.chr[1], 2, FRAME_LEN);
    env_stop(&e);
}

/* host -> tap[0] -> n0 -> chain -> inject -> tap[1] -> guest of n1 */
static void test_chain_out(void)
{
    Env e;
    int i;

    env_start(&e, 2, "-object filter-redirector,id=f0,netdev=n0,queue=tx,"
              "out_netdev=n1");
    if_set_mtu(e.tap[0].name, 9000);
    if_set_mtu(e.tap[1].name, 9000);
    for (i = 0; i < ARRAY_SIZE(frame_sizes); i++) {
        host_send(&e.tap[0], i, frame_sizes[i]);
        wire_expect(e.guest[1], i, frame_sizes[i]);
    }

    /* A redirector: what went there did not go on */
    filter_set_status(&e, "f0", false);
    host_send(&e.tap[0], i, FRAME_LEN);
    wire_expect(e.guest[0], i, FRAME_LEN);
    env_stop(&e);
}

/*
 * Many at once: QEMU does not run while the host sends, and then there is room
 * for 10 of them, if root may tell how much there is.  The VM is stopped, so
 * what is injected can be read from the TAP.
 */
static void test_chain_out_burst(void)
{
    const int n = 300;
    Env e;
    int i, j;

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    if (!if_set_queue_len("qtap0", 10)) {
        g_test_message("the interface has room for all");
    }
    env_start_full(&e, 2, true, "none", "-S");
    host_send(&e.tap[0], 1000, FRAME_LEN);
    wait_tap_blocked(&e);
    filter_add(&e, "f0", "netdev=n1,queue=tx,out_netdev=n0,"
               "enable_when_stopped=on");
    for (i = 0; i < 3; i++) {
        vm_stall(&e, true);
        for (j = 0; j < n; j++) {
            host_send(&e.tap[1], i * n + j, 1400);
        }
        vm_stall(&e, false);
        patience_begin();
        while (if_tx_packets("qtap1") < (i + 1) * n) {
            patience_check();
            vm_answers(&e);
        }
        for (j = 0; j < n; j++) {
            tap_expect(&e.tap[0], i * n + j, 1400);
        }
    }
    env_stop(&e);
}

/* What the guest sends comes back to it through its own TAP */
static void test_chain_out_own(void)
{
    g_autofree uint8_t *buf = g_malloc(WIRE_MAX);
    ssize_t len;
    int host;
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,queue=rx,out_netdev=n0");
    host = packet_socket(e.tap[0].name, SOCK_RAW, ETH_P_TEST);
    wire_send(e.guest[0], 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);

    filter_set_status(&e, "f0", false);
    wire_send(e.guest[0], 2, FRAME_LEN);
    wait_fd(host, POLLIN);
    len = recv(host, buf, WIRE_MAX, 0);
    assert_frame(buf, len, 2, FRAME_LEN);
    close(host);
    env_stop(&e);
}

/*
 * With a virtio-net NIC for a peer the frames in the chain have a vnet header
 * in front: taken off for the interface, put on for a copy.
 */
static void test_chain_virtio_net(void)
{
    static const char bios[64 * 1024];
    g_autofree char *options = NULL;
    g_autofree char *path = NULL;
    struct virtio_net_hdr hdr;
    size_t hdr_len, len;
    g_autofree uint8_t *buf = NULL;
    Env e;

    if (!qtest_has_machine("pc") || !qtest_has_device("virtio-net-pci")) {
        g_test_skip("no virtio-net-pci");
        return;
    }

    /* No firmware runs, but there must be some */
    path = g_strdup_printf("%s/bios", tmpdir);
    g_assert_true(g_file_set_contents(path, bios, sizeof(bios), NULL));
    options = g_strdup_printf("-bios %s "
                              "-device virtio-net-pci,netdev=n0,romfile= "
                              "-device virtio-net-pci,netdev=n1,romfile=",
                              path);
    env_init(&e);
    env_start_full(&e, 2, false, "pc", options);
    unlink(path);
    filter_add(&e, "f0", "netdev=n0,queue=tx,out_netdev=n1");
    filter_add(&e, "f1", "netdev=n1,in_netdev=n1,queue=tx");
    filter_add(&e, "f2", "netdev=n1,queue=tx,outdev=c0,vnet_hdr_support=on");

    /* Injected frames are not captured: this is what n1 reads */
    host_send(&e.tap[0], 1, FRAME_LEN);
    buf = wire_recv_vnet(e.chr[0], &hdr, &hdr_len, &len);
    g_assert_cmpint(hdr_len, ==, VNET_HDR_LEN);
    g_assert_true(buffer_is_zero(&hdr, sizeof(hdr)));
    assert_frame(buf + hdr_len, len, 1, FRAME_LEN);
    g_clear_pointer(&buf, g_free);

    /* What the host sends is read from the TAP, and captured: twice there */
    host_send(&e.tap[1], 2, FRAME_LEN);
    for (int i = 0; i < 2; i++) {
        buf = wire_recv_vnet(e.chr[0], &hdr, &hdr_len, &len);
        g_assert_cmpint(hdr_len, ==, VNET_HDR_LEN);
        g_assert_true(buffer_is_zero(&hdr, sizeof(hdr)));
        assert_frame(buf + hdr_len, len, 2, FRAME_LEN);
        g_clear_pointer(&buf, g_free);
    }
    env_stop(&e);
}

/* As ever: chain -> outdev, and indev -> chain */
static void test_chain_chardevs(void)
{
    Env e;
    int i;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,queue=tx,"
              "outdev=c0 "
              "-object filter-redirector,id=f1,netdev=n0,queue=tx,indev=c1");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    wire_send(e.chr[1], 2, FRAME_LEN);
    wire_expect(e.guest[0], 2, FRAME_LEN);
    filter_del(&e, "f0");

    /* To a peer that comes and goes */
    filter_add(&e, "f0", "netdev=n0,queue=tx,outdev=s0");
    for (i = 0; i < 3; i++) {
        int fd = listener_connect(&e);

        vm_answers(&e);
        host_send(&e.tap[0], i, FRAME_LEN);
        wire_expect(fd, i, FRAME_LEN);
        close(fd);
        vm_answers(&e);
    }
    env_stop(&e);
}


/* No loops */

static void test_loop_chardevs(void)
{
    Env e;
    int i;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "in_netdev=n0,outdev=c0 "
              "-object filter-redirector,id=f1,netdev=n0,"
              "indev=c1,out_netdev=n0");
    for (i = 0; i < 10; i++) {
        wire_send(e.chr[1], i, FRAME_LEN);
    }
    for (i = 0; i < 10; i++) {
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    host_send(&e.tap[0], i, FRAME_LEN);
    wire_expect(e.chr[0], i, FRAME_LEN);
    wire_expect(e.guest[0], i, FRAME_LEN);
    env_stop(&e);
}

/* What is captured is injected into the same TAP: twice for the guest, only */
static void test_loop_closed(void)
{
    g_autofree char *options =
        g_strdup_printf("-chardev socket,id=m0,path=%s/m0,server=on,wait=off "
                        "-chardev socket,id=m1,path=%s/m0 "
                        "-object filter-redirector,id=f0,netdev=n0,"
                        "in_netdev=n0,outdev=m0 "
                        "-object filter-redirector,id=f1,netdev=n0,"
                        "indev=m1,out_netdev=n0", tmpdir, tmpdir);
    g_autofree char *path = g_strdup_printf("%s/m0", tmpdir);
    Env e;
    int i;

    env_start(&e, 1, options);
    for (i = 0; i < 10; i++) {
        host_send(&e.tap[0], i, FRAME_LEN);
        wire_expect(e.guest[0], i, FRAME_LEN);
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    env_stop(&e);
    unlink(path);
}


/* Active and inactive */

/* Read frames in rising order up to @last, which must arrive */
static int wire_expect_rising(Env *e, int fd, uint32_t last, size_t len)
{
    int64_t before = -1;
    int n = 0;

    while (before < last) {
        size_t got;
        struct pollfd pfd = { .fd = fd, .events = POLLIN };
        g_autofree uint8_t *buf = NULL;
        uint32_t seq;

        /* There was no room for the last one, but there is now */
        if (poll(&pfd, 1, 1000) == 0) {
            host_send(&e->tap[0], last, len);
        }
        buf = wire_recv(fd, &got);
        seq = ldl_be_p(buf + SEQ_OFFSET);
        g_assert_cmpint(seq, >, before);
        assert_frame(buf, got, seq, len);
        before = seq;
        n++;
    }
    return n;
}

/*
 * Reader of what QEMU takes from a TAP, which works with the VM stopped, too,
 * and what is read here is not passed to the guest
 */
static void tap_reader_add(Env *e)
{
    filter_add(e, "reader", "netdev=n0,queue=tx,outdev=c1");
}


typedef struct Activity {
    const char *name;
    const char *props;
    bool running;
    bool stopped;
} Activity;

static const Activity activities[] = {
    { "default", "", true, false },
    { "always", ",enable_when_stopped=on", true, true },
    { "only-stopped", ",enable_when_stopped=on,enable_when_running=off",
      false, true },
    { "only-running", ",enable_when_stopped=off,enable_when_running=on",
      true, false },
};

/*
 * A frame while inactive, then one that is the first to be captured.  To be
 * active in the stopped VM only is another thing with queue=tx.
 */
static void test_activity_capture(const void *opaque)
{
    const Activity *a = opaque;
    g_autofree char *props =
        g_strdup_printf("netdev=n0,queue=rx,in_netdev=n0,outdev=c0%s",
                        a->props);
    uint32_t seq = 0;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", props);
    for (i = 0; i < 6; i++) {
        bool running = i % 2 == 0;
        bool active = running ? a->running : a->stopped;

        /* Inactive costs the host nothing: no socket is offered its frames */
        wait_capturing(active);
        host_send(&e.tap[0], seq, FRAME_LEN);
        if (active) {
            wire_expect(e.chr[0], seq, FRAME_LEN);
        }
        seq++;
        vm_run(&e, !running);
    }
    env_stop(&e);
}

/* The same from the start: the filter is set up with the VM stopped */
static void test_activity_capture_stopped(const void *opaque)
{
    const Activity *a = opaque;
    g_autofree char *options =
        g_strdup_printf("-S -object filter-redirector,id=f0,netdev=n0,"
                        "queue=rx,in_netdev=n0,outdev=c0%s", a->props);
    Env e;

    env_start(&e, 1, options);
    host_send(&e.tap[0], 1, FRAME_LEN);
    if (a->stopped) {
        wire_expect(e.chr[0], 1, FRAME_LEN);
    }
    vm_run(&e, true);
    host_send(&e.tap[0], 2, FRAME_LEN);
    if (a->running) {
        wire_expect(e.chr[0], 2, FRAME_LEN);
    }
    vm_run(&e, false);
    vm_run(&e, true);
    vm_run(&e, false);
    host_send(&e.tap[0], 3, FRAME_LEN);
    if (a->stopped) {
        wire_expect(e.chr[0], 3, FRAME_LEN);
    }
    vm_run(&e, true);
    host_send(&e.tap[0], 4, FRAME_LEN);
    if (a->running) {
        wire_expect(e.chr[0], 4, FRAME_LEN);
    }
    env_stop(&e);
}

/*
 * Frames that come while the filter is inactive are read, but do not appear
 * before frames of the host that were sent later; when it is active, they do.
 */
static void test_activity_inject(const void *opaque)
{
    const Activity *a = opaque;
    g_autofree char *props =
        g_strdup_printf("netdev=n0,indev=c0,out_netdev=n0%s", a->props);
    uint32_t held = 0;
    Env e;
    int i, j;

    env_start(&e, 1, "");
    tap_reader_add(&e);
    filter_add(&e, "f0", props);
    for (i = 0; i < 6; i++) {
        bool running = i % 2 == 0;

        if (running ? a->running : a->stopped) {
            for (j = 0; j < held; j++) {
                wire_expect(e.chr[1], 100 * (i - 1) + j, FRAME_LEN);
            }
            held = 0;
            wire_send(e.chr[0], 100 * i, FRAME_LEN);
            wire_expect(e.chr[1], 100 * i, FRAME_LEN);
        } else {
            for (held = 0; held < 100; held++) {
                wire_send(e.chr[0], 100 * i + held, FRAME_LEN);
            }
            wait_consumed(&e, e.chr[0]);
            host_send(&e.tap[0], 1000000, FRAME_LEN);
            wire_expect(e.chr[1], 1000000, FRAME_LEN);
        }
        vm_run(&e, !running);
    }
    env_stop(&e);
}

/*
 * What has been captured is the peer's, however late it reads; of what passes
 * while the filter is inactive, it gets nothing.
 */
static void test_activity_backlog(void)
{
    const int n = 3000;
    uint32_t seq = 0;
    Env e;
    int i, j;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    for (i = 0; i < 2; i++) {
        for (j = 0; j < n; j++) {
            host_send(&e.tap[0], seq++, 1400);
        }
        vm_run(&e, false);
        host_send(&e.tap[0], 1000000, 1400);
        if (i == 0) {
            /* All is read before the filter becomes active again, or not */
            j = wire_expect_rising(&e, e.chr[0], seq - 1, 1400);
            g_assert_cmpint(j, >=, have_big_buffers ? n : 50);
            vm_answers(&e);
            host_send(&e.tap[0], 1000000, 1400);
        }
        vm_run(&e, true);
    }
    host_send(&e.tap[0], seq, 1400);
    j = wire_expect_rising(&e, e.chr[0], seq, 1400);
    g_assert_cmpint(j, >=, have_big_buffers ? n + 1 : 50);
    env_stop(&e);
}

/* Redirectors between chain and chardevs work while stopped, unless told */
static void test_activity_chain(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,outdev=c0");
    vm_run(&e, false);
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    filter_del(&e, "f0");

    filter_add(&e, "f0", "netdev=n0,queue=tx,outdev=c0,"
               "enable_when_stopped=off");
    host_send(&e.tap[0], 2, FRAME_LEN);
    vm_answers(&e);
    vm_run(&e, true);
    wire_expect(e.guest[0], 2, FRAME_LEN);
    host_send(&e.tap[0], 3, FRAME_LEN);
    wire_expect(e.chr[0], 3, FRAME_LEN);
    filter_del(&e, "f0");

    /* Into the chain: what waits is not lost */
    tap_reader_add(&e);
    filter_add(&e, "f0", "netdev=n0,queue=tx,indev=c0,position=head");
    vm_run(&e, false);
    wire_send(e.chr[0], 4, FRAME_LEN);
    wire_expect(e.chr[1], 4, FRAME_LEN);
    filter_del(&e, "f0");

    filter_add(&e, "f0", "netdev=n0,queue=tx,indev=c0,position=head,"
               "enable_when_stopped=off");
    wire_send(e.chr[0], 5, FRAME_LEN);
    wire_send(e.chr[0], 6, FRAME_LEN);
    vm_answers(&e);
    host_send(&e.tap[0], 7, FRAME_LEN);
    wire_expect(e.chr[1], 7, FRAME_LEN);
    vm_run(&e, true);
    wire_expect(e.chr[1], 5, FRAME_LEN);
    wire_expect(e.chr[1], 6, FRAME_LEN);
    env_stop(&e);
}

/* The options can be changed while the filter works */
static void test_activity_change(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    vm_run(&e, false);
    host_send(&e.tap[0], 1, FRAME_LEN);
    qtest_qom_set_bool(e.qts, "/objects/f0", "enable_when_stopped", true);
    g_assert_true(qtest_qom_get_bool(e.qts, "/objects/f0",
                                     "enable_when_stopped"));
    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.chr[0], 2, FRAME_LEN);
    qtest_qom_set_bool(e.qts, "/objects/f0", "enable_when_running", false);
    vm_run(&e, true);
    host_send(&e.tap[0], 3, FRAME_LEN);
    vm_run(&e, false);
    host_send(&e.tap[0], 4, FRAME_LEN);
    wire_expect(e.chr[0], 4, FRAME_LEN);
    env_stop(&e);
}

/*
 * A VM that waits for a migration: what comes for it is kept, and a capture of
 * its host interface has nothing that is for this VM.
 */
static void test_activity_incoming(const void *opaque)
{
    const Activity *a = opaque;
    g_autofree char *inject =
        g_strdup_printf("netdev=n0,indev=c0,out_netdev=n0%s", a->props);
    g_autofree char *capture =
        g_strdup_printf("netdev=n0,in_netdev=n0,outdev=s0%s", a->props);
    int fd;
    Env e;
    int i;

    env_start(&e, 1, "-incoming defer");
    tap_reader_add(&e);
    filter_add(&e, "f0", inject);
    fd = listener_connect(&e);
    filter_add(&e, "f1", capture);
    for (i = 0; i < 100; i++) {
        wire_send(e.chr[0], i, FRAME_LEN);
    }
    wait_consumed(&e, e.chr[0]);
    g_assert_cmpint(filter_stat(&e, "f0", "held", "packets"), ==, 100);

    /* What comes directly waits in the TAP, until there is neither */
    host_send(&e.tap[0], 1000, FRAME_LEN);
    vm_answers(&e);
    g_assert_cmpint(if_tx_packets(e.tap[0].name), ==, 0);
    filter_del(&e, "f0");
    filter_del(&e, "f1");
    wire_expect(e.chr[1], 1000, FRAME_LEN);

    /* The peer's first frame, and last, is not from f1 */
    filter_add(&e, "f1", "netdev=n0,queue=tx,outdev=s0,position=head");
    host_send(&e.tap[0], 1001, FRAME_LEN);
    wire_expect(fd, 1001, FRAME_LEN);
    close(fd);
    env_stop(&e);
}

/* chain -> out_netdev, inactive: the frame goes its usual way */
static void test_activity_chain_out(void)
{
    Env e;

    env_start(&e, 2, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,out_netdev=n1,"
               "enable_when_stopped=on,enable_when_running=off");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    vm_run(&e, false);
    host_send(&e.tap[0], 2, FRAME_LEN);
    vm_answers(&e);
    vm_run(&e, true);
    wire_expect(e.guest[1], 2, FRAME_LEN);
    host_send(&e.tap[0], 3, FRAME_LEN);
    wire_expect(e.guest[0], 3, FRAME_LEN);
    env_stop(&e);
}

static void test_status_capture(void)
{
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,status=off");
    for (i = 0; i < 3; i++) {
        host_send(&e.tap[0], 10 * i, FRAME_LEN);
        filter_set_status(&e, "f0", true);
        host_send(&e.tap[0], 10 * i + 1, FRAME_LEN);
        wire_expect(e.chr[0], 10 * i + 1, FRAME_LEN);
        filter_set_status(&e, "f0", false);
    }

    /* The VM's state does not override it */
    vm_run(&e, false);
    vm_run(&e, true);
    host_send(&e.tap[0], 100, FRAME_LEN);
    filter_set_status(&e, "f0", true);
    host_send(&e.tap[0], 101, FRAME_LEN);
    wire_expect(e.chr[0], 101, FRAME_LEN);
    env_stop(&e);
}

/* Off does not even read: the sender notices, and nothing is lost */
static void test_status_inject(void)
{
    Env e;
    int i;

    env_start(&e, 1, "");
    tap_reader_add(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,status=off");
    for (i = 0; i < 3; i++) {
        int size;

        g_assert_cmpint(unread_bytes(e.chr[0]), ==, 0);
        wire_send(e.chr[0], 10 * i, FRAME_LEN);
        size = unread_bytes(e.chr[0]);
        vm_answers(&e);
        vm_run(&e, false);
        vm_run(&e, true);
        host_send(&e.tap[0], 10 * i + 1, FRAME_LEN);
        wire_expect(e.chr[1], 10 * i + 1, FRAME_LEN);
        g_assert_cmpint(unread_bytes(e.chr[0]), ==, size);

        filter_set_status(&e, "f0", true);
        wire_expect(e.chr[1], 10 * i, FRAME_LEN);
        wire_send(e.chr[0], 10 * i + 2, FRAME_LEN);
        wire_expect(e.chr[1], 10 * i + 2, FRAME_LEN);
        filter_set_status(&e, "f0", false);
    }
    env_stop(&e);
}

/* The same where indev feeds the chain */
static void test_status_chain(void)
{
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,queue=tx,indev=c0,status=off");
    wire_send(e.chr[0], 1, FRAME_LEN);
    vm_answers(&e);
    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.guest[0], 2, FRAME_LEN);
    g_assert_cmpint(unread_bytes(e.chr[0]), >, 0);
    filter_set_status(&e, "f0", true);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    env_stop(&e);
}

/* Off with a backlog: it stays, it is not injected, and it comes with "on" */
static void test_status_held(void)
{
    Env e;
    int i;

    env_start(&e, 1, "");
    tap_reader_add(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0");
    vm_run(&e, false);
    for (i = 0; i < 20; i++) {
        wire_send(e.chr[0], i, FRAME_LEN);
    }
    wait_consumed(&e, e.chr[0]);
    filter_set_status(&e, "f0", false);
    vm_run(&e, true);
    vm_answers(&e);
    host_send(&e.tap[0], 100, FRAME_LEN);
    wire_expect(e.chr[1], 100, FRAME_LEN);
    filter_set_status(&e, "f0", true);
    for (i = 0; i < 20; i++) {
        wire_expect(e.chr[1], i, FRAME_LEN);
    }
    env_stop(&e);
}


/* Limits and back-pressure */

/*
 * While inactive the filter holds hold_limit, then stops reading: the test
 * finds its socket full.  All of it comes when it is active, in order.
 */
static void test_hold_limit(const void *opaque)
{
    const size_t limit = GPOINTER_TO_SIZE(opaque);
    const size_t n = (limit + 1000000) / 1000;
    g_autofree char *props =
        g_strdup_printf("netdev=n0,indev=c0,out_netdev=n0,hold_limit=%zu,"
                        "enable_when_running=off,enable_when_stopped=on",
                        limit);
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autoptr(GByteArray) rest = g_byte_array_new();
    socklen_t optlen = sizeof(int);
    size_t done = 0;
    int tries = 0;
    Sender sender;
    int sndbuf;
    Env e;
    int i;

    for (i = 0; i < n; i++) {
        wire_append_seq(wire, -1, i, 996);
    }

    env_start(&e, 1, "");
    filter_add(&e, "f0", props);
    getsockopt(e.chr[0], SOL_SOCKET, SO_SNDBUF, &sndbuf, &optlen);
    while (tries < 20) {
        ssize_t ret = send(e.chr[0], wire->data + done, wire->len - done,
                           MSG_DONTWAIT | MSG_NOSIGNAL);

        if (ret < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            vm_answers(&e);
            tries++;
        } else {
            done += ret;
            tries = 0;
            g_assert_cmpint(done, <, wire->len);
        }
    }
    g_test_message("limit %zu: QEMU took %zu, %d unread, buffer %d",
                   limit, done, unread_bytes(e.chr[0]), sndbuf);
    /* Up to one message more or less, and what the socket has room for */
    g_assert_cmpint(done, >=, limit / 2);
    g_assert_cmpint(done, <=, limit + sndbuf + WIRE_MAX);

    g_byte_array_append(rest, wire->data + done, wire->len - done);
    sender_start(&sender, e.chr[0], rest);
    vm_run(&e, false);
    wait_tap_blocked(&e);
    for (i = 1; i < n; i++) {
        tap_expect(&e.tap[0], i, 996);
    }
    g_thread_join(sender.thread);
    vm_run(&e, true);
    wire_expect(e.guest[0], 0, 996);
    env_stop(&e);
}

/*
 * A TAP with a queue for 10 frames, and a reader that starts late: the filter
 * finds the queue full, waits, and loses nothing.
 */
static void test_inject_full_queue(void)
{
    const int n = 2000;
    g_autoptr(GByteArray) wire = g_byte_array_new();
    Sender sender;
    Env e;
    int i;

    for (i = 0; i < n; i++) {
        wire_append_seq(wire, -1, i, 1400);
    }

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    if (!if_set_queue_len("qtap0", 10)) {
        g_test_skip("needs root to set the length of a TAP's queue");
        tap_close(&e.tap[0]);
        return;
    }
    env_start_full(&e, 1, true, "none", "-S");
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "enable_when_stopped=on");
    sender_start(&sender, e.chr[0], wire);

    patience_begin();
    while (!if_tx_dropped("qtap0")) {
        patience_check();
        vm_answers(&e);
    }
    /* Waiting is not spinning */
    assert_idle(&e);

    wait_tap_blocked(&e);
    for (i = 1; i < n; i++) {
        tap_expect(&e.tap[0], i, 1400);
    }
    g_thread_join(sender.thread);
    vm_run(&e, true);
    wire_expect(e.guest[0], 0, 1400);
    env_stop(&e);
}

/*
 * What is captured is not read: QEMU must go on.  The frames wait in the
 * kernel, as many as may, and the rest are dropped there.
 */
static void test_slow_peer(void)
{
    const int n = 5000;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    for (i = 0; i < n; i++) {
        host_send(&e.tap[0], i, 1400);
        if (i % 500 == 0) {
            vm_answers(&e);
        }
    }
    vm_run(&e, false);
    vm_run(&e, true);
    assert_idle(&e);
    i = wire_expect_rising(&e, e.chr[0], n - 1, 1400);
    /* Root may have a receive buffer for all of it */
    g_assert_cmpint(i, >=, have_big_buffers ? n : 50);
    env_stop(&e);
}

static void wait_disconnected(Env *e, const char *id)
{
    patience_begin();
    while (chardev_is_connected(e, id)) {
        patience_check();
    }
}

/* A peer for the chardev that listens on port 4242 */
static int tcp_connect(bool slow)
{
    struct sockaddr_in sin = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(4242),
    };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int size = 4096;

    if (slow) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    }
    g_assert_cmpint(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), ==, 0);
    return fd;
}

/*
 * A peer that leaves in the middle of a frame: the next one gets it whole.
 * TCP, as a Unix socket takes all of a frame or nothing.
 */
static void test_peer_change(void)
{
    const int n = 4000;
    int fd;
    Env e;
    int i, j;

    if_set_up("lo", true);
    env_start(&e, 1, "-chardev socket,id=t0,host=127.0.0.1,port=4242,"
              "server=on,wait=off");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=t0");
    for (i = 0; i < 4; i++) {
        fd = tcp_connect(i < 3);
        vm_answers(&e);
        if (i == 3) {
            host_send(&e.tap[0], i * n, 1400);
            wire_expect_rising(&e, fd, i * n, 1400);
        }
        for (j = 0; i < 3 && j < n; j++) {
            host_send(&e.tap[0], i * n + j, 1400);
        }
        vm_answers(&e);
        close(fd);
        vm_answers(&e);
    }
    env_stop(&e);
}

/*
 * What was captured for a peer that left when the capture had ended is not
 * for the next one, however soon that comes: it gets the next capture.
 */
static void test_peer_stale(void)
{
    const int n = 6000;
    int fd;
    Env e;
    int i;

    if_set_up("lo", true);
    env_start(&e, 1, "-S -chardev socket,id=t0,host=127.0.0.1,port=4242,"
              "server=on,wait=off");
    filter_add(&e, "f0", "netdev=n0,queue=rx,in_netdev=n0,outdev=t0,"
               "enable_when_running=off,enable_when_stopped=on");
    fd = tcp_connect(true);
    host_send(&e.tap[0], 0, 1400);
    wire_expect(fd, 0, 1400);
    wait_tap_blocked(&e);
    for (i = 1; i < n; i++) {
        host_send(&e.tap[0], i, 1400);
        tap_expect(&e.tap[0], i, 1400);
    }
    vm_answers(&e);
    vm_run(&e, true);
    wire_expect(e.guest[0], 0, 1400);
    close(fd);
    wait_disconnected(&e, "t0");

    fd = tcp_connect(false);
    vm_run(&e, false);
    host_send(&e.tap[0], n, 1400);
    wire_expect(fd, n, 1400);
    close(fd);
    env_stop(&e);
}

/* UDP.  That no peer listened is told to the next write, which is lost */
static void test_udp_peer(void)
{
    struct sockaddr_in sin = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(4243),
    };
    uint8_t buf[4 + FRAME_LEN];
    uint32_t seq;
    int got = 0;
    int fd;
    Env e;

    if_set_up("lo", true);
    env_start(&e, 1, "-chardev udp,id=u0,host=127.0.0.1,port=4243");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=u0");
    for (seq = 0; seq < 10; seq++) {
        host_send(&e.tap[0], seq, FRAME_LEN);
        wire_expect(e.guest[0], seq, FRAME_LEN);
        vm_answers(&e);
    }
    assert_idle(&e);

    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), ==, 0);
    for (; seq < 20; seq++) {
        host_send(&e.tap[0], seq, FRAME_LEN);
        wire_expect(e.guest[0], seq, FRAME_LEN);
    }
    do {
        wait_fd(fd, POLLIN);
        g_assert_cmpint(recv(fd, buf, sizeof(buf), 0), ==, sizeof(buf));
        g_assert_cmpint(ldl_be_p(buf), ==, FRAME_LEN);
        seq = ldl_be_p(buf + 4 + SEQ_OFFSET);
        assert_frame(buf + 4, FRAME_LEN, seq, FRAME_LEN);
        got++;
    } while (seq < 19);
    g_assert_cmpint(got, >=, 9);
    close(fd);
    env_stop(&e);
}

/* Nor does it matter if the peer has gone, or has never been there */
static void test_no_peer(void)
{
    int fd;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,in_netdev=n0,outdev=s0");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    close(e.chr[0]);
    e.chr[0] = -1;
    for (i = 0; i < 100; i++) {
        host_send(&e.tap[0], 2, FRAME_LEN);
        wire_expect(e.guest[0], i ? 2 : 1, FRAME_LEN);
    }
    assert_idle(&e);

    /* One that comes late begins with a whole frame */
    fd = listener_connect(&e);
    vm_answers(&e);
    host_send(&e.tap[0], 5, FRAME_LEN);
    for (i = 2; i != 5; ) {
        size_t len;
        g_autofree uint8_t *buf = wire_recv(fd, &len);

        g_assert_cmpint(len, ==, FRAME_LEN);
        i = ldl_be_p(buf + SEQ_OFFSET);
        assert_frame(buf, len, i, FRAME_LEN);
    }

    /* And so does the next */
    close(fd);
    vm_answers(&e);
    fd = listener_connect(&e);
    vm_answers(&e);
    host_send(&e.tap[0], 6, FRAME_LEN);
    wire_expect(fd, 6, FRAME_LEN);
    close(fd);
    env_stop(&e);
}


/* QEMU does not read for a while: what is captured waits, all of it */
static void test_capture_stalled(void)
{
    const int n = 3000;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    vm_stall(&e, true);
    for (i = 0; i < n; i++) {
        host_send(&e.tap[0], i, 1400);
    }
    vm_stall(&e, false);
    if (no_ring && !have_big_buffers) {
        i = wire_expect_rising(&e, e.chr[0], n, 1400);
        g_assert_cmpint(i, >=, 50);
    } else {
        for (i = 0; i < n; i++) {
            wire_expect(e.chr[0], i, 1400);
        }
        host_send(&e.tap[0], n, 1400);
        wire_expect(e.chr[0], n, 1400);
    }
    env_stop(&e);
}

/*
 * The same with few frames, and time between them: the kernel closes a block
 * of the ring some milliseconds after its first frame, however empty it is.
 * The times are the traffic's; the test waits for nothing.
 */
static void test_capture_stalled_paced(void)
{
    const int n = 150;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    vm_stall(&e, true);
    for (i = 0; i < n; i++) {
        host_send(&e.tap[0], i, FRAME_LEN);
        g_usleep(3000);
    }
    vm_stall(&e, false);
    for (i = 0; i < n; i++) {
        wire_expect(e.chr[0], i, FRAME_LEN);
    }
    env_stop(&e);
}

/* More than the smallest ring holds: a part is lost, which is told, once */
static void test_capture_ring_full(void)
{
    const int n = 2000;
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", path);
    uint32_t seq = 0;
    Env e;
    int i, j;

    env_start(&e, 1, options);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,"
               "ring_size=262144");
    for (i = 0; i < 2; i++) {
        vm_stall(&e, true);
        for (j = 0; j < n; j++) {
            host_send(&e.tap[0], seq++, 1400);
        }
        vm_stall(&e, false);
        vm_answers(&e);

        host_send(&e.tap[0], seq, 1400);
        /* With that one */
        j = wire_expect_rising(&e, e.chr[0], seq, 1400) - 1;
        g_test_message("%d of %d frames", j, n);
        /* Two blocks, which the kernel takes early where sending is slow */
        g_assert_cmpint(j, >=, 2);
        g_assert_cmpint(j, <, n);
        seq++;
        wait_warned_once(&e, path, "the receive ring was full");
    }
    unlink(path);
    env_stop(&e);
}


/* Peers of filters in the chain, which cannot be made to wait */

/*
 *   guest[0] --> g0 --> filter --> hub --> g1 --> guest[1]
 *                         |
 *                         +--> outdev
 *
 * There is a monitor on c1, so that a QEMU that waits for a peer is found out.
 */
typedef struct Writer {
    const char *type;
    bool redirects;             /* what it sees does not go on to guest[1] */
} Writer;

static const Writer writers[] = {
    { "filter-mirror", false },
    { "filter-redirector", true },
};

static void writer_start(Env *e, const Writer *w, const char *outdev,
                         const char *options)
{
    g_autofree char *props = g_strdup_printf("netdev=g0,queue=tx,outdev=%s",
                                             outdev);
    g_autofree char *all = NULL;
    int fd[2];

    socket_pair(fd);
    all = g_strdup_printf("-netdev socket,id=g1,fd=%d "
                          "-netdev hubport,id=hg1,hubid=0,netdev=g1 "
                          "-mon chardev=c1,mode=control %s", fd[1], options);
    env_start_no_tap(e, all);
    close(fd[1]);
    e->guest[1] = fd[0];
    mon_start(e->chr[1]);
    assert_success(object_add(e, w->type, "f0", props));
}

/* The guest sends @n frames, no more at once than a socket has room for */
static void writer_feed(Env *e, const Writer *w, uint32_t seq, int n,
                        size_t len)
{
    while (n) {
        g_autoptr(GByteArray) wire = g_byte_array_new();
        int batch = MIN(n, 50);
        int i;

        for (i = 0; i < batch; i++) {
            wire_append_seq(wire, -1, seq + i, len);
        }
        write_all(e->guest[0], wire->data, wire->len);
        for (i = 0; i < batch && !w->redirects; i++) {
            wire_expect(e->guest[1], seq + i, len);
        }
        mon_answers(e->chr[1]);
        seq += batch;
        n -= batch;
    }
    wait_consumed(e, e->guest[0]);
}

/* All that QEMU has for the peer, from @seq without a gap; returns the next */
static uint32_t writer_expect_all(Env *e, int fd, uint32_t seq, size_t len)
{
    while (true) {
        if (!readable(fd)) {
            vm_answers(e);
            if (!readable(fd)) {
                return seq;
            }
        }
        wire_expect(fd, seq++, len);
    }
}

/* A peer that does not read: it gets what fits into QEMU's queue */
static void test_writer_slow_peer(const void *opaque)
{
    const Writer *w = opaque;
    const int n = 20000;
    const size_t limit = 4 * 1024 * 1024;
    const size_t message_len = 4 + 1400;
    socklen_t optlen = sizeof(int);
    size_t bytes;
    int sndbuf;
    Env e;
    int i;

    writer_start(&e, w, "c0", "");
    getsockopt(e.chr[0], SOL_SOCKET, SO_SNDBUF, &sndbuf, &optlen);
    writer_feed(&e, w, 0, n, 1400);
    assert_idle(&e);
    bytes = writer_expect_all(&e, e.chr[0], 0, 1400) * message_len;
    g_test_message("%zu bytes for the peer, of %zu", bytes, n * message_len);
    g_assert_cmpint(bytes, >=, limit - message_len);
    g_assert_cmpint(bytes, <=, limit + sndbuf + 1024 * 1024);

    /* From here on it reads */
    for (i = 0; i < 100; i++) {
        writer_feed(&e, w, n + 10 * i, 10, 1400);
        for (int j = 0; j < 10; j++) {
            wire_expect(e.chr[0], n + 10 * i + j, 1400);
        }
    }
    env_stop(&e);
}

/* It leaves with the queue full, in the middle of a message: a new beginning */
static void test_writer_peer_change(const void *opaque)
{
    const Writer *w = opaque;
    const int n = 5000;
    const size_t some = 300000;
    g_autofree uint8_t *buf = g_malloc(some);
    uint32_t seq = 0;
    Env e;
    int i;

    writer_start(&e, w, "s0", "");
    for (i = 0; i < 4; i++) {
        int fd = listener_connect(&e);

        vm_answers(&e);
        writer_feed(&e, w, seq, 1, 1400);
        wire_expect(fd, seq, 1400);
        writer_feed(&e, w, seq + 1, n, 1400);
        seq += 1 + n;
        if (i % 2) {
            /*
             * There is room for more than the kernel puts into one buffer, so
             * what QEMU can write then ends in a message
             */
            for (size_t got = 0; got < some; ) {
                ssize_t ret;

                wait_fd(fd, POLLIN);
                ret = recv(fd, buf, some - got, 0);
                g_assert_cmpint(ret, >, 0);
                got += ret;
            }
            vm_answers(&e);
        }
        close(fd);
        if (i < 2) {
            wait_disconnected(&e, "s0");
        }
    }
    env_stop(&e);
}

/* No peer: dropped, which is told once.  One that comes gets what is new */
static void test_writer_no_peer(const void *opaque)
{
    const Writer *w = opaque;
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", path);
    uint32_t seq = 0;
    Env e;
    int i;

    writer_start(&e, w, "s0", options);
    for (i = 0; i < 3; i++) {
        int fd;

        writer_feed(&e, w, seq, 1000, FRAME_LEN);
        seq += 1000;
        wait_warned_once(&e, path, "outdev has no peer to take it");
        fd = listener_connect(&e);
        vm_answers(&e);
        writer_feed(&e, w, seq, 100, FRAME_LEN);
        g_assert_cmpint(writer_expect_all(&e, fd, seq, FRAME_LEN),
                        ==, seq + 100);
        seq += 100;
        close(fd);
        wait_disconnected(&e, "s0");
    }
    unlink(path);
    env_stop(&e);
}


/* Disconnects and bad streams */

typedef struct Route {
    const char *name;
    const char *props;
} Route;

static const Route routes[] = {
    { "inject", "netdev=n0,indev=s0,out_netdev=n0" },
    { "chain", "netdev=n0,queue=tx,indev=s0" },
};

/* Half a frame, another connection, a whole frame: that one arrives only */
static void test_reconnect(const void *opaque)
{
    const Route *route = opaque;
    g_autoptr(GByteArray) wire = g_byte_array_new();
    const size_t cuts[] = { 1, 3, 4, 5, 50, FRAME_LEN + 3 };
    uint32_t seq = 0;
    Env e;
    int i;

    wire_append_seq(wire, -1, 1000, FRAME_LEN);
    env_start(&e, 1, "");
    filter_add(&e, "f0", route->props);
    for (i = 0; i < ARRAY_SIZE(cuts); i++) {
        int fd = listener_connect(&e);

        wire_send(fd, seq, FRAME_LEN);
        wire_expect(e.guest[0], seq++, FRAME_LEN);
        write_all(fd, wire->data, cuts[i]);
        wait_consumed(&e, fd);
        close(fd);
        vm_answers(&e);

        fd = listener_connect(&e);
        wire_send(fd, seq, FRAME_LEN);
        wire_expect(e.guest[0], seq++, FRAME_LEN);
        close(fd);
    }
    env_stop(&e);
}

/* What a peer sent before it closed is not lost */
static void test_reconnect_held(void)
{
    Env e;
    int fd;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", routes[0].props);
    vm_run(&e, false);
    fd = listener_connect(&e);
    for (i = 0; i < 100; i++) {
        wire_send(fd, i, FRAME_LEN);
    }
    wait_consumed(&e, fd);
    close(fd);
    vm_answers(&e);
    fd = listener_connect(&e);
    for (; i < 120; i++) {
        wire_send(fd, i, FRAME_LEN);
    }
    wait_consumed(&e, fd);
    vm_run(&e, true);
    for (i = 0; i < 120; i++) {
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    close(fd);
    env_stop(&e);
}

/* A length that cannot be ends the connection, and nothing else */
static void test_bad_length(const void *opaque)
{
    const Route *route = opaque;
    const uint32_t lengths[] = { WIRE_MAX + 1, 0x80000000, UINT32_MAX };
    uint32_t seq = 0;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", route->props);
    for (i = 0; i < ARRAY_SIZE(lengths); i++) {
        g_autoptr(GByteArray) wire = g_byte_array_new();
        int fd = listener_connect(&e);
        uint8_t byte;

        wire_append_seq(wire, -1, seq, FRAME_LEN);
        wire_append_seq(wire, -1, 1000, FRAME_LEN);
        stl_be_p(wire->data + 4 + FRAME_LEN, lengths[i]);
        wire_append_seq(wire, -1, 1001, FRAME_LEN);
        write_all(fd, wire->data, wire->len);
        wire_expect(e.guest[0], seq++, FRAME_LEN);

        wait_fd(fd, POLLIN);
        g_assert_cmpint(recv(fd, &byte, 1, 0), <=, 0);
        close(fd);

        fd = listener_connect(&e);
        wire_send(fd, seq, FRAME_LEN);
        wire_expect(e.guest[0], seq++, FRAME_LEN);
        close(fd);
        vm_answers(&e);
    }
    assert_idle(&e);
    env_stop(&e);
}


/* AF_PACKET sockets that are passed to a chardev */

/*
 * For a QEMU without capabilities and without a netdev for the TAP:
 *   host -> TAP -> capture chardev -> chain of g0 -> c0
 *   guest[0] -> chain of g0 -> inject chardev -> TAP, read by the test
 */
static void chardev_run(Env *e, Tap *tap, bool vnet)
{
    int i;

    filter_add(e, "f0", vnet ? "netdev=g0,queue=rx,indev=capture,"
               "vnet_hdr_support=on" : "netdev=g0,queue=rx,indev=capture");
    filter_add(e, "f1", "netdev=g0,queue=tx,outdev=inject");
    for (i = 0; i < ARRAY_SIZE(frame_sizes); i++) {
        host_send(tap, i, frame_sizes[i]);
        tap_expect(tap, i, frame_sizes[i]);
        if (!vnet) {
            wire_expect(e->guest[0], i, frame_sizes[i]);
        }
        wire_send(e->guest[0], i, frame_sizes[i]);
        tap_expect(tap, i, frame_sizes[i]);
    }
    filter_del(e, "f0");
    filter_del(e, "f1");
}

static void test_chardev_command_line(void)
{
    g_autofree char *options = NULL;
    int capture, inject, host;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap0");
    if_set_mtu(tap.name, 9000);
    capture = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    inject = packet_socket(tap.name, SOCK_RAW, 0);
    fcntl(capture, F_SETFD, 0);
    fcntl(inject, F_SETFD, 0);
    options = g_strdup_printf("-chardev socket,id=capture,fd=%d,"
                              "af-packet-mode=capture "
                              "-chardev socket,id=inject,fd=%d,"
                              "af-packet-mode=inject", capture, inject);
    env_start_no_tap(&e, options);
    close(capture);
    close(inject);
    chardev_run(&e, &tap, false);

    /* The peer does not read: no reason to spin */
    host_send(&tap, 99, FRAME_LEN);
    assert_idle(&e);

    /* What a guest sends is not captured, the same as with in_netdev */
    filter_add(&e, "f0", "netdev=g0,queue=rx,indev=capture");
    wire_expect(e.guest[0], 99, FRAME_LEN);
    host = packet_socket(tap.name, SOCK_RAW, ETH_P_TEST);
    {
        struct virtio_net_hdr none = { 0 };
        uint8_t frame[FRAME_LEN];

        frame_fill(frame, 100, sizeof(frame));
        tap_send(&tap, &none, frame, sizeof(frame));
        wait_fd(host, POLLIN);
    }
    host_send(&tap, 101, FRAME_LEN);
    wire_expect(e.guest[0], 101, FRAME_LEN);
    close(host);
    env_stop(&e);
    tap_close(&tap);
}

static void test_chardev_getfd(void)
{
    int capture, inject;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap0");
    if_set_mtu(tap.name, 9000);
    capture = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    inject = packet_socket(tap.name, SOCK_RAW, 0);
    env_start_no_tap(&e, "");
    assert_success(chardev_add(&e, "capture", capture,
                               "af-packet-mode=capture"));
    assert_success(chardev_add(&e, "inject", inject,
                               "af-packet-mode=inject,server=off,"
                               "af-packet-vnet-hdr=off"));
    close(capture);
    close(inject);
    chardev_run(&e, &tap, false);
    env_stop(&e);
    tap_close(&tap);
}

/* Shortest frames and metadata, exact, from the chardev into the TAP */
static void test_chardev_vnet_hdr(void)
{
    struct virtio_net_hdr hdr = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .csum_start = 34,
        .csum_offset = 16,
    };
    struct virtio_net_hdr got;
    uint8_t frame[1514];
    uint8_t buf[1514];
    size_t len;
    int inject;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap1");
    tap_set_offload(&tap, TUN_F_CSUM);
    inject = packet_socket(tap.name, SOCK_RAW, 0);
    env_start(&e, 1, "");
    assert_success(chardev_add(&e, "inject", inject, "af-packet-mode=inject,"
                               "af-packet-vnet-hdr=on"));
    close(inject);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=inject,"
               "vnet_hdr_support=on");

    for (len = 14; len <= sizeof(frame); len += 100) {
        frame_fill(frame, 1, len);
        g_assert_cmpint(send(e.tap[0].host, frame, len, 0), ==, len);
        g_assert_cmpint(tap_recv(&tap, &got, buf, sizeof(buf)), ==, len);
        g_assert_cmpmem(buf, len, frame, len);
        g_assert_true(buffer_is_zero(&got, sizeof(got)));
    }

    /* A host that leaves the checksum to the interface */
    {
        int one = 1;
        struct iovec iov[] = {
            { .iov_base = &hdr, .iov_len = VNET_HDR_LEN },
            { .iov_base = frame, .iov_len = FRAME_LEN },
        };

        tap_set_offload(&e.tap[0], TUN_F_CSUM);
        g_assert_cmpint(setsockopt(e.tap[0].host, SOL_PACKET, PACKET_VNET_HDR,
                                   &one, sizeof(one)), ==, 0);
        frame_fill(frame, 2, FRAME_LEN);
        g_assert_cmpint(writev(e.tap[0].host, iov, 2),
                        ==, VNET_HDR_LEN + FRAME_LEN);
        g_assert_cmpint(tap_recv(&tap, &got, buf, sizeof(buf)), ==, FRAME_LEN);
        g_assert_cmpmem(buf, FRAME_LEN, frame, FRAME_LEN);
        g_assert_cmpmem(&got, VNET_HDR_LEN, &hdr, VNET_HDR_LEN);
    }
    env_stop(&e);
    tap_close(&tap);
}

/*
 * Into an interface whose reader is late: all of it waits, in the TAP's queue
 * for 10 frames and in the capture's socket, and QEMU does not.
 */
static void test_chardev_full_queue(void)
{
    const int n = 300;
    int inject;
    Tap tap;
    Env e;
    int i;

    tap_open(&tap, "qtap1");
    if (!if_set_queue_len("qtap1", 10)) {
        g_test_skip("needs root to set the length of a TAP's queue");
        tap_close(&tap);
        return;
    }
    inject = packet_socket(tap.name, SOCK_RAW, 0);
    env_start(&e, 1, "");
    assert_success(chardev_add(&e, "inject", inject, "af-packet-mode=inject"));
    close(inject);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=inject");
    for (i = 0; i < n; i++) {
        host_send(&e.tap[0], i, FRAME_LEN);
        if (i % 50 == 0) {
            vm_answers(&e);
        }
    }
    assert_idle(&e);
    g_assert_cmpint(if_tx_dropped(tap.name), >, 0);
    for (i = 0; i < n; i++) {
        tap_expect(&tap, i, FRAME_LEN);
    }
    env_stop(&e);
    tap_close(&tap);
}

/*
 * An injecting socket is not for reading, whatever arrives at it: before it
 * was passed, when it listened to everything, or later.
 */
static void test_chardev_inject_deaf(void)
{
    static const uint16_t types[] = {
        ETH_P_TEST, ETH_P_IP, 0xffff, 0x0600, 0x05ff, 4, 0,
    };
    struct virtio_net_hdr none = { 0 };
    uint8_t frame[FRAME_LEN];
    int inject;
    Tap tap;
    Env e;
    int i;

    tap_open(&tap, "qtap1");
    inject = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    frame_fill(frame, 0, sizeof(frame));
    tap_send(&tap, &none, frame, sizeof(frame));
    wait_fd(inject, POLLIN);

    env_start(&e, 1, "");
    assert_success(chardev_add(&e, "inject", inject, "af-packet-mode=inject"));
    close(inject);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=inject");
    assert_idle(&e);
    host_send(&e.tap[0], 1, FRAME_LEN);
    tap_expect(&tap, 1, FRAME_LEN);

    for (i = 0; i < ARRAY_SIZE(types); i++) {
        stw_be_p(frame + 2 * ETH_ALEN, types[i]);
        tap_send(&tap, &none, frame, sizeof(frame));
        vm_answers(&e);
        host_send(&e.tap[0], i, FRAME_LEN);
        tap_expect(&tap, i, FRAME_LEN);
    }
    assert_idle(&e);
    env_stop(&e);
    tap_close(&tap);
}

/*
 * The filter's stream has vnet headers, the chardev does not know: it reads
 * the last bytes of the frame as a length.  This ends the connection, and a
 * filter on the way to it is no reason to spin.
 */
static void test_chardev_mismatch(void)
{
    int inject;
    Tap tap;
    Env e;

    tap_open(&tap, "qtap1");
    inject = packet_socket(tap.name, SOCK_RAW, 0);
    env_start(&e, 1, "");
    assert_success(chardev_add(&e, "inject", inject, "af-packet-mode=inject,"
                               "af-packet-vnet-hdr=off"));
    close(inject);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=inject,"
               "vnet_hdr_support=on");
    host_send(&e.tap[0], 1, FRAME_LEN);
    wait_disconnected(&e, "inject");
    host_send(&e.tap[0], 2, FRAME_LEN);
    assert_idle(&e);
    env_stop(&e);
    tap_close(&tap);
}

static QDict *add_client(Env *e, const char *id, int fd)
{
    send_fd(e, fd, "fd1");
    return qtest_qmp(e->qts, "{ 'execute': 'add_client', 'arguments':"
                     " { 'protocol': %s, 'fdname': 'fd1' } }", id);
}

/* QMP only says that it failed; why is told to stderr */
static void assert_add_client_error(Env *e, const char *id, int fd,
                                    const char *path, const char *error)
{
    g_autofree char *desc = error_desc(add_client(e, id, fd));
    g_autofree char *text = NULL;

    g_assert_cmpstr(desc, !=, "");
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_nonnull(strstr(text, error));
    g_assert_cmpint(truncate(path, 0), ==, 0);
}

/* The interface goes away; a socket on another one is handed over later */
static void test_chardev_add_client(void)
{
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", path);
    int capture, inject, packet;
    int fd[2];
    Tap tap;
    Env e;

    tap_open(&tap, "qtap0");
    capture = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    inject = packet_socket(tap.name, SOCK_RAW, 0);
    env_start_no_tap(&e, options);
    assert_success(chardev_add(&e, "capture", capture,
                               "af-packet-mode=capture"));
    assert_success(chardev_add(&e, "inject", inject,
                               "af-packet-mode=inject"));
    close(capture);
    close(inject);
    filter_add(&e, "f0", "netdev=g0,queue=rx,indev=capture");
    filter_add(&e, "f1", "netdev=g0,queue=tx,outdev=inject");
    host_send(&tap, 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);

    tap_delete(&tap);
    tap_close(&tap);
    wait_disconnected(&e, "capture");
    /* Inject learns of it with a frame, if not before */
    wire_send(e.guest[0], 2, FRAME_LEN);
    wait_disconnected(&e, "inject");
    assert_idle(&e);

    tap_open(&tap, "qtap1");
    /* Wrong kinds are refused, and do not spoil it for the right one */
    socket_pair(fd);
    assert_add_client_error(&e, "capture", fd[1], path,
                            "'af-packet-mode' requires an AF_PACKET fd\n");
    assert_add_client_error(&e, "inject", fd[1], path,
                            "'af-packet-mode' requires an AF_PACKET fd\n");
    close(fd[0]);
    close(fd[1]);
    packet = packet_socket(NULL, SOCK_RAW, 0);
    assert_add_client_error(&e, "capture", packet, path,
                            "'af-packet-mode': the AF_PACKET fd must be "
                            "bound to an interface\n");
    close(packet);
    wait_disconnected(&e, "capture");
    wait_disconnected(&e, "inject");

    packet = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    assert_success(add_client(&e, "capture", packet));
    close(packet);
    packet = packet_socket(tap.name, SOCK_RAW, 0);
    assert_success(add_client(&e, "inject", packet));
    close(packet);
    host_send(&tap, 3, FRAME_LEN);
    tap_expect(&tap, 3, FRAME_LEN);
    wire_expect(e.guest[0], 3, FRAME_LEN);
    wire_send(e.guest[0], 4, FRAME_LEN);
    tap_expect(&tap, 4, FRAME_LEN);

    /* A chardev of another kind does not take an AF_PACKET socket either */
    close(e.chr[0]);
    e.chr[0] = -1;
    filter_add(&e, "f2", "netdev=g0,queue=tx,indev=c0");
    wait_disconnected(&e, "c0");
    packet = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
    assert_add_client_error(&e, "c0", packet, path, "");
    close(packet);
    unlink(path);

    env_stop(&e);
    tap_close(&tap);
}


/* Interfaces and objects that go away */

static void test_if_down(void)
{
    Env e;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "in_netdev=n0,outdev=c0 "
              "-object filter-redirector,id=f1,netdev=n0,"
              "indev=c1,out_netdev=n0");
    if_set_up(e.tap[0].name, false);
    /* Dropped: there is no link to send it to */
    wire_send(e.chr[1], 1, FRAME_LEN);
    wait_consumed(&e, e.chr[1]);
    assert_idle(&e);

    if_set_up(e.tap[0].name, true);
    host_send(&e.tap[0], 2, FRAME_LEN);
    wire_expect(e.chr[0], 2, FRAME_LEN);
    wire_expect(e.guest[0], 2, FRAME_LEN);
    wire_send(e.chr[1], 3, FRAME_LEN);
    wire_expect(e.guest[0], 3, FRAME_LEN);
    env_stop(&e);
}

/* Up, but its other end seems not to be open: what is injected waits */
static void test_if_no_carrier(void)
{
    Env e;

    env_start(&e, 1, "-object filter-redirector,id=f0,netdev=n0,"
              "indev=c0,out_netdev=n0");
    if (!host_command("ip link set qtap0 carrier off")) {
        g_test_skip("no iproute2");
        env_stop(&e);
        return;
    }
    wire_send(e.chr[0], 1, FRAME_LEN);
    wait_consumed(&e, e.chr[0]);
    assert_idle(&e);
    g_assert_cmpint(filter_stat(&e, "f0", "held", "packets"), ==, 1);
    g_assert_cmpint(filter_stat(&e, "f0", "held", "no-room"), >, 0);

    g_assert_true(host_command("ip link set qtap0 carrier on"));
    wire_expect(e.guest[0], 1, FRAME_LEN);
    g_assert_cmpint(filter_stat(&e, "f0", "held", "packets"), ==, 0);
    env_stop(&e);
}

/*
 * The interface gets another name, and another one gets its name: while the
 * filter is active, and while it is not.
 */
static void test_if_renamed(void)
{
    static const char *const names[] = { "qtap0", "qtap1", "qtap2" };
    Tap other;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    for (i = 0; i < 2; i++) {
        host_send(&e.tap[0], 10 * i, FRAME_LEN);
        wire_expect(e.chr[0], 10 * i, FRAME_LEN);
        wire_expect(e.guest[0], 10 * i, FRAME_LEN);
        filter_set_status(&e, "f0", i == 0);
        wait_capturing(i == 0);
        if_rename(names[i], names[i + 1]);
        tap_open(&other, names[i]);
        filter_set_status(&e, "f0", false);
        wait_capturing(false);
        filter_set_status(&e, "f0", true);
        host_send(&other, 10 * i + 1, FRAME_LEN);
        host_send(&e.tap[0], 10 * i + 2, FRAME_LEN);
        wire_expect(e.chr[0], 10 * i + 2, FRAME_LEN);
        wire_expect(e.guest[0], 10 * i + 2, FRAME_LEN);
        tap_close(&other);
    }
    env_stop(&e);
}

/*
 * QEMU's own TAP backend polls a deleted TAP for ever.  So that no load of
 * the test's is taken for ours, it has stopped reading by then: the VM is
 * stopped, and there is one frame in the queue.
 */
static void test_if_deleted(void)
{
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0,"
               "enable_when_stopped=on");
    filter_add(&e, "f1", "netdev=n0,indev=c1,out_netdev=n0,"
               "enable_when_stopped=on");
    filter_add(&e, "f2", "netdev=n0,queue=tx,in_netdev=n0,"
               "enable_when_stopped=on");
    vm_run(&e, false);
    host_send(&e.tap[0], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    wait_tap_blocked(&e);

    tap_delete(&e.tap[0]);
    assert_idle(&e);
    for (i = 0; i < 10; i++) {
        wire_send(e.chr[1], 2, FRAME_LEN);
    }
    assert_idle(&e);
    filter_set_status(&e, "f0", false);
    filter_set_status(&e, "f1", false);
    filter_set_status(&e, "f1", true);
    vm_answers(&e);
    vm_run(&e, true);
    vm_run(&e, false);
    vm_answers(&e);
    filter_del(&e, "f0");
    filter_del(&e, "f1");
    filter_del(&e, "f2");
    vm_answers(&e);
    env_stop(&e);
}

/* The netdev goes, with its filters on other netdevs still there */
static void test_netdev_del(void)
{
    Env e;

    env_start(&e, 2, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n1,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,indev=c1,out_netdev=n1");
    filter_add(&e, "f2", "netdev=n0,queue=tx,in_netdev=n1");
    host_send(&e.tap[1], 1, FRAME_LEN);
    wire_expect(e.chr[0], 1, FRAME_LEN);
    wire_expect(e.guest[1], 1, FRAME_LEN);

    qtest_qmp_assert_success(e.qts, "{ 'execute': 'netdev_del',"
                             " 'arguments': { 'id': 'n1' } }");
    vm_answers(&e);
    /* The TAP is still there: the test has it */
    host_send(&e.tap[1], 2, FRAME_LEN);
    wire_send(e.chr[1], 3, FRAME_LEN);
    vm_answers(&e);
    assert_idle(&e);
    host_send(&e.tap[0], 4, FRAME_LEN);
    wire_expect(e.guest[0], 4, FRAME_LEN);
    filter_del(&e, "f0");
    filter_del(&e, "f1");
    filter_del(&e, "f2");
    env_stop(&e);
}

/* Fill a connection as far as it goes; returns the next number */
static uint32_t flood(int fd, uint32_t seq)
{
    while (true) {
        g_autoptr(GByteArray) wire = g_byte_array_new();
        ssize_t ret;

        wire_append_seq(wire, -1, seq++, 1000);
        ret = send(fd, wire->data, wire->len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (ret != wire->len) {
            return seq;
        }
    }
}

/*
 * The filter goes while it injects, while it holds, or while it has no room:
 * each frame arrives once or not at all, and the next filter works.
 */
static void test_object_del_inject(void)
{
    int64_t before = 0;
    uint32_t seq = 1;
    int fd;
    Env e;
    int i;

    env_start(&e, 1, "-S");
    host_send(&e.tap[0], 0, 1000);
    wait_tap_blocked(&e);

    for (i = 0; i < 20; i++) {
        uint32_t last;

        fd = listener_connect(&e);
        filter_add(&e, "f0", i % 3 ? "netdev=n0,indev=s0,out_netdev=n0,"
                   "enable_when_stopped=on" : routes[0].props);
        seq = flood(fd, seq);
        if (i % 4 == 0) {
            vm_answers(&e);
            seq = flood(fd, seq);
        }
        filter_del(&e, "f0");
        close(fd);
        vm_answers(&e);

        fd = listener_connect(&e);
        filter_add(&e, "f0", "netdev=n0,indev=s0,out_netdev=n0,"
                   "enable_when_stopped=on");
        last = seq++;
        wire_send(fd, last, 1000);
        while (before < last) {
            g_autofree uint8_t *frame = g_malloc(WIRE_MAX);
            struct virtio_net_hdr hdr;
            size_t len = tap_recv(&e.tap[0], &hdr, frame, WIRE_MAX);
            uint32_t got = ldl_be_p(frame + SEQ_OFFSET);

            g_assert_cmpint(got, >, before);
            assert_frame(frame, len, got, 1000);
            before = got;
        }
        filter_del(&e, "f0");
        close(fd);
        vm_answers(&e);
    }
    env_stop(&e);
}

/* The filter goes while it captures, with its output stuck or not */
static void test_object_del_capture(void)
{
    int fd;
    Env e;
    int i, j;

    env_start(&e, 1, "");
    for (i = 0; i < 20; i++) {
        fd = listener_connect(&e);
        filter_add(&e, "f0", i % 2 ? "netdev=n0,in_netdev=n0,outdev=s0" :
                   "netdev=n0,queue=tx,in_netdev=n0");
        for (j = 0; j < (i % 4 == 1 ? 1000 : 10); j++) {
            host_send(&e.tap[0], j, 1400);
        }
        filter_del(&e, "f0");
        close(fd);
        vm_answers(&e);
    }
    fd = listener_connect(&e);
    vm_answers(&e);
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=s0");
    host_send(&e.tap[0], 5000, FRAME_LEN);
    wire_expect(fd, 5000, FRAME_LEN);
    close(fd);
    env_stop(&e);
}

/*
 * 1000 filters.  Most of the time goes to the kernel, which waits for all
 * CPUs when a packet socket goes.
 */
static void test_leak(void)
{
    static const char *const props[] = {
        "netdev=n0,in_netdev=n0,outdev=c0",
        "netdev=n0,in_netdev=n1",
        "netdev=n0,indev=c0,out_netdev=n0",
        "netdev=n0,queue=tx,out_netdev=n1",
    };
    int before;
    Env e;
    int i;

    env_start(&e, 2, "");
    before = count_fds(&e);
    for (i = 0; i < 1000; i++) {
        filter_add(&e, "f0", props[i % ARRAY_SIZE(props)]);
        filter_del(&e, "f0");
    }
    /* What QEMU opens once, and keeps, is no leak */
    wait_fds(&e, before + 5);
    env_stop(&e);
}

/* To start and stop capturing, which may close sockets a little later */
static void test_leak_activity(void)
{
    int before;
    Env e;
    int i;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0");
    filter_add(&e, "f1", "netdev=n0,indev=c1,out_netdev=n0");
    before = count_fds(&e);
    for (i = 0; i < 200; i++) {
        vm_run(&e, false);
        vm_run(&e, true);
        filter_set_status(&e, "f0", false);
        filter_set_status(&e, "f0", true);
        host_send(&e.tap[0], i, FRAME_LEN);
        wire_expect(e.chr[0], i, FRAME_LEN);
        wire_expect(e.guest[0], i, FRAME_LEN);
    }
    wait_fds(&e, before);
    env_stop(&e);
}

/* Errors and chardevs do not leak either */
static void test_leak_errors(void)
{
    int before;
    Tap tap;
    Env e;
    int i;

    tap_open(&tap, "qtap1");
    env_start(&e, 1, "");
    before = count_fds(&e);
    for (i = 0; i < 50; i++) {
        int packet = packet_socket(tap.name, SOCK_RAW, ETH_P_ALL);
        int pair[2];

        assert_success(chardev_add(&e, "p0", packet,
                                   "af-packet-mode=capture"));
        qtest_qmp_assert_success(e.qts, "{ 'execute': 'chardev-remove',"
                                 " 'arguments': { 'id': 'p0' } }");
        close(packet);

        socket_pair(pair);
        g_free(error_desc(chardev_add(&e, "p0", pair[1],
                                      "af-packet-mode=capture")));
        close(pair[0]);
        close(pair[1]);

        g_free(error_desc(object_add(&e, "filter-redirector", "f0",
                                     "netdev=n0,in_netdev=n0,outdev=nope")));
        g_free(error_desc(object_add(&e, "filter-redirector", "f0",
                                     "netdev=n0,indev=nope,out_netdev=n0")));
    }
    wait_fds(&e, before + 5);
    env_stop(&e);
    tap_close(&tap);
}


/*
 * A GSO frame into an interface that takes none: it arrives in segments, also
 * where there is not room for all of them at once
 */
static void test_inject_gso(const void *opaque)
{
    bool full = opaque;
    const int n = 5;
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autofree uint8_t *frame = g_malloc(GSO_LEN);
    g_autofree uint8_t *segment = g_malloc(WIRE_MAX);
    struct virtio_net_hdr hdr, got;
    Env e;

    env_init(&e);
    tap_open(&e.tap[0], "qtap0");
    if (!if_set_queue_len("qtap0", full ? 10 : 1000)) {
        g_test_skip("needs root to set the length of a TAP's queue");
        tap_close(&e.tap[0]);
        return;
    }
    env_start_full(&e, 1, true, "none", "-S");
    tap_set_offload(&e.tap[0], 0);
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_tap_blocked(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "vnet_hdr_support=on,enable_when_stopped=on");

    gso_fill(frame, 0, &hdr);
    for (int i = 0; i < n; i++) {
        wire_append(wire, VNET_HDR_LEN, &hdr, frame, GSO_LEN);
        wire_append_seq(wire, VNET_HDR_LEN, i, FRAME_LEN);
    }
    write_all(e.chr[0], wire->data, wire->len);
    if (full) {
        wait_consumed(&e, e.chr[0]);
        assert_idle(&e);
    }
    for (int i = 0; i < n; i++) {
        for (size_t done = 0; done < GSO_PAYLOAD; ) {
            size_t len = tap_recv(&e.tap[0], &got, segment, WIRE_MAX);

            g_assert_true(buffer_is_zero(&got, sizeof(got)));
            done += assert_segment(segment, len, &hdr, frame, 0, done);
        }
        tap_expect(&e.tap[0], i, FRAME_LEN);
    }
    assert_silent(&e, e.tap[0].fd);
    env_stop(&e);
}

/* One that cannot be cut is given up after a while, and those behind go on */
static void test_inject_gso_uncut(void)
{
    g_autofree char *path = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("-S 2>>%s", path);
    g_autoptr(GByteArray) wire = g_byte_array_new();
    g_autofree uint8_t *frame = g_malloc(GSO_LEN);
    struct virtio_net_hdr hdr;
    Env e;

    env_start(&e, 1, options);
    tap_set_offload(&e.tap[0], 0);
    host_send(&e.tap[0], 0, FRAME_LEN);
    wait_tap_blocked(&e);
    filter_add(&e, "f0", "netdev=n0,indev=c0,out_netdev=n0,"
               "vnet_hdr_support=on,enable_when_stopped=on");

    /* UDP to be sent in IP fragments */
    gso_fill(frame, 0, &hdr);
    ip_header(frame + ETH_HLEN, IPPROTO_UDP, GSO_LEN - ETH_HLEN - 20);
    stw_be_p(frame + 38, GSO_LEN - ETH_HLEN - 20);
    stw_be_p(frame + 40, ip_pseudo_sum(frame + ETH_HLEN));
    hdr.gso_type = VIRTIO_NET_HDR_GSO_UDP;
    hdr.hdr_len = 42;
    hdr.csum_offset = 6;
    for (int i = 1; i < 3; i++) {
        wire_append_seq(wire, VNET_HDR_LEN, 2 * i - 1, FRAME_LEN);
        wire_append(wire, VNET_HDR_LEN, &hdr, frame, GSO_LEN);
        wire_append_seq(wire, VNET_HDR_LEN, 2 * i, FRAME_LEN);
    }
    write_all(e.chr[0], wire->data, wire->len);
    g_test_timer_start();
    tap_expect_range(&e.tap[0], 1, 5, FRAME_LEN);
    g_assert_cmpfloat(g_test_timer_elapsed(), >, 1);
    wait_warned_once(&e, path, "it is a UFO frame");
    assert_silent(&e, e.tap[0].fd);
    env_stop(&e);
    unlink(path);
}


/* With a receive ring and without */
static void add_capture_variant(const char *name, void (*func)(void),
                                void (*data_func)(const void *),
                                const void *data)
{
    g_autofree char *path = g_strdup_printf("capture/%s", name);
    g_autofree char *no_ring_path = g_strdup_printf("capture-no-ring/%s", name);

    add_host_test(path, func, data_func, data, false);
    add_host_test(no_ring_path, func, data_func, data, true);
}

static void add_capture_func(const char *name, void (*func)(void))
{
    add_capture_variant(name, func, NULL, NULL);
}

int main(int argc, char **argv)
{
    int ret;
    int i;

    g_test_init(&argc, &argv, NULL);

    tmpdir = g_dir_make_tmp("af-packet-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();
    suite = "/af-packet";

    qtest_add_func("/af-packet/errors/filter/qmp", test_filter_errors_qmp);
    qtest_add_func("/af-packet/errors/filter/command-line",
                   test_filter_errors_command_line);
    qtest_add_func("/af-packet/errors/filter/not-a-size",
                   test_filter_errors_not_a_size);
    qtest_add_func("/af-packet/errors/filter/user", test_filter_errors_user);
    qtest_add_func("/af-packet/errors/chardev/qmp", test_chardev_errors_qmp);
    qtest_add_func("/af-packet/errors/chardev/command-line",
                   test_chardev_errors_command_line);
    add_host_func("errors/chardev/packet", test_chardev_errors_packet);
    add_host_func("errors/netdev/packet", test_netdev_errors_packet);
    add_host_func("errors/filter/own-netdev", test_filter_errors_own_netdev);
    add_host_func("errors/filter/vhost", test_filter_errors_vhost);
    add_host_func("errors/filter/eperm", test_filter_errors_eperm);
    add_host_func("errors/filter/namespace", test_filter_errors_namespace);
    add_host_func("errors/filter/macvtap", test_filter_errors_macvtap);

    add_capture_func("exact", test_capture_exact);
    add_capture_func("burst", test_capture_burst);
    add_capture_func("direction", test_capture_direction);
    add_capture_func("checksum", test_capture_checksum);
    add_capture_func("vlan", test_capture_vlan);
    add_capture_variant("gso/untagged", NULL, test_capture_gso, NULL);
    add_capture_variant("gso/vlan", NULL, test_capture_gso, "");
    add_capture_func("stalled", test_capture_stalled);
    add_capture_func("stalled-paced", test_capture_stalled_paced);
    add_host_func("capture/ring-full", test_capture_ring_full);
    add_host_func("inject/exact", test_inject_exact);
    add_host_func("inject/pieces", test_inject_pieces);
    add_host_variant("inject/unusable", "plain", test_inject_unusable, NULL);
    add_host_variant("inject/unusable", "vnet", test_inject_unusable, "");
    add_host_variant("inject/many", "flowing", test_inject_many, NULL);
    add_host_variant("inject/many", "held", test_inject_many, "");
    add_host_func("inject/longest", test_inject_longest);
    add_host_variant("inject/gso", "cut", test_inject_gso, NULL);
    add_host_variant("inject/gso", "cut-no-room", test_inject_gso, "");
    add_host_func("inject/gso/uncut", test_inject_gso_uncut);
    add_host_variant("both", "plain", test_capture_inject, "");
    add_host_variant("both", "vnet", test_capture_inject,
                     ",vnet_hdr_support=on");
    add_host_func("both/metadata", test_capture_inject_metadata);

    add_host_func("chain/copy", test_chain_copy);
    add_host_func("chain/copy-own", test_chain_copy_own);
    add_host_func("chain/copy-position", test_chain_copy_position);
    add_host_func("chain/out", test_chain_out);
    add_host_func("chain/out-burst", test_chain_out_burst);
    add_host_func("chain/out-own", test_chain_out_own);
    add_host_func("chain/virtio-net", test_chain_virtio_net);
    add_host_func("chain/chardevs", test_chain_chardevs);
    add_host_func("loop/chardevs", test_loop_chardevs);
    add_host_func("loop/closed", test_loop_closed);

    for (i = 0; i < ARRAY_SIZE(activities); i++) {
        add_host_variant("activity/capture", activities[i].name,
                         test_activity_capture, &activities[i]);
        add_host_variant("activity/capture-stopped", activities[i].name,
                         test_activity_capture_stopped, &activities[i]);
        add_host_variant("activity/inject", activities[i].name,
                         test_activity_inject, &activities[i]);
        add_host_variant("activity/incoming", activities[i].name,
                         test_activity_incoming, &activities[i]);
    }
    add_host_func("activity/backlog", test_activity_backlog);
    add_host_func("activity/chain", test_activity_chain);
    add_host_func("activity/change", test_activity_change);
    add_host_func("activity/chain-out", test_activity_chain_out);
    add_host_func("status/capture", test_status_capture);
    add_host_func("status/inject", test_status_inject);
    add_host_func("status/chain", test_status_chain);
    add_host_func("status/held", test_status_held);

    add_host_variant("hold-limit", "1", test_hold_limit, GSIZE_TO_POINTER(1));
    add_host_variant("hold-limit", "64k", test_hold_limit,
                     GSIZE_TO_POINTER(65536));
    add_host_variant("hold-limit", "1m", test_hold_limit,
                     GSIZE_TO_POINTER(1048576));
    add_host_func("inject/full-queue", test_inject_full_queue);
    add_capture_func("slow-peer", test_slow_peer);
    add_capture_func("peer-change", test_peer_change);
    add_capture_func("peer-stale", test_peer_stale);
    add_capture_func("udp-peer", test_udp_peer);
    add_capture_func("no-peer", test_no_peer);

    for (i = 0; i < ARRAY_SIZE(writers); i++) {
        add_host_variant("writer/slow-peer", writers[i].type,
                         test_writer_slow_peer, &writers[i]);
        add_host_variant("writer/peer-change", writers[i].type,
                         test_writer_peer_change, &writers[i]);
        add_host_variant("writer/no-peer", writers[i].type,
                         test_writer_no_peer, &writers[i]);
    }

    for (i = 0; i < ARRAY_SIZE(routes); i++) {
        add_host_variant("reconnect", routes[i].name, test_reconnect,
                         &routes[i]);
        add_host_variant("bad-length", routes[i].name, test_bad_length,
                         &routes[i]);
    }
    add_host_func("reconnect/held", test_reconnect_held);

    add_host_func("chardev/command-line", test_chardev_command_line);
    add_host_func("chardev/getfd", test_chardev_getfd);
    add_host_func("chardev/vnet-hdr", test_chardev_vnet_hdr);
    add_host_func("chardev/full-queue", test_chardev_full_queue);
    add_host_func("chardev/inject-deaf", test_chardev_inject_deaf);
    add_host_func("chardev/mismatch", test_chardev_mismatch);
    add_host_func("chardev/add-client", test_chardev_add_client);

    add_host_func("gone/if-down", test_if_down);
    add_host_func("gone/if-no-carrier", test_if_no_carrier);
    add_host_func("gone/if-renamed", test_if_renamed);
    add_host_func("gone/if-deleted", test_if_deleted);
    add_host_func("gone/netdev-del", test_netdev_del);
    add_host_func("gone/object-del-inject", test_object_del_inject);
    add_host_func("gone/object-del-capture", test_object_del_capture);
    add_host_func("leak/filters", test_leak);
    add_host_func("leak/activity", test_leak_activity);
    add_host_func("leak/errors", test_leak_errors);

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
