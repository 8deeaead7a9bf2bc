"""Label: what a person says of images is kept for good, and their files go where it says.

Owns the order label → move → finish, which is that of a verdict: the label, where the file belongs now and what is kept
for training are one transaction; files move after it, and `service.inspection.recover` goes on after a crash between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from sqlalchemy import Connection, Engine

from service.errors import TamisError, UsageError
from service.filesystem.row_path import is_refused
from service.inspection.relocate import kind_of, path_in_folder, relocate
from service.instances import mounts_of
from service.labelling import training_set
from service.names import destination, shown_name
from service.root import QUARANTINE
from service.settings import load
from service.storage import images, reviews
from service.storage.images import Sent, StoredImage
from service.storage.reviews import NewReview
from service.storage.states import PLACED, QUARANTINED, SCORED
from service.storage.tables import Verdict

LABELS = get_args(Verdict)
SOURCES = ("web", "api", "command", "folder", "import")
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image as it stands after a label: `path` is where its file lies, relative to the root."""

    id: str
    label: str | None
    path: str
    state: str


def label_images(
    root: Path,
    engine: Engine,
    ids: Sequence[str],
    label: str | None,
    *,
    by: str | None,
    source: str,
    note: str | None = None,
    burst_gap_s: float | None = None,
) -> list[Labelled]:
    """Label the images `ids` as `normal` or `anomaly`; return them as they then stand, in the order of `ids`.

    None takes the label back, and the image goes back to where its verdict put it. An image that is missing or in
    conflict is labelled and not moved; one on a mount that is gone is moved by the daemon once that is back.
    `burst_gap_s` is the setting of that name, looked up if None. Raises TamisError naming unknown ids, and then changes
    nothing at all; UsageError for anything but a label.
    """
    check_label(label)
    if source not in SOURCES:
        raise UsageError(f"source: expected one of {', '.join(SOURCES)}; found {source!r}")
    wanted = list(dict.fromkeys(ids))
    gap_s = load(root).burst_gap_s if burst_gap_s is None else burst_gap_s
    now = datetime.now(UTC)
    with engine.begin() as connection:
        subjects = _subjects(connection, wanted)
        by, note = stored_text(by), stored_text(note)
        reviews.add(connection, [NewReview(one.id, label, by, now, source, note) for one in subjects])
        _send(connection, subjects, label)
        kept = training_set.keep(connection, subjects, label, by=by, now=now, burst_gap_s=gap_s)
    moved = relocate(root, engine, wanted, mounts=mounts_of(root))
    found = {one.id: Labelled(one.id, label, one.path, one.state) for one in moved.values()}
    training_set.reconcile(root, engine, kept)
    return [found[id] for id in wanted]


def check_label(label: str | None) -> None:
    """Raise UsageError unless `label` is a label or None."""
    if label is not None and label not in LABELS:
        raise UsageError(f"label: expected {' or '.join(LABELS)}; found {label!r}")


def stored_text(value: str | None) -> str | None:
    """Return `value` as it can be stored; None for spaces alone."""
    return (shown_name(value.strip()) or None) if value is not None else None


def belongs_at(subject: StoredImage, label: str | None) -> str:
    """Return where the file of `subject` belongs once it is labelled so, relative to the root; pure.

    A file that lies in the right folder stays where it is.
    """
    kind = label or subject.verdict or QUARANTINE
    if kind_of(_going_to(subject)) == kind:
        return _going_to(subject)
    otherwise = destination(kind, subject.product, subject.received_at, subject.file_name, subject.id)
    return path_in_folder(kind, subject.destination, otherwise, subject.id)


def _subjects(connection: Connection, ids: Sequence[str]) -> list[StoredImage]:
    found = images.find(connection, ids)
    if unknown := [id for id in ids if id not in found]:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise TamisError(
            f"review: expected ids of images; found no image {', '.join(map(shown_name, unknown[:SHOWN]))}{more}"
        )
    return [found[id] for id in ids]


def _send(connection: Connection, subjects: Sequence[StoredImage], label: str | None) -> None:
    movable = [one for one in subjects if one.state in (SCORED, PLACED, QUARANTINED) and not is_refused(one.path)]
    targets = [(one, belongs_at(one, label)) for one in movable]
    images.send(
        connection, [Sent(one.id, SCORED, one.path, target) for one, target in targets if target != _going_to(one)]
    )


def _going_to(subject: StoredImage) -> str:
    """Return where the file of `subject` goes while it is on its way, else where it lies."""
    return subject.destination if subject.state == SCORED else subject.path
