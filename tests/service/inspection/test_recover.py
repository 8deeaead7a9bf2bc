import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.registry import file_sha256
from service.filesystem.place import Place
from service.inspection.claim import Claim, Claims
from service.inspection.record import Recorder
from service.inspection.recover import Action, Recovered, plan, recover
from service.names import new_id
from service.storage import images
from service.storage.database.open import open_database
from service.storage.images import Finished, ImageRecord, StoredImage

EACH_DATABASE = True

FEW = 4
DESTINATION = "normal/default/2026-11-22/a.{id}.png"


def stored(state: str) -> StoredImage:
    at = datetime(2026, 11, 22, tzinfo=UTC)
    return StoredImage("X", state, "processing/main/x", "normal/x", None, "default", "x", None, at, None, None)


@pytest.mark.parametrize(
    ("row", "in_processing", "attempt", "action"),
    [
        (None, True, 1, Action.SCORE_AGAIN),
        (None, True, 2, Action.SCORE_AGAIN),
        (None, True, 3, Action.GIVE_UP),
        ("scored", True, 1, Action.DELIVER),
        ("scored", True, 3, Action.DELIVER),
        ("scored", False, 0, Action.DELIVER),
        ("placed", True, 1, Action.CHECK_AND_DELIVER),
        ("quarantined", True, 1, Action.CHECK_AND_DELIVER),
        ("missing", True, 1, Action.CHECK_AND_DELIVER),
        ("conflict", True, 1, Action.LEAVE),
    ],
)
def test_plan_covers_every_line_of_the_table(
    row: str | None, in_processing: bool, attempt: int, action: Action
) -> None:
    assert plan(stored(row) if row else None, in_processing, attempt, attempts_max=3) is action


class House:
    """A root with one claimed file, as a crash may have left it."""

    def __init__(self, root: Path, engine: Engine) -> None:
        self.root, self.engine = root, engine
        (root / "incoming/a.png").write_bytes(b"bytes")
        claim = Claims(root, "main").claim("a.png", now=0.0)
        assert claim is not None
        self.claim: Claim = claim
        self.destination = DESTINATION.format(id=claim.id)

    def record(self, state: str = "scored", error_code: str | None = None) -> None:
        path = self.root / self.claim.path
        now = datetime.now(UTC)
        if error_code:
            self.destination = self.destination.replace("normal", "quarantine")
        row = ImageRecord(
            id=self.claim.id, product="default", file_name="a.png", path=self.claim.path, destination=self.destination,
            state="scored", verdict=None if error_code else "normal", score=None if error_code else 1.0, threshold=2.0,
            p_value=0.5, model_version="v", sha256=file_sha256(path), width=1, height=1, mode="RGB", bytes=5,
            received_at=now, decided_at=now, attempts=1, error_code=error_code, error=error_code,
        )  # fmt: skip
        with self.engine.begin() as connection:
            images.record(connection, [row], None)
            if state != "scored":
                images.finish(connection, [Finished(row.id, state, self.destination, now, 1.0)])

    def deliver(self, *, keep_source: bool = False, content: bytes = b"bytes") -> None:
        (self.root / self.destination).parent.mkdir(parents=True)
        (self.root / self.destination).write_bytes(content)
        if not keep_source:
            (self.root / self.claim.path).unlink()

    def recover(self, in_flight: frozenset[str] = frozenset(), has_model: bool = True) -> Recovered:
        claims = Claims(self.root, "main")
        recorder = Recorder(self.root, self.engine, claims, anomaly_maps=False)
        return recover(
            self.root, self.engine, claims, recorder, in_flight=in_flight, attempts_max=3, has_model=lambda _: has_model
        )

    @property
    def state(self) -> str:
        with self.engine.connect() as connection:
            return images.find(connection, [self.claim.id])[self.claim.id].state

    @property
    def lies_at(self) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*.png") if not p.name.startswith("."))


@pytest.fixture
def house(root: Path):
    engine = open_database(root)
    yield House(root, engine)
    engine.dispose()


def test_crash_before_the_commit_scores_again_with_the_same_id(house: House) -> None:
    # Each time the same attempt: it counts when it begins, which may be long after, or never.
    for _ in range(4):
        [claim] = house.recover().again
        assert (claim.id, claim.attempt) == (house.claim.id, 1)
        assert house.lies_at == [claim.path]


def test_after_its_last_attempt_a_file_is_given_up(house: House) -> None:
    for _ in range(2):
        [claim] = house.recover().again
        Claims(house.root, "main").next_attempt(claim)
    recovered = house.recover()
    assert recovered.again == []
    [inspected] = recovered.given_up
    assert inspected.error_code == "attempts_exhausted" and inspected.file.sha256 == file_sha256(
        house.root / inspected.claim.path
    )


def test_file_without_a_model_is_left_without_costing_an_attempt(house: House) -> None:
    assert house.recover(has_model=False) == Recovered()
    assert house.lies_at == [house.claim.path]


def test_what_is_in_flight_is_left_to_the_pipeline(house: House) -> None:
    assert house.recover(in_flight=frozenset({house.claim.id})) == Recovered()


def test_crash_before_delivery_delivers_and_does_not_score(house: House) -> None:
    house.record()
    recovered = house.recover()
    assert (recovered.again, recovered.delivered) == ([], 1)
    assert house.lies_at == [house.destination] and house.state == "placed"


def test_rejected_file_ends_quarantined(house: House) -> None:
    house.record(error_code="format")
    house.recover()
    assert house.state == "quarantined"


def test_crash_before_finish_marks_placed(house: House) -> None:
    house.record()
    house.deliver()
    house.recover()
    assert house.lies_at == [house.destination] and house.state == "placed"


def test_crash_before_the_unlink_ends_with_one_file(house: House) -> None:
    house.record()
    house.deliver(keep_source=True)
    house.recover()
    assert house.lies_at == [house.destination] and house.state == "placed"


def test_two_files_that_differ_are_a_conflict_for_good(house: House) -> None:
    house.record()
    house.deliver(keep_source=True, content=b"other")
    house.recover()
    house.recover()
    assert house.lies_at == sorted([house.destination, house.claim.path]) and house.state == "conflict"


def test_file_removed_by_someone_is_missing(house: House) -> None:
    house.record()
    (house.root / house.claim.path).unlink()
    house.recover()
    assert house.lies_at == [] and house.state == "missing"


def test_missing_file_that_comes_back_is_delivered(house: House) -> None:
    house.record("missing")
    house.recover()
    assert house.lies_at == [house.destination] and house.state == "placed"


def test_restored_backup_delivers_again_where_the_hash_agrees(house: House) -> None:
    house.record("placed")
    house.recover()
    assert house.lies_at == [house.destination] and house.state == "placed"


def test_restored_backup_with_another_file_is_left_alone(house: House) -> None:
    house.record("placed")
    (house.root / house.claim.path).write_bytes(b"other")
    house.recover()
    assert house.lies_at == [house.claim.path]


@pytest.mark.parametrize("make", [House.record, lambda house: (house.record(), house.deliver()), lambda house: None])
def test_recovery_repeated_changes_nothing_more(house: House, make: Callable[[House], object]) -> None:
    make(house)
    first = house.recover()
    ids = frozenset(claim.id for claim in first.again)
    lies_at = house.lies_at
    assert house.recover(in_flight=ids) == Recovered()
    assert house.lies_at == lies_at


def test_rows_of_another_instance_are_left_to_it(house: House) -> None:
    house.record()
    other = Claims(house.root, "other")
    recorder = Recorder(house.root, house.engine, other, anomaly_maps=False)
    recovered = recover(
        house.root, house.engine, other, recorder, in_flight=(), attempts_max=3, has_model=lambda _: True
    )
    assert recovered == Recovered() and house.state == "scored"


def test_what_waits_for_a_folder_is_tried_a_few_at_a_time_and_holds_up_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inspection.recover.MOVES_A_FOLDER", FEW)
    house.record()
    with house.engine.connect() as connection:
        [row] = images.find(connection, [house.claim.id]).values()
    bad = [_waiting(house, row, "normal/bad/2026-11-22") for _ in range(3 * FEW)]
    good = [_waiting(house, row, "normal/good/2026-11-22") for _ in range(3 * FEW)]
    tried: Counter[str] = Counter()
    real = Place.rename
    refusing = set(bad)

    def rename(place: Place, target: Place) -> None:
        id = place.name[:26]
        tried[id] += 1
        if id in refusing:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        real(place, target)

    monkeypatch.setattr(Place, "rename", rename)
    claims = Claims(house.root, "main")
    recorder = Recorder(house.root, house.engine, claims, anomaly_maps=False)

    def again() -> Recovered:
        tried.clear()
        return recover(
            house.root, house.engine, claims, recorder, in_flight=(), attempts_max=3, has_model=lambda _: True
        )

    assert again() == Recovered(delivered=len(good) + 1)
    assert sum(tried[id] for id in bad) == FEW
    # The next time others of them are tried, and one that can be moved does not wait behind those that cannot.
    first = {id for id in bad if tried[id]}
    refusing.discard(bad[-1])
    again()
    second = {id for id in bad if tried[id]}
    assert len(second) == FEW and not first & second
    assert again().delivered == 1
    refusing.clear()
    assert recorder.odd.all() != []
    assert again().delivered == len(bad) - 1
    assert again() == Recovered() and not recorder.tries and recorder.odd.all() == []


@pytest.mark.parametrize("times", [1, 2])
def test_what_no_delivery_waits_for_is_forgotten_the_second_time(house: House, times: int) -> None:
    claims = Claims(house.root, "main")
    recorder = Recorder(house.root, house.engine, claims, anomaly_maps=False)
    recorder.odd.note("normal/gone/2026-11-22", "deliver", OSError(errno.EACCES, os.strerror(errno.EACCES)))
    for _ in range(times):
        recover(house.root, house.engine, claims, recorder, in_flight=(), attempts_max=3, has_model=lambda _: True)
    assert len(recorder.odd.all()) == 2 - times


def _waiting(house: House, like: StoredImage, folder: str) -> str:
    """Record an image that waits in `processing/` to be delivered to `folder`; return its id."""
    id = new_id()
    claim = house.root / f"processing/main/{id}--1--a.png"
    claim.write_bytes(id.encode())
    values = dict.fromkeys(ImageRecord.__dataclass_fields__) | asdict(like)
    values = {name: values[name] for name in ImageRecord.__dataclass_fields__}
    values |= {"id": id, "path": f"processing/main/{claim.name}", "destination": f"{folder}/a.{id}.png"}
    values |= {"score": 1.0, "threshold": 2.0, "p_value": 0.5, "uncertain": False, "model_version": "v1"}
    values |= {"sha256": file_sha256(claim), "bytes": 26, "decided_at": like.received_at, "attempts": 1}
    with house.engine.begin() as connection:
        images.record(connection, [ImageRecord(**values)], None)
    return id
