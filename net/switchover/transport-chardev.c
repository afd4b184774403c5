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
 *
 * The stream begins as that of filter-mirror, with a vnet header or without, as
 * the filter's vnet_hdr_support says.  Its first control message says that
 * all frames from there on have one, and a queue.
 */

#include "qemu/osdep.h"
#include "net/switchover/transport-chardev.h"
#include "chardev/char-socket.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "trace.h"

/* Bytes that are read at once: one message at least */
#define READ_LEN (SWITCHOVER_HEAD + SWITCHOVER_FRAME_MAX)

static size_t transport_head(SwitchoverTransport *t, const uint8_t *buf)
{
    return t->control || t->vnet_hdr ? SWITCHOVER_HEAD : sizeof(uint32_t);
}

/*
 * Handle the message at @buf, of which @len bytes are there.  Returns its
 * length, 0 if it is not whole, or -1 if it is none.
 */
static ssize_t transport_message(SwitchoverTransport *t, const uint8_t *buf,
                                 size_t len)
{
    size_t head = transport_head(t, buf);
    unsigned queue = 0;
    size_t hdr_len = 0;
    uint32_t n;

    if (len < sizeof(uint32_t)) {
        return 0;
    }
    if (switchover_message_is_control(buf)) {
        if (len < SWITCHOVER_CONTROL) {
            return 0;
        }
        t->control = true;
        t->ops->control(t->opaque, ldl_be_p(buf + 4), ldq_be_p(buf + 8));
        return SWITCHOVER_CONTROL;
    }
    n = ldl_be_p(buf);
    if (n > SWITCHOVER_FRAME_MAX || !t->ops->frame) {
        error_report("filter-redirector '%s': packet of %" PRIu32 " bytes "
                     "announced, at most %d are possible: connection "
                     "terminated", t->id, n,
                     t->ops->frame ? SWITCHOVER_FRAME_MAX : 0);
        return -1;
    }
    if (len < head + n) {
        return 0;
    }
    if (t->control) {
        queue = lduw_be_p(buf + 4);
        hdr_len = lduw_be_p(buf + 6);
    } else if (t->vnet_hdr) {
        hdr_len = MIN((uint32_t)ldl_be_p(buf + 4), UINT16_MAX);
    }
    t->ops->frame(t->opaque, queue, hdr_len, buf + head, n);
    return head + n;
}

/* Handle the whole messages; returns the bytes handled, or -1 */
static ssize_t transport_messages(SwitchoverTransport *t, const uint8_t *buf,
                                  size_t len)
{
    size_t pos = 0;
    ssize_t n;

    while ((n = transport_message(t, buf + pos, len - pos)) > 0) {
        pos += n;
    }
    return n < 0 ? n : pos;
}

static int transport_can_read(void *opaque)
{
    SwitchoverTransport *t = opaque;

    return !t->ops->can_receive || t->ops->can_receive(t->opaque) ?
           READ_LEN : 0;
}

static void transport_read(void *opaque, const uint8_t *buf, int size)
{
    SwitchoverTransport *t = opaque;
    ssize_t n;

    if (t->in->len) {
        g_byte_array_append(t->in, buf, size);
        buf = t->in->data;
        size = t->in->len;
    }
    n = transport_messages(t, buf, size);
    if (n < 0) {
        /* Out of step for good; a new connection may do better */
        g_byte_array_set_size(t->in, 0);
        qemu_chr_fe_disconnect(t->chr);
        if (qemu_chr_fe_backend_open(t->chr)) {
            qemu_chr_fe_set_handlers(t->chr, NULL, NULL, NULL, NULL, NULL,
                                     NULL, true);
        }
    } else if (t->in->len) {
        g_byte_array_remove_range(t->in, 0, n);
    } else {
        g_byte_array_append(t->in, buf + n, size - n);
    }
}

static gboolean transport_writable(void *do_not_use, GIOCondition cond,
                                   void *opaque);

/* Write the control messages that wait */
static void transport_flush(SwitchoverTransport *t)
{
    int n;

    if (!t->out->len || t->watch) {
        return;
    }
    n = qemu_chr_fe_write(t->chr, t->out->data, t->out->len);
    if (n > 0) {
        g_byte_array_remove_range(t->out, 0, n);
    }
    if (t->out->len) {
        t->watch = qemu_chr_fe_add_watch(t->chr, G_IO_OUT | G_IO_HUP,
                                         transport_writable, t);
        if (!t->watch) {
            g_byte_array_set_size(t->out, 0);
        }
    }
}

static gboolean transport_writable(void *do_not_use, GIOCondition cond,
                                   void *opaque)
{
    SwitchoverTransport *t = opaque;

    t->watch = 0;
    transport_flush(t);
    return G_SOURCE_REMOVE;
}

void switchover_transport_control(SwitchoverTransport *t,
                                  SwitchoverMessageType type, uint64_t value)
{
    uint8_t buf[SWITCHOVER_CONTROL];

    if (t->connected) {
        trace_switchover_control_sent(t->id, type, value);
        switchover_message_put_control(buf, type, value);
        g_byte_array_append(t->out, buf, sizeof(buf));
        transport_flush(t);
    }
}

ssize_t switchover_transport_write(SwitchoverTransport *t, const uint8_t *buf,
                                   size_t len)
{
    ssize_t n;

    if (t->ioc) {
        n = qio_channel_write(t->ioc, (const char *)buf, len, NULL);
        return n == QIO_CHANNEL_ERR_BLOCK ? 0 : n;
    }
    n = qemu_chr_fe_write(t->chr, buf, MIN(len, switchover_message_len(buf)));
    return n < 0 && errno == EAGAIN ? 0 : n;
}

void switchover_transport_accept_input(SwitchoverTransport *t)
{
    qemu_chr_fe_accept_input(t->chr);
}

void switchover_transport_read_now(SwitchoverTransport *t)
{
    qemu_chr_socket_read_now(qemu_chr_fe_get_driver(t->chr));
}

void switchover_transport_update_channel(SwitchoverTransport *t)
{
    if (t->ioc) {
        object_unref(OBJECT(t->ioc));
        t->ioc = NULL;
        t->fd = -1;
    }
    if (t->connected) {
        t->ioc = qemu_chr_socket_channel(qemu_chr_fe_get_driver(t->chr),
                                         &t->fd);
    }
}

static void transport_set_connected(SwitchoverTransport *t, bool connected)
{
    t->connected = connected;
    t->control = false;
    g_byte_array_set_size(t->in, 0);
    g_byte_array_set_size(t->out, 0);
    if (t->watch) {
        g_source_remove(t->watch);
        t->watch = 0;
    }
    trace_switchover_transport(t->id, connected);
}

static void transport_event(void *opaque, QEMUChrEvent event)
{
    SwitchoverTransport *t = opaque;

    if (event == CHR_EVENT_OPENED || event == CHR_EVENT_CLOSED) {
        transport_set_connected(t, event == CHR_EVENT_OPENED);
        t->ops->changed(t->opaque, t->connected);
    }
}

void switchover_transport_init(SwitchoverTransport *t, CharFrontend *chr,
                               const char *id, bool vnet_hdr,
                               const SwitchoverTransportOps *ops, void *opaque)
{
    t->chr = chr;
    t->id = g_strdup(id);
    t->vnet_hdr = vnet_hdr;
    t->ops = ops;
    t->opaque = opaque;
    t->in = g_byte_array_new();
    t->out = g_byte_array_new();
    t->fd = -1;
    /* Only these have events for their peers, and are streams for sure */
    t->stream = qemu_chr_has_feature(qemu_chr_fe_get_driver(chr),
                                     QEMU_CHAR_FEATURE_RECONNECTABLE);
    t->connected = !t->stream;
    qemu_chr_fe_set_handlers(chr, transport_can_read, transport_read,
                             transport_event, NULL, t, NULL, true);
}

void switchover_transport_destroy(SwitchoverTransport *t)
{
    if (t->chr) {
        qemu_chr_fe_set_handlers(t->chr, NULL, NULL, NULL, NULL, NULL, NULL,
                                 true);
        transport_set_connected(t, false);
        switchover_transport_update_channel(t);
        g_byte_array_unref(t->in);
        g_byte_array_unref(t->out);
        g_free(t->id);
        t->chr = NULL;
    }
}
