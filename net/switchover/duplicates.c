/*
 * Switchover: frames that the network brings to both hosts
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Broadcasts reach both hosts of a migration.  So does multicast, unless a
 * switch knows who wants it, and unicast where a switch floods, has not learned
 * where the guest is, or is told to send to both.  Each frame is to come once.
 *
 * Theory of operation
 *
 * A frame of the one way is matched with one of the other way by a hash of all
 * its bytes.  Each occurrence counts: a frame that its sender has sent twice
 * comes twice by each way, and the guest gets it twice.
 *
 * A frame takes some time from the source to the destination, none directly.
 * So one of the source can be the same as a direct one only if it did not come
 * long before that: the caller says since when.  And a direct one is remembered
 * for LATE_US.
 *
 * Once vhost runs direct frames are not seen.  What the network has done last
 * with frames of a class tells then whether one of the source comes directly,
 * too.
 */

#include "qemu/osdep.h"
#include "net/switchover/duplicates.h"
#include "net/eth.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"

/* Different frames that are remembered, at most: some 80 bytes each */
#define ENTRIES_MAX (256 * 1024)

/* How much later a frame may come from the source than directly */
#define LATE_US (1000 * 1000)

/* And how much earlier: either way takes some time */
#define EARLY_US (20 * 1000)

/* Of the source, and so old: that one does not come directly any more */
#define ALONE_US (200 * 1000)

typedef struct SwitchoverDuplicate {
    uint64_t hash;
    int64_t time;               /* when the last one came, in us */
    int n;                      /* more from the source, or (-n) directly */
    bool repeated;              /* several came by one way, unmatched */
    SwitchoverFrameClass class;
} SwitchoverDuplicate;

static uint64_t duplicates_mix(uint64_t a, uint64_t b)
{
    uint64_t low, high;

    mulu64(&low, &high, a, b);
    return low ^ high;
}

/* The seed keeps others from choosing frames that are taken for equal */
static uint64_t duplicates_hash(SwitchoverDuplicates *d, const uint8_t *frame,
                                size_t len)
{
    const uint64_t prime = 0x9e3779b97f4a7c15;
    uint64_t hash = d->seed ^ (len * prime), key = d->seed * prime | 1;
    uint64_t last = 0;
    size_t i = 0;

    for (; i + sizeof(last) <= len; i += sizeof(last)) {
        hash = duplicates_mix(hash ^ ldq_he_p(frame + i), key);
    }
    memcpy(&last, frame + i, len - i);
    return duplicates_mix(hash ^ last, key);
}

SwitchoverFrameClass switchover_frame_class(const uint8_t *frame, size_t len)
{
    if (len < ETH_ALEN || !is_multicast_ether_addr(frame)) {
        return SWITCHOVER_UNICAST;
    }
    return is_broadcast_ether_addr(frame) ? SWITCHOVER_BROADCAST :
           SWITCHOVER_MULTICAST;
}

static bool duplicate_is_late(SwitchoverDuplicate *e, int64_t now)
{
    return e->n < 0 && now - e->time > LATE_US;
}

/* Make room, but not again and again */
static void duplicates_drop_late(SwitchoverDuplicates *d, int64_t now)
{
    SwitchoverDuplicate *e;
    GHashTableIter iter;

    if (now - d->cleaned <= LATE_US) {
        return;
    }
    d->cleaned = now;
    g_hash_table_iter_init(&iter, d->entries);
    while (g_hash_table_iter_next(&iter, NULL, (void **)&e)) {
        if (duplicate_is_late(e, now)) {
            g_hash_table_iter_remove(&iter);
        }
    }
}

/* The entry of a frame, with n 0 if it is new; NULL if there is none */
static SwitchoverDuplicate *duplicates_get(SwitchoverDuplicates *d,
                                           const uint8_t *frame, size_t len,
                                           int64_t now, bool make)
{
    uint64_t hash = duplicates_hash(d, frame, len);
    SwitchoverDuplicate *e = g_hash_table_lookup(d->entries, &hash);

    if (e && duplicate_is_late(e, now)) {
        e->n = 0;
    }
    if (!e && make && g_hash_table_size(d->entries) == ENTRIES_MAX) {
        duplicates_drop_late(d, now);
    }
    if (!e && make && g_hash_table_size(d->entries) < ENTRIES_MAX) {
        e = g_new0(SwitchoverDuplicate, 1);
        e->hash = hash;
        e->class = switchover_frame_class(frame, len);
        g_hash_table_insert(d->entries, &e->hash, e);
    }
    return e;
}

static bool duplicates_match(SwitchoverDuplicates *d, SwitchoverDuplicate *e,
                             int64_t now)
{
    d->matched[e->class] = now;
    if (!e->n) {
        g_hash_table_remove(d->entries, &e->hash);
    }
    return true;
}

/*
 * Since the guest was announced, unicast comes directly: a frame that is
 * repeated by its sender may come by both ways, without being the same.  Where
 * none is repeated one match tells that the network floods.
 */
static bool duplicates_floods(SwitchoverDuplicates *d, SwitchoverDuplicate *e)
{
    return e->class != SWITCHOVER_UNICAST || d->matched[e->class];
}

bool switchover_duplicates_from_source(SwitchoverDuplicates *d,
                                       const uint8_t *frame, size_t len,
                                       int64_t now)
{
    SwitchoverDuplicate *e = duplicates_get(d, frame, len, now, true);

    if (!e) {
        return false;
    }
    if (e->n < 0 && (!e->repeated || duplicates_floods(d, e))) {
        e->n++;
        return duplicates_match(d, e, now);
    }
    e->n = MAX(e->n, 0) + 1;
    e->repeated |= e->n > 1;
    e->time = now;
    return false;
}

static bool duplicates_may_match(SwitchoverDuplicates *d,
                                 SwitchoverDuplicate *e, int64_t since)
{
    if (e->n <= 0 || !since) {
        return e->n > 0;
    }
    if (duplicates_floods(d, e)) {
        return e->time >= since - EARLY_US;
    }
    return e->time >= since && !e->repeated;
}

bool switchover_duplicates_direct(SwitchoverDuplicates *d,
                                  const uint8_t *frame, size_t len,
                                  int64_t now, int64_t since, bool remember)
{
    SwitchoverDuplicate *e = duplicates_get(d, frame, len, now, remember);

    if (!e) {
        return false;
    }
    if (duplicates_may_match(d, e, since)) {
        e->n--;
        return duplicates_match(d, e, now);
    }
    if (remember) {
        e->n = MIN(e->n, 0) - 1;
        e->repeated |= e->n < -1;
        e->time = now;
    }
    return false;
}

bool switchover_duplicates_is_known(SwitchoverDuplicates *d,
                                    const uint8_t *frame, size_t len,
                                    int64_t now)
{
    SwitchoverDuplicate *e = duplicates_get(d, frame, len, now, false);

    return e && e->n > 0 && (!e->repeated || duplicates_floods(d, e));
}

void switchover_duplicates_settle(SwitchoverDuplicates *d, int64_t now)
{
    SwitchoverDuplicate *e;
    GHashTableIter iter;

    g_hash_table_iter_init(&iter, d->entries);
    while (g_hash_table_iter_next(&iter, NULL, (void **)&e)) {
        if (e->n > 0 && e->time < now - ALONE_US) {
            d->alone[e->class] = MAX(d->alone[e->class], e->time);
        }
    }
    g_hash_table_remove_all(d->entries);
}

bool switchover_duplicates_expects(SwitchoverDuplicates *d,
                                   SwitchoverFrameClass class)
{
    if (class == SWITCHOVER_BROADCAST && !d->alone[class]) {
        return true;
    }
    return d->matched[class] > d->alone[class];
}

bool switchover_duplicates_any(SwitchoverDuplicates *d)
{
    return g_hash_table_size(d->entries);
}

void switchover_duplicates_clear(SwitchoverDuplicates *d)
{
    g_hash_table_remove_all(d->entries);
    memset(d->matched, 0, sizeof(d->matched));
    memset(d->alone, 0, sizeof(d->alone));
}

void switchover_duplicates_init(SwitchoverDuplicates *d)
{
    d->entries = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL,
                                       g_free);
    d->seed = (uint64_t)g_random_int() << 32 | g_random_int();
    switchover_duplicates_clear(d);
}

void switchover_duplicates_destroy(SwitchoverDuplicates *d)
{
    g_hash_table_unref(d->entries);
}
