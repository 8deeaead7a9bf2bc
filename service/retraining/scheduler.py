"""Schedule: starts retrainings beside the daemon when they are due, one at a time, each a process of its own.

Owns the thread that looks, the clock that wakes it (APScheduler, by `retrain_cron`) and the process that it started.
`service.retraining.due` says when something is due, `service.energy.grid_intensity` how long it may wait for greener
power. The loop that scores waits for nothing here.
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
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from service.cron import parse_cron
from service.energy import grid_intensity as carbon
from service.logs import fields
from service.retraining.due import DueReason, RetrainingFacts, counting, due
from service.retraining.lock import retraining_runs
from service.settings import Settings
from service.storage import retrainings, versions
from service.storage.database.open import open_database
from service.training.run import child_environment

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

log = logging.getLogger(__name__)

END_WAIT_S = 15.0
DURATION_UNKNOWN = timedelta(minutes=10)
ANOTHER_RUNS_WAIT = timedelta(minutes=1)
_SAID_BYTES_MAX = 400
# What systemd told the daemon is none of a child's business.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Schedule:
    """The retrainings of one root. `start`, `check_soon` whenever there may be something new, `stop`, then `close`.

    `start_retraining` makes the process for a product and a reason; `clock` gives the time, UTC.
    """

    def __init__(
        self,
        root: Path,
        settings: Settings,
        start_retraining: Callable[[Path, str, str], subprocess.Popen[str]] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._root = root
        self._settings = settings
        self._start_retraining = start_retraining or start_process
        self._clock = clock
        self._wake = threading.Event()
        self._due_time = threading.Event()
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._scheduler: Any = None
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
        self._seen: tuple[int, ...] | None = None
        self._held: dict[str, int] = {}
        self._said: set[str] = set()
        self._cron: CronTrigger | None = None

    @property
    def wanted(self) -> bool:
        """Whether the settings ask for retrainings by themselves."""
        settings = self._settings
        return bool(settings.retrain_cron or settings.retrain_after_labels or settings.drift_retrain)

    def start(self) -> None:
        """Begin to look; does nothing where no retraining is asked for."""
        if self.wanted:
            self._due_time.set()  # what was missed while nothing ran
            self._thread.start()

    def check_soon(self) -> None:
        """Have the thread look soon whether something is due; returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """Start nothing any more and end what runs; returns at once."""
        with self._changing:
            self._stopping.set()
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()
        self._wake.set()

    def close(self) -> None:
        """Wait until everything has ended, 15 s at most for a retraining to do so in order."""
        self.stop()
        if self._thread.ident is None:
            return
        self._thread.join(END_WAIT_S)
        with self._changing:
            if self._child is not None and self._child.poll() is None:
                log.warning("retraining did not end; killed", extra=fields(pid=self._child.pid))
                self._child.kill()
        self._thread.join(END_WAIT_S)

    def step(self, engine: Engine, now: datetime) -> timedelta | None:
        """Run what is due at `now`, one after the other; return how long until something waits no longer, if known."""
        timed = self._due_time.is_set()
        self._due_time.clear()
        if timed:
            self._held.clear()
        while not self._stopping.is_set():
            with engine.connect() as connection:
                seen = retrainings.newest(connection)
                waiting = retrainings.in_state(connection, "waiting")
                found = None
                for row in waiting:
                    if row.planned_at is None or row.planned_at <= now:
                        found = (row.product, row.trigger)
                        break
                if found is None and (timed or seen != self._seen):
                    found = self._find(connection, now, {row.product for row in waiting})
            if found is None:
                self._seen = seen
                break
            if retraining_runs(self._root):
                # One by hand. What is due is due still when that has ended; on record as failed it would be lost.
                if timed:
                    self._due_time.set()
                return ANOTHER_RUNS_WAIT
            if not self._put_off(engine, *found, now):
                self._retrain(engine, *found)
            now = max(now, self._clock())
        times = [row.planned_at for row in waiting if row.planned_at is not None]
        return min(times) - now if times else None

    def _run(self) -> None:
        self._wind_clock()
        engine = open_database(self._root, migrate=False)
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                wait: timedelta | None = None
                try:
                    wait = self.step(engine, self._clock())
                except (SQLAlchemyError, OSError) as error:
                    # Not worth ending the daemon for: the next look tries again.
                    log.error("retrainings cannot be looked at", extra=fields(reason=error))
                self._wake.wait(max(0.0, wait.total_seconds()) if wait is not None else None)
        finally:
            engine.dispose()
            if self._scheduler is not None:
                self._scheduler.shutdown(wait=False)

    def _wind_clock(self) -> None:
        if not self._settings.retrain_cron:
            return
        from apscheduler.schedulers.background import BackgroundScheduler

        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._cron = parse_cron(self._settings.retrain_cron)
        self._scheduler = BackgroundScheduler()
        self._scheduler.add_job(self._on_time, self._cron, coalesce=True, misfire_grace_time=None)
        self._scheduler.start()

    def _on_time(self) -> None:
        self._due_time.set()
        self._wake.set()

    def _find(self, connection: Connection, now: datetime, planned: set[str]) -> tuple[str, DueReason] | None:
        """Return the first product that is to be retrained at `now` and why; those `planned` have their time."""
        settings = self._settings
        if self._cron is None and settings.retrain_cron:
            self._cron = parse_cron(settings.retrain_cron)
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
                facts,
                now,
                cron=self._cron,
                after_labels=settings.retrain_after_labels,
                on_drift=settings.drift_retrain,
            )
            if why is not None:
                return product, why
        return None

    def _put_off(self, engine: Engine, product: str, why: str, now: datetime) -> bool:
        """Plan the retraining for greener hours, where there is a table of them; return whether it waits now.

        One that the drift of its champion asks for does not wait, nor one that has waited.
        """
        settings = self._settings
        if settings.retrain_carbon_file is None or why == "drift":
            return False
        with engine.connect() as connection:
            if retrainings.waiting_for(connection, product) is not None:
                return False
            last = retrainings.last_learned(connection, product)
        took = last.ended_at - last.started_at if last and last.ended_at and last.started_at else DURATION_UNKNOWN
        try:
            intensity = carbon.read_intensity(self._root / settings.retrain_carbon_file)
        except carbon.CarbonFileWrong as error:
            self._say_once(f"retraining does not wait for greener power: {error}")
            return False
        start = carbon.greenest_start(intensity, now, timedelta(hours=settings.retrain_deadline_h), took)
        if start is None:
            self._say_once(
                f"retraining does not wait for greener power: {settings.retrain_carbon_file}: expected the intensity "
                f"of the hours to come; found none"
            )
        if start is None or start <= now:
            return False
        with engine.begin() as connection:
            retrainings.request(connection, product, why, state="waiting", requested_at=now, planned_at=start)
        log.info("retraining waits for greener power", extra=fields(product=product, until=start.isoformat()))
        return True

    def _retrain(self, engine: Engine, product: str, why: str) -> None:
        with self._changing:
            if self._stopping.is_set():
                return
            self._child = child = self._start_retraining(self._root, product, why)
        log.info("retraining started", extra=fields(product=product, trigger=why, pid=child.pid))
        out, err = child.communicate()
        if child.returncode == 0:
            row = _parsed(out)
            log.info(
                "retraining ended",
                extra=fields(
                    product=product,
                    outcome=row.get("outcome"),
                    version=row.get("challenger"),
                    reason=row.get("reason"),
                ),
            )
            return
        with engine.begin() as connection:
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


def _parsed(out: str) -> dict[str, Any]:
    try:
        row = json.loads(out)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
