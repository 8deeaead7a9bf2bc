"""Writes that last through a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(path: Path, flags: int = 0) -> None:
    """Make the content of the file `path`, or the names in a folder, last; `flags` are more of those of `os.open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder`, which is no link, last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        sync_open_folder(descriptor)
    finally:
        os.close(descriptor)


def sync_open_folder(descriptor: int) -> None:
    """Make the names in the folder of `descriptor` last, where its file system knows such a call for folders."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path`; raises FileExistsError."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
