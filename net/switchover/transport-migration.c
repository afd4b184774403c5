/*
 * Switchover: frames by way of the migration's own connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Where the VM's state ends, frames follow on the same channel.  So they take
 * the way, and have the TLS session and the authentication, of the migration,
 * and there is nothing to configure.  Both ends take over the channel, and what
 * has been read ahead, instead of closing it.
 *
 * In postcopy the VM runs before its state ends.  Until then commands in the
 * migration's stream, and messages on its return path, carry the same bytes.
 *
 * All cards of the VM share the connection.  What is sent is cut into pieces:
 *
 *   be16 number of the card
 *   be16 length of what follows
 *   a part of the card's stream of messages (message.h)
 *
 * A piece may begin and end anywhere in a message.  A card that has begun a
 * piece ends it before another one writes.
 *
 * The source's sender thread writes to the channel, and its main loop reads;
 * at the destination the main loop does both.  The migration's threads fetch,
 * and bring, what is in commands and messages.
 */

#include "qemu/osdep.h"
#include "net/switchover/transport-migration.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "net/switchover/threads.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "trace.h"

#define PIECE_HEAD 4
#define PIECE_MAX UINT16_MAX

/* Bytes of one message on the return path, at most */
#define MESSAGE_MAX 512

/* Bytes that are read at once, and reads in one turn of the main loop */
#define READ_LEN (64 * 1024)
#define READ_TURNS 8

/* Bytes that wait to be written, at most */
#define OUT_MAX (1 * MiB)

/* With a rate: the bytes of so much time may be written at once */
#define BURST_US (50 * 1000)

/* Bytes that others have read for a card and that wait, at most */
#define GIVEN_MAX (80 * MiB)

typedef struct TransportMigration {
    SwitchoverTransport t;
    SwitchoverLink *link;       /* NULL: it was freed */
    unsigned card;              /* its number there */
} TransportMigration;

struct SwitchoverLink {
    bool source;
    bool heard;                 /* the peer has a link, too; atomic */
    GPtrArray *cards;           /* TransportMigration, by number; or NULL */

    QIOChannel *ioc;
    int fd;
    bool connected;             /* the cards have a peer */
    bool own;                   /* the channel, which only the link writes */
    SwitchoverTellSource *tell_source;  /* before that; or NULL */

    QemuMutex lock;             /* for the next five */
    GByteArray *out;            /* pieces that wait to be written */
    GByteArray *given;          /* bytes that others have read */
    bool lost;                  /* the connection */
    bool back;                  /* and there is another one */
    QIOChannel *next_ioc;       /* at the destination: that */
    QEMUBH *bh;                 /* look at them */

    /* Reading: the main loop */
    GByteArray *in;             /* not handled yet */
    bool reads;
    guint read_watch;
    bool handling;              /* what is in @in */
    unsigned piece_card;        /* whose piece it is that @piece_rest is of */
    size_t piece_rest;          /* bytes of it that were not handled yet */

    /* Writing at the destination: the main loop */
    guint write_watch;

    /* Writing at the source: the sender's thread */
    TransportMigration *writer; /* whose piece it is that @rest is of */
    size_t rest;                /* bytes that are missing in a piece */
    uint8_t head[PIECE_HEAD];
    size_t head_rest;           /* bytes at its end that were not written */
    uint64_t rate;              /* bytes per second, at most; 0: any; atomic */
    int64_t budget;             /* bytes that may be written now */
    int64_t budget_at;          /* when that was so, in us */
};

static TransportMigration *transport_migration(SwitchoverTransport *t)
{
    return container_of(t, TransportMigration, t);
}

static void link_put_head(uint8_t *buf, unsigned card, size_t len)
{
    stw_be_p(buf, card);
    stw_be_p(buf + 2, len);
}

/* The socket's fd, or -1 */
static int link_fd(QIOChannel *ioc)
{
    Object *obj = OBJECT(ioc);

    if (object_dynamic_cast(obj, TYPE_QIO_CHANNEL_TLS)) {
        obj = OBJECT(QIO_CHANNEL_TLS(obj)->master);
    }
    if (!object_dynamic_cast(obj, TYPE_QIO_CHANNEL_SOCKET)) {
        return -1;
    }
    return QIO_CHANNEL_SOCKET(obj)->fd;
}

bool switchover_link_is_possible(QIOChannel *ioc)
{
    return link_fd(ioc) >= 0;
}


/* The connection */

static void link_stop_reading(SwitchoverLink *link)
{
    link->reads = false;
    g_clear_handle_id(&link->read_watch, g_source_remove);
}

static void link_close(SwitchoverLink *link)
{
    if (link->ioc) {
        qio_channel_close(link->ioc, NULL);
        object_unref(OBJECT(link->ioc));
        link->ioc = NULL;
    }
}

static void link_set_connected(SwitchoverLink *link, bool connected)
{
    link->connected = connected;
    trace_switchover_link(link, link->source, connected);
    for (unsigned i = 0; i < link->cards->len; i++) {
        TransportMigration *m = g_ptr_array_index(link->cards, i);

        if (m) {
            switchover_transport_set_connected(&m->t, connected);
        }
    }
}

/* The peer is gone, or out of step */
static void link_disconnect(SwitchoverLink *link)
{
    link_stop_reading(link);
    g_clear_handle_id(&link->write_watch, g_source_remove);
    if (!link->connected) {
        return;
    }
    link_set_connected(link, false);
    if (link->own) {
        link_close(link);
    }
}

void switchover_link_use_messages(SwitchoverLink *link,
                                  SwitchoverTellSource *tell_source)
{
    link->tell_source = tell_source;
}

void switchover_link_attach(SwitchoverLink *link, QIOChannel *ioc)
{
    if (link->ioc) {
        object_unref(OBJECT(link->ioc));
    }
    object_ref(OBJECT(ioc));
    link->ioc = ioc;
    link->fd = link_fd(ioc);
}

bool switchover_link_has(SwitchoverLink *link, QIOChannel *ioc)
{
    return link && link->ioc && link->ioc == ioc;
}

static void link_flush(SwitchoverLink *link);

void switchover_link_connect(SwitchoverLink *link)
{
    if (!link->connected) {
        link_set_connected(link, true);
        link_flush(link);
    }
}

static void link_put(SwitchoverLink *link, unsigned card, const uint8_t *buf,
                     size_t len)
{
    uint8_t head[PIECE_HEAD];

    link_put_head(head, card, len);
    g_byte_array_append(link->out, head, sizeof(head));
    g_byte_array_append(link->out, buf, len);
}

void switchover_link_refuse(SwitchoverLink *link)
{
    uint8_t buf[SWITCHOVER_CONTROL];

    switchover_message_put_control(buf, SWITCHOVER_REFUSED, 0);
    for (unsigned i = 0; i < link->cards->len; i++) {
        if (!g_ptr_array_index(link->cards, i)) {
            link_put(link, i, buf, sizeof(buf));
        }
    }
    link_flush(link);
}

void switchover_link_own(SwitchoverLink *link)
{
    qio_channel_set_blocking(link->ioc, false, NULL);
    switchover_threads_pause();
    link->own = true;
    for (unsigned i = 0; link->connected && i < link->cards->len; i++) {
        TransportMigration *m = g_ptr_array_index(link->cards, i);

        if (m) {
            m->t.may_return = false;
            switchover_transport_update_channel(&m->t);
        }
    }
    switchover_threads_resume();
    link_flush(link);
}

/*
 * The connection has broken in postcopy.  Another one may follow, on which the
 * destination says HELLO, and with it what it has.
 */
static void link_lose(SwitchoverLink *link)
{
    for (unsigned i = 0; i < link->cards->len; i++) {
        TransportMigration *m = g_ptr_array_index(link->cards, i);

        if (m) {
            m->t.introduced = false;
            m->t.may_return = true;
        }
    }
    link_disconnect(link);
    g_byte_array_set_size(link->in, 0);
    link->piece_rest = 0;
}

void switchover_link_lose(SwitchoverLink *link)
{
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        link->lost = true;
        link->back = false;
        g_byte_array_set_size(link->out, 0);
        g_byte_array_set_size(link->given, 0);
    }
    qemu_bh_schedule(link->bh);
}

void switchover_link_return(SwitchoverLink *link, QIOChannel *ioc)
{
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        link->back = true;
        if (ioc && link->next_ioc) {
            object_unref(OBJECT(link->next_ioc));
        }
        link->next_ioc = ioc ? QIO_CHANNEL(object_ref(OBJECT(ioc))) : NULL;
    }
    qemu_bh_schedule(link->bh);
}


/* Reading */

static bool link_can_receive(SwitchoverLink *link)
{
    for (unsigned i = 0; i < link->cards->len; i++) {
        TransportMigration *m = g_ptr_array_index(link->cards, i);

        if (m && !switchover_transport_can_receive(&m->t)) {
            return false;
        }
    }
    return true;
}

/*
 * Handle what is there of a piece: frames that have come count, although the
 * rest may never come.  Returns the bytes that were handled, or -1.
 */
static ssize_t link_piece(SwitchoverLink *link, const uint8_t *buf, size_t len)
{
    TransportMigration *m;
    size_t head = 0, n;

    if (!link->piece_rest) {
        if (len < PIECE_HEAD) {
            return 0;
        }
        link->piece_card = lduw_be_p(buf);
        link->piece_rest = lduw_be_p(buf + 2);
        head = PIECE_HEAD;
    }
    if (link->piece_card >= link->cards->len) {
        error_report("frames for network card %u of the migration, which has "
                     "%u: connection terminated", link->piece_card,
                     link->cards->len);
        return -1;
    }
    n = MIN(link->piece_rest, len - head);
    link->piece_rest -= n;
    m = g_ptr_array_index(link->cards, link->piece_card);
    if (m && n && !switchover_transport_receive(&m->t, buf + head, n)) {
        return -1;
    }
    return head + n;
}

static bool link_handle(SwitchoverLink *link)
{
    size_t pos = 0;
    ssize_t n = 0;

    if (link->handling) {
        return true;
    }
    link->handling = true;
    while (link_can_receive(link) &&
           (n = link_piece(link, link->in->data + pos,
                           link->in->len - pos)) > 0) {
        pos += n;
    }
    g_byte_array_remove_range(link->in, 0, pos);
    link->handling = false;
    return n >= 0;
}

/* Handle what others have read */
static void link_bh(void *opaque)
{
    SwitchoverLink *link = opaque;
    g_autoptr(QIOChannel) ioc = NULL;
    bool lost, back;

    WITH_QEMU_LOCK_GUARD(&link->lock) {
        lost = link->lost;
        back = link->back;
        link->lost = link->back = false;
        ioc = g_steal_pointer(&link->next_ioc);
    }
    if (lost) {
        link_lose(link);
    }
    if (ioc) {
        switchover_link_attach(link, ioc);
    }
    if (back) {
        switchover_link_connect(link);
    }
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        g_byte_array_append(link->in, link->given->data, link->given->len);
        g_byte_array_set_size(link->given, 0);
    }
    if (link->connected && !link_handle(link)) {
        link_disconnect(link);
    }
    link_flush(link);
}

bool switchover_link_give(SwitchoverLink *link, const uint8_t *buf, size_t len)
{
    QEMU_LOCK_GUARD(&link->lock);
    if (link->given->len + len > GIVEN_MAX * link->cards->len) {
        return false;
    }
    g_byte_array_append(link->given, buf, len);
    qemu_bh_schedule(link->bh);
    return true;
}

void switchover_link_handle(SwitchoverLink *link)
{
    link_bh(link);
}

void switchover_link_load(SwitchoverLink *link, const uint8_t *buf, size_t len)
{
    g_byte_array_append(link->in, buf, len);
    if (!link_handle(link)) {
        link_disconnect(link);
    }
    link_flush(link);
}

static gboolean link_readable(QIOChannel *ioc, GIOCondition cond,
                              gpointer opaque);

static void link_watch(SwitchoverLink *link)
{
    if (link->reads && !link->read_watch && link_can_receive(link)) {
        link->read_watch = qio_channel_add_watch(link->ioc, G_IO_IN,
                                                 link_readable, link, NULL);
    }
}

static void link_read(SwitchoverLink *link)
{
    uint8_t buf[READ_LEN];
    ssize_t n = 1;

    if (link->handling) {
        return;
    }
    for (int i = 0; i < READ_TURNS && link->reads && n > 0; i++) {
        if (!link_handle(link)) {
            n = -1;
            break;
        }
        if (!link_can_receive(link)) {
            g_clear_handle_id(&link->read_watch, g_source_remove);
            return;
        }
        n = qio_channel_read(link->ioc, (char *)buf, sizeof(buf), NULL);
        if (n > 0) {
            g_byte_array_append(link->in, buf, n);
        }
    }
    if (n > 0) {
        n = link_handle(link) ? n : -1;
    }
    if (link->reads && n <= 0 && n != QIO_CHANNEL_ERR_BLOCK) {
        link_disconnect(link);
    }
}

static gboolean link_readable(QIOChannel *ioc, GIOCondition cond,
                              gpointer opaque)
{
    SwitchoverLink *link = opaque;

    link_read(link);
    return link->read_watch ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

void switchover_link_read(SwitchoverLink *link)
{
    if (!link->reads && link->ioc) {
        link->reads = true;
        link_bh(link);
        link_watch(link);
        link_read(link);
    }
}


/* Writing at the destination */

static gboolean link_writable(QIOChannel *ioc, GIOCondition cond,
                              gpointer opaque)
{
    SwitchoverLink *link = opaque;

    link->write_watch = 0;
    link_flush(link);
    return G_SOURCE_REMOVE;
}

/* By the return path, until the channel is ours */
static void link_flush_messages(SwitchoverLink *link)
{
    for (size_t pos = 0; pos < link->out->len; pos += MESSAGE_MAX) {
        link->tell_source(link->out->data + pos,
                          MIN(link->out->len - pos, MESSAGE_MAX));
    }
    g_byte_array_set_size(link->out, 0);
}

static void link_flush(SwitchoverLink *link)
{
    ssize_t n;

    if (link->source || !link->connected || !link->out->len ||
        link->write_watch) {
        return;
    }
    if (!link->own) {
        if (link->tell_source) {
            link_flush_messages(link);
        }
        return;
    }
    n = qio_channel_write(link->ioc, (const char *)link->out->data,
                          link->out->len, NULL);
    if (n > 0) {
        g_byte_array_remove_range(link->out, 0, n);
    } else if (n != QIO_CHANNEL_ERR_BLOCK) {
        g_byte_array_set_size(link->out, 0);
    }
    if (link->out->len) {
        link->write_watch = qio_channel_add_watch(link->ioc, G_IO_OUT,
                                                  link_writable, link, NULL);
    }
}

static void transport_control(SwitchoverTransport *t, const uint8_t *buf,
                              size_t len)
{
    TransportMigration *m = transport_migration(t);

    if (m->link && m->link->out->len <= OUT_MAX) {
        link_put(m->link, m->card, buf, len);
        link_flush(m->link);
    }
}


/* Writing at the source */

/* For a command in the migration's stream */
static ssize_t link_write_out(SwitchoverLink *link, unsigned card,
                              const uint8_t *buf, size_t len)
{
    QEMU_LOCK_GUARD(&link->lock);
    if (link->out->len > OUT_MAX || link->lost) {
        return 0;
    }
    len = MIN(len, PIECE_MAX);
    link_put(link, card, buf, len);
    return len;
}

size_t switchover_link_take(SwitchoverLink *link, uint8_t *buf, size_t len)
{
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        len = MIN(len, link->out->len);
        memcpy(buf, link->out->data, len);
        g_byte_array_remove_range(link->out, 0, len);
    }
    if (len) {
        switchover_sender_kick();
    }
    return len;
}

/* What was not taken for a command comes first */
static int transport_flush(SwitchoverTransport *t)
{
    SwitchoverLink *link = transport_migration(t)->link;
    ssize_t n;

    if (!link || !t->ioc || !link->out->len) {
        return 1;
    }
    n = qio_channel_write(t->ioc, (const char *)link->out->data,
                          link->out->len, NULL);
    if (n > 0) {
        g_byte_array_remove_range(link->out, 0, n);
    }
    return n < 0 && n != QIO_CHANNEL_ERR_BLOCK ? -1 : !link->out->len;
}

void switchover_link_set_rate(SwitchoverLink *link, uint64_t rate)
{
    qatomic_set(&link->rate, rate);
}

/* May a piece begin?  One that has begun goes on. */
static bool link_has_budget(SwitchoverLink *link)
{
    uint64_t rate = qatomic_read(&link->rate);
    int64_t most = muldiv64(rate, BURST_US, G_USEC_PER_SEC);
    int64_t now = g_get_monotonic_time();
    int64_t us = MIN(now - link->budget_at, BURST_US);

    if (!rate) {
        link->budget = 0;
        return true;
    }
    link->budget_at = now;
    link->budget += (int64_t)muldiv64(rate, us, G_USEC_PER_SEC);
    link->budget = MIN(link->budget, most);
    return link->budget > 0;
}

static ssize_t transport_write(SwitchoverTransport *t, const uint8_t *buf,
                               size_t len)
{
    TransportMigration *m = transport_migration(t);
    SwitchoverLink *link = m->link;
    struct iovec iov[2];
    ssize_t n;

    if (!link) {
        return -1;
    }
    if (!t->ioc) {
        return link_write_out(link, m->card, buf, len);
    }
    if (link->rest && link->writer != m) {
        return 0;
    }
    if (!link->rest) {
        t->throttled = !link_has_budget(link);
        if (t->throttled) {
            return 0;
        }
        link->writer = m;
        link->rest = MIN(len, PIECE_MAX);
        link->head_rest = PIECE_HEAD;
        link_put_head(link->head, m->card, link->rest);
    }
    iov[0].iov_base = link->head + PIECE_HEAD - link->head_rest;
    iov[0].iov_len = link->head_rest;
    iov[1].iov_base = (void *)buf;
    iov[1].iov_len = MIN(len, link->rest);
    n = link->head_rest ? qio_channel_writev(t->ioc, iov, 2, NULL) :
                          qio_channel_writev(t->ioc, iov + 1, 1, NULL);
    if (n < 0) {
        return n == QIO_CHANNEL_ERR_BLOCK ? 0 : -1;
    }
    if (n < link->head_rest) {
        link->head_rest -= n;
        return 0;
    }
    n -= link->head_rest;
    link->head_rest = 0;
    link->rest -= n;
    link->budget -= n;
    return n;
}


/* The cards */

static void transport_start(SwitchoverTransport *t)
{
    t->stream = true;
}

static void transport_free(SwitchoverTransport *t)
{
    TransportMigration *m = transport_migration(t);

    if (m->link) {
        g_ptr_array_index(m->link->cards, m->card) = NULL;
    }
    g_free(m);
}

static bool transport_is_possible(SwitchoverTransport *t)
{
    SwitchoverLink *link = transport_migration(t)->link;

    return link && switchover_link_is_heard(link);
}

static void transport_update_channel(SwitchoverTransport *t)
{
    SwitchoverLink *link = transport_migration(t)->link;

    t->threaded = true;
    if (link && link->own) {
        t->ioc = QIO_CHANNEL(object_ref(OBJECT(link->ioc)));
        t->fd = link->fd;
    }
}

static void transport_accept_input(SwitchoverTransport *t)
{
    SwitchoverLink *link = transport_migration(t)->link;

    if (link && link->reads && !link->read_watch) {
        link_watch(link);
    }
    if (link && link->in->len && !link->handling) {
        qemu_bh_schedule(link->bh);
    }
}

static void transport_read_now(SwitchoverTransport *t)
{
    SwitchoverLink *link = transport_migration(t)->link;

    if (link && link->reads) {
        link_read(link);
    }
}

static void link_add(SwitchoverLink *link, TransportMigration *m)
{
    assert(link->cards->len < SWITCHOVER_CARDS_MAX);
    g_ptr_array_add(link->cards, m);
}

SwitchoverTransport *switchover_link_add(SwitchoverLink *link,
                                         const char *name)
{
    static const SwitchoverTransportKind kind = {
        .start = transport_start,
        .free = transport_free,
        .is_possible = transport_is_possible,
        .update_channel = transport_update_channel,
        .control = transport_control,
        .flush = transport_flush,
        .write = transport_write,
        .accept_input = transport_accept_input,
        .read_now = transport_read_now,
    };
    TransportMigration *m = g_new0(TransportMigration, 1);

    switchover_transport_init(&m->t, &kind,
                              g_strdup_printf("netdev '%s'", name));
    m->t.introduced = m->t.control = true;
    m->link = link;
    m->card = link->cards->len;
    link_add(link, m);
    return &m->t;
}

void switchover_link_skip(SwitchoverLink *link)
{
    link_add(link, NULL);
}

bool switchover_link_is_connected(SwitchoverLink *link)
{
    return link->connected;
}

unsigned switchover_link_cards(SwitchoverLink *link)
{
    return link->cards->len;
}

void switchover_link_set_heard(SwitchoverLink *link)
{
    qatomic_set(&link->heard, true);
}

bool switchover_link_is_heard(SwitchoverLink *link)
{
    return qatomic_read(&link->heard);
}

SwitchoverLink *switchover_link_new(bool source)
{
    SwitchoverLink *link = g_new0(SwitchoverLink, 1);

    link->source = source;
    link->fd = -1;
    link->cards = g_ptr_array_new();
    link->in = g_byte_array_new();
    link->given = g_byte_array_new();
    link->bh = qemu_bh_new(link_bh, link);
    qemu_mutex_init(&link->lock);
    link->out = g_byte_array_new();
    return link;
}

void switchover_link_free(SwitchoverLink *link)
{
    if (!link) {
        return;
    }
    link_disconnect(link);
    for (unsigned i = 0; i < link->cards->len; i++) {
        TransportMigration *m = g_ptr_array_index(link->cards, i);

        if (m) {
            m->link = NULL;
        }
    }
    link_close(link);
    g_ptr_array_unref(link->cards);
    g_clear_pointer(&link->next_ioc, object_unref);
    qemu_bh_delete(link->bh);
    qemu_mutex_destroy(&link->lock);
    g_byte_array_unref(link->given);
    g_byte_array_unref(link->in);
    g_byte_array_unref(link->out);
    g_free(link);
}
