"""`docs/database.md` against the real views: every column is documented, in order, and no other is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.storage.database.driver import sqlite3
from service.storage.database.journal import journal_choice
from service.storage.database.open import BUSY_TIMEOUT_S
from service.storage.database.sqlite import CHECK_AT_OPEN_BYTES_MAX
from service.storage.tables import regions_view, results_view, review_queue_view
from tests.service.storage.conftest import on_sqlite

PAGE = (Path(__file__).parents[3] / "docs" / "database.md").read_text(encoding="utf-8")


VIEWS = re.findall(r"^## View `(\w+)`", PAGE, re.MULTILINE)


def section(view: str) -> str:
    found = re.search(rf"^## View `{view}`.*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section on {view}"
    return found[0]


def documented(view: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\w+)` \| (\w+) \|", section(view), re.MULTILINE)


@pytest.mark.parametrize("view", VIEWS)
def test_the_documented_columns_are_those_of_the_view_in_their_order(engine, view):
    with engine.connect() as connection:
        real = list(connection.exec_driver_sql(f"SELECT * FROM {view}").keys())
    assert [name for name, _ in documented(view)] == real


def test_the_views_that_the_program_reads_have_the_documented_columns():
    for view in (results_view, regions_view, review_queue_view):
        assert view.c.keys() == [name for name, _ in documented(view.name)]


@pytest.mark.parametrize("view", VIEWS)
@on_sqlite
def test_the_documented_types_are_those_of_the_columns(engine, view):
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"PRAGMA table_info({view})").all()
    declared = {row[1]: row[2] for row in rows}
    names = {"TEXT": "text", "FLOAT": "real", "INTEGER": "integer", "BIGINT": "integer", "": "real"}
    assert {name: names[declared[name]] for name in declared} == dict(documented(view))


@on_sqlite
def test_the_views_are_all_documented(engine):
    with engine.connect() as connection:
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'view'").scalars().all()
    assert sorted(names) == sorted(VIEWS)


def test_the_queries_of_the_page_run(engine):
    queries = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(queries) == 5
    with engine.connect() as connection:
        for query in queries:
            connection.exec_driver_sql(query).all()


def test_the_figures_of_the_page_are_those_of_the_program():
    assert f"up to {CHECK_AT_OPEN_BYTES_MAX // 1_000_000} MB" in PAGE
    assert f"waits {BUSY_TIMEOUT_S:.0f} s" in PAGE
    choice = journal_choice(sqlite3.sqlite_version_info)
    assert f"({choice.mode}) | {choice.synchronous} |" in PAGE
