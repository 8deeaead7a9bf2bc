"""Places: a name in an open folder below a root, so that what is looked at is what is read, renamed or removed.

No part of the way is followed where it is a link: a folder that is swapped for one between a look and a move changes
nothing outside.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from service.filesystem.durable import sync_open_folder
from service.filesystem.open_below import MissingBelow, open_file, open_folder
from service.filesystem.row_path import IMAGE_FOLDERS, parts_of

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """The name of a file in the folder that the descriptor `folder` holds open; there need not be one."""

    folder: int
    name: str

    def beside(self, name: str) -> Place:
        """Return the place of `name` in the same folder; raises ValueError for a name that leads out of it."""
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"expected the name of a file; found {name!r}")
        return replace(self, name=name)

    def status(self) -> os.stat_result | None:
        """Return the status of what is here, a link not followed; None where there is nothing."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self) -> int:
        """Return a descriptor of the regular file, open for reading; raises as `open_file`."""
        return open_file(self.name, self.folder)

    def open_folder(self) -> int:
        """Return a descriptor of the folder that is here; raises NotADirectoryError for a link or a file."""
        return os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)

    def create(self, mode: int) -> int:
        """Return a descriptor of a new file, open for writing; raises FileExistsError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.name, flags, mode, dir_fd=self.folder)

    def sha256(self) -> str:
        """Return the SHA-256 of the regular file's bytes, in hex; raises as `open_file`."""
        digest = hashlib.sha256()
        with os.fdopen(self.open(), "rb", buffering=0) as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
        return digest.hexdigest()

    def rename(self, target: Place) -> None:
        os.rename(self.name, target.name, src_dir_fd=self.folder, dst_dir_fd=target.folder)

    def link(self, target: Place) -> None:
        """Make `target` a second name of what is here, of a link itself where it is one."""
        os.link(self.name, target.name, src_dir_fd=self.folder, dst_dir_fd=target.folder, follow_symlinks=False)

    def unlink(self, *, missing_ok: bool = False) -> None:
        try:
            os.unlink(self.name, dir_fd=self.folder)
        except FileNotFoundError:
            if not missing_ok:
                raise


class OpenFolders:
    """Folders below `root`, each opened once and held open, so that a link put into its place leads nowhere.

    Paths lie in `folders`. At most `open_max` are held; None where all are needed until the end. A folder that is made
    has to be right for `is_right`, as in `open_folder`.
    """

    def __init__(
        self,
        root: Path,
        folders: Collection[str] = IMAGE_FOLDERS,
        *,
        is_right: Callable[[str, int], bool] | None = None,
        open_max: int | None = None,
    ) -> None:
        self._root = root
        self._folders = folders
        self._is_right = is_right
        self._open_max = open_max
        self._open: dict[str, int] = {}
        self._stale: list[int] = []

    def __enter__(self) -> OpenFolders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (*self._open.values(), *self._stale):
            os.close(descriptor)

    def place(self, path: str, *, make: bool = False) -> Place:
        """Return the place of `path`; with `make` its folder is made. Raises PathRefused and as `open_folder`."""
        *above, name = parts_of(path, self._folders)
        folder = "/".join(above)
        descriptor = self._open.get(folder)
        if descriptor is None:
            if self._open_max is not None and len(self._open) >= self._open_max:
                os.close(self._open.pop(next(iter(self._open))))
            is_right = self._is_right if make else None
            descriptor = open_folder(self._root / folder, self._root, make=make, is_right=is_right)
            self._open[folder] = descriptor
        return Place(descriptor, name)

    def top(self, folder: str) -> Place:
        """Return the place of one of `folders` itself, right below the root."""
        if "" not in self._open:
            self._open[""] = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return Place(self._open[""], folder)

    def sync(self) -> None:
        """Make the names in all of them last through a power cut."""
        for descriptor in self._open.values():
            sync_open_folder(descriptor)

    def forget(self, path: str) -> None:
        """Have the folder of `path` opened anew: it was removed since."""
        descriptor = self._open.pop(path.rpartition("/")[0], None)
        if descriptor is not None:
            self._stale.append(descriptor)


def copy_between(source: Place, target: Place) -> str:
    """Copy the regular file at `source`, with its mode and times, to the new file `target`; return its SHA-256.

    The copy is on the disk when this returns; where it fails nothing is left.
    """
    try:
        with os.fdopen(source.open(), "rb", buffering=0) as reading:
            status = os.fstat(reading.fileno())
            with os.fdopen(target.create(0o600), "wb", buffering=0) as writing:
                digest = hashlib.sha256()
                while data := reading.read(_READ_BYTES):
                    digest.update(data)
                    write_all(writing.fileno(), data)
                # Some file systems have neither modes nor times of that kind.
                with suppress(OSError):
                    os.fchmod(writing.fileno(), status.st_mode & 0o777)
                with suppress(OSError):
                    os.utime(writing.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(writing.fileno())
    except OSError:
        with suppress(OSError):
            target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to the open file."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def place_of(
    root: Path,
    path: str,
    folders: Collection[str] = IMAGE_FOLDERS,
    *,
    make: bool = False,
    is_right: Callable[[str, int], bool] | None = None,
) -> Iterator[Place]:
    """Yield the place of `path`, relative to `root` and in one of `folders`; with `make` its folder is made.

    Raises PathRefused for a path that lies elsewhere, and what `open_folder` raises.
    """
    parts = parts_of(path, folders)
    descriptor = open_folder(root.joinpath(*parts[:-1]), root, make=make, is_right=is_right)
    try:
        yield Place(descriptor, parts[-1])
    finally:
        os.close(descriptor)


def status_below(root: Path, path: str, folders: Collection[str] = IMAGE_FOLDERS) -> os.stat_result | None:
    """Return the status of what is at `path`, None where nothing is; raises OSError where that cannot be told."""
    with suppress(MissingBelow), place_of(root, path, folders) as place:
        return place.status()
    return None


def names_in(root: Path, folder: str, *, folders: bool = False) -> list[str]:
    """Return the names of the regular files in `folder`, or else of its folders, sorted; none where it is not there.

    No link is followed, and none is named. Raises as `open_folder`, and OSError where it cannot be listed.
    """
    try:
        descriptor = open_folder(root / folder, root)
    except MissingBelow:
        return []
    try:
        with os.scandir(descriptor) as entries:
            return sorted(
                entry.name
                for entry in entries
                if (entry.is_dir(follow_symlinks=False) if folders else entry.is_file(follow_symlinks=False))
            )
    finally:
        os.close(descriptor)
