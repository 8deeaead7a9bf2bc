"""Opening the database: what is set on each connection, how locks behave, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

import migrations
from service.errors import ConfigurationError, TamisError
from service.filesystem import mount_table as filesystem
from service.root import DATABASE_FILE
from service.storage import images
from service.storage.database import sqlite
from service.storage.database.driver import sqlite3
from service.storage.database.journal import JournalChoice, journal_choice
from service.storage.database.open import BUSY_TIMEOUT_S, DatabaseCorrupt, open_database
from tests.service.storage.conftest import on_sqlite

WAL = JournalChoice("WAL", "FULL", "test")
ROLLBACK = JournalChoice("DELETE", "EXTRA", "test")
JOURNALS = pytest.mark.parametrize("journal", [WAL, ROLLBACK], ids=["wal", "rollback"])


def pragma(connection, name):
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


@JOURNALS
def test_every_connection_has_its_pragmas(tmp_path: Path, journal):
    engine = open_database(tmp_path, create=True, journal=journal)
    with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            assert pragma(connection, "foreign_keys") == 1
            assert pragma(connection, "busy_timeout") == BUSY_TIMEOUT_S * 1000 > 60_000
            assert pragma(connection, "journal_mode").upper() == journal.mode
            assert pragma(connection, "synchronous") == {"FULL": 2, "EXTRA": 3}[journal.synchronous]
    engine.dispose()


@on_sqlite
def test_the_journal_is_the_choice_for_this_sqlite(engine):
    with engine.connect() as connection:
        assert pragma(connection, "journal_mode").upper() == journal_choice(sqlite3.sqlite_version_info).mode


@on_sqlite
def test_foreign_keys_hold(engine, record_of):
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), engine.begin() as connection:
        images.record(connection, [record_of()], energy_id=77)


def test_foreign_keys_hold_on_the_connection_that_migrated(tmp_path: Path):
    engine = open_database(tmp_path, create=True)
    with engine.connect() as connection:
        assert pragma(connection, "foreign_keys") == 1
    engine.dispose()


@on_sqlite
def test_a_reading_connection_may_not_write_and_a_writing_one_may_afterwards(engine, record_of):
    with engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        images.record(connection, [record_of()], None)
    with engine.begin() as connection:
        images.record(connection, [record_of()], None)
    with engine.connect() as connection:
        assert images.count(connection) == 1


@on_sqlite
def test_an_error_rolls_the_whole_transaction_back(engine, record_of):
    with pytest.raises(RuntimeError), engine.begin() as connection:
        images.record(connection, [record_of()], None)
        raise RuntimeError
    with engine.connect() as connection:
        assert images.count(connection) == 0


@JOURNALS
def test_two_that_read_then_write_wait_for_each_other_and_both_succeed(tmp_path: Path, record_of, journal):
    engine = open_database(tmp_path, create=True, journal=journal)
    first_has_read, second_begins = threading.Event(), threading.Event()

    def second() -> None:
        first_has_read.wait()
        second_begins.set()
        with engine.begin() as connection:
            images.count(connection)
            images.record(connection, [record_of(2)], None)

    thread = threading.Thread(target=second)
    thread.start()
    with engine.begin() as connection:
        images.count(connection)
        first_has_read.set()
        second_begins.wait()
        images.record(connection, [record_of(1)], None)
    thread.join()
    with engine.connect() as connection:
        assert images.count(connection) == 2
    engine.dispose()


@JOURNALS
def test_readers_go_on_while_a_transaction_writes(tmp_path: Path, record_of, journal):
    engine = open_database(tmp_path, create=True, journal=journal)
    with engine.begin() as writing:
        images.record(writing, [record_of()], None)
        with engine.connect() as reading:
            assert images.count(reading) == 0
    engine.dispose()


@pytest.mark.parametrize(("umask", "expected"), [(0o077, 0o600), (0o027, 0o640), (0o007, 0o660)])
def test_the_file_is_made_with_the_umask_of_the_process(tmp_path: Path, umask, expected):
    before = os.umask(umask)
    try:
        open_database(tmp_path, create=True).dispose()
    finally:
        os.umask(before)
    assert (tmp_path / DATABASE_FILE).stat().st_mode & 0o777 == expected


def test_a_missing_database_is_refused_with_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=f"tamis init {tmp_path}"):
        open_database(tmp_path)
    assert not (tmp_path / DATABASE_FILE).exists()


def test_a_missing_root_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no such folder"):
        open_database(tmp_path / "absent", create=True)


def test_an_emptied_file_is_refused_and_made_whole_only_by_create(tmp_path: Path):
    (tmp_path / DATABASE_FILE).touch()
    with pytest.raises(ConfigurationError, match="empty database"):
        open_database(tmp_path)
    open_database(tmp_path, create=True).dispose()
    open_database(tmp_path).dispose()


def test_a_database_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path):
    path = tmp_path / DATABASE_FILE
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name)")
    with pytest.raises(ConfigurationError, match=r"something else.*recipes"):
        open_database(tmp_path, create=True)
    assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_database_is_refused_as_corrupt(tmp_path: Path, read_only):
    (tmp_path / DATABASE_FILE).write_bytes(b"not a database, " * 1000)
    with pytest.raises(DatabaseCorrupt, match="put back a backup") as caught:
        open_database(tmp_path, read_only=read_only)
    assert caught.value.exit_code == 78


def fill_and_overwrite_a_page(root: Path, record_of) -> None:
    engine = open_database(root, create=True)
    with engine.begin() as connection:
        images.record(connection, [record_of(n, error="x" * 500) for n in range(500)], None)
    engine.dispose()
    path = root / DATABASE_FILE
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(content)


def test_an_overwritten_page_is_found_at_open(tmp_path: Path, record_of):
    fill_and_overwrite_a_page(tmp_path, record_of)
    with pytest.raises(DatabaseCorrupt, match=DATABASE_FILE):
        open_database(tmp_path)


def test_an_overwritten_page_of_a_large_database_is_named_by_the_statement_that_meets_it(
    tmp_path: Path, record_of, monkeypatch
):
    fill_and_overwrite_a_page(tmp_path, record_of)
    monkeypatch.setattr(sqlite, "CHECK_AT_OPEN_BYTES_MAX", 0)
    engine = open_database(tmp_path)
    with pytest.raises(DatabaseCorrupt, match=DATABASE_FILE), engine.connect() as connection:
        connection.execute(text("SELECT * FROM images ORDER BY error")).all()
        connection.execute(text("SELECT * FROM images ORDER BY id")).all()
        connection.execute(text("PRAGMA integrity_check")).all()
        for index in ("received_at", "product", "verdict", "state", "sha256"):
            connection.execute(text(f"SELECT count(*) FROM images WHERE {index} > ''")).all()
    engine.dispose()


def test_a_database_newer_than_the_program_is_refused_and_both_revisions_are_named(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    with sqlite3.connect(tmp_path / DATABASE_FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(ConfigurationError, match=f"{migrations.HEAD} or older; found 9999"):
            open_database(tmp_path, read_only=read_only)


def test_a_network_file_system_is_refused_with_its_type_and_what_to_do(tmp_path: Path, monkeypatch):
    mount = filesystem.Mount(tmp_path, "nfs4", "server:/share", False)
    monkeypatch.setattr(filesystem, "mount_of", lambda path: mount)
    with pytest.raises(ConfigurationError, match=f"{tmp_path}.*nfs4.*local disk"):
        open_database(tmp_path, create=True)
    assert not (tmp_path / DATABASE_FILE).exists()


def test_a_read_only_engine_refuses_to_write_even_with_begin(tmp_path: Path, record_of):
    open_database(tmp_path, create=True).dispose()
    engine = open_database(tmp_path, read_only=True)
    with pytest.raises(OperationalError, match="readonly"), engine.begin() as connection:
        images.record(connection, [record_of()], None)
    engine.dispose()


@JOURNALS
def test_a_reader_sees_what_was_committed_before_a_crash_and_nothing_of_the_rest(tmp_path: Path, journal):
    """A process is killed amid a transaction whose pages have reached the file; a read-only open rolls it back."""
    open_database(tmp_path, create=True, journal=journal).dispose()
    path = tmp_path / DATABASE_FILE
    script = f"""
import os, sqlite3
c = sqlite3.connect({str(path)!r}, isolation_level=None)
c.execute("PRAGMA cache_size = 1")
c.execute("BEGIN IMMEDIATE")
insert = "INSERT INTO promotions (product, version, action, at) VALUES ('lid', ?, 'promote', '')"
c.executemany(insert, [("v" * 500,)] * 500)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / f"{DATABASE_FILE}-{'wal' if journal is WAL else 'journal'}").exists()
    engine = open_database(tmp_path, read_only=True, journal=journal)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM promotions")).scalar_one() == 0
    engine.dispose()


def test_opening_an_up_to_date_database_does_not_import_alembic(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    script = (
        "import sys; from pathlib import Path; from service.storage.database.open import open_database;"
        f"open_database(Path({str(tmp_path)!r})); print('alembic' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_lock_that_does_not_end_is_a_failure_that_a_restart_may_cure(tmp_path: Path):
    open_database(tmp_path, create=True, journal=ROLLBACK).dispose()
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TamisError, match=r"locked.*Another program") as caught:
        open_database(tmp_path, journal=ROLLBACK, busy_timeout_s=0.05)
    other.close()
    assert caught.value.exit_code == 1


def test_a_writer_waits_for_a_lock_and_loses_nothing(tmp_path: Path, record_of):
    engine = open_database(tmp_path, create=True, journal=ROLLBACK)
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    release.start()
    with engine.begin() as connection:
        assert not other.in_transaction
        images.record(connection, [record_of()], None)
    release.join()
    other.close()
    with engine.connect() as connection:
        assert images.count(connection) == 1
    engine.dispose()


def test_a_write_ahead_log_is_left_when_this_sqlite_should_not_use_one(tmp_path: Path, record_of):
    engine = open_database(tmp_path, create=True, journal=WAL)
    with engine.begin() as connection:
        images.record(connection, [record_of()], None)
    engine.dispose()
    engine = open_database(tmp_path, journal=ROLLBACK)
    with engine.connect() as connection:
        assert pragma(connection, "journal_mode") == "delete"
        assert images.count(connection) == 1
    engine.dispose()


def test_another_program_that_keeps_the_write_ahead_log_open_is_reported(tmp_path: Path):
    first = open_database(tmp_path, create=True, journal=WAL)
    with first.connect() as connection:
        images.count(connection)
        with pytest.raises(TamisError, match=r"locked|Stop all that use it"):
            open_database(tmp_path, journal=ROLLBACK, busy_timeout_s=0.05)
    first.dispose()
