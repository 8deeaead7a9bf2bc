"""Settle: decide from what was seen of a file whether its writer is done with it. Pure.

Files are held by the folder of `incoming/` that they came in, which is their product; "" is `incoming/` itself. Where
there are more than can be held, each folder has its share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice

from service.filesystem.file_state import FileState


@dataclass(frozen=True, slots=True)
class UnsettledFile:
    """A file in `incoming/`: the state last seen, since when (monotonic s), and whether its writer closed it.

    It is not settled before `not_before`.
    """

    state: FileState
    since: float
    closed: bool
    not_before: float = -math.inf


@dataclass(slots=True)
class _Line:
    """The files of one folder in order of arrival; before the monotonic time `earliest` none of them settles.

    It may be too early if `stale`, since one of them waits longer than it did.
    """

    files: dict[str, UnsettledFile] = field(default_factory=dict)
    earliest: float = math.inf
    stale: bool = False


class Settling:
    """The files that wait to be claimed, in order of arrival within their folder. Paths are relative to `incoming/`.

    Without `close_settles` a file whose writer closed it waits for the settle time like any other: it may be opened
    again.
    """

    def __init__(
        self,
        settle_time_s: float,
        empty_file_timeout_s: float,
        candidates_max: int = 4096,
        *,
        close_settles: bool = True,
    ) -> None:
        self._settle_time_s = settle_time_s
        self._close_settles = close_settles
        self._empty_file_timeout_s = empty_file_timeout_s
        self._candidates_max = candidates_max
        self._lines: dict[str, _Line] = {}
        self._count = 0
        self.left_out: dict[str, int] = {}
        """By folder, how many files at least wait that are not held, for lack of room; whoever lists it counts them."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, path: str) -> bool:
        return self._known(path) is not None

    def held(self, folder: str) -> int:
        """Return how many files of `folder` are held."""
        line = self._lines.get(folder)
        return len(line.files) if line is not None else 0

    def waiting(self, folder: str) -> int:
        """Return how many files of `folder` are known to wait, held or left out."""
        return self.held(folder) + self.left_out.get(folder, 0)

    def room(self, folder: str) -> int:
        """Return how many more files of `folder` can be held now."""
        held = self.held(folder)
        free = self._candidates_max - self._count
        return max(free, self._share(folder) - held, 0)

    def has_enough(self, folder: str) -> bool:
        """Return whether more of `folder` need not be looked for: some are left out, and for few there is room."""
        needed = max(self._share(folder) // 2, 1) if self._share(folder) else self._candidates_max // 2
        return folder in self.left_out and self.room(folder) < needed

    @property
    def scan_needed(self) -> bool:
        """Whether a folder of which files were left out has room again."""
        return any(not self.has_enough(folder) for folder in self.left_out)

    def observe(self, path: str, state: FileState, now: float, *, closed: bool = False) -> None:
        """Take note that `path` is in `state` at `now`; `closed` when its writer has just closed or renamed it."""
        folder, known = folder_of(path), self._known(path)
        if known is None and not self._make_room(folder):
            # Perhaps not for the first time.
            self.left_out.setdefault(folder, 1)
        elif known is None or known.state != state:
            self._put(folder, path, UnsettledFile(state, now, closed))
        elif closed and (not known.closed or not self._close_settles):
            # Where a close settles nothing it is a sign of life: the writer may add more.
            since = known.since if self._close_settles else now
            self._put(folder, path, replace(known, since=since, closed=True))

    def forget(self, path: str) -> None:
        """Drop `path`: it was claimed, or is gone."""
        folder = folder_of(path)
        line = self._lines.get(folder)
        if line is not None and line.files.pop(path, None) is not None:
            self._count -= 1
            if not line.files:
                del self._lines[folder]

    def forget_folder(self, folder: str) -> None:
        """Drop all files right in `folder`, which may be one below that of a product."""
        line = self._lines.get(folder_of(f"{folder}/"))
        for path in [] if line is None else [path for path in line.files if path.rpartition("/")[0] == folder]:
            self.forget(path)

    def forget_product(self, folder: str) -> int:
        """Drop all files of `folder`, those left out too; return how many waited."""
        line = self._lines.pop(folder, None)
        held = len(line.files) if line is not None else 0
        self._count -= held
        return held + self.left_out.pop(folder, 0)

    def unchanged_since(self, path: str) -> float | None:
        """Return since when (monotonic s) `path` has been in the state last seen; None where it does not wait."""
        known = self._known(path)
        return known.since if known is not None else None

    def hold(self, path: str, until: float) -> None:
        """Have `path` wait until then, unless it changes."""
        known = self._known(path)
        if known is not None:
            self._put(folder_of(path), path, replace(known, not_before=until))

    def postpone(self, path: str, now: float) -> None:
        """Have `path` wait the whole settle time again: somebody still has it open."""
        known = self._known(path)
        if known is not None:
            self._put(folder_of(path), path, replace(known, since=now, closed=False))

    def settled(self, now: float, limit: int, folder: str | None = None) -> list[str]:
        """Return up to `limit` paths that may have settled, of `folder` if given, oldest first; `confirm` decides."""
        found: list[str] = []
        for name in list(self._lines) if folder is None else [folder]:
            if len(found) >= limit:
                break
            line = self._lines.get(name)
            if line is None or now < line.earliest:
                continue
            here = (path for path, one in line.files.items() if self._settled_at(one) <= now)
            before = len(found)
            found += islice(here, limit - before)
            if len(found) == before:
                # Those that would have settled by now are gone, or wait anew.
                self._look_for_earliest(line)
        return found

    def folders(self) -> list[str]:
        """Return the folders of which files are held."""
        return list(self._lines)

    def folders_settled(self, now: float) -> list[str]:
        """Return the folders of which a file may have settled."""
        return [folder for folder, line in self._lines.items() if line.earliest <= now and self.settled(now, 1, folder)]

    def confirm(self, path: str, state: FileState, now: float) -> float | None:
        """Return since when (monotonic s) `path`, in `state` right now, is settled; None if it must wait on."""
        self.observe(path, state, now)
        candidate = self._known(path)
        settled_at = self._settled_at(candidate) if candidate is not None else math.inf
        return settled_at if settled_at <= now else None

    def unsettled(self, now: float, since: float) -> list[str]:
        """Return the paths that wait for more than their turn, and were so `since` then."""
        return [
            path
            for line in self._lines.values()
            for path, one in line.files.items()
            if one.since < since and self._settled_at(one) > now
        ]

    def next_settled_at(self, but: Iterable[str] = ()) -> float | None:
        """Return a monotonic time before which no file settles, those of the folders `but` left aside."""
        aside = frozenset(but)
        for line in self._lines.values():
            if line.stale:
                self._look_for_earliest(line)
        return min((line.earliest for folder, line in self._lines.items() if folder not in aside), default=None)

    def _known(self, path: str) -> UnsettledFile | None:
        line = self._lines.get(folder_of(path))
        return line.files.get(path) if line is not None else None

    def _share(self, folder: str) -> int:
        """Return how many files each folder may hold where all have more than can be held."""
        return self._candidates_max // (len(self._lines) + (folder not in self._lines))

    def _make_room(self, folder: str) -> bool:
        """Return whether one more of `folder` can be held, having left out the newest of the folder with the most."""
        if self._count < self._candidates_max:
            return True
        share = self._share(folder)
        if self.held(folder) >= share:
            return False
        most = max(self._lines, key=self.held)
        line = self._lines[most]
        # Down to the share in one go, so that the folder with the most need not be found for each file.
        for path in list(islice(reversed(line.files), len(line.files) - share)):
            self.forget(path)
            self.left_out[most] = self.left_out.get(most, 0) + 1
        return self._count < self._candidates_max

    def _put(self, folder: str, path: str, file: UnsettledFile) -> None:
        line = self._lines.setdefault(folder, _Line())
        known = path in line.files
        line.stale = line.stale or known
        self._count += not known
        line.files[path] = file
        line.earliest = min(line.earliest, self._settled_at(file))

    def _look_for_earliest(self, line: _Line) -> None:
        line.earliest, line.stale = min(map(self._settled_at, line.files.values())), False

    def _settled_at(self, candidate: UnsettledFile) -> float:
        if candidate.state.size == 0:
            return candidate.since + max(self._empty_file_timeout_s, self._settle_time_s)
        at_once = candidate.closed and self._close_settles
        return max(candidate.since if at_once else candidate.since + self._settle_time_s, candidate.not_before)


def folder_of(path: str) -> str:
    """Return the folder right under `incoming/` that the relative `path` lies in, "" for `incoming/` itself."""
    first, slash, _ = path.partition("/")
    return first if slash else ""
