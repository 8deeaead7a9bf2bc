"""Removes the file of one image, for retention; owns what must hold of a file before it is removed.

Only the very file of the row is removed: a regular one, in its folder without a link on the way, with the recorded
bytes. Whatever else is found there belongs to somebody, and stays.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from service.filesystem.odd_entries import ENTRY_ERRORS
from service.filesystem.open_below import MissingBelow, NotRegularFile, open_file, open_folder
from service.filesystem.row_path import PathRefused, parts_of

FOLDERS = ("normal", "anomaly")

Left = Literal["gone", "replaced", "elsewhere", "refused"]
"""Why a file stays: it is not there, it is not the one on record, its path leads elsewhere, the disk refuses."""

FileIdentity = tuple[int, int, int, int, int]
"""What tells whether a file was touched: its device, inode, size, and mtime and ctime in ns."""


class NotRemovable(Exception):
    def __init__(self, why: Left) -> None:
        super().__init__(why)
        self.why: Left = why


def verify_content(root: Path, path: str, size: int, sha256: str) -> FileIdentity:
    """Return the identity of the file at `path`, read whole; raises NotRemovable for another `size` or `sha256`."""
    with _folder_of(root, path) as (folder, name):
        # Neither a FIFO nor a folder is opened: only then can it be read as a file.
        _require(os.stat(name, dir_fd=folder, follow_symlinks=False), size)
        descriptor = open_file(name, folder)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            before = os.fstat(descriptor)
            _require(before, size)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(descriptor)
            # What is about to go need not push out of the memory what is still used.
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if found != sha256 or _identity(before) != _identity(after):
            raise NotRemovable("replaced")
        return _identity(after)


def is_gone(root: Path, path: str) -> bool:
    """Return whether there is nothing at `path`, in the folders that removal knows."""
    try:
        with _folder_of(root, path) as (folder, name):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
    except NotRemovable as stays:
        return stays.why == "gone"
    return False


def verify_size(root: Path, path: str, size: int) -> None:
    """Raise NotRemovable where the file at `path` is not there or not of `size`; reads nothing of it."""
    with _folder_of(root, path) as (folder, name):
        _require(os.stat(name, dir_fd=folder, follow_symlinks=False), size)


def unlink(root: Path, path: str, seen: FileIdentity) -> None:
    """Remove the file at `path`, if it is as it was `seen`; raises NotRemovable where it is not."""
    with _folder_of(root, path) as (folder, name):
        if _identity(os.stat(name, dir_fd=folder, follow_symlinks=False)) != seen:
            raise NotRemovable("replaced")
        os.unlink(name, dir_fd=folder)


def _require(status: os.stat_result, size: int) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise NotRemovable("replaced")


def _identity(status: os.stat_result) -> FileIdentity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def _folder_of(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder of `path` and the file's name; raises NotRemovable for what is met there."""
    try:
        parts = parts_of(path, FOLDERS)
    except PathRefused:
        raise NotRemovable("elsewhere") from None
    try:
        descriptor = open_folder((root / path).parent, root)
    except MissingBelow:
        raise NotRemovable("gone") from None
    except NotADirectoryError:
        raise NotRemovable("elsewhere") from None
    except OSError as error:
        if error.errno in ENTRY_ERRORS:
            raise NotRemovable("refused") from None
        raise
    try:
        yield descriptor, parts[-1]
    except FileNotFoundError:
        raise NotRemovable("gone") from None
    except NotRegularFile:
        raise NotRemovable("replaced") from None
    except OSError as error:
        if error.errno in ENTRY_ERRORS:
            raise NotRemovable("refused") from None
        raise
    finally:
        os.close(descriptor)
