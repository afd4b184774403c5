/*
 * Socket chardev: frames of a network interface, through AF_PACKET
 *
 * SPDX-License-Identifier: MIT
 */

#ifndef CHAR_SOCKET_PACKET_H
#define CHAR_SOCKET_PACKET_H

#include "chardev/char-socket.h"
#include "io/channel-packet.h"
#include "qapi/qapi-types-char.h"

#ifdef CONFIG_AF_PACKET

/**
 * tcp_chr_packet_parse:
 * @opts: options of -chardev socket
 * @sock: gets the af-packet-* ones among them
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: true on success, false if a value is wrong
 */
bool tcp_chr_packet_parse(QemuOpts *opts, ChardevSocket *sock, Error **errp);

/**
 * tcp_chr_packet_options:
 * @s: the chardev, whose address is known; gets the af-packet-* options
 * @sock: what the user asked for; a @server left open becomes false when
 *     @sock has an af-packet-mode
 * @errp: pointer to a NULL-initialized error object
 *
 * Check the af-packet-* options against all others.
 *
 * Returns: true if they can be used together, false on error
 */
bool tcp_chr_packet_options(SocketChardev *s, ChardevSocket *sock,
                            Error **errp);

/**
 * tcp_chr_packet_connect:
 * @s: the chardev, not yet connected
 * @sioc: a new socket for it
 * @errp: pointer to a NULL-initialized error object
 *
 * Connect @sioc to the address of @s.  If @s is to carry frames, give @sioc
 * the fd, and set the ioc of @s to the channel that does so on a duplicate.
 *
 * Returns: 0 on success, -1 on error
 */
int tcp_chr_packet_connect(SocketChardev *s, QIOChannelSocket *sioc,
                           Error **errp);

/**
 * tcp_chr_packet_new_fd:
 * @s: the chardev, not connected
 * @fd: a socket that was passed to QEMU
 *
 * Make a socket for @s of @fd; as above if @s is to carry frames.
 *
 * Returns: the socket, which owns @fd, or NULL on error: @fd is the caller's
 */
QIOChannelSocket *tcp_chr_packet_new_fd(SocketChardev *s, int fd);

/**
 * tcp_chr_packet_filename:
 * @s: the chardev, connected
 *
 * Returns: what query-chardev shows of @s, to be freed by the caller; NULL if
 * it does not carry frames
 */
char *tcp_chr_packet_filename(SocketChardev *s);

/**
 * qemu_chr_packet_channel:
 * @chr: a chardev
 *
 * Returns: its channel of frames, which is the chardev's; NULL if it does not
 * carry frames, or is not connected
 */
QIOChannelPacket *qemu_chr_packet_channel(Chardev *chr);

#else /* !CONFIG_AF_PACKET */

static inline bool tcp_chr_packet_parse(QemuOpts *opts, ChardevSocket *sock,
                                        Error **errp)
{
    return true;
}

static inline bool tcp_chr_packet_options(SocketChardev *s,
                                          ChardevSocket *sock, Error **errp)
{
    return true;
}

static inline int tcp_chr_packet_connect(SocketChardev *s,
                                         QIOChannelSocket *sioc, Error **errp)
{
    return qio_channel_socket_connect_sync(sioc, s->addr, errp);
}

static inline QIOChannelSocket *tcp_chr_packet_new_fd(SocketChardev *s, int fd)
{
    return qio_channel_socket_new_fd(fd, NULL);
}

static inline char *tcp_chr_packet_filename(SocketChardev *s)
{
    return NULL;
}

#endif /* !CONFIG_AF_PACKET */

#endif /* CHAR_SOCKET_PACKET_H */
