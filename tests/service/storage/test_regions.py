"""Regions and the review queue as they are stored: with their image, once, in their order."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from models.regions import Region
from service.storage import images, regions

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ONE = Region(10, 20, 30, 40, 500, 0.01, 3.5, 1.75)
TWO = Region(0, 0, 5, 5, 20, 0.0005, 1.25, 1.125)


def write(engine, record, found):
    """As the daemon does: both in one transaction, which may come a second time."""
    with engine.begin() as connection:
        new = regions.without_row(connection, {record.id: found})
        images.record(connection, [record], None)
        regions.record(connection, new)


def test_regions_come_back_as_found_numbered_from_one_and_a_image_without_any_has_none(engine, record_of):
    write(engine, record_of(1), [ONE, TWO])
    write(engine, record_of(2), [])
    with engine.connect() as connection:
        found = regions.of_images(connection, [f"{n:026d}" for n in (1, 2, 3)])
        rows = connection.execute(text("SELECT image_id, number, peak FROM regions ORDER BY number")).all()
    assert [Region(**{k: v for k, v in row.items() if k != "number"}) for row in found[f"{1:026d}"]] == [ONE, TWO]
    assert found[f"{2:026d}"] == found[f"{3:026d}"] == []
    assert [tuple(row) for row in rows] == [(f"{1:026d}", 1, 3.5), (f"{1:026d}", 2, 1.25)]


def test_a_image_that_is_on_record_keeps_the_regions_it_has(engine, record_of):
    write(engine, record_of(1), [ONE])
    write(engine, record_of(1, score=0.9), [TWO, ONE])
    write(engine, record_of(2), [])
    write(engine, record_of(2), [TWO])
    with engine.connect() as connection:
        found = regions.of_images(connection, [f"{1:026d}", f"{2:026d}"])
    assert [row["peak"] for row in found[f"{1:026d}"]] == [ONE.peak] and found[f"{2:026d}"] == []


def test_the_same_region_again_is_no_error(engine, record_of):
    write(engine, record_of(1), [ONE])
    with engine.begin() as connection:
        regions.record(connection, {f"{1:026d}": [ONE]})


@pytest.mark.parametrize(
    "wrong",
    [
        Region(-1, 0, 1, 1, 1, 0.5, 2.0, 1.5),
        Region(0, 0, 0, 1, 1, 0.5, 2.0, 1.5),
        Region(0, 0, 1, 1, 1, 1.5, 2.0, 1.5),
        Region(0, 0, 1, 1, 1, 0.5, math.inf, 1.5),
    ],
    ids=str,
)
def test_a_region_that_cannot_be_is_refused_and_its_image_with_it(engine, record_of, wrong):
    with pytest.raises(IntegrityError, match=r"(?i)check"):
        write(engine, record_of(1), [wrong])
    with engine.connect() as connection:
        assert images.count(connection) == 0


def test_a_region_without_a_image_is_refused(engine):
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), engine.begin() as connection:
        regions.record(connection, {"nobody": [ONE]})


def queue(engine):
    with engine.connect() as connection:
        return [row.file_name for row in connection.execute(text("SELECT * FROM review_queue"))]


def test_the_queue_is_the_most_uncertain_first_without_the_labelled_the_lost_and_those_without_a_band(
    engine, record_of
):
    with engine.begin() as connection:
        images.record(
            connection,
            [
                record_of(1, uncertain=False, uncertainty=0.2),
                record_of(2, uncertain=True, uncertainty=0.9),
                record_of(3, uncertain=True, uncertainty=0.6),
                record_of(4, uncertain=True, uncertainty=0.6, state="placed"),
                record_of(5, uncertain=True, uncertainty=1.0),
                record_of(6, uncertain=True, uncertainty=0.8, state="missing"),
                record_of(7, uncertain=False),
                record_of(8, verdict=None, score=None, threshold=None, state="quarantined"),
            ],
            None,
        )
        connection.execute(
            text("INSERT INTO reviews (image_id, label, labelled_at, source) VALUES (:id, 'normal', :at, 'page')"),
            {"id": f"{5:026d}", "at": "2026-02-01T00:00:00.000000Z"},
        )
    assert queue(engine) == ["2.png", "4.png", "3.png", "1.png"]
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO reviews (image_id, label, labelled_at, source) VALUES (:id, NULL, :at, 'page')"),
            {"id": f"{5:026d}", "at": "2026-02-02T00:00:00.000000Z"},
        )
    assert queue(engine)[0] == "5.png"


def test_search_and_count_of_the_uncertain_agree_and_pages_join(engine, record_of):
    with engine.begin() as connection:
        records = [record_of(n, uncertain=n % 3 == 0, received_at=NOON, product="ab"[n % 2]) for n in range(30)]
        images.record(connection, records, None)
    seen, before = [], None
    with engine.connect() as connection:
        while page := images.search(connection, uncertain=True, limit=4, before=before):
            seen += [row["id"] for row in page]
            before = (page[-1]["received_at"], page[-1]["id"])
        assert seen == [f"{n:026d}" for n in range(27, -1, -3)]
        assert images.count(connection, uncertain=True) == 10
        assert images.count(connection, uncertain=True, product="a") == 5
        assert len(images.search(connection, uncertain=True, product="a", since=NOON)) == 5
