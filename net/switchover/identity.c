/*
 * Switchover: whose frames come by a chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * A chardev may lead to another VM, or to another card, for instance if a port
 * was given twice.  So both sides say first whose frames they have, or want, in
 * three control messages.
 */

#include "qemu/osdep.h"
#include "net/switchover/identity.h"
#include "net/switchover/message.h"
#include "qemu/uuid.h"
#include "system/system.h"

#define HDR_LEN_BITS 16

void switchover_identity_init(SwitchoverIdentity *id, NetClientState *netdev)
{
    NetClientState *nc = netdev->peer;

    memset(id, 0, sizeof(*id));
    if (qemu_uuid_set) {
        id->vm[0] = ldq_be_p(qemu_uuid.data);
        id->vm[1] = ldq_be_p(qemu_uuid.data + 8);
    }
    if (nc && nc->info->type == NET_CLIENT_DRIVER_NIC) {
        const uint8_t *mac = qemu_get_nic(nc)->conf->macaddr.a;

        id->card = (uint64_t)lduw_be_p(mac) << 48 |
                   (uint64_t)ldl_be_p(mac + 2) << HDR_LEN_BITS;
    }
    id->card |= (uint16_t)netdev->vnet_hdr_len;
}

static void identity_put_one(GByteArray *buf, SwitchoverMessageType type,
                             uint64_t value)
{
    uint8_t message[SWITCHOVER_CONTROL];

    switchover_message_put_control(message, type, value);
    g_byte_array_append(buf, message, sizeof(message));
}

void switchover_identity_put(const SwitchoverIdentity *id, GByteArray *buf)
{
    identity_put_one(buf, SWITCHOVER_VM_HIGH, id->vm[0]);
    identity_put_one(buf, SWITCHOVER_VM_LOW, id->vm[1]);
    identity_put_one(buf, SWITCHOVER_CARD, id->card);
}

void switchover_identity_tell(NetClientState *netdev, SwitchoverTransport *t)
{
    SwitchoverIdentity id;

    switchover_identity_init(&id, netdev);
    switchover_transport_control(t, SWITCHOVER_VM_HIGH, id.vm[0]);
    switchover_transport_control(t, SWITCHOVER_VM_LOW, id.vm[1]);
    switchover_transport_control(t, SWITCHOVER_CARD, id.card);
}

bool switchover_identity_receive(SwitchoverIdentity *id, uint32_t type,
                                 uint64_t value)
{
    switch (type) {
    case SWITCHOVER_VM_HIGH:
        id->vm[0] = value;
        return false;
    case SWITCHOVER_VM_LOW:
        id->vm[1] = value;
        return false;
    case SWITCHOVER_CARD:
        id->card = value;
        return true;
    default:
        return false;
    }
}

/* VM and card of @id in words, to be freed */
static char *identity_text(const SwitchoverIdentity *id)
{
    g_autofree char *vm = NULL;
    uint8_t mac[8];
    QemuUUID uuid;

    stq_be_p(uuid.data, id->vm[0]);
    stq_be_p(uuid.data + 8, id->vm[1]);
    vm = qemu_uuid_unparse_strdup(&uuid);
    stq_be_p(mac, id->card);
    return g_strdup_printf("VM %s, MAC address " MAC_FMT, vm,
                           MAC_ARG(mac));
}

static bool identity_differs(uint64_t a, uint64_t b)
{
    return a && b && a != b;
}

bool switchover_identity_check(NetClientState *netdev,
                               const SwitchoverIdentity *peer,
                               SwitchoverTransport *t)
{
    g_autofree char *own_text = NULL, *peer_text = NULL, *text = NULL;
    SwitchoverIdentity own;

    switchover_identity_init(&own, netdev);
    if (!identity_differs(own.vm[0], peer->vm[0]) &&
        !identity_differs(own.vm[1], peer->vm[1]) &&
        !identity_differs(own.card >> HDR_LEN_BITS,
                          peer->card >> HDR_LEN_BITS)) {
        return true;
    }
    own_text = identity_text(&own);
    peer_text = identity_text(peer);
    text = g_strdup_printf("the peer is for %s; this side for %s", peer_text,
                           own_text);
    switchover_transport_complain(t, text);
    return false;
}
