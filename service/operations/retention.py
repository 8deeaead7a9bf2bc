"""Retention: removes the files of old images, by age or by total size, as the settings say; their rows stay.

An image is marked, then its file goes under the database's write lock, so that no label can come in between; the next
run finishes what a crash left marked. Files of labelled images, the training set and any version's training stay.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from service.errors import TamisError
from service.filesystem.durable import sync_open_folder
from service.filesystem.mounts import gone_message
from service.filesystem.odd_entries import ENTRY_ERRORS
from service.filesystem.open_below import open_folder
from service.filesystem.place import names_in, place_of
from service.filesystem.process_lock import ProcessLock
from service.instances import mounts_of
from service.logs import fields
from service.operations import remove_file as removal
from service.operations.remove_file import FOLDERS, FileIdentity, NotRemovable
from service.operations.retention_plan import Going, Outcome, Rule, plan
from service.root import MAPS, MODELS, PROCESSING, RETENTION_LAST_RUN, RETENTION_LOCK
from service.storage import retention as rows
from service.storage.retention import KeptImage

log = logging.getLogger(__name__)

# The write lock is held for a slice's unlinks; a micro-batch that wants to commit waits for it.
SLICE = 25
PAGE = 500
# The rest after a slice, as a multiple of the time it took: while a disk removes files it is slow for everybody. Beside
# scoring, a tenth of the time removes some 2 million files a day.
RESTS_ALONE = 1.0
RESTS_BESIDE_SCORING = 10.0
REST_MAX_S = 10.0
LEFT_LINES_MAX = 10
FOLDER_AT_REST_S = 3600.0
_DATED = re.compile(r"\d{4}-\d{2}-\d{2}")


def trained_on(root: Path) -> frozenset[str]:
    """Return the SHA-256 of every image that some version on the disk was made from.

    Raises TamisError for a list that cannot be read: what it protects is not known then.
    """
    # Not at the top, so that `tamis status` starts without numpy.
    from models.data.image_list import read_image_list
    from models.errors import DatasetError
    from models.registry import IMAGES

    found: set[str] = set()
    for path in sorted((root / MODELS).glob(f"*/*/{IMAGES}")):
        try:
            found.update(image.sha256 for image in read_image_list(path.parent))
        except DatasetError as error:
            raise TamisError(str(error)) from None
    return frozenset(found)


def last_run(root: Path) -> dict[str, Any] | None:
    """Return what the last run on `root` did; None where there was none, or its record cannot be read."""
    try:
        found = json.loads((root / PROCESSING / RETENTION_LAST_RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(eq=False)
class Retention:
    """Retention on one root. `stopping` is asked between slices; `rest` waits for so many seconds, or until then.

    `rests` is the rest after a slice, as a multiple of the time it took.
    """

    root: Path
    engine: Engine
    rules: Sequence[Rule]
    stopping: Callable[[], bool] = lambda: False
    rest: Callable[[float], object] = time.sleep
    rests: float = RESTS_ALONE
    _emptied: set[str] = field(default_factory=set, init=False)

    def run(self, now: datetime) -> Outcome:
        """Finish what an earlier run left, remove what must go at `now`, and write down what was done.

        Raises TamisError where another run is at work, where it is not known which images versions were made from,
        and where a mount is gone: what lies on it is only out of sight, not removed.
        """
        path = self.root / PROCESSING / RETENTION_LOCK
        path.parent.stat()  # where the root's disk is gone, the lock must not make the folder in its place
        lock = ProcessLock(path)
        if lock.acquire() is not None:
            raise TamisError(f"{path}: expected no other run of retention; found one at work")
        try:
            if gone := mounts_of(self.root).find_gone():
                raise TamisError(f"retention: {gone_message(gone)}")
            return self._run(now)
        finally:
            lock.release()

    def _run(self, now: datetime) -> Outcome:
        outcome = Outcome()
        self._emptied.clear()
        self._finish_marked(now, outcome)
        if self.rules:
            trained = trained_on(self.root)
            for rule in self.rules:
                self._apply(rule, trained, now, outcome)
            outcome.folders = self._remove_empty_folders(now)
            self._write_last_run(now, outcome)
        if outcome.images or outcome.left:
            log.info(
                "retention",
                extra=fields(
                    removed=outcome.images,
                    bytes=outcome.bytes,
                    **{f"left_{why}": count for why, count in sorted(outcome.left.items())},
                    folders=outcome.folders or None,
                    complete=outcome.complete,
                ),
            )
        return outcome

    def preview(self, now: datetime, *, images_max: int | None = None) -> Iterator[Going | NotRemovable]:
        """Yield what `run` would remove, and why a file that is gone or of another size would stay; changes nothing.

        Looks at no more than `images_max` images of each verdict.
        """
        trained = trained_on(self.root) if self.rules else frozenset()
        for rule in self.rules:
            looked_at = 0
            total = self._total(rule)
            for page in self._pages(rule, trained, PAGE):
                going = plan(page, rule, total, now)
                for one in going:
                    looked_at += 1
                    if images_max is not None and looked_at > images_max:
                        break
                    try:
                        removal.verify_size(self.root, one.image.path, one.image.bytes)
                    except NotRemovable as stays:
                        yield stays
                    else:
                        total -= one.image.bytes
                        yield one
                if len(going) < len(page) or (images_max is not None and looked_at >= images_max):
                    break

    def _apply(self, rule: Rule, trained: frozenset[str], now: datetime, outcome: Outcome) -> None:
        total = self._total(rule)
        for page in self._pages(rule, trained, SLICE):
            if self.stopping():
                outcome.complete = False
                return
            going = plan(page, rule, total, now)
            if going:
                total -= self._remove(going, now, outcome)
            if len(going) < len(page):
                return

    def _total(self, rule: Rule) -> int:
        if rule.bytes_max is None:
            return 0
        with self.engine.connect() as connection:
            return rows.total_bytes(connection, rule.verdict)

    def _pages(self, rule: Rule, trained: frozenset[str], size: int) -> Iterator[list[KeptImage]]:
        """Yield the removable images of the verdict, oldest first; each page is a read of its own, soon over."""
        after = None
        while True:
            with self.engine.connect() as connection:
                page = rows.removable(connection, rule.verdict, size, after)
            if not page:
                return
            after = (page[-1].received_at, page[-1].id)
            yield [image for image in page if image.sha256 not in trained]

    def _finish_marked(self, now: datetime, outcome: Outcome) -> None:
        """Bring the rows up to date whose files an earlier run removed, and take the mark from those still there."""
        while not self.stopping():
            with self.engine.begin() as connection:
                left = rows.marked(connection, SLICE)
                gone = [
                    Going(image, "unfinished")
                    for image, placed in left
                    if placed and removal.is_gone(self.root, image.path)
                ]
                for one in gone:
                    self._remove_map(one.image.id)
                    outcome.add(one)
                rows.removed(connection, {one.image.id: _sentence(one, now) for one in gone})
                rows.unmark(connection, [image.id for image, _ in left])
            if not left:
                return
        outcome.complete = False

    def _remove(self, going: Sequence[Going], now: datetime, outcome: Outcome) -> int:
        """Remove the files of `going`; return the bytes of those that went."""
        began = time.monotonic()
        seen: dict[str, FileIdentity] = {}
        stay: dict[str, str] = {}
        for image in (one.image for one in going):
            try:
                seen[image.id] = removal.verify_content(self.root, image.path, image.bytes, image.sha256)
            except NotRemovable as stays:
                stay[image.id] = stays.why
        if seen:
            with self.engine.begin() as connection:
                rows.mark(connection, list(seen))
            self._unlink([one for one in going if one.image.id in seen], seen, stay, now)
        freed = 0
        for one in going:
            if one.image.id not in stay:
                outcome.add(one)
                freed += one.image.bytes
                continue
            outcome.left[stay[one.image.id]] += 1
            if outcome.left.total() <= LEFT_LINES_MAX:
                left = fields(id=one.image.id, path=one.image.path, reason=stay[one.image.id])
                log.warning("retention leaves a file", extra=left)
        self.rest(min(REST_MAX_S, self.rests * (time.monotonic() - began)))
        return freed

    def _unlink(
        self, going: Sequence[Going], seen: dict[str, FileIdentity], stay: dict[str, str], now: datetime
    ) -> None:
        """Remove files as they were `seen` and update their rows, under the write lock; put into `stay` what cannot go.

        The reasons in `stay` are by id.
        """
        reasons: dict[str, str] = {}
        folders: set[str] = set()
        with self.engine.begin() as connection:
            # Asked again now that nobody else can write: a label may have come since.
            paths = rows.still_removable(connection, list(seen))
            for one in going:
                image = one.image
                if paths.get(image.id) != image.path:
                    stay[image.id] = "spoken_of"
                    continue
                try:
                    removal.unlink(self.root, image.path, seen[image.id])
                except NotRemovable as stays:
                    stay[image.id] = stays.why
                    continue
                self._remove_map(image.id)
                reasons[image.id] = _sentence(one, now)
                folders.add(image.path.rpartition("/")[0])
            for folder in sorted(folders):
                self._sync(folder)
            rows.removed(connection, reasons)
            rows.unmark(connection, [id for id in seen if id not in reasons])
        self._emptied |= folders

    def _sync(self, folder: str) -> None:
        try:
            descriptor = open_folder(self.root / folder, self.root)
            try:
                sync_open_folder(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # The rows are on their way; a file that comes back by a power cut is found when it is looked for.
            if error.errno not in ENTRY_ERRORS:
                raise

    def _remove_map(self, id: str) -> None:
        try:
            with place_of(self.root, f"{MAPS}/{id}.png", (MAPS,)) as place:
                place.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in ENTRY_ERRORS:
                raise
            log.warning("retention leaves a map", extra=fields(id=id, reason=error.strerror))

    def _remove_empty_folders(self, now: datetime) -> int:
        """Remove empty dated folders, but for those that images may still go to; return how many."""
        yesterday = f"{now - timedelta(days=1):%Y-%m-%d}"
        count = 0
        for folder in sorted(self._folders_in(*(each for top in FOLDERS for each in self._folders_in(top)))):
            name = folder.rpartition("/")[2]
            if not _DATED.fullmatch(name) or name >= yesterday:
                continue
            with suppress(OSError), place_of(self.root, folder, FOLDERS) as place:  # not empty, or not ours to remove
                status = place.status()
                at_rest = status is not None and time.time() - status.st_mtime > FOLDER_AT_REST_S
                if folder in self._emptied or at_rest:
                    os.rmdir(place.name, dir_fd=place.folder)
                    count += 1
        return count

    def _folders_in(self, *folders: str) -> Iterator[str]:
        for folder in folders:
            with suppress(OSError):
                yield from (f"{folder}/{name}" for name in names_in(self.root, folder, folders=True))

    def _write_last_run(self, now: datetime, outcome: Outcome) -> None:
        path = self.root / PROCESSING / RETENTION_LAST_RUN
        partial = path.with_name(f"{RETENTION_LAST_RUN}.{os.getpid()}.tmp")
        document = {"ran_at": now.isoformat(timespec="seconds"), **outcome.document()}
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(path)


def _sentence(one: Going, now: datetime) -> str:
    day = f"{now.astimezone(UTC):%Y-%m-%d}"
    since = {
        "age": f"received on {one.image.received_at:%Y-%m-%d}, older than is kept",
        "size": "one of the oldest, beyond the size that is kept",
        "unfinished": "begun by an earlier run",
    }
    return f"file removed by retention on {day}: {since[one.reason]}"
