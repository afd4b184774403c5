# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a thread that wants to run has to wait for a CPU.

A TAP's queue of 1,000 frames is full after 20 ms at 50,000 frames/s.  A host
whose CPUs are all busy for so long loses frames whatever QEMU does; a thread
that does nothing but sleep sees it."""
import threading
import time

INTERVAL = 0.001                # seconds that it sleeps


class SchedulingLatency:
    """Measures from now to stop()."""

    def __init__(self):
        self.longest = 0                # seconds
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        before = time.monotonic()
        while not self.stopped.wait(INTERVAL):
            now = time.monotonic()
            self.longest = max(self.longest, now - before - INTERVAL)
            before = now

    def stop(self):
        """Returns the longest wait, in ms."""
        self.stopped.set()
        self.thread.join()
        return self.longest * 1000
