"""An INSERT that skips rows that exist already, for every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert


class _InsertNew(Insert):
    inherit_cache = True


@compiles(_InsertNew)
def _compile(statement: _InsertNew, compiler: SQLCompiler, **options: Any) -> str:
    inserted = compiler.visit_insert(statement, **options)  # type: ignore[no-untyped-call]
    return f"{inserted} ON CONFLICT DO NOTHING"


def insert_new(table: Table) -> Insert:
    """Return an INSERT into `table` that skips rows whose primary key, or other unique key, exists already."""
    # Inline: without RETURNING, which would have to come after ON CONFLICT.
    return _InsertNew(table).inline()
