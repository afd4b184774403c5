# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the threads that empty the queues of the TAPs have to wait for a CPU.

A TAP's queue of 1,000 frames is full after 20 ms at 50,000 frames/s.  A host
whose CPUs are all busy for so long loses frames whatever QEMU does.  The kernel
counts how long each thread has waited on a run queue (the second number of
/proc/PID/task/TID/schedstat, in ns), when it gets the CPU.  A thread that gets
one for a moment only, between two waits, does not empty a queue: what counts is
the sum of its waits in the time in which the queue fills."""
import threading
import time
from collections import deque
from pathlib import Path

READER = 'switchover-rx'        # the name of QEMU's thread
INTERVAL = 0.001                # seconds between two looks
SEARCH = 20                     # looks between two searches for new threads


class ReaderLatency:
    """Measures the readers of the processes PIDS from now to stop(): how long
    one has waited within WINDOW ms, at most."""

    def __init__(self, pids, window):
        self.pids = pids
        self.window = window * 1e6      # ns
        self.waited = {}                # file: ns so far
        self.waits = {}                 # file: (when it was seen, ns)
        self.longest = 0                # ns
        self.found = False
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def search(self):
        for pid in self.pids:
            for task in Path(f'/proc/{pid}/task').glob('*'):
                try:
                    if (task / 'comm').read_text().strip() == READER:
                        self.waited.setdefault(task / 'schedstat', None)
                        self.found = True
                except OSError:         # it has ended
                    pass

    def look(self):
        for file, before in list(self.waited.items()):
            try:
                now = int(file.read_text().split()[1])
            except OSError:
                del self.waited[file]
                continue
            if before is not None and now > before:
                self.add(self.waits.setdefault(file, deque()), now - before)
            self.waited[file] = now

    def add(self, waits, ns):
        """A wait of NS has just ended."""
        now = time.monotonic_ns()
        waits.append((now, ns))
        # One that began before the window, but ended in it, counts whole
        while waits[0][0] < now - self.window:
            waits.popleft()
        self.longest = max(self.longest, sum(ns for _, ns in waits))

    def run(self):
        looks = 0
        while True:
            if looks % SEARCH == 0:
                self.search()
            self.look()
            looks += 1
            if self.stopped.wait(INTERVAL):
                break
        self.look()

    def stop(self):
        """Returns the most that one has waited, in ms; None if there was no
        reader."""
        self.stopped.set()
        self.thread.join()
        return round(self.longest / 1e6, 1) if self.found else None
