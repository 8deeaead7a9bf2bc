"""A backup made under load, later put back: what it knows is not scored twice, what it does not know is not lost."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.errors import TamisError
from service.operations.restore import restore
from service.root import RESTORED_MARK
from service.storage.database.driver import sqlite3
from tests.conftest import REPOSITORY, image_bytes
from tests.faults.root_for_faults import drop, make_root
from tests.support.daemon_process import DaemonProcess, nothing_left, wait_until

BEFORE, AFTERWARDS = 30, 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_root(tmp_path / "root")
    (root / "incoming/lid").mkdir()
    return root


def drop_numbered(root: Path, number: int) -> str:
    """Drop image `number`, every fifth an anomaly and every seventh of a product of its own; return its SHA-256."""
    folder = "lid/" if number % 7 == 0 else ""
    return drop(root, f"{folder}part {number}.png", image_bytes(200 if number % 5 == 0 else 20, seed=number))


def rows(database: Path) -> dict[str, dict[str, object]]:
    """Return all rows of a database by id, read without the service's code."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        return {row["id"]: dict(row) for row in connection.execute("SELECT * FROM images")}


def files(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every image by where it lies."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("incoming", "processing", "normal", "anomaly", "quarantine")
        for path in (root / folder).rglob("*.png")
    }


def tamis(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--root", str(root)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def finished(root: Path, count: int) -> bool:
    return sum(row["state"] == "placed" for row in rows(root / "tamis.db").values()) == count


def test_backup_under_load_is_sound_and_the_start_after_its_restoring_agrees_with_the_folders(
    root: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "nightly.db"
    dropped: list[str] = []

    saved = threading.Event()

    def feed() -> None:
        # Until the backup is there, and then some more, which it cannot know.
        while not saved.wait(0.02):
            dropped.append(drop_numbered(root, len(dropped)))
        for _ in range(AFTERWARDS):
            dropped.append(drop_numbered(root, len(dropped)))

    with DaemonProcess(root) as process:
        process.wait_ready()
        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            wait_until(lambda: len(rows(root / "tamis.db")) >= BEFORE, "some on record")
            made = tamis(root, "db", "backup", str(backup))
        finally:
            saved.set()
            feeder.join()
        assert made.returncode == 0, made.stderr
        wait_until(lambda: finished(root, len(dropped)) and nothing_left(root), "all placed")
        # A label after the backup: the file tells what the backup cannot.
        relabelled = next(id for id, row in rows(root / "tamis.db").items() if row["verdict"] == "anomaly")
        assert tamis(root, "review", relabelled, "--label", "normal").returncode == 0
        assert process.stop() == 0, process.log_text()
    with sqlite3.connect(backup) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    known, before = rows(backup), rows(root / "tamis.db")
    assert BEFORE <= len(known) <= len(before) - AFTERWARDS
    lying = files(root)

    # A disk eats the database.
    with (root / "tamis.db").open("r+b") as file:
        file.write(os.urandom(4096))
    restored = tamis(root, "db", "restore", str(backup), "--json")
    assert restored.returncode == 0, restored.stderr
    kept = Path(json.loads(restored.stdout)["database_before"])
    assert kept.is_file() and (root / RESTORED_MARK).exists() and files(root) == lying

    with DaemonProcess(root) as process:
        process.wait_ready()
        wait_until(lambda: finished(root, len(dropped)) and nothing_left(root), "all placed again")
        wait_until(lambda: (root / str(rows(root / "tamis.db")[relabelled]["path"])).exists(), "the label's file found")
        assert process.stop() == 0, process.log_text()
    after = rows(root / "tamis.db")
    assert after.keys() == before.keys() and not (root / RESTORED_MARK).exists()
    # What the backup had decided stands as it was decided then; the rest was decided again, once each.
    decided = {id for id, row in known.items() if row["decided_at"] is not None}
    assert decided and all(after[id]["decided_at"] == known[id]["decided_at"] for id in decided)
    again = after.keys() - known.keys()
    assert again and all(after[id]["decided_at"] > before[id]["decided_at"] for id in again)
    assert {id: row["verdict"] for id, row in after.items()} == {id: row["verdict"] for id, row in before.items()}
    assert all(after[id]["product"] == before[id]["product"] for id in after)
    assert all(after[id]["file_name"] == before[id]["file_name"] for id in after)
    now = files(root)
    assert sorted(now.values()) == sorted(dropped)
    assert now == {row["path"]: row["sha256"] for row in after.values()}


def test_restoring_waits_for_no_daemon_and_changes_nothing_beside_one(root: Path, tmp_path: Path) -> None:
    backup = tmp_path / "nightly.db"
    assert tamis(root, "db", "backup", str(backup)).returncode == 0
    with DaemonProcess(root) as process:
        process.wait_ready()
        with pytest.raises(TamisError, match="expected no daemon on it; found"):
            restore(root, backup)
        assert process.stop() == 0
    assert not (root / RESTORED_MARK).exists() and not list(root.glob("tamis.db.before-*"))


@pytest.mark.parametrize("damage", ["not there", "empty", "no database", "another's", "a page"])
def test_what_is_no_sound_backup_is_refused_and_the_database_stays(root: Path, tmp_path: Path, damage: str) -> None:
    backup = tmp_path / "nightly.db"
    if damage == "empty":
        backup.touch()
    elif damage == "no database":
        backup.write_bytes(b"these are not the bytes of a database " * 500)
    elif damage == "another's":
        with sqlite3.connect(backup) as connection:
            connection.execute("CREATE TABLE songs (title TEXT)")
    elif damage == "a page":
        assert tamis(root, "db", "backup", str(backup)).returncode == 0
        with backup.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096)
    before = (root / "tamis.db").read_bytes()
    with pytest.raises(TamisError, match=r"restore .*nightly\.db: expected"):
        restore(root, backup)
    assert (root / "tamis.db").read_bytes() == before
    assert not (root / RESTORED_MARK).exists() and not (root / ".restoring").exists()


def test_a_log_beside_the_database_is_not_taken_for_that_of_the_backup(root: Path, tmp_path: Path) -> None:
    backup = tmp_path / "nightly.db"
    assert tamis(root, "db", "backup", str(backup)).returncode == 0
    (root / "tamis.db-wal").write_bytes(b"left by a crash")
    kept = restore(root, backup)
    assert not (root / "tamis.db-wal").exists() and kept.with_name(f"{kept.name}-wal").exists()
    assert rows(root / "tamis.db") == {}


def test_a_file_that_lies_where_no_delivery_puts_it_or_bears_no_id_is_left_alone(root: Path, tmp_path: Path) -> None:
    backup = tmp_path / "nightly.db"
    assert tamis(root, "db", "backup", str(backup)).returncode == 0
    foreign = ("normal/mine/shelf/best part.png", "normal/2026.01ARZ3NDEKTSV4RRFFQ69G5FAV.png")
    for path in foreign:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image_bytes(20))
    restore(root, backup)
    with DaemonProcess(root) as process:
        process.wait_ready()
        assert process.stop() == 0
    assert sorted(files(root)) == sorted(foreign) and rows(root / "tamis.db") == {}
