"""Threshold choices: the latest of a product holds, and every earlier one stays on record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from service.storage import statistics, thresholds
from service.storage.images import record
from tests.service.storage.conftest import on_sqlite
from tests.service.storage.test_plans import plan

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_latest_choice_of_a_product_holds_and_none_goes_back_to_the_settings(engine):
    with engine.begin() as connection:
        assert thresholds.chosen(connection) == {} and thresholds.latest(connection) == {}
        thresholds.choose(connection, "lid", 0.05, "ann", NOON)
        thresholds.choose(connection, "cap", 0.02, None, NOON)
        thresholds.choose(connection, "lid", 0.03, "bob", NOON + timedelta(hours=1))
        thresholds.choose(connection, "cap", None, "ann", NOON + timedelta(hours=2))
    with engine.connect() as connection:
        assert thresholds.chosen(connection) == {"lid": 0.03}
        found = thresholds.latest(connection)
        assert found["lid"] == thresholds.Choice("lid", 0.03, "bob", NOON + timedelta(hours=1))
        assert found["cap"].false_alarm_rate is None and found["cap"].chosen_by == "ann"
        assert connection.execute(text("SELECT count(*) FROM threshold_choices")).scalar_one() == 4


def test_order_of_rows_decides_and_not_a_clock_that_was_set_back(engine):
    with engine.begin() as connection:
        thresholds.choose(connection, "lid", 0.05, "ann", NOON)
        thresholds.choose(connection, "lid", 0.03, "bob", NOON - timedelta(days=1))
        assert thresholds.chosen(connection) == {"lid": 0.03}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["lid", "cap"]), st.none() | st.floats(0.001, 0.999)), max_size=12))
def test_what_was_chosen_is_the_last_of_each_product(engine, choices):
    with engine.connect() as connection, pytest.raises(ZeroDivisionError), engine.begin() as writing:
        connection.close()
        for product, rate in choices:
            thresholds.choose(writing, product, rate, None, NOON)
        last = dict(choices)
        assert thresholds.chosen(writing) == {product: rate for product, rate in last.items() if rate is not None}
        raise ZeroDivisionError  # rolls back, so that the next example begins with nothing


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0])
def test_what_is_no_rate_is_not_stored(engine, rate):
    with pytest.raises(IntegrityError), engine.begin() as connection:
        thresholds.choose(connection, "lid", rate, None, NOON)


def test_latest_scores_are_those_of_one_version_newest_first(engine, record_of):
    with engine.begin() as connection:
        record(connection, [record_of(n, score=float(n)) for n in range(5)], None)
        record(connection, [record_of(n, score=float(n), model_version="v2", threshold=7.0) for n in range(5, 8)], None)
        record(connection, [record_of(8, product="cap"), record_of(9, verdict=None, score=None)], None)
        assert statistics.latest_scores(connection, "lid", "v2", 100) == ([7.0, 6.0, 5.0], [7.0, 7.0, 7.0])
        assert statistics.latest_scores(connection, "lid", "v1", 2)[0] == [4.0, 3.0]
        assert statistics.latest_scores(connection, "lid", "v3", 100) == ([], [])
        assert statistics.has_images(connection, "cap") and not statistics.has_images(connection, "lit")


def test_latest_scores_stop_looking_for_a_version_that_scored_long_ago(engine, record_of):
    with engine.begin() as connection:
        record(connection, [record_of(0, model_version="old")], None)
        record(connection, [record_of(n) for n in range(1, 1 + statistics.LOOK_BACK)], None)
        assert statistics.latest_scores(connection, "lid", "old", 1) == ([], [])
        assert len(statistics.latest_scores(connection, "lid", "old", 2)[0]) == 1


@on_sqlite
def test_latest_scores_are_read_off_the_end_of_an_index(engine):
    found = plan(engine, lambda connection: statistics.latest_scores(connection, "lid", "v1", 1000))
    assert "SEARCH images USING INDEX images_by_product_received_at_id (product=?)" in found
    assert "SCAN images" not in found


@on_sqlite
def test_choices_are_found_by_an_index_alone(engine):
    found = plan(engine, thresholds.latest)
    assert "COVERING INDEX threshold_choices_by_product_id" in found
    assert "SEARCH threshold_choices USING INTEGER PRIMARY KEY" in found
