# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with a real libvirt, in namespaces of its own (mount, net, pid, uts).

libvirt is Debian's, of this release or, if that has none that is new enough, of
its backports.  Its packages, and the libraries that they want and this machine
has not, are fetched by apt and unpacked, never installed: they would bring
Debian's QEMU along, and start daemons.

A host sees this machine's files, with libvirt's in between, and writes to a
tmpfs:

    /usr  /etc  /var    overlays: a tmpfs, libvirt's files, this machine's
    /usr/local          this build, as after "make install" (transcript.py)
    /run                a tmpfs, with libvirt's sockets

In the VM of lab/vm QEMU is confined by AppArmor, with the profiles of Debian's
packages; each host has a policy namespace, so that both can have the profile of
a domain that is migrated.  APPARMOR_RULES is what they lack for an emulator in
/usr/local.

Process 1 of the host starts libvirtd, ends when that ends, and waits for the
QEMUs that libvirt leaves to it: there is no systemd and no D-Bus.  What of the
configuration is due to this, or to a machine that is a container, is CONTAINER;
with real hosts it is not needed.  Everything else is libvirt's default.
"""
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from . import LabError, products, transcript
from .patience import Patience, children, cpu_time
from .products import ROOT
from .system import LINK_ADDRESS, libc

PACKAGES = ('libvirt0', 'libvirt-common', 'libvirt-daemon',
            'libvirt-daemon-common', 'libvirt-daemon-driver-qemu',
            'libvirt-clients')
LEAST = '11'                    # older ones do not know such a QEMU
ANY_VERSION = ('python3-libvirt', 'apparmor')
USER = 'libvirt-qemu'           # Debian's package makes it, with this number
USER_ID = 64055
PR_SET_CHILD_SUBREAPER = 36

CONTAINER = '''cgroup_controllers = []
namespaces = []
stdio_handler = "file"
'''
QEMU = '/usr/local/bin/qemu-system-x86_64'
APPARMOR = Path('/etc/apparmor.d')
APPARMOR_RULES = {'local/usr.sbin.libvirtd': f'{QEMU} PUx,\n',
                  'abstractions/libvirt-qemu.d/emulator':
                      f'{QEMU} rmix,\n@{{PROC}}/@{{pid}}/net/dev r,\n'}
# But for /etc/apparmor.d/libvirt, where libvirt leaves a domain's profile
FILES = ('/etc/libvirt', '/run/libvirt', '/var/lib/libvirt')
LOGS = '/var/log/libvirt/qemu'


# -- libvirt's files ---------------------------------------------------------

def apt(*args, suite=None, cwd=None):
    if suite:
        command = [str(ROOT / 'dev' / 'apt-suite'), suite, 'deb']
    else:
        command = ['apt-get', '-o', 'APT::Sandbox::User=root']
    return products.run(*command, *args, cwd=cwd,
                        way_out='(libvirt for the lab)')


def candidate(package):
    """The version that apt would install."""
    m = re.search(r'Candidate: (\d\S*)',
                  products.run('apt-cache', 'policy', package))
    return m[1] if m else ''


def is_installed(package):
    r = subprocess.run(['dpkg-query', '-W', '-f', '${db:Status-Status}',
                        package], capture_output=True, text=True)
    return r.stdout == 'installed'


def libraries(debs):
    """The libraries that DEBS depend on, and which are not here."""
    names = set()
    for deb in debs:
        depends = products.run('dpkg-deb', '-f', str(deb), 'Depends')
        names |= set(re.findall(r'(?:^|, )(lib[^ ,|]+)', depends))
    return sorted(name for name in names
                  if not name.startswith('libvirt') and
                  not is_installed(name.split(':')[0]))


def fetch(scratch):
    """All packages, in SCRATCH; what depends on libraries is asked again for
    their dependencies."""
    suite = None
    version = candidate(PACKAGES[0])
    if not version or subprocess.run(['dpkg', '--compare-versions', version,
                                      'ge', LEAST]).returncode:
        release = re.search(r'^VERSION_CODENAME=(\S+)',
                            Path('/etc/os-release').read_text(), re.M)
        suite = f'{release[1] if release else "stable"}-backports'
        apt('update', suite=suite)
    apt('download', *PACKAGES, suite=suite, cwd=scratch)
    apt('download', *ANY_VERSION, cwd=scratch)
    known = set()
    while missing := set(libraries(scratch.glob('*.deb'))) - known:
        apt('download', *sorted(missing), cwd=scratch)
        known |= missing


def unpacked(say=lambda line: None):
    """The directory with libvirt's files, made if missing."""
    out = products.directory().resolve() / 'libvirt'
    done = out / 'packages'
    names = [line.partition('_')[0] for line in
             (done.read_text().splitlines() if done.exists() else ())]
    if {*PACKAGES, *ANY_VERSION} <= set(names):
        return out / 'root'
    say('fetching libvirt')
    scratch = out.with_name('libvirt.new')
    shutil.rmtree(scratch, ignore_errors=True)
    root = scratch / 'root'
    for name in 'bin', 'sbin', 'lib', 'lib64':      # /usr is merged
        (root / 'usr' / name).mkdir(parents=True)
        (root / name).symlink_to(f'usr/{name}')
    fetch(scratch)
    debs = sorted(scratch.glob('*.deb'))
    for deb in debs:
        products.run('sh', '-c', 'dpkg-deb --fsys-tarfile "$1" | '
                     'tar -x --keep-directory-symlink -C "$2"',
                     'sh', str(deb), str(root))
        deb.unlink()
    (scratch / 'packages').write_text(
        ''.join(f'{deb.name}\n' for deb in debs))
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)
    return out / 'root'


def why_not():
    """None where a host can be made, else the reason."""
    if 'overlay' not in Path('/proc/filesystems').read_text().split():
        return 'no overlay file systems here (modprobe overlay)'
    if not (shutil.which('apt-get') or os.environ.get('LAB_IN_VM')):
        return 'libvirt is fetched by apt-get, which is missing'
    return None


def why_not_apparmor():
    """None where a host's libvirt confines QEMU by it, else the reason."""
    enabled = Path('/sys/module/apparmor/parameters/enabled')
    if not os.environ.get('LAB_IN_VM'):
        return "not in the VM of lab/vm: this machine's kernel is left alone"
    if not enabled.exists() or enabled.read_text().strip() != 'Y':
        return "the VM's kernel has no AppArmor, or it is off"
    return None


# -- inside a host -----------------------------------------------------------

def add_user():
    for path, line in (
            ('/etc/passwd', f'{USER}:x:{USER_ID}:{USER_ID}::/var/lib/libvirt:'
                            '/usr/sbin/nologin'),
            ('/etc/group', f'{USER}:x:{USER_ID}:')):
        path = Path(path)
        if not re.search(f'^{USER}:', path.read_text(), re.M):
            with path.open('a') as f:
                f.write(line + '\n')


def open_device(path):
    """Let every user of this host use a device, as udev's rules have it.  Of a
    /dev/kvm that QEMU may not open libvirt asks QEMU again and again.
    /dev/userfaultfd is for postcopy, in place of the sysctl
    vm.unprivileged_userfaultfd that libvirt's package sets on the machine."""
    if os.path.exists(path):
        number = os.stat(path).st_rdev
        node = f'/run/{os.path.basename(path)}'
        os.mknod(node, stat.S_IFCHR, number)
        os.chmod(node, 0o666)
        transcript.mount('--bind', node, path)


def use_apparmor():
    """Be in a policy namespace, with libvirt's profiles."""
    security = Path('/sys/kernel/security')
    transcript.mount('-t', 'securityfs', 'securityfs', security)
    name = socket.gethostname()
    (security / 'apparmor/policy/namespaces' / name).mkdir(exist_ok=True)
    Path('/proc/self/attr/current').write_text(
        f'changeprofile :{name}://unconfined')
    for file, rule in APPARMOR_RULES.items():
        (APPARMOR / file).parent.mkdir(exist_ok=True)
        (APPARMOR / file).write_text(rule)
    # The same policy, compiled in half the time; libvirt does it for each file
    with open('/etc/apparmor/parser.conf', 'a') as f:
        f.write('Optimize=no-expr-simplify\n')
    subprocess.run(['apparmor_parser', '--replace', *APPARMOR.glob('usr.*')],
                   check=True)
    # /dev/userfaultfd is not in the profiles
    Path('/proc/sys/vm/unprivileged_userfaultfd').write_text('1')


def prepare(root, conf=''):
    """Turn the namespaces that we are in into a host whose libvirt has its
    files in ROOT.  /run is a tmpfs of ours.  CONF: more lines of qemu.conf"""
    mount = transcript.mount
    upper = Path('/run/upper')
    for name in 'usr', 'etc', 'var':
        for directory in upper / name, upper / f'{name}.work':
            directory.mkdir(parents=True)
        mount('-t', 'overlay', '-o', f'lowerdir={root}/{name}:/{name},'
              f'upperdir={upper / name},workdir={upper / name}.work',
              'overlay', f'/{name}')
    transcript.as_installed()
    # A copy: it can be given capabilities
    subprocess.run(['umount', QEMU], check=True)
    shutil.copy(products.qemu_binary(), QEMU)
    add_user()
    open_device('/dev/kvm')
    if why_not_apparmor():
        open_device('/dev/userfaultfd')
        conf += 'security_driver = "none"\n'
    else:
        use_apparmor()
    Path('/etc/libvirt/qemu.conf').write_text(CONTAINER + conf)
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)


def run_libvirtd():
    """Until it ends.  All that it leaves to us is waited for."""
    libvirtd = subprocess.Popen(['libvirtd'])
    while True:
        pid, status = os.wait()
        if pid == libvirtd.pid:
            sys.exit(os.waitstatus_to_exitcode(status) or 'libvirtd has ended')


def serve(name, sockets, conf, address, peer):
    """Be the process 1 of the host NAME: never returns.  SOCKETS: a directory
    for those of libvirt; ADDRESS and PEER: they get the names own and peer"""
    transcript.mount('--make-rprivate', '/')
    transcript.mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', '/run')
    socket.sethostname(name)
    prepare(unpacked(), conf)
    boot = Path('/var/lib/libvirt/boot')
    for file in 'kernel/vmlinuz', 'initramfs':      # libvirt changes the owner
        shutil.copy(products.directory() / file, boot)
    with open('/etc/hosts', 'a') as f:
        f.write(f'{address} {name} own\n{peer} peer\n')
    Path('/run/libvirt').mkdir()
    Path('/run/libvirt/libvirt-sock').symlink_to(f'{sockets}/libvirt-sock')
    Path('/etc/libvirt/libvirtd.conf').write_text(
        f'unix_sock_dir = "{sockets}"\nlog_outputs = "1:stderr"\n'
        # Also the states of a migration
        'log_filters = "1:qemu.qemu_process 3:*"\n')
    run_libvirtd()


def here():
    """Have a libvirtd in the namespaces that we are in, such as a transcript's;
    returns when it can be used."""
    prepare(unpacked())
    if not (pid := os.fork()):
        os.setsid()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        for fd in 0, 1, 2:          # the transcript waits for their end
            os.dup2(os.open('/run/libvirtd.log',
                            os.O_RDWR | os.O_CREAT | os.O_APPEND), fd)
        run_libvirtd()
    patience = Patience(30, lambda: cpu_time(pid))
    while subprocess.run(['virsh', 'uri'], capture_output=True).returncode:
        if patience.over():
            raise LabError(f'libvirtd does not answer: {patience}: '
                           + Path('/run/libvirtd.log').read_text()[-800:])
        time.sleep(0.1)


# -- from outside ------------------------------------------------------------

class Host:
    """A host of SYSTEM, with a libvirt."""

    def __init__(self, system, name, logs, conf=''):
        self.system, self.name, self.logs = system, name, Path(logs)
        self.sockets = Path(system.tmp) / name
        self.sockets.mkdir()
        self.log = self.logs / f'libvirt-{name}.log'
        self.child = system.start(
            f'libvirt on host {name}', name,
            ['unshare', '--mount', '--uts', '--pid', '--fork', '--kill-child',
             '--mount-proc', sys.executable, str(ROOT / 'lab' / 'libvirt'),
             '--host', name, str(self.sockets), conf, LINK_ADDRESS[name],
             LINK_ADDRESS['b' if name == 'a' else 'a']],
            str(self.log))
        self.uri = f'qemu+unix:///system?socket={self.sockets}/libvirt-sock'
        self.init = None
        patience = Patience(30, self.child.progress)
        while True:
            try:
                self.init = self.init or self.first_process()
                self.virsh('uri')
                break
            except LabError:
                self.child.check()
                if patience.over():
                    raise
                time.sleep(0.1)
        # libvirtd, not QEMUs
        self.daemon = self.processes('libvirtd')[0]

    def first_process(self):
        pid = self.child.process.pid
        found = children(pid)
        if not found:
            raise LabError(f'{self.child.name}: has no process')
        return found[0]

    def run(self, *argv, check=True, text=None):
        """Run something on this host; what it says."""
        what = f'host {self.name}: {" ".join(map(str, argv))}'
        with subprocess.Popen(
                ['nsenter', f'--target={self.init}', '--mount', '--uts',
                 '--net', '--pid', '--', *map(str, argv)], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env={**os.environ, 'LC_ALL': 'C'}) as p:
            patience = Patience(120, lambda: (self.system.progress(),
                                              cpu_time(p.pid)))
            while True:
                try:
                    out, err = p.communicate(text, patience.interval)
                    break
                except subprocess.TimeoutExpired:
                    if patience.over():
                        p.kill()
                        raise LabError(f'{what}: {patience}') from None
        if check and p.returncode:
            raise LabError(f'{what}: {(err or out).strip()}')
        return out

    def virsh(self, *argv, **more):
        return self.run('virsh', '-q', *argv, **more)

    def hmp(self, domain, command):
        return self.virsh('qemu-monitor-command', domain, '--hmp', command)

    def define(self, xml):
        self.run('sh', '-c', 'cat > /run/domain.xml', text=xml)
        self.virsh('define', '/run/domain.xml')

    def remove(self, domain):
        self.virsh('destroy', domain)
        self.virsh('undefine', domain)

    def processes(self, pattern):
        """Ids, as we see them, of this host's processes with such a command
        line."""
        found = []
        for pid in self.system.pids(self.name):
            try:
                line = Path(f'/proc/{pid}/cmdline').read_bytes()
            except OSError:
                continue
            if re.search(pattern.encode(), line.replace(b'\0', b' ')):
                found.append(pid)
        return found

    def qemu(self, domain):
        found = self.processes(f'guest={domain},')
        if len(found) != 1:
            raise LabError(f'host {self.name}: domain {domain} has '
                           f'{len(found)} QEMUs')
        return found[0]

    def traces(self):
        """What a domain must not leave behind: names of all that is here."""
        files = {str(path) for top in FILES for path in
                 Path(f'/proc/{self.init}/root{top}').rglob('*')}
        links = re.findall(r'^\d+: ([^:@]+)',
                           self.system.ip(self.name, '-o', 'link'), re.M)
        packet_sockets = self.run('cat', '/proc/net/packet').splitlines()[1:]
        fds = sorted(os.readlink(f'/proc/{self.daemon}/fd/{fd}')
                     for fd in os.listdir(f'/proc/{self.daemon}/fd'))
        return {'files': sorted(files), 'interfaces': sorted(links),
                'packet sockets': packet_sockets,
                'fds of libvirtd': [re.sub(r':\[\d+\]', '', fd) for fd in fds],
                'QEMUs': self.processes('^/usr/local/bin/qemu-system')}

    def left(self, before):
        """What is here now and was not BEFORE, as text; empty if nothing.
        libvirt closes some of its own files a moment later."""
        patience = Patience(5, self.system.progress)
        while True:
            now = self.traces()
            if now == before or patience.over():
                break
            time.sleep(0.1)
        differences = []
        for kind in before:
            more = list(now[kind])
            for item in before[kind]:
                if item in more:
                    more.remove(item)
            differences += [f'{kind}: {item}' for item in more]
        return '; '.join(differences)

    def logs_here(self):
        """The directory with the messages and consoles of all domains."""
        return Path(f'/proc/{self.init}/root{LOGS}')

    def messages(self, domain):
        """Of all its QEMUs that have run on this host."""
        path = self.logs_here() / f'{domain}.log'
        return path.read_text(errors='replace') if path.exists() else ''

    def save_logs(self):
        """Keep the messages and consoles of all domains."""
        if not self.init:
            return
        for path in self.logs_here().glob('*.log'):
            shutil.copy(path, self.logs / f'libvirt-{self.name}-{path.name}')
