"""Duties beside the loop: each at its time, and none of them worth more than the scoring."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

import pytest

from service.daemon.background_jobs import BackgroundJobs, Job
from service.storage.database.open import open_database


def test_each_duty_runs_when_it_is_due_and_not_before() -> None:
    now, ran = [0.0], []
    duties = [
        Job("hourly", lambda: ran.append(("hourly", now[0])), 10.0, 3600.0),
        Job("soon", lambda: ran.append(("soon", now[0])), 0.0, 5.0),
    ]
    upkeep = BackgroundJobs(duties, threading.Event(), lambda: now[0])
    assert upkeep.step() == 5.0
    now[0] = 4.0
    assert upkeep.step() == 5.0
    now[0] = 10.0
    assert upkeep.step() == 15.0
    assert ran == [("soon", 0.0), ("hourly", 10.0), ("soon", 10.0)]


def test_duty_that_fails_is_said_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    ran = []

    def fail() -> None:
        raise ValueError("expected this; found that")

    upkeep = BackgroundJobs(
        [Job("bad", fail, 0.0, 0.0), Job("good", lambda: ran.append(1), 0.0, 0.0)], threading.Event()
    )
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            upkeep.step()
    assert len(ran) == 3 and [record.message for record in caplog.records] == ["duty failed; it is tried again"]


def test_locked_database_is_a_warning_and_no_failure(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_database(root, busy_timeout_s=0.05)

    def write() -> None:
        with engine.begin():
            pass

    with sqlite3.connect(root / "tamis.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.INFO):
            BackgroundJobs([Job("writer", write, 0.0, 60.0)], threading.Event()).step()
        other.execute("ROLLBACK")
    engine.dispose()
    assert [record.message for record in caplog.records] == ["database locked; waits for its next turn"]


def test_closing_ends_the_duty_in_hand_and_the_thread() -> None:
    stopping, begun = threading.Event(), threading.Event()

    def long_one() -> None:
        begun.set()
        assert stopping.wait(20)

    upkeep = BackgroundJobs([Job("long", long_one, 0.0, 60.0)], stopping)
    upkeep.start()
    assert begun.wait(20)
    upkeep.close()
    assert not any(thread.name == "upkeep" for thread in threading.enumerate())
    BackgroundJobs([], threading.Event()).close()
