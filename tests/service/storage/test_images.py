"""Recording, finishing, finding and searching images."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

from service.errors import TamisError
from service.storage import energy, images, statistics
from service.storage.images import Finished
from service.storage.tables import time_text

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def record(engine, *records, energy_id=None):
    with engine.begin() as connection:
        images.record(connection, records, energy_id)


def search(engine, **filters):
    with engine.connect() as connection:
        return images.search(connection, **filters)


def test_a_record_comes_back_as_it_was_given_with_the_unknown_as_null(engine, record_of):
    given_record = record_of(3, verdict=None, score=None, threshold=None, p_value=None, model_version=None, sha256=None)
    record(engine, given_record)
    (row,) = search(engine)
    for name in (
        "verdict",
        "score",
        "threshold",
        "p_value",
        "model_version",
        "sha256",
        "latency_ms",
        "energy_wh",
        "label",
    ):
        assert row[name] is None, name
    assert (row["width"], row["height"]) == (640, 480)
    assert row["received_at"] == "2026-01-31T12:03:00.000000Z"


def test_recording_again_changes_nothing(engine, record_of):
    record(engine, record_of(1))
    record(engine, record_of(1, verdict="anomaly", score=9.0), record_of(2))
    assert [(r["id"][-1], r["verdict"]) for r in search(engine)] == [("2", "normal"), ("1", "normal")]


def test_recording_nothing_is_allowed(engine):
    record(engine)
    assert search(engine) == []


def test_same_bytes_point_to_the_earliest_row_also_within_one_call(engine, record_of):
    same = "a" * 64
    record(engine, record_of(1, sha256=same), record_of(2, sha256=same))
    record(engine, record_of(3, sha256=same), record_of(4), record_of(5, sha256=None), record_of(6, sha256=None))
    found = {r["id"][-1]: r["duplicate_of"] for r in search(engine)}
    assert found == {"1": None, "2": f"{1:026d}", "3": f"{1:026d}", "4": None, "5": None, "6": None}


def test_recording_a_batch_takes_one_look_up_and_one_insert(engine, record_of):
    statements = []
    event.listen(
        engine, "before_cursor_execute", lambda c, cur, statement, *rest: statements.append((statement, rest[2]))
    )
    record(engine, *(record_of(n) for n in range(8)))
    work = [s for s in statements if not s[0].startswith(("PRAGMA", "BEGIN", "SELECT set_config"))]
    assert [(s.split()[0], many) for s, many in work] == [("SELECT", False), ("INSERT", True)]


def test_a_name_that_is_not_utf_8_is_kept_readable(engine, record_of):
    record(engine, record_of(1, file_name="caf\udce9.png", error="bad \udcff", error_code="decode"))
    (row,) = search(engine)
    assert (row["file_name"], row["error"]) == ("caf\\udce9.png", "bad \\udcff")


@pytest.mark.parametrize(
    "bad",
    [
        {"state": "lost"},
        {"verdict": "maybe"},
        {"score": math.nan},
        {"score": math.inf},
        {"threshold": -math.inf},
        {"score": None},
        {"p_value": 1.5},
        {"sha256": "abc"},
        {"width": 0},
        {"height": "tall"},
        {"bytes": -1},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_the_database(engine, record_of, bad):
    # SQLite takes text for a number, but for the constraint; PostgreSQL has the type.
    with pytest.raises((IntegrityError, DataError), match=r"(?i)check|invalid input syntax"):
        record(engine, record_of(1, **bad))


def test_a_time_without_a_zone_is_refused(engine, record_of):
    with pytest.raises(StatementError, match="zone"):
        record(engine, record_of(1, received_at=datetime(2026, 1, 1)))


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.timezones()))
def test_times_keep_their_moment_and_sort_as_text(moment):
    stored = time_text(moment)
    assert len(stored) == 27 and stored.endswith("Z")
    assert datetime.fromisoformat(stored) == moment.astimezone(UTC)
    assert stored < time_text(moment.astimezone(UTC) + timedelta(microseconds=1))


def test_finishing_sets_state_path_latency_and_error_and_keeps_what_it_is_not_told(engine, record_of):
    record(engine, record_of(1), record_of(2))
    with engine.begin() as connection:
        images.finish(
            connection,
            [
                Finished(f"{1:026d}", "placed", "normal/lid/1.png", NOON, 180.5),
                Finished(f"{2:026d}", "conflict", "processing/2.png", NOON, None, "conflict", "two files differ"),
            ],
        )
        images.finish(connection, [Finished(f"{1:026d}", "placed", "normal/lid/1.png", NOON, None)])
    two, one = search(engine)
    assert (one["state"], one["path"], one["latency_ms"]) == ("placed", "normal/lid/1.png", 180.5)
    assert (two["state"], two["error_code"], two["error"], two["latency_ms"]) == (
        "conflict",
        "conflict",
        "two files differ",
        None,
    )


def test_finishing_a_image_without_a_row_is_refused_and_names_it(engine):
    with pytest.raises(TamisError, match="found none for GHOST"), engine.begin() as connection:
        images.finish(connection, [Finished("GHOST", "placed", "normal/x", NOON, None)])


def test_find_leaves_unknown_ids_out_also_of_more_than_fit_one_statement(engine, record_of):
    record(engine, record_of(1))
    with engine.connect() as connection:
        found = images.find(connection, [f"{n:026d}" for n in range(40_000)])
    assert list(found) == [f"{1:026d}"]
    assert found[f"{1:026d}"].destination == "normal/lid/2026-01-31/1.png"


def test_unfinished_are_the_recorded_ones_oldest_first(engine, record_of):
    record(engine, record_of(3), record_of(1), record_of(2, state="quarantined"))
    with engine.connect() as connection:
        assert [one.id[-1] for one in images.unfinished(connection)] == ["1", "3"]


def test_search_filters_by_time_product_verdict_and_state_and_count_agrees(engine, record_of):
    record(
        engine,
        record_of(1),
        record_of(2, product="cap"),
        record_of(3, verdict="anomaly", score=0.9),
        record_of(4, state="quarantined", verdict=None),
    )
    for filters, expected in [
        ({}, "4321"),
        ({"since": NOON + timedelta(minutes=2)}, "432"),
        ({"until": NOON + timedelta(minutes=2)}, "1"),
        ({"product": "cap"}, "2"),
        ({"verdict": "anomaly", "product": "lid"}, "3"),
        ({"state": "quarantined"}, "4"),
        ({"product": "'; DROP TABLE images --"}, ""),
    ]:
        assert "".join(row["id"][-1] for row in search(engine, **filters)) == expected
        with engine.connect() as connection:
            assert images.count(connection, **filters) == len(expected)


def test_search_is_newest_first_and_pages_join_without_gap_or_repeat(engine, record_of):
    record(engine, *(record_of(n, received_at=NOON) for n in range(25)))
    seen, before = [], None
    while page := search(engine, limit=7, before=before):
        seen += [row["id"] for row in page]
        before = (page[-1]["received_at"], page[-1]["id"])
    assert seen == [f"{n:026d}" for n in reversed(range(25))]


def test_no_limit_returns_all_rows(engine, record_of):
    record(engine, *(record_of(n) for n in range(150)))
    assert len(search(engine)) == 100
    assert len(search(engine, limit=None)) == 150


def test_states_counts_since_a_time(engine, record_of):
    record(engine, record_of(1, state="quarantined"), record_of(2), record_of(3))
    with engine.connect() as connection:
        assert statistics.per_state(connection, NOON) == {"quarantined": 1, "scored": 2}
        assert statistics.per_state(connection, NOON + timedelta(minutes=3)) == {"scored": 1}


def test_the_energy_of_a_batch_is_shared_among_its_images_and_unknown_stays_null(engine, record_of):
    sample = energy.EnergySample("scoring", NOON, 1.0, 2, None, None, None, 0.5, None, "estimated", None)
    with engine.begin() as connection:
        images.record(connection, [record_of(1), record_of(2)], energy.add(connection, sample))
        unknown = energy.EnergySample("scoring", NOON, 1.0, 1, None, None, None, None, None, "estimated", None)
        images.record(connection, [record_of(3)], energy.add(connection, unknown))
        nobody = energy.EnergySample("scoring", NOON, 1.0, 0, None, None, None, 0.5, None, "estimated", None)
        images.record(connection, [record_of(4)], energy.add(connection, nobody))
    assert [row["energy_wh"] for row in search(engine)] == [None, None, 0.25, 0.25]


def review(connection, image, label, by, at):
    connection.execute(
        text("INSERT INTO reviews (image_id, label, labelled_by, labelled_at, source) VALUES (:i, :l, :b, :a, 'page')"),
        {"i": image, "l": label, "b": by, "a": at},
    )


def test_the_latest_review_is_the_label_whatever_the_clock_said(engine, record_of):
    record(engine, record_of(1), record_of(2))
    with engine.begin() as connection:
        review(connection, f"{1:026d}", "anomaly", "ada", "2026-02-02T00:00:00.000000Z")
        review(connection, f"{1:026d}", "normal", "bob", "2026-02-01T00:00:00.000000Z")
    two, one = search(engine)
    assert (one["label"], one["labelled_by"], one["labelled_at"]) == ("normal", "bob", "2026-02-01T00:00:00.000000Z")
    assert two["label"] is None


def test_a_review_without_label_takes_the_label_back(engine, record_of):
    record(engine, record_of(1))
    with engine.begin() as connection:
        review(connection, f"{1:026d}", "anomaly", "ada", "2026-02-02T00:00:00.000000Z")
        review(connection, f"{1:026d}", None, "ada", "2026-02-03T00:00:00.000000Z")
    assert search(engine)[0]["label"] is None


@pytest.mark.parametrize("change", ["UPDATE reviews SET label = 'normal'", "DELETE FROM reviews"])
def test_reviews_are_only_ever_added(engine, record_of, change):
    record(engine, record_of(1))
    with engine.begin() as connection:
        review(connection, f"{1:026d}", "anomaly", "ada", "2026-02-02T00:00:00.000000Z")
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(change))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.text(min_size=1))
def test_names_of_any_text_are_stored_inert(engine, record_of, name):
    with engine.connect() as connection:
        number = images.count(connection)
    record(engine, record_of(number, file_name=name, product=name))
    assert search(engine, product=name)[0]["file_name"] == name
