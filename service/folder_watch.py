"""Folder watch: looks for labels by folder beside the daemon's loop, with so little of a core that scoring feels none.

Owns one thread and its pace: events are hints, a scan at every rescan interval is the truth, and after each piece of
work of some milliseconds it rests ten times as long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.exc import OperationalError
from ulid import ULID

from service import training_set
from service.folder_labels import FolderLabels
from service.logs import fields
from service.place import KINDS
from service.storage import reviews
from service.storage.engine import is_locked, open_database
from service.watch import NameFilter, Watcher

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 2.0
WORK_S = 0.004
REST_FACTOR = 10.0
# Events come in crowds: each picture that is delivered is one.
GATHER_S = 0.3
# The library that asks for events reads all names first, and does not rest while it does.
WATCHED_FILES_MAX = 200_000
PARTIAL_AGE = timedelta(hours=1)
STOP_TIMEOUT_S = 10.0


class FolderWatch:
    """The thread. `failed` is called in it, once, when it ended by an error, which is then in `error`."""

    def __init__(
        self,
        root: Path,
        names: NameFilter,
        *,
        burst_gap_s: float,
        rescan_interval_s: float,
        events: bool,
        failed: Callable[[], None],
    ) -> None:
        self._root = root
        self._names = names
        self._burst_gap_s = burst_gap_s
        self._rescan_interval_s = rescan_interval_s
        self._events = events
        self._failed = failed
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._watchers: dict[str, Watcher] = {}
        self._reviewed: int | None = None
        self._thread = threading.Thread(target=self._run, name="folders", daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                engine = open_database(self._root, migrate=False, busy_timeout_s=LOCK_TIMEOUT_S)
                stack.callback(engine.dispose)
                stack.callback(self._stop_watching)
                self._engine = engine
                self._labels = FolderLabels(self._root, engine, self._names, self._burst_gap_s)
                self._look_for_ever()
        # Whatever it is, the loop is to know: it ends the daemon, and the service manager starts it anew.
        except BaseException as error:  # noqa: BLE001
            self.error = error
            self._failed()

    def _look_for_ever(self) -> None:
        self._at_rest(self._make_training_set_agree())
        while not self._stopping.is_set():
            began = time.monotonic()
            self._at_rest(self._scan())
            if self._events and not self._watchers:
                self._watch()
            due = began + self._rescan_interval_s
            while not self._stopping.is_set() and (left := due - time.monotonic()) > 0:
                self._wake.wait(min(left, threading.TIMEOUT_MAX))
                self._wake.clear()
                if not self._stopping.wait(GATHER_S if self._watchers else 0) and self._take_hints():
                    break

    def _at_rest(self, work: Iterator[None]) -> None:
        """Do `work` piece by piece, resting in between; what cannot be done now is tried again with the next scan."""
        since = time.monotonic()
        try:
            for _ in work:
                worked = time.monotonic() - since
                if worked >= WORK_S:
                    if self._stopping.wait(worked * REST_FACTOR):
                        return
                    since = time.monotonic()
        except OperationalError as error:
            if not is_locked(error):
                raise
            log.warning("database locked; labels by folder wait for the next rescan")
        except OSError as error:
            log.error("labels by folder wait for the next rescan", extra=fields(reason=error))

    def _scan(self) -> Iterator[None]:
        yield from self._labels.scan()
        with self._engine.connect() as connection:
            newest = reviews.newest_id(connection)
        if newest != self._reviewed:
            # Whoever labelled may have been killed before the files of the training set followed.
            yield from self._make_training_set_agree()
            self._reviewed = newest

    def _make_training_set_agree(self) -> Iterator[None]:
        for done in training_set.reconcile_all(self._root, self._engine):
            if done.absent:
                log.warning("training pictures are gone", extra=fields(count=len(done.absent), first=done.absent[0]))
            yield
        for partial in (self._root / training_set.TRAINING).glob(f"*/*/{training_set.PARTIAL}*"):
            if _is_old(partial.name.removeprefix(training_set.PARTIAL)):
                partial.unlink(missing_ok=True)
            yield

    def _watch(self) -> None:
        if self._labels.files > WATCHED_FILES_MAX:
            self._events = False
            return
        try:
            for kind in KINDS:
                watcher = Watcher(self._root / kind, self._wake.set)
                watcher.start()
                self._watchers[kind] = watcher
        except OSError as error:
            self._stop_watching()
            self._events = False
            log.warning("no file events for labels by folder; found by rescan", extra=fields(reason=error))
        else:
            # Between the scan and the first event something may have moved.
            self._wake.set()
            self._at_rest(self._labels.scan())

    def _stop_watching(self) -> None:
        for watcher in self._watchers.values():
            watcher.stop()
        self._watchers.clear()

    def _take_hints(self) -> bool:
        """Look at what events spoke of; return whether a scan is needed."""
        paths: dict[str, None] = {}
        scan_needed = False
        for kind, watcher in self._watchers.items():
            hints, lost = watcher.take()
            paths |= dict.fromkeys(f"{kind}/{hint.path}" for hint in hints)
            scan_needed |= lost
        if not all(watcher.alive() for watcher in self._watchers.values()):
            self._stop_watching()
            return True
        if paths:
            self._at_rest(self._labels.look_at(list(paths)))
        return scan_needed


def _is_old(id: str) -> bool:
    with suppress(ValueError):
        return ULID.from_str(id).datetime < datetime.now(UTC) - PARTIAL_AGE
    return False
