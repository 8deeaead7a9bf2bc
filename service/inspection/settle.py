"""Settle: decide from what was seen of a file whether its writer is done with it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import islice

from service.filesystem.file_state import FileState


@dataclass(frozen=True, slots=True)
class UnsettledFile:
    """A file in `incoming/`: the state last seen, since when (monotonic s), and whether its writer closed it."""

    state: FileState
    since: float
    closed: bool


class Settling:
    """The files that wait to be claimed, in order of arrival. Paths are relative to `incoming/`."""

    def __init__(self, settle_time_s: float, empty_file_timeout_s: float, candidates_max: int = 4096) -> None:
        self._settle_time_s = settle_time_s
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
        elif closed and not known.closed:
            self._candidates[path] = replace(known, closed=True)

    def forget(self, path: str) -> None:
        """Drop `path`: it was claimed, or is gone."""
        self._candidates.pop(path, None)

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
        return candidate.since if candidate.closed else candidate.since + self._settle_time_s
