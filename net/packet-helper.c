/*
 * Running qemu-packet-helper, for a QEMU without CAP_NET_RAW
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The helper opens a packet socket on an interface, if the administrator
 * allows it, and sends it over a UNIX socket.  What it is called with is in
 * docs/tools/qemu-packet-helper.rst.
 *
 *   QEMU                              helper
 *   fork ---------------------------> 0: /dev/null
 *   reads its messages <------------- 1, 2: a pipe
 *   receives the packet socket <----- 3: a UNIX socket
 *   waits for its end, or kills it    nothing else is open
 *
 * The user has named the program, so it is not an enemy; but it may be another
 * one than was meant, or refuse, or hang.  The packet socket is therefore
 * looked at before it is used: it must be bound to the interface that was
 * asked for, and must not receive yet.
 */

#include "qemu/osdep.h"

#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "io/channel-socket.h"
#include "net/packet-helper.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "trace.h"

/* The main loop waits that long for a helper to end */
#define PACKET_HELPER_LIMIT_US (5 * 1000 * 1000)

/* Bytes of its messages that are kept; the rest is read and thrown away */
#define PACKET_HELPER_SAID 1024

/* The number by which the helper gets its UNIX socket */
#define PACKET_HELPER_FD 3
#define PACKET_HELPER_FD_ARG "--fd=3"

typedef struct PacketHelper {
    const char *path;
    pid_t pid;
    int sock;                   /* where the packet socket arrives */
    int out;                    /* where messages arrive */
    char said[PACKET_HELPER_SAID + 1];
    size_t len;                 /* of @said, without the terminating zero */
} PacketHelper;

/* In the child of a process with threads: nothing but system calls */
static G_NORETURN void packet_helper_exec(const char *path, char **argv,
                                          int sock, int out)
{
    static const int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO,
                                PACKET_HELPER_FD };
    sigset_t none;
    int null;

    /* Out of the way of the numbers that are to be */
    sock = fcntl(sock, F_DUPFD, PACKET_HELPER_FD + 1);
    out = fcntl(out, F_DUPFD, PACKET_HELPER_FD + 1);
    null = open("/dev/null", O_RDONLY);
    null = fcntl(null, F_DUPFD, PACKET_HELPER_FD + 1);

    if (dup2(null, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
        dup2(out, STDERR_FILENO) >= 0 && dup2(sock, PACKET_HELPER_FD) >= 0) {
        qemu_close_all_open_fd(keep, ARRAY_SIZE(keep));
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv(path, argv);
    }
    _exit(127);
}

static bool packet_helper_start(PacketHelper *h, const char *ifname,
                                QIOChannelPacketMode mode, Error **errp)
{
    g_autofree char *ifname_arg = g_strdup_printf("--ifname=%s", ifname);
    char *argv[] = {
        (char *)h->path,
        (char *)(mode == QIO_CHANNEL_PACKET_CAPTURE ? "--mode=capture" :
                                                      "--mode=inject"),
        ifname_arg,
        (char *)PACKET_HELPER_FD_ARG,
        NULL
    };
    int sock[2];
    int out[2];

    if (access(h->path, X_OK) < 0) {
        error_setg_errno(errp, errno, "'packet_helper': cannot execute '%s'",
                         h->path);
        return false;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock) < 0) {
        error_setg_errno(errp, errno, "'packet_helper': no UNIX socket");
        return false;
    }
    if (pipe2(out, O_CLOEXEC) < 0) {
        error_setg_errno(errp, errno, "'packet_helper': no pipe");
        close(sock[0]);
        close(sock[1]);
        return false;
    }

    h->pid = fork();
    if (!h->pid) {
        packet_helper_exec(h->path, argv, sock[1], out[1]);
    }
    if (h->pid < 0) {
        error_setg_errno(errp, errno, "'packet_helper': cannot start '%s'%s",
                         h->path, errno == EPERM ?
                         ", which '-sandbox spawn=deny' forbids; pass an "
                         "AF_PACKET socket to a chardev, by 'fd' with "
                         "'af-packet-mode'" : "");
        close(sock[0]);
        close(out[0]);
    }
    close(sock[1]);
    close(out[1]);
    h->sock = sock[0];
    h->out = out[0];
    return h->pid > 0;
}

/* Take what the helper says now; false at its end */
static bool packet_helper_read(PacketHelper *h)
{
    char more[256];
    ssize_t n = RETRY_ON_EINTR(read(h->out, more, sizeof(more)));
    ssize_t keep = MIN(n, (ssize_t)(PACKET_HELPER_SAID - h->len));

    if (keep > 0) {
        memcpy(h->said + h->len, more, keep);
        h->len += keep;
    }
    return n > 0 || (n < 0 && errno == EAGAIN);
}

/* Returns false if the helper had to be killed */
static bool packet_helper_wait(PacketHelper *h, int *status)
{
    int64_t until = g_get_monotonic_time() + PACKET_HELPER_LIMIT_US;
    GPollFD pfd = { .fd = h->out, .events = G_IO_IN };

    *status = 0;
    while (RETRY_ON_EINTR(waitpid(h->pid, status, WNOHANG)) == 0) {
        if (g_get_monotonic_time() >= until) {
            kill(h->pid, SIGKILL);
            RETRY_ON_EINTR(waitpid(h->pid, status, 0));
            return false;
        }
        g_poll(&pfd, 1, 10);
        if (pfd.revents && !packet_helper_read(h)) {
            /* It is about to end */
            g_usleep(1000);
        }
    }
    while (g_poll(&pfd, 1, 0) > 0 && packet_helper_read(h)) {
        /* What it said last */
    }
    return true;
}

/* Make one line of what was said, whatever it was */
static void packet_helper_end_message(PacketHelper *h)
{
    char *c;

    h->said[h->len] = '\0';
    g_strchomp(h->said);
    for (c = h->said; *c; c++) {
        if (g_ascii_iscntrl(*c)) {
            *c = ' ';
        }
    }
}

/* The one fd in the message that has come; -1 if there is none */
static int packet_helper_receive(int sock)
{
    g_autoptr(QIOChannelSocket) sioc = qio_channel_socket_new_fd(sock, NULL);
    char byte;
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    g_autofree int *fds = NULL;
    Error *err = NULL;
    size_t nfds = 0;

    if (!sioc) {
        close(sock);
        return -1;
    }
    /* What it returns for success is 0 in QEMU 10.0, and true in 10.2 */
    qio_channel_set_blocking(QIO_CHANNEL(sioc), false, &err);
    if (!err &&
        qio_channel_readv_full(QIO_CHANNEL(sioc), &iov, 1, &fds, &nfds, 0,
                               NULL) > 0 && nfds == 1) {
        return fds[0];
    }
    error_free(err);
    while (nfds) {
        close(fds[--nfds]);
    }
    return -1;
}

/* Is this what was asked for? */
static bool packet_helper_check(int fd, const char *ifname, Error **errp)
{
    struct sockaddr_ll sll = { 0 };
    socklen_t len = sizeof(sll);
    char name[IF_NAMESIZE];

    if (getsockname(fd, (struct sockaddr *)&sll, &len) < 0 ||
        sll.sll_family != AF_PACKET) {
        error_setg(errp, "this is not an AF_PACKET socket");
        return false;
    }
    if (sll.sll_ifindex <= 0 || !if_indextoname(sll.sll_ifindex, name) ||
        strcmp(name, ifname)) {
        error_setg(errp, "the socket is not bound to interface '%s'", ifname);
        return false;
    }
    if (sll.sll_protocol) {
        error_setg(errp, "the socket receives already; its protocol must be 0");
        return false;
    }
    return true;
}

/* Its end, what it said, and whether it sent something: good or bad? */
static int packet_helper_result(PacketHelper *h, Error **errp)
{
    int status;
    bool ended = packet_helper_wait(h, &status);
    int fd = packet_helper_receive(h->sock);

    close(h->out);
    packet_helper_end_message(h);
    trace_packet_helper_result(h->path, h->pid, status, fd, h->said);
    if (ended && status == 0 && fd != -1) {
        if (*h->said) {
            warn_report("'packet_helper': %s", h->said);
        }
        return fd;
    }

    if (fd != -1) {
        close(fd);
    }
    if (!ended) {
        error_setg(errp, "'packet_helper': '%s' took longer than %d s and was "
                   "killed; it said: '%s'", h->path,
                   PACKET_HELPER_LIMIT_US / 1000000, h->said);
    } else if (*h->said) {
        error_setg(errp, "'packet_helper': %s", h->said);
    } else {
        error_setg(errp, "'packet_helper': '%s' ended with %s %d, instead of "
                   "sending one socket", h->path,
                   WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) :
                                         WEXITSTATUS(status));
    }
    return -1;
}

QIOChannelPacket *packet_helper_open(const char *path, const char *ifname,
                                     QIOChannelPacketMode mode, Error **errp)
{
    ERRP_GUARD();
    PacketHelper h = { .path = path };
    QIOChannelPacket *ioc = NULL;
    int fd;

    if (!packet_helper_start(&h, ifname, mode, errp)) {
        return NULL;
    }
    fd = packet_helper_result(&h, errp);
    if (fd == -1) {
        return NULL;
    }
    if (packet_helper_check(fd, ifname, errp)) {
        ioc = qio_channel_packet_new_fd(fd, mode, errp);
    }
    if (!ioc) {
        error_prepend(errp, "'packet_helper': cannot use what '%s' has sent: ",
                      path);
        close(fd);
    }
    return ioc;
}
