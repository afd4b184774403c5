# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the lab's own parts: a lab that miscounts proves nothing.

Unprivileged: the counting, with made-up records; the time limits; what becomes
of invalid runs; and how a transcript is read.  Privileged: what stream accepts,
with packets made here; to which host each network sends; and that nothing stays
behind a killed harness.
"""
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from unittest import mock

from . import (InvalidRun, announce, count, latency, migrate, networks,
               products, report, transcript)
from .count import Record
from .migrate import Conditions
from .patience import Patience, children, cpu_time
from .peer import Peer
from .system import (CLIENT_ADDRESS, GUEST_ADDRESS, GUEST_MAC, NETNS, System,
                     remove_stale)

MS = 1_000_000


def arrivals(*numbers):
    """Records of packets sent every 2 ms, in the given order of arrival."""
    return [Record(i * 2 * MS, n * 2 * MS, n) for i, n in enumerate(numbers)]


def equal(got, expected):
    assert got == expected, f'{got} instead of {expected}'


def test_count_clean_stream():
    equal(count.count(3, arrivals(0, 1, 2)),
          {'sent': 3, 'received': 3, 'lost': 0, 'duplicated': 0,
           'reordered': 0})


def test_count_each_fault():
    """2 is lost, 5 is lost at the tail, 1 comes twice, 3 after 4."""
    records = arrivals(0, 1, 1, 4, 3)
    equal(count.count(6, records),
          {'sent': 6, 'received': 4, 'lost': 2, 'duplicated': 1,
           'reordered': 1})
    equal(count.lost_numbers(6, records), [2, 5])
    equal([r.seq for r in count.first_arrivals(records)], [0, 1, 4, 3])


def test_count_charges_faults_to_times():
    """As above: 1 (sent at 2 ms) twice, 2 lost, 3 (at 6) after 4, 5 lost."""
    got = count.charge(6, arrivals(0, 1, 1, 4, 3), [0, 3 * MS, 5 * MS])
    equal([tuple(row.values()) for row in got],
          [(0, 1, 0), (1, 0, 0), (1, 0, 1)])


def test_count_late_duplicate_is_not_reordered():
    equal(count.count(3, arrivals(0, 1, 2, 0))['reordered'], 0)


def test_count_nothing_arrived():
    equal(count.count(4, [])['lost'], 4)
    equal(count.outage([]), (0, 0))


def test_count_refuses_number_never_sent():
    try:
        count.count(2, arrivals(0, 1, 2))
    except ValueError:
        return
    raise AssertionError('accepted packet 2 of 2')


def test_count_holes_and_outage():
    equal(count.holes([3, 4, 5, 9]), [(3, 5), (9, 9)])
    equal(count.outage([0, 2, 4, 104, 106]), (100, 4))
    equal(count.outage([0, 90, 92, 152, 154], since=91), (60, 92))


def test_count_send_time():
    """Between, at, and after the packets that arrived."""
    records = [Record(0, 100, 0), Record(0, 180, 4)]
    equal([count.send_time(n, records) for n in (0, 1, 4, 7)],
          [100, 120, 180, 180])


def test_count_guest_clock_stands_still():
    """Guest clock = host clock - 1000 ms, and - 1080 ms after a stop of 80 ms
    at 100 ms.  The fastest packet takes 0.1 ms in both parts."""
    travel = [0.3, 0.1, 0.7]
    host = [t for t in range(0, 400, 2) if not 100 <= t < 180]
    records = [Record(int((t + travel[i % 3]) * MS),
                      (t - (1000 if t < 100 else 1080)) * MS, i)
               for i, t in enumerate(host)]
    clock = count.GuestClock(records, 100 * MS, 180 * MS)
    for guest, expected in ((-990, 10), (-901, 99), (-900, 180), (-880, 200)):
        error = clock.to_host(guest * MS) - expected * MS
        assert 0 <= error <= 0.1 * MS, f'{guest} ms: off by {error} ns'


PAGE = """Title
=====

  .. transcript: it

  .. code-block:: console

     host# echo 1 \\
     >   2
     1 2

     vm$ true
     vm(qemu) info x
     a

     b

Text
"""


def test_transcript_is_read_and_written():
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory, 'page.rst')
        page.write_text(PAGE)
        it = transcript.read_page(page)['it']
        equal([(s.terminal, s.kind, s.command(), s.output, s.gap)
               for s in it.steps],
              [('host', '#', 'echo 1   2', ['1 2'], 1),
               ('vm', '$', 'true', [], 0),
               ('vm', '(qemu)', 'info x', ['a', '', 'b'], 0)])
        transcript.rewrite(it, [s.output for s in it.steps])
        equal(page.read_text(), PAGE)
        transcript.rewrite(it, [['3'], [], ['c']])
        equal(page.read_text(), PAGE.replace('1 2\n\n', '3\n\n').replace(
            'info x\n     a\n\n     b', 'info x\n     c'))


def test_transcript_shows_what_a_terminal_shows():
    typed = 'i\x1b[K\x1b[Din\x1b[K\x1b[D\x1b[Dinf\x1b[K\r\n'
    equal(transcript.screen(typed + 'a\x1b[31mb\r\n\nlong\rs\x1b[C\b\b.\n\n'),
          ['inf', 'ab', '', '.ong'])


def test_transcript_knows_what_is_volatile():
    def same(a, b):
        return transcript.same(a.split('\n'), b.split('\n'))
    assert same('17: =\n\nx', '4: =\nx')
    assert not same('17: =', '17: = cap_net_raw+ep')
    assert not same('packets=3', 'packets=4')


def packet(run, number, size=200):
    body = struct.pack('<IIIIQ', 0x4442414c, run, number, size, 12345)
    body = body.ljust(size - 4, b'x')
    return body + struct.pack('<I', zlib.crc32(body))


def test_stream_sorts_packets():
    """Two intact packets, one again, three damaged ones, one of another run."""
    with System(1000, 0) as system:
        system.start('stream', 'client',
                     [str(products.build().resolve() / 'stream'), '7000'],
                     os.devnull)
        sock = system.udp_socket('client')
        peer = Peer('stream', sock, CLIENT_ADDRESS, 7000, system)
        peer.ask(f'set 77 {CLIENT_ADDRESS} 9 0 200 0')
        flipped = bytearray(packet(77, 3))
        flipped[100] ^= 1
        for data in (packet(77, 0), packet(77, 2), packet(77, 0),
                     bytes(flipped), packet(77, 4)[:-1], b'', packet(78, 5)):
            sock.sendto(data, peer.address)
        got = peer.counters('status')
        equal([got[k] for k in ('received', 'damaged', 'foreign')], [3, 3, 1])
        equal([(r.seq, r.sent_ns) for r in peer.records()],
              [(0, 12345), (2, 12345), (0, 12345)])


def announced(system, host):
    """The guest is at HOST."""
    s = system.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.bind(('up0', 0))
    s.send(b'\xff' * 6 + bytes.fromhex(GUEST_MAC.replace(':', '')) +
           struct.pack('!H', announce.RARP) + bytes(46))


def sent_to(network, sock, expected):
    """Of packets to the guest, the shares that hosts a and b get; they are
    awaited as long as they are not as EXPECTED."""
    before = network.frames()
    addresses = network.addresses(GUEST_ADDRESS).split(',')
    for n in range(PACKETS):
        sock.sendto(b'x', (addresses[n % len(addresses)], 9))
    patience = Patience(0.5, network.frames, None)
    while True:
        # Without the few frames of a querier
        got = tuple(round((now - before[host]) / PACKETS, 1)
                    for host, now in sorted(network.frames().items()))
        if got == expected or patience.over():
            return got
        time.sleep(0.01)


PACKETS = 100
# What the hosts get while the guest is at host a, and after what happens then
SENT_TO = {'learning': ((1, 0), (0, 1)),
           'flooding': ((1, 1), (1, 1)),
           'unlearned': ((1, 1), (1, 0)),
           'both-chassis': ((1, 0), (1, 1)),
           'silent-guest': ((1, 1), (0, 1)),
           'snooping': ((1, 0.5), (1, 1)),
           'early-switch': ((1, 0), (0, 1))}


def test_networks_send_to_whom_they_say():
    equal(set(SENT_TO), set(networks.NETWORKS))
    for name, (first, then) in SENT_TO.items():
        with System(1000, 0) as system:
            network = networks.NETWORKS[name](system)
            sock = system.udp_socket('client')
            announced(system, 'a')
            network.began = network.frames()
            equal((name, sent_to(network, sock, first)), (name, first))
            if name == 'unlearned':
                network.set_port('host-a', learning='on')
                announced(system, 'a')
                network.learn()
            else:
                network.before(mock.Mock(), PACKETS)
                if name == 'early-switch':
                    network.switch()
                else:
                    announced(system, 'b')
            if network.watcher:
                network.watcher.thread.join(10)
                network.watcher.check()
            equal((name, sent_to(network, sock, then)), (name, then))


def test_killed_harness_leaves_nothing():
    code = ('import sys; sys.path.insert(0, sys.argv[1])\n'
            'from harness.system import System\n'
            'with System(1000, 0) as s:\n'
            '    c = s.start("sleeper", "a", ["sleep", "600"], "/dev/null")\n'
            '    print(s.prefix, c.process.pid, flush=True)\n'
            '    sys.stdin.read()\n')
    harness = subprocess.Popen(
        [sys.executable, '-c', code, str(products.ROOT / 'lab')], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    prefix, pid = harness.stdout.readline().split()
    child = os.pidfd_open(int(pid))
    assert list(NETNS.glob(prefix + '-*')), 'no namespaces'
    harness.kill()
    harness.communicate()
    wait_gone(int(pid), child)
    remove_stale()
    equal(list(NETNS.glob(prefix + '-*')), [])


def wait_gone(pid, pidfd):
    """Wait until a process that is not our child has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    patience = Patience(10, lambda: cpu_time(pid))
    while not poll.poll(patience.interval * 1000):
        assert not patience.over(), 'the child of a killed harness lives on'
    os.close(pidfd)


def test_patience_is_with_what_gets_on():
    """A limit of 0.4 s: nothing; something every 0.1 s; that, beyond 5 limits"""
    begin, now = time.monotonic(), time.monotonic
    for progress, bound, least in ((lambda: 0, None, 0.4),
                                   (lambda: now() // 0.1, 5, 2)):
        begin = now()
        patience = Patience(0.4, progress, bound)
        patience.interval = 0.1
        while not patience.over():
            time.sleep(0.01)            # looks in between, as a wait has them
        assert now() - begin >= least, (now() - begin, str(patience))
        equal(patience.idle >= 0.4, bound is None)


def test_patience_sees_cpu_time():
    """A shell's child runs, then all of them sleep."""
    shell = subprocess.Popen(
        ['sh', '-c', 'sh -c "while :; do :; done" & read x; kill $!; wait; read x'],
        stdin=subprocess.PIPE)
    try:
        a = cpu_time(shell.pid)
        while cpu_time(shell.pid) == a:
            time.sleep(0.01)
        equal(len(children(shell.pid)), 1)
        shell.stdin.write(b'x\n')
        shell.stdin.flush()
        while children(shell.pid):
            time.sleep(0.01)
        a = cpu_time(shell.pid)
        time.sleep(0.1)                 # the time over which is measured
        equal(cpu_time(shell.pid), a)
    finally:
        shell.kill()
        shell.communicate()


class Runs:
    """Instead of migrate.run(): the first @invalid runs are invalid."""

    def __init__(self, invalid):
        self.invalid, self.asked = invalid, []

    def __call__(self, mode, c, logs, say):
        self.asked.append((c.rate, c.burst))
        if len(self.asked) <= self.invalid:
            raise InvalidRun('the machine is busy')
        exact = dict.fromkeys(report.FAULTS, 0)
        return {'to_guest': exact, 'to_client': exact}


def test_run_invalid_is_made_again_with_fewer_packets():
    c, full, half = Conditions(rate=500, burst=100), (500, 100), (250, 50)
    for invalid, asked in ((0, [full]), (1, [full, full]),
                           (3, [full, full, half, half])):
        runs = Runs(invalid)
        with mock.patch.object(migrate, 'run', runs):
            said = report.faults(migrate.measured('ours', c))
        equal(runs.asked, asked)
        equal('half of the rate' in said, invalid == 3)
    with mock.patch.object(migrate, 'run', Runs(4)):
        try:
            migrate.measured('ours', c)
        except InvalidRun:
            return
    raise AssertionError('four invalid runs, and there is a result')


def test_run_with_a_loss_is_invalid_if_no_cpu_was_free():
    c = Conditions(rate=0, burst=50000, txqueuelen=1000)    # full in 20 ms
    for waited, lost, valid in ((9, 5, True), (11, 0, True), (11, 5, False)):
        try:
            migrate.check_latency(c, waited, lost)
            equal(True, valid)
        except InvalidRun:
            equal(False, valid)


def test_run_latency_adds_short_waits_up():
    waits, ms = latency.deque(), 1000000
    measured = latency.ReaderLatency([], 20)
    measured.stop()
    with mock.patch('time.monotonic_ns', side_effect=[0, 10 * ms, 20 * ms,
                                                      41 * ms]):
        for _ in range(4):
            measured.add(waits, 6 * ms)
    equal(18 * ms, measured.longest)
    equal(1, len(waits))


def test_run_latency_sees_a_reader_that_waits():
    cpu = str(min(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as d:
        reader = Path(d, latency.READER)    # a process has its file's name
        shutil.copy(shutil.which('yes'), reader)
        others = [subprocess.Popen(['taskset', '-c', cpu, program],
                                   stdout=subprocess.DEVNULL)
                  for program in ('yes', reader)]
        try:
            measured = latency.ReaderLatency([others[1].pid], 20)
            patience = Patience(10, lambda: cpu_time(*(p.pid for p in others)))
            while not measured.longest and not patience.over():
                time.sleep(patience.interval)
            equal(True, measured.stop() > 0)
            measured = latency.ReaderLatency([os.getpid()], 20)  # no reader
            equal(None, measured.stop())
        finally:
            for p in others:
                p.kill()
                p.wait()


UNPRIVILEGED = [f for n, f in sorted(globals().items())
                if n.startswith(('test_count_', 'test_patience_', 'test_run_',
                                 'test_transcript_'))]
PRIVILEGED = [test_stream_sorts_packets, test_networks_send_to_whom_they_say,
              test_killed_harness_leaves_nothing]
