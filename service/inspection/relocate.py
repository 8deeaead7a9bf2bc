"""Relocate: move images to where their rows say, and record that they are there. Every step may be repeated.

After the first delivery a file is moved under the database's write lock, so that of two who do it at the same time the
second finds it done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from service.filesystem.mounts import Mounts
from service.filesystem.odd_entries import OddEntries
from service.filesystem.place import status_below
from service.inspection.deliver import Delivery, Move, deliver, readdressed
from service.names import split_suffix
from service.root import KINDS, PROCESSING, QUARANTINE
from service.storage import images
from service.storage.database.base import write
from service.storage.images import Finished, Sent, StoredImage
from service.storage.states import CONFLICT, MISSING, PLACED, QUARANTINED, SCORED

BATCH_IMAGES = 64
READDRESSED_MAX = 2

Id = TypeVar("Id", str, int)


@dataclass(frozen=True, slots=True)
class Relocated:
    """How images now stand, by id; `readdressed` are those whose new destination has to be committed before they move,
    since a file system refused the one they had: with another call, in another transaction, they are delivered.
    """

    finished: dict[str, Finished]
    readdressed: list[str]


def relocate(
    root: Path, engine: Engine, ids: Collection[str], *, away_timeout_s: float = 0.0, **options: Any
) -> dict[str, Finished]:
    """Return how the images of `ids` stand after `move_to_destination` with `options`.

    Begins a transaction for each batch, and another for what a file system refused: a folder, and then a name in it.
    """
    finished: dict[str, Finished] = {}
    for part in batches(ids):
        left: Collection[str] = part
        for _ in range(READDRESSED_MAX + 1):
            work = partial(_move, root=root, ids=left, options=options)
            moved = write(engine, work, away_timeout_s=away_timeout_s)
            finished |= moved.finished
            left = moved.readdressed
            if not left:
                break
    return finished


def move_to_destination(
    root: Path,
    connection: Connection,
    ids: Collection[str],
    *,
    found_at: Mapping[str, str] | None = None,
    again: Collection[str] = (),
    latencies_ms: Mapping[str, float | None] | None = None,
    claims_are_own: bool = False,
    mounts: Mounts | None = None,
    odd: OddEntries | None = None,
) -> Relocated:
    """Move the files of those of `ids` that are on their way to their destinations; return how each now stands.

    `connection` is in a writing transaction, so that nobody else moves them meanwhile. `found_at` says where a file
    was seen, and overrides its row; `again` are ids whose files are moved although their rows say that they have
    arrived. Unless `claims_are_own`, a file that was never delivered stays on its way: the instance that claimed it
    moves it without the lock, and two copies across devices would leave two files. A file on its way to or from one of
    `mounts` that is gone stays on its way as well, and so does one that cannot be moved now, which is noted in `odd`.
    Unknown ids are left out.
    """
    found_at, latencies_ms = found_at or {}, latencies_ms or {}
    rows = images.find(connection, ids)
    now = datetime.now(UTC)
    finished = {
        row.id: Finished(row.id, row.state, row.path, now, latencies_ms.get(row.id))
        for row in rows.values()
        if row.state != SCORED and row.id not in again
    }
    # Only their latency is new; most have none.
    images.set_latencies(connection, [one for one in finished.values() if one.latency_ms is not None])
    if not claims_are_own:
        held = [row for row in rows.values() if row.id not in finished and in_processing(row.path)]
        finished |= {row.id: Finished(row.id, SCORED, row.path, now, None) for row in held}
    waiting = [row for row in rows.values() if row.id not in finished]
    moves = [Move(row.id, _source(root, row, found_at.get(row.id)), row.destination, row.sha256) for row in waiting]
    ended = deliver(root, moves, mounts, odd)
    stands = [
        finished_as(one.id, one.source, one.destination, ended[one.id], now, latencies_ms.get(one.id)) for one in moves
    ]
    images.finish(connection, [one for one in stands if one.state != SCORED])
    elsewhere = [(one, readdressed(one.destination, one.id, ended[one.id])) for one in moves]
    sent = [
        Sent(one.id, SCORED, rows[one.id].path, destination)
        for one, destination in elsewhere
        if destination != one.destination
    ]
    images.send(connection, sent)
    return Relocated(finished | {one.id: one for one in stands}, [one.id for one in sent])


def finished_as(
    id: str, source: str, destination: str, end: Delivery, now: datetime, latency_ms: float | None
) -> Finished:
    """Return how an image stands whose delivery from `source` to `destination` ended as `end`; pure."""
    if end is Delivery.DONE:
        return Finished(id, state_at(destination), destination, now, latency_ms)
    if end in (Delivery.WAITS, Delivery.NAME_REFUSED, Delivery.FOLDER_REFUSED):
        return Finished(id, SCORED, source, now, None)
    if end is Delivery.MISSING:
        message = f"expected the file at {source} or {destination}; found neither"
        return Finished(id, MISSING, destination, now, None, MISSING, message)
    message = f"expected one file; found two that differ, at {source} and {destination}"
    return Finished(id, CONFLICT, source, now, None, CONFLICT, message)


def batches(ids: Collection[Id]) -> Iterator[list[Id]]:
    """Yield `ids` in batches, one for each transaction, so that others get their turn to write."""
    ordered = list(ids)
    for start in range(0, len(ordered), BATCH_IMAGES):
        yield ordered[start : start + BATCH_IMAGES]


def kind_of(path: str) -> str:
    """Return the first folder of `path`, which is relative to the root: `normal`, `anomaly`, `quarantine`, …"""
    return path.partition("/")[0]


def state_at(path: str) -> str:
    return QUARANTINED if kind_of(path) == QUARANTINE else PLACED


def in_processing(path: str) -> bool:
    """Return whether `path` lies where an instance claims to."""
    return kind_of(path) == PROCESSING


def path_in_folder(kind: str, row_destination: str, otherwise: str, id: str) -> str:
    """Return where in the folder `kind` an image belongs: as in `row_destination`, if a delivery made that path.

    Else, for an image that a person put into a folder of their own, `otherwise`.
    """
    parts = row_destination.split("/")
    delivered = len(parts) == 4 and parts[0] in KINDS and split_suffix(parts[3])[0].endswith(f".{id}")
    return "/".join([kind, *parts[1:]]) if delivered else otherwise


def _move(connection: Connection, root: Path, ids: Collection[str], options: Mapping[str, Any]) -> Relocated:
    return move_to_destination(root, connection, ids, **options)


def _source(root: Path, row: StoredImage, found_at: str | None) -> str:
    for path in (found_at, row.path):
        if path is not None and path != row.destination and _lies(root, path):
            return path
    if not _lies(root, row.destination):
        # A crash may have come between a first delivery and its finish, and a label after that.
        for kind in KINDS:
            elsewhere = path_in_folder(kind, row.destination, row.path, row.id)
            if elsewhere != row.destination and _lies(root, elsewhere):
                return elsewhere
    return found_at or row.path


def _lies(root: Path, path: str) -> bool:
    """Return whether something is at `path`; also where that cannot be told: the delivery meets the same, and waits."""
    try:
        return status_below(root, path) is not None
    except OSError:
        return True
