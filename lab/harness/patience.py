# SPDX-License-Identifier: GPL-2.0-or-later
"""Time limits that count time without progress.

A slow or busy machine must not fail a wait; only something that does not get
on may.  So a wait ends when nothing of what is awaited has changed for as long
as its limit says: the CPU time of processes, the length of what they write.
CPU time is also used by a process that spins, or by a guest whose timer ticks;
hence a hard bound, 20 times the limit, unless the progress is of another kind.
"""
import time
from pathlib import Path

INTERVAL = 1                    # seconds between two looks, at most
BOUND = 20                      # limits after which a wait ends in any case


def processes():
    """{process id: (that of its parent, CPU time in clock ticks)}"""
    found = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text(errors='replace').rsplit(')', 1)[1].split()
        except OSError:         # it has ended
            continue
        found[int(path.parent.name)] = (int(fields[1]),
                                        int(fields[11]) + int(fields[12]))
    return found


def children(pid):
    return [child for child, (parent, _) in processes().items()
            if parent == pid]


def cpu_time(*pids):
    """Of these processes and all that descend from them, in clock ticks."""
    known = processes()
    ours = set(pids)
    while more := {pid for pid, (parent, _) in known.items()
                   if parent in ours} - ours:
        ours |= more
    return sum(known[pid][1] for pid in ours if pid in known)


def sizes(paths):
    """Of files, which need not exist."""
    return [path.stat().st_size if path.exists() else 0
            for path in map(Path, paths)]


class Patience:
    """A wait: between two looks at what is awaited, wait for .interval at most,
    and see if it is .over()."""

    def __init__(self, seconds, progress, bound=BOUND):
        """@progress: a function whose value changes as long as what is awaited
        gets on; @bound: see above, None for no bound"""
        self.seconds, self.progress = seconds, progress
        self.bound = bound and bound * seconds
        self.interval = min(INTERVAL, seconds)
        # The first look takes its time, and most waits are over before it
        self.looked, self.state = time.monotonic(), None
        self.idle = self.total = 0

    def over(self):
        now = time.monotonic()
        passed = now - self.looked
        if passed >= self.interval:
            # Not the time in which this process did not run either
            passed = min(passed, 2 * self.interval)
            state = self.progress()
            self.idle = 0 if state != self.state else self.idle + passed
            self.total += passed
            self.looked, self.state = now, state
        return self.idle >= self.seconds or bool(
            self.bound and self.total >= self.bound)

    def __str__(self):
        """Why it is over."""
        if self.idle >= self.seconds:
            return f'no progress for {self.seconds:g} s'
        return f'not done after {self.bound:g} s'
