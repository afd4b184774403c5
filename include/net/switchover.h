/*
 * Switchover: what the rest of QEMU calls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_NET_SWITCHOVER_H
#define QEMU_NET_SWITCHOVER_H

#ifdef CONFIG_AF_PACKET

/**
 * switchover_wait:
 *
 * Wait until the frames that have reached this host for its VM are with the
 * destination, or there has been no progress for drain_timeout.  For the
 * migration's thread, without the BQL, when the migration is about to be
 * reported as completed.
 */
void switchover_wait(void);

#else

static inline void switchover_wait(void)
{
}

#endif

#endif /* QEMU_NET_SWITCHOVER_H */
