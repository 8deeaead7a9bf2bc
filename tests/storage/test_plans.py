"""SQLite's plans for the searches: an index for each, no scan of all pictures, no sorting."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import event

from service.storage import images

SINCE = datetime(2026, 1, 30, tzinfo=UTC)


def plan(engine, run) -> str:
    """Return the plan of the last statement that `run` executes."""
    seen = []

    def remember(connection, cursor, statement, parameters, *rest):
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", remember)
    with engine.connect() as connection:
        run(connection)
        event.remove(engine, "before_cursor_execute", remember)
        statement, parameters = seen[-1]
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(row[3] for row in rows)


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "images_by_received_at_id"),
        ({"since": SINCE}, "images_by_received_at_id"),
        ({"since": SINCE, "limit": None}, "images_by_received_at_id"),
        ({"until": SINCE}, "images_by_received_at_id"),
        ({"product": "lid"}, "images_by_product_received_at_id"),
        ({"verdict": "anomaly"}, "images_by_verdict_received_at_id"),
        ({"product": "lid", "verdict": "anomaly"}, "images_by_product_verdict_received_at_id"),
        ({"product": "lid", "verdict": "anomaly", "since": SINCE}, "images_by_product_verdict_received_at_id"),
        ({"state": "quarantined"}, "images_by_state_received_at_id"),
        ({"state": "quarantined", "product": "lid"}, "images_by_"),
        ({"before": ("2026-01-30T00:00:00.000000Z", "x"), "product": "lid"}, "images_by_product_received_at_id"),
    ],
    ids=str,
)
def test_a_search_walks_one_index_and_neither_scans_nor_sorts(engine, filters, index):
    found = plan(engine, lambda connection: images.search(connection, **filters))
    assert index in found
    assert "TEMP B-TREE" not in found
    scans = [line for line in found.splitlines() if line.startswith("SCAN")]
    # Without a filter the newest are read off the end of the index; the limit ends that.
    assert scans == ([f"SCAN i USING INDEX {index}"] if not filters else [])
    assert "SEARCH latest USING COVERING INDEX reviews_by_image_id" in found


@pytest.mark.parametrize("filters", [{}, {"since": SINCE}, {"product": "lid", "verdict": "anomaly"}], ids=str)
def test_a_count_reads_an_index_alone(engine, filters):
    found = plan(engine, lambda connection: images.count(connection, **filters))
    assert "COVERING INDEX" in found and "\n" not in found


def test_duplicates_are_looked_up_by_hash(engine, record_of):
    found = plan(engine, lambda connection: images._earliest(connection, ["a" * 64, "b" * 64]))
    assert found == "SEARCH images USING INDEX images_by_sha256 (sha256=?)"


def test_the_unfinished_are_found_by_state(engine):
    found = plan(engine, images.unfinished)
    assert found == "SEARCH images USING INDEX images_by_state_received_at_id (state=?)"
