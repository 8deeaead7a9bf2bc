"""Lists what lies below a folder, by descriptor: no link is followed at any part of a path, whoever puts one there.

What cannot be opened or looked at is told of, and the rest is listed all the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from service.filesystem.file_state import FileState, NameFilter
from service.filesystem.open_below import open_folder_below

# A path below the folder that is longer is not gone into: no call that takes a whole path could name what lies there.
PATH_BYTES_MAX = 3000

# In a few ms; a folder may hold a hundred thousand.
ENTRIES_A_STEP = 2000

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


def walk(
    top: Path, names: NameFilter, failed: Failed | None = None, elsewhere: Container[str] = ()
) -> Iterator[OpenFolder]:
    """Yield `top` and each folder below it that `names` does not ignore, with its entries; tell `failed` of the others.

    Those `elsewhere`, on file systems of their own, are not touched, and told of with EXDEV. What vanishes meanwhile is
    left out. Raises OSError when `top` itself cannot be read.
    """
    return (folder for folder in walk_in_steps(top, names, failed, elsewhere) if folder is not None)


def walk_in_steps(
    top: Path,
    names: NameFilter,
    failed: Failed | None = None,
    elsewhere: Container[str] = (),
    enter: Callable[[str], bool] = lambda _path: True,
) -> Iterator[OpenFolder | None]:
    """Yield what `walk` yields, and None now and then, so that the caller may do something else between.

    `enter` tells by its path whether a folder is gone into.
    """
    tell = failed or (lambda _path, _error: None)
    above = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pending = [""]
        while pending:
            path = pending.pop()
            if not enter(path):
                continue
            try:
                if path in elsewhere:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
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
            folder, below = OpenFolder(path, descriptor, [], []), list[str]()
            try:
                for _ in _list(folder, below, names, tell):
                    yield None
                yield folder
            except OSError as error:
                if not path:
                    raise
                tell(path, error)
                continue
            finally:
                os.close(descriptor)
            pending += [folder.path_of(name) for name in sorted(below)]
    finally:
        os.close(above)


def scan(
    top: Path, names: NameFilter, failed: Failed | None = None, elsewhere: Container[str] = ()
) -> Iterator[tuple[str, FileState]]:
    """Yield each regular file below `top`, by its path relative to it, with its state; otherwise as `walk`."""
    tell = failed or (lambda _path, _error: None)
    for folder in walk(top, names, failed, elsewhere):
        for entry in folder.files:
            path = folder.path_of(entry.name)
            try:
                if entry.is_file(follow_symlinks=False):
                    yield path, FileState.of(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            except OSError as error:
                tell(path, error)


def _list(folder: OpenFolder, below: list[str], names: NameFilter, tell: Failed) -> Iterator[None]:
    """Fill `folder` with its entries, and `below` with the names of the folders in it, in steps."""
    files, links = folder.files, folder.links
    with os.scandir(folder.descriptor) as entries:
        for number, entry in enumerate(entries, 1):
            if number % ENTRIES_A_STEP == 0:
                yield
            if names.ignores(entry.name):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif entry.is_symlink():
                    links.append(entry.name)
                else:
                    files.append(entry)
            except OSError as error:
                tell(folder.path_of(entry.name), error)
    files.sort(key=attrgetter("name"))
