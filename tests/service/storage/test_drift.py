"""Rows of drift, and the images it is told by: read off one end of an index, with what people said last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError

from service.storage import drift, versions
from service.storage.drift import DriftRow
from service.storage.images import record
from service.storage.tables import reviews_table
from tests.service.storage.conftest import on_sqlite
from tests.service.storage.test_plans import plan

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def row(**values: object) -> DriftRow:
    plain = {"product": "lid", "version": "v1", "state": "steady", "cause": None, "first_image_id": None, "at": NOON}
    return DriftRow(**{**plain, "figures": {"images": 20}, **values})


def crown(connection, version, product="lid", at=NOON):
    versions.register(
        connection, product=product, version=version, kind="pixel", created_at=NOON, state="challenger", reason=None,
        threshold=1.0, false_alarm_rate=0.01, image_auroc=None, f1=None, training_wh=None, images=1, sha256="a" * 64,
    )  # fmt: skip
    versions.promote(connection, product, version, None, at)


def test_last_change_of_a_product_holds_and_comes_back_as_it_was(engine):
    drifting = row(state="drifting", cause="light", first_image_id="x", figures={"beyond": 3, "look": None})
    with engine.begin() as connection:
        drift.add(connection, row())
        drift.add(connection, drifting)
        drift.add(connection, row(product="cap"))
        assert drift.last(connection) == {"lid": drifting, "cap": row(product="cap")}
        assert connection.execute(text("SELECT count(*) FROM drift")).scalar_one() == 3


def test_figures_that_are_no_numbers_are_not_stored(engine):
    with pytest.raises(ValueError, match="JSON"), engine.begin() as connection:
        drift.add(connection, row(figures={"distance": float("nan")}))


@pytest.mark.parametrize("values", [{"state": "odd"}, {"cause": "weather"}], ids=str)
def test_states_and_causes_are_those_there_are(engine, values):
    with pytest.raises(IntegrityError), engine.begin() as connection:
        drift.add(connection, row(**values))


def test_state_is_of_the_present_champion_and_of_no_other(engine):
    with engine.begin() as connection:
        drift.add(connection, row(state="drifting", cause="light"))
        assert drift.latest(connection) == {}  # a champion that was there is gone with its product's rows
        crown(connection, "v1")
        assert drift.latest(connection)["lid"].cause == "light"
        crown(connection, "v2")
        assert drift.latest(connection) == {}
        versions.rollback(connection, "lid", None)
        assert drift.latest(connection)["lid"].cause == "light"


def test_product_without_a_model_has_the_state_by_that_of_default(engine):
    with engine.begin() as connection:
        crown(connection, "v1", "default")
        drift.add(connection, row(product="cap"))
        assert set(drift.latest(connection)) == {"cap"}


def test_reign_begins_with_the_last_promotion(engine):
    with engine.begin() as connection:
        crown(connection, "v1", at=NOON)
        crown(connection, "v2", at=NOON + timedelta(hours=1))
        versions.rollback(connection, "lid", None, NOON + timedelta(hours=2))
        found = drift.reigns(connection)["lid"]
    assert (found.row.version, found.since) == ("v1", NOON + timedelta(hours=2))


def test_images_come_oldest_first_from_either_end_with_the_last_label(engine, record_of):
    with engine.begin() as connection:
        record(connection, [record_of(n, score=float(n), brightness=100.0 + n) for n in range(6)], None)
        record(connection, [record_of(7, product="cap")], None)
        for label in ("anomaly", "normal", None):
            for image in (3, 4, 5)[: 3 if label == "anomaly" else 2 if label == "normal" else 1]:
                connection.execute(
                    insert(reviews_table).values(
                        image_id=f"{image:026d}", label=label, labelled_at=NOON, source="command"
                    )
                )
        since = NOON + timedelta(minutes=1)
        newest, oldest = drift.newest(connection, "lid", since, 3), drift.oldest(connection, "lid", since, 3)
    assert [one.score for one in newest] == [3.0, 4.0, 5.0]
    assert [one.score for one in oldest] == [1.0, 2.0, 3.0]
    assert [one.label for one in newest] == [None, "normal", "anomaly"]
    assert newest[0].brightness == 103.0 and newest[0].contrast is None
    assert newest[0].received_at == NOON + timedelta(minutes=3) and newest[0].version == "v1"


@pytest.mark.parametrize("read", [drift.newest, drift.oldest])
@on_sqlite
def test_images_are_read_off_an_index_without_sorting(engine, read):
    found = plan(engine, lambda connection: read(connection, "lid", NOON, 100))
    assert "SEARCH images USING INDEX images_by_product_received_at_id (product=? AND received_at>?)" in found
    assert "reviews_by_image_id (image_id=?)" in found and "TEMP B-TREE" not in found


@on_sqlite
def test_last_changes_are_found_by_an_index(engine):
    assert "COVERING INDEX drift_events_by_product_id" in plan(engine, drift.last)
