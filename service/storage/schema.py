"""The revision of a database's schema: reads it, judges it, and brings it up to the program's.

Owns the decision whether to upgrade; the steps themselves are in `migrations`. Alembic is only imported when
there is something to do, because the daemon's start should not wait for it.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

import migrations
from service.errors import ConfigurationError


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the database's schema; None where it was never migrated."""
    if "alembic_version" not in _tables(connection):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
    return None if found is None else str(found)


def judge(connection: Connection, path: Path, *, new: bool) -> str | None:
    """Return the revision of the database at `path`, one that the program knows; None for an empty one.

    `new` allows an empty one. Raises ConfigurationError for a newer schema and for a file of something else.
    """
    found = revision_of(connection)
    if found in migrations.REVISIONS:
        return found
    if found is not None:
        raise ConfigurationError(
            f"{path}: expected schema revision {migrations.HEAD} or older; found {found},"
            " made by a newer Tamis. Install that version, or put back a backup from before its upgrade"
        )
    tables = _tables(connection)
    if tables:
        names = ", ".join(sorted(tables)[:5])
        raise ConfigurationError(f"{path}: expected Tamis's tables; found a database of something else ({names})")
    if not new:
        raise ConfigurationError(
            f"{path}: expected Tamis's tables; found an empty database. If it once held results,"
            " put back a backup (docs/database.md, 'Backup');"
            f" otherwise begin anew with `tamis init {path.parent}`"
        )
    return None


def require_head(found: str | None, path: Path) -> None:
    """Raise ConfigurationError unless `found` is the program's own revision."""
    if found != migrations.HEAD:
        raise ConfigurationError(
            f"{path}: expected schema revision {migrations.HEAD}; found {found or 'none'}."
            " Bring it up to date with `tamis db upgrade`"
        )


def upgrade(connection: Connection, path: Path, *, new: bool) -> None:
    """Run the missing migrations on `connection`, which holds the write lock and has foreign keys off.

    The revision is read again under the lock: another process may have been faster. Raises ConfigurationError
    where the references between tables do not hold afterwards; the caller then rolls back.
    """
    if judge(connection, path, new=new) == migrations.HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    # The folder, not a relative path: it is found in a wheel and from any working directory.
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise ConfigurationError(
            f"{path}: expected references that hold after the upgrade to {migrations.HEAD}; found"
            f" {len(broken)} broken, the first in table {broken[0][0]}. Nothing was changed"
        )


def _tables(connection: Connection) -> set[str]:
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
    return {name for name in rows if not name.startswith("sqlite_")}
