/*
 * Socket chardev: frames of a network interface, through AF_PACKET
 *
 * SPDX-License-Identifier: MIT
 */

/*
 * With af-packet-mode=capture|inject the fd of a socket chardev is an
 * AF_PACKET socket that somebody with CAP_NET_RAW has opened, and the bytes
 * of the chardev are a stream of framed packets.  QIOChannelPacket knows how;
 * here is only what the chardev adds: which options go together, and the
 * place of that channel between the socket and the frontend, where others
 * have TLS or websocket.
 */

#include "qemu/osdep.h"
#include "chardev/char-socket-packet.h"
#include "io/channel-packet.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/option.h"

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

    /* Nobody can connect to a packet socket: true is no useful default */
    sock->has_server = true;
    sock->server = false;

    s->has_af_packet_mode = true;
    s->af_packet_mode = sock->af_packet_mode;
    s->af_packet_vnet_hdr = sock->has_af_packet_vnet_hdr &&
                            sock->af_packet_vnet_hdr;
    return true;
}

bool tcp_chr_packet_open(SocketChardev *s, QIOChannelSocket *sioc,
                         Error **errp)
{
    ERRP_GUARD();
    g_autoptr(QIOChannelPacket) pioc = NULL;
    QIOChannelPacketMode mode;
    int fd;

    if (!s->has_af_packet_mode) {
        if (qio_channel_packet_is_packet_socket(sioc->fd)) {
            error_setg(errp,
                       "an AF_PACKET fd requires the 'af-packet-mode' option");
            return false;
        }
        return true;
    }

    if (!qio_channel_packet_is_packet_socket(sioc->fd)) {
        error_setg(errp, "'af-packet-mode' requires an AF_PACKET fd");
        return false;
    }

    mode = s->af_packet_mode == AF_PACKET_MODE_CAPTURE ?
           QIO_CHANNEL_PACKET_CAPTURE : QIO_CHANNEL_PACKET_INJECT;
    fd = qemu_dup(sioc->fd);
    if (fd < 0) {
        error_setg_errno(errp, errno, "'af-packet-mode': cannot duplicate fd");
        return false;
    }
    pioc = qio_channel_packet_new_fd(fd, mode, errp);
    if (!pioc) {
        error_prepend(errp, "'af-packet-mode': ");
        close(fd);
        return false;
    }
    if (mode == QIO_CHANNEL_PACKET_CAPTURE &&
        !qio_channel_packet_set_active(pioc, true, errp)) {
        error_prepend(errp, "'af-packet-mode': ");
        return false;
    }
    qio_channel_packet_set_vnet_hdr(pioc, s->af_packet_vnet_hdr);

    s->ioc = QIO_CHANNEL(g_steal_pointer(&pioc));
    return true;
}
