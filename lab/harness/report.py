# SPDX-License-Identifier: GPL-2.0-or-later
"""Results for people: what was promised, a table, the timeline picture."""
import os
import subprocess
import textwrap
from pathlib import Path

from . import LabError

STOCK_LOSES = 10        # more than that, else there was nothing to save
REORDERED = 5           # at most that many in a migration, each way
DIRECTIONS = (('to_guest', 'client to guest'), ('to_client', 'guest to client'))
FAULTS = ('lost', 'duplicated', 'damaged', 'reordered')


def faults(r, names=FAULTS):
    """The FAULTS of a run as text, both directions: to the guest + from it."""
    return ', '.join(f'{r["to_guest"][n]} + {r["to_client"][n]} {n}'
                     for n in names) + (
        ', at half of the rate' if r.get('fewer') else '')


def is_exact(r, reordered=REORDERED):
    """No packet lost, duplicated or damaged; not more REORDERED than that,
    each way (None: any number)."""
    return not any(r[d][n] for d, _ in DIRECTIONS for n in FAULTS[:3]) and (
        reordered is None or
        all(r[d]['reordered'] <= reordered for d, _ in DIRECTIONS))


def stopped(r):
    return '' if r['stop_window_ms'] is None else \
        f', VM stopped {r["stop_window_ms"]} ms'


def promise(r):
    """(name, kept, figures) of the run R: what is promised of its mode."""
    mode, figures = r['mode'], faults(r) + stopped(r)
    if mode == 'control':
        return 'loses-nothing-without-a-migration', is_exact(r, 0), figures
    if mode == 'stock':
        return ('loses-packets', r['to_guest']['lost'] > STOCK_LOSES and
                not r['to_guest']['damaged'] + r['to_client']['damaged'],
                figures)
    return 'is-exact', is_exact(r, may_reorder(r['conditions'])), figures


def may_reorder(c):
    """How many packets each way may be reordered under the conditions C.  None
    where what is given back comes before everything else, and where the lab
    has as much to deliver as shows the order."""
    failed = c['ending'].startswith(('cancelled', 'destination'))
    return 0 if failed or c['burst'] or c['paused'] >= 0 else REORDERED


# -- table -------------------------------------------------------------------

COLUMNS = ('sent', 'lost', 'duplicated', 'reordered', 'damaged')


def table(results):
    """Both directions of each run, and the conditions."""
    results = list(results)
    rows = [('', '', *COLUMNS, 'outage', 'VM stopped', 'downtime')]
    rows += [('', '', '', '', '', '', '', 'ms', 'ms', 'reported, ms')]
    for r in results:
        for i, (key, text) in enumerate(DIRECTIONS):
            f = r[key]
            rows.append((
                '' if i else r['mode'], text, *(f[c] for c in COLUMNS),
                f['outage_ms'],
                *(('', '') if i or r['stop_window_ms'] is None else
                  (r['stop_window_ms'],
                 '-' if r['reported_downtime_ms'] is None
                 else r['reported_downtime_ms']))))
    widths = [max(len(str(row[i])) for row in rows)
              for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [str(v).ljust(w) if i < 2 else str(v).rjust(w)
                 for i, (v, w) in enumerate(zip(row, widths))]
        lines.append('  '.join(cells).rstrip())
    rule = '-' * max(map(len, lines))
    body = '\n'.join([*lines[:2], rule, *lines[2:]])
    if sent := [f'{r["mode"]} {r["sent_in_stop"]}' for r in results
                if r['sent_in_stop'] is not None]:
        body += f'\n\nSent to the guest in the stop: {", ".join(sent)}.'
    return f'{body}\n\nConditions: {r["conditions_text"]}.'


def conclusion(results, c, pictures):
    """The last lines of the demo: what was found, and what to do next."""
    lost = {mode: 'lost {lost} of {sent}'.format(**results[mode]['to_guest'])
            for mode in NAMES}
    # A machine that is too busy gets fewer of them (migrate.measured)
    rates = ' and '.join(dict.fromkeys(
        str(results[mode]['conditions']['rate']) for mode in NAMES))
    lines = [
        ('Packets to the guest', f'stock QEMU {lost["stock"]}, '
                                 f'this one {lost["ours"]}'),
        ('Conditions', f'{rates} packets/s, ' +
                       (f'{c.burst} more while the VM is stopped, '
                        if c.burst else '') + f'txqueuelen {c.txqueuelen}, '
                       f'vhost={"on" if c.vhost else "off"}'),
        ('Picture', ', '.join(map(os.path.relpath, pictures))),
        ('Next', 'README.md, "Use it"; make check, which tests everything' +
                 ('' if c.vhost else '; make demo-vhost, this with a real '
                  'vhost-net (in a VM: slow)'))]
    return '\n'.join(f'{name + ":":22}{text}' for name, text in lines)


# -- picture -----------------------------------------------------------------

# Told apart by colour-blind readers, too: what was lost has another shape.
BLUE, RED, GREY, SHADE = '#1f6fb4', '#d1342f', '#9a9aa5', '#e9e9ee'
INK = '#333333'
NAMES = {'stock': 'Stock QEMU', 'ours': 'This QEMU'}


def data_block(name, points):
    lines = [f'{t} {n}' for t, n in points] or ['NaN NaN']
    return '\n'.join([f'${name} << EOD', *lines, 'EOD'])


def panel(r, key):
    """gnuplot commands for one run."""
    mode, f, resume = r['mode'], r['to_guest'], r['timeline']['resume_ms']
    return f'''
set label 1 "{{/:Bold {NAMES[mode]}}}: {f['lost']} of {f['sent']} packets \
lost, longest time without a packet {f['outage_ms']:.0f} ms" \
    at graph 0,1.06 left
set label 2 "VM stopped, {resume:.0f} ms" \\
    at {resume / 2},graph 0.93 center
set object 1 rectangle from 0,graph 0 to {resume},graph 1 \
    behind fillcolor rgb "{SHADE}" fillstyle solid noborder
set key {key}
plot $sent_{mode} with lines lw 1 lc rgb "{GREY}" title "sent", \
     $received_{mode} with points pt 7 ps 0.45 lc rgb "{BLUE}" \
         title "received by the guest", \
     $lost_{mode} with points pt 2 ps 0.65 lw 1.6 lc rgb "{RED}" title "lost"
'''


def picture(results, out):
    """Write demo.png, demo.svg and its demo.gp to the directory OUT: number
    over time of the packets to the guest, one panel per run, on one scale."""
    longest = max(max(r['timeline']['resume_ms'], r['to_guest']['outage_ms'])
                  for r in results)
    begin, end = -0.5 * longest, 2 * longest
    blocks, numbers = [], [0]
    for r in results:
        t = r['timeline']
        # number 0 is the first packet sent after the stop
        zero = min(n for at, n in t['sent'] + t['lost'] if at > 0)
        for kind in ('sent', 'received', 'lost'):
            points = t['sent'] + t['lost'] if kind == 'sent' else t[kind]
            points = sorted((at, n - zero) for at, n in points
                            if begin <= at <= end)
            blocks.append(data_block(f'{kind}_{r["mode"]}', points))
            numbers += [n for _, n in points]

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    conditions = '\\n'.join(textwrap.wrap(results[0]['conditions_text'], 150))
    script = f'''# Packets to a guest during its live migration (gnuplot)
{chr(10).join(blocks)}
set terminal TERMINAL
set output OUTPUT
set multiplot layout {len(results)},1 \\
    margins 0.08,0.975,0.14,0.87 spacing 0,0.12
set label 10 "{{/:Bold=16 Packets to a guest during its live migration}}" \\
    at screen 0.08,0.965 left
set label 11 "{conditions}" \\
    at screen 0.08,0.035 left font ",10" textcolor rgb "#666666"
set xrange [{begin}:{end}]
set yrange [{1.1 * min(numbers)}:{1.1 * max(numbers)}]
set border 3 lc rgb "{INK}"
set tics nomirror out scale 0.5
set grid xtics ytics lt 1 lc rgb "#dddddd" lw 0.5
set key bottom right Left reverse samplen 1.5 spacing 1.15
set ylabel "packet number"
'''
    for i, r in enumerate(results):
        if i == len(results) - 1:
            script += ('set xlabel "time since the VM was stopped on the '
                       'source host, ms"\n')
        script += panel(r, 'off' if i else 'on')
        script += 'unset label 10\nunset label 11\n'
    script += 'unset multiplot\n'
    made = []
    for terminal, name in (
            ('pngcairo size 1350,960 font "sans,14" enhanced', 'demo.png'),
            ('svg size 900,640 font "Helvetica,13" background "white" '
             'enhanced', 'demo.svg')):
        path = out / name
        commands = script.replace('TERMINAL', terminal).replace(
            'OUTPUT', f'"{name}"')
        (out / 'demo.gp').write_text(commands)
        try:
            r = subprocess.run(['gnuplot'], input=commands, text=True,
                               cwd=out, capture_output=True)
        except FileNotFoundError:
            raise LabError('gnuplot is not installed (package gnuplot-nox): '
                           'no picture') from None
        if r.returncode or not path.exists():
            raise LabError(f'gnuplot: {r.stderr.strip()}')
        made.append(path)
    return made
