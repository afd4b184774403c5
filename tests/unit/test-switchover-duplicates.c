/*
 * Unit test of how the switchover finds frames that come by both ways
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Of a frame that comes from the source and directly, the guest is to get one,
 * and it must never lose one that came by one way only.
 *
 * Most tests play a scenario for one frame, a string of these letters:
 *
 *   S  it comes from the source, and is delivered
 *   s  it comes from the source, and is dropped as it has come directly
 *   D  it comes directly, is delivered, and to be remembered
 *   d  likewise, but it is dropped as it has come from the source
 *   N  it comes directly, is delivered, and not to be remembered
 *   n  likewise, but it is dropped
 *
 * Times are numbers that the test makes up: nothing waits.  Frames that are
 * taken for equal, though they are not, show as ones that are dropped.  Each
 * is in a buffer of just its length, so that AddressSanitizer sees whether
 * more is read.
 *
 * Two more tests send random frames by random ways.  One has a model that knows
 * what becomes of each frame, with no announcement and little time.  The other
 * has all kinds of times, and checks only that no frame is dropped for which
 * none came by the other way.  A failure is repeated with the seed that was
 * printed last.
 */

#include "qemu/osdep.h"
#include "net/switchover/duplicates.h"
#include "qemu/bswap.h"

/* As in duplicates.c */
#define ENTRIES_MAX (256 * 1024)
#define LATE_US (1000 * 1000)
#define EARLY_US (20 * 1000)
#define ALONE_US (200 * 1000)

/* When most tests begin, in us */
#define T0 (INT64_C(12345) * G_USEC_PER_SEC)

/* Of most frames: not a multiple of 8 */
#define LEN 61

#define SEEDS 16
#define STEPS 4000

static void random_bytes(uint8_t *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        buf[i] = g_test_rand_int();
    }
}

/* @len is at least 10.  Frames with another class or @serial are different. */
static uint8_t *frame_new(SwitchoverFrameClass class, uint32_t serial,
                          size_t len)
{
    static const uint8_t addr[SWITCHOVER_CLASSES][6] = {
        [SWITCHOVER_UNICAST] = { 0x52, 0x54, 0x00, 0x12, 0x34, 0x56 },
        [SWITCHOVER_MULTICAST] = { 0x33, 0x33, 0x00, 0x00, 0x00, 0x01 },
        [SWITCHOVER_BROADCAST] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
    };
    uint8_t *frame = g_malloc(len);

    memcpy(frame, addr[class], 6);
    stl_be_p(frame + 6, serial);
    for (size_t i = 10; i < len; i++) {
        frame[i] = i;
    }
    return frame;
}

/* A scenario, as above, for a frame that comes at @now */
static void play(SwitchoverDuplicates *d, SwitchoverFrameClass class,
                 uint32_t serial, int64_t now, int64_t since,
                 const char *steps)
{
    g_autofree uint8_t *frame = frame_new(class, serial, LEN);

    for (const char *step = steps; *step; step++) {
        bool drop = g_ascii_islower(*step), dropped;

        if (g_ascii_toupper(*step) == 'S') {
            dropped = switchover_duplicates_from_source(d, frame, LEN, now);
        } else {
            dropped = switchover_duplicates_direct(d, frame, LEN, now, since,
                                                   *step != 'N' &&
                                                   *step != 'n');
        }
        if (dropped != drop) {
            g_error("class %d, scenario %s, step %d: %s", class, steps,
                    (int)(step - steps), dropped ? "dropped" : "delivered");
        }
    }
}

/* Unicast is taken for the same, however often it comes */
static void init_flooding(SwitchoverDuplicates *d)
{
    switchover_duplicates_init(d);
    play(d, SWITCHOVER_UNICAST, UINT32_MAX, T0, 0, "Sd");
}

#define FOR_EACH_CLASS(class) \
    for (SwitchoverFrameClass class = 0; class < SWITCHOVER_CLASSES; class++)


/* Classes */

static void check_class(const uint8_t *frame, size_t len,
                        SwitchoverFrameClass class)
{
    g_autofree uint8_t *copy = g_memdup2(frame, len);

    g_assert_cmpint(switchover_frame_class(copy, len), ==, class);
}

static void test_class(void)
{
    static const uint8_t broadcast[7] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    static const uint8_t multicast[7] = { 0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb };
    static const uint8_t neighbours[7] = { 0x33, 0x33, 0xff, 0xff, 0xff, 0xff };
    static const uint8_t unicast[7] = { 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff };
    static const uint8_t zero[7];

    /* Of a frame with no whole address nothing is known */
    for (size_t len = 0; len < 6; len++) {
        check_class(broadcast, len, SWITCHOVER_UNICAST);
        check_class(multicast, len, SWITCHOVER_UNICAST);
        check_class(zero, len, SWITCHOVER_UNICAST);
    }
    for (size_t len = 6; len <= 7; len++) {
        check_class(broadcast, len, SWITCHOVER_BROADCAST);
        check_class(multicast, len, SWITCHOVER_MULTICAST);
        check_class(neighbours, len, SWITCHOVER_MULTICAST);
        check_class(unicast, len, SWITCHOVER_UNICAST);
        check_class(zero, len, SWITCHOVER_UNICAST);
    }
    /* All bits must be set in a broadcast */
    for (int bit = 0; bit < 48; bit++) {
        uint8_t addr[6];

        memset(addr, 0xff, sizeof(addr));
        addr[bit / 8] ^= 1 << bit % 8;
        check_class(addr, sizeof(addr), bit ? SWITCHOVER_MULTICAST :
                                              SWITCHOVER_UNICAST);
    }
    FOR_EACH_CLASS(class) {
        g_autofree uint8_t *frame = frame_new(class, 1, LEN);

        check_class(frame, LEN, class);
    }
}


/* Occurrences */

static void test_count(void)
{
    static const struct {
        const char *steps;
        bool any;               /* is left over */
    } scenarios[] = {
        { "", false },
        { "S", true },
        { "D", true },
        { "N", false },
        { "Sd", false },
        { "Ds", false },
        { "Sn", false },
        { "NS", true },
        { "NNSd", false },
        /* As often as it comes by the way by which it comes more often */
        { "SSdd", false },
        { "DDss", false },
        { "SdSd", false },
        { "DsDs", false },
        { "SdDs", false },
        { "DsSd", false },
        { "SSd", true },
        { "SSddDs", false },
        { "SSddD", true },
        { "DDDs", true },
        { "DDssS", true },
        { "SSSSnnSdddNN", false },
        { "NSnS", true },
        { "DNs", false },
        { "DNsS", true },
        { "SSddSd", false },
    };

    FOR_EACH_CLASS(class) {
        for (int i = 0; i < ARRAY_SIZE(scenarios); i++) {
            SwitchoverDuplicates d;

            init_flooding(&d);
            g_assert_false(switchover_duplicates_any(&d));
            play(&d, class, 1, T0, 0, scenarios[i].steps);
            g_assert_cmpint(switchover_duplicates_any(&d), ==,
                            scenarios[i].any);
            /* Another frame has nothing to do with it */
            play(&d, class, 2, T0, 0, "SdDs");
            g_assert_cmpint(switchover_duplicates_any(&d), ==,
                            scenarios[i].any);
            switchover_duplicates_destroy(&d);
        }
    }
}


/* Times */

static void test_late(void)
{
    SwitchoverDuplicates d;

    init_flooding(&d);
    FOR_EACH_CLASS(class) {
        /* Of the source, as late as that */
        play(&d, class, 1, T0, 0, "D");
        play(&d, class, 1, T0 + LATE_US, 0, "s");
        g_assert_false(switchover_duplicates_any(&d));
        play(&d, class, 1, T0, T0 - 1, "D");
        play(&d, class, 1, T0 + LATE_US, 0, "s");
        g_assert_false(switchover_duplicates_any(&d));

        /* But not later: it is taken for a new one */
        play(&d, class, 2, T0, 0, "D");
        play(&d, class, 2, T0 + LATE_US + 1, 0, "Sd");
        g_assert_false(switchover_duplicates_any(&d));
        play(&d, class, 3, T0, 0, "DDD");
        play(&d, class, 3, T0 + LATE_US + 1, 0, "Sd");
        g_assert_false(switchover_duplicates_any(&d));

        /* The time of the direct one counts, not that of a match */
        play(&d, class, 4, T0, 0, "DD");
        play(&d, class, 4, T0 + LATE_US, 0, "s");
        play(&d, class, 4, T0 + LATE_US + 1, 0, "Sd");
        g_assert_false(switchover_duplicates_any(&d));

        /* It comes again: the last one is as late as that */
        play(&d, class, 7, T0, 0, "D");
        play(&d, class, 7, T0 + LATE_US, 0, "D");
        play(&d, class, 7, T0 + 2 * LATE_US, 0, "s");
        play(&d, class, 7, T0 + 2 * LATE_US + 1, 0, "Sd");
        g_assert_false(switchover_duplicates_any(&d));

        /* One that is not remembered does not prolong it */
        play(&d, class, 5, T0, 0, "D");
        play(&d, class, 5, T0 + LATE_US, 0, "N");
        play(&d, class, 5, T0 + LATE_US + 1, 0, "Sd");
        g_assert_false(switchover_duplicates_any(&d));

        /* Before the announcement one of the source may be as old as it is */
        play(&d, class, 6, T0, 0, "S");
        play(&d, class, 6, T0 + 60 * LATE_US, 0, "d");
        g_assert_false(switchover_duplicates_any(&d));
    }
    switchover_duplicates_destroy(&d);
}

/* A direct one that is too old does not count, though it comes again */
static void test_revived(void)
{
    FOR_EACH_CLASS(class) {
        SwitchoverDuplicates d;

        switchover_duplicates_init(&d);
        play(&d, class, 1, T0, 0, "D");
        play(&d, class, 1, T0 + 60 * LATE_US, 0, "DsS");
        switchover_duplicates_destroy(&d);
    }
}

/* A frame came from the source at @came; directly after T0, the announcement */
static void check_announced(SwitchoverFrameClass class, int64_t came,
                            const char *flooded_by, const char *source,
                            const char *direct)
{
    SwitchoverDuplicates d;

    switchover_duplicates_init(&d);
    if (flooded_by) {
        play(&d, class, 2, T0 - LATE_US, 0, flooded_by);
    }
    play(&d, class, 1, came, 0, source);
    play(&d, class, 1, MAX(came, T0) + 1, T0, direct);
    switchover_duplicates_destroy(&d);
}

static void test_announced(void)
{
    SwitchoverDuplicates d;

    /* Unicast is the same only if the source has sent it after that, once */
    check_announced(SWITCHOVER_UNICAST, T0 - LATE_US, NULL, "S", "N");
    check_announced(SWITCHOVER_UNICAST, T0 - EARLY_US, NULL, "S", "N");
    check_announced(SWITCHOVER_UNICAST, T0 - 1, NULL, "S", "N");
    check_announced(SWITCHOVER_UNICAST, T0, NULL, "S", "dN");
    check_announced(SWITCHOVER_UNICAST, T0 + LATE_US, NULL, "S", "dN");
    check_announced(SWITCHOVER_UNICAST, T0, NULL, "SS", "NN");
    check_announced(SWITCHOVER_UNICAST, T0 - 1, NULL, "SS", "NN");

    /* Or if others have come by both ways, whatever came first */
    for (int i = 0; i < 2; i++) {
        const char *flooded = i ? "Ds" : "Sd";

        check_announced(SWITCHOVER_UNICAST, T0 - EARLY_US - 1, flooded, "S",
                        "N");
        check_announced(SWITCHOVER_UNICAST, T0 - EARLY_US, flooded, "S", "d");
        check_announced(SWITCHOVER_UNICAST, T0, flooded, "SSS", "ddd");
        check_announced(SWITCHOVER_UNICAST, T0, flooded, "SS", "ddNN");
    }
    check_announced(SWITCHOVER_UNICAST, T0 - 1, "S", "S", "N");
    check_announced(SWITCHOVER_UNICAST, T0, "D", "SS", "NN");

    /* That is always so with the others */
    for (int i = 0; i < 2; i++) {
        SwitchoverFrameClass class = i ? SWITCHOVER_BROADCAST :
                                         SWITCHOVER_MULTICAST;

        check_announced(class, T0 - LATE_US, NULL, "S", "N");
        check_announced(class, T0 - EARLY_US - 1, NULL, "S", "N");
        check_announced(class, T0 - EARLY_US, NULL, "S", "dN");
        check_announced(class, T0 - EARLY_US, NULL, "SS", "ddN");
        check_announced(class, T0 + LATE_US, NULL, "SSS", "dddN");
        check_announced(class, T0 - EARLY_US - 1, "Sd", "S", "N");
        /* Where it comes again the last one is new enough */
        switchover_duplicates_init(&d);
        play(&d, class, 1, T0 - EARLY_US - 1, 0, "S");
        play(&d, class, 1, T0 - EARLY_US, 0, "S");
        play(&d, class, 1, T0, T0, "d");
        switchover_duplicates_destroy(&d);
        /* And says nothing of unicast */
        switchover_duplicates_init(&d);
        play(&d, class, 1, T0, 0, "SdDs");
        play(&d, SWITCHOVER_UNICAST, 1, T0 - 1, 0, "S");
        play(&d, SWITCHOVER_UNICAST, 1, T0, T0, "N");
        play(&d, SWITCHOVER_UNICAST, 2, T0, 0, "SS");
        play(&d, SWITCHOVER_UNICAST, 2, T0, T0, "NN");
        switchover_duplicates_destroy(&d);
    }

    /* One of before and one of after are two, too */
    switchover_duplicates_init(&d);
    play(&d, SWITCHOVER_UNICAST, 1, T0 - 1, 0, "S");
    play(&d, SWITCHOVER_UNICAST, 1, T0 + 1, 0, "S");
    play(&d, SWITCHOVER_UNICAST, 1, T0 + 2, T0, "NN");
    switchover_duplicates_destroy(&d);

    /* A match counts as soon as it is found: of repeated frames the rest */
    switchover_duplicates_init(&d);
    play(&d, SWITCHOVER_UNICAST, 1, T0 + 1, T0, "SSN");
    play(&d, SWITCHOVER_UNICAST, 2, T0 + 1, T0, "Sn");
    play(&d, SWITCHOVER_UNICAST, 1, T0 + 1, T0, "nnN");
    switchover_duplicates_destroy(&d);

    /* What comes directly and is not the same is remembered in its stead */
    switchover_duplicates_init(&d);
    play(&d, SWITCHOVER_UNICAST, 1, T0 - 1, 0, "S");
    play(&d, SWITCHOVER_UNICAST, 1, T0 + 1, T0, "DsS");
    switchover_duplicates_destroy(&d);
}

/* A sender repeats its frames, and one that came directly overtakes others */
static void test_overtakes(void)
{
    SwitchoverDuplicates d;

    switchover_duplicates_init(&d);
    play(&d, SWITCHOVER_UNICAST, 1, T0 + 1, T0, "SSDS");
    play(&d, SWITCHOVER_UNICAST, 2, T0 + 1, T0, "DDSS");
    switchover_duplicates_destroy(&d);
}


static bool is_known(SwitchoverDuplicates *d, SwitchoverFrameClass class,
                     uint32_t serial)
{
    g_autofree uint8_t *frame = frame_new(class, serial, LEN);

    return switchover_duplicates_is_known(d, frame, LEN, T0);
}

/* That looks, and changes nothing */
static void test_is_known(void)
{
    FOR_EACH_CLASS(class) {
        bool unicast = class == SWITCHOVER_UNICAST;
        SwitchoverDuplicates d;

        switchover_duplicates_init(&d);
        g_assert_false(is_known(&d, class, 1));
        play(&d, class, 1, T0, 0, "S");
        g_assert_true(is_known(&d, class, 1));
        g_assert_false(is_known(&d, class, 2));
        play(&d, class, 3, T0, 0, "SS");
        g_assert_cmpint(is_known(&d, class, 3), ==, !unicast);
        play(&d, class, 4, T0, 0, "D");
        g_assert_false(is_known(&d, class, 4));
        g_assert_true(is_known(&d, class, 1));
        play(&d, class, 1, T0, 0, "d");
        g_assert_false(is_known(&d, class, 1));
        g_assert_true(is_known(&d, class, 3));
        switchover_duplicates_destroy(&d);
    }
}


/* Frames that differ */

static bool direct_is_same(SwitchoverDuplicates *d, const uint8_t *frame,
                           size_t len)
{
    g_autofree uint8_t *copy = g_memdup2(frame, len);

    return switchover_duplicates_direct(d, copy, len, T0, 0, false);
}

static bool source_is_same(SwitchoverDuplicates *d, const uint8_t *frame,
                           size_t len)
{
    g_autofree uint8_t *copy = g_memdup2(frame, len);

    return switchover_duplicates_from_source(d, copy, len, T0);
}

/* One bit, or two, wherever they are */
static void test_bits(void)
{
    for (size_t len = 0; len <= 41; len++) {
        uint8_t frame[41];
        SwitchoverDuplicates d;

        random_bytes(frame, sizeof(frame));
        switchover_duplicates_init(&d);
        g_assert_false(source_is_same(&d, frame, len));
        for (size_t i = 0; i < len * 8; i++) {
            frame[i / 8] ^= 1 << i % 8;
            g_assert_false(direct_is_same(&d, frame, len));
            for (size_t j = 0; j < i; j++) {
                frame[j / 8] ^= 1 << j % 8;
                g_assert_false(direct_is_same(&d, frame, len));
                frame[j / 8] ^= 1 << j % 8;
            }
            frame[i / 8] ^= 1 << i % 8;
        }
        g_assert_true(direct_is_same(&d, frame, len));
        g_assert_false(switchover_duplicates_any(&d));
        switchover_duplicates_destroy(&d);
    }
}

/* Any byte of a long frame */
static void test_long(void)
{
    enum { MAX_LEN = 65535 + 14 };
    g_autofree uint8_t *frame = g_malloc(MAX_LEN);
    SwitchoverDuplicates d;

    random_bytes(frame, MAX_LEN);
    switchover_duplicates_init(&d);
    g_assert_false(source_is_same(&d, frame, 9014));
    for (size_t i = 0; i < 9014; i++) {
        frame[i]++;
        g_assert_false(direct_is_same(&d, frame, 9014));
        frame[i]--;
    }
    g_assert_true(direct_is_same(&d, frame, 9014));

    g_assert_false(source_is_same(&d, frame, MAX_LEN));
    for (size_t i = MAX_LEN; i > 0; i -= MIN(i, 97)) {
        frame[i - 1]++;
        g_assert_false(direct_is_same(&d, frame, MAX_LEN));
        frame[i - 1]--;
    }
    g_assert_true(direct_is_same(&d, frame, MAX_LEN));
    switchover_duplicates_destroy(&d);
}

/* Two parts, of any length, that are exchanged */
static void test_order(void)
{
    uint8_t frame[48];
    SwitchoverDuplicates d;

    random_bytes(frame, sizeof(frame));
    switchover_duplicates_init(&d);
    g_assert_false(source_is_same(&d, frame, sizeof(frame)));
    for (size_t n = 4; n <= sizeof(frame) / 2; n++) {
        for (size_t i = 0; i + n <= sizeof(frame); i++) {
            for (size_t j = i + n; j + n <= sizeof(frame); j++) {
                uint8_t other[sizeof(frame)];

                memcpy(other, frame, sizeof(frame));
                memcpy(other + i, frame + j, n);
                memcpy(other + j, frame + i, n);
                g_assert_false(direct_is_same(&d, other, sizeof(other)));
            }
        }
    }
    g_assert_true(direct_is_same(&d, frame, sizeof(frame)));
    switchover_duplicates_destroy(&d);
}

/* The length, where all that is more is zero; or the same again */
static void test_length(void)
{
    enum { MAX_LEN = 1600 };

    for (int fill = 0; fill < 3; fill++) {
        uint8_t frame[MAX_LEN];
        SwitchoverDuplicates d;

        switchover_duplicates_init(&d);
        memset(frame, fill == 1 ? 0xff : 0, sizeof(frame));
        if (fill == 2) {
            random_bytes(frame, 20);
        }
        for (size_t len = 0; len <= MAX_LEN; len++) {
            g_assert_false(source_is_same(&d, frame, len));
        }
        for (size_t len = 0; len <= MAX_LEN; len++) {
            g_assert_true(direct_is_same(&d, frame, len));
            g_assert_false(direct_is_same(&d, frame, len));
        }
        g_assert_false(switchover_duplicates_any(&d));
        switchover_duplicates_destroy(&d);
    }
}

/* Where a frame is in memory does not matter */
static void test_alignment(void)
{
    uint8_t frame[LEN], buf[LEN + 16];
    SwitchoverDuplicates d;

    switchover_duplicates_init(&d);
    random_bytes(frame, sizeof(frame));
    for (size_t i = 0; i < 16; i++) {
        g_assert_false(source_is_same(&d, frame, LEN));
        random_bytes(buf, sizeof(buf));
        memcpy(buf + i, frame, LEN);
        g_assert_true(switchover_duplicates_direct(&d, buf + i, LEN, T0, 0,
                                                   true));
    }
    switchover_duplicates_destroy(&d);
}

/* Others cannot choose frames that are taken for equal: any three bits */
static void test_three_bits(void)
{
    uint8_t frame[24];
    SwitchoverDuplicates d;

    random_bytes(frame, sizeof(frame));
    switchover_duplicates_init(&d);
    g_assert_false(source_is_same(&d, frame, sizeof(frame)));
    for (int i = 0; i < 192; i++) {
        for (int j = 0; j < i; j++) {
            for (int k = 0; k < j; k++) {
                frame[i / 8] ^= 1 << i % 8;
                frame[j / 8] ^= 1 << j % 8;
                frame[k / 8] ^= 1 << k % 8;
                if (switchover_duplicates_direct(&d, frame, sizeof(frame), T0,
                                                 0, false)) {
                    g_error("equal although bits %d, %d, %d differ", k, j, i);
                }
                frame[i / 8] ^= 1 << i % 8;
                frame[j / 8] ^= 1 << j % 8;
                frame[k / 8] ^= 1 << k % 8;
            }
        }
    }
    switchover_duplicates_destroy(&d);
}

/* The seed differs, and makes other hashes; the results are the same */
static void test_seed(void)
{
    static const uint64_t seeds[] = { 0, 1, INT64_MAX, UINT64_MAX };
    g_autoptr(GHashTable) hashes =
        g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    SwitchoverDuplicates d;
    uint64_t first;

    switchover_duplicates_init(&d);
    first = d.seed;
    switchover_duplicates_destroy(&d);
    switchover_duplicates_init(&d);
    g_assert_cmphex(d.seed, !=, first);
    g_assert_cmphex(d.seed >> 32, !=, first >> 32);
    g_assert_cmphex((uint32_t)d.seed, !=, (uint32_t)first);
    switchover_duplicates_destroy(&d);

    for (int i = 0; i < ARRAY_SIZE(seeds); i++) {
        GHashTableIter iter;
        void *key;

        switchover_duplicates_init(&d);
        d.seed = seeds[i];
        FOR_EACH_CLASS(class) {
            play(&d, class, 1, T0, 0, "SSddDDssSS");
            play(&d, class, 2, T0, T0, "SdSSddSS");
            play(&d, class, 3, T0, T0, "DDsN");
        }
        g_hash_table_iter_init(&iter, d.entries);
        while (g_hash_table_iter_next(&iter, &key, NULL)) {
            g_hash_table_add(hashes, g_memdup2(key, sizeof(uint64_t)));
        }
        g_assert_cmpuint(g_hash_table_size(hashes), ==,
                         (i + 1) * 3 * SWITCHOVER_CLASSES);
        switchover_duplicates_destroy(&d);
    }
}


/* What the network does */

static void check_expects(SwitchoverDuplicates *d, SwitchoverFrameClass class,
                          bool expected)
{
    g_assert_cmpint(switchover_duplicates_expects(d, class), ==, expected);
}

/* As if nothing was known of it */
static void check_unknown(SwitchoverDuplicates *d, SwitchoverFrameClass class)
{
    check_expects(d, class, class == SWITCHOVER_BROADCAST);
}

static void check_unknown_but(SwitchoverDuplicates *d,
                              SwitchoverFrameClass known)
{
    FOR_EACH_CLASS(class) {
        if (class != known) {
            check_unknown(d, class);
        }
    }
}

static void test_expects(void)
{
    FOR_EACH_CLASS(class) {
        SwitchoverDuplicates d;

        switchover_duplicates_init(&d);
        check_unknown(&d, class);
        check_unknown_but(&d, class);
        switchover_duplicates_settle(&d, T0);
        check_unknown(&d, class);
        check_unknown_but(&d, class);

        /* Only directly: that tells nothing */
        play(&d, class, 1, T0, 0, "DN");
        switchover_duplicates_settle(&d, T0 + LATE_US);
        check_unknown(&d, class);

        /* From the source, when one may come directly still */
        play(&d, class, 1, T0 + LATE_US, 0, "S");
        switchover_duplicates_settle(&d, T0 + LATE_US + ALONE_US - 1);
        check_unknown(&d, class);
        play(&d, class, 1, T0 + LATE_US, 0, "S");
        switchover_duplicates_settle(&d, T0 + LATE_US + ALONE_US);
        check_unknown(&d, class);

        /* Only from the source */
        play(&d, class, 1, T0 + 2 * LATE_US, 0, "S");
        switchover_duplicates_settle(&d, T0 + 2 * LATE_US + ALONE_US + 1);
        check_expects(&d, class, false);
        check_unknown_but(&d, class);

        /* By both ways, later */
        play(&d, class, 1, T0 + 3 * LATE_US, 0, "Sd");
        switchover_duplicates_settle(&d, T0 + 3 * LATE_US);
        check_expects(&d, class, true);
        check_unknown_but(&d, class);

        /* Only from the source, after that */
        play(&d, class, 1, T0 + 4 * LATE_US, 0, "S");
        switchover_duplicates_settle(&d, T0 + 5 * LATE_US);
        check_expects(&d, class, false);
        check_unknown_but(&d, class);

        /* By both ways, directly first; when the last one came counts */
        play(&d, class, 1, T0 + 5 * LATE_US - 2, 0, "D");
        play(&d, class, 2, T0 + 5 * LATE_US - 1, 0, "S");
        play(&d, class, 1, T0 + 5 * LATE_US, 0, "s");
        switchover_duplicates_settle(&d, T0 + 6 * LATE_US);
        check_expects(&d, class, true);
        play(&d, class, 1, T0 + 6 * LATE_US, 0, "S");
        play(&d, class, 2, T0 + 6 * LATE_US + 1, 0, "S");
        play(&d, class, 1, T0 + 6 * LATE_US + 2, 0, "d");
        switchover_duplicates_settle(&d, T0 + 7 * LATE_US);
        check_expects(&d, class, true);

        /* It came more often from the source: that is as before it matched */
        play(&d, class, 1, T0 + 7 * LATE_US, 0, "SS");
        play(&d, class, 1, T0 + 7 * LATE_US + 1, 0, "d");
        switchover_duplicates_settle(&d, T0 + 8 * LATE_US);
        check_expects(&d, class, true);
        play(&d, class, 1, T0 + 8 * LATE_US, 0, "Sd");
        play(&d, class, 1, T0 + 8 * LATE_US + 1, 0, "S");
        switchover_duplicates_settle(&d, T0 + 9 * LATE_US);
        check_expects(&d, class, false);
        check_unknown_but(&d, class);

        /* Where it came again the last one counts */
        play(&d, class, 1, T0 + 9 * LATE_US, 0, "S");
        play(&d, class, 2, T0 + 9 * LATE_US + 1, 0, "Sd");
        play(&d, class, 1, T0 + 9 * LATE_US + 2, 0, "S");
        switchover_duplicates_settle(&d, T0 + 10 * LATE_US);
        check_expects(&d, class, false);
        check_unknown_but(&d, class);

        /* All that is forgotten */
        switchover_duplicates_clear(&d);
        check_unknown(&d, class);
        play(&d, class, 1, T0, 0, "Sd");
        check_expects(&d, class, true);
        switchover_duplicates_clear(&d);
        check_unknown(&d, class);
        switchover_duplicates_destroy(&d);
    }
}

/* Of many frames that came only from the source the last counts */
static void test_expects_last(void)
{
    FOR_EACH_CLASS(class) {
        for (int last = 49; last <= 51; last += 2) {
            SwitchoverDuplicates d;

            switchover_duplicates_init(&d);
            for (int i = 0; i < 50; i++) {
                play(&d, class, i, T0 + i, 0, "S");
            }
            play(&d, class, 50, T0 + 50, 0, "Sd");
            play(&d, class, 51, T0 + last, 0, "S");
            /* One that is too new tells nothing */
            play(&d, class, 52, T0 + LATE_US, 0, "S");
            switchover_duplicates_settle(&d, T0 + LATE_US);
            check_expects(&d, class, last < 50);
            switchover_duplicates_destroy(&d);
        }
    }
}

static void test_forget(void)
{
    for (int way = 0; way < 2; way++) {
        SwitchoverDuplicates d;

        switchover_duplicates_init(&d);
        FOR_EACH_CLASS(class) {
            play(&d, class, 1, T0, 0, "SS");
            play(&d, class, 2, T0, 0, "DD");
        }
        /* One that is too new to tell anything is forgotten, too */
        play(&d, SWITCHOVER_UNICAST, 3, T0 + LATE_US, 0, "S");
        g_assert_true(switchover_duplicates_any(&d));
        if (way) {
            switchover_duplicates_clear(&d);
        } else {
            switchover_duplicates_settle(&d, T0 + LATE_US);
        }
        g_assert_false(switchover_duplicates_any(&d));
        play(&d, SWITCHOVER_UNICAST, 3, T0 + LATE_US, 0, "N");
        FOR_EACH_CLASS(class) {
            play(&d, class, 1, T0 + LATE_US, 0, "Ds");
            play(&d, class, 2, T0 + LATE_US, 0, "Sd");
        }
        g_assert_false(switchover_duplicates_any(&d));
        switchover_duplicates_destroy(&d);
    }
}

/* That the network floods is known from what settled before; not if cleared */
static void test_floods_still(void)
{
    SwitchoverDuplicates d;

    switchover_duplicates_init(&d);
    play(&d, SWITCHOVER_UNICAST, 1, T0, 0, "Sd");
    switchover_duplicates_settle(&d, T0);
    play(&d, SWITCHOVER_UNICAST, 1, T0, T0, "SSnn");
    switchover_duplicates_clear(&d);
    play(&d, SWITCHOVER_UNICAST, 1, T0, T0, "SSNN");
    switchover_duplicates_destroy(&d);
}


/* The limit */

static void test_limit(void)
{
    const SwitchoverFrameClass class = SWITCHOVER_UNICAST;
    const uint32_t max = ENTRIES_MAX;

    for (int way = 0; way < 2; way++) {
        const char *first = way ? "D" : "S", *second = way ? "s" : "d";
        const char *new = way ? "S" : "N";
        SwitchoverDuplicates d;

        init_flooding(&d);
        for (uint32_t i = 0; i < max; i++) {
            play(&d, class, i, T0, 0, first);
        }

        /* Nothing of more frames is remembered, by whichever way */
        play(&d, class, max, T0, 0, "SDSDNSSDD");
        play(&d, class, max + 1, T0, 0, "DSDSNDDSS");

        /* What is known counts as before */
        play(&d, class, 0, T0, 0, first);
        play(&d, class, max / 2, T0, 0, first);
        play(&d, class, 0, T0, 0, second);
        play(&d, class, max, T0, 0, "SD");

        /* A match leaves room for one */
        play(&d, class, 0, T0, 0, second);
        play(&d, class, max, T0, 0, "D");
        play(&d, class, max + 1, T0, 0, "SDS");
        play(&d, class, max, T0, 0, "s");
        play(&d, class, max + 1, T0, 0, "SdDs");

        /* And one that is matched again and again does not take it */
        for (uint32_t i = 0; i < 100; i++) {
            play(&d, class, max + i, T0, 0, "SdDs");
        }
        play(&d, class, 0, T0, 0, first);

        play(&d, class, max / 2, T0, 0, second);
        for (uint32_t i = 0; i < max; i++) {
            play(&d, class, i, T0, 0, second);
        }
        g_assert_false(switchover_duplicates_any(&d));

        /* Or all are forgotten */
        for (uint32_t i = 0; i < max + 5; i++) {
            play(&d, class, i, T0, 0, first);
        }
        switchover_duplicates_settle(&d, T0);
        play(&d, class, 0, T0, 0, new);
        play(&d, class, max, T0, 0, "SdDs");
        switchover_duplicates_destroy(&d);
    }
}

/* Old direct ones leave room */
static void test_full_of_old(void)
{
    SwitchoverDuplicates d;

    switchover_duplicates_init(&d);
    for (uint32_t i = 0; i < ENTRIES_MAX; i++) {
        play(&d, SWITCHOVER_UNICAST, i, T0, 0, "D");
    }
    play(&d, SWITCHOVER_BROADCAST, 1, T0 + 60 * LATE_US, 0, "SdDs");
    switchover_duplicates_destroy(&d);
}


/* Random frames */

#define FRAMES 40

typedef struct ModelFrame {
    SwitchoverFrameClass class;
    uint8_t *data;
    size_t len;
    int n;                      /* came so much more often from the source */
    int from_source, direct;    /* came so often */
    int delivered;
    int64_t time_source, time_direct; /* when it came last */
} ModelFrame;

typedef struct Model {
    GRand *rand;
    SwitchoverDuplicates d;
    ModelFrame frames[FRAMES];
    int64_t now, since;
} Model;

/* 0 to @max, both included */
static size_t random_to(Model *m, size_t max)
{
    return g_rand_int(m->rand) % (max + 1);
}

static void model_init(Model *m, uint32_t seed)
{
    memset(m, 0, sizeof(*m));
    m->rand = g_rand_new_with_seed(seed);
    m->now = T0;
    init_flooding(&m->d);
    for (int i = 0; i < FRAMES; i++) {
        ModelFrame *f = &m->frames[i];

        f->class = random_to(m, SWITCHOVER_CLASSES - 1);
        f->len = 10 + (random_to(m, 3) ? random_to(m, 20) : random_to(m, 9000));
        f->data = frame_new(f->class, i, f->len);
    }
    g_test_message("seed %" PRIu32, seed);
}

static void model_cleanup(Model *m)
{
    switchover_duplicates_destroy(&m->d);
    for (int i = 0; i < FRAMES; i++) {
        g_free(m->frames[i].data);
    }
    g_rand_free(m->rand);
}

static bool model_from_source(Model *m, ModelFrame *f)
{
    return switchover_duplicates_from_source(&m->d, f->data, f->len, m->now);
}

static bool model_direct(Model *m, ModelFrame *f, bool remember)
{
    return switchover_duplicates_direct(&m->d, f->data, f->len, m->now,
                                        m->since, remember);
}

static bool model_any(Model *m)
{
    for (int i = 0; i < FRAMES; i++) {
        if (m->frames[i].n) {
            return true;
        }
    }
    return false;
}

static void model_step(Model *m, ModelFrame *f, bool from_source)
{
    if (from_source) {
        bool drop = f->n < 0;

        g_assert_cmpint(model_from_source(m, f), ==, drop);
        f->n++;
        f->from_source++;
        f->delivered += !drop;
    } else {
        bool drop = f->n > 0, remember = random_to(m, 9);

        g_assert_cmpint(model_direct(m, f, remember), ==, drop);
        if (drop || remember) {
            f->n--;
            f->direct++;
            f->delivered += !drop;
        }
    }
}

static void test_model(void)
{
    for (uint32_t seed = 0; seed <= SEEDS; seed++) {
        Model m;

        model_init(&m, seed < SEEDS ? seed : g_test_rand_int());
        for (int i = 0; i < STEPS; i++) {
            ModelFrame *f = &m.frames[random_to(&m, FRAMES - 1)];
            bool from_source = random_to(&m, 1);

            /* For some time more come by this way, then by the other */
            if (random_to(&m, 2) == 0) {
                from_source = i / 500 % 2;
            }
            for (size_t n = random_to(&m, 9) ? 1 : random_to(&m, 4); n; n--) {
                model_step(&m, f, from_source);
                m.now += random_to(&m, 100);
            }
            g_assert_cmpint(switchover_duplicates_any(&m.d), ==,
                            model_any(&m));
        }
        for (int i = 0; i < FRAMES; i++) {
            ModelFrame *f = &m.frames[i];

            g_assert_cmpint(f->delivered, ==, MAX(f->from_source, f->direct));
            g_assert_cmpint(f->from_source, >, 0);
            g_assert_cmpint(f->direct, >, 0);
            while (f->n) {
                model_step(&m, f, f->n < 0);
            }
        }
        g_assert_false(switchover_duplicates_any(&m.d));
        model_cleanup(&m);
    }
}

/* Here n is not used: each way has a number of those that were not matched */
static void never_step(Model *m, ModelFrame *f)
{
    if (random_to(m, 1)) {
        if (model_from_source(m, f)) {
            g_assert_cmpint(f->direct, >, 0);
            g_assert_cmpint(m->now - f->time_direct, <=, LATE_US);
            f->direct--;
        } else {
            f->from_source++;
            f->time_source = m->now;
        }
    } else {
        bool remember = random_to(m, 3);

        if (model_direct(m, f, remember)) {
            g_assert_cmpint(f->from_source, >, 0);
            if (m->since) {
                g_assert_cmpint(f->time_source, >=, m->since - EARLY_US);
            }
            f->from_source--;
        } else if (remember) {
            f->direct++;
            f->time_direct = m->now;
        }
    }
}

/* No frame is dropped without reason, whatever happens */
static void test_never(void)
{
    for (uint32_t seed = 0; seed <= SEEDS; seed++) {
        Model m;

        model_init(&m, seed < SEEDS ? seed : g_test_rand_int());
        for (int i = 0; i < STEPS; i++) {
            /* A frame may come often, and another then is rare */
            size_t max = random_to(&m, 1) ? 2 : FRAMES - 1;

            never_step(&m, &m.frames[random_to(&m, max)]);
            m.now += random_to(&m, 99) ? random_to(&m, 3000) :
                     random_to(&m, 2 * LATE_US);
            if (random_to(&m, 99) == 0) {
                m.since = random_to(&m, 2) ? m.now : 0;
            }
            if (random_to(&m, 199) == 0) {
                if (random_to(&m, 1)) {
                    switchover_duplicates_settle(&m.d, m.now);
                } else {
                    switchover_duplicates_clear(&m.d);
                }
                for (int j = 0; j < FRAMES; j++) {
                    m.frames[j].from_source = m.frames[j].direct = 0;
                }
            }
        }
        model_cleanup(&m);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/switchover/duplicates/class", test_class);
    g_test_add_func("/switchover/duplicates/count", test_count);
    g_test_add_func("/switchover/duplicates/late", test_late);
    g_test_add_func("/switchover/duplicates/revived", test_revived);
    g_test_add_func("/switchover/duplicates/announced", test_announced);
    g_test_add_func("/switchover/duplicates/overtakes", test_overtakes);
    g_test_add_func("/switchover/duplicates/is-known", test_is_known);
    g_test_add_func("/switchover/duplicates/bits", test_bits);
    g_test_add_func("/switchover/duplicates/long", test_long);
    g_test_add_func("/switchover/duplicates/order", test_order);
    g_test_add_func("/switchover/duplicates/length", test_length);
    g_test_add_func("/switchover/duplicates/alignment", test_alignment);
    g_test_add_func("/switchover/duplicates/three-bits", test_three_bits);
    g_test_add_func("/switchover/duplicates/seed", test_seed);
    g_test_add_func("/switchover/duplicates/expects", test_expects);
    g_test_add_func("/switchover/duplicates/expects-last", test_expects_last);
    g_test_add_func("/switchover/duplicates/forget", test_forget);
    g_test_add_func("/switchover/duplicates/floods-still", test_floods_still);
    g_test_add_func("/switchover/duplicates/limit", test_limit);
    g_test_add_func("/switchover/duplicates/full-of-old", test_full_of_old);
    g_test_add_func("/switchover/duplicates/model", test_model);
    g_test_add_func("/switchover/duplicates/never", test_never);
    return g_test_run();
}
