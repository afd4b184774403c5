/*
 * QTest testcase for migrations to and from a QEMU without switchover-packets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Every migration saves the packets of the VM by its own connection, if both
 * sides can and may.  If not, it is to be as if neither could.
 *
 *   as-stock  to and from another QEMU, without this feature, older or newer
 *             (QTEST_QEMU_BINARY_PEER), or one that is told not to save: what
 *             comes to the source's host while the VM is stopped is lost; what
 *             comes to the destination's is there when the VM runs; there is
 *             no message, no event, no report
 *   ping-pong a VM that goes from one to the other and back, many times
 *   proxy     both save, and all that connects them is a Unix socket of the
 *             test, which copies what comes
 *   late      both save, and the destination's answer comes late
 *   at-once   two VMs migrate between the same hosts at the same time, and each
 *             gets its own packets
 *
 * In a build without AF_PACKET each migration is as-stock, although the
 * capability is there, and on.
 *
 * Each VM has a TAP and a virtio-net-pci, whose driver is the test
 * (af-packet-guest.h):
 *
 *   host -> qtap0 -> source       -> rings of the source
 *   host -> qtap1 -> destination  -> rings of the destination
 *
 * After the migration the same driver goes on with the destination's memory.
 * That of a postcopy must not be looked at before it is complete.
 *
 * Needs root; what needs the other QEMU is skipped without.  For postcopy
 * /dev/shm is to be a tmpfs.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "af-packet-guest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qapi/error.h"

/* Memory that is not zero, so that there is something to do */
#define RAM_SIZE (8 * MiB)
#define RAM_BYTE 0x5a

/* Direct frames have numbers from here on */
#define DIRECT 1000000

/* More than a ring holds, less than the queue of a TAP */
#define MANY 300

/* A ring has them all, with some direct ones, while it is not read */
#define FEW 100

/* Migrations of one VM */
#define ROUNDS 20

typedef struct Mode {
    const char *name;
    const char *caps[2];        /* of both */
    bool tls;
} Mode;

static const Mode modes[] = {
    { "no-return-path" },
    { "return-path", { "return-path" } },
    { "switchover-ack", { "return-path", "switchover-ack" } },
    { "multifd", { "return-path", "multifd" } },
    { "tls", { "return-path" }, .tls = true },
    { "postcopy", { "postcopy-ram" } },
    { "preempt", { "postcopy-ram", "postcopy-preempt" } },
    { "postcopy-tls", { "postcopy-ram" }, .tls = true },
};

#define RETURN_PATH (&modes[1])

static bool is_postcopy(const Mode *m)
{
    return m->caps[0] && g_str_equal(m->caps[0], "postcopy-ram");
}

/* A migration between two of this QEMU saves packets */
static bool saves_packets(const Mode *m)
{
#ifdef CONFIG_AF_PACKET
    return m->caps[0];
#else
    return false;
#endif
}


/* Two hosts */

/* What a QEMU is like that does not save packets, or does */
typedef enum Kind {
    SAVES,
    OFF,                        /* switchover-packets is off */
    STOCK,                      /* the other binary */
} Kind;

typedef struct Case {
    const Mode *mode;
    Kind from, to;
} Case;

typedef struct Vm {
    Guest g;
    bool saved;                 /* packets of a migration from or to it */
    char *said;                 /* path of what it writes to stderr */
} Vm;

/* That to save is its default */
static void assert_capability(Vm *vm)
{
    QDict *resp = qtest_qmp(vm->g.e.qts, "{ 'execute':"
                            " 'query-migrate-capabilities' }");
    bool found = false;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *cap = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(cap, "capability"),
                        "switchover-packets")) {
            g_assert_true(qdict_get_bool(cap, "state"));
            found = true;
        }
    }
    g_assert_true(found);
    qobject_unref(resp);
}

static void vm_start(Vm *vm, Kind kind, const char *ifname,
                     const char *options)
{
    g_autofree char *all = NULL;

    vm->saved = false;
    vm->said = g_strdup_printf("%s/stderr-%s", tmpdir, ifname);
    all = g_strdup_printf("%s 2>>%s", options, vm->said);
    qemu_binary_var = kind == STOCK ? QEMU_PEER : NULL;
    guest_vm_start(&vm->g, ifname, 1, false, "", all);
    qemu_binary_var = NULL;
    /* What it has said about its options */
    g_assert_cmpint(truncate(vm->said, 0), ==, 0);
    if (kind == OFF) {
        qtest_qmp_assert_success(vm->g.e.qts, "{ 'execute':"
            " 'migrate-set-capabilities', 'arguments': { 'capabilities': ["
            " { 'capability': 'switchover-packets', 'state': false } ] } }");
    } else if (kind == SAVES) {
        assert_capability(vm);
    }
}

/* One whose driver is the test, and which has got frames before */
static void from_start(Vm *vm, Kind kind, const char *ifname)
{
    vm_start(vm, kind, ifname, "-name from");
    driver_start(&vm->g);
    send_and_drain(&vm->g, 0, 10);
}

static void to_start(Vm *vm, Kind kind, const char *ifname)
{
    vm_start(vm, kind, ifname, "-name to -incoming defer");
}

/* It has said nothing, but what ended it, unless it has saved packets */
static void vm_forget(Vm *vm)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    g_assert_true(g_file_get_contents(vm->said, &text, NULL, NULL));
    lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; !vm->saved && *line; line++) {
        if (!strstr(*line, ": terminating on signal ")) {
            g_assert_cmpstr(*line, ==, "");
        }
    }
    unlink(vm->said);
    g_free(vm->said);
}

/* One without the driver, and one with it */
static void vm_stop(Vm *vm)
{
    guest_vm_stop(&vm->g);
    vm_forget(vm);
}

static void vm_stop_driver(Vm *vm)
{
    guest_stop(&vm->g);
    vm_forget(vm);
}

static QDict *query(Vm *vm, const char *command)
{
    return qtest_qmp_assert_success_ref(vm->g.e.qts, "{ 'execute': %s }",
                                        command);
}

static void assert_runs(Vm *vm)
{
    QDict *resp = query(vm, "query-status");

    g_assert_cmpstr(qdict_get_str(resp, "status"), ==, "running");
    qobject_unref(resp);
}

static void assert_no_more(Vm *vm)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;

    vm_answers(&vm->g.e);
    g_assert_false(ring_poll(&vm->g, 0, frame, &hdr));
}


/* Migrations */

static char *uri_of(const char *name)
{
    return g_strdup_printf("unix:%s/%s", tmpdir, name);
}

static void uri_free(char *uri)
{
    unlink(strchr(uri, ':') + 1);
    g_free(uri);
}

/* QEMU reads it when there is a connection */
static void keys_write(void)
{
    g_autofree char *path = g_strdup_printf("%s/keys.psk", tmpdir);

    g_assert_true(g_file_set_contents(path, "qemu:009d5638c40fde0c\n", -1,
                                      NULL));
}

static void keys_remove(void)
{
    g_autofree char *path = g_strdup_printf("%s/keys.psk", tmpdir);

    unlink(path);
}

/* False, and the test is skipped, if this QEMU has no TLS */
static bool set_tls(Vm *vm, const char *props)
{
    g_autofree char *all = g_strdup_printf("dir=%s,%s", tmpdir, props);
    QDict *resp = object_add(&vm->g.e, "tls-creds-psk", "tls0", all);

    if (qdict_haskey(resp, "error")) {
        g_autofree char *desc = error_desc(resp);

        g_test_skip(desc);
        return false;
    }
    qobject_unref(resp);
    qtest_qmp_assert_success(vm->g.e.qts, "{ 'execute':"
                             " 'migrate-set-parameters', 'arguments':"
                             " { 'tls-creds': 'tls0' } }");
    return true;
}

/* False, and the test is skipped, if one of the two cannot do that */
static bool can_migrate(const Mode *m, Vm *from, Vm *to)
{
    if (is_postcopy(m) && (!migrate_can_postcopy(&from->g.e) ||
                           !migrate_can_postcopy(&to->g.e))) {
        return false;
    }
    if (m->tls && (!set_tls(from, "endpoint=client,username=qemu") ||
                   !set_tls(to, "endpoint=server"))) {
        return false;
    }
    for (int i = 0; i < ARRAY_SIZE(m->caps) && m->caps[i]; i++) {
        migrate_capability(&from->g.e, m->caps[i]);
        migrate_capability(&to->g.e, m->caps[i]);
    }
    return true;
}

/* The destination is at @uri; @way is where the source connects to */
static void migrate_start(const Mode *m, Vm *from, Vm *to, const char *uri,
                          const char *way)
{
    Env *e = &from->g.e;

    qtest_qmp_assert_success(to->g.e.qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    migrate_pause(e);
    if (is_postcopy(m)) {
        /* It does not get done before postcopy begins */
        qtest_qmp_assert_success(e->qts, "{ 'execute':"
            " 'migrate-set-parameters', 'arguments':"
            " { 'max-bandwidth': 65536 } }");
    }
    migration_start(e, way);
    if (is_postcopy(m)) {
        wait_migration(e, "active");
        qtest_qmp_assert_success(e->qts, "{ 'execute':"
                                 " 'migrate-start-postcopy' }");
    }
}

/* Up to the moment in which both VMs are stopped */
static void migrate_stop(Vm *from)
{
    wait_migration(&from->g.e, "pre-switchover");
    qtest_qmp_eventwait(from->g.e.qts, "STOP");
}

static void migrate_begin(const Mode *m, Vm *from, Vm *to, const char *uri,
                          const char *way)
{
    migrate_start(m, from, to, uri, way);
    migrate_stop(from);
}

/* The VM runs at the destination, with the driver */
static void migrate_arrive(Vm *from, Vm *to)
{
    wait_migration(&to->g.e, "completed");
    qtest_qmp_eventwait(to->g.e.qts, "RESUME");
    guest_move(&from->g, &to->g);
}

/* And on, until then */
static void migrate_end(Vm *from, Vm *to)
{
    migrate_continue(&from->g.e);
    migrate_arrive(from, to);
}

static uint64_t memory_fill(Vm *vm)
{
    uint64_t addr = guest_alloc(&vm->g.alloc, RAM_SIZE);

    memset(vm->g.ram + addr, RAM_BYTE, RAM_SIZE);
    return addr;
}

/* All memory has been sent, and yet the VM does not stop */
static void assert_waits(Vm *vm)
{
    int times = 0;

    patience_begin();
    while (times < 100) {
        QDict *resp = query(vm, "query-migrate");
        QDict *ram = qdict_get_qdict(resp, "ram");

        g_assert_cmpstr(qdict_get_try_str(resp, "status"), !=,
                        "pre-switchover");
        times += ram && qdict_get_int(ram, "remaining") == 0;
        qobject_unref(resp);
        patience_check();
    }
}

/* It has been a migration as @m says, and the memory at @addr is there */
static void assert_migrated(const Mode *m, Vm *from, Vm *to, uint64_t addr)
{
    QDict *resp = query(from, "query-migrate");
    QDict *ram = qdict_get_qdict(resp, "ram");

    g_assert_cmpint(qdict_get_int(ram, "multifd-bytes") >= RAM_SIZE, ==,
                    g_str_equal(m->name, "multifd"));
    g_assert_cmpint(qdict_get_int(ram, "postcopy-bytes") > 0, ==,
                    is_postcopy(m));
    qobject_unref(resp);
    for (uint64_t i = 0; i < RAM_SIZE; i++) {
        g_assert_cmphex(to->g.ram[addr + i], ==, RAM_BYTE);
    }
    assert_runs(to);
}


/* Migrations that save nothing */

/* In no migration from or to it */
static void assert_saved_nothing(Vm *vm)
{
    QDict *resp = query(vm, "query-migrate");

    g_assert_false(qdict_haskey(resp, "packets"));
    qobject_unref(resp);
    g_assert_null(qtest_qmp_event_ref(vm->g.e.qts, "MIGRATION_PACKETS"));
}

/*
 * QEMU that waits for a VM takes one frame, when it does not know yet how long
 * the guest's headers are: the guest gets something else
 */
static void expect_direct(Vm *vm, uint32_t begin, uint32_t end)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    struct virtio_net_hdr_mrg_rxbuf hdr;

    ring_recv(&vm->g, frame, &hdr);
    ring_expect(&vm->g, begin + 1, end);
}

static void test_as_stock(const void *data)
{
    const Case *c = data;
    const Mode *m = c->mode;
    char *uri = uri_of("migration");
    uint64_t taken, addr;
    Vm from, to;

    from_start(&from, c->from, "qtap0");
    to_start(&to, c->to, "qtap1");
    if (!can_migrate(m, &from, &to)) {
        vm_stop_driver(&from);
        vm_stop(&to);
        uri_free(uri);
        return;
    }
    addr = memory_fill(&from);
    migrate_begin(m, &from, &to, uri, uri);
    taken = if_tx_packets("qtap0");
    send_range(&from.g, 100, 100 + FEW);
    send_range(&to.g, DIRECT, DIRECT + FEW);
    migrate_end(&from, &to);

    expect_direct(&to, DIRECT, DIRECT + FEW);
    wait_migration(&from.g.e, "completed");
    assert_migrated(m, &from, &to, addr);
    send_range(&from.g, 100 + FEW, 100 + 2 * FEW);
    send_and_drain(&to.g, DIRECT + FEW, DIRECT + 2 * FEW);
    guest_send(&to.g, DIRECT);
    assert_no_more(&to);
    /* A stopped QEMU takes a frame until it sees that it is not taken */
    g_assert_cmpuint(if_tx_packets("qtap0") - taken, <=, 1);
    assert_saved_nothing(&from);
    assert_saved_nothing(&to);
    vm_stop(&from);
    vm_stop_driver(&to);
    uri_free(uri);
}


/* A VM that goes to and fro */

/* The VM is in a QEMU of each of @kinds in turn */
static void ping_pong(const Kind *kinds, int n_kinds)
{
    static const char *const names[] = { "qtap0", "qtap1" };
    char *uri = uri_of("migration");
    uint32_t n = 100;
    Vm vm[2];

    from_start(&vm[0], kinds[0], names[0]);
    for (int i = 1; i <= ROUNDS; i++) {
        Vm *from = &vm[(i - 1) % 2], *to = &vm[i % 2];
        bool saves = saves_packets(RETURN_PATH) &&
                     kinds[(i - 1) % n_kinds] == SAVES &&
                     kinds[i % n_kinds] == SAVES;

        to_start(to, kinds[i % n_kinds], names[i % 2]);
        g_assert_true(can_migrate(RETURN_PATH, from, to));
        migrate_begin(RETURN_PATH, from, to, uri, uri);
        send_range(&from->g, n, n + FEW);
        send_range(&to->g, DIRECT + n, DIRECT + n + FEW);
        migrate_end(from, to);
        if (saves) {
            from->saved = to->saved = true;
            ring_expect(&to->g, n, n + FEW);
            ring_expect(&to->g, DIRECT + n, DIRECT + n + FEW);
        } else {
            expect_direct(to, DIRECT + n, DIRECT + n + FEW);
        }
        n += FEW;
        wait_migration(&from->g.e, "completed");
        send_and_drain(&to->g, n, n + MANY);
        n += MANY;
        guest_send(&to->g, n);
        assert_no_more(to);
        assert_runs(to);
        if (!from->saved) {
            assert_saved_nothing(from);
        }
        if (!saves) {
            assert_saved_nothing(to);
        }
        vm_stop(from);
    }
    vm_stop_driver(&vm[ROUNDS % 2]);
    uri_free(uri);
}

static void test_two(const void *data)
{
    static const Kind kinds[] = { SAVES, STOCK };

    ping_pong(kinds, ARRAY_SIZE(kinds));
}

/* What one of these has saved, or what it was sent, is not for a third one */
static void test_three(const void *data)
{
    static const Kind kinds[] = { SAVES, SAVES, STOCK };

    ping_pong(kinds, ARRAY_SIZE(kinds));
}


/* By way of a Unix socket that is all there is between the two hosts */

/* One direction of a connection */
typedef struct Copy {
    GThread *thread;
    int from, to;
    GMutex *gate;               /* NULL: always open */
} Copy;

typedef struct Proxy {
    GThread *thread;
    int listener;
    const char *path;           /* where connections lead to */
    GPtrArray *copies;          /* of all connections, two of each */
    GMutex gate;                /* locked: nothing to the source passes */
} Proxy;

/* Until there is an end, which is passed on */
static void *copy_run(void *opaque)
{
    g_autofree char *buf = g_malloc(64 * KiB);
    Copy *c = opaque;
    ssize_t n, sent = 1;

    if (c->gate) {
        g_mutex_lock(c->gate);
        g_mutex_unlock(c->gate);
    }
    while (sent > 0 && (n = RETRY_ON_EINTR(read(c->from, buf, 64 * KiB))) > 0) {
        for (ssize_t at = 0; at < n && sent > 0; at += sent) {
            sent = RETRY_ON_EINTR(send(c->to, buf + at, n - at, MSG_NOSIGNAL));
        }
    }
    shutdown(c->from, SHUT_RD);
    shutdown(c->to, SHUT_WR);
    return NULL;
}

static void proxy_copy(Proxy *p, int from, int to, GMutex *gate)
{
    Copy *c = g_new0(Copy, 1);

    c->from = from;
    c->to = to;
    c->gate = gate;
    c->thread = g_thread_new("copy", copy_run, c);
    g_ptr_array_add(p->copies, c);
}

static void *proxy_run(void *opaque)
{
    Proxy *p = opaque;
    int a, b;

    while ((a = qemu_accept(p->listener, NULL, NULL)) >= 0) {
        b = unix_connect(p->path, &error_abort);
        proxy_copy(p, a, b, NULL);
        proxy_copy(p, b, a, &p->gate);
    }
    return NULL;
}

static void proxy_start(Proxy *p, const char *way, const char *uri)
{
    p->path = strchr(uri, ':') + 1;
    p->copies = g_ptr_array_new();
    g_mutex_init(&p->gate);
    p->listener = unix_listen(strchr(way, ':') + 1, &error_abort);
    p->thread = g_thread_new("proxy", proxy_run, p);
}

/* Both ends have closed all connections */
static void proxy_stop(Proxy *p)
{
    shutdown(p->listener, SHUT_RDWR);
    g_thread_join(p->thread);
    close(p->listener);
    for (int i = 0; i < p->copies->len; i++) {
        Copy *c = g_ptr_array_index(p->copies, i);

        g_thread_join(c->thread);
    }
    for (int i = 0; i < p->copies->len; i++) {
        Copy *c = g_ptr_array_index(p->copies, i);

        close(c->from);
        g_free(c);
    }
    g_ptr_array_unref(p->copies);
    g_mutex_clear(&p->gate);
}

static void test_proxy(const void *data)
{
    const Case *c = data;
    const Mode *m = c->mode;
    const uint32_t many = is_postcopy(m) ? FEW : MANY;
    char *uri = uri_of("migration");
    char *way = uri_of("proxy");
    uint32_t n = 100;
    uint64_t addr;
    Vm from, to;
    Proxy p;

    proxy_start(&p, way, uri);
    from_start(&from, c->from, "qtap0");
    to_start(&to, c->to, "qtap1");
    if (!can_migrate(m, &from, &to)) {
        vm_stop_driver(&from);
        vm_stop(&to);
        goto out;
    }
    addr = memory_fill(&from);
    migrate_begin(m, &from, &to, uri, way);
    from.saved = to.saved = true;
    send_range(&from.g, n, n + many);
    send_range(&to.g, DIRECT, DIRECT + FEW);
    migrate_end(&from, &to);

    /* All of them, before direct ones */
    ring_expect(&to.g, n, n + many);
    ring_expect(&to.g, DIRECT, DIRECT + FEW);
    n += many;

    /* Until all of the network knows, frames still come to the source */
    send_range(&from.g, n, n + MANY);
    ring_expect(&to.g, n, n + MANY);
    n += MANY;
    wait_migration(&from.g.e, "completed");
    assert_migrated(m, &from, &to, addr);
    send_range(&from.g, n, n + MANY);
    ring_expect(&to.g, n, n + MANY);
    send_and_drain(&to.g, DIRECT + FEW, DIRECT + 2 * FEW);
    assert_no_more(&to);
    vm_stop(&from);
    vm_stop_driver(&to);

out:
    proxy_stop(&p);
    uri_free(way);
    uri_free(uri);
}

/*
 * The source knows late that the destination takes packets.  There is nothing
 * else that keeps a VM with little memory from its end.
 */
static void test_late(const void *data)
{
    const Case *c = data;
    char *uri = uri_of("migration");
    char *way = uri_of("proxy");
    Vm from, to;
    Proxy p;

    proxy_start(&p, way, uri);
    from_start(&from, c->from, "qtap0");
    to_start(&to, c->to, "qtap1");
    g_assert_true(can_migrate(c->mode, &from, &to));
    from.saved = to.saved = true;
    g_mutex_lock(&p.gate);
    migrate_start(c->mode, &from, &to, uri, way);
    assert_waits(&from);
    g_mutex_unlock(&p.gate);
    migrate_stop(&from);
    send_range(&from.g, 100, 100 + FEW);
    send_range(&to.g, DIRECT, DIRECT + FEW);
    migrate_end(&from, &to);
    ring_expect(&to.g, 100, 100 + FEW);
    ring_expect(&to.g, DIRECT, DIRECT + FEW);
    wait_migration(&from.g.e, "completed");
    assert_no_more(&to);
    vm_stop(&from);
    vm_stop_driver(&to);
    proxy_stop(&p);
    uri_free(way);
    uri_free(uri);
}


/* Two VMs at the same time */

/* The frames of one have numbers from here on, those of the other from 0 on */
#define OTHER (2 * DIRECT)

/*
 * Both are stopped at the same time, and get frames in turns.  All that is the
 * same in both has the same name; only the migrations' addresses differ.
 */
static void test_at_once(const void *data)
{
    static const char *const from_names[] = { "qtap0", "qtap2" };
    static const char *const to_names[] = { "qtap1", "qtap3" };
    const Case *c = data;
    const Mode *m = c->mode;
    char *uri[] = { uri_of("migration"), uri_of("other") };
    bool can = true;
    uint64_t addr[2];
    Vm from[2], to[2];

    for (int i = 0; i < 2; i++) {
        from_start(&from[i], c->from, from_names[i]);
        to_start(&to[i], c->to, to_names[i]);
        can = can && can_migrate(m, &from[i], &to[i]);
    }
    if (!can) {
        for (int i = 0; i < 2; i++) {
            vm_stop_driver(&from[i]);
            vm_stop(&to[i]);
            uri_free(uri[i]);
        }
        return;
    }
    for (int i = 0; i < 2; i++) {
        addr[i] = memory_fill(&from[i]);
        migrate_start(m, &from[i], &to[i], uri[i], uri[i]);
        from[i].saved = to[i].saved = true;
    }
    for (int i = 0; i < 2; i++) {
        migrate_stop(&from[i]);
    }
    for (uint32_t n = 0; n < FEW; n++) {
        for (int i = 0; i < 2; i++) {
            uint32_t seq = i * OTHER + n;

            send_range(&from[i].g, 100 + seq, 100 + seq + 1);
            send_range(&to[i].g, DIRECT + seq, DIRECT + seq + 1);
        }
    }
    for (int i = 0; i < 2; i++) {
        migrate_continue(&from[i].g.e);
    }
    for (int i = 0; i < 2; i++) {
        migrate_arrive(&from[i], &to[i]);
    }
    for (int i = 0; i < 2; i++) {
        uint32_t n = i * OTHER + 100, direct = i * OTHER + DIRECT;

        ring_expect(&to[i].g, n, n + FEW);
        ring_expect(&to[i].g, direct, direct + FEW);
    }

    /* Until all of the network knows, frames still come to the sources */
    for (int i = 0; i < 2; i++) {
        uint32_t n = i * OTHER + 100 + FEW;

        send_range(&from[i].g, n, n + MANY);
    }
    for (int i = 0; i < 2; i++) {
        uint32_t n = i * OTHER + 100 + FEW;

        ring_expect(&to[i].g, n, n + MANY);
    }
    for (int i = 0; i < 2; i++) {
        wait_migration(&from[i].g.e, "completed");
        assert_migrated(m, &from[i], &to[i], addr[i]);
        assert_no_more(&to[i]);
    }
    for (int i = 0; i < 2; i++) {
        vm_stop(&from[i]);
        vm_stop_driver(&to[i]);
        uri_free(uri[i]);
    }
}


/* The tests */

/* Why there can be no such VM, or no other QEMU; or NULL if there can */
static const char *no_vm, *no_peer;

static void test_skip(const void *data)
{
    g_test_skip(no_vm ?: no_peer);
}

static void add_test(const char *name, const char *variant,
                     void (*func)(const void *), const Mode *m, Kind from,
                     Kind to)
{
    g_autofree char *path = g_strdup_printf("/switchover-peers/%s/%s", name,
                                            variant);
    bool skip = no_vm || ((from == STOCK || to == STOCK) && no_peer);
    Case *c = g_new(Case, 1);

    *c = (Case) { m, from, to };
    qtest_add_data_func_full(path, c, skip ? test_skip : func, g_free);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);

    /* Only there can memory that is shared have a postcopy */
    tmpdir = g_strdup("/dev/shm/switchover-peers-test.XXXXXX");
    if (!g_mkdtemp(tmpdir)) {
        g_free(tmpdir);
        tmpdir = g_dir_make_tmp("switchover-peers-test.XXXXXX", NULL);
    }
    g_assert_nonnull(tmpdir);
    host_init();
    guest_machine = QEMU_PEER_MACHINE;
    no_vm = no_host;
    if (!no_vm && (!qtest_has_machine(QEMU_PEER_MACHINE) ||
                   !qtest_has_device("virtio-net-pci"))) {
        no_vm = "no " QEMU_PEER_MACHINE ", or no virtio-net-pci";
    }
    no_peer = why_no_peer();
    keys_write();

    for (int i = 0; i < ARRAY_SIZE(modes); i++) {
        const Mode *m = &modes[i];

        add_test("to-stock", m->name, test_as_stock, m, SAVES, STOCK);
        add_test("from-stock", m->name, test_as_stock, m, STOCK, SAVES);
        if (saves_packets(m)) {
            add_test("off-at-source", m->name, test_as_stock, m, OFF, SAVES);
            add_test("off-at-destination", m->name, test_as_stock, m, SAVES,
                     OFF);
            add_test("proxy", m->name, test_proxy, m, SAVES, SAVES);
            add_test("at-once", m->name, test_at_once, m, SAVES, SAVES);
        } else {
            add_test("on", m->name, test_as_stock, m, SAVES, SAVES);
        }
    }
    if (saves_packets(RETURN_PATH)) {
        add_test("late", "return-path", test_late, RETURN_PATH, SAVES, SAVES);
    }
    add_test("ping-pong", "two", test_two, NULL, SAVES, STOCK);
    add_test("ping-pong", "three", test_three, NULL, SAVES, STOCK);

    ret = g_test_run();

    keys_remove();
    g_rmdir(tmpdir);
    g_free(tmpdir);
    g_free(no_host);
    return ret;
}
