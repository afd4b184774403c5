# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU without a guest, and what its main loop does.

`-machine none` runs, so that the filters are active.  The TAP's file is ours,
and QEMU gets it with fd=; so somebody else can read the same TAP.  What QEMU
itself reads depends on the hub that is the netdev's peer:

    one port        the hub takes no packet: QEMU reads one from the TAP, keeps
                    it, and never reads again. As with vhost=on, the frames are
                    left to somebody else.
    two ports       the second has no peer and takes everything: QEMU reads each
                    frame, as with vhost=off, and the filters see it.
"""
import os
import re
from pathlib import Path

from harness.qmp import QMP

from . import BenchError
from .world import run

FIRMWARE = ('/usr/share/seabios', '/usr/share/qemu')


def netdev(tap, number=0, takes=False):
    """A netdev on TAP, with a peer that takes each packet, or none."""
    n = number
    out = ['-netdev', f'tap,id=n{n},fd={tap.fd},vhost=off',
           '-netdev', f'hubport,id=h{n},hubid={n},netdev=n{n}']
    if takes:
        out += ['-netdev', f'hubport,id=x{n},hubid={n}']
    return out


class Qemu:
    def __init__(self, world, name, binary, arguments, taps=(), core=None):
        qmp = QMP(str(world.tmp), f'{name}-{world.number}')
        self.monitor = world.path('qmp')
        self.command = [
            str(binary), *(a for p in FIRMWARE if os.path.isdir(p)
                           for a in ('-L', p)),
            '-nodefaults', '-no-user-config', '-display', 'none',
            '-machine', 'none', *qmp.arguments,
            '-qmp', f'unix:{self.monitor},server=on,wait=off',
            *(str(a) for a in arguments)]
        self.child = world.start(name, self.command,
                                 world.worker if core is None else core,
                                 [t.fd for t in taps])
        qmp.connect(self.child)         # now all is set up
        self.qmp = qmp

    def memory(self):
        """Resident KiB: all, and what is not files or shared."""
        text = Path(f'/proc/{self.child.pid}/status').read_text()
        return tuple(int(re.search(rf'^{key}:\s+(\d+)', text, re.M)[1])
                     for key in ('VmRSS', 'RssAnon'))


def version(binary):
    return run(str(binary), '--version').splitlines()[0]


class Turns:
    """How long the main loop is away between two waits.

    The kernel's trace events give the moments at which the main thread leaves
    and enters ppoll(), and those at which it is preempted or goes on: with
    more processes than CPUs, that someone else runs is not QEMU's doing, and
    is subtracted.  Sleeping in a system call is not.

    A nested wait (aio_poll) ends a turn, too: for a QEMU that has some, the
    figure is too small, and the monitor's round trips say more.
    """
    EVENTS = ('syscalls/sys_enter_ppoll', 'syscalls/sys_exit_ppoll')
    SWITCH = 'sched/sched_switch'
    BUFFER = 64 << 10                   # KiB per CPU

    def __init__(self, world, qemu):
        mount = world.path('tracing')
        mount.mkdir()
        try:
            run('mount', '-t', 'tracefs', 'tracefs', str(mount))
        except BenchError as e:
            raise BenchError(f'no tracefs: {e}') from None
        self.mount = mount
        instances = mount / 'instances'
        for path in instances.glob('qemubench-*'):
            if not os.path.exists(f'/proc/{path.name.split("-")[1]}'):
                path.rmdir()
        self.instance = instances / f'qemubench-{os.getpid()}'
        self.pid = qemu.child.pid
        try:
            self.instance.mkdir()
            self.set('trace_clock', 'mono')
            self.set('buffer_size_kb', self.BUFFER)
            self.set('options/overwrite', 0)
            for event in self.EVENTS:
                self.set(f'events/{event}/filter', f'common_pid == {self.pid}')
                self.set(f'events/{event}/enable', 1)
            self.set(f'events/{self.SWITCH}/filter',
                     f'prev_pid == {self.pid} || next_pid == {self.pid}')
            self.set(f'events/{self.SWITCH}/enable', 1)
        except OSError as e:
            self.close()
            raise BenchError(f'tracefs: {e}') from None

    def set(self, name, value):
        (self.instance / name).write_text(f'{value}\n')

    def finish(self):
        """[(turn, of it preempted)] in us, in order; and events lost."""
        self.set('tracing_on', 0)
        turns = []
        begin = off = None
        away = 0.0
        line = re.compile(r'\s(\d+\.\d+): (\S+?)(\(|: | )(.*)')
        with open(self.instance / 'trace') as f:
            for text in f:
                if not (m := line.search(text)):
                    continue
                at, what = float(m[1]) * 1e6, m[2]
                if what == 'sched_switch:' or what == 'sched_switch':
                    if f'prev_pid={self.pid} ' in m[4]:
                        # R: it would have run on
                        off = at if 'prev_state=R' in m[4] else None
                    elif off is not None:
                        away += at - off
                        off = None
                elif '->' in m[4]:
                    begin, away = at, 0.0
                elif begin is not None:
                    turns.append((at - begin, away))
                    begin = None
        lost = sum(int(n) for path in self.instance.glob('per_cpu/cpu*/stats')
                   for n in re.findall(r'(?:dropped events|overrun): (\d+)',
                                       path.read_text()))
        self.close()
        return turns, lost

    def close(self):
        try:
            for event in (*self.EVENTS, self.SWITCH):
                self.set(f'events/{event}/enable', 0)
        except OSError:
            pass
        try:
            self.instance.rmdir()
        except OSError:
            pass
        run('umount', '-l', str(self.mount))
