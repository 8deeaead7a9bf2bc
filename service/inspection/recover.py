"""Recover: tell from the files in `processing/` and from the database where a run broke off, and go on from there.

The plan covers every line of the recovery table in docs/architecture.md; each action may be repeated without harm.
"""

from __future__ import annotations

import logging
import stat
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sqlalchemy import Engine

from service.filesystem.odd_entries import OddEntries
from service.filesystem.place import place_of, status_below
from service.imaging.decode import FILE_BYTES_MAX
from service.inspection.claim import Claim, Claims
from service.inspection.deliver import Move
from service.inspection.inspected_image import FileFacts, InspectedImage
from service.inspection.record import Recorder
from service.inspection.relocate import in_processing
from service.logs import fields
from service.names import shown_name
from service.storage import images
from service.storage.images import StoredImage
from service.storage.states import ATTEMPTS_EXHAUSTED, CONFLICT, MISSING, PLACED, QUARANTINED, SCORED

log = logging.getLogger(__name__)

MOVES_A_FOLDER = 64


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
            if (given_up := _given_up(root, claim)) is not None:
                recovered.given_up.append(given_up)
        elif row is not None and action is Action.DELIVER:
            moves.append(Move(id, claim.path if claim else row.path, row.destination, row.sha256))
        elif row is not None and claim is not None and _must_be_delivered_again(root, claim, row, action, recorder.odd):
            moves.append(Move(row.id, claim.path, row.destination, row.sha256))
            seen_elsewhere.add(row.id)
    if moves:
        recovered.delivered = _deliver(recorder, moves, seen_elsewhere)
    _forget_what_waits_no_more(recorder, moves)
    return recovered


def _forget_what_waits_no_more(recorder: Recorder, moves: list[Move]) -> None:
    """Clear what was noted of deliveries that nobody waits for: a label may have sent the image elsewhere since.

    Only the second time in a row: an image that was noted a moment ago may still be on its way.
    """
    noted = [one.path for one in recorder.odd.all() if one.step == "deliver"]
    waiting: set[str] = set()
    for move in moves if noted else ():
        for path in (move.source, move.destination):
            parts = shown_name(path).split("/")
            waiting.update("/".join(parts[:count]) for count in range(1, len(parts) + 1))
    idle = {path for path in noted if path not in waiting}
    for path in idle & recorder.noted_in_vain:
        recorder.odd.clear(path, "deliver")
    recorder.noted_in_vain = idle


def _must_be_delivered_again(root: Path, claim: Claim, row: StoredImage, action: Action, odd: OddEntries) -> bool:
    if action is not Action.CHECK_AND_DELIVER:
        return False
    try:
        if row.sha256 is None or _sha256(root, claim.path) == row.sha256:
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        odd.note(shown_name(claim.path), "deliver", error)
        return False
    log.error("file is not the one on record; left alone", extra=fields(path=claim.path, id=row.id))
    return False


def _deliver(recorder: Recorder, moves: list[Move], seen_elsewhere: set[str]) -> int:
    """Carry out `moves`, some to a folder at a time; the rest of those for a folder that took none of them is left."""
    delivered = 0
    # Those that have failed least often first, so that no few that never can be moved hold up the others.
    left = sorted(moves, key=lambda move: (recorder.tries[move.id], move.id))
    while left:
        now, left = _some_to_a_folder(left)
        finished = recorder.finish_moves(now, seen_elsewhere)
        took: set[str] = set()
        for move in now:
            state = finished[move.id].state if move.id in finished else SCORED
            if state in (MISSING, CONFLICT):
                log.error(state, extra=fields(id=move.id, source=move.source, destination=move.destination))
            if state == SCORED:
                recorder.tries[move.id] += 1
            else:
                recorder.tries.pop(move.id, None)
                took.add(_folder(move))
            delivered += state in (PLACED, QUARANTINED)
        refused = {_folder(move) for move in now} - took
        left = [move for move in left if _folder(move) not in refused]
    return delivered


def _some_to_a_folder(moves: list[Move]) -> tuple[list[Move], list[Move]]:
    """Return those of `moves` to carry out now, at most `MOVES_A_FOLDER` to each folder, and the rest, in order."""
    count: Counter[str] = Counter()
    now: list[Move] = []
    rest: list[Move] = []
    for move in moves:
        count[_folder(move)] += 1
        (now if count[_folder(move)] <= MOVES_A_FOLDER else rest).append(move)
    return now, rest


def _folder(move: Move) -> str:
    return move.destination.rpartition("/")[0]


def _given_up(root: Path, claim: Claim) -> InspectedImage | None:
    """Return `claim` as an image that cannot be scored; None where its file is gone."""
    sha256 = size = None
    with suppress(OSError):
        status = status_below(root, claim.path)
        if status is None:
            return None
        size = status.st_size
        sha256 = _sha256(root, claim.path) if stat.S_ISREG(status.st_mode) and size <= FILE_BYTES_MAX else None
    message = f"scoring it ended the service {claim.attempt} times"
    return InspectedImage(claim, FileFacts(None, sha256, size), error_code=ATTEMPTS_EXHAUSTED, error=message)


def _sha256(root: Path, path: str) -> str:
    with place_of(root, path) as place:
        return place.sha256()
