"""The training set: rows are the truth, files follow them, roles never leak and never change."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from models.registry import file_sha256
from service.labelling.label import label_images
from service.labelling.roles import role_among, role_by_hash
from service.labelling.training_set import reconcile, reconcile_all
from service.storage import training_images as training_images
from service.storage.database.open import open_database
from service.storage.training_images import NewTrainingImage, TrainingImageRow
from tests.service.labelling.test_label import RECEIVED, House

GAP_S = 1.0
SCHEMA = (Path(__file__).parents[2] / "migrations" / "sqlite.sql").read_text()


def rows_of(house: House, product: str = "lid") -> list[TrainingImageRow]:
    with house.engine.connect() as connection:
        return training_images.page(connection, 0, 1000)


def kept(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / "training").rglob("*") if path.is_file())


@pytest.fixture
def house(root: Path) -> Iterator[House]:
    engine = open_database(root)
    yield House(root, engine)
    engine.dispose()


# Roles


def test_roles_are_70_15_15_of_many_images() -> None:
    roles = [role_by_hash("lid", f"{number:064x}") for number in range(20_000)]
    assert roles.count("train") / 20_000 == pytest.approx(0.70, abs=0.015)
    assert roles.count("calibrate") / 20_000 == pytest.approx(0.15, abs=0.015)
    assert roles.count("golden") / 20_000 == pytest.approx(0.15, abs=0.015)


def test_roles_of_the_same_bytes_are_independent_between_products() -> None:
    alike = sum(role_by_hash("lid", f"{n:064x}") == role_by_hash("cup", f"{n:064x}") for n in range(5_000))
    assert alike / 5_000 == pytest.approx(0.7**2 + 2 * 0.15**2, abs=0.03)


@given(st.lists(st.tuples(st.integers(0, 6_000), st.integers(0, 40)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_near_copies_never_have_two_roles_in_whatever_order_they_come(images: list[tuple[int, int]]) -> None:
    """Through the real statements: times in ms over 6 s, and bytes of which some come twice."""
    engine = create_engine("sqlite://")
    first: dict[str, str | None] = {}
    with engine.begin() as connection:
        connection.connection.driver_connection.executescript(SCHEMA)
        for ms, content in images:
            sha256 = f"{content:064x}"
            taken_at = RECEIVED + timedelta(milliseconds=ms)
            near = training_images.roles_near(connection, "lid", taken_at, GAP_S)
            role = role_among("lid", sha256, near)
            training_images.add(
                connection,
                NewTrainingImage(
                    "lid", sha256, "normal", role, "training/lid/normal/x", "x", None, taken_at, taken_at, None
                ),
            )
            first.setdefault(sha256, role)
        found = training_images.page(connection, 0, 1000)
    assert {row.sha256: row.role for row in found} == first
    for one in found:
        for other in found:
            if abs((one.taken_at - other.taken_at).total_seconds()) <= GAP_S and None not in (one.role, other.role):
                assert one.role == other.role
    engine.dispose()


def test_burst_shares_the_role_of_its_first_image(house: House) -> None:
    ids = [house.image(name=f"{n}.png", seed=n, received_at=RECEIVED + timedelta(seconds=0.9 * n)) for n in range(20)]
    label_images(house.root, house.engine, ids, "normal", by=None, source="api")
    assert len({row.role for row in rows_of(house)}) == 1 and len(rows_of(house)) == 20


def test_bytes_dropped_again_are_as_near_to_their_burst_as_the_first_time(house: House) -> None:
    one = house.image(seed=1)
    house.image(seed=2, received_at=RECEIVED + timedelta(seconds=0.5))
    again = house.image(seed=2, received_at=RECEIVED + timedelta(days=1))
    house.label(one, "normal")
    house.label(again, "normal")
    assert [row.taken_at for row in rows_of(house)] == [RECEIVED, RECEIVED + timedelta(seconds=0.5)]
    assert len({row.role for row in rows_of(house)}) == 1


def test_role_stays_when_the_label_changes_or_is_taken_back(house: House) -> None:
    id = house.image()
    house.label(id, "normal")
    [before] = rows_of(house)
    for label in ("anomaly", None, "anomaly"):
        house.label(id, label)
        [row] = rows_of(house)
        assert (row.id, row.role, row.taken_at, row.added_at) == (
            before.id,
            before.role,
            before.taken_at,
            before.added_at,
        )


# Files


def test_labelled_image_is_kept_by_a_second_link(house: House) -> None:
    id = house.image()
    labelled = house.label(id, "anomaly")
    [row] = rows_of(house)
    assert (row.label, row.path) == ("anomaly", f"training/lid/anomaly/a.{id}.png")
    assert kept(house.root) == [row.path] and (house.root / row.path).samefile(house.root / labelled.path)


def test_label_changed_moves_the_kept_file_and_taken_back_drops_the_link_alone(house: House) -> None:
    id = house.image()
    house.label(id, "normal")
    house.label(id, "anomaly")
    assert kept(house.root) == [f"training/lid/anomaly/a.{id}.png"]
    labelled = house.label(id, None)
    assert kept(house.root) == [] and house.files == [labelled.path]
    assert [row.label for row in rows_of(house)] == [None]
    house.label(id, "normal")
    assert kept(house.root) == [f"training/lid/normal/a.{id}.png"]


def test_same_bytes_again_are_kept_once_with_the_label_that_was_said_last(house: House) -> None:
    first, second = house.image(seed=3), house.image(seed=3, name="b.png")
    house.label(first, "normal")
    house.label(second, "anomaly")
    assert kept(house.root) == [f"training/lid/anomaly/a.{first}.png"]
    house.label(second, None)
    assert kept(house.root) == [f"training/lid/normal/a.{first}.png"]
    house.label(first, None)
    assert kept(house.root) == [] and len(rows_of(house)) == 1


def test_same_bytes_of_two_products_are_kept_for_each(house: House) -> None:
    for product in ("lid", "cup"):
        house.label(house.image(product=product), "normal")
    assert [row.product for row in rows_of(house)] == ["lid", "cup"] and len(kept(house.root)) == 2


@pytest.mark.parametrize("state", ["quarantined", "missing", "conflict"])
def test_what_cannot_be_read_or_found_is_no_training_image(house: House, state: str) -> None:
    id = house.image(None, state=state, readable=state != "quarantined")
    house.label(id, "normal")
    assert rows_of(house) == [] and kept(house.root) == []


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_copy_is_kept_and_dropped_where_the_image_is_there(house: House) -> None:
    id = house.image()
    labelled = house.label(id, "normal")
    [row] = rows_of(house)
    assert file_sha256(house.root / row.path) == row.sha256 and (house.root / row.path).stat().st_nlink == 1
    house.label(id, None)
    assert kept(house.root) == [] and house.files == [labelled.path]


@pytest.mark.parametrize("links", [True, False])
def test_last_file_with_its_bytes_is_never_dropped(house: House, links: bool, request: pytest.FixtureRequest) -> None:
    if not links:
        request.getfixturevalue("no_hard_links")
    id = house.image()
    labelled = house.label(id, "normal")
    (house.root / labelled.path).unlink()
    house.label(id, None)
    assert kept(house.root) == [f"training/lid/normal/a.{id}.png"]


def test_image_that_was_changed_since_it_was_scored_is_not_kept(house: House) -> None:
    id = house.image()
    (house.root / house.row(id).path).write_bytes(b"retouched")
    assert house.label(id, "normal").state == "placed"
    assert kept(house.root) == []


def agree(house: House) -> list[str]:
    for _ in reconcile_all(house.root, house.engine):
        pass
    return kept(house.root)


def test_rows_are_the_truth_whatever_a_crash_left(house: House) -> None:
    ids = [house.image(name=f"{n}.png", seed=n) for n in range(4)]
    for id in ids:
        house.label(id, "normal")
    house.label(ids[3], None)
    expected = kept(house.root)
    assert len(expected) == 3
    link_gone, in_other, in_both, taken_back = (f"training/lid/normal/{n}.{id}.png" for n, id in enumerate(ids))
    (house.root / link_gone).unlink()
    (house.root / "training/lid/anomaly").mkdir()
    (house.root / in_other).rename(house.root / in_other.replace("/normal/", "/anomaly/"))
    os.link(house.root / in_both, house.root / in_both.replace("/normal/", "/anomaly/"))
    os.link(house.root / house.row(ids[3]).path, house.root / taken_back)
    assert agree(house) == expected
    assert agree(house) == expected


def test_two_different_files_under_both_labels_are_both_left(house: House) -> None:
    id = house.image()
    house.label(id, "normal")
    other = house.root / f"training/lid/anomaly/a.{id}.png"
    other.parent.mkdir()
    other.write_bytes(b"a person's own")
    agree(house)
    assert len(kept(house.root)) == 2


def test_bytes_that_are_gone_are_said_and_nothing_breaks(house: House) -> None:
    id = house.image()
    house.label(id, "normal")
    [row] = rows_of(house)
    for path in (row.path, house.row(id).path):
        (house.root / path).unlink()
    assert reconcile(house.root, house.engine, [row.id]) == [row.path]


def test_link_in_the_images_place_is_not_followed(house: House, tmp_path: Path) -> None:
    id = house.image()
    path = house.root / house.row(id).path
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    house.label(id, "normal")
    assert kept(house.root) == []


def test_vouched_are_those_whose_label_holds(house: House) -> None:
    ids = [house.image(name=f"{n}.png", seed=n) for n in range(3)]
    for id in ids:
        house.label(id, "normal")
    house.label(ids[1], None)
    with house.engine.connect() as connection:
        found = training_images.vouched(connection, "lid")
    assert [row.image_id for row in found] == [ids[0], ids[2]]
    assert all(row.added_by == "ada" for row in found)


def test_lookups_walk_an_index(engine_of_plan: Engine) -> None:
    with engine_of_plan.connect() as connection:
        for statement in (
            "SELECT role FROM training_pictures WHERE product = 'a' AND taken_at >= '1' AND taken_at <= '2'",
            "SELECT * FROM training_pictures WHERE product = 'a' AND sha256 = 'b'",
            "SELECT * FROM images WHERE id = 'a' OR duplicate_of = 'a'",
        ):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
            assert not [row for row in plan if row[3].startswith("SCAN")], (statement, plan)


@pytest.fixture
def engine_of_plan(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()
