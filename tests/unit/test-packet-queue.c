/*
 * Unit test of the net filters' queue of messages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The queue gets what a list of byte arrays, the model, gets, in random order:
 *
 *   whole messages        --> put       --> +-------+
 *   a stream in pieces    --> put_bytes --> | queue | --> peek, consume
 *                             truncate  --> |       | --> rewind
 *                                           +-------+ --> clear, discard
 *
 * and after each step both must have the same bytes.  The contents of each
 * message follow from its number, so none can be taken for another.
 *
 * A failure is repeated with the seed that was printed last: it is the same
 * steps each time, but for the last seed of each test, which is glib's.
 */

#include "qemu/osdep.h"
#include "net/net.h"
#include "net/packet-queue.h"
#include "qemu/bswap.h"
#include "qemu/units.h"

#define SEEDS 16
#define STEPS 3000

/* At most this is peeked at once */
#define CHUNK_SIZE (256 * KiB)

typedef struct Model {
    GRand *rand;
    PacketQueue q;
    bool vnet_hdr;
    uint32_t number;            /* of the last message */

    GQueue *whole;              /* GByteArray, as in the stream */
    size_t whole_bytes;
    size_t consumed;            /* of the first */

    GByteArray *part;           /* the message that comes in pieces, or NULL */
    size_t put;                 /* of that */

    NetFilterTraffic in, out;
} Model;

static size_t head_len(Model *m)
{
    return m->vnet_hdr ? 8 : 4;
}

static void model_init(Model *m, uint32_t seed, bool vnet_hdr)
{
    memset(m, 0, sizeof(*m));
    m->rand = g_rand_new_with_seed(seed);
    m->whole = g_queue_new();
    m->vnet_hdr = vnet_hdr;
    packet_queue_init(&m->q, vnet_hdr);
    g_test_message("seed %" PRIu32, seed);
}

static void model_count(Model *m, NetFilterTraffic *traffic, GByteArray *msg)
{
    int64_t len = msg->len - head_len(m);

    if (m->vnet_hdr) {
        len = MAX(len - ldl_be_p(msg->data + 4), 0);
    }
    traffic->packets++;
    traffic->bytes += len;
}

static void model_add(Model *m, GByteArray *msg)
{
    g_queue_push_tail(m->whole, msg);
    m->whole_bytes += msg->len;
    model_count(m, &m->in, msg);
}

static void model_remove_first(Model *m)
{
    GByteArray *msg = g_queue_pop_head(m->whole);

    m->whole_bytes -= msg->len;
    m->consumed = 0;
    g_byte_array_unref(msg);
}

static void model_drop_part(Model *m)
{
    g_clear_pointer(&m->part, g_byte_array_unref);
    m->put = 0;
}

static void model_cleanup(Model *m)
{
    while (!g_queue_is_empty(m->whole)) {
        model_remove_first(m);
    }
    model_drop_part(m);
    g_queue_free(m->whole);
    g_rand_free(m->rand);
    packet_queue_clear(&m->q);
}

/* 0 to @max, both included */
static size_t random_to(Model *m, size_t max)
{
    return g_rand_int(m->rand) % (max + 1);
}

static size_t random_payload_len(Model *m)
{
    switch (random_to(m, 9)) {
    case 0:
        return random_to(m, 3);
    case 1:
        return NET_BUFSIZE - random_to(m, 3);
    case 2:
        return random_to(m, NET_BUFSIZE);
    case 3:
    case 4:
        return random_to(m, 1514);
    default:
        return random_to(m, 100);
    }
}

/* The next message, with a payload of @len bytes */
static GByteArray *model_message(Model *m, size_t len, size_t vnet_hdr_len)
{
    GByteArray *msg = g_byte_array_new();
    uint32_t x = ++m->number * 2654435761u;

    g_byte_array_set_size(msg, head_len(m) + len);
    stl_be_p(msg->data, len);
    if (m->vnet_hdr) {
        stl_be_p(msg->data + 4, vnet_hdr_len);
    }
    for (size_t i = head_len(m); i < msg->len; i++) {
        x = x * 1664525 + 1013904223;
        msg->data[i] = x >> 24;
    }
    return msg;
}

/* All that can be read is that of the model, up to the end of a message */
static size_t assert_peek(Model *m)
{
    size_t pos = m->consumed;
    size_t done = 0;
    size_t len;
    uint8_t *buf = packet_queue_peek(&m->q, &len);

    g_assert_cmpuint(len, <=, CHUNK_SIZE);
    g_assert_cmpint(buf != NULL, ==, len != 0);
    g_assert_cmpint(len != 0, ==, !g_queue_is_empty(m->whole));
    for (GList *l = m->whole->head; done < len; l = l->next) {
        GByteArray *msg;

        g_assert_nonnull(l);
        msg = l->data;
        g_assert_cmpuint(msg->len - pos, <=, len - done);
        g_assert_cmpint(memcmp(buf + done, msg->data + pos, msg->len - pos),
                        ==, 0);
        done += msg->len - pos;
        pos = 0;
    }
    return len;
}

static void assert_counts(Model *m)
{
    g_assert_cmpuint(m->q.bytes, ==, m->whole_bytes - m->consumed + m->put);
    g_assert_cmpuint(m->q.packets, ==, g_queue_get_length(m->whole));
    g_assert_cmpuint(m->q.in.packets, ==, m->in.packets);
    g_assert_cmpuint(m->q.in.bytes, ==, m->in.bytes);
    g_assert_cmpuint(m->q.out.packets, ==, m->out.packets);
    g_assert_cmpuint(m->q.out.bytes, ==, m->out.bytes);
}


/* Steps */

static void step_put(Model *m)
{
    struct iovec iov[8];
    g_autofree uint8_t *copy = NULL;
    size_t len = random_payload_len(m);
    size_t offset = random_to(m, 3) ? 0 : random_to(m, 40);
    size_t hdr_len = m->vnet_hdr ? MIN(len, random_to(m, 24)) : 0;
    /* The same message, its vnet header given apart or not */
    bool apart = hdr_len && random_to(m, 1);
    GByteArray *msg = model_message(m, len, hdr_len);
    uint8_t *payload = msg->data + head_len(m);
    size_t from = apart ? hdr_len : 0;
    size_t size = offset + len - from;
    int n = random_to(m, ARRAY_SIZE(iov) - 1) + 1;

    copy = g_malloc(size + 1);
    memset(copy, 0xee, offset);
    memcpy(copy + offset, payload + from, len - from);
    for (size_t i = 0, pos = 0; i < n; i++) {
        iov[i].iov_base = copy + pos;
        iov[i].iov_len = i < n - 1 ? random_to(m, size - pos) : size - pos;
        pos += iov[i].iov_len;
    }
    packet_queue_put(&m->q, apart ? payload : NULL, hdr_len, iov, n, offset);
    model_add(m, msg);
}

/* A piece of the stream, which need not begin or end with a message */
static void step_put_bytes(Model *m)
{
    g_autoptr(GByteArray) piece = g_byte_array_new();
    size_t len = random_to(m, 1) ? random_to(m, 10) : random_to(m, 100000);

    while (piece->len < len) {
        size_t n;

        if (!m->part) {
            m->part = model_message(m, random_payload_len(m), random_to(m, 24));
        }
        n = MIN(len - piece->len, m->part->len - m->put);
        g_byte_array_append(piece, m->part->data + m->put, n);
        m->put += n;
        if (m->put == m->part->len) {
            model_add(m, g_steal_pointer(&m->part));
            m->put = 0;
        }
    }
    g_assert_cmpuint(packet_queue_put_bytes(&m->q, piece->data, piece->len),
                     ==, 0);
}

static void step_consume(Model *m)
{
    size_t len = assert_peek(m);

    if (!len) {
        return;
    }
    switch (random_to(m, 2)) {
    case 0:
        len = random_to(m, MIN(len, 200));
        break;
    case 1:
        len = random_to(m, len);
        break;
    }
    packet_queue_consume(&m->q, len);
    while (len) {
        GByteArray *msg = g_queue_peek_head(m->whole);
        size_t n = MIN(len, msg->len - m->consumed);

        m->consumed += n;
        len -= n;
        if (m->consumed == msg->len) {
            model_count(m, &m->out, msg);
            model_remove_first(m);
        }
    }
}

static void step_rewind(Model *m)
{
    packet_queue_rewind(&m->q);
    m->consumed = 0;
}

static void step_truncate(Model *m)
{
    packet_queue_truncate(&m->q);
    model_drop_part(m);
}

static void step_clear(Model *m)
{
    g_assert_cmpuint(packet_queue_clear(&m->q),
                     ==, g_queue_get_length(m->whole));
    while (!g_queue_is_empty(m->whole)) {
        model_remove_first(m);
    }
    model_drop_part(m);
}

static void step_drop(Model *m)
{
    if (m->consumed) {
        return;
    }
    g_assert_cmpuint(packet_queue_drop(&m->q),
                     ==, g_queue_get_length(m->whole));
    while (!g_queue_is_empty(m->whole)) {
        model_remove_first(m);
    }
}

/* Past the queue, if that is in order */
static void step_pass(Model *m)
{
    g_autoptr(GByteArray) piece = g_byte_array_new();

    if (m->part || !g_queue_is_empty(m->whole)) {
        return;
    }
    for (int i = random_to(m, 3); i >= 0; i--) {
        g_autoptr(GByteArray) msg = model_message(m, random_payload_len(m),
                                                  random_to(m, 24));

        model_count(m, &m->in, msg);
        model_count(m, &m->out, msg);
        g_byte_array_append(piece, msg->data, msg->len);
    }
    g_assert_cmpuint(packet_queue_whole(&m->q, piece->data, piece->len),
                     ==, piece->len);
    packet_queue_pass(&m->q, piece->data, piece->len);
}

/* A length that cannot be; the stream ends there */
static void step_too_long(Model *m)
{
    g_autoptr(GByteArray) piece = g_byte_array_new();
    uint32_t len = random_to(m, 1) ? NET_BUFSIZE + 1 + random_to(m, 100) :
                   UINT32_MAX - random_to(m, NET_BUFSIZE);
    uint32_t be_len = cpu_to_be32(len);
    size_t first;

    if (m->part) {
        g_byte_array_append(piece, m->part->data + m->put,
                            m->part->len - m->put);
        model_add(m, g_steal_pointer(&m->part));
        m->put = 0;
    }
    g_byte_array_append(piece, (uint8_t *)&be_len, sizeof(be_len));
    first = random_to(m, piece->len - 1);
    g_byte_array_set_size(piece, piece->len + random_to(m, 100));

    g_assert_cmpuint(packet_queue_put_bytes(&m->q, piece->data, first), ==, 0);
    g_assert_cmpuint(packet_queue_put_bytes(&m->q, piece->data + first,
                                            piece->len - first), ==, len);
    assert_peek(m);
    packet_queue_truncate(&m->q);
}

static void step(Model *m, bool fill)
{
    size_t kind = random_to(m, 999);

    if (kind < 4) {
        step_clear(m);
    } else if (kind < 12) {
        step_too_long(m);
    } else if (kind < 22) {
        step_truncate(m);
    } else if (kind < 72) {
        step_rewind(m);
    } else if (kind < 74) {
        step_drop(m);
    } else if (kind < 90) {
        step_pass(m);
    } else if (kind < (fill ? 300 : 800)) {
        step_consume(m);
    } else if (m->part || random_to(m, 1)) {
        step_put_bytes(m);
    } else {
        step_put(m);
    }
    assert_counts(m);
    assert_peek(m);
}

/* What is left comes out, and nothing else */
static void drain(Model *m)
{
    while (!g_queue_is_empty(m->whole)) {
        step_consume(m);
    }
    g_assert_cmpuint(assert_peek(m), ==, 0);
    assert_counts(m);
}

static void test_random(const void *opaque)
{
    size_t most = 0;

    for (uint32_t i = 0; i < SEEDS; i++) {
        Model m;

        model_init(&m, i < SEEDS - 1 ? i : g_test_rand_int(), opaque);
        for (int j = 0; j < STEPS; j++) {
            step(&m, j / 200 % 2 == 0);
            most = MAX(most, m.whole_bytes);
        }
        drain(&m);
        model_cleanup(&m);
    }
    /* All of this is of little use in a single chunk */
    g_assert_cmpuint(most, >, 4 * CHUNK_SIZE);
}


/* Where random numbers hardly hit */

static void put_in_two(Model *m, size_t payload_len, size_t cut)
{
    m->part = model_message(m, payload_len, 0);
    m->put = cut;
    g_assert_cmpuint(packet_queue_put_bytes(&m->q, m->part->data, cut), ==, 0);
    assert_counts(m);
    assert_peek(m);
    g_assert_cmpuint(packet_queue_put_bytes(&m->q, m->part->data + cut,
                                            m->part->len - cut), ==, 0);
    m->put = 0;
    model_add(m, g_steal_pointer(&m->part));
    assert_counts(m);
    assert_peek(m);
}

/*
 * The second chunk begins with, or in, or after a message of 24 bytes, which
 * comes in two pieces.  Where that is depends on how much of a chunk is not
 * for messages; some of these lengths hit it.
 */
static void test_boundary(const void *opaque)
{
    static const size_t cuts[] = { 1, 3, 4, 5, 7, 8, 9, 23 };
    Model m;

    model_init(&m, 0, opaque);
    for (size_t rest = 0; rest < 80; rest++) {
        for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
            size_t left = CHUNK_SIZE - rest;

            for (int n = 4; n; n--) {
                put_in_two(&m, left / n - head_len(&m), 100);
                left -= left / n;
            }
            put_in_two(&m, 24 - head_len(&m), cuts[i]);
            put_in_two(&m, 24 - head_len(&m), cuts[i]);
            drain(&m);
        }
        step_clear(&m);
    }
    model_cleanup(&m);
}

/* The longest message there may be, and one byte more; byte by byte */
static void test_longest(const void *opaque)
{
    Model m;
    uint8_t too_long[4];

    model_init(&m, 0, opaque);
    m.part = model_message(&m, NET_BUFSIZE, 0);
    while (m.put < m.part->len) {
        g_assert_cmpuint(packet_queue_put_bytes(&m.q, m.part->data + m.put, 1),
                         ==, 0);
        m.put++;
        g_assert_cmpuint(m.q.bytes, ==, m.put);
    }
    m.put = 0;
    model_add(&m, g_steal_pointer(&m.part));

    stl_be_p(too_long, NET_BUFSIZE + 1);
    for (int i = 0; i < 4; i++) {
        g_assert_cmpuint(packet_queue_put_bytes(&m.q, too_long + i, 1),
                         ==, i < 3 ? 0 : NET_BUFSIZE + 1);
    }
    packet_queue_truncate(&m.q);
    drain(&m);
    model_cleanup(&m);
}

/* What a filter that was not set up does to its queue */
static void test_zeroed(void)
{
    PacketQueue q = { 0 };

    g_assert_cmpuint(packet_queue_clear(&q), ==, 0);
    packet_queue_truncate(&q);
    g_assert_cmpuint(packet_queue_clear(&q), ==, 0);
}

static void add_test(const char *name, void (*func)(const void *opaque))
{
    g_autofree char *plain = g_strdup_printf("/packet-queue/%s/plain", name);
    g_autofree char *vnet = g_strdup_printf("/packet-queue/%s/vnet", name);

    g_test_add_data_func(plain, NULL, func);
    g_test_add_data_func(vnet, "", func);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_test("random", test_random);
    add_test("boundary", test_boundary);
    add_test("longest", test_longest);
    g_test_add_func("/packet-queue/zeroed", test_zeroed);
    return g_test_run();
}
