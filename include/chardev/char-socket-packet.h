/*
 * Socket chardev: frames of a network interface, through AF_PACKET
 *
 * SPDX-License-Identifier: MIT
 */

#ifndef CHAR_SOCKET_PACKET_H
#define CHAR_SOCKET_PACKET_H

#include "chardev/char-socket.h"
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
 * tcp_chr_packet_open:
 * @s: the chardev, not yet connected
 * @sioc: a new socket for it
 * @errp: pointer to a NULL-initialized error object
 *
 * If @s is to carry frames, set its ioc to the channel that does so on a
 * duplicate of @sioc's fd.  Every other socket is left alone, but an
 * AF_PACKET one without af-packet-mode is an error: the frontend would see
 * the frames with nothing to tell them apart.
 *
 * Returns: true on success, false on error
 */
bool tcp_chr_packet_open(SocketChardev *s, QIOChannelSocket *sioc,
                         Error **errp);

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

static inline bool tcp_chr_packet_open(SocketChardev *s,
                                       QIOChannelSocket *sioc, Error **errp)
{
    return true;
}

#endif /* !CONFIG_AF_PACKET */

#endif /* CHAR_SOCKET_PACKET_H */
