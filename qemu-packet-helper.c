/*
 * QEMU packet socket helper
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Opens an AF_PACKET socket on one network interface for a process that may
 * not, typically a QEMU without CAP_NET_RAW, and hands it over.  The caller
 * names the interface; a file that belongs to root says whether it is allowed.
 * docs/tools/qemu-packet-helper.rst is the manual.
 *
 * How it works
 *
 * The caller is the enemy.  It chooses the arguments, the environment, the
 * file descriptors and the limits, and may send signals at any time.  In order
 * of time:
 *
 *   1. Drop every privilege but CAP_NET_RAW, and become the caller: its user
 *      and groups.  From here on the caller's own permissions decide which
 *      files can be read.  The process is not dumpable: no process may take its
 *      sockets with pidfd_getfd(2) before they are filtered.
 *   2. Read the arguments.  The environment is not looked at.
 *   3. Ask the ACL about the name.  A "no" comes before any socket is opened,
 *      and does not depend on whether there is such an interface.
 *   4. Open the packet socket, drop CAP_NET_RAW.  The protocol is 0: until the
 *      caller binds the socket to another one it receives nothing.
 *   5. Find the index of the interface, attach a filter that tests for it,
 *      lock the filter, bind.
 *   6. Ask for the name which the bound interface has now.  It must still be
 *      the one that the ACL has allowed: a rename between 3 and 5 gains
 *      nothing, nor does an alternative name, which the kernel accepts in
 *      place of the name since Linux 5.5.  A later rename changes nothing:
 *      the socket stays with the interface.
 *   7. Send the socket over the caller's socket, and exit.
 *
 * The ACL is judged while it is read, so nothing is allocated that grows with
 * its size.  A "deny" ends the program on the spot, "allow" is remembered, and
 * whatever is not understood denies, for it might have been a "deny".
 *
 * Only libc and libcap-ng are linked.  GLib reads the environment before
 * main() is called, and does not claim to be safe in a setuid program.
 */

#include "qemu/osdep.h"

#include <cap-ng.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define ACL_FILE CONFIG_QEMU_CONFDIR "/packet.conf"

/* Files that include one another, the first one counts too */
#define ACL_MAX_DEPTH 8

/* "include", blanks, a path */
#define ACL_MAX_LINE (PATH_MAX + 64)

typedef enum Mode {
    MODE_NONE,
    MODE_CAPTURE,
    MODE_INJECT,
} Mode;

typedef struct Arguments {
    Mode mode;
    const char *ifname;
    int fd;
} Arguments;

/* An ACL file that is being read, and how it came to that */
typedef struct AclFile {
    const char *path;
    const struct AclFile *includer;
    int depth;
    int line;

    FILE *stream;
    dev_t dev;
    ino_t ino;
} AclFile;

static const char usage[] =
    "Usage: qemu-packet-helper --mode=capture|inject --ifname=NAME --fd=N\n"
    "Open a packet socket on network interface NAME and send it over the\n"
    "connected UNIX socket N.  The interfaces for which that is allowed are in\n"
    ACL_FILE ".\n"
    "\n"
    "  --mode=capture  the socket receives what the host sends to NAME\n"
    "  --mode=inject   the socket receives nothing\n"
    "  --ifname=NAME   network interface, an Ethernet device such as a TAP\n"
    "  --fd=N          inherited file descriptor of a connected UNIX socket\n"
    "  --help          display this help and exit\n"
    "  --version       output version information and exit\n";


/* Errors */

static G_NORETURN G_GNUC_PRINTF(1, 2) void die(const char *fmt, ...)
{
    va_list ap;

    fputs("qemu-packet-helper: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

/*
 * Make @s fit for a message, which may be shown by a terminal.  The
 * result is valid until the third call from now.
 */
static const char *show(const char *s)
{
    static const char hex[] = "0123456789abcdef";
    static char bufs[3][256];
    static int next;
    char *buf = bufs[next++ % ARRAY_SIZE(bufs)];
    size_t n = 0;

    for (; *s; s++) {
        unsigned char c = *s;

        if (n > sizeof(bufs[0]) - sizeof("\\xff...")) {
            memcpy(buf + n, "...", 3);
            n += 3;
            break;
        }
        if (c >= ' ' && c < 0x7f) {
            buf[n++] = c;
        } else {
            buf[n++] = '\\';
            buf[n++] = 'x';
            buf[n++] = hex[c >> 4];
            buf[n++] = hex[c & 15];
        }
    }
    buf[n] = '\0';
    return buf;
}


/* Privileges */

/* Keep CAP_NET_RAW, or nothing */
static void keep_capability(bool net_raw)
{
    capng_clear(CAPNG_SELECT_BOTH);
    if ((net_raw && capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED,
                                 CAP_NET_RAW) < 0) ||
        capng_apply(CAPNG_SELECT_CAPS) < 0) {
        die("cannot drop capabilities");
    }
}

/*
 * From a setuid program, one with file capabilities, or root: become the
 * caller, with CAP_NET_RAW if that was among the privileges.  Returns whether
 * it was.
 *
 * The bounding set is left alone, which takes a capability to change: with
 * no_new_privs no program that this one might be made to execute gains
 * anything.  The ambient set goes with the inheritable set.
 */
static bool drop_privileges(bool *caller_no_new_privs)
{
    uid_t uid = getuid();
    gid_t gid = getgid();
    bool net_raw;

    if (capng_get_caps_process() < 0) {
        die("cannot query capabilities; is /proc mounted?");
    }
    net_raw = capng_have_capability(CAPNG_PERMITTED, CAP_NET_RAW);
    keep_capability(net_raw);

    *caller_no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        die("cannot set no_new_privs: %s", strerror(errno));
    }

    /*
     * To become one's real user takes no capability, but costs them.  (If the
     * user is that already, he might be one whom the user namespace has no
     * number for, and could not become himself.)
     */
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 ||
        (getegid() != gid && setresgid(gid, gid, gid) < 0) ||
        (geteuid() != uid && setresuid(uid, uid, uid) < 0) ||
        prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0) {
        die("cannot change to user %u and group %u: %s",
            (unsigned)uid, (unsigned)gid, strerror(errno));
    }
    keep_capability(net_raw);

    /* Last, as a change of the user may set it anew */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
        die("cannot become undumpable: %s", strerror(errno));
    }
    return net_raw;
}

static G_NORETURN void die_no_capability(bool caller_no_new_privs)
{
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[MAX(len, 0)] = '\0';
    if (caller_no_new_privs) {
        die("no CAP_NET_RAW to open a packet socket with: the caller has set "
            "no_new_privs, so that file capabilities and setuid have no "
            "effect (does QEMU run with '-sandbox on'?)");
    }
    die("no CAP_NET_RAW to open a packet socket with; as root, run 'setcap "
        "cap_net_raw+ep %s', on a file system without 'nosuid'",
        len > 0 ? show(self) : "PATH-TO/qemu-packet-helper");
}

/* No file that is opened later shall be taken for stderr */
static void open_standard_fds(void)
{
    int fd;

    for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            exit(EXIT_FAILURE);
        }
    }
}


/* Arguments */

/* The kernel's rules for a name, dev_valid_name(); those for isspace too */
static bool valid_ifname(const char *name)
{
    const char *c;

    if (!*name || strlen(name) >= IFNAMSIZ ||
        !strcmp(name, ".") || !strcmp(name, "..")) {
        return false;
    }
    for (c = name; *c; c++) {
        /* 0xa0: the kernel's isspace() is that of Latin 1 */
        if (strchr("/: \t\n\v\f\r\xa0", *c)) {
            return false;
        }
    }
    return true;
}

/* Nothing but digits, and not more than there are file descriptors */
static bool parse_fd(const char *s, int *fd)
{
    int n = 0;

    if (!*s) {
        return false;
    }
    for (; *s; s++) {
        if (*s < '0' || *s > '9' || n > (INT_MAX - (*s - '0')) / 10) {
            return false;
        }
        n = n * 10 + (*s - '0');
    }
    *fd = n;
    return true;
}

/* If @arg is option @name, return its value */
static const char *option_value(const char *arg, const char *name)
{
    size_t len = strlen(name);

    return strncmp(arg, name, len) ? NULL : arg + len;
}

static void parse_arguments(int argc, char **argv, Arguments *args)
{
    int i;

    for (i = 1; i < argc; i++) {
        const char *mode = option_value(argv[i], "--mode=");
        const char *ifname = option_value(argv[i], "--ifname=");
        const char *fd = option_value(argv[i], "--fd=");

        if (!strcmp(argv[i], "--help")) {
            fputs(usage, stdout);
            exit(EXIT_SUCCESS);
        } else if (!strcmp(argv[i], "--version")) {
            puts("qemu-packet-helper version " QEMU_VERSION);
            exit(EXIT_SUCCESS);
        } else if (mode) {
            if (args->mode) {
                die("option '--mode' is given twice");
            }
            if (!strcmp(mode, "capture")) {
                args->mode = MODE_CAPTURE;
            } else if (!strcmp(mode, "inject")) {
                args->mode = MODE_INJECT;
            } else {
                die("option '--mode' must be 'capture' or 'inject', not '%s'",
                    show(mode));
            }
        } else if (ifname) {
            if (args->ifname) {
                die("option '--ifname' is given twice");
            }
            if (!valid_ifname(ifname)) {
                die("option '--ifname': '%s' cannot be the name of an "
                    "interface: 1 to %d bytes, no blanks, '/' or ':'",
                    show(ifname), IFNAMSIZ - 1);
            }
            args->ifname = ifname;
        } else if (fd) {
            if (args->fd != -1) {
                die("option '--fd' is given twice");
            }
            if (!parse_fd(fd, &args->fd)) {
                die("option '--fd' must be the number of a file descriptor, "
                    "not '%s'", show(fd));
            }
        } else {
            die("unknown argument '%s'; try 'qemu-packet-helper --help'",
                show(argv[i]));
        }
    }

    if (!args->mode || !args->ifname || args->fd == -1) {
        die("option '--%s' is missing; try 'qemu-packet-helper --help'",
            !args->mode ? "mode" : !args->ifname ? "ifname" : "fd");
    }
}

/* While no file of our own is open: a stray number must not hit one */
static void check_fd(int fd)
{
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof(peer);
    int domain;
    socklen_t len = sizeof(domain);

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0) {
        die("option '--fd': cannot use file descriptor %d: %s; pass an "
            "inheritable UNIX socket", fd, strerror(errno));
    }
    if (domain != AF_UNIX) {
        die("option '--fd': file descriptor %d is not a UNIX socket, over "
            "which alone a socket can be passed", fd);
    }
    if (getpeername(fd, (struct sockaddr *)&peer, &peer_len) < 0) {
        die("option '--fd': UNIX socket %d is not connected: %s", fd,
            strerror(errno));
    }
}


/* The ACL */

static G_NORETURN G_GNUC_PRINTF(2, 3) void acl_die(const AclFile *file,
                                                   const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "qemu-packet-helper: %s:%d: ", show(file->path),
            file->line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputs("; no interface is allowed until that is corrected\n", stderr);
    exit(EXIT_FAILURE);
}

/* Does @name match @pattern, where '*' stands for any bytes, or none? */
static bool acl_match(const char *pattern, const char *name)
{
    const char *star = NULL;
    const char *resume = NULL;

    while (*name) {
        if (*pattern == '*') {
            star = pattern++;
            resume = name;
        } else if (*pattern == *name) {
            pattern++;
            name++;
        } else if (star) {
            /* Let the last star have one byte more */
            pattern = star + 1;
            name = ++resume;
        } else {
            return false;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return !*pattern;
}

/*
 * A pattern that can match no interface is an error: if it was meant to deny
 * then it must not pass in silence.  So is everything that means something in
 * other patterns: "eth[01]", "tap?", "all" in qemu-bridge-helper's file.
 */
static void acl_check_pattern(const AclFile *file, const char *pattern)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz"
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ" "0123456789" "._-+@";
    size_t len = 0;
    const char *c;

    for (c = pattern; *c; c++) {
        if (*c != '*' && !strchr(letters, *c)) {
            acl_die(file, "'%s' is not one interface name, of letters, "
                    "digits, and . _ - + @, in which '*' stands for any "
                    "characters", show(pattern));
        }
        len += *c != '*';
    }
    if (len >= IFNAMSIZ) {
        acl_die(file, "'%s' is too long to match an interface name",
                show(pattern));
    }
    if (!strcmp(pattern, "all")) {
        acl_die(file, "'%s' has no special meaning here; write '*' for all "
                "interfaces", pattern);
    }
}

/*
 * Read a line of at most @size - 1 bytes, without its end.  Returns false at
 * the end of the file.
 */
static bool acl_read_line(AclFile *file, char *line, size_t size)
{
    size_t len = 0;
    int c;

    file->line++;
    while ((c = getc(file->stream)) != EOF && c != '\n') {
        if (!c) {
            acl_die(file, "this is not a text file");
        }
        if (len == size - 1) {
            acl_die(file, "the line is too long");
        }
        line[len++] = c;
    }
    line[len] = '\0';
    if (ferror(file->stream)) {
        acl_die(file, "cannot read on: %s", strerror(errno));
    }
    return c != EOF || len;
}

static void acl_open(AclFile *file)
{
    const AclFile *f;
    struct stat st;
    int fd;

    /* O_NONBLOCK: not to wait for the other end of a FIFO */
    fd = open(file->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY |
              O_CLOEXEC);
    if (fd < 0) {
        const char *reason = errno == ELOOP ? "it is a symbolic link"
                                            : strerror(errno);

        if (file->includer) {
            acl_die(file->includer, "cannot open '%s': %s", show(file->path),
                    reason);
        }
        die("cannot open ACL file '%s': %s; no interface is allowed without "
            "it", show(file->path), reason);
    }
    if (fstat(fd, &st) < 0) {
        die("cannot query ACL file '%s': %s", show(file->path),
            strerror(errno));
    }
    if (!S_ISREG(st.st_mode) || st.st_uid != 0 ||
        (st.st_mode & (S_IWGRP | S_IWOTH))) {
        die("ACL file '%s' must be a regular file that belongs to root and "
            "that nobody else can write; no interface is allowed until it is "
            "(chown root, chmod go-w)", show(file->path));
    }
    for (f = file->includer; f; f = f->includer) {
        if (f->dev == st.st_dev && f->ino == st.st_ino) {
            acl_die(file->includer, "'%s' includes itself in the end",
                    show(file->path));
        }
    }
    file->dev = st.st_dev;
    file->ino = st.st_ino;
    file->stream = fdopen(fd, "r");
    if (!file->stream) {
        die("cannot read ACL file '%s': %s", show(file->path),
            strerror(errno));
    }
}

/*
 * Read @path and all that it includes.  Returns whether a rule allows @ifname;
 * does not return if one denies it, or if anything is wrong.
 */
static bool acl_read(const char *path, const AclFile *includer,
                     const char *ifname)
{
    AclFile file = {
        .path = path,
        .includer = includer,
        .depth = includer ? includer->depth + 1 : 1,
    };
    char line[ACL_MAX_LINE];
    bool allowed = false;

    acl_open(&file);
    while (acl_read_line(&file, line, sizeof(line))) {
        const char *blanks = " \t\r\v\f";
        char *cmd = line + strspn(line, blanks);
        char *arg = cmd + strcspn(cmd, blanks);
        char *end = arg + strlen(arg);

        if (!*cmd || *cmd == '#') {
            continue;
        }
        if (*arg) {
            *arg++ = '\0';
            arg += strspn(arg, blanks);
        }
        while (end > arg && strchr(blanks, end[-1])) {
            *--end = '\0';
        }

        if (strcmp(cmd, "allow") && strcmp(cmd, "deny") &&
            strcmp(cmd, "include")) {
            acl_die(&file, "'%s' is not 'allow', 'deny' or 'include'",
                    show(cmd));
        }
        if (!*arg) {
            acl_die(&file, "what to %s is missing", cmd);
        }

        if (!strcmp(cmd, "include")) {
            if (*arg != '/') {
                acl_die(&file, "'%s' is not an absolute path", show(arg));
            }
            if (file.depth == ACL_MAX_DEPTH) {
                acl_die(&file, "'%s' is included too deeply", show(arg));
            }
            allowed |= acl_read(arg, &file, ifname);
            continue;
        }

        acl_check_pattern(&file, arg);
        if (acl_match(arg, ifname)) {
            if (!strcmp(cmd, "deny")) {
                die("option '--ifname': interface '%s' is denied by '%s %s' "
                    "in %s:%d, which no 'allow' overrides", show(ifname), cmd,
                    arg, show(file.path), file.line);
            }
            allowed = true;
        }
    }
    fclose(file.stream);
    return allowed;
}


/* The packet socket */

static int open_packet_socket(void)
{
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        die("cannot open a packet socket: %s%s", strerror(errno),
            errno == EPERM ? "; CAP_NET_RAW does not reach a network namespace "
            "that belongs to another user namespace, and a security module "
            "may forbid it" : "");
    }
    return fd;
}

/* Irrevocably filter for @ifindex's outgoing frames, or for nothing */
static void lock_filter(int fd, Mode mode, int ifindex)
{
    struct sock_filter capture[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_PKTTYPE),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_IFINDEX),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ifindex, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_filter inject[] = {
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog prog = {
        .len = mode == MODE_CAPTURE ? ARRAY_SIZE(capture) : ARRAY_SIZE(inject),
        .filter = mode == MODE_CAPTURE ? capture : inject,
    };
    int one = 1;

    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER,
                   &prog, sizeof(prog)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof(one)) < 0) {
        die("cannot filter the packet socket: %s", strerror(errno));
    }
}

static void set_ifr_name(struct ifreq *ifr, const char *ifname)
{
    memset(ifr, 0, sizeof(*ifr));
    /* valid_ifname() has seen to the length */
    memcpy(ifr->ifr_name, ifname, strlen(ifname));
}

static int find_interface(int fd, const char *ifname)
{
    struct ifreq ifr;

    set_ifr_name(&ifr, ifname);
    if (ioctl(fd, SIOCGIFINDEX, &ifr) < 0) {
        die("option '--ifname': cannot find interface '%s' in this network "
            "namespace: %s", show(ifname), strerror(errno));
    }
    return ifr.ifr_ifindex;
}

static void bind_interface(int fd, const char *ifname, int ifindex)
{
    struct sockaddr_ll sll = {
        .sll_family = AF_PACKET,
        .sll_ifindex = ifindex,
    };

    if (bind(fd, (struct sockaddr *)&sll, sizeof(sll)) < 0) {
        die("option '--ifname': cannot bind to interface '%s': %s",
            show(ifname), strerror(errno));
    }
}

/*
 * What the socket is bound to now must be of a usable kind, which is to spare
 * the caller surprises, and, at the very end, must have the allowed name.
 */
static void check_interface(int fd, const char *ifname, int ifindex)
{
    struct ethtool_drvinfo drv = { .cmd = ETHTOOL_GDRVINFO };
    struct sockaddr_ll sll = { 0 };
    socklen_t len = sizeof(sll);
    struct ifreq ifr;

    if (getsockname(fd, (struct sockaddr *)&sll, &len) < 0) {
        die("cannot query the packet socket: %s", strerror(errno));
    }
    if (sll.sll_ifindex != ifindex) {
        die("option '--ifname': interface '%s' went away", show(ifname));
    }
    if (sll.sll_hatype != ARPHRD_ETHER) {
        die("option '--ifname': '%s' is not an Ethernet interface",
            show(ifname));
    }

    /*
     * What a guest behind a macvtap receives is not PACKET_OUTGOING there, but
     * what it sends is (Linux 6.18).  Both kinds have the same driver name.
     */
    set_ifr_name(&ifr, ifname);
    ifr.ifr_data = (char *)&drv;
    if (ioctl(fd, SIOCETHTOOL, &ifr) == 0 && !strcmp(drv.driver, "macvlan")) {
        die("option '--ifname': '%s' is a macvlan or macvtap interface, whose "
            "directions are reversed; use a TAP", show(ifname));
    }

    memset(&ifr, 0, sizeof(ifr));
    ifr.ifr_ifindex = ifindex;
    if (ioctl(fd, SIOCGIFNAME, &ifr) < 0) {
        die("option '--ifname': interface '%s' went away", show(ifname));
    }
    if (strncmp(ifr.ifr_name, ifname, IFNAMSIZ)) {
        die("option '--ifname': the interface found as '%s' has the name '%s', "
            "by which it must be asked for", show(ifname), show(ifr.ifr_name));
    }
}

static void send_socket(int unix_fd, int fd)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(fd))];
    } control = { 0 };
    char byte = 0;
    struct iovec iov = {
        .iov_base = &byte,
        .iov_len = sizeof(byte),
    };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control.buf),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));

    if (RETRY_ON_EINTR(sendmsg(unix_fd, &msg, MSG_NOSIGNAL)) < 0) {
        die("option '--fd': cannot send over UNIX socket %d: %s", unix_fd,
            strerror(errno));
    }
}

int main(int argc, char **argv)
{
    bool caller_no_new_privs;
    bool net_raw = drop_privileges(&caller_no_new_privs);
    Arguments args = { .fd = -1 };
    int fd, ifindex;

    open_standard_fds();
    parse_arguments(argc, argv, &args);
    check_fd(args.fd);
    if (!net_raw) {
        die_no_capability(caller_no_new_privs);
    }
    if (!acl_read(ACL_FILE, NULL, args.ifname)) {
        die("option '--ifname': interface '%s' is not allowed; a line 'allow "
            "%s' in %s would do it", show(args.ifname), show(args.ifname),
            ACL_FILE);
    }

    fd = open_packet_socket();
    keep_capability(false);

    ifindex = find_interface(fd, args.ifname);
    lock_filter(fd, args.mode, ifindex);
    bind_interface(fd, args.ifname, ifindex);
    check_interface(fd, args.ifname, ifindex);

    send_socket(args.fd, fd);
    return EXIT_SUCCESS;
}
