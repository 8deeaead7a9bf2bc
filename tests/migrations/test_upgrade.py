"""The migrations: from nothing, again, by two at once, from a wheel's place; and that tables and migrations agree."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import migrations
from service.root import DATABASE_FILE
from service.storage.database import schema
from service.storage.database.open import open_database
from service.storage.tables import VIEWS, Base

REPOSITORY = Path(migrations.__file__).parents[1]


def objects(path: Path) -> dict[str, str]:
    """Return the statement of each object of the database at `path`, without regard to white space."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: re.sub(r"\s+", " ", sql) for name, sql in rows}


def older(root: Path, revision: str) -> Path:
    """Make the database of `root` as a program of `revision` left it, without rows; return its path."""
    path = root / DATABASE_FILE
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    return path


def test_rows_of_the_first_schema_stay_as_they_were_and_what_it_did_not_know_is_null(tmp_path: Path):
    path = older(tmp_path, "0001")
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO energy_rows (id, kind, started_at, duration_s, images, total_wh, source)"
        " VALUES (7, 'scoring', '2026-01-31T12:00:00.000000Z', 0.4, 2, 0.5, 'estimated')"
    )
    connection.executemany(
        "INSERT INTO images (id, product, file_name, path, destination, state, verdict, score, threshold, p_value,"
        " sha256, width, height, bytes, received_at, decided_at, attempts, error_code, energy_id)"
        " VALUES (?, 'lid', ?, ?, ?, ?, ?, ?, 0.5, 0.25, ?, 640, 480, 1234, ?, '2026-01-31T12:00:01.000000Z', 1, ?, 7)",
        [
            (
                id,
                f"{id}.png",
                f"x/{id}.png",
                f"x/{id}.png",
                state,
                verdict,
                score,
                id * 64,
                f"2026-01-31T12:00:0{id}Z",
                code,
            )
            for id, state, verdict, score, code in [
                ("1", "placed", "normal", 0.25, None),
                ("2", "placed", "anomaly", 0.75, None),
                ("3", "quarantined", None, None, "damaged"),
            ]
        ],
    )
    connection.execute(
        "INSERT INTO reviews (image_id, label, labelled_at, source)"
        " VALUES ('2', 'anomaly', '2026-01-31T13:00:00.000000Z', 'page')"
    )
    connection.commit()
    before = [
        connection.execute(f"SELECT * FROM {view}").fetchall() for view in ("results", "energy", "model_versions")
    ]
    connection.close()
    assert len(before[0]) == 3

    engine = open_database(tmp_path)
    with engine.connect() as reader:
        assert schema.revision_of(reader) == migrations.HEAD
    engine.dispose()

    connection = sqlite3.connect(path)
    after = [connection.execute(f"SELECT * FROM {view}").fetchall() for view in ("results", "energy", "model_versions")]
    assert after == before
    assert set(connection.execute("SELECT uncertain, uncertainty FROM images")) == {(None, None)}
    assert connection.execute("SELECT count(*) FROM regions").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM review_queue").fetchone() == (0,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_an_upgraded_database_has_the_same_statements_as_a_new_one(tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    open_database(tmp_path / "new", create=True).dispose()
    upgraded = older(tmp_path / "old", "0001")
    open_database(tmp_path / "old").dispose()
    assert objects(upgraded) == objects(tmp_path / "new" / DATABASE_FILE)


def test_an_empty_file_gets_all_tables_and_views(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    found = objects(tmp_path / DATABASE_FILE)
    assert set(Base.metadata.tables) | {view.name for view in VIEWS} <= set(found)


def test_upgrading_again_changes_nothing(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    before = (tmp_path / DATABASE_FILE).read_bytes()
    engine = open_database(tmp_path, create=True)
    with engine.begin() as connection:
        schema.upgrade(connection, new=False)
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
        "import sys; from pathlib import Path; from service.storage.database.open import open_database;"
        "from service.storage.database.journal import JournalChoice;"
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
        "from pathlib import Path; from service.storage.database.open import open_database;"
        f"open_database(Path({str(tmp_path)!r}), create=True)"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd="/", env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True
    )
    assert "results" in objects(tmp_path / DATABASE_FILE)


def test_an_older_schema_is_refused_to_a_reader_with_the_command_that_helps(tmp_path: Path):
    older(tmp_path, "0001")
    with pytest.raises(Exception, match=r"expected schema revision 0003; found 0001.*tamis db upgrade") as caught:
        open_database(tmp_path, read_only=True)
    assert caught.value.exit_code == 78
    open_database(tmp_path, read_only=True, migrate=False).dispose()
