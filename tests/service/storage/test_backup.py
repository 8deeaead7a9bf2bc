"""`tamis db backup`: whole or not there, never over another file, also while others write."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from service.errors import TamisError
from service.operations import backup as backup_module
from service.operations.backup import backup
from service.root import DATABASE_FILE
from service.storage import images
from service.storage.database.driver import sqlite3
from service.storage.database.journal import JournalChoice
from service.storage.database.open import open_database
from tests.service.storage.conftest import on_sqlite


def ids(path: Path) -> int:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT count(*) FROM results").fetchone()[0]
    connection.close()
    return found


def fill(engine, record_of, numbers):
    with engine.begin() as connection:
        images.record(connection, [record_of(n) for n in numbers], None)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_backup_is_one_whole_file_that_opens_as_a_root(tmp_path: Path, record_of, mode):
    engine = open_database(tmp_path, create=True, journal=JournalChoice(mode, "FULL", "test"))
    fill(engine, record_of, range(50))
    (tmp_path / "copy").mkdir()
    size = backup(engine, tmp_path / "copy" / DATABASE_FILE)
    engine.dispose()
    assert [path.name for path in (tmp_path / "copy").iterdir()] == [DATABASE_FILE]
    assert size == (tmp_path / "copy" / DATABASE_FILE).stat().st_size
    copied = open_database(tmp_path / "copy")
    with copied.connect() as connection:
        assert images.count(connection) == 50
    copied.dispose()


@on_sqlite
def test_a_file_that_is_there_is_kept_unless_forced(engine, tmp_path: Path):
    target = tmp_path / "kept"
    target.write_text("precious")
    with pytest.raises(TamisError, match="--force"):
        backup(engine, target)
    assert target.read_text() == "precious"
    backup(engine, target, force=True)
    assert ids(target) == 0


@pytest.mark.parametrize("target", [".", "absent/copy.db"])
@on_sqlite
def test_a_destination_that_cannot_be_is_refused(engine, tmp_path: Path, target):
    with pytest.raises(TamisError, match="expected"):
        backup(engine, tmp_path / target)


@on_sqlite
def test_a_copy_that_is_not_sound_does_not_appear(engine, tmp_path: Path, monkeypatch):
    def torn(source, target):
        source.backup(target)
        target.execute("PRAGMA writable_schema = ON")
        target.execute("UPDATE sqlite_master SET rootpage = 2 WHERE name = 'images'")
        target.execute("PRAGMA writable_schema = RESET")

    monkeypatch.setattr(backup_module, "_in_steps", torn)
    with pytest.raises((TamisError, sqlite3.DatabaseError)):
        backup(engine, tmp_path / "copy.db")
    assert not [path.name for path in tmp_path.iterdir() if "copy.db" in path.name]


def test_writers_that_never_rest_do_not_keep_a_backup_from_ending(tmp_path: Path, record_of, monkeypatch):
    """Another connection commits after every step, which makes SQLite begin anew each time."""
    engine = open_database(tmp_path, create=True)
    fill(engine, record_of, range(200))
    monkeypatch.setattr(backup_module, "STEP_PAGES", 4)
    in_steps, commits = backup_module._in_steps, []

    class Source(NamedTuple):
        connection: sqlite3.Connection

        def backup(self, target, *, progress=None, **options):
            def commit_first(status, remaining, total):
                if remaining:
                    commits.append(remaining)
                    fill(engine, record_of, [1000 + len(commits)])
                progress(status, remaining, total)

            self.connection.backup(target, progress=progress and commit_first, **options)

    monkeypatch.setattr(backup_module, "_in_steps", lambda source, target: in_steps(Source(source), target))
    backup(engine, tmp_path / "copy.db")
    engine.dispose()
    assert len(commits) > backup_module.RESTARTS_MAX
    assert ids(tmp_path / "copy.db") == 200 + len(commits)
