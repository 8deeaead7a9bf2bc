"""Programs that read the results for long, as a database browser does: verdicts go on, and the log is kept short."""

from __future__ import annotations

import sqlite3 as system_sqlite
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.storage.database.driver import sqlite3
from service.storage.database.journal import JournalChoice, has_reset_bug, journal_choice
from service.storage.database.open import open_database
from tests.faults.daemon_hooks import without_bundled_sqlite
from tests.faults.root_for_faults import drop_good, make_root, problems, query, settled
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.outside_reader import reading

ROLLBACK = JournalChoice("DELETE", "EXTRA", "test")
with_log = pytest.mark.skipif(
    journal_choice(sqlite3.sqlite_version_info).mode != "WAL", reason="no SQLite here that may keep a write-ahead log"
)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root", "anomaly_maps = false\n")


def journal(root: Path) -> str:
    return str(query(root, "PRAGMA journal_mode")[0]["journal_mode"])


@with_log
def test_reader_in_a_transaction_holds_up_no_verdict_and_sees_one_moment(house: Path) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        dropped = drop_good(house, 3)
        wait_until(settled(house, 3), "three at their place")
        with reading(house):
            dropped += drop_good(house, 60, "meanwhile")
            wait_until(settled(house, 63), "all at their place beside a reader", 30.0)
        assert daemon.stop() == 0, daemon.log_text()
        assert "locked" not in daemon.log_text()
    assert problems(house, dropped) == []


@with_log
def test_root_taken_to_a_machine_whose_sqlite_has_the_bug_and_back_loses_nothing(house: Path, tmp_path: Path) -> None:
    if not has_reset_bug(system_sqlite.sqlite_version_info):
        pytest.skip(f"Python's own SQLite {system_sqlite.sqlite_version} may keep a log")
    dropped: list[str] = []
    old, new = without_bundled_sqlite(tmp_path), {}
    for number, (environment, expected) in enumerate([(new, "wal"), (old, "delete"), (new, "wal")]):
        with DaemonProcess(house, environment=environment) as daemon:
            daemon.wait_ready()
            dropped += drop_good(house, 5, f"run-{number}")
            wait_until(settled(house, len(dropped)), "all at their place")
            # Killed, so that the next one finds what was left: a log, or a journal.
            daemon.kill()
        assert journal(house) == expected
    assert problems(house, dropped) == []


@with_log
def test_root_with_a_rollback_journal_gets_a_log_once_its_reader_ends_and_the_daemon_goes_on(house: Path) -> None:
    open_database(house, journal=ROLLBACK).dispose()
    assert journal(house) == "delete"
    with ExitStack() as stack:
        reader = stack.enter_context(ExitStack())
        pid = reader.enter_context(reading(house))
        daemon = stack.enter_context(DaemonProcess(house))
        daemon.wait_ready()
        wait_until(lambda: f"process {pid} " in daemon.log_text(), "word of the reader")
        dropped = drop_good(house, 5)
        wait_until(lambda: any((house / "processing/main").rglob("*.png")), "a claim")
        assert daemon.process.poll() is None
        reader.close()
        wait_until(settled(house, 5), "five at their place")
        wait_until(lambda: journal(house) == "wal", "a log", poll_s=0.2)
        assert daemon.stop() == 0, daemon.log_text()
    assert problems(house, dropped) == []
