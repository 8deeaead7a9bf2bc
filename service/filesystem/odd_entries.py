"""Odd entries: files and folders below a root that cannot be worked on now, each with its reason, in this process.

An error about one entry concerns that entry alone: it waits, is named once, and is tried again with each rescan.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from service.logs import RateLimit, fields

log = logging.getLogger(__name__)

Step = Literal["scan", "look", "claim", "read", "deliver", "label", "train", "retain"]

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

LINES_A_MINUTE = 20
# More are counted and not kept: a share without rights may hold a hundred thousand.
KEPT_MAX = 1000


@dataclass(frozen=True, slots=True)
class OddEntry:
    """What is known of an entry: `path` relative to the root, the `step` that failed, `reason` for people."""

    path: str
    step: Step
    errno: int
    reason: str
    since: datetime
    tries: int


class OddEntries:
    """The odd entries that one process knows of; used by several threads, bounded in number."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[tuple[Step, str], OddEntry] = {}
        self._lock = threading.Lock()
        self._lines = RateLimit(LINES_A_MINUTE, 60.0)
        self.left_out = 0
        """How many were counted and not kept since the last `begin`."""

    def note(self, path: str, step: Step, error: OSError) -> None:
        """Have `path` wait for `error`, said in the log once. Raises `error` where it is not about one entry."""
        if error.errno not in ENTRY_ERRORS:
            raise error
        with self._lock:
            known = self._entries.get((step, path))
            if known is not None and known.errno == error.errno:
                self._entries[step, path] = replace(known, tries=known.tries + 1)
                return
            if known is None and len(self._entries) >= KEPT_MAX:
                self.left_out += 1
            else:
                reason = error.strerror or str(error)
                self._entries[step, path] = OddEntry(path, step, error.errno, reason, datetime.now(UTC), 1)
            says = self._lines.allows(self._clock())
            left_out = self._lines.take_left_out() if says else 0
        if says:
            why = fields(path=path, step=step, reason=error.strerror, lines_left_out=left_out or None)
            log.warning("entry waits", extra=why)

    def clear(self, path: str, step: Step) -> None:
        """Forget `path` at `step`: it went well, or is gone."""
        if self._entries:
            with self._lock:
                self._entries.pop((step, path), None)

    def all(self) -> list[OddEntry]:
        """Return what waits, by path."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda one: (one.path, one.step))
