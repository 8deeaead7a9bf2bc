"""Retrainings that begin by themselves: a clock that is set, processes that are real, and the whole daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.retraining import scheduler
from service.retraining.lock import retraining_lock
from service.retraining.scheduler import Schedule
from service.root import RETRAINING_LOCK
from service.settings import load
from service.storage import retrainings
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.labelled_root import PRODUCT, label, train_champion

SUNDAY = datetime(2026, 3, 8, 2, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WEEKLY = 'free_bytes_min = 0\nretrain_cron = "0 2 * * 0"\n'


class Clock:
    """The time that a schedule is told."""

    now = SUNDAY - 4 * DAY

    def __call__(self) -> datetime:
        return self.now


class House:
    """A root whose retrainings are processes that do nothing but put their row on record."""

    def __init__(self, root: Path, engine: Engine, settings: str) -> None:
        (root / "tamis.toml").write_text(settings)
        self.clock = Clock()
        self.started: list[tuple[str, str]] = []
        self.engine = engine
        self.state = "done"
        self.code = "raise SystemExit({code})"
        self.stdin = subprocess.DEVNULL
        self.schedule = Schedule(root, engine, load(root), self._start, self.clock)

    def look(self, now: datetime) -> list[tuple[str, str]]:
        """Look at `now`; return what was started."""
        self.clock.now, self.started = now, []
        self.schedule.look()
        return self.started

    def runs(self) -> list[retrainings.RetrainingRow]:
        with self.engine.connect() as connection:
            return retrainings.runs(connection)

    def _start(self, root: Path, product: str, why: str) -> subprocess.Popen[str]:
        self.started.append((product, why))
        now = self.clock.now
        with self.engine.begin() as connection:
            labels = retrainings.new_labels(connection, product, retrainings.last_learned(connection, product))
            row = retrainings.request(connection, product, why, state="running", requested_at=now, started_at=now)
            retrainings.change(connection, row.id, review_id=labels.review_id, state=self.state, ended_at=now)
        code = 0 if self.state == "done" else 1
        return subprocess.Popen(
            [sys.executable, "-S", "-c", self.code.format(code=code)],
            stdin=self.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    for product in (PRODUCT, "nut"):
        install(root, product)
    yield engine
    engine.dispose()


def test_scheduled_time_retrains_products_with_new_labels_one_after_the_other(root: Path, engine: Engine) -> None:
    house = House(root, engine, WEEKLY)
    label(root, engine, range(4), "normal", "train", at=SUNDAY - 5 * DAY)
    assert house.look(SUNDAY - 2 * DAY) == []
    assert house.look(SUNDAY + DAY) == [(PRODUCT, "cron")]
    assert house.look(SUNDAY + DAY + HOUR) == []
    assert house.schedule.next_time(SUNDAY + DAY) == SUNDAY + 7 * DAY


def test_times_missed_while_nothing_ran_are_made_up_once(root: Path, engine: Engine) -> None:
    house = House(root, engine, WEEKLY)
    label(root, engine, range(4), "normal", "train", at=SUNDAY - 5 * DAY)
    assert house.look(SUNDAY + 30 * DAY) == [(PRODUCT, "cron")]
    assert house.look(SUNDAY + 31 * DAY) == []


def test_enough_labels_start_one_and_a_failure_is_not_tried_again_and_again(root: Path, engine: Engine) -> None:
    house = House(root, engine, 'retrain_cron = ""\nretrain_after_labels = 4\n')
    label(root, engine, range(3), "normal", "train")
    assert house.look(SUNDAY) == []
    house.state = "failed"
    label(root, engine, range(3, 4), "normal", "train")
    assert house.look(SUNDAY) == [(PRODUCT, "labels")]
    assert house.look(SUNDAY + HOUR) == []
    house.state = "done"
    label(root, engine, range(4, 8), "normal", "train")
    assert house.look(SUNDAY + 2 * HOUR) == [(PRODUCT, "labels")]


def test_run_stopped_with_the_daemon_is_made_up_also_where_labels_asked_for_it(root: Path, engine: Engine) -> None:
    settings = 'retrain_cron = ""\nretrain_after_labels = 4\n'
    house = House(root, engine, settings)
    label(root, engine, range(4), "normal", "train")
    house.state = "stopped"
    assert house.look(SUNDAY) == [(PRODUCT, "labels")]
    house = House(root, engine, settings)
    assert house.look(SUNDAY + HOUR) == [(PRODUCT, "labels")]


def test_drift_of_the_present_champion_starts_one_and_that_of_another_does_not(root: Path, engine: Engine) -> None:
    house = House(root, engine, 'retrain_cron = ""\ndrift_retrain = true\n')
    label(root, engine, range(4), "normal", "train")
    insert = (
        "INSERT INTO drift_events (product, version, state, cause, at, figures)"
        " VALUES (?, ?, 'drifting', 'light', '2026-03-08T02:00:00.000000Z', '{}')"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(insert, (PRODUCT, "v0"))
    assert house.look(SUNDAY + HOUR) == []
    with engine.begin() as connection:
        connection.exec_driver_sql(insert, (PRODUCT, "v1"))
    assert house.look(SUNDAY + 2 * HOUR) == [(PRODUCT, "drift")]
    assert house.look(SUNDAY + 3 * HOUR) == []


def test_scheduled_run_waits_for_the_greenest_hours_and_is_on_record_as_waiting(root: Path, engine: Engine) -> None:
    moments = [SUNDAY + hours * HOUR for hours in range(26)]
    lines = [f"{at.isoformat()},{90 if at == SUNDAY + 5 * HOUR else 400}" for at in moments]
    (root / "grid.csv").write_text("hour,g_per_kwh\n" + "\n".join(lines) + "\n")
    house = House(root, engine, WEEKLY + 'retrain_carbon_file = "grid.csv"\nretrain_deadline_h = 12\n')
    label(root, engine, range(4), "normal", "train", at=SUNDAY - 5 * DAY)
    asked = SUNDAY + HOUR
    assert house.look(asked) == []
    [row] = house.runs()
    assert (row.state, row.planned_at) == ("waiting", SUNDAY + 5 * HOUR)
    assert house.schedule.next_time(asked) == SUNDAY + 5 * HOUR
    assert house.look(SUNDAY + 4 * HOUR) == []
    assert house.look(SUNDAY + 5 * HOUR) == [(PRODUCT, "cron")]
    [row] = house.runs()
    assert (row.state, row.requested_at) == ("done", asked)


def test_scheduled_run_that_meets_one_by_hand_begins_when_that_has_ended(root: Path, engine: Engine) -> None:
    house = House(root, engine, WEEKLY)
    label(root, engine, range(4), "normal", "train", at=SUNDAY - 5 * DAY)
    with retraining_lock(root):
        assert house.look(SUNDAY + DAY) == [] and house.runs() == []
    assert house.look(SUNDAY + DAY + HOUR) == [(PRODUCT, "cron")]


@pytest.mark.parametrize("state", ["done", "failed"])
def test_retraining_whose_own_child_keeps_its_pipes_open_is_waited_for_no_longer_than_that(
    root: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    monkeypatch.setattr(scheduler, "PIPES_WAIT_S", 0.1)
    caplog.set_level("INFO")
    house = House(root, engine, WEEKLY)
    house.state = state
    label(root, engine, range(4), "normal", "train", at=SUNDAY - 5 * DAY)
    # The grandchild ends when this process closes its end of the pipe that it reads.
    house.stdin, held = os.pipe()
    written = "print('{{\"outcome\": \"promoted\"}}', flush=True); sys.stderr.write('no room'); sys.stderr.flush()"
    house.code = f"import subprocess, sys; {written}; subprocess.Popen(['cat']); sys.exit({{code}})"
    try:
        assert house.look(SUNDAY + DAY) == [(PRODUCT, "cron")]
        house.schedule.close()
    finally:
        os.close(held)
        os.close(house.stdin)
    assert "retraining left its output open" in caplog.text
    [ended] = [record for record in caplog.records if record.message in ("retraining ended", "retraining failed")]
    told = ended.__dict__["fields"]
    assert told["outcome"] == "promoted" if state == "done" else told["reason"] == "no room"


def test_retraining_begins_in_the_daemon_after_labels_and_ends_with_it(root: Path) -> None:
    engine = open_database(root)
    champion = train_champion(root, engine)
    # So few labels a run as will do, and so many images that it is still at it when it is told to stop.
    (root / "tamis.toml").write_text(
        'free_bytes_min = 0\nrescan_interval_s = 1\nretrain_cron = ""\nretrain_after_labels = 4\n'
    )
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        assert "retraining started" not in daemon.log_text()
        label(root, engine, range(100, 160), "normal", "train")

        def running() -> bool:
            with sqlite3.connect(root / "tamis.db", timeout=60) as connection:
                return bool(connection.execute("SELECT 1 FROM retraining_runs WHERE state = 'running'").fetchone())

        wait_until(running, "a retraining on record", 120.0)
        assert "retraining started product=bar trigger=labels" in daemon.log_text()
        pid = int(daemon.log_text().partition("trigger=labels pid=")[2].split()[0])
        os.kill(pid, 0)
        assert daemon.stop() == 0, daemon.log_text()
        assert "retraining stopped product=bar" in daemon.log_text()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with engine.connect() as connection:
        [row] = retrainings.runs(connection)
    assert (row.state, row.trigger, row.reason) == ("stopped", "labels", "stopped by a signal")
    assert {path.name for path in (root / "models").iterdir()} == {PRODUCT, RETRAINING_LOCK}
    assert [path.name for path in (root / "models" / PRODUCT).iterdir()] == [champion.version]
    engine.dispose()
