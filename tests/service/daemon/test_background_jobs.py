"""Jobs beside the loop: each at its time, never twice at once, and none of them worth more than the scoring."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.daemon.background_jobs import BackgroundJobs, Job
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database

HOUR, PATIENCE_S = timedelta(hours=1), 20.0


class Turns:
    """What a job does: it counts its turns, each of which may be waited for."""

    def __init__(self) -> None:
        self.count = 0
        self._done = threading.Semaphore(0)

    def __call__(self) -> None:
        self.count += 1
        self._done.release()

    def wait(self) -> bool:
        return self._done.acquire(timeout=PATIENCE_S)

    def after_rescan(self, background: BackgroundJobs) -> None:
        """Wait for the next turn, which rescans ask for until no earlier one runs any more."""
        background.on_rescan()
        while not self._done.acquire(timeout=0.05):
            background.on_rescan()


def hourly(now: datetime) -> datetime:
    return now + HOUR


@pytest.fixture
def begin() -> Iterator[Callable[..., BackgroundJobs]]:
    started = []

    def make(*jobs: Job, stopping: threading.Event | None = None) -> BackgroundJobs:
        background = BackgroundJobs(jobs, stopping or threading.Event())
        started.append(background)
        background.start()
        return background

    yield make
    for background in started:
        background.close()


def test_each_job_runs_when_it_is_due_and_not_before(begin: Callable[..., BackgroundJobs]) -> None:
    soon, later, on_rescan = Turns(), Turns(), Turns()
    background = begin(
        Job("soon", soon, hourly),
        Job("later", later, hourly, first_after=HOUR / 2),
        Job("on rescan", on_rescan, lambda now: None, on_rescan=True),
    )
    assert soon.wait() and on_rescan.wait()
    for _ in range(3):
        on_rescan.after_rescan(background)
    assert (soon.count, later.count, on_rescan.count) == (1, 0, 4)
    assert background.next_run("later") < background.next_run("soon") <= datetime.now(UTC) + HOUR


def test_job_is_due_once_however_long_the_time_that_was_missed() -> None:
    background = BackgroundJobs([Job("old", Turns(), hourly, first_after=-100_000 * HOUR)], threading.Event())
    now = datetime.now(UTC)
    assert background._timekeeper.get_job("old")._get_run_times(now) == [background.next_run("old")]


def test_clock_that_was_set_back_does_not_keep_a_job_waiting() -> None:
    background = BackgroundJobs([Job("ahead", Turns(), hourly, first_after=100_000 * HOUR)], threading.Event())
    background.on_rescan()
    assert background.next_run("ahead") <= datetime.now(UTC) + HOUR


def test_job_that_still_runs_is_not_begun_again(
    begin: Callable[..., BackgroundJobs], caplog: pytest.LogCaptureFixture
) -> None:
    release, begun, others = threading.Event(), Turns(), Turns()

    def long_one() -> None:
        begun()
        assert release.wait(PATIENCE_S)

    background = begin(
        Job("long", long_one, lambda now: None, on_rescan=True), Job("other", others, lambda now: None, on_rescan=True)
    )
    assert begun.wait() and others.wait()
    for _ in range(3):
        others.after_rescan(background)
    assert begun.count == 1
    release.set()
    background.close()
    assert caplog.records == []


def test_job_that_fails_is_said_once_and_the_others_go_on(
    begin: Callable[..., BackgroundJobs], caplog: pytest.LogCaptureFixture
) -> None:
    failures, good = Turns(), Turns()

    def fail() -> None:
        failures()
        raise ValueError("expected this; found that")

    with caplog.at_level(logging.INFO):
        background = begin(
            Job("bad", fail, lambda now: None, on_rescan=True), Job("good", good, lambda now: None, on_rescan=True)
        )
        assert failures.wait() and good.wait()
        while failures.count < 3:
            good.after_rescan(background)
        background.close()
    assert [record.message for record in caplog.records] == ["background job failed; it is tried again"]


def test_locked_database_is_a_warning_and_no_failure(
    root: Path, begin: Callable[..., BackgroundJobs], caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_database(root, busy_timeout_s=0.05)
    begun = Turns()

    def write() -> None:
        begun()
        with engine.begin():
            pass

    with sqlite3.connect(root / "tamis.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.INFO):
            background = begin(Job("writer", write, hourly))
            assert begun.wait()
            background.close()
        other.execute("ROLLBACK")
    engine.dispose()
    assert [record.message for record in caplog.records] == ["database locked; waits for its next turn"]


def test_closing_ends_the_job_in_hand_and_the_threads(begin: Callable[..., BackgroundJobs]) -> None:
    stopping, begun = threading.Event(), Turns()

    def long_one() -> None:
        begun()
        assert stopping.wait(PATIENCE_S)

    before = set(threading.enumerate())
    background = begin(Job("long", long_one, hourly), stopping=stopping)
    assert begun.wait() and set(threading.enumerate()) - before
    background.close()
    assert not set(threading.enumerate()) - before
    BackgroundJobs([], threading.Event()).close()
