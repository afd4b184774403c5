# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench's harness: figures of the data path, contenders side by side.

    world.py       private namespaces, TAPs, child processes, counters
    qemu.py        the QEMUs, and the turns of their main loop
    contenders.py  who captures: ours, stock, tcpdump, ...: start, count, CPU
    items.py       what is measured, one function per item, and its goals
    report.py      results -> text, Markdown, reStructuredText

The monitor protocol is the lab's, lab/harness/qmp.py.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'lab'))

from harness import LabError                                    # noqa: E402


class BenchError(LabError):
    """Something the user can act on: says what failed, and the way out."""


class CannotRun(Exception):
    """A contender that this machine does not have; says why."""
