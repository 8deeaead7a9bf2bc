"""Energy: rows as given, sums per kind and per day, and what is unknown stays out of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from service.storage import energy
from service.storage.energy_sample import EnergySample

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def sample(kind="scoring", images=10, wh=1.0, grams=None, day=0, source="estimated") -> EnergySample:
    return EnergySample(
        kind, NOON + timedelta(days=day), 2.0, images, wh, None, None, wh, grams, source, "FRA" if grams else None
    )


def add(engine, *samples):
    with engine.begin() as connection:
        return [energy.add(connection, one) for one in samples]


def test_a_row_comes_back_through_the_view_as_it_was_given(engine):
    (id,) = add(engine, sample(grams=3.0))
    with engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT * FROM energy").mappings()
    assert tuple(row.values()) == (
        *(id, "scoring", "2026-01-31T12:00:00.000000Z", 2.0, 10, 1.0, None, None, 1.0, 3.0, "estimated", "FRA"),
    )


@pytest.mark.parametrize("bad", [{"kind": "cooking"}, {"source": "guessed"}, {"images": -1}, {"wh": -0.1}], ids=str)
def test_what_cannot_be_is_refused(engine, bad):
    with pytest.raises(IntegrityError, match=r"(?i)check"):
        add(engine, sample(**bad))


def test_per_kind_sums_and_shares(engine):
    add(
        engine,
        sample(wh=1.0),
        sample(wh=2.0),
        sample("idle", 0, wh=1.0),
        sample("training", 50, wh=4.0, source="measured"),
    )
    with engine.connect() as connection:
        of = {row["kind"]: row for row in energy.per_kind(connection)}
    assert of["scoring"]["images"] == 20 and of["scoring"]["total_wh"] == 3.0
    assert of["scoring"]["wh_per_1000_images"] == pytest.approx(150.0)
    assert of["idle"]["wh_per_1000_images"] is None
    assert of["idle"]["share"] == pytest.approx(1 / 8)
    assert (of["scoring"]["source"], of["training"]["source"]) == ("estimated", "measured")


def test_unknown_energy_stays_out_of_the_sums_and_is_counted(engine):
    add(engine, sample(images=10, wh=1.0, grams=0.5), sample(images=990, wh=None))
    with engine.connect() as connection:
        (row,) = energy.per_kind(connection)
    assert row["images"] == 1000
    assert (row["wh_per_1000_images"], row["g_per_1000_images"]) == (100.0, 50.0)
    assert (row["rows_without_wh"], row["rows_without_g"]) == (1, 1)


def test_all_unknown_is_none_and_never_zero(engine):
    add(engine, sample(wh=None))
    with engine.connect() as connection:
        (row,) = energy.per_kind(connection)
    assert row["total_wh"] is None and row["emissions_g"] is None and row["wh_per_1000_images"] is None
    assert row["share"] is None


def test_rows_of_both_sources_are_said_to_be_mixed(engine):
    add(engine, sample(), sample(source="measured"))
    with engine.connect() as connection:
        assert energy.per_kind(connection)[0]["source"] == "mixed"


def test_per_day_counts_scored_images_alone_and_says_the_share_of_idling(engine):
    add(engine, sample(wh=3.0), sample("idle", 0, wh=1.0), sample("evaluation", 500, wh=4.0), sample(day=1, wh=5.0))
    with engine.connect() as connection:
        first, second = energy.per_day(connection)
    assert (first["day"], second["day"]) == ("2026-01-31", "2026-02-01")
    assert (first["images"], first["total_wh"]) == (10, 8.0)
    assert first["wh_per_1000_images"] == 300.0
    assert first["idle_share"] == pytest.approx(1 / 8)
    assert second["idle_share"] is None


def test_since_leaves_earlier_rows_out(engine):
    add(engine, sample(), sample(day=2))
    with engine.connect() as connection:
        assert energy.per_kind(connection, NOON + timedelta(days=1))[0]["rows"] == 1
        assert len(energy.per_day(connection, NOON + timedelta(days=1))) == 1
