"""Settle: decide from what was seen of a file whether its writer is done with it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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


class Settling:
    """The files that wait to be claimed, in order of arrival. Paths are relative to `incoming/`.

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
        self._candidates: dict[str, UnsettledFile] = {}
        self.left_out = False
        """Whether a file was turned away since a scan began, which sets it back; another scan must follow."""

    def __len__(self) -> int:
        return len(self._candidates)

    @property
    def half_empty(self) -> bool:
        """Whether there is room for another scan's worth of files."""
        return len(self._candidates) * 2 <= self._candidates_max

    def observe(self, path: str, state: FileState, now: float, *, closed: bool = False) -> None:
        """Take note that `path` is in `state` at `now`; `closed` when its writer has just closed or renamed it."""
        known = self._candidates.get(path)
        if known is None and len(self._candidates) >= self._candidates_max:
            self.left_out = True
        elif known is None or known.state != state:
            self._candidates[path] = UnsettledFile(state, now, closed)
        elif closed and (not known.closed or not self._close_settles):
            # Where a close settles nothing it is a sign of life: the writer may add more.
            since = known.since if self._close_settles else now
            self._candidates[path] = replace(known, since=since, closed=True)

    def forget(self, path: str) -> None:
        """Drop `path`: it was claimed, or is gone."""
        self._candidates.pop(path, None)

    def forget_folder(self, folder: str) -> None:
        """Drop all files right in `folder`."""
        for path in [path for path in self._candidates if path.rpartition("/")[0] == folder]:
            del self._candidates[path]

    def unchanged_since(self, path: str) -> float | None:
        """Return since when (monotonic s) `path` has been in the state last seen; None where it does not wait."""
        known = self._candidates.get(path)
        return known.since if known is not None else None

    def hold(self, path: str, until: float) -> None:
        """Have `path` wait until then, unless it changes."""
        known = self._candidates.get(path)
        if known is not None:
            self._candidates[path] = replace(known, not_before=until)

    def postpone(self, path: str, now: float) -> None:
        """Have `path` wait the whole settle time again: somebody still has it open."""
        known = self._candidates.get(path)
        if known is not None:
            self._candidates[path] = replace(known, since=now, closed=False)

    def settled(self, now: float, limit: int) -> list[str]:
        """Return up to `limit` paths, oldest first, that may have settled; `confirm` decides."""
        return list(islice((path for path, one in self._candidates.items() if self._settled_at(one) <= now), limit))

    def confirm(self, path: str, state: FileState, now: float) -> float | None:
        """Return since when (monotonic s) `path`, in `state` right now, is settled; None if it must wait on."""
        self.observe(path, state, now)
        candidate = self._candidates.get(path)
        settled_at = self._settled_at(candidate) if candidate is not None else math.inf
        return settled_at if settled_at <= now else None

    def next_settled_at(self) -> float | None:
        """Return the earliest monotonic time at which a file may have settled."""
        return min(map(self._settled_at, self._candidates.values()), default=None)

    def _settled_at(self, candidate: UnsettledFile) -> float:
        if candidate.state.size == 0:
            return candidate.since + max(self._empty_file_timeout_s, self._settle_time_s)
        at_once = candidate.closed and self._close_settles
        return max(candidate.since if at_once else candidate.since + self._settle_time_s, candidate.not_before)
