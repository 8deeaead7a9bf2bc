"""The migrations: from nothing, again, by two at once, from a wheel's place; and that tables and migrations agree."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import migrations
from service.storage import schema
from service.storage.engine import DATABASE_FILE, open_database
from service.storage.tables import VIEWS, Base

REPOSITORY = Path(migrations.__file__).parents[1]


def objects(path: Path) -> dict[str, str]:
    """Return the statement of each object of the database at `path`, without regard to white space."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: re.sub(r"\s+", " ", sql) for name, sql in rows}


def test_an_empty_file_gets_all_tables_and_views(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    found = objects(tmp_path / DATABASE_FILE)
    assert set(Base.metadata.tables) | {view.name for view in VIEWS} <= set(found)


def test_upgrading_again_changes_nothing(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    before = (tmp_path / DATABASE_FILE).read_bytes()
    engine = open_database(tmp_path, create=True)
    with engine.begin() as connection:
        schema.upgrade(connection, tmp_path / DATABASE_FILE, new=False)
    engine.dispose()
    assert (tmp_path / DATABASE_FILE).read_bytes() == before


def test_tables_and_migrations_do_not_drift(tmp_path: Path):
    engine = open_database(tmp_path, create=True)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_constraints_and_indexes_are_those_of_the_tables_word_for_word(tmp_path: Path):
    """Alembic's comparison is blind to CHECK constraints and partial indexes."""
    open_database(tmp_path, create=True).dispose()
    from_tables = create_engine(f"sqlite:///{tmp_path / 'tables.db'}")
    Base.metadata.create_all(from_tables)
    from_tables.dispose()
    expected, found = objects(tmp_path / "tables.db"), objects(tmp_path / DATABASE_FILE)
    assert expected == {name: sql for name, sql in found.items() if name in expected}
    others = {name for name in found if name not in expected}
    assert others == {"alembic_version", *(view.name for view in VIEWS)} | {
        f"{table}_refuse_{change}" for table in ("reviews", "promotions") for change in ("update", "delete")
    }


def test_the_list_of_revisions_is_that_of_the_files(tmp_path: Path):
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(migrations.REVISIONS)
    assert scripts.get_heads() == [migrations.HEAD]


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_two_processes_that_upgrade_at_once_both_succeed(tmp_path: Path, journal):
    level = {"DELETE": "EXTRA", "WAL": "FULL"}[journal]
    script = (
        "import sys; from pathlib import Path; from service.storage.engine import open_database;"
        "from service.storage.journal import JournalChoice;"
        "import alembic.command; print('ready', flush=True); sys.stdin.readline();"
        f"journal = JournalChoice({journal!r}, {level!r}, '');"
        f"open_database(Path({str(tmp_path)!r}), create=True, journal=journal).dispose()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    outcomes = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        outcomes.append((process.returncode, errors))
    assert [code for code, _ in outcomes] == [0, 0, 0], outcomes
    engine = open_database(tmp_path)
    with engine.connect() as connection:
        assert schema.revision_of(connection) == migrations.HEAD
    engine.dispose()


def test_an_upgrade_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    def fail(*arguments):
        raise OSError("power")

    monkeypatch.setattr("alembic.op.create_index", fail)
    with pytest.raises(OSError, match="power"):
        open_database(tmp_path, create=True)
    assert objects(tmp_path / DATABASE_FILE) == {}
    monkeypatch.undo()
    open_database(tmp_path, create=True).dispose()


def test_migrations_are_found_from_any_working_directory(tmp_path: Path):
    script = (
        "from pathlib import Path; from service.storage.engine import open_database;"
        f"open_database(Path({str(tmp_path)!r}), create=True)"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd="/", env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True
    )
    assert "results" in objects(tmp_path / DATABASE_FILE)


def test_an_older_schema_is_refused_to_a_reader_with_the_command_that_helps(tmp_path: Path, monkeypatch):
    open_database(tmp_path, create=True).dispose()
    monkeypatch.setattr(migrations, "REVISIONS", ("0001", "0002"))
    monkeypatch.setattr(migrations, "HEAD", "0002")
    with pytest.raises(Exception, match=r"expected schema revision 0002; found 0001.*tamis db upgrade") as caught:
        open_database(tmp_path, read_only=True)
    assert caught.value.exit_code == 78
    open_database(tmp_path, read_only=True, migrate=False).dispose()
