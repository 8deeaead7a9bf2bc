"""The database of a server: whose it is, who waits for whom, and what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from typer.testing import CliRunner

import migrations
from service.cli import app
from service.commands.init import make_root
from service.errors import ConfigurationError, TamisError, UsageError
from service.root import DATABASE_OWNER_FILE
from service.settings import load
from service.storage import images, reviews
from service.storage.database import base as database
from service.storage.database.base import Database, trouble, write
from service.storage.database.open import has_database, name_of_database, open_database
from service.storage.database.postgresql import engine_of, shown
from service.storage.reviews import NewReview
from tests.service.storage.conftest import NOON
from tests.support.postgres_server import PostgresServer

psycopg = pytest.importorskip("psycopg")

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


@pytest.fixture
def url(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    url = postgres.url()
    monkeypatch.setenv("TAMIS_DATABASE_URL", url)
    return url


@contextmanager
def opened(root: Path, **options: object):
    engine = open_database(root, **options)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.dispose()


def asked(engine: Database, statement: str) -> object:
    with engine.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


# Whose it is


def test_new_root_has_its_tables_in_the_server_and_no_file(url: str, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root")
    assert made.made[-1] == name_of_database(tmp_path / "root") == shown(url)
    assert not (tmp_path / "root" / "tamis.db").exists() and has_database(tmp_path / "root")
    assert make_root(tmp_path / "root").kept[-1] == shown(url)
    with opened(tmp_path / "root") as engine:
        assert asked(engine, "SELECT version_num FROM alembic_version") == migrations.HEAD
        assert asked(engine, "SELECT count(*) FROM results") == 0


def test_setting_in_the_file_names_it_too(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAMIS_DATABASE_URL")
    (tmp_path / "tamis.toml").write_text(f'database_url = "{url}"')
    with opened(tmp_path, create=True) as engine:
        assert engine.known_as == shown(url)


def test_database_of_another_root_is_refused_and_left_as_it_is(url: str, tmp_path: Path) -> None:
    make_root(tmp_path / "one")
    (tmp_path / "two").mkdir()
    for create in (False, True):
        with pytest.raises(ConfigurationError, match=r"expected the database of root .*two.*serves one root"):
            open_database(tmp_path / "two", create=create)
    with pytest.raises(ConfigurationError, match="serves one root"):
        make_root(tmp_path / "two")
    # The id moves with the root, as to another machine.
    (tmp_path / "one").rename(tmp_path / "moved")
    with opened(tmp_path / "moved") as engine:
        assert asked(engine, "SELECT count(*) FROM results") == 0
    (tmp_path / "moved" / DATABASE_OWNER_FILE).write_text("\n")
    with pytest.raises(ConfigurationError, match="says nothing"):
        open_database(tmp_path / "moved")
    (tmp_path / "moved" / DATABASE_OWNER_FILE).write_text("'; DROP TABLE images")
    with pytest.raises(ConfigurationError, match=r"expected the id of the root's database; found.*DROP"):
        open_database(tmp_path / "moved")


def test_database_of_something_else_or_empty_is_refused(url: str, postgres: PostgresServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"found an empty database.*tamis init"):
        open_database(tmp_path)
    postgres.run_sql(url.split("/")[3].split("?")[0], "CREATE TABLE recipes (cake text)")
    with pytest.raises(ConfigurationError, match=r"found a database of something else \(recipes\)"):
        open_database(tmp_path, create=True)


def test_newer_schema_is_refused(url: str, postgres: PostgresServer, tmp_path: Path) -> None:
    with opened(tmp_path, create=True):
        pass
    postgres.run_sql(url.split("/")[3].split("?")[0], "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="found 9999"):
        open_database(tmp_path)


def test_database_that_is_not_in_utf_8_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.run_sql("postgres", "CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    engine = engine_of(tmp_path, postgres.url_of("old"), read_only=False, busy_timeout_s=1.0)
    with pytest.raises(ConfigurationError, match="found LATIN1"):
        engine.connect()
    engine.dispose()


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("mysql://user@host/tamis", "mysql://"),
        ("postgresql+asyncpg://host/tamis", r"postgresql\+asyncpg://"),
        ("postgresql://host", "none with the name of a database"),
        ("tamis", "something else"),
        ("postgresql://user:secret@host:port/tamis", "something else"),
    ],
)
def test_what_is_no_url_of_postgresql_is_refused_without_showing_it(
    wrong: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIS_DATABASE_URL", wrong)
    with pytest.raises(ConfigurationError, match=f"database_url: expected a URL like.*{found}") as caught:
        open_database(tmp_path)
    assert "secret" not in str(caught.value)


def test_password_is_shown_nowhere(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_root(tmp_path / "root")
    monkeypatch.setenv("TAMIS_DATABASE_URL", url.replace("tamis@", "tamis:secret@"))
    said = CliRunner().invoke(app, ["doctor", "--root", str(tmp_path / "root")]).output
    assert "PostgreSQL" in said and "tamis:***@" in said + name_of_database(tmp_path / "root")
    assert "secret" not in said + repr(load(tmp_path / "root"))


def test_driver_that_is_missing_is_asked_for_by_name(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr("service.storage.database.postgresql.create_engine", none)
    with pytest.raises(ConfigurationError, match=r"pip install 'tamis\[postgres\]'"):
        open_database(tmp_path)


def test_server_that_does_not_answer_is_a_failure_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIS_DATABASE_URL", f"postgresql://tamis@/tamis?host={tmp_path}")
    for ask in (open_database, has_database):
        with pytest.raises(TamisError, match="expected a server that answers") as caught:
            ask(tmp_path)
        assert not isinstance(caught.value, ConfigurationError)


# Who waits for whom


@on_postgresql
def test_two_that_read_then_write_wait_for_each_other_and_both_succeed(engine: Database, record_of: Callable) -> None:
    """Both count the rows and add one of that number; without the lock, both would add the same."""
    ready = threading.Barrier(2)

    def add() -> None:
        ready.wait()
        for _ in range(20):
            with engine.begin() as connection:
                number = images.count(connection)
                time.sleep(0.002)
                images.record(connection, [record_of(number)], None)

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(engine, "SELECT count(*) FROM images") == 40


@on_postgresql
def test_readers_see_one_moment_and_wait_for_nobody(engine: Database, record_of: Callable) -> None:
    with engine.connect() as reading:
        assert images.count(reading) == 0
        with engine.begin() as writing:
            images.record(writing, [record_of(1)], None)
            assert images.count(reading) == 0
        assert images.count(reading) == 0
    assert asked(engine, "SELECT count(*) FROM images") == 1


@on_postgresql
def test_reading_connection_may_not_write(engine: Database, record_of: Callable, tmp_path: Path) -> None:
    with engine.connect() as connection, pytest.raises(DBAPIError, match="read-only"):
        images.record(connection, [record_of(1)], None)
    with (
        opened(tmp_path, read_only=True) as reader,
        pytest.raises(DBAPIError, match="read-only"),
        reader.begin() as connection,
    ):
        images.record(connection, [record_of(1)], None)


@on_postgresql
def test_writer_gives_up_on_a_lock_in_its_time_and_says_locked(engine: Database, tmp_path: Path) -> None:
    with (
        opened(tmp_path, busy_timeout_s=0.2) as other,
        engine.begin(),
        pytest.raises(OperationalError) as caught,
        other.begin(),
    ):
        pass
    assert trouble(caught.value) == "locked"


@on_postgresql
def test_commits_last_even_where_the_server_would_not_wait_for_its_disk(
    engine: Database, postgres: PostgresServer, tmp_path: Path
) -> None:
    assert asked(engine, "SHOW synchronous_commit") == "on"
    name = engine.url.database
    for weaker, expected in (("off", "on"), ("remote_apply", "remote_apply")):
        postgres.run_sql("postgres", f"ALTER DATABASE {name} SET synchronous_commit = {weaker}")
        with opened(tmp_path) as another:
            assert asked(another, "SHOW synchronous_commit") == expected


# A server that goes away


@on_postgresql
def test_connection_that_was_cut_off_is_away_and_the_next_one_works(engine: Database, postgres: PostgresServer) -> None:
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        number = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        postgres.run_sql("postgres", f"SELECT pg_terminate_backend({number})")
        connection.exec_driver_sql("SELECT 1")
    assert trouble(caught.value) == "away"
    assert asked(engine, "SELECT 1") == 1


@on_postgresql
@pytest.mark.parametrize("before_commit", [True, False])
def test_write_whose_connection_is_lost_is_made_once(
    before_commit: bool, engine: Database, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ASK_AGAIN_S", 0.01)
    lost = []

    def commit(connection: Any) -> None:
        if lost:
            return real(connection)
        lost.append(True)
        if not before_commit:
            real(connection)
        connection.close()
        raise psycopg.OperationalError("the connection was lost on purpose")

    real = psycopg.Connection.commit
    monkeypatch.setattr(psycopg.Connection, "commit", commit)

    def add(connection: Connection) -> str:
        connection.exec_driver_sql(
            "INSERT INTO promotions (product, version, action, at) VALUES ('p', 'v', 'promote', '')"
        )
        return "added"

    def done(connection: Connection) -> str | None:
        rows = connection.exec_driver_sql("SELECT count(*) FROM promotions").scalar_one()
        return "was there" if rows else None

    assert write(engine, add, done) == ("added" if before_commit else "was there")
    assert lost and asked(engine, "SELECT count(*) FROM promotions") == 1


@on_postgresql
def test_write_gives_up_on_what_will_not_pass(engine: Database) -> None:
    calls = []

    def fail(connection: Connection) -> None:
        calls.append(True)
        connection.exec_driver_sql("SELECT 1 FROM nowhere")

    with pytest.raises(DBAPIError, match="nowhere"):
        write(engine, fail)
    assert len(calls) == 1


def test_write_gives_up_on_a_server_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "ASK_AGAIN_S", 0.01)
    engine = engine_of(tmp_path, f"postgresql://tamis@/tamis?host={tmp_path}", read_only=False, busy_timeout_s=1.0)
    with pytest.raises(OperationalError) as caught:
        write(engine, lambda connection: None, away_timeout_s=0.05)
    assert trouble(caught.value) == "away"


# What is stored


@on_postgresql
def test_reviews_and_promotions_only_grow(engine: Database, record_of: Callable) -> None:
    with engine.begin() as connection:
        images.record(connection, [record_of(1)], None)
        reviews.add(connection, [NewReview(f"{1:026d}", "anomaly", "a person", NOON, "command", None)])
    for change in ("UPDATE reviews SET label = 'normal'", "DELETE FROM reviews", "TRUNCATE promotions"):
        with pytest.raises(IntegrityError, match="is append-only"), engine.begin() as connection:
            connection.exec_driver_sql(change)


@on_postgresql
def test_views_are_those_of_sqlite_with_the_types_of_the_page(engine: Database) -> None:
    from tests.service.storage.test_documented_columns import documented

    names = {"text": "text", "double precision": "real", "integer": "integer", "bigint": "integer"}
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name, column_name, data_type FROM information_schema.columns JOIN information_schema.views"
            " USING (table_schema, table_name) WHERE table_schema = current_schema() ORDER BY ordinal_position"
        ).all()
    found: dict[str, list[tuple[str, str]]] = {}
    for view, column, kind in rows:
        found.setdefault(view, []).append((column, names[kind]))
    assert len(found) == 8 and found == {view: documented(view) for view in found}


# Commands


@on_postgresql
def test_check_reads_every_table_and_finds_references_that_were_let_be(
    engine: Database, postgres: PostgresServer
) -> None:
    with engine.connect() as connection:
        assert engine.check(connection, quick=False) == ["ok"] and engine.broken_references(connection) == []
    postgres.run_sql(
        str(engine.url.database),
        "ALTER TABLE images DROP CONSTRAINT images_energy_id, ADD CONSTRAINT images_energy_id"
        " FOREIGN KEY (energy_id) REFERENCES energy_rows NOT VALID",
    )
    with engine.connect() as connection:
        assert engine.broken_references(connection) == ["images"]


@on_postgresql
@pytest.mark.parametrize(("command", "instead"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_files_of_backups_are_left_to_the_tools_of_the_server(
    command: str, instead: str, engine: Database, tmp_path: Path
) -> None:
    ended = CliRunner().invoke(app, ["db", command, "--root", str(tmp_path), str(tmp_path / "file")])
    assert isinstance(ended.exception, UsageError) and instead in str(ended.exception)


@on_postgresql
def test_reconcile_has_the_next_start_look_through_the_folders(engine: Database, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["db", "reconcile", "--root", str(tmp_path)])
    assert ended.exit_code == 0 and (tmp_path / ".restored").exists()
