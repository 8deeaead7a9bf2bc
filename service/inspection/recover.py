"""Recover: tell from the files in `processing/` and from the database where a run broke off, and go on from there.

The plan covers every line of the recovery table in docs/architecture.md; each action may be repeated without harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sqlalchemy import Engine

from models.registry import file_sha256
from service.imaging.decode import FILE_BYTES_MAX
from service.inspection.claim import Claim, Claims
from service.inspection.deliver import Move
from service.inspection.inspected_image import FileFacts, InspectedImage
from service.inspection.record import Recorder
from service.inspection.relocate import in_processing
from service.logs import fields
from service.storage import images
from service.storage.images import StoredImage
from service.storage.states import CONFLICT, MISSING, PLACED, QUARANTINED, SCORED

log = logging.getLogger(__name__)


class Action(Enum):
    """What to do about a file or a row that an earlier run left."""

    SCORE_AGAIN = "score again"
    GIVE_UP = "give up"
    DELIVER = "deliver"
    CHECK_AND_DELIVER = "check and deliver"
    LEAVE = "leave"


@dataclass
class Recovered:
    """What recovery leaves to the pipeline: files to score again, one by one, and files to give up."""

    again: list[Claim] = field(default_factory=list)
    given_up: list[InspectedImage] = field(default_factory=list)
    delivered: int = 0


def plan(stored: StoredImage | None, in_processing: bool, attempt: int, attempts_max: int) -> Action:
    """Return what to do about a file and its row; pure. `attempt` is the file's, 0 where it is not in processing."""
    if stored is None:
        return Action.SCORE_AGAIN if attempt < attempts_max else Action.GIVE_UP
    if stored.state == SCORED:
        return Action.DELIVER
    if in_processing and stored.state in (PLACED, QUARANTINED, MISSING):
        return Action.CHECK_AND_DELIVER
    return Action.LEAVE


def recover(
    root: Path,
    engine: Engine,
    claims: Claims,
    recorder: Recorder,
    *,
    in_flight: Collection[str],
    attempts_max: int,
    has_model: Callable[[str], bool],
) -> Recovered:
    """Go on with everything of this instance that is not `in_flight` (ids); products without a model wait."""
    found = {claim.id: claim for claim in claims.found() if claim.id not in in_flight}
    with engine.connect() as connection:
        stored = images.find(connection, found.keys())
        for unfinished in images.unfinished(connection):
            # Other instances on the same root finish their own first deliveries; anyone may finish moves by a label.
            mine = claims.owns(unfinished.path) or not in_processing(unfinished.path)
            if unfinished.id not in in_flight and mine:
                stored[unfinished.id] = unfinished
    recovered = Recovered()
    moves: list[Move] = []
    seen_elsewhere: set[str] = set()
    for id in sorted(found.keys() | stored.keys()):
        claim, row = found.get(id), stored.get(id)
        action = plan(row, claim is not None, claim.attempt if claim else 0, attempts_max)
        if action is Action.SCORE_AGAIN and claim is not None:
            if has_model(claim.product):
                recovered.again.append(claim)
        elif action is Action.GIVE_UP and claim is not None:
            recovered.given_up.append(_given_up(root, claim))
        elif row is not None and action is Action.DELIVER:
            moves.append(Move(id, claim.path if claim else row.path, row.destination, row.sha256))
        elif row is not None and claim is not None and _must_be_delivered_again(root, claim, row, action):
            moves.append(Move(row.id, claim.path, row.destination, row.sha256))
            seen_elsewhere.add(row.id)
    if moves:
        recovered.delivered = _deliver(recorder, moves, seen_elsewhere)
    return recovered


def _must_be_delivered_again(root: Path, claim: Claim, row: StoredImage, action: Action) -> bool:
    if action is not Action.CHECK_AND_DELIVER:
        return False
    if row.sha256 is None or file_sha256(root / claim.path) == row.sha256:
        return True
    log.error("file is not the one on record; left alone", extra=fields(path=claim.path, id=row.id))
    return False


def _deliver(recorder: Recorder, moves: list[Move], seen_elsewhere: set[str]) -> int:
    finished = recorder.finish_moves(moves, seen_elsewhere)
    for move in moves:
        state = finished[move.id].state
        if state in (MISSING, CONFLICT):
            log.error(state, extra=fields(id=move.id, source=move.source, destination=move.destination))
    return sum(one.state in (PLACED, QUARANTINED) for one in finished.values())


def _given_up(root: Path, claim: Claim) -> InspectedImage:
    path = root / claim.path
    size = path.lstat().st_size
    sha256 = file_sha256(path) if path.is_file() and not path.is_symlink() and size <= FILE_BYTES_MAX else None
    message = f"scoring it ended the service {claim.attempt} times"
    return InspectedImage(claim, FileFacts(None, sha256, size), error_code="attempts_exhausted", error=message)
