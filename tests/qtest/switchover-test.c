/*
 * QTest testcase for the frames of a VM that is migrated
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Two QEMUs with a TAP and a virtio-net-pci each, whose driver is the test
 * (af-packet-guest.h), and filters for the frames that come while the VM is
 * migrated from one to the other:
 *
 *   host -> tap of the source -> filter -> m0 -> filter -> ring -> the test
 *   host -> tap of the destination ----------------------> ring
 *
 * After the migration the same driver goes on with the destination's memory and
 * registers, as a real one would; it goes on at the source if that runs again.
 *
 * As in af-packet-test.c a frame's bytes follow from its number.  All frames
 * that the guest gets are collected until all are there that were sent, and
 * then no other may come.  A time limit is one without progress.
 *
 * Each case is there with QEMU reading the TAP, and, where there is a
 * /dev/vhost-net, with vhost.
 *
 * Tested: all frames, once, in order: of a migration that completes, fails, is
 * cancelled, or whose destination dies, at any time; at a high rate, on several
 * queues; with a destination that waits for 'cont'; what the network is told,
 * and when; a guest that takes nothing; what is refused; that the thread is
 * there only when it is needed.
 *
 * Not tested: a real guest, TCP, the network between hosts: see lab/ of the
 * series; peers that are no QEMU: see af-packet-migration-test.c.
 *
 * Needs root, which unshare(1) gives in a user namespace, too.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <linux/if_packet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include "af-packet-guest.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qapi/error.h"

/* More than a ring holds, less than the queue of a TAP */
#define MANY 300

/* Direct frames have numbers from here on */
#define DIRECT 1000000


/* Two hosts */

typedef struct Setup {
    const char *name;
    int pairs;                  /* of queues; 0 means 1 */
    bool vhost;
    bool paused;                /* the destination has -S */
    bool no_return_path;
    bool no_filter;             /* frames go by the migration's connection */
    bool refused;               /* and the destination has a filter */
    bool hub;                   /* another destination may come, too */
    bool stays;                 /* the destination, if the migration fails */
    const char *vm;             /* options of both VMs, or NULL */
    const char *other_vm;       /* of the destination instead, or NULL */
    const char *other_card;     /* options of its card, or NULL */
    const char *source;         /* more of its filter, or NULL */
    const char *arrival;        /* likewise */
} Setup;

typedef struct Pair {
    Setup setup;
    Guest from, to;
    char *uri, *m0, *stderr_to;
    int rarp;                   /* announcements at the destination */
    GArray *got;                /* numbers of the frames that the guest got */
} Pair;

static Setup setup_of(const void *data)
{
    return data ? *(const Setup *)data : (Setup) { 0 };
}

static void to_start(Pair *p, const char *machine_options)
{
    g_autofree char *filter =
        g_strdup_printf("-chardev socket,id=m0,path=%s,server=on,wait=off "
                        "-object filter-redirector,id=inj0,netdev=n0,indev=m0,"
                        "vnet_hdr_support=on%s", p->m0, p->setup.arrival ?: "");
    g_autofree char *options =
        g_strdup_printf("-name to,debug-threads=on -incoming defer %s %s %s "
                        "%s 2>>%s", p->setup.paused ? "-S" : "",
                        p->setup.other_vm ?: p->setup.vm ?: "",
                        p->setup.no_filter && !p->setup.refused ? "" : filter,
                        machine_options,
                        p->stderr_to);
    const char *device = machine_options[0] ? NULL :
                         p->setup.other_card ?:
                         p->setup.pairs > 1 ? ",mq=on" : "";

    guest_vm_start(&p->to, "qtap1", p->setup.pairs, p->setup.vhost, device,
                   options);
    p->rarp = packet_socket("qtap1", SOCK_RAW, ETH_P_RARP);
    qtest_qmp_assert_success(p->to.e.qts, "{ 'execute':"
                             " 'migrate-set-parameters',"
                             " 'arguments': { 'announce-rounds': 1 } }");
    if (!p->setup.no_return_path) {
        migrate_capability(&p->to.e, "return-path");
    }
    qtest_qmp_assert_success(p->to.e.qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s, 'exit-on-error': %i }"
                             " }", p->uri, !p->setup.stays);
}

/* @listens: the source waits for the destination to connect, not vice versa */
static void from_start(Pair *p)
{
    static const char hub[] =
        "-chardev socket,id=m1,path=/nonexistent,reconnect-ms=100 "
        "-chardev hub,id=hub,chardevs.0=m0,chardevs.1=m1";
    g_autofree char *filter =
        g_strdup_printf("-chardev socket,id=m0,path=%s,reconnect-ms=100 %s "
                        "-object filter-redirector,id=cap0,netdev=n0,outdev=%s"
                        ONLY_STOPPED ",vnet_hdr_support=on%s", p->m0,
                        p->setup.hub ? hub : "", p->setup.hub ? "hub" : "m0",
                        p->setup.source ?: "");
    g_autofree char *options =
        g_strdup_printf("-name from,debug-threads=on %s %s%s%s",
                        p->setup.no_filter ? "" : filter, p->setup.vm ?: "",
                        p->setup.vm ? " 2>>" : "",
                        p->setup.vm ? p->stderr_to : "");

    guest_vm_start(&p->from, "qtap0", p->setup.pairs, p->setup.vhost,
                   p->setup.pairs > 1 ? ",mq=on" : "", options);
    if (!if_set_queue_len("qtap0", 1000)) {
        g_test_message("the length of the TAP's queue is not ours");
    }
    migrate_pause(&p->from.e);
    if (!p->setup.no_return_path) {
        migrate_capability(&p->from.e, "return-path");
    }
}

static void pair_init(Pair *p, const Setup *setup)
{
    memset(p, 0, sizeof(*p));
    p->setup = *setup;
    p->setup.pairs = MAX(p->setup.pairs, 1);
    p->uri = g_strdup_printf("unix:%s/migration", tmpdir);
    p->m0 = g_strdup_printf("%s/m0", tmpdir);
    p->stderr_to = g_strdup_printf("%s/stderr", tmpdir);
    p->got = g_array_new(false, false, sizeof(uint32_t));
}

/* And a driver, and frames have been through all of the source's queues */
static void pair_start(Pair *p, const Setup *setup)
{
    pair_init(p, setup);
    to_start(p, "");
    from_start(p);
    driver_start(&p->from);
    if (p->setup.pairs == 1) {
        send_and_drain(&p->from, 0, 10);
    }
}

static void vm_stop(Guest *g)
{
    if (g->e.qts) {
        guest_vm_stop(g);
    }
}

/* @guest: the one with the driver, or NULL if there is none */
static void pair_stop(Pair *p, Guest *guest)
{
    if (guest) {
        Guest *other = guest == &p->from ? &p->to : &p->from;

        vm_stop(other);
        guest_stop(guest);
    } else {
        vm_stop(&p->from);
        vm_stop(&p->to);
    }
    close(p->rarp);
    unlink(p->m0);
    unlink(strchr(p->uri, ':') + 1);
    unlink(p->stderr_to);
    g_array_unref(p->got);
    g_free(p->stderr_to);
    g_free(p->m0);
    g_free(p->uri);
}


/* What the guest gets */

static bool collect_some(Pair *p, Guest *g)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;
    guint before = p->got->len;

    for (int pair = 0; pair < g->pairs; pair++) {
        for (int i = 0; i < 256 && ring_poll(g, pair, frame, &hdr); i++) {
            uint32_t seq;

            g_assert_cmpint(frame->len, >=, 64);
            seq = ldl_be_p(frame->data + SEQ_OFFSET);
            assert_frame(frame->data, frame->len, seq, seq_len(seq));
            g_array_append_val(p->got, seq);
        }
    }
    if (p->got->len != before) {
        patience_begin();
    }
    return p->got->len != before;
}

/* Until it has got @n frames, since the last collect_begin() */
static void collect(Pair *p, Guest *g, guint n)
{
    patience_begin();
    while (p->got->len < n) {
        if (!collect_some(p, g)) {
            patience_check();
            g_thread_yield();
        }
    }
    g_assert_cmpuint(p->got->len, ==, n);
}

static void collect_begin(Pair *p)
{
    g_array_set_size(p->got, 0);
}

/* The guest gets nothing more: what was on its way has arrived */
static void assert_no_more(Pair *p, Guest *g)
{
    guint before = p->got->len;

    vm_answers(&g->e);
    collect_some(p, g);
    g_assert_cmpuint(p->got->len, ==, before);
}

static uint32_t got(Pair *p, guint i)
{
    return g_array_index(p->got, uint32_t, i);
}

/* From number @at on, it has got the frames from @begin to before @end */
static void assert_got(Pair *p, guint at, uint32_t begin, uint32_t end)
{
    g_assert_cmpuint(p->got->len, >=, at + end - begin);
    for (; begin < end; begin++) {
        g_assert_cmpuint(got(p, at++), ==, begin);
    }
}

/* Exactly these, wherever they are, in order */
static void assert_got_in_order(Pair *p, uint32_t begin, uint32_t end)
{
    for (guint i = 0; i < p->got->len; i++) {
        uint32_t seq = got(p, i);

        if ((seq >= DIRECT) == (begin >= DIRECT)) {
            g_assert_cmpuint(seq, ==, begin);
            begin++;
        }
    }
    g_assert_cmpuint(begin, ==, end);
}

/* A number of query-migrate's packets, of the only card, by a filter's names */
static uint64_t packets_stat(Guest *g, const char *group, const char *name)
{
    QDict *resp = qtest_qmp_assert_success_ref(g->e.qts, "{ 'execute':"
                                               " 'query-migrate' }");
    QList *packets = qdict_get_qlist(resp, "packets");
    QDict *card = packets ? qobject_to(QDict, qlist_peek(packets)) : NULL;
    uint64_t n = 0;

    if (card && !strcmp(group, "dropped")) {
        card = qdict_get_qdict(card, group);
    } else if (!strcmp(name, "acknowledged") || !strcmp(name, "delivered")) {
        name = "saved";
    }
    if (card) {
        n = qdict_get_uint(card, name);
    }
    qobject_unref(resp);
    return n;
}

/* A number of one side, in a group of query-netfilter-stats */
static uint64_t pair_stat(Pair *p, Guest *g, const char *group,
                          const char *name)
{
    if (p->setup.no_filter) {
        return packets_stat(g, group, name);
    }
    return filter_stat(&g->e, g == &p->from ? "cap0" : "inj0", group, name);
}

static uint64_t source_stat(Pair *p, const char *name)
{
    return pair_stat(p, &p->from, "switchover", name);
}

static uint64_t arrival_stat(Pair *p, const char *name)
{
    return pair_stat(p, &p->to, "switchover", name);
}

/* Until such a number is reached */
static void wait_stat(Pair *p, Guest *g, const char *group, const char *name,
                      uint64_t n)
{
    uint64_t before = UINT64_MAX, now;

    patience_begin();
    while ((now = pair_stat(p, g, group, name)) != n) {
        if (now != before) {
            before = now;
            patience_begin();
        }
        patience_check();
    }
}

/* Without a filter the source keeps them until the VM's state is sent */
static void wait_held(Pair *p, uint64_t n)
{
    if (p->setup.no_filter) {
        return;
    }
    wait_stat(p, &p->to, "held", "packets", n);
}

static void wait_acknowledged(Pair *p, uint64_t n)
{
    wait_stat(p, &p->from, "switchover", "acknowledged", n);
}

/*
 * More than a TAP's queue has room for, so in parts as the reader takes them.
 * QEMU's main loop may stand still.
 */
static void send_read(Pair *p, uint32_t begin, uint32_t end)
{
    uint64_t taken = if_tx_packets("qtap0");

    while (begin < end) {
        uint32_t n = MIN(MANY, end - begin);

        send_range(&p->from, begin, begin + n);
        begin += n;
        taken += n;
        patience_begin();
        while (if_tx_packets("qtap0") < taken) {
            patience_check();
            g_usleep(100);
        }
    }
}

/* The first @n frames of the source are in the ring before an announcement */
static void collect_announced(Pair *p, guint n)
{
    bool announced = false;

    patience_begin();
    while (!announced) {
        announced = readable(p->rarp);
        /* What was in the ring then, is there now */
        smp_mb();
        while (collect_some(p, &p->to)) {
            /* All of it */
        }
        patience_check();
    }
    g_assert_cmpuint(p->got->len, >=, n);
    rarp_expect(p->rarp);
}

/* Up to the moment in which both VMs are stopped */
static void pair_migrate(Pair *p)
{
    collect_begin(p);
    migrate_to_pause(&p->from.e, p->uri);
}

/* And the destination has the frames that come then */
static void pair_save(Pair *p, uint32_t begin, uint32_t end)
{
    pair_migrate(p);
    send_read(p, begin, end);
    wait_held(p, end - begin);
}

/* It goes on, and may fail before that is answered */
static void pair_continue_send(Pair *p)
{
    qtest_qmp_send(p->from.e.qts, "{ 'execute': 'migrate-continue',"
                   " 'arguments': { 'state': 'pre-switchover' } }");
}

static void pair_continue(Pair *p)
{
    pair_continue_send(p);
    qobject_unref(qtest_qmp_receive(p->from.e.qts));
}

/* The VM runs at the destination, with the driver */
static void pair_arrive(Pair *p)
{
    qtest_qmp_eventwait(p->to.e.qts, "RESUME");
    guest_move(&p->from, &p->to);
}


/* Threads */

/* Those of a QEMU whose names begin with @prefix; the last one's id is @tid */
static int count_threads(Guest *g, const char *prefix, pid_t *tid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task",
                                            qtest_pid(g->e.qts));
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;
    int n = 0;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_strdup_printf("%s/%s/comm", path, name);
        g_autofree char *comm = NULL;

        if (g_file_get_contents(file, &comm, NULL, NULL) &&
            g_str_has_prefix(comm, prefix)) {
            n++;
            if (tid) {
                *tid = atoi(name);
            }
        }
    }
    return n;
}

/* A thread gives itself its name, and it may take a while until it ends */
static pid_t wait_threads(Guest *g, const char *prefix, int n)
{
    pid_t tid = 0;

    patience_begin();
    while (count_threads(g, prefix, &tid) != n) {
        patience_check();
        vm_answers(&g->e);
    }
    return tid;
}

static pid_t wait_reader(Guest *g)
{
    wait_threads(g, "switchover-", 2);
    return wait_threads(g, "switchover-rx", 1);
}

static bool has_threads(Guest *g)
{
    return count_threads(g, "switchover-", NULL);
}

static void wait_no_threads(Guest *g)
{
    wait_threads(g, "switchover-", 0);
}


/* A migration that completes */

static void test_complete(const void *data)
{
    Setup s = setup_of(data);
    bool limited = s.arrival && strstr(s.arrival, "hold_limit");
    uint32_t n = 10;
    int before = count_packet_sockets(), sockets;
    Pair p;

    pair_start(&p, &s);
    /* The test's own: to send at two TAPs, and for announcements */
    sockets = count_packet_sockets();
    g_assert_cmpint(sockets, ==, before + 3);
    send_and_drain(&p.from, n, n + MANY);
    n += MANY;
    g_assert_false(has_threads(&p.from));
    g_assert_false(has_threads(&p.to));

    pair_migrate(&p);
    send_range(&p.to, DIRECT, DIRECT + 100);
    send_read(&p, n, n + 5 * MANY);
    if (!limited) {
        wait_held(&p, 5 * MANY);
    }
    wait_reader(&p.from);
    g_assert_cmpint(count_packet_sockets(), ==, sockets);
    g_assert_false(readable(p.rarp));
    migrate_continue(&p.from.e);
    send_range(&p.from, n + 5 * MANY, n + 6 * MANY);
    if (s.paused) {
        wait_migration(&p.from.e, "completed");
        wait_migration(&p.to.e, "completed");
        g_assert_false(readable(p.rarp));
        vm_run(&p.to.e, true);
    }
    pair_arrive(&p);

    /* All that was there when it ran, before direct ones */
    collect_announced(&p, limited ? 0 : 5 * MANY);
    collect(&p, &p.to, 6 * MANY + 100);
    assert_got(&p, 0, n, n + 6 * MANY);
    assert_got(&p, 6 * MANY, DIRECT, DIRECT + 100);
    wait_migration(&p.from.e, "completed");
    wait_migration(&p.to.e, "completed");

    /* Until all of the network knows, frames still come to the source */
    collect_begin(&p);
    send_range(&p.from, n + 6 * MANY, n + 7 * MANY);
    collect(&p, &p.to, MANY);
    send_range(&p.to, DIRECT, DIRECT + MANY);
    collect(&p, &p.to, 2 * MANY);
    send_range(&p.from, n + 7 * MANY, n + 8 * MANY);
    send_range(&p.to, DIRECT + MANY, DIRECT + 2 * MANY);
    collect(&p, &p.to, 4 * MANY);
    assert_got_in_order(&p, n + 6 * MANY, n + 8 * MANY);
    assert_got_in_order(&p, DIRECT, DIRECT + 2 * MANY);
    assert_no_more(&p, &p.to);
    wait_acknowledged(&p, 8 * MANY);
    if (!s.no_filter) {
        g_assert_cmpuint(source_stat(&p, "read"), ==, 8 * MANY);
    }
    g_assert_cmpuint(arrival_stat(&p, "delivered"), ==, 8 * MANY);
    g_assert_false(readable(p.rarp));
    wait_no_threads(&p.to);
    g_assert_cmpint(count_packet_sockets(), ==, sockets);
    vm_stop(&p.from);
    p.from.e.qts = NULL;

    /* Those that are asked for later are QEMU's */
    qtest_qmp_assert_success(p.to.e.qts, "{ 'execute': 'announce-self',"
                             " 'arguments': { 'initial': 50, 'max': 50,"
                             " 'rounds': 1, 'step': 10 } }");
    rarp_expect(p.rarp);

    /* And as any VM goes on */
    send_range(&p.to, 0, MANY);
    ring_expect(&p.to, 0, MANY);
    pair_stop(&p, &p.to);
}

static const Setup completes[] = {
    { "plain" },
    { "netdevs", .source = ",in_netdev=n0", .arrival = ",out_netdev=n0" },
    { "no-return-path", .no_return_path = true },
    { "paused", .paused = true },
    { "limit", .arrival = ",hold_limit=1000" },
    { "hub", .hub = true },
};

/*
 * However many frames wait at the destination: once the source says that the
 * migration is complete, and may be killed, the guest has them, and the network
 * knows where it is
 */
static void test_announced(const void *data)
{
    const int many = 8000;
    Setup s = setup_of(data);
    bool completed = false;
    Pair p;

    s.source = ",drain_timeout=10000";
    pair_start(&p, &s);
    pair_save(&p, 1000, 1000 + many);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    patience_begin();
    while (!completed) {
        QDict *resp = qtest_qmp_assert_success_ref(p.from.e.qts,
                                                   "{ 'execute':"
                                                   " 'query-migrate' }");

        completed = !strcmp(qdict_get_str(resp, "status"), "completed");
        qobject_unref(resp);
        if (completed) {
            /* As good as dead */
            vm_stall(&p.from.e, true);
            vm_stall(&p.to.e, true);
        }
        while (collect_some(&p, &p.to)) {
            /* All of it */
        }
        patience_check();
    }
    g_assert_true(readable(p.rarp));
    g_assert_cmpuint(p.got->len, ==, many);
    assert_got(&p, 0, 1000, 1000 + many);
    vm_stall(&p.from.e, false);
    vm_stall(&p.to.e, false);
    pair_stop(&p, &p.to);
}


/* At a high rate */

#define LOAD_RATE 200000        /* frames per second */
#define LOAD_FRAMES 100000
#define LOAD_LEN 64
#define LOAD_FLOWS 8
#define LOAD_BATCH 32

/* UDP, so that the kernel's choice of a queue depends on the ports */
#define UDP_OFFSET (ETH_HLEN + 20)
#define FLOW_OFFSET (UDP_OFFSET + 8)

typedef struct Load {
    GThread *thread;
    int fd;
    int rate;                   /* frames per second */
    int sent;                   /* atomic */
    int late;                   /* times that it had no CPU */
} Load;

/* Frame number @n of all; flows take turns */
static void load_fill(uint8_t *frame, uint32_t n)
{
    uint32_t flow = n % LOAD_FLOWS;
    uint8_t *udp = frame + UDP_OFFSET;

    frame_fill(frame, n, LOAD_LEN);
    stw_be_p(frame + 2 * ETH_ALEN, ETH_P_IP);
    ip_header(frame + ETH_HLEN, IPPROTO_UDP, LOAD_LEN - UDP_OFFSET);
    stw_be_p(udp, 1000 + flow * 77);
    stw_be_p(udp + 2, 5000);
    stw_be_p(udp + 4, LOAD_LEN - UDP_OFFSET);
    stw_be_p(udp + 6, 0);
    stl_be_p(frame + FLOW_OFFSET, n);
}

/*
 * Best effort: on a busy machine the test shall measure QEMU.  Of this thread,
 * and of the processes that it starts.
 */
static void set_priority(bool high)
{
    if (setpriority(PRIO_PROCESS, 0, high ? -20 : 0) < 0) {
        g_test_message("setpriority: %s", strerror(errno));
    }
}

/*
 * And of the thread on which it depends that the queue does not overflow.  Not
 * of the one that sends, which takes a CPU: Linux then gives the CPU to others
 * for up to 50 ms in a second.
 */
static void set_realtime(pid_t tid)
{
    struct sched_param param = { .sched_priority = 1 };

    if (sched_setscheduler(tid, SCHED_RR, &param) < 0) {
        g_test_message("sched_setscheduler: %s", strerror(errno));
    }
}

/* Hundredths of a second that this host's hypervisor gave to others */
static uint64_t stolen_ticks(void)
{
    g_autofree char *text = NULL;
    uint64_t n = 0;

    if (g_file_get_contents("/proc/stat", &text, NULL, NULL)) {
        /* user nice system idle iowait irq softirq steal */
        sscanf(text, "cpu %*u %*u %*u %*u %*u %*u %*u %" SCNu64, &n);
    }
    return n;
}

static void *load_run(void *opaque)
{
    g_autofree uint8_t *frames = g_malloc(LOAD_BATCH * LOAD_LEN);
    struct mmsghdr msgs[LOAD_BATCH] = { 0 };
    struct iovec iov[LOAD_BATCH];
    Load *l = opaque;
    int64_t begin = g_get_monotonic_time();
    int sent = 0;

    for (int i = 0; i < LOAD_BATCH; i++) {
        iov[i].iov_base = frames + i * LOAD_LEN;
        iov[i].iov_len = LOAD_LEN;
        msgs[i].msg_hdr.msg_iov = &iov[i];
        msgs[i].msg_hdr.msg_iovlen = 1;
    }
    while (sent < LOAD_FRAMES) {
        int64_t now = g_get_monotonic_time();
        int64_t due = (now - begin) * l->rate / G_USEC_PER_SEC - sent;

        if (due > 8 * LOAD_BATCH) {
            /* It would be a higher rate if it made up for that */
            begin += (due - LOAD_BATCH) * G_USEC_PER_SEC / l->rate;
            l->late++;
            due = LOAD_BATCH;
        }
        due = MIN(MIN(due, LOAD_BATCH), LOAD_FRAMES - sent);
        if (due < 8 && due < LOAD_FRAMES - sent) {
            g_usleep(20);
            continue;
        }
        for (int i = 0; i < due; i++) {
            load_fill(frames + i * LOAD_LEN, sent + i);
        }
        g_assert_cmpint(RETRY_ON_EINTR(sendmmsg(l->fd, msgs, due, 0)), ==,
                        due);
        sent += due;
        qatomic_set(&l->sent, sent);
    }
    return NULL;
}

static void load_wait(Load *l, int n)
{
    while (qatomic_read(&l->sent) < n) {
        g_usleep(1000);
    }
}

/* Returns how many frames found the source's queue full, and were lost */
static uint64_t load_once(const Setup *s, int rate)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;
    uint32_t next[LOAD_FLOWS];
    uint64_t used[GUEST_PAIRS_MAX] = { 0 };
    uint64_t dropped, stolen, drain = 0;
    uint8_t expected[LOAD_LEN];
    int total = 0, queues = 0;
    int64_t begin, end;
    Load l = { .rate = rate };
    Pair p;

    set_priority(true);
    pair_start(&p, s);
    dropped = if_tx_dropped("qtap0");
    l.fd = p.from.tap->host;
    for (int i = 0; i < LOAD_FLOWS; i++) {
        next[i] = i;
    }
    pair_migrate(&p);
    set_realtime(wait_reader(&p.from));
    stolen = stolen_ticks();
    begin = g_get_monotonic_time();
    l.thread = g_thread_new("load", load_run, &l);
    load_wait(&l, LOAD_FRAMES / 2);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    patience_begin();
    while (total < LOAD_FRAMES) {
        bool any = false;

        for (int pair = 0; pair < p.setup.pairs; pair++) {
            while (ring_poll(&p.to, pair, frame, &hdr)) {
                uint32_t n = ldl_be_p(frame->data + FLOW_OFFSET);

                load_fill(expected, n);
                g_assert_cmpmem(frame->data, frame->len, expected, LOAD_LEN);
                g_assert_cmpuint(n, ==, next[n % LOAD_FLOWS]);
                next[n % LOAD_FLOWS] += LOAD_FLOWS;
                used[pair]++;
                total++;
                any = true;
            }
        }
        if (any) {
            patience_begin();
        } else {
            patience_check();
            if (if_tx_dropped("qtap0") > dropped) {
                break;
            }
            g_thread_yield();
        }
    }
    end = g_get_monotonic_time();
    g_thread_join(l.thread);
    stolen = stolen_ticks() - stolen;
    wait_no_threads(&p.to);
    drain = arrival_stat(&p, "drain-time");
    for (int i = 0; i < p.setup.pairs; i++) {
        queues += used[i] > 0;
    }
    g_test_message("%d frames, %d/s, in %" PRId64 " ms, sender late %d times,"
                   " CPU stolen %" PRIu64 " ms; dropped"
                   " by the TAP %" PRIu64 "; drain-time %" PRIu64 " us, peak %"
                   PRIu64 " frames (%" PRIu64 " bytes), %d of %d queues used",
                   total, rate, (end - begin) / 1000, l.late, stolen * 10,
                   if_tx_dropped("qtap0") - dropped, drain,
                   source_stat(&p, "peak"), source_stat(&p, "peak-size"),
                   queues, p.setup.pairs);
    dropped = if_tx_dropped("qtap0") - dropped;
    wait_migration(&p.from.e, "completed");
    wait_stat(&p, &p.from, "dropped", "queue-full", dropped);
    if (!dropped) {
        g_assert_cmpuint(if_tx_dropped("qtap1"), ==, 0);
        g_assert_cmpint(queues, >, p.setup.pairs / 2);
        wait_acknowledged(&p, LOAD_FRAMES);
        assert_no_more(&p, &p.to);
    }
    pair_stop(&p, &p.to);
    set_priority(false);
    return dropped;
}

/*
 * The queue holds what comes in 5 ms.  A machine that others use, too, may not
 * give the thread a CPU in time; but most times it does.  Where there is vhost,
 * it may be an emulated one, which cannot do so much.
 */
static void test_load(const void *data)
{
    Setup s = setup_of(data);
    int rate = LOAD_RATE;

    for (int turns = 0; load_once(&s, rate); turns++) {
        g_assert_cmpint(turns, <, 10);
        if (s.vhost) {
            rate /= 2;
            g_assert_cmpint(rate, >, 10000);
        }
    }
}

static const Setup loads[] = {
    { "1-queue" },
    { "4-queues", .pairs = 4 },
    { "1-queue", .no_filter = true },
    { "4-queues", .no_filter = true, .pairs = 4 },
};


/* Given back */

/* And the VM runs again at the source: it gets the frames, and later ones */
static void expect_given_back(Pair *p, uint32_t begin, uint32_t end)
{
    collect(p, &p->from, end - begin);
    assert_got(p, 0, begin, end);
    send_range(&p->from, 0, 10);
    ring_expect(&p->from, 0, 10);
    assert_no_more(p, &p->from);
    wait_no_threads(&p->from);
    if (!p->setup.no_filter) {
        g_assert_cmpuint(filter_stat(&p->from.e, "cap0", "held", "packets"), ==,
                         0);
    }
}

/* By migrate_cancel, again and again; the destinations that wait go */
static void test_cancel(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    pair_start(&p, &s);
    for (uint32_t seq = 1000; seq < 20000; seq += 5000) {
        pair_save(&p, seq, seq + 3000);
        qtest_set_expected_status(p.to.e.qts, EXIT_FAILURE);
        migrate_cancel_send(&p.from.e);
        send_range(&p.from, seq + 3000, seq + 3000 + MANY);
        migrate_cancel_wait(&p.from.e);
        expect_given_back(&p, seq, seq + 3000 + MANY);
        qtest_wait_qemu(p.to.e.qts);
        vm_stop(&p.to);
        close(p.rarp);
        to_start(&p, "");
    }
    g_assert_cmpuint(source_stat(&p, "acknowledged"), ==, 0);
    /* Without a filter, of the last migration */
    g_assert_cmpuint(source_stat(&p, "given-back"), >=,
                     (s.no_filter ? 1 : 4) * 3000);
    pair_stop(&p, &p.from);
}

/* The destination dies before the source goes on */
static void test_killed_before(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    pair_start(&p, &s);
    pair_save(&p, 1000, 3000);
    guest_vm_kill(&p.to);
    send_read(&p, 3000, 4000);
    pair_continue(&p);
    qtest_qmp_eventwait(p.from.e.qts, "RESUME");
    expect_given_back(&p, 1000, 4000);
    pair_stop(&p, &p.from);
}

/* And while the source waits for it to have loaded the state */
static void test_killed_during(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    pair_start(&p, &s);
    pair_save(&p, 1000, 3000);
    vm_stall(&p.to.e, true);
    /* The answer may have to wait until the state can be written, or fails */
    pair_continue_send(&p);
    send_range(&p.from, 3000, 3000 + MANY);
    if (s.no_return_path) {
        qobject_unref(qtest_qmp_receive(p.from.e.qts));
        wait_migration(&p.from.e, "completed");
        send_read(&p, 3000 + MANY, 4000);
        guest_vm_kill(&p.to);
        vm_run(&p.from.e, true);
    } else {
        send_read(&p, 3000 + MANY, 4000);
        guest_vm_kill(&p.to);
        qobject_unref(qtest_qmp_receive(p.from.e.qts));
    }
    qtest_qmp_eventwait(p.from.e.qts, "RESUME");
    expect_given_back(&p, 1000, 4000);
    pair_stop(&p, &p.from);
}

/* It was told to wait, and dies when the source has been told "completed" */
static void test_killed_after(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    s.paused = true;
    pair_start(&p, &s);
    pair_migrate(&p);
    send_read(&p, 1000, 3000);
    migrate_continue(&p.from.e);
    send_range(&p.from, 3000, 3000 + MANY);
    wait_migration(&p.from.e, "completed");
    wait_migration(&p.to.e, "completed");
    send_read(&p, 3000 + MANY, 4000);
    wait_held(&p, 3000);
    guest_vm_kill(&p.to);
    send_range(&p.from, 4000, 4000 + MANY);
    vm_answers(&p.from.e);
    g_assert_cmpuint(source_stat(&p, "acknowledged"), ==, 0);
    vm_run(&p.from.e, true);
    qtest_qmp_eventwait(p.from.e.qts, "RESUME");
    expect_given_back(&p, 1000, 4000 + MANY);
    pair_stop(&p, &p.from);
}

/*
 * Its guest has had some of the frames, and said so: these do not come again.
 * It takes no more than its ring has room for.
 */
static void test_killed_running(const void *data)
{
    Setup s = setup_of(data);
    uint64_t n;
    Pair p;

    pair_start(&p, &s);
    pair_save(&p, 1000, 3000);
    migrate_continue(&p.from.e);
    qtest_qmp_eventwait(p.to.e.qts, "RESUME");
    wait_migration(&p.from.e, "completed");
    /* More only if this took a second, in which the guest took nothing */
    patience_begin();
    while ((n = source_stat(&p, "acknowledged")) < GUEST_RX_BUFFERS) {
        patience_check();
    }
    vm_stall(&p.to.e, true);
    vm_answers(&p.from.e);
    n = source_stat(&p, "acknowledged");
    g_test_message("the guest had %" PRIu64 " frames", n);
    guest_vm_kill(&p.to);
    vm_run(&p.from.e, true);
    qtest_qmp_eventwait(p.from.e.qts, "RESUME");
    expect_given_back(&p, 1000 + n, 3000);
    pair_stop(&p, &p.from);
}

/* Or fails, if the connection ended before all was sent */
static bool migration_completes(Pair *p)
{
    patience_begin();
    for (;;) {
        QDict *resp = qtest_qmp_assert_success_ref(p->from.e.qts,
                                                   "{ 'execute':"
                                                   " 'query-migrate' }");
        g_autofree char *status = g_strdup(qdict_get_str(resp, "status"));

        qobject_unref(resp);
        if (!strcmp(status, "completed") || !strcmp(status, "failed")) {
            return status[0] == 'c';
        }
        patience_check();
    }
}

/* It cannot load the state; with a filter, the source cannot know */
static void test_cannot_load(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    s.no_return_path = !s.no_filter;
    pair_init(&p, &s);
    to_start(&p, "-device e1000,netdev=n0,romfile=");
    qtest_set_expected_status(p.to.e.qts, EXIT_FAILURE);
    from_start(&p);
    driver_start(&p.from);
    send_and_drain(&p.from, 0, 10);
    pair_save(&p, 1000, 2000);
    migrate_continue(&p.from.e);
    qtest_wait_qemu(p.to.e.qts);
    send_range(&p.from, 2000, 2000 + MANY);
    if (migration_completes(&p)) {
        vm_run(&p.from.e, true);
    }
    qtest_qmp_eventwait(p.from.e.qts, "RESUME");
    expect_given_back(&p, 1000, 2000 + MANY);
    pair_stop(&p, &p.from);
}


/* A destination that waits for 'cont', and a source that ends */

typedef struct Paused {
    const char *name;
    int ms;                     /* until 'cont' */
    bool quit;                  /* the source, by QMP, before that */
    bool sigterm;               /* the same by a signal */
    bool no_filter;
    bool vhost;
} Paused;

static const Paused pauses[] = {
    { "0-ms", 0 },
    { "20-ms", 20 },
    { "300-ms", 300 },
    { "quit", 100, .quit = true },
    { "sigterm", 100, .sigterm = true },
    { "no-filter/0-ms", 0, .no_filter = true },
    { "no-filter/20-ms", 20, .no_filter = true },
    { "no-filter/300-ms", 300, .no_filter = true },
    { "no-filter/quit", 100, .no_filter = true, .quit = true },
    { "no-filter/sigterm", 100, .no_filter = true, .sigterm = true },
};

static void test_paused(const void *data)
{
    const Paused *t = data;
    Setup s = { .paused = true, .no_filter = t->no_filter, .vhost = t->vhost };
    guint first = t->no_filter ? 2000 : 2000 + MANY;
    Pair p;

    pair_start(&p, &s);
    pair_migrate(&p);
    send_read(&p, 1000, 3000);
    migrate_continue(&p.from.e);
    wait_migration(&p.from.e, "completed");
    if (t->quit) {
        qtest_qmp_send(p.from.e.qts, "{ 'execute': 'quit' }");
    } else if (t->sigterm) {
        g_assert_cmpint(kill(qtest_pid(p.from.e.qts), SIGTERM), ==, 0);
    }
    /* It has been told to end, but the network does not know yet */
    send_range(&p.from, 3000, 3000 + MANY);
    send_range(&p.to, DIRECT, DIRECT + MANY);
    if (t->ms) {
        wait_held(&p, 2000 + MANY);
        g_usleep(t->ms * 1000);
    }
    g_assert_false(readable(p.rarp));
    qtest_qmp_assert_success(p.to.e.qts, "{ 'execute': 'cont' }");
    pair_arrive(&p);
    collect_announced(&p, t->ms ? first : 0);
    collect(&p, &p.to, 2000 + 2 * MANY);
    assert_got(&p, 0, 1000, 3000 + MANY);
    assert_got_in_order(&p, DIRECT, DIRECT + MANY);
    assert_no_more(&p, &p.to);
    if (t->quit || t->sigterm) {
        qtest_wait_qemu(p.from.e.qts);
    }
    /* One only, as it was asked for */
    g_assert_false(readable(p.rarp));
    pair_stop(&p, &p.to);
}


/* A guest that takes nothing */

/* It is told of them, the network of the guest, and all goes on */
static void expect_given_up(Pair *p, uint64_t n)
{
    int64_t begin = g_get_monotonic_time();

    wait_fd(p->rarp, POLLIN);
    g_test_message("announced after %" PRId64 " ms",
                   (g_get_monotonic_time() - begin) / 1000);
    g_assert_cmpint(g_get_monotonic_time() - begin, >, 500 * 1000);
    rarp_expect(p->rarp);
    wait_stat(p, &p->to, "dropped", "guest", n);
    wait_warned_once(&p->to.e, p->stderr_to, "the guest took no frame");
    wait_held(p, 0);
    wait_no_threads(&p->to);
    wait_migration(&p->from.e, "completed");
    wait_migration(&p->to.e, "completed");
}

static void test_guest_no_driver(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    pair_init(&p, &s);
    to_start(&p, "");
    from_start(&p);
    pair_save(&p, 1000, 2000);
    migrate_continue(&p.from.e);
    qtest_qmp_eventwait(p.to.e.qts, "RESUME");
    expect_given_up(&p, 1000);
    pair_stop(&p, NULL);
}

static void test_guest_ring_full(const void *data)
{
    Setup s = setup_of(data);
    uint64_t n;
    Pair p;

    pair_start(&p, &s);
    pair_save(&p, 1000, 2000);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    wait_fd(p.rarp, POLLIN);
    n = arrival_stat(&p, "delivered");
    g_assert_cmpuint(n, >, 0);
    g_assert_cmpuint(n, <, 1000);
    wait_stat(&p, &p.to, "dropped", "guest", 1000 - n);
    wait_warned_once(&p.to.e, p.stderr_to, "the guest took no frame");
    rarp_expect(p.rarp);
    wait_migration(&p.from.e, "completed");

    /* It is there again, and so are new frames */
    collect(&p, &p.to, n);
    assert_got(&p, 0, 1000, 1000 + n);
    wait_no_threads(&p.to);
    send_range(&p.to, 0, 10);
    ring_expect(&p.to, 0, 10);
    assert_no_more(&p, &p.to);
    pair_stop(&p, &p.to);
}

/*
 * It takes frames, but as many come: QEMU's datapath is left all the same, in a
 * second or two
 */
#define MANY_SLOW 200000

static void test_guest_slow(const void *data)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;
    Setup s = setup_of(data);
    uint32_t sent = DIRECT + 900;
    Pair p;

    pair_start(&p, &s);
    pair_migrate(&p);
    send_range(&p.to, DIRECT, sent);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    wait_migration(&p.from.e, "completed");
    wait_migration(&p.to.e, "completed");
    guest_vm_kill(&p.from);
    patience_begin();
    while (has_threads(&p.to)) {
        if (ring_poll(&p.to, 0, frame, &hdr)) {
            uint32_t seq = ldl_be_p(frame->data + SEQ_OFFSET);

            g_array_append_val(p.got, seq);
            send_range(&p.to, sent, sent + 1);
            g_assert_cmpuint(++sent, <, DIRECT + MANY_SLOW);
        }
        vm_answers(&p.to.e);
        patience_check();
    }
    g_test_message("%u frames until then", sent - DIRECT);
    collect(&p, &p.to, sent - DIRECT);
    assert_got(&p, 0, DIRECT, sent);
    assert_no_more(&p, &p.to);
    pair_stop(&p, &p.to);
}


/* One destination after another */

/* The first one's process ends; the next one's guest gets all */
static void test_second_destination(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    pair_start(&p, &s);
    pair_save(&p, 1000, 2000);
    guest_vm_kill(&p.to);
    qtest_qmp_assert_success(p.from.e.qts, "{ 'execute': 'migrate_cancel' }");
    qtest_qmp_eventwait(p.from.e.qts, "RESUME");
    expect_given_back(&p, 1000, 2000);

    close(p.rarp);
    to_start(&p, "");
    pair_save(&p, 3000, 5000);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    collect_announced(&p, 2000);
    assert_got(&p, 0, 3000, 5000);
    wait_migration(&p.from.e, "completed");
    assert_no_more(&p, &p.to);
    pair_stop(&p, &p.to);
}

/* Control messages, as message.h has them */
enum { HELLO = 1, START = 3, VM_HIGH = 10, VM_LOW, CARD };

static void put_control(uint8_t *message, uint32_t type, uint64_t value)
{
    memcpy(message, "QSWC", 4);
    stl_be_p(message + 4, type);
    stq_be_p(message + 8, value);
}

/* Whatever it has to say before that */
static void wait_closed(int fd)
{
    uint8_t buf[64];
    ssize_t n;

    do {
        wait_fd(fd, POLLIN);
        n = recv(fd, buf, sizeof(buf), 0);
    } while (n > 0);
    g_assert_true(n == 0 || errno == ECONNRESET);
}

/*
 * The source was told "completed", its peer dies while it waits for 'cont', and
 * another process takes its place at the same address: it gets all.
 */
static void test_second_peer(const void *data)
{
    Setup s = setup_of(data);
    struct virtio_net_hdr hdr;
    uint32_t type, before = 0;
    uint8_t hello[16];
    int listener, fd;
    Pair p;

    s.paused = true;
    pair_start(&p, &s);
    pair_migrate(&p);
    send_read(&p, 1000, 2000);
    migrate_continue(&p.from.e);
    wait_migration(&p.from.e, "completed");
    wait_held(&p, 1000);
    guest_vm_kill(&p.to);
    unlink(p.m0);
    listener = unix_listen(p.m0, &error_abort);
    wait_fd(listener, POLLIN);
    fd = accept(listener, NULL, NULL);
    g_assert_cmpint(fd, !=, -1);
    put_control(hello, HELLO, 0);
    write_all(fd, hello, sizeof(hello));
    /* Perhaps behind frames of one that did not know of HELLO */
    for (uint32_t seq = 1000; seq < 2000; ) {
        uint8_t head[8], rest[8];

        wait_fd(fd, POLLIN);
        g_assert_cmpint(recv(fd, head, sizeof(head), MSG_WAITALL), ==, 8);
        if (!memcmp(head, "QSWC", 4)) {
            g_assert_cmpint(recv(fd, rest, sizeof(rest), MSG_WAITALL), ==, 8);
            type = ldl_be_p(head + 4);
            g_assert_cmpint(type, ==, before == VM_HIGH ? VM_LOW :
                            before == VM_LOW ? CARD :
                            before == CARD ? START : VM_HIGH);
            before = type;
            seq = 1000;
        } else {
            size_t len = ldl_be_p(head), hdr_len = lduw_be_p(head + 6);
            g_autofree uint8_t *buf = g_malloc(len);

            g_assert_cmpint(recv(fd, buf, len, MSG_WAITALL), ==, len);
            memcpy(&hdr, buf, sizeof(hdr));
            assert_frame(buf + hdr_len, len - hdr_len, seq, seq_len(seq));
            seq++;
        }
    }
    close(fd);
    close(listener);
    pair_stop(&p, NULL);
}

/* No peer has come until the source was told "completed"; then it gets all */
static void test_late_peer(const void *data)
{
    Setup s = setup_of(data);
    g_autofree char *path = NULL, *later = NULL;
    Pair p;

    s.paused = true;
    pair_init(&p, &s);
    path = p.m0;
    later = p.m0 = g_strdup_printf("%s-later", path);
    to_start(&p, "");
    p.m0 = g_steal_pointer(&path);
    from_start(&p);
    driver_start(&p.from);
    send_and_drain(&p.from, 0, 10);
    pair_migrate(&p);
    send_read(&p, 1000, 4000);
    migrate_continue(&p.from.e);
    wait_migration(&p.from.e, "completed");
    g_assert_cmpint(symlink(later, p.m0), ==, 0);
    wait_held(&p, 3000);
    vm_run(&p.to.e, true);
    pair_arrive(&p);
    collect(&p, &p.to, 3000);
    assert_got(&p, 0, 1000, 4000);
    unlink(later);
    pair_stop(&p, &p.to);
}


/* What is refused */

static void assert_refused(Env *e, const char *props, const char *message)
{
    g_autofree char *desc = error_desc(object_add(e, "filter-redirector", "f1",
                                                  props));

    g_assert_cmpstr(desc, ==, message);
}

static void assert_fixed(Env *e, const char *option, QObject *value)
{
    g_autofree char *desc =
        error_desc(qtest_qmp(e->qts, "{ 'execute': 'qom-set', 'arguments':"
                             " { 'path': '/objects/f1', 'property': %s,"
                             " 'value': %p } }", option, value));
    g_autofree char *message = g_strdup_printf("the '%s' of a filter cannot "
                                               "be changed", option);

    g_assert_cmpstr(desc, ==, message);
}

/* A filter stays what it was made to be */
static void assert_all_fixed(Env *e)
{
    static const char *const names[] = { "netdev", "indev", "outdev" };
    g_autoptr(QDict) before = NULL, after = NULL;

    before = qtest_qmp(e->qts, "{ 'execute': 'query-netfilter-stats' }");
    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        assert_fixed(e, names[i], QOBJECT(qstring_from_str("other")));
    }
    assert_fixed(e, "vnet_hdr_support", QOBJECT(qbool_from_bool(true)));
    after = qtest_qmp(e->qts, "{ 'execute': 'query-netfilter-stats' }");
    g_assert_true(qobject_is_equal(QOBJECT(before), QOBJECT(after)));
}

/* Chardevs that change what is sent */
static void assert_chardevs_refused(Env *e, const char *option)
{
    static const char *const kinds[] = { "mux", "telnet" };

    for (int i = 0; i < ARRAY_SIZE(kinds); i++) {
        g_autofree char *props =
            g_strdup_printf("netdev=n0,%s=%s0%s", option, kinds[i],
                            strcmp(option, "indev") ? ONLY_STOPPED : "");
        g_autofree char *message =
            g_strdup_printf("'%s': chardev '%s0' has %s=on, which changes what "
                            "is sent; give the filter a chardev without",
                            option, kinds[i], kinds[i]);

        assert_refused(e, props, message);
    }
}

#define CHARDEVS_REFUSED                                            \
    "-chardev socket,id=mux0,mux=on,host=127.0.0.1,port=0,"         \
    "server=on,wait=off "                                           \
    "-chardev socket,id=telnet0,telnet=on,host=127.0.0.1,port=0,"   \
    "server=on,wait=off "

static void test_errors(void)
{
    static const char message[] = "netdev 'n0' has filter-redirector 'f0' for "
        "the frames of a stopped VM already; for several destinations use one "
        "with '-chardev hub' as its outdev";
    static const char no_limit[] = "'hold_limit' must be at least 1 byte";
    Env e;

    env_start(&e, 1, CHARDEVS_REFUSED);
    assert_chardevs_refused(&e, "outdev");
    filter_add(&e, "f0", "netdev=n0,outdev=c0" ONLY_STOPPED);
    assert_refused(&e, "netdev=n0,outdev=c1" ONLY_STOPPED, message);
    assert_refused(&e, "netdev=n0,in_netdev=n0,outdev=c1" ONLY_STOPPED,
                   message);
    filter_del(&e, "f0");
    filter_add(&e, "f0", "netdev=n0,in_netdev=n0,outdev=c0" ONLY_STOPPED);
    assert_refused(&e, "netdev=n0,outdev=c1" ONLY_STOPPED, message);
    filter_del(&e, "f0");
    /* The other one is as good as the first */
    filter_add(&e, "f1", "netdev=n0,outdev=c1" ONLY_STOPPED);
    assert_all_fixed(&e);
    filter_del(&e, "f1");

    for (int i = 0; i < 2; i++) {
        g_autofree char *desc =
            error_desc(object_add(&e, "filter-redirector", "f1", i ?
                                  "hold_limit=0,netdev=n0,outdev=c1"
                                  ONLY_STOPPED :
                                  "netdev=n0,outdev=c1" ONLY_STOPPED
                                  ",hold_limit=0"));

        g_assert_true(g_str_has_prefix(desc, no_limit));
    }
    env_stop(&e);

    /* And for what arrives */
    env_init(&e);
    env_start_full(&e, 1, true, "none", "-incoming defer " CHARDEVS_REFUSED);
    assert_chardevs_refused(&e, "indev");
    filter_add(&e, "f0", "netdev=n0,indev=c0");
    assert_refused(&e, "netdev=n0,indev=c1", "netdev 'n0' has "
                   "filter-redirector 'f0' for the frames of its VM's source "
                   "already; use that one");
    assert_refused(&e, "netdev=n0,indev=c1,out_netdev=n0", "netdev 'n0' has "
                   "filter-redirector 'f0' for the frames of its VM's source "
                   "already; use that one");
    env_stop(&e);
}

#define UUID "-uuid 00000000-0000-4000-8000-00000000000"
#define IS "the peer is for VM 00000000-0000-4000-8000-00000000000"
#define HERE "; this side for VM 00000000-0000-4000-8000-000000000001, " \
    "MAC address 52:54:00:12:34:56: connection terminated"

static const Setup strangers[] = {
    { IS "2, MAC address 52:54:00:12:34:56" HERE,
      .vm = UUID "1", .other_vm = UUID "2" },
    { IS "1, MAC address 52:54:00:12:34:57" HERE,
      .vm = UUID "1", .other_card = ",mac=52:54:00:12:34:57" },
};

/*
 * The destination is that of another VM, or of another card: the source says so
 * once, though it tries again and again, and gets the right one when that comes
 */
static void test_stranger(const void *data)
{
    for (int i = 0; i < ARRAY_SIZE(strangers); i++) {
        const Setup *s = &strangers[i];
        int64_t end;
        Pair p;

        pair_init(&p, s);
        to_start(&p, "");
        from_start(&p);
        driver_start(&p.from);
        wait_warned_once(&p.from.e, p.stderr_to, s->name);
        /* It tries again ten times a second */
        end = g_get_monotonic_time() + 500 * 1000;
        while (g_get_monotonic_time() < end) {
            vm_answers(&p.from.e);
        }
        wait_warned_once(&p.from.e, p.stderr_to, s->name);
        vm_stop(&p.to);
        close(p.rarp);
        p.setup.other_vm = p.setup.other_card = NULL;
        to_start(&p, "");
        pair_save(&p, 1000, 1000 + MANY);
        migrate_continue(&p.from.e);
        pair_arrive(&p);
        collect(&p, &p.to, MANY);
        assert_got(&p, 0, 1000, 1000 + MANY);
        wait_warned_once(&p.from.e, p.stderr_to, s->name);
        pair_stop(&p, &p.to);
    }
}

/*
 * The host of a peer has lost its power.  Without traffic, and with frames that
 * are not acknowledged; the interface that leads to it is down.
 */
static void test_dead_peer(void)
{
    for (int i = 0; i < 2; i++) {
        g_autofree char *uri = g_strdup_printf("file:%s/file", tmpdir);
        g_autofree char *options = NULL;
        struct sockaddr_in addr = {
            .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
        };
        socklen_t len = sizeof(addr);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;
        Env e;

        g_assert_cmpint(bind(listener, (void *)&addr, len), ==, 0);
        g_assert_cmpint(listen(listener, 1), ==, 0);
        g_assert_cmpint(getsockname(listener, (void *)&addr, &len), ==, 0);
        options = g_strdup_printf("-chardev socket,id=t0,host=127.0.0.1,"
                                  "port=%d", ntohs(addr.sin_port));
        if_set_up("lo", true);
        env_start(&e, 1, options);
        fd = accept(listener, NULL, NULL);
        g_assert_cmpint(fd, >=, 0);
        filter_add(&e, "f0", "netdev=n0,outdev=t0,peer_timeout=1000"
                   ONLY_STOPPED);
        migrate_pause(&e);
        g_assert_true(chardev_is_connected(&e, "t0"));
        if_set_up("lo", false);
        if (i) {
            migrate_to_pause(&e, uri);
            host_send(&e.tap[0], 1, FRAME_LEN);
        }
        patience_begin();
        while (chardev_is_connected(&e, "t0")) {
            patience_check();
        }
        close(fd);
        close(listener);
        if (i) {
            migrate_cancel(&e);
            unlink(strchr(uri, ':') + 1);
        }
        env_stop(&e);
    }
}

/* Likewise the source; none of its frames reaches the guest */
static void test_stranger_source(const void *data)
{
    Setup s = { .vm = UUID "1" };
    uint8_t buf[4 * 16 + 8 + 100] = { 0 };
    Pair p;
    int fd;

    pair_init(&p, &s);
    to_start(&p, "");
    for (int i = 0; i < 2; i++) {
        fd = unix_connect(p.m0, &error_abort);
        put_control(buf, VM_HIGH, 0x4000);
        put_control(buf + 16, VM_LOW, 0x8000000000000002ull);
        put_control(buf + 32, CARD, 0x5254001234560000ull);
        put_control(buf + 48, START, 0);
        stl_be_p(buf + 64, 100);
        /* At once: it is closed when the first of it has been read */
        g_assert_cmpint(send(fd, buf, sizeof(buf), MSG_NOSIGNAL), ==,
                        sizeof(buf));
        wait_closed(fd);
        close(fd);
    }
    wait_warned_once(&p.to.e, p.stderr_to, IS "2, MAC address "
                     "52:54:00:12:34:56" HERE);
    g_assert_cmpuint(arrival_stat(&p, "read"), ==, 0);
    g_assert_cmpuint(filter_stat(&p.to.e, "inj0", "indev", "packets"), ==, 0);
    from_start(&p);
    driver_start(&p.from);
    pair_save(&p, 1000, 1000 + MANY);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    collect(&p, &p.to, MANY);
    assert_got(&p, 0, 1000, 1000 + MANY);
    pair_stop(&p, &p.to);
}

/* As much of a vhost-user backend as QEMU needs to be content at first */
static void *vhost_user_run(void *opaque)
{
    int fd = accept(GPOINTER_TO_INT(opaque), NULL, NULL);
    struct {
        uint32_t request, flags, size;
        uint8_t payload[4096];
    } QEMU_PACKED msg;

    while (recv(fd, &msg, 12, MSG_WAITALL) == 12) {
        g_assert_cmpint(msg.size, <=, sizeof(msg.payload));
        if (msg.size) {
            g_assert_cmpint(recv(fd, msg.payload, msg.size, MSG_WAITALL), ==,
                            msg.size);
        }
        /* GET_FEATURES: none but VIRTIO_F_VERSION_1 */
        if (msg.request == 1) {
            msg.flags = 1 | 1 << 2;
            msg.size = 8;
            stq_he_p(msg.payload, 1ull << 32);
            g_assert_cmpint(send(fd, &msg, 20, MSG_NOSIGNAL), ==, 20);
        }
    }
    close(fd);
    return NULL;
}

static void test_vhost_user(void)
{
    g_autofree char *path = g_strdup_printf("%s/u0", tmpdir);
    g_autofree char *options =
        g_strdup_printf("-chardev socket,id=u0,path=%s "
                        "-netdev vhost-user,id=v0,chardev=u0 -incoming defer",
                        path);
    int listener = unix_listen(path, &error_abort);
    GThread *thread = g_thread_new("backend", vhost_user_run,
                                   GINT_TO_POINTER(listener));
    Env e;

    env_init(&e);
    env_start_full(&e, 0, false, "none", options);
    for (int i = 0; i < 2; i++) {
        assert_refused(&e, i ? "netdev=v0,indev=c0" :
                       "netdev=v0,outdev=c0" ONLY_STOPPED,
                       "netdev 'v0' (vhost-user): the packets of a switchover "
                       "cannot be saved, as its vhost backend moves all "
                       "packets of the guest and QEMU has no queue to read");
    }
    env_stop(&e);
    g_thread_join(thread);
    close(listener);
    unlink(path);
}


/* Peers that do not read */

/* Many netdevs, and one deadline for all, in which QEMU answers */
static void test_deaf_peers(void)
{
    const int cards = 8;
    g_autoptr(GString) options = g_string_new("-name q,debug-threads=on");
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    int fd[8][2], host[8];
    int64_t begin, longest = 0, now;
    bool completed = false;
    Env e;

    for (int i = 0; i < cards; i++) {
        socket_pair(fd[i]);
        g_string_append_printf(options, " -netdev tap,id=t%d,ifname=qmany%d,"
                               "script=no,downscript=no "
                               "-netdev hubport,id=p%d,hubid=%d,netdev=t%d "
                               "-chardev socket,id=d%d,fd=%d "
                               "-object filter-redirector,id=f%d,netdev=t%d,"
                               "outdev=d%d" ONLY_STOPPED, i, i, i, i, i, i,
                               fd[i][1], i, i, i);
    }
    env_init(&e);
    env_start_full(&e, 0, false, "none", options->str);
    for (int i = 0; i < cards; i++) {
        g_autofree char *name = g_strdup_printf("qmany%d", i);

        close(fd[i][1]);
        if_set_up(name, true);
        host[i] = packet_socket(name, SOCK_RAW, 0);
    }
    migrate_pause(&e);
    migrate_to_pause(&e, uri);
    for (int i = 0; i < cards; i++) {
        uint8_t frame[1400];

        for (uint32_t seq = 0; seq < 900; seq++) {
            frame_fill(frame, seq, sizeof(frame));
            g_assert_cmpint(send(host[i], frame, sizeof(frame), 0), ==,
                            sizeof(frame));
        }
    }
    begin = g_get_monotonic_time();
    migrate_continue(&e);
    while (!completed) {
        int64_t asked = g_get_monotonic_time();
        QDict *resp = qtest_qmp_assert_success_ref(e.qts, "{ 'execute':"
                                                   " 'query-migrate' }");

        completed = !strcmp(qdict_get_str(resp, "status"), "completed");
        qobject_unref(resp);
        now = g_get_monotonic_time();
        longest = MAX(longest, now - asked);
        patience_check();
    }
    g_test_message("%d peers that do not read: completed after %" PRId64
                   " ms, QMP's longest silence %" PRId64 " ms", cards,
                   (now - begin) / 1000, longest / 1000);
    /* drain_timeout is 1 s: not one for each */
    g_assert_cmpint(now - begin, <, 4 * G_USEC_PER_SEC);
    g_assert_cmpint(longest, <, (now - begin) / 2);
    for (int i = 0; i < cards; i++) {
        close(fd[i][0]);
        close(host[i]);
    }
    env_stop(&e);
    unlink(strchr(uri, ':') + 1);
}

/* A destination that waits for 'cont' and keeps no more: no reason to wait */
static void test_drain_paused(const void *data)
{
    Setup s = { .paused = true, .source = ",drain_timeout=10000",
                .arrival = ",hold_limit=100000" };
    int64_t begin;
    Pair p;

    pair_start(&p, &s);
    pair_migrate(&p);
    send_read(&p, 1000, 6000);
    migrate_continue(&p.from.e);
    begin = g_get_monotonic_time();
    wait_migration(&p.from.e, "completed");
    g_test_message("completed after %" PRId64 " ms",
                   (g_get_monotonic_time() - begin) / 1000);
    g_assert_cmpint(g_get_monotonic_time() - begin, <, 5 * G_USEC_PER_SEC);
    wait_migration(&p.to.e, "completed");
    vm_run(&p.to.e, true);
    pair_arrive(&p);
    collect(&p, &p.to, 5000);
    assert_got(&p, 0, 1000, 6000);
    pair_stop(&p, &p.to);
}

/*
 * A neighbour's frames of 64 KB that are to be cut into segments of one byte,
 * for a peer that cannot do it itself: bounded in memory and in time
 */
static void test_gso_size_1(const void *data)
{
    const int n = 100, len = 60000;
    g_autofree uint8_t *buf = g_malloc0(VNET_HDR_LEN + len);
    g_autofree char *uri = g_strdup_printf("file:%s/migration", tmpdir);
    struct virtio_net_hdr *hdr = (void *)buf;
    uint8_t *frame = buf + VNET_HDR_LEN, *tcp = frame + ETH_HLEN + 20;
    int fd, on = 1;
    Env e;

    env_start(&e, 1, "");
    filter_add(&e, "f0", "netdev=n0,outdev=c0" ONLY_STOPPED);
    tap_set_offload(&e.tap[0], 1 | 2 | 4);
    migrate_pause(&e);
    migrate_to_pause(&e, uri);

    frame_fill(frame, 1, len);
    stw_be_p(frame + 2 * ETH_ALEN, ETH_P_IP);
    ip_header(frame + ETH_HLEN, IPPROTO_TCP, len - ETH_HLEN - 20);
    memset(tcp, 0, 20);
    tcp[12] = 5 << 4;
    stw_be_p(tcp + 16, ip_pseudo_sum(frame + ETH_HLEN));
    hdr->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    hdr->csum_start = cpu_to_le16(ETH_HLEN + 20);
    hdr->csum_offset = cpu_to_le16(16);
    hdr->gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
    hdr->gso_size = cpu_to_le16(1);
    hdr->hdr_len = cpu_to_le16(ETH_HLEN + 40);
    fd = packet_socket(e.tap[0].name, SOCK_RAW, 0);
    g_assert_cmpint(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on,
                               sizeof(on)), ==, 0);
    for (int i = 0; i < n; i++) {
        g_assert_cmpint(send(fd, buf, VNET_HDR_LEN + len, 0), ==,
                        VNET_HDR_LEN + len);
    }
    host_send(e.tap, 2, FRAME_LEN);
    patience_begin();
    /* All of them are in memory as they came */
    while (filter_stat(&e, "f0", "switchover", "read") < n + 1) {
        patience_check();
    }
    g_assert_cmpuint(filter_stat(&e, "f0", "switchover", "peak-size"), <,
                     n * (len + 100) + 1000);
    g_test_message("dropped as they cannot be cut: %" PRIu64,
                   filter_stat(&e, "f0", "dropped", "gso"));
    close(fd);
    env_stop(&e);
    unlink(strchr(uri, ':') + 1);
}


/* What is left behind */

static void test_life(const void *data)
{
    Setup s = setup_of(data);
    g_autofree char *uri = g_strdup_printf("file:%s/file", tmpdir);
    int fds = 0;
    Pair p;

    /* A file does not answer */
    s.no_return_path = true;
    pair_start(&p, &s);
    for (int i = 0; i < 50; i++) {
        wait_no_threads(&p.from);
        collect_begin(&p);
        migrate_to_pause(&p.from.e, uri);
        wait_reader(&p.from);
        send_range(&p.from, 1000, 1100);
        if (i % 2) {
            migrate_cancel(&p.from.e);
        } else {
            migrate_continue(&p.from.e);
            wait_migration(&p.from.e, "completed");
            vm_run(&p.from.e, true);
            qtest_qmp_eventwait(p.from.e.qts, "RESUME");
        }
        expect_given_back(&p, 1000, 1100);
        if (i == 5) {
            fds = count_fds(&p.from.e);
        }
    }
    wait_fds(&p.from.e, fds);
    g_assert_false(has_threads(&p.to));
    pair_stop(&p, &p.from);
    unlink(strchr(uri, ':') + 1);
}

/* The netdev is removed while its frames are saved; there is no filter */
static void test_removed(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    pair_start(&p, &s);
    pair_save(&p, 1000, 1000 + MANY);
    qtest_qmp_assert_success(p.from.e.qts, "{ 'execute': 'netdev_del',"
                             " 'arguments': { 'id': 'n0' } }");
    wait_no_threads(&p.from);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    wait_migration(&p.from.e, "completed");
    wait_migration(&p.to.e, "completed");
    /* Its link is down */
    vm_answers(&p.to.e);
    wait_no_threads(&p.to);
    pair_stop(&p, &p.to);
}

/*
 * The destination wants the frames by a chardev, and is not sent them: both
 * sides say so, and the migration does not wait
 */
static void test_refused(const void *data)
{
    Setup s = setup_of(data);
    Pair p;

    s.refused = true;
    pair_start(&p, &s);
    pair_save(&p, 1000, 1000 + MANY);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    wait_migration(&p.from.e, "completed");
    wait_migration(&p.to.e, "completed");
    wait_warned_once(&p.to.e, p.stderr_to, "are lost: netdev 'n0' has");
    g_assert_cmpuint(source_stat(&p, "acknowledged"), ==, 0);
    rarp_expect(p.rarp);

    /* As any VM goes on */
    send_range(&p.to, 0, MANY);
    ring_expect(&p.to, 0, MANY);
    wait_no_threads(&p.to);
    pair_stop(&p, &p.to);
}


/* Networks that send to both hosts, or to the other one early */

static void set_bandwidth(Guest *g, int64_t rate)
{
    qtest_qmp_assert_success(g->e.qts, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'max-bandwidth': %" PRId64
                             " } }", rate);
}

/* A migration begins, and the source goes on */
static void pair_begin(Pair *p)
{
    Setup s = p->setup;

    pair_start(p, &s);
    /* No empty pages, which go by the thousand; the driver does not get here */
    memset(p->from.ram + 12 * MiB, 0xa5, 4 * MiB);
    set_bandwidth(&p->from, 4096);
    collect_begin(p);
    migration_start(&p->from.e, p->uri);
    wait_reader(&p->to);
}

/*
 * What has been sent to the destination since then is old when the VM stops.
 * @recent frames more, from 1500 on, are not.  The guest must not take frames
 * at the source meanwhile: what it writes to its memory is not sent again.
 */
static void pair_stop_later(Pair *p, uint64_t taken, int recent)
{
    int64_t end;
    QDict *resp;

    patience_begin();
    while (if_tx_packets("qtap1") < taken) {
        patience_check();
    }
    end = g_get_monotonic_time() + 300 * 1000;
    while (g_get_monotonic_time() < end) {
        vm_answers(&p->to.e);
    }
    send_range(&p->to, 1500, 1500 + recent);
    resp = qtest_qmp_assert_success_ref(p->from.e.qts,
                                        "{ 'execute': 'query-status' }");
    g_assert_true(qdict_get_bool(resp, "running"));
    qobject_unref(resp);
    set_bandwidth(&p->from, 1 << 30);
    qtest_qmp_eventwait(p->from.e.qts, "STOP");
    wait_migration(&p->from.e, "pre-switchover");
}

static void pair_go_on(Pair *p)
{
    migrate_continue(&p->from.e);
    pair_arrive(p);
    collect_announced(p, 0);
}

static void send_both(Pair *p, uint32_t begin, uint32_t end)
{
    for (; begin < end; begin++) {
        send_range(&p->from, begin, begin + 1);
        send_range(&p->to, begin, begin + 1);
    }
}

static void network_end(Pair *p)
{
    assert_no_more(p, &p->to);
    wait_no_threads(&p->to);
    assert_no_more(p, &p->to);
    g_assert_cmpuint(pair_stat(p, &p->to, "dropped", "queue-full"), ==, 0);
    pair_stop(p, &p->to);
}

/* A migration that fails before the VM has stopped; its destination stays */
static void test_failed(const void *data)
{
    Pair p = { .setup = setup_of(data) };
    uint64_t taken;

    p.setup.stays = true;
    pair_begin(&p);
    taken = if_tx_packets("qtap1");
    send_range(&p.to, 1000, 1000 + MANY);
    patience_begin();
    while (if_tx_packets("qtap1") < taken + MANY) {
        patience_check();
    }
    migrate_cancel_send(&p.from.e);
    qobject_unref(qtest_qmp_receive(p.from.e.qts));
    wait_migration(&p.from.e, "cancelled");
    wait_no_threads(&p.to);
    wait_no_threads(&p.from);
    send_and_drain(&p.from, 2000, 2000 + MANY);
    pair_stop(&p, &p.from);
}

/* It floods throughout */
static void test_flooding(const void *data)
{
    Pair p = { .setup = setup_of(data) };
    uint64_t taken;

    pair_begin(&p);
    taken = if_tx_packets("qtap1");
    send_range(&p.to, 1000, 1000 + MANY);
    pair_stop_later(&p, taken + MANY, MANY);
    send_both(&p, 2000, 2000 + MANY);
    pair_go_on(&p);
    collect(&p, &p.to, MANY);
    assert_got(&p, 0, 2000, 2000 + MANY);
    /* As long as the source lives */
    send_both(&p, 3000, 3000 + MANY);
    collect(&p, &p.to, 2 * MANY);
    assert_got(&p, MANY, 3000, 3000 + MANY);
    network_end(&p);
}

/* It has flooded until it knew where the guest was */
static void test_unlearned(const void *data)
{
    Pair p = { .setup = setup_of(data) };
    uint64_t taken;

    pair_begin(&p);
    taken = if_tx_packets("qtap1");
    send_range(&p.to, 1000, 1000 + MANY);
    pair_stop_later(&p, taken + MANY, 0);
    send_range(&p.from, 2000, 2000 + MANY);
    pair_go_on(&p);
    send_range(&p.to, 3000, 3000 + MANY);
    collect(&p, &p.to, 2 * MANY);
    assert_got(&p, 0, 2000, 2000 + MANY);
    assert_got(&p, MANY, 3000, 3000 + MANY);
    network_end(&p);
}

/* It switches before the VM stops; the destination's queue is too short */
static void test_early_switch(const void *data)
{
    Pair p = { .setup = setup_of(data) };
    uint64_t taken;

    pair_begin(&p);
    taken = if_tx_packets("qtap1");
    for (int i = 0; i < 6; i++) {
        send_range(&p.to, 2000 + i * MANY, 2000 + (i + 1) * MANY);
        taken += MANY;
        patience_begin();
        while (if_tx_packets("qtap1") < taken) {
            patience_check();
        }
    }
    pair_stop_later(&p, taken, MANY);
    send_range(&p.to, 5000, 5000 + MANY);
    pair_go_on(&p);
    collect(&p, &p.to, 8 * MANY);
    assert_got(&p, 0, 2000, 2000 + 6 * MANY);
    assert_got(&p, 6 * MANY, 1500, 1500 + MANY);
    assert_got(&p, 7 * MANY, 5000, 5000 + MANY);
    network_end(&p);
}

/* And sends more than is kept: the newest frames, and the others are counted */
static void test_early_limit(const void *data)
{
    Pair p = { .setup = setup_of(data) };
    uint64_t taken;
    guint got_some;

    p.setup.arrival = ",hold_limit=100000";
    pair_begin(&p);
    taken = if_tx_packets("qtap1");
    for (int i = 0; i < 3; i++) {
        send_range(&p.to, 1000 + i * MANY, 1000 + (i + 1) * MANY);
        taken += MANY;
        patience_begin();
        while (if_tx_packets("qtap1") < taken) {
            patience_check();
        }
    }
    pair_stop_later(&p, taken, 0);
    migrate_continue(&p.from.e);
    pair_arrive(&p);
    wait_no_threads(&p.to);
    collect_some(&p, &p.to);
    got_some = p.got->len;
    g_assert_cmpuint(got_some, >, 100);
    g_assert_cmpuint(pair_stat(&p, &p.to, "dropped", "queue-full"), ==,
                     3 * MANY - got_some);
    assert_got(&p, 0, 1000 + 3 * MANY - got_some, 1000 + 3 * MANY);
    pair_stop(&p, &p.to);
}

/* It sends to both from the announcement on */
static void test_both_chassis(const void *data)
{
    Pair p = { .setup = setup_of(data) };

    pair_begin(&p);
    pair_stop_later(&p, 0, 0);
    send_range(&p.from, 2000, 2000 + MANY);
    pair_go_on(&p);
    send_both(&p, 3000, 3000 + MANY);
    collect(&p, &p.to, 2 * MANY);
    assert_got(&p, 0, 2000, 2000 + MANY);
    assert_got(&p, MANY, 3000, 3000 + MANY);
    network_end(&p);
}

/* It sends to one host, and a sender repeats its frames */
static void test_repeated(const void *data)
{
    Pair p = { .setup = setup_of(data) };

    pair_begin(&p);
    pair_stop_later(&p, 0, 0);
    send_range(&p.from, 2000, 2010);
    send_range(&p.from, 2000, 2010);
    pair_go_on(&p);
    send_range(&p.to, 2000, 2010);
    collect(&p, &p.to, 30);
    for (int i = 0; i < 30; i += 10) {
        assert_got(&p, i, 2000, 2010);
    }
    network_end(&p);
}


/* No waiting for the lock of the network's configuration */

static void *need_rtnl(void *done)
{
    if_set_queue_len("qmany0", 1000);
    qatomic_set((bool *)done, true);
    return NULL;
}

/* Does another thread of the test wait in the kernel for a lock? */
static bool waits_for_lock(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_strdup_printf("/proc/self/task/%s/stat",
                                                name);
        g_autofree char *stat = NULL;
        const char *end;

        if (g_file_get_contents(path, &stat, NULL, NULL)) {
            end = strrchr(stat, ')');
            if (end && end[1] && end[2] == 'D') {
                return true;
            }
        }
    }
    return false;
}

/*
 * Another process deletes interfaces, and a thread waits for the lock that it
 * holds.  Returns whether a VM has stopped for its migration before that thread
 * got it.
 */
static bool stop_overtakes(Env *e)
{
    const char *argv[] = { "ip", "link", "del", "group", "5", NULL };
    g_autofree char *uri = g_strdup_printf("file:%s/file", tmpdir);
    bool waited, overtaken, done = false;
    GThread *thread;
    GPid pid;
    int status;

    g_assert_true(g_spawn_async(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH |
                                G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid,
                                NULL));
    /* It has begun when one is gone */
    patience_begin();
    while (if_nametoindex("qv0a")) {
        patience_check();
    }
    thread = g_thread_new("rtnl", need_rtnl, &done);
    while (!(waited = waits_for_lock()) && !qatomic_read(&done)) {
        patience_check();
    }
    migrate_to_pause(e, uri);
    overtaken = waited && !qatomic_read(&done);
    g_thread_join(thread);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_spawn_close_pid(pid);
    migrate_cancel(e);
    unlink(strchr(uri, ':') + 1);
    return overtaken;
}

/* Who needs the lock gets it in turn: to overtake once shows that none does */
static void test_rtnl(void)
{
    const int cards = 8, turns = 20;
    g_autoptr(GString) options = g_string_new("-name q,debug-threads=on");
    g_autoptr(GString) links = g_string_new("");
    g_autofree char *batch = g_strdup_printf("%s/links", tmpdir);
    g_autofree char *add = g_strdup_printf("ip -batch %s", batch);
    bool possible = true, overtaken = false;
    Env e;

    for (int i = 0; i < 200; i++) {
        g_string_append_printf(links, "link add qv%da group 5 type veth "
                               "peer name qv%db group 5\n", i, i);
    }
    g_assert_true(g_file_set_contents(batch, links->str, -1, NULL));
    for (int i = 0; i < cards; i++) {
        g_string_append_printf(options, " -netdev tap,id=t%d,ifname=qmany%d,"
                               "script=no,downscript=no "
                               "-netdev hubport,id=p%d,hubid=%d,netdev=t%d "
                               "-chardev null,id=d%d "
                               "-object filter-redirector,id=f%d,netdev=t%d,"
                               "outdev=d%d" ONLY_STOPPED,
                               i, i, i, i, i, i, i, i, i);
    }
    env_init(&e);
    env_start_full(&e, 0, false, "none", options->str);
    migrate_pause(&e);
    for (int i = 0; i < turns && possible && !overtaken; i++) {
        possible = host_command(add);
        overtaken = possible && stop_overtakes(&e);
    }
    env_stop(&e);
    unlink(batch);
    if (!possible) {
        g_test_skip("no ip(8), or no veth");
        return;
    }
    g_assert_true(overtaken);
}


/* The tests */

/* Why there can be no such VM, or no vhost for it; or NULL if there can */
static const char *no_vm, *no_vhost;

static void test_skip_vm(const void *data)
{
    g_test_skip(no_vm);
}

static void test_skip_vhost(const void *data)
{
    g_test_skip(no_vhost);
}

/* Without vhost and, where there is one, with it; each has its own Setup */
static void add_pair_test(const char *path, void (*func)(const void *),
                          const Setup *setup)
{
    for (int vhost = 0; vhost < (no_vhost ? 1 : 2); vhost++) {
        Setup *s = g_new0(Setup, 1);
        g_autofree char *full = NULL;

        if (setup) {
            *s = *setup;
        }
        s->vhost = vhost;
        full = g_strdup_printf("/switchover/%s%s%s%s%s",
                               s->no_filter ? "no-filter/" : "", path,
                               s->name ? "/" : "", s->name ?: "",
                               vhost ? "/vhost" : "");
        qtest_add_data_func_full(full, s, no_vm ? test_skip_vm : func, g_free);
    }
}

static void add_paused_test(const Paused *t)
{
    for (int vhost = 0; vhost < (no_vhost ? 1 : 2); vhost++) {
        Paused *copy = g_new0(Paused, 1);
        g_autofree char *full = g_strdup_printf("/switchover/paused/%s%s",
                                                t->name,
                                                vhost ? "/vhost" : "");

        *copy = *t;
        copy->vhost = vhost;
        qtest_add_data_func_full(full, copy, no_vm ? test_skip_vm : test_paused,
                                 g_free);
    }
}

int main(int argc, char **argv)
{
    static const Setup no_return_path = {
        "no-return-path", .no_return_path = true
    };
    static const Setup no_filter = { .no_filter = true };
    static const Setup no_filter_paused = {
        "paused", .no_filter = true, .paused = true
    };
    int ret;

    g_test_init(&argc, &argv, NULL);

    tmpdir = g_dir_make_tmp("switchover-test.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);
    host_init();
    suite = "/switchover";
    no_vm = no_host;
    if (!no_vm && (!qtest_has_machine("pc") ||
                   !qtest_has_device("virtio-net-pci"))) {
        no_vm = "no virtio-net-pci";
    }
    no_vhost = why_no_vhost();

    if (no_vhost) {
        qtest_add_data_func("/switchover/vhost", NULL, test_skip_vhost);
    }
    for (int i = 0; i < ARRAY_SIZE(completes); i++) {
        add_pair_test("complete", test_complete, &completes[i]);
    }
    add_pair_test("complete", test_complete, &no_filter);
    add_pair_test("complete", test_complete, &no_filter_paused);
    add_pair_test("announced", test_announced, NULL);
    add_pair_test("announced", test_announced, &no_filter);
    for (int i = 0; i < ARRAY_SIZE(loads); i++) {
        add_pair_test("load", test_load, &loads[i]);
    }
    add_pair_test("cancel", test_cancel, NULL);
    add_pair_test("cancel", test_cancel, &no_filter);
    add_pair_test("killed/before", test_killed_before, NULL);
    add_pair_test("killed/before", test_killed_before, &no_filter);
    add_pair_test("killed/during", test_killed_during, NULL);
    add_pair_test("killed/during", test_killed_during, &no_filter);
    add_pair_test("killed/during", test_killed_during, &no_return_path);
    add_pair_test("killed/after", test_killed_after, NULL);
    add_pair_test("killed/after", test_killed_after, &no_filter);
    add_pair_test("killed/after", test_killed_after, &no_return_path);
    add_pair_test("killed/running", test_killed_running, NULL);
    add_pair_test("killed/running", test_killed_running, &no_filter);
    add_pair_test("cannot-load", test_cannot_load, NULL);
    add_pair_test("cannot-load", test_cannot_load, &no_filter);
    for (int i = 0; i < ARRAY_SIZE(pauses); i++) {
        add_paused_test(&pauses[i]);
    }
    add_pair_test("guest/no-driver", test_guest_no_driver, NULL);
    add_pair_test("guest/no-driver", test_guest_no_driver, &no_filter);
    add_pair_test("guest/ring-full", test_guest_ring_full, NULL);
    add_pair_test("guest/ring-full", test_guest_ring_full, &no_filter);
    add_pair_test("guest/slow", test_guest_slow, NULL);
    add_pair_test("guest/slow", test_guest_slow, &no_filter);
    add_pair_test("second/destination", test_second_destination, NULL);
    add_pair_test("second/destination", test_second_destination, &no_filter);
    add_pair_test("second/peer", test_second_peer, NULL);
    add_pair_test("second/late", test_late_peer, NULL);
    add_pair_test("drain-paused", test_drain_paused, NULL);
    add_pair_test("failed", test_failed, NULL);
    add_pair_test("failed", test_failed, &no_filter);
    add_pair_test("network/flooding", test_flooding, NULL);
    add_pair_test("network/flooding", test_flooding, &no_filter);
    add_pair_test("network/unlearned", test_unlearned, NULL);
    add_pair_test("network/unlearned", test_unlearned, &no_filter);
    add_pair_test("network/early-switch", test_early_switch, NULL);
    add_pair_test("network/early-switch", test_early_switch, &no_filter);
    add_pair_test("network/early-limit", test_early_limit, NULL);
    add_pair_test("network/both-chassis", test_both_chassis, NULL);
    add_pair_test("network/both-chassis", test_both_chassis, &no_filter);
    add_pair_test("network/repeated", test_repeated, NULL);
    add_pair_test("network/repeated", test_repeated, &no_filter);
    add_pair_test("stranger/destination", test_stranger, NULL);
    add_pair_test("stranger/source", test_stranger_source, NULL);
    add_pair_test("life", test_life, NULL);
    add_pair_test("removed", test_removed, &no_filter);
    add_pair_test("refused", test_refused, &no_filter);
    add_host_func("dead-peer", test_dead_peer);
    add_host_func("errors", test_errors);
    add_host_func("vhost-user", test_vhost_user);
    add_host_func("deaf-peers", test_deaf_peers);
    add_host_variant("gso-size-1", "plain", test_gso_size_1, NULL);
    add_host_func("rtnl", test_rtnl);

    ret = g_test_run();

    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
