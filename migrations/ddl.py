"""What the migrations say alike: conditions and objects, worded for SQLite and for PostgreSQL.

Steps of the past are made of these, so none ever changes what it gives.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

FINITE = "1.7976931348623157e308"


def on_sqlite() -> bool:
    """Return whether the database is SQLite's; it is PostgreSQL's otherwise."""
    return str(op.get_context().dialect.name) == "sqlite"


def columns(kind: Any, names: str, *, null: bool = True) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=null) for name in names.split()]


def check(name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(name))


def one_of(column: str, *names: str) -> str:
    """Return the condition that `column` is one of `names`; NULL passes."""
    return f"{column} IN ({', '.join(map(repr, names))})"


def whole(column: str, least: int) -> str:
    """Return the condition that `column` is an integer of at least `least`; NULL passes."""
    # SQLite stores text in an integer column without a word.
    typed = f"typeof({column}) = 'integer' AND " if on_sqlite() else ""
    return f"{column} IS NULL OR ({typed}{column} >= {least})"


def finite(column: str) -> str:
    """Return the condition that `column` is a finite number; NULL passes."""
    typed = f"typeof({column}) = 'real' AND " if on_sqlite() else ""
    return f"{column} IS NULL OR ({typed}abs({column}) <= {FINITE})"


def only_where(condition: str) -> dict[str, Any]:
    """Return the options of an index of those rows alone for which `condition` holds."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def append_only(table: str) -> None:
    """Have every change of a row of `table`, and the removal of one, refused."""
    if on_sqlite():
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{change.lower()} BEFORE {change} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    # For each statement: one that meets no row is refused, too, and so is TRUNCATE.
    op.execute(
        f"CREATE TRIGGER {table}_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" EXECUTE FUNCTION {table}_refuse()"
    )
