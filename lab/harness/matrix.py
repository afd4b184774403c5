# SPDX-License-Identifier: GPL-2.0-or-later
"""The cells of the migration matrix, what is asserted of each, and the table.

- control, without a migration: no packet lost, duplicated, damaged, reordered;
- stock, where a precopy migration completes: loses more than STOCK_LOSES of the
  packets that were sent after the stop, else there was nothing to save;
- ours, and default, without filters: exact (report.is_exact), whatever the end
  of the migration, whatever the network sends to which host (networks.py), and
  with or without privileges; but what is lost is only reported where the source
  is killed at once, without a return path: then the source takes frames with it.
  In order (report.may_reorder).

Cells in CI (Cell.in_ci) are the main ones, and what they are compared with.
FAST is the higher of the two rates: the control must lose nothing at it.
"""
from dataclasses import replace
from typing import NamedTuple

from . import report
from .migrate import (BURST, BURSTS, COPIES, ENDINGS, FAILURES, FAST,
                      PAUSED_BEFORE, RECOVERED, Conditions)
from .networks import NETWORKS

PAUSES = (0, 20, 300, 3000)     # ms
TCP = 8                         # Mbit/s; TCG in TCG takes no more
MAIN = ('ours-vhost-precopy-source-killed',
        'ours-vhost-precopy-source-killed-fast')
CI = ('stock-vhost-precopy-source-killed', *MAIN)


class Cell(NamedTuple):
    name: str
    mode: str
    conditions: Conditions

    @property
    def in_ci(self):
        return self.name in CI


def cells():
    """All of them, each control before what it is the control of: by filters,
    and then without, where there is a return path."""
    for cell in filter_cells():
        yield cell
        if cell.mode == 'ours' and cell.conditions.return_path:
            yield Cell(cell.name.replace('ours', 'default', 1), cell.mode,
                       replace(cell.conditions, filters=False))
    for vhost in 'vhost', 'no-vhost':
        yield Cell(f'default-{vhost}-postcopy-recovered', 'ours', Conditions(
            vhost=vhost == 'vhost', copy='postcopy', ending=RECOVERED,
            filters=False))


def filter_cells():
    def cell(mode, *names, **conditions):
        return Cell('-'.join((mode, *names)), mode.split('-')[0],
                    Conditions(vhost='vhost' in names,
                               privileged=mode != 'ours-unprivileged',
                               **conditions))

    for vhost in 'vhost', 'no-vhost':
        yield cell('control', vhost)
        yield cell('control', vhost, 'fast', rate=FAST)
        for copy in COPIES:
            for ending in (*ENDINGS[:2], *PAUSED_BEFORE):
                for mode in 'stock', 'ours', 'ours-unprivileged':
                    yield cell(mode, vhost, copy, ending,
                               copy=copy, ending=ending)
        for ending in ENDINGS[4:]:
            yield cell('ours', vhost, 'precopy', ending, ending=ending)
        yield cell('ours', vhost, 'no-return-path', ENDINGS[5],
                   return_path=False, ending=ENDINGS[5])
        for rate in BURSTS:
            for mode in 'stock', 'ours', 'ours-unprivileged':
                yield cell(mode, vhost, 'burst', str(rate),
                           **{**BURST, 'burst': rate})
        for ms in PAUSES:
            yield cell('ours', vhost, 'paused', str(ms), rate=300, paused=ms)
        for ending in ENDINGS[:2]:
            yield cell('ours', vhost, 'multifd', ending, multifd=True,
                       ending=ending)
            yield cell('ours', vhost, 'no-return-path', ending,
                       return_path=False, ending=ending)
        for ending in ENDINGS[1:3]:
            yield cell('ours', vhost, 'two-cards', ending, cards=2,
                       ending=ending)
        yield cell('ours', vhost, 'eight-cards', 'source-killed', cards=8,
                   ending='source-killed')
        for ending in (*ENDINGS[:2], *PAUSED_BEFORE):
            for mode in 'stock', 'ours':
                yield cell(mode, vhost, 'precopy', ending, 'fast', rate=FAST,
                           ending=ending)
    for mode in 'stock', 'ours':
        yield cell(mode, 'vhost', 'tcp', tcp=TCP)
    for name, network in list(NETWORKS.items())[1:]:
        silence = {'answers': 0} if network.silent else {}
        yield cell('ours', 'no-vhost', name, network=name,
                   ending='source-killed', **silence)


def is_kept(cell, r):
    """Is the result R of CELL as asserted?"""
    c, to_guest = cell.conditions, r['to_guest']
    damaged = to_guest['damaged'] + r['to_client']['damaged']
    if cell.mode == 'control':
        return report.is_exact(r, 0)
    if cell.mode == 'stock':
        return not damaged and (
            c.copy != 'precopy' or c.ending in FAILURES or c.tcp or
            to_guest['lost_after_stop'] > report.STOCK_LOSES)
    if c.ending == 'source-killed' and not c.return_path:
        return not damaged
    return report.is_exact(r, report.may_reorder(r['conditions']))


def judge(cell, r):
    """(is all as asserted, figures) of CELL, whose result is R."""
    text = report.faults(r)
    if r['sent_in_stop']:
        text += f', {r["sent_in_stop"]} sent while the VM was stopped'
    if r['to_guest']['lost']:
        text += f' ({r["to_guest"]["lost_after_stop"]} sent after the stop)'
    text += f', outage {r["to_guest"]["outage_ms"]} ms{report.stopped(r)}'
    if r['tcp']:
        text += (f', TCP stall {r["tcp"]["stall_ms"]} ms, '
                 f'{r["tcp"]["retransmitted"]} retransmitted')
    if drops := sum(r['queue_full_drops'].values()):
        text += f', {drops} found the queue of a TAP full'
    return bool(is_kept(cell, r)), text


def both(name):
    return lambda r: f'{r["to_guest"][name]} + {r["to_client"][name]}'


COLUMNS = (('cell', lambda r: r['name']),
           ('runs', lambda r: r['runs']),
           ('sent', both('sent')),
           ('in the stop', lambda r: r['sent_in_stop']),
           ('lost', both('lost')),
           ('after stop', lambda r: r['to_guest']['lost_after_stop']),
           ('dup.', both('duplicated')),
           ('reord.', both('reordered')),
           ('damaged', both('damaged')),
           ('outage ms', lambda r: r['to_guest']['outage_ms']),
           ('stopped ms', lambda r: r['stop_window_ms']),
           ('TCP stall ms', lambda r: r['tcp'] and r['tcp']['stall_ms']),
           ('TCP retrans.', lambda r: r['tcp'] and r['tcp']['retransmitted']),
           ('', lambda r: '' if r['kept'] else 'not as asserted'))


def badness(r):
    return [r['to_guest'][n] + r['to_client'][n] for n in report.FAULTS]


def table(results):
    """Markdown, in columns that can be read as they are.  @results: of each
    cell, by name, a list of runs.  Of several the worst is shown."""
    rows = [[title for title, _ in COLUMNS]]
    for name, runs in results.items():
        worst = {**max(runs, key=badness), 'name': name, 'runs': len(runs),
                 'kept': all(r['kept'] for r in runs)}
        values = [value(worst) for _, value in COLUMNS]
        rows.append(['' if v is None else str(v) for v in values])
    for i in reversed(range(len(COLUMNS))):     # what no cell has
        if i and not any(row[i] for row in rows[1:]):
            for row in rows:
                del row[i]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * (widths[0])] + ['-' * (w - 1) + ':'
                                          for w in widths[1:]])
    lines = ['| ' + ' | '.join(
        v.ljust(w) if i == 0 else v.rjust(w)
        for i, (v, w) in enumerate(zip(row, widths))) + ' |' for row in rows]
    first = next(iter(results.values()))[0]['conditions_text']
    return ('\n'.join(lines) + '\n\n"0 + 0": to the guest + from it.  Of '
            'several runs of a cell the worst is shown.\n'
            f'Conditions of the first: {first}.\n')


def write_results(path, text, command):
    """Put the table TEXT into the file PATH, between its two marks."""
    begin, end = ('<!-- made by lab/matrix --write: begin -->\n',
                  '<!-- end -->\n')
    before, rest = path.read_text().split(begin)
    after = rest.split(end)[1]
    path.write_text(f'{before}{begin}\n    {command}\n\n{text}\n{end}{after}')
