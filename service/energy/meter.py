"""Energy: what the service used since it was last asked, in Wh and grams of CO2e.

Owns the CodeCarbon tracker. Every joule that it counts is given out once: all samples add up to its total.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psutil

from service.storage.energy_sample import EnergySample

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.emissions_data import EmissionsData

log = logging.getLogger(__name__)

# The tracker's own timer would measure between our samples, from a thread of its own and without a lock.
_OWN_TIMER_S = 10 * 365 * 86400
_MEASURING_MODES = frozenset({"intel_rapl", "intel_power_gadget", "windows_emi", "apple_powermetrics"})
_WH_PER_KWH = 1000.0
_G_PER_KG = 1000.0
# Without a country there are no grams; the tracker wants one all the same.
_ANY_COUNTRY = "FRA"
_CPUINFO = Path("/proc/cpuinfo")


class _Total(NamedTuple):
    cpu_wh: float = 0.0
    gpu_wh: float = 0.0
    ram_wh: float = 0.0
    total_wh: float = 0.0
    emissions_g: float = 0.0


class EnergyMeter:
    """Counts the energy of this process, or of the machine; what starts processes of its own has rows of its own.

    `tracking` is `process` or `machine`, `country` an ISO 3166 alpha-3 code or None (emissions are then unknown),
    `cpu_max_w` the processor's W at full load where it is not to be looked up. Safe to use from several threads.
    """

    def __init__(
        self, *, tracking: str = "process", country: str | None = None, cpu_max_w: float | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._country = country
        with _lean_imports():
            self._tracker: OfflineEmissionsTracker | None = self._started(tracking, country, cpu_max_w)
        modes = {getattr(part, "_mode", None) for part in self._tracker._hardware}
        self.source: Literal["measured", "estimated"] = "measured" if modes & _MEASURING_MODES else "estimated"
        # It hides what it trips over when it starts, and would report zero for ever after.
        self._counts = self._tracker._start_time is not None
        if not self._counts:
            log.warning("the energy meter did not start; energy is unknown")
        self._given = self._total = _Total()
        self._given_at = time.monotonic()
        self._started_at = datetime.now(UTC)

    def _started(self, tracking: str, country: str | None, cpu_max_w: float | None) -> OfflineEmissionsTracker:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.output_methods.base_output import BaseOutput

        meter = self

        class Capture(BaseOutput):
            def out(self, total: EmissionsData, delta: EmissionsData) -> None:
                kwh = (total.cpu_energy, total.gpu_energy, total.ram_energy, total.energy_consumed)
                meter._total = _Total(*(_WH_PER_KWH * each for each in kwh))._replace(
                    emissions_g=total.emissions * _G_PER_KG
                )

        # After the import, which sets a level of its own.
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        tracker = OfflineEmissionsTracker(
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
        tracker.flush()
        for part in tracker._hardware:
            if hasattr(part, "_process"):  # the processor
                part._process = _Childless()
            if hasattr(part, "_children"):  # the memory
                part._children = False
        return tracker

    def take(self, kind: str, images: int = 0) -> EnergySample | None:
        """Return the energy used since the last call, as a sample of `kind` (scoring, idle, training, evaluation).

        None once the meter is closed.
        """
        with self._lock:
            return self._sample(kind, images) if self._measure() else None

    def measure_wh(self) -> float:
        """Measure, and return the Wh used since the meter was made, until it was closed; nothing is given out."""
        with self._lock:
            self._measure()
            return self._total.total_wh

    def close(self, kind: str = "idle") -> EnergySample | None:
        """Stop metering and return what was used since the last sample."""
        with self._lock:
            if not self._measure() or self._tracker is None:
                return None
            self._tracker.stop()
            self._tracker = None
            return self._sample(kind, 0)

    def _measure(self) -> bool:
        if self._tracker is None:
            return False
        # `flush` alone leaves out what is less than 50 ms old, and with it a whole micro-batch after idling.
        self._tracker._measure_power_and_energy()
        self._tracker.flush()
        return True

    def _sample(self, kind: str, images: int) -> EnergySample:
        now, started_at = time.monotonic(), self._started_at
        duration_s = now - self._given_at
        used = _Total(*(total - given for total, given in zip(self._total, self._given, strict=True)))
        self._given, self._given_at, self._started_at = self._total, now, datetime.now(UTC)
        known = {name: value if self._counts else None for name, value in used._asdict().items()}
        if self._country is None:
            known["emissions_g"] = None
        return EnergySample(
            kind=kind,
            started_at=started_at,
            duration_s=duration_s,
            images=images,
            source=self.source,
            country=self._country,
            **known,
        )


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
    if (name := _processor_name()) is not None and "cpuinfo" not in sys.modules:
        stand_ins["cpuinfo"] = SimpleNamespace(get_cpu_info=lambda: {"brand_raw": name})
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for module in stand_ins:
            del sys.modules[module]


def _processor_name() -> str | None:
    """Return what the kernel calls the processor, as py-cpuinfo does; None where it does not say."""
    with suppress(OSError):
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() == "model name":
                return value.strip()
    return None
