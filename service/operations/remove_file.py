"""Removal: the file of one image, for retention; owns what must hold of a file before it is removed.

Removed is only the very file that the row speaks of: a regular one, in its folder without a link on the way, with the
recorded bytes. Whatever else is found there is somebody's, and stays.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

FOLDERS = ("normal", "anomaly")

Left = Literal["gone", "replaced", "elsewhere", "refused"]
"""Why a file stays: it is not there, it is not the one on record, its path leads elsewhere, the disk refuses."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file whose bytes were those on record, by what tells whether it has been touched since."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Return what `status` says."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class NotRemovable(Exception):
    """A file that is not removed, and why."""

    def __init__(self, why: Left) -> None:
        super().__init__(why)
        self.why: Left = why


def verify_content(root: Path, path: str, size: int, sha256: str) -> FileIdentity:
    """Return the file at `path` as seen, having read all of it; raises Stays where it is not of `size` and `sha256`."""
    with _folder(root, path) as (folder, name), _refusals():
        # Neither a FIFO nor a folder is opened: only then can it be read as a file.
        _require(os.stat(name, dir_fd=folder, follow_symlinks=False), size)
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            before = os.fstat(descriptor)
            _require(before, size)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(descriptor)
            # What is about to go need not push out of the memory what is still used.
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if found != sha256 or FileIdentity.of(before) != FileIdentity.of(after):
            raise NotRemovable("replaced")
        return FileIdentity.of(after)


def is_gone(root: Path, path: str) -> bool:
    """Return whether there is nothing at `path`, in the folders that removal knows."""
    try:
        with _folder(root, path) as (folder, name), _refusals():
            os.stat(name, dir_fd=folder, follow_symlinks=False)
    except NotRemovable as stays:
        return stays.why == "gone"
    return False


def verify_size(root: Path, path: str, size: int) -> None:
    """Raise Stays where the file at `path` is not there or not of `size`; reads nothing of it."""
    with _folder(root, path) as (folder, name), _refusals():
        _require(os.stat(name, dir_fd=folder, follow_symlinks=False), size)


def unlink(root: Path, path: str, seen: FileIdentity) -> None:
    """Remove the file at `path`, if it is as it was `seen`; raises Stays where it is not."""
    with _folder(root, path) as (folder, name), _refusals():
        if FileIdentity.of(os.stat(name, dir_fd=folder, follow_symlinks=False)) != seen:
            raise NotRemovable("replaced")
        os.unlink(name, dir_fd=folder)


def _require(status: os.stat_result, size: int) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise NotRemovable("replaced")


@contextmanager
def _folder(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder of `path`, reached without following a link, and the file's name."""
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or parts[0] not in FOLDERS or ".." in parts:
        raise NotRemovable("elsewhere")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            except FileNotFoundError:
                raise NotRemovable("gone") from None
            except NotADirectoryError:  # also what the kernel says of a link
                raise NotRemovable("elsewhere") from None
            except PermissionError:
                raise NotRemovable("refused") from None
            os.close(descriptor)
            descriptor = inner
        yield descriptor, parts[-1]
    finally:
        os.close(descriptor)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotRemovable("gone") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotRemovable("replaced") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EBUSY):
            raise NotRemovable("refused") from None
        raise
