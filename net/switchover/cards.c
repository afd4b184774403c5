/*
 * Switchover: the network cards that take part in a migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Each migration saves the frames of each network card whose netdev can be
 * read, without an option, over its own connection.  A filter-redirector that
 * does it by a chardev takes the card's place.
 *
 * Theory of operation
 *
 *   source                           destination
 *   SETUP: a source for each card
 *   PING with a mark ->
 *                                    can do it, too
 *                 <- PONG with a mark
 *   the VM stops: save frames
 *   SWITCHOVER_CARDS ->
 *                                    an arrival for each card
 *   devices, EOF ->
 *   frames ->                        has the VM's state, starts it
 *                 <- SHUT
 *                 <- messages
 *
 * In postcopy frames and messages begin before EOF, by SWITCHOVER_PACKETS and
 * the return path (transport-migration.c).
 *
 * QEMU without this answers PING with its own value, and ignores that of PONG.
 * Either side then migrates as without this.
 *
 * A card has the name that its device's state has in the stream.
 */

#include "qemu/osdep.h"
#include "net/switchover/cards.h"
#include "hw/qdev-core.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "migration/qemu-file.h"
#include "net/switchover.h"
#include "net/switchover/arrival.h"
#include "net/switchover/source.h"
#include "net/switchover/transport-migration.h"
#include "qapi/error.h"
#include "qapi/qapi-events-migration.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "trace.h"

/* In the upper half of the values of PING and PONG */
#define PING_MARK 0x51530000
#define PONG_MARK 0x51440000
#define MARK_MASK 0xffff0000

/* Bytes of frames that are kept for one card, at most */
#define HOLD_LIMIT (64 * MiB)

/* One of the cards whose frames go, or come, by the migration's connection */
typedef struct SwitchoverCard {
    QTAILQ_ENTRY(SwitchoverCard) next;
    NetClientState *netdev;
    char *name;                 /* of its device's state */
    SwitchoverSource *source;   /* NULL: the VM was not migrated from here */
    SwitchoverArrival *arrival; /* NULL: it has not arrived here */
    unsigned number;            /* on the link of the migration from here */
    bool sends;                 /* has that number */
    Switchover *expected;       /* a VM may arrive; or NULL */
    SwitchoverStats before;     /* what was counted before the migration */
} SwitchoverCard;

static QTAILQ_HEAD(, SwitchoverCard) cards = QTAILQ_HEAD_INITIALIZER(cards);

static SwitchoverTellSource *tell;
static SwitchoverLink *outgoing;        /* of a migration from here */
static bool outgoing_asks;              /* it is to answer PING; atomic */
static bool outgoing_told;              /* its destination waits for frames */
static SwitchoverLink *incoming;        /* and of one to here */
static bool outgoing_begun;             /* packets were saved in it */
static bool outgoing_unreported;        /* MIGRATION_PACKETS is to be emitted */
static bool incoming_unreported;


/* Cards */

static void card_free(SwitchoverCard *card)
{
    g_clear_pointer(&card->source, switchover_source_free);
    g_clear_pointer(&card->arrival, switchover_arrival_free);
    g_clear_pointer(&card->expected, switchover_put);
    card->netdev->removed = NULL;
    QTAILQ_REMOVE(&cards, card, next);
    g_free(card->name);
    g_free(card);
}

static SwitchoverCard *card_find(NetClientState *netdev)
{
    SwitchoverCard *card;

    QTAILQ_FOREACH(card, &cards, next) {
        if (card->netdev == netdev) {
            return card;
        }
    }
    return NULL;
}

/* The name that the NIC's device has in a migration's stream, or NULL */
static char *card_name(NICState *nic)
{
    DeviceState *dev;

    if (!nic->reentrancy_guard) {
        return NULL;
    }
    dev = container_of(nic->reentrancy_guard, DeviceState,
                       mem_reentrancy_guard);
    return qdev_get_dev_path(dev);
}

/* The card of a NIC, made if there is none; NULL if it cannot be saved */
static SwitchoverCard *card_get(NICState *nic)
{
    NetClientState *netdev = nic->ncs->peer;
    g_autofree char *name = card_name(nic);
    SwitchoverCard *card;

    if (!netdev || !name || !netdev->info->get_read_fd) {
        return NULL;
    }
    card = card_find(netdev);
    if (!card) {
        card = g_new0(SwitchoverCard, 1);
        card->netdev = netdev;
        netdev->removed = switchover_cards_give_way;
        QTAILQ_INSERT_TAIL(&cards, card, next);
    }
    g_free(card->name);
    card->name = g_steal_pointer(&name);
    return card;
}

void switchover_cards_give_way(NetClientState *netdev)
{
    SwitchoverCard *card = card_find(netdev);

    if (card) {
        card_free(card);
    }
}


/* What is reported */

static void card_get_stats(SwitchoverCard *card, bool source,
                           SwitchoverStats *stats)
{
    if (source) {
        switchover_source_get_stats(card->source, stats);
    } else {
        switchover_arrival_get_stats(card->arrival, stats);
    }
}

static MigrationPackets *card_packets(SwitchoverCard *card, bool source)
{
    MigrationPackets *p = g_new0(MigrationPackets, 1);
    SwitchoverStats *before = &card->before;
    SwitchoverStats now;

    card_get_stats(card, source, &now);
    p->netdev = g_strdup(card->netdev->name);
    p->saved = source ? now.acknowledged - before->acknowledged :
               now.delivered - before->delivered;
    p->given_back = now.given_back - before->given_back;
    p->direct = now.direct - before->direct;
    p->peak = now.peak;
    p->peak_size = now.peak_bytes;
    p->drain_time = now.drain_us;
    p->dropped = g_new0(MigrationPacketsDropped, 1);
    *p->dropped = (MigrationPacketsDropped) {
        .queue_full = now.dropped.queue_full - before->dropped.queue_full,
        .invalid = now.dropped.invalid - before->dropped.invalid,
        .gso = now.dropped.gso - before->dropped.gso,
        .guest = now.dropped.guest - before->dropped.guest,
        .no_peer = now.dropped.no_peer - before->dropped.no_peer,
    };
    return p;
}

static bool card_takes_part(SwitchoverCard *card, bool source)
{
    return source ? card->sends && card->source : !!card->arrival;
}

static MigrationPacketsList *cards_packets(bool source)
{
    MigrationPacketsList *list = NULL, **tail = &list;
    SwitchoverCard *card;

    QTAILQ_FOREACH(card, &cards, next) {
        if (card_takes_part(card, source)) {
            QAPI_LIST_APPEND(tail, card_packets(card, source));
        }
    }
    return list;
}

static void cards_report(bool source)
{
    bool *unreported = source ? &outgoing_unreported : &incoming_unreported;
    g_autoptr(MigrationPacketsList) list = NULL;
    uint64_t saved = 0, back = 0, dropped = 0;

    if (!*unreported) {
        return;
    }
    *unreported = false;
    list = cards_packets(source);
    for (MigrationPacketsList *l = list; l; l = l->next) {
        MigrationPacketsDropped *d = l->value->dropped;

        saved += l->value->saved;
        back += l->value->given_back;
        dropped += d->queue_full + d->invalid + d->gso + d->guest + d->no_peer;
    }
    if (list) {
        qapi_event_send_migration_packets(source, list);
        info_report("migration %s this host: %" PRIu64 " packets saved, %"
                    PRIu64 " given back, %" PRIu64 " dropped",
                    source ? "from" : "to", saved, back, dropped);
    }
}

/* Have all cards that take part been dealt with? */
static bool cards_are_over(bool source)
{
    SwitchoverCard *card;

    QTAILQ_FOREACH(card, &cards, next) {
        if (card_takes_part(card, source)) {
            Switchover *sw = source ? switchover_source_get(card->source) :
                             switchover_arrival_get(card->arrival);

            if (!sw->vm_running || sw->delivering) {
                return false;
            }
        }
    }
    return true;
}

void switchover_cards_delivered(void)
{
    if (cards_are_over(false)) {
        cards_report(false);
    }
    if (cards_are_over(true)) {
        cards_report(true);
    }
}

void switchover_cards_changed(void)
{
    outgoing_begun = outgoing_unreported = outgoing || outgoing_begun;
}

static bool cards_are_acknowledged(void)
{
    SwitchoverCard *card;

    QTAILQ_FOREACH(card, &cards, next) {
        if (card_takes_part(card, true) &&
            !switchover_source_is_acknowledged(card->source)) {
            return false;
        }
    }
    return true;
}

void switchover_cards_acknowledged(void)
{
    if (outgoing_unreported && cards_are_acknowledged()) {
        cards_report(true);
    }
}

void switchover_cards_completed(void)
{
    if (outgoing) {
        switchover_link_set_rate(outgoing, migration_in_postcopy() ?
                                 migrate_max_postcopy_bandwidth() :
                                 migrate_max_bandwidth());
    }
    switchover_cards_acknowledged();
}

MigrationPacketsList *switchover_query_packets(void)
{
    return cards_packets(outgoing_begun);
}


/* The source */

static void outgoing_add(NICState *nic, void *opaque)
{
    SwitchoverCard *card = card_get(nic);
    SwitchoverTransport *t;
    Error *err = NULL;

    if (!card) {
        return;
    }
    card->number = switchover_link_cards(outgoing);
    if (card->number == SWITCHOVER_CARDS_MAX) {
        return;
    }
    t = switchover_link_add(outgoing, card->netdev->name);
    if (card->source) {
        switchover_source_set_transport(card->source, t);
    } else {
        card->source = switchover_source_new(card->netdev, t, HOLD_LIMIT,
                                             &err);
    }
    if (!card->source) {
        /* A filter's, or a vhost that cannot be left out */
        trace_switchover_card_skipped(card->name, error_get_pretty(err));
        error_free(err);
        if (!card->arrival) {
            card_free(card);
        }
        return;
    }
    card->expected = NULL;
    card->sends = true;
    card_get_stats(card, true, &card->before);
    switchover_source_set_enabled(card->source, true);
    switchover_prepare(switchover_source_get(card->source));
}

static void outgoing_begin(void)
{
    SwitchoverCard *card;

    g_clear_pointer(&outgoing, switchover_link_free);
    qatomic_set(&outgoing_asks, false);
    outgoing_told = outgoing_begun = outgoing_unreported = false;
    QTAILQ_FOREACH(card, &cards, next) {
        card->sends = false;
    }
    if (migrate_switchover_packets()) {
        outgoing = switchover_link_new(true);
        qemu_foreach_nic(outgoing_add, NULL);
    }
}

uint32_t switchover_ping(QEMUFile *f, uint32_t value)
{
    bool asks = outgoing && switchover_link_cards(outgoing) &&
                switchover_link_is_possible(qemu_file_get_ioc(f));

    qatomic_set(&outgoing_asks, asks);
    return asks ? PING_MARK | value : value;
}

void switchover_pong(uint32_t value)
{
    if (outgoing && (value & MARK_MASK) == PONG_MARK) {
        trace_switchover_pong(value);
        switchover_link_set_heard(outgoing);
    }
    /* QEMU without this answers, too */
    qatomic_store_release(&outgoing_asks, false);
}

bool switchover_is_answered(void)
{
    return !qatomic_load_acquire(&outgoing_asks);
}

static SwitchoverCard *outgoing_card(unsigned number)
{
    SwitchoverCard *card;

    QTAILQ_FOREACH(card, &cards, next) {
        if (card->sends && card->number == number) {
            return card;
        }
    }
    return NULL;
}

GByteArray *switchover_get_cards(void)
{
    g_autoptr(GByteArray) names = g_byte_array_new();
    unsigned n = outgoing && switchover_link_is_heard(outgoing) ?
                 switchover_link_cards(outgoing) : 0;
    bool any = false;

    if (outgoing_told) {
        return NULL;
    }
    for (unsigned i = 0; i < n; i++) {
        SwitchoverCard *card = outgoing_card(i);
        uint8_t len = card ? strlen(card->name) : 0;

        any |= card && switchover_source_get(card->source)->begun;
        g_byte_array_append(names, &len, sizeof(len));
        g_byte_array_append(names, (uint8_t *)(card ? card->name : ""), len);
    }
    outgoing_told = any;
    return any ? g_steal_pointer(&names) : NULL;
}

size_t switchover_get_frames(uint8_t *buf, size_t len, bool all)
{
    SwitchoverCard *card;

    if (!outgoing || !outgoing_told) {
        return 0;
    }
    if (all) {
        switchover_link_connect(outgoing);
        switchover_threads_pause();
        QTAILQ_FOREACH(card, &cards, next) {
            if (card->sends) {
                switchover_source_send_now(card->source);
            }
        }
        switchover_threads_resume();
    }
    return switchover_link_take(outgoing, buf, len);
}

bool switchover_cards_connected(void)
{
    return outgoing && switchover_link_is_connected(outgoing);
}

void switchover_state_sent(QEMUFile *f)
{
    if (outgoing && outgoing_told) {
        switchover_link_attach(outgoing, qemu_file_get_ioc(f));
        switchover_link_own(outgoing);
        switchover_link_connect(outgoing);
    }
}

void switchover_return_path(const uint8_t *buf, size_t len)
{
    if (outgoing) {
        switchover_link_give(outgoing, buf, len);
    }
}

void switchover_cards_read(void)
{
    if (outgoing) {
        switchover_link_read(outgoing);
    }
}


/* The destination */

static void incoming_clear(void)
{
    SwitchoverCard *card;

    QTAILQ_FOREACH(card, &cards, next) {
        g_clear_pointer(&card->arrival, switchover_arrival_free);
    }
    g_clear_pointer(&incoming, switchover_link_free);
}

/* A migration to here has failed */
static void incoming_forget(void)
{
    SwitchoverCard *card;

    incoming_clear();
    switchover_forget_all();
    QTAILQ_FOREACH(card, &cards, next) {
        g_clear_pointer(&card->expected, switchover_put);
    }
}

/* A VM may arrive whose packets are saved */
static void incoming_expect(NICState *nic, void *opaque)
{
    SwitchoverCard *card = card_get(nic);
    Switchover *sw = card ? switchover_get(card->netdev, NULL) : NULL;

    if (sw && !sw->source && !sw->arrival) {
        card->expected = sw;
        switchover_expect(sw, HOLD_LIMIT);
    }
}

uint32_t switchover_answer(QEMUFile *f, uint32_t value)
{
    switchover_expect_all();
    if ((value & MARK_MASK) != PING_MARK || !migrate_switchover_packets() ||
        !switchover_link_is_possible(qemu_file_get_ioc(f))) {
        return value;
    }
    qemu_foreach_nic(incoming_expect, NULL);
    return PONG_MARK | (value & ~MARK_MASK);
}

typedef struct IncomingCard {
    const char *name;           /* to look for */
    bool found;
} IncomingCard;

static void incoming_add(NICState *nic, void *opaque)
{
    g_autofree char *name = card_name(nic);
    IncomingCard *sought = opaque;
    SwitchoverTransport *t;
    SwitchoverCard *card;
    Error *err = NULL;

    if (sought->found || g_strcmp0(name, sought->name)) {
        return;
    }
    card = card_get(nic);
    if (!card || card->arrival) {
        return;
    }
    sought->found = true;
    card->expected = NULL;
    t = switchover_link_add(incoming, card->netdev->name);
    card->arrival = switchover_arrival_new(card->netdev, t, HOLD_LIMIT, &err);
    if (!card->arrival) {
        warn_reportf_err(err, "The packets that the source has saved for the "
                         "network card at %s are lost: ", card->name);
        if (!card->source) {
            card_free(card);
        }
        return;
    }
    card_get_stats(card, false, &card->before);
    switchover_arrives(switchover_arrival_get(card->arrival));
}

int switchover_load_cards(QEMUFile *f, size_t len)
{
    char name[256];

    incoming_clear();
    incoming = switchover_link_new(false);
    incoming_unreported = true;
    switchover_link_set_heard(incoming);
    while (len) {
        IncomingCard sought = { .name = name };
        size_t n = qemu_get_counted_string(f, name);

        if (qemu_file_get_error(f) || n + 1 > len ||
            !switchover_link_is_possible(qemu_file_get_ioc(f)) ||
            switchover_link_cards(incoming) == SWITCHOVER_CARDS_MAX) {
            error_report("invalid list of network cards whose packets are "
                         "saved");
            return -EINVAL;
        }
        len -= n + 1;
        if (n) {
            qemu_foreach_nic(incoming_add, &sought);
        }
        if (!sought.found) {
            switchover_link_skip(incoming);
            if (n) {
                warn_report("The packets that the source has saved for the "
                            "network card at %s are lost: there is none here, "
                            "or its network backend cannot be read", name);
            }
        }
    }
    switchover_link_attach(incoming, qemu_file_get_ioc(f));
    return 0;
}

int switchover_load_frames(QEMUFile *f, size_t len)
{
    g_autofree uint8_t *buf = g_malloc(len);

    if (qemu_get_buffer(f, buf, len) != len || !incoming) {
        error_report("packets of a network card without a card");
        return -EINVAL;
    }
    if (bql_locked()) {
        switchover_link_use_messages(incoming, tell);
        switchover_link_connect(incoming);
        switchover_link_load(incoming, buf, len);
    } else if (!switchover_link_give(incoming, buf, len)) {
        error_report("too many packets of a network card");
        return -EINVAL;
    }
    return 0;
}


/* Both */

bool switchover_keep_channel(QEMUFile *f, bool ended)
{
    QIOChannel *ioc = qemu_file_get_ioc(f);
    g_autoptr(GByteArray) ahead = NULL;
    bool reads = !qemu_file_is_writable(f);
    SwitchoverLink **link;

    if (ended && reads && runstate_check(RUN_STATE_INMIGRATE)) {
        incoming_forget();
        return false;
    }
    if (incoming && bql_locked()) {
        /* The connection may be another one; the return path has ended */
        switchover_link_use_messages(incoming, NULL);
        switchover_link_handle(incoming);
    }
    link = switchover_link_has(outgoing, ioc) ? &outgoing :
           switchover_link_has(incoming, ioc) ? &incoming : NULL;
    if (!link) {
        return false;
    }
    if (ended) {
        g_clear_pointer(link, switchover_link_free);
        return false;
    }
    ahead = g_byte_array_new();
    qemu_file_release(f, ahead);
    switchover_link_give(*link, ahead->data, ahead->len);
    if (link == &incoming && reads) {
        switchover_link_own(incoming);
        switchover_link_connect(incoming);
        switchover_link_refuse(incoming);
        switchover_link_read(incoming);
    }
    return true;
}

void switchover_channel_lost(bool source)
{
    SwitchoverLink *link = source ? outgoing : incoming;

    if (link) {
        switchover_link_lose(link);
    }
}

void switchover_channel_back(QEMUFile *f, bool source)
{
    SwitchoverLink *link = source ? outgoing : incoming;

    if (link) {
        switchover_link_return(link, source ? NULL : qemu_file_get_ioc(f));
    }
}

static int cards_migration(NotifierWithReturn *notifier, MigrationEvent *event,
                           Error **errp)
{
    switch (event->type) {
    case MIG_EVENT_PRECOPY_SETUP:
        outgoing_begin();
        break;
    case MIG_EVENT_PRECOPY_FAILED:
        g_clear_pointer(&outgoing, switchover_link_free);
        break;
    case MIG_EVENT_PRECOPY_DONE:
        if (!outgoing_told) {
            g_clear_pointer(&outgoing, switchover_link_free);
        }
        break;
    default:
        break;
    }
    return 0;
}

void switchover_init(SwitchoverTellSource *tell_source)
{
    static NotifierWithReturn notifier;

    tell = tell_source;
    migration_add_notifier(&notifier, cards_migration);
}
