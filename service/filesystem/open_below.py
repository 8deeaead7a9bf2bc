"""Opening below a root without following a link: each part of a path is looked up in the one above it, held open."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from service.filesystem.durable import sync_open_folder
from service.filesystem.file_state import FileState
from service.filesystem.shared_folder import make_shared_folder

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WrongFolder(Exception):
    """A folder that is not the one meant: the bare mount point of a share that is not there."""


class MissingBelow(FileNotFoundError):
    """A part of the path is not there; of the root itself a plain FileNotFoundError says so."""


class NotRegularFile(OSError):
    """What is there is a link, a FIFO, a socket, a device or a folder."""


def open_folder(
    folder: Path, root: Path, *, make: bool = False, is_right: Callable[[str, int], bool] | None = None
) -> int:
    """Return a descriptor of `folder`; with `make` what is missing of it is made, durably.

    Raises NotADirectoryError for a link or file on the way, MissingBelow for what is not there, and WrongFolder for a
    part that `is_right`, called with its path in the root and a descriptor, refuses; nothing is made below that.
    """
    return _open_parts(root, folder.relative_to(root).parts, make, is_right)


class HeldFolders:
    """Folders below `top`, by their relative path, each held open from its first use until `close`: for one batch.

    A folder that somebody moves away meanwhile is held all the same, so no batch may last. Used by one thread.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._held: dict[str, int] = {}

    def open(self, folder: str, *, make: bool = False) -> int:
        """Return a descriptor of `folder`, which stays this object's own. Raises as `open_folder`."""
        held = self._held.get(folder)
        if held is None:
            held = self._held[folder] = _open_parts(self._top, _parts(folder), make)
        return held

    def close(self) -> None:
        """Let go of all of them; the next use opens anew."""
        while self._held:
            os.close(self._held.popitem()[1])


def open_folder_below(folder: str, top: Path | int) -> int:
    """Return a descriptor of `folder`, relative to `top`, a path or an open folder. Raises as `open_folder`."""
    return _open_parts(top, _parts(folder))


def open_file_below(path: str, top: Path) -> int:
    """Return a descriptor of the regular file at `path`, relative to `top`, without following a link on the way.

    Raises as `open_folder` and `open_file`.
    """
    folder, _, name = path.rpartition("/")
    descriptor = open_folder_below(folder, top)
    try:
        return open_file(name, descriptor)
    finally:
        os.close(descriptor)


def state_below(path: str, top: Path) -> FileState | None:
    """Return the state of the regular file at `path`, relative to `top`, or None where there is none.

    Follows no link. Raises OSError where it cannot be told.
    """
    folder, _, name = path.rpartition("/")
    try:
        descriptor = open_folder_below(folder, top)
    except (MissingBelow, NotADirectoryError):
        return None
    try:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None
    finally:
        os.close(descriptor)
    return FileState.of(status) if stat.S_ISREG(status.st_mode) else None


def _open_parts(
    root: Path | int, parts: Sequence[str], make: bool = False, is_right: Callable[[str, int], bool] | None = None
) -> int:
    """Return a descriptor of what `parts` lead to from `root`; see `open_folder`."""
    # An open folder is opened again by its own dot: the caller keeps its own descriptor.
    current = os.open(root, _FOLDER) if isinstance(root, Path) else os.open(".", _FOLDER, dir_fd=root)
    at = Path()
    try:
        _check(is_right, at, current)
        for number, part in enumerate(parts):
            try:
                below = _open_part(part, current, make)
            except FileNotFoundError as error:
                raise MissingBelow(error.errno, error.strerror, _named(root, parts[: number + 1])) from None
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    message = "expected a folder, found a link or a file"
                    raise NotADirectoryError(errno.ENOTDIR, message, _named(root, parts[: number + 1])) from None
                raise
            os.close(current)
            current = below
            if is_right is not None:
                at /= part
                _check(is_right, at, current)
    except BaseException:
        os.close(current)
        raise
    return current


def _parts(folder: str) -> list[str]:
    parts = folder.split("/") if folder else []
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"expected a plain relative path; found {folder!r}")
    return parts


def _named(root: Path | int, parts: Sequence[str]) -> str:
    return "/".join([str(root), *parts] if isinstance(root, Path) else parts)


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
            make_shared_folder(name, folder)
            sync_open_folder(folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
