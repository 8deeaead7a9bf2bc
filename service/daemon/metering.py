"""Metering: the daemon's energy meter, which starts beside the loop, and when a row of idling is due."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import OperationalError

from service.energy.meter import EnergyMeter
from service.imaging.decoder_processes import DecoderProcesses
from service.inspection.pipeline import Pipeline
from service.inspection.record import Recorder
from service.settings import Settings
from service.storage.database.open import trouble

log = logging.getLogger(__name__)

# The service manager waits a minute for the end.
CLOSE_AWAY_TIMEOUT_S = 5.0


class Metering:
    """The meter of `pipeline`. `start`, then `close` once the pipeline's threads have ended."""

    def __init__(self, settings: Settings, pipeline: Pipeline, recorder: Recorder, decoder: DecoderProcesses) -> None:
        self._settings = settings
        self._decoder = decoder
        self._pipeline = pipeline
        self._recorder = recorder
        self._meter: EnergyMeter | None = None
        self.idle_row_due = float("inf")
        """Monotonic s; never while there is no meter."""

    def start(self) -> None:
        """Make the meter, in a thread of its own: it takes seconds of a core to look at the hardware."""
        threading.Thread(target=self._start, name="meter", daemon=True).start()

    def write_idle_row(self, now: float) -> None:
        """Have the energy since the last row written as idling, if that is due and nothing is at work."""
        if now >= self.idle_row_due:
            self.idle_row_due = now + self._settings.energy_idle_row_s
            self._pipeline.idle_row()

    def close(self) -> None:
        """Stop metering, and record what was used since the last row."""
        if self._meter is None:
            return
        try:
            self._recorder.add_row(self._meter.close(), CLOSE_AWAY_TIMEOUT_S)
        except OperationalError as error:
            if (why := trouble(error)) is None:
                raise
            log.warning(f"database {why}; the energy since the last row is not on record")

    def _start(self) -> None:
        settings = self._settings
        try:
            self._meter = EnergyMeter(
                tracking=settings.energy_tracking, country=settings.energy_country, cpu_max_w=settings.energy_cpu_max_w
            )
        # Whatever the meter trips over when it looks at the hardware, images are scored; their energy is unknown.
        except Exception:
            log.exception("no energy meter; energy is unknown")
            return
        self._meter.add_cpu_time(lambda: self._decoder.cpu_s)
        self._pipeline.meter = self._meter
        self.idle_row_due = time.monotonic() + settings.energy_idle_row_s
