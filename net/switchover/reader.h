/*
 * Switchover: reading the queues of netdevs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_READER_H
#define NET_SWITCHOVER_READER_H

#include "net/switchover/threads.h"

/*
 * Add to @fds what the reader waits for.  Returns whether the port wants its
 * turn soon, also if nothing happens.  The reader's thread only.
 */
bool switchover_reader_prepare(SwitchoverPort *port, GArray *fds);

/* Read some frames.  The reader's thread only. */
void switchover_reader_turn(SwitchoverPort *port);

/*
 * Returns the number of a frame: what was read more than 200 ms ago came before
 * it, and what was read less than 100 ms ago did not.  While the threads pause.
 */
uint64_t switchover_reader_recent(SwitchoverPort *port);

#endif /* NET_SWITCHOVER_READER_H */
