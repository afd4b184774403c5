# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share: the options, and how they end."""
import argparse
import dataclasses
import signal
import sys

from . import LabError
from .migrate import COPIES, ENDINGS, RECOVERED, Conditions
from .networks import NETWORKS

HELP = {
    'rate': 'packets per second to the guest',
    'answers': 'packets per second from the guest',
    'size': 'bytes of UDP payload',
    'dirty': 'MiB that the guest writes to every 100 ms',
    'bandwidth': 'max-bandwidth of the migration, MB/s',
    'downtime': 'downtime-limit of the migration, ms',
    'link': 'rate of the link that the migration uses, Mbit/s; 0: no limit',
    'before': 'seconds of traffic before the migration',
    'after': 'seconds of traffic after the migration',
    'txqueuelen': 'queue length of both TAPs, in frames',
    'memory': 'MiB of guest memory',
    'copy': ' or '.join(COPIES),
    'ending': f'how the migration ends: {", ".join(ENDINGS)}; {RECOVERED}: the '
              'connection breaks in postcopy',
    'tcp': 'Mbit/s of a bulk TCP transfer to the guest',
    'tcp_mb': 'its length in MB, all of which is compared; 0: no end',
    'filters': "filters by way of chardevs; else the migration's connection",
    'tls': "TLS for the filters' connection",
    'return_path': 'capability return-path, which libvirt sets',
    'multifd': 'capability multifd',
    'privileged': 'both QEMUs as root, else as a user in a sandbox with fds; '
                  'filters with in_netdev and out_netdev',
    'burst': 'packets per second more to the guest while it is stopped',
    'paused': "ms after which the destination, which has -S, gets 'cont'; "
              '-1: no -S',
    'veths': 'pairs of veths that are deleted on both hosts during the stop',
    'network': 'what the network sends to which host '
               f'({", ".join(NETWORKS)}; see harness/networks.py)',
    'cards': 'network cards of the guest, each with its own pair of filters',
    'vhost': 'use vhost-net',
    'accel': "QEMU's -accel (also LAB_ACCEL)",
}
CHOICES = {'copy': COPIES, 'ending': (*ENDINGS, RECOVERED),
           'cards': range(1, 9), 'network': tuple(NETWORKS)}


def add_condition_options(parser, defaults=Conditions()):
    for field in dataclasses.fields(Conditions):
        how = {'action': argparse.BooleanOptionalAction} \
            if field.type is bool else \
            {'type': field.type, 'metavar': field.type.__name__.upper(),
             'choices': CHOICES.get(field.name)}
        parser.add_argument(f'--{field.name}',
                            default=getattr(defaults, field.name),
                            help=f'{HELP[field.name]} (%(default)s)', **how)


def conditions(args):
    return Conditions(**{f.name: getattr(args, f.name)
                         for f in dataclasses.fields(Conditions)})


def condition_arguments(c):
    """The options that give the conditions C."""
    out = []
    for field in dataclasses.fields(Conditions):
        value = getattr(c, field.name)
        if field.type is bool:
            out.append(f'--{"" if value else "no-"}{field.name}')
        elif value != field.default:
            out += [f'--{field.name}', str(value)]
    return out


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
