"""What is known of a file without reading it: its state, and whether its name is ignored."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one content of a file from another without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def file_status(path: Path) -> os.stat_result | None:
    """Return the status of the regular file at `path`, or None where there is none."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def file_state(path: Path) -> FileState | None:
    """Return the state of the regular file at `path`, or None where there is none."""
    status = file_status(path)
    return FileState.of(status) if status is not None else None


def folder_identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells the folder from another at the same path, its device and inode; None where there is none.

    Raises OSError where it cannot be looked at.
    """
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class NameFilter:
    """Tells which names are ignored, by shell patterns that ignore case."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._expression = re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)", re.IGNORECASE | re.DOTALL)

    def ignores(self, name: str) -> bool:
        return self._expression.match(name) is not None

    def ignores_path(self, path: str) -> bool:
        """Return whether any part of the relative `path` is ignored."""
        return any(self.ignores(part) for part in path.split("/"))
