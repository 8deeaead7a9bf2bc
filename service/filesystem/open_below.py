"""Folders below a root: opened and made without following a link, and made to last through a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class WrongFolder(Exception):
    """A folder that is not the one meant: the bare mount point of a share that is not there."""


def make_folders(folder: Path, root: Path) -> None:
    """Make `folder` and what lacks above it up to `root`, durably; refuse a link on the way (NotADirectoryError)."""
    os.close(open_folder(folder, root))


def open_folder(folder: Path, root: Path, is_right: Callable[[str, int], bool] | None = None) -> int:
    """Return a descriptor of `folder`, which is made as by `make_folders`.

    Each part is looked up in the one above it, held open: a link that takes its place meanwhile leads nowhere. Raises
    WrongFolder for a part of which `is_right`, asked with its path in the root and a descriptor, says no; then nothing
    is made below it.
    """
    parts = folder.relative_to(root).parts
    current, at = os.open(root, _FOLDER), "."
    try:
        _check(is_right, at, current)
        for depth, part in enumerate(parts, start=1):
            at = "/".join(parts[:depth])
            try:
                below = _open_below(current, part)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    message = "expected a folder, found a link or a file"
                    raise NotADirectoryError(errno.ENOTDIR, message, str(root / at)) from None
                raise
            os.close(current)
            current = below
            _check(is_right, at, current)
    except BaseException:
        os.close(current)
        raise
    return current


def _check(is_right: Callable[[str, int], bool] | None, path: str, descriptor: int) -> None:
    if is_right is not None and not is_right(path, descriptor):
        raise WrongFolder(path)


def _open_below(folder: int, name: str) -> int:
    with suppress(FileNotFoundError):
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
        os.fsync(folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
