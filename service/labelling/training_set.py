"""Training set: images that a person labelled, kept in `training/<product>/<label>/` whatever becomes of the original.

The rows are the truth. `keep` writes them in the transaction of the label; `reconcile` makes the files agree with them,
and may be repeated. A file is only ever unlinked once its bytes were found elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.registry import file_sha256
from service.filesystem.durable import copy_durably, sync_folder
from service.filesystem.open_below import make_folders
from service.inspection.relocate import BATCH_IMAGES, batches
from service.labelling.roles import role_among
from service.names import new_id, safe_name, split_suffix
from service.root import TRAINING
from service.storage import images, reviews, training_images
from service.storage.images import StoredImage
from service.storage.states import CONFLICT, MISSING
from service.storage.training_images import NewTrainingImage, TrainingImageRow

PARTIAL = ".tmp."
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


def reconcile(root: Path, engine: Engine, ids: Sequence[int]) -> list[str]:
    """Make the files of the rows `ids` agree with them; return the paths of those whose bytes are nowhere to be found.

    Copies and hashes are made while others may write; files get their names while nobody else does.
    """
    absent: list[str] = []
    for part in batches(ids):
        staged: dict[int, Path] = {}
        try:
            with engine.connect() as connection:
                rows = training_images.find(connection, part)
                wanted = [row for row in rows if row.label is not None]
                lacking = [row for row in wanted if not any(map(os.path.lexists, _places(root, row)))]
                sources = {row.id: _sources(connection, row) for row in lacking}
            for row in lacking:
                if (copy := _stage(root, row, sources[row.id])) is not None:
                    staged[row.id] = copy
            if any(_is_to_be_changed(root, row) for row in rows):
                with engine.begin() as connection:
                    _agree(root, connection, training_images.find(connection, part), staged, absent)
        finally:
            # What did not get its name is a second link or copy of bytes that lie where they were found.
            for copy in staged.values():
                copy.unlink(missing_ok=True)
    return absent


def reconcile_all(root: Path, engine: Engine) -> Iterator[list[str]]:
    """Reconcile all rows in parts, between which the caller may pause; yield what `reconcile` returns for each."""
    after = 0
    while True:
        with engine.connect() as connection:
            rows = training_images.page(connection, after, BATCH_IMAGES)
        if not rows:
            return
        after = rows[-1].id
        yield reconcile(root, engine, [row.id for row in rows if _is_to_be_changed(root, row)])


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


def _places(root: Path, row: TrainingImageRow) -> tuple[Path, Path]:
    """Return where the file of `row` belongs, and where it would with the other label."""
    label = row.path.split("/")[2]
    return root / row.path, root / in_label(row.path, OTHER[label])


def _is_to_be_changed(root: Path, row: TrainingImageRow) -> bool:
    wanted, other = _places(root, row)
    return os.path.lexists(other) or os.path.lexists(wanted) is (row.label is None)


def _sources(connection: Connection, row: TrainingImageRow) -> list[str]:
    """Return where the bytes of `row` may lie: the path of its own image, then those of others with the same bytes."""
    same = images.with_bytes(connection, row.sha256)
    return [one.path for one in sorted(same, key=lambda one: one.id != row.image_id)]


def _stage(root: Path, row: TrainingImageRow, sources: Sequence[str]) -> Path | None:
    """Return a second link, or where there can be none a copy, with the bytes of `row`; None where they are gone."""
    folder = (root / row.path).parent
    make_folders(folder, root)
    staged = folder / partial_name()
    for source in sources:
        staged.unlink(missing_ok=True)
        try:
            _link_or_copy(root / source, staged)
        except (FileNotFoundError, NotADirectoryError):
            continue
        # Hashed under its new name: the image may have been changed since it was scored.
        if file_sha256(staged) == row.sha256:
            return staged
        staged.unlink()
    return None


def _link_or_copy(source: Path, staged: Path) -> None:
    try:
        os.link(source, staged, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise
    # Another file system, or one without hard links, or too many of them: each raises another error.
    except OSError:
        copy_durably(source, staged)
    else:
        if staged.is_symlink():
            staged.unlink()
            raise FileNotFoundError(source)


def _agree(
    root: Path, connection: Connection, rows: Sequence[TrainingImageRow], staged: dict[int, Path], absent: list[str]
) -> None:
    folders: set[Path] = set()
    for row in rows:
        wanted, other = _places(root, row)
        there = [place for place in (wanted, other) if os.path.lexists(place)]
        if row.label is None:
            for place in there:
                _drop(root, connection, row, place)
                folders.add(place.parent)
        elif wanted not in there and (there or row.id in staged):
            source = other if there else staged.pop(row.id)
            make_folders(wanted.parent, root)
            source.rename(wanted)
            folders |= {wanted.parent, source.parent}
        elif wanted not in there:
            absent.append(row.path)
        elif other in there and _same_bytes(other, wanted):
            other.unlink()
            folders.add(other.parent)
    for folder in sorted(folders):
        sync_folder(folder)


def _drop(root: Path, connection: Connection, row: TrainingImageRow, place: Path) -> None:
    """Remove the file at `place`, unless it is the only one with its bytes."""
    with suppress(FileNotFoundError):
        if place.lstat().st_nlink > 1 or any(_same_bytes(place, root / source) for source in _sources(connection, row)):
            place.unlink()


def _same_bytes(one: Path, other: Path) -> bool:
    """Return whether both are files with the same bytes."""
    try:
        if one.is_symlink() or other.is_symlink() or not (one.is_file() and other.is_file()):
            return False
        return os.path.samestat(one.lstat(), other.lstat()) or file_sha256(one) == file_sha256(other)
    except FileNotFoundError:
        return False
