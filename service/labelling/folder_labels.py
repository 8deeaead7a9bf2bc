"""Folder labels: a person drags files between `normal/`, `anomaly/` and `quarantine/`, and that labels them.

A file is recognised by the ULID in its name, else by its bytes among images whose file is gone; while an image lies
where its row says, another file is a copy. As the service moves files, so a label is decided under the write lock.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import re
import stat
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine

from service.filesystem.file_state import FileState, NameFilter
from service.filesystem.odd_entries import OddEntries
from service.filesystem.open_below import NotRegularFile
from service.filesystem.place import place_of, status_below
from service.filesystem.row_path import PathRefused
from service.imaging.decode import FILE_BYTES_MAX
from service.inspection.relocate import batches, kind_of, path_in_folder, state_at
from service.labelling import training_set
from service.labelling.folder_index import FolderIndex
from service.logs import fields
from service.names import shown_name
from service.root import KINDS, QUARANTINE
from service.storage import images, reviews
from service.storage.images import Sent, StoredImage
from service.storage.reviews import NewReview
from service.storage.states import MISSING, PLACED, QUARANTINED

log = logging.getLogger(__name__)

WAITING_MAX = 20_000
HASH_BYTES_A_TURN = 4 << 20
SOURCE = "folder"
_ULID = re.compile(r"(?<![0-9A-Za-z])[0-9A-HJKMNP-TV-Z]{26}(?![0-9A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Undecided:
    """A file that cannot be decided on yet: `state` as it was read, `sha256` where images have the same bytes."""

    state: FileState | None
    sha256: str | None


class FolderLabels:
    """Finds what people moved in the folders of `root`. Used by one thread at a time."""

    def __init__(
        self, root: Path, engine: Engine, names: NameFilter, burst_gap_s: float, odd: OddEntries | None = None
    ) -> None:
        self._root = root
        self._engine = engine
        self._names = names
        self._burst_gap_s = burst_gap_s
        self._odd = odd if odd is not None else OddEntries()
        self._index = FolderIndex(root, KINDS, names, odd=self._odd)
        # Copies, files on their way and files that are not our images: checked again with every scan.
        self._waiting: OrderedDict[str, _Undecided] = OrderedDict()
        self._reviewed: int | None = None

    def scan(self, whole: bool = True) -> Iterator[None]:
        """Find all that was moved; yields after each small piece of work, so that the caller can pause.

        With `whole`, files that were not a label are checked again: a copy becomes one when the original goes.
        """
        self._forget_labelled_names()
        if whole:
            yield from self._look_at(list(self._waiting))
        for listed in self._index.scan():
            if listed is None:
                yield
                continue
            try:
                yield from self._look_at([f"{listed.folder}/{name}" for name in listed.new])
            # Nothing counts as seen that was not looked at to the end.
            except BaseException:
                self._index.forget(listed.folder)
                raise
            yield

    def _forget_labelled_names(self) -> None:
        """Forget the names of images labelled since the last look: a person may drag such a file back."""
        with self._engine.connect() as connection:
            if self._reviewed is None:
                self._reviewed = reviews.newest_id(connection) or 0
            while found := reviews.images_after(connection, self._reviewed):
                self._reviewed = found[-1][0]
                for row in images.find(connection, {id for _, id in found}).values():
                    for kind in KINDS:
                        if (path := path_in_folder(kind, row.destination, row.path, row.id)) != row.path:
                            self._index.forget_name(path)

    def _look_at(self, paths: Iterable[str]) -> Iterator[None]:
        """Find which of `paths`, relative to the root, were moved there by a person, and label those."""
        for part in batches([path for path in paths if self._is_ours(path)]):
            with self._engine.connect() as connection:
                moved, foreign = self._recognise(connection, part)
            yield
            for path in foreign:
                found = yield from self._find_by_bytes(path)
                if found is not None:
                    moved[path] = found
            if moved:
                self._label(moved)
            yield

    def _is_ours(self, path: str) -> bool:
        parts = path.split("/")
        return parts[0] in KINDS and not any(self._names.ignores(part) for part in parts) and shown_name(path) == path

    def _recognise(self, connection: Connection, paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the id of each of `paths` that seems to be moved there, and the paths without a known id.

        The last known id in a name counts: of an image that was sorted and dropped again, that of its second time.
        """
        ids = {path: [found.upper() for found in _ULID.findall(path.rpartition("/")[2])] for path in paths}
        lying = images.lying(connection, [id for each in ids.values() for id in each])
        last = {path: next((id for id in reversed(ids[path]) if id in lying), None) for path in paths}
        # Nearly all lie where their rows say; for those neither disk nor database is asked for more.
        left = [path for path in paths if last[path] is None or lying[str(last[path])] != path]
        for path in self._waiting.keys() & (set(paths) - set(left)):
            del self._waiting[path]
        rows = images.find(connection, [id for path in left if (id := last[path]) is not None])
        moved, foreign = {}, []
        for path in left:
            row = rows.get(last[path] or "")
            try:
                status = self._status(path)
                has_left = status is not None and row is not None and self._has_left(row, path)
            except OSError as error:
                self._wait_for(path, error)
                continue
            self._odd.clear(path, "label")
            if status is None:
                self._waiting.pop(path, None)
                # A share may show a name and not the file for a while.
                self._index.forget_name(path)
            elif row is None:
                foreign.append(path)
            elif has_left:
                moved[path] = row.id
            else:
                self._wait(path, _Undecided(None, None))
        return moved, foreign

    def _status(self, path: str) -> os.stat_result | None:
        """Return the status of the regular file at `path`, None where there is none; raises OSError where unknown."""
        try:
            status = status_below(self._root, path)
        except NotADirectoryError:
            return None  # a link or a file is in the place of its folder
        return status if status is not None and stat.S_ISREG(status.st_mode) else None

    def _find_by_bytes(self, path: str) -> Generator[None, None, str | None]:
        """Return (as the value of the generator) the id of an image that is gone and has the bytes of `path`."""
        known = self._waiting.get(path)
        try:
            status = self._status(path)
            if status is None:
                return None
            state = FileState.of(status)
            sha256 = known.sha256 if known is not None else None
            if known is None or known.state != state:
                sha256 = (yield from self._hash(path)) if 0 < state.size <= FILE_BYTES_MAX else None
            elif sha256 is None:
                return None
            with self._engine.connect() as connection:
                same = images.with_bytes(connection, sha256) if sha256 is not None else []
            found = next((row.id for row in same if self._has_left(row, path)), None)
        except OSError as error:
            self._wait_for(path, error)
            return None
        self._odd.clear(path, "label")
        self._wait(path, _Undecided(state, sha256 if same else None))
        return found

    def _hash(self, path: str) -> Generator[None, None, str | None]:
        """Return the SHA-256 of the file's bytes; None for what is no file. Raises OSError."""
        digest = hashlib.sha256()
        try:
            with place_of(self._root, path) as place:
                descriptor = place.open()
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                while data := file.read(HASH_BYTES_A_TURN):
                    digest.update(data)
                    yield
        except (FileNotFoundError, NotADirectoryError, NotRegularFile):
            return None
        return digest.hexdigest()

    def _has_left(self, row: StoredImage, path: str) -> bool:
        """Return whether the file of `row` is no longer where it was, so that the one at `path` may be it.

        Raises OSError where that cannot be told: a folder that cannot be read must not make a copy the image.
        """
        if row.path == path:
            return row.state == MISSING
        if row.state not in (MISSING, PLACED, QUARANTINED):
            return False
        try:
            gone = status_below(self._root, row.path) is None
        except PathRefused:
            return False
        return gone

    def _wait_for(self, path: str, error: OSError) -> None:
        """Have `path` wait for `error`; the next scan looks at it anew."""
        self._odd.note(path, "label", error)
        self._wait(path, _Undecided(None, None))

    def _wait(self, path: str, why: _Undecided) -> None:
        self._waiting.pop(path, None)
        self._waiting[path] = why
        if len(self._waiting) > WAITING_MAX:
            dropped, _ = self._waiting.popitem(last=False)
            self._index.forget(dropped.rpartition("/")[0])

    def _label(self, moved: dict[str, str]) -> None:
        """Record where the files of `moved`, ids by path, lie now, and label those that changed sides."""
        now = datetime.now(UTC)
        concerned: list[int] = []
        with self._engine.begin() as connection:
            rows = images.find(connection, set(moved.values()))
            taken: set[str] = set()
            for path, id in moved.items():
                row = rows[id]
                # Checked again, now that nobody else moves files; of two copies the first counts.
                try:
                    status = self._status(path)
                    if status is None or id in taken or not self._has_left(row, path):
                        continue
                except OSError as error:
                    self._wait_for(path, error)
                    continue
                taken.add(id)
                concerned += self._take(connection, row, path, status, now)
                self._waiting.pop(path, None)
        training_set.reconcile(self._root, self._engine, concerned, self._odd)

    def _take(
        self, connection: Connection, row: StoredImage, path: str, status: os.stat_result, now: datetime
    ) -> list[int]:
        kind = kind_of(path)
        # A move into quarantine/ is not a label, and the image stays what it was.
        state = row.state if kind == QUARANTINE and row.state != MISSING else state_at(path)
        stored = shown_name(path)
        self._index.forget_name(row.path)
        images.send(connection, [Sent(row.id, state, stored, stored)])
        now_there = replace(row, path=stored, destination=stored, state=state)
        if kind == QUARANTINE or kind == kind_of(row.path):
            log.info("file moved by hand", extra=fields(id=row.id, path=stored))
            # One that was missing goes back into the training set with its label.
            said = reviews.latest(connection, [row.id]).get(row.id) if row.state == MISSING else None
            by, label = (said.labelled_by, said.label) if said is not None else (None, None)
        else:
            by, label = _owner(status), kind
            reviews.add(connection, [NewReview(row.id, label, by, now, SOURCE, None)])
            log.info("labelled by folder", extra=fields(id=row.id, label=kind, path=stored))
        if label is None:
            return []
        return training_set.keep(connection, [now_there], label, by=by, now=now, burst_gap_s=self._burst_gap_s)


def _owner(status: os.stat_result) -> str | None:
    """Return the name of the file's owner; None for the service's own user, which says nothing of who moved it."""
    if status.st_uid == os.geteuid():
        return None
    try:
        return pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        return None
