"""Background jobs: what the daemon does beside the scoring, each job at its times and never twice at once.

A job that fails is logged and tried again at its next time: none is worth stopping the scoring for.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from service.daemon.journal_care import INTERVAL_S as JOURNAL_INTERVAL_S
from service.daemon.journal_care import JournalCare
from service.inspection.sidecars import Sidecars
from service.logs import fields
from service.operations.retention import RESTS_BESIDE_SCORING, Retention
from service.operations.retention_plan import rules_of
from service.retraining.scheduler import Schedule
from service.retraining.shadow_trial import ShadowTrial
from service.settings import Settings
from service.storage.database.base import Database, trouble

log = logging.getLogger(__name__)

# No more: a thread that waits long for a core may hold the interpreter's lock meanwhile, and with it the scoring.
NICENESS = 5
# Not at once: whoever starts the service with a new limit, or a wrong clock, has time to see it.
RETENTION_AFTER = timedelta(minutes=10)
RETENTION_INTERVAL = timedelta(days=1)
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Job:
    """Something to do after `first_after`, then at each `next_time`, and with each rescan if `on_rescan`.

    `run` ends soon once the daemon stops. `next_time` gives the first time later than the one it is given, if any.
    """

    name: str
    run: Callable[[], object]
    next_time: Callable[[datetime], datetime | None]
    first_after: timedelta = timedelta(0)
    on_rescan: bool = False


def jobs_for(
    root: Path, engine: Database, settings: Settings, retrainings: Schedule, stopping: threading.Event
) -> list[Job]:
    """Return the jobs that `settings` ask for."""
    retention = Retention(
        root, engine, rules_of(settings), stopping=stopping.is_set, rest=stopping.wait, rests=RESTS_BESIDE_SCORING
    )

    jobs = [
        Job(
            "retention",
            lambda: retention.run(datetime.now(UTC)),
            lambda now: now + RETENTION_INTERVAL,
            first_after=RETENTION_AFTER,
        ),
        Job(
            "database journal",
            JournalCare(engine.tend_journal).run,
            lambda now: now + timedelta(seconds=JOURNAL_INTERVAL_S),
            first_after=timedelta(seconds=JOURNAL_INTERVAL_S),
            on_rescan=True,
        ),
    ]
    if settings.sidecars == "carry":
        sidecars = Sidecars(
            root,
            engine,
            settings.ignored_names,
            settings.sidecar_suffixes,
            settle_time_s=settings.settle_time_s,
        )
        between = timedelta(seconds=settings.poll_interval_s)
        jobs.append(Job("sidecars", sidecars.run, lambda now: now + between))
    if settings.shadow_hours:
        trial, interval = ShadowTrial(root, engine, settings), timedelta(seconds=settings.rescan_interval_s)
        jobs.append(Job("shadow trial", lambda: trial.finish_due_trials(datetime.now(UTC)), lambda now: now + interval))
    if retrainings.wanted:
        jobs.append(Job("retraining", retrainings.look, retrainings.next_time, on_rescan=True))
    return jobs


class BackgroundJobs:
    """Runs `jobs`, each in a thread of its own. `start`, then `close`; `stopping` is set when it is to end."""

    def __init__(self, jobs: Sequence[Job], stopping: threading.Event) -> None:
        self._jobs = jobs
        self._stopping = stopping
        self._said: set[tuple[str, str]] = set()
        # It warns when a job is due that still runs, which is no news here.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        threads = ThreadPoolExecutor(max(1, len(jobs)), {"thread_name_prefix": "job", "initializer": _give_way})
        # However late it is, a job is done once.
        self._timekeeper = BackgroundScheduler(
            executors={"default": threads}, job_defaults={"coalesce": True, "misfire_grace_time": None}, timezone=UTC
        )
        now = datetime.now(UTC)
        for job in jobs:
            self._timekeeper.add_job(
                self._run, _Times(job), [job], id=job.name, next_run_time=now + job.first_after, max_instances=1
            )

    def start(self) -> None:
        self._timekeeper.start()

    def on_rescan(self) -> None:
        """Have the jobs that go with each rescan run soon; returns at once."""
        now = datetime.now(UTC)
        for job in self._jobs:
            # The others too may be late: where the clock was set back they would wait until it has caught up.
            at = now if job.on_rescan else job.next_time(now)
            if at is not None and at < self.next_run(job.name):
                self._timekeeper.modify_job(job.name, next_run_time=at)

    def close(self) -> None:
        """Have the jobs in hand end, and the threads with them."""
        self._stopping.set()
        if self._timekeeper.running:
            self._timekeeper.shutdown()

    def next_run(self, name: str) -> datetime:
        """Return when the job `name` is due."""
        at: datetime = self._timekeeper.get_job(name).next_run_time
        return at

    def _run(self, job: Job) -> None:
        if self._stopping.is_set():
            return
        try:
            job.run()
        except Exception as error:
            if (why := trouble(error)) is not None:
                log.warning(f"database {why}; waits for its next turn", extra=fields(job=job.name))
                return
            once = (job.name, f"{type(error).__name__}: {error}")
            if once not in self._said:
                self._said.add(once)
                log.exception("background job failed; it is tried again", extra=fields(job=job.name))


class _Times(BaseTrigger):  # type: ignore[misc]
    """The times of a job; each is reckoned from now, so that a clock set years ahead makes no thousand missed ones."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        return self._job.next_time(now) or _NEVER


def _give_way() -> None:
    with suppress(OSError):  # where it is not allowed, the pauses between slices must do
        # Linux keeps a priority for each thread, and the service may be nice as a whole already.
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
