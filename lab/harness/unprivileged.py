# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU as libvirt starts one: as a user without capabilities, in a seccomp
sandbox, with the TAPs and vhost as fds; and what is looked at, in /proc.

It may not be able to get at the directories that our files are in.  So these
are passed as fds, too, and named /proc/self/fd/N."""
import fcntl
import os
import stat
import struct
from pathlib import Path

from . import LabError

USER = 65534
UFFD = '/dev/userfaultfd'       # for postcopy, to which libvirt lets a QEMU
SETPRIV = ('setpriv', f'--reuid={USER}', f'--regid={USER}', '--clear-groups',
           '--inh-caps=-all', '--bounding-set=-all', '--no-new-privs',
           '--pdeathsig=KILL')
SANDBOX = ('-sandbox', 'on,elevateprivileges=deny,obsolete=deny,spawn=deny,'
                       'resourcecontrol=deny')
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454ca, 2, 0x1000, 0x4000


class Files:
    """The fds of one QEMU on HOST."""

    def __init__(self, system, host, c, made, binary, console):
        system.let_in(USER)
        self.fds = []
        # ip-netns gives it mounts of its own
        self.before = [] if c.copy != 'postcopy' else [
            'sh', '-c', f'mount -o bind "$0" {UFFD} && exec "$@"',
            self.node(system, host, UFFD)]
        self.taps = [self.tap(system, host, n) for n in range(c.cards)]
        self.vhosts = [self.open('/dev/vhost-net', os.O_RDWR)
                       for n in range(c.cards) if c.vhost]
        self.console = self.open(console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.names = [(name, f'/proc/self/fd/{self.open(name, os.O_PATH)}')
                      for name in (binary, str(made))]

    def open(self, name, flags):
        self.fds.append(os.open(name, flags))
        return self.fds[-1]

    def tap(self, system, host, n):
        with system.inside(host):
            fd = self.open('/dev/net/tun', os.O_RDWR)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack(
                '16sH22x', f'tap{n}'.encode(),
                IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        return fd

    @staticmethod
    def node(system, host, device):
        """The same as DEVICE, for USER."""
        name = os.path.join(system.tmp, f'{os.path.basename(device)}-{host}')
        os.mknod(name, stat.S_IFCHR | 0o600, os.stat(device).st_rdev)
        os.chown(name, USER, USER)
        return name

    def argv(self, argv):
        """ARGV with the names under which it finds the files."""
        for ours, theirs in self.names:
            argv = [a.replace(ours, theirs) for a in argv]
        return [*self.before, *SETPRIV, *argv, *SANDBOX]

    def close(self):
        for fd in self.fds:
            os.close(fd)


def check(child):
    """Raise if this QEMU can do more than it should."""
    status = dict(line.split(':\t') for line in Path(
        f'/proc/{child.process.pid}/status').read_text().splitlines())
    if (set(status['Uid'].split()) != {str(USER)} or
            int(status['CapEff'], 16) or status['Seccomp'] != '2'):
        raise LabError(f'{child.name} has privileges: Uid {status["Uid"]}, '
                       f'CapEff {status["CapEff"]}, '
                       f'Seccomp {status["Seccomp"]}')


def check_no_packet_socket(child):
    """Raise if it has one."""
    proc = Path(f'/proc/{child.process.pid}')
    theirs = {f'socket:[{line.split()[-1]}]' for line in
              (proc / 'net' / 'packet').read_text().splitlines()[1:]}
    for fd in (proc / 'fd').iterdir():
        if os.readlink(fd) in theirs:
            raise LabError(f'{child.name} has a packet socket')
