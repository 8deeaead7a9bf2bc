"""Folder index: which folders changed since they were last read, so that a million files need not be read again.

A folder's own mtime changes with each name that comes or goes; only such a folder is read again, and only its new
names are handed on. Reads names alone; the caller knows what they mean.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from service.filesystem.file_state import NameFilter
from service.filesystem.odd_entries import OddEntries
from service.filesystem.place import OpenFolders, Place

# File systems keep times in steps of up to 2 s: a folder read within one step may have changed after that.
DOUBTFUL_NS = 2_000_000_000
NAMES_MAX = 200_000
FOLDERS_OPEN_MAX = 4


@dataclass(frozen=True, slots=True)
class _Folder:
    inode: int
    mtime_ns: int
    below: tuple[str, ...]
    doubtful: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A folder that was read: its path relative to the root, and the names of its files that were not seen before."""

    folder: str
    new: list[str]


@dataclass(eq=False)
class FolderIndex:
    """What is known of the folders below `tops`, which are relative to `root`."""

    root: Path
    tops: Sequence[str]
    ignored: NameFilter
    names_max: int = NAMES_MAX
    clock_ns: Callable[[], int] = time.time_ns
    odd: OddEntries = field(default_factory=OddEntries)
    _folders: dict[str, _Folder] = field(default_factory=dict, init=False)
    # By hash: 30 bytes and not a hundred for each name. Of those read last, since they change again first.
    _names: OrderedDict[str, frozenset[int]] = field(default_factory=OrderedDict, init=False)
    _names_held: int = field(default=0, init=False)
    _odd_folders: set[str] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return len(self._folders)

    def scan(self) -> Iterator[Listed | None]:
        """Yield each folder that changed, and None for each that did not, so that the caller can pause.

        Links are not followed; what vanishes meanwhile is left out, and found gone the next time. A folder that cannot
        be read is noted in `odd`.
        """
        with OpenFolders(self.root, self.tops, open_max=FOLDERS_OPEN_MAX) as folders:
            yield from self._scan(folders)

    def _scan(self, folders: OpenFolders) -> Iterator[Listed | None]:
        seen: set[str] = set()
        pending = list(reversed(self.tops))
        while pending:
            folder = pending.pop()
            try:
                place = self._place(folder, folders)
                status = place.status()
                if status is None or not stat.S_ISDIR(status.st_mode):
                    continue
                seen.add(folder)
                known = self._folders.get(folder)
                state = (status.st_ino, status.st_mtime_ns)
                if known is not None and not known.doubtful and (known.inode, known.mtime_ns) == state:
                    pending += [f"{folder}/{name}" for name in reversed(known.below)]
                    yield None
                    continue
                doubtful = self.clock_ns() - status.st_mtime_ns < DOUBTFUL_NS
                files, below = _list(place, self.ignored)
            except FileNotFoundError:
                continue
            # What is known of it stays known, and the others are looked at.
            except OSError as error:
                seen.add(folder)
                self._odd_folders.add(folder)
                self.odd.note(folder, "label", error)
                continue
            if folder in self._odd_folders:
                self._is_fine_again(folder)
            new = self._new_names(folder, files)
            self._folders[folder] = _Folder(*state, tuple(below), doubtful)
            pending += [f"{folder}/{name}" for name in reversed(below)]
            yield Listed(folder, new)
        for folder in [folder for folder in self._folders if folder not in seen]:
            self.forget(folder)
        for folder in self._odd_folders - seen:
            self._is_fine_again(folder)

    def _is_fine_again(self, folder: str) -> None:
        self._odd_folders.discard(folder)
        self.odd.clear(folder, "label")

    def _place(self, folder: str, folders: OpenFolders) -> Place:
        return folders.place(folder) if "/" in folder else folders.top(folder)

    def forget(self, folder: str) -> None:
        """Have `folder` read again in full the next time."""
        self._folders.pop(folder, None)
        self._names_held -= len(self._names.pop(folder, ()))

    def forget_name(self, path: str) -> None:
        """Have the file name of `path` count as new, and its folder read again the next time.

        For a file that left: should it come back before its folder is read, nobody would know that it was away.
        """
        folder, _, name = path.rpartition("/")
        if (known := self._folders.get(folder)) is not None:
            self._folders[folder] = replace(known, doubtful=True)
        if hash(name) in self._names.get(folder, ()):
            self._names[folder] -= {hash(name)}
            self._names_held -= 1

    def _new_names(self, folder: str, files: Sequence[str]) -> list[str]:
        before = self._names.pop(folder, frozenset())
        hashes = [hash(name) for name in files]
        self._names_held += len(hashes) - len(before)
        self._names[folder] = frozenset(hashes)
        while self._names_held > self.names_max and self._names:
            self._names_held -= len(self._names.popitem(last=False)[1])
        return [name for name, number in zip(files, hashes, strict=True) if number not in before]


def _list(place: Place, names: NameFilter) -> tuple[list[str], list[str]]:
    """Return the names of the regular files and of the folders in the folder at `place`, but for the ignored ones."""
    files, folders = [], []
    descriptor = place.open_folder()
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if names.ignores(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
    finally:
        os.close(descriptor)
    return sorted(files), sorted(folders)
