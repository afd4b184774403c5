# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asserted of QEMU under libvirt, for several ways to run it (WAYS).

Frames flow.  Two domains without an operating system on host a; every byte that
arrives is compared:

    client --- switch --- br0 - vnetN                vnetM - br1
                                  | capture            ^ | inject, and read by
                                  v                    | v QEMU
                             domain "source" -> domain "destination" -> we

Migration.  The lab's guest, under the lab's stream, from host a to host b and
back by "virsh migrate", with QEMU's arguments as they are in the manual, the
same on both hosts.  In two ways once more with nothing saved, to see that there
was something to save.

    way            QEMU is                   in the XML of the guest
    plain          of libvirt's default      no argument: the packets go by the
                   user                      migration's own connection
    apparmor       the same, and confined;   the same
                   in the VM of lab/vm
    root           root's                    in_netdev, out_netdev
    capability     of libvirt's default      the same
                   user, the binary has
                   CAP_NET_RAW
    helper         of that user, without     the same, with packet_helper
                   a sandbox
    unprivileged   of that user              outdev at the source, indev at the
                                             destination, and no packet socket

The first ways must be exact.  Without packet sockets a source loses a frame that
QEMU has read but not delivered when the VM stops, and a destination has no
order, and nothing that holds frames back while its VM starts.

The plain way has migrations with several options of virsh (PLAIN).  In each of
them both QEMUs must say in their logs what they have saved, and it must be more
than nothing.  Switched off at the source, they must not say it; nor in a
tunnelled migration, which has no return path: that loses packets, as stock QEMU
does.

In the unprivileged way frames flow because libvirt-packet-agent passes sockets
to the running domains.  Where it cannot, it must say why, and leave nothing.

Afterwards nothing may be left of the domains.
"""
import os
import random
import re
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from . import (InvalidRun, LabError, count, libvirt, migrate, products,
               report, tls)
from .libvirt import Host
from .migrate import PORT, Conditions
from .patience import Patience
from .peer import Peer
from .system import (CLIENT_ADDRESS, CLIENT_MAC, GUEST_ADDRESS, GUEST_MAC,
                     LINK_ADDRESS, System)

AGENT = (products.ROOT / '.qemu' / 'src' / 'contrib' / 'packet-redirect' /
         'libvirt-packet-agent')
MANUAL = (products.ROOT / '.qemu' / 'src' / 'docs' / 'system' /
          'packet-redirect.rst')
HELPER = '/usr/local/libexec/qemu-packet-helper'
CAP_NET_RAW = 1 << 13
CHANNEL = 4100                  # TCP port of the captured frames
SEEN = 4200                     # where the destination's QEMU tells what it got
FLOW_MAC = '52:54:00:77:01:01'
FRAMES = 300
FEW = 5                         # packets, in a migration without sockets
# In the VM a guest takes nothing for seconds after a migration, and the queue
# of the TAP, which libvirt makes, takes 1000; with 128 MiB its socket is full at
# 150 packets/s
CONDITIONS = (Conditions(rate=75) if os.environ.get('LAB_IN_VM') else
              Conditions(memory=128))


class Way(NamedTuple):
    """How QEMU is run, and what is tried."""
    name: str
    conf: str = ''              # more lines of qemu.conf
    setup: str = ''             # shell commands on each host
    options: str = ''           # more, of filters with packet sockets
    sockets: bool = True        # the XML has in_netdev and out_netdev
    flow: bool = True
    stock: bool = False         # once more with nothing saved
    plain: bool = False         # no argument for QEMU in the XML
    apparmor: bool = False


class Migration(NamedTuple):
    """One, by virsh."""
    name: str
    options: tuple
    off: str = ''               # to the source's monitor: save nothing
    saves: bool = True


NO_SANDBOX = 'seccomp_sandbox = 0\n'
ALLOW = "echo 'allow vnet*' > /usr/local/etc/qemu/packet.conf\n"

# Options of virsh; at this bandwidth the guest dirties its memory faster than
# it is copied, so that it is still running when postcopy begins
POSTCOPY, TUNNELLED = 'postcopy', 'tunnelled'
PLAIN = {'migration': (),
         POSTCOPY: ('--postcopy', '--postcopy-after-precopy',
                    '--bandwidth', '10'),
         'multifd': ('--parallel',),
         'tls': ('--tls',),
         TUNNELLED: ('--p2p', '--tunnelled')}
WITH_FILTERS = {'migration': ('--p2p',)}
SAVED = re.compile('migration (from|to) this host: '
                   r'((\d+) packets saved, .*)')

WAYS = (Way('plain', flow=False, stock=True, plain=True),
        Way('root', 'user = "root"\ngroup = "root"\n', stock=True),
        # As the manual says
        Way('capability', setup=f"""
            chgrp libvirt-qemu {libvirt.QEMU}
            chmod 750 {libvirt.QEMU}
            setcap cap_net_raw+ep {libvirt.QEMU}""", flow=False),
        Way('helper', NO_SANDBOX, ALLOW + f'setcap cap_net_raw+ep {HELPER}',
            f',packet_helper={HELPER}'),
        # It is root who starts the agent, and so the helper
        Way('unprivileged', setup=ALLOW, sockets=False))
APPARMOR = Way('apparmor', flow=False, stock=True, plain=True, apparmor=True)
NO_VHOST = ('libvirt passes vhost-net to domains of type kvm alone, whatever '
            '<driver> says, and the VM has no KVM')

# A helper that sends another socket than it should
WRONG_HELPER = '/usr/local/libexec/wrong-helper'
WRONG_HELPER_TEXT = '''#!/usr/bin/python3
import socket, sys
with socket.socket(fileno=int(sys.argv[3].removeprefix('--fd='))) as s:
    socket.send_fds(s, [b'\\0'], [s.fileno()])
'''


def qemu_commandline(arguments):
    values = ''.join(f"<qemu:arg value='{a}'/>" for a in arguments)
    return values and f'<qemu:commandline>{values}</qemu:commandline>'


def domain(name, mac, bridge, arguments, boot=''):
    """XML.  ARGUMENTS: of QEMU, beside libvirt's own"""
    namespace = (" xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
                 if arguments else '')
    return f'''
<domain type='qemu'{namespace}>
  <name>{name}</name>
  <memory unit='MiB'>{CONDITIONS.memory}</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <cpu mode='maximum'/>
  <devices>
    <emulator>{libvirt.QEMU}</emulator>
    <controller type='usb' model='none'/>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='{bridge}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'>
      <source path='/var/log/libvirt/qemu/{name}-console.log'/>
    </serial>
    <memballoon model='none'/>
  </devices>
  {qemu_commandline(arguments)}
</domain>
'''


# -- frames flow -------------------------------------------------------------

def frames():
    """Of all lengths, with a number and bytes that depend on it."""
    head = bytes.fromhex((FLOW_MAC + CLIENT_MAC).replace(':', '')) + b'\x88\xb5'
    for n in range(FRAMES):
        body = struct.pack('>I', n) + bytes((n + i) % 256 for i in range(1496))
        yield (head + body)[:60 + n * (1514 - 60) // (FRAMES - 1)]


class Seen:
    """What the destination's QEMU has read from its TAP, as it tells it."""

    def __init__(self, system):
        self.system = system
        self.listener = system.socket('a', socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind(('127.0.0.1', SEEN))
        self.listener.listen(1)

    def wait(self, sock, receive):
        """What RECEIVE() returns when SOCK has something."""
        patience = Patience(20, self.system.progress)
        sock.settimeout(patience.interval)
        while True:
            try:
                return receive()
            except socket.timeout:
                if patience.over():
                    raise LabError('the destination has not read its TAP: '
                                   f'{patience}') from None

    def connect(self):
        self.socket = self.wait(self.listener, self.listener.accept)[0]

    def read(self, n):
        data = b''
        while len(data) < n:
            more = self.wait(self.socket,
                             lambda: self.socket.recv(n - len(data)))
            if not more:
                raise LabError('the destination has closed the connection')
            data += more
        return data

    def frame(self):
        length, header = struct.unpack('>II', self.read(8))
        return self.read(length)[header:]

    def close(self):
        self.socket.close()


def flow_arguments(way):
    """Of the source and the destination."""
    source = ['-chardev', f'socket,id=m0,host=127.0.0.1,port={CHANNEL},'
                          'reconnect-ms=100']
    destination = ['-chardev', f'socket,id=m0,host=127.0.0.1,port={CHANNEL},'
                               'server=on,wait=off',
                   '-chardev', f'socket,id=see,host=127.0.0.1,port={SEEN}']
    if way.sockets:
        source += ['-object', 'filter-redirector,id=cap0,netdev=hostnet0,'
                              f'in_netdev=hostnet0,outdev=m0{way.options}']
        destination += ['-object', 'filter-redirector,id=inj0,netdev=hostnet0,'
                                   'indev=m0,out_netdev=hostnet0'
                                   + way.options]
    destination += ['-object', 'filter-redirector,id=see0,netdev=hostnet0,'
                               'queue=tx,outdev=see,vnet_hdr_support=on']
    return source, destination


def wait_for(system, what, get):
    patience = Patience(20, system.progress)
    while not get():
        if patience.over():
            raise LabError(f'{what}: {patience}')
        time.sleep(0.05)


def wait_connected(host, name):
    wait_for(host.system, f'{name}: m0 is not connected',
             lambda: 'disconnected' not in
             next(line for line in host.hmp(name, 'info chardev').splitlines()
                  if line.startswith('m0:')))


def status(pid, name):
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return line.split()[1]
    raise LabError(f'/proc/{pid}/status has no {name}')


def capabilities(pid):
    """All that it has, or could get back."""
    return sum({int(status(pid, f'Cap{s}'), 16)
                for s in ('Inh', 'Prm', 'Eff', 'Amb')})


def privileges(way, pids):
    """(whether they have none, figures)"""
    users = {status(pid, 'Uid') for pid in pids}
    seccomp = {status(pid, 'Seccomp') for pid in pids}
    return ('0' not in users and not any(map(capabilities, pids)) and
            seccomp == {'0' if NO_SANDBOX in way.conf else '2'},
            f'uid {" ".join(users)}, effective capabilities '
            f'{status(pids[0], "CapEff")}, seccomp mode {" ".join(seccomp)}')


def fds(pid):
    return len(os.listdir(f'/proc/{pid}/fd'))


def flow(client, seen, sent):
    """What comes of the frames SENT, until one more that is the end."""
    end = sent[0][:14] + b'the end'.ljust(46, b'\0')
    for frame in *sent, end:
        client.send(frame)
    got = []
    while (frame := seen.frame()) != end:
        got.append(frame)
    return got


def agent(host, *arguments):
    return host.run('/usr/bin/python3', AGENT, *arguments)


def check_agent_errors(host):
    """[(name, kept, figures)]"""
    host.run('sh', '-c', f'cat > {WRONG_HELPER}; chmod 755 {WRONG_HELPER}',
             text=WRONG_HELPER_TEXT)
    for what, arguments, reason in (
            ('interface', ('capture', 'source', 'net7', 'm0'),
             'domain source has no interface net7; '),
            ('chardev', ('capture', 'source', 'net0', 'm7'),
             "object-add: OUT Device 'm7' not found"),
            ('helper', ('--helper', '/nowhere/helper', 'capture', 'source',
                        'net0', 'm0'),
             'cannot start /nowhere/helper: No such file or directory; '),
            # QEMU has taken the file by then, and does not have it any more
            ('socket', ('--helper', WRONG_HELPER, 'capture', 'source', 'net0',
                        'm0'),
             "chardev-add: Failed to add chardev 'packet-capture-net0': "
             "'af-packet-mode' requires an AF_PACKET fd")):
        said = 'nothing'
        try:
            agent(host, *arguments)
        except LabError as e:
            said = str(e).rsplit(f'{AGENT.name}: ')[-1]
        yield (f'libvirt-agent-wrong-{what}', said.startswith(reason), said)


def check_flow(system, host, way):
    """[(name, kept, figures)]"""
    system.ip('a', 'link', 'add', 'br1', 'type', 'bridge',
              'mcast_snooping', '0')        # else it sends IGMP
    system.ip('a', 'link', 'set', 'br1', 'up')
    client = system.socket('client', socket.AF_PACKET, socket.SOCK_RAW, 0)
    client.bind(('eth0', 0))
    seen = Seen(system)
    before = host.traces()
    arguments = dict(zip(('source', 'destination'), flow_arguments(way)))
    for name, bridge in ('destination', 'br1'), ('source', 'br0'):
        host.define(domain(name, FLOW_MAC, bridge, arguments[name]))
        host.virsh('start', name)
        if name == 'destination':
            seen.connect()
    wait_connected(host, 'source')
    pids = {name: host.qemu(name) for name in arguments}
    if way.name != 'root':
        yield (f'libvirt-{way.name}-has-no-privileges',
               *privileges(way, [pids['source'], pids['destination']]))

    sent = list(frames())
    counts = {name: fds(pid) for name, pid in pids.items()}
    for again in (False,) if way.sockets else (False, True):
        if not way.sockets:
            agent(host, 'inject', 'destination', 'net0', 'm0')
            agent(host, 'capture', 'source', 'net0', 'm0')
        got = flow(client, seen, sent)
        yield (f'libvirt-{way.name}-frames-flow{"-again" * again}',
               got == sent,
               f'{sum(a == b for a, b in zip(got, sent))} of {len(sent)} '
               f'frames have arrived as they were sent, {len(got)} in all')
        if not way.sockets and not again:
            agent(host, 'remove', 'capture', 'source', 'net0')
            agent(host, 'remove', 'inject', 'destination', 'net0')
            yield from check_agent_errors(host)
            now = {name: fds(pid) for name, pid in pids.items()}
            yield ('libvirt-agent-leaves-nothing', now == counts,
                   f'open fds of QEMU before and after: {counts}, {now}')
    # Those with sockets end with them open
    for name in arguments:
        host.remove(name)
    seen.close()
    left = host.left(before)
    yield (f'libvirt-{way.name}-flow-leaves-nothing', not left,
           left or 'nothing left')


# -- migration ---------------------------------------------------------------

def manual_arguments():
    """Of QEMU, in the manual's XML."""
    commandline = re.search('^ *<qemu:commandline>$(.*?)</qemu:commandline>',
                            MANUAL.read_text(), re.M | re.S)
    return re.findall("<qemu:arg value='(.*)'/>", commandline[1])


def migration_arguments(way):
    """What the manual has, with what its table says of this way.  Who runs
    listens for the next destination, which connects to it."""
    if way.plain:
        return []

    def filter_arguments(a):
        if way.sockets:
            return a + way.options
        return (re.sub(',(in|out)_netdev=[^,]*', '', a) +
                ',enable_when_stopped=off' * (',indev=' in a))

    return [filter_arguments(a) if a.startswith('filter-redirector,') else a
            for a in manual_arguments()]


def install_certificates(host):
    """Where libvirt's default has them, for QEMU's user."""
    directory = tls.certificates()
    install = f'install -o {libvirt.USER} -m'
    host.run('sh', '-ec', f"""
        {install} 700 -d /etc/pki/qemu
        {install} 600 -t /etc/pki/qemu {directory}/ca-cert.pem \
            {directory}/server-*.pem {directory}/client-*.pem""")


def why_not_postcopy():
    """None where a QEMU of libvirt's user can do it, else the reason."""
    sysctl = Path('/proc/sys/vm/unprivileged_userfaultfd')
    if Path('/dev/userfaultfd').exists() or (
            sysctl.exists() and int(sysctl.read_text())):
        return None
    return 'no /dev/userfaultfd here, and vm.unprivileged_userfaultfd is 0'


def migrations(way):
    """One after the other; the first from host a.  In the slow VM each
    kind once."""
    if way.plain:
        kinds, off = PLAIN, 'migrate_set_capability switchover-packets off'
    else:
        kinds, off = WITH_FILTERS, 'qom-set /objects/cap0 status off'
    for kind, options in kinds.items():
        if kind == POSTCOPY and why_not_postcopy():
            continue
        for end in ('',) if way.apparmor else ('-there', '-back'):
            yield Migration(kind + end, options, saves=kind != TUNNELLED)
    if way.stock:
        yield Migration('migration-without-saving', kinds['migration'], off,
                        saves=False)


class Said:
    """What the QEMUs of the guest say on SOURCE and DESTINATION that they have
    saved in a migration, which begins now."""

    def __init__(self, source, destination):
        self.sides = (source, 'from'), (destination, 'to')
        self.before = [len(self.found(*side)) for side in self.sides]

    def found(self, host, direction):
        return [m for m in SAVED.finditer(host.messages('guest'))
                if m[1] == direction]

    def new(self):
        """Of each side: what is new, as matches."""
        return [self.found(*side)[before:]
                for side, before in zip(self.sides, self.before)]

    def wait(self):
        """(whether the destination has saved some, figures)"""
        # The guest has had more since then: it is a matter of a moment
        patience = Patience(1, self.sides[0][0].system.progress)
        while not all(new := self.new()) and not patience.over():
            time.sleep(0.05)
        return (all(len(n) == 1 for n in new) and int(new[1][0][3]) > 0,
                ', '.join(f'{host.name}: '
                          f'{"; ".join(m[2] for m in n) or "says nothing"}'
                          for (host, _), n in zip(self.sides, new)))


def confined(host):
    """(whether QEMU is, by libvirt's AppArmor driver, figures)"""
    label = Path(f'/proc/{host.qemu("guest")}/attr/current').read_text().strip()
    uuid = host.virsh('domuuid', 'guest').strip()
    return ('<model>apparmor</model>' in host.virsh('capabilities') and
            # Seen from outside of the host's policy namespace
            label == f':{host.name}:libvirt-{uuid} (enforce)', label)


def postcopies(host):
    """How many migrations from HOST have come to postcopy."""
    return len(re.findall(r'changed state to postcopy-active$',
                          host.log.read_text(errors='replace'), re.M))


def guest_boot():
    append = migrate.kernel_arguments()
    return ('<kernel>/var/lib/libvirt/boot/vmlinuz</kernel>'
            '<initrd>/var/lib/libvirt/boot/initramfs</initrd>'
            f'<cmdline>{append}</cmdline>')


def check_migration(system, hosts, way, say):
    """[(name, kept, figures)]"""
    c = CONDITIONS
    before = {host.name: host.traces() for host in hosts}
    a, b = hosts
    a.define(domain('guest', GUEST_MAC, 'br0', migration_arguments(way),
                    guest_boot()))
    a.virsh('start', 'guest')
    control = system.udp_socket('client')
    guest = Peer('guest (see libvirt-*-guest-console.log)', control,
                 GUEST_ADDRESS, PORT, system)
    guest.counters('status', 60)
    system.start('client', 'client',
                 [str(products.directory().resolve() / 'stream'), str(PORT)],
                 str(a.logs / f'libvirt-{way.name}-client.log'))
    client = Peer('client', control, CLIENT_ADDRESS, PORT, system)
    number = random.randrange(1, 1 << 31)
    guest.ask(f'set {number} {CLIENT_ADDRESS} {PORT} {c.answers} {c.size} '
              f'{c.dirty}')
    client.ask(f'set {number} {GUEST_ADDRESS} {PORT} {c.rate} {c.size} 0')
    guest.ask('go')
    client.ask('go')

    def traffic(seconds):
        sent = client.counters('status')['sent']
        client.ask(f'wait sent {sent + int(seconds * c.rate)}', seconds + 20)
        guest.counters('status', 30)

    def clocks():
        return [peer.counters('status', 30)['clock']
                for peer in (client, guest)]

    begins = [clocks()]
    traffic(1)
    if way.plain:
        yield (f'libvirt-{way.name}-has-no-privileges',
               *privileges(way, [a.qemu('guest')]))
    if way.apparmor:
        yield 'libvirt-apparmor-source-is-confined', *confined(a)
    if way.name == 'capability':
        yield ('libvirt-capability-is-all-there-is',
               capabilities(a.qemu('guest')) == CAP_NET_RAW and
               status(a.qemu('guest'), 'Seccomp') == '2',
               f'effective {status(a.qemu("guest"), "CapEff")}')
    done = list(migrations(way))
    source, destination = a, b
    for m in done:
        if m.off:
            source.hmp('guest', m.off)
        begins.append(clocks())
        said, before_it = Said(source, destination), postcopies(source)
        say(f'libvirt, {way.name}: {m.name}')
        uri = ('--migrateuri', f'tcp://{LINK_ADDRESS[destination.name]}')
        source.virsh('migrate', '--live', *m.options, '--persistent',
                     '--undefinesource', 'guest', destination.uri,
                     *(() if m.name.startswith(TUNNELLED) else uri))
        traffic(1)
        if way.apparmor:
            yield (f'libvirt-apparmor-{m.name}-is-confined',
                   *confined(destination))
        if way.plain and not m.saves:
            yield (f'libvirt-{way.name}-{m.name}-says-nothing',
                   not any(said.new()), 'nothing in the logs')
        elif way.plain:
            yield (f'libvirt-{way.name}-{m.name}-saves-packets', *said.wait())
        if m.name.startswith(POSTCOPY):
            n = postcopies(source) - before_it
            yield (f'libvirt-{way.name}-{m.name}-is-postcopy', n == 1,
                   f'{n} times')
        source, destination = destination, source
    client.ask('stop')
    at_guest = guest.counters('stop', 30)
    at_client = client.counters('status')
    records = {'to_guest': guest.records(), 'to_client': client.records()}
    source.remove('guest')

    ends = {'to_guest': (at_client, at_guest),
            'to_client': (at_guest, at_client)}
    damaged = sum(migrate.one_way(*ends[d], records[d])['damaged']
                  for d in ends)
    charged = [dict(zip(ends, rows)) for rows in zip(*(
        count.charge(ends[d][0]['sent'], records[d], times)
        for d, times in zip(ends, zip(*begins))))]
    lost_before = sum(charged[0][d]['lost'] for d in ends)
    for m, row in zip(done, charged[1:]):
        there, back = row['to_guest'], row['to_client']
        faults = lost_before + damaged + back['lost'] + sum(
            row[d]['duplicated'] for d in ends)
        if not m.saves:
            what = 'loses-packets'
            kept = there['lost'] > report.STOCK_LOSES
        elif way.sockets:
            what = 'is-exact'
            kept = not faults and not there['lost'] and all(
                row[d]['reordered'] <= report.REORDERED for d in ends)
        else:
            what = f'loses-at-most-{FEW}'
            kept = not faults and there['lost'] <= FEW
        yield (f'libvirt-{way.name}-{m.name}-{what}', kept,
               report.faults(row, ('lost', 'duplicated', 'reordered')) +
               f'; {lost_before} lost before the first, {damaged} damaged in '
               'all')
    if way.plain and (reason := why_not_postcopy()):
        yield f'libvirt-{way.name}-{POSTCOPY}', None, reason
    if way.apparmor:
        yield 'libvirt-apparmor-vhost', None, NO_VHOST
    left = '; '.join(filter(None, (host.left(before[host.name])
                                   for host in hosts)))
    yield (f'libvirt-{way.name}-migration-leaves-nothing', not left,
           left or 'nothing left')


# -- all ---------------------------------------------------------------------

def check_way(way, logs, say):
    """[(name, kept, figures)]"""
    hosts, results = [], []
    with System(1000, CONDITIONS.link) as system:
        try:
            for name in 'ab':
                host = Host(system, name, logs, way.conf)
                hosts.append(host)
                host.run('sh', '-ec', way.setup)
                if way.plain:
                    install_certificates(host)
            if way.flow:
                results += check_flow(system, hosts[0], way)
            results += check_migration(system, hosts, way, say)
        finally:
            for host in hosts:
                host.save_logs()
    return results


def checked(logs, ways, say=lambda line: None):
    """The results of all WAYS, one after the other."""
    logs = Path(logs)
    logs.mkdir(parents=True, exist_ok=True)
    products.build(say)
    libvirt.unpacked(say)
    for way in ways:
        try:
            try:
                yield from check_way(way, logs, say)
            except InvalidRun as e:
                say(f'libvirt, {way.name}: {e}; once more')
                yield from check_way(way, logs, say)
        except (LabError, OSError, subprocess.SubprocessError) as e:
            yield f'libvirt-{way.name}', False, ' '.join(str(e).split())
