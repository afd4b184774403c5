#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qtree - move changes between this repository and the QEMU tree.

A path that QEMU does not have is kept here whole, at the same path. A path
that QEMU has is kept here as PATH.patch (a hook): the diff from the base.
series/NN-name.txt is one commit: its message, a line "-- ", the in-tree paths
that it owns, one per line.

The base is one of bases/ (dev/bases.py); VERSION in the tree says which one.
Where there is a bases/NAME/compat.patch, the series starts with it, and hooks
are diffs from there: it gives an older QEMU what it lacks. It is a message, a
line "---", and the diff from the base. The hooks are those of the newest base,
as git diff writes them; on others they apply elsewhere, but never with fuzz.

  qtree.py apply    the tree := base, compat and one commit per series entry
  qtree.py export   the repository := the tree's changes from the base
  qtree.py check    fail unless the two are in step, byte for byte
  qtree.py edits    fail when the tree has edits that were not exported
  qtree.py series   write git-format-patch files into QEMU_DIR/series
  qtree.py commits  print the commits of the series, first to last
  qtree.py base DIR make an unpacked source the base: git init, commit, tag
  qtree.py squash   make refs/qtree/series, the whole series in one commit
  qtree.py rebase DIR   bring that of the tree DIR to this base (dev/rebase)

How it works. All three states are git trees in the object store of
QEMU_DIR/src, compared there and never in the working tree:

  R  what the repository says: base, compat, whole files, and hooks
  W  the working tree in QEMU_DIR/src, with its untracked files
  A  what W was after the last apply or export (refs/qtree/applied)

A path of W that differs from A was edited in the tree, a path of R that
differs from A was edited here (or pulled). So apply can refuse before it
touches anything, and export never overwrites news of the repository. The
trees are built in a scratch index; the tree's own index moves only in apply,
by `git reset`, which rewrites only the files that differ, so that ninja
recompiles no more than that. Author, date and message are fixed: the same
repository gives the same commit ids, and an apply with nothing to do does
nothing.
"""
import contextlib
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import bases
from bases import Failed

REPO = pathlib.Path(__file__).resolve().parent.parent
QEMU_DIR = REPO / os.environ.get('QEMU_DIR', '.qemu')
TREE = QEMU_DIR / 'src'
SHOWN = os.path.relpath(TREE, REPO)           # in messages
APPLIED = 'refs/qtree/applied'
REBASED = 'refs/qtree/from'              # there while a rebase is going on
FORCE = os.environ.get('FORCE')          # lose edits, as the messages offer

# What is ours alone and has no place in the QEMU tree.
OURS = {'README.md', 'HACKING.md', 'LICENSE', 'Makefile', '.gitignore',
        'bases', 'series', 'dev', 'lab', 'bench', '.ci'}
OURS_BELOW = ('docs/img/',)

DIFF = ('diff', '--no-renames', '--full-index', '--no-ext-diff', '--no-color',
        '--src-prefix=a/', '--dst-prefix=b/', '-U3')
DELETED = ('', '')

# Nothing of the user's git configuration may change what is computed here.
ENV = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
ENV.update({
    'LC_ALL': 'C.UTF-8',
    'GIT_CONFIG_GLOBAL': '/dev/null',
    'GIT_CONFIG_NOSYSTEM': '1',
    'GIT_CONFIG_COUNT': '2',
    'GIT_CONFIG_KEY_0': 'safe.directory',     # a checkout of another user
    'GIT_CONFIG_VALUE_0': '*',
    'GIT_CONFIG_KEY_1': 'core.excludesFile',
    'GIT_CONFIG_VALUE_1': '/dev/null',
})
for who in ('AUTHOR', 'COMMITTER'):
    ENV[f'GIT_{who}_NAME'] = 'QEMU packet series'
    ENV[f'GIT_{who}_EMAIL'] = 'series@localhost'
    ENV[f'GIT_{who}_DATE'] = '2026-01-01T00:00:00+0000'


def git(*args, stdin=None, index=None, cwd=None):
    env = dict(ENV, GIT_INDEX_FILE=str(index)) if index else ENV
    p = subprocess.run(['git', '-C', str(cwd or TREE), *args], env=env,
                       input=stdin, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE)
    if p.returncode:
        raise Failed(f'git {" ".join(args)}: {p.stderr.decode().strip()}')
    return p.stdout


def text(*args, **kw):
    return git(*args, **kw).decode().strip()


def names(*args, **kw):
    """The paths that a git command prints with -z."""
    return [n for n in git(*args, **kw).decode().split('\0') if n]


@contextlib.contextmanager
def scratch_index(copy=False):
    """An index of our own; as a copy it has the tree's stat cache."""
    index = TREE / '.git' / f'qtree-index-{os.getpid()}'
    try:
        if copy:
            # with its time, by which git knows what it must look at again
            shutil.copy2(TREE / '.git' / 'index', index)
        yield index
    finally:
        index.unlink(missing_ok=True)


# The base

@functools.cache
def base_name():
    return bases.of(text('show', 'base:VERSION'))


@functools.cache
def pinned():
    """Is it the version of the lock? A source of the user's may be another."""
    version = bases.upstream(bases.lock(base_name())['version'])
    return version == text('show', 'base:VERSION')


def exact():
    """Is a hook what git diff writes for this base?"""
    return pinned() and base_name() == bases.names()[0]


def compat():
    """(message, diff) of the base's compat.patch; empty without one."""
    name = f'bases/{base_name()}/compat.patch'
    if not (REPO / name).exists():
        return b'', b''
    message, _, diff = (REPO / name).read_bytes().partition(b'\n---\n')
    if not message.startswith(b'compat: ') or not diff:
        raise Failed(f'{name}: not a message "compat: ...", a line "---", and '
                     'a diff')
    return message + b'\n', diff


@functools.cache
def start():
    """The commit that the series stands on: base, or compat.patch on it."""
    base = text('rev-parse', 'base^{commit}')
    message, diff = compat()
    if not diff:
        return base
    with scratch_index() as index:
        git('read-tree', base, index=index)
        try:
            git('apply', '--cached', '--whitespace=nowarn', '-', stdin=diff,
                index=index)
        except Failed as e:
            raise Failed(f'bases/{base_name()}/compat.patch does not apply to '
                         f'the base; correct it\n{e}')
        return text('commit-tree', text('write-tree', index=index), '-p', base,
                    '-F', '-', stdin=message)


def base_files():
    return set(names('ls-tree', '-r', '-z', '--name-only', start()))


# The repository

class Repository:
    """The mirrored files and the series, checked against the base."""

    def __init__(self):
        base = base_files()
        self.files = {}                       # in-tree path: file here
        for name in names('ls-files', '-z', '-c', '-o', '--exclude-standard',
                          cwd=REPO):
            file = REPO / name
            if (name.split('/')[0] in OURS or name.startswith(OURS_BELOW)
                    or not os.path.lexists(file)):
                continue
            if file.is_symlink():
                raise Failed(f'{name}: symbolic links are not supported')
            hook = name.endswith('.patch')
            path = name[:-len('.patch')] if hook else name
            if hook and path not in base:
                raise Failed(f'{name}: a hook for a file that the base does '
                             'not have; new files stand here whole')
            if not hook and path in base:
                raise Failed(f'{name}: a whole copy of a QEMU file; edit it in'
                             f' {SHOWN}, then `make export` writes {name}.patch')
            self.files[path] = file

    def is_hook(self, path):
        return self.files[path].name == os.path.basename(path) + '.patch'

    def series(self):
        """[(message, [path])]; every file is in exactly one entry."""
        entries, owner, wrong = [], {}, []
        for f in sorted((REPO / 'series').glob('[0-9]*.txt')):
            message, mark, rest = f.read_text().partition('\n-- \n')
            paths = [p.strip() for p in rest.splitlines() if p.strip()]
            if not mark or not paths or not message.strip():
                wrong.append(f'series/{f.name}: not a message, a line "-- ", '
                             'and at least one path')
            for p in paths:
                if p in owner:
                    wrong.append(f'series/{f.name}: {p} is already in '
                                 f'series/{owner[p]}')
                elif p not in self.files:
                    wrong.append(f'series/{f.name}: neither {p} nor {p}.patch '
                                 'is in the repository')
                owner.setdefault(p, f.name)
            entries.append((message.rstrip('\n') + '\n', paths))
        wrong += [f'{p}: in no series entry; add it to one series/NN-name.txt'
                  for p in sorted(self.files) if p not in owner]
        if wrong:
            raise Failed('\n'.join(wrong))
        return entries

    def stage(self, paths, index):
        """Bring paths to the repository's version in the scratch index."""
        whole = [p for p in paths if not self.is_hook(p)]
        blobs = text('hash-object', '-w', '--no-filters', '--stdin-paths',
                     stdin='\n'.join(str(self.files[p]) for p in whole)
                     .encode()).split()
        info = ''.join(f'{mode(self.files[p])} {blob}\t{p}\0'
                       for p, blob in zip(whole, blobs))
        git('update-index', '-z', '--add', '--index-info',
            stdin=info.encode(), index=index)
        for p in filter(self.is_hook, paths):
            hook = self.files[p]
            heads = re.findall(rb'^diff --git .*$', hook.read_bytes(), re.M)
            if heads != [f'diff --git a/{p} b/{p}'.encode()]:
                raise Failed(f'{p}.patch: must be exactly one '
                             f'"diff --git a/{p} b/{p}"')
            try:
                git('apply', '--cached', '--whitespace=nowarn', str(hook),
                    index=index)
            except Failed as e:
                raise Failed(
                    f'{p}.patch does not apply to base {base_name()} without '
                    'fuzz; ' + ('correct it, or delete it and `make export`'
                                if exact() else 'HACKING.md, "A base", says '
                                'what to do') + f'\n{e}')

    def tree(self):
        """R, whatever the series says."""
        with scratch_index() as index:
            git('read-tree', start(), index=index)
            self.stage(sorted(self.files), index)
            return text('write-tree', index=index)

    def commits(self):
        """Compat and series as commits on the base; only objects are written."""
        parent = start()
        done = [parent] if compat()[1] else []
        with scratch_index() as index:
            git('read-tree', parent, index=index)
            for message, paths in self.series():
                self.stage(paths, index)
                parent = text('commit-tree', text('write-tree', index=index),
                              '-p', parent, '-F', '-', stdin=message.encode())
                done.append(parent)
        return done


def mode(file):
    return '100755' if file.stat().st_mode & 0o100 else '100644'


# The tree

def stage_worktree(index=None):
    """git add everything that counts: edits, deletions, new files.

    New files that QEMU's .gitignore hides count when the series names them.
    """
    git('add', '-A', index=index)
    listed = {line.strip() for f in (REPO / 'series').glob('[0-9]*.txt')
              for line in f.read_text().partition('\n-- \n')[2].splitlines()}
    ignored = set(names('ls-files', '-z', '-o', index=index)) & listed
    if ignored:
        git('add', '-f', '--', *sorted(ignored), index=index)


def worktree():
    """W"""
    with scratch_index(copy=True) as index:
        stage_worktree(index)
        return text('write-tree', index=index)


def changes(tree):
    """{path: (mode, blob)} of what differs from the base, with compat."""
    out = {}
    fields = iter(names('diff-tree', '-r', '-z', '--no-renames', start(), tree))
    for meta in fields:
        _, new, _, blob, status = meta.split()
        out[next(fields)] = DELETED if status == 'D' else (new, blob)
    return out


def edited(old, new):
    return {p for p in old.keys() | new.keys() if old.get(p) != new.get(p)}


def ref(name):
    """What it points to, or None."""
    return text('for-each-ref', '--format=%(objectname)', name) or None


def applied():
    """A; before the first apply it is what is checked out."""
    return ref(APPLIED) or text('rev-parse', 'HEAD^{tree}')


def listing(paths):
    return '\n'.join(f'  {p}' for p in sorted(paths))


# The commands

def apply():
    if ref(REBASED):
        if not FORCE:
            raise Failed(f'a rebase is going on in {SHOWN}: `make rebase` goes '
                         'on with it, make src FORCE=1 gives it up')
        git('reset', '-q', '--hard', start())
        git('update-ref', APPLIED, start() + '^{tree}')
        git('update-ref', '-d', REBASED)
    repo = Repository()
    new = repo.commits()
    head = new[-1] if new else start()
    want = text('rev-parse', head + '^{tree}')
    have = worktree()
    r, w, a = changes(want), changes(have), changes(applied())
    lost = {p for p in edited(a, w) if w.get(p) != r.get(p)}
    if FORCE:
        lost = set()
    if lost and r == a:
        print(f'{SHOWN} has edits, not exported yet:\n{listing(lost)}')
        return
    if lost:
        raise Failed(
            f'{SHOWN} has edits that are not in the repository, and the '
            f'repository has news:\n{listing(lost)}\n'
            'To keep the edits: make export, then again. '
            'To drop them: make src FORCE=1')
    if (have, head) != (want, text('rev-parse', 'HEAD')):
        git('symbolic-ref', 'HEAD', 'refs/heads/work')
        stage_worktree()
        git('reset', '-q', '--hard', head)
        print(f'{SHOWN}: base and {len(new)} commits, '
              f'{len(edited(w, r))} files rewritten')
    git('update-ref', APPLIED, want)


def compare():
    """What an export would do: (W, write, delete, newer, both).

    write is {name here: (bytes, mode)}, delete the names here; newer are paths
    edited only here since the last apply, both those edited differently in
    the tree too.  On a base that the hooks are not exact for, a hook that
    makes what is in the tree is left as it is, and what was edited in a file
    without a hook belongs to compat.patch.
    """
    repo = Repository()
    have = worktree()
    r, w, a = changes(repo.tree()), changes(have), changes(applied())
    both = {p for p in edited(a, w) & edited(a, r) if w.get(p) != r.get(p)}
    newer = edited(a, r) - edited(a, w)
    base = base_files()
    write, delete, below = {}, set(), {}
    for path, (bits, blob) in w.items():
        if path in newer:
            continue
        if bits == '120000':
            raise Failed(f'{path}: symbolic links are not supported')
        if path in base:
            if not exact() and path not in repo.files:
                below[path] = bits, blob
                continue
            if not exact() and r.get(path) == (bits, blob):
                continue
            want = git(*DIFF, start(), have, '--', path), '100644'
            name = path + '.patch'
        else:
            want = git('cat-file', 'blob', blob), bits
            name = path
        if differs(name, want):
            write[name] = want
    for path in repo.files.keys() - w.keys() - newer:
        delete.add(path + '.patch' if repo.is_hook(path) else path)
    compat_patch(below, write, delete)
    return have, write, delete, newer, both


def compat_patch(files, write, delete):
    """Add compat.patch to WRITE or DELETE, unless it gives the series FILES, a
    {path: (mode, blob)}, already."""
    if not (files or pinned()):
        return
    with scratch_index() as index:
        git('read-tree', start(), index=index)
        git('update-index', '-z', '--add', '--index-info', index=index,
            stdin=''.join(f'{bits or 0} {blob or "0" * 40}\t{path}\0' for
                          path, (bits, blob) in files.items()).encode())
        tree = text('write-tree', index=index)
    message, now = compat()
    diff = git(*DIFF, 'base', tree)
    name = f'bases/{base_name()}/compat.patch'
    if diff != now and diff:
        message = message or (f'compat: give QEMU {base_name()} what the '
                              'series needs of a later one\n').encode()
        write[name] = message + b'---\n' + diff, '100644'
    elif diff != now:
        delete.add(name)


def differs(name, want):
    """Is the file here another than WANT, (bytes, mode)?"""
    file = REPO / name
    return not file.exists() or (file.read_bytes(), mode(file)) != want


def write_out(write, delete):
    for name, (data, bits) in write.items():
        file = REPO / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o755 if bits == '100755' else 0o644)
    for name in delete:
        (REPO / name).unlink()
    for verb, some in ('wrote', write), ('deleted', delete):
        for name in sorted(some):
            print(verb, name)
    if not exact() and any(name.endswith('.patch') and
                           not name.startswith('bases/') for name in write):
        print(f'\nATTENTION: hooks are as base {base_name()} has them; the tree '
              f'of base {bases.names()[0]} must take them too, and its '
              '`make export` brings their line numbers')
    start.cache_clear()                   # compat.patch may be another


def export():
    have, write, delete, newer, both = compare()
    if both and not FORCE:
        raise Failed('edited in the tree and, differently, in the repository:'
                     f'\n{listing(both)}\nTo take the tree\'s version: '
                     'make export FORCE=1')
    write_out(write, delete)
    git('update-ref', APPLIED, have)
    if newer:
        print('Newer in the repository, left alone (make src brings them):\n'
              + listing(newer))
    if not write and not delete and not newer:
        print('in step')
    try:
        Repository().series()
    except Failed as e:
        print(f'\nATTENTION: the series is not complete yet:\n{e}')


def check():
    Repository().series()
    _, write, delete, newer, _ = compare()
    if write or delete or newer:
        raise Failed('repository and tree are not in step (make export, or '
                     'make src):\n' + listing(write.keys() | delete | newer))


def edits():
    w, a = changes(worktree()), changes(applied())
    if edited(a, w):
        raise Failed(f'{SHOWN} has edits that were not exported:\n'
                     + listing(edited(a, w)))


def series():
    new = Repository().commits()
    out = QEMU_DIR / 'series'
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if not new:
        raise Failed('the series has no entries')
    git('format-patch', '-q', '--zero-commit', '--full-index', '--no-signature',
        '--no-renames', '--stat=72', '--start-number=%d' % (not compat()[1]),
        '-o', str(out), 'base..' + new[-1])
    print(f'{len(new)} patches in {os.path.relpath(out, REPO)}, for QEMU '
          f'{text("show", "base:VERSION")}')


def commits():
    for commit in Repository().commits():
        print(commit)


def squash():
    repo = Repository()
    git('update-ref', 'refs/qtree/series', text(
        'commit-tree', repo.tree(), '-p', start(), '-m', 'the series'))


def unmerged():
    return {*names('diff', '-z', '--name-only', '--diff-filter=U')}


def take_hooks_that_apply(paths):
    """A change in the next line is a conflict for a merge, not for a patch."""
    repo = Repository()
    for path in paths & {p for p in repo.files if repo.is_hook(p)}:
        with scratch_index() as index:
            git('read-tree', start(), index=index)
            try:
                repo.stage([path], index)
            except Failed:
                continue
            entry = git('ls-files', '-s', '-z', '--', path, index=index)
        git('update-index', '-z', '--index-info', stdin=entry)
        git('checkout-index', '-f', '--', path)


def rebase(tree):
    """Begin, or go on: what is left to do is in the index, as git has it."""
    if not ref(REBASED):
        edits()
        git('reset', '-q', '--hard', start())
        git('fetch', '-q', '--no-tags', str(pathlib.Path(tree).resolve()),
            f'+refs/qtree/series:{REBASED}')
        try:
            git('-c', 'merge.conflictStyle=diff3', 'cherry-pick', '-n', REBASED)
        except Failed:
            if not unmerged():
                git('update-ref', '-d', REBASED)
                raise
        take_hooks_that_apply(unmerged())
    left = unmerged()
    if left:
        raise Failed(f'left to do in {SHOWN} (git status; edit, then git add '
                     f'or git rm):\n{listing(left)}\nThen `make rebase` again')
    have = worktree()
    w = changes(have)
    marked = {path for path, (_, blob) in w.items() if blob and re.search(
        rb'^(<<<<<<<|>>>>>>>) ', git('cat-file', 'blob', blob), re.M)}
    if marked:
        raise Failed('conflict markers are left in:\n' + listing(marked))
    finish_rebase(have, w)


def finish_rebase(have, w):
    """The hooks are those of the newest base: only there they are written.
    On another base compat.patch becomes what the hooks must find, to make of
    it what is in the tree; a hook that cannot be taken back has to move."""
    repo, base = Repository(), base_files()
    write, delete, stuck = {}, set(), set()
    for path, (bits, blob) in w.items():
        if blob and path not in base:
            write[path] = git('cat-file', 'blob', blob), bits
        elif exact():
            write[path + '.patch'] = (git(*DIFF, start(), have, '--', path),
                                      '100644')
    hooks = set(filter(repo.is_hook, repo.files))
    if exact():
        delete = {path + '.patch' for path in hooks - w.keys()}
    else:
        with scratch_index() as index:
            git('read-tree', have, index=index)
            for path in hooks:
                try:
                    git('apply', '-R', '--cached', '--whitespace=nowarn',
                        str(repo.files[path]), index=index)
                except Failed:
                    stuck.add(path)
            below = changes(text('write-tree', index=index))
        compat_patch({path: new for path, new in below.items()
                      if path in base and path not in stuck}, write, delete)
    write_out({name: want for name, want in write.items()
               if differs(name, want)}, delete)
    git('update-ref', APPLIED, have)
    git('update-ref', '-d', REBASED)
    if stuck:
        newest = bases.names()[0]
        raise Failed(
            f'these hooks do not fit base {base_name()}:\n{listing(stuck)}\n'
            'Move them to where both bases have the same three lines around '
            f'them: edit the tree of base {newest}, make BASE={newest} export, '
            f'make BASE={base_name()} src')
    apply()


def base(tree):
    global TREE
    TREE = pathlib.Path(tree).resolve()
    git('init', '-q', '-b', 'work')
    git('config', 'gc.auto', '0')             # 36,000 new files would set it off
    git('add', '-A', '-f')
    git('commit', '-q', '-m', 'base')
    git('tag', 'base')


def main():
    commands = {f.__name__: f for f in (apply, export, check, edits, series,
                                        commits, base, squash, rebase)}
    name, *args = sys.argv[1:] or ['']
    if name not in commands or len(args) != (name in ('base', 'rebase')):
        sys.exit(__doc__)
    try:
        commands[name](*args)
    except Failed as e:
        sys.exit(f'qtree: {e}')


if __name__ == '__main__':
    main()
