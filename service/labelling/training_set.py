"""Training set: images that a person labelled, kept in `training/<product>/<label>/` whatever becomes of the original.

The rows are the truth. `keep` writes them in the transaction of the label; `reconcile` makes the files agree with them,
and may be repeated. A file is only ever unlinked once its bytes were found elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from sqlalchemy import Connection, Engine

from service.filesystem.durable import sync_open_folder
from service.filesystem.odd_entries import OddEntries
from service.filesystem.open_below import MissingBelow, NotRegularFile
from service.filesystem.place import OpenFolders, Place, copy_between, names_in, place_of
from service.filesystem.row_path import IMAGE_FOLDERS, PathRefused, parts_of
from service.inspection.deliver import NAME_ERRORS
from service.inspection.relocate import BATCH_IMAGES, batches
from service.labelling.roles import role_among
from service.names import (
    delivered_name,
    new_id,
    plainer_folder,
    plainer_name,
    safe_name,
    shown_name,
    split_suffix,
    time_of,
)
from service.root import TRAINING
from service.storage import images, reviews, training_images
from service.storage.images import StoredImage
from service.storage.states import CONFLICT, MISSING
from service.storage.training_images import NewTrainingImage, TrainingImageRow

PARTIAL = ".tmp."
RENAMED_MAX = 1
Answer = TypeVar("Answer")
OTHER = {"normal": "anomaly", "anomaly": "normal"}


def keep(
    connection: Connection,
    subjects: Sequence[StoredImage],
    label: str | None,
    *,
    by: str | None,
    now: datetime,
    burst_gap_s: float,
) -> list[int]:
    """Add `subjects`, labelled so, to the training set, or take them back; return the ids of the rows concerned.

    Runs in the transaction of the label, after its review. An image that could not be decoded is left out.
    """
    concerned = []
    for subject in sorted(subjects, key=lambda one: (one.received_at, one.id)):
        if subject.sha256 is None:
            continue
        row = training_images.of_hash(connection, subject.product, subject.sha256)
        if row is None:
            if label is None or subject.width is None or subject.state in (MISSING, CONFLICT):
                continue
            _add(connection, subject, label, by, now, burst_gap_s)
            row = training_images.of_hash(connection, subject.product, subject.sha256)
        else:
            holds = label or _label_of_bytes(connection, subject)
            path = row.path if holds is None else in_label(row.path, holds)
            training_images.set_labels(connection, [(row.id, holds, path)])
        assert row is not None
        concerned.append(row.id)
    return concerned


def reconcile(root: Path, engine: Engine, ids: Sequence[int], odd: OddEntries | None = None) -> list[str]:
    """Make the files of the rows `ids` agree with them; return the paths of those whose bytes are nowhere to be found.

    Copies and hashes are made while others may write; files get their names while nobody else does. What cannot be made
    to agree now is noted in `odd`, and waits. A name that the disk refuses is exchanged for a plainer one.
    """
    absent: list[str] = []
    odd = odd if odd is not None else OddEntries()
    for part in batches(ids):
        left: Sequence[int] = part
        with _Files(root, odd) as files:
            for _ in range(RENAMED_MAX + 1):
                left = _reconcile(engine, left, files, absent)
                if not left:
                    break
    return absent


def reconcile_all(root: Path, engine: Engine, odd: OddEntries | None = None) -> Iterator[list[str]]:
    """Reconcile all rows in parts, between which the caller may pause; yield what `reconcile` returns for each."""
    odd = odd if odd is not None else OddEntries()
    after = 0
    while True:
        with engine.connect() as connection:
            rows = training_images.page(connection, after, BATCH_IMAGES)
        if not rows:
            return
        after = rows[-1].id
        with _Files(root, odd) as files:
            differ = [row.id for row in rows if files.tell(row, lambda row: _is_to_be_changed(files, row))]
        yield reconcile(root, engine, differ, odd)


def remove_left(root: Path, before: datetime, odd: OddEntries) -> Iterator[None]:
    """Remove files without a name that a crash left before that time; yields after each folder."""
    pending = [TRAINING]
    while pending:
        folder = pending.pop()
        try:
            if folder.count("/") < 2:
                pending += [f"{folder}/{name}" for name in names_in(root, folder, folders=True)]
            else:
                _remove_left(root, folder, before)
        except OSError as error:
            odd.note(shown_name(folder), "train", error)
        else:
            odd.clear(shown_name(folder), "train")
        yield


def _remove_left(root: Path, folder: str, before: datetime) -> None:
    for name in names_in(root, folder):
        made_at = time_of(name.removeprefix(PARTIAL)) if name.startswith(PARTIAL) else None
        if made_at is not None and made_at < before:
            with place_of(root, f"{folder}/{name}", (TRAINING,)) as place:
                place.unlink(missing_ok=True)


def path_in_training(product: str, label: str, file_name: str, id: str) -> str:
    stem, suffix = split_suffix(safe_name(file_name))
    return f"{TRAINING}/{product}/{label}/{stem}.{id}{suffix}"


def in_label(path: str, label: str) -> str:
    """Return `path`, that of a training image, for another label."""
    training, product, _, name = path.split("/", 3)
    return f"{training}/{product}/{label}/{name}"


def partial_name() -> str:
    """Return a name for a file that does not have its own yet: unique, and it tells when it was made."""
    return f"{PARTIAL}{new_id()}"


def _add(
    connection: Connection, subject: StoredImage, label: str, by: str | None, now: datetime, burst_gap_s: float
) -> None:
    assert subject.sha256 is not None
    taken_at = _taken_at(connection, subject)
    near = training_images.roles_near(connection, subject.product, taken_at, burst_gap_s)
    new = NewTrainingImage(
        product=subject.product,
        sha256=subject.sha256,
        label=label,
        role=role_among(subject.product, subject.sha256, near),
        path=path_in_training(subject.product, label, subject.file_name, subject.id),
        file_name=subject.file_name,
        image_id=subject.id,
        taken_at=taken_at,
        added_at=now,
        added_by=by,
    )
    training_images.add(connection, new)


def _taken_at(connection: Connection, subject: StoredImage) -> datetime:
    """Return when the bytes of `subject` were first received: dropped again later, they still belong to that burst."""
    if subject.duplicate_of is None:
        return subject.received_at
    first = images.find(connection, [subject.duplicate_of]).get(subject.duplicate_of)
    return subject.received_at if first is None else first.received_at


def _label_of_bytes(connection: Connection, subject: StoredImage) -> str | None:
    """Return the label given last to an image of the product with the same bytes, if it was not taken back since."""
    assert subject.sha256 is not None
    same = [one.id for one in images.with_bytes(connection, subject.sha256) if one.product == subject.product]
    labelled = [row for row in reviews.latest(connection, same).values() if row.label is not None]
    return max(labelled, key=lambda row: row.id).label if labelled else None


class _Files:
    """The files of training images and of the images that they come from, in folders that are held open."""

    def __init__(self, root: Path, odd: OddEntries) -> None:
        self._folders = OpenFolders(root, (*IMAGE_FOLDERS, TRAINING))
        self._odd = odd

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folders.__exit__(kind, value, trace)

    def place(self, path: str, *, make: bool = False) -> Place:
        return self._folders.place(path, make=make)

    def is_there(self, path: str) -> bool:
        """Return whether anything is at `path`; raises OSError where that cannot be told."""
        try:
            return self.place(path).status() is not None
        except (MissingBelow, PathRefused) as error:
            if isinstance(error, PathRefused):
                raise
            return False
        except OSError as error:
            if error.errno in NAME_ERRORS:
                return False  # nothing can have such a name there
            raise

    def tell(self, row: TrainingImageRow, question: Callable[[TrainingImageRow], Answer | None]) -> Answer | None:
        """Return the answer to `question` about `row`; None where an error is noted for it."""
        try:
            parts_of(row.path, (TRAINING,))
            found = question(row)
        except OSError as error:
            self._odd.note(shown_name(row.path), "train", error)
            return None
        self._odd.clear(shown_name(row.path), "train")
        return found


def _reconcile(engine: Engine, ids: Sequence[int], files: _Files, absent: list[str]) -> list[int]:
    """Make the files of the rows `ids` agree; return the rows that were given another path, to be tried again."""
    staged: dict[int, Place] = {}
    try:
        with engine.connect() as connection:
            rows = training_images.find(connection, ids)
            lacking = [
                row for row in rows if row.label is not None and files.tell(row, lambda row: _is_lacking(files, row))
            ]
            sources = {row.id: _sources(connection, row) for row in lacking}
        for row in lacking:
            copy = files.tell(row, lambda row: _stage(files, row, sources[row.id]))
            if copy is not None:
                staged[row.id] = copy
        if not any(files.tell(row, lambda row: _is_to_be_changed(files, row)) for row in rows):
            return []
        with engine.begin() as connection:
            return _agree(connection, training_images.find(connection, ids), staged, files, absent)
    finally:
        # What did not get its name is a second link or copy of bytes that lie where they were found.
        for place in staged.values():
            with suppress(OSError):
                place.unlink(missing_ok=True)


def _places(row: TrainingImageRow) -> tuple[str, str]:
    """Return where the file of `row` belongs, and where it would with the other label."""
    label = row.path.split("/")[2]
    return row.path, in_label(row.path, OTHER[label])


def _is_lacking(files: _Files, row: TrainingImageRow) -> bool:
    return not any(map(files.is_there, _places(row)))


def _is_to_be_changed(files: _Files, row: TrainingImageRow) -> bool:
    wanted, other = _places(row)
    return files.is_there(other) or files.is_there(wanted) is (row.label is None)


def _sources(connection: Connection, row: TrainingImageRow) -> list[str]:
    """Return where the bytes of `row` may lie: the path of its own image, then those of others with the same bytes."""
    same = images.with_bytes(connection, row.sha256)
    return [one.path for one in sorted(same, key=lambda one: one.id != row.image_id)]


def _stage(files: _Files, row: TrainingImageRow, sources: Sequence[str]) -> Place | None:
    """Return a second link, or where there can be none a copy, with the bytes of `row`; None where they are gone.

    Raises OSError where one of `sources` cannot be read and none of the others has them.
    """
    folder, _, _ = row.path.rpartition("/")
    staged = _made(files, row, f"{folder}/{partial_name()}")
    unreadable: OSError | None = None
    for path in sources:
        staged.unlink(missing_ok=True)
        try:
            parts_of(path)
            source = files.place(path)
            _link_or_copy(source, staged)
            # Hashed under its new name: the image may have been changed since it was scored.
            if staged.sha256() == row.sha256:
                return staged
        except (FileNotFoundError, NotRegularFile):
            pass
        except OSError as error:
            unreadable = error
        staged.unlink(missing_ok=True)
    if unreadable is not None:
        raise unreadable
    return None


def _made(files: _Files, row: TrainingImageRow, path: str) -> Place:
    """Return the place of `path`, its folder made; that of the plainer one where the folder of `row` is refused."""
    try:
        return files.place(path, make=True)
    except OSError as error:
        plainer = plainer_folder(path)
        if error.errno not in NAME_ERRORS or plainer == path:
            raise
        return files.place(plainer, make=True)


def _link_or_copy(source: Place, staged: Place) -> None:
    status = source.status()
    if status is None or not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(source.name)
    try:
        source.link(staged)
    except FileNotFoundError:
        raise
    # Another file system, or one without hard links, or too many of them: each raises another error.
    except OSError:
        copy_between(source, staged)


def _agree(
    connection: Connection,
    rows: Sequence[TrainingImageRow],
    staged: dict[int, Place],
    files: _Files,
    absent: list[str],
) -> list[int]:
    renamed: list[tuple[int, str | None, str]] = []
    changed: set[int] = set()

    def agree(row: TrainingImageRow) -> None:
        wanted, other = _places(row)
        there = [path for path in (wanted, other) if files.is_there(path)]
        if row.label is None:
            for path in there:
                changed.add(_drop(connection, row, path, files))
        elif wanted not in there and (there or row.id in staged):
            source = files.place(other) if there else staged[row.id]
            try:
                target = files.place(wanted, make=True)
                source.rename(target)
            except OSError as error:
                # The path goes on record first; the file follows in another transaction.
                plainer = _plainer(wanted) if error.errno in NAME_ERRORS else wanted
                if plainer == wanted:
                    raise
                renamed.append((row.id, row.label, plainer))
            else:
                staged.pop(row.id, None)
                changed.update((source.folder, target.folder))
        elif wanted not in there:
            absent.append(row.path)
        elif other in there and _same_bytes(files, other, wanted):
            files.place(other).unlink()
            changed.add(files.place(other).folder)

    for row in rows:
        files.tell(row, agree)
    training_images.set_labels(connection, renamed)
    for descriptor in changed:
        sync_open_folder(descriptor)
    return [id for id, _, _ in renamed]


def _plainer(path: str) -> str:
    known = delivered_name(path.rpartition("/")[2])
    return plainer_folder(plainer_name(path, known.id) if known is not None else path)


def _drop(connection: Connection, row: TrainingImageRow, path: str, files: _Files) -> int:
    """Remove the file at `path`, unless it is the only one with its bytes; return the descriptor of its folder."""
    place = files.place(path)
    status = place.status()
    if status is None or not stat.S_ISREG(status.st_mode):
        return place.folder
    if status.st_nlink > 1 or any(_same_bytes(files, path, source) for source in _sources(connection, row)):
        place.unlink(missing_ok=True)
    return place.folder


def _same_bytes(files: _Files, one: str, other: str) -> bool:
    """Return whether both are files with the same bytes; a file that cannot be read has none."""
    try:
        first, second = files.place(one), files.place(other)
        statuses = first.status(), second.status()
        if statuses[0] is None or statuses[1] is None:
            return False
        return os.path.samestat(statuses[0], statuses[1]) or first.sha256() == second.sha256()
    except OSError:
        return False
