"""The write-ahead log as it is: begun when nobody is in the way, emptied when nobody reads, and who does is named."""

from __future__ import annotations

import os
import sqlite3 as system_sqlite
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from service.errors import TamisError
from service.root import DATABASE_FILE
from service.storage import images
from service.storage.database import driver, write_ahead
from service.storage.database.journal import JournalChoice
from service.storage.database.open import open_database
from tests.support.outside_reader import reading

WAL = JournalChoice("WAL", "FULL", "test")
ROLLBACK = JournalChoice("DELETE", "EXTRA", "it has the bug")
NOBODY = 65534


def journal_of(engine) -> str:
    with engine.connect() as connection:
        return connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()


def write(engine, record_of, numbers) -> None:
    with engine.begin() as connection:
        images.record(connection, [record_of(number, error="x" * 500) for number in numbers], None)


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        (["3.40.1"], 0),
        (["3.40.1", "3.53.4"], 1),
        (["3.53.5", "3.53.4"], 0),
        (["3.51.2", "3.44.6"], 1),
        (["3.50.7", "3.51.2"], 0),
        (["3.53.4", "3.53.4"], 0),
    ],
)
def test_the_newest_sqlite_without_the_bug_is_used(versions, chosen):
    modules = [SimpleNamespace(sqlite_version_info=tuple(map(int, one.split(".")))) for one in versions]
    assert driver.newest_safe(modules) is modules[chosen]


def test_the_one_in_use_is_no_worse_than_pythons_own():
    assert driver.sqlite3.sqlite_version_info >= system_sqlite.sqlite_version_info


def test_an_open_beside_a_reader_goes_on_with_the_rollback_journal_and_begins_the_log_later(tmp_path: Path, record_of):
    open_database(tmp_path, create=True, journal=ROLLBACK).dispose()
    with reading(tmp_path) as pid:
        engine = open_database(tmp_path, journal=WAL)
        assert journal_of(engine) == "delete"
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 3
        assert f"process {pid} ({sys.executable}" in (engine.tend_journal() or "")
        assert f"process {pid} " in (engine.journal_trouble() or "")
    assert "no write-ahead log yet" in (engine.journal_trouble() or "")
    assert engine.tend_journal() is None and engine.journal_trouble() is None
    assert journal_of(engine) == "wal"
    engine.dispose()


def test_a_reader_that_keeps_the_log_long_is_named_and_the_log_emptied_once_it_ends(
    tmp_path: Path, record_of, monkeypatch
):
    monkeypatch.setattr(write_ahead, "LOG_BYTES_MAX", 300_000)
    engine = open_database(tmp_path, create=True, journal=WAL)
    log = tmp_path / f"{DATABASE_FILE}-wal"
    with reading(tmp_path) as pid:
        write(engine, record_of, range(1000))
        assert log.stat().st_size > 300_000
        said = engine.tend_journal() or ""
        assert str(log) in said and f"process {pid} " in said
    assert engine.tend_journal() is None
    assert log.stat().st_size == 0
    engine.dispose()


def test_a_log_shrinks_when_it_is_begun_anew(tmp_path: Path, record_of, monkeypatch):
    monkeypatch.setattr(write_ahead, "LOG_BYTES_KEPT", 100_000)
    engine = open_database(tmp_path, create=True, journal=WAL)
    log = tmp_path / f"{DATABASE_FILE}-wal"
    with reading(tmp_path):
        write(engine, record_of, range(4000))
        assert log.stat().st_size > 4_100_000
    for number in range(3):
        write(engine, record_of, [5000 + number])
    assert log.stat().st_size <= 100_000
    engine.dispose()


def test_a_sqlite_that_must_not_write_a_log_may_read_one_and_leaves_it_be(tmp_path: Path, record_of):
    first = open_database(tmp_path, create=True, journal=WAL)
    write(first, record_of, range(3))
    with open_database(tmp_path, read_only=True, journal=ROLLBACK) as second, second.connect() as connection:
        assert images.count(connection) == 3
    with pytest.raises(TamisError, match=r"expected journal DELETE, since it has the bug; found WAL"):
        open_database(tmp_path, journal=ROLLBACK, busy_timeout_s=0.05)
    assert journal_of(first) == "wal"
    first.dispose()


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o007])
def test_the_files_of_the_log_have_the_mode_of_the_database(tmp_path: Path, record_of, umask):
    before = os.umask(umask)
    try:
        engine = open_database(tmp_path, create=True, journal=WAL)
        write(engine, record_of, [1])
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        engine.dispose()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("tamis.db", "tamis.db-wal", "tamis.db-shm"), 0o666 & ~umask)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

AS_ANOTHER = f"""
import os, sys
from pathlib import Path
from service.storage import images
from service.storage.database.open import open_database
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
with open_database(Path(sys.argv[1]), read_only=True) as engine, engine.connect() as connection:
    print(images.count(connection), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def shown(tmp_path_factory) -> Path:
    """A root that all may read and its owner alone may write, wherever pytest keeps its own."""
    folder = tmp_path_factory.mktemp("shown")
    for path in (folder, *folder.parents):
        if path != path.parent and path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(0o755)
    before = os.umask(0o022)
    yield folder
    os.umask(before)


@needs_root
@pytest.mark.parametrize("state", ["open", "closed", "killed"])
def test_who_may_only_read_can_read_whether_or_not_somebody_writes(shown: Path, record_of, state):
    engine = open_database(shown, create=True, journal=WAL)
    write(engine, record_of, range(5))
    if state == "closed":
        engine.dispose()
    if state == "killed":
        script = (
            "import sys, os; from service.storage.database.driver import sqlite3\n"
            "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('DELETE FROM images WHERE id = (SELECT max(id) FROM images)'); os.kill(os.getpid(), 9)"
        )
        engine.dispose()
        subprocess.run([sys.executable, "-c", script, str(shown / DATABASE_FILE)], check=False)
    found = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, str(shown)], input="\n", capture_output=True, text=True, check=False
    )
    engine.dispose()
    assert (found.returncode, found.stdout.strip()) == (0, "4" if state == "killed" else "5"), found.stderr


@needs_root
def test_who_reads_without_locks_is_told_of_a_writer_that_came_meanwhile(shown: Path, record_of):
    open_database(shown, create=True, journal=WAL).dispose()
    command = [sys.executable, "-c", AS_ANOTHER, str(shown)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "0\n"
        engine = open_database(shown, journal=WAL)
        write(engine, record_of, range(5))
        engine.dispose()  # which brings the log into the file
        _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 1 and "Try again" in said, said


def test_text_of_the_table_of_locks_is_read_as_the_kernel_writes_it(tmp_path: Path):
    from service.filesystem.lock_holders import LockHolder, lock_holders, named

    path = tmp_path / "file"
    path.touch()
    there = path.stat()
    device = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}"
    proc = tmp_path / "proc"
    (proc / "41").mkdir(parents=True)
    (proc / "41/cmdline").write_bytes(b"sqlitebrowser\0/srv/a b.db\0\x1b\0")
    (proc / "locks").write_text(
        f"1: POSIX  ADVISORY  READ 41 {device}:{there.st_ino} 124 124\n"
        f"2: POSIX  ADVISORY  READ 42 {device}:{there.st_ino} 100 EOF\n"
        f"3: POSIX  ADVISORY  READ 43 {device}:{there.st_ino} 128 128\n"
        f"4: FLOCK  ADVISORY  WRITE 44 {device}:{there.st_ino} 0 EOF\n"
        f"5: -> POSIX  ADVISORY  READ 45 {device}:{there.st_ino} 124 124\n"
        f"6: POSIX  ADVISORY  READ 46 {device}:{there.st_ino + 1} 124 124\n"
        f"7: POSIX  ADVISORY  READ 47 ff:ff:{there.st_ino} 124 124\n"
        f"8: POSIX  ADVISORY  READ {os.getpid()} {device}:{there.st_ino} 124 124\n"
        f"9: OFDLCK ADVISORY  READ -1 {device}:{there.st_ino} 124 124\n"
    )
    found = lock_holders(path, 123, 127, proc)
    assert found == [LockHolder(41, "sqlitebrowser /srv/a b.db ?"), LockHolder(42, None)]
    assert named(found) == "process 41 (sqlitebrowser /srv/a b.db ?), process 42"
    assert lock_holders(path, 123, 127, tmp_path / "absent") == [] == lock_holders(tmp_path / "none", 0, 1, proc)


def test_a_log_on_a_root_whose_rows_were_there_before_keeps_them(tmp_path: Path, record_of):
    engine = open_database(tmp_path, create=True, journal=ROLLBACK)
    write(engine, record_of, range(10))
    engine.dispose()
    engine = open_database(tmp_path, journal=WAL)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM results")).scalar_one() == 10
    assert journal_of(engine) == "wal"
    engine.dispose()
