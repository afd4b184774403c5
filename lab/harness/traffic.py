# SPDX-License-Identifier: GPL-2.0-or-later
"""Real traffic from a client to a guest, mixed from a seed (for exact.py).

A phase is what is set up for a second or less: MTU and offloads of the
interfaces, VLAN tags, and programs and sockets that send.  A seed gives the
same phases with the same parameters again; when which frame is sent the
kernel decides.  Each phase has another kind of traffic in the foreground, and
a bit of everything behind it: pings with fragments, both ways; multicast,
broadcast; ARP and neighbour discovery, as the neighbours are forgotten before.
"""
import random
import shutil
import socket
from dataclasses import dataclass

CLIENT, GUEST = 1, 2
PORT = 5201

# TUNSETOFFLOAD
CSUM, TSO4, TSO6, TSO_ECN, USO4, USO6 = 1, 2, 4, 8, 32, 64
TSO = CSUM | TSO4 | TSO6 | TSO_ECN
USO = TSO | USO4 | USO6
OFFLOADS = {0: 'none', CSUM: 'checksum', TSO: 'tso', USO: 'uso'}

SOL_UDP, UDP_SEGMENT = 17, 103
SO_SNDBUFFORCE = 32

# Tags, outermost first, as (TPID, VID or None for a priority tag)
TAGS = ((), (), (), ((0x8100, 5),), ((0x8100, None),),
        ((0x88a8, 100), (0x8100, 5)), ((0x8100, 100), (0x8100, 5)))
MTUS = (1500, 1500, 1500, 9000, 65521)
KINDS = ('tcp4', 'tcp6', 'udp4', 'udp6', 'fragments4', 'fragments6', 'reverse',
         'datagrams')


def address(host, version):
    return f'10.9.0.{host}' if version == 4 else f'fd09::{host}'


@dataclass
class Phase:
    kind: str
    mtu: int                    # of the interfaces
    offload: int                # that the guest's TAP takes
    client: int                 # and that the client uses
    tags: tuple                 # (TPID, TCI)
    seed: int                   # of the details

    @property
    def inner_mtu(self):
        """The MTU of client and guest.  To inject a frame, one tag of 802.1Q
        does not count, but all others do (Linux 6.18)."""
        excess = len(self.tags) - (self.tags[:1] and
                                   self.tags[0][0] == 0x8100 or 0)
        return self.mtu - 4 * excess

    def __str__(self):
        tags = ' '.join(f'{tpid:x}:{tci:04x}' for tpid, tci in self.tags)
        return (f'{self.kind}, MTU {self.mtu}, client {OFFLOADS[self.client]}, '
                f'guest {OFFLOADS[self.offload]}, {tags or "no tag"}')


def offloads(kind, rng, uso):
    """Pairs without end, for guest and client: of two, one has nothing on
    either side, the other all of TCP's, or of UDP's; then two are mixed."""
    every = [o for o in OFFLOADS if uso or o != USO]
    most = every[-1:] if kind == 'datagrams' else every[-2:]
    while True:
        yield from rng.sample(((0, 0), (rng.choice(most), rng.choice(most))),
                              2)
        some = rng.choice(every[1:])
        yield from rng.sample(((0, some), (some, 0)), 2)


def phases(seed, uso):
    """Phases without end; each kind comes once in a round.  The first of a
    kind with all offloads has the smallest MTU, at which there are packets to
    be cut."""
    rng = random.Random(seed)
    pairs = {kind: offloads(kind, rng, uso) for kind in KINDS}
    cut = set()
    while True:
        for kind in rng.sample(KINDS, len(KINDS)):
            pcp = rng.randrange(1, 8) << 13
            mtu, pair = rng.choice(MTUS), next(pairs[kind])
            if all(pair) and kind not in cut:
                cut.add(kind)
                mtu = min(MTUS)
            yield Phase(kind, mtu, *pair,
                        tuple((tpid, pcp | (vid or 0))
                              for tpid, vid in rng.choice(TAGS)),
                        rng.randrange(1 << 32))


class Traffic:
    """The ends of the traffic: namespaces client and guest of SYSTEM."""

    def __init__(self, system, log):
        self.system, self.log = system, log
        self.programs = 0
        self.udp = {(host, version): self.udp_socket(host, version)
                    for host in ('client', 'guest') for version in (4, 6)}
        self.server = system.start(
            'iperf3', 'guest', ['iperf3', '-s', '-p', str(PORT),
                                '--forceflush'], log / 'iperf3-server.log')

    def udp_socket(self, host, version):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        s = self.system.socket(host, family, socket.SOCK_DGRAM)
        s.setblocking(False)
        s.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
        if version == 4:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                         socket.inet_aton(address(
                             CLIENT if host == 'client' else GUEST, 4)))
        else:
            index = int(self.system.ip(host, 'link', 'show', 'eth0')
                        .split(':')[0])
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        return s

    def start(self, host, *argv):
        self.programs += 1
        return self.system.start(argv[0], host, list(argv),
                                 self.log / f'traffic-{self.programs}.log')

    def iperf(self, version, *argv):
        return self.start('client', 'iperf3', '-c', address(GUEST, version),
                          '-p', str(PORT), *map(str, argv))

    def begin(self, phase):
        """Send.  Returns the programs that do so, in order; the last is the
        foreground."""
        rng = random.Random(phase.seed)
        mtu = phase.inner_mtu
        for host in ('client', 'guest'):
            self.system.ip(host, 'neighbour', 'flush', 'dev', 'eth0')
        self.cast(rng)
        programs = [self.ping(host, version, rng, mtu)
                    for host in ('client', 'guest') for version in (4, 6)]
        kind, version = phase.kind, 4 if phase.kind[-1] != '6' else 6
        if kind.startswith('tcp'):
            size = rng.randrange(16, 32) if mtu < 9000 else 64
            programs.append(self.iperf(version, '-n', f'{size}M', '-P',
                                       rng.choice((1, 2, 4))))
        elif kind == 'reverse':
            programs.append(self.iperf(rng.choice((4, 6)), '-R', '-n', '16M'))
        elif kind == 'datagrams':
            self.datagrams(rng, mtu)
        else:
            most = min(mtu, 9000) - 48
            length = rng.randrange(16, most) if kind.startswith('udp') else \
                rng.randrange(mtu, min(4 * mtu, 65000)) if mtu < 20000 else 65000
            programs.append(self.iperf(
                version, '-u', '-b', '300M', '-l', length,
                '-n', min(3000 * length, 8_000_000)))
        return programs

    def ping(self, host, version, rng, mtu):
        to = GUEST if host == 'client' else CLIENT
        size = rng.choice((0, 56, mtu - 50, min(3 * mtu, 60000)))
        return self.start(host, 'ping', '-q', '-c', '20', '-i', '0.01', '-W',
                          '1', '-s', str(size), address(to, version))

    def cast(self, rng):
        """Multicast and broadcast, with joins and leaves of the client."""
        client4, client6 = self.udp['client', 4], self.udp['client', 6]
        group = f'239.9.0.{rng.randrange(1, 255)}'
        member = socket.inet_aton(group) + socket.inet_aton(address(CLIENT, 4))
        client4.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        client4.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP,
                           member)
        for _ in range(40):
            data = rng.randbytes(rng.randrange(1, 1200))
            self.send(client4, data, (group, 5000))
            self.send(client4, data, ('10.9.0.255', 5000))
            self.send(client6, data, ('ff12::9', 5000))

    def datagrams(self, rng, mtu):
        """UDP in large packets, to be cut by the interface (USO)"""
        for version in (4, 6):
            s = self.udp['client', version]
            for _ in range(60):
                size = rng.randrange(100, min(mtu, 9000) - 48)
                n = min(60, 65000 // size)
                s.setsockopt(SOL_UDP, UDP_SEGMENT, size)
                self.send(s, rng.randbytes(rng.randrange(1, n) * size + 1),
                          (address(GUEST, version), 5000))
                s.setsockopt(SOL_UDP, UDP_SEGMENT, 0)

    def send(self, s, data, to):
        try:
            s.sendto(data, to)
        except OSError:         # no buffers, or an answer: no listener
            pass

    def end(self, program):
        """It has ended.  Of ping it does not matter how."""
        if program.name == 'iperf3' and program.process.returncode:
            program.check()
        self.system.end(program)


def has_uso(tap):
    """Does the kernel know USO (since Linux 6.2)?"""
    try:
        tap.set_offload(USO)
    except OSError:
        return False
    return True


def why_not():
    """None where there are the programs that send, else the reason."""
    for name, package in (('iperf3', 'iperf3'), ('ping', 'iputils-ping')):
        if not shutil.which(name):
            return f'{name} is missing (package {package})'
    return None
