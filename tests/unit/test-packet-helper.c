/*
 * QEMU packet socket helper test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Runs the built qemu-packet-helper as a hostile or an honest caller would:
 *
 *   this test               | qemu-packet-helper       | kernel
 *                           |                          |
 *   fork, exec, argv, env --+-> reads packet.conf      |
 *   UNIX socket <-----------+-- packet socket ---------+-- TAP "tap0", other
 *   sends frames, both ways, on both TAPs, and looks at what the socket gets
 *
 * The helper has no option for another ACL file, and a hook for tests would be
 * a hook for attackers.  So the file stays where it is and the test moves: to
 * a mount namespace of its own, where it mounts an empty file system around
 * CONFIG_QEMU_CONFDIR, and to a network namespace of its own for the TAPs.
 * The very binary that gets installed is what is tested.
 *
 * Every run of the helper is checked for this: either it exits with 0, says
 * nothing and sends one socket, or it exits with 1, says one line, and sends
 * none.
 *
 * Privileges, and moments in the life of the helper, are looked at with
 * ptrace(2), from system call to system call.
 *
 * Who can run what: arguments are tested by everybody; the rest needs root, or
 * user namespaces for those without; setuid, file capabilities, and files of
 * other users need root.  Tests that cannot run say why.
 */

#include "qemu/osdep.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/ptrace.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include "qemu/bswap.h"
#include "qemu/rcu.h"

#define ACL_FILE CONFIG_QEMU_CONFDIR "/packet.conf"

#define NOBODY 65534

/* The number by which the helper gets its UNIX socket */
#define HELPER_FD 7
#define HELPER_FD_ARG "--fd=7"

/* No run of the helper takes this long, in seconds */
#define TIME_LIMIT 120

#define NET_RAW_BIT (1ULL << CAP_NET_RAW)

/* An ethertype for experiments: nobody else's frames have it */
#define ETHERTYPE 0x88b5

/* Whether the namespaces are there, or else why not */
static bool have_namespaces;
static const char *no_namespaces;
/* Whether there are other users in them, and file capabilities */
static bool have_users;
static bool have_filecaps;
static bool have_ptrace;

/* The binary as built, a directory that all may read, copies in there */
static char *helper_built;
static char *dir;
static char *helper_plain;
static char *helper_setuid;
static char *helper_filecap;


/* Running the helper */

/* From where the helper gets CAP_NET_RAW */
typedef enum Privilege {
    PRIV_ROOT,                  /* the caller is root */
    PRIV_SETUID,                /* the caller is nobody ... */
    PRIV_FILECAP,
    PRIV_AMBIENT,
    PRIV_NONE,
    PRIV_AS_IS,                 /* the caller is who runs the test */
} Privilege;

static const char *const privilege_names[] = {
    "root", "setuid", "filecap", "ambient", "none", "as-is",
};

typedef struct Run Run;

/* Called at the entry and the exit of each system call */
typedef void TraceFunc(const Run *run, pid_t pid, bool entry, uint64_t nr,
                       const uint64_t *args);

struct Run {
    const char *mode;           /* "capture" */
    const char *ifname;         /* "tap0" */
    Privilege privilege;
    const char *const *argv;    /* instead of mode and ifname */
    const char *const *env;     /* empty */
    int socket_type;            /* SOCK_STREAM */

    void (*child)(void);        /* run by the child before it executes */
    bool no_stderr;
    bool may_die;               /* of a signal, or before main() */

    TraceFunc *trace;
    void *opaque;
};

/* What the helper said in the last run */
static char said[8192];

static void child_check(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "child: %s: %s\n", what, strerror(errno));
        _exit(99);
    }
}

#define CHILD_CHECK(expr) child_check(expr, #expr)

static void child_set_caps(uint64_t caps)
{
    struct __user_cap_header_struct hdr = {
        .version = _LINUX_CAPABILITY_VERSION_3,
    };
    struct __user_cap_data_struct data[2] = { 0 };

    data[0].effective = data[0].permitted = data[0].inheritable = caps;
    CHILD_CHECK(syscall(SYS_capset, &hdr, data) == 0);
}

static void child_become_nobody(Privilege privilege)
{
    const int keep_caps = privilege == PRIV_AMBIENT;

    CHILD_CHECK(prctl(PR_SET_KEEPCAPS, keep_caps, 0, 0, 0) == 0);
    CHILD_CHECK(setgroups(0, NULL) == 0);
    CHILD_CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0);
    CHILD_CHECK(setresuid(NOBODY, NOBODY, NOBODY) == 0);
    if (privilege == PRIV_AMBIENT) {
        child_set_caps(NET_RAW_BIT);
        CHILD_CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW,
                          0, 0) == 0);
    }
}

static G_NORETURN void run_child(const Run *run, int sock, int err)
{
    const char *exe = run->privilege == PRIV_SETUID ? helper_setuid :
                      run->privilege == PRIV_FILECAP ? helper_filecap :
                      run->privilege == PRIV_AS_IS ? helper_built :
                      helper_plain;
    g_autofree char *mode = g_strdup_printf("--mode=%s",
                                            run->mode ?: "capture");
    g_autofree char *ifname = g_strdup_printf("--ifname=%s",
                                              run->ifname ?: "tap0");
    const char *const argv[] = {
        "qemu-packet-helper", mode, ifname, HELPER_FD_ARG, NULL
    };
    const char *const env[] = { NULL };

    alarm(TIME_LIMIT);
    CHILD_CHECK(dup2(err, STDERR_FILENO) == STDERR_FILENO);
    /* By way of a copy: the number may be the right one, but close on exec */
    CHILD_CHECK(dup2(dup(sock), HELPER_FD) == HELPER_FD);
    if (run->trace) {
        CHILD_CHECK(syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0) == 0);
    }
    if (run->privilege != PRIV_ROOT && run->privilege != PRIV_AS_IS) {
        child_become_nobody(run->privilege);
    }
    if (run->child) {
        run->child();
    }
    execve(exe, (char **)(run->argv ?: argv), (char **)(run->env ?: env));
    child_check(false, exe);
    abort();
}

/* Lead @pid from one system call to the next until it exits */
static void trace_child(const Run *run, pid_t pid, int *status)
{
    bool options = false;
    uint64_t nr = 0;
    uint64_t args[6] = { 0 };

    while (waitpid(pid, status, 0) == pid && WIFSTOPPED(*status)) {
        struct ptrace_syscall_info info = { 0 };
        int sig = WSTOPSIG(*status);

        if (!options) {
            g_assert_cmpint(syscall(SYS_ptrace, PTRACE_SETOPTIONS, pid, 0,
                                    PTRACE_O_TRACESYSGOOD |
                                    PTRACE_O_EXITKILL), ==, 0);
            options = true;
        }
        if (sig == (SIGTRAP | 0x80)) {
            g_assert_cmpint(syscall(SYS_ptrace, PTRACE_GET_SYSCALL_INFO, pid,
                                    sizeof(info), &info), >, 0);
            if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
                nr = info.entry.nr;
                memcpy(args, info.entry.args, sizeof(args));
            }
            run->trace(run, pid, info.op == PTRACE_SYSCALL_INFO_ENTRY, nr,
                       args);
        }
        syscall(SYS_ptrace, PTRACE_SYSCALL, pid, 0,
                sig & 0x80 || sig == SIGTRAP ? 0 : sig);
    }
}

/* The one file descriptor in the one message at @sock, or -1 */
static int receive_fd(int sock)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(4 * sizeof(int))];
    } control = { 0 };
    char bytes[16];
    struct iovec iov = { .iov_base = bytes, .iov_len = sizeof(bytes) };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    ssize_t len = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg = len > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    int fd;

    if (len <= 0) {
        return -1;
    }
    g_assert_cmpint(len, ==, 1);
    g_assert_cmpint(bytes[0], ==, 0);
    g_assert_nonnull(cmsg);
    g_assert_cmpint(cmsg->cmsg_type, ==, SCM_RIGHTS);
    g_assert_cmpint(cmsg->cmsg_len, ==, CMSG_LEN(sizeof(fd)));
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    g_assert_cmpint(recv(sock, bytes, sizeof(bytes), MSG_DONTWAIT), <=, 0);
    return fd;
}

/* What is said is one line that a terminal can show */
static void check_said(void)
{
    const char *c;

    g_assert_true(g_str_has_prefix(said, "qemu-packet-helper: "));
    g_assert_true(g_str_has_suffix(said, "\n"));
    for (c = said; c[1]; c++) {
        g_assert_true(*c >= ' ' && *c < 0x7f);
    }
}

/* Returns the packet socket, or -1 if the helper refuses */
static int run_helper(const Run *run)
{
    int sock[2], err[2], status, fd;
    ssize_t len;
    pid_t pid;

    g_assert_cmpint(socketpair(AF_UNIX,
                               (run->socket_type ?: SOCK_STREAM) |
                               SOCK_CLOEXEC, 0, sock), ==, 0);
    g_assert_cmpint(pipe2(err, O_CLOEXEC | O_NONBLOCK), ==, 0);

    pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (!pid) {
        run_child(run, sock[1], err[1]);
    }
    close(sock[1]);
    close(err[1]);

    if (run->trace) {
        trace_child(run, pid, &status);
    } else {
        g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    }

    /* One message fits into the pipe */
    len = read(err[0], said, sizeof(said) - 1);
    said[MAX(len, 0)] = '\0';
    fd = receive_fd(sock[0]);
    close(err[0]);
    close(sock[0]);

    if (run->may_die && (WIFSIGNALED(status) || WEXITSTATUS(status) > 1)) {
        /* 127 is that of the dynamic linker */
        g_assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGPIPE ||
                                            WTERMSIG(status) == SIGXFSZ :
                                            WEXITSTATUS(status) == 127);
        g_assert_cmpint(fd, ==, -1);
        return -1;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) {
        g_error("status 0x%x, said: %s", status, said);
    }
    if (WEXITSTATUS(status) == 0) {
        g_assert_cmpstr(said, ==, "");
        g_assert_cmpint(fd, >=, 0);
    } else {
        g_assert_cmpint(fd, ==, -1);
        if (!run->no_stderr) {
            check_said();
        }
    }
    return fd;
}

static void assert_refused(const Run *run, const char *fragment)
{
    g_assert_cmpint(run_helper(run), ==, -1);
    if (!strstr(said, fragment)) {
        g_error("expected '%s' in: %s", fragment, said);
    }
}

static int assert_sent(const Run *run)
{
    int fd = run_helper(run);

    if (fd == -1) {
        g_error("no socket: %s", said);
    }
    return fd;
}


/* Interfaces */

static int control_socket(void)
{
    static int fd = -1;

    if (fd == -1) {
        fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        g_assert_cmpint(fd, >=, 0);
    }
    return fd;
}

static void set_name(char *field, const char *name)
{
    g_assert_cmpint(g_strlcpy(field, name, IFNAMSIZ), <, IFNAMSIZ);
}

/* The TAP lives until the returned fd, the guest's end, is closed */
static int tun_new(const char *name, int flags)
{
    struct ifreq ifr = { .ifr_flags = flags | IFF_NO_PI };
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

    g_assert_cmpint(fd, >=, 0);
    set_name(ifr.ifr_name, name);
    g_assert_cmpint(ioctl(fd, TUNSETIFF, &ifr), ==, 0);
    return fd;
}

static int tap_new(const char *name)
{
    return tun_new(name, IFF_TAP);
}

static void set_up(const char *name)
{
    struct ifreq ifr = { 0 };

    set_name(ifr.ifr_name, name);
    g_assert_cmpint(ioctl(control_socket(), SIOCGIFFLAGS, &ifr), ==, 0);
    ifr.ifr_flags |= IFF_UP;
    g_assert_cmpint(ioctl(control_socket(), SIOCSIFFLAGS, &ifr), ==, 0);
}

static void rename_interface(const char *from, const char *to)
{
    struct ifreq ifr = { 0 };

    set_name(ifr.ifr_name, from);
    set_name(ifr.ifr_newname, to);
    g_assert_cmpint(ioctl(control_socket(), SIOCSIFNAME, &ifr), ==, 0);
}

/* A netlink message about a link, and the attributes put into it so far */
typedef struct LinkMessage {
    struct nlmsghdr hdr;
    struct ifinfomsg info;
    char attrs[256];
} LinkMessage;

static struct rtattr *link_put(LinkMessage *msg, int type, const void *data,
                               size_t len)
{
    struct rtattr *attr = (void *)((char *)msg +
                                   NLMSG_ALIGN(msg->hdr.nlmsg_len));

    attr->rta_type = type;
    attr->rta_len = RTA_LENGTH(len);
    if (len) {
        memcpy(RTA_DATA(attr), data, len);
    }
    msg->hdr.nlmsg_len = (char *)attr - (char *)msg + RTA_ALIGN(attr->rta_len);
    return attr;
}

static void link_end(LinkMessage *msg, struct rtattr *nest)
{
    nest->rta_len = (char *)msg + msg->hdr.nlmsg_len - (char *)nest;
}

/* Returns 0 or a negative errno */
static int link_send(LinkMessage *msg)
{
    struct {
        struct nlmsghdr hdr;
        struct nlmsgerr err;
        char more[512];
    } reply;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    g_assert_cmpint(fd, >=, 0);
    msg->hdr.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    g_assert_cmpint(send(fd, msg, msg->hdr.nlmsg_len, 0), >, 0);
    g_assert_cmpint(recv(fd, &reply, sizeof(reply), 0), >, 0);
    close(fd);
    g_assert_cmpint(reply.hdr.nlmsg_type, ==, NLMSG_ERROR);
    return reply.err.error;
}

/* An interface of @kind on top of another one */
static int link_new(const char *name, const char *kind, const char *lower)
{
    LinkMessage msg = {
        .hdr.nlmsg_len = NLMSG_LENGTH(sizeof(msg.info)),
        .hdr.nlmsg_type = RTM_NEWLINK,
        .hdr.nlmsg_flags = NLM_F_CREATE | NLM_F_EXCL,
    };
    uint32_t index = if_nametoindex(lower);
    struct rtattr *nest;

    link_put(&msg, IFLA_IFNAME, name, strlen(name) + 1);
    link_put(&msg, IFLA_LINK, &index, sizeof(index));
    nest = link_put(&msg, IFLA_LINKINFO, NULL, 0);
    link_put(&msg, IFLA_INFO_KIND, kind, strlen(kind) + 1);
    link_end(&msg, nest);
    return link_send(&msg);
}

static int link_add_altname(const char *name, const char *altname)
{
    LinkMessage msg = {
        .hdr.nlmsg_len = NLMSG_LENGTH(sizeof(msg.info)),
        .hdr.nlmsg_type = RTM_NEWLINKPROP,
        .hdr.nlmsg_flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND,
        .info.ifi_index = if_nametoindex(name),
    };
    struct rtattr *nest;

    nest = link_put(&msg, IFLA_PROP_LIST | NLA_F_NESTED, NULL, 0);
    link_put(&msg, IFLA_ALT_IFNAME, altname, strlen(altname) + 1);
    link_end(&msg, nest);
    return link_send(&msg);
}


/* ACL files */

static void write_file(const char *path, const char *text, size_t len)
{
    g_assert_true(unlink(path) == 0 || errno == ENOENT);
    g_assert_true(g_file_set_contents(path, text, len, NULL));
    g_assert_cmpint(chmod(path, 0644), ==, 0);
}

static void write_acl(const char *text)
{
    write_file(ACL_FILE, text, strlen(text));
}

static bool skip_without_namespaces(void)
{
    if (!have_namespaces) {
        g_test_skip(no_namespaces);
    }
    return !have_namespaces;
}

static bool skip_without_users(void)
{
    if (skip_without_namespaces()) {
        return true;
    }
    if (!have_users) {
        g_test_skip("needs root, to become another user");
    }
    return !have_users;
}

static bool skip_without_privilege(Privilege privilege)
{
    if (privilege == PRIV_ROOT) {
        return skip_without_namespaces();
    }
    if (skip_without_users()) {
        return true;
    }
    if (privilege == PRIV_FILECAP && !have_filecaps) {
        g_test_skip("needs tmpfs with extended attributes, for file "
                    "capabilities");
        return true;
    }
    return false;
}

static bool skip_without_ptrace(void)
{
    if (skip_without_namespaces()) {
        return true;
    }
    if (!have_ptrace) {
        g_test_skip("needs CAP_SYS_PTRACE, and no sanitizers");
    }
    return !have_ptrace;
}


/* Arguments */

static void test_arguments(void)
{
    static const struct {
        const char *args[6];
        const char *fragment;
    } cases[] = {
        { { NULL }, "option '--mode' is missing" },
        { { "--mode=capture", HELPER_FD_ARG }, "option '--ifname' is missing" },
        { { "--mode=capture", "--ifname=tap0" }, "option '--fd' is missing" },
        { { "--ifname=tap0", HELPER_FD_ARG }, "option '--mode' is missing" },
        { { "" }, "unknown argument ''" },
        { { "capture" }, "unknown argument 'capture'" },
        { { "--" }, "unknown argument '--'" },
        { { "--mode", "capture" }, "unknown argument '--mode'" },
        { { "--ifnam=tap0" }, "unknown argument '--ifnam=tap0'" },
        { { "--helpme" }, "unknown argument '--helpme'" },
        { { "--mode=capture", "--mode=capture" }, "'--mode' is given twice" },
        { { "--ifname=tap0", "--ifname=tap1" }, "'--ifname' is given twice" },
        { { "--fd=7", "--fd=7" }, "'--fd' is given twice" },
        { { "--mode=" }, "must be 'capture' or 'inject', not ''" },
        { { "--mode=Capture" }, "must be 'capture' or 'inject'" },
        { { "--mode=capture2" }, "must be 'capture' or 'inject'" },
        { { "--mode=\x1b[2J\nx\xff" }, "not '\\x1b[2J\\x0ax\\xff'" },
        /* names */
        { { "--ifname=" }, "'' cannot be the name" },
        { { "--ifname=." }, "'.' cannot be the name" },
        { { "--ifname=.." }, "'..' cannot be the name" },
        { { "--ifname=tap/0" }, "cannot be the name" },
        { { "--ifname=../tap0" }, "cannot be the name" },
        { { "--ifname=tap0:1" }, "cannot be the name" },
        { { "--ifname=tap 0" }, "cannot be the name" },
        { { "--ifname= tap0" }, "cannot be the name" },
        { { "--ifname=tap0\n" }, "'tap0\\x0a' cannot be the name" },
        { { "--ifname=tap\t0" }, "cannot be the name" },
        { { "--ifname=tap\v0" }, "cannot be the name" },
        { { "--ifname=tap\xa0" "0" }, "cannot be the name" },
        { { "--ifname=sixteen-letters-" }, "cannot be the name" },
        /* file descriptors */
        { { "--fd=" }, "must be the number" },
        { { "--fd=-1" }, "must be the number" },
        { { "--fd=+7" }, "must be the number" },
        { { "--fd= 7" }, "must be the number" },
        { { "--fd=7 " }, "must be the number" },
        { { "--fd=0x7" }, "must be the number" },
        { { "--fd=7a" }, "must be the number" },
        { { "--fd=2147483648" }, "must be the number" },
        { { "--fd=4294967303" }, "must be the number" },
        { { "--fd=18446744073709551623" }, "must be the number" },
        { { "--mode=capture", "--ifname=tap0", "--fd=2147483647" },
          "descriptor 2147483647: Bad file descriptor" },
        { { "--mode=capture", "--ifname=tap0", "--fd=8" },
          "descriptor 8: Bad file descriptor" },
    };
    g_autofree char *huge = g_strnfill(100000, 'x');
    g_autofree char *huge_name = g_strdup_printf("--ifname=%s", huge);
    const char *argv[8] = { "qemu-packet-helper" };
    Run run = { .privilege = PRIV_AS_IS, .argv = argv };
    size_t i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        memcpy(argv + 1, cases[i].args, sizeof(cases[i].args));
        assert_refused(&run, cases[i].fragment);
    }

    argv[2] = NULL;
    argv[1] = huge;
    assert_refused(&run, "xxx...'");
    g_assert_cmpint(strlen(said), <, 512);
    argv[1] = huge_name;
    assert_refused(&run, "xxx...' cannot be the name");

    /* Linux 5.18 puts in an argv[0] */
    argv[0] = NULL;
    assert_refused(&run, "option '--mode' is missing");
}

static void test_help(void)
{
    static const char *const args[] = { "--help", "--version" };
    static const char *const words[] = {
        "--mode=capture|inject", "qemu-packet-helper version " QEMU_VERSION
    };
    size_t i;

    for (i = 0; i < ARRAY_SIZE(args); i++) {
        char *argv[] = { helper_built, (char *)args[i], NULL };
        g_autofree char *out = NULL;
        g_autofree char *err = NULL;
        int status;

        g_assert_true(g_spawn_sync(NULL, argv, NULL, 0, NULL, NULL, &out,
                                   &err, &status, NULL));
        g_assert_cmpint(status, ==, 0);
        g_assert_cmpstr(err, ==, "");
        g_assert_nonnull(strstr(out, words[i]));
    }
}

static void child_close_fd(void)
{
    close(HELPER_FD);
}

static void child_fd_is_file(void)
{
    int fd = open("/dev/null", O_RDWR);

    CHILD_CHECK(dup2(fd, HELPER_FD) == HELPER_FD);
}

static void child_fd_is(int domain, int type, bool listening)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int fd = socket(domain, type, 0);

    CHILD_CHECK(dup2(fd, HELPER_FD) == HELPER_FD);
    if (listening) {
        /* An abstract name, of the kernel's choice */
        CHILD_CHECK(bind(fd, (void *)&un, sizeof(un.sun_family)) == 0);
        CHILD_CHECK(listen(fd, 1) == 0);
    }
}

static void child_fd_is_inet(void)
{
    child_fd_is(AF_INET, SOCK_STREAM, false);
}

static void child_fd_is_unconnected(void)
{
    child_fd_is(AF_UNIX, SOCK_DGRAM, false);
}

static void child_fd_is_listening(void)
{
    child_fd_is(AF_UNIX, SOCK_STREAM, true);
}

static void test_bad_fds(void)
{
    Run run = { .privilege = PRIV_AS_IS };

    run.child = child_close_fd;
    assert_refused(&run, "descriptor 7: Bad file descriptor");
    run.child = child_fd_is_file;
    assert_refused(&run, "descriptor 7: Socket operation on non-socket");
    run.child = child_fd_is_inet;
    assert_refused(&run, "descriptor 7 is not a UNIX socket");
    run.child = child_fd_is_unconnected;
    assert_refused(&run, "UNIX socket 7 is not connected");
    run.child = child_fd_is_listening;
    assert_refused(&run, "UNIX socket 7 is not connected");
}


/* The socket that is sent */

/* Ours, among the frames that a kernel sends when an interface comes up */
static void make_frame(uint8_t *frame, uint8_t tag)
{
    memset(frame, 0, 60);
    memset(frame, 0xff, 6);
    frame[6] = 0x02;
    stw_be_p(frame + 12, ETHERTYPE);
    frame[14] = tag;
}

static void bind_packet(int fd, int ifindex, int proto)
{
    struct sockaddr_ll sll = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(proto),
        .sll_ifindex = ifindex,
    };

    g_assert_cmpint(bind(fd, (void *)&sll, sizeof(sll)), ==, 0);
}

static void host_sends(int fd, int ifindex, uint8_t tag)
{
    struct sockaddr_ll sll = {
        .sll_family = AF_PACKET,
        .sll_ifindex = ifindex,
        .sll_halen = ETH_ALEN,
    };
    uint8_t frame[60];

    make_frame(frame, tag);
    g_assert_cmpint(sendto(fd, frame, sizeof(frame), 0, (void *)&sll,
                           sizeof(sll)), ==, sizeof(frame));
}

static void guest_sends(int tap, uint8_t tag)
{
    uint8_t frame[60];

    make_frame(frame, tag);
    g_assert_cmpint(write(tap, frame, sizeof(frame)), ==, sizeof(frame));
}

/* The tags of our frames that wait at packet socket or TAP @fd */
static char *tags_at(int fd)
{
    GString *tags = g_string_new(NULL);
    uint8_t frame[2048];
    ssize_t len;

    while ((len = RETRY_ON_EINTR(read(fd, frame, sizeof(frame)))) > 0) {
        if (len >= 15 && lduw_be_p(frame + 12) == ETHERTYPE) {
            g_string_append_c(tags, frame[14]);
        }
    }
    return g_string_free(tags, false);
}

static void check_socket(int fd, int ifindex)
{
    struct sock_filter pass = BPF_STMT(BPF_RET | BPF_K, UINT32_MAX);
    struct sock_fprog prog = { .len = 1, .filter = &pass };
    struct sockaddr_ll sll = { 0 };
    socklen_t sll_len = sizeof(sll);
    int value;
    socklen_t len = sizeof(value);

    g_assert_cmpint(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &len), ==, 0);
    g_assert_cmpint(value, ==, AF_PACKET);
    g_assert_cmpint(getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &len), ==, 0);
    g_assert_cmpint(value, ==, SOCK_RAW);
    g_assert_cmpint(getsockname(fd, (void *)&sll, &sll_len), ==, 0);
    g_assert_cmpint(sll.sll_ifindex, ==, ifindex);
    g_assert_cmpint(sll.sll_protocol, ==, 0);

    /* The filter is there for good, even for root */
    g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog,
                               sizeof(prog)), ==, -1);
    g_assert_cmpint(errno, ==, EPERM);
    g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &value,
                               sizeof(value)), ==, -1);
    g_assert_cmpint(errno, ==, EPERM);
    value = 0;
    g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &value,
                               sizeof(value)), ==, -1);
    g_assert_cmpint(errno, ==, EPERM);
}

/*
 * Frames: 'a' host to guest on tap0, 'b' guest to host there; 'c' and 'd' the
 * same on the other TAP.  What of them arrives at the socket, bound to tap0,
 * to the other TAP, to all?
 */
static void test_traffic(gconstpointer opaque)
{
    Privilege privilege = GPOINTER_TO_INT(opaque);
    static const char *const modes[] = { "capture", "inject" };
    int tap, other, all, index, other_index;
    size_t i, j;

    if (skip_without_privilege(privilege)) {
        return;
    }

    write_acl("allow tap*\n");
    tap = tap_new("tap0");
    other = tap_new("other0");
    set_up("tap0");
    set_up("other0");
    index = if_nametoindex("tap0");
    other_index = if_nametoindex("other0");
    all = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    g_assert_cmpint(all, >=, 0);

    for (i = 0; i < ARRAY_SIZE(modes); i++) {
        const bool capture = i == 0;
        const struct {
            int index;
            const char *expect;
        } cases[] = {
            { index, "a" }, { other_index, "" }, { 0, "a" }, { index, "a" },
        };
        Run run = { .privilege = privilege, .mode = modes[i] };
        int fd = assert_sent(&run);
        g_autofree char *sent = NULL;

        check_socket(fd, index);
        g_assert_cmpint(fcntl(fd, F_SETFL, O_NONBLOCK), ==, 0);

        /* Nothing arrives as long as it is not asked to */
        host_sends(all, index, 'x');
        guest_sends(tap, 'y');
        bind_packet(all, 0, ETH_P_ALL);

        for (j = 0; j < ARRAY_SIZE(cases); j++) {
            g_autofree char *got = NULL;
            g_autofree char *seen = NULL;

            bind_packet(fd, cases[j].index, ETH_P_ALL);
            host_sends(all, index, 'a');
            guest_sends(tap, 'b');
            host_sends(all, other_index, 'c');
            guest_sends(other, 'd');

            /* Frames have been queued to all sockets before send() returns */
            seen = tags_at(all);
            g_assert_nonnull(strchr(seen, 'b'));
            g_assert_nonnull(strchr(seen, 'd'));
            got = tags_at(fd);
            if (capture) {
                g_assert_cmpstr(got, ==, cases[j].expect);
            } else {
                g_assert_cmpstr(got, ==, "");
            }
        }

        /* It can send, in either mode */
        g_free(tags_at(tap));
        host_sends(fd, index, 's');
        sent = tags_at(tap);
        g_assert_cmpstr(sent, ==, "s");
        close(fd);
    }

    close(all);
    close(tap);
    close(other);
}

static void child_fd_is_abandoned(void)
{
    int fd[2];

    CHILD_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    CHILD_CHECK(dup2(fd[0], HELPER_FD) == HELPER_FD);
    close(fd[1]);
}

static void test_unix_sockets(void)
{
    static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
    Run run = { .privilege = PRIV_ROOT };
    size_t i;
    int tap;

    if (skip_without_namespaces()) {
        return;
    }
    write_acl("allow tap0\n");
    tap = tap_new("tap0");
    for (i = 0; i < ARRAY_SIZE(types); i++) {
        int fd;

        run.socket_type = types[i];
        fd = assert_sent(&run);
        check_socket(fd, if_nametoindex("tap0"));
        close(fd);
    }

    run.child = child_fd_is_abandoned;
    assert_refused(&run, "cannot send over UNIX socket 7: Broken pipe");
    close(tap);
}


/* Privileges */

typedef struct Status {
    uint64_t uid[4];
    uint64_t gid[4];
    uint64_t inheritable;
    uint64_t permitted;
    uint64_t effective;
    uint64_t ambient;
    uint64_t no_new_privs;
} Status;

/* The numbers, of that base, in the line of @text that begins with @name */
static void read_field(const char *text, const char *name, int base,
                       uint64_t *values, size_t n)
{
    g_autofree char *start = g_strdup_printf("\n%s:\t", name);
    char *s = strstr(text, start);
    size_t i;

    g_assert_nonnull(s);
    s += strlen(start);
    for (i = 0; i < n; i++) {
        values[i] = g_ascii_strtoull(s, &s, base);
    }
}

static void read_status(pid_t pid, Status *status)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    read_field(text, "Uid", 10, status->uid, ARRAY_SIZE(status->uid));
    read_field(text, "Gid", 10, status->gid, ARRAY_SIZE(status->gid));
    read_field(text, "CapInh", 16, &status->inheritable, 1);
    read_field(text, "CapPrm", 16, &status->permitted, 1);
    read_field(text, "CapEff", 16, &status->effective, 1);
    read_field(text, "CapAmb", 16, &status->ambient, 1);
    read_field(text, "NoNewPrivs", 10, &status->no_new_privs, 1);
}

static void read_path(pid_t pid, uint64_t address, char *path, size_t size)
{
    g_autofree char *mem = g_strdup_printf("/proc/%d/mem", pid);
    int fd = open(mem, O_RDONLY | O_CLOEXEC);
    ssize_t len = pread(fd, path, size - 1, address);

    g_assert_cmpint(len, >, 0);
    path[len] = '\0';
    close(fd);
}

/* Can a process of user nobody take the fd with that number out of @pid? */
static bool nobody_can_steal(pid_t pid, int number)
{
    int status;
    pid_t thief = fork();

    g_assert_cmpint(thief, >=, 0);
    if (!thief) {
        int pidfd, fd;

        child_become_nobody(PRIV_NONE);
        pidfd = syscall(SYS_pidfd_open, pid, 0);
        fd = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, number, 0);
        _exit(fd < 0);
    }
    g_assert_cmpint(waitpid(thief, &status, 0), ==, thief);
    return status == 0;
}

typedef struct Progress {
    bool dropped;
    bool seen_acl;
    bool seen_socket;
    bool seen_send;
    bool undumpable;
} Progress;

/*
 * What the dynamic linker and libcap-ng do comes first, and is not ours.  From
 * the first own system call after the drop on: no more than CAP_NET_RAW.  From
 * the first deed on: the caller's user, too.
 */
static void trace_privileges(const Run *run, pid_t pid, bool entry,
                             uint64_t nr, const uint64_t *args)
{
    Progress *progress = run->opaque;
    const unsigned id = run->privilege == PRIV_ROOT ? 0 : NOBODY;
    bool deed = nr == SYS_socket || nr == SYS_bind || nr == SYS_setsockopt ||
                nr == SYS_getsockopt || nr == SYS_ioctl || nr == SYS_sendmsg ||
                nr == SYS_write;
    uint64_t caps;
    Status status;
    int i;

    if (!entry) {
        return;
    }

    read_status(pid, &status);
    if (nr == SYS_prctl && args[0] == PR_SET_NO_NEW_PRIVS) {
        progress->dropped = true;
    }
    if (progress->dropped) {
        g_assert_cmphex(status.permitted & ~NET_RAW_BIT, ==, 0);
        g_assert_cmphex(status.effective & ~NET_RAW_BIT, ==, 0);
    }

    if (nr == SYS_openat) {
        char path[256];

        read_path(pid, args[1], path, sizeof(path));
        if (!strcmp(path, ACL_FILE)) {
            progress->seen_acl = true;
            deed = true;
        }
    }
    if (nr == SYS_prctl && args[0] == PR_SET_DUMPABLE) {
        g_assert_cmpint(args[1], ==, 0);
        progress->undumpable = true;
    }
    if (!deed) {
        return;
    }

    caps = progress->seen_socket ? 0 : NET_RAW_BIT;
    g_assert_cmphex(status.effective, ==, caps);
    g_assert_cmphex(status.permitted, ==, caps);
    g_assert_cmphex(status.inheritable, ==, 0);
    g_assert_cmphex(status.ambient, ==, 0);
    g_assert_cmpint(status.no_new_privs, ==, 1);
    for (i = 0; i < 4; i++) {
        g_assert_cmpint(status.uid[i], ==, id);
        g_assert_cmpint(status.gid[i], ==, id);
    }
    g_assert_true(progress->dropped);
    g_assert_true(progress->undumpable);

    if (nr == SYS_socket) {
        g_assert_true(progress->seen_acl);
        progress->seen_socket = true;
    }
    if (nr == SYS_setsockopt && have_users) {
        /* The filter is not in place yet */
        g_assert_false(nobody_can_steal(pid, args[0]));
    }
    progress->seen_send |= nr == SYS_sendmsg;
}

static void test_privileges(gconstpointer opaque)
{
    Progress progress = { 0 };
    Run run = {
        .privilege = GPOINTER_TO_INT(opaque),
        .trace = trace_privileges,
        .opaque = &progress,
    };
    int tap;

    if (skip_without_ptrace() || skip_without_privilege(run.privilege)) {
        return;
    }
    write_acl("allow tap0\n");
    tap = tap_new("tap0");
    close(assert_sent(&run));
    g_assert_true(progress.seen_send);
    close(tap);
}

static void test_no_capability(void)
{
    Run run = { .privilege = PRIV_NONE };
    g_autofree char *advice = NULL;
    int tap;

    if (skip_without_users()) {
        return;
    }
    write_acl("allow *\n");
    tap = tap_new("tap0");

    advice = g_strdup_printf("'setcap cap_net_raw+ep %s'", helper_plain);
    assert_refused(&run, advice);
    close(tap);
}

static void child_no_new_privs(void)
{
    CHILD_CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
}

static void test_no_new_privs(gconstpointer opaque)
{
    Run run = {
        .privilege = GPOINTER_TO_INT(opaque),
        .child = child_no_new_privs,
    };
    int tap;

    if (skip_without_privilege(run.privilege)) {
        return;
    }
    write_acl("allow *\n");
    tap = tap_new("tap0");
    assert_refused(&run, "the caller has set no_new_privs");
    close(tap);
}

/* Root in a namespace of the attacker, where the ACL is the attacker's */
static void child_own_acl(void)
{
    g_autofree char *evil = g_strdup_printf("%s/evil.conf", dir);
    int fd;

    /* The files in /proc/self are root's otherwise */
    CHILD_CHECK(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    CHILD_CHECK(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0);
    fd = open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
    CHILD_CHECK(write(fd, "0 65534 1", 9) == 9);
    CHILD_CHECK(mount(evil, ACL_FILE, NULL, MS_BIND, NULL) == 0);
}

static bool can_unshare_as_nobody(void)
{
    int status;
    pid_t pid = fork();

    g_assert_cmpint(pid, >=, 0);
    if (!pid) {
        child_become_nobody(PRIV_NONE);
        _exit(unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return status == 0;
}

static void test_user_namespace(gconstpointer opaque)
{
    Run run = {
        .privilege = GPOINTER_TO_INT(opaque),
        .child = child_own_acl,
    };
    g_autofree char *evil = g_strdup_printf("%s/evil.conf", dir);
    int tap;

    if (skip_without_privilege(run.privilege)) {
        return;
    }
    if (!can_unshare_as_nobody()) {
        g_test_skip("needs user namespaces for everybody");
        return;
    }

    write_file(evil, "allow *\n", 8);
    g_assert_cmpint(chown(evil, NOBODY, NOBODY), ==, 0);
    write_acl("deny *\n");
    tap = tap_new("tap0");
    /*
     * That root has CAP_NET_RAW, but not in this network namespace, which
     * belongs to another user namespace.
     */
    assert_refused(&run, "cannot open a packet socket: Operation not");
    unlink(evil);
    close(tap);
}

static void test_environment(gconstpointer opaque)
{
    const char *const env[] = {
        "LD_PRELOAD=/nowhere/evil.so", "LD_LIBRARY_PATH=/nowhere",
        "LD_DEBUG=all",
        "GCONV_PATH=/nowhere", "LC_ALL=tr_TR.UTF-8", "G_DEBUG=fatal-warnings",
        "CAPNG=no", "HOME=/nowhere", "PATH=/nowhere",
        "SYSCONFDIR=/nowhere", "CONFDIR=/nowhere",
        "QEMU_PACKET_CONF=/nowhere", "PACKET_CONF=/nowhere", "no equals sign",
        "", NULL
    };
    /* Other programs of QEMU look for their files beside argv[0] */
    const char *argv[] = {
        NULL, "--mode=capture", "--ifname=tap0", HELPER_FD_ARG, NULL
    };
    g_autofree char *bundle = NULL;
    g_autofree char *evil = NULL;
    g_autofree char *argv0 = NULL;
    Run run = {
        .privilege = GPOINTER_TO_INT(opaque), .env = env, .argv = argv
    };
    int tap;

    if (skip_without_privilege(run.privilege)) {
        return;
    }
    bundle = g_strdup_printf("%s/qemu-bundle%s", dir, CONFIG_QEMU_CONFDIR);
    evil = g_strdup_printf("%s/packet.conf", bundle);
    argv0 = g_strdup_printf("%s/qemu-packet-helper", dir);
    argv[0] = argv0;
    g_assert_cmpint(g_mkdir_with_parents(bundle, 0755), ==, 0);
    write_file(evil, "allow *\n", 8);

    tap = tap_new("tap0");
    write_acl("allow tap*\n");
    close(assert_sent(&run));
    write_acl("allow *\ndeny tap*\n");
    assert_refused(&run, "denied by 'deny tap*' in " ACL_FILE ":2");
    unlink(evil);
    close(tap);
}

static void child_close_stdio(void)
{
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    close(STDERR_FILENO);
}

static void child_close_stderr(void)
{
    close(STDERR_FILENO);
}

static void test_closed_stdio(void)
{
    const char *const argv[] = {
        "qemu-packet-helper", "--mode=inject", "--ifname=tap0", "--fd=2", NULL
    };
    Run run = {
        .privilege = PRIV_ROOT,
        .mode = "inject",
        .child = child_close_stdio,
        .no_stderr = true,
    };
    g_autofree char *seen = NULL;
    uint8_t frame[2048];
    int tap, all, fd;

    if (skip_without_namespaces()) {
        return;
    }
    write_acl("allow *\n");
    tap = tap_new("tap0");
    fd = assert_sent(&run);
    check_socket(fd, if_nametoindex("tap0"));
    close(fd);

    /*
     * If the packet socket could become fd 2, this error would be sent as a
     * frame: that lo is not an Ethernet interface is found out after bind()
     */
    set_up("lo");
    all = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK,
                 htons(ETH_P_ALL));
    g_assert_cmpint(all, >=, 0);
    bind_packet(all, if_nametoindex("lo"), ETH_P_ALL);
    run.ifname = "lo";
    run.child = child_close_stderr;
    g_assert_cmpint(run_helper(&run), ==, -1);
    g_assert_cmpint(recv(all, frame, sizeof(frame), 0), ==, -1);
    close(all);

    /* What is opened in place of a closed one is no UNIX socket */
    run.argv = argv;
    g_assert_cmpint(run_helper(&run), ==, -1);
    close(tap);
}

/* No more than so many files can be open: none is taken for another one */

static rlim_t max_files;

static void child_few_files(void)
{
    struct rlimit limit = { .rlim_cur = max_files, .rlim_max = max_files };

    CHILD_CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void child_few_files_closed_stdio(void)
{
    child_close_stdio();
    child_few_files();
}

static void test_few_files(gconstpointer opaque)
{
    Run run = {
        .privilege = GPOINTER_TO_INT(opaque),
        .no_stderr = true,
        .may_die = true,
    };
    int tap;

    if (skip_without_privilege(run.privilege)) {
        return;
    }
#ifdef QEMU_SANITIZE_ADDRESS
    g_test_skip("needs a helper without sanitizers, which open files, too");
    return;
#endif
    tap = tap_new("tap0");
    for (int i = 0; i < 4; i++) {
        bool allow = i % 2;
        bool sent = false;

        run.child = i < 2 ? child_few_files : child_few_files_closed_stdio;
        write_acl(allow ? "allow tap0\n" : "deny tap0\n");
        /* The C library does not start a setuid program without the three */
        for (max_files = i < 2 ? 0 : 3; max_files <= 16; max_files++) {
            int fd = run_helper(&run);

            if (fd >= 0) {
                check_socket(fd, if_nametoindex("tap0"));
                close(fd);
            }
            /* Standard input, output and error, and one for the ACL */
            g_assert_true(fd < 0 || (allow && max_files > 3));
            g_assert_true(fd >= 0 || !sent);
            sent = fd >= 0;
        }
        g_assert_true(sent == allow);
    }
    close(tap);
}

/* It cannot say what is wrong: then it ends all the same */

static void child_stderr_is_full(void)
{
    struct rlimit limit = { 0 };
    g_autofree char *path = g_strdup_printf("%s/stderr", dir);
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    CHILD_CHECK(dup2(fd, STDERR_FILENO) == STDERR_FILENO);
    CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

static void child_stderr_is_unread(void)
{
    int fd[2];

    CHILD_CHECK(pipe(fd) == 0);
    CHILD_CHECK(dup2(fd[1], STDERR_FILENO) == STDERR_FILENO);
    close(fd[0]);
    close(fd[1]);
}

static void child_stderr_is_unread_no_sigpipe(void)
{
    child_stderr_is_unread();
    signal(SIGPIPE, SIG_IGN);
}

static void test_unsaid(gconstpointer opaque)
{
    static void (*const children[])(void) = {
        child_stderr_is_full,
        child_stderr_is_unread,
        child_stderr_is_unread_no_sigpipe,
    };
    g_autofree char *path = g_strdup_printf("%s/stderr", dir);
    Run run = {
        .privilege = GPOINTER_TO_INT(opaque),
        .no_stderr = true,
        .may_die = true,
    };
    struct stat st;
    int tap;

    if (skip_without_privilege(run.privilege)) {
        return;
    }
    tap = tap_new("tap0");
    write_file(path, "", 0);
    g_assert_cmpint(chmod(path, 0666), ==, 0);
    for (size_t i = 0; i < ARRAY_SIZE(children); i++) {
        run.child = children[i];
        write_acl("allow tap0\n");
        close(assert_sent(&run));
        write_acl("deny tap0\n");
        g_assert_cmpint(run_helper(&run), ==, -1);
        g_assert_cmpstr(said, ==, "");
    }
    g_assert_cmpint(stat(path, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, 0);
    unlink(path);
    close(tap);
}


/* The ACL */

static void test_acl(void)
{
    static const struct {
        const char *acl;
        const char *ifname;
        /* NULL: allowed */
        const char *fragment;
    } cases[] = {
        /* nothing matches */
        { "", "tap0", "is not allowed; a line 'allow tap0' in " ACL_FILE },
        { "# allow tap0\n\n \t\n", "tap0", "is not allowed" },
        { "allow tap1\n", "tap0", "is not allowed" },
        { "deny eth0\n", "tap0", "is not allowed" },
        /* names */
        { "allow tap0\n", "tap0", NULL },
        { "allow tap0", "tap0", NULL },
        { "allow tap0\r\n", "tap0", NULL },
        { " \t allow \t tap0 \t", "tap0", NULL },
        { "allow tap\n", "tap0", "is not allowed" },
        { "allow tap00\n", "tap0", "is not allowed" },
        { "allow TAP0\n", "tap0", "is not allowed" },
        { "allow fifteen-letters\n", "fifteen-letters", NULL },
        { "#\nallow tap1\nallow tap0\n", "tap0", NULL },
        /* '*' */
        { "allow *\n", "tap0", NULL },
        { "allow **\n", "x", NULL },
        { "allow tap*\n", "tap", NULL },
        { "allow tap*\n", "tap10", NULL },
        { "allow tap*\n", "ta", "is not allowed" },
        { "allow tap*\n", "xtap0", "is not allowed" },
        { "allow *0\n", "tap0", NULL },
        { "allow *0\n", "tap00", NULL },
        { "allow *0\n", "tap01", "is not allowed" },
        { "allow t*p*0\n", "tap10", NULL },
        { "allow t*p*0\n", "tap1", "is not allowed" },
        { "allow *ab\n", "aab", NULL },
        { "allow *a*b*c\n", "xaxbxbxc", NULL },
        { "allow *a*b*c\n", "xaxcxb", "is not allowed" },
        { "allow ***************a***************\n", "aaaaaaaaaaaaaaa", NULL },
        { "allow *a*a*a*a*a*a*a*b\n", "aaaaaaaaaaaaaaa", "is not allowed" },
        /* of the name nothing is special */
        { "allow tap0\n", "*", "is not allowed" },
        { "allow tap0\n", "tap*", "is not allowed" },
        { "allow tap*\n", "tap*", NULL },
        { "allow tap0\n", "tap?", "is not allowed" },
        /* deny wins, wherever it stands */
        { "allow tap*\ndeny tap0\n", "tap0",
          "denied by 'deny tap0' in " ACL_FILE ":2" },
        { "deny tap0\nallow tap0\n", "tap0",
          "denied by 'deny tap0' in " ACL_FILE ":1" },
        { "allow tap0\ndeny *\n", "tap0", "denied by 'deny *'" },
        { "allow tap0\ndeny *0\nallow tap0\n", "tap0", "denied by" },
        { "allow *\ndeny tap0\n", "tap1", NULL },
        /* anything odd denies, whether or not there is an allow */
        { "allow tap0\nallow\n", "tap0", ACL_FILE ":2: what to allow" },
        { "allow tap0\ndeny ", "tap0", ACL_FILE ":2: what to deny" },
        { "allow tap0\ninclude\n", "tap0", ":2: what to include" },
        { "allow tap0\ndenied eth0\n", "tap0", ":2: 'denied' is not 'allow'" },
        { "allow tap0\nDeny eth0\n", "tap0", ":2: 'Deny' is not 'allow'" },
        { "allow tap0\ndeny=eth0\n", "tap0", ":2: 'deny=eth0' is not" },
        { "allow tap0\n\x1b[2J\n", "tap0", ":2: '\\x1b[2J' is not" },
        { "allow tap0\ndeny eth0 eth1\n", "tap0", "'eth0 eth1' is not one" },
        { "allow tap0\ndeny eth0 # why\n", "tap0", "is not one" },
        { "allow tap0\ndeny eth0,eth1\n", "tap0", "is not one" },
        { "allow tap0\ndeny \"eth0\"\n", "tap0", "is not one" },
        { "allow tap0\ndeny eth[01]\n", "tap0", "is not one" },
        { "allow tap0\ndeny eth?\n", "tap0", "is not one" },
        { "allow tap0\ndeny eth\\*\n", "tap0", "is not one" },
        { "allow tap0\ndeny !tap0\n", "tap0", "is not one" },
        { "allow tap0\ndeny eth0:1\n", "tap0", "is not one" },
        { "allow tap0\ndeny eth\xc3\xa9\n", "tap0", "is not one" },
        { "allow tap0\ndeny all\n", "tap0", "write '*' for all" },
        { "allow all\n", "tap0", "write '*' for all" },
        { "allow tap0\ndeny sixteen-letters-\n", "tap0", "is too long" },
        { "allow tap0\ndeny *sixteen-letters-*\n", "tap0", "is too long" },
        { "allow tap0\ninclude packet.conf\n", "tap0", "absolute path" },
        { "allow tap0\ninclude /nonexistent\n", "tap0",
          ACL_FILE ":2: cannot open '/nonexistent': No such file" },
        { "allow tap0\ninclude " ACL_FILE "\n", "tap0",
          ACL_FILE ":2: '" ACL_FILE "' includes itself" },
    };
    size_t i;

    if (skip_without_namespaces()) {
        return;
    }
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        Run run = { .privilege = PRIV_ROOT, .ifname = cases[i].ifname };
        g_autofree char *escaped = g_strescape(cases[i].acl, NULL);

        g_test_message("ACL \"%s\", interface %s", escaped, cases[i].ifname);
        write_acl(cases[i].acl);
        /* There is no such interface, which only those allowed are told */
        assert_refused(&run, cases[i].fragment ?: "cannot find interface");
    }
}

static void test_acl_garbage(void)
{
    static const char nul[] = "allow tap0\nallow tap\0" "1\n";
    static const char late_nul[] = "allow tap0\n\0";
    Run run = { .privilege = PRIV_ROOT };
    g_autofree char *spaces = g_strnfill(100000, ' ');
    g_autofree char *xs = g_strnfill(1000000, 'x');
    g_autofree char *text = NULL;
    int fd;

    if (skip_without_namespaces()) {
        return;
    }

    write_file(ACL_FILE, nul, sizeof(nul) - 1);
    assert_refused(&run, ":2: this is not a text file");
    write_file(ACL_FILE, late_nul, sizeof(late_nul) - 1);
    assert_refused(&run, ":2: this is not a text file");

    /* A cut line must not leave an "allow" at either side */
    text = g_strdup_printf("allow tap0%s\n", spaces);
    write_acl(text);
    assert_refused(&run, ":1: the line is too long");
    g_free(text);
    text = g_strdup_printf("#%s\nallow tap0\n", spaces);
    write_acl(text);
    assert_refused(&run, ":1: the line is too long");
    write_acl(xs);
    assert_refused(&run, ":1: the line is too long");

    /* 16 TiB of nothing */
    write_acl("allow tap0\n");
    fd = open(ACL_FILE, O_WRONLY | O_CLOEXEC);
    g_assert_true(ftruncate(fd, 1LL << 40) == 0 || errno == EFBIG);
    close(fd);
    assert_refused(&run, ":2: this is not a text file");
}

/* Whose files, and which kinds of files, are read at all; also if included */
static void test_acl_files(void)
{
    static const char allow[] = "allow tap0\n";
    Run run = { .privilege = PRIV_ROOT };
    g_autofree char *real = g_strdup_printf("%s/real.conf", dir);
    g_autofree char *included = g_strdup_printf("%s/included.conf", dir);
    g_autofree char *text = g_strdup_printf("allow tap0\ninclude %s\n",
                                            included);
    const char *paths[] = { ACL_FILE, included };
    size_t i;

    if (skip_without_namespaces()) {
        return;
    }

    write_acl(text);
    write_file(included, "deny tap0\n", 10);
    assert_refused(&run, "included.conf:1");
    write_file(included, "", 0);
    assert_refused(&run, "cannot find interface");

    for (i = 0; i < ARRAY_SIZE(paths); i++) {
        const char *path = paths[i];

        unlink(path);
        assert_refused(&run, "No such file or directory");

        write_file(real, allow, strlen(allow));
        g_assert_cmpint(symlink(real, path), ==, 0);
        assert_refused(&run, "it is a symbolic link");
        unlink(path);
        unlink(real);
        g_assert_cmpint(symlink(real, path), ==, 0);
        assert_refused(&run, "it is a symbolic link");
        unlink(path);

        g_assert_cmpint(mkdir(path, 0755), ==, 0);
        assert_refused(&run, "must be a regular file");
        rmdir(path);
        g_assert_cmpint(mkfifo(path, 0644), ==, 0);
        assert_refused(&run, "must be a regular file");
        unlink(path);

        write_file(path, allow, strlen(allow));
        chmod(path, 0664);
        assert_refused(&run, "nobody else can write");
        chmod(path, 0646);
        assert_refused(&run, "nobody else can write");
        chmod(path, 0400);
        assert_refused(&run, "cannot find interface");
        if (have_users) {
            chmod(path, 0644);
            g_assert_cmpint(chown(path, NOBODY, 0), ==, 0);
            assert_refused(&run, "must be a regular file that belongs to root");
            g_assert_cmpint(chown(path, 0, NOBODY), ==, 0);
            assert_refused(&run, "cannot find interface");

            /* The caller's permissions decide about reading, not root's */
            g_assert_cmpint(chown(path, 0, 0), ==, 0);
            chmod(path, 0640);
            run.privilege = PRIV_SETUID;
            assert_refused(&run, "Permission denied");
            if (have_filecaps) {
                run.privilege = PRIV_FILECAP;
                assert_refused(&run, "Permission denied");
            }
            run.privilege = PRIV_ROOT;
        }
        unlink(path);
        write_acl(text);
    }
    unlink(included);
}

static void test_acl_includes(void)
{
    Run run = { .privilege = PRIV_ROOT };
    int i;

    if (skip_without_namespaces()) {
        return;
    }

    /* packet.conf includes 2, that 3, and so on; the last one allows */
    for (i = 2; i <= 9; i++) {
        g_autofree char *path = g_strdup_printf("%s/%d", dir, i);
        g_autofree char *text = g_strdup_printf("include %s/%d\n", dir, i + 1);

        write_file(path, text, strlen(text));
    }
    for (i = 9; i >= 8; i--) {
        g_autofree char *first = g_strdup_printf("include %s/2\n", dir);
        g_autofree char *path = g_strdup_printf("%s/%d", dir, i);

        write_acl(first);
        write_file(path, "allow tap0\n", 11);
        assert_refused(&run, i == 8 ? "cannot find interface" :
                       "is included too deeply");
    }

    /* A cycle of two; twice the same is none */
    for (i = 0; i < 2; i++) {
        g_autofree char *path = g_strdup_printf("%s/2", dir);
        g_autofree char *first = g_strdup_printf("allow tap0\ninclude %s\n"
                                                 "include %s\n", path, path);
        g_autofree char *text = g_strdup_printf("# 2\ninclude %s\n",
                                                i ? ACL_FILE : "/dev/null");

        write_acl(first);
        write_file(path, i ? text : "# 2\n", i ? strlen(text) : 4);
        assert_refused(&run, i ? "/2:2: '" ACL_FILE "' includes itself" :
                       "cannot find interface");
    }

    for (i = 2; i <= 9; i++) {
        g_autofree char *path = g_strdup_printf("%s/%d", dir, i);

        unlink(path);
    }
}


/* Interfaces */

static void test_interfaces(void)
{
    Run run = { .privilege = PRIV_ROOT };
    int tap, tun;

    if (skip_without_namespaces()) {
        return;
    }
    write_acl("allow *\n");
    tap = tap_new("tap0");
    tun = tun_new("tun0", IFF_TUN);

    run.ifname = "tap1";
    assert_refused(&run, "cannot find interface 'tap1'");
    run.ifname = "lo";
    assert_refused(&run, "'lo' is not an Ethernet interface");
    run.ifname = "tun0";
    assert_refused(&run, "'tun0' is not an Ethernet interface");
    close(tun);
    close(tap);
}

/* @opaque is the kind */
static void test_reversed_interface(gconstpointer opaque)
{
    Run run = { .privilege = PRIV_ROOT, .ifname = "mv0" };
    int tap;

    if (skip_without_namespaces()) {
        return;
    }
    write_acl("allow *\n");
    tap = tap_new("tap0");
    if (link_new("mv0", opaque, "tap0") < 0) {
        g_test_skip("needs a kernel with this kind of interface");
    } else {
        assert_refused(&run, "'mv0' is a macvlan or macvtap interface");
    }
    close(tap);
}

/* An interface that is denied has an alternative name that is allowed */
static void test_altname(void)
{
    Run run = { .privilege = PRIV_ROOT, .ifname = "tap1" };
    int tap;

    if (skip_without_namespaces()) {
        return;
    }
    write_acl("allow tap*\ndeny secret0\n");
    tap = tap_new("secret0");
    if (link_add_altname("secret0", "tap1") < 0) {
        g_test_skip("needs alternative names of interfaces, Linux 5.5");
    } else {
        assert_refused(&run, "found as 'tap1' has the name 'secret0'");
    }
    close(tap);
}


/*
 * The race on the name.  The property: an interface whose socket is sent has
 * had the name that was asked for, and that is allowed, at a moment after the
 * socket was bound.
 */

/* Two TAPs: first those names, at moment "at" both get the next names */
typedef struct Race {
    const char *names[2][2];
    int stop;                   /* system calls until then, from socket() on */

    int calls;
    bool after_socket;
    bool bound;
    bool had_name;              /* after bind(), before "at" */
    bool done;
} Race;

static void trace_race(const Run *run, pid_t pid, bool entry, uint64_t nr,
                       const uint64_t *args)
{
    Race *race = run->opaque;

    if (nr == SYS_socket && entry) {
        race->after_socket = true;
    }
    if (!race->after_socket || !entry) {
        if (nr == SYS_bind) {
            race->bound = true;
        }
        return;
    }
    if (race->calls++ == race->stop) {
        race->had_name = race->bound;
        rename_interface(race->names[0][0], race->names[1][0]);
        if (race->names[0][1]) {
            rename_interface(race->names[0][1], race->names[1][1]);
        }
        race->done = true;
    }
}

static void test_race(void)
{
    static const Race races[] = {
        /* the allowed one becomes a denied one */
        { .names = { { "tap0" }, { "secret0" } } },
        /* ... and another one takes its name */
        { .names = { { "tap0", "other0" }, { "secret0", "tap0" } } },
        /* a denied one becomes the allowed one, the other way around */
        { .names = { { "other0" }, { "tap0" } } },
        /* it has yet another name that is allowed, but was not asked for */
        { .names = { { "tap0" }, { "tap9" } } },
    };
    size_t i;

    if (skip_without_ptrace()) {
        return;
    }
    write_acl("allow tap*\n");

    for (i = 0; i < ARRAY_SIZE(races); i++) {
        int refused = 0;
        int sent = 0;
        int stop;

        for (stop = 0; ; stop++) {
            Race race = races[i];
            Run run = {
                .privilege = PRIV_ROOT,
                .trace = trace_race,
                .opaque = &race,
            };
            int first = tap_new(race.names[0][0]);
            int first_index = if_nametoindex(race.names[0][0]);
            int second = race.names[0][1] ? tap_new(race.names[0][1]) : -1;
            int fd;

            race.stop = stop;
            fd = run_helper(&run);
            if (fd >= 0 && race.done) {
                struct sockaddr_ll sll = { 0 };
                socklen_t len = sizeof(sll);
                char now[IFNAMSIZ];

                g_assert_cmpint(getsockname(fd, (void *)&sll, &len), ==, 0);
                g_assert_nonnull(if_indextoname(sll.sll_ifindex, now));
                /* It has the name since "at", or had it until then */
                if (strcmp(now, "tap0")) {
                    g_assert_cmpint(sll.sll_ifindex, ==, first_index);
                    g_assert_cmpstr(race.names[0][0], ==, "tap0");
                    g_assert_true(race.had_name);
                }
                sent++;
            }
            refused += fd < 0;
            if (fd >= 0) {
                close(fd);
            }
            close(first);
            if (second >= 0) {
                close(second);
            }
            if (!race.done) {
                break;
            }
        }
        g_test_message("race %zu: %d steps, %d refused, %d sent", i, stop,
                       refused, sent);
        g_assert_cmpint(refused, >, 0);
        g_assert_cmpint(stop, >, 4);
    }
}


/* Set-up */

static char *copy_helper(const char *name, mode_t mode)
{
    char *path = g_strdup_printf("%s/%s", dir, name);
    g_autofree char *bytes = NULL;
    gsize len;

    g_assert_true(g_file_get_contents(helper_built, &bytes, &len, NULL));
    g_assert_true(g_file_set_contents(path, bytes, len, NULL));
    g_assert_cmpint(chmod(path, mode), ==, 0);
    return path;
}

static void write_string(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd >= 0) {
        g_assert_cmpint(write(fd, text, strlen(text)), ==, strlen(text));
        close(fd);
    }
}

/* For those who are not root: to become root in a namespace */
static bool become_namespace_root(void)
{
    g_autofree char *uid_map = g_strdup_printf("0 %u 1", (unsigned)getuid());
    g_autofree char *gid_map = g_strdup_printf("0 %u 1", (unsigned)getgid());

    if (unshare(CLONE_NEWUSER) < 0) {
        return false;
    }
    write_string("/proc/self/setgroups", "deny");
    write_string("/proc/self/uid_map", uid_map);
    write_string("/proc/self/gid_map", gid_map);
    return getuid() == 0;
}

/* A private place for the ACL: cover what there is of the path to it */
static bool mount_confdir(void)
{
    g_autofree char *path = g_strdup(CONFIG_QEMU_CONFDIR);
    char *slash;

    while (access(path, F_OK) < 0 && (slash = strrchr(path, '/'))) {
        *slash = '\0';
    }
    return *path && mount("tmpfs", path, "tmpfs", 0, "mode=755") == 0 &&
           g_mkdir_with_parents(CONFIG_QEMU_CONFDIR, 0755) == 0;
}

static void init_filecap(void)
{
    struct vfs_cap_data cap = {
        .magic_etc = cpu_to_le32(VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE),
        .data[0].permitted = cpu_to_le32(NET_RAW_BIT),
    };

    have_filecaps = setxattr(helper_filecap, "security.capability", &cap,
                             XATTR_CAPS_SZ_2, 0) == 0;
}

static void init_namespaces(void)
{
    const bool root = geteuid() == 0;
    int status;
    pid_t pid;

    if (!root && !become_namespace_root()) {
        no_namespaces = "needs root, or user namespaces for everybody";
        return;
    }
    if (unshare(CLONE_NEWNS | CLONE_NEWNET) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        no_namespaces = "needs CAP_SYS_ADMIN, for namespaces of its own";
        return;
    }
    if (access("/dev/net/tun", R_OK | W_OK) < 0) {
        no_namespaces = "needs access to /dev/net/tun";
        return;
    }
    if (mount("tmpfs", dir, "tmpfs", 0, "mode=755") < 0 || !mount_confdir()) {
        no_namespaces = "cannot mount a file system of its own for "
                        CONFIG_QEMU_CONFDIR;
        return;
    }

    have_namespaces = true;
    have_users = root;
    helper_plain = copy_helper("plain", 0755);
    if (have_users) {
        helper_setuid = copy_helper("setuid", 06755);
        helper_filecap = copy_helper("filecap", 0755);
        init_filecap();
    }

    /* Tracing must not take the effect of setuid away either */
    pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (!pid) {
        _exit(syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0) != 0 ||
              prctl(PR_CAPBSET_READ, CAP_SYS_PTRACE, 0, 0, 0) != 1);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    have_ptrace = status == 0;
#ifdef QEMU_SANITIZE_ADDRESS
    /* It is not made for being traced, nor for privileged programs */
    have_ptrace = false;
#endif
}

static void add_for_privileges(const char *name, GTestDataFunc func,
                               Privilege first, Privilege last)
{
    Privilege privilege;

    for (privilege = first; privilege <= last; privilege++) {
        g_autofree char *path = g_strdup_printf("/packet-helper/%s/%s", name,
                                                privilege_names[privilege]);

        g_test_add_data_func(path, GINT_TO_POINTER(privilege), func);
    }
}

static int run_tests(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    helper_built = g_test_build_filename(G_TEST_BUILT, "..", "..",
                                         "qemu-packet-helper", NULL);
    init_namespaces();

    g_test_add_func("/packet-helper/arguments", test_arguments);
    g_test_add_func("/packet-helper/help", test_help);
    g_test_add_func("/packet-helper/bad-fds", test_bad_fds);
    add_for_privileges("traffic", test_traffic, PRIV_ROOT, PRIV_AMBIENT);
    add_for_privileges("privileges", test_privileges, PRIV_ROOT, PRIV_AMBIENT);
    g_test_add_func("/packet-helper/unix-sockets", test_unix_sockets);
    g_test_add_func("/packet-helper/no-capability", test_no_capability);
    add_for_privileges("no-new-privs", test_no_new_privs, PRIV_SETUID,
                       PRIV_FILECAP);
    add_for_privileges("user-namespace", test_user_namespace, PRIV_SETUID,
                       PRIV_FILECAP);
    add_for_privileges("environment", test_environment, PRIV_SETUID,
                       PRIV_FILECAP);
    g_test_add_func("/packet-helper/closed-stdio", test_closed_stdio);
    add_for_privileges("few-files", test_few_files, PRIV_ROOT, PRIV_FILECAP);
    add_for_privileges("unsaid", test_unsaid, PRIV_ROOT, PRIV_FILECAP);
    g_test_add_func("/packet-helper/acl/rules", test_acl);
    g_test_add_func("/packet-helper/acl/garbage", test_acl_garbage);
    g_test_add_func("/packet-helper/acl/files", test_acl_files);
    g_test_add_func("/packet-helper/acl/includes", test_acl_includes);
    g_test_add_func("/packet-helper/interfaces/other", test_interfaces);
    g_test_add_data_func("/packet-helper/interfaces/macvtap", "macvtap",
                         test_reversed_interface);
    g_test_add_data_func("/packet-helper/interfaces/macvlan", "macvlan",
                         test_reversed_interface);
    g_test_add_func("/packet-helper/altname", test_altname);
    g_test_add_func("/packet-helper/race", test_race);

    return g_test_run();
}

/*
 * QEMU's utilities start a thread before main() is called, and again after
 * each fork().  Namespaces are for processes with one thread.
 */
int main(int argc, char **argv)
{
    int status;
    pid_t pid;

    /* What is mounted there disappears with the child */
    dir = g_dir_make_tmp("test-packet-helper-XXXXXX", NULL);
    g_assert_nonnull(dir);

    rcu_disable_atfork();
    pid = fork();
    if (pid < 0) {
        perror("fork");
        return EXIT_FAILURE;
    }
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        return run_tests(argc, argv);
    }
    while (waitpid(pid, &status, 0) != pid) {
        /* interrupted */
    }
    rmdir(dir);
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
}
