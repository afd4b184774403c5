# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's harness: live-migrate a real guest and count its packets.

    products.py   the guest: kernel from the distribution, our initramfs
    system.py     namespaces, child processes, and their removal at any exit
    patience.py   time limits, which count time without progress
    qmp.py        QEMU's monitor
    peer.py       control of the two ends of the stream (guest/stream.c)
    count.py      records -> lost, duplicated, reordered, outage; no I/O
    migrate.py    one run: set up, migrate, count -> a result (dict)
    unprivileged.py  a QEMU without privileges, and what it has
    announce.py   when a VM was announced
    networks.py   what the network sends to which host
    pingpong.py   many migrations of one guest, to and fro
    tcp.py        a TCP transfer across a migration, compared
    tls.py        TLS for the connection of the filters, and for libvirt
    exact.py      real traffic through captures and injections, compared
    traffic.py    that traffic, mixed from a seed
    vm.py         a VM with vhost-net, in which all of this can run
    matrix.py     the cells of the migration matrix
    report.py     results -> promises, table and picture
    transcript.py the transcripts in the manual, typed again
    cli.py        what the commands share
    selftest.py   checks of the lab's own parts

Needs root, Python 3.9's standard library and iproute2.  Every wait is for an
event, and has a limit to the time without progress (patience.py).
"""


class LabError(Exception):
    """Something the user can act on: says what failed, and the way out."""


class InvalidRun(LabError):
    """The lab itself has failed to measure; nothing is known of QEMU."""
