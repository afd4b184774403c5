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
 * @peer_timeout: milliseconds, after which a peer by TCP that does not answer
 *     is taken for gone; 0: as the chardev has it
 *
 * Returns: a transport by way of a chardev
 */
SwitchoverTransport *switchover_transport_chardev_new(CharFrontend *chr,
                                                      const char *id,
                                                      bool vnet_hdr,
                                                      uint32_t peer_timeout);

#endif /* NET_SWITCHOVER_TRANSPORT_CHARDEV_H */
