/*
 * Switchover: frames that the network brings to both hosts
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_DUPLICATES_H
#define NET_SWITCHOVER_DUPLICATES_H

#include <glib.h>

/* Frames that the network treats alike */
typedef enum SwitchoverFrameClass {
    SWITCHOVER_UNICAST,
    SWITCHOVER_MULTICAST,
    SWITCHOVER_BROADCAST,
    SWITCHOVER_CLASSES,
} SwitchoverFrameClass;

/*
 * SwitchoverDuplicates: what has come by one of two ways, from the source or
 * directly, and not by the other.  For the main loop.  Times are those of
 * g_get_monotonic_time(), in us.
 *
 * 256 Ki different frames are remembered, at most, and none beyond: those may
 * come twice.  One that came directly is forgotten after 1 s.
 */
typedef struct SwitchoverDuplicates {
    GHashTable *entries;        /* SwitchoverDuplicate, by hash */
    uint64_t seed;              /* of the hash */
    int64_t matched[SWITCHOVER_CLASSES]; /* when one came both ways; or 0 */
    int64_t alone[SWITCHOVER_CLASSES]; /* or only from the source; or 0 */
    int64_t cleaned;            /* when old ones were last removed */
} SwitchoverDuplicates;

void switchover_duplicates_init(SwitchoverDuplicates *d);
void switchover_duplicates_destroy(SwitchoverDuplicates *d);

/**
 * switchover_duplicates_clear:
 * @d: the duplicates
 *
 * Forget all frames, and what was learned of the network.
 */
void switchover_duplicates_clear(SwitchoverDuplicates *d);

/* Returns: whether any frame is remembered */
bool switchover_duplicates_any(SwitchoverDuplicates *d);

/**
 * switchover_frame_class:
 * @frame: a frame, from its destination address on
 * @len: its length
 */
SwitchoverFrameClass switchover_frame_class(const uint8_t *frame, size_t len);

/**
 * switchover_duplicates_from_source:
 * @d: the duplicates
 * @frame: a frame that came from the source
 * @len: its length
 * @now: when
 *
 * Returns: whether it has come directly before; if not it is remembered
 */
bool switchover_duplicates_from_source(SwitchoverDuplicates *d,
                                       const uint8_t *frame, size_t len,
                                       int64_t now);

/**
 * switchover_duplicates_direct:
 * @d: the duplicates
 * @frame: a frame that came directly
 * @len: its length
 * @now: when
 * @since: the network has been told to bring frames directly; or 0: not yet
 * @remember: the frame, for one that comes later from the source
 *
 * Returns: whether it has come from the source before
 */
bool switchover_duplicates_direct(SwitchoverDuplicates *d,
                                  const uint8_t *frame, size_t len,
                                  int64_t now, int64_t since, bool remember);

/**
 * switchover_duplicates_is_known:
 * @d: the duplicates
 * @frame: a frame that came directly, and is to be judged later
 * @len: its length
 * @now: when
 *
 * Returns: whether it has come from the source before; not one of several
 */
bool switchover_duplicates_is_known(SwitchoverDuplicates *d,
                                    const uint8_t *frame, size_t len,
                                    int64_t now);

/**
 * switchover_duplicates_settle:
 * @d: the duplicates
 * @now: when
 *
 * From now on direct frames are not seen.  Forget all frames, and judge by
 * them what the network does: by those of the source older than 200 ms.
 */
void switchover_duplicates_settle(SwitchoverDuplicates *d, int64_t now);

/**
 * switchover_duplicates_expects:
 * @d: settled
 * @class: of a frame that comes from the source
 *
 * Returns: whether such a frame also comes directly
 */
bool switchover_duplicates_expects(SwitchoverDuplicates *d,
                                   SwitchoverFrameClass class);

#endif /* NET_SWITCHOVER_DUPLICATES_H */
