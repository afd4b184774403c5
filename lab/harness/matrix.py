# SPDX-License-Identifier: GPL-2.0-or-later
"""The cells of the migration matrix, what is asserted of each, and the table.

What is asserted is what the series can do now, by what was measured
(lab/RESULTS.md); the figures of every cell are reported in any case:

- nothing is damaged, and a control loses nothing;
- stock with precopy that completes loses more than STOCK_LOSES packets, else
  there was nothing to save;
- ours with precopy and the source kept loses, of the packets that were sent
  after the VM had been stopped, less than a tenth of what stock has lost.

The rest is only reported yet: the packets that the source's TAP holds when the
VM is stopped are lost, which are many when the guest in the VM in the machine
is slow; what a killed source still had is lost with it; and postcopy stops the
VM so shortly that stock loses few.
"""
from typing import NamedTuple

from .migrate import COPIES, ENDINGS, Conditions

LIMIT = 3600                    # seconds for all cells
STOCK_LOSES = 10
TCP = 8                         # Mbit/s; TCG in TCG takes no more
CI = ('control-vhost', 'stock-vhost-precopy-source-kept',
      'ours-vhost-precopy-source-kept',
      'ours-vhost-precopy-source-killed', 'ours-vhost-precopy-cancelled',
      'ours-vhost-postcopy-source-killed', 'stock-vhost-tcp', 'ours-vhost-tcp')


class Cell(NamedTuple):
    name: str
    mode: str
    conditions: Conditions

    @property
    def in_ci(self):
        return self.name in CI


def cells():
    """All of them, each control first."""
    for vhost, text in ((True, 'vhost'), (False, 'no-vhost')):
        yield Cell(f'control-{text}', 'control', Conditions(vhost=vhost))
        for copy in COPIES:
            for ending in ENDINGS:
                for mode in 'stock', 'ours':
                    yield Cell(f'{mode}-{text}-{copy}-{ending}', mode,
                               Conditions(vhost=vhost, copy=copy,
                                          ending=ending))
    for mode in 'stock', 'ours':
        yield Cell(f'{mode}-vhost-tcp', mode, Conditions(vhost=True, tcp=TCP))


def judge(cell, results):
    """(is all as asserted, figures) of CELL, whose result is one of RESULTS."""
    r, c = results[cell.name], cell.conditions
    to_guest, to_client = r['to_guest'], r['to_client']
    lost = to_guest['lost']
    after = to_guest['lost_after_stop']
    text = (f'{lost} lost ({after} sent after the stop), '
            f'{to_guest["duplicated"]} duplicated, '
            f'{to_guest["reordered"]} reordered, outage '
            f'{to_guest["outage_ms"]} ms, VM stopped {r["stop_window_ms"]} ms')
    if r['tcp']:
        text += (f', TCP stall {r["tcp"]["stall_ms"]} ms, '
                 f'{r["tcp"]["retransmitted"]} retransmitted')
    kept = not to_guest['damaged'] + to_client['damaged']
    if cell.mode == 'control':
        kept &= not lost + to_client['lost'] + to_guest['duplicated']
    elif (c.copy, c.ending, c.tcp) == ('precopy', 'source-kept', 0):
        if cell.mode == 'stock':
            kept &= after > STOCK_LOSES
        elif same := results.get('stock' + cell.name[len('ours'):]):
            kept &= after * 10 < same['to_guest']['lost_after_stop']
    return bool(kept), text


COLUMNS = (('cell', lambda r: r['name']),
           ('sent', lambda r: r['to_guest']['sent']),
           ('lost', lambda r: r['to_guest']['lost']),
           ('after stop', lambda r: r['to_guest']['lost_after_stop']),
           ('dup.', lambda r: r['to_guest']['duplicated']),
           ('reord.', lambda r: r['to_guest']['reordered']),
           ('damaged', lambda r: r['to_guest']['damaged']),
           ('lost from guest', lambda r: r['to_client']['lost']),
           ('outage ms', lambda r: r['to_guest']['outage_ms']),
           ('stopped ms', lambda r: r['stop_window_ms']),
           ('TCP stall ms', lambda r: r['tcp'] and r['tcp']['stall_ms']),
           ('TCP retrans.', lambda r: r['tcp'] and r['tcp']['retransmitted']))


def table(results):
    """Markdown, in columns that can be read as they are."""
    rows = [[title for title, _ in COLUMNS]]
    for name, r in results.items():
        values = [value({**r, 'name': name}) for _, value in COLUMNS]
        rows.append(['' if v is None else str(v) for v in values])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * (widths[0])] + ['-' * (w - 1) + ':'
                                          for w in widths[1:]])
    lines = ['| ' + ' | '.join(
        v.ljust(w) if i == 0 else v.rjust(w)
        for i, (v, w) in enumerate(zip(row, widths))) + ' |' for row in rows]
    first = next(iter(results.values()))['conditions_text']
    return '\n'.join(lines) + f'\n\nConditions of the first: {first}.\n'
