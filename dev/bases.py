#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""bases - the versions of QEMU that the series stands on.

bases/NAME/lock pins one: a Debian source package, its suite, and the sha256 of
each of its files. bases/NAME/compat.patch, where there is one, is a commit
before the series: what an older QEMU lacks. NAME is the version without its
last number; a development snapshot (10.2.50 and up) is one of its own.

  bases.py list         the bases, newest first
  bases.py of VERSION   the base for a QEMU of that version
  bases.py dir BASE     where the tree and the builds of that base are: QEMU_DIR
                        if its tree, or a new one, is that base (without BASE
                        the newest that can be had is taken); else
                        QEMU_DIR/base-BASE
  bases.py others       all but the one in QEMU_DIR
"""
import os
import pathlib
import re
import sys

REPO = pathlib.Path(__file__).resolve().parent.parent
QEMU_DIR = os.environ.get('QEMU_DIR') or '.qemu'


class Failed(Exception):
    """What went wrong, and the way out: printed without a traceback."""


def upstream(version):
    """QEMU's own version in that of a Debian package."""
    return re.sub(r'^\d+:|[+~-].*', '', version.strip())


def name(version):
    numbers = upstream(version).split('.')
    if len(numbers) == 3 and int(numbers[2]) < 50:
        numbers.pop()
    return '.'.join(numbers)


def names():
    """Newest first."""
    return sorted((lock.parent.name for lock in REPO.glob('bases/*/lock')),
                  key=lambda n: [int(part) for part in re.findall(r'\d+', n)],
                  reverse=True)


def known(base, what):
    if base not in names():
        raise Failed(f'{what}: there is no such base; the bases are '
                     f'{", ".join(names())} (HACKING.md says how to add one)')
    return base


def of(version):
    return known(name(version), f'QEMU {upstream(version)}')


def lock(base):
    """{key: value} of its lock, sha256: {file: sum}; it is well-formed."""
    found, sums, where = {}, {}, f'bases/{base}/lock'
    for n, line in enumerate((REPO / where).read_text().splitlines(), 1):
        key, *values = line.split() or ['#']
        if key.startswith('#'):
            continue
        if (key == 'sha256' and len(values) == 2
                and re.fullmatch('[0-9a-f]{64}', values[0])
                and re.fullmatch(r'[\w.+~-]+', values[1])
                and values[1] not in sums):
            sums[values[1]] = values[0]
        elif (key in ('package', 'version', 'suite') and len(values) == 1
                and key not in found):
            found[key] = values[0]
        else:
            raise Failed(f'{where}:{n}: not "package", "version" or "suite" '
                         'with one word, once each, nor "sha256 SUM FILE", '
                         'each file once')
    if missing := {'package', 'version', 'suite'} - found.keys():
        raise Failed(f'{where}: no {", ".join(sorted(missing))}')
    if sum(file.endswith('.dsc') for file in sums) != 1 or len(sums) < 2:
        raise Failed(f'{where}: not the files of one source package: a .dsc, '
                     'and what it names')
    if name(found['version']) != base:
        raise Failed(f'{where}: version {found["version"]} is base '
                     f'{name(found["version"])}')
    return {**found, 'sha256': sums}


def default():
    """The base in QEMU_DIR; without a tree the one that is tried first."""
    version = REPO / QEMU_DIR / 'src/VERSION'
    return name(version.read_text()) if version.exists() else names()[0]


def main():
    match sys.argv[1:]:
        case ['list']:
            print(*names(), sep='\n')
        case ['of', version]:
            print(of(version))
        case ['dir', base]:
            known(base, f'BASE={base}')
            print(QEMU_DIR if base == default() else f'{QEMU_DIR}/base-{base}')
        case ['others']:
            print(*(base for base in names() if base != default()), sep='\n')
        case _:
            sys.exit(__doc__)


if __name__ == '__main__':
    try:
        main()
    except Failed as e:
        sys.exit(f'bases: {e}')
