/*
 * Unit test of the net filters' way to a chardev
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 *   packets of the chain --> FilterWriter --> chardev, a file, read by the test
 *
 * Tested here is the longest packet, with the vnet headers that a netdev may
 * have.  Most NICs send none that is too long, but some of those of other
 * machines do what their guest says, such as eTSEC of -M ppce500.
 *
 * Not tested here, but in tests/qtest/netfilter-stats-test.c and
 * af-packet-test.c: peers that are slow, that go and come.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "chardev/char.h"
#include "net/filter-writer.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"

#define TYPE_TEST_FILTER "test-filter"

/* As virtio 1 has it */
#define VNET_HDR_LEN 12

typedef struct Case {
    const char *name;
    size_t netdev_hdr_len;      /* in front of each packet of the chain ... */
    unsigned flags;             /* ... but for those that are raw */
    bool vnet_hdr;              /* messages tell its length */
    size_t longest;             /* packet, with the header that it has */
} Case;

static const Case cases[] = {
    { "plain", 0, QEMU_NET_PACKET_FLAG_NONE, false, NET_BUFSIZE },
    { "no-vnet", 0, QEMU_NET_PACKET_FLAG_NONE, true, NET_BUFSIZE },
    { "vnet", VNET_HDR_LEN, QEMU_NET_PACKET_FLAG_NONE, true, NET_BUFSIZE },
    { "raw", VNET_HDR_LEN, QEMU_NET_PACKET_FLAG_RAW, true,
      NET_BUFSIZE - VNET_HDR_LEN },
    { "raw-off", VNET_HDR_LEN, QEMU_NET_PACKET_FLAG_RAW, false,
      NET_BUFSIZE },
};

static void append_be32(GByteArray *stream, uint32_t value)
{
    value = cpu_to_be32(value);
    g_byte_array_append(stream, (uint8_t *)&value, sizeof(value));
}

/* A packet to the writer, and the message that is to come out of it */
static void put(FilterWriter *w, const Case *c, size_t len, GByteArray *expect)
{
    static const uint8_t no_hdr[VNET_HDR_LEN];
    g_autofree uint8_t *packet = g_malloc(len);
    /* In pieces, as a NIC has it */
    struct iovec iov[2] = {
        { .iov_base = packet, .iov_len = 10 },
        { .iov_base = packet + 10, .iov_len = len - 10 },
    };
    size_t add = c->vnet_hdr && c->flags == QEMU_NET_PACKET_FLAG_RAW ?
                 c->netdev_hdr_len : 0;

    for (size_t i = 0; i < len; i++) {
        packet[i] = i * 7 + (i >> 8) + len;
    }
    filter_writer_put_packet(w, c->flags, iov, ARRAY_SIZE(iov));
    if (expect) {
        append_be32(expect, len + add);
        if (c->vnet_hdr) {
            append_be32(expect, c->netdev_hdr_len);
        }
        g_byte_array_append(expect, no_hdr, add);
        g_byte_array_append(expect, packet, len);
    }
}

static void test_longest(const void *opaque)
{
    const Case *c = opaque;
    g_autofree char *dir = g_dir_make_tmp("test-filter-writer.XXXXXX", NULL);
    g_autofree char *path = g_strdup_printf("%s/outdev", dir);
    g_autoptr(GByteArray) expect = g_byte_array_new();
    g_autofree char *got = NULL;
    ChardevFile file = { .out = path };
    ChardevBackend backend = {
        .type = CHARDEV_BACKEND_KIND_FILE, .u.file.data = &file
    };
    Chardev *chr = qemu_chardev_new(NULL, TYPE_CHARDEV_FILE, &backend, NULL,
                                    &error_abort);
    NetFilterState *nf = (NetFilterState *)object_new(TYPE_TEST_FILTER);
    NetClientState netdev = { .vnet_hdr_len = c->netdev_hdr_len };
    FilterWriter w = { 0 };
    CharFrontend fe;
    gsize len;

    object_property_add_child(object_get_root(), "f0", OBJECT(nf));
    nf->netdev = &netdev;
    qemu_chr_fe_init(&fe, chr, &error_abort);
    filter_writer_setup(&w, nf, &fe, c->vnet_hdr);

    put(&w, c, c->longest, expect);
    g_assert_cmpint(w.dropped_too_big, ==, 0);
    put(&w, c, c->longest + 1, NULL);
    g_assert_cmpint(w.dropped_too_big, ==, 1);
    put(&w, c, 2 * NET_BUFSIZE, NULL);
    g_assert_cmpint(w.dropped_too_big, ==, 2);
    put(&w, c, 60, expect);
    g_assert_cmpint(w.dropped_too_big, ==, 2);
    g_assert_cmpint(w.dropped_no_room, ==, 0);
    g_assert_cmpint(w.dropped_no_peer, ==, 0);

    g_assert_true(g_file_get_contents(path, &got, &len, NULL));
    g_assert_cmpmem(got, len, expect->data, expect->len);

    filter_writer_cleanup(&w);
    qemu_chr_fe_deinit(&fe, false);
    object_unparent(OBJECT(chr));
    object_unparent(OBJECT(nf));
    object_unref(OBJECT(nf));
    g_unlink(path);
    g_rmdir(dir);
}

/* What the writer looks at of a filter; the rest takes all of net/ */
static const TypeInfo test_filter_info = {
    .parent = TYPE_OBJECT,
    .name = TYPE_TEST_FILTER,
    .instance_size = sizeof(NetFilterState),
};

int main(int argc, char **argv)
{
    /* The first drop is reported */
    g_setenv("QTEST_SILENT_ERRORS", "1", true);

    module_call_init(MODULE_INIT_QOM);
    type_register_static(&test_filter_info);
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path = g_strdup_printf("/filter-writer/longest/%s",
                                                cases[i].name);

        g_test_add_data_func(path, &cases[i], test_longest);
    }
    return g_test_run();
}
