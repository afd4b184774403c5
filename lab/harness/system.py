# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces, child processes, and their removal.

All names carry the harness's process id and start time, so runs side by side
do not meet, and what a killed run has left is recognised and removed by the
next one: a namespace whose maker no longer exists is stale.  Children get
SIGKILL from the kernel if the harness dies without cleaning up.

    client: eth0 --- switch: br0 --+-- a: up0 - br0 - tap0
                                   |      mig0
                                   |        |  the migration's own link
                                   |      mig0
                                   +-- b: up0 - br0 - tap0

A second network card has tap1 beside tap0, and addresses of its own.
"""
import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from . import LabError
from .patience import Patience, cpu_time, sizes

PREFIX = 'qemulab'
GROUP = 77                      # of interfaces that are to be deleted
NETNS = Path('/run/netns')
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

CLIENT_ADDRESS, CLIENT_MAC = '10.77.0.1', '52:54:00:77:00:01'
GUEST_ADDRESS, GUEST_MAC = '10.77.0.2', '52:54:00:77:00:02'
# of each network card: the client's address, the guest's, and its MAC address
CARDS = ((CLIENT_ADDRESS, GUEST_ADDRESS, GUEST_MAC),
         *((f'10.{n}.0.1', f'10.{n}.0.2', f'52:54:00:{n}:00:02')
           for n in range(79, 86)))
LINK_ADDRESS = {'a': '10.78.0.1', 'b': '10.78.0.2'}

libc = ctypes.CDLL(None, use_errno=True)


def why_not():
    """None where the lab can run, else the reason why it cannot."""
    if os.geteuid() != 0:
        return 'needs root for network namespaces and TAPs'
    if not os.path.exists('/dev/net/tun'):
        return '/dev/net/tun is missing (modprobe tun)'
    if not shutil.which('ip'):
        return 'ip is missing (package iproute2)'
    return None


def why_not_vhost():
    """None where a guest can have vhost-net, else the reason."""
    if os.path.exists('/dev/vhost-net'):
        return why_not()
    return ('/dev/vhost-net is missing (modprobe vhost_net); '
            'lab/vm has one: lab/vm -- COMMAND')


def start_time(pid):
    """When a process started, in clock ticks since boot; None if it is gone."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return None
    return stat.rsplit(')', 1)[1].split()[19]


def run(*argv):
    r = subprocess.run(argv, text=True, capture_output=True)
    if r.returncode:
        raise LabError(f'{" ".join(argv)}: {r.stderr.strip()}')
    return r.stdout


def ip(*args):
    return run('ip', *args)


def remove_stale():
    """Remove what harnesses that no longer exist have left behind."""
    tmp = Path(tempfile.gettempdir())
    for path in [*NETNS.glob(PREFIX + '-*'), *tmp.glob(PREFIX + '-*')]:
        _, pid, started = path.name.split('-')[:3]
        if start_time(pid) == started:
            continue
        if path.parent == NETNS:
            try:
                remove_namespace(path.name)
            except LabError:
                pass                    # someone else has just removed it
        else:
            shutil.rmtree(path, ignore_errors=True)


def remove_namespace(name):
    for pid in ip('netns', 'pids', name).split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    ip('netns', 'del', name)


class Child:
    """A process that ends with us at the latest."""

    def __init__(self, name, argv, log, cwd=None, fds=()):
        """@fds: of ours, that it inherits"""
        self.name, self.log = name, log
        self.outputs = [log]        # files; that they grow is progress

        def die_with_parent():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(log, 'wb') as f:
            self.process = subprocess.Popen(
                argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                pass_fds=fds, preexec_fn=die_with_parent, start_new_session=True)
        self.pidfd = os.pidfd_open(self.process.pid)

    def check(self):
        """Raise if the process has ended."""
        code = self.process.poll()
        if code is not None:
            text = Path(self.log).read_text(errors='replace').strip()
            raise LabError(f'{self.name} ended with status {code}: '
                           f'{text[-800:] or "no message"} (see {self.log})')

    def progress(self):
        return cpu_time(self.process.pid), sizes(self.outputs)

    def wait(self, seconds):
        """Until it has ended."""
        patience = Patience(seconds, self.progress)
        while True:
            try:
                return self.process.wait(patience.interval)
            except subprocess.TimeoutExpired:
                if patience.over():
                    raise LabError(f'{self.name} does not end: {patience} '
                                   f'(see {self.log})') from None

    def result(self, seconds):
        """What it has said when it has ended by itself."""
        self.wait(seconds)
        if self.process.returncode:
            self.check()
        return Path(self.log).read_text()

    def terminate(self, seconds):
        """Ask it to end; returns what it has said."""
        self.process.terminate()
        self.wait(seconds)
        return Path(self.log).read_text()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.pidfd)


class System:
    """The namespaces and processes of one run.  A context manager."""

    def __init__(self, txqueuelen, link, cards=1):
        """@txqueuelen: of the TAPs; @link: rate of the migration's link
        in Mbit/s, 0 for no limit; @cards: how many network cards"""
        me = os.getpid()
        self.prefix = f'{PREFIX}-{me}-{start_time(me)}'
        self.txqueuelen, self.link, self.cards = txqueuelen, link, cards
        self.children, self.disowned, self.sockets = [], [], []
        self.tmp = None

    def __enter__(self):
        remove_stale()
        try:
            # sockets live here: their paths must be short
            self.tmp = tempfile.mkdtemp(prefix=self.prefix + '-')
            self.build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        for children in (self.children, self.disowned):
            while children:
                children.pop().close()
        while self.sockets:             # else they keep the namespace alive
            self.sockets.pop().close()
        for path in NETNS.glob(self.prefix + '-*'):
            remove_namespace(path.name)
        if self.tmp:
            shutil.rmtree(self.tmp, ignore_errors=True)

    def name(self, namespace):
        return f'{self.prefix}-{namespace}'

    def ip(self, namespace, *args):
        return ip('-n', self.name(namespace), *args)

    def let_in(self, user):
        """Let processes of USER connect to the monitors' sockets."""
        os.chmod(self.tmp, 0o711)
        for path in Path(self.tmp).glob('qmp-*'):
            os.chown(path, user, -1)

    def delete_interfaces(self, namespace, log):
        """Start to delete those of add_interfaces(), in one go."""
        child = self.start('ip', namespace, ['ip', 'link', 'delete', 'group',
                                             str(GROUP)], log)
        self.disown(child)
        return child

    def add_interfaces(self, namespace, number):
        """Pairs of veths that nothing uses."""
        batch = Path(self.tmp, 'batch')
        batch.write_text(''.join(
            f'link add x{n} group {GROUP} type veth peer name y{n}\n'
            for n in range(number)))
        self.ip(namespace, '-batch', str(batch))

    def add_bridge(self, namespace, *ports):
        """Ports of a bridge without spanning tree forward at once."""
        self.ip(namespace, 'link', 'add', 'br0', 'type', 'bridge',
                'mcast_snooping', '0')
        for port in (*ports, 'br0'):
            if port != 'br0':
                self.ip(namespace, 'link', 'set', port, 'master', 'br0')
            self.ip(namespace, 'link', 'set', port, 'up')

    def build(self):
        for namespace in ('client', 'switch', 'a', 'b'):
            ip('netns', 'add', self.name(namespace))
            # IPv6 would send packets of its own
            ip('netns', 'exec', self.name(namespace), 'sh', '-c',
               'cd /proc/sys/net/ipv6/conf 2>/dev/null || exit 0;'
               'echo 1 > all/disable_ipv6; echo 1 > default/disable_ipv6')

        self.ip('client', 'link', 'add', 'eth0', 'address', CLIENT_MAC,
                'type', 'veth', 'peer', 'name', 'client',
                'netns', self.name('switch'))
        for host in ('a', 'b'):
            self.ip('switch', 'link', 'add', f'host-{host}',
                    'type', 'veth', 'peer', 'name', 'up0',
                    'netns', self.name(host))
            taps = [f'tap{card}' for card in range(self.cards)]
            for tap in taps:
                self.ip(host, 'tuntap', 'add', 'dev', tap, 'mode', 'tap')
                self.ip(host, 'link', 'set', tap,
                        'txqueuelen', str(self.txqueuelen))
            self.add_bridge(host, 'up0', *taps)
        self.add_bridge('switch', 'client', 'host-a', 'host-b')
        for namespace in ('a', 'b'):
            self.keep_order(namespace)

        self.ip('a', 'link', 'add', 'mig0', 'type', 'veth', 'peer', 'name',
                'mig0', 'netns', self.name('b'))
        for host, address in LINK_ADDRESS.items():
            self.ip(host, 'address', 'add', f'{address}/24', 'dev', 'mig0')
            self.ip(host, 'link', 'set', 'mig0', 'up')
            if self.link:
                run('tc', '-n', self.name(host), 'qdisc', 'add', 'dev', 'mig0',
                    'root', 'tbf', 'rate', f'{self.link}mbit',
                    'burst', '64kb', 'latency', '20ms')

        self.ip('client', 'link', 'set', 'lo', 'up')
        self.ip('client', 'link', 'set', 'eth0', 'up')
        for ours, theirs, mac in CARDS[:self.cards]:
            self.ip('client', 'address', 'add', f'{ours}/24', 'dev', 'eth0')
            # a fixed neighbour: ARP is no part of the test
            self.ip('client', 'neighbour', 'add', theirs, 'lladdr', mac,
                    'dev', 'eth0', 'nud', 'permanent')

    def keep_order(self, namespace):
        """Let one CPU receive what guests send, as a NIC does for each flow.
        Else each packet is received by the CPU of who sends it, and those of a
        sender that has moved overtake what waits for the other CPU (Linux
        6.1).  A kernel for a single CPU has no such file."""
        ip('netns', 'exec', self.name(namespace), 'sh', '-c',
           'for f in /sys/class/net/tap*/queues/rx-*/rps_cpus; do'
           ' [ ! -e "$f" ] || echo 1 > "$f" || exit; done')

    def start(self, name, namespace, argv, log, fds=()):
        if namespace == 'client':
            # Also for the order: what it sends is received by its own CPU
            argv = ['taskset', '-c', str(max(os.sched_getaffinity(0))), *argv]
        child = Child(name, ['ip', 'netns', 'exec', self.name(namespace)]
                      + argv, log, cwd=self.tmp, fds=fds)
        self.children.append(child)
        return child

    def end(self, child):
        """Kill CHILD now, and expect nothing of it any more."""
        self.children.remove(child)
        child.close()

    def disown(self, child):
        """CHILD may end from now on; it is still removed with the others."""
        self.children.remove(child)
        self.disowned.append(child)

    @contextlib.contextmanager
    def inside(self, namespace):
        """Be in NAMESPACE for a moment: what is opened there stays there."""
        with open('/proc/self/ns/net') as ours, \
             open(NETNS / self.name(namespace)) as theirs:
            if libc.setns(theirs.fileno(), CLONE_NEWNET):
                raise LabError(f'cannot enter {self.name(namespace)}: '
                               f'{os.strerror(ctypes.get_errno())}')
            try:
                yield
            finally:
                libc.setns(ours.fileno(), CLONE_NEWNET)

    def socket(self, namespace, *args):
        """A socket that lives in NAMESPACE, although we do not."""
        with self.inside(namespace):
            sock = socket.socket(*args)
        self.sockets.append(sock)
        return sock

    def udp_socket(self, namespace):
        return self.socket(namespace, socket.AF_INET, socket.SOCK_DGRAM)

    def pids(self, namespace):
        return [int(pid) for pid in
                ip('netns', 'pids', self.name(namespace)).split()]

    def check(self):
        for child in self.children:
            child.check()

    def progress(self):
        """Of all that runs here; see patience.py."""
        return (cpu_time(*(c.process.pid for c in self.children)),
                sizes(path for c in self.children for path in c.outputs))


def accept(listener, child, seconds):
    """The connection that CHILD makes to LISTENER, or why it does not."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(child.pidfd, select.POLLIN)
    patience = Patience(seconds, child.progress)
    while listener.fileno() not in dict(poll.poll(patience.interval * 1000)):
        child.check()
        if patience.over():
            raise LabError(f'{child.name} does not connect: {patience} '
                           f'(see {child.log})')
    return listener.accept()[0]


def monotonic_minus_realtime():
    return time.monotonic_ns() - time.time_ns()
