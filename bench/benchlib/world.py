# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a bench runs: private namespaces, TAPs, child processes, counters.

The harness itself moves into a network and a mount namespace without a name.
They end with the last process in them, so that even a killed harness leaves
nothing but an empty directory in /tmp and perhaps a tracing instance, which
the next start removes.  Children get SIGKILL if the harness dies.

CPU placement.  The sender has one core (SENDER) for itself; all that is
measured, and whoever takes its output, has the other (WORKER).  It is the same
for all contenders.
"""
import ctypes
import fcntl
import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from . import BenchError, ROOT

PREFIX = 'qemubench'
PR_SET_PDEATHSIG = 1
INSIDE = 'QEMUBENCH_INSIDE'

TUNSETIFF, TUNSETOFFLOAD = 0x400454ca, 0x400454d0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4

PROGRAMS = ('send', 'sink', 'read', 'ping')

libc = ctypes.CDLL(None, use_errno=True)


def why_not():
    """None where the bench can run, else the reason why it cannot."""
    if os.geteuid() != 0:
        return 'needs root for network namespaces, TAPs and packet sockets'
    if not os.path.exists('/dev/net/tun'):
        return '/dev/net/tun is missing (modprobe tun)'
    for name, package in (('ip', 'iproute2'), ('unshare', 'util-linux'),
                          ('gcc', 'build-essential')):
        if not shutil.which(name):
            return f'{name} is missing (package {package})'
    if len(os.sched_getaffinity(0)) < 2:
        return 'needs two CPUs: one for the sender, one for what is measured'
    return None


def enter():
    """Start this program again in namespaces of its own."""
    if INSIDE not in os.environ:
        os.environ[INSIDE] = '1'
        os.execvp('unshare', ['unshare', '--net', '--mount', '--propagation',
                              'private', '/usr/bin/python3', *os.sys.argv])


def run(*argv):
    r = subprocess.run(argv, text=True, capture_output=True)
    if r.returncode:
        raise BenchError(f'{" ".join(argv)}: {r.stderr.strip()}')
    return r.stdout


def wait_for(condition, seconds, what):
    """Until CONDITION() is true; for what nobody announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f'{what}: not within {seconds} s')
        time.sleep(0.002)


class Child:
    """A process that ends with us at the latest.  Its stdout is a pipe."""

    def __init__(self, name, argv, log, core=None, fds=()):
        self.name, self.log, self.text = name, log, b''

        def before_exec():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if core is not None:
                os.sched_setaffinity(0, {core})

        with open(log, 'ab') as f:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=f, preexec_fn=before_exec, pass_fds=fds,
                start_new_session=True)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def messages(self):
        return Path(self.log).read_text(errors='replace')

    def check(self):
        """Raise if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise BenchError(f'{self.name} ended with status {code}: '
                             f'{self.messages().strip()[-800:]}')

    def wait(self, seconds):
        self.process.wait(seconds)

    def line(self, seconds):
        """The next line that it prints."""
        deadline = time.monotonic() + seconds
        out = self.process.stdout.fileno()
        while b'\n' not in self.text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise BenchError(f'{self.name}: nothing said for {seconds} s')
            data = os.read(out, 65536)
            if not data:
                self.process.wait(5)
                raise BenchError(f'{self.name} ended with status '
                                 f'{self.process.returncode}: '
                                 f'{self.messages().strip()[-800:]}')
            self.text += data
        line, self.text = self.text.split(b'\n', 1)
        return line.decode()

    def ready(self):
        if self.line(20) != 'ready':
            raise BenchError(f'{self.name} is not ready')

    def cpu_ns(self):
        """CPU time of all its threads: clock_getcpuclockid()."""
        return time.clock_gettime_ns((~self.pid << 3) | 2)

    def usage(self, seconds):
        """Wait for its end. Returns the seconds of CPU that it took."""
        if not select.select([self.pidfd], [], [], seconds)[0]:
            raise BenchError(f'{self.name}: not done within {seconds} s')
        _, status, used = os.wait4(self.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            self.check()
        return used.ru_utime + used.ru_stime

    def interrupt(self):
        """Ask it to end, and wait until it has."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.wait(20)
        except subprocess.TimeoutExpired:
            raise BenchError(f'{self.name} does not end') from None

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.pidfd)


# struct counters in traffic.h
FIELDS = ('frames', 'bytes', 'run', 'disordered', 'foreign', 'last_ns',
          'stream_bytes', 'spare')
STEPS, BUCKETS = 16, 40 * 16


class Counters:
    """What a receiver has counted: a file that it and we have mapped."""

    def __init__(self, path):
        self.path = str(path)
        size = 8 * (len(FIELDS) + BUCKETS)
        with open(path, 'w+b') as f:
            f.truncate(size)
            self.map = mmap.mmap(f.fileno(), size)

    def __getattr__(self, name):
        return struct.unpack_from('=Q', self.map, 8 * FIELDS.index(name))[0]

    def frames_of(self, run):
        return self.frames if self.run == run else 0

    def histogram(self):
        return struct.unpack_from(f'={BUCKETS}Q', self.map, 8 * len(FIELDS))


def bucket_ns(i):
    """The middle of a histogram's step: bucket() in traffic.h."""
    if i < STEPS:
        return i
    power = i // STEPS + 3
    return (1 << power) + ((i % STEPS) + 0.5) * (1 << power - 4)


def quantile_us(histogram, q):
    total = sum(histogram)
    below = 0
    for i, n in enumerate(histogram):
        below += n
        if n and below >= q * total:
            return bucket_ns(i) / 1000
    return float('nan')


class Tap:
    """A TAP that is up, and its file; ends with its last holder.  Its name does
    not begin with "tap": tcpreplay would try to make one."""

    def __init__(self, name, queue=1000):
        self.name = name
        self.fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack(
            '16sH22x', name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        run('ip', 'link', 'set', name, 'mtu', '9000', 'txqueuelen', str(queue),
            'up')

    def offload(self):
        """As a guest's driver does it; else the kernel segments what is for
        this TAP. QEMU switches it off when it gets the file."""
        fcntl.ioctl(self.fd, TUNSETOFFLOAD,
                    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)

    def close(self):
        os.close(self.fd)


class World:
    """All that a bench has made.  A context manager."""

    def __init__(self, out, cores):
        """@out: directory for the programs; @cores: SENDER, WORKER"""
        self.out = Path(out)
        self.sender, self.worker = cores
        self.children, self.taps = [], []
        self.number = 0

    def __enter__(self):
        for path in Path(tempfile.gettempdir()).glob(PREFIX + '-*'):
            pid = path.name.split('-')[1]
            if not os.path.exists(f'/proc/{pid}'):
                try:
                    path.rmdir()
                except OSError:
                    pass
        self.tmp = Path(tempfile.mkdtemp(prefix=f'{PREFIX}-{os.getpid()}-'))
        # A file system of this mount namespace: it ends with us.
        run('mount', '-t', 'tmpfs', 'bench', str(self.tmp))
        run('ip', 'link', 'set', 'lo', 'up')
        for name in ('all', 'default'):     # IPv6 would send frames of its own
            path = Path(f'/proc/sys/net/ipv6/conf/{name}/disable_ipv6')
            if path.exists():
                path.write_text('1')
        self.compile()
        os.sched_setaffinity(0, {self.sender, self.worker})
        return self

    def __exit__(self, *exc):
        self.clear()
        run('umount', '-l', str(self.tmp))
        self.tmp.rmdir()

    def compile(self):
        self.out.mkdir(parents=True, exist_ok=True)
        source = ROOT / 'bench'
        for name in PROGRAMS:
            made, c = self.out / name, source / f'{name}.c'
            newest = max(p.stat().st_mtime for p in (c, source / 'traffic.h'))
            if not made.exists() or made.stat().st_mtime < newest:
                run('gcc', '-O2', '-Wall', '-Wextra', '-o', f'{made}.new',
                    str(c))
                os.replace(f'{made}.new', made)

    def program(self, name):
        return str(self.out / name)

    def path(self, name):
        """A new path for a socket or a file."""
        self.number += 1
        return self.tmp / f'{self.number}-{name}'

    def counters(self):
        return Counters(self.path('counters'))

    def tap(self, name='port0', queue=1000):
        tap = Tap(name, queue)
        self.taps.append(tap)
        return tap

    def start(self, name, argv, core, fds=()):
        child = Child(name, [str(a) for a in argv], self.path('log'), core,
                      fds)
        self.children.append(child)
        return child

    def clear(self):
        """End all processes and remove all TAPs."""
        for child in reversed(self.children):
            child.close()
        self.children.clear()
        for tap in self.taps:
            tap.close()
        gone = [t.name for t in self.taps]
        self.taps.clear()
        for name in gone:
            wait_for(lambda: name not in interfaces(), 10, f'end of {name}')
        for path in self.tmp.iterdir():
            if path.is_file() or path.is_socket():
                path.unlink()


def interfaces():
    return [line.split(':')[0].strip() for line in
            Path('/proc/self/net/dev').read_text().splitlines()[2:]]
