/*
 * Switchover: the messages between source and destination
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_SWITCHOVER_MESSAGE_H
#define NET_SWITCHOVER_MESSAGE_H

#include "net/net.h"
#include "qemu/bswap.h"

/*
 * All integers are big endian.  A frame is the message of filter-mirror with
 * vnet_hdr_support, with the netdev's queue in the upper half of a word:
 *
 *   be32 length of what follows the next word
 *   be16 number of the netdev's queue
 *   be16 length of the vnet header
 *   vnet header, in the source host's byte order; frame
 *
 * A control message has a length that no frame can have, so both can be told
 * apart in one stream:
 *
 *   be32 SWITCHOVER_MAGIC
 *   be32 SwitchoverMessageType
 *   be64 value
 *
 * They are sent only to a peer that has said HELLO: an older one, which never
 * says anything, gets frames as it knows them.
 *
 *   destination                      source
 *                 VM_HIGH, VM_LOW, CARD,
 *                 HELLO ->               when they are connected
 *                                        the VM stops
 *                 <- VM_HIGH, VM_LOW, CARD,
 *                    START, frames
 *   the VM starts
 *   frames to the guest
 *                 RECEIVED ->            may free these frames
 *   announcement
 *                 ANNOUNCED ->           reads its queues until they are empty
 *                 <- frames, DONE
 *   frames that came directly
 */
#define SWITCHOVER_MAGIC 0x51535743 /* "QSWC" */

#define SWITCHOVER_HEAD 8           /* bytes before vnet header and frame */
#define SWITCHOVER_CONTROL 16       /* bytes of a control message */

/* Most bytes of vnet header and frame together */
#define SWITCHOVER_FRAME_MAX NET_BUFSIZE

/* Most bytes of a vnet header */
#define SWITCHOVER_VNET_HDR_MAX 64

typedef enum SwitchoverMessageType {
    /*
     * From the destination: it understands control messages.  Value: frames
     * that it has received since the last START.
     */
    SWITCHOVER_HELLO = 1,
    /* The same, and its VM waits for 'cont' once it has arrived */
    SWITCHOVER_HELLO_PAUSED = 2,
    /* From the source: its VM has stopped.  Value: number of the next frame. */
    SWITCHOVER_START = 3,
    /* From the destination: the guest has the frames before number value */
    SWITCHOVER_RECEIVED = 4,
    /* From the destination: the guest's new location was announced */
    SWITCHOVER_ANNOUNCED = 5,
    /* From the source: these were all frames when the above came */
    SWITCHOVER_DONE = 6,
    /*
     * From the source, without HELLO: these were all frames when the VM's state
     * had been sent
     */
    SWITCHOVER_FIRST = 7,
    /* From the destination, without HELLO: its VM waits for 'cont' */
    SWITCHOVER_PAUSED = 8,
    /* From the destination, without HELLO: it does not want the frames */
    SWITCHOVER_REFUSED = 9,
    /*
     * From either side, by a chardev, before HELLO or START: whose frames they
     * are.  Upper and lower half of the VM's UUID, 0 if it has none; MAC
     * address of the card, and the length of vnet headers in the lower 16 bits.
     */
    SWITCHOVER_VM_HIGH = 10,
    SWITCHOVER_VM_LOW = 11,
    SWITCHOVER_CARD = 12,
} SwitchoverMessageType;

/* A frame that lies in memory as a message */
typedef struct SwitchoverFrame {
    uint64_t number;            /* of the frame in its backlog */
    unsigned queue;             /* of the netdev */
    size_t hdr_len;             /* bytes of vnet header */
    const uint8_t *data;        /* vnet header and frame */
    size_t len;                 /* bytes at @data */
} SwitchoverFrame;

static inline bool switchover_message_is_control(const uint8_t *buf)
{
    return (uint32_t)ldl_be_p(buf) == SWITCHOVER_MAGIC;
}

/* Bytes of the message whose first four bytes are at @buf */
static inline size_t switchover_message_len(const uint8_t *buf)
{
    return switchover_message_is_control(buf) ? SWITCHOVER_CONTROL :
           SWITCHOVER_HEAD + (uint32_t)ldl_be_p(buf);
}

static inline void switchover_message_put_head(uint8_t *buf, unsigned queue,
                                               size_t hdr_len, size_t len)
{
    stl_be_p(buf, len);
    stw_be_p(buf + 4, queue);
    stw_be_p(buf + 6, hdr_len);
}

static inline void switchover_message_put_control(uint8_t *buf,
                                                  SwitchoverMessageType type,
                                                  uint64_t value)
{
    stl_be_p(buf, SWITCHOVER_MAGIC);
    stl_be_p(buf + 4, type);
    stq_be_p(buf + 8, value);
}

#endif /* NET_SWITCHOVER_MESSAGE_H */
