"""Scheduler: starts retrainings beside the daemon when they are due, one at a time, each a process of its own.

Owns that process. `service.retraining.due` says what is due, `service.energy.grid_intensity` how long it may wait.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from service.cron import parse_cron
from service.energy import grid_intensity
from service.logs import fields
from service.retraining.due import DueReason, RetrainingFacts, counting, due
from service.retraining.lock import retraining_runs
from service.settings import Settings
from service.storage import retrainings, versions
from service.training.run import child_environment

log = logging.getLogger(__name__)

END_WAIT_S = 15.0
PIPES_WAIT_S = 5.0
DURATION_UNKNOWN = timedelta(minutes=10)
_SAID_BYTES_MAX = 400
# What systemd told the daemon does not concern a child.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Schedule:
    """The retrainings of one root. `look` whenever there may be something new, `stop`, then `close`.

    `start_retraining` makes the process for a product and a reason; `clock` gives the time, UTC.
    """

    def __init__(
        self,
        root: Path,
        engine: Engine,
        settings: Settings,
        start_retraining: Callable[[Path, str, str], subprocess.Popen[str]] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._root = root
        self._engine = engine
        self._settings = settings
        self._start_retraining = start_retraining or start_process
        self._clock = clock
        self._cron = parse_cron(settings.retrain_cron) if settings.retrain_cron else None
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._seen: tuple[int, ...] | None = None
        self._cron_at: datetime | None = None
        self._planned: list[datetime] = []
        self._held: dict[str, int] = {}
        self._said: set[str] = set()

    @property
    def wanted(self) -> bool:
        """Whether the settings ask for automatic retrainings."""
        settings = self._settings
        return bool(self._cron or settings.retrain_after_labels or settings.drift_retrain)

    def next_time(self, now: datetime) -> datetime | None:
        """Return the next time of `retrain_cron`, or at which a retraining has waited for greener power, if any."""
        cron_at = self._cron.next_time(now) if self._cron is not None else None
        return min((at for at in (cron_at, *self._planned) if at is not None and at > now), default=None)

    def look(self) -> None:
        """Run what is due, one after the other."""
        now = self._clock()
        cron_at = self._cron.next_time(now) if self._cron is not None else None
        # A time of cron has passed, or is the first: while nothing ran, some may have.
        timed = cron_at != self._cron_at
        if timed:
            self._held.clear()
        while not self._stopping.is_set():
            with self._engine.connect() as connection:
                seen = retrainings.newest(connection)
                waiting = retrainings.in_state(connection, "waiting")
                self._planned = [row.planned_at for row in waiting if row.planned_at is not None]
                over = (row for row in waiting if row.planned_at is None or row.planned_at <= now)
                found = next(((row.product, row.trigger) for row in over), None)
                if found is None and (timed or seen != self._seen):
                    found = self._find(connection, now, {row.product for row in waiting})
            if found is None:
                self._seen, self._cron_at = seen, cron_at
                return
            if retraining_runs(self._root):
                # One by hand. What is due will still be due when that has ended; recorded as failed it would be lost.
                return
            if not self._postpone(*found, now):
                self._retrain(*found)
            now = max(now, self._clock())

    def stop(self) -> None:
        """Start no more retrainings and end the running one; returns at once."""
        with self._changing:
            self._stopping.set()
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()

    def close(self) -> None:
        """Wait until the running retraining has ended; kill it if it does not within `END_WAIT_S`."""
        self.stop()
        if self._child is None:
            return
        try:
            self._child.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            log.warning("retraining did not end; killed", extra=fields(pid=self._child.pid))
            self._child.kill()

    def _find(self, connection: Connection, now: datetime, planned: set[str]) -> tuple[str, DueReason] | None:
        """Return the first product that is to be retrained at `now` and why; those `planned` have their time."""
        settings = self._settings
        for product in sorted(versions.champions(connection)):
            if product in planned:
                continue
            runs = retrainings.runs(connection, product, limit=2)
            unlearned = retrainings.new_labels(connection, product, retrainings.last_learned(connection, product))
            if self._held.get(product) == unlearned.count:
                continue
            since_last = retrainings.new_labels(connection, product, counting(runs))
            facts = RetrainingFacts(runs, unlearned, since_last, retrainings.drifting_since(connection, product))
            why = due(
                facts, now, cron=self._cron, after_labels=settings.retrain_after_labels, on_drift=settings.drift_retrain
            )
            if why is not None:
                return product, why
        return None

    def _postpone(self, product: str, why: str, now: datetime) -> bool:
        """Plan the retraining for greener hours, where there is a table of them; return whether it waits now."""
        settings = self._settings
        if settings.retrain_carbon_file is None or why == "drift":
            return False
        with self._engine.connect() as connection:
            if retrainings.waiting_for(connection, product) is not None:
                return False
            last = retrainings.last_learned(connection, product)
        took = last.ended_at - last.started_at if last and last.ended_at and last.started_at else DURATION_UNKNOWN
        try:
            intensity = grid_intensity.read_intensity(self._root / settings.retrain_carbon_file)
        except grid_intensity.CarbonFileWrong as error:
            self._say_once(f"retraining does not wait for greener power: {error}")
            return False
        start = grid_intensity.greenest_start(intensity, now, timedelta(hours=settings.retrain_deadline_h), took)
        if start is None:
            self._say_once(
                f"retraining does not wait for greener power: {settings.retrain_carbon_file}: expected the intensity "
                f"of the hours to come; found none"
            )
        if start is None or start <= now:
            return False
        with self._engine.begin() as connection:
            retrainings.request(connection, product, why, state="waiting", requested_at=now, planned_at=start)
        log.info("retraining waits for greener power", extra=fields(product=product, until=start.isoformat()))
        return True

    def _retrain(self, product: str, why: str) -> None:
        with self._changing:
            if self._stopping.is_set():
                return
            self._child = child = self._start_retraining(self._root, product, why)
        log.info("retraining started", extra=fields(product=product, trigger=why, pid=child.pid))
        out, err = _output(child)
        if child.returncode == 0:
            row = _parsed(out)
            log.info(
                "retraining ended",
                extra=fields(
                    product=product, outcome=row.get("outcome"), version=row.get("challenger"), reason=row.get("reason")
                ),
            )
            return
        with self._engine.begin() as connection:
            # Where it could not even say what became of it, it must not be started again and again.
            self._held[product] = retrainings.new_labels(
                connection, product, retrainings.last_learned(connection, product)
            ).count
            row_waiting = retrainings.waiting_for(connection, product)
            if row_waiting is not None:
                retrainings.change(
                    connection, row_waiting.id, state="failed", ended_at=self._clock(), reason="it could not begin"
                )
        said = err.strip().rpartition("\n")[2][-_SAID_BYTES_MAX:]
        if self._stopping.is_set():
            log.info("retraining stopped", extra=fields(product=product))
        else:
            log.error("retraining failed", extra=fields(product=product, code=child.returncode, reason=said))

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.error(text)


def start_process(root: Path, product: str, why: str) -> subprocess.Popen[str]:
    """Start `tamis retrain` for `product` on `root`."""
    environment = {name: value for name, value in child_environment().items() if name not in _NOT_INHERITED}
    command = ["retrain", "--root", os.fspath(root.absolute()), "--product", product, "--trigger", why, "--json"]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "service", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    )


def _output(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for `child` to end; return what it wrote to stdout and stderr.

    A process of its own may outlive it and hold its pipes: they are read no longer, lest the daemon could not stop.
    """
    while True:
        ended = child.poll() is not None
        try:
            return child.communicate(timeout=PIPES_WAIT_S)
        except subprocess.TimeoutExpired as cut_off:
            if ended:
                log.warning("retraining left its output open", extra=fields(pid=child.pid))
                return _decoded(cut_off.stdout), _decoded(cut_off.stderr)


def _decoded(output: str | bytes | None) -> str:
    # What was read before the timeout is bytes in text mode too.
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""


def _parsed(out: str) -> dict[str, Any]:
    try:
        row = json.loads(out)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
