"""Energy: what the service used since it was last asked, in Wh and grams of CO2e.

Owns its tracker. Every joule that it counts is given out once: all samples add up to its total.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from service.energy.tracker import started_tracker
from service.storage.energy_sample import EnergySample

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.emissions_data import EmissionsData

log = logging.getLogger(__name__)

_MEASURING_MODES = frozenset({"intel_rapl", "intel_power_gadget", "windows_emi", "apple_powermetrics"})
_WH_PER_KWH = 1000.0
_G_PER_KG = 1000.0


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
        self._total = _Total()
        self._tracker: OfflineEmissionsTracker | None = started_tracker(tracking, country, cpu_max_w, self._take_total)
        modes = {getattr(part, "_mode", None) for part in self._tracker._hardware}
        self.source: Literal["measured", "estimated"] = "measured" if modes & _MEASURING_MODES else "estimated"
        # It hides what it trips over when it starts, and would report zero for ever after.
        self._counts = self._tracker._start_time is not None
        if not self._counts:
            log.warning("the energy meter did not start; energy is unknown")
        self._given = self._total = _Total()
        self._given_at = time.monotonic()
        self._started_at = datetime.now(UTC)

    def _take_total(self, total: EmissionsData) -> None:
        self._total = _Total(
            cpu_wh=total.cpu_energy * _WH_PER_KWH,
            gpu_wh=total.gpu_energy * _WH_PER_KWH,
            ram_wh=total.ram_energy * _WH_PER_KWH,
            total_wh=total.energy_consumed * _WH_PER_KWH,
            emissions_g=total.emissions * _G_PER_KG,
        )

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

    def add_cpu_time(self, cpu_s: Callable[[], float]) -> None:
        """Count as this process's, from now on, the CPU time of others that work for it: `cpu_s` is theirs so far."""
        with self._lock:
            for part in self._tracker._hardware if self._tracker is not None else ():
                process = getattr(part, "_process", None)
                if process is not None:
                    process.cpu_times = partial(_with_more, process.cpu_times, cpu_s, cpu_s())

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


def _with_more(own: Callable[[], Any], cpu_s: Callable[[], float], before_s: float) -> Any:
    times = own()
    return times._replace(user=times.user + cpu_s() - before_s)
