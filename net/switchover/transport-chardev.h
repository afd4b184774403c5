/*
 * Switchover: frames by way of a chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_TRANSPORT_CHARDEV_H
#define NET_SWITCHOVER_TRANSPORT_CHARDEV_H

#include "chardev/char-fe.h"
#include "io/channel.h"
#include "net/switchover/message.h"

typedef struct SwitchoverTransport SwitchoverTransport;

/* What the owner of a transport wants to know.  BQL. */
typedef struct SwitchoverTransportOps {
    /* A peer has come, or gone */
    void (*changed)(void *opaque, bool connected);
    /* A control message; @type may be one that the receiver does not know */
    void (*control)(void *opaque, uint32_t type, uint64_t value);
    /* A frame; NULL for a side that is sent none */
    void (*frame)(void *opaque, unsigned queue, size_t hdr_len,
                  const uint8_t *data, size_t len);
    /* May frames come?  NULL: yes */
    bool (*can_receive)(void *opaque);
} SwitchoverTransportOps;

/*
 * SwitchoverTransport: the connection of one netdev with the other host, by a
 * chardev.  The only file that knows of chardevs.
 */
struct SwitchoverTransport {
    CharFrontend *chr;
    char *id;                   /* of the filter, for messages */
    const SwitchoverTransportOps *ops;
    void *opaque;

    bool connected;             /* there is a peer, as far as can be known */
    bool stream;                /* writes may be divided and joined */
    bool vnet_hdr;              /* frames without control messages have one */
    bool control;               /* messages are as in message.h */
    GByteArray *in;             /* the beginning of a message */
    GByteArray *out;            /* control messages that wait to be written */
    guint watch;                /* for @out, or for the owner's frames */
    QIOChannel *ioc;            /* for the sender's thread; NULL: none */
    int fd;                     /* becomes writable when @ioc does */
};

/**
 * switchover_transport_init:
 * @t: the transport, zeroed
 * @chr: initialized, from now on used by @t alone
 * @id: of the filter, for messages
 * @vnet_hdr: whether frames of a peer without control messages have a vnet
 *     header
 * @ops: the owner's functions
 * @opaque: for @ops
 */
void switchover_transport_init(SwitchoverTransport *t, CharFrontend *chr,
                               const char *id, bool vnet_hdr,
                               const SwitchoverTransportOps *ops, void *opaque);

/**
 * switchover_transport_destroy:
 * @t: the transport
 *
 * To be called before the chardev's front end is freed.
 */
void switchover_transport_destroy(SwitchoverTransport *t);

/**
 * switchover_transport_update_channel:
 * @t: the transport
 *
 * Set @ioc and @fd to those of the present connection.  No other thread writes.
 */
void switchover_transport_update_channel(SwitchoverTransport *t);

/**
 * switchover_transport_control:
 * @t: the transport
 * @type: of the message
 * @value: of the message
 *
 * Send a control message, soon: what the peer does not take now waits, and is
 * dropped with the connection.  For a side that sends no frames.
 */
void switchover_transport_control(SwitchoverTransport *t,
                                  SwitchoverMessageType type, uint64_t value);

/**
 * switchover_transport_write:
 * @t: the transport
 * @buf: bytes of messages
 * @len: how many
 *
 * Write what the peer takes at once.  With @ioc for any thread, and one at a
 * time; else with the BQL, and one message.
 *
 * Returns: bytes written; 0 if the peer takes none now; -1 if the connection
 *     is broken
 */
ssize_t switchover_transport_write(SwitchoverTransport *t, const uint8_t *buf,
                                   size_t len);

/**
 * switchover_transport_accept_input:
 * @t: the transport
 *
 * can_receive() may have changed.
 */
void switchover_transport_accept_input(SwitchoverTransport *t);

/**
 * switchover_transport_read_now:
 * @t: the transport
 *
 * Handle some of what has arrived, without waiting for the main loop's turn.
 */
void switchover_transport_read_now(SwitchoverTransport *t);

#endif /* NET_SWITCHOVER_TRANSPORT_CHARDEV_H */
