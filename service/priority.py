"""Priority: how this process steps back behind the one that scores, on the processor, the disk and in memory.

What it starts inherits all of it. Nothing here needs a privilege, and what a system does not know is left out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LOWEST_NICENESS = 19
OOM_SCORE = 500
"""Of the scale of oom_score_adj, -1000 to 1000: where memory runs out, this goes before scoring does."""


def step_back() -> None:
    """Give this process the lowest priority: it runs where nothing else wants to."""
    import psutil

    os.setpriority(os.PRIO_PROCESS, 0, LOWEST_NICENESS)
    with suppress(OSError, AttributeError):
        # Niceness alone still gives a waking thread its turn before a scoring one has had its own.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
