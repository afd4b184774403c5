/*
 * filter-redirector: a host network interface as its source or destination
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FILTER_PACKET_H
#define NET_FILTER_PACKET_H

#include "chardev/char-fe.h"
#include "io/channel-packet.h"
#include "migration/misc.h"
#include "net/filter-writer.h"
#include "net/net.h"
#include "net/switchover/arrival.h"
#include "net/switchover/source.h"
#include "qapi/error.h"


/* A capture's socket */
typedef enum FilterPacketState {
    FILTER_PACKET_DETACHED,
    FILTER_PACKET_ATTACHED,
    FILTER_PACKET_DRAINING,     /* inactive, but there may be frames */
    FILTER_PACKET_DROPPING,     /* the same, but they are dropped */
} FilterPacketState;

/* What the filter's options, and the state of the VM, make of it */
typedef enum FilterPacketRole {
    FILTER_PACKET_CHAIN,        /* packets of the chain come, or go */
    FILTER_PACKET_SOURCE,       /* net/switchover: frames of a stopped VM */
    FILTER_PACKET_ARRIVAL,      /* net/switchover: to a VM that arrives */
    FILTER_PACKET_CAPTURE,      /* frames from in_netdev */
    FILTER_PACKET_INJECT,       /* frames to out_netdev */
} FilterPacketRole;

/* Hand a packet from indev to the chain, as the filter's direction says */
typedef void FilterPacketPass(NetFilterState *nf, const struct iovec *iov,
                              int iovcnt);

/*
 * FilterPacket: the part of a redirector's state behind in_netdev, out_netdev,
 * packet_helper, ring_size, hold_limit, drain_timeout and peer_timeout.  All of
 * its functions are for the main loop's thread, or any other that holds the
 * BQL.
 */
typedef struct FilterPacket {
    NetFilterState *nf;
    CharFrontend *chr_in;
    CharFrontend *chr_out;      /* of a switchover's source */
    FilterWriter *writer;
    FilterPacketPass *pass;

    char *in_netdev;
    char *out_netdev;
    char *packet_helper;        /* path */
    uint64_t ring_size;         /* bytes */
    uint64_t hold_limit;        /* bytes */
    uint32_t drain_timeout;     /* ms */
    uint32_t peer_timeout;      /* ms; 0: as the chardev has it */

    bool has_indev;
    bool has_outdev;
    bool vnet_hdr;              /* on the wire */

    SwitchoverSource *source;   /* NULL, or there is no ioc */
    SwitchoverArrival *arrival; /* likewise */

    QIOChannelPacket *ioc;      /* NULL: neither in_netdev nor out_netdev */
    bool active;
    bool gone;                  /* the interface */
    bool watching;              /* a capture's socket, in the main loop */
    QEMUTimer *timer;           /* go on with what there is to do */
    uint8_t *bufs;              /* for two frames */

    FilterPacketState state;    /* of a capture */
    int64_t drain_until;        /* give up waiting for the ring, in us */
    NotifierWithReturn migration;

    PacketQueue held;           /* to be injected */
    bool holds;                 /* something, as the trace has it */
    bool not_read;              /* indev has to wait */
    uint64_t dropped_no_room;   /* frames from the chain beyond hold_limit */
    uint64_t dropped_too_big;   /* frames from the chain */
    uint64_t dropped_gso;       /* frames that cannot be cut */
    uint64_t dropped_invalid;   /* frames with a wrong vnet header */
    uint64_t dropped_gone;      /* frames after the interface was gone */
} FilterPacket;

#ifdef CONFIG_AF_PACKET

/**
 * filter_packet_class_init:
 * @oc: class of a filter that has a FilterPacket
 *
 * Add the properties in_netdev, out_netdev, packet_helper, ring_size,
 * hold_limit and drain_timeout, and interface, which can only be read.  The
 * filter's file defines filter_packet_get().
 */
void filter_packet_class_init(ObjectClass *oc);

/**
 * filter_packet_get:
 * @obj: a filter whose class has been through filter_packet_class_init()
 *
 * Returns: the FilterPacket in @obj
 */
FilterPacket *filter_packet_get(Object *obj);

/**
 * filter_packet_init:
 * @p: part of @nf, zeroed; for the instance_init of @nf
 * @nf: the filter
 * @chr_in: its indev, which the filter itself reads
 * @writer: to its outdev
 * @pass: for what comes from its indev
 */
void filter_packet_init(FilterPacket *p, NetFilterState *nf,
                        CharFrontend *chr_in, FilterWriter *writer,
                        FilterPacketPass *pass);

/**
 * filter_packet_check:
 * @p: the FilterPacket
 * @indev: the filter's option, or NULL
 * @outdev: the filter's option, or NULL
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: false if options contradict each other
 */
bool filter_packet_check(FilterPacket *p, const char *indev,
                         const char *outdev, Error **errp);

/**
 * filter_packet_role:
 * @p: a FilterPacket that has been checked
 *
 * Returns: what it is for; before set-up, as far as the options tell now
 */
FilterPacketRole filter_packet_role(FilterPacket *p);

/**
 * filter_packet_check_chardev:
 * @role: as filter_packet_role() says
 * @option: that names @chr
 * @chr: the chardev
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: false if @chr cannot carry the frames as they are
 */
bool filter_packet_check_chardev(FilterPacketRole role, const char *option,
                                 Chardev *chr, Error **errp);

/**
 * filter_packet_needs_chain:
 * @p: a FilterPacket that has been checked
 *
 * Returns: whether packets of the chain come or go, as far as the options tell
 */
bool filter_packet_needs_chain(FilterPacket *p);

/**
 * filter_packet_setup:
 * @p: a FilterPacket that has been checked; its writer is set up, but for
 *     FILTER_PACKET_SOURCE
 * @chr_out: its outdev
 * @vnet_hdr: whether messages carry a vnet header
 * @errp: pointer to a NULL-initialized error object
 *
 * Open the interface, if an option names one.
 *
 * Returns: true on success, false on error
 */
bool filter_packet_setup(FilterPacket *p, CharFrontend *chr_out, bool vnet_hdr,
                         Error **errp);

/**
 * filter_packet_cleanup:
 * @p: the FilterPacket, in any state
 *
 * Release everything.  To be called before the writer is.
 */
void filter_packet_cleanup(FilterPacket *p);

/**
 * filter_packet_set_active:
 * @p: the FilterPacket
 * @active: whether the filter is active now
 *
 * Start or stop the capture; inject what is held, or begin to hold.
 */
void filter_packet_set_active(FilterPacket *p, bool active);

/**
 * filter_packet_receive_iov:
 * @p: the FilterPacket of an active filter
 * @sender: where the packet comes from
 * @flags: QEMU_NET_PACKET_FLAG_*
 * @iov: a packet from the chain, with the netdev's vnet header
 * @iovcnt: elements of @iov
 *
 * Returns: the packet's size if it was taken, 0 if the chain goes on
 */
ssize_t filter_packet_receive_iov(FilterPacket *p, NetClientState *sender,
                                  unsigned flags, const struct iovec *iov,
                                  int iovcnt);

/**
 * filter_packet_receive_message:
 * @p: the FilterPacket with indev and without out_netdev
 * @rs: has a whole message; its bytes may change
 * @received: counts it, if it has a frame
 *
 * Hand the frame in a message from indev to the chain, with the vnet header
 * that the netdev has, which may be longer or shorter than the message's.
 */
void filter_packet_receive_message(FilterPacket *p, SocketReadState *rs,
                                   NetFilterTraffic *received);

/**
 * filter_packet_can_read:
 * @p: the FilterPacket with indev and out_netdev
 *
 * Returns: bytes that may be read from indev now
 */
int filter_packet_can_read(FilterPacket *p);

/**
 * filter_packet_receive_bytes:
 * @p: the FilterPacket with indev and out_netdev
 * @buf: the next bytes of the stream of messages
 * @len: bytes at @buf
 *
 * Inject the frames in messages from indev, or hold them.
 *
 * Returns: 0, or -1 if the stream is out of step
 */
int filter_packet_receive_bytes(FilterPacket *p, const uint8_t *buf,
                                size_t len);

/**
 * filter_packet_id:
 * @p: the FilterPacket
 *
 * Returns: the filter's id
 */
const char *filter_packet_id(FilterPacket *p);

/**
 * filter_packet_indev_closed:
 * @p: the FilterPacket, with indev
 *
 * The stream of messages ended; the next one begins with a whole message.
 */
void filter_packet_indev_closed(FilterPacket *p);

#else /* !CONFIG_AF_PACKET */

static inline void filter_packet_class_init(ObjectClass *oc)
{
}

static inline void filter_packet_init(FilterPacket *p, NetFilterState *nf,
                                      CharFrontend *chr_in,
                                      FilterWriter *writer,
                                      FilterPacketPass *pass)
{
    p->nf = nf;
    p->pass = pass;
}

static inline bool filter_packet_check(FilterPacket *p, const char *indev,
                                       const char *outdev, Error **errp)
{
    if (!indev && !outdev) {
        error_setg(errp, "filter-redirector needs at least one of 'indev' "
                   "and 'outdev'");
        return false;
    }
    return true;
}

static inline FilterPacketRole filter_packet_role(FilterPacket *p)
{
    return FILTER_PACKET_CHAIN;
}

static inline bool filter_packet_check_chardev(FilterPacketRole role,
                                               const char *option,
                                               Chardev *chr, Error **errp)
{
    return true;
}

static inline bool filter_packet_needs_chain(FilterPacket *p)
{
    return true;
}

static inline bool filter_packet_setup(FilterPacket *p, CharFrontend *chr_out,
                                       bool vnet_hdr, Error **errp)
{
    return true;
}

static inline void filter_packet_cleanup(FilterPacket *p)
{
}

static inline void filter_packet_set_active(FilterPacket *p, bool active)
{
}

static inline ssize_t filter_packet_receive_iov(FilterPacket *p,
                                                NetClientState *sender,
                                                unsigned flags,
                                                const struct iovec *iov,
                                                int iovcnt)
{
    return 0;
}

/* Without AF_PACKET both ends have the same vnet header, or none */
static inline void filter_packet_receive_message(FilterPacket *p,
                                                 SocketReadState *rs,
                                                 NetFilterTraffic *received)
{
    struct iovec iov = { .iov_base = rs->buf, .iov_len = rs->packet_len };
    size_t hdr_len = rs->vnet_hdr ? rs->vnet_hdr_len : 0;

    received->packets++;
    received->bytes += iov.iov_len - MIN(hdr_len, iov.iov_len);
    p->pass(p->nf, &iov, 1);
}

static inline int filter_packet_can_read(FilterPacket *p)
{
    return 0;
}

static inline int filter_packet_receive_bytes(FilterPacket *p,
                                              const uint8_t *buf, size_t len)
{
    return 0;
}

static inline void filter_packet_indev_closed(FilterPacket *p)
{
}

#endif /* !CONFIG_AF_PACKET */

#endif /* NET_FILTER_PACKET_H */
