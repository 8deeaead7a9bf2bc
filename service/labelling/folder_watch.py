"""Folder watch: looks for labels by folder beside the daemon's loop, on so little of a core that scoring is not slowed.

Owns one thread and its pace: after each piece of work of some milliseconds it rests ten times as long. No file events:
for each image delivered, the library for these would cost more than all else that the daemon does with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.exc import OperationalError

from service.filesystem.file_state import NameFilter
from service.filesystem.odd_entries import OddEntries
from service.labelling import training_set
from service.labelling.folder_labels import FolderLabels
from service.logs import fields
from service.storage import reviews
from service.storage.database.open import open_database, trouble

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 2.0
WORK_S = 0.004
REST_FACTOR = 10.0
# Between two looks for folders that changed; files that were not a label are checked again with each rescan.
LOOK_INTERVAL_S = 3.0
PARTIAL_AGE = timedelta(hours=1)
STOP_TIMEOUT_S = 10.0


class FolderWatch:
    """The thread. If an error ends it, that is put into `error` and `failed` is called in the thread."""

    def __init__(
        self,
        root: Path,
        names: NameFilter,
        *,
        burst_gap_s: float,
        rescan_interval_s: float,
        failed: Callable[[], None],
        odd: OddEntries | None = None,
    ) -> None:
        self._root = root
        self._names = names
        self._burst_gap_s = burst_gap_s
        self._rescan_interval_s = rescan_interval_s
        self._failed = failed
        self._odd = odd if odd is not None else OddEntries()
        self._stopping = threading.Event()
        self._reviewed: int | None = None
        self._thread = threading.Thread(target=self._run, name="folders", daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            with open_database(self._root, migrate=False, busy_timeout_s=LOCK_TIMEOUT_S) as engine:
                self._engine = engine
                self._labels = FolderLabels(self._root, engine, self._names, self._burst_gap_s, self._odd)
                self._look_for_ever()
        # Whatever it is, the loop must know: it ends the daemon, and the service manager starts it again.
        except BaseException as error:  # noqa: BLE001
            self.error = error
            self._failed()

    def _look_for_ever(self) -> None:
        self._at_rest(self._make_training_set_agree())
        rescan_due = time.monotonic()
        while not self._stopping.is_set():
            whole = time.monotonic() >= rescan_due
            if whole:
                rescan_due = time.monotonic() + self._rescan_interval_s
            self._at_rest(self._scan(whole))
            self._stopping.wait(min(LOOK_INTERVAL_S, self._rescan_interval_s))

    def _at_rest(self, work: Iterator[None]) -> None:
        """Do `work` piece by piece, resting in between; the next scan tries again what fails for now."""
        since = time.monotonic()
        try:
            for _ in work:
                worked = time.monotonic() - since
                if worked >= WORK_S:
                    if self._stopping.wait(worked * REST_FACTOR):
                        return
                    since = time.monotonic()
        except OperationalError as error:
            if (why := trouble(error)) is None:
                raise
            log.warning(f"database {why}; labels by folder wait for the next rescan")
        except OSError as error:
            log.error("labels by folder wait for the next rescan", extra=fields(reason=error))

    def _scan(self, whole: bool) -> Iterator[None]:
        yield from self._labels.scan(whole)
        with self._engine.connect() as connection:
            newest = reviews.newest_id(connection)
        waits = whole and any(one.step == "train" for one in self._odd.all())
        if newest != self._reviewed or waits:
            # Whoever labelled may have been killed before the files of the training set followed.
            yield from self._make_training_set_agree()
            self._reviewed = newest

    def _make_training_set_agree(self) -> Iterator[None]:
        for absent in training_set.reconcile_all(self._root, self._engine, self._odd):
            if absent:
                log.warning("training images are gone", extra=fields(count=len(absent), first=absent[0]))
            yield
        yield from training_set.remove_left(self._root, datetime.now(UTC) - PARTIAL_AGE, self._odd)
