"""Import: images that were never dropped become part of the training set, with the label that a person gives them.

The originals are read and never moved, changed or linked to: a copy of the very bytes that were decoded is kept. The
same bytes again change only the label; where an image with these bytes was dropped before, that is labelled.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image
from sqlalchemy import Engine
from ulid import ULID

from service.filesystem.durable import sync_open_folder
from service.filesystem.odd_entries import ENTRY_ERRORS
from service.filesystem.place import Place, place_of, status_below, write_all
from service.imaging.decode import FORMATS, DecodeError, FileBytes, StillChanging, read_file
from service.imaging.decoder import Decoder
from service.labelling.label import check_label, label_images, stored_text
from service.labelling.roles import role_among
from service.labelling.training_set import in_label, partial_name, path_in_training, reconcile
from service.names import shown_name
from service.root import TRAINING
from service.storage import images, reviews, training_images
from service.storage.states import CONFLICT, MISSING
from service.storage.training_images import NewTrainingImage

SOURCE = "import"
CHECKED_SIZE = (64, 64)
_EXIF, _TAKEN_AT, _TAKEN_AT_PART = 0x8769, 0x9003, 0x9291

ADDED = "added"
RELABELLED = "relabelled"
LABELLED = "labelled"
UNCHANGED = "unchanged"
SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one file: `added`, `relabelled` or `unchanged` in the training set, `labelled` as an image dropped
    before, `skipped` for the reason `why`. `path` is where it is kept, relative to the root.
    """

    file: str
    outcome: str
    path: str | None = None
    why: str | None = None


def import_images(
    root: Path,
    engine: Engine,
    files: Iterable[Path],
    label: str,
    product: str,
    *,
    by: str | None,
    burst_gap_s: float,
    file_bytes_max: int,
    pixels_max: int,
    decoder: Decoder | None = None,
) -> Iterator[Imported]:
    """Take `files` into the training set of `product`; yield what became of each, in order.

    May be repeated, and goes on where it was ended. Files that cannot be read, by `decoder` if given, are skipped.
    Raises UsageError for anything but a label.
    """
    check_label(label)
    reader = decoder or Decoder()
    importing = _Importing(root, engine, label, product, stored_text(by), burst_gap_s)
    for path in files:
        try:
            # Links are followed, as in training: the folder is a person's own.
            file = read_file(path.resolve(), file_bytes_max=file_bytes_max)
            reader.check(file.data, CHECKED_SIZE, pixels_max=pixels_max)
        except StillChanging:
            yield Imported(shown_name(str(path)), SKIPPED, why="expected a whole file; it changed while it was read")
        except (DecodeError, OSError) as error:
            yield Imported(shown_name(str(path)), SKIPPED, why=shown_name(str(error)))
        else:
            try:
                taken = importing.take(path, file)
            except OSError as error:
                if error.errno not in ENTRY_ERRORS:
                    raise
                why = f"the training set cannot take it now: {error.strerror}"
                taken = Imported(shown_name(str(path)), SKIPPED, why=why)
            yield taken


@dataclass(frozen=True, slots=True)
class _Importing:
    root: Path
    engine: Engine
    label: str
    product: str
    by: str | None
    burst_gap_s: float

    def take(self, path: Path, file: FileBytes) -> Imported:
        name = shown_name(str(path))
        labelled = self._label_known_images(file.sha256)
        with self.engine.connect() as connection:
            row = training_images.of_hash(connection, self.product, file.sha256)
        if row is not None and row.label != self.label:
            with self.engine.begin() as connection:
                path_now = in_label(row.path, self.label)
                training_images.set_labels(connection, [(row.id, self.label, path_now)])
            reconcile(self.root, self.engine, [row.id])
            if self._is_there(path_now):
                return Imported(name, RELABELLED, path_now)
        elif row is not None and self._is_there(row.path):
            return Imported(name, LABELLED if labelled else UNCHANGED, row.path)
        return Imported(name, ADDED, self._keep(path, file))

    def _is_there(self, path: str) -> bool:
        return status_below(self.root, path, (TRAINING,)) is not None

    def _label_known_images(self, sha256: str) -> bool:
        """Label the images with these bytes that were dropped before; return whether any had another label or none."""
        with self.engine.connect() as connection:
            same = [one for one in images.with_bytes(connection, sha256) if one.product == self.product]
            there = [one.id for one in same if one.state not in (MISSING, CONFLICT)]
            said = reviews.latest(connection, there)
        unsaid = [id for id in there if id not in said or said[id].label != self.label]
        if unsaid:
            label_images(
                self.root, self.engine, unsaid, self.label, by=self.by, source=SOURCE, burst_gap_s=self.burst_gap_s
            )
        return bool(unsaid)

    def _keep(self, path: Path, file: FileBytes) -> str:
        """Put the bytes of `file` into the training set, with a row; return where."""
        taken_at, known = _taken_at(file)
        # From the bytes, so that a second try finds what the first one left.
        id = str(ULID.from_bytes(bytes.fromhex(file.sha256)[:16]))
        target = path_in_training(self.product, self.label, path.name, id)
        folder = target.rpartition("/")[0]
        with place_of(self.root, f"{folder}/{partial_name()}", (TRAINING,), make=True) as staged:
            try:
                _write(staged, file.data)
                with self.engine.begin() as connection:
                    # When the file was written, the same for a whole copied folder, tells nothing about bursts.
                    gap_s = self.burst_gap_s
                    near = training_images.roles_near(connection, self.product, taken_at, gap_s) if known else set()
                    new = NewTrainingImage(
                        product=self.product,
                        sha256=file.sha256,
                        label=self.label,
                        role=role_among(self.product, file.sha256, near),
                        path=target,
                        file_name=shown_name(path.name),
                        image_id=None,
                        taken_at=taken_at,
                        added_at=datetime.now(UTC),
                        added_by=self.by,
                    )
                    training_images.add(connection, new)
                    row = training_images.of_hash(connection, self.product, file.sha256)
                    assert row is not None
                    with place_of(self.root, row.path, (TRAINING,), make=True) as kept:
                        if kept.status() is None:
                            staged.rename(kept)
                            sync_open_folder(kept.folder)
            finally:
                staged.unlink(missing_ok=True)
        return row.path


def _write(place: Place, data: bytes) -> None:
    descriptor = place.create(0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken_at(file: FileBytes) -> tuple[datetime, bool]:
    """Return when the image was taken as the camera wrote into it, and True; else when its file was written."""
    try:
        with Image.open(io.BytesIO(file.data), formats=FORMATS) as image:
            exif = image.getexif().get_ifd(_EXIF)
        taken = datetime.strptime(str(exif[_TAKEN_AT]).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
        part = str(exif.get(_TAKEN_AT_PART, "0")).strip("\0 ") or "0"
        return taken + timedelta(seconds=float(f"0.{part}")), True
    # Cameras write all sorts of things there, and Pillow raises all sorts of errors; the image is good all the same.
    except Exception:  # noqa: BLE001
        seconds = min(max(file.state.mtime_ns / 1e9, 0.0), 4e9)
        return datetime.fromtimestamp(seconds, UTC), False
