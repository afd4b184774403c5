/*
 * Socket chardev: frames of a network interface, through AF_PACKET
 *
 * SPDX-License-Identifier: MIT
 */

/*
 * With af-packet-mode=capture|inject the fd of a socket chardev is an
 * AF_PACKET socket that a process with CAP_NET_RAW has opened, and the bytes
 * of the chardev are a stream of framed packets.  QIOChannelPacket knows how;
 * here is only what the chardev adds: which options go together, and the
 * place of that channel between the socket and the frontend, where others
 * have TLS or websocket.
 */

#include "qemu/osdep.h"
#include "chardev/char-socket-packet.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/option.h"
#include "qemu/sockets.h"
#include "trace.h"

bool tcp_chr_packet_parse(QemuOpts *opts, ChardevSocket *sock, Error **errp)
{
    const char *mode = qemu_opt_get(opts, "af-packet-mode");

    if (mode) {
        int value = qapi_enum_parse(&AfPacketMode_lookup, mode, -1, NULL);

        if (value < 0) {
            /* In the words of QMP's visitor */
            error_setg(errp, "Parameter 'af-packet-mode' does not accept "
                       "value '%s'", mode);
            return false;
        }
        sock->has_af_packet_mode = true;
        sock->af_packet_mode = value;
    }
    sock->has_af_packet_vnet_hdr = qemu_opt_get(opts, "af-packet-vnet-hdr");
    sock->af_packet_vnet_hdr = qemu_opt_get_bool(opts, "af-packet-vnet-hdr",
                                                 false);
    return true;
}

bool tcp_chr_packet_options(SocketChardev *s, ChardevSocket *sock,
                            Error **errp)
{
    const struct {
        const char *name;
        bool set;
    } conflicts[] = {
        { "server", sock->has_server && sock->server },
        { "wait", sock->has_wait },
        { "telnet", sock->has_telnet && sock->telnet },
        { "tn3270", sock->has_tn3270 && sock->tn3270 },
        { "websocket", sock->has_websocket && sock->websocket },
        { "tls-creds", sock->tls_creds },
        { "reconnect-ms", sock->has_reconnect_ms },
    };

    if (!sock->has_af_packet_mode) {
        if (sock->has_af_packet_vnet_hdr) {
            error_setg(errp, "'af-packet-vnet-hdr' option requires "
                       "'af-packet-mode' option");
            return false;
        }
        return true;
    }

    if (s->addr->type != SOCKET_ADDRESS_TYPE_FD) {
        error_setg(errp,
                   "'af-packet-mode' option requires 'fd' address type");
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(conflicts); i++) {
        if (conflicts[i].set) {
            error_setg(errp, "'af-packet-mode' option is incompatible with "
                       "'%s' option", conflicts[i].name);
            return false;
        }
    }

    /* No peer can connect to a packet socket: true is no useful default */
    sock->has_server = true;
    sock->server = false;

    s->has_af_packet_mode = true;
    s->af_packet_mode = sock->af_packet_mode;
    s->af_packet_vnet_hdr = sock->has_af_packet_vnet_hdr &&
                            sock->af_packet_vnet_hdr;
    return true;
}

/*
 * Make the channel of frames from @fd.  QIOChannelSocket will not connect to
 * an AF_PACKET socket, which has no peer; it only keeps the fd, for those who
 * look for a socket below the channel.
 */
static bool tcp_chr_packet_set_fd(SocketChardev *s, QIOChannelSocket *sioc,
                                  int fd, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(QIOChannelPacket) pioc = NULL;
    QIOChannelPacketMode mode;
    int dup_fd;

    if (!qio_channel_packet_is_packet_socket(fd)) {
        error_setg(errp, "'af-packet-mode' requires an AF_PACKET fd");
        return false;
    }

    mode = s->af_packet_mode == AF_PACKET_MODE_CAPTURE ?
           QIO_CHANNEL_PACKET_CAPTURE : QIO_CHANNEL_PACKET_INJECT;
    dup_fd = qemu_dup(fd);
    if (dup_fd < 0) {
        error_setg_errno(errp, errno, "'af-packet-mode': cannot duplicate fd");
        return false;
    }
    pioc = qio_channel_packet_new_fd(dup_fd, mode, errp);
    if (!pioc) {
        error_prepend(errp, "'af-packet-mode': ");
        close(dup_fd);
        return false;
    }
    if (mode == QIO_CHANNEL_PACKET_CAPTURE &&
        !qio_channel_packet_set_active(pioc, true, errp)) {
        error_prepend(errp, "'af-packet-mode': ");
        return false;
    }
    qio_channel_packet_set_vnet_hdr(pioc, s->af_packet_vnet_hdr);
    trace_tcp_chr_packet_set_fd(CHARDEV(s)->label,
                                qio_channel_packet_get_ifname(pioc), pioc);

    s->ioc = QIO_CHANNEL(g_steal_pointer(&pioc));
    sioc->fd = fd;
    return true;
}

int tcp_chr_packet_connect(SocketChardev *s, QIOChannelSocket *sioc,
                           Error **errp)
{
    int fd;

    if (!s->has_af_packet_mode) {
        return qio_channel_socket_connect_sync(sioc, s->addr, errp);
    }

    fd = socket_connect(s->addr, errp);
    if (fd < 0) {
        return -1;
    }
    if (!tcp_chr_packet_set_fd(s, sioc, fd, errp)) {
        close(fd);
        return -1;
    }
    return 0;
}

QIOChannelSocket *tcp_chr_packet_new_fd(SocketChardev *s, int fd)
{
    g_autoptr(QIOChannelSocket) sioc = NULL;
    Error *err = NULL;

    if (!s->has_af_packet_mode) {
        return qio_channel_socket_new_fd(fd, NULL);
    }

    sioc = qio_channel_socket_new();
    if (!tcp_chr_packet_set_fd(s, sioc, fd, &err)) {
        error_report_err(err);
        return NULL;
    }
    return g_steal_pointer(&sioc);
}

char *tcp_chr_packet_filename(SocketChardev *s)
{
    if (!s->has_af_packet_mode) {
        return NULL;
    }
    return g_strdup_printf("packet:%s,af-packet-mode=%s%s",
                           qio_channel_packet_get_ifname(
                               QIO_CHANNEL_PACKET(s->ioc)),
                           AfPacketMode_str(s->af_packet_mode),
                           s->af_packet_vnet_hdr ?
                           ",af-packet-vnet-hdr=on" : "");
}

QIOChannelPacket *qemu_chr_packet_channel(Chardev *chr)
{
    SocketChardev *s;

    if (!object_dynamic_cast(OBJECT(chr), TYPE_CHARDEV_SOCKET)) {
        return NULL;
    }
    s = SOCKET_CHARDEV(chr);
    return s->has_af_packet_mode && s->ioc ? QIO_CHANNEL_PACKET(s->ioc) : NULL;
}
