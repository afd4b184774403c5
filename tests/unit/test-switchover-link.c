/*
 * Unit test of the way of frames over a migration's connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Two links, each with the same cards:
 *
 *   frames --> source's link --> commands, or a socket --> destination's link
 *                            <-- control messages      <--
 *
 * What each card gets is compared with what was sent to it, byte by byte.  The
 * bytes are cut at random places on the way.  A failure is repeated with the
 * seed that was printed last.
 *
 * Not tested: a migration around it: see tests/qtest/switchover-test.c.
 */

#include "qemu/osdep.h"
#include <signal.h>
#include <sys/socket.h>
#include "io/channel-socket.h"
#include "net/switchover/transport-migration.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"

#define SEEDS 32
#define CARDS_MAX 5
#define FRAMES 200

/* No test takes so long without any progress, in us */
#define TIME_LIMIT (30 * G_USEC_PER_SEC)

typedef struct Card {
    SwitchoverTransport *from, *to;
    GByteArray *sent;           /* messages of frames */
    size_t written;             /* bytes of it */
    GByteArray *got;            /* the frames that have come, as messages */
    uint64_t told;              /* value of the last control message */
    bool refused;               /* the destination does not have the card */
    bool full;                  /* it takes nothing now */
} Card;

typedef struct Pair {
    GRand *rand;
    SwitchoverLink *source, *destination;
    unsigned n;
    Card cards[CARDS_MAX];
} Pair;


/* The owners of the transports */

static void card_changed(void *opaque, bool connected)
{
}

static bool card_told(void *opaque, uint32_t type, uint64_t value)
{
    Card *card = opaque;

    if (type == SWITCHOVER_REFUSED) {
        card->refused = true;
    } else {
        g_assert_cmpuint(type, ==, SWITCHOVER_RECEIVED);
        card->told = value;
    }
    return true;
}

static bool no_control(void *opaque, uint32_t type, uint64_t value)
{
    return true;
}

static void card_frame(void *opaque, unsigned queue, size_t hdr_len,
                       const uint8_t *data, size_t len)
{
    Card *card = opaque;
    uint8_t head[SWITCHOVER_HEAD];

    switchover_message_put_head(head, queue, hdr_len, len);
    g_byte_array_append(card->got, head, sizeof(head));
    g_byte_array_append(card->got, data, len);
}

static bool card_can_receive(void *opaque)
{
    Card *card = opaque;

    return !card->full;
}

static const SwitchoverTransportOps source_ops = {
    .changed = card_changed,
    .control = card_told,
};

static const SwitchoverTransportOps destination_ops = {
    .changed = card_changed,
    .control = no_control,
    .frame = card_frame,
    .can_receive = card_can_receive,
};


/* Two links */

static void pair_init(Pair *p, unsigned n, uint32_t seed)
{
    memset(p, 0, sizeof(*p));
    g_test_message("seed %" PRIu32, seed);
    p->rand = g_rand_new_with_seed(seed);
    p->n = n;
    p->source = switchover_link_new(true);
    p->destination = switchover_link_new(false);
    for (unsigned i = 0; i < n; i++) {
        Card *card = &p->cards[i];

        card->sent = g_byte_array_new();
        card->got = g_byte_array_new();
        card->from = switchover_link_add(p->source, "from");
        switchover_transport_start(card->from, &source_ops, card);
        card->to = switchover_link_add(p->destination, "to");
        switchover_transport_start(card->to, &destination_ops, card);
    }
}

static void pair_connect(Pair *p)
{
    switchover_link_connect(p->source);
    switchover_link_connect(p->destination);
    for (unsigned i = 0; i < p->n; i++) {
        switchover_transport_update_channel(p->cards[i].from);
    }
}

static void pair_destroy(Pair *p)
{
    switchover_link_free(p->source);
    switchover_link_free(p->destination);
    for (unsigned i = 0; i < p->n; i++) {
        switchover_transport_free(p->cards[i].from);
        switchover_transport_free(p->cards[i].to);
        g_byte_array_unref(p->cards[i].sent);
        g_byte_array_unref(p->cards[i].got);
    }
    g_rand_free(p->rand);
}

/* A frame for one of the cards, now and then a large one */
static void pair_add_frame(Pair *p)
{
    Card *card = &p->cards[g_rand_int_range(p->rand, 0, p->n)];
    size_t len = g_rand_int_range(p->rand, 0, 10) ?
                 g_rand_int_range(p->rand, 26, 1500) :
                 g_rand_int_range(p->rand, 1500, SWITCHOVER_FRAME_MAX + 1);
    g_autofree uint8_t *frame = g_malloc(len);
    uint8_t head[SWITCHOVER_HEAD];

    for (size_t i = 0; i < len; i++) {
        frame[i] = g_rand_int(p->rand);
    }
    switchover_message_put_head(head, g_rand_int_range(p->rand, 0, 4), 12, len);
    g_byte_array_append(card->sent, head, sizeof(head));
    g_byte_array_append(card->sent, frame, len);
}

/* Write some of what is to be sent; returns whether that was possible */
static bool pair_write(Pair *p)
{
    unsigned first = g_rand_int_range(p->rand, 0, p->n);

    for (unsigned i = 0; i < p->n; i++) {
        Card *card = &p->cards[(first + i) % p->n];
        size_t left = card->sent->len - card->written;
        ssize_t n;

        if (left && switchover_transport_flush(card->from) > 0) {
            n = switchover_transport_write(card->from, card->sent->data +
                                           card->written, left);
            g_assert_cmpint(n, >=, 0);
            card->written += n;
            if (n) {
                return true;
            }
        }
    }
    return false;
}

/* What was written so far goes on by commands, cut anywhere */
static void pair_pass(Pair *p)
{
    uint8_t buf[4096];
    size_t n;

    while ((n = switchover_link_take(p->source, buf, g_rand_int_range(
                                     p->rand, 1, sizeof(buf))))) {
        g_assert_true(switchover_link_give(p->destination, buf, n));
        if (g_rand_boolean(p->rand)) {
            switchover_link_handle(p->destination);
        }
    }
    switchover_link_handle(p->destination);
}

static void assert_same(Pair *p)
{
    for (unsigned i = 0; i < p->n; i++) {
        Card *card = &p->cards[i];

        g_assert_cmpmem(card->got->data, card->got->len, card->sent->data,
                        card->sent->len);
    }
}


/* In postcopy */

static void test_commands(void)
{
    for (int i = 0; i < SEEDS; i++) {
        Pair p;

        pair_init(&p, 1 + i % CARDS_MAX, g_test_rand_int());
        pair_connect(&p);
        for (int n = 0; n < FRAMES; n++) {
            pair_add_frame(&p);
            if (g_rand_boolean(p.rand)) {
                pair_write(&p);
            }
            if (!g_rand_int_range(p.rand, 0, 8)) {
                pair_pass(&p);
            }
        }
        do {
            pair_pass(&p);
        } while (pair_write(&p));
        assert_same(&p);
        pair_destroy(&p);
    }
}

/* What nothing takes is bounded */
static void test_bounded(void)
{
    size_t before;
    Pair p;

    pair_init(&p, 2, g_test_rand_int());
    pair_connect(&p);
    for (int n = 0; n < 2000; n++) {
        pair_add_frame(&p);
    }
    while (pair_write(&p)) {
        /* All that is possible */
    }
    before = p.cards[0].written + p.cards[1].written;
    g_assert_cmpuint(before, >, 1000 * 1000);
    g_assert_cmpuint(before, <, 2 * 1024 * 1024);
    do {
        pair_pass(&p);
    } while (pair_write(&p));
    assert_same(&p);
    pair_destroy(&p);
}


/* On the channel */

static void sockets_new(QIOChannel **a, QIOChannel **b)
{
    int fds[2], size = 4096;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    /* So that hardly any write is whole */
    g_assert_cmpint(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size,
                               sizeof(size)), ==, 0);
    *a = QIO_CHANNEL(qio_channel_socket_new_fd(fds[0], &error_abort));
    *b = QIO_CHANNEL(qio_channel_socket_new_fd(fds[1], &error_abort));
    g_assert_true(switchover_link_is_possible(*a));
}

static void pair_attach(Pair *p)
{
    QIOChannel *a, *b;

    sockets_new(&a, &b);
    switchover_link_attach(p->source, a);
    switchover_link_attach(p->destination, b);
    switchover_link_own(p->source);
    switchover_link_own(p->destination);
    object_unref(OBJECT(a));
    object_unref(OBJECT(b));
}

/* Two cards, and frames to send on the channel */
static void pair_start(Pair *p)
{
    pair_init(p, 2, g_test_rand_int());
    pair_attach(p);
    pair_connect(p);
    for (int i = 0; i < FRAMES; i++) {
        pair_add_frame(p);
    }
}

static bool pair_is_done(Pair *p)
{
    for (unsigned i = 0; i < p->n; i++) {
        if (p->cards[i].got->len < p->cards[i].sent->len) {
            return false;
        }
    }
    return true;
}

static void pair_run(Pair *p)
{
    int64_t end = g_get_monotonic_time() + TIME_LIMIT;

    while (!pair_is_done(p)) {
        bool moved = pair_write(p);

        moved |= g_main_context_iteration(NULL, false);
        if (moved) {
            end = g_get_monotonic_time() + TIME_LIMIT;
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
}

/* With a rate it takes the time that it is to take, or more */
static void test_rate(void)
{
    const int64_t rate = 4 * 1000 * 1000;
    int64_t begin, bytes;
    Pair p;

    pair_start(&p);
    switchover_link_set_rate(p.source, rate);
    switchover_link_read(p.destination);
    begin = g_get_monotonic_time();
    pair_run(&p);
    bytes = p.cards[0].written + p.cards[1].written;
    /* Those of 50 ms may go at once, and the last piece is a whole one */
    bytes -= rate / 20 + UINT16_MAX;
    g_assert_cmpint(bytes, >, 0);
    g_assert_cmpint(g_get_monotonic_time() - begin, >=,
                    bytes * G_USEC_PER_SEC / rate);
    assert_same(&p);
    pair_destroy(&p);
}

/* @commands: some frames have gone by these before */
static void channel_run(unsigned n, bool commands)
{
    Pair p;

    pair_init(&p, n, g_test_rand_int());
    if (commands) {
        pair_connect(&p);
        for (int i = 0; i < FRAMES; i++) {
            pair_add_frame(&p);
            pair_write(&p);
            if (i == FRAMES / 2) {
                pair_pass(&p);
            }
        }
    }
    pair_attach(&p);
    pair_connect(&p);
    switchover_link_read(p.source);
    switchover_link_read(p.destination);
    for (int i = 0; i < FRAMES; i++) {
        pair_add_frame(&p);
    }
    pair_run(&p);
    assert_same(&p);

    /* And back */
    for (unsigned i = 0; i < n; i++) {
        switchover_transport_control(p.cards[i].to, SWITCHOVER_RECEIVED, 7 + i);
        while (!p.cards[i].told) {
            g_main_context_iteration(NULL, true);
        }
        g_assert_cmpuint(p.cards[i].told, ==, 7 + i);
    }
    pair_destroy(&p);
}

static void test_channel(void)
{
    for (unsigned i = 0; i < SEEDS; i++) {
        channel_run(1 + i % CARDS_MAX, false);
    }
}

static void test_handover(void)
{
    for (unsigned i = 0; i < SEEDS; i++) {
        channel_run(1 + i % CARDS_MAX, true);
    }
}

/* One card takes nothing for a while: nothing is lost, nothing is read */
static void test_full(void)
{
    size_t before;
    Pair p;

    pair_start(&p);
    p.cards[0].full = true;
    switchover_link_read(p.destination);
    while (pair_write(&p) || g_main_context_iteration(NULL, false)) {
        /* All that is possible */
    }
    before = p.cards[0].got->len + p.cards[1].got->len;
    g_assert_cmpuint(before, ==, 0);
    p.cards[0].full = false;
    switchover_transport_accept_input(p.cards[0].to);
    pair_run(&p);
    assert_same(&p);
    pair_destroy(&p);
}

/* The destination has not all of the cards */
static void test_refused(void)
{
    Pair p;

    pair_init(&p, 3, g_test_rand_int());
    switchover_transport_free(p.cards[1].to);
    p.cards[1].to = NULL;
    pair_attach(&p);
    pair_connect(&p);
    switchover_link_read(p.source);
    switchover_link_read(p.destination);
    switchover_link_refuse(p.destination);
    while (!p.cards[1].refused) {
        g_main_context_iteration(NULL, true);
    }
    g_assert_false(p.cards[0].refused);
    g_assert_false(p.cards[2].refused);

    for (int i = 0; i < FRAMES; i++) {
        pair_add_frame(&p);
    }
    /* Those are not kept, and the others come */
    g_byte_array_append(p.cards[1].got, p.cards[1].sent->data,
                        p.cards[1].sent->len);
    pair_run(&p);
    assert_same(&p);
    pair_destroy(&p);
}


/* A source that is not to be trusted */

static void hostile_give(Pair *p, const uint8_t *buf, size_t len)
{
    g_assert_true(p->cards[0].to->connected);
    g_assert_true(switchover_link_give(p->destination, buf, len));
    switchover_link_handle(p->destination);
}

/* It was refused: all cards of the link have no peer any more */
static void assert_terminated(Pair *p)
{
    for (unsigned i = 0; i < p->n; i++) {
        g_assert_false(p->cards[i].to->connected);
        g_assert_cmpuint(p->cards[i].got->len, ==, 0);
    }
    pair_destroy(p);
}

static void hostile_init(Pair *p)
{
    pair_init(p, 2, g_test_rand_int());
    pair_connect(p);
}

static void test_hostile(void)
{
    uint8_t buf[64] = { 0 };
    Pair p;

    /* A card that there is not */
    hostile_init(&p);
    stw_be_p(buf, 2);
    stw_be_p(buf + 2, 4);
    hostile_give(&p, buf, 8);
    assert_terminated(&p);

    /* A frame that is too long */
    hostile_init(&p);
    stw_be_p(buf, 1);
    stw_be_p(buf + 2, SWITCHOVER_HEAD);
    switchover_message_put_head(buf + 4, 0, 12, SWITCHOVER_FRAME_MAX + 1);
    hostile_give(&p, buf, 4 + SWITCHOVER_HEAD);
    assert_terminated(&p);

    /* Nothing at all is no reason */
    hostile_init(&p);
    stw_be_p(buf, 1);
    stw_be_p(buf + 2, 0);
    hostile_give(&p, buf, 4);
    g_assert_true(p.cards[1].to->connected);
    pair_destroy(&p);
}

static void test_random(void)
{
    for (int i = 0; i < 20 * SEEDS; i++) {
        uint8_t buf[256];
        Pair p;

        hostile_init(&p);
        for (int n = 0; n < 100 && p.cards[0].to->connected; n++) {
            size_t len = g_rand_int_range(p.rand, 1, sizeof(buf));

            for (size_t k = 0; k < len; k++) {
                buf[k] = g_rand_int_range(p.rand, 0, 4) ? 0 :
                         g_rand_int(p.rand);
            }
            hostile_give(&p, buf, len);
        }
        pair_destroy(&p);
    }
}

/* More than an honest source sends before it is told what was received */
static void test_too_much(void)
{
    const size_t size = 1024 * 1024;
    g_autofree uint8_t *buf = g_malloc0(size);
    int n = 0;
    Pair p;

    hostile_init(&p);
    p.cards[0].full = true;
    while (switchover_link_give(p.destination, buf, size)) {
        g_assert_cmpint(++n, <=, 2 * 80);
    }
    g_assert_cmpint(n, >=, 2 * 64);
    pair_destroy(&p);
}


/* The connection breaks in postcopy */

static void test_lost(void)
{
    uint8_t buf[1000];
    Pair p;

    pair_init(&p, 1, g_test_rand_int());
    pair_connect(&p);
    pair_add_frame(&p);
    while (pair_write(&p)) {
        /* All of it */
    }
    /* A part of the frame has come */
    g_assert_cmpuint(switchover_link_take(p.source, buf, 10), ==, 10);
    g_assert_true(switchover_link_give(p.destination, buf, 10));
    switchover_link_handle(p.destination);

    switchover_link_lose(p.source);
    switchover_link_lose(p.destination);
    switchover_link_handle(p.source);
    switchover_link_handle(p.destination);
    g_assert_false(p.cards[0].from->connected);
    g_assert_false(p.cards[0].to->connected);
    g_assert_cmpuint(switchover_link_take(p.source, buf, 10), ==, 0);

    /* Both begin anew, and do not know each other's state */
    switchover_link_return(p.source, NULL);
    switchover_link_return(p.destination, NULL);
    switchover_link_handle(p.source);
    switchover_link_handle(p.destination);
    g_assert_true(p.cards[0].from->connected);
    g_assert_true(p.cards[0].to->connected);
    g_assert_false(p.cards[0].from->introduced);
    p.cards[0].written = 0;
    p.cards[0].to->control = true;
    while (pair_write(&p)) {
        pair_pass(&p);
    }
    assert_same(&p);
    pair_destroy(&p);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);       /* as QEMU does */
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/switchover-link/commands", test_commands);
    g_test_add_func("/switchover-link/bounded", test_bounded);
    g_test_add_func("/switchover-link/channel", test_channel);
    g_test_add_func("/switchover-link/rate", test_rate);
    g_test_add_func("/switchover-link/handover", test_handover);
    g_test_add_func("/switchover-link/full", test_full);
    g_test_add_func("/switchover-link/refused", test_refused);
    g_test_add_func("/switchover-link/hostile", test_hostile);
    g_test_add_func("/switchover-link/random", test_random);
    g_test_add_func("/switchover-link/too-much", test_too_much);
    g_test_add_func("/switchover-link/lost", test_lost);
    return g_test_run();
}
