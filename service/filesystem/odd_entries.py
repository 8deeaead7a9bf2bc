"""Odd entries: files and folders below a root that cannot be worked on now, each with its reason, in this process.

An error about one entry concerns that entry alone: it waits, is named once, and is tried again with each rescan.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from service.filesystem.odd_advice import advice_on
from service.logs import RateLimit, fields
from service.names import printable

log = logging.getLogger(__name__)

Step = Literal["scan", "look", "claim", "read", "deliver", "label", "train", "retain"]
Group = tuple[str, Step, int]
"""What entries have in common that are told of together: the folder, the step, and the error."""

# What the kernel says of one entry that others made or changed: rights, kind, name, place or medium of it.
ENTRY_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EXDEV,
        errno.EROFS,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.EIO,
        errno.ESTALE,
        errno.ETXTBSY,
        errno.EBUSY,
        errno.ENOTEMPTY,
        errno.EILSEQ,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
    }
)

VERBS = {
    "scan": "list",
    "look": "look at",
    "claim": "claim",
    "read": "read",
    "deliver": "deliver",
    "label": "label",
    "train": "train on",
    "retain": "remove",
}
LINES_A_MINUTE = 20
# More are counted and not kept: a share without rights may hold a hundred thousand.
KEPT_MAX = 1000
SHOWN_MAX = 20
# So many in one folder for one reason are each named; more are one line with their number.
NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class OddEntry:
    """What is known of an entry: `path` relative to the root, the `step` that failed, `reason` and `advice` for people.

    `files` is how many files wait for it: those of a folder, else itself.
    """

    path: str
    step: Step
    errno: int
    reason: str
    since: datetime
    tries: int
    files: int = 1
    advice: str = ""


class OddEntries:
    """The odd entries that one process knows of; used by several threads, bounded in number.

    `root` is where their paths begin, of which the advice tells owner and mode; None where it is not to look. Without
    `says` nothing is logged, for a command that reports them.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, root: Path | None = None, *, says: bool = True
    ) -> None:
        self._says = says
        self._clock = clock
        self._root = root
        self._entries: dict[tuple[Step, str], OddEntry] = {}
        # The last round in which each was met.
        self._met: dict[tuple[Step, str], int] = {}
        self._round = 0
        self._lock = threading.Lock()
        self._lines = RateLimit(LINES_A_MINUTE, 60.0)
        # What was counted and not kept: in this round, which may not have come far, and in the one before.
        self._more: Counter[Group] = Counter()
        self._more_before: Counter[Group] = Counter()

    def note(self, path: str, step: Step, error: OSError, *, files: int = 1, advice: str | None = None) -> None:
        """Have `path` wait for `error`, said in the log once. Raises `error` where it is not about one entry.

        `files` is how many wait with it; `advice` says what to do, where the caller knows better than the error tells.
        """
        if error.errno not in ENTRY_ERRORS:
            raise error
        key = (step, path)
        with self._lock:
            known = self._entries.get(key)
            if known is not None and known.errno == error.errno:
                self._entries[key] = replace(known, tries=known.tries + 1, files=files)
                self._met[key] = self._round
                return
            if known is None and len(self._entries) >= KEPT_MAX:
                group = _group(path, step, error.errno)
                if group in self._more or len(self._more) < KEPT_MAX:
                    self._more[group] += files
                return
            told = advice if advice is not None else advice_on(self._root, path, step, error.errno)
            reason = error.strerror or str(error)
            self._entries[key] = OddEntry(path, step, error.errno, reason, datetime.now(UTC), 1, files, told)
            self._met[key] = self._round
            says = self._says and self._lines.allows(self._clock())
            left_out = self._lines.take_left_out() if says else 0
        if says:
            shown = fields(
                path=printable(path),
                step=step,
                reason=reason,
                files=files if files > 1 else None,
                advice=told or None,
                lines_left_out=left_out or None,
            )
            log.warning("entry waits", extra=shown)

    def clear(self, path: str, step: Step) -> None:
        """Forget `path` at `step`: it went well, or is gone."""
        if self._entries:
            with self._lock:
                self._entries.pop((step, path), None)
                self._met.pop((step, path), None)

    def begin(self) -> None:
        """Begin a round in which all are met again, by `note` or `keep`, that still wait."""
        with self._lock:
            self._round += 1
            self._more, self._more_before = Counter(), self._more

    def keep(self, path: str) -> None:
        """Have `path` outlast this round wherever it waits: it is there still, and was not tried yet."""
        with self._lock:
            self._met.update((key, self._round) for key in self._entries if key[1] == path)

    def end(self, below: str, *steps: Step) -> None:
        """End the round for what lies below the folder `below`, at `steps` or all: forget what was not met in it."""
        with self._lock:
            for key in [key for key, met in self._met.items() if met < self._round]:
                within = key[1] == below or key[1].startswith(f"{below}/")
                if within and (not steps or key[0] in steps):
                    del self._entries[key], self._met[key]

    def paths(self) -> frozenset[str]:
        """Return the paths of all that waits."""
        with self._lock:
            return frozenset(path for _, path in self._entries)

    def waits(self, path: str, step: Step) -> bool:
        """Return whether `path` waits at `step`."""
        return (step, path) in self._entries

    def all(self) -> list[OddEntry]:
        """Return what waits, by path."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda one: (one.path, one.step))

    def document(self) -> dict[str, Any]:
        """Return what waits, bounded, for a status: number of `files`, `by_reason`, and the `first` ones."""
        if not self._entries:
            return {"files": 0, "by_reason": {}, "first": []}
        entries = self.all()
        with self._lock:
            more = self._more | self._more_before
        by_reason: Counter[str] = Counter()
        for one in entries:
            by_reason[one.reason] += one.files
        for (_, _, number), files in more.items():
            by_reason[os.strerror(number)] += files
        first = [_shown(one) for one in together(entries, more)[:SHOWN_MAX]]
        return {"files": by_reason.total(), "by_reason": dict(by_reason), "first": first}


def told_by(daemons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the statuses of `daemons` that run say together, in the form of `OddEntries.document`."""
    found: dict[str, Any] = {"files": 0, "by_reason": Counter(), "first": []}
    for daemon in daemons:
        said = daemon.get("odd_entries")
        # Written by a daemon of any version, or by hand.
        if daemon.get("running") and isinstance(said, dict) and {"files", "by_reason", "first"} <= said.keys():
            found["files"] += said["files"]
            found["by_reason"].update(said["by_reason"])
            found["first"] += said["first"]
    found["by_reason"] = dict(found["by_reason"])
    found["first"] = sorted(found["first"], key=lambda one: -one["files"])[:SHOWN_MAX]
    return found


def sentence(one: Mapping[str, Any]) -> str:
    """Return what an entry of a status, as in `first`, waits for, as a sentence without the advice."""
    files = f" ({one['files']} files)" if one["files"] > 1 else ""
    return f"{one['path']}{files} waits: cannot {VERBS.get(one['step'], one['step'])} it, {one['reason']}"


def _shown(one: OddEntry) -> dict[str, Any]:
    known = asdict(one) | {
        "path": printable(one.path),
        "errno": errno.errorcode.get(one.errno, str(one.errno)),
        "since": one.since.isoformat(timespec="seconds"),
    }
    del known["tries"]  # it grows with each rescan, and a status is written when it changes
    return known


def _group(path: str, step: Step, number: int) -> Group:
    return path.rpartition("/")[0], step, number


def together(entries: Sequence[OddEntry], more: Mapping[Group, int] | None = None) -> list[OddEntry]:
    """Return `entries` with those of one folder, step and error in one, if they are many; the most files first.

    `more` says how many files of each such group are not among them.
    """
    groups: dict[Group, list[OddEntry]] = {}
    for one in entries:
        groups.setdefault(_group(one.path, one.step, one.errno), []).append(one)
    found: list[OddEntry] = []
    for key, group in groups.items():
        others = more.get(key, 0) if more else 0
        if len(group) <= NAMED_MAX and not others:
            found += group
        else:
            files, since = sum(one.files for one in group) + others, min(one.since for one in group)
            advice = f"{group[0].path}: {group[0].advice}" if group[0].advice else ""
            found.append(replace(group[0], path=key[0], files=files, since=since, advice=advice))
    return sorted(found, key=lambda one: (-one.files, one.path, one.step))
