"""Lists what lies below a folder, by descriptor: no link is followed at any part of a path, whoever puts one there.

What cannot be opened or looked at is told of, and the rest is listed all the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.filesystem.file_state import FileState, NameFilter
from service.filesystem.open_below import open_folder_below

# A path below the folder that is longer is not gone into: no call that takes a whole path could name what lies there.
PATH_BYTES_MAX = 3000

Failed = Callable[[str, OSError], None]
"""Takes what could not be listed or looked at, by its path below the folder, and why."""


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """A folder and what lies in it: `path` is relative to where the walk began, "" for that itself.

    `descriptor` is open until the next folder is asked for. `files` are all that is neither folder nor link, by name;
    `links` the names of links.
    """

    path: str
    descriptor: int
    files: list[os.DirEntry[str]]
    links: list[str]

    def path_of(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


def walk(top: Path, names: NameFilter, failed: Failed | None = None) -> Iterator[OpenFolder]:
    """Yield `top` and each folder below it that `names` does not ignore, with its entries; tell `failed` of the others.

    What vanishes meanwhile is left out. Raises OSError when `top` itself cannot be read.
    """
    tell = failed or (lambda _path, _error: None)
    above = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pending = [""]
        while pending:
            path = pending.pop()
            try:
                if len(os.fsencode(path)) > PATH_BYTES_MAX:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                descriptor = open_folder_below(path, above)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if not path:
                    raise
                tell(path, error)
                continue
            try:
                folder, below = _listed(path, descriptor, names, tell)
                yield folder
            except OSError as error:
                if not path:
                    raise
                tell(path, error)
                continue
            finally:
                os.close(descriptor)
            pending += [folder.path_of(name) for name in below]
    finally:
        os.close(above)


def scan(top: Path, names: NameFilter, failed: Failed | None = None) -> Iterator[tuple[str, FileState]]:
    """Yield each regular file below `top`, by its path relative to it, with its state; otherwise as `walk`."""
    tell = failed or (lambda _path, _error: None)
    for folder in walk(top, names, failed):
        for entry in folder.files:
            path = folder.path_of(entry.name)
            try:
                if entry.is_file(follow_symlinks=False):
                    yield path, FileState.of(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            except OSError as error:
                tell(path, error)


def _listed(path: str, descriptor: int, names: NameFilter, tell: Failed) -> tuple[OpenFolder, list[str]]:
    """Return the folder at `path` with its entries, and the names of the folders in it."""
    found, below = OpenFolder(path, descriptor, [], []), []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if names.ignores(entry.name):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif entry.is_symlink():
                    found.links.append(entry.name)
                else:
                    found.files.append(entry)
            except OSError as error:
                tell(found.path_of(entry.name), error)
    found.files.sort(key=lambda entry: entry.name)
    return found, sorted(below)
