/*
 * What the host's kernel counts of a network interface
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_LINK_STATS_H
#define NET_LINK_STATS_H

/**
 * net_link_tx_dropped:
 * @ifindex: a network interface, in QEMU's network namespace
 * @dropped: is set to the frames that the host has sent there, and that were
 *     dropped, since the interface exists
 *
 * With a TAP device these are mostly frames that found its queue full, which
 * has txqueuelen frames (Linux 6.18).  Needs no privilege.  For any thread; it
 * does not wait but for the kernel's own locks.
 *
 * Returns: false if the kernel does not say
 */
bool net_link_tx_dropped(unsigned ifindex, uint64_t *dropped);

#endif /* NET_LINK_STATS_H */
