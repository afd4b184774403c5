# SPDX-License-Identifier: GPL-2.0-or-later
"""Who takes the frames that the host sends into a TAP.

Each contender is started anew for each measurement, on a new TAP, on the
WORKER's core.  It answers three questions: how many frames of a run have
arrived, how much CPU time has it used, and, after finish(), how many frames in
all were delivered.

Nobody reads the TAP beside them.  Its queue is full after 1000 frames, and from
then on the driver drops each frame, after the packet sockets have seen it.
So the captures are alone on their core, and a frame costs the sender the same
with each of them.  Only the stock QEMU must read the TAP, as that is how it
captures.
"""
import os
import re
import shutil
import socket
import time

from . import CannotRun
from .qemu import Qemu, netdev
from .world import wait_for

QUIET = 0.3                     # seconds without a change: nothing more comes
WARM = 2000                     # frames before anything is counted


class Contender:
    """A class per kind, an object per measurement."""
    name = ''
    live = True                 # can be asked for its count while it runs
    fast = True                 # made for high rates

    def __init__(self, world, setup, size=64, gso=False, peer=()):
        self.world, self.setup = world, setup
        self.size, self.gso, self.peer = size, gso, list(peer)
        self.counters = world.counters()
        self.others = []        # processes whose CPU time does not count

    @classmethod
    def why_not(cls, setup):
        return None

    def begin(self):
        """Start it on a new TAP."""
        reason = self.why_not(self.setup)
        if reason:
            raise CannotRun(reason)
        self.tap = self.world.tap()
        self.start()
        if self.gso:
            self.tap.offload()

    def cpu_ns(self):
        return self.process.cpu_ns()

    def received(self, run):
        return self.counters.frames_of(run)

    def settle(self, run, sent):
        """Wait until all SENT frames of RUN have come, or nothing more does."""
        last, since = None, time.monotonic()
        while True:
            self.process.check()
            got = self.received(run) if self.live else self.cpu_ns()
            if self.live and got >= sent:
                return
            if got != last:
                last, since = got, time.monotonic()
            elif time.monotonic() - since > self.quiet():
                return
            time.sleep(0.005)

    def quiet(self):
        return QUIET

    def finish(self, run):
        """End it. Returns the frames of RUN that it got; if it can count only
        all together, those of all runs but WARM."""
        got = self.received(run)
        self.world.clear()
        return got


class Bare(Contender):
    """Our own consumer, which only counts."""
    options = ()

    def start(self):
        fds = (self.tap.fd,)
        self.process = self.world.start(
            self.name, [self.world.program('read'), *self.options, 'port0',
                        *(['--vnet'] if self.gso else []), '--outgoing',
                        '--counters', self.counters.path],
            self.world.worker, fds)
        self.process.ready()


class Ring(Bare):
    name = 'bare ring'
    options = ('--ring',)


class RingCopy(Bare):
    name = 'bare ring, copying'
    options = ('--touch', '--ring')


class Recv(Bare):
    name = 'recvfrom'
    options = ('--packet',)
    fast = False


class Filter(Contender):
    """A QEMU with a filter that writes to a unix socket, and its peer."""
    takes = False

    def vnet(self):
        return self.gso or self.setup.vnet

    def start(self):
        path = self.world.path('stream')
        self.sink = self.world.start(
            'sink', [self.world.program('sink'), '--listen', path,
                     '--counters', self.counters.path,
                     *(['--vnet'] if self.vnet() else []), *self.peer],
            self.world.worker)
        self.sink.ready()
        self.qemu = Qemu(
            self.world, self.name.replace(' ', '-'), self.binary(),
            [*netdev(self.tap, takes=self.takes),
             '-chardev', f'socket,id=m0,path={path}',
             *self.filter(',vnet_hdr_support=on' if self.vnet() else '')],
            [self.tap])
        self.process = self.qemu.child
        self.setup.commands.setdefault(self.name, self.qemu.command)


class Ours(Filter):
    name = 'ours'
    state = ''                  # more properties of the filter

    @classmethod
    def why_not(cls, setup):
        return executable(setup.qemu, 'make build')

    def binary(self):
        return self.setup.qemu

    def filter(self, vnet):
        return ['-object', 'filter-redirector,id=cap0,netdev=n0,'
                f'in_netdev=n0,outdev=m0{self.state}{vnet}']


class OursInactive(Ours):
    name = 'inactive filter'
    state = ',enable_when_running=off,enable_when_stopped=on'


class OursNone(Ours):
    name = 'no filter'

    def filter(self, vnet):
        return []


class Stock(Filter):
    name = 'stock filter-mirror'
    takes = True
    fast = False

    @classmethod
    def why_not(cls, setup):
        return executable(setup.stock, 'dev/build stock')

    def binary(self):
        return self.setup.stock

    def filter(self, vnet):
        return ['-object', 'filter-mirror,id=mir0,netdev=n0,queue=tx,'
                f'outdev=m0{vnet}']


class Tool(Contender):
    """A program that says at its end how many frames it has seen."""
    live = False

    @classmethod
    def why_not(cls, setup):
        if not shutil.which(cls.program):
            return f'{cls.program} is not installed (package {cls.package})'
        return None

    def start(self):
        self.process = self.world.start(self.name, self.arguments(),
                                        self.world.worker, (self.tap.fd,))
        wait_for(lambda: self.process.check() or self.started(), 20,
                 f'start of {self.name}')

    def quiet(self):
        return 1.3              # its ring's blocks are retired each second

    def finish(self, run):
        self.process.interrupt()
        text = self.process.messages() + self.process.text.decode() + \
            self.process.process.stdout.read().decode()
        numbers = [int(n) for n in re.findall(self.summary, text)]
        self.world.clear()
        if not numbers:
            raise CannotRun(f'{self.name} did not say what it has captured: '
                            f'{text[-200:]!r}')
        return self.delivered(numbers) - WARM


class Tcpdump(Tool):
    name = program = package = 'tcpdump'
    summary = r'(\d+) packets? captured'

    def arguments(self):
        return ['tcpdump', '-Z', 'root', '-n', '-i', 'port0', '-B', '32768',
                '-s', '69632', '-w', '/dev/null']

    def started(self):
        return 'listening on' in self.process.messages()

    def delivered(self, numbers):
        return numbers[-1]


class Netsniff(Tool):
    name = program = package = 'netsniff-ng'
    summary = r'(\d+)\s+packets passed filter'

    def arguments(self):
        return ['netsniff-ng', '--in', 'port0', '--out', '/dev/null',
                '--silent', '--no-promisc', '--ring-size', '32MiB',
                '--no-sock-mem']

    def started(self):
        return bound('port0')

    def delivered(self, numbers):
        return numbers[-1]


def bound(interface):
    """Is there a packet socket on INTERFACE that takes frames?"""
    index = str(socket.if_nametoindex(interface))
    with open('/proc/self/net/packet') as f:
        return any(line.split()[4] == index and line.split()[3] != '0000'
                   for line in f.readlines()[1:])


def executable(path, way_out):
    if not os.access(path, os.X_OK):
        return f'{path}: not there ({way_out})'
    return None


CAPTURES = (Ours, Stock, Recv, Netsniff, Tcpdump, Ring)
