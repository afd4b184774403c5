/*
 * Switchover: the frames that reach a VM's host while the VM is migrated
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_H
#define NET_SWITCHOVER_H

#include "migration/misc.h"
#include "net/switchover/threads.h"
#include "system/runstate.h"

typedef struct SwitchoverSource SwitchoverSource;
typedef struct SwitchoverArrival SwitchoverArrival;

/* Frames that were lost, by reason */
typedef struct SwitchoverDrops {
    uint64_t queue_full;        /* the kernel's queue was full, or down */
    uint64_t invalid;           /* no room for a vnet header and a frame */
    uint64_t gso;               /* large frames that cannot be segmented */
    uint64_t guest;             /* the guest did not take them in time */
    uint64_t no_peer;           /* not acknowledged when the filter ended */
} SwitchoverDrops;

/* What was done since the filter was made; frames, but where it says bytes */
typedef struct SwitchoverStats {
    bool connected;             /* there is a peer */
    uint64_t packets;           /* that went to the peer, or came from it */
    uint64_t bytes;             /* their length without vnet headers */
    uint64_t queued;            /* that the peer has not taken */
    uint64_t queued_bytes;      /* their size with headers */
    uint64_t held;              /* in memory, not acknowledged or delivered */
    uint64_t held_bytes;        /* their size with headers */
    uint64_t limit;             /* hold_limit, in bytes */

    uint64_t read;              /* from the netdev's queues */
    uint64_t sent;              /* to a destination */
    uint64_t acknowledged;      /* by a destination */
    uint64_t delivered;         /* of a source's, to this guest */
    uint64_t given_back;        /* saved and not needed, to this guest */
    uint64_t direct;            /* others of the queues, to this guest */
    uint64_t flooded;           /* came both ways, dropped once */
    uint64_t peak;              /* largest number in memory */
    uint64_t peak_bytes;        /* largest size in memory */
    int64_t drain_us;           /* how long the last delivery took */
    SwitchoverDrops dropped;
} SwitchoverStats;

/*
 * Switchover: one netdev whose frames are saved.  There is at most one for
 * each netdev, shared by the two roles: the source of a migration, and the
 * destination of one.  A VM that has just arrived, and is migrated on, has
 * both.  All functions need the BQL, but where they say otherwise.
 */
typedef struct Switchover {
    QTAILQ_ENTRY(Switchover) next;
    NetClientState *nc;         /* the netdev's first queue */
    NetClientState **queues;    /* all of them */
    unsigned n_queues;
    SwitchoverSource *source;   /* NULL: this VM's migrations are not saved */
    SwitchoverArrival *arrival; /* NULL: no VM arrives here */

    SwitchoverBacklog own;      /* frames from this host's queues */
    SwitchoverPort port;        /* the threads'; own is its backlog */
    bool has_port;              /* it was added to the threads */
    bool has_fds;               /* the reader can read this netdev */
    bool taken;                 /* QEMU's own reading is off */

    VMChangeStateEntry *before; /* called before the VM's devices start */
    VMChangeStateEntry *after;  /* called after they have started */
    NotifierWithReturn migration;
    NotifierWithReturn complete;
    bool vm_running;            /* as the handlers were told */
    bool migrating;             /* by an outgoing migration that notifies us */
    bool done;                  /* and the destination is about to run */
    bool begun;                 /* frames of the stopped VM are saved */

    bool delivering;            /* frames go to the NIC by QEMU's datapath */
    bool closing;               /* and the last ones have been read */
    int64_t looked;             /* when the next two were set, in us; or 0 */
    uint64_t looked_head;       /* number of own's oldest frame */
    uint64_t looked_frames;     /* own's frames */
    bool sending;               /* a frame is on its way through the chain */
    SwitchoverBacklog *flying;  /* whose oldest frame is in the NIC's queue */
    QEMUBH *bh;                 /* deliver */
    QEMUTimer *timer;           /* look whether there is progress */
    int64_t started;            /* when the delivery did, in us */
    int64_t progress;           /* when the last frame was delivered, in us */
    int64_t drain_us;           /* how long the last delivery took */
    uint8_t *scratch;           /* room for a frame, when it is changed */

    uint64_t delivered;         /* frames of the source that the guest has */
    uint64_t direct;            /* frames of this host's queues, likewise */
    uint64_t given_back;        /* frames that were saved, and not needed */
    uint64_t give_back;         /* frames of own before this one were saved */
    uint64_t early;             /* and before this one came before the stop */
    uint64_t stale;             /* and before this one long before it */
    uint64_t missed;            /* frames before that which were not kept */
    bool arriving;              /* frames are for a VM that has not arrived */
    SwitchoverDrops dropped;

    int dev_fd;                 /* /proc/self/net/dev, or -1 */
    unsigned ifindex;           /* of the host's interface; 0: not known */
    bool has_queue_drops;
    uint64_t queue_drops;       /* of the interface, at the last look */
} Switchover;

/**
 * switchover_get:
 * @netdev: a netdev, that is, its first queue
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: the switchover of a netdev, made if there is none; NULL if its
 *     frames cannot be saved
 */
Switchover *switchover_get(NetClientState *netdev, Error **errp);

/**
 * switchover_put:
 * @sw: the switchover
 *
 * Give it back: source and arrival have been cleared by who set them.
 */
void switchover_put(Switchover *sw);

/**
 * switchover_hold:
 * @sw: the switchover of a VM that runs, or is about to
 *
 * Deliver frames by QEMU's datapath, those of the source first, until there
 * are none; vhost does not run meanwhile.
 */
void switchover_hold(Switchover *sw);

/**
 * switchover_go_on:
 * @sw: the switchover
 *
 * Something has changed: deliver what can be delivered, soon.
 */
void switchover_go_on(Switchover *sw);

/**
 * switchover_update_idle:
 * @sw: the switchover
 *
 * While the VM is stopped and it is not for its migration, QEMU does not read
 * the queues: it would take one frame, and lose it; or, before the VM's state
 * is loaded, not know the length of the vnet header that its guest wants.
 */
void switchover_update_idle(Switchover *sw);

/**
 * switchover_arrives:
 * @sw: the switchover of a VM that arrives here
 *
 * The VM has stopped at its source.  What is read from now on is news.
 */
void switchover_arrives(Switchover *sw);

/**
 * switchover_arrived:
 * @sw: the switchover of a VM that has just started here
 * @had_stale: its guest has had, at the source, what came before it stopped
 *
 * All that is read from now on is kept.
 *
 * Returns: how many frames were dropped as the guest has had them
 */
uint64_t switchover_arrived(Switchover *sw, bool had_stale);

/**
 * switchover_expect:
 * @sw: the switchover of a VM that may arrive here
 * @limit: bytes of frames that are kept, at most
 *
 * The network may switch before the VM stops: read the queues from now on, and
 * keep the newest frames.  What is in them already is too old to be of use.
 */
void switchover_expect(Switchover *sw, uint64_t limit);

/* Likewise each netdev with a filter for the frames of a source */
void switchover_expect_all(void);

/* The migration to here has failed: of no VM, until the next one */
void switchover_forget_all(void);

/**
 * switchover_begin:
 * @sw: the switchover, whose VM has been stopped by its migration
 *
 * Save the frames of the stopped VM from now on.
 */
void switchover_begin(Switchover *sw);

/**
 * switchover_prepare:
 * @sw: the switchover of a VM whose migration begins
 *
 * Start the threads, if they do not run for it yet: best not while the VM is
 * stopped.
 */
void switchover_prepare(Switchover *sw);

/**
 * switchover_receive_iov:
 * @sw: the switchover
 * @sender: where the packet comes from
 * @flags: QEMU_NET_PACKET_FLAG_*
 * @iov: a packet of the chain, with the netdev's vnet header
 * @iovcnt: elements of @iov
 *
 * Take the frames of a netdev that the reader cannot read.
 *
 * Returns: the packet's size if it was taken, 0 if the chain goes on
 */
ssize_t switchover_receive_iov(Switchover *sw, NetClientState *sender,
                               unsigned flags, const struct iovec *iov,
                               int iovcnt);

/**
 * switchover_count_drop:
 * @sw: the switchover
 * @counter: one of its counters
 * @n: frames
 * @reason: why; the same for all on @counter
 *
 * Count frames that are lost; report the first.
 */
void switchover_count_drop(Switchover *sw, uint64_t *counter, uint64_t n,
                           const char *reason);

/**
 * switchover_look_at_queue:
 * @sw: the switchover
 * @count: whether what was dropped since the last look counts
 *
 * Look at the kernel's counter of frames that found the queue full.
 */
void switchover_look_at_queue(Switchover *sw, bool count);

/**
 * switchover_get_stats:
 * @sw: the switchover
 * @stats: is filled in, but for what only a source or an arrival knows
 */
void switchover_get_stats(Switchover *sw, SwitchoverStats *stats);

#endif /* NET_SWITCHOVER_H */
