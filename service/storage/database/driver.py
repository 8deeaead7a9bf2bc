"""Which SQLite the whole program uses: Python's own, or the one that the package pysqlite3 carries.

Nobody else imports either. Two SQLite libraries in one process must never open the same file: the locks that a process
holds on a file end when either closes it.
"""

from __future__ import annotations

import importlib
import sqlite3 as _system
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from service.storage.database.journal import has_reset_bug

BUNDLED = "pysqlite3.dbapi2"


def newest_safe(modules: Sequence[ModuleType]) -> ModuleType:
    """Return the one of `modules`, each a `sqlite3`, with the newest SQLite; one without the WAL-reset bug if any is.

    Of equals the first.
    """

    def rank(module: ModuleType) -> tuple[bool, tuple[int, ...]]:
        version: tuple[int, ...] = module.sqlite_version_info
        return not has_reset_bug(version), version

    return max(modules, key=rank)


def _present() -> list[ModuleType]:
    try:
        return [_system, importlib.import_module(BUNDLED)]
    except ImportError:  # no wheel for this platform, or one that does not load here
        return [_system]


if TYPE_CHECKING:
    import sqlite3 as sqlite3
else:
    sqlite3 = newest_safe(_present())


def is_corruption(error: BaseException | None) -> bool:
    """Return whether SQLite says by `error` that the file is damaged, or no database at all."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
