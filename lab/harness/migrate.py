# SPDX-License-Identifier: GPL-2.0-or-later
"""One run: a booted guest on host a, streams in both directions, migrate it to
host b (or not, as a control), fetch the records of both ends, count.

The guest is booted once, and its state saved by a migration to a file; each run
starts with that (booted).  The saved state is good with and without vhost,
since the device has only what both can do.

A migration may end in several ways (ENDINGS).  Of those that fail, two do so
when the VM is stopped and the switchover has begun but is not done
(pause-before-switchover), and 50 more packets have been sent to the guest; one
when the VM's state is on its way; and one when the source has said that it is
complete and the destination waits for 'cont' (-S), and 50 more packets have
been sent; then the source is told to continue.  The guest runs on on the
source, and its records are fetched there.  That is before postcopy proper:
after it the two have the whole guest only together, and neither cancelling
nor losing the destination is something to survive.

The command lines of both QEMUs are complete from the start; nothing is done
over QMP but "migrate" itself, its parameters, and looking.

With mode "ours", host a sends what reaches its TAP while the VM is stopped, and
host b delivers that.  Between them is a socket on which a listens (wait=off) and
b connects: b starts last, always with a running, so it finds the socket there
and fails at once if not.  (The manual has it the other way round; that needs a
reconnect.)  A machine that is migrated on carries both filters: pingpong.py.
"""
import functools
import hashlib
import os
import random
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import (InvalidRun, LabError, announce, count, networks, patience,
               products, tls, unprivileged)
from .latency import ReaderLatency
from .peer import Peer
from .qmp import QMP
from .system import (CARDS, CLIENT_ADDRESS, CLIENT_MAC, GUEST_ADDRESS,
                     LINK_ADDRESS, System, why_not_vhost)

MODES = ('control', 'stock', 'ours')
COPIES = ('precopy', 'postcopy')
ENDINGS = ('source-kept', 'source-killed', 'cancelled', 'destination-killed',
           'destination-killed-during', 'destination-killed-after')
FAILURES = ENDINGS[2:]
# The connection breaks in postcopy, and the migration goes on with another one
RECOVERED = 'recovered'
ENDS = ('completed', 'failed', 'cancelled')         # of a migration
PAUSED_BEFORE = ENDINGS[2:4]    # with pause-before-switchover
BOOTS = 3                   # until its clock is right
TRIES = 4                   # until a run is valid
# packets/s, the higher rate: the control loses nothing, and the guest catches up
FAST = 750 if os.environ.get('LAB_IN_VM') else 1500
# packets/s more while the VM is stopped: more than a TAP's queue takes.  TCG in
# TCG cannot send as many.
BURSTS = (5000,) if os.environ.get('LAB_IN_VM') else (500, 20000, 50000)
# What makes that 200 to 300 ms: so much is dirty when it stops
BURST = {'burst': 5000 if os.environ.get('LAB_IN_VM') else 20000,
         'dirty': 14, 'downtime': 1000}
CLOCK_LOOKS = 10            # of a guest that sends nothing
IN_THE_GAP = 50             # packets to the guest while the VM is stopped
GAP_RATIO = 5               # with a burst: those of a fifth of a second
BOOTED = ('booted', 'booted.stamp')
PORT = 7000
TCP_PATIENCE = 60           # seconds more than a TCP transfer should take


def incoming(host, port=7002):
    return f'tcp:{LINK_ADDRESS[host]}:{port}'


def capture(privileged, host='a', chardev='m0', card=0):
    """The arguments of a QEMU on HOST that may be migrated away."""
    in_netdev = f'in_netdev=n{card},' if privileged else ''
    return ['-chardev', f'socket,id={chardev},host={LINK_ADDRESS[host]},'
                        f'port={7001 + 2 * card},server=on,wait=off,nodelay=on',
            '-object', f'filter-redirector,id=cap{card},netdev=n{card},'
                       f'{in_netdev}'
                       f'outdev={chardev},enable_when_running=off,'
                       'enable_when_stopped=on,vnet_hdr_support=on']


def inject(privileged, source='a', chardev='m0', more='', card=0):
    """The arguments of a QEMU that may be migrated to, from the host SOURCE."""
    out_netdev = f'out_netdev=n{card},' if privileged else ''
    return ['-chardev', f'socket,id={chardev},host={LINK_ADDRESS[source]},'
                        f'port={7001 + 2 * card},nodelay=on{more}',
            '-object', f'filter-redirector,id=inj{card},netdev=n{card},'
                       f'indev={chardev},{out_netdev}vnet_hdr_support=on']


def doors(mode, c, host):
    """The arguments of a QEMU on HOST, a or b, that say how packets are saved:
    by filters of each network card, over the migration's connection, which
    needs none, or not at all."""
    if mode != 'ours':
        return ['-global', 'migration.switchover-packets=off']
    if not c.filters:
        return []
    return [argument for card in range(c.cards) for argument in
            (capture(c.privileged, chardev=f'm{card}', card=card)
             if host == 'a' else
             inject(c.privileged, chardev=f'm{card}', card=card))]


@dataclass
class Conditions:
    rate: int = 500             # packets/s to the guest
    # packets/s from the guest; TCG in TCG cannot do as many
    answers: int = 50 if os.environ.get('LAB_IN_VM') else 500
    size: int = 200             # bytes of UDP payload
    dirty: int = 4              # MiB that the guest writes to every 100 ms
    bandwidth: int = 20         # max-bandwidth of the migration, MB/s
    downtime: int = 300         # downtime-limit of the migration, ms
    link: int = 500             # Mbit/s of the link that it uses, 0: no limit
    before: float = 2           # seconds of traffic before the migration
    after: float = 3            # and after it
    # of both TAPs: the kernel's default; a guest in a VM stalls for seconds
    # right after its migration, with vhost in the way of its frames already
    txqueuelen: int = 20000 if os.environ.get('LAB_IN_VM') else 1000
    memory: int = 256           # MiB; many packets wait in a slow guest's socket
    copy: str = 'precopy'       # one of COPIES
    ending: str = 'source-kept'     # one of ENDINGS
    tcp: int = 0                # Mbit/s of a bulk TCP transfer to the guest
    tcp_mb: int = 0             # its length in millions of bytes; 0: no end
    filters: bool = True        # else the migration's own connection is used
    tls: bool = False           # for the filters' connection
    return_path: bool = True    # the migration capability, as libvirt sets it
    multifd: bool = False       # another one
    # else an unprivileged user in a sandbox, TAPs by fd, no in_netdev, out_netdev
    privileged: bool = True
    burst: int = 0              # packets/s more while the VM is stopped
    paused: int = -1            # ms until the destination is told 'cont'; no -S
    veths: int = 0              # that are deleted on both hosts during the stop
    cards: int = 1              # network cards; packets go to each in turn
    network: str = 'learning'   # one of networks.NETWORKS
    vhost: bool = False
    accel: str = os.environ.get('LAB_ACCEL') or 'tcg,thread=multi'

    @property
    def waits(self):
        """Does the destination wait for 'cont'?"""
        return self.paused >= 0 or self.ending == 'destination-killed-after'

    def __str__(self):
        return (f'{self.rate} packets/s of {self.size} bytes to the guest, '
                + (f'{self.burst} more while it is stopped, '
                   if self.burst else '') +
                f'{self.answers} from it, guest dirties {self.dirty} MiB per 100 ms, '
                f'migration at {self.bandwidth} MB/s '
                + (f'with downtime-limit {self.downtime} ms '
                   if self.downtime != 300 else '') +
                f'over a link of '
                f'{self.link or "unlimited"} Mbit/s, '
                f'{"" if self.return_path else "without return path, "}'
                f'{"multifd, " if self.multifd else ""}'
                f'{"" if self.privileged else "unprivileged, "}'
                f'{"" if self.cards == 1 else f"{self.cards} cards, "}'
                + (f'cont after {self.paused} ms, ' if self.paused >= 0
                   else '')
                + (f'{self.veths} pairs of veths deleted in the stop, '
                   if self.veths else '')
                + (f'network {self.network}, '
                   if self.network != 'learning' else '') +
                f'{"" if self.filters else "without filters, "}'
                f'vhost={"on" if self.vhost else "off"}, '
                + (f'TCP to the guest at {self.tcp} Mbit/s'
                   + (f' ({self.tcp_mb} MB)' if self.tcp_mb else '') + ', '
                   if self.tcp else '')
                + ('filters connected by TLS, ' if self.tls else '') +
                f'TAP txqueuelen {self.txqueuelen}, '
                f'accel {self.accel.split(",")[0]}')


def kernel_arguments(accel='tcg'):
    text = (f'console=ttyS0 quiet panic=-1 reboot=t mitigations=off '
            f'net.ifnames=0 ipv6.disable=1 lab.address={GUEST_ADDRESS} '
            f'lab.peer={CLIENT_ADDRESS} lab.peer_mac={CLIENT_MAC} '
            f'lab.port={PORT}')
    # TCG's TSC runs at a constant rate; other clocks are far too slow to read
    # in a VM in a VM
    return text + ' tsc=reliable' if accel.startswith('tcg') else text


def nic(c, n, files=None):
    vhost = 'on,vhostforce=on' if c.vhost else 'off'
    if files:
        tap = f'fd={files.taps[n]}'
        if c.vhost:
            vhost += f',vhostfd={files.vhosts[n]}'
    else:
        tap = f'ifname=tap{n},script=no,downscript=no'
    return ['-netdev', f'tap,id=n{n},{tap},vhost={vhost}',
            '-device', f'virtio-net-pci,id=nic{n},netdev=n{n},'
                       f'mac={CARDS[n][2]},romfile=,'
                       'queue_reset=off']               # vhost has no reset


def qemu_argv(c, qmp, log, extra, files=None):
    append = kernel_arguments(c.accel)
    for n in range(1, c.cards):
        append += f' lab.address{n}={CARDS[n][1]} lab.peer{n}={CARDS[n][0]}'
    serial = ['-serial', f'file:{log}.console'] if not files else \
        ['-add-fd', f'fd={files.console},set=1', '-serial',
         'file:/dev/fdset/1']
    made = products.directory().resolve()
    return [products.qemu_binary(),
            *os.environ.get('LAB_QEMU_ARGS', '').split(),
            *products.firmware_options(),
            '-nodefaults', '-no-user-config', '-display', 'none',
            '-name', 'lab,debug-threads=on',    # for latency.py
            '-no-reboot', '-M', 'q35', '-cpu', 'max', '-accel', c.accel,
            '-m', str(c.memory),
            '-kernel', str(made / 'kernel' / 'vmlinuz'),
            '-initrd', str(made / 'initramfs'),
            '-append', append,
            *(a for n in range(c.cards) for a in nic(c, n, files)),
            *serial, *qmp.arguments, *extra]


def start_qemu(system, host, c, log, extra=()):
    qmp = QMP(system.tmp, host)
    files = None if c.privileged else unprivileged.Files(
        system, host, c, products.directory().resolve(),
        products.qemu_binary(), f'{log}.console')
    argv = qemu_argv(c, qmp, log, extra, files)
    if files:
        argv = files.argv(argv)
    child = system.start(f'QEMU on host {host}', host, argv, f'{log}.log',
                         files.fds if files else ())
    if files:
        files.close()
    child.outputs.append(f'{log}.console')
    Path(f'{log}.cmd').write_text('\n'.join(argv) + '\n')
    qmp.connect(child)
    qmp.execute('migrate-set-capabilities', capabilities=[
        {'capability': 'events', 'state': True}])
    return qmp


def booted_names(c):
    return [name if c.cards == 1 else f'cards-{c.cards}-{name}'
            for name in BOOTED]


def booted(c, log, say=lambda line: None):
    """The file with the state of a guest that has been booted and is idle."""
    made = products.build(say).resolve()
    with open(products.qemu_binary(), 'rb') as f:
        build_id = f.read(1 << 16)      # lies in these
    key = hashlib.sha256(build_id + repr((
        (made / 'stamp').read_text(), c.memory, c.accel,
        os.environ.get('LAB_QEMU_ARGS'), Path(__file__).read_text())).encode()
        ).hexdigest()
    state, stamp = (made / name for name in booted_names(c))
    c = replace(c, privileged=True)
    if state.exists() and stamp.exists() and stamp.read_text() == key:
        return state
    stamp.unlink(missing_ok=True)
    for _ in range(BOOTS):
        with System(c.txqueuelen, c.link, c.cards) as system:
            started = time.monotonic()
            qmp = start_qemu(system, 'a', c, log)
            guest = Peer(f'guest (see {log}.console)',
                         system.udp_socket('client'), GUEST_ADDRESS, PORT,
                         system)
            guest.counters('status', 60)
            say(f'the guest has booted in {time.monotonic() - started:.1f} s')
            rate = clock_rate(guest)
            if abs(rate - 1) < 0.05:
                qmp.execute('migrate-set-parameters', max_bandwidth=1 << 40)
                qmp.execute('migrate', uri=f'file:{state}')
                wait_migration(qmp, 'completed')
                state.chmod(0o644)      # for one that is not privileged
                stamp.write_text(key)
                return state
            say(f"the guest's clock runs {rate:.2f} times too fast")
    raise LabError(f'a guest was booted {BOOTS} times, and each time it has '
                   f"misjudged its clock's rate; is the machine overloaded?")


def clock_rate(guest):
    """How fast its clock runs against ours; about 1."""
    first, a = guest.counters('status')['clock'], time.monotonic_ns()
    time.sleep(2)                       # the time over which is measured
    last, b = guest.counters('status')['clock'], time.monotonic_ns()
    return (last - first) / (b - a)


def clock_records(guest, c):
    """What stands for packets from a guest that sends none: it is asked for its
    clock, and each answer is as good as a packet."""
    records = []
    for n in range(0 if c.answers else CLOCK_LOOKS):
        clock = guest.counters('status')['clock']
        records.append(count.Record(time.monotonic_ns(), clock, n))
    return records


def wait_migration(source, status):
    """Wait until the migration has STATUS; any other end is an error."""
    got = source.wait('MIGRATION', 60, status=(status, *ENDS))['data']['status']
    if got != status:
        reason = source.execute('query-migrate').get('error-desc', 'no reason')
        raise LabError(f'the migration is {got}, should be {status}: {reason}')


def thread_name(path):
    try:
        return path.read_text().strip()
    except OSError:                     # it has ended
        return None


def vhost_state(qmp, c):
    """(vhost-started of the NICs, whether there is a vhost thread)"""
    pid = qmp.child.process.pid
    # a process of its own before Linux 6.4, then a thread of QEMU's
    threads = any(thread_name(p) == f'vhost-{pid}' for pattern in
                  ('[0-9]*/comm', f'{pid}/task/*/comm')
                  for p in Path('/proc').glob(pattern))
    started = {qmp.execute('x-query-virtio-status', path=
                           f'/machine/peripheral/nic{n}/virtio-backend'
                           )['vhost-started'] for n in range(c.cards)}
    return started, threads


def check_vhost(qmp, c):
    """Raise if the guest's NIC is not on vhost as the conditions say; after a
    migration it is when the guest has what had waited for it."""
    limit = patience.Patience(10, functools.partial(
        patience.cpu_time, qmp.child.process.pid))
    while True:
        started, threads = vhost_state(qmp, c)
        if not c.vhost:
            break
        if started == {True} and threads:
            return
        if limit.over():
            raise LabError(f'vhost=on was asked for, but {qmp.child.name} does '
                           f'not use it (vhost-started={started}): {limit}')
        time.sleep(0.1)
    if True in started:
        raise LabError(f'{qmp.child.name} uses vhost, although vhost=off')


def set_up_migration(source, destination, c):
    if c.multifd:
        source.execute('migrate-set-capabilities', capabilities=[
            {'capability': 'multifd', 'state': True}])
    wanted = [name for name, on in (
        ('return-path', c.return_path),
        ('postcopy-ram', c.copy == 'postcopy'),
        ('pause-before-switchover', c.ending in PAUSED_BEFORE)) if on]
    for qmp in (source, destination):
        qmp.execute('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': True} for name in wanted])
    source.execute('migrate-set-parameters',
                   max_bandwidth=c.bandwidth * 1_000_000,
                   downtime_limit=c.downtime, **(
                       # else all would be there before it breaks
                       {'max_postcopy_bandwidth': 2_000_000}
                       if c.ending == RECOVERED else {}))


class Stop:
    """What is done while the VM is stopped, besides the steady stream."""

    def __init__(self, system, c, client, log, pids):
        """@pids: of both QEMUs"""
        self.system, self.c, self.client, self.log = system, c, client, log
        self.pids = pids
        self.sent = self.deleting = None
        self.waited = 0                 # a reader for a CPU, ms at most
        for host in ('a', 'b') if c.veths else ():
            system.add_interfaces(host, c.veths)

    def begin(self, source):
        """Once SOURCE says that it has stopped the VM, in its own thread; its
        main loop may be away until the state is sent."""
        if not (self.c.burst or self.c.veths or
                self.c.ending == 'destination-killed-during'):
            return
        source.wait('STOP', 60)
        if self.c.veths:
            self.deleting = [self.system.delete_interfaces(
                host, f'{self.log}-{host}') for host in ('a', 'b')]
        if self.c.burst:
            self.latency = ReaderLatency(self.pids, queue_fills_ms(self.c))
            self.sent = -self.rate(self.c.rate + self.c.burst)

    def rate(self, rate):
        """Returns how many packets have been sent by then."""
        return self.client.counters(f'rate {rate}')['sent']

    def gap(self):
        """Let some packets come."""
        number = max(IN_THE_GAP, self.c.burst // GAP_RATIO)
        sent = self.client.counters('status')['sent']
        self.client.ask(f'wait sent {sent + number}')

    def end(self, qmp):
        """When the VM runs again, in QMP.  Returns the time."""
        resume = qmp.wait('RESUME', 60)['ns']
        if self.c.burst:
            self.sent += self.rate(self.c.rate)
            self.waited = self.latency.stop()
        for child in self.deleting or ():
            child.result(60)
        self.deleting = None
        return resume


def recover(source, destination, during):
    """Break the connection in postcopy, let packets come, connect again."""
    source.wait('MIGRATION', 60, status=('postcopy-active',))
    source.execute('migrate-pause', oob=True)
    for qmp in (source, destination):
        qmp.wait('MIGRATION', 60, status=('postcopy-paused',))
    during.gap()
    destination.execute('migrate-recover', oob=True, uri=incoming('b', 7102))
    source.execute('migrate-set-parameters', max_postcopy_bandwidth=0)
    source.execute('migrate', uri=incoming('b', 7102), resume=True)


def migrate(system, source, destination, c, client, network, log):
    """Returns when the guest was stopped and resumed (host ns), the monitor of
    the QEMU that has it now, the reported downtime in ms (None: none), and the
    Stop."""
    set_up_migration(source, destination, c)
    source.events.clear()               # of loading its state
    during = Stop(system, c, client, f'{log}-ip',
                  [qmp.child.process.pid for qmp in (source, destination)])
    network.before(source, client.counters('status')['sent'])
    source.execute('migrate', uri=incoming('b'))
    network.migrating(source, c.downtime)
    if c.copy == 'postcopy':
        source.wait('MIGRATION_PASS', 60, **{'pass': 2})
        source.execute('migrate-start-postcopy')
    during.begin(source)
    if c.ending == RECOVERED:
        recover(source, destination, during)
    if c.ending in FAILURES:
        if c.ending in PAUSED_BEFORE:
            wait_migration(source, 'pre-switchover')
            during.gap()
        if c.ending == 'cancelled':
            system.disown(destination.child)    # it ends by itself
            source.execute('migrate_cancel')
            wait_migration(source, 'cancelled')
        elif c.ending == 'destination-killed-after':
            wait_migration(source, 'completed')
            during.gap()
            system.end(destination.child)
            source.execute('cont')
        else:
            system.end(destination.child)
            if c.ending in PAUSED_BEFORE:
                source.execute('migrate-continue', state='pre-switchover')
            if source.wait('MIGRATION', 60, status=ENDS)['data']['status'] \
                    == 'completed':
                raise InvalidRun('the migration was complete before the '
                                 'destination was killed')
        return (source.wait('STOP', 1)['ns'], during.end(source), source, None,
                during)

    resume = None
    if c.burst and c.return_path and not c.waits:
        resume = during.end(destination)
    wait_migration(source, 'completed')
    downtime = None
    if c.paused >= 0:
        time.sleep(c.paused / 1000)     # the condition
        destination.execute('cont')
    elif c.ending == 'source-killed':
        system.end(source.child)
    resume = resume or during.end(destination)
    if c.ending == 'source-killed' and c.paused >= 0:   # as libvirt does it
        system.disown(source.child)
        source.child.terminate(20)
    stop = source.wait('STOP', 1)['ns']
    if c.copy == 'postcopy' and not any(
            e.get('data', {}).get('status') == 'postcopy-active'
            for e in source.events):
        raise LabError('the migration was complete before postcopy began')
    if c.ending == 'source-kept':
        downtime = source.execute('query-migrate')['downtime']
    return stop, resume, destination, downtime, during


def tap_statistic(system, host, name):
    """Of all TAPs of a host."""
    return sum(map(int, subprocess.run(
        ['ip', 'netns', 'exec', system.name(host), 'cat',
         *(f'/sys/class/net/tap{n}/statistics/{name}'
           for n in range(system.cards))],
        check=True, capture_output=True).stdout.split()))


def tap_drops(system, host):
    """Frames that found the TAP's queue full."""
    return tap_statistic(system, host, 'tx_dropped')


def filter_statistics(*qmps):
    """{host: what query-netfilter-stats says}, of the QEMUs that are left."""
    return {host: qmp.execute('query-netfilter-stats')
            for host, qmp in zip('ab', qmps)
            if qmp.child.process.poll() is None}


def hosts_of_guest(c, migrating):
    """Those on which it has run, one after the other."""
    return ('a', 'b') if migrating and c.ending not in FAILURES else ('a',)


def tap_mean_frame(system, host):
    """Bytes per frame to the guest; above the MTU these are GSO frames."""
    packets = tap_statistic(system, host, 'tx_packets')
    return tap_statistic(system, host, 'tx_bytes') // max(packets, 1)


def measured(mode, c, logs=None, say=lambda line: None):
    """run(), and again when the lab itself has failed to measure: from the
    third time on with half as many packets, as the machine is too slow or too
    busy for them all."""
    for n in range(TRIES):
        fewer = n >= TRIES // 2
        try:
            return run(mode, c if not fewer else
                       replace(c, rate=c.rate // 2, burst=c.burst // 2), logs,
                       say) | {'fewer': fewer}
        except InvalidRun as e:
            if n == TRIES - 1:
                raise
            say(f'{mode}: {e}; once more')


def run(mode, conditions=None, logs=None, say=lambda line: None):
    """One run in MODE.  Logs go to the directory LOGS.

    The result is a dict of plain values: the conditions, one set of figures
    per direction, and the arrivals at the guest in host time for the picture.
    """
    c = conditions or Conditions()
    logs = Path(logs or products.directory() / 'logs').resolve()
    logs.mkdir(parents=True, exist_ok=True)
    log = lambda host: str(logs / f'{mode}-{host}')
    secure = lambda arguments, end: tls.secure(arguments, end) \
        if c.tls and mode == 'ours' else arguments
    if c.vhost and (reason := why_not_vhost()):
        raise LabError(reason)
    if c.tls and c.cards > 1:
        raise LabError('--tls is for one network card')
    networks.check_conditions(c)
    made = products.build(say).resolve()
    migrating = mode != 'control'
    state = booted(c, log('boot'), say)
    stop = resume = downtime = tcp = during = None
    stats = {}

    with System(c.txqueuelen, c.link, c.cards) as system:
        network = networks.NETWORKS[c.network](system)
        started = time.monotonic()
        a = start_qemu(system, 'a', c, log('a'),
                       ['-incoming', f'file:{state}',
                        *secure(doors(mode, c, 'a'), 'server')])
        control = system.udp_socket('client')
        guest = Peer(f'guest (see {log("*")}.console)', control,
                     GUEST_ADDRESS, PORT, system)
        guest.counters('status', 60)
        last = a
        check_vhost(a, c)
        boot = time.monotonic() - started
        say(f'{mode}: guest is up after {boot:.1f} s')

        system.start('client', 'client', [str(made / 'stream'), str(PORT)],
                     log('client') + '.log')
        client = Peer('client', control, CLIENT_ADDRESS, PORT, system)
        client.counters('status')
        if c.tls:
            sniffer = tls.Sniffer(system, 'a', 'mig0', 7001, log('tls'))
        if c.tcp:
            bulk = system.start('bulk', 'client', [
                str(made / 'bulk'), 'send', GUEST_ADDRESS, str(PORT),
                str(c.tcp), *([str(c.tcp_mb)] if c.tcp_mb else [])],
                log('bulk') + '.log')
            if c.tcp_mb:
                system.disown(bulk)         # it ends by itself
        sniff = mode == 'ours' and c.paused >= 0
        if migrating:
            b = start_qemu(system, 'b', c, log('b'),
                           ['-incoming', incoming('b'),
                            # it must be set before the QEMU listens
                            *(['-global', 'migration.x-multifd=on']
                              if c.multifd else ()),
                            *(['-S'] if c.waits else ()),
                            *(announce.TRACES if sniff else ()),
                            *secure(doors(mode, c, 'b'), 'client')])
            for qmp in (a, b):
                if mode == 'ours':
                    unprivileged.check_no_packet_socket(qmp.child)
                if not c.privileged:
                    unprivileged.check(qmp.child)
        if sniff:
            heard = announce.Capture(system, 'b', log('b') + '.log')

        number = random.randrange(1, 1 << 31)
        ours, theirs, _ = map(','.join, zip(*CARDS[:c.cards]))
        guest.ask(f'set {number} {ours} {PORT} '
                  f'{c.answers} {c.size} {c.dirty}')
        client.ask(f'set {number} {network.addresses(theirs)} {PORT} '
                   f'{c.rate} {c.size} 0')
        network.join(guest)
        clock = clock_records(guest, c)
        guest.ask('go')
        client.ask('go')
        network.begin(client)
        target = int(c.before * c.rate)
        client.ask(f'wait sent {target}', c.before + 20)
        # a TCG guest is slow until it has translated what it does
        guest.ask(f'wait received {target}', 30)
        clock += clock_records(guest, c)
        if migrating:
            stop, resume, last, downtime, during = migrate(
                system, a, b, c, client, network, log('stop'))
            target = client.counters('status')['sent']
        client.ask(f'wait sent {target + int(c.after * c.rate)}', c.after + 20)

        if c.tcp_mb:
            tcp = tcp_figures(bulk.result(TCP_PATIENCE + c.tcp_mb * 8 / c.tcp),
                              stop, resume)
            tcp['mean_frames'] = [tap_mean_frame(system, host)
                                  for host in hosts_of_guest(c, migrating)]
        elif c.tcp:
            tcp = tcp_figures(bulk.terminate(10), stop)
            system.end(bulk)
        if c.tls:
            sniffer.check()
        check_vhost(last, c)
        if mode == 'ours':
            unprivileged.check_no_packet_socket(last.child)
            stats = filter_statistics(a, b)
        if sniff:
            backlog, later = heard.check()
            say(f'announced {later:.1f} ms after the guest had the {backlog} '
                'frames of the backlog')

        # The answers travel behind the last data packets, see stream.c.
        client.ask('stop')
        at_guest = guest.counters('stop', 20)
        at_client = client.counters('status')
        clock += clock_records(guest, c)
        if said := network.check(at_client['sent'],
                                 stop if last is not a else None):
            say(said)
        say(f'{mode}: fetching the records')
        guest_records, client_records = guest.records(), client.records()
        drops = {host: tap_drops(system, host) for host in ('a', 'b')}

    result = {
        'mode': mode, 'conditions': asdict(c), 'conditions_text': str(c),
        'boot_s': round(boot, 2),
        'stop_window_ms': ms(resume - stop) if migrating else None,
        'reported_downtime_ms': downtime, 'tcp': tcp,
        'sent_in_stop': during and during.sent, 'filters': stats,
        'reader_waited_ms': during and during.waited,
        'queue_full_drops': drops}
    result.update(evaluate(guest_records, client_records, at_guest, at_client,
                           stop, resume, c.cards, clock))
    if mode == 'ours' and c.burst:
        check_latency(c, during.waited, result['to_guest']['lost'])
    return result


def queue_fills_ms(c):
    """How long it takes until the TAP's queue is full, unless it is read."""
    return c.txqueuelen * 1000 / (c.rate + c.burst)


def check_latency(c, waited, lost):
    """A loss is QEMU's only if the reader got a CPU before the TAP's queue was
    full: half of the time, as it then has to empty it."""
    if waited is None:
        raise LabError('QEMU had no thread that reads the queues of the TAPs')
    full = queue_fills_ms(c)
    if lost and waited > full / 2:
        raise InvalidRun(f"a reader waited {waited:.0f} ms of {full:.0f} for a "
                         "CPU, after which the TAP's queue is full: this run, "
                         f"with {lost} lost, is invalid")


def tcp_figures(text, stop, resume=None):
    """From what bulk says: the longest stall that ended after STOP (all, if
    None), acknowledged bytes, retransmitted segments; of a transfer with an
    end, how long it took and if what has arrived is what was sent."""
    longest, said, figures = 0, {}, {}
    for line in text.splitlines():
        name, *values = line.split()
        if name == 'stall' and sum(map(int, values)) > (stop or 0):
            longest = max(longest, int(values[1]))
        said[name] = values
    if 'total' not in said:
        raise LabError('the TCP transfer never began')
    if 'time' in said:
        begin, end = map(int, said['time'])
        if stop and not begin < stop < resume < end:
            raise InvalidRun('the TCP transfer was over before the migration '
                             'was, or began after it')
        figures = {'seconds': round((end - begin) / 1e9, 1),
                   'intact': said['sent'] == said['received']}
    total, retransmitted = map(int, said['total'])
    return {'stall_ms': ms(longest), 'bytes': total,
            'retransmitted': retransmitted, **figures}


def ms(ns):
    return round(ns / 1e6, 1)


def one_way(sender, receiver, records, cards=1):
    """The figures of one direction: from the counters of both ends, and the
    receiver's records.  What is in order is so on each of the network CARDS."""
    if receiver['buffer_errors']:
        raise InvalidRun(f'{receiver["buffer_errors"]} packets found the '
                         f'socket full: the receiver could not keep up, this '
                         f'run is invalid')
    figures = Counter()
    for n in range(cards):
        figures.update(count.count(
            len(range(n, sender['sent'], cards)),
            [r._replace(seq=r.seq // cards) for r in records
             if r.seq % cards == n]))
    return {**figures,
            'damaged': receiver['damaged'] + receiver['foreign']
            + receiver['checksum_errors'],
            'holes': count.holes(count.lost_numbers(sender['sent'], records)),
            'send_errors': sender['send_errors']}


def evaluate(guest_records, client_records, at_guest, at_client, stop, resume,
             cards=1, clock_records=None):
    """The figures of both directions, and what the picture needs.  Times of
    arrivals are relative to the stop (without one, to the first packet).
    @clock_records: if the guest has sent nothing"""
    clock_records = clock_records or client_records
    clock = count.GuestClock(clock_records, stop, resume)
    at = {'to_guest': [(clock.to_host(r.arrival_ns), r.seq)
                       for r in count.first_arrivals(guest_records)],
          'to_client': [(r.arrival_ns, r.seq)
                        for r in count.first_arrivals(client_records)]}
    before = [r for r in clock_records if not stop or r.arrival_ns < stop]
    rate = clock.rate(before)
    # rough: the first packets of a guest that is still slow come late
    if not 0.8 < rate < 1.25:
        raise InvalidRun(f"the guest's clock runs {rate:.2f} times as fast as "
                       f"the host's: this run is invalid")
    zero = stop if stop is not None else guest_records[0].sent_ns
    lost = count.lost_numbers(at_client['sent'], guest_records)

    result = {}
    for direction, sender, receiver, records in (
            ('to_guest', at_client, at_guest, guest_records),
            ('to_client', at_guest, at_client, client_records)):
        figures = one_way(sender, receiver, records, cards)
        length, begin = count.outage([t for t, _ in at[direction]],
                                     stop or 0)
        figures.update(outage_ms=ms(length), outage_at_ms=ms(begin - zero))
        result[direction] = figures
    relative = lambda ns: round((ns - zero) / 1e6, 3)
    result['timeline'] = {
        'stop_ms': 0 if stop is not None else None,
        'resume_ms': ms(resume - stop) if stop is not None else None,
        'sent': [(relative(r.sent_ns), r.seq) for r in guest_records],
        'received': [(relative(t), n) for t, n in at['to_guest']],
        'lost': [(relative(count.send_time(n, guest_records)), n)
                 for n in lost],
        'clock_step_ms': ms(clock.after - clock.before)}
    result['to_guest']['lost_after_stop'] = sum(
        at >= 0 for at, _ in result['timeline']['lost'])
    return result
