"""Labels: what is said is kept, and files go where it says, whoever else is at work on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.errors import TamisError, UsageError
from service.inspection.claim import Claims
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.labelling.label import Labelled, label_images
from service.names import destination, new_id
from service.storage import images, reviews
from service.storage.database.open import open_database
from service.storage.images import Finished, ImageRecord
from tests.conftest import image_bytes

EACH_DATABASE = True

RECEIVED = datetime(2026, 1, 31, 12, tzinfo=UTC)


class House:
    """A root with images as the daemon leaves them."""

    def __init__(self, root: Path, engine: Engine) -> None:
        self.root, self.engine = root, engine

    def image(
        self,
        verdict: str | None = "normal",
        *,
        name: str = "a.png",
        state: str = "placed",
        product: str = "lid",
        seed: int = 0,
        received_at: datetime = RECEIVED,
        readable: bool = True,
    ) -> str:
        """Put an image there, in `state`; return its id."""
        id = new_id()
        target = destination(verdict or "quarantine", product, received_at, name, id)
        claimed = f"processing/main/{id}--1--{name}"
        content = image_bytes(20, seed=seed)
        lies_at = self.root / (claimed if state == "scored" else target)
        lies_at.parent.mkdir(parents=True, exist_ok=True)
        lies_at.write_bytes(content)
        row = ImageRecord(
            id=id, product=product, file_name=name, path=claimed, destination=target, state="scored", verdict=verdict,
            score=1.0 if verdict else None, threshold=2.0, p_value=0.5, model_version="v1",
            sha256=hashlib.sha256(content).hexdigest(), width=30 if readable else None,
            height=20 if readable else None, mode="RGB", bytes=len(content), received_at=received_at,
            decided_at=received_at, attempts=1, error_code=None if verdict else "damaged", error=None,
        )  # fmt: skip
        with self.engine.begin() as connection:
            images.record(connection, [row], None)
            if state != "scored":
                images.finish(connection, [Finished(id, state, target, received_at, 80.0)])
        return id

    def label(self, id: str, label: str | None, source: str = "api") -> Labelled:
        [labelled] = label_images(self.root, self.engine, [id], label, by="ada", source=source)
        return labelled

    def row(self, id: str) -> images.StoredImage:
        with self.engine.connect() as connection:
            return images.find(connection, [id])[id]

    def said(self, id: str) -> list[str | None]:
        """Return all labels of an image, the first first."""
        with self.engine.connect() as connection:
            return [review.label for review in reviews.history(connection, id)][::-1]

    def recover(self, in_flight: frozenset[str] = frozenset()) -> int:
        claims = Claims(self.root, "main")
        recorder = Recorder(self.root, self.engine, claims, anomaly_maps=False)
        return recover(
            self.root, self.engine, claims, recorder, in_flight=in_flight, attempts_max=3, has_model=lambda _: True
        ).delivered

    @property
    def files(self) -> list[str]:
        """All images but those kept for training, relative to the root."""
        return sorted(
            str(path.relative_to(self.root))
            for folder in ("incoming", "processing", "normal", "anomaly", "quarantine")
            for path in (self.root / folder).rglob("*.png")
        )


@pytest.fixture
def house(root: Path) -> Iterator[House]:
    engine = open_database(root)
    yield House(root, engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("verdict", "label", "kind", "state"),
    [
        ("normal", "anomaly", "anomaly", "placed"),
        ("anomaly", "normal", "normal", "placed"),
        ("normal", "normal", "normal", "placed"),
        (None, "normal", "normal", "placed"),
        (None, "anomaly", "anomaly", "placed"),
        (None, None, "quarantine", "quarantined"),
    ],
)
def test_label_moves_the_file_to_its_folder(
    house: House, verdict: str | None, label: str | None, kind: str, state: str
) -> None:
    id = house.image(verdict, state="placed" if verdict else "quarantined")
    labelled = house.label(id, label)
    path = f"{kind}/lid/2026-01-31/a.{id}.png"
    assert labelled == Labelled(id, label, path, state)
    assert house.files == [path]
    assert (house.row(id).path, house.row(id).destination, house.row(id).state) == (path, path, state)
    assert house.said(id) == [label]


@pytest.mark.parametrize(("verdict", "state"), [("normal", "placed"), ("anomaly", "placed"), (None, "quarantined")])
def test_label_taken_back_returns_the_file_to_where_its_verdict_put_it(
    house: House, verdict: str | None, state: str
) -> None:
    id = house.image(verdict, state=state)
    before = house.row(id)
    for label in ("anomaly", "normal", None):
        house.label(id, label)
    assert house.row(id) == before and house.files == [before.path]
    assert house.said(id) == ["anomaly", "normal", None]


def test_label_said_again_is_kept_again_and_leaves_the_file(house: House) -> None:
    id = house.image("normal")
    first = house.label(id, "anomaly")
    assert house.label(id, "anomaly") == first
    assert house.said(id) == ["anomaly", "anomaly"] and house.files == [first.path]


def test_one_unknown_id_changes_nothing_at_all(house: House) -> None:
    id = house.image("normal")
    before = house.files
    with pytest.raises(TamisError, match="found no image NOSUCH, NOR-THIS"):
        label_images(house.root, house.engine, [id, "NOSUCH", "NOR-THIS"], "anomaly", by=None, source="api")
    assert house.said(id) == [] and house.files == before


@pytest.mark.parametrize(("label", "source"), [("good", "api"), ("", "api"), ("normal", "fax")])
def test_what_is_no_label_or_no_source_is_refused(house: House, label: str, source: str) -> None:
    id = house.image("normal")
    with pytest.raises(UsageError, match="expected"):
        house.label(id, label, source)
    assert house.said(id) == []


@pytest.mark.parametrize("state", ["missing", "conflict"])
def test_missing_image_is_labelled_and_nothing_moves(house: House, state: str) -> None:
    id = house.image("normal", state=state)
    before, files = house.row(id), house.files
    assert house.label(id, "anomaly").state == state
    assert house.said(id) == ["anomaly"] and house.row(id) == before and house.files == files


def test_many_labels_are_all_kept_in_the_order_of_the_ids(house: House) -> None:
    ids = [house.image("normal", name=f"{number}.png", seed=number) for number in range(150)]
    labelled = label_images(house.root, house.engine, [*ids, ids[0]], "anomaly", by=" ", source="web", note=" x ")
    assert [one.id for one in labelled] == ids and all(one.path.startswith("anomaly/") for one in labelled)
    with house.engine.connect() as connection:
        [review] = reviews.history(connection, ids[0])
    assert (review.labelled_by, review.note, review.source) == (None, "x", "web")


def test_file_that_a_person_renamed_goes_to_its_delivery_place(house: House) -> None:
    id = house.image("normal")
    own = "normal/my own/part 7.png"
    (house.root / own).parent.mkdir(parents=True)
    (house.root / house.row(id).path).rename(house.root / own)
    with house.engine.begin() as connection:
        images.send(connection, [images.Sent(id, "placed", own, own)])
    assert house.label(id, "normal").path == own
    assert house.label(id, "anomaly").path == f"anomaly/lid/2026-01-31/a.{id}.png"


# While it is on its way


def test_label_of_a_image_before_its_first_delivery_wins_over_the_verdict(house: House) -> None:
    id = house.image("normal", state="scored")
    claimed = house.row(id).path
    # Its instance is moving it without the lock, by copying where devices differ: two that copy would leave two.
    assert house.label(id, "anomaly") == Labelled(id, "anomaly", claimed, "scored") and house.files == [claimed]
    assert house.recover() == 1 and house.files == [f"anomaly/lid/2026-01-31/a.{id}.png"]
    assert house.row(id).state == "placed" and house.said(id) == ["anomaly"]


def test_label_that_only_reached_the_database_is_finished_by_recovery(house: House) -> None:
    id = house.image("normal")
    here = house.row(id).path
    there = here.replace("normal", "anomaly")
    with house.engine.begin() as connection:
        images.send(connection, [images.Sent(id, "scored", here, there)])
    assert house.recover() == 1
    assert house.files == [there] and house.row(id).state == "placed"


def test_crash_between_first_delivery_and_its_finish_then_a_label_finds_the_file(house: House) -> None:
    id = house.image("normal", state="scored")
    delivered = house.root / house.row(id).destination
    delivered.parent.mkdir(parents=True)
    (house.root / house.row(id).path).rename(delivered)
    assert house.label(id, "anomaly").state == "scored"
    assert house.recover() == 1 and house.files == [f"anomaly/lid/2026-01-31/a.{id}.png"]


def test_taken_back_before_it_moved_ends_where_it_was(house: House) -> None:
    id = house.image("normal")
    here = house.row(id).path
    with house.engine.begin() as connection:
        images.send(connection, [images.Sent(id, "scored", here, here.replace("normal", "anomaly"))])
    assert house.label(id, None) == Labelled(id, None, here, "placed")
    assert house.files == [here]


def test_two_labels_of_which_the_first_was_half_done_end_as_the_second_says(house: House) -> None:
    id = house.image(None, state="quarantined")
    here = house.row(id).path
    half = here.replace("quarantine", "normal")
    with house.engine.begin() as connection:
        images.send(connection, [images.Sent(id, "scored", here, half)])
    (house.root / half).parent.mkdir(parents=True)
    (house.root / here).rename(house.root / half)
    assert house.label(id, "anomaly").state == "placed"
    assert house.files == [here.replace("quarantine", "anomaly")]
