# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with a real vhost-net, for machines that have none (lab/vm).

Its kernel is the one of the lab's guest: Debian's cloud kernel has vhost_net as
a module.  Its root file system is an initramfs, made from this machine's own
files at each start (about a second), so that it is never out of date:

    /init           guest/vm-init; what it does is said there
    /repo           lab/, our QEMU, the tests that dev/tests names, and in
                    .qemu/lab what a run needs, with a booted guest's state
    /usr            busybox, Python with its library, iproute2, tcpdump,
                    firmware; and the shared libraries of all programs, as ldd
                    names them

For lab/libvirt it has libvirt's files, too.

The VM has no network.  Its console and the command's stdout are serial ports
that come in over sockets; a raw disk brings a tar file out.  A command that says
nothing for too long, on neither of them, is told to end by a line to the second
port, so that its files come out even then.  The console is kept in
LAB_DIR/vm/console.

Under TCG on a busy machine a kernel can misjudge the frequency of its TSC, and
then all times measured in it would be wrong; but its other clocks are much too
slow here.  So the VM says its uptime at begin and end, and a command in which
that does not fit to the clock out here has failed.
"""
import contextlib
import os
import re
import select
import shlex
import shutil
import socket
import stat
import tarfile
import tempfile
import time
from pathlib import Path

from . import LabError, libvirt, migrate, products
from .patience import Patience
from .products import ROOT
from .system import (Child, PREFIX, accept, remove_stale, start_time,
                     why_not)

ACCEL = 'tcg,thread=multi'
MEMORY = 2048                   # MiB; two guests, QEMU and the files
LIMIT = 1800                    # seconds in which the command says nothing
END = 180                       # the same, when it is to end
DISK = 256 << 20                # a sparse file, holds what comes out

MODULES = ('virtio_pci', 'virtio_blk', 'tun', 'vhost_net', 'veth', 'bridge',
           '8021q', 'sch_tbf', 'overlay')
PROGRAMS = {'ip': 'iproute2', 'tc': 'iproute2', 'bridge': 'iproute2',
            'setpriv': 'util-linux',
            'tcpdump': 'tcpdump'}       # in which Debian package
FOR_LIBVIRT = {'nsenter': 'util-linux', 'unshare': 'util-linux',
               'mount': 'mount', 'umount': 'mount', 'install': 'coreutils',
               'certtool': 'gnutls-bin'}
PYTHON = Path('/usr/bin/python3')
# Large parts of Python's library that nothing here uses
NO_PYTHON = ('test', 'idlelib', 'lib2to3', 'ensurepip', 'distutils',
             'pydoc_data', 'tkinter', 'turtledemo', 'config-*')
CLOCK = re.compile(rb'vm-init: uptime ([0-9.]+)\r\n')
ROMS = '/usr/lib/ipxe/qemu'


def inside():
    return 'LAB_IN_VM' in os.environ


# -- the image ---------------------------------------------------------------

class Image:
    """The files of the initramfs, by path."""

    def __init__(self):
        self.entries = {}
        self.programs = []
        self.own = ''           # a directory in it that has libraries
        for link in ('bin', 'sbin', 'lib', 'lib64'):
            self.add(link, stat.S_IFLNK | 0o777, f'usr/{link}'.encode())

    def add(self, name, mode, data=b'', device=0):
        """Add one entry, and the directories above it."""
        name = name.strip('/')
        for parent in list(Path(name).parents)[-2::-1]:
            if str(parent) not in self.entries:
                self.entries[str(parent)] = (stat.S_IFDIR | 0o755, b'', 0)
        self.entries[name] = (mode, data, device)

    def file(self, path, name=None):
        """Add the file PATH, at the same place or as NAME; no links."""
        path = Path(path)
        name = name or str(path.parent.resolve() / path.name)
        executable = os.access(path, os.X_OK)
        data = path.read_bytes()
        self.add(name, stat.S_IFREG | (0o755 if executable else 0o644), data)
        if data.startswith(b'\x7fELF'):
            self.programs.append(str(path))

    def tree(self, path, name=None, without=()):
        path = Path(path)
        name = name or str(path)
        if name.strip('/') not in self.entries:
            self.add(name, stat.S_IFDIR | 0o755)
        for child in sorted(path.iterdir()):
            if any(child.match(pattern) for pattern in without):
                continue
            if child.is_dir():
                self.tree(child, f'{name}/{child.name}', without)
            elif child.exists():
                self.file(child, f'{name}/{child.name}')

    def libraries(self):
        """Add what the programs are linked with."""
        found = set()
        for program in self.programs:
            try:
                text = products.run('env', f'LD_LIBRARY_PATH={self.own}',
                                    'ldd', program)
            except LabError:
                continue                # a static program
            if missing := re.search(r'(\S+) => not found', text):
                raise LabError(f'{program}: {missing[1]} is not installed')
            found |= set(re.findall(r'(/\S+) \(0x', text))
        for path in sorted(found):
            if os.path.dirname(path) != self.own:
                self.file(path)

    def archive(self):
        return products.cpio([(name, *entry) for name, entry
                              in self.entries.items()])


def program(name, package):
    path = shutil.which(name, path='/usr/sbin:/usr/bin:/sbin:/bin')
    if not path:
        raise LabError(f'{name} is not installed (package {package})')
    return path


def test_programs(build):
    """Those that dev/tests names and that have been built."""
    names = re.findall(r'^(qtest-x86_64/)?([a-z][a-z0-9-]*)',
                       (ROOT / 'dev' / 'tests').read_text(), re.M)
    paths = [build / 'tests' / ('qtest' if qtest else 'unit') / name
             for qtest, name in names]
    return [p for p in paths if p.exists()]


def guests(command):
    """Those that COMMAND needs; one that is missing is booted in the VM."""
    cards = {1}
    if {'--all', '--only'} & set(command):
        cards |= {2, 8}
    elif '--cards' in command[:-1]:
        cards.add(int(command[command.index('--cards') + 1]))
    return [migrate.Conditions(cards=n) for n in sorted(cards)]


def add_libvirt(i):
    """What its hosts need (harness/libvirt.py)."""
    root = libvirt.unpacked()
    for name in 'usr', 'etc', 'var':
        i.tree(root / name, f'repo/.qemu/lab/libvirt/root/{name}',
               without=('doc', 'man', 'locale'))
        i.add(name, stat.S_IFDIR | 0o755)
    i.file(root.parent / 'packages', 'repo/.qemu/lab/libvirt/packages')
    i.own = str(next(root.glob('usr/lib/*/libvirt.so.0')).parent)
    i.file(ROOT / '.qemu/build/qemu-packet-helper',
           'repo/.qemu/build/qemu-packet-helper')
    i.add('usr/local', stat.S_IFDIR | 0o755)
    i.add('var/run', stat.S_IFLNK | 0o777, b'/run')
    i.add('etc/group', stat.S_IFREG | 0o644, b'root:x:0:\n')
    for name, package in FOR_LIBVIRT.items():
        i.file(program(name, package), f'usr/bin/{name}')


def image(command, extra, made):
    """The initramfs that runs COMMAND.  @extra: more files of the repository;
    @made: the directory with the lab's products"""
    i = Image()
    i.add('dev/console', stat.S_IFCHR | 0o600, device=os.makedev(5, 1))
    i.add('tmp', stat.S_IFDIR | 0o1777)
    i.add('etc/passwd', stat.S_IFREG | 0o644,      # tcpdump looks root up
          b'root:x:0:0::/:/bin/sh\n')
    i.file(ROOT / 'lab' / 'guest' / 'vm-init', 'init')
    for n, data in enumerate(products.modules_in_order(
            made / 'kernel' / 'modules', MODULES)):
        i.add(f'modules/{n}.ko', stat.S_IFREG | 0o644, data)

    i.file(program('busybox', 'busybox-static'), 'usr/bin/busybox')
    i.add('usr/bin/env', stat.S_IFLNK | 0o777, b'busybox')
    i.file('/bin/sh')
    for name, package in PROGRAMS.items():
        i.file(program(name, package), f'usr/bin/{name}')
    if not PYTHON.exists():
        raise LabError(f'{PYTHON} is not installed (package python3)')
    i.file(PYTHON)
    library = products.run(str(PYTHON), '-c', 'import sysconfig; '
                           'print(sysconfig.get_path("stdlib"))').strip()
    i.tree(library, without=NO_PYTHON)
    for path in (*products.FIRMWARE, ROMS):
        if os.path.isdir(path):
            i.tree(path, without=('*.elf', '*.lid', 'slof.bin', 'keymaps',
                                  'opensbi*', 'openbios*', 'QEMU,*'))

    qemu = Path(products.qemu_binary())
    build = ROOT / '.qemu' / 'build'
    i.file(qemu, 'repo/.qemu/build/qemu-system-x86_64')
    files = [p for p in (build / 'qemu-img', *test_programs(build),
                         ROOT / command[0]) if p.is_file()]
    for path in (*files, *(Path(name).resolve() for name in extra)):
        if not path.is_file():
            raise LabError(f'{path}: no such file')
        if path.is_relative_to(ROOT):
            i.file(path, f'repo/{path.relative_to(ROOT)}')
        elif path not in files:
            raise LabError(f'{path} is not below {ROOT}')
    i.tree(ROOT / 'lab', 'repo/lab', without=('__pycache__',))
    for name in (*products.NEEDED, *(
            name for c in guests(command) for name in migrate.booted_names(c))):
        if name in products.NEEDED or (made / name).exists():
            i.file(made / name, f'repo/.qemu/lab/{name}')
    if any('lab/libvirt' in word for word in command):
        add_libvirt(i)
    i.libraries()

    environment = {k: v for k, v in os.environ.items()
                   if k in ('LAB_QEMU_ARGS', 'LAB_ACCEL')}
    environment.update(
        LAB_IN_VM='1',
        QTEST_QEMU_BINARY='/repo/.qemu/build/qemu-system-x86_64',
        QTEST_QEMU_IMG='/repo/.qemu/build/qemu-img')
    text = ''.join(f'export {k}={shlex.quote(v)}\n'
                   for k, v in environment.items())
    i.add('environment', stat.S_IFREG | 0o644, text.encode())
    i.add('command', stat.S_IFREG | 0o644, shlex.join(command).encode())
    return i.archive()


# -- a run -------------------------------------------------------------------

class Port:
    """A serial port of the VM, which arrives at a socket of ours."""

    def __init__(self, name, directory):
        path = os.path.join(directory, name)
        self.arguments = ['-chardev', f'socket,id={name},path={path}',
                          '-serial', f'chardev:{name}']
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)

    def connect(self, child):
        self.socket = accept(self.listener, child, 20)
        self.listener.close()


def relay(console, stdout, child, log, limit, say):
    """Pass on what the VM says until it ends; it is told to when it has said
    nothing for LIMIT seconds.  Returns how fast its clock ran, about 1; 0 if it
    did not say, or ran for too short a time to tell."""
    text, clock, said = b'', [], 0
    # Its CPU time says nothing: whatever runs in it, its timer does, too
    patience, told = Patience(limit, lambda: said, None), False
    poll = select.poll()
    ports = {p.socket.fileno(): p for p in (console, stdout)}
    for fd in ports:
        poll.register(fd, select.POLLIN)
    while ports:
        if patience.over() and told:
            raise LabError(f'the VM does not end: {patience}; its console is '
                           f'in {log.name}')
        if patience.over():
            say(f'the command is ended: {patience} (--limit)')
            patience, told = Patience(END, lambda: said, None), True
        if told:                # again and again: it may not listen yet
            with contextlib.suppress(OSError):
                stdout.socket.sendall(b'\n')
        for fd, _ in poll.poll(patience.interval * 1000):
            try:
                data = os.read(fd, 65536)
            except ConnectionResetError:    # it has not read that line
                data = b''
            said += len(data)
            if not data:
                poll.unregister(fd)
                del ports[fd]
            elif ports[fd] is stdout:
                os.write(1, data)
            else:
                log.write(data)
                log.flush()
                os.write(2, data.replace(b'\r', b''))
                text = text[-100:] + data
                if (found := CLOCK.findall(text)) and \
                        float(found[-1]) not in (at for _, at in clock):
                    clock.append((time.monotonic(), float(found[-1])))
    child.wait(20)
    if len(clock) != 2:
        return 0
    (begin, a), (end, b) = clock
    # On a busy machine its words are late, now more, now less
    return (b - a) / (end - begin) if end - begin > 10 else 0


def bring_out(disk, log):
    """Unpack what came out.  Returns the command's exit status."""
    status = None
    try:
        with tarfile.open(disk) as tar:
            for member in tar:
                name = os.path.normpath(member.name)
                if not member.isfile() or name.startswith(('/', '..')):
                    continue
                data = tar.extractfile(member).read()
                if name == 'status':
                    status = int(data)
                    continue
                path = ROOT / '.qemu' / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except tarfile.TarError:
        pass
    if status is None:
        raise LabError(f'the VM ended before COMMAND did; its console is in '
                       f'{log}')
    return status


def run(command, limit=LIMIT, accel=ACCEL, memory=MEMORY, extra=(),
        say=lambda line: None):
    """Run COMMAND (a list) in a new VM, until it ends or has said nothing for
    LIMIT seconds."""
    made = products.build(say).resolve()
    logs = made / 'vm'
    logs.mkdir(exist_ok=True)
    if not why_not():           # a guest boots 20 times as fast out here
        for c in guests(command):
            migrate.booted(c, logs / 'boot', say)
    remove_stale()
    me = os.getpid()
    directory = tempfile.mkdtemp(prefix=f'{PREFIX}-{me}-{start_time(me)}-')
    child = None
    try:
        initramfs, disk = (os.path.join(directory, name)
                           for name in ('initramfs', 'disk'))
        Path(initramfs).write_bytes(image(command, extra, made))
        with open(disk, 'wb') as f:
            f.truncate(DISK)
        console, stdout = Port('console', directory), Port('stdout', directory)
        child = Child('the VM', [
            products.qemu_binary(), *products.firmware_options(),
            '-nodefaults', '-no-user-config', '-display', 'none',
            '-no-reboot', '-M', 'q35', '-cpu', 'max', '-accel', accel,
            '-smp', '2', '-m', str(memory),
            '-kernel', str(made / 'kernel' / 'vmlinuz'), '-initrd', initramfs,
            '-append', 'console=ttyS0 quiet panic=-1 reboot=t '
            'mitigations=off tsc=reliable ipv6.disable=1',
            '-drive', f'if=none,id=out,format=raw,file={disk}',
            '-device', 'virtio-blk-pci,drive=out',
            *console.arguments, *stdout.arguments], logs / 'qemu.log')
        console.connect(child)
        stdout.connect(child)
        with open(logs / 'console', 'wb') as log:
            rate = relay(console, stdout, child, log, limit, say)
        status = bring_out(disk, logs / 'console')
        if rate and not 0.9 < rate < 1.1:
            raise LabError(f"the VM's clock ran {rate:.2f} times as fast as it "
                           f'should: no time measured in it is valid, try '
                           f'again')
        return status
    finally:
        if child:
            child.close()
        shutil.rmtree(directory, ignore_errors=True)
