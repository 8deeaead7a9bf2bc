"""The migrations: from nothing, again, by two at once, from a wheel's place; and that they and the tables agree."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

import migrations
from service.root import DATABASE_FILE
from service.storage.database import schema
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from service.storage.tables import ImageState, Verdict, metadata

REPOSITORY = Path(migrations.__file__).parents[1]
STATEMENTS = {name: (Path(__file__).parent / f"{name}.sql").read_text() for name in ("sqlite", "postgresql")}


def objects(path: Path) -> dict[str, str]:
    """Return the statement of each object of the database at `path`, without regard to white space."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: re.sub(r"\s+", " ", sql).strip() for name, sql in rows}


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return ScriptDirectory.from_config(config)


def statements(dialect: str) -> str:
    """Return what all migrations would have a database of `dialect` do."""
    written = io.StringIO()
    context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": written})
    with Operations.context(context):
        for script in [*scripts().walk_revisions()][::-1]:
            script.module.upgrade()
    return written.getvalue()


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


def test_upgrading_again_changes_nothing(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    before = (tmp_path / DATABASE_FILE).read_bytes()
    engine = open_database(tmp_path, create=True)
    with engine.begin() as connection:
        schema.upgrade(connection, new=False)
    engine.dispose()
    assert (tmp_path / DATABASE_FILE).read_bytes() == before


def test_the_tables_name_the_columns_and_types_of_the_database(tmp_path: Path):
    engine = open_database(tmp_path, create=True)
    inspector = inspect(engine)
    found = {
        name: {column["name"]: str(column["type"]) for column in inspector.get_columns(name)}
        for name in inspector.get_table_names()
    }
    engine.dispose()
    del found["alembic_version"]
    assert found == {
        table.name: {column.name: column.type.compile(engine.dialect) for column in table.c}
        for table in metadata.tables.values()
    }


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_statements_of_the_migrations_are_those_on_file_byte_for_byte(dialect: str):
    """What was released made these, and a step written otherwise must still make them; a new step adds its own."""
    assert statements(dialect) == STATEMENTS[dialect]


def test_the_statements_on_file_are_the_objects_of_a_new_database(tmp_path: Path):
    open_database(tmp_path, create=True).dispose()
    connection = sqlite3.connect(tmp_path / "from_file.db")
    connection.executescript(STATEMENTS["sqlite"])
    connection.close()
    found = objects(tmp_path / DATABASE_FILE)
    del found["alembic_version"]
    assert found == objects(tmp_path / "from_file.db")


def test_the_states_and_verdicts_of_the_program_are_those_that_the_schema_takes():
    for column, names in (("state", ImageState), ("verdict", Verdict)):
        allowed = ", ".join(map(repr, get_args(names)))
        assert f"CONSTRAINT images_{column} CHECK ({column} IN ({allowed}))" in STATEMENTS["sqlite"]


def test_the_list_of_revisions_is_that_of_the_files():
    assert [script.revision for script in scripts().walk_revisions()][::-1] == list(migrations.REVISIONS)
    assert scripts().get_heads() == [migrations.HEAD]


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
