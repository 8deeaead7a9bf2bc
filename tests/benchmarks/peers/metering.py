"""What a stretch of work took of this process, measured the same way on both sides: time, CPU time, Wh, memory.

Needs nothing but CodeCarbon, so that it runs in the peers' environment as well as in this project's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNTRY = "FRA"  # the tracker wants one; only Wh are used
OWN_TIMER_S = 10 * 365 * 86400  # no measuring in between: its thread would cost time of its own


def measured(work: Callable[[], int]) -> dict[str, Any]:
    """Do `work`, which returns how many images it did, and return what that took.

    Wh are those of CodeCarbon's process tracking, an estimate where the processor has no counters that can be read.
    """
    import codecarbon.emissions_tracker
    from codecarbon import OfflineEmissionsTracker

    # No settings but these: not what a file in the home folder says, nor a variable.
    codecarbon.emissions_tracker.get_hierarchical_config = dict
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    tracker = OfflineEmissionsTracker(
        country_iso_code=COUNTRY,
        tracking_mode="process",
        measure_power_secs=OWN_TIMER_S,
        allow_multiple_runs=True,
        output_methods=[],
        log_level="error",
    )
    tracker.start()
    began, cpu = time.perf_counter(), time.process_time()
    images = work()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    tracker.stop()
    return {
        "images": images,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "wh": tracker.final_emissions_data.energy_consumed * 1000,
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float | None:
    """Return the highest resident memory of this process so far, MB; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)


def keep_to_cores(count: int) -> None:
    """Keep this process, and all threads that it will start, to `count` of the cores that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
