/*
 * QTest testcases for AF_PACKET capture and injection without privileges
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * QEMU runs as the user nobody, who has no capability.  Its packet sockets come
 * from elsewhere:
 *
 *   root                       nobody
 *
 *   this test ---fd by QMP---> QEMU, in a sandbox
 *   packet.conf, file          QEMU ---starts---> qemu-packet-helper, or a
 *   capability of the helper    ^---packet socket--- fake one that misbehaves
 *   QEMU, opens the socket --> becomes nobody (-run-with user=)
 *
 * Not tested here: what the helper refuses, and what its sockets can do, which
 * tests/unit/test-packet-helper.c does; and frames in all their forms, as in
 * af-packet-test.c, whose picture of hosts and guests is the same.
 *
 * The helper reads CONFIG_QEMU_CONFDIR/packet.conf.  An empty file system is
 * mounted around that, and another one for the helper with its capability; both
 * in a mount namespace of this test's own.  QEMU is started from a path that
 * nobody can reach.
 *
 * A fake helper is this program, called by another name.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include "af-packet-helpers.h"
#include "qobject/qdict.h"
#include "qemu/bswap.h"

#define NOBODY "65534"
#define ACL_FILE CONFIG_QEMU_CONFDIR "/packet.conf"
#define SANDBOX "-sandbox on,obsolete=deny,elevateprivileges=deny," \
                "spawn=deny,resourcecontrol=deny "

/* The environment variable with the command that starts a QEMU of nobody's */
#define QEMU_NOBODY "AF_PACKET_QEMU_NOBODY"

static char *helper;            /* path */


/* Both sides of the helper's socket */

static void fd_send(int sock, const int *fds, size_t n)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(2 * sizeof(int))];
    } control = { 0 };
    char byte = 0;
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = CMSG_SPACE(n * sizeof(int)),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(cmsg), fds, n * sizeof(int));
    g_assert_cmpint(sendmsg(sock, &msg, 0), ==, 1);
}

static int fd_receive(int sock)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    char byte;
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    int fd;

    g_assert_cmpint(recvmsg(sock, &msg, MSG_CMSG_CLOEXEC), ==, 1);
    g_assert_nonnull(CMSG_FIRSTHDR(&msg));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    return fd;
}

/* As a management agent does */
static int helper_run(const char *path, const char *mode, const char *ifname)
{
    g_autofree char *mode_arg = g_strdup_printf("--mode=%s", mode);
    g_autofree char *ifname_arg = g_strdup_printf("--ifname=%s", ifname);
    char *argv[] = { (char *)path, mode_arg, ifname_arg, (char *)"--fd=9",
                     NULL };
    int sock[2], status, fd;
    pid_t pid;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock),
                    ==, 0);
    pid = fork();
    g_assert_cmpint(pid, !=, -1);
    if (!pid) {
        dup2(sock[1], 9);
        execv(path, argv);
        _exit(127);
    }
    close(sock[1]);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
    fd = fd_receive(sock[0]);
    close(sock[0]);
    return fd;
}


/* Helpers that misbehave: each is a name of this program */

/* Returns false if it sends what the real one sends, with its own arguments */
static bool fake_fd(const char *name, const char *real, int *fds, size_t *n)
{
    struct sockaddr_ll sll = { 0 };
    socklen_t len = sizeof(sll);

    *n = 1;
    if (!strcmp(name, "fake-inet")) {
        fds[0] = socket(AF_INET, SOCK_DGRAM, 0);
    } else if (!strcmp(name, "fake-other")) {
        fds[0] = helper_run(real, "inject", "qtap1");
    } else if (!strcmp(name, "fake-hooked")) {
        fds[0] = helper_run(real, "capture", "qtap0");
        g_assert_cmpint(getsockname(fds[0], (void *)&sll, &len), ==, 0);
        sll.sll_protocol = htons(ETH_P_ALL);
        g_assert_cmpint(bind(fds[0], (void *)&sll, sizeof(sll)), ==, 0);
    } else if (!strcmp(name, "fake-two")) {
        fds[0] = helper_run(real, "inject", "qtap0");
        fds[1] = helper_run(real, "inject", "qtap0");
        *n = 2;
    } else {
        return false;
    }
    return true;
}

static int fake_main(const char *name, char **argv)
{
    g_autofree char *dir = g_path_get_dirname(argv[0]);
    g_autofree char *real = g_strdup_printf("%s/qemu-packet-helper", dir);
    int fds[2];
    size_t n;

    if (!strcmp(name, "fake-hang")) {
        fprintf(stderr, "fake-hang: just a moment\n");
        close(STDOUT_FILENO);
        close(STDERR_FILENO);
        for (;;) {
            pause();
        }
    } else if (!strcmp(name, "fake-silent")) {
        return 0;
    } else if (!strcmp(name, "fake-status")) {
        return 3;
    } else if (!strcmp(name, "fake-signal")) {
        raise(SIGKILL);
    } else if (!strcmp(name, "fake-noise")) {
        /* More than there is room for, on both, and not all of it text */
        for (int i = 0; i < 20000; i++) {
            printf("fake-noise %d\n", i);
            fprintf(stderr, "fake-noise\x1b\xff\t%d\n", i);
        }
        return 1;
    } else if (!strcmp(name, "fake-failed")) {
        fds[0] = helper_run(real, "inject", "qtap0");
        fd_send(3, fds, 1);
        return 1;
    } else if (fake_fd(name, real, fds, &n)) {
        fd_send(3, fds, n);
        return 0;
    }
    /* Only says more */
    g_assert_cmpstr(name, ==, "fake-talker");
    fprintf(stderr, "fake-talker: all is well\n");
    execv(real, argv);
    return 127;
}


/* QEMU */

static void assert_unprivileged(Env *e)
{
    static const char *const lines[] = {
        "\nUid:\t" NOBODY "\t" NOBODY "\t" NOBODY "\t" NOBODY "\n",
        "\nCapInh:\t0000000000000000\n",
        "\nCapPrm:\t0000000000000000\n",
        "\nCapEff:\t0000000000000000\n",
        "\nCapAmb:\t0000000000000000\n",
    };
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            qtest_pid(e->qts));
    g_autofree char *text = NULL;
    int i;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    for (i = 0; i < ARRAY_SIZE(lines); i++) {
        if (!strstr(text, lines[i])) {
            g_error("no '%s' in: %s", lines[i], text);
        }
    }
}

static void env_start_nobody(Env *e, const char *options)
{
    qemu_binary_var = QEMU_NOBODY;
    env_start(e, 1, options);
    qemu_binary_var = NULL;
    assert_unprivileged(e);
}

/* Nobody that has not been waited for */
static void assert_no_children(Env *e)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task/%d/children",
                                            qtest_pid(e->qts),
                                            qtest_pid(e->qts));
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpstr(text, ==, "");
}

static char *with_helper(const char *props, const char *path)
{
    return g_strdup_printf("%s,packet_helper=%s", props, path);
}

static char *filter_error(Env *e, const char *props, const char *path)
{
    g_autofree char *all = path ? with_helper(props, path) : g_strdup(props);

    return error_desc(object_add(e, "filter-redirector", "f0", all));
}

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part)) {
        g_error("no '%s' in: %s", part, text);
    }
}

static void write_acl(const char *text)
{
    g_assert_true(g_file_set_contents(ACL_FILE, text, -1, NULL));
    g_assert_cmpint(chmod(ACL_FILE, 0644), ==, 0);
}


/* Frames through the helper's sockets */

#define INJECT "netdev=n0,indev=c0,out_netdev=n0"
#define CAPTURE "netdev=n0,in_netdev=n0,outdev=c0"

/* From the command line on; held while the VM does not run */
static void test_inject(void)
{
    g_autofree char *props = with_helper(INJECT ",vnet_hdr_support=on", helper);
    g_autofree char *options = g_strdup_printf("-S -object filter-redirector,"
                                               "id=f0,%s", props);
    g_autoptr(GByteArray) wire = g_byte_array_new();
    uint32_t seq;
    Env e;

    write_acl("allow qtap0\n");
    env_start_nobody(&e, options);
    for (seq = 0; seq < 100; seq++) {
        wire_append_seq(wire, VNET_HDR_LEN, seq, FRAME_LEN + seq);
    }
    write_all(e.chr[0], wire->data, wire->len);
    wait_consumed(&e, e.chr[0]);
    assert_silent(&e, e.guest[0]);
    vm_run(&e, true);
    for (seq = 0; seq < 100; seq++) {
        wire_expect(e.guest[0], seq, FRAME_LEN + seq);
    }
    assert_idle(&e);
    assert_no_children(&e);
    env_stop(&e);
}

/* Does QEMU map the memory of a packet socket? */
static bool has_ring(Env *e)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/maps",
                                            qtest_pid(e->qts));
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return strstr(text, " socket:[");
}

/*
 * A capture is exactly of the frames while the filter is active, though its
 * socket stays where it is, and its filter with it
 */
static void capture_on_and_off(Env *e)
{
    uint32_t seq;
    int fds = count_fds(e);

    g_assert_false(has_ring(e));
    for (seq = 0; seq < 50; seq += 10) {
        host_send(&e->tap[0], seq, FRAME_LEN);
        filter_set_status(e, "f0", true);
        host_send(&e->tap[0], seq + 1, FRAME_LEN);
        if (seq % 20) {
            wire_expect(e->chr[0], seq + 1, FRAME_LEN);
        }
        filter_set_status(e, "f0", false);
        host_send(&e->tap[0], seq + 2, FRAME_LEN);
        if (seq % 20 == 0) {
            wire_expect(e->chr[0], seq + 1, FRAME_LEN);
        }
        host_send(&e->tap[0], seq + 3, FRAME_LEN);
    }
    assert_silent(e, e->chr[0]);
    g_assert_cmpint(count_fds(e), ==, fds);
    g_assert_cmpint(has_ring(e), ==, !no_ring);
    assert_idle(e);

    filter_set_status(e, "f0", true);
    host_send(&e->tap[0], seq, FRAME_LEN);
    wire_expect(e->chr[0], seq, FRAME_LEN);
    assert_idle(e);
}

static void test_capture(void)
{
    g_autofree char *props = with_helper(CAPTURE ",status=off", helper);
    Env e;

    write_acl("allow qtap0\n");
    env_start_nobody(&e, "");
    filter_add(&e, "f0", props);
    capture_on_and_off(&e);
    assert_no_children(&e);
    env_stop(&e);
}

/* What the guest sends is not captured, and neither is another interface */
static void test_capture_direction(void)
{
    g_autofree char *props = with_helper(CAPTURE, helper);
    Tap other;
    Env e;

    write_acl("allow qtap0\n");
    env_start_nobody(&e, "");
    tap_open(&other, "qtap1");
    filter_add(&e, "f0", props);
    wire_send(e.guest[0], 1, FRAME_LEN);
    host_send(&other, 2, FRAME_LEN);
    tap_expect(&other, 2, FRAME_LEN);
    host_send(&e.tap[0], 3, FRAME_LEN);
    wire_expect(e.chr[0], 3, FRAME_LEN);
    assert_silent(&e, e.chr[0]);
    tap_close(&other);
    env_stop(&e);
}

/*
 * A source that keeps copies, which it injects when the migration fails, and
 * sends when it does not
 */
static void test_switchover(void)
{
    g_autofree char *props = with_helper(CAPTURE ONLY_STOPPED, helper);
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    Env e;

    write_acl("allow qtap0\n");
    env_start_nobody(&e, "");
    filter_add(&e, "f0", props);
    migrate_pause(&e);
    host_send(&e.tap[0], 0, FRAME_LEN);
    wire_expect(e.guest[0], 0, FRAME_LEN);

    migrate_to_pause(&e, uri);
    host_send_range(&e.tap[0], 10, 20, FRAME_LEN);
    wire_expect_range(e.chr[0], 10, 20, FRAME_LEN);
    migrate_cancel(&e);
    wire_expect_range(e.guest[0], 10, 20, FRAME_LEN);

    migrate_to_pause(&e, uri);
    host_send(&e.tap[0], 20, FRAME_LEN);
    migrate_continue(&e);
    wait_migration(&e, "completed");
    host_send(&e.tap[0], 21, FRAME_LEN);
    wire_expect_range(e.chr[0], 20, 22, FRAME_LEN);
    assert_silent(&e, e.guest[0]);
    env_stop(&e);
    unlink(strchr(uri, ':') + 1);
}

static void test_leak(void)
{
    int fds, sockets, i;
    Env e;

    write_acl("allow qtap0\n");
    env_start_nobody(&e, "");
    fds = count_fds(&e);
    sockets = count_packet_sockets();
    for (i = 0; i < 20; i++) {
        bool allowed = i % 2;
        g_autofree char *props = with_helper(i % 4 < 2 ? INJECT : CAPTURE,
                                             helper);

        write_acl(allowed ? "allow qtap0\n" : "allow qtap1\n");
        if (allowed) {
            filter_add(&e, "f0", props);
            filter_del(&e, "f0");
        } else {
            g_free(error_desc(object_add(&e, "filter-redirector", "f0",
                                         props)));
        }
    }
    wait_fds(&e, fds);
    g_assert_cmpint(count_packet_sockets(), ==, sockets);
    assert_no_children(&e);
    env_stop(&e);
}


/* Errors */

/* Without a helper: the three ways out.  It is not looked for. */
static void test_no_helper(void)
{
    static const struct {
        const char *props;
        const char *start;
    } cases[] = {
        { CAPTURE, "'in_netdev': cannot open a packet socket on 'qtap0'" },
        { INJECT, "'out_netdev': cannot open a packet socket on 'qtap0'" },
    };
    int i;
    Env e;

    write_acl("allow qtap0\n");
    env_start_nobody(&e, "");
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *desc = filter_error(&e, cases[i].props, NULL);

        assert_contains(desc, cases[i].start);
        assert_contains(desc, "CAP_NET_RAW");
        assert_contains(desc, "'packet_helper'");
        assert_contains(desc, "'fd' with 'af-packet-mode'");
    }
    /* For a stopped VM there is nothing to open */
    filter_add(&e, "f0", CAPTURE ONLY_STOPPED);
    env_stop(&e);
}

static void test_refused(void)
{
    g_autofree char *props = with_helper(INJECT, helper);
    g_autofree char *desc = NULL;
    Env e;

    write_acl("allow qtap1\ndeny other*\n");
    env_start_nobody(&e, "");
    desc = filter_error(&e, INJECT, helper);
    g_assert_cmpstr(desc, ==, "'out_netdev': 'packet_helper': "
                    "qemu-packet-helper: option '--ifname': interface 'qtap0' "
                    "is not allowed; a line 'allow qtap0' in " ACL_FILE
                    " would do it");

    /* Root follows that advice */
    write_acl("allow qtap0\n");
    filter_add(&e, "f0", props);
    wire_send(e.chr[0], 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    env_stop(&e);
}

static void test_misbehaving(void)
{
    static const struct {
        const char *name;
        const char *fragment;
    } cases[] = {
        { "no-such-file", "cannot execute '" },
        { "", "ended with status 127, instead of sending one socket" },
        { "fake-silent", "ended with status 0, instead of sending one socket" },
        { "fake-status", "ended with status 3, instead of sending one socket" },
        { "fake-signal", "ended with signal 9, instead of sending one socket" },
        { "fake-noise", "fake-noise \xef\xbf\xbd 0 fake-noise " },
        { "fake-failed", "ended with status 1, instead of sending one socket" },
        { "fake-two", "ended with status 0, instead of sending one socket" },
        { "fake-inet", "this is not an AF_PACKET socket" },
        { "fake-other", "the socket is not bound to interface 'qtap0'" },
        { "fake-hooked", "the socket receives already" },
        { "fake-hang", "took longer than 5 s and was killed; it said: "
                       "'fake-hang: just a moment'" },
    };
    Tap other;
    int fds, i;
    Env e;

    write_acl("allow qtap*\n");
    env_start_nobody(&e, "");
    tap_open(&other, "qtap1");
    fds = count_fds(&e);
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path = g_strdup_printf("%s/%s", tmpdir,
                                                cases[i].name);
        g_autofree char *desc = NULL;

        g_assert_cmpint(cases[i].fragment[0], !=, '\0');
        if (g_str_has_prefix(cases[i].name, "fake-")) {
            g_assert_cmpint(symlink("tests/af-packet-unprivileged-test", path),
                            ==, 0);
        }
        desc = filter_error(&e, INJECT, path);
        assert_contains(desc, "'out_netdev': 'packet_helper': ");
        assert_contains(desc, cases[i].fragment);
        g_assert_cmpint(strlen(desc), <, 2000);
        g_assert_cmpint(count_fds(&e), ==, fds);
        assert_no_children(&e);
        unlink(path);
    }
    tap_close(&other);
    env_stop(&e);
}

/* What it says although all is well is a warning */
static void test_warning(void)
{
    g_autofree char *path = g_strdup_printf("%s/fake-talker", tmpdir);
    g_autofree char *log = g_strdup_printf("%s/stderr", tmpdir);
    g_autofree char *options = g_strdup_printf("2>>%s", log);
    g_autofree char *props = with_helper(INJECT, path);
    Env e;

    write_acl("allow qtap0\n");
    g_assert_cmpint(symlink("tests/af-packet-unprivileged-test", path), ==, 0);
    env_start_nobody(&e, options);
    filter_add(&e, "f0", props);
    wait_warned_once(&e, log, "'packet_helper': fake-talker: all is well");
    wire_send(e.chr[0], 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    env_stop(&e);
    unlink(path);
    unlink(log);
}

/* With the capability there is no need for it */
static void test_not_needed(void)
{
    g_autofree char *props = with_helper(INJECT, "/no/such/file");
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", props);
    wire_send(e.chr[0], 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    env_stop(&e);
}


/* Root opens the sockets, and then the VM is nobody's */

static void test_run_with_user(void)
{
    Env e;

    env_start(&e, 1, "-run-with user=nobody "
              "-object filter-redirector,id=f0," CAPTURE ",status=off "
              "-object filter-redirector,id=f1,netdev=n0,indev=c1,"
              "out_netdev=n0");
    assert_unprivileged(&e);
    wire_send(e.chr[1], 1, FRAME_LEN);
    wire_expect(e.guest[0], 1, FRAME_LEN);
    capture_on_and_off(&e);
    env_stop(&e);
}


/* In a sandbox */

/*
 * A management agent has the sockets opened by the helper, on another TAP than
 * QEMU's, and passes them:
 *   host -> qtap1 -> capture chardev -> chain of g0 -> guest[0]
 *   guest[0] -> chain of g0 -> inject chardev -> qtap1, read by the test
 */
static void test_sandbox(void)
{
    int capture, inject;
    uint32_t seq;
    Tap tap;
    Env e;

    write_acl("allow qtap1\n");
    tap_open(&tap, "qtap1");
    capture = helper_run(helper, "capture", "qtap1");
    inject = helper_run(helper, "inject", "qtap1");
    env_start_nobody(&e, SANDBOX);
    assert_success(chardev_add(&e, "capture", capture,
                               "af-packet-mode=capture"));
    assert_success(chardev_add(&e, "inject", inject, "af-packet-mode=inject"));
    close(capture);
    close(inject);

    filter_add(&e, "f0", "netdev=g0,queue=rx,indev=capture");
    filter_add(&e, "f1", "netdev=g0,queue=tx,outdev=inject");
    for (seq = 0; seq < 50; seq++) {
        host_send(&tap, seq, FRAME_LEN + seq);
        tap_expect(&tap, seq, FRAME_LEN + seq);
        wire_expect(e.guest[0], seq, FRAME_LEN + seq);
        wire_send(e.guest[0], seq, FRAME_LEN + seq);
        tap_expect(&tap, seq, FRAME_LEN + seq);
    }
    assert_silent(&e, e.guest[0]);
    assert_idle(&e);
    filter_del(&e, "f0");
    filter_del(&e, "f1");
    env_stop(&e);
    tap_close(&tap);
}

/* The helper cannot work there, and that is an error like others */
static void test_sandbox_helper(void)
{
    static const struct {
        const char *options;
        const char *fragment;
    } cases[] = {
        { SANDBOX, "'-sandbox spawn=deny' forbids" },
        { "-sandbox on", "no_new_privs" },
        { "-sandbox on,elevateprivileges=deny", "no_new_privs" },
    };
    int i;
    Env e;

    write_acl("allow qtap0\n");
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *desc = NULL;

        env_start_nobody(&e, cases[i].options);
        desc = filter_error(&e, INJECT, helper);
        assert_contains(desc, cases[i].fragment);
        assert_no_children(&e);
        vm_answers(&e);
        env_stop(&e);
    }
}


/* Set-up */

static bool try(const char *what, bool ok)
{
    if (!ok && !no_host) {
        no_host = g_strdup_printf("%s: %s", what, strerror(errno));
    }
    return !no_host;
}

/* Make @dir visible as @name in tmpdir, where nobody may look */
static bool bind_dir(const char *dir, const char *name)
{
    g_autofree char *path = g_strdup_printf("%s/%s", tmpdir, name);

    return try(path, g_mkdir(path, 0755) == 0) &&
           try(dir, mount(dir, path, NULL, MS_BIND | MS_REC, NULL) == 0);
}

/* Cover what there is of the path to the ACL */
static bool mount_confdir(void)
{
    g_autofree char *path = g_strdup(CONFIG_QEMU_CONFDIR);
    char *slash;

    while (access(path, F_OK) < 0 && (slash = strrchr(path, '/'))) {
        *slash = '\0';
    }
    return try(CONFIG_QEMU_CONFDIR, *path &&
               mount("tmpfs", path, "tmpfs", 0, "mode=755") == 0 &&
               g_mkdir_with_parents(CONFIG_QEMU_CONFDIR, 0755) == 0);
}

static bool install_helper(void)
{
    g_autofree char *built = g_test_build_filename(G_TEST_BUILT, "..", "..",
                                                   "qemu-packet-helper", NULL);
    struct vfs_cap_data cap = {
        .magic_etc = cpu_to_le32(VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE),
        .data[0].permitted = cpu_to_le32(1 << CAP_NET_RAW),
    };
    g_autofree char *bytes = NULL;
    gsize len;

    helper = g_strdup_printf("%s/qemu-packet-helper", tmpdir);
    errno = ENOENT;
    return try(built, g_file_get_contents(built, &bytes, &len, NULL)) &&
           try(helper, g_file_set_contents(helper, bytes, len, NULL)) &&
           try(helper, chmod(helper, 0755) == 0) &&
           try("file capabilities", setxattr(helper, "security.capability",
                                             &cap, XATTR_CAPS_SZ_2, 0) == 0);
}

/* Sets no_host, too, if there is no helper here, or no other user */
static void init(void)
{
    g_autofree char *qemu = realpath(getenv("QTEST_QEMU_BINARY") ?: "", NULL);
    g_autofree char *self = realpath("/proc/self/exe", NULL);
    g_autofree char *qemu_dir = qemu ? g_path_get_dirname(qemu) : NULL;
    g_autofree char *self_dir = g_path_get_dirname(self);
    g_autofree char *setpriv = g_find_program_in_path("setpriv");
    g_autofree char *command = NULL;

    host_init();
    if (!no_host && (geteuid() != 0 || !setpriv)) {
        no_host = g_strdup("needs root, and setpriv, to become another user");
    }
    if (no_host || !try("QTEST_QEMU_BINARY", qemu) ||
        !try("tmpfs", mount("tmpfs", tmpdir, "tmpfs", 0, "mode=1777") == 0) ||
        !bind_dir(qemu_dir, "build") || !bind_dir(self_dir, "tests") ||
        !mount_confdir() || !install_helper()) {
        return;
    }

    command = g_strdup_printf("%s --reuid=" NOBODY " --regid=" NOBODY
                              " --clear-groups --inh-caps=-all %s/build/%s",
                              setpriv, tmpdir, strrchr(qemu, '/') + 1);
    g_setenv(QEMU_NOBODY, command, true);
    /* Sockets that the test listens on are for QEMU, too */
    umask(0);
}

int main(int argc, char **argv)
{
    g_autofree char *name = g_path_get_basename(argv[0]);
    int ret;

    if (g_str_has_prefix(name, "fake-")) {
        return fake_main(name, argv);
    }

    g_test_init(&argc, &argv, NULL);
    tmpdir = g_dir_make_tmp("af-packet-unprivileged-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    init();

    suite = "/af-packet-unprivileged";
    add_host_func("helper/inject", test_inject);
    add_host_test("helper/capture/ring", test_capture, NULL, NULL, false);
    add_host_test("helper/capture/no-ring", test_capture, NULL, NULL, true);
    add_host_func("helper/capture/direction", test_capture_direction);
    add_host_func("helper/switchover", test_switchover);
    add_host_func("helper/leak", test_leak);
    add_host_func("helper/none", test_no_helper);
    add_host_func("helper/refused", test_refused);
    add_host_func("helper/misbehaving", test_misbehaving);
    add_host_func("helper/warning", test_warning);
    add_host_func("helper/not-needed", test_not_needed);
    add_host_func("run-with-user", test_run_with_user);
#ifdef CONFIG_SECCOMP
    add_host_func("sandbox/passed", test_sandbox);
    add_host_func("sandbox/helper", test_sandbox_helper);
#endif

    ret = g_test_run();

    /* What is mounted there goes with the namespace */
    umount2(tmpdir, MNT_DETACH);
    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(helper);
    g_free(no_host);
    return ret;
}
