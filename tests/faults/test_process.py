"""What happens to the daemon's process and to what it needs: signals, memory, its database, its model."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.faults.cgroup import memory_group
from tests.faults.root_for_faults import drop_good, make_root, problems, query, run_until_settled, settled, waiting
from tests.support.brightness_version import install
from tests.support.daemon_process import REPOSITORY, DaemonProcess, wait_until
from tests.support.labelled_root import PRODUCT, label, train_champion

UNIT = REPOSITORY / "deploy/tamis.service"
STOPS_WITHIN_S = 45.0
LEAVES_WITHIN_S = 5.0


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root", "anomaly_maps = false\n")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the database against everyone."""
    with closing(sqlite3.connect(root / "tamis.db", isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def claimed(root: Path) -> list[Path]:
    return list((root / "processing").rglob("*.png"))


def test_sigterm_under_load_finishes_what_is_in_flight_and_leaves_the_rest_in_incoming(house: Path) -> None:
    dropped = drop_good(house, 400)
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: query(house, "SELECT count(*) AS n FROM images")[0]["n"] > 0, "the first on record")
        began = time.monotonic()
        assert daemon.stop(STOPS_WITHIN_S) == 0, daemon.log_text()
        took = time.monotonic() - began
    rows = query(house, "SELECT state FROM images")
    left = waiting(house)
    print(f"ended {took:.1f} s after SIGTERM, {len(rows)} finished, {len(left)} left in incoming")
    assert {row["state"] for row in rows} == {"placed"} and claimed(house) == []
    assert len(rows) + len(left) == 400 and len(left) > 0
    run_until_settled(house, 400)
    assert problems(house, dropped) == []


def test_second_sigterm_ends_at_once_what_the_first_cannot_end(house: Path) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        with locked(house):
            dropped = drop_good(house, 10)
            wait_until(lambda: bool(claimed(house)), "a claim")
            daemon.process.send_signal(signal.SIGTERM)
            # The first one lets no more be claimed and waits for the database.
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.process.wait(1.0)
            began = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(LEAVES_WITHIN_S)
            print(f"ended {time.monotonic() - began:.2f} s after the second SIGTERM")
    run_until_settled(house, 10)
    assert problems(house, dropped) == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_crash_in_native_code_is_told_of_and_loses_nothing(house: Path, number: signal.Signals) -> None:
    dropped = drop_good(house, 60)
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: bool(claimed(house)), "a claim")
        daemon.process.send_signal(number)
        assert daemon.process.wait(LEAVES_WITHIN_S) == -number
        assert "Fatal Python error" in daemon.log_text(), daemon.log_text()
    run_until_settled(house, 60)
    assert problems(house, dropped) == []


@pytest.mark.parametrize("locked_s", [pytest.param(8.0, id="8s"), pytest.param(60.0, id="60s", marks=pytest.mark.long)])
def test_locked_database_holds_up_verdicts_and_loses_and_repeats_none(house: Path, locked_s: float) -> None:
    dropped = drop_good(house, 10)
    with DaemonProcess(house, environment={"WATCHDOG_USEC": "1000000"}) as daemon:
        daemon.wait_ready()
        wait_until(settled(house, 10), "ten at their place")
        with locked(house):
            began = last = time.monotonic()
            number, gap_s = 0, 0.0
            while time.monotonic() < began + locked_s:
                dropped += drop_good(house, 5, f"locked-{number}")
                number += 1
                # The loop waits for nobody; but it gives no sign of life while a thread waits for longer than 30 s.
                with suppress(AssertionError):
                    daemon.wait_for_message("WATCHDOG=1", 2.0)
                    gap_s, last = max(gap_s, time.monotonic() - last), time.monotonic()
            assert daemon.process.poll() is None and len(waiting(house)) == 5 * number
        daemon.wait_for_message("WATCHDOG=1", 30.0)
        gap_s = max(gap_s, time.monotonic() - last)
        print(f"locked {locked_s:.0f} s: longest time without a sign of life {gap_s:.1f} s")
        # Or systemd would end the daemon, which would lose nothing and cost a start.
        assert gap_s < watchdog_s()
        wait_until(settled(house, len(dropped)), "all at their place")
        assert daemon.stop() == 0, daemon.log_text()
    print(f"locked {locked_s:.0f} s: {len(dropped)} images, {len(query(house, 'SELECT id FROM images'))} rows")
    assert problems(house, dropped) == []


def watchdog_s() -> float:
    """After how many seconds without a sign of life systemd ends the daemon, by the unit that is shipped."""
    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith("WatchdogSec=")]
    return float(line.partition("=")[2])


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * 100)


def overwrite_a_page(path: Path) -> None:
    # The root page of the images' table: what any start reads.
    with closing(sqlite3.connect(path)) as connection:
        [[page]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'images'").fetchall()
        [[size]] = connection.execute("PRAGMA page_size").fetchall()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
        connection.commit()


@pytest.mark.parametrize("damage", [overwrite_header, overwrite_a_page, cut_short, empty, make_newer])
def test_database_that_cannot_be_trusted_refuses_to_start_and_moves_nothing(
    house: Path, damage: Callable[[Path], None]
) -> None:
    drop_good(house, 3)
    run_until_settled(house, 3)
    drop_good(house, 3, "waiting")
    # One that an earlier run had claimed, too.
    source = house / "incoming/waiting-0000.png"
    source.rename(house / "processing/main/01ARZ3NDEKTSV4RRFFQ69G5FAV--1--waiting-0000.png")
    damage(house / "tamis.db")
    before = fingerprint(house)
    with DaemonProcess(house) as daemon:
        assert daemon.process.wait(60) == 78, daemon.log_text()
        assert "tamis.db" in daemon.log_text()
    assert fingerprint(house) == before


def fingerprint(root: Path) -> dict[str, str]:
    """Return the bytes of all files, as hashes; not of those by which a daemon says that it lives."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name not in (".lock", ".status.json", "tamis.db-wal", "tamis.db-shm")
    }


def cut_graph(folder: Path) -> None:
    cut_short(folder / "model.xml")


def cut_manifest(folder: Path) -> None:
    cut_short(folder / "model.json")


def without_graph(folder: Path) -> None:
    (folder / "model.xml").unlink()


def without_anything(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES = pytest.mark.parametrize("damage", [cut_graph, cut_manifest, without_graph, without_anything])


@DAMAGES
def test_champion_cut_off_while_it_was_written_leaves_the_last_sound_one_in_charge(
    house: Path, damage: Callable[[Path], None]
) -> None:
    install(house, version="v2")
    damage(house / "models/default/v2")
    dropped = drop_good(house, 3)
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(settled(house, 3), "three at their place")
        assert told_of(daemon.log_text(), "v2")
        assert daemon.stop() == 0
    assert {row["model_version"] for row in query(house, "SELECT model_version FROM results")} == {"v1"}
    assert problems(house, dropped) == []


@DAMAGES
def test_promotion_of_a_damaged_version_under_load_changes_no_judge_and_loses_nothing(
    house: Path, damage: Callable[[Path], None]
) -> None:
    install(house, version="v2", state="challenger")
    damage(house / "models/default/v2")
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        dropped = drop_good(house, 10)
        with closing(sqlite3.connect(house / "tamis.db", timeout=30)) as connection:
            # As somebody might who goes past `tamis models promote`, which verifies.
            connection.execute("UPDATE versions SET state = 'retired' WHERE version = 'v1'")
            connection.execute("UPDATE versions SET state = 'champion' WHERE version = 'v2'")
            connection.commit()
        # A champion is looked up when there is something to judge.
        for number in range(100):
            dropped += drop_good(house, 2, f"later-{number}")
            wait_until(settled(house, len(dropped)), "all at their place")
            if told_of(daemon.log_text(), "v2"):
                break
        assert daemon.stop() == 0, daemon.log_text()
        assert told_of(daemon.log_text(), "v2")
    assert {row["model_version"] for row in query(house, "SELECT model_version FROM results")} == {"v1"}
    assert problems(house, dropped) == []


def told_of(log: str, version: str) -> bool:
    """Whether the log says that the version is not used."""
    return any("model passed over" in line and version in line for line in log.splitlines())


@pytest.mark.long
def test_out_of_memory_takes_the_training_and_leaves_the_scoring_and_the_champion(house: Path) -> None:
    with memory_group() as group:
        engine = open_database(house)
        champion = train_champion(house, engine)
        with (house / "tamis.toml").open("a") as settings:
            settings.write("retrain_after_labels = 4\n")
        with DaemonProcess(house) as daemon:
            group.add(daemon.process.pid)
            daemon.wait_ready()
            dropped = drop_good(house, 5)
            wait_until(settled(house, 5), "five at their place")
            # Room for the scoring and for `tamis retrain`; the process that trains needs twice that.
            group.limit(group.used + 260_000_000)
            label(house, engine, range(100, 160), "normal", "train")
            ending = threading.Event()
            feeding = threading.Thread(target=lambda: feed(house, dropped, ending))
            feeding.start()
            try:
                wait_until(lambda: group.killed > 0, "the kernel to end a process", 120.0)
                wait_until(lambda: ended_runs(house) != [], "the retraining's end on record", 60.0)
            finally:
                ending.set()
                feeding.join()
            wait_until(settled(house, len(dropped)), "all at their place")
            assert daemon.process.poll() is None
            assert daemon.stop() == 0, daemon.log_text()
            log = daemon.log_text()
        engine.dispose()
        [run, *_] = ended_runs(house)
        print(f"the kernel ended {group.killed}; {len(dropped)} scored beside it; the run: {run}")
    assert run["state"] == "failed" and run["challenger"] is None, log
    there = query(house, "SELECT version, state FROM versions WHERE product = ?", PRODUCT)
    assert there == [{"version": champion.version, "state": "champion"}]
    assert not list((house / "models").glob(".tmp*"))
    mine = "SELECT id FROM images WHERE product = 'default' AND state = 'placed'"
    assert len(query(house, mine)) == len(dropped) and not re.search("ended by an error|Traceback", log)


def feed(root: Path, dropped: list[str], ending: threading.Event) -> None:
    number = 0
    while not ending.wait(0.5):
        dropped += drop_good(root, 2, f"beside-{number}")
        number += 1


def ended_runs(root: Path) -> list[dict[str, object]]:
    ended = "state IN ('failed', 'stopped', 'done')"
    return query(root, f"SELECT state, outcome, challenger, reason FROM retraining_runs WHERE {ended}")
