/*
 * Switchover: the threads, and what they know of a netdev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_THREADS_H
#define NET_SWITCHOVER_THREADS_H

#include "net/switchover/backlog.h"
#include "qemu/main-loop.h"

/* Queues of one netdev, at most: as many as a TAP device has */
#define SWITCHOVER_QUEUES_MAX 256

typedef struct SwitchoverPortQueue {
    int fd;                     /* one frame for each read(2), non-blocking */
    size_t hdr_len;             /* bytes of vnet header that each frame has */
} SwitchoverPortQueue;

typedef struct SwitchoverPort SwitchoverPort;

/*
 * Send from the port's backlog, without blocking.  Called by the sender, or by
 * others between switchover_threads_pause() and switchover_threads_resume().
 * Returns the fd that must become writable before it goes on; -1: none.
 */
typedef int SwitchoverSend(SwitchoverPort *port);

/*
 * SwitchoverPort: what the threads know of one netdev.  Others may look at its
 * fields, and change them, only between switchover_threads_pause() and
 * switchover_threads_resume(), but for those that are said to be atomic.
 */
struct SwitchoverPort {
    QLIST_ENTRY(SwitchoverPort) next;

    SwitchoverBacklog *backlog; /* where frames go */
    size_t limit;               /* of its bytes: reading stops there */
    uint64_t old;               /* frames before that give way instead */
    QEMUBH *bh;                 /* scheduled when frames have come; or NULL */
    unsigned n_queues;
    SwitchoverPortQueue *queues;

    /* The reader's */
    bool reading;               /* read the queues */
    bool full;                  /* the backlog has reached its limit */
    bool rest;                  /* the queues are empty: let frames gather */
    int64_t announced;          /* when ANNOUNCED came, in us; 0: DONE is out */
    int64_t last_read;          /* when the last frame was read, in us */
    uint64_t emptied;           /* number of the frame behind the last DONE */
    bool ages;                  /* frames become old */
    int64_t marked;             /* when mark was set, in us */
    uint64_t mark[2];           /* the tail then, and the time before */
    uint64_t overwritten;       /* frames that gave way so far */
    int64_t arrives;            /* when the VM had stopped, in us; 0: see: */
    uint64_t around;            /* frames before that came until then; atomic */
    uint64_t read;              /* frames read so far; atomic */
    uint64_t invalid;           /* frames without payload; atomic */

    /* The sender's */
    SwitchoverSend *send;       /* NULL: send nothing */
    int blocked;                /* fd that @send waits for, or -1 */
    bool retry;                 /* @send waits for a moment to pass */
};

/**
 * switchover_port_add:
 * @port: a port that neither reads nor sends
 *
 * Add a port to the threads, which are started if there are none.  BQL.
 */
void switchover_port_add(SwitchoverPort *port);

/**
 * switchover_port_remove:
 * @port: a port that was added
 *
 * Remove it.  The threads end with their last port.  BQL.
 */
void switchover_port_remove(SwitchoverPort *port);

/**
 * switchover_threads_pause:
 *
 * Make both threads stop where they are, and wait for that: a few frames at
 * most.  They hold neither the BQL nor any lock of others.  May be called
 * without threads.  BQL.
 */
void switchover_threads_pause(void);

/**
 * switchover_threads_resume:
 *
 * Let both go on, with the ports as they are now.  BQL.
 */
void switchover_threads_resume(void);

/**
 * switchover_threads_pausing:
 *
 * Returns: whether a thread is to end its turn early.  Any thread.
 */
bool switchover_threads_pausing(void);

/**
 * switchover_reader_kick:
 *
 * Let the reader look at its ports: there is room in a backlog again.  Any
 * thread.
 */
void switchover_reader_kick(void);

/**
 * switchover_sender_kick:
 *
 * Let the sender look at its ports: there is something to send.  Any thread.
 */
void switchover_sender_kick(void);

#endif /* NET_SWITCHOVER_THREADS_H */
