"""Exports have as many rows as the database, over any number of pages, also while others write."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from service.cli import app
from service.commands import results
from service.storage import images
from service.storage.database import sqlite
from service.storage.database.journal import JournalChoice
from service.storage.database.open import open_database
from service.storage.tables import images_table
from tests.service.storage.conftest import on_sqlite

# Rows in a page, and of a tenth of that: the full size takes half a minute.
PAGES = [pytest.param(results.PAGE, id="full", marks=pytest.mark.long), pytest.param(results.PAGE // 10, id="tenth")]
FORMATS = ("csv", "json", "parquet")
ROLLBACK = JournalChoice("DELETE", "EXTRA", "test")


def fill(engine, record_of, count: int) -> None:
    """Add rows up to `count`, of which three in a row were received at one moment."""
    with engine.begin() as connection:
        if not images.count(connection):
            images.record(connection, [record_of(0)], None)
        rest = ", ".join(column.name for column in images_table.columns if column.name not in ("id", "received_at"))
        connection.execute(
            text(
                "WITH RECURSIVE numbers (n) AS (SELECT (SELECT count(*) FROM images)"
                f" UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {count})"
                f" INSERT INTO images (id, received_at, {rest})"
                " SELECT '000000000000000000' || (10000000 + n), '2026-02-01T00:00:00.' || (100000 + n / 3) || 'Z',"
                f" {rest} FROM images, numbers WHERE id = '{0:026d}'"
            )
        )
        assert images.count(connection) == count


def run(root: Path, *words: object) -> tuple[str, str]:
    ended = CliRunner().invoke(app, ["results", "--root", str(root), *map(str, words)])
    assert ended.exit_code == 0, ended.output
    return ended.stdout, ended.stderr


def ids_in(format: str, root: Path, *words: str) -> list[str]:
    """Return the ids that an export of everything names, in its order."""
    if format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        run(root, "--limit", 0, "--format", "parquet", "--output", root / "out.parquet", *words)
        return parquet.read_table(root / "out.parquet").column("id").to_pylist()
    shown, _ = run(root, "--limit", 0, "--format", format, *words)
    if format == "csv":
        return [row["id"] for row in csv.DictReader(io.StringIO(shown))]
    document = json.loads(shown)
    assert document["total"] == len(document["results"])
    return [row["id"] for row in document["results"]]


def known_ids(engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT id FROM images ORDER BY received_at DESC, id DESC")).scalars())


@pytest.fixture
def house(engine, tmp_path: Path) -> Path:
    (tmp_path / "tamis.toml").touch()
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_format_has_each_row_once_and_in_order(engine, house, record_of, page, monkeypatch):
    monkeypatch.setattr(results, "PAGE", page)
    for count in (page - 1, page, page + 1, 4 * page):
        fill(engine, record_of, count)
        expected = known_ids(engine)
        assert len(expected) == count
        for format in FORMATS:
            assert ids_in(format, house) == expected, (format, count)
        # The newest, over the end of a page.
        found, said = run(house, "--limit", page + 1, "--format", "csv")
        assert found.count("\n") - 1 == min(count, page + 1)
        assert said.startswith(f"{min(count, page + 1):,} of {count:,} shown")


@pytest.mark.parametrize("page", PAGES)
def test_a_table_has_each_row_once(engine, house, record_of, page, monkeypatch):
    monkeypatch.setattr(results, "PAGE", page)
    for count in (page - 1, page, page + 1):
        fill(engine, record_of, count)
        found, said = run(house, "--limit", 0)
        assert len(found.splitlines()) == 1 + count and said == f"{count:,} of {count:,} shown\n"


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_of_one_moment_while_others_add_and_change_rows(engine, house, record_of, format, monkeypatch):
    with engine.connect() as connection:
        if not engine.reads_hold_up_nobody(connection):
            pytest.skip("no SQLite here that may keep a write-ahead log")
    fill(engine, record_of, 300)
    expected = known_ids(engine)
    writes_before_each_page(monkeypatch, engine, record_of)
    assert ids_in(format, house, "--state", "scored") == expected
    assert len(known_ids(engine)) > 300


@pytest.mark.parametrize("format", FORMATS)
@on_sqlite
def test_an_export_beside_a_rollback_journal_has_each_row_of_its_begin_and_holds_up_no_writer(
    engine, house, record_of, format, monkeypatch
):
    engine.dispose()
    open_database(house, journal=ROLLBACK).dispose()
    monkeypatch.setattr(sqlite, "journal_choice", lambda version: ROLLBACK)
    with open_database(house, busy_timeout_s=0.5) as writing:
        fill(writing, record_of, 300)
        expected = known_ids(writing)
        writes_before_each_page(monkeypatch, writing, record_of)
        assert ids_in(format, house) == expected
        assert len(known_ids(writing)) > 300


def writes_before_each_page(monkeypatch, engine, record_of) -> None:
    """Have pages of 50; before each but the first a row is added, and rows on any page change their state and name."""
    monkeypatch.setattr(results, "PAGE", 50)
    search, pages = images.search, []

    def write_first(connection, **options):
        pages.append(1)
        if len(pages) > 1:
            with engine.begin() as writing:
                images.record(writing, [record_of(5000 + len(pages))], None)
                change = (
                    "UPDATE images SET state = 'placed', verdict = 'anomaly' WHERE state = 'scored' AND id LIKE '%7'"
                )
                writing.execute(text(change))
        return search(connection, **options)

    monkeypatch.setattr(results.images, "search", write_first)


@pytest.mark.parametrize("format", FORMATS)
@on_sqlite
def test_an_export_ended_by_sigterm_leaves_nothing(engine, house, record_of, format):
    fill(engine, record_of, 5)
    script = (
        "import os, signal, sys\n"
        "from service import cli\n"
        "from service.commands import results\n"
        "search = results.images.search\n"
        "def end(*given, **named):\n"
        "    assert list(__import__('pathlib').Path(sys.argv[-1]).parent.glob('.out*.part'))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return search(*given, **named)\n"
        "results.images.search = end\n"
        "cli.main()"
    )
    words = ["results", "--root", house, "--format", format, "--output", house / "out"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert not list(house.glob("*out*"))
