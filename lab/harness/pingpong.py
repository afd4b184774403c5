# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest, migrated to and fro between the hosts a and b under one stream.

Each time to a fresh QEMU, as in life; the old one gets SIGKILL as soon as it
says that the migration is complete, or, every second time, SIGTERM, and must
end without an error.  The TAPs stay.

Every QEMU has both filters, on a command line that never changes but for the
host it is on.  Its capture's socket listens on its own host.  Its injection's
connects to the other host, again and again, since it may not be there: so a
fresh QEMU finds its source at once.  A source in turn connects to its fresh
destination; of that connection nothing comes, for a VM that has just been
migrated is not captured from, and none is injected into one that runs.

Every packet of the whole time is counted, and laid to the charge of the
migration that was the last to begin before it was sent.  After each migration,
once the guest has answered, the fds and the memory of its QEMU are noted: it
has been a destination and not yet a source.  They must not grow: the last third
of the migrations is compared with the first.
"""
import os
import random
import statistics
from pathlib import Path

from . import InvalidRun, LabError, count, products, report
from .migrate import (PORT, Conditions, booted, capture, check_vhost,
                      incoming, inject, ms, one_way, set_up_migration,
                      start_qemu, tap_drops, wait_migration)
from .peer import Peer
from .system import (CLIENT_ADDRESS, GUEST_ADDRESS, System, why_not,
                     why_not_vhost)

ROUNDS = 20
RECONNECT_MS = 100
BETWEEN = 0.3                   # seconds of traffic between two migrations
GROWTH = 1.02                   # of memory, last third against the first
# As fast as the link is, so that many fit into a minute
CONDITIONS = Conditions(bandwidth=1000, link=2000)


def filters(host, c):
    other = {'a': 'b', 'b': 'a'}[host]
    return [*capture(c.privileged, host),
            *inject(c.privileged, other, 'm1', f',reconnect-ms={RECONNECT_MS}')]


def usage(qmp):
    """(open fds, resident memory in KiB) of a QEMU."""
    proc = Path(f'/proc/{qmp.child.process.pid}')
    for line in (proc / 'status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return len(os.listdir(proc / 'fd')), int(line.split()[1])
    raise LabError(f'{proc}/status: no VmRSS')


def leave(system, source, gently):
    """End the QEMU that the guest has left."""
    if gently:
        system.disown(source.child)
        said = source.child.terminate(20)
        if status := source.child.process.returncode:
            raise LabError(f'{source.child.name} ended with status {status}: '
                           f'{said.strip()[-800:]}')
    else:
        system.end(source.child)


def run(rounds=ROUNDS, conditions=CONDITIONS, logs=None,
        say=lambda line: None):
    c = conditions
    logs = Path(logs or products.directory() / 'logs').resolve()
    logs.mkdir(parents=True, exist_ok=True)
    if reason := why_not_vhost() if c.vhost else why_not():
        raise LabError(reason)
    made = products.build(say).resolve()
    state = booted(c, str(logs / 'pingpong-boot'), say)
    begins, rows = [], []

    with System(c.txqueuelen, c.link) as system:
        def start(n, host, uri):
            return start_qemu(system, host, c, str(logs / f'pingpong-{n:03}'),
                              ['-incoming', uri, *filters(host, c)])

        source = start(0, 'a', f'file:{state}')
        check_vhost(source, c)
        control = system.udp_socket('client')
        guest = Peer('guest', control, GUEST_ADDRESS, PORT, system)
        guest.counters('status', 60)
        system.start('client', 'client', [str(made / 'stream'), str(PORT)],
                     str(logs / 'pingpong-client.log'))
        client = Peer('client', control, CLIENT_ADDRESS, PORT, system)
        number = random.randrange(1, 1 << 31)
        guest.ask(f'set {number} {CLIENT_ADDRESS} {PORT} '
                  f'{c.answers} {c.size} {c.dirty}')
        client.ask(f'set {number} {GUEST_ADDRESS} {PORT} {c.rate} {c.size} 0')
        guest.ask('go')
        client.ask('go')

        def traffic(seconds):
            sent = client.counters('status')['sent']
            return client.counters(f'wait sent {sent + int(seconds * c.rate)}',
                                   seconds + 20)

        begins.append(traffic(c.before)['clock'])
        guest.counters('status', 30)
        for n in range(1, rounds + 1):
            host = 'ab'[n % 2]
            begins.append(client.counters('status')['clock'])
            destination = start(n, host, incoming(host))
            set_up_migration(source, destination, c)
            source.events.clear()       # of its own arrival
            source.execute('migrate', uri=incoming(host))
            wait_migration(source, 'completed')
            leave(system, source, n % 2)
            resume = destination.wait('RESUME', 20)['ns']
            stop = source.wait('STOP', 1)['ns']
            # its answers come behind all that it has been sent before
            guest.counters('status', 30)
            rows.append({'round': n, 'host': host, 'stop_ms': ms(resume - stop),
                         **dict(zip(('fds', 'rss_kib'), usage(destination)))})
            traffic(BETWEEN)
            source = destination
            if n % 10 == 0:
                say(f'pingpong: {n} migrations')
        check_vhost(source, c)
        traffic(c.after)
        client.ask('stop')
        at_guest = guest.counters('stop', 30)
        at_client = client.counters('status')
        say('pingpong: fetching the records')
        records = {'to_guest': guest.records(), 'to_client': client.records()}
        drops = {host: tap_drops(system, host) for host in ('a', 'b')}

    charged = count.charge(at_client['sent'], records['to_guest'], begins)
    for row, faults in zip(rows, charged[1:]):
        row.update(faults)
    return {'to_guest': one_way(at_client, at_guest, records['to_guest']),
            'to_client': one_way(at_guest, at_client, records['to_client']),
            'queue_full_drops': drops, 'rounds': rows,
            'conditions_text': str(c)}


def thirds(values):
    """The medians of the first and the last third."""
    n = max(len(values) // 3, 1)
    return statistics.median(values[:n]), statistics.median(values[-n:])


def judge(r):
    """[(name, kept, figures)] of a run."""
    rounds = r['rounds']
    stops = [row['stop_ms'] for row in rounds]
    worst = max(row['reordered'] for row in rounds)
    fds, memory = (thirds([row[key] for row in rounds])
                   for key in ('fds', 'rss_kib'))
    return [
        ('pingpong-is-exact',
         report.is_exact(r, None) and worst <= report.REORDERED,
         f'{len(rounds)} migrations, {r["to_guest"]["sent"]} + '
         f'{r["to_client"]["sent"]} packets: {report.faults(r)}, to the guest '
         f'at most {worst} reordered in one; VM stopped {min(stops)} to '
         f'{max(stops)} ms'),
        ('pingpong-fds-and-memory-are-constant',
         fds[1] <= fds[0] and memory[1] <= memory[0] * GROWTH,
         f'first third {fds[0]:g} fds, {memory[0] / 1024:.1f} MiB; last third '
         f'{fds[1]:g} fds, {memory[1] / 1024:.1f} MiB')]


def checked(rounds=ROUNDS, conditions=CONDITIONS, say=lambda line: None):
    """The same, run now; of a run that fails, its error."""
    try:
        try:
            r = run(rounds, conditions, say=say)
        except InvalidRun as e:
            say(f'pingpong: {e}; once more')
            r = run(rounds, conditions, say=say)
    except LabError as e:
        return [('pingpong', False, ' '.join(str(e).split()))]
    for line in table(r):
        say(line)
    return judge(r)


def table(r):
    keys = ('round', 'host', 'stop_ms', 'lost', 'duplicated', 'reordered',
            'fds', 'rss_kib')
    yield ' '.join(f'{key:>10}' for key in keys)
    for row in r['rounds']:
        yield ' '.join(f'{row[key]:>10}' for key in keys)
