/*
 * QTest testcase for migrations in which a host or the link fails
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Two QEMUs with a TAP and a virtio-net-pci each, whose driver is the test
 * (af-packet-guest.h).  There is no filter: frames go with the migration, all
 * of which passes by a Unix socket of the test, the link.
 *
 *   host -> qtap0 -> source -- link -- destination <- qtap1 <- host
 *                       |                  |
 *                       +-> rings, driver <+
 *
 * At each of these moments SIGKILL ends the source, or the destination, or the
 * link is cut: both sides see its end, and what it holds is gone.  Which VM is
 * there afterwards:
 *
 *                                                source  destin-   link
 *   moment                                       killed  ation k.  cut
 *   setup           not connected yet            none    source    source
 *   pass-2          pass 2 of precopy            none    source    source
 *   pre-switchover  the VM has stopped           none    source    source
 *   device          half of the devices' state   none    source    source
 *                   is there
 *   state           all is there (-S), and the   dest    source    source
 *                   source does not know
 *   unannounced     the VM runs there, and has   dest    cont      dest
 *                   some of the frames
 *   announced       and the network knows, the   dest    cont      dest
 *                   source does not
 *   completed       100 ms after the source      dest    cont      dest
 *                   has said so
 *
 * The guest gets each frame that its host's TAP had, before, at and after that
 * moment, once and in order, with these bounds:
 *
 *   none    the VM is gone with the source, and so are its frames, as with any
 *           host that fails.  The destination ends, or waits for another one.
 *   source  the migration fails, and the VM runs on by itself: it gets all
 *   cont    the migration is complete, and the VM runs here again when it is
 *           continued: it gets exactly those frames that the destination has
 *           not acknowledged, whose guest has had the others
 *   dest    of the frames that the source's TAP had it gets exactly those that
 *           had passed the link; the others are gone with the source, or stay
 *           there.  It gets all of its own TAP's.  With -S it is continued
 *           first.
 *
 * Not tested: a destination without -S whose link is cut before the source
 * knows that all is there: both VMs run, as in stock QEMU.  Postcopy.  A link
 * that is silent, and not cut.  vhost: see switchover-test.c.
 *
 * Needs root, which unshare(1) gives in a user namespace, too.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <poll.h>
#include "af-packet-guest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/sockets.h"
#include "qemu/units.h"

/* Frames that are sent at once: less than 64 KiB, five times is a ring */
#define FEW 40

/* For unannounced: more than 64 KiB, and how many of them pass */
#define MORE 120
#define SOME 100

/* Their first number, and that of those at the destination's host */
#define FIRST 100
#define DIRECT 1000000

/* For pass-2, memory that is sent in passes 1 and 2, and how much passes */
#define RAM_SIZE (4 * MiB)
#define IN_PASS_1 (64 * KiB)
#define IN_PASS_2 (6 * MiB)

typedef enum Moment {
    SETUP,
    PASS_2,
    PRE_SWITCHOVER,
    DEVICE,
    STATE,
    UNANNOUNCED,
    ANNOUNCED,
    COMPLETED,
} Moment;

typedef enum Fault {
    KILL_SOURCE,
    KILL_DESTINATION,
    CUT_LINK,
} Fault;

typedef enum Survivor {
    NONE,
    SOURCE,
    DEST,
} Survivor;

static const struct {
    const char *name;
    Survivor survivor[3];       /* by fault */
} moments[] = {
    [SETUP] = { "setup", { NONE, SOURCE, SOURCE } },
    [PASS_2] = { "pass-2", { NONE, SOURCE, SOURCE } },
    [PRE_SWITCHOVER] = { "pre-switchover", { NONE, SOURCE, SOURCE } },
    [DEVICE] = { "device", { NONE, SOURCE, SOURCE } },
    [STATE] = { "state", { DEST, SOURCE, SOURCE } },
    [UNANNOUNCED] = { "unannounced", { DEST, SOURCE, DEST } },
    [ANNOUNCED] = { "announced", { DEST, SOURCE, DEST } },
    [COMPLETED] = { "completed", { DEST, SOURCE, DEST } },
};

static const char *const faults[] = {
    [KILL_SOURCE] = "kill-source",
    [KILL_DESTINATION] = "kill-destination",
    [CUT_LINK] = "cut-link",
};


/* The link */

/* One direction of it */
typedef struct Way {
    GThread *thread;            /* NULL: not connected */
    int from, to;

    GMutex lock;                /* for all of these */
    GCond changed;
    GByteArray *read;           /* all that has come from @from */
    size_t passed;              /* how much of it has gone on */
    size_t limit;               /* how much may */
    uint8_t stop[32];           /* these bytes, and what follows, may not */
    size_t stop_len;
    bool held;                  /* it waits, with more than may pass */
    bool cut;
} Way;

typedef struct Link {
    int listener;               /* the source connects to it */
    Way forth, back;
} Link;

/* Something was read: is there what must not pass? */
static void way_look(Way *w, size_t n)
{
    size_t begin = w->read->len - MIN(w->read->len, n + w->stop_len);
    uint8_t *at = w->stop_len ? memmem(w->read->data + begin,
                                       w->read->len - begin, w->stop,
                                       w->stop_len) : NULL;

    if (at) {
        w->limit = MIN(w->limit, MAX(w->passed, at - w->read->data));
    }
}

static void way_write(Way *w)
{
    ssize_t n = MIN(w->limit, w->read->len) - w->passed;

    if (!n) {
        w->held = true;
        g_cond_wait(&w->changed, &w->lock);
        w->held = false;
        return;
    }
    n = RETRY_ON_EINTR(send(w->to, w->read->data + w->passed, n,
                            MSG_NOSIGNAL));
    if (n > 0) {
        w->passed += n;
    } else {
        w->cut = true;
    }
}

static void *way_run(void *opaque)
{
    g_autofree uint8_t *buf = g_malloc(64 * KiB);
    Way *w = opaque;
    bool cut = false;
    ssize_t n;

    while (!cut && (n = RETRY_ON_EINTR(read(w->from, buf, 64 * KiB))) > 0) {
        g_mutex_lock(&w->lock);
        g_byte_array_append(w->read, buf, n);
        way_look(w, n);
        while (!w->cut && w->passed < w->read->len) {
            way_write(w);
        }
        cut = w->cut;
        g_mutex_unlock(&w->lock);
    }
    shutdown(w->from, SHUT_RD);
    shutdown(w->to, SHUT_WR);
    return NULL;
}

static void way_init(Way *w)
{
    memset(w, 0, sizeof(*w));
    g_mutex_init(&w->lock);
    g_cond_init(&w->changed);
    w->read = g_byte_array_new();
    w->limit = SIZE_MAX;
}

static void way_connect(Way *w, int from, int to)
{
    w->from = from;
    w->to = to;
    w->thread = g_thread_new("way", way_run, w);
}

/* So much may pass since the beginning, or (0) what has passed so far */
static void way_limit(Way *w, size_t limit)
{
    g_mutex_lock(&w->lock);
    w->limit = limit ?: w->passed;
    g_cond_signal(&w->changed);
    g_mutex_unlock(&w->lock);
}

static void way_stop_before(Way *w, const void *bytes, size_t len)
{
    g_mutex_lock(&w->lock);
    g_assert_cmpint(len, <=, sizeof(w->stop));
    memcpy(w->stop, bytes, len);
    w->stop_len = len;
    g_mutex_unlock(&w->lock);
}

static bool way_is_held(Way *w)
{
    bool held;

    g_mutex_lock(&w->lock);
    held = w->held && w->passed == w->limit;
    g_mutex_unlock(&w->lock);
    return held;
}

/* All that may pass has passed, and there is more */
static void way_wait_held(Way *w)
{
    patience_begin();
    while (!way_is_held(w)) {
        patience_check();
        g_usleep(100);
    }
}

/* Has the other side got all of this frame? */
static bool way_has_passed(Way *w, uint32_t seq)
{
    g_autofree uint8_t *frame = g_malloc(seq_len(seq));
    bool passed;

    frame_fill(frame, seq, seq_len(seq));
    g_mutex_lock(&w->lock);
    passed = memmem(w->read->data, w->passed, frame, seq_len(seq));
    g_mutex_unlock(&w->lock);
    return passed;
}

static void way_wait_passed(Way *w, uint32_t seq)
{
    patience_begin();
    while (!way_has_passed(w, seq)) {
        patience_check();
        g_usleep(100);
    }
}

static void way_cut(Way *w)
{
    if (w->thread) {
        shutdown(w->from, SHUT_RDWR);
        g_mutex_lock(&w->lock);
        w->cut = true;
        g_cond_signal(&w->changed);
        g_mutex_unlock(&w->lock);
        g_thread_join(w->thread);
        w->thread = NULL;
    }
}

static void way_free(Way *w)
{
    g_mutex_clear(&w->lock);
    g_cond_clear(&w->changed);
    g_byte_array_unref(w->read);
}

static void link_listen(Link *l, const char *path)
{
    way_init(&l->forth);
    way_init(&l->back);
    l->listener = unix_listen(path, &error_abort);
}

/* The source connects, or has done so */
static void link_accept(Link *l, const char *path)
{
    int a, b;

    wait_fd(l->listener, POLLIN);
    a = qemu_accept(l->listener, NULL, NULL);
    g_assert_cmpint(a, !=, -1);
    b = unix_connect(path, &error_abort);
    way_connect(&l->forth, a, b);
    way_connect(&l->back, b, a);
}

/* Both ends see that it has ended */
static void link_cut(Link *l)
{
    bool connected = l->forth.thread;

    close(l->listener);
    way_cut(&l->forth);
    way_cut(&l->back);
    if (connected) {
        close(l->forth.from);
        close(l->forth.to);
    }
}


/* Two hosts, and a migration */

typedef struct Case {
    Moment moment;
    Fault fault;
} Case;

typedef struct Run {
    Guest from, to;
    Link link;
    char *uri, *way;            /* of the destination and of the link */
    int rarp;                   /* announcements at the destination */
    int filler;                 /* keeps the source from connecting, or -1 */
    uint32_t next;              /* number of the next frame to the source */
    uint32_t passed;            /* of the first that does not pass */
    uint32_t acked;             /* of the first that is not acknowledged */
} Run;

static const char *path_of(const char *uri)
{
    return strchr(uri, ':') + 1;
}

static void run_start(Run *r, Moment m)
{
    static const char *const caps[] = { "return-path", "events" };

    *r = (Run) {
        .uri = g_strdup_printf("unix:%s/migration", tmpdir),
        .way = g_strdup_printf("unix:%s/link", tmpdir),
        .filler = -1,
        .next = FIRST,
        .acked = FIRST,
    };
    guest_vm_start(&r->to, "qtap1", 1, false, "", m == STATE ?
                   "-name to -incoming defer -S" : "-name to -incoming defer");
    guest_vm_start(&r->from, "qtap0", 1, false, "", "-name from");
    r->rarp = packet_socket("qtap1", SOCK_RAW, ETH_P_RARP);
    driver_start(&r->from);
    send_and_drain(&r->from, 0, 10);
    for (int i = 0; i < ARRAY_SIZE(caps); i++) {
        migrate_capability(&r->from.e, caps[i]);
        migrate_capability(&r->to.e, caps[i]);
    }
    migrate_pause(&r->from.e);
    qtest_qmp_assert_success(r->to.e.qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", r->uri);
    link_listen(&r->link, path_of(r->way));
}

/* @guest: the one with the driver, or NULL if that was killed */
static void run_stop(Run *r, Guest *guest)
{
    Guest *both[] = { &r->from, &r->to };

    for (int i = 0; i < ARRAY_SIZE(both); i++) {
        if (both[i] == guest) {
            guest_stop(guest);
        } else if (both[i]->e.qts) {
            guest_vm_stop(both[i]);
        }
    }
    way_free(&r->link.forth);
    way_free(&r->link.back);
    close(r->rarp);
    unlink(path_of(r->way));
    unlink(path_of(r->uri));
    g_free(r->way);
    g_free(r->uri);
}

/* The next one of these, past others: wait for them as they come */
static QDict *wait_event(Guest *g, const char *name)
{
    QDict *event;

    patience_begin();
    while (!(event = qtest_qmp_event_ref(g->e.qts, name))) {
        patience_check();
        vm_answers(&g->e);
    }
    return event;
}

static void wait_status(Guest *g, const char *status)
{
    bool reached = false;

    while (!reached) {
        QDict *event = wait_event(g, "MIGRATION");
        const char *now = qdict_get_str(qdict_get_qdict(event, "data"),
                                        "status");

        reached = !strcmp(now, status);
        g_assert_true(reached || strcmp(now, "failed"));
        qobject_unref(event);
    }
}

static char *vm_status(Guest *g)
{
    QDict *resp = qtest_qmp_assert_success_ref(g->e.qts, "{ 'execute':"
                                               " 'query-status' }");
    char *status = g_strdup(qdict_get_str(resp, "status"));

    qobject_unref(resp);
    return status;
}

static void assert_vm(Guest *g, const char *status)
{
    g_autofree char *now = vm_status(g);

    g_assert_cmpstr(now, ==, status);
}

/* The migration is complete for the source, and its VM may be continued */
static void wait_postmigrate(Run *r)
{
    g_autofree char *now = NULL;

    patience_begin();
    while (g_strcmp0(now, "postmigrate")) {
        patience_check();
        g_free(now);
        now = vm_status(&r->from);
    }
}

/* Frames that the destination has acknowledged */
static uint64_t acknowledged(Run *r)
{
    QDict *resp = qtest_qmp_assert_success_ref(r->from.e.qts, "{ 'execute':"
                                               " 'query-migrate' }");
    QDict *card = qobject_to(QDict, qlist_peek(qdict_get_qlist(resp,
                                                               "packets")));
    uint64_t n = qdict_get_uint(card, "saved");

    qobject_unref(resp);
    return n;
}

/* Wait for at least @n; from then on the source hears of no more */
static void wait_acknowledged(Run *r, uint32_t n)
{
    patience_begin();
    while (acknowledged(r) < n) {
        patience_check();
    }
    way_limit(&r->link.back, 0);
    wait_consumed(&r->from.e, r->link.back.to);
    r->acked = FIRST + acknowledged(r);
}

/* The host sends to the source, and the reader of its TAP has them all */
static void source_gets(Run *r, uint32_t n)
{
    uint64_t taken = if_tx_packets("qtap0") + n;

    send_range(&r->from, r->next, r->next + n);
    r->next += n;
    patience_begin();
    while (if_tx_packets("qtap0") < taken) {
        patience_check();
        g_usleep(100);
    }
}

/* The VM runs there */
static void wait_resume(Guest *g)
{
    qobject_unref(wait_event(g, "RESUME"));
}


/* The moments */

/* The source cannot connect, as there is no room in the link's backlog */
static void reach_setup(Run *r)
{
    g_assert_cmpint(listen(r->link.listener, 0), ==, 0);
    r->filler = unix_connect(path_of(r->way), &error_abort);
    migration_start(&r->from.e, r->way);
    wait_status(&r->from, "setup");
    source_gets(r, FEW);
    wait_migration(&r->from.e, "setup");
}

/*
 * What is written in pass 1 is sent once more, of which not all passes.  Until
 * then the source does not know what the destination can, and cannot go on.
 */
static void reach_pass_2(Run *r)
{
    uint64_t addr = guest_alloc(&r->from.alloc, RAM_SIZE);
    int64_t pass = 0;

    memset(r->from.ram + addr, 1, RAM_SIZE);
    qtest_qmp_assert_success(r->from.e.qts, "{ 'execute':"
                             " 'migrate-set-parameters',"
                             " 'arguments': { 'downtime-limit': 1 } }");
    way_limit(&r->link.forth, IN_PASS_1);
    way_limit(&r->link.back, 0);
    migration_start(&r->from.e, r->way);
    link_accept(&r->link, path_of(r->uri));
    way_wait_held(&r->link.forth);
    qtest_memset(r->from.e.qts, addr, 2, RAM_SIZE);
    way_limit(&r->link.forth, IN_PASS_2);
    while (pass < 2) {
        QDict *event = wait_event(&r->from, "MIGRATION_PASS");

        pass = qdict_get_int(qdict_get_qdict(event, "data"), "pass");
        qobject_unref(event);
    }
    way_wait_held(&r->link.forth);
    way_limit(&r->link.back, SIZE_MAX);
    g_assert_cmpint(pass, ==, 2);
    assert_vm(&r->from, "running");
    source_gets(r, FEW);
}

static void reach_pre_switchover(Run *r)
{
    migration_start(&r->from.e, r->way);
    link_accept(&r->link, path_of(r->uri));
    qobject_unref(wait_event(&r->from, "STOP"));
    wait_status(&r->from, "pre-switchover");
}

/*
 * The state of the NIC does not pass.  The source's main loop may stand still
 * from now on, and the answer comes later.
 */
static void reach_device(Run *r)
{
    static const char nic[] = "virtio-net";

    way_stop_before(&r->link.forth, nic, strlen(nic));
    qtest_qmp_send(r->from.e.qts, "{ 'execute': 'migrate-continue',"
                   " 'arguments': { 'state': 'pre-switchover' } }");
    way_wait_held(&r->link.forth);
}

/* What the destination says does not pass */
static void reach_state(Run *r)
{
    way_limit(&r->link.back, 0);
    migrate_continue(&r->from.e);
    wait_status(&r->to, "completed");
    way_wait_held(&r->link.back);
    wait_status(&r->from, "device");
}

/* Some frames, and what tells that all have come, do not pass */
static void reach_unannounced(Run *r)
{
    uint8_t head[SEQ_OFFSET + sizeof(uint32_t)];

    r->passed = FIRST + SOME;
    frame_fill(head, r->passed, sizeof(head));
    way_stop_before(&r->link.forth, head, sizeof(head));
    migrate_continue(&r->from.e);
    wait_resume(&r->to);
    way_wait_held(&r->link.forth);
    wait_acknowledged(r, 1);
    if (readable(r->rarp)) {
        /* QEMU does not wait longer than 1 s */
        g_test_message("this host is slow: announced already");
    }
}

/* That it is announced does not pass */
static void reach_announced(Run *r)
{
    static const uint8_t announced[] = { 'Q', 'S', 'W', 'C', 0, 0, 0, 5 };

    way_stop_before(&r->link.back, announced, sizeof(announced));
    migrate_continue(&r->from.e);
    wait_resume(&r->to);
    rarp_expect(r->rarp);
    way_wait_held(&r->link.back);
    /* What has been acknowledged before: all, unless that took 1 s */
    wait_acknowledged(r, 0);
}

static void reach_completed(Run *r)
{
    migrate_continue(&r->from.e);
    wait_resume(&r->to);
    wait_status(&r->from, "completed");
    g_usleep(100 * 1000);
    rarp_expect(r->rarp);
    wait_acknowledged(r, FEW);
    g_assert_cmpuint(r->acked, ==, r->next);
}

/* With frames that have come before, and that come then */
static void reach(Run *r, Moment m)
{
    static void (*const funcs[])(Run *r) = {
        [SETUP] = reach_setup,
        [PASS_2] = reach_pass_2,
        [PRE_SWITCHOVER] = NULL,
        [DEVICE] = reach_device,
        [STATE] = reach_state,
        [UNANNOUNCED] = reach_unannounced,
        [ANNOUNCED] = reach_announced,
        [COMPLETED] = reach_completed,
    };

    if (m >= PRE_SWITCHOVER) {
        reach_pre_switchover(r);
        source_gets(r, m == UNANNOUNCED ? MORE : FEW);
        send_range(&r->to, DIRECT, DIRECT + FEW);
    }
    if (funcs[m]) {
        funcs[m](r);
    }
    source_gets(r, FEW);
    if (m >= STATE && m != UNANNOUNCED) {
        r->passed = r->next;
        way_wait_passed(&r->link.forth, r->passed - 1);
        /* And some that do not pass */
        way_limit(&r->link.forth, 0);
        source_gets(r, FEW);
    }
}


/* What becomes of it */

/*
 * The guest gets the frames from @begin to before @end, and the direct ones
 * from @direct to before @direct_end, each once and in order
 */
static void expect(Guest *g, uint32_t begin, uint32_t end, uint32_t direct,
                   uint32_t direct_end)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;

    while (begin < end || direct < direct_end) {
        uint32_t *next = &begin;

        ring_recv(g, frame, &hdr);
        g_assert_cmpint(frame->len, >=, SEQ_OFFSET + sizeof(uint32_t));
        if (ldl_be_p(frame->data + SEQ_OFFSET) >= DIRECT) {
            next = &direct;
        }
        assert_frame(frame->data, frame->len, *next, seq_len(*next));
        ++*next;
    }
    g_assert_cmpuint(begin, ==, end);
    g_assert_cmpuint(direct, ==, direct_end);
}

static void assert_no_more(Guest *g)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;

    vm_answers(&g->e);
    g_assert_false(ring_poll(g, 0, frame, &hdr));
    g_assert_cmpuint(if_tx_dropped(g->tap->name), ==, 0);
}

static void source_survives(Run *r, Moment m)
{
    send_range(&r->from, r->next, r->next + FEW);
    r->next += FEW;
    if (m == PRE_SWITCHOVER) {
        qtest_qmp_send(r->from.e.qts, "{ 'execute': 'migrate-continue',"
                       " 'arguments': { 'state': 'pre-switchover' } }");
    }
    if (m == PRE_SWITCHOVER || m == DEVICE) {
        qobject_unref(qtest_qmp_receive(r->from.e.qts));
        wait_status(&r->from, "device");
    }
    if (m >= UNANNOUNCED) {
        wait_postmigrate(r);
        vm_run(&r->from.e, true);
    } else {
        wait_status(&r->from, "failed");
    }
    if (m >= PRE_SWITCHOVER) {
        wait_resume(&r->from);
    }
    assert_vm(&r->from, "running");
    expect(&r->from, r->acked, r->next, 0, 0);
    send_and_drain(&r->from, r->next, r->next + FEW);
    assert_no_more(&r->from);
}

static void dest_survives(Run *r, Moment m)
{
    if (m == STATE) {
        assert_vm(&r->to, "paused");
        vm_run(&r->to.e, true);
        wait_resume(&r->to);
    }
    guest_move(&r->from, &r->to);
    send_range(&r->to, DIRECT + FEW, DIRECT + 2 * FEW);
    expect(&r->to, FIRST, r->passed, DIRECT, DIRECT + 2 * FEW);
    send_and_drain(&r->to, DIRECT + 2 * FEW, DIRECT + 3 * FEW);
    assert_no_more(&r->to);
    assert_vm(&r->to, "running");
}

/* The destination has not, or not yet, become the host of the VM */
static void dest_has_no_vm(Run *r, Moment m)
{
    if (m == SETUP) {
        assert_vm(&r->to, "inmigrate");
    } else if (m == STATE) {
        assert_vm(&r->to, "paused");
    } else {
        qtest_wait_qemu(r->to.e.qts);
    }
}

static void test_fault(const void *data)
{
    const Case *c = data;
    Moment m = c->moment;
    Survivor survivor = moments[m].survivor[c->fault];
    Run r;

    run_start(&r, m);
    reach(&r, m);

    if (m > SETUP && m < STATE && c->fault != KILL_DESTINATION) {
        qtest_set_expected_status(r.to.e.qts, EXIT_FAILURE);
    }
    if (c->fault == KILL_SOURCE) {
        guest_vm_kill(&r.from);
    } else if (c->fault == KILL_DESTINATION) {
        guest_vm_kill(&r.to);
    }
    link_cut(&r.link);
    if (r.filler != -1) {
        close(r.filler);
    }

    if (survivor == SOURCE) {
        source_survives(&r, m);
    } else if (survivor == DEST) {
        dest_survives(&r, m);
    }
    if (c->fault != KILL_DESTINATION && survivor != DEST) {
        dest_has_no_vm(&r, m);
    }
    if (c->fault == CUT_LINK && survivor == DEST) {
        wait_postmigrate(&r);
    }
    run_stop(&r, survivor == SOURCE ? &r.from : survivor == DEST ? &r.to :
             NULL);
}


/* The tests */

/* Why there can be no such VM, or NULL if there can */
static const char *no_vm;

static void test_skip(const void *data)
{
    g_test_skip(no_vm);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);

    tmpdir = g_dir_make_tmp("switchover-faults-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();
    no_vm = no_host;
    if (!no_vm && (!qtest_has_machine("pc") ||
                   !qtest_has_device("virtio-net-pci"))) {
        no_vm = "no virtio-net-pci";
    }

    for (Moment m = SETUP; m <= COMPLETED; m++) {
        for (Fault f = KILL_SOURCE; f <= CUT_LINK; f++) {
            g_autofree char *path = g_strdup_printf("/switchover-faults/%s/%s",
                                                    moments[m].name,
                                                    faults[f]);
            Case *c = g_new(Case, 1);

            *c = (Case) { m, f };
            qtest_add_data_func_full(path, c, no_vm ? test_skip : test_fault,
                                     g_free);
        }
    }

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
