# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run needs besides QEMU: the guest's kernel and initramfs, and the
programs stream and bulk.

The kernel is the one that Debian's linux-image-cloud-amd64 depends on, fetched
by apt and unpacked, never installed.  The initramfs holds three static programs
of ours, init, stream and bulk, and the virtio modules in an order that loads:
each after the modules it depends on, as its own .modinfo section names them.

Everything is kept in one directory (LAB_DIR, else .qemu/lab) and made again
when a source file changes.  A machine without compiler or apt, such as a VM
that boots from an initramfs, can use a copy of the files NEEDED from there.
"""
import hashlib
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from . import LabError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / 'lab' / 'guest'
PROGRAMS = ('init', 'stream', 'bulk')
# What a machine without compiler or apt needs of what build() makes
NEEDED = ('stamp', 'initramfs', 'stream', 'bulk', 'kernel/release',
          'kernel/vmlinuz')
METAPACKAGE = 'linux-image-cloud-amd64'
MODULES = ('virtio_pci', 'virtio_net')
# Packages seabios, qemu-system-data.  A QEMU in its build directory does not
# look at its --firmwarepath, but in the build directory alone.
FIRMWARE = ('/usr/share/seabios', '/usr/share/qemu')


def directory():
    """Where the lab keeps what it makes."""
    return Path(os.environ.get('LAB_DIR') or ROOT / '.qemu' / 'lab')


def qemu_binary():
    path = Path(os.environ.get('LAB_QEMU')
                or ROOT / '.qemu' / 'build' / 'qemu-system-x86_64')
    if not os.access(path, os.X_OK):
        raise LabError(f'{path}: no QEMU here; run "make build", or set '
                       f'LAB_QEMU to a qemu-system-x86_64')
    return str(path.resolve())


def firmware_options():
    return [arg for path in FIRMWARE if os.path.isdir(path)
            for arg in ('-L', path)]


def build(say=lambda line: None):
    """Make what is missing or out of date.  Returns the directory, which
    then holds the files NEEDED."""
    out = directory()
    kernel = out / 'kernel'
    out.mkdir(parents=True, exist_ok=True)
    if not (kernel / 'release').exists():
        say(f'fetching the guest kernel ({METAPACKAGE})')
        fetch_kernel(kernel)

    inputs = sorted(SOURCES.glob('*.[ch]')) + [Path(__file__), kernel / 'release']
    digest = hashlib.sha256(b''.join(p.read_bytes() for p in inputs))
    stamp = out / 'stamp'
    if not (stamp.exists() and stamp.read_text() == digest.hexdigest()):
        say('building the guest')
        stamp.unlink(missing_ok=True)
        for name in PROGRAMS:
            compile_static(SOURCES / f'{name}.c', out / name)
        (out / 'initramfs').write_bytes(initramfs(out, kernel / 'modules'))
        stamp.write_text(digest.hexdigest())
    return out


def run(*command, cwd=None, way_out=''):
    try:
        return subprocess.run(command, cwd=cwd, check=True, text=True,
                              capture_output=True).stdout
    except FileNotFoundError:
        raise LabError(f'{command[0]}: not installed {way_out}') from None
    except subprocess.CalledProcessError as e:
        raise LabError(f'{" ".join(map(str, command))}: '
                       f'{e.stderr.strip()} {way_out}') from None


# -- the kernel --------------------------------------------------------------

def fetch_kernel(out):
    """Leaves vmlinuz, modules/ and release (the kernel's version) in OUT."""
    depends = run('apt-cache', 'depends', METAPACKAGE,
                  way_out='(needed to find the guest kernel)')
    found = re.search(r'Depends: (linux-image-\S+)', depends)
    if not found:
        raise LabError(f'apt knows no kernel behind {METAPACKAGE}; '
                       f'run "apt-get update"')
    package = found.group(1)

    scratch = out.with_name('kernel.new')
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / 'x').mkdir(parents=True)
    run('apt-get', '-o', 'APT::Sandbox::User=root', 'download', package,
        cwd=scratch, way_out='(run "apt-get update" and try again)')
    deb, = scratch.glob('*.deb')
    run('dpkg-deb', '-x', str(deb), str(scratch / 'x'))
    vmlinuz, = (scratch / 'x' / 'boot').glob('vmlinuz-*')
    modules, = scratch.glob('x/**/lib/modules/*')
    vmlinuz.rename(scratch / 'vmlinuz')
    (modules / 'kernel').rename(scratch / 'modules')
    (scratch / 'release').write_text(f'{deb.name}\n')
    shutil.rmtree(scratch / 'x')
    deb.unlink()
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


def module_data(path):
    if path.suffix == '.xz':
        import lzma             # not every Python has it, nor needs it
        return lzma.decompress(path.read_bytes())
    return path.read_bytes()


def modules_in_order(tree, wanted):
    """The contents of the WANTED modules and all they depend on, in an order
    that loads.  A module that the kernel has built in is left out."""
    files = {p.name.split('.ko')[0].replace('-', '_'): p
             for p in tree.rglob('*.ko*')}
    order, seen = [], set()

    def visit(name):
        if name in seen or name not in files:
            return
        seen.add(name)
        data = module_data(files[name])
        depends = re.search(rb'\0depends=([^\0]*)\0', data).group(1).decode()
        for other in filter(None, depends.split(',')):
            visit(other.replace('-', '_'))
        order.append(data)

    for name in wanted:
        visit(name)
    return order


# -- the initramfs -----------------------------------------------------------

def compile_static(source, program):
    run('cc', '-O2', '-Wall', '-static', '-o', str(program), str(source),
        '-lnettle',
        way_out='(the guest needs the packages gcc, libc6-dev and nettle-dev)')
    run('strip', str(program))


def cpio(entries):
    """A newc archive of (name, mode, data, device) entries."""
    out = bytearray()
    for ino, (name, mode, data, device) in enumerate(
            list(entries) + [('TRAILER!!!', 0, b'', 0)], 1):
        fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0,
                  os.major(device), os.minor(device), len(name) + 1, 0)
        out += b'070701' + b''.join(b'%08X' % f for f in fields)
        out += name.encode() + b'\0'
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs(programs, modules):
    entries = [('dev', stat.S_IFDIR | 0o755, b'', 0),
               ('dev/console', stat.S_IFCHR | 0o600, b'', os.makedev(5, 1)),
               ('modules', stat.S_IFDIR | 0o755, b'', 0)]
    entries += [(name, stat.S_IFREG | 0o755, (programs / name).read_bytes(), 0)
                for name in PROGRAMS]
    entries += [(f'modules/{i}.ko', stat.S_IFREG | 0o644, data, 0)
                for i, data in enumerate(modules_in_order(modules, MODULES))]
    return cpio(entries)
