/*
 * Running qemu-packet-helper, for a QEMU without CAP_NET_RAW
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_PACKET_HELPER_H
#define NET_PACKET_HELPER_H

#include "io/channel-packet.h"

/**
 * packet_helper_open:
 * @path: of qemu-packet-helper, or of a program that is called as that is
 * @ifname: name of a network interface in QEMU's network namespace
 * @mode: whether to capture or to inject
 * @errp: pointer to a NULL-initialized error object
 *
 * Let the program at @path open an AF_PACKET socket on @ifname.  Blocks until
 * the program ends, for up to 5 seconds; then it is killed.  A message of the
 * program becomes part of the error.
 *
 * The program may have locked the filter of its socket, and QEMU has no
 * privilege to open another one.  So a channel that captures stays hooked and
 * keeps its ring when it is inactive, see qio_channel_packet_detach().
 *
 * For the main loop's thread.
 *
 * Returns: a new channel on that socket, which captures nothing yet; or NULL
 * on error
 */
QIOChannelPacket *packet_helper_open(const char *path, const char *ifname,
                                     QIOChannelPacketMode mode, Error **errp);

#endif /* NET_PACKET_HELPER_H */
