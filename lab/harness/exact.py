# SPDX-License-Identifier: GPL-2.0-or-later
"""Are injected frames those that the guest would have received?

Real traffic of a client goes to a guest through TAPs, and through QEMU, which
captures what the guest's TAP gets and injects it into others:

    client          |                host                    |          guest
    eth0 = TAP ==us==> port - br0 -+- guest = TAP ==us=======|==> TAP = eth0
                    |              |   |                     |
                    |              |  QEMU: in_netdev -> chardev -> out_netdev
                    |              |   +-> leg TAP ==us      |  (4 legs)
                    |              +- whole = TAP ==us       |

We ("us") carry the frames from one TAP to the other, with their vnet headers,
and add and remove VLAN tags on the way.  What we read from the TAP "guest" is
what the guest receives.  Each leg ends in a TAP, which we read, too, and must
give the same frames in the same order; or, where the leg has no vnet headers,
or its TAP does not take unfinished frames, those that the kernel has made of
the same frames for the TAP "whole", which takes only complete ones.

The kernel's own differences, which are allowed:
  - VIRTIO_NET_HDR_F_DATA_VALID: AF_PACKET cannot inject it;
  - hdr_len, which depends on how the frame lies in the kernel's memory.  It
    must be between the end of the headers and the end of the frame.  (Counted.)
  - A TCP checksum of 0 can be written as 0 or as ffff.  The kernel does the
    former when it cuts a GSO frame, the latter when it completes a frame that
    it has cut before; so "whole" may have the former where a leg that is
    compared with it has the latter.

The bridge is a hub: it learns nothing, so "guest" and "whole" get the same.  A
phase of the traffic (traffic.py) ends with a marker, which goes the way of all
frames; only when it has arrived everywhere are MTU and offloads changed.

QEMU's VM is stopped.  It reads one frame of each of its TAPs, and waits for the
VM to run; the other frames are left to us.
"""
import collections
import fcntl
import os
import select
import socket
import struct
import time

from . import LabError, products, traffic
from .patience import Patience
from .qmp import QMP
from .system import System, ip, run

FRAMES = 100_000
TXQUEUELEN = 20_000
# Frames and bytes on their way, at most.  A block of the receive ring, of 128
# KiB, holds one frame of 64 KiB: the ring, of 32 MiB, holds 256.
LAG, LAG_BYTES = 4_000, 8 << 20
# And the time in seconds in which none arrives; the ring lasts for 0.5
LAG_TIME = 0.1
BATCH = 32                      # frames that are read from one TAP in a turn

TUNSETIFF, TUNSETOFFLOAD = 0x400454ca, 0x400454d0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
ETH_P_ALL, ETH_P_TEST = 0x0003, 0x88b5
CLIENT_MAC, GUEST_MAC = '02:00:00:00:09:01', '02:00:00:00:09:02'
SOURCE = bytes.fromhex(CLIENT_MAC.replace(':', ''))
MARKER = bytes.fromhex('ffffffffffff') + SOURCE + struct.pack('>H', ETH_P_TEST)

VNET = struct.Struct('<BBHHHH') # flags, GSO type, hdr_len, gso_size, checksum
VNET_LEN = VNET.size
NEEDS_CSUM, DATA_VALID = 1, 2


class Tap:
    """A TAP in a namespace; we have what its reader has."""

    def __init__(self, system, namespace, name):
        self.name = name
        with system.inside(namespace):
            self.fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack(
                '16sH14x', name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))

    def set_offload(self, flags):
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, flags)

    def read(self):
        """The next frame behind its vnet header, or None."""
        try:
            return os.read(self.fd, 70000)
        except BlockingIOError:
            return None

    def close(self):
        os.close(self.fd)


def describe(record):
    flags, gso, hdr_len, gso_size, start, offset = VNET.unpack_from(record)
    return (f'{len(record) - VNET_LEN} bytes, flags {flags:x} GSO {gso:x} '
            f'hdr_len {hdr_len} gso_size {gso_size} checksum {start}+{offset}:'
            f' {record[VNET_LEN:VNET_LEN + 80].hex(" ", 2)}')


def parse(record):
    """VLAN tags, EtherType, and where the IP header is."""
    at, tags = VNET_LEN + 12, []
    while True:
        ethertype, tci = struct.unpack_from('>HH', record, at)
        if ethertype not in (0x8100, 0x88a8):
            return tags, ethertype, at + 2
        tags.append(tci)
        at += 4


def tcp_checksum(record):
    """Where it is; None if it is not a TCP packet."""
    _, ethertype, ip = parse(record)
    if ethertype == 0x0800 and record[ip + 9] == 6:
        return ip + 20 + 16
    if ethertype == 0x86dd and record[ip + 6] == 6:
        return ip + 40 + 16
    return None


def shifted(record, n):
    """The vnet header of RECORD after its frame's headers were moved by N."""
    flags, gso, hdr_len, gso_size, start, offset = VNET.unpack_from(record)
    return VNET.pack(flags, gso, max(hdr_len + n, 0) if gso else 0, gso_size,
                     start + n if flags & NEEDS_CSUM else 0, offset)


def write(tap, record):
    try:
        os.write(tap.fd, record)
    except OSError as e:
        raise LabError(f'{tap.name}: {e}: {describe(record)}') from None


class Leg:
    """Frames that are expected, those that have arrived, and their difference.

    Both come in any order; they are compared in pairs."""

    def __init__(self, name, zero=False):
        """@zero: a TCP checksum of 0 is expected, and may come as ffff"""
        self.name, self.zero = name, zero
        self.expected = collections.deque()
        self.arrived = collections.deque()
        self.bytes = 0          # of those that are expected
        self.same = self.hdr_len = 0
        self.difference = None

    def expect(self, record):
        if not self.expected:
            self.moved = time.monotonic()
        self.expected.append(record)
        self.bytes += len(record)
        if self.arrived:
            self.compare()

    def arrive(self, record):
        self.arrived.append(record)
        if self.expected:
            self.compare()

    def compare(self):
        a, b = self.expected.popleft(), self.arrived.popleft()
        self.bytes -= len(a)
        self.moved = time.monotonic()
        if not (a == b or self.allowed(a, b)) and not self.difference:
            self.difference = (f'frame {self.same}: {describe(a)}\n'
                               f'   {self.name}: {describe(b)}')
        self.same += 1

    def allowed(self, a, b):
        if a[VNET_LEN:] != b[VNET_LEN:] and not (
                self.zero and self.same_but_zero(a, b)):
            return False
        x, y = VNET.unpack_from(a), VNET.unpack_from(b)
        if (x[0] ^ y[0]) & ~DATA_VALID or x[1] != y[1]:
            return False
        if x[0] & NEEDS_CSUM and x[4:] != y[4:]:
            return False
        if x[1]:
            self.hdr_len += x[2] != y[2]
            return x[3] == y[3] and \
                y[4] + y[5] + 2 <= y[2] <= len(b) - VNET_LEN
        return True

    @staticmethod
    def same_but_zero(a, b):
        at = tcp_checksum(a)
        return at and len(a) == len(b) and \
            a[VNET_LEN:at] + a[at + 2:] == b[VNET_LEN:at] + b[at + 2:] and \
            (a[at:at + 2], b[at:at + 2]) == (b'\0\0', b'\xff\xff')

    @property
    def full(self):
        return self.expected and (
            len(self.expected) > LAG or self.bytes > LAG_BYTES or
            time.monotonic() > self.moved + LAG_TIME)


# The four legs: what is in the names of QEMU's objects, and what it is about
LEGS = {
    'vnet': 'with vnet headers',
    'cut': 'with vnet headers, to a TAP that takes complete frames only; '
           'by af-packet-mode=inject',
    'plain': 'without vnet headers',
    'chardev': 'with vnet headers; by af-packet-mode=capture, without a ring',
}
# Those that are compared with what "guest" gets
UNFINISHED = ('vnet', 'chardev')


class Kinds:
    """What was in the traffic: frames of each kind."""

    NAMES = ('tcp4', 'tcp6', 'udp4', 'udp6', 'icmp', 'icmp6', 'arp',
             'neighbour', 'fragment4', 'fragment6', 'multicast', 'vlan',
             'priority', 'qinq', 'checksum', 'tso4', 'tso6', 'uso', 'jumbo',
             '64k',
             # of iperf3: neither side has offloads, or both have
             *(f'{kind} {offloads}' for kind in ('tcp4', 'tcp6', 'udp4', 'udp6')
               for offloads in ('off', 'on')))

    def __init__(self):
        self.count = collections.Counter()
        self.phase = None

    def add(self, record):
        """A frame of self.phase"""
        count = self.count
        flags, gso = record[0], record[1] & 0x7f
        if flags & NEEDS_CSUM:
            count['checksum'] += 1
        if gso:
            count[{1: 'tso4', 4: 'tso6'}.get(gso, 'uso')] += 1
        elif len(record) > 60000:
            count['64k'] += 1
        elif len(record) > 1600:
            count['jumbo'] += 1
        if record[VNET_LEN] & 1 and record[VNET_LEN:VNET_LEN + 2] != b'\xff\xff':
            count['multicast'] += 1
        tags, ethertype, at = parse(record)
        if tags:
            count['qinq' if len(tags) > 1 else
                  'vlan' if tags[0] & 0xfff else 'priority'] += 1
        if ethertype == 0x0800:
            if record[at + 6] & 0x3f or record[at + 7]:
                count['fragment4'] += 1
            elif record[at + 9] == 1:
                count['icmp'] += 1
            else:
                self.add_transport(4, record[at + 9], record, at + 20)
        elif ethertype == 0x86dd:
            proto = record[at + 6]
            if proto == 44:
                count['fragment6'] += 1
            elif proto == 58 and 135 <= record[at + 40] <= 136:
                count['neighbour'] += 1
            elif proto == 58:
                count['icmp6'] += 1
            else:
                self.add_transport(6, proto, record, at + 40)
        elif ethertype == 0x0806:
            count['arp'] += 1

    def add_transport(self, version, proto, record, at):
        """TCP or UDP of iperf3, whose header is at AT"""
        if proto not in (6, 17) or traffic.PORT not in \
                struct.unpack_from('>HH', record, at):
            self.count['other'] += 1
            return
        kind = f'{"tcp" if proto == 6 else "udp"}{version}'
        self.count[kind] += 1
        if kind == self.phase.kind and \
                bool(self.phase.offload) == bool(self.phase.client):
            self.count[f'{kind} {"on" if self.phase.client else "off"}'] += 1


class Exact(System):
    """The namespaces, the TAPs, QEMU, and us between them."""

    def __init__(self, log):
        super().__init__(TXQUEUELEN, 0)
        self.log = log
        self.legs = {name: Leg(name, name not in UNFINISHED) for name in LEGS}
        self.legs['whole'] = Leg('whole')
        self.kinds = Kinds()
        self.marker = 0
        self.seen = {}          # by TAP: the last marker
        self.add, self.add_len = b'', 0
        self.taps = []

    # -- set-up --------------------------------------------------------------

    def tap(self, namespace, name):
        tap = Tap(self, namespace, name)
        self.taps.append(tap)
        return tap

    def build(self):
        for namespace in ('client', 'host', 'guest'):
            ip('netns', 'add', self.name(namespace))
        run('ip', 'netns', 'exec', self.name('host'), 'sh', '-c',
            'cd /proc/sys/net/ipv6/conf; echo 1 >all/disable_ipv6;'
            'echo 1 >default/disable_ipv6')
        self.client = self.tap('client', 'eth0')
        self.guest = self.tap('guest', 'eth0')
        self.port = self.tap('host', 'port')
        self.view = self.tap('host', 'guest')
        self.whole = self.tap('host', 'whole')
        self.ends = {name: self.tap('host', name) for name in LEGS}
        self.ip('host', 'link', 'add', 'br0', 'type', 'bridge',
                'mcast_snooping', '0', 'ageing_time', '0')
        for tap in (self.port, self.view, self.whole):
            self.ip('host', 'link', 'set', tap.name, 'master', 'br0')
        for tap in (self.port, self.view, self.whole, *self.ends.values()):
            self.ip('host', 'link', 'set', tap.name, 'txqueuelen',
                    str(TXQUEUELEN), 'up')
        self.ip('host', 'link', 'set', 'br0', 'up')
        for namespace, mac, host in (
                ('client', CLIENT_MAC, traffic.CLIENT),
                ('guest', GUEST_MAC, traffic.GUEST)):
            run('ip', 'netns', 'exec', self.name(namespace), 'sh', '-c',
                'echo 1 >/proc/sys/net/ipv4/tcp_ecn')
            self.ip(namespace, 'link', 'set', 'eth0', 'address', mac,
                    'txqueuelen', '1000', 'up')
            self.ip(namespace, 'address', 'add',
                    f'{traffic.address(host, 4)}/24', 'dev', 'eth0')
            self.ip(namespace, 'address', 'add',
                    f'{traffic.address(host, 6)}/64', 'dev', 'eth0', 'nodad')

    def packet_socket(self, ifname, capture=False):
        s = self.socket('host', socket.AF_PACKET, socket.SOCK_RAW, 0)
        with self.inside('host'):
            s.bind((ifname, ETH_P_ALL if capture else 0))
        return s

    def arguments(self, capture, inject):
        """QEMU's: netdevs n0, "guest", and those at the ends of the legs."""
        netdevs = {'n0': self.view, **self.ends}
        out = ['-M', 'none', '-nodefaults', '-no-user-config',
               '-display', 'none', '-S']
        for n, (name, tap) in enumerate(netdevs.items()):
            out += ['-netdev', f'tap,id={name},fd={tap.fd}',
                    '-netdev', f'hubport,id=h{n},hubid={n},netdev={name}']
        for name in LEGS:
            path = f'{self.tmp}/{name}'
            packet = 'af-packet-vnet-hdr=on,af-packet-mode='
            chardevs = {
                'cut': [f'fd={inject.fileno()},{packet}inject,id=cut-out'],
                'chardev': [f'fd={capture.fileno()},{packet}capture,'
                            'id=chardev-in'],
            }.get(name, [f'path={path},server=on,wait=off,id={name}-out',
                         f'path={path},id={name}-in'])
            filters = {'in': f'netdev={name},indev={name}-in,out_netdev={name}',
                       'out': f'netdev=n0,in_netdev=n0,outdev={name}-out'}
            filters.pop({'cut': 'in', 'chardev': 'out'}.get(name), None)
            for chardev in chardevs:
                out += ['-chardev', f'socket,{chardev}']
            for which, options in filters.items():
                out += ['-object', f'filter-redirector,id={name}-{which}-f,'
                        f'{options},enable_when_stopped=on' +
                        ',vnet_hdr_support=on' * (name != 'plain')]
        return out

    def start_qemu(self):
        """Its VM is stopped, and it has read its one frame of each TAP."""
        mine = (self.view, *self.ends.values())
        for tap in mine:
            self.packet_socket(tap.name).send(MARKER + bytes(46))
        capture = self.packet_socket('guest', capture=True)
        inject = self.packet_socket('cut')
        qmp = QMP(self.tmp, 'exact')
        fds = [tap.fd for tap in mine] + [capture.fileno(), inject.fileno()]
        self.qemu = self.start('QEMU', 'host', [
            products.qemu_binary(), *self.arguments(capture, inject),
            *qmp.arguments], self.log / 'qemu.log', fds=fds)
        qmp.connect(self.qemu)
        capture.close()
        inject.close()
        patience = Patience(20, self.progress)
        while any(self.counter(tap, 'tx_packets') < 1 for tap in mine):
            if patience.over():
                raise LabError(f'QEMU has not read its TAPs: {patience}')
            qmp.execute('query-status')

        self.full = False
        self.watch = select.epoll()
        self.readers = {
            self.client.fd: self.from_client, self.guest.fd: self.from_guest,
            self.port.fd: self.from_port, self.view.fd: self.from_view,
            self.whole.fd: self.from_whole}
        for name, tap in self.ends.items():
            self.readers[tap.fd] = self.from_end(name, tap)
        for fd in self.readers:
            self.watch.register(fd, select.EPOLLIN)

    def counter(self, tap, name):
        """A counter of a TAP in the namespace host."""
        with self.inside('host'):
            for line in open('/proc/thread-self/net/dev'):
                ifname, _, rest = line.partition(':')
                if ifname.strip() == tap.name:
                    return int(rest.split()[{'tx_packets': 9,
                                             'tx_dropped': 11}[name]])
        raise LabError(f'{tap.name} is gone')

    # -- frames --------------------------------------------------------------

    def from_client(self):
        """To the bridge, with tags."""
        for _ in range(BATCH):
            record = self.client.read()
            if record is None:
                return
            write(self.port, self.with_tags(record))

    def with_tags(self, record):
        if not self.add:
            return record
        return shifted(record, self.add_len) + \
            record[VNET_LEN:VNET_LEN + 12] + self.add + record[VNET_LEN + 12:]

    def without_tags(self, record):
        """Of this phase, or, in the guest's answers, the one before."""
        at = end = VNET_LEN + 12
        while record[end:end + 2] in (b'\x81\0', b'\x88\xa8'):
            end += 4
        if at == end:
            return record
        return shifted(record, at - end) + record[VNET_LEN:at] + record[end:]

    def is_marker(self, tap, record):
        if record[VNET_LEN:VNET_LEN + 14] != MARKER:
            return False
        self.seen[tap] = struct.unpack_from('>I', record, VNET_LEN + 14)[0]
        return True

    def from_view(self):
        """What the guest receives: it does so, and the legs must."""
        for _ in range(BATCH):
            record = self.view.read()
            if record is None:
                return
            for name in UNFINISHED:
                self.legs[name].expect(record)
            if not self.is_marker(self.view, record):
                if self.complete:
                    self.legs['whole'].expect(record)
                self.kinds.add(record)
                write(self.guest, self.without_tags(record))

    def from_whole(self):
        for _ in range(BATCH):
            record = self.whole.read()
            if record is None:
                return
            if record[VNET_LEN + 6:VNET_LEN + 12] != SOURCE:
                continue                # the guest's, to all
            for name in LEGS:
                if name not in UNFINISHED:
                    self.legs[name].expect(record)
            if not self.is_marker(self.whole, record) and self.complete:
                self.legs['whole'].arrive(record)

    def from_end(self, name, tap):
        leg = self.legs[name]

        def read():
            for _ in range(BATCH):
                record = tap.read()
                if record is None:
                    return
                leg.arrive(record)
                self.is_marker(tap, record)
        return read

    def from_guest(self):
        """The guest's answers, with the same tags."""
        for _ in range(BATCH):
            record = self.guest.read()
            if record is None:
                return
            write(self.view, self.with_tags(record))

    def from_port(self):
        for _ in range(BATCH):
            record = self.port.read()
            if record is None:
                return
            if record[VNET_LEN + 6:VNET_LEN + 12] != SOURCE:
                write(self.client, self.without_tags(record))

    def turn(self):
        """Carry some frames.  The client has to wait while many are on their
        way: then nothing is lost between it and the last TAP."""
        full = any(leg.full for leg in self.legs.values())
        if full != self.full:
            self.full = full
            self.watch.modify(self.client.fd, 0 if full else select.EPOLLIN)
        for fd, _ in self.watch.poll(0.01):
            self.readers[fd]()
        self.qemu.check()

    # -- a phase -------------------------------------------------------------

    def set_up(self, phase):
        """While no frame is on its way."""
        self.kinds.phase = phase
        self.add = b''.join(struct.pack('>HH', *tag) for tag in phase.tags)
        self.add_len = len(self.add)
        self.complete = phase.offload == 0
        self.view.set_offload(phase.offload)
        for name in UNFINISHED:
            self.ends[name].set_offload(phase.offload)
        self.client.set_offload(phase.client)
        self.guest.set_offload(phase.client)
        for tap in (self.port, self.view, self.whole, *self.ends.values()):
            self.ip('host', 'link', 'set', tap.name, 'mtu', str(phase.mtu))
        for namespace in ('client', 'guest'):
            self.ip(namespace, 'link', 'set', 'eth0', 'mtu',
                    str(phase.inner_mtu))

    def drain(self):
        """Send a marker, and wait until it is everywhere."""
        self.marker += 1
        self.watch.modify(self.client.fd, 0)
        record = bytes(VNET_LEN) + MARKER + struct.pack('>I', self.marker) + \
            bytes(42)
        write(self.port, record)
        taps = (self.view, self.whole, *self.ends.values())
        patience = Patience(20, self.progress)
        while any(self.seen.get(tap) != self.marker for tap in taps):
            if patience.over():
                raise LabError('lost: ' + ', '.join(
                    f'{leg.name} has {len(leg.expected)} frames to come'
                    for leg in self.legs.values() if leg.expected))
            for fd, _ in self.watch.poll(0.1):
                self.readers[fd]()
            self.qemu.check()
        self.watch.modify(self.client.fd, select.EPOLLIN)
        self.full = False

    def play(self, source, phase):
        """One phase of the traffic SOURCE."""
        self.set_up(phase)
        programs = source.begin(phase)
        patience = Patience(20, self.progress)
        while programs and not patience.over():
            self.turn()
            for program in programs:
                if program.process.poll() is not None:
                    source.end(program)
            programs = [p for p in programs if p.process.returncode is None]
        if programs:
            raise LabError(f'{programs[-1].name} does not end: {patience} '
                           f'(see {programs[-1].log}): {phase}')
        self.drain()

    def close(self):
        super().close()
        while self.taps:
            self.taps.pop().close()

    def warnings(self):
        """What QEMU has said, but for the start of each line."""
        text = (self.log / 'qemu.log').read_text()
        return ''.join(f'; QEMU: {line.partition(": ")[2]}'
                       for line in text.splitlines())


def missing(kinds, uso):
    """Kinds of frames that the mix should have had more of."""
    return [name for name in Kinds.NAMES
            if kinds.count[name] < 10 and (uso or name != 'uso')]


def checked(seed, frames, log, say):
    """Yields (name, was it as it should be, figures) for each check; None: it
    cannot be checked."""
    log.mkdir(parents=True, exist_ok=True)
    with Exact(log) as x:
        uso = traffic.has_uso(x.client)
        if not uso:
            yield 'exact-uso', None, 'Linux < 6.2'
        x.start_qemu()
        source = traffic.Traffic(x, log)
        start = time.monotonic()
        for n, phase in enumerate(traffic.phases(seed, uso)):
            before = x.legs['vnet'].same
            x.play(source, phase)
            say(f'{x.legs["vnet"].same - before:6} frames: {phase}')
            least = min(x.legs[name].same for name in LEGS)
            if any(leg.difference for leg in x.legs.values()) or \
                    least >= frames and not missing(x.kinds, uso) or \
                    least >= 3 * frames:
                break
        seconds = time.monotonic() - start
        for name, leg in x.legs.items():
            if leg.difference:
                yield (f'exact-{name}', False,
                       ' '.join(leg.difference.split()) + x.warnings())
                continue
            yield (f'exact-{name}', leg.same > 0,
                   f'{leg.same} frames identical, '
                   f'{leg.hdr_len} of them with another hdr_len')
        full = [tap.name for tap in (x.view, x.whole)
                if x.counter(tap, 'tx_dropped')]
        yield ('exact-mix', not full and not missing(x.kinds, uso),
               f'seed {seed}, {n + 1} phases, {seconds:.0f} s; ' +
               ''.join(f'too few {name}; '
                       for name in missing(x.kinds, uso)) +
               ', '.join(f'{name} {x.kinds.count[name]}'
                         for name in Kinds.NAMES) +
               ''.join(f'; the queue of {name} was full' for name in full))
