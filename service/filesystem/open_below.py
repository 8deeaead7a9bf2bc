"""Opening below a root without following a link: each part of a path is looked up in the one above it, held open."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WrongFolder(Exception):
    """A folder that is not the one meant: the bare mount point of a share that is not there."""


class MissingBelow(FileNotFoundError):
    """A part of the path is not there; of the root itself a plain FileNotFoundError says so."""


class NotRegularFile(OSError):
    """What is there is a link, a FIFO, a socket, a device or a folder."""


def make_folders(folder: Path, root: Path) -> None:
    """Make `folder` and what is missing above it up to `root`, durably; raises NotADirectoryError as `open_folder`."""
    os.close(open_folder(folder, root, make=True))


def open_folder(
    folder: Path, root: Path, *, make: bool = False, is_right: Callable[[str, int], bool] | None = None
) -> int:
    """Return a descriptor of `folder`; with `make` what is missing of it is made, durably.

    Raises NotADirectoryError for a link or file on the way, MissingBelow for what is not there, and WrongFolder for a
    part that `is_right`, called with its path in the root and a descriptor, refuses; nothing is made below that.
    """
    current, at = os.open(root, _FOLDER), Path()
    try:
        _check(is_right, at, current)
        for part in folder.relative_to(root).parts:
            at /= part
            try:
                below = _open_part(part, current, make)
            except FileNotFoundError as error:
                raise MissingBelow(error.errno, error.strerror, str(root / at)) from None
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


def open_file(path: Path | str, folder: int | None = None) -> int:
    """Return a descriptor of the regular file at `path`, in the open `folder` if given, without following a link there.

    Never waits for a writer. Raises NotRegularFile for anything else that is there.
    """
    try:
        descriptor = os.open(path, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotRegularFile("expected a regular file; found a link or a socket") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegularFile(f"expected a regular file; found mode {mode:o}")
    return descriptor


def _check(is_right: Callable[[str, int], bool] | None, path: Path, descriptor: int) -> None:
    if is_right is not None and not is_right(str(path), descriptor):
        raise WrongFolder(path)


def _open_part(name: str, folder: int, make: bool) -> int:
    if make:
        with suppress(FileNotFoundError):
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
            os.fsync(folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
