# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share: the options, and how they end."""
import dataclasses
import signal
import sys

from . import LabError
from .migrate import Conditions

HELP = {
    'rate': 'packets per second, in each direction',
    'size': 'bytes of UDP payload',
    'dirty': 'MiB that the guest writes to every 100 ms',
    'bandwidth': 'max-bandwidth of the migration, MB/s',
    'link': 'rate of the link that the migration uses, Mbit/s; 0: no limit',
    'before': 'seconds of traffic before the migration',
    'after': 'seconds of traffic after the migration',
    'txqueuelen': 'queue length of both TAPs, in frames',
    'memory': 'MiB of guest memory',
    'accel': "QEMU's -accel (also LAB_ACCEL)",
}


def add_condition_options(parser):
    for field in dataclasses.fields(Conditions):
        if field.type is bool:
            parser.add_argument(f'--{field.name}', action='store_true',
                                help='use vhost-net (needs /dev/vhost-net)')
        else:
            parser.add_argument(f'--{field.name}', type=field.type,
                                default=field.default,
                                metavar=field.type.__name__.upper(),
                                help=f'{HELP[field.name]} (%(default)s)')


def conditions(args):
    return Conditions(**{f.name: getattr(args, f.name)
                         for f in dataclasses.fields(Conditions)})


def say(line):
    print(line, file=sys.stderr, flush=True)


def command(main):
    """Run MAIN so that every way to end, except SIGKILL, cleans up."""
    name = f'lab/{sys.argv[0].rsplit("/", 1)[-1]}'
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(f'{name}: terminated'))
    try:
        sys.exit(main())
    except LabError as e:
        sys.exit(f'{name}: {e}')
    except KeyboardInterrupt:
        sys.exit(f'{name}: interrupted')
