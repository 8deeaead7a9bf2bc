"""Priority: how this process steps back behind the one that scores, on the processor, the disk and in memory.

What it starts inherits all of it. Nothing here needs a privilege, and what a system does not know is left out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NICENESS = 10
"""A tenth of a core beside what is always busy. With less, a line that never rests would never be learned from: of two
cores that others kept busy, a training under SCHED_IDLE was given 0.016 of one.
"""
OOM_SCORE = 500
"""Of the scale of oom_score_adj, -1000 to 1000: where memory runs out, this goes before scoring does."""


def step_back() -> None:
    """Give this process a low priority: what else wants to run goes before it, for nine tenths of the time."""
    import psutil

    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    with suppress(OSError, AttributeError):
        # Niceness alone still gives a waking thread its turn before a scoring one has had its own.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
