# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: one function per item, which returns its tables.

Contenders take turns: A B C A B C ..., so that what disturbs the machine for a
while disturbs all of them.  The first round is not counted.  Goals are printed
beside the figures, met or missed; nothing depends on them.
"""
import dataclasses
import json
import math
import os
import shutil
import time

from . import BenchError, CannotRun, contenders
from .contenders import QUIET, WARM, Contender
from .qemu import Qemu, Turns, netdev
from .report import Table
from .world import quantile_us, run

GSO_SIZE = 54 + 45 * 1448               # 65,214: TCP's largest, whole segments


@dataclasses.dataclass
class Setup:
    qemu: str
    stock: str
    rounds: int                         # counted ones
    seconds: float                      # of a measurement
    hold: float                         # seconds that a rate must be held
    long: float                         # seconds of the look at the memory
    rate: int                           # all can follow
    high: int                           # for those made for high rates
    vnet: bool
    sizes: tuple = ()                   # restricts those of items 1 to 4
    commands: dict = dataclasses.field(default_factory=dict)
    say: object = print


def size_name(size):
    return 'GSO 64 KiB' if size == GSO_SIZE else f'{size} B'


def sizes(setup, *wanted):
    return [s for s in wanted if not setup.sizes or s in setup.sizes]


def scaled(rate, size):
    """What RATE means for large frames."""
    return rate // (10 if size == GSO_SIZE else 3 if size > 2000 and
                    rate > 100000 else 1)


def send(world, target, size, number, count=None, seconds=None, rate=None,
         core=None, more=(), wait=True):
    """Run the sender. Returns what it says; or the process, if not to WAIT."""
    argv = [world.program('send'), *target, '--size', size, '--run', number]
    if size == GSO_SIZE:
        argv.append('--gso')
    for name, value in (('count', count), ('seconds', seconds),
                        ('rate', rate)):
        if value:
            argv += [f'--{name}', value]
    child = world.start('send', [*argv, *more],
                        world.sender if core is None else core)
    if not wait:
        return child
    said = json.loads(child.line(120 + (seconds or 0)))
    child.wait(10)
    return said


INTO_TAP = ('--interface', 'port0')


def each_round(setup, table, rows, measure):
    """Call MEASURE(row, round) for all ROWS, in turns; round 0 is not to be
    counted. Who cannot run is named once."""
    for n in range(setup.rounds + 1):
        for row in rows:
            if row in table.cannot:
                continue
            setup.say(f'item {table.item}, round {n} of {setup.rounds}: {row}')
            try:
                measure(row, n)
            except CannotRun as e:
                table.cannot[row] = str(e)
            except BenchError as e:
                # its figures would not be what their name says
                table.cannot[row] = ' '.join(str(e).split())


def by_name(classes):
    return {c.name: c for c in classes}


# -- 1: cost of capturing ----------------------------------------------------

def one_cost(world, setup, kind, size, rate):
    """(CPU ns per frame, frames lost) of one measurement."""
    c = kind(world, setup, size, size == GSO_SIZE)
    try:
        c.begin()
        send(world, INTO_TAP, size, 1, count=WARM, rate=min(rate, setup.rate))
        c.settle(1, WARM)
        before = c.cpu_ns()
        sent = send(world, INTO_TAP, size, 2, rate=rate,
                    count=max(int(rate * setup.seconds), WARM))['sent']
        c.settle(2, sent)
        used = c.cpu_ns() - before
        got = c.finish(2)
        return used / max(got, 1), sent - got
    finally:
        world.clear()


def capture_cost(world, setup):
    kinds = by_name((*contenders.CAPTURES, contenders.RingCopy))
    tables = []
    for rate, which in ((setup.rate, kinds),
                        (setup.high, {n: k for n, k in kinds.items()
                                      if k.fast})):
        wanted = sizes(setup, 64, 512, 1400, 9000, GSO_SIZE)
        t = Table(1, f'Capture: CPU ns per frame, at {rate:,} frames/s',
                  [size_name(s) for s in wanted])

        def measure(row, n):
            for size in wanted:
                r = scaled(rate, size)
                cost, lost = one_cost(world, setup, which[row], size, r)
                if n:
                    t.figure(row, size_name(size)).add(cost, lost)

        each_round(setup, t, list(which), measure)
        t.notes += [f'{size_name(s)}: at {scaled(rate, s):,}/s' for s in wanted
                    if scaled(rate, s) != rate]
        ours = contenders.Ours.name
        for size in wanted:
            column = size_name(size)
            if rate == setup.rate and size in (64, 1400):
                t.ratio_goal('at most 1/10 of stock filter-mirror', column,
                             ours, contenders.Stock.name, 0.1)
            t.ratio_goal('at most that of netsniff-ng', column, ours,
                         contenders.Netsniff.name, 1)
            t.ratio_goal('at most 4 times the bare ring', column, ours,
                         contenders.Ring.name, 4)
        tables.append(t)
    return tables


# -- 2: lossless rate --------------------------------------------------------

def lossless(once, setup, near=None):
    """The highest rate at which ONCE(rate or None, seconds) loses nothing for
    setup.hold seconds.  Returns (rate, is it all that the sender offers).

    What loses is tried a second time: one disturbance of the machine would
    otherwise send the search the wrong way for good."""
    def trial(rate, seconds):
        found = once(rate, seconds)
        return once(rate, seconds) if found[1] else found

    probe = min(2.0, setup.hold)
    rate, lost = trial(None, probe)
    if not lost:
        rate, lost = trial(None, setup.hold)
        if not lost:
            return rate, True
    low, high, steps = 1000.0, rate, 7
    if near:
        low, high, steps = near * 0.8, min(near * 1.25, rate), 3
    for _ in range(steps):
        middle = math.sqrt(low * high)
        _, lost = trial(middle, probe)
        low, high = (low, middle) if lost else (middle, high)
    while low > 100:
        rate, lost = trial(low, setup.hold)
        if not lost:
            return rate, False
        low *= 0.93
    return 0.0, False


def one_trial(world, setup, make, size):
    """A trial for lossless(). MAKE() gives a contender."""
    def trial(rate, seconds):
        c = make()
        try:
            c.begin()
            send(world, INTO_TAP, size, 1, count=WARM, rate=setup.rate / 4)
            c.settle(1, WARM)
            s = send(world, INTO_TAP, size, 2, seconds=seconds, rate=rate)
            c.settle(2, s['sent'])
            got = c.finish(2)
            return s['sent'] * 1e9 / s['ns'], s['sent'] - got
        finally:
            world.clear()
    return trial


def rate_table(world, setup, t, kinds, wanted):
    near = {}

    def measure(row, n):
        for size in wanted:
            trial = one_trial(world, setup,
                              lambda: kinds[row](world, setup, size,
                                                 size == GSO_SIZE), size)
            if not n:                   # the round that is not counted
                trial(setup.rate, 1)
                continue
            rate, everything = lossless(trial, setup, near.get((row, size)))
            near[row, size] = rate
            f = t.figure(row, size_name(size))
            f.add(rate)
            f.mark = 'all' if everything and f.mark != 'part' else 'part'

    each_round(setup, t, list(kinds), measure)
    for cells in t.rows.values():
        for f in cells.values():
            f.mark = f.mark if f.mark == 'all' else ''
    t.notes.append('all: this is everything that one sending core offers, in '
                   'each round')


def capture_rate(world, setup):
    wanted = sizes(setup, 64, 1400, GSO_SIZE)
    t = Table(2, f'Capture: frames/s without a loss for {setup.hold:g} s',
              [size_name(s) for s in wanted])
    rate_table(world, setup, t, by_name(contenders.CAPTURES), wanted)
    for size in wanted:
        f = t.rows.get(contenders.Ours.name, {}).get(size_name(size))
        t.goal('no drops at everything that one sending core offers',
               size_name(size), f.mark == 'all' if f else None)
    return [t]


# -- 3: injecting ------------------------------------------------------------

class Injection:
    """One measurement: somebody sends into a TAP, and we read it."""

    def __init__(self, world, setup, size):
        self.world, self.setup, self.size = world, setup, size
        self.tap = world.tap()
        self.counters = world.counters()

    def reader(self):
        """On the sender's core, so that who injects has a core for itself."""
        self.child = self.world.start(
            'read', [self.world.program('read'), '--tap', self.tap.fd,
                     '--vnet', '--counters', self.counters.path],
            self.world.sender, [self.tap.fd])
        self.child.ready()

    def settle(self, number, sent, begin):
        """Wait for SENT frames. Returns how many have come, and how many per
        second since BEGIN (ns), until the last."""
        last, since = -1, time.monotonic_ns()
        while (got := self.counters.frames_of(number)) < sent:
            if got != last:
                last, since = got, time.monotonic_ns()
            elif time.monotonic_ns() - since > QUIET * 1e9:
                break
            time.sleep(0.001)
        else:
            since = time.monotonic_ns()
        return got, got * 1e9 / (since - begin)


def injected(setup, size, rate):
    """How many frames to inject."""
    return int((rate or scaled(setup.high, size)) * setup.seconds)


def inject_ours(world, setup, size, rate):
    if reason := contenders.Ours.why_not(setup):
        raise CannotRun(reason)
    i = Injection(world, setup, size)
    path = world.path('stream')
    vnet = size == GSO_SIZE or setup.vnet
    qemu = Qemu(world, 'inject', setup.qemu, [
        *netdev(i.tap), '-chardev',
        f'socket,id=m0,path={path},server=on,wait=off', '-object',
        'filter-redirector,id=inj0,netdev=n0,indev=m0,out_netdev=n0'
        + (',vnet_hdr_support=on' if vnet else '')], [i.tap])
    setup.commands.setdefault('inject', qemu.command)
    # QEMU keeps the first frame on the TAP (qemu.py)
    send(world, INTO_TAP, size, 1, count=1)
    i.reader()
    i.tap.offload()
    feed = ('--stream', path)
    more = ['--sleep', *(['--vnet'] if vnet else [])]
    before = qemu.child.cpu_ns()
    s = send(world, feed, size, 2, rate=rate, more=more,
             count=injected(setup, size, rate))
    got, per_second = i.settle(2, s['sent'], s['begin'])
    used = qemu.child.cpu_ns() - before
    return used / max(got, 1), per_second, s['sent'] - got


def inject_bare(world, setup, size, rate):
    i = Injection(world, setup, size)
    i.reader()
    i.tap.offload()
    s = send(world, INTO_TAP, size, 2, rate=rate, core=world.worker,
             more=['--sleep', '--bypass'],
             count=injected(setup, size, rate))
    got, per_second = i.settle(2, s['sent'], s['begin'])
    return s['cpu_ns'] / max(got, 1), per_second, s['sent'] - got


def replay(program, package, arguments):
    def inject(world, setup, size, rate):
        if not shutil.which(program):
            raise CannotRun(f'{program} is not installed (package {package})')
        if rate or size == GSO_SIZE:
            return None             # paces by spinning; has no GSO frames
        i = Injection(world, setup, size)
        i.reader()
        file = world.path('pcap')
        count = injected(setup, size, rate)
        run(world.program('send'), '--pcap', str(file), '--size', str(size),
            '--count', str(count))
        begin = time.monotonic_ns()
        child = world.start(program, [program, *arguments, file],
                            world.worker)
        usage = child.usage(120)
        got, per_second = i.settle(1, count, begin)
        return usage * 1e9 / max(got, 1), per_second, count - got
    return inject


def inject(world, setup):
    wanted = sizes(setup, 64, 1400, GSO_SIZE)
    rows = {'ours': inject_ours, 'bare sendmmsg': inject_bare,
            'tcpreplay': replay('tcpreplay', 'tcpreplay',
                                ['--quiet', '--topspeed', '-i', 'port0']),
            'netsniff-ng': replay('netsniff-ng', 'netsniff-ng',
                                  ['--silent', '--no-promisc',
                                   '--no-sock-mem', '--ring-size', '1MiB',
                                   '--out', 'port0', '--in'])}
    names = [size_name(s) for s in wanted]
    paced = Table(3, f'Inject: CPU ns per frame, at {setup.rate * 5:,} '
                  'frames/s', names)
    cost = Table(3, 'Inject: CPU ns per frame, as fast as it goes', names)
    rate = Table(3, 'Inject: frames/s, as fast as it goes', names)

    def measure(row, n):
        for size in wanted:
            for at in (scaled(setup.rate * 5, size), None):
                try:
                    found = rows[row](world, setup, size, at)
                finally:
                    world.clear()
                if not n or not found:
                    continue
                ns, per_second, lost = found
                column = size_name(size)
                if at:
                    paced.figure(row, column).add(ns, lost)
                else:
                    cost.figure(row, column).add(ns, lost)
                    rate.figure(row, column).add(per_second, lost)

    each_round(setup, paced, list(rows), measure)
    paced.notes += [f'{size_name(s)}: at {scaled(setup.rate * 5, s):,}/s'
                    for s in wanted if scaled(setup.rate * 5, s)
                    != setup.rate * 5]
    for t in (paced, cost):
        for c in names:
            t.ratio_goal('at most 1.3 times bare sendmmsg', c, 'ours',
                         'bare sendmmsg', 1.3)
    rate.notes.append('rate and cost are those of the frames that arrived; a '
                      'tool that has lost some does not see that the TAP is '
                      'full')
    cost.cannot = rate.cannot = paced.cannot
    return [paced, cost, rate]


# -- 4: end to end -----------------------------------------------------------

class Path(Contender):
    """From port0 to a reader of port1."""
    latency = False

    def begin(self):
        if reason := self.why_not(self.setup):
            raise CannotRun(reason)
        self.tap = self.world.tap()
        self.far = self.world.tap('port1', queue=10000)
        self.measured = []
        self.start()
        if self.gso:
            self.tap.offload()
            self.far.offload()

    def read(self, *how, fd=None):
        self.process = self.world.start(
            'read', [self.world.program('read'), *how, '--counters',
                     self.counters.path,
                     *(['--latency'] if self.latency else [])],
            self.world.worker, [] if fd is None else [fd])
        self.process.ready()

    def read_tap(self, tap):
        self.read('--tap', tap.fd, '--vnet', fd=tap.fd)

    def cpu_ns(self):
        return sum(p.cpu_ns() for p in self.measured)

    def pair(self, binary, first, second, takes):
        """Two QEMUs, on port0 and on port1, and a socket between them."""
        path = self.world.path('stream')
        vnet = ',vnet_hdr_support=on' if self.gso or self.setup.vnet else ''
        b = Qemu(self.world, 'b', binary, [
            *netdev(self.far),
            '-chardev', f'socket,id=m0,path={path},server=on,wait=off',
            '-object', second + vnet], [self.far])
        a = Qemu(self.world, 'a', binary, [
            *netdev(self.tap, takes=takes),
            '-chardev', f'socket,id=m0,path={path}',
            '-object', first + vnet], [self.tap])
        self.measured = [a.child, b.child]
        self.setup.commands.setdefault(f'{self.name}, a', a.command)
        self.setup.commands.setdefault(f'{self.name}, b', b.command)


class OursPair(Path):
    name = 'ours'
    why_not = classmethod(lambda cls, setup: contenders.Ours.why_not(setup))

    def start(self):
        self.pair(self.setup.qemu,
                  'filter-redirector,id=cap0,netdev=n0,in_netdev=n0,outdev=m0',
                  'filter-redirector,id=inj0,netdev=n0,indev=m0,out_netdev=n0',
                  False)
        # QEMU keeps the first frame on a TAP (qemu.py)
        send(self.world, ('--interface', 'port1'), 64, 0, count=1)
        self.read_tap(self.far)


class StockPair(Path):
    name = 'stock mirror + redirector'
    why_not = classmethod(lambda cls, setup: contenders.Stock.why_not(setup))

    def start(self):
        self.pair(self.setup.stock,
                  'filter-mirror,id=mir0,netdev=n0,queue=tx,outdev=m0',
                  'filter-redirector,id=red0,netdev=n0,queue=rx,indev=m0',
                  True)
        # Stock cannot send towards a guest, only into its TAP as from one.
        self.read('--packet' if self.latency else '--ring', 'port1',
                  '--incoming')


class Mirred(Path):
    name = 'tc mirred'

    @staticmethod
    def mirror():
        def add(*match):
            run('tc', 'filter', 'add', 'dev', 'port0', 'egress', *match,
                'action', 'mirred', 'egress', 'mirror', 'dev', 'port1')
        try:
            add('matchall')
        except BenchError:              # a kernel without that classifier
            add('protocol', 'all', 'u32', 'match', 'u32', '0', '0')

    def start(self):
        try:
            run('tc', 'qdisc', 'add', 'dev', 'port0', 'clsact')
            self.mirror()
        except (BenchError, FileNotFoundError) as e:
            raise CannotRun(' '.join(str(e).split())) from None
        self.read_tap(self.far)


class Direct(Path):
    name = 'none: port0 itself'

    def start(self):
        self.read_tap(self.tap)


def end_to_end(world, setup):
    wanted = sizes(setup, 64, 1400, GSO_SIZE)
    names = [size_name(s) for s in wanted]
    kinds = by_name((OursPair, StockPair, Mirred))
    rate = Table(4, f'TAP to TAP: frames/s without a loss for {setup.hold:g} s',
                 names)
    rate_table(world, setup, rate, kinds, wanted)
    for c in names:
        rate.ratio_goal('at least 5 times the stock pair', c, OursPair.name,
                        StockPair.name, 5, least=True)

    slow = setup.rate // 2
    cost = Table(4, f'TAP to TAP: CPU ns per frame of both QEMUs, at {slow:,} '
                 'frames/s', names)
    late = Table(4, 'TAP to TAP: latency at 5,000 frames/s of 64 B, us',
                 ['p50', 'p99', 'added p50', 'added p99'])

    def measure_cost(row, n):
        for size in wanted:
            ns, lost = one_cost(world, dataclasses.replace(setup), kinds[row],
                                size, scaled(slow, size))
            if n:
                cost.figure(row, size_name(size)).add(ns, lost)

    each_round(setup, cost, [OursPair.name, StockPair.name], measure_cost)

    base = {}
    kinds[Direct.name] = Direct

    def measure_latency(row, n):
        c = kinds[row](world, setup, 64)
        c.latency = True
        try:
            c.begin()
            send(world, INTO_TAP, 64, 1, count=WARM, rate=5000)
            c.settle(1, WARM)
            count = int(5000 * setup.seconds)
            s = send(world, INTO_TAP, 64, 2, count=count, rate=5000)
            c.settle(2, s['sent'])
            h = c.counters.histogram()
            lost = c.finish(2) - s['sent']
        finally:
            world.clear()
        found = [quantile_us(h, q) for q in (0.5, 0.99)]
        if row == Direct.name:
            base[n] = found
        if n:
            for name, value, add in zip(('p50', 'p99'), found, base[n]):
                late.figure(row, name).add(value, -lost)
                if row != Direct.name:
                    late.figure(row, f'added {name}').add(value - add, -lost)

    each_round(setup, late, [Direct.name, OursPair.name, StockPair.name,
                             Mirred.name], measure_latency)
    late.notes.append('added: to what a reader of port0 itself sees in the '
                      'same round')
    return [rate, cost, late]


# -- 5: idle -----------------------------------------------------------------

def idle(world, setup):
    kinds = by_name((contenders.OursNone, contenders.OursInactive,
                     contenders.Ours))
    t = Table(5, 'Sender into a TAP, 64 B, as fast as it goes',
              ['frames/s', 'of no filter, %', 'CPU of QEMU, %'])
    rounds = dataclasses.replace(setup, rounds=2 * setup.rounds + 1)
    base = {}

    def measure(row, n):
        c = kinds[row](world, setup)
        try:
            c.begin()
            send(world, INTO_TAP, 64, 1, count=WARM)
            before = c.cpu_ns()
            s = send(world, INTO_TAP, 64, 2, seconds=setup.seconds)
            used = c.cpu_ns() - before
        finally:
            world.clear()
        rate = s['sent'] * 1e9 / s['ns']
        if row == contenders.OursNone.name:
            base[n] = rate
        if n:
            t.figure(row, 'frames/s').add(rate)
            t.figure(row, 'of no filter, %').add(100 * rate / base[n])
            t.figure(row, 'CPU of QEMU, %').add(100 * used / s['ns'])

    each_round(rounds, t, list(kinds), measure)
    share = t.median(contenders.OursInactive.name, 'of no filter, %')
    t.goal('no more than 2 % slower than with no filter',
           'no figure' if share is None else f'{share:.1f} %',
           None if share is None else share >= 98)
    return [t]


# -- 6: the main loop --------------------------------------------------------

PEERS = {'fast peer': [], 'slow peer, 10 MB/s': ['--rate', '10e6'],
         'stopped peer': ['--stopped']}


def main_loop(world, setup):
    columns = ['longest turn', 'its own part', 'p99.9 of turns', 'turns/s',
               'QMP p50', 'QMP p99', 'QMP max']
    t = Table(6, 'Main loop under all that one core sends, 1400 B: us', columns)
    rows = {f'{kind.name}, {peer}': (kind, arguments, True)
            for kind in (contenders.Ours, contenders.Stock)
            for peer, arguments in PEERS.items()}
    rows = {'ours, no load': (contenders.Ours, [], False), **rows}
    untraced, lost_events = set(), [0]

    def measure(row, n):
        kind, peer, load = rows[row]
        c = kind(world, setup, 1400, peer=peer)
        turns = None
        seconds = setup.seconds
        try:
            c.begin()
            try:                        # first: it stops the CPUs for a while
                turns = Turns(world, c.qemu)
            except BenchError as e:
                untraced.add(str(e))
            pings = world.counters()
            ping = world.start('ping', [
                world.program('ping'), '--connect', c.qemu.monitor,
                '--interval', '200', '--counters', pings.path], world.sender)
            ping.ready()
            begin = time.monotonic()
            if load:
                send(world, INTO_TAP, 1400, 1, seconds=seconds)
            else:
                time.sleep(seconds)
            took = time.monotonic() - begin
            h, longest = pings.histogram(), pings.spare / 1000
            found, dropped = turns.finish() if turns else ([], 0)
            turns = None
            lost_events[0] += dropped
        finally:
            if turns:
                turns.close()
            world.clear()
        if not n:
            return
        if sum(h) < 2:
            # Nobody has answered: the time of one round trip is the run's
            t.figure(row, 'QMP max').mark = 'no answer'
            longest = took * 1e6
        t.figure(row, 'QMP max').add(longest)
        if sum(h) >= 2:
            t.figure(row, 'QMP p50').add(quantile_us(h, 0.5))
            t.figure(row, 'QMP p99').add(quantile_us(h, 0.99))
        if found:
            own = sorted(whole - away for whole, away in found)
            t.figure(row, 'longest turn').add(max(w for w, _ in found))
            t.figure(row, 'its own part').add(own[-1])
            t.figure(row, 'p99.9 of turns').add(own[int(len(own) * 0.999)])
            t.figure(row, 'turns/s').add(len(found) / took)

    each_round(setup, t, list(rows), measure)
    t.notes += ['longest turn: from the return of one ppoll() to the next; its '
                'own part: without the time for which the thread was '
                'preempted. QMP: round trips, one begun 200 us after the last '
                'has ended, by a real-time client on the sender\'s core.']
    t.notes += [f'no turns: {why}' for why in untraced]
    if lost_events[0]:
        t.notes.append(f'{lost_events[0]} trace events were lost')
    for peer in PEERS:
        v = t.rows.get(f'ours, {peer}', {}).get('its own part')
        t.goal('no turn over 1 ms', f'{peer}: no figure' if not v else
               f'{peer}: {max(v.values):.0f} us at most',
               max(v.values) <= 1000 if v else None)
    fast, stopped = (t.median(f'ours, {p}', 'QMP p99')
                     for p in ('fast peer', 'stopped peer'))
    t.goal('a stopped peer moves QMP p99 by no more than 2 times',
           f'{stopped / fast:.2f} of the fast peer\'s' if fast and stopped
           else 'no figure', stopped <= 2 * fast if fast and stopped else None)
    return [t]


# -- 7: memory ---------------------------------------------------------------

def memory(world, setup):
    columns = ['before', 'at load, most', 'after', 'growth',
               'growth, anonymous']
    t = Table(7, f'Resident memory of QEMU over {setup.long:g} s of all that '
              'one core sends, 1400 B: MiB', columns)
    rows = {f'{kind.name}, {peer}': (kind, arguments)
            for kind in (contenders.Ours, contenders.Stock)
            for peer, arguments in PEERS.items()
            if kind is contenders.Ours or peer == 'fast peer'}

    def measure(row, n):
        kind, peer = rows[row]
        c = kind(world, setup, 1400, peer=peer)
        try:
            c.begin()
            send(world, INTO_TAP, 1400, 1, count=100, rate=1000)
            before = c.qemu.memory()
            sender = send(world, INTO_TAP, 1400, 2, seconds=setup.long,
                          wait=False)
            begin, samples = time.monotonic(), []
            while sender.process.poll() is None:
                samples.append((time.monotonic() - begin, *c.qemu.memory()))
                time.sleep(0.2)
            if not peer:
                c.settle(2, 1 << 62)
            after = c.qemu.memory()
        finally:
            world.clear()
        settled = [s for s in samples if s[0] >= setup.long / 6] or samples
        mib = 1 / 1024
        t.figure(row, 'before').add(before[0] * mib)
        t.figure(row, 'at load, most').add(max(s[1] for s in samples) * mib)
        t.figure(row, 'after').add(after[0] * mib)
        for i, name in ((1, 'growth'), (2, 'growth, anonymous')):
            t.figure(row, name).add((settled[-1][i] - settled[0][i]) * mib)

    for row in rows:                    # one long run each
        setup.say(f'item 7: {row}')
        try:
            measure(row, 1)
        except (CannotRun, BenchError) as e:
            t.cannot[row] = ' '.join(str(e).split())
    t.notes.append(f'growth: from {setup.long / 6:g} s to the end, in one run. '
                   'The ring counts as resident where it is mapped.')
    for peer in PEERS:
        g = t.median(f'ours, {peer}', 'growth')
        t.goal('flat: grows by less than 1 MiB', f'{peer}: no figure'
               if g is None else f'{peer}: {g:.2f} MiB',
               None if g is None else g < 1)
    return [t]


ITEMS = {1: capture_cost, 2: capture_rate, 3: inject, 4: end_to_end, 5: idle,
         6: main_loop, 7: memory}
