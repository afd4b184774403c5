/*
 * Switchover: frames by way of a chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_TRANSPORT_CHARDEV_H
#define NET_SWITCHOVER_TRANSPORT_CHARDEV_H

#include "net/switchover/transport.h"

/**
 * switchover_transport_chardev_new:
 * @chr: initialized, from now on used by the transport alone
 * @id: of the filter, for messages
 * @vnet_hdr: whether frames of a peer without control messages have a vnet
 *     header
 *
 * Returns: a transport by way of a chardev
 */
SwitchoverTransport *switchover_transport_chardev_new(CharFrontend *chr,
                                                      const char *id,
                                                      bool vnet_hdr);

#endif /* NET_SWITCHOVER_TRANSPORT_CHARDEV_H */
