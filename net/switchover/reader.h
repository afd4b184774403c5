/*
 * Switchover: the thread that reads the queues of netdevs, and sends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_READER_H
#define NET_SWITCHOVER_READER_H

#include "net/switchover/backlog.h"
#include "qemu/main-loop.h"

/* Queues of one netdev, at most: as many as a TAP device has */
#define SWITCHOVER_QUEUES_MAX 256

typedef struct SwitchoverReaderQueue {
    int fd;                     /* one frame for each read(2), non-blocking */
    size_t hdr_len;             /* bytes of vnet header that each frame has */
} SwitchoverReaderQueue;

typedef struct SwitchoverPort SwitchoverPort;

/*
 * Send from the port's backlog, without blocking.  Called by the thread, or
 * by others between switchover_reader_pause() and switchover_reader_resume().
 * Returns the fd that must become writable before it goes on; -1: none.
 */
typedef int SwitchoverSend(SwitchoverPort *port);

/*
 * SwitchoverPort: what the thread knows of one netdev.  Its fields may be
 * changed only between switchover_reader_pause() and
 * switchover_reader_resume(), but for those that are said to be atomic.
 */
struct SwitchoverPort {
    QLIST_ENTRY(SwitchoverPort) next;

    SwitchoverBacklog *backlog; /* where frames go */
    size_t limit;               /* of its bytes: reading stops there */
    QEMUBH *bh;                 /* scheduled when frames have come; or NULL */
    unsigned n_queues;
    SwitchoverReaderQueue *queues;

    bool reading;               /* read the queues */
    bool full;                  /* the backlog has reached its limit */
    int64_t announced;          /* when ANNOUNCED came, in us; 0: DONE is out */
    int64_t last_read;          /* when the last frame was read, in us */
    uint64_t emptied;           /* number of the frame behind the last DONE */
    SwitchoverSend *send;       /* NULL: send nothing */
    int blocked;                /* fd that @send waits for, or -1 */
    bool retry;                 /* @send waits for a moment to pass */
    uint64_t read;              /* frames read so far; atomic */
    uint64_t invalid;           /* frames without payload; atomic */
};

/**
 * switchover_reader_add:
 * @port: a port that neither reads nor sends
 *
 * Add a port to the process's thread, which is started if there is none.  BQL.
 */
void switchover_reader_add(SwitchoverPort *port);

/**
 * switchover_reader_remove:
 * @port: a port that was added
 *
 * Remove it.  The thread ends with its last port.  BQL.
 */
void switchover_reader_remove(SwitchoverPort *port);

/**
 * switchover_reader_pause:
 *
 * Make the thread stop where it is, and wait for that: a few frames at most.
 * It holds neither the BQL nor any lock of others.  May be called without a
 * thread.  BQL.
 */
void switchover_reader_pause(void);

/**
 * switchover_reader_resume:
 *
 * Let the thread go on, with the ports as they are now.  BQL.
 */
void switchover_reader_resume(void);

/**
 * switchover_reader_kick:
 *
 * Let the thread look at its ports: there is room in a backlog again.  Any
 * thread.
 */
void switchover_reader_kick(void);

#endif /* NET_SWITCHOVER_READER_H */
