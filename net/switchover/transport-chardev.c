/*
 * Switchover: frames by way of a chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Both sides read in the main loop.  The destination writes there, too: a few
 * bytes at a time.  The source must write while the main loop stands still.  So
 * with a socket chardev the sender's thread writes to the socket's channel
 * itself, with TLS if it has that; QIOChannel and its TLS session allow one
 * thread to write while another reads.  Other chardevs, such as a hub, are
 * written in the main loop.
 */

#include "qemu/osdep.h"
#include "net/switchover/transport-chardev.h"
#include "chardev/char-socket.h"
#include "qemu/main-loop.h"
#include <netinet/tcp.h>

/* Bytes that are read at once: one message at least */
#define READ_LEN (SWITCHOVER_HEAD + SWITCHOVER_FRAME_MAX)

typedef struct TransportChardev {
    SwitchoverTransport t;
    CharFrontend *chr;
    uint32_t peer_timeout;      /* ms; 0: as the chardev has it */
    GByteArray *out;            /* control messages that wait to be written */
    guint watch;                /* for @out */
} TransportChardev;

static TransportChardev *transport_chardev(SwitchoverTransport *t)
{
    return container_of(t, TransportChardev, t);
}


/* Reading */

static int transport_can_read(void *opaque)
{
    return switchover_transport_can_receive(opaque) ? READ_LEN : 0;
}

static void transport_read(void *opaque, const uint8_t *buf, int size)
{
    TransportChardev *c = opaque;

    if (!switchover_transport_receive(&c->t, buf, size)) {
        /* Out of step for good; a new connection may do better */
        qemu_chr_fe_disconnect(c->chr);
        if (qemu_chr_fe_backend_open(c->chr)) {
            qemu_chr_fe_set_handlers(c->chr, NULL, NULL, NULL, NULL, NULL,
                                     NULL, true);
        }
    }
}

static void transport_accept_input(SwitchoverTransport *t)
{
    qemu_chr_fe_accept_input(transport_chardev(t)->chr);
}

static void transport_read_now(SwitchoverTransport *t)
{
    Chardev *chr = qemu_chr_fe_get_driver(transport_chardev(t)->chr);

    qemu_chr_socket_read_now(chr);
}


/* Writing */

static gboolean transport_writable(void *do_not_use, GIOCondition cond,
                                   void *opaque);

/* Write the control messages that wait */
static void transport_flush(TransportChardev *c)
{
    int n;

    if (!c->out->len || c->watch) {
        return;
    }
    n = qemu_chr_fe_write(c->chr, c->out->data, c->out->len);
    if (n > 0) {
        g_byte_array_remove_range(c->out, 0, n);
    }
    if (c->out->len) {
        c->watch = qemu_chr_fe_add_watch(c->chr, G_IO_OUT | G_IO_HUP,
                                         transport_writable, c);
        if (!c->watch) {
            g_byte_array_set_size(c->out, 0);
        }
    }
}

static gboolean transport_writable(void *do_not_use, GIOCondition cond,
                                   void *opaque)
{
    TransportChardev *c = opaque;

    c->watch = 0;
    transport_flush(c);
    return G_SOURCE_REMOVE;
}

static void transport_control(SwitchoverTransport *t, const uint8_t *buf,
                              size_t len)
{
    TransportChardev *c = transport_chardev(t);

    g_byte_array_append(c->out, buf, len);
    transport_flush(c);
}

static ssize_t transport_write(SwitchoverTransport *t, const uint8_t *buf,
                               size_t len)
{
    ssize_t n;

    if (t->ioc) {
        n = qio_channel_write(t->ioc, (const char *)buf, len, NULL);
        return n == QIO_CHANNEL_ERR_BLOCK ? 0 : n;
    }
    n = qemu_chr_fe_write(transport_chardev(t)->chr, buf, len);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

static guint transport_add_watch(SwitchoverTransport *t, FEWatchFunc func,
                                 void *opaque)
{
    return qemu_chr_fe_add_watch(transport_chardev(t)->chr,
                                 G_IO_OUT | G_IO_HUP, func, opaque);
}

static void transport_update_channel(SwitchoverTransport *t)
{
    Chardev *chr = qemu_chr_fe_get_driver(transport_chardev(t)->chr);

    t->ioc = qemu_chr_socket_channel(chr, &t->fd);
    t->threaded = t->ioc;
}


/* The connection */

static void transport_drop_output(TransportChardev *c)
{
    g_byte_array_set_size(c->out, 0);
    if (c->watch) {
        g_source_remove(c->watch);
        c->watch = 0;
    }
}

/*
 * A host that has lost its power says nothing of it.  TCP asks the peer that is
 * silent, and closes the connection when it does not answer, or acknowledges
 * nothing of what was sent, for so long (Linux 6.18).  A unix socket needs none
 * of that.
 */
static void transport_set_timeout(TransportChardev *c)
{
    const int count = 3;
    int ms = c->peer_timeout, s = MAX(ms / 1000 / (count + 1), 1);
    const struct {
        int level, name, value;
    } options[] = {
        { IPPROTO_TCP, TCP_KEEPIDLE, s },
        { IPPROTO_TCP, TCP_KEEPINTVL, s },
        { IPPROTO_TCP, TCP_KEEPCNT, count },
        { IPPROTO_TCP, TCP_USER_TIMEOUT, ms },
        { SOL_SOCKET, SO_KEEPALIVE, 1 },
    };
    QIOChannel *ioc;
    int fd;

    ioc = ms ? qemu_chr_socket_channel(qemu_chr_fe_get_driver(c->chr), &fd) :
               NULL;
    if (!ioc) {
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        setsockopt(fd, options[i].level, options[i].name, &options[i].value,
                   sizeof(options[i].value));
    }
    object_unref(OBJECT(ioc));
}

static void transport_event(void *opaque, QEMUChrEvent event)
{
    TransportChardev *c = opaque;

    if (event == CHR_EVENT_OPENED) {
        transport_set_timeout(c);
    }
    if (event == CHR_EVENT_OPENED || event == CHR_EVENT_CLOSED) {
        transport_drop_output(c);
        switchover_transport_set_connected(&c->t, event == CHR_EVENT_OPENED);
    }
}

static void transport_start(SwitchoverTransport *t)
{
    TransportChardev *c = transport_chardev(t);

    /* Only these have events for their peers, and are streams for sure */
    t->stream = qemu_chr_has_feature(qemu_chr_fe_get_driver(c->chr),
                                     QEMU_CHAR_FEATURE_RECONNECTABLE);
    t->connected = !t->stream;
    qemu_chr_fe_set_handlers(c->chr, transport_can_read, transport_read,
                             transport_event, NULL, c, NULL, true);
}

static void transport_free(SwitchoverTransport *t)
{
    TransportChardev *c = transport_chardev(t);

    qemu_chr_fe_set_handlers(c->chr, NULL, NULL, NULL, NULL, NULL, NULL, true);
    transport_drop_output(c);
    g_byte_array_unref(c->out);
    g_free(c);
}

SwitchoverTransport *switchover_transport_chardev_new(CharFrontend *chr,
                                                      const char *id,
                                                      bool vnet_hdr,
                                                      uint32_t peer_timeout)
{
    static const SwitchoverTransportKind kind = {
        .start = transport_start,
        .free = transport_free,
        .update_channel = transport_update_channel,
        .control = transport_control,
        .write = transport_write,
        .add_watch = transport_add_watch,
        .accept_input = transport_accept_input,
        .read_now = transport_read_now,
    };
    TransportChardev *c = g_new0(TransportChardev, 1);

    switchover_transport_init(&c->t, &kind,
                              g_strdup_printf("filter-redirector '%s'", id));
    c->chr = chr;
    c->t.vnet_hdr = vnet_hdr;
    c->peer_timeout = peer_timeout;
    c->out = g_byte_array_new();
    return &c->t;
}
