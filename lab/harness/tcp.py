# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP transfer to the guest, all of which is compared, across a migration.

The guest's NIC and the TAP have all offloads on: the guest gets frames of up to
64 KiB with unfilled checksums, on each host.  Asserted are, of the control
without a migration: the guest's SHA-256 is the sender's; of stock: the same; of
ours: the same, and hardly more segments retransmitted than by the control and
with stock.  (On a busy machine that has lost none: TCP had just paused.)
"""
from . import InvalidRun, LabError, migrate
from .migrate import Conditions

MB = 128                        # in CI
RATE = 100                      # Mbit/s; half of it, if the guest is too slow
SLOW = 1.2                      # it is, if the control takes longer by that
LEAST = 10                      # Mbit/s; the lab is at fault if it is too slow
MTU = 1514                      # bytes of the largest frame that is not GSO
# Segments more than without a migration, that need not have been lost: a stop
# of the guest, and frames that overtake others, look like a loss to TCP, too.
# Ours had 5 more (9 and 6, the controls 4 and 1); stock, which loses some, 158
EXTRA = 20
# The other stream, only to see the guest alive
BESIDE = dict(rate=50, answers=50, before=1, after=1)


def judge(mode, r, others):
    """[(name, kept, figures)] of a run; @others: results of earlier modes"""
    tcp = r['tcp']
    frames = ' and '.join(map(str, tcp['mean_frames']))
    figures = (f'{tcp["bytes"] / 1e6:.0f} MB in {tcp["seconds"]} s, frames of '
               f'{frames} bytes on average, TCP stall '
               f'{tcp["stall_ms"]} ms, {tcp["retransmitted"]} segments '
               'retransmitted')
    if mode != 'control':
        figures += f', VM stopped {r["stop_window_ms"]} ms'
    yield (f'tcp-{mode}-sha256-is-equal', tcp['intact'], figures)
    yield (f'tcp-{mode}-gets-gso-frames', min(tcp['mean_frames']) > MTU,
           f'{frames} bytes')
    if mode == 'ours':
        for other in 'control', 'stock':
            theirs = others[other]['tcp']['retransmitted']
            yield (f'tcp-ours-retransmits-no-more-than-{other}',
                   tcp['retransmitted'] <= theirs + EXTRA,
                   f'{tcp["retransmitted"]}, {other} {theirs}, '
                   f'{EXTRA} more allowed')


def run(mode, mb, rate, say):
    c = Conditions(tcp=rate, tcp_mb=mb, **BESIDE)
    try:
        return migrate.run(mode, c, say=say)
    except InvalidRun as e:
        say(f'tcp, {mode}: {e}; once more')
        return migrate.run(mode, c, say=say)


def control(mb, rate, say):
    """(result, rate) of the highest rate, from RATE on, that is kept up.  A
    guest that is slower makes its peer retransmit, for no other reason."""
    while rate >= LEAST:
        r = run('control', mb, rate, say)
        if r['tcp']['seconds'] <= SLOW * mb * 8 / rate:
            return r, rate
        say(f'tcp: {mb} MB took {r["tcp"]["seconds"]} s: {rate} Mbit/s are too '
            'fast for the guest')
        rate //= 2
    raise LabError('the guest is too slow for a TCP transfer; is the machine '
                   'overloaded?')


def checked(mb=MB, rate=RATE, say=lambda line: None):
    """The three runs, judged, one after the other."""
    others = {}
    for mode in migrate.MODES:
        try:
            if mode == 'control':
                r, rate = control(mb, rate, say)
            else:
                r = run(mode, mb, rate, say)
        except LabError as e:
            yield f'tcp-{mode}', False, ' '.join(str(e).split())
            return
        yield from judge(mode, r, others)
        others[mode] = r
