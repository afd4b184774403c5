/*
 * Switchover: the way of one netdev's frames to the other host
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_TRANSPORT_H
#define NET_SWITCHOVER_TRANSPORT_H

#include "chardev/char-fe.h"
#include "io/channel.h"
#include "net/switchover/message.h"

typedef struct SwitchoverTransport SwitchoverTransport;

/* What the owner of a transport wants to know.  BQL. */
typedef struct SwitchoverTransportOps {
    /* A peer has come, or gone */
    void (*changed)(void *opaque, bool connected);
    /*
     * A control message; @type may be one that the receiver does not know.
     * Returns false, with a message, if the connection is to be closed.
     */
    bool (*control)(void *opaque, uint32_t type, uint64_t value);
    /* A frame; NULL for a side that is sent none */
    void (*frame)(void *opaque, unsigned queue, size_t hdr_len,
                  const uint8_t *data, size_t len);
    /* May frames come?  NULL: yes */
    bool (*can_receive)(void *opaque);
} SwitchoverTransportOps;

/* What the kinds of transports do differently; see the functions below */
typedef struct SwitchoverTransportKind {
    void (*start)(SwitchoverTransport *t);
    void (*free)(SwitchoverTransport *t);
    bool (*is_possible)(SwitchoverTransport *t);
    void (*update_channel)(SwitchoverTransport *t);
    void (*control)(SwitchoverTransport *t, const uint8_t *buf, size_t len);
    int (*flush)(SwitchoverTransport *t);
    ssize_t (*write)(SwitchoverTransport *t, const uint8_t *buf, size_t len);
    guint (*add_watch)(SwitchoverTransport *t, FEWatchFunc func, void *opaque);
    void (*accept_input)(SwitchoverTransport *t);
    void (*read_now)(SwitchoverTransport *t);
} SwitchoverTransportKind;

/*
 * SwitchoverTransport: the connection of one netdev with the other host, by a
 * chardev (transport-chardev.h) or by the migration's own connection
 * (transport-migration.h).
 */
struct SwitchoverTransport {
    const SwitchoverTransportKind *kind;
    char *name;                 /* for messages: of what it is a part */
    const SwitchoverTransportOps *ops;
    void *opaque;

    bool connected;             /* there is a peer, as far as can be known */
    bool stream;                /* writes may be divided and joined */
    bool vnet_hdr;              /* frames without control messages have one */
    bool control;               /* messages are as in message.h */
    bool introduced;            /* both sides know that from the beginning */
    bool may_return;            /* the user may make another connection */
    GByteArray *in;             /* the beginning of a message */
    int64_t complained;         /* when that was last done, in us; or 0 */
    bool threaded;              /* the sender's thread writes */
    QIOChannel *ioc;            /* it writes to that; NULL: none */
    int fd;                     /* becomes writable when @ioc does */
    bool throttled;             /* the last write waits for time to pass */
};

/* For those who make one: set @kind and @name, whose string is taken */
void switchover_transport_init(SwitchoverTransport *t,
                               const SwitchoverTransportKind *kind, char *name);

/**
 * switchover_transport_start:
 * @t: a new transport
 * @ops: the owner's functions
 * @opaque: for @ops
 */
void switchover_transport_start(SwitchoverTransport *t,
                                const SwitchoverTransportOps *ops,
                                void *opaque);

/**
 * switchover_transport_free:
 * @t: the transport; NULL: do nothing
 *
 * To be called before its chardev's front end is freed.
 */
void switchover_transport_free(SwitchoverTransport *t);

/**
 * switchover_transport_is_possible:
 * @t: the transport
 *
 * Returns: whether there may be a peer by the time that frames are to be sent.
 */
bool switchover_transport_is_possible(SwitchoverTransport *t);

/**
 * switchover_transport_update_channel:
 * @t: the transport
 *
 * Set @threaded, @ioc and @fd to those of the present connection.  No other
 * thread writes.
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
 * switchover_transport_flush:
 * @t: the transport
 *
 * To be called before switchover_transport_write(), and as that.
 *
 * Returns: 1 if nothing waits to be written that came from there; 0 if the peer
 *     takes nothing now; -1 if the connection is broken
 */
int switchover_transport_flush(SwitchoverTransport *t);

/**
 * switchover_transport_write:
 * @t: the transport
 * @buf: bytes of messages
 * @len: how many
 *
 * Write what the peer takes at once.  If it is @threaded for any thread, and
 * one at a time; else with the BQL, and one message.
 *
 * Returns: bytes written; 0 if the peer takes none now; -1 if the connection
 *     is broken
 */
ssize_t switchover_transport_write(SwitchoverTransport *t, const uint8_t *buf,
                                   size_t len);

/**
 * switchover_transport_add_watch:
 * @t: the transport; it is not @threaded
 * @func: called in the main loop when the peer takes something, or is gone
 * @opaque: for @func
 *
 * Returns: the number of a GSource; 0 if there is nothing to wait for
 */
guint switchover_transport_add_watch(SwitchoverTransport *t, FEWatchFunc func,
                                     void *opaque);

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

/**
 * switchover_transport_complain:
 * @t: the transport
 * @text: what is wrong with the peer
 *
 * Say that the connection is closed for that, if that was not said just now:
 * the peer may come again and again.
 */
void switchover_transport_complain(SwitchoverTransport *t, const char *text);

/* For the kinds: may frames come? */
bool switchover_transport_can_receive(SwitchoverTransport *t);

/* For the kinds: a peer has come, or gone */
void switchover_transport_set_connected(SwitchoverTransport *t,
                                        bool connected);

/**
 * switchover_transport_receive:
 * @t: the transport
 * @buf: bytes of messages, which begin and end anywhere
 * @len: how many
 *
 * For the kinds: handle what has come.
 *
 * Returns: false, with a message, if that cannot be a message; from then on
 *     the connection is out of step for good
 */
bool switchover_transport_receive(SwitchoverTransport *t, const uint8_t *buf,
                                  size_t len);

#endif /* NET_SWITCHOVER_TRANSPORT_H */
