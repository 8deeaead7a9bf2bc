"""Chooses how SQLite keeps its transactions whole, by the version of the library. Pure."""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, ...]

# https://sqlite.org/wal.html#walresetbug: two connections that reset the log at once may corrupt the file.
BUG_FIRST: Version = (3, 7, 0)
BUG_FIXED: Version = (3, 51, 3)
BACKPORTS: frozenset[Version] = frozenset({(3, 44, 6), (3, 50, 7)})


@dataclass(frozen=True)
class JournalChoice:
    """A journal mode and a `synchronous` level, as SQLite's pragmas name them, and why."""

    mode: str
    synchronous: str
    reason: str


def has_reset_bug(version: Version) -> bool:
    """Return whether SQLite of this `version`, as `sqlite3.sqlite_version_info`, has the WAL-reset bug."""
    return BUG_FIRST <= version < BUG_FIXED and version not in BACKPORTS


def journal_choice(version: Version) -> JournalChoice:
    """Return the fastest journal that loses no committed transaction in a power cut under this SQLite.

    `version` is as `sqlite3.sqlite_version_info`.
    """
    name = ".".join(map(str, version))
    if version < BUG_FIRST:
        return _rollback(f"SQLite {name} has no write-ahead log")
    if not has_reset_bug(version):
        return JournalChoice("WAL", "FULL", f"SQLite {name} is free of the WAL-reset bug")
    return _rollback(
        f"SQLite {name} has the WAL-reset bug (3.7.0 to 3.51.2, except 3.44.6 and 3.50.7),"
        " which can corrupt a database that several connections write"
    )


def _rollback(reason: str) -> JournalChoice:
    # DELETE, SQLite's own default: TRUNCATE and PERSIST were no safer and no faster, each transaction syncs five
    # times with any of them. EXTRA syncs the folder after the journal is removed; without it a power cut could
    # bring the journal back, and with it undo the transaction.
    return JournalChoice("DELETE", "EXTRA", reason)
