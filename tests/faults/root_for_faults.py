"""What the fault tests share: a root with a version that needs no training, looked at without the service's code."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from service.root import FOLDERS
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.conftest import image_bytes
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, wait_until

KINDS = ("normal", "anomaly", "quarantine")
FINAL = ("placed", "quarantined", "missing", "conflict")
QUICK = """settle_time_s = 0.05
truncated_wait_s = 0.2
rescan_interval_s = 0.5
poll_interval_s = 0.5
empty_file_timeout_s = 1.0
free_bytes_min = 0
free_inodes_min = 0
retrain_cron = ""
"""


def make_root(root: Path, settings: str = "") -> Path:
    """Make a root whose champion scores by brightness: 20 is normal, 200 an anomaly."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tamis.toml").write_text(QUICK + settings)
    open_database(root, create=True).dispose()
    install(root)
    return root


def drop(root: Path, name: str | bytes, content: bytes) -> str:
    """Put a file into `incoming/` whole, by a rename; return its SHA-256."""
    incoming = root / "incoming"
    partial = incoming / ".drop.part"
    partial.write_bytes(content)
    # Names that are not UTF-8 too: as surrogates they are the bytes that they were.
    partial.rename(incoming / os.fsdecode(name))
    return hashlib.sha256(content).hexdigest()


def drop_good(root: Path, count: int, prefix: str = "good") -> list[str]:
    """Drop `count` images, every third an anomaly; return their SHA-256."""
    return [
        drop(root, f"{prefix}-{number:04}.png", image_bytes(200 if number % 3 == 2 else 20, seed=number))
        for number in range(count)
    ]


def query(root: Path, statement: str, *values: Any) -> list[dict[str, Any]]:
    """Return rows of the database; what a crash broke off in it is first rolled back, which a mere reader may not."""
    url = tomllib.loads((root / "tamis.toml").read_text()).get("database_url")
    if url is not None:
        import psycopg
        from psycopg.rows import dict_row

        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as server:
            return list(server.execute(statement.replace("?", "%s"), values))
    with contextlib.closing(sqlite3.connect(f"file:{root}/tamis.db?mode=rw", uri=True, timeout=60)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def settled(root: Path, count: int) -> Callable[[], bool]:
    """Whether `count` images have reached a final state, and nothing waits or is on its way."""

    def told() -> bool:
        # First the files, then the rows: one that moves to its place in between is seen at one of the two.
        if waiting(root):
            return False
        marks = ", ".join("?" * len(FINAL))
        statement = f"SELECT count(*) AS n, sum(CASE WHEN state IN ({marks}) THEN 1 ELSE 0 END) AS final FROM images"
        [row] = query(root, statement, *FINAL)
        return row["n"] == (row["final"] or 0) and row["n"] >= count

    return told


def waiting(root: Path) -> list[Path]:
    """Return the files that wait in `incoming/` or lie in `processing/`, links and devices left out."""
    return [
        path
        for folder in ("incoming", "processing")
        for path in (root / folder).rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    ]


def problems(root: Path, dropped: Iterable[str]) -> list[str]:
    """Return what is lost, there twice, or without a row: `dropped` are the SHA-256 of all that was dropped."""
    files = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for kind in KINDS
        for path in (root / kind).rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    found = []
    expected, there = collections.Counter(dropped), collections.Counter(files.values())
    for sha256 in expected.keys() | there.keys():
        if expected[sha256] != there[sha256]:
            found.append(f"content {sha256[:12]}: dropped {expected[sha256]} times, found {there[sha256]} times")
    rows = query(root, "SELECT id, path, state, verdict, label FROM results")
    if sorted(row["path"] for row in rows) != sorted(files):
        found.append(f"rows and files do not name each other: {len(rows)} rows, {len(files)} files")
    for row in rows:
        wanted = row["label"] or row["verdict"] or "quarantine"
        if row["path"].split("/")[0] != wanted or row["state"] not in ("placed", "quarantined"):
            found.append(f"{row['id']}: {row['state']} at {row['path']}, expected in {wanted}/")
    return found


def run_until_settled(root: Path, count: int, timeout_s: float = 60.0, **environment: str) -> str:
    """Run a daemon until `count` images are at their place, stop it in order, and return its log."""
    with DaemonProcess(root, environment=environment) as process:
        process.wait_ready()
        wait_until(settled(root, count), f"{count} images at their place", timeout_s, poll_s=0.1)
        assert process.stop() == 0, process.log_text()
        return process.log_text()
