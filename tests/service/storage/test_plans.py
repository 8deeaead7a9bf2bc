"""SQLite's plans for the searches: an index for each, no scan of all images, no sorting."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import event

from service.storage import images, regions, retention, shadow
from tests.service.storage.conftest import on_sqlite

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
@on_sqlite
def test_a_search_walks_one_index_and_neither_scans_nor_sorts(engine, filters, index):
    found = plan(engine, lambda connection: images.search(connection, **filters))
    assert index in found
    assert "TEMP B-TREE" not in found
    scans = [line for line in found.splitlines() if line.startswith("SCAN")]
    # Without a filter the newest are read off the end of the index; the limit ends that.
    assert scans == ([f"SCAN i USING INDEX {index}"] if not filters else [])
    assert "SEARCH latest USING COVERING INDEX reviews_by_image_id" in found


@pytest.mark.parametrize(
    "filters",
    [{}, {"since": SINCE}, {"product": "lid"}, {"before": ("2026-01-30T00:00:00.000000Z", "x"), "verdict": "normal"}],
    ids=str,
)
@on_sqlite
def test_a_search_of_the_uncertain_walks_the_index_of_those_alone_and_does_not_sort(engine, filters):
    found = plan(engine, lambda connection: images.search(connection, uncertain=True, **filters))
    first = found.splitlines()[0].replace("COVERING INDEX", "INDEX")
    assert "marked USING INDEX images_uncertain_by_received_at" in first
    assert "SEARCH i USING INDEX sqlite_autoindex_images_1 (id=?)" in found
    assert "TEMP B-TREE" not in found


@pytest.mark.parametrize(
    "filters",
    [
        "",
        "WHERE product = 'lid'",
        "WHERE verdict = 'anomaly' AND received_at > '2026-01-30'",
        "WHERE uncertainty > 0.5",
        "ORDER BY uncertainty DESC, received_at DESC",
    ],
)
@on_sqlite
def test_the_review_queue_walks_one_index_in_its_order_and_does_not_sort(engine, filters):
    def read(connection):
        connection.exec_driver_sql(f"SELECT * FROM review_queue {filters} LIMIT 50").all()

    found = plan(engine, read).splitlines()
    assert found[0].startswith(("SCAN i USING INDEX images_by_unc", "SEARCH i USING INDEX images_by_uncertainty (unc"))
    assert not [line for line in found if "TEMP B-TREE" in line]
    assert "SEARCH r USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN" in found


@on_sqlite
def test_regions_of_a_image_are_found_by_its_id(engine):
    found = plan(engine, lambda connection: regions.of_images(connection, ["a", "b"]))
    assert found == "SEARCH region_rows USING PRIMARY KEY (image_id=?)"


@pytest.mark.parametrize("filters", [{}, {"since": SINCE}, {"product": "lid", "verdict": "anomaly"}], ids=str)
@on_sqlite
def test_a_count_reads_an_index_alone(engine, filters):
    found = plan(engine, lambda connection: images.count(connection, **filters))
    assert "COVERING INDEX" in found and "\n" not in found


@on_sqlite
def test_duplicates_are_looked_up_by_hash(engine, record_of):
    found = plan(engine, lambda connection: images._earliest(connection, ["a" * 64, "b" * 64]))
    assert found == "SEARCH images USING INDEX images_by_sha256 (sha256=?)"


@on_sqlite
def test_the_unfinished_are_found_by_state(engine):
    found = plan(engine, images.unfinished)
    assert found == "SEARCH images USING INDEX images_by_state_received_at_id (state=?)"


@on_sqlite
def test_what_retention_may_remove_is_read_oldest_first_off_the_index_of_what_is_there(engine):
    for after in (None, (SINCE, "x")):
        found = plan(engine, lambda connection, after=after: retention.removable(connection, "normal", 25, after))
        assert "SEARCH images USING INDEX images_placed (verdict=?" in found
        assert "TEMP B-TREE" not in found
        assert "reviews_by_image_id" in found and "training_pictures_by_image_id" in found
        assert "training_pictures_once (product=? AND sha256=?)" in found


@on_sqlite
def test_the_size_of_what_is_there_is_summed_up_in_an_index_alone(engine):
    found = plan(engine, lambda connection: retention.total_bytes(connection, "normal"))
    assert found == "SEARCH images USING COVERING INDEX images_placed (verdict=?)"


@on_sqlite
def test_what_a_crash_left_on_its_way_out_is_found_by_its_own_index(engine):
    found = plan(engine, lambda connection: retention.marked(connection, 25))
    assert "USING INDEX images_being_removed" in found and "TEMP B-TREE" not in found


@on_sqlite
def test_shadow_figures_are_counted_in_an_index_alone(engine):
    found = plan(engine, lambda connection: shadow.summary(connection, "lid", "v2"))
    assert found == "SEARCH shadow_scores USING COVERING INDEX shadow_scores_by_verdicts (product=? AND version=?)"


@pytest.mark.parametrize("before", [None, (False, "x"), (True, "x")])
@on_sqlite
def test_disagreements_walk_the_index_of_those_alone_and_do_not_sort_them(engine, before):
    found = plan(engine, lambda connection: shadow.disagreements(connection, "lid", "v2", 50, before))
    assert "USING INDEX shadow_scores_disagreeing (product=? AND version=?" in found
    assert "SCAN i" not in found
