# SPDX-License-Identifier: GPL-2.0-or-later
"""Transcripts in the manual: typed again, and compared with what comes out.

A transcript is a code block of a page in docs/system of the QEMU tree, behind
a comment that gives it a name:

    .. transcript: helper

    .. code-block:: console

       host# ip link set tap0 up
       vm$ qemu-system-x86_64 -M none -monitor stdio \\
       >   -nodefaults
       QEMU 10.2.2 monitor - type 'help' for more information
       vm(qemu) info status
       VM status: running

What is typed begins with the terminal that it is typed in, and with who reads
it; all else is output, and empty lines are for the reader of the page:

    NAME#        a shell of root's
    NAME$        a shell of the user USER, who has no privileges
    NAME(qemu)   the QEMU that was started in terminal NAME, with its monitor
    >            what is typed goes on, behind a backslash

No wait is by the clock: a shell and a monitor say when they are ready.  What
happens meanwhile elsewhere can be asked for: an `info` of a monitor, or of one
that virsh asks, is typed again until it gives the output of the page, for up to REPEAT
seconds.  (When the page is written, it is what it gives after these.)

Each transcript has a stage of its own, in namespaces (mount, net, pid), which
disappears with all that runs there.  On it /usr/local is as after `make
install` of the build: QEMU and qemu-packet-helper, and no configuration.
lab/transcripts/NAME, if it exists, is a shell script that prepares what the
reader has and does not type; root runs it there before the first line, in the
directory in which all terminals begin.  It finds the build in $BUILD.

Two outputs are the same if VOLATILE makes the same of them.
"""
import difflib
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import LabError
from .patience import Patience, children, cpu_time
from .products import ROOT

TREE = ROOT / '.qemu' / 'src'
BUILD = ROOT / '.qemu' / 'build'
PAGES = 'docs/system/*.rst'
SETUPS = ROOT / 'lab' / 'transcripts'

USER = 65534                    # nobody: has no files, and is in no group
LIMIT = 30                      # seconds without progress, for one line
REPEAT = 10                     # seconds until an `info` is as it should be
DONE = b'\x1e'                  # said by a shell that is ready
PROMPT = b'(qemu) '             # said by a monitor that is
ASKS = "--hmp 'info "            # an `info` through virsh

BEGIN = re.compile(r'( *)\.\. transcript: (\S+)$')
TYPED = re.compile(r'(\w+)(#|\$|\(qemu\)) (.*)$')

# What differs from one run to the next, and by what it is replaced before
# outputs are compared.
VOLATILE = [(re.compile(pattern, re.M), to) for pattern, to in (
    (r'^QEMU \d+(\.\d+)+( \([^)]*\))? monitor', 'QEMU VERSION monitor'),
    (r'^\d+: =', 'PID: ='),     # getpcaps
)]


# -- pages -------------------------------------------------------------------

class Step:
    """One line that is typed, as it stands in the page, and its output."""

    def __init__(self, terminal, kind, typed):
        self.terminal, self.kind = terminal, kind
        self.typed = [typed]            # lines
        self.output = []
        self.gap = 0                    # empty lines behind it

    def command(self):
        """The lines joined, as a shell does it."""
        return ''.join(line.removesuffix('\\') for line in self.typed)

    def lines(self, output):
        first, *more = self.typed
        return [f'{self.terminal}{self.kind} {first}',
                *('> ' + line for line in more), *output, *[''] * self.gap]


class Transcript:
    """A block of a page: lines [first, last) of it, indented by indent."""

    def __init__(self, name, page, first, last, indent, lines):
        self.name, self.page = name, page
        self.first, self.last, self.indent = first, last, indent
        self.steps = []
        for number, line in enumerate(lines, first + 1):
            where = f'{page.name}:{number}'
            step = self.steps[-1] if self.steps else None
            if m := TYPED.match(line):
                self.steps.append(Step(*m.groups()))
            elif not step:
                raise LabError(f'{where}: output before anything was typed')
            elif step.typed[-1].endswith('\\') and not step.output:
                if not line.startswith('> '):
                    raise LabError(f'{where}: a line that begins with "> " '
                                   'must follow a backslash')
                step.typed.append(line[2:])
            elif line:
                step.output += [''] * (step.gap if step.output else 0) + [line]
                step.gap = 0
            else:
                step.gap += 1


def read_page(page):
    """The transcripts of PAGE, by name."""
    found = {}
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines):
        if not (m := BEGIN.match(line)):
            continue
        indent, name = len(m[1]) + 3, m[2]
        first = i + 1
        while first < len(lines) and (
                not lines[first] or
                lines[first].lstrip().startswith(('.. code-block', ':'))):
            first += 1
        last = first
        while last < len(lines) and (not lines[last] or
                                     lines[last].startswith(' ' * indent)):
            last += 1
        while last > first and not lines[last - 1]:
            last -= 1
        if last == first or name in found:
            raise LabError(f'{page.name}:{i + 1}: transcript {name} ' +
                           ('is there twice' if name in found else 'is empty'))
        found[name] = Transcript(name, page, first, last, indent,
                                 [s[indent:] for s in lines[first:last]])
    return found


def transcripts():
    """Those of all pages, by name."""
    return {name: t for page in sorted(TREE.glob(PAGES))
            for name, t in read_page(page).items()}


def rewrite(transcript, outputs):
    """Put what has come out into the page."""
    new = []
    for step, output in zip(transcript.steps, outputs):
        new += step.lines(output)
    while not new[-1]:
        new.pop()
    lines = transcript.page.read_text().splitlines()
    lines[transcript.first:transcript.last] = [
        (' ' * transcript.indent + s).rstrip() for s in new]
    transcript.page.write_text('\n'.join(lines) + '\n')


# -- terminals ---------------------------------------------------------------

def screen(data):
    """What a terminal shows of DATA: lines, without the empty ones around."""
    lines, line, column = [], [], 0
    for m in re.finditer(r'\x1b\[(\d*)([A-Za-z])|(.)', data, re.S):
        count, letter, c = m.groups()
        if letter == 'D' or c == '\b':
            column = max(column - int(count or 1), 0)
        elif letter == 'C':
            column += int(count or 1)
        elif letter == 'K':
            del line[column:]
        elif c == '\r':
            column = 0
        elif c == '\n':
            lines.append(''.join(line).rstrip())
            line, column = [], 0
        elif c and c >= ' ':
            line[column:column + 1] = [' '] * (column - len(line)) + [c]
            column += 1
    lines.append(''.join(line).rstrip())
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def busy():
    """CPU time of all that has been typed"""
    return cpu_time(*children(os.getpid()))


class Terminal:
    """A shell, and what runs in its foreground, with pipes to both."""

    LOOP = ('while IFS= read -r line; do eval "$line"; '
            f"printf '\\x{DONE[0]:02x}'; done")

    def __init__(self, name, kind, directory):
        become = [] if kind == '#' else [
            'setpriv', f'--reuid={USER}', f'--regid={USER}', '--clear-groups',
            '--inh-caps=-all']
        self.name = name
        self.process = subprocess.Popen(
            [*become, 'bash', '--norc', '-c', self.LOOP], cwd=directory,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={
                'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:'
                        '/sbin:/bin',
                'HOME': directory, 'LC_ALL': 'C', 'TERM': 'dumb'})
        self.monitor = False            # does one wait for a line?
        self.said = []

    def type(self, command):
        """Everything that comes out until the terminal is ready again."""
        self.process.stdin.write(command.encode() + b'\n')
        self.process.stdin.flush()
        data = b''
        patience = Patience(LIMIT, lambda: (len(data), busy()))
        while not data.endswith((DONE, PROMPT)):
            if not select.select([self.process.stdout], [], [],
                                 patience.interval)[0]:
                if patience.over():
                    raise LabError(f'{self.name}: no end of "{command}": '
                                   f'{patience}; so far: {data!r}')
                continue
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise LabError(f'{self.name}: the shell has ended; said: '
                               f'{data!r}')
            data += more
        echo = self.monitor
        self.monitor = data.endswith(PROMPT)
        data = data.removesuffix(DONE).removesuffix(PROMPT)
        lines = screen(data.decode(errors='replace'))
        # A monitor shows what was typed, a shell does not
        return lines[1:] if echo and lines else lines


# -- the stage: what follows runs in namespaces of its own --------------------

def mount(*args):
    subprocess.run(['mount', *map(str, args)], check=True)


def as_installed():
    """/usr/local with this build, and with what else was there before."""
    local = Path('/usr/local')
    keep = Path(tempfile.mkdtemp(dir='/run'))
    mount('--bind', local, keep)
    mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', local)
    for child in keep.iterdir():
        new = local / child.name
        if child.is_symlink():
            new.symlink_to(os.readlink(child))
        elif child.is_dir() and child.name not in ('bin', 'libexec', 'etc'):
            new.mkdir()
            mount('--rbind', child, new)
    for name in 'bin', 'libexec', 'etc/qemu':
        (local / name).mkdir(parents=True)
    qemu = local / 'bin' / 'qemu-system-x86_64'
    qemu.touch()
    mount('--bind', BUILD / qemu.name, qemu)
    # A copy: it can be given capabilities
    shutil.copy(BUILD / 'qemu-packet-helper', local / 'libexec')


def build_stage(name, directory):
    mount('--make-rprivate', '/')
    mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', '/run')
    as_installed()
    if not os.stat('/dev/net/tun').st_mode & stat.S_IWOTH:
        # As udev has it.  Here it is for root alone.
        mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', '/dev/net')
        os.mknod('/dev/net/tun', stat.S_IFCHR | 0o600, os.makedev(10, 200))
        os.chmod('/dev/net/tun', 0o666)
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    # The kernel's own packets would come at any time
    for conf in Path('/proc/sys/net/ipv6/conf').glob('*/disable_ipv6'):
        conf.write_text('1')
    if (SETUPS / name).exists():
        subprocess.run(['bash', '-e', SETUPS / name], cwd=directory,
                       check=True, stdout=sys.stderr,
                       env={**os.environ, 'BUILD': str(BUILD)})


def same(output, expected):
    def canonical(lines):
        text = '\n'.join(line for line in lines if line)
        for pattern, to in VOLATILE:
            text = pattern.sub(to, text)
        return text
    return canonical(output) == canonical(expected)


def perform(steps, directory, write):
    """What comes out of each step."""
    terminals, outputs = {}, []
    for step in steps:
        command = step.command()
        terminal = terminals.get(step.terminal)
        if not terminal:
            terminal = terminals[step.terminal] = Terminal(
                step.terminal, step.kind, directory)
        if terminal.monitor != (step.kind == '(qemu)'):
            raise LabError('\n'.join([
                f'{step.terminal}{step.kind} {command}: there is ' +
                ('a monitor' if terminal.monitor else 'a shell') +
                ' in this terminal, which said', *terminal.said]))
        output = terminal.type(command)
        asks = (command.startswith('info ') if terminal.monitor else
                ASKS in command)
        # What is to be written is what stays
        patience = Patience(REPEAT, lambda: output if write else busy())
        while asks and not patience.over() and (
                write or not same(output, step.output)):
            time.sleep(0.1)
            output = terminal.type(command)
        terminal.said = output
        outputs.append(output)
    return outputs


def inside(name, directory, write):
    """On the stage of NAME: print what comes out of its steps, as JSON."""
    build_stage(name, directory)
    print(json.dumps(perform(transcripts()[name].steps, directory, write)))


# -- from outside --------------------------------------------------------------

def run(name, write):
    """The outputs of the steps of transcript NAME."""
    directory = tempfile.mkdtemp(prefix='transcript-')
    os.chmod(directory, 0o777)
    try:
        p = subprocess.run(
            ['unshare', '--mount', '--net', '--pid', '--fork', '--kill-child',
             '--mount-proc', sys.executable, ROOT / 'lab' / 'transcript',
             '--inside', directory, *['--write'] * write, name],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if p.returncode:
        raise LabError(p.stderr.strip() or f'status {p.returncode}')
    return json.loads(p.stdout.splitlines()[-1])


def difference(transcript, outputs):
    """Empty if all OUTPUTS are as in the page, else what is not."""
    text = []
    for step, output in zip(transcript.steps, outputs):
        if not same(output, step.output):
            text += [f'{step.terminal}{step.kind} {step.command()}',
                     *difflib.unified_diff(step.output, output, 'page', 'now',
                                           lineterm='', n=99)]
    return '\n'.join(text)
