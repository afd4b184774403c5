/*
 * Switchover: the frames that reach a VM's host while the VM is migrated
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * When a VM stops for its migration, the network goes on sending to it.  The
 * frames wait in the queues of its netdev, a TAP device in the kernel: exactly
 * those that the guest has not had, in order, with checksum and GSO metadata.
 * vhost puts back what it had taken out and not delivered (Linux 6.18).  They
 * are sent to the destination, or delivered here if the migration fails.
 *
 * Neither end needs a packet socket, a privilege, or the chain of filters: the
 * queues are the netdev's own, and frames reach the guest as those do that QEMU
 * itself reads.
 *
 * Theory of operation
 *
 *   threads (threads.c)  one that empties the queues (reader.c), one that sends
 *   backlog (backlog.c)  the frames in memory: read, sent, acknowledged
 *   source (source.c)    the destination of this VM's frames, and what it says
 *   arrival (arrival.c)  the frames of a VM that arrives here
 *   this file            the netdev, its states, and the way to the NIC
 *
 *   event                         action                           next
 *   VM stops for its migration    QEMU and vhost no longer read;   begun
 *                                 the threads read and send
 *   migration fails               send no more; frames stay        begun
 *   migration completes           go on                            begun
 *   VM runs again                 hold: deliver the backlog, then  delivering
 *                                 what the reader has read since
 *   VM runs after it arrived      hold: the source's frames, then  delivering
 *                                 those of this host's queues
 *   nothing is left               vhost, or QEMU's own reading     idle
 *   VM stops for another reason   leave frames in the queues       idle
 *
 * To hold is to keep vhost from starting (vhost_held of the netdev): QEMU moves
 * the packets of the running VM for that time, as it does without vhost.
 *
 * A guest that takes no frames, as it has no driver or no CPU, holds nothing
 * up: after GUEST_US without progress it is announced all the same, and after
 * GUEST_MAX_US the frames are dropped and counted.
 */

#include "qemu/osdep.h"
#include "net/switchover/switchover.h"
#include "block/aio.h"
#include "io/packet-gso.h"
#include "migration/client-options.h"
#include "net/eth.h"
#include "net/queue.h"
#include "net/switchover/arrival.h"
#include "net/switchover/cards.h"
#include "net/switchover.h"
#include "net/switchover/reader.h"
#include "net/switchover/source.h"
#include "net/vhost_net.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "system/system.h"
#include "trace.h"
#include <net/if.h>

/* A guest that has taken no frame for so long is not waited for */
#define GUEST_US (1000 * 1000)

/* And after so long gets none of those that wait */
#define GUEST_MAX_US (10 * 1000 * 1000)

/* The longest turn of the main loop that delivers, in us and in frames */
#define TURN_US 1000
#define TURN_FRAMES 512

/*
 * With so few frames left, or when they have not become fewer in CLOSING_US
 * although the guest takes some, the reader stops, and what comes then waits in
 * the kernel's queue until vhost starts.  Else a guest that is slower by QEMU's
 * datapath never gets out of it.
 */
#define CLOSING_FRAMES 64
#define CLOSING_US (1000 * 1000)

/* Frames that are read from one queue when the VM starts, at most */
#define SWEEP_FRAMES 10000

/* The length of a TAP's queue, by default (Linux 6.18) */
#define QUEUE_FRAMES 1000

/* How often to look for progress */
#define TIMER_MS 20

/* How long a process that was told to end goes on without progress */
#define LINGER_US (1000 * 1000)

/* And whatever the progress is */
#define WAIT_MAX_US (10 * 1000 * 1000)

static QTAILQ_HEAD(, Switchover) switchovers =
    QTAILQ_HEAD_INITIALIZER(switchovers);

static void switchover_shutdown(Notifier *notifier, void *data);

static Notifier shutdown_notifier = { .notify = switchover_shutdown };

void switchover_count_drop(Switchover *sw, uint64_t *counter, uint64_t n,
                           const char *reason)
{
    if (!n) {
        return;
    }
    trace_switchover_drop(sw->nc->name, n, reason);
    if (!*counter) {
        warn_report("netdev '%s': packet dropped in a migration: %s (more of "
                    "these are counted only)", sw->nc->name, reason);
    }
    *counter += n;
}


static Switchover *switchover_find(NetClientState *nc)
{
    Switchover *sw;

    QTAILQ_FOREACH(sw, &switchovers, next) {
        for (unsigned i = 0; i < sw->n_queues; i++) {
            if (sw->queues[i] == nc) {
                return sw;
            }
        }
    }
    return NULL;
}


/* The kernel's counter */

/*
 * Not by rtnetlink, whose lock another process may hold for long.  The file is
 * that of this process's network namespace, whatever is mounted at /sys.
 */
static bool switchover_tx_dropped(Switchover *sw, uint64_t *dropped)
{
    g_autoptr(GString) text = g_string_new("");
    char ifname[IF_NAMESIZE + 2];
    char buf[4096];
    const char *line;
    ssize_t n;

    if (sw->dev_fd < 0 || !if_indextoname(sw->ifindex, ifname)) {
        return false;
    }
    pstrcat(ifname, sizeof(ifname), ":");
    while ((n = pread(sw->dev_fd, buf, sizeof(buf), text->len)) > 0) {
        g_string_append_len(text, buf, n);
    }
    /* 8 columns of what was received, then bytes, packets, errs, drop */
    line = strstr(text->str, ifname);
    return line && sscanf(line + strlen(ifname),
                          "%*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %"
                          SCNu64, dropped) == 1;
}

void switchover_look_at_queue(Switchover *sw, bool count)
{
    uint64_t dropped;
    if (!switchover_tx_dropped(sw, &dropped)) {
        return;
    }
    if (count && sw->has_queue_drops) {
        switchover_count_drop(sw, &sw->dropped.queue_full,
                              dropped - sw->queue_drops,
                              "the queue of the netdev's host interface is "
                              "full, or it is down");
    }
    sw->has_queue_drops = true;
    sw->queue_drops = dropped;
}


/* Who reads the queues */

static void switchover_poll(Switchover *sw, bool enable)
{
    for (unsigned i = 0; i < sw->n_queues; i++) {
        NetClientState *nc = sw->queues[i];

        if (nc->info->poll) {
            nc->info->poll(nc, enable);
        }
        if (!enable && sw->vm_running) {
            /* What waits to be written waits for an event, now switched off */
            qemu_flush_queued_packets(nc);
        }
    }
}

static unsigned switchover_queue_of(Switchover *sw, NetClientState *nc)
{
    for (unsigned i = 0; i < sw->n_queues; i++) {
        if (sw->queues[i] == nc) {
            return i;
        }
    }
    return 0;
}

static void switchover_append(Switchover *sw, NetClientState *nc,
                              unsigned flags, const struct iovec *iov,
                              int iovcnt)
{
    size_t hdr_len = flags & QEMU_NET_PACKET_FLAG_RAW ? 0 : nc->vnet_hdr_len;
    size_t size = iov_size(iov, iovcnt);

    if (size <= hdr_len || size > SWITCHOVER_FRAME_MAX) {
        switchover_count_drop(sw, &sw->dropped.invalid, 1,
                              "no room for a vnet header and a frame");
        return;
    }
    switchover_backlog_append(&sw->own, switchover_queue_of(sw, nc), hdr_len,
                              iov, iovcnt);
    qatomic_inc(&sw->port.read);
}

typedef struct SwitchoverQueued {
    Switchover *sw;
    NetClientState *nc;
} SwitchoverQueued;

static void switchover_append_queued(void *opaque, unsigned flags,
                                     const uint8_t *data, size_t size)
{
    SwitchoverQueued *queued = opaque;
    struct iovec iov = { .iov_base = (void *)data, .iov_len = size };

    switchover_append(queued->sw, queued->nc, flags, &iov, 1);
}

/* Let the reader read, or not; what it has read is in the backlog */
static void switchover_set_reading(Switchover *sw, bool reading)
{
    switchover_threads_pause();
    sw->port.reading = reading;
    switchover_threads_resume();
}

/* What is in the queues now came before the VM has stopped */
static void switchover_sweep(Switchover *sw)
{
    for (unsigned i = 0; sw->has_fds && i < sw->n_queues; i++) {
        for (int n = 0; n < SWEEP_FRAMES; n++) {
            ssize_t len = switchover_backlog_read(&sw->own,
                                                  sw->port.queues[i].fd, i,
                                                  sw->port.queues[i].hdr_len);

            if (len < 0) {
                break;
            }
            qatomic_inc(&sw->port.read);
        }
    }
    sw->early = sw->own.tail;
}

/* What QEMU has read and the NIC not taken: one packet for each queue */
static void switchover_take_queued(Switchover *sw)
{
    for (unsigned i = 0; i < sw->n_queues; i++) {
        NetClientState *nc = sw->queues[i];
        SwitchoverQueued queued = { .sw = sw, .nc = nc };

        if (nc->peer) {
            qemu_net_queue_take(nc->peer->incoming_queue, nc,
                                switchover_append_queued, &queued);
        }
    }
}

void switchover_prepare(Switchover *sw)
{
    if (!sw->has_port) {
        switchover_port_add(&sw->port);
        sw->has_port = true;
    }
}

/* The guest decides which queues there are */
static void switchover_set_queues(Switchover *sw)
{
    size_t hdr_len;

    switchover_threads_pause();
    for (unsigned i = 0; sw->has_fds && i < sw->n_queues; i++) {
        NetClientState *nc = sw->queues[i];

        sw->port.queues[i].fd = nc->info->get_read_fd(nc, &hdr_len);
        sw->port.queues[i].hdr_len = hdr_len;
    }
    switchover_threads_resume();
}

/* And how long a vnet header is */
void switchover_set_vnet_hdr_len(NetClientState *nc, int len)
{
    Switchover *sw = switchover_find(nc);

    switchover_threads_pause();
    qemu_set_vnet_hdr_len(nc, len);
    for (unsigned i = 0; sw && sw->taken && i < sw->n_queues; i++) {
        sw->port.queues[i].hdr_len = len;
    }
    switchover_threads_resume();
}

/* QEMU does not read from now on */
static void switchover_stop_polling(Switchover *sw)
{
    switchover_look_at_queue(sw, false);
    switchover_take_queued(sw);
    switchover_poll(sw, false);
    sw->taken = true;
    sw->closing = false;
    sw->looked = 0;
    switchover_set_reading(sw, false);
}

static void switchover_start_reading(Switchover *sw)
{
    switchover_set_reading(sw, sw->has_fds);
    switchover_prepare(sw);
}

/* The reader reads, and QEMU does not */
static void switchover_take(Switchover *sw)
{
    if (!sw->taken) {
        switchover_stop_polling(sw);
        switchover_set_queues(sw);
        sw->early = sw->stale = 0;
        if (sw->arrival && !sw->vm_running && !sw->begun) {
            switchover_sweep(sw);
        }
    } else {
        switchover_set_queues(sw);
    }
    switchover_start_reading(sw);
}

/* No VM has arrived: drop what earlier attempts have left */
static void switchover_start_over(Switchover *sw)
{
    switchover_stop_polling(sw);
    switchover_backlog_clear(&sw->own);
    switchover_set_queues(sw);
    switchover_sweep(sw);
    sw->stale = sw->missed = 0;
    sw->arriving = true;
    sw->port.arrives = 0;
    sw->port.around = sw->early;
    sw->port.overwritten = sw->port.old = 0;
    sw->port.mark[0] = sw->port.mark[1] = 0;
}

void switchover_expect(Switchover *sw, uint64_t limit)
{
    if (sw->vm_running || sw->begun || sw->port.reading) {
        return;
    }
    for (unsigned i = 0; i < sw->n_queues; i++) {
        NetClientState *nc = sw->queues[i];

        if (nc->peer) {
            qemu_net_queue_purge(nc->peer->incoming_queue, nc);
        }
    }
    sw->port.limit = limit;
    switchover_start_over(sw);
    /* And that came before the migration */
    switchover_backlog_clear(&sw->own);
    sw->early = sw->port.around = 0;
    sw->port.ages = true;
    switchover_start_reading(sw);
}

void switchover_expect_all(void)
{
    Switchover *sw;

    QTAILQ_FOREACH(sw, &switchovers, next) {
        if (sw->arrival) {
            switchover_expect(sw, sw->port.limit);
        }
    }
}

void switchover_arrives(Switchover *sw)
{
    uint64_t dropped = sw->queue_drops;

    if (sw->vm_running || sw->begun) {
        return;
    }
    if (!sw->port.reading) {
        /* Maybe of a migration to elsewhere, by a filter: start no thread */
        switchover_start_over(sw);
        return;
    }
    switchover_look_at_queue(sw, false);
    switchover_threads_pause();
    sw->early = sw->own.tail;
    sw->stale = sw->port.old = switchover_reader_recent(&sw->port);
    sw->port.ages = false;
    sw->port.arrives = g_get_monotonic_time();
    sw->port.around = UINT64_MAX;
    sw->missed += sw->port.overwritten + sw->queue_drops - dropped;
    sw->port.overwritten = 0;
    switchover_threads_resume();
}

uint64_t switchover_arrived(Switchover *sw, bool had_stale)
{
    uint64_t stale = 0, missed = sw->missed;

    switchover_threads_pause();
    sw->port.old = 0;
    if (sw->port.ages) {
        /* The source has said nothing: keep what stock QEMU would find */
        switchover_backlog_pop(&sw->own, MAX(sw->own.tail, QUEUE_FRAMES) -
                               QUEUE_FRAMES);
    } else if (had_stale) {
        missed = 0;
        stale = MAX(sw->own.head, sw->stale) - sw->own.head;
        switchover_backlog_pop(&sw->own, sw->stale);
    } else {
        missed += sw->port.overwritten;
    }
    sw->port.ages = false;
    switchover_threads_resume();
    switchover_count_drop(sw, &sw->dropped.queue_full, missed,
                          "more came before the VM than is kept");
    sw->missed = 0;
    sw->arriving = false;
    return stale;
}

static void switchover_remove_port(Switchover *sw)
{
    if (sw->has_port) {
        switchover_port_remove(&sw->port);
        sw->has_port = false;
        if (sw->source) {
            switchover_source_flush(sw->source);
        }
    }
}

/* QEMU reads again, or vhost does once it starts */
static void switchover_release(Switchover *sw)
{
    if (sw->taken) {
        switchover_set_reading(sw, false);
        sw->taken = false;
        switchover_poll(sw, true);
    }
}

void switchover_forget_all(void)
{
    Switchover *sw;

    QTAILQ_FOREACH(sw, &switchovers, next) {
        if (sw->arriving) {
            switchover_release(sw);
            switchover_remove_port(sw);
            switchover_backlog_clear(&sw->own);
            sw->arriving = sw->port.ages = false;
            switchover_update_idle(sw);
        }
    }
}

ssize_t switchover_receive_iov(Switchover *sw, NetClientState *sender,
                               unsigned flags, const struct iovec *iov,
                               int iovcnt)
{
    if (sw->has_fds || !sw->taken || sw->sending || sender != sw->nc) {
        return 0;
    }
    switchover_append(sw, sender, flags, iov, iovcnt);
    if (sw->begun) {
        switchover_source_flush(sw->source);
    } else {
        switchover_go_on(sw);
    }
    return iov_size(iov, iovcnt);
}


/* The way to the NIC */

static void switchover_set_vhost_held(Switchover *sw, bool held)
{
    NetClientState *nic = sw->nc->peer;

    if (sw->nc->vhost_held == held) {
        return;
    }
    sw->nc->vhost_held = held;
    if (sw->vm_running && nic && nic->info->link_status_changed &&
        get_vhost_net(sw->nc)) {
        /* The link has not changed, but whether vhost may run has */
        nic->info->link_status_changed(nic);
        if (held) {
            /* vhost has stopped, and has switched QEMU's reading on */
            sw->taken = false;
        }
    }
}

/* An empty vnet header, but for the 10 bytes that all have in common */
static void switchover_put_vnet_hdr(uint8_t *buf, size_t len,
                                    const SwitchoverFrame *f)
{
    memset(buf, 0, len);
    memcpy(buf, f->data, MIN(len, MIN(f->hdr_len,
                                      sizeof(struct virtio_net_hdr))));
}

static ssize_t switchover_send_one(NetClientState *nc, const void *hdr,
                                   const uint8_t *frame, size_t len,
                                   NetPacketSent *sent_cb)
{
    uint8_t padded[ETH_ZLEN];
    size_t padded_len = sizeof(padded);
    struct iovec iov[2] = {
        { .iov_base = (void *)hdr, .iov_len = nc->vnet_hdr_len },
        { .iov_base = (void *)frame, .iov_len = len },
    };
    int skip = !nc->vnet_hdr_len;

    if (net_peer_needs_padding(nc) &&
        eth_pad_short_frame(padded, &padded_len, frame, len)) {
        iov[1].iov_base = padded;
        iov[1].iov_len = padded_len;
    }
    return qemu_sendv_packet_async(nc, iov + skip, ARRAY_SIZE(iov) - skip,
                                   sent_cb);
}

/* The NIC has no vnet header: each frame must be complete in itself */
static ssize_t switchover_send_complete(Switchover *sw, NetClientState *nc,
                                        const SwitchoverFrame *f,
                                        NetPacketSent *sent_cb)
{
    const uint8_t *frame = f->data + f->hdr_len;
    size_t len = f->len - f->hdr_len, n;
    struct virtio_net_hdr hdr;
    const char *reason;
    QIOPacketGso gso;

    switchover_put_vnet_hdr((uint8_t *)&hdr, sizeof(hdr), f);
    if (!hdr.gso_type && !(hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)) {
        return switchover_send_one(nc, NULL, frame, len, sent_cb);
    }
    if (!sw->scratch) {
        sw->scratch = g_malloc(SWITCHOVER_FRAME_MAX);
    }
    if (!qio_packet_complete_init(&gso, &hdr, frame, len, &reason)) {
        switchover_count_drop(sw, hdr.gso_type ? &sw->dropped.gso :
                              &sw->dropped.invalid, 1, reason);
        return len;
    }
    if (!hdr.gso_type) {
        n = qio_packet_gso_next(&gso, sw->scratch);
        return switchover_send_one(nc, NULL, sw->scratch, n, sent_cb);
    }
    while ((n = qio_packet_gso_next(&gso, sw->scratch))) {
        /* Those that the NIC has no room for now are queued behind it */
        switchover_send_one(nc, NULL, sw->scratch, n, NULL);
    }
    return len;
}

static void switchover_sent(NetClientState *nc, ssize_t ret);

/* Returns 0 if the frame waits in the NIC's queue */
static ssize_t switchover_send(Switchover *sw, const SwitchoverFrame *f)
{
    uint8_t hdr[SWITCHOVER_VNET_HDR_MAX];
    NetClientState *nc = sw->queues[f->queue < sw->n_queues ? f->queue : 0];

    if (!nc->peer || nc->link_down) {
        nc = sw->nc;
    }
    if (!nc->vnet_hdr_len) {
        return switchover_send_complete(sw, nc, f, switchover_sent);
    }
    if (f->hdr_len == nc->vnet_hdr_len) {
        return switchover_send_one(nc, f->data, f->data + f->hdr_len,
                                   f->len - f->hdr_len, switchover_sent);
    }
    assert(nc->vnet_hdr_len <= sizeof(hdr));
    switchover_put_vnet_hdr(hdr, nc->vnet_hdr_len, f);
    return switchover_send_one(nc, hdr, f->data + f->hdr_len,
                               f->len - f->hdr_len, switchover_sent);
}

/* The guest has the oldest frame of @b */
static void switchover_count_delivered(Switchover *sw, SwitchoverBacklog *b)
{
    uint64_t number = b->head;

    if (b != &sw->own) {
        sw->delivered++;
    } else if (number < sw->give_back) {
        sw->given_back++;
    } else {
        sw->direct++;
    }
    switchover_backlog_pop(b, number + 1);
    sw->progress = g_get_monotonic_time();
}

/* The frame that waited in the NIC's queue was taken, or (0) purged */
static void switchover_sent(NetClientState *nc, ssize_t ret)
{
    Switchover *sw = switchover_find(nc);
    SwitchoverBacklog *flying = sw ? sw->flying : NULL;

    if (flying) {
        sw->flying = NULL;
        if (ret) {
            switchover_count_delivered(sw, flying);
        }
        qemu_bh_schedule(sw->bh);
    }
}

/* A frame in the NIC's queue comes back; it is still in its backlog */
static void switchover_recall(Switchover *sw)
{
    for (unsigned i = 0; sw->flying && i < sw->n_queues; i++) {
        NetClientState *nc = sw->queues[i];

        if (nc->peer) {
            qemu_net_queue_purge(nc->peer->incoming_queue, nc);
        }
    }
    sw->flying = NULL;
}

/* The backlog whose oldest frame is next, or NULL */
static SwitchoverBacklog *switchover_next(Switchover *sw, SwitchoverFrame *f)
{
    SwitchoverArrival *a = sw->arrival;

    if (a && switchover_backlog_peek(switchover_arrival_backlog(a), f)) {
        return switchover_arrival_backlog(a);
    }
    if (a && !switchover_arrival_allows_direct(a)) {
        return NULL;
    }
    while (switchover_backlog_peek(&sw->own, f)) {
        if (!a || !switchover_arrival_drops_direct(a, f)) {
            return &sw->own;
        }
        switchover_backlog_pop(&sw->own, f->number + 1);
    }
    return NULL;
}

/* Nothing is left: vhost, or QEMU's own reading */
static void switchover_finish(Switchover *sw)
{
    sw->delivering = false;
    if (!sw->arrival || sw->give_back) {
        sw->drain_us = g_get_monotonic_time() - sw->started;
    }
    timer_del(sw->timer);
    switchover_look_at_queue(sw, true);
    switchover_release(sw);
    switchover_remove_port(sw);
    sw->give_back = sw->early = sw->stale = 0;
    sw->port.arrives = 0;
    sw->port.around = 0;
    switchover_backlog_clear(&sw->own);
    if (sw->arrival) {
        switchover_arrival_finished(sw->arrival);
    }
    switchover_set_vhost_held(sw, false);
    trace_switchover_finish(sw->nc->name, sw->delivered, sw->given_back,
                            sw->direct, sw->drain_us);
    switchover_cards_delivered();
}

static bool switchover_is_over(Switchover *sw)
{
    return !sw->arrival || switchover_arrival_is_over(sw->arrival);
}

/* Stop reading if only the last frames are left, or if that never happens */
static void switchover_close(Switchover *sw)
{
    uint64_t frames = switchover_backlog_frames(&sw->own);
    int64_t now = g_get_monotonic_time();
    bool close = frames <= CLOSING_FRAMES;

    if (sw->closing || !switchover_is_over(sw)) {
        return;
    }
    if (now - sw->looked > CLOSING_US) {
        close |= sw->looked && sw->own.head > sw->looked_head &&
                 frames >= sw->looked_frames;
        sw->looked = now;
        sw->looked_head = sw->own.head;
        sw->looked_frames = frames;
    }
    if (close) {
        trace_switchover_close(sw->nc->name, frames);
        sw->closing = true;
        switchover_set_reading(sw, false);
    }
}

/* Have the last frames been read, and delivered? */
static bool switchover_is_finished(Switchover *sw)
{
    return switchover_is_over(sw) && sw->closing &&
           !switchover_backlog_frames(&sw->own);
}

static void switchover_deliver(void *opaque)
{
    Switchover *sw = opaque;
    int64_t end = g_get_monotonic_time() + TURN_US;
    SwitchoverBacklog *b;
    SwitchoverFrame f;
    ssize_t ret;
    int n = 0;

    if (sw->begun) {
        switchover_source_flush(sw->source);
        switchover_cards_acknowledged();
        return;
    }
    if (!sw->delivering || !sw->vm_running) {
        return;
    }
    do {
        while (!sw->flying && n < TURN_FRAMES &&
               (b = switchover_next(sw, &f))) {
            sw->flying = b;
            sw->sending = true;
            ret = switchover_send(sw, &f);
            sw->sending = false;
            if (!ret) {
                break;
            }
            sw->flying = NULL;
            switchover_count_delivered(sw, b);
            if (!(++n & 15) && g_get_monotonic_time() > end) {
                n = TURN_FRAMES;
            }
        }
        switchover_reader_kick();
        if (sw->arrival) {
            switchover_arrival_step(sw->arrival);
        }
        switchover_close(sw);
        if (sw->flying) {
            return;
        }
        if (n >= TURN_FRAMES) {
            qemu_bh_schedule(sw->bh);
            return;
        }
        if (switchover_is_finished(sw)) {
            switchover_finish(sw);
            return;
        }
    } while (switchover_next(sw, &f));
}

void switchover_go_on(Switchover *sw)
{
    qemu_bh_schedule(sw->bh);
}

/* The guest takes nothing */
static void switchover_give_up(Switchover *sw)
{
    uint64_t n = switchover_backlog_frames(&sw->own);

    switchover_recall(sw);
    if (sw->arrival) {
        switchover_arrival_give_up(sw->arrival);
    }
    switchover_backlog_pop(&sw->own, sw->own.head + n);
    switchover_count_drop(sw, &sw->dropped.guest, n,
                          "the guest took no frame for 10 seconds");
    sw->progress = g_get_monotonic_time();
}

static void switchover_timer(void *opaque)
{
    Switchover *sw = opaque;
    int64_t waited = g_get_monotonic_time() - sw->progress;

    if (!sw->delivering || !sw->vm_running) {
        return;
    }
    if (sw->flying && waited > GUEST_MAX_US) {
        switchover_give_up(sw);
    } else if (sw->flying && sw->arrival && waited > GUEST_US) {
        switchover_arrival_hurry(sw->arrival);
    }
    timer_mod(sw->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + TIMER_MS);
    switchover_deliver(sw);
}

void switchover_hold(Switchover *sw)
{
    if (sw->delivering) {
        return;
    }
    trace_switchover_hold(sw->nc->name, switchover_backlog_frames(&sw->own),
                          switchover_backlog_bytes(&sw->own));
    sw->delivering = true;
    sw->started = sw->progress = g_get_monotonic_time();
    switchover_set_vhost_held(sw, true);
    switchover_take(sw);
    timer_mod(sw->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + TIMER_MS);
}


/* The VM's state and its migrations */

void switchover_update_idle(Switchover *sw)
{
    if (!sw->vm_running && !sw->taken && (sw->source || sw->arrival)) {
        switchover_poll(sw, !((sw->source &&
                               switchover_source_is_enabled(sw->source)) ||
                              (sw->arrival &&
                               !switchover_arrival_is_over(sw->arrival))));
    }
}

void switchover_begin(Switchover *sw)
{
    if (sw->begun || !sw->source ||
        !switchover_source_is_enabled(sw->source)) {
        return;
    }
    /* Frames that a VM which arrived here has not had go with it */
    if (sw->delivering && sw->arrival) {
        switchover_threads_pause();
        switchover_backlog_prepend(&sw->own,
                                   switchover_arrival_backlog(sw->arrival));
        switchover_threads_resume();
    }
    sw->delivering = false;
    sw->begun = true;
    switchover_look_at_queue(sw, false);
    switchover_take(sw);
    sw->give_back = 0;
    trace_switchover_begin(sw->nc->name, switchover_backlog_frames(&sw->own));
    switchover_source_begin(sw->source);
    switchover_cards_changed();
}

/* What was saved is for this VM */
static void switchover_end(Switchover *sw)
{
    switchover_look_at_queue(sw, true);
    switchover_source_end(sw->source);
    switchover_cards_changed();
    sw->begun = false;
    sw->give_back = sw->own.tail;
    trace_switchover_give_back(sw->nc->name,
                               switchover_backlog_frames(&sw->own),
                               switchover_backlog_bytes(&sw->own));
}

/* First when the VM starts, last when it has stopped */
static void switchover_vm_before(void *opaque, bool running, RunState state)
{
    Switchover *sw = opaque;
    bool hold;

    if (running) {
        if (sw->begun) {
            switchover_end(sw);
            /* If that migration is over, the next may be of another kind */
            sw->migrating &= !sw->done;
        }
        hold = sw->arrival && switchover_arrival_before_start(sw->arrival);
        hold |= sw->taken || sw->delivering ||
                switchover_backlog_frames(&sw->own);
        sw->delivering = false;
        if (hold) {
            switchover_hold(sw);
        } else {
            switchover_poll(sw, true);
        }
    } else {
        sw->vm_running = false;
        timer_del(sw->timer);
        if (sw->migrating && state == RUN_STATE_FINISH_MIGRATE) {
            switchover_begin(sw);
        } else if (sw->delivering) {
            switchover_release(sw);
        }
        switchover_update_idle(sw);
    }
}

/*
 * When the VM's devices have started, and before they stop.  QEMU drops what it
 * has queued when the VM stops.
 */
static void switchover_vm_after(void *opaque, bool running, RunState state)
{
    Switchover *sw = opaque;

    if (running) {
        sw->vm_running = true;
        if (sw->arrival) {
            switchover_arrival_after_start(sw->arrival);
        } else if (sw->arriving) {
            switchover_arrived(sw, false);
        }
        if (sw->delivering) {
            switchover_deliver(sw);
        }
    } else {
        switchover_recall(sw);
        if (sw->source) {
            switchover_take_queued(sw);
        }
    }
}

static int switchover_migration(NotifierWithReturn *notifier,
                                MigrationEvent *event, Error **errp)
{
    Switchover *sw = container_of(notifier, Switchover, migration);

    switch (event->type) {
    case MIG_EVENT_PRECOPY_SETUP:
        sw->migrating = true;
        sw->done = false;
        if (sw->source && switchover_source_is_enabled(sw->source)) {
            switchover_prepare(sw);
        }
        break;
    case MIG_EVENT_PRECOPY_FAILED:
        sw->migrating = false;
        if (sw->begun) {
            /* Frames wait for this VM to run, or for the next migration */
            switchover_end(sw);
            switchover_release(sw);
            switchover_update_idle(sw);
        }
        if (!sw->taken) {
            switchover_remove_port(sw);
        }
        break;
    case MIG_EVENT_PRECOPY_DONE:
        sw->migrating = sw->done = sw->begun;
        if (sw->begun) {
            switchover_look_at_queue(sw, true);
        } else if (!sw->taken) {
            /* A background snapshot: the VM runs */
            switchover_remove_port(sw);
        }
        break;
    default:
        break;
    }
    return 0;
}

/* A VM that was stopped before its migration does not stop for it */
static int switchover_complete(NotifierWithReturn *notifier, void *data,
                               Error **errp)
{
    Switchover *sw = container_of(notifier, Switchover, complete);
    PrecopyNotifyData *event = data;

    if (event->reason == PRECOPY_NOTIFY_COMPLETE && sw->migrating &&
        runstate_check(RUN_STATE_FINISH_MIGRATE)) {
        switchover_begin(sw);
    }
    return 0;
}


/* Before this process may end */

typedef struct SwitchoverWait {
    int64_t begin;              /* in us, as the next two */
    int64_t now;                /* of the last look */
    int64_t last;               /* when something had happened */
    uint64_t progress;          /* changes when something happens */
    bool done;                  /* there is nothing to wait for */
} SwitchoverWait;

static SwitchoverWait switchover_wait_begin(void)
{
    int64_t now = g_get_monotonic_time();

    return (SwitchoverWait) { .begin = now, .now = now, .last = now };
}

/*
 * Is it worth while to wait on?  If this process is @ending, one that waits for
 * 'cont' may get it soon, but is not done.
 */
static bool switchover_waits(SwitchoverWait *w, bool ending)
{
    int64_t limit = ending ? LINGER_US : 0;
    uint64_t progress = 0;
    Switchover *sw;

    w->done = true;
    QTAILQ_FOREACH(sw, &switchovers, next) {
        if (sw->begun) {
            w->done &= switchover_source_is_done(sw->source, ending, &progress);
            if (!ending) {
                limit = MAX(limit, switchover_source_get_timeout(sw->source) *
                            (int64_t)1000);
            }
        }
    }
    w->now = g_get_monotonic_time();
    if (progress != w->progress) {
        w->progress = progress;
        w->last = w->now;
    }
    return !w->done && w->now - w->last < limit &&
           w->now - w->begin < WAIT_MAX_US;
}

void switchover_wait(void)
{
    SwitchoverWait w = switchover_wait_begin();
    Switchover *sw;

    bql_lock();
    switchover_cards_read();
    while (switchover_waits(&w, false)) {
        bql_unlock();
        g_usleep(500);
        bql_lock();
    }
    QTAILQ_FOREACH(sw, &switchovers, next) {
        if (sw->begun) {
            switchover_look_at_queue(sw, true);
            switchover_source_warn(sw->source);
            switchover_source_completed(sw->source);
        }
    }
    switchover_cards_completed();
    trace_switchover_wait(w.done, w.now - w.begin);
    bql_unlock();
}

/*
 * This process was told to end, but the destination may just have been told to
 * start: go on forwarding until it has announced itself.
 */
static void switchover_shutdown(Notifier *notifier, void *data)
{
    SwitchoverWait w = switchover_wait_begin();
    Switchover *sw;

    /*
     * The destination may know before us that it has everything, and libvirt
     * then ends this process
     */
    if (!runstate_check(RUN_STATE_POSTMIGRATE) &&
        !runstate_check(RUN_STATE_SHUTDOWN) && !switchover_cards_connected()) {
        return;
    }
    while (switchover_waits(&w, true)) {
        while (g_main_context_iteration(NULL, false)) {
            /* The destination's messages */
        }
        bql_unlock();
        g_usleep(500);
        bql_lock();
    }
    QTAILQ_FOREACH(sw, &switchovers, next) {
        if (sw->begun) {
            switchover_source_completed(sw->source);
        }
    }
    switchover_cards_acknowledged();
    trace_switchover_linger(w.now - w.begin);
}

void switchover_get_stats(Switchover *sw, SwitchoverStats *stats)
{
    if (sw->taken && !sw->arriving) {
        switchover_look_at_queue(sw, true);
    }
    memset(stats, 0, sizeof(*stats));
    stats->read = qatomic_read(&sw->port.read);
    stats->limit = sw->port.limit;
    WITH_QEMU_LOCK_GUARD(&sw->own.lock) {
        stats->sent = sw->own.sent_frames;
        stats->peak = sw->own.peak;
        stats->peak_bytes = sw->own.peak_bytes;
        stats->held = sw->own.tail - sw->own.head;
        stats->held_bytes = sw->own.bytes;
    }
    stats->delivered = sw->delivered;
    stats->given_back = sw->given_back;
    stats->direct = sw->direct;
    stats->drain_us = sw->drain_us;
    stats->dropped = sw->dropped;
    stats->dropped.invalid += qatomic_read(&sw->port.invalid);
}


/* Set-up */

static bool switchover_check(NetClientState *nc, Error **errp)
{
    if (nc->info->get_read_fd || !get_vhost_net(nc)) {
        return true;
    }
    error_setg(errp, "netdev '%s' (%s): the packets of a switchover cannot be "
               "saved, as its vhost backend moves all packets of the guest and "
               "QEMU has no queue to read", nc->name,
               NetClientDriver_str(nc->info->type));
    return false;
}

/*
 * The clients of @netdev's queues, by number; returns how many.  They come in
 * the order in which a NIC numbers them; there may be none yet.
 */
static unsigned switchover_find_queues(NetClientState *netdev,
                                       NetClientState **queues)
{
    return qemu_find_net_clients_except(netdev->name, queues,
                                        NET_CLIENT_DRIVER_NIC,
                                        SWITCHOVER_QUEUES_MAX);
}

Switchover *switchover_get(NetClientState *netdev, Error **errp)
{
    Switchover *sw = switchover_find(netdev);
    g_autofree char *ifname = NULL;

    if (sw) {
        return sw;
    }
    if (!switchover_check(netdev, errp)) {
        return NULL;
    }
    if (QTAILQ_EMPTY(&switchovers)) {
        static bool registered;

        if (!registered) {
            qemu_register_shutdown_notifier(&shutdown_notifier);
            registered = true;
        }
    }

    sw = g_new0(Switchover, 1);
    sw->nc = netdev;
    sw->queues = g_new0(NetClientState *, SWITCHOVER_QUEUES_MAX);
    sw->n_queues = switchover_find_queues(netdev, sw->queues);
    sw->has_fds = netdev->info->get_read_fd;
    switchover_backlog_init(&sw->own);
    sw->bh = qemu_bh_new(switchover_deliver, sw);
    sw->timer = timer_new_ms(QEMU_CLOCK_REALTIME, switchover_timer, sw);
    sw->port.backlog = &sw->own;
    sw->port.limit = SIZE_MAX;
    sw->port.bh = sw->bh;
    sw->port.blocked = -1;
    sw->port.n_queues = sw->n_queues;
    sw->port.queues = g_new0(SwitchoverPortQueue, sw->n_queues);

    ifname = netdev->info->get_host_ifname ?
             netdev->info->get_host_ifname(netdev, NULL) : NULL;
    sw->ifindex = ifname ? if_nametoindex(ifname) : 0;
    sw->dev_fd = qemu_open_old("/proc/self/net/dev", O_RDONLY | O_CLOEXEC);

    sw->vm_running = runstate_is_live(runstate_get());
    sw->migrating = migration_is_running() && migrate_mode() == MIG_MODE_NORMAL;
    sw->before = qemu_add_vm_change_state_handler_prio(switchover_vm_before,
                                                       sw, INT_MIN);
    sw->after = qemu_add_vm_change_state_handler_prio(switchover_vm_after,
                                                      sw, INT_MAX);
    migration_add_notifier(&sw->migration, switchover_migration);
    sw->complete.notify = switchover_complete;
    precopy_add_notifier(&sw->complete);
    QTAILQ_INSERT_TAIL(&switchovers, sw, next);
    return sw;
}

void switchover_put(Switchover *sw)
{
    bool stopped = !sw->vm_running;

    if (sw->source || sw->arrival) {
        return;
    }
    switchover_recall(sw);
    switchover_release(sw);
    switchover_remove_port(sw);
    if (sw->arriving) {
        /* No VM has arrived that these could be for */
        switchover_backlog_clear(&sw->own);
    }
    switchover_count_drop(sw, &sw->dropped.no_peer,
                          switchover_backlog_frames(&sw->own),
                          "not acknowledged when its filter, or QEMU, ended");
    if (stopped) {
        switchover_poll(sw, true);
    }
    switchover_set_vhost_held(sw, false);
    sw->nc->announce_held = false;
    QTAILQ_REMOVE(&switchovers, sw, next);
    qemu_del_vm_change_state_handler(sw->before);
    qemu_del_vm_change_state_handler(sw->after);
    migration_remove_notifier(&sw->migration);
    precopy_remove_notifier(&sw->complete);
    qemu_bh_delete(sw->bh);
    timer_free(sw->timer);
    switchover_backlog_destroy(&sw->own);
    if (sw->dev_fd >= 0) {
        close(sw->dev_fd);
    }
    g_free(sw->port.queues);
    g_free(sw->queues);
    g_free(sw->scratch);
    g_free(sw);
}
