/*
 * Unit test of the switchover's backlog, and of the thread that fills it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * The backlog gets what a list of messages, the model, gets, in random order:
 *
 *   frames            --> append          --> +---------+ --> unsent, advance
 *   a socket's        --> read            --> | backlog | --> acknowledge
 *   control messages  --> append_control  --> |         | --> peek, pop
 *   another backlog   --> prepend         --> +---------+ --> seek, clear
 *
 * and after each step both must have the same numbers, and in the end the same
 * bytes.  The contents of each message follow from a number, so none can be
 * taken for another.  A failure is repeated with the seed that was printed
 * last.
 *
 * In the threaded test the reader reads from sockets that keep the
 * boundaries of frames, and sends; the test acknowledges, pauses the thread and
 * seeks.  It is of most use under ThreadSanitizer: see dev/test-threads.
 */

#include "qemu/osdep.h"
#include <malloc.h>
#include <sys/socket.h>
#include "net/switchover/threads.h"
#include "qemu/atomic.h"
#include "qemu/iov.h"
#include "qemu/units.h"

#define SEEDS 16
#define STEPS 4000

/* No test takes so long without any progress, in us */
#define TIME_LIMIT (30 * G_USEC_PER_SEC)

/* Bytes of a vnet header, and of what a guest's virtio 1 has */
#define HDR_LEN 12

typedef struct Model {
    GRand *rand;
    SwitchoverBacklog b;
    int fd[2];                  /* of SOCK_SEQPACKET */

    GPtrArray *messages;        /* GByteArray, from the oldest */
    guint cursor;               /* the first that was not sent whole */
    size_t cursor_pos;          /* bytes of it that were sent */
    uint64_t head, tail;        /* numbers of frames */
    size_t bytes;
    uint64_t peak, sent_frames, sent_bytes;
    size_t peak_bytes;
    uint32_t serial;            /* of the last message */
} Model;

static void message_free(void *opaque)
{
    g_byte_array_unref(opaque);
}

static void model_init(Model *m, uint32_t seed)
{
    int size = 4 * MiB;

    memset(m, 0, sizeof(*m));
    m->rand = g_rand_new_with_seed(seed);
    m->messages = g_ptr_array_new_with_free_func(message_free);
    switchover_backlog_init(&m->b);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0,
                               m->fd), ==, 0);
    g_assert_cmpint(setsockopt(m->fd[0], SOL_SOCKET, SO_SNDBUF, &size,
                               sizeof(size)), ==, 0);
    g_test_message("seed %" PRIu32, seed);
}

static void model_cleanup(Model *m)
{
    switchover_backlog_destroy(&m->b);
    g_ptr_array_unref(m->messages);
    g_rand_free(m->rand);
    close(m->fd[0]);
    close(m->fd[1]);
}

/* 0 to @max, both included */
static size_t random_to(Model *m, size_t max)
{
    return g_rand_int(m->rand) % (max + 1);
}

static GByteArray *message_of(Model *m, guint i)
{
    return g_ptr_array_index(m->messages, i);
}

static bool is_control(GByteArray *msg)
{
    return ldl_be_p(msg->data) == SWITCHOVER_MAGIC;
}

/* Frames before message @i */
static uint64_t number_of(Model *m, guint i)
{
    uint64_t n = m->head;

    while (i--) {
        n += !is_control(message_of(m, i));
    }
    return n;
}

/* A message with a frame, as message.h says */
static GByteArray *frame_message(uint32_t serial, unsigned queue,
                                 size_t hdr_len, size_t len)
{
    GByteArray *msg = g_byte_array_new();
    uint32_t x = serial * 2654435761u;

    g_byte_array_set_size(msg, SWITCHOVER_HEAD + len);
    stl_be_p(msg->data, len);
    stw_be_p(msg->data + 4, queue);
    stw_be_p(msg->data + 6, hdr_len);
    for (size_t i = SWITCHOVER_HEAD; i < msg->len; i++) {
        msg->data[i] = (x += 40503) >> 16;
    }
    return msg;
}

static void model_add(Model *m, GByteArray *msg)
{
    g_ptr_array_add(m->messages, msg);
    m->bytes += msg->len;
    m->peak_bytes = MAX(m->peak_bytes, m->bytes);
    if (!is_control(msg)) {
        m->tail++;
        m->peak = MAX(m->peak, m->tail - m->head);
    }
}

static void model_remove_first(Model *m)
{
    GByteArray *msg = message_of(m, 0);

    m->bytes -= msg->len;
    m->head += !is_control(msg);
    if (m->cursor) {
        m->cursor--;
    } else {
        m->cursor_pos = 0;
    }
    g_ptr_array_remove_index(m->messages, 0);
}

static size_t model_unsent(Model *m)
{
    size_t n = 0;

    for (guint i = m->cursor; i < m->messages->len; i++) {
        n += message_of(m, i)->len;
    }
    return n - m->cursor_pos;
}

static void model_check(Model *m)
{
    SwitchoverBacklog *b = &m->b;

    g_assert_cmpuint(b->head, ==, m->head);
    g_assert_cmpuint(b->tail, ==, m->tail);
    g_assert_cmpuint(b->sent, ==, number_of(m, m->cursor));
    g_assert_cmpuint(b->bytes, ==, m->bytes);
    g_assert_cmpuint(b->unsent, ==, model_unsent(m));
    g_assert_cmpuint(b->peak, ==, m->peak);
    g_assert_cmpuint(b->peak_bytes, ==, m->peak_bytes);
    g_assert_cmpuint(b->sent_frames, ==, m->sent_frames);
    g_assert_cmpuint(b->sent_bytes, ==, m->sent_bytes);
    g_assert_cmpuint(switchover_backlog_frames(b), ==, m->tail - m->head);
    g_assert_cmpuint(switchover_backlog_bytes(b), ==, m->bytes);
}


/* The steps */

static size_t random_len(Model *m)
{
    switch (random_to(m, 9)) {
    case 0:
        return 1 + random_to(m, 3);
    case 1:
        return SWITCHOVER_FRAME_MAX - random_to(m, 3);
    case 2:
        return 1 + random_to(m, SWITCHOVER_FRAME_MAX - 1);
    case 3:
    case 4:
        return 1 + random_to(m, 1514);
    default:
        return 1 + random_to(m, 100);
    }
}

static GByteArray *random_frame(Model *m)
{
    size_t len = random_len(m);
    size_t hdr_len = MIN(random_to(m, 2) * 10, len - 1);

    return frame_message(++m->serial, random_to(m, 7), hdr_len, len);
}

static void backlog_append_message(SwitchoverBacklog *b, GByteArray *msg,
                                   size_t cut)
{
    uint8_t *data = msg->data + SWITCHOVER_HEAD;
    size_t len = msg->len - SWITCHOVER_HEAD;
    struct iovec iov[] = {
        { .iov_base = data, .iov_len = cut },
        { .iov_base = data + cut, .iov_len = len - cut },
    };

    switchover_backlog_append(b, lduw_be_p(msg->data + 4),
                              lduw_be_p(msg->data + 6), iov, ARRAY_SIZE(iov));
}

static void step_append(Model *m)
{
    GByteArray *msg = random_frame(m);

    backlog_append_message(&m->b, msg,
                           random_to(m, msg->len - SWITCHOVER_HEAD));
    model_add(m, msg);
}

static void step_read(Model *m)
{
    GByteArray *msg = random_frame(m);
    size_t len = msg->len - SWITCHOVER_HEAD;
    unsigned queue = lduw_be_p(msg->data + 4);
    size_t hdr_len = lduw_be_p(msg->data + 6);
    bool invalid = random_to(m, 9) == 0;

    if (random_to(m, 9) == 0) {
        g_assert_cmpint(switchover_backlog_read(&m->b, m->fd[1], queue,
                                                hdr_len), ==, -EAGAIN);
        model_check(m);
    }
    g_assert_cmpint(send(m->fd[0], msg->data + SWITCHOVER_HEAD, len, 0), ==,
                    len);
    if (invalid) {
        hdr_len = len + random_to(m, 1);
    }
    g_assert_cmpint(switchover_backlog_read(&m->b, m->fd[1], queue, hdr_len),
                    ==, len);
    if (invalid) {
        g_byte_array_unref(msg);
    } else {
        model_add(m, msg);
    }
}

static void step_control(Model *m)
{
    GByteArray *msg = g_byte_array_new();
    SwitchoverMessageType type = 1 + random_to(m, 5);
    uint64_t value = g_rand_int(m->rand) * 2654435761ull;

    g_byte_array_set_size(msg, SWITCHOVER_CONTROL);
    stl_be_p(msg->data, SWITCHOVER_MAGIC);
    stl_be_p(msg->data + 4, type);
    stq_be_p(msg->data + 8, value);
    switchover_backlog_append_control(&m->b, type, value);
    model_add(m, msg);
}

static void model_advance(Model *m, size_t n)
{
    m->cursor_pos += n;
    while (m->cursor < m->messages->len) {
        GByteArray *msg = message_of(m, m->cursor);

        if (m->cursor_pos < msg->len) {
            break;
        }
        m->cursor_pos -= msg->len;
        m->cursor++;
        if (!is_control(msg)) {
            m->sent_frames++;
            m->sent_bytes += msg->len - SWITCHOVER_HEAD -
                             lduw_be_p(msg->data + 6);
        }
    }
}

/* The bytes at the cursor are the model's, and end with a message */
static void step_send(Model *m)
{
    size_t len, pos = 0, n;
    const uint8_t *buf = switchover_backlog_unsent(&m->b, &len);
    size_t skip = m->cursor_pos;

    if (!model_unsent(m)) {
        g_assert_null(buf);
        g_assert_cmpuint(len, ==, 0);
        return;
    }
    g_assert_nonnull(buf);
    for (guint i = m->cursor; pos < len; i++, skip = 0) {
        GByteArray *msg;

        g_assert_cmpuint(i, <, m->messages->len);
        msg = message_of(m, i);
        g_assert_cmpuint(len - pos, >=, msg->len - skip);
        g_assert_cmpmem(buf + pos, msg->len - skip, msg->data + skip,
                        msg->len - skip);
        pos += msg->len - skip;
    }
    n = random_to(m, 2) ? random_to(m, MIN(len, 3000)) : random_to(m, len);
    switchover_backlog_advance(&m->b, n);
    model_advance(m, n);
}

/* With the control messages before it */
static void model_remove_frames(Model *m, uint64_t number)
{
    while (m->head < number) {
        model_remove_first(m);
    }
}

static void step_acknowledge(Model *m)
{
    uint64_t sent = number_of(m, m->cursor);
    uint64_t number = random_to(m, 3) ? m->head + random_to(m, 5) :
                      random_to(m, 2) ? random_to(m, m->tail + 3) : UINT64_MAX;
    uint64_t before = m->head;

    model_remove_frames(m, MIN(number, sent));
    g_assert_cmpuint(switchover_backlog_acknowledge(&m->b, number), ==,
                     m->head - before);
}

static void step_pop(Model *m)
{
    uint64_t number = random_to(m, 9) ? m->head + random_to(m, 5) :
                      random_to(m, m->tail + 3);

    model_remove_frames(m, MIN(number, m->tail));
    switchover_backlog_pop(&m->b, number);
}

static void step_peek(Model *m)
{
    SwitchoverFrame f;
    GByteArray *msg;

    while (m->messages->len && is_control(message_of(m, 0))) {
        model_remove_first(m);
    }
    if (!m->messages->len) {
        g_assert_false(switchover_backlog_peek(&m->b, &f));
        return;
    }
    msg = message_of(m, 0);
    g_assert_true(switchover_backlog_peek(&m->b, &f));
    g_assert_cmpuint(f.number, ==, m->head);
    g_assert_cmpuint(f.queue, ==, lduw_be_p(msg->data + 4));
    g_assert_cmpuint(f.hdr_len, ==, lduw_be_p(msg->data + 6));
    g_assert_cmpmem(f.data, f.len, msg->data + SWITCHOVER_HEAD,
                    msg->len - SWITCHOVER_HEAD);
}

typedef struct Sought {
    uint64_t number;
    SwitchoverFrame found;
    unsigned calls;
} Sought;

static bool is_sought(void *opaque, const SwitchoverFrame *frame)
{
    Sought *sought = opaque;

    sought->calls++;
    sought->found = *frame;
    return frame->number == sought->number;
}

static void step_has(Model *m)
{
    uint64_t frames = m->tail - m->head;
    uint64_t from = m->head + g_rand_int(m->rand) % (frames + 1);
    Sought sought = { .number = m->head + g_rand_int(m->rand) % (frames + 1) };
    bool there = sought.number >= from && sought.number < m->tail;
    uint64_t n = m->head;

    g_assert_cmpint(switchover_backlog_has(&m->b, from, is_sought, &sought), ==,
                    there);
    g_assert_cmpuint(sought.calls, ==, there ? sought.number - from + 1 :
                     m->tail - from);
    for (guint i = 0; there && i < m->messages->len; i++) {
        GByteArray *msg = message_of(m, i);

        if (!is_control(msg) && n++ == sought.number) {
            g_assert_cmpuint(sought.found.queue, ==, lduw_be_p(msg->data + 4));
            g_assert_cmpuint(sought.found.hdr_len, ==,
                             lduw_be_p(msg->data + 6));
            g_assert_cmpmem(sought.found.data, sought.found.len,
                            msg->data + SWITCHOVER_HEAD,
                            msg->len - SWITCHOVER_HEAD);
        }
    }
}

static void model_seek(Model *m, uint64_t number)
{
    uint64_t n = m->head;

    m->cursor_pos = 0;
    for (m->cursor = 0; m->cursor < m->messages->len && n < number;
         m->cursor++) {
        n += !is_control(message_of(m, m->cursor));
    }
}

static void step_rest(Model *m)
{
    g_autoptr(GByteArray) rest = g_byte_array_new();

    switchover_backlog_copy_rest(&m->b, rest);
    if (!m->cursor_pos) {
        g_assert_cmpuint(rest->len, ==, 0);
    } else {
        GByteArray *msg = message_of(m, m->cursor);

        g_assert_cmpmem(rest->data, rest->len, msg->data + m->cursor_pos,
                        msg->len - m->cursor_pos);
    }
}

static void step_seek(Model *m)
{
    uint64_t number = random_to(m, 2) ? m->head :
                      m->head + random_to(m, m->tail - m->head + 3);

    step_rest(m);
    switchover_backlog_seek(&m->b, number);
    model_seek(m, number);
}

/* Another backlog, in which some was sent and freed, goes before this one */
static void step_prepend(Model *m)
{
    g_autoptr(GPtrArray) theirs =
        g_ptr_array_new_with_free_func(message_free);
    SwitchoverBacklog other;
    size_t n = random_to(m, 20);
    size_t popped = random_to(m, n);
    uint64_t own = m->tail - m->head;

    switchover_backlog_init(&other);
    for (size_t i = 0; i < n; i++) {
        GByteArray *msg = random_frame(m);
        size_t len;

        backlog_append_message(&other, msg, 0);
        g_ptr_array_add(theirs, msg);
        if (random_to(m, 1) && switchover_backlog_unsent(&other, &len)) {
            switchover_backlog_advance(&other, random_to(m, len));
        }
    }
    switchover_backlog_pop(&other, popped);
    switchover_backlog_prepend(&m->b, &other);
    g_assert_cmpuint(switchover_backlog_frames(&other), ==, 0);
    g_assert_cmpuint(switchover_backlog_bytes(&other), ==, 0);
    switchover_backlog_destroy(&other);

    while (n > popped) {
        GByteArray *msg = g_ptr_array_index(theirs, --n);

        m->bytes += msg->len;
        g_ptr_array_insert(m->messages, 0, g_byte_array_ref(msg));
    }
    m->head = popped;
    m->tail = theirs->len + own;
    m->peak = MAX(m->peak, m->tail - m->head);
    m->peak_bytes = MAX(m->peak_bytes, m->bytes);
    model_seek(m, m->head);
}

static void step_clear(Model *m)
{
    uint64_t n = m->tail - m->head;

    g_assert_cmpuint(switchover_backlog_clear(&m->b), ==, n);
    g_ptr_array_set_size(m->messages, 0);
    m->head = m->tail = m->cursor = m->cursor_pos = m->bytes = 0;
}

/* What is left goes out whole and in order */
static void model_finish(Model *m)
{
    while (model_unsent(m)) {
        step_send(m);
        model_check(m);
    }
    while (m->head < m->tail) {
        step_peek(m);
        model_check(m);
        switchover_backlog_pop(&m->b, m->head + 1);
        model_remove_frames(m, m->head + 1);
        model_check(m);
    }
}

static void model_step(Model *m)
{
    /* Longer phases in which it grows, or shrinks */
    bool grow = m->serial / 300 % 2;

    switch (random_to(m, 99)) {
    case 0 ... 24:
        step_append(m);
        break;
    case 25 ... 49:
        step_read(m);
        break;
    case 50 ... 52:
        step_control(m);
        break;
    case 53 ... 74:
        step_send(m);
        break;
    case 75 ... 84:
        step_acknowledge(m);
        break;
    case 85 ... 89:
        if (!grow) {
            step_pop(m);
        }
        break;
    case 90 ... 91:
        step_peek(m);
        break;
    case 92:
        step_has(m);
        break;
    case 93 ... 95:
        step_seek(m);
        break;
    case 96 ... 97:
        step_prepend(m);
        break;
    case 98:
        if (!grow && random_to(m, 3) == 0) {
            step_clear(m);
            model_check(m);
            if (random_to(m, 1)) {
                step_prepend(m);
            }
        }
        break;
    default:
        step_rest(m);
        break;
    }
}

static void test_model(void)
{
    for (uint32_t seed = 0; seed <= SEEDS; seed++) {
        Model m;

        model_init(&m, seed < SEEDS ? seed : g_test_rand_int());
        for (int i = 0; i < STEPS; i++) {
            model_step(&m);
            model_check(&m);
        }
        model_finish(&m);
        model_cleanup(&m);
    }
}


/* Memory */

static size_t memory_used(void)
{
    struct mallinfo2 info = mallinfo2();

    return info.uordblks + info.hblkhd;
}

/* The frames and at most a third, however small they are */
static void test_memory(void)
{
    const size_t n = 500000, len = 64;
    g_autoptr(GByteArray) msg = frame_message(1, 0, HDR_LEN, HDR_LEN + len);
    size_t before, used, got;
    SwitchoverBacklog b;

    /* Without this, malloc() keeps what is freed: that is not measured here */
    before = memory_used();
    if (!before) {
        g_test_skip("no numbers from this malloc()");
        return;
    }
    switchover_backlog_init(&b);
    for (size_t i = 0; i < n; i++) {
        backlog_append_message(&b, msg, 0);
    }
    used = memory_used() - before;
    g_test_message("%zu frames of %zu bytes: %.3f of their size", n, len,
                   (double)used / (n * len));
    g_assert_cmpuint(used, >=, n * len);
    g_assert_cmpuint(used, <=, n * len * 4 / 3);

    /* They are freed with the frames; and a window that moves on stays small */
    while (switchover_backlog_unsent(&b, &got)) {
        switchover_backlog_advance(&b, got);
    }
    switchover_backlog_acknowledge(&b, n - 100);
    used = memory_used() - before;
    g_assert_cmpuint(used, <, 1 * MiB);
    for (size_t i = 0; i < n; i++) {
        backlog_append_message(&b, msg, 0);
        if (switchover_backlog_unsent(&b, &got)) {
            switchover_backlog_advance(&b, got);
        }
        switchover_backlog_acknowledge(&b, n - 100 + i);
        if (i % 1000 == 0) {
            g_assert_cmpuint(memory_used() - before, <, 1 * MiB);
        }
    }
    switchover_backlog_destroy(&b);
}


/* The threads */

#define QUEUES 4
#define FRAMES_EACH 20000

typedef struct Threaded {
    SwitchoverPort port;
    SwitchoverBacklog b;
    int fd[QUEUES][2];
    GThread *host[QUEUES];
    uint32_t x;                 /* the sender's random numbers */
    int block[2];               /* a full pipe, sometimes read by the test */

    /* Changed by the thread, or while it pauses */
    uint32_t next[QUEUES];      /* serial of each queue's next frame */
    GByteArray *part;           /* of a message that was not sent whole */
    uint64_t frames;            /* received by the peer; atomic */
    bool done;                  /* DONE has come; atomic */
} Threaded;

static uint32_t threaded_random(Threaded *t)
{
    return t->x = t->x * 1664525 + 1013904223;
}

static size_t serial_len(uint32_t serial)
{
    return HDR_LEN + 60 + (serial % 100 ? serial % 40 : serial % 65000);
}

/* The peer: all frames of a queue in order */
static void threaded_receive(Threaded *t, const uint8_t *buf)
{
    unsigned queue = lduw_be_p(buf + 4);
    g_autoptr(GByteArray) expected = NULL;

    if (ldl_be_p(buf) == SWITCHOVER_MAGIC) {
        g_assert_cmpint(ldl_be_p(buf + 4), ==, SWITCHOVER_DONE);
        qatomic_set(&t->done, true);
        return;
    }
    g_assert_cmpuint(queue, <, QUEUES);
    expected = frame_message(t->next[queue], queue, HDR_LEN,
                             serial_len(t->next[queue]));
    g_assert_cmpmem(buf, switchover_message_len(buf), expected->data,
                    expected->len);
    t->next[queue]++;
    qatomic_set(&t->frames, t->frames + 1);
}

/* SwitchoverSend: some bytes, not always whole messages */
static int threaded_send(SwitchoverPort *port)
{
    Threaded *t = container_of(port, Threaded, port);
    const uint8_t *buf;
    size_t len, n, pos = 0;

    buf = switchover_backlog_unsent(&t->b, &len);
    if (!buf) {
        return -1;
    }
    n = threaded_random(t) % 8 ? len : threaded_random(t) % len;
    g_byte_array_append(t->part, buf, n);
    switchover_backlog_advance(&t->b, n);
    while (t->part->len - pos >= SWITCHOVER_HEAD &&
           t->part->len - pos >= switchover_message_len(t->part->data + pos)) {
        threaded_receive(t, t->part->data + pos);
        pos += switchover_message_len(t->part->data + pos);
    }
    if (pos) {
        g_byte_array_remove_range(t->part, 0, pos);
    }
    /* A socket is writable at once, or not */
    return threaded_random(t) % 4 ? t->fd[0][1] : t->block[1];
}

typedef struct HostThread {
    int fd;
    unsigned queue;
} HostThread;

static void *host_run(void *opaque)
{
    g_autofree HostThread *h = opaque;

    for (uint32_t serial = 0; serial < FRAMES_EACH; serial++) {
        g_autoptr(GByteArray) msg = frame_message(serial, h->queue, HDR_LEN,
                                                  serial_len(serial));
        size_t len = msg->len - SWITCHOVER_HEAD;

        /* Blocks while the socket is full, as the backlog is */
        g_assert_cmpint(RETRY_ON_EINTR(send(h->fd, msg->data +
                                            SWITCHOVER_HEAD, len, 0)),
                        ==, len);
    }
    return NULL;
}

static void threaded_start(Threaded *t, size_t limit)
{
    memset(t, 0, sizeof(*t));
    switchover_backlog_init(&t->b);
    t->part = g_byte_array_new();
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0,
                               t->block), ==, 0);
    t->port.backlog = &t->b;
    t->port.limit = limit;
    t->port.n_queues = QUEUES;
    t->port.queues = g_new0(SwitchoverPortQueue, QUEUES);
    t->port.blocked = -1;
    t->port.send = threaded_send;
    t->port.reading = true;
    for (unsigned i = 0; i < QUEUES; i++) {
        HostThread *h = g_new0(HostThread, 1);

        g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, t->fd[i]), ==,
                        0);
        g_assert_cmpint(fcntl(t->fd[i][1], F_SETFL, O_NONBLOCK), ==, 0);
        t->port.queues[i].fd = t->fd[i][1];
        t->port.queues[i].hdr_len = HDR_LEN;
        h->fd = t->fd[i][0];
        h->queue = i;
        t->host[i] = g_thread_new("host", host_run, h);
    }
    switchover_port_add(&t->port);
}

static void threaded_stop(Threaded *t)
{
    switchover_port_remove(&t->port);
    for (unsigned i = 0; i < QUEUES; i++) {
        g_thread_join(t->host[i]);
        close(t->fd[i][0]);
        close(t->fd[i][1]);
    }
    close(t->block[0]);
    close(t->block[1]);
    switchover_backlog_destroy(&t->b);
    g_byte_array_unref(t->part);
    g_free(t->port.queues);
}

/*
 * Frames come by four queues, and more than the backlog's limit: only as it is
 * acknowledged do they go on.  The threads pause now and then, where the cursor
 * goes to a frame that the peer has not had whole.
 */
static void test_threads(void)
{
    const size_t limit = 512 * KiB;
    int64_t last = g_get_monotonic_time();
    uint64_t frames, before = 0;
    Threaded t;

    threaded_start(&t, limit);
    while ((frames = qatomic_read(&t.frames)) < QUEUES * FRAMES_EACH) {
        if (frames != before) {
            before = frames;
            last = g_get_monotonic_time();
        }
        g_assert_cmpint(g_get_monotonic_time() - last, <, TIME_LIMIT);
        /* One more may be read by each queue than the limit allows */
        g_assert_cmpuint(switchover_backlog_bytes(&t.b), <,
                         limit + SWITCHOVER_HEAD + SWITCHOVER_FRAME_MAX);
        switchover_backlog_acknowledge(&t.b, frames);
        switchover_reader_kick();
        if (frames % 7 == 0) {
            switchover_threads_pause();
            g_byte_array_set_size(t.part, 0);
            switchover_backlog_seek(&t.b, t.frames);
            t.port.blocked = -1;
            switchover_threads_resume();
        }
        g_thread_yield();
    }
    g_assert_cmpuint(qatomic_read(&t.port.read), ==, QUEUES * FRAMES_EACH);
    g_assert_cmpuint(qatomic_read(&t.port.invalid), ==, 0);

    /* And when the queues are empty, the peer is told */
    g_assert_false(qatomic_read(&t.done));
    switchover_threads_pause();
    t.port.announced = g_get_monotonic_time();
    switchover_threads_resume();
    last = g_get_monotonic_time();
    while (!qatomic_read(&t.done)) {
        g_assert_cmpint(g_get_monotonic_time() - last, <, TIME_LIMIT);
        switchover_threads_pause();
        t.port.blocked = -1;
        switchover_threads_resume();
        g_thread_yield();
    }
    switchover_threads_pause();
    g_assert_cmpuint(t.port.emptied, ==, QUEUES * FRAMES_EACH);
    switchover_threads_resume();
    switchover_backlog_acknowledge(&t.b, UINT64_MAX);
    g_assert_cmpuint(switchover_backlog_frames(&t.b), ==, 0);
    threaded_stop(&t);
}

/* Switchover threads of this process */
static int count_threads(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    const char *name;
    int n = 0;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_strdup_printf("/proc/self/task/%s/comm",
                                                name);
        g_autofree char *comm = NULL;

        if (g_file_get_contents(path, &comm, NULL, NULL)) {
            n += g_str_has_prefix(comm, "switchover-");
        }
    }
    return n;
}

/*
 * A thread gives itself its name, and is seen for a moment after it was joined
 * (Linux 6.18)
 */
static void wait_threads(int n)
{
    int64_t end = g_get_monotonic_time() + TIME_LIMIT;

    while (count_threads() != n) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_thread_yield();
    }
}

/* Two threads for all ports, as long as there is one */
static void test_life(void)
{
    SwitchoverBacklog b;
    SwitchoverPort port[3];

    qemu_thread_naming(true);
    switchover_backlog_init(&b);
    for (int turn = 0; turn < 100; turn++) {
        wait_threads(0);
        for (int i = 0; i < ARRAY_SIZE(port); i++) {
            port[i] = (SwitchoverPort) { .backlog = &b, .limit = SIZE_MAX,
                                         .blocked = -1 };
            switchover_port_add(&port[i]);
        }
        if (turn % 10 == 0) {
            wait_threads(2);
        }
        for (int i = 0; i < ARRAY_SIZE(port); i++) {
            switchover_threads_pause();
            switchover_threads_resume();
            switchover_reader_kick();
            switchover_sender_kick();
            switchover_port_remove(&port[i]);
        }
    }
    wait_threads(0);
    switchover_reader_kick();
    switchover_sender_kick();
    switchover_backlog_destroy(&b);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/switchover/backlog/model", test_model);
    g_test_add_func("/switchover/backlog/memory", test_memory);
    g_test_add_func("/switchover/threads/frames", test_threads);
    g_test_add_func("/switchover/threads/life", test_life);
    return g_test_run();
}
