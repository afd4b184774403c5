/*
 * Switchover: the way of one netdev's frames to the other host
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * What both kinds of transports have in common: the messages in a stream of
 * bytes.
 *
 * The stream of a chardev begins as that of filter-mirror, with a vnet header
 * or without, as the filter's vnet_hdr_support says.  Its first control message
 * says that all frames from there on have one, and a queue.
 */

#include "qemu/osdep.h"
#include "net/switchover/transport.h"
#include "qemu/error-report.h"
#include "trace.h"

/* How often a peer that comes again and again is complained about */
#define COMPLAIN_US (10 * 1000 * 1000)

void switchover_transport_complain(SwitchoverTransport *t, const char *text)
{
    int64_t now = g_get_monotonic_time();

    trace_switchover_transport_complain(t->name, text);
    if (!t->complained || now - t->complained > COMPLAIN_US) {
        t->complained = now;
        error_report("%s: %s: connection terminated", t->name, text);
    }
}

/*
 * Handle the message at @buf, of which @len bytes are there.  Returns its
 * length, 0 if it is not whole, or -1 if it is none.
 */
static ssize_t transport_message(SwitchoverTransport *t, const uint8_t *buf,
                                 size_t len)
{
    size_t head = t->control || t->vnet_hdr ? SWITCHOVER_HEAD :
                  sizeof(uint32_t);
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
        return t->ops->control(t->opaque, ldl_be_p(buf + 4),
                               ldq_be_p(buf + 8)) ? SWITCHOVER_CONTROL : -1;
    }
    n = ldl_be_p(buf);
    if (n > SWITCHOVER_FRAME_MAX || !t->ops->frame) {
        g_autofree char *text =
            g_strdup_printf("packet of %" PRIu32 " bytes announced, at most %d "
                            "are possible", n,
                            t->ops->frame ? SWITCHOVER_FRAME_MAX : 0);

        switchover_transport_complain(t, text);
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

bool switchover_transport_receive(SwitchoverTransport *t, const uint8_t *buf,
                                  size_t len)
{
    bool waited = t->in->len;
    size_t pos = 0;
    ssize_t n;

    if (waited) {
        g_byte_array_append(t->in, buf, len);
        buf = t->in->data;
        len = t->in->len;
    }
    while ((n = transport_message(t, buf + pos, len - pos)) > 0) {
        pos += n;
    }
    if (n < 0) {
        g_byte_array_set_size(t->in, 0);
        return false;
    }
    if (waited) {
        g_byte_array_remove_range(t->in, 0, pos);
    } else {
        g_byte_array_append(t->in, buf + pos, len - pos);
    }
    return true;
}

bool switchover_transport_can_receive(SwitchoverTransport *t)
{
    return !t->ops->can_receive || t->ops->can_receive(t->opaque);
}

void switchover_transport_set_connected(SwitchoverTransport *t,
                                        bool connected)
{
    t->connected = connected;
    t->control = t->introduced;
    g_byte_array_set_size(t->in, 0);
    trace_switchover_transport(t->name, connected);
    t->ops->changed(t->opaque, connected);
}

void switchover_transport_control(SwitchoverTransport *t,
                                  SwitchoverMessageType type, uint64_t value)
{
    uint8_t buf[SWITCHOVER_CONTROL];

    if (t->connected) {
        trace_switchover_control_sent(t->name, type, value);
        switchover_message_put_control(buf, type, value);
        t->kind->control(t, buf, sizeof(buf));
    }
}

bool switchover_transport_is_possible(SwitchoverTransport *t)
{
    return !t->kind->is_possible || t->kind->is_possible(t);
}

void switchover_transport_update_channel(SwitchoverTransport *t)
{
    if (t->ioc) {
        object_unref(OBJECT(t->ioc));
        t->ioc = NULL;
        t->fd = -1;
    }
    t->threaded = false;
    if (t->connected) {
        t->kind->update_channel(t);
    }
}

int switchover_transport_flush(SwitchoverTransport *t)
{
    return t->kind->flush ? t->kind->flush(t) : 1;
}

ssize_t switchover_transport_write(SwitchoverTransport *t, const uint8_t *buf,
                                   size_t len)
{
    return t->kind->write(t, buf, len);
}

guint switchover_transport_add_watch(SwitchoverTransport *t, FEWatchFunc func,
                                     void *opaque)
{
    return t->kind->add_watch ? t->kind->add_watch(t, func, opaque) : 0;
}

void switchover_transport_accept_input(SwitchoverTransport *t)
{
    t->kind->accept_input(t);
}

void switchover_transport_read_now(SwitchoverTransport *t)
{
    t->kind->read_now(t);
}

void switchover_transport_init(SwitchoverTransport *t,
                               const SwitchoverTransportKind *kind, char *name)
{
    t->kind = kind;
    t->name = name;
    t->in = g_byte_array_new();
    t->fd = -1;
}

void switchover_transport_start(SwitchoverTransport *t,
                                const SwitchoverTransportOps *ops,
                                void *opaque)
{
    t->ops = ops;
    t->opaque = opaque;
    t->kind->start(t);
}

void switchover_transport_free(SwitchoverTransport *t)
{
    if (t) {
        t->connected = false;
        switchover_transport_update_channel(t);
        g_byte_array_unref(t->in);
        g_free(t->name);
        t->kind->free(t);
    }
}
