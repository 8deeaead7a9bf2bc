"""The CodeCarbon tracker as Tamis makes it: it looks at the hardware, and knows nothing else but what it is given.

Left to itself it also takes settings from files of its own in the home and working folders and from variables, asks a
batch system for the machine's size, and logs by itself. None of that may change the energy on record, or end a command.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.emissions_data import EmissionsData

# The tracker's own timer would measure between our samples, from a thread of its own and without a lock.
_OWN_TIMER_S = 10 * 365 * 86400
# Without a country there are no grams; the tracker wants one all the same.
_ANY_COUNTRY = "FRA"
_CPUINFO = Path("/proc/cpuinfo")


def started_tracker(
    tracking: str, country: str | None, cpu_max_w: float | None, on_flush: Callable[[EmissionsData], None]
) -> OfflineEmissionsTracker:
    """Return a running tracker that calls `on_flush` with its totals at each flush.

    `tracking`, `country` and `cpu_max_w` as `EnergyMeter` takes them.
    """
    with _lean_imports(), _quiet(), _some_folder_for_temporary_files():
        import codecarbon.core.util
        import codecarbon.emissions_tracker
        import codecarbon.external.ram
        from codecarbon.output_methods.base_output import BaseOutput

        _keep_out(codecarbon)

        class Capture(BaseOutput):
            def out(self, total: EmissionsData, delta: EmissionsData) -> None:
                on_flush(total)

        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=country or _ANY_COUNTRY,
            tracking_mode=tracking,
            force_cpu_power=cpu_max_w,
            measure_power_secs=_OWN_TIMER_S,
            allow_multiple_runs=True,
            output_methods=[],
            output_handlers=[Capture()],
            log_level="error",
        )
        tracker.start()
    # The first one imports for a tenth of a second, in which an image would wait.
    with _lean_imports():
        tracker.flush()
    for part in tracker._hardware:
        if hasattr(part, "_process"):  # the processor
            part._process = _Childless()
        if hasattr(part, "_children"):  # the memory
            part._children = False
    return tracker


def _keep_out(codecarbon: Any) -> None:
    """Have the library take no settings but its arguments, for as long as this process lives."""
    codecarbon.emissions_tracker.get_hierarchical_config = dict
    # It asks SLURM for the machine's size where a variable names a job, and fails where there is no SLURM.
    codecarbon.core.util.SLURM_JOB_ID = codecarbon.external.ram.SLURM_JOB_ID = None
    # It reads what `lscpu` says in English, which in another language it does not say.
    codecarbon.emissions_tracker.count_physical_cpus = _sockets


@contextmanager
def _quiet() -> Iterator[None]:
    """Have what the library says at its import and its start unsaid; afterwards its errors go where ours go."""
    logger = logging.getLogger("codecarbon")
    logger.disabled = True
    try:
        yield
    finally:
        logger.setLevel(logging.ERROR)
        logger.handlers, logger.propagate, logger.disabled = [], True, False


@contextmanager
def _some_folder_for_temporary_files() -> Iterator[None]:
    """Let the library name a lock that it never makes here, where nothing is writable, as in a hardened container."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = os.sep
        try:
            yield
        finally:
            tempfile.tempdir = None
    else:
        yield


class _Childless:
    """This process as the tracker asks for it, with no children: to find them the table of all processes is read."""

    def __init__(self) -> None:
        process = psutil.Process()
        self.pid = process.pid
        self.cpu_times = process.cpu_times

    def children(self, recursive: bool = False) -> list[Any]:
        return []


@contextmanager
def _lean_imports() -> Iterator[None]:
    """Keep the tracker from what costs much and brings nothing here.

    It reads its tables with pandas, which takes pyarrow where that is, and 40 MB. It asks py-cpuinfo for the
    processor's name, which asks programs of its own for much more, for 1.3 s of a core; on Linux the kernel says it.
    """
    stand_ins: dict[str, Any] = {} if "pyarrow" in sys.modules else {"pyarrow": None}
    if (name := next(_cpuinfo("model name"), None)) is not None and "cpuinfo" not in sys.modules:
        stand_ins["cpuinfo"] = SimpleNamespace(get_cpu_info=lambda: {"brand_raw": name})
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for module in stand_ins:
            del sys.modules[module]


def _sockets() -> int:
    """Return how many processors the machine has, each with its own power at full load; 1 where it is not known."""
    return len(set(_cpuinfo("physical id"))) or 1


def _cpuinfo(key: str) -> Iterator[str]:
    """Yield what the kernel says of `key` for each core; nothing where it does not say."""
    with suppress(OSError):
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                yield value.strip()
