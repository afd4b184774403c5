# SPDX-License-Identifier: GPL-2.0-or-later
"""What the network sends to which of both hosts, and when (--network).

The lab's usual switch sends to the host that the guest was last heard from.
Others send to both hosts, to the source too long, or to the destination too
early; each of them is here as settings of the switch's ports:

    learning      the usual one
    flooding      unicast for the guest goes to both hosts, all the time
    unlearned     to both until the switch has heard the guest, long before the
                  stop: these frames lie in the queue of the destination's TAP
    both-chassis  OVN with two requested chassis and activation-strategy=rarp:
                  to the source, all the time, and to the destination from
                  ACTIVATION after its RARP on
    silent-guest  the guest sends nothing: to both until the destination has
                  announced it
    snooping      every other packet is a multicast one, and the switch snoops
                  IGMP: to the source, and to the destination from its
                  announcement on; those between them are broadcast: to both
    early-switch  to the destination alone, from EARLY before the stop on

A network is also asked how much of the stream has reached a host: a cell in
which the switch has not done what its name says proves nothing.
"""
import json
import socket
import subprocess
import threading
import time

from . import InvalidRun, LabError, announce
from .patience import Patience
from .system import GUEST_ADDRESS, GUEST_MAC, run

ACTIVATION = 0.05               # s from the RARP until the port is opened
EARLY = 0.3                     # s from the switch to the destination's port
STALE = 100                     # packets, after which the switch learns
GROUP = '239.77.0.1'
BROADCAST = 'ff:ff:ff:ff:ff:ff'
TOLERANCE = 0.1                 # of the stream
FLOODS = ('flood', 'mcast_flood', 'bcast_flood')


class Watcher:
    """Gives the switch a COMMAND of bridge(8), PAUSE seconds after the first
    RARP from host b."""

    def __init__(self, system, command, pause=0):
        self.command, self.pause = command, pause
        self.done = False
        # To start it takes some time, in which the source would be needed
        self.bridge = subprocess.Popen(
            ['bridge', '-n', system.name('switch'), '-batch', '-'],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.socket = system.socket('switch', socket.AF_PACKET,
                                    socket.SOCK_RAW, 0)
        self.socket.bind(('host-b', announce.ETH_P_ALL))
        # a System that is closed closes the socket, and that ends the thread
        self.socket.settimeout(0.1)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def heard(self):
        try:
            return announce.is_announcement(*self.socket.recvfrom(64),
                                            kinds=(announce.RARP,))
        except socket.timeout:
            return False

    def run(self):
        try:
            while not self.heard():
                pass
            time.sleep(self.pause)      # the condition
            _, self.error = self.bridge.communicate(f'{self.command}\n')
            self.done = True
        except OSError:                 # the end of the System
            self.bridge.kill()
            self.bridge.communicate()

    def check(self):
        if not self.done:
            raise LabError('the switch has seen no announcement of host b')
        if self.bridge.returncode:
            raise InvalidRun(f'bridge {self.command}: {self.error.strip()}')


class Network:
    """What the networks have in common: a switch that learns, as usual."""
    silent = False              # the guest sends nothing
    # Of the stream, the share that reaches host b before the migration, and
    # host a in all; None: any
    early_share = 0
    source_share = None
    watcher = None

    def __init__(self, system):
        self.system = system
        self.set_up()
        self.began = self.frames()

    def bridge(self, *args, namespace='switch'):
        return run('bridge', '-n', self.system.name(namespace), *args)

    def set_port(self, port, namespace='switch', **settings):
        self.bridge('link', 'set', 'dev', port, namespace=namespace,
                    *(word for setting in settings.items()
                      for word in setting))

    def frames(self):
        """{host: how many the switch has sent to it}"""
        links = json.loads(self.system.ip('switch', '-s', '-j', 'link'))
        return {link['ifname'][-1]: link['stats64']['tx']['packets']
                for link in links if link['ifname'].startswith('host-')}

    def check_share(self, host, sent, expected):
        if expected is None:
            return
        share = (self.frames()[host] - self.began[host]) / sent
        if abs(share - expected) > TOLERANCE:
            raise InvalidRun(f'{share:.2f} of the stream have reached host '
                             f'{host}, should be {expected}')

    # -- in the order of a run -----------------------------------------------

    def set_up(self):
        """Before there is any QEMU.  A host's bridge that has heard the guest
        behind its uplink, as when host a announces it, would keep what comes
        for it from there away from the TAP."""
        for host in ('a', 'b'):
            self.set_port('up0', namespace=host, learning='off')

    def addresses(self, usual):
        """To which the client sends."""
        return usual

    def join(self, guest):
        """Let GUEST receive what is sent to these."""

    def begin(self, client):
        """The stream of CLIENT has begun, and both QEMUs are there."""

    def before(self, source, sent):
        """SOURCE is about to be migrated; SENT packets are on their way."""
        self.check_share('b', sent, self.early_share)

    def migrating(self, source, downtime):
        """SOURCE is being migrated.  It can have all the DOWNTIME, in ms."""

    def check(self, sent, stop):
        """In the end: SENT packets were sent, and the VM was stopped at STOP
        (host ns); None: it is where it was.  Returns what there is to say."""
        self.check_share('a', sent, self.source_share)
        if self.watcher and stop:
            self.watcher.check()


class Learning(Network):
    early_share = None

    def set_up(self):
        """Nothing, not on the hosts either."""


class Flooding(Network):
    early_share = source_share = 1

    def set_up(self):
        super().set_up()
        for host in ('a', 'b'):
            self.set_port(f'host-{host}', learning='off', flood='on')


class Unlearned(Network):
    early_share = None

    def set_up(self):
        super().set_up()
        self.set_port('host-a', learning='off')

    def begin(self, client):
        client.ask(f'wait sent {STALE}')
        self.learn()

    def learn(self):
        self.set_port('host-a', learning='on')
        patience = Patience(10, self.system.progress)
        while not self.learned():
            if patience.over():
                raise LabError(f'the switch has not learned where the guest '
                               f'is: {patience}')
            time.sleep(0.01)

    def learned(self):
        return GUEST_MAC in self.bridge('fdb', 'show', 'brport', 'host-a')

    def before(self, source, sent):
        self.stale = self.frames()['b'] - self.began['b']
        if not STALE <= self.stale < sent * (1 - TOLERANCE):
            raise InvalidRun(f'{self.stale} of {sent} packets have reached '
                             f'host b')

    def check(self, sent, stop):
        return f'{self.stale} frames to host b before the migration' \
            if stop else None


class BothChassis(Network):
    source_share = 1

    def set_up(self):
        super().set_up()
        self.set_port('host-a', learning='off', flood='on')
        self.set_port('host-b', learning='off', **dict.fromkeys(FLOODS, 'off'))

    def before(self, source, sent):
        super().before(source, sent)
        self.watcher = Watcher(
            self.system, 'link set dev host-b ' +
            ' '.join(f'{flood} on' for flood in FLOODS), ACTIVATION)


class SilentGuest(Network):
    silent = True
    early_share = 1

    def set_up(self):
        super().set_up()
        # The guest's answers to the harness must not give it away
        self.set_port('host-a', learning='off')


class Snooping(Network):
    early_share = 0.5

    def set_up(self):
        super().set_up()
        # Without a querier nothing is snooped, nor in the time in which its
        # query may be answered, which is 10 s by default
        for setting in (('mcast_query_response_interval', '0'),
                        # the guest repeats its first report in this version
                        # after 1 s, before it is migrated; in 2 after 10 s
                        ('mcast_igmp_version', '3'),
                        ('mcast_snooping', '1'), ('mcast_querier', '1')):
            self.system.ip('switch', 'link', 'set', 'br0', 'type', 'bridge',
                           *setting)
        self.bridge(*self.add_port('host-a').split())
        self.system.ip('client', 'route', 'add', GROUP, 'dev', 'eth0')
        self.system.ip('client', 'neighbour', 'replace', GUEST_ADDRESS,
                       'lladdr', BROADCAST, 'dev', 'eth0', 'nud', 'permanent')

    @staticmethod
    def add_port(port):
        return f'mdb add dev br0 port {port} grp {GROUP} permanent'

    def addresses(self, usual):
        return f'{GROUP},{usual}'

    def join(self, guest):
        guest.ask(f'join {GROUP} {GUEST_ADDRESS}')

    def before(self, source, sent):
        super().before(source, sent)
        self.watcher = Watcher(self.system, self.add_port('host-b'))


class EarlySwitch(Network):
    at = None                   # when it was switched, host ns

    def before(self, source, sent):
        super().before(source, sent)
        # The guest dirties more than is sent, so it is not stopped before
        # migrating() says so
        source.execute('migrate-set-parameters', downtime_limit=1)

    def migrating(self, source, downtime):
        source.wait('MIGRATION_PASS', 60, **{'pass': 2})
        self.switch()
        time.sleep(EARLY)               # the condition
        source.execute('migrate-set-parameters', downtime_limit=downtime)

    def switch(self):
        self.set_port('host-a', learning='off')
        self.bridge('fdb', 'replace', GUEST_MAC, 'dev', 'host-b', 'master',
                    'static')
        self.at = time.monotonic_ns()

    def check(self, sent, stop):
        if stop and stop - self.at < EARLY * 500_000_000:
            raise InvalidRun('the VM was stopped before the network sent to '
                             'the destination, or too soon after')
        return f'the network sent to host b {(stop - self.at) // 1_000_000} ' \
            'ms before the stop' if stop else None


NETWORKS = {'learning': Learning, 'flooding': Flooding, 'unlearned': Unlearned,
            'both-chassis': BothChassis, 'silent-guest': SilentGuest,
            'snooping': Snooping, 'early-switch': EarlySwitch}


def check_conditions(c):
    """Raise if the conditions C do not go together."""
    if NETWORKS[c.network].silent and c.answers:
        raise LabError(f'--network {c.network} is for --answers 0')
    if c.network != 'learning' and c.cards > 1:
        raise LabError(f'--network {c.network} is for one network card')
