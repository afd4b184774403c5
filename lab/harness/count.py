# SPDX-License-Identifier: GPL-2.0-or-later
"""From the records of a run to its figures.  Pure functions, no I/O.

Counting is against what was SENT: else losses at the tail would hide.

Time base.  All times are brought to the host's CLOCK_MONOTONIC, in ns.  The
client and QEMU's events have it.  The guest's clock stands still while the VM
is stopped, so it is the host's clock minus an offset that changes once, at the
migration.  Each packet from the guest carries the guest's time of sending, and
the client notes the host's time of arrival.  The difference is the offset plus
the packet's travel time; the smallest difference of many is the offset, too
large by the fastest packet's travel time.  Before and after the migration are
done separately, each with the packets nearest to it, so that a guest clock that
runs slightly fast or slow does no harm.
"""
import bisect
from collections import Counter
from typing import NamedTuple

SECOND = 1_000_000_000


class Record(NamedTuple):
    arrival_ns: int             # the receiver's clock
    sent_ns: int                # the sender's clock
    seq: int


def faults(sent, records):
    """[(what, number)] of the packets that were 'duplicated', 'reordered' or
    'lost', of SENT that are numbered 0 to SENT - 1."""
    out, seen = [], set()
    highest = -1
    for r in records:
        if not 0 <= r.seq < sent:
            raise ValueError(f'packet {r.seq} was received, '
                             f'but only {sent} were sent')
        if r.seq in seen:
            out.append(('duplicated', r.seq))
            continue
        seen.add(r.seq)
        if r.seq < highest:
            out.append(('reordered', r.seq))
        highest = max(highest, r.seq)
    return out + [('lost', n) for n in range(sent) if n not in seen]


def count(sent, records):
    """Figures of one direction."""
    number = Counter(what for what, _ in faults(sent, records))
    return {'sent': sent, 'received': sent - number['lost'],
            **{what: number[what]
               for what in ('lost', 'duplicated', 'reordered')}}


def charge(sent, records, begins):
    """The same faults, for each of the times BEGINS (the sender's clock): of
    the packets that were sent from then to the next; the first has also those
    before it."""
    rows = [Counter() for _ in begins]
    for what, number in faults(sent, records):
        at = bisect.bisect(begins, send_time(number, records)) - 1
        rows[max(at, 0)][what] += 1
    return [{what: row[what] for what in ('lost', 'duplicated', 'reordered')}
            for row in rows]


def first_arrivals(records):
    """The records without duplicates."""
    seen = set()
    return [r for r in records if not (r.seq in seen or seen.add(r.seq))]


def lost_numbers(sent, records):
    got = {r.seq for r in records}
    return [n for n in range(sent) if n not in got]


def holes(numbers):
    """[(first, last)] of the runs of consecutive numbers."""
    out = []
    for n in numbers:
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return [tuple(h) for h in out]


def outage(arrivals, since=0):
    """The longest time without an arrival of those that end after SINCE, as
    (length, begin), in ns."""
    return max(((b - a, a) for a, b in zip(arrivals, arrivals[1:])
                if b > since), default=(0, 0))


def send_time(seq, records):
    """When packet SEQ was sent, by the packets nearest to it that arrived:
    packets are sent at a constant rate."""
    below = max((r for r in records if r.seq <= seq), key=lambda r: r.seq,
                default=None)
    above = min((r for r in records if r.seq >= seq), key=lambda r: r.seq,
                default=None)
    if not below or not above or below.seq == above.seq:
        return (below or above).sent_ns
    return below.sent_ns + (above.sent_ns - below.sent_ns) * \
        (seq - below.seq) // (above.seq - below.seq)


class GuestClock:
    """Brings the guest's times to the host's clock.

    @records: what the client received from the guest
    @stop, @resume: when the VM was stopped and resumed, host time; None when
        there was no migration
    """

    def __init__(self, records, stop=None, resume=None):
        if stop is None:
            self.before = self.after = min(r.arrival_ns - r.sent_ns
                                           for r in records)
            self.stop = None
            return
        before = [r for r in records if r.arrival_ns < resume]
        after = [r for r in records if r.arrival_ns >= resume]
        self.before = min(r.arrival_ns - r.sent_ns for r in before
                          if r.arrival_ns > before[-1].arrival_ns - SECOND)
        self.after = min(r.arrival_ns - r.sent_ns for r in after
                         if r.arrival_ns < after[0].arrival_ns + SECOND)
        self.stop = stop - self.before          # guest time

    @staticmethod
    def rate(records):
        """How fast the guest's clock runs against the host's; about 1."""
        first, last = records[0], records[-1]
        return (last.sent_ns - first.sent_ns) / \
            (last.arrival_ns - first.arrival_ns)

    def to_host(self, guest_ns):
        if self.stop is None or guest_ns <= self.stop:
            return guest_ns + self.before
        return guest_ns + self.after
