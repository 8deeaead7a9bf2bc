"""Drift of a product: what is said of it, when, and why; from made scores, from a real root, from a real daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, text

from models.calibration.thresholds import threshold_at
from models.drift.drift import IMAGES_MIN
from service.commands.status import report
from service.drift.assess import DRIFTING, STEADY, DriftSubject, assess
from service.drift.monitor import DriftWatch
from service.settings import IGNORED_NAMES, load
from service.storage import drift, versions
from service.storage.database.open import open_database
from service.storage.drift import DriftRow, ScoredImage
from service.storage.images import ImageRecord, record
from service.storage.tables import reviews_table
from tests.service.daemon.test_daemon import SETTINGS
from tests.support.brightness_version import image as save_image
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, finished, wait_until

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
WINDOW = 60
LOOK = (120.0, 40.0, 9.0)


def subject(generator: np.random.Generator, images: int = 199) -> DriftSubject:
    reference = generator.normal(size=images)
    return DriftSubject("lid", "v1", WINDOW, threshold_at(reference, 0.01), reference, True, np.empty((0, 3)))


def seen(
    number: int, score: float, image_statistics: Sequence[float] | None = LOOK, label: str | None = None
) -> ScoredImage:
    at = NOON + timedelta(seconds=number)
    brightness, contrast, sharpness = image_statistics or (None, None, None)
    return ScoredImage(f"{number:026d}", at, "v1", score, brightness, contrast, sharpness, label)


def looks(generator: np.random.Generator, light: float = 1.0) -> tuple[float, ...]:
    return tuple(generator.normal(np.asarray(LOOK) * light, [3, 2, 0.5]).tolist())


def watch(of: DriftSubject, images: Sequence[ScoredImage], every: int = 5) -> list[tuple[int, DriftRow]]:
    """Return the rows that are written while `images` come in, each with the number of images that had come."""
    rows: list[tuple[int, DriftRow]] = []
    for end in range(every, len(images) + 1, every):
        recent = images[max(0, end - 2 * WINDOW) : end]
        row = assess(of, images[: min(end, WINDOW)], recent, rows[-1][1] if rows else None, NOON)
        if row is not None:
            rows.append((end, row))
    return rows


def test_steady_product_is_said_to_be_so_once() -> None:
    generator = np.random.default_rng(1)
    of = subject(generator)
    [(end, row)] = watch(of, [seen(n, score, looks(generator)) for n, score in enumerate(generator.normal(size=900))])
    assert end == IMAGES_MIN and (row.state, row.cause, row.first_image_id) == (STEADY, None, None)
    assert row.figures["images"] == IMAGES_MIN and row.figures["reference"] == "calibration"


@pytest.mark.parametrize(("light", "shift"), [(0.7, 4.0), (1.3, 4.0), (0.7, -2.5)])
def test_light_that_changes_all_images_is_the_cause_until_it_is_back(light: float, shift: float) -> None:
    generator = np.random.default_rng(2)
    of = subject(generator)
    changed = range(150, 350)
    images = [
        seen(n, generator.normal() + (shift if n in changed else 0), looks(generator, light if n in changed else 1))
        for n in range(600)
    ]
    rows = watch(of, images)
    assert [(row.state, row.cause) for _, row in rows if row.cause != "unknown"] == [
        (STEADY, None),
        (DRIFTING, "light"),
        (STEADY, None),
    ]
    drifting = [row for _, row in rows if row.state == DRIFTING]
    [first] = {row.first_image_id for row in drifting}
    assert abs(int(first or 0) - 150) <= 2
    assert drifting[-1].figures["look"]["brightness"]["moved"] is True
    assert rows[1][0] <= 190 and 350 < rows[-1][0] <= 350 + 2 * WINDOW


def test_defects_among_steady_parts_are_the_cause() -> None:
    generator = np.random.default_rng(3)
    of = subject(generator)
    images = [
        seen(n, 9.0 if n >= 150 and generator.random() < 0.35 else generator.normal(), looks(generator))
        for n in range(260)
    ]
    rows = [row for _, row in watch(of, images)]
    assert (rows[0].state, rows[-1].state, rows[-1].cause) == (STEADY, DRIFTING, "defects")
    assert 140 <= int(rows[-1].first_image_id or 0) <= 170
    assert not any(one["moved"] for one in rows[-1].figures["look"].values())


def test_confirmed_anomalies_are_defects_and_no_drift_of_the_normals() -> None:
    generator = np.random.default_rng(4)
    of = subject(generator)
    bad = {n for n in range(100, 160) if n % 3 == 0}
    images = [
        seen(n, 9.0 if n in bad else generator.normal(), None, "anomaly" if n in bad else None) for n in range(160)
    ]
    row = watch(of, images)[-1][1]
    assert (row.state, row.cause) == (DRIFTING, "defects")
    assert row.figures["confirmed_anomalies"] == sum(
        n in bad for n in range(100, 160) if f"{n:026d}" <= row.figures["last_image_id"]
    )
    # The look is not known, so that without what people said nothing could be told.
    unsaid = [replace(image, label=None) for image in images]
    assert watch(of, unsaid)[-1][1].cause == "unknown"
    assert int(row.first_image_id or 0) in range(90, 111)


def test_few_confirmed_anomalies_are_a_days_work_and_no_drift() -> None:
    generator = np.random.default_rng(5)
    of = subject(generator)
    images = [
        seen(n, 9.0 if n % 25 == 0 else generator.normal(), label="anomaly" if n % 25 == 0 else None)
        for n in range(300)
    ]
    assert [row.state for _, row in watch(of, images)] == [STEADY]


def test_alarms_that_people_found_to_be_good_parts_are_not_called_defects() -> None:
    generator = np.random.default_rng(6)
    of = subject(generator)
    images = []
    for n in range(260):
        high = n >= 150 and generator.random() < 0.35
        images.append(seen(n, 9.0 if high else generator.normal(), looks(generator), "normal" if high else None))
    assert {row.cause for _, row in watch(of, images) if row.state == DRIFTING} == {"unknown"}


def test_another_version_begins_anew() -> None:
    generator = np.random.default_rng(7)
    of = subject(generator)
    shifted = [seen(n, score) for n, score in enumerate(generator.normal(5, size=100))]
    old = assess(of, shifted[:WINDOW], shifted, None, NOON)
    assert old is not None and old.state == DRIFTING
    assert assess(of, shifted[:WINDOW], shifted, old, NOON) is None
    new = replace(of, version="v2", reference=np.random.default_rng(8).normal(5, size=199), threshold=8.0)
    few = shifted[: IMAGES_MIN - 1]
    assert assess(new, few, few, old, NOON) is None
    row = assess(new, shifted[:WINDOW], shifted, old, NOON)
    assert row is not None and (row.version, row.state) == ("v2", STEADY)


numbers = st.floats(-1e6, 1e6, width=32)
images_of_any_kind = st.lists(
    st.tuples(numbers, st.none() | st.tuples(numbers, numbers, numbers), st.sampled_from([None, "normal", "anomaly"])),
    min_size=0, max_size=120,
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(images_of_any_kind, st.none() | numbers, st.lists(numbers, min_size=IMAGES_MIN, max_size=60))
def test_whatever_comes_states_only_change_and_can_be_stored(
    raw: list[tuple[float, tuple[float, float, float] | None, str | None]],
    threshold: float | None,
    reference: list[float],
) -> None:
    of = DriftSubject("lid", "v1", WINDOW, threshold, np.asarray(reference), True, np.empty((0, 3)))
    images = [seen(n, score, image_statistics, label) for n, (score, image_statistics, label) in enumerate(raw)]
    rows = [row for _, row in watch(of, images, every=1)]
    for before, row in zip([None, *rows], rows, strict=False):
        json.dumps(row.figures, allow_nan=False)
        assert before is None or (before.state, before.cause) != (row.state, row.cause)
        assert (row.cause is None) == (row.first_image_id is None) == (row.state == STEADY)
        if before is not None and before.state == row.state == DRIFTING:
            assert row.first_image_id == before.first_image_id


# On a root


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    (root / "tamis.toml").write_text(f"drift_window = {WINDOW}\n")
    engine = open_database(root)
    yield engine
    engine.dispose()


def fill(
    engine: Engine, scores: Sequence[float], product: str = "default", version: str = "v1", begin: int = 0
) -> None:
    after = datetime.now(UTC) + timedelta(minutes=1)
    with engine.begin() as connection:
        record(
            connection,
            [
                ImageRecord(
                    id=f"{product}{begin + n:020d}", product=product, file_name=f"{n}.png", path=f"normal/{n}.png",
                    destination=f"normal/{n}.png", state="placed", verdict="normal", score=float(score),
                    threshold=100.0, p_value=0.5, model_version=version, sha256=None, width=1, height=1, mode="RGB",
                    bytes=1, received_at=after + timedelta(seconds=begin + n), decided_at=after, attempts=1,
                    error_code=None,
                    error=None, brightness=50.0, contrast=10.0, sharpness=5.0,
                )
                for n, score in enumerate(scores)
            ],
            None,
        )  # fmt: skip


def watcher(root: Path, engine: Engine) -> DriftWatch:
    return DriftWatch(root, load(root), engine, engine)


def steady(images: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).uniform(1, 100, images).tolist()


def test_change_is_written_once_however_many_daemons_look(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, steady(100) + [300.0] * 40)
    first, second = watcher(root, engine), watcher(root, engine)
    [row] = first.check(["default"])
    assert (row.state, row.first_image_id) == (DRIFTING, f"default{100:020d}")
    assert first.check(["default"]) == second.check(["default"]) == []
    with engine.connect() as connection:
        assert drift.latest(connection)["default"] == row
        assert connection.execute(text("SELECT count(*) FROM drift")).scalar_one() == 1


def test_labels_count_from_the_next_look_on(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, steady(200))
    watch_ = watcher(root, engine)
    assert [row.state for row in watch_.check(["default"])] == [STEADY]
    fill(engine, [300.0] * 30, begin=200)
    with engine.begin() as connection:
        for number in range(200, 230):
            connection.execute(
                insert(reviews_table).values(
                    image_id=f"default{number:020d}", label="anomaly", labelled_at=NOON, source="command"
                )
            )
    [row] = watch_.check(["default"])
    assert (row.cause, row.figures["confirmed_anomalies"]) == ("defects", 30)


def test_too_few_images_and_products_without_a_model_are_left_unsaid(root: Path, engine: Engine) -> None:
    fill(engine, steady(100), product="cap")
    assert watcher(root, engine).check(["cap", "nothing"]) == []
    install(root)
    fill(engine, steady(IMAGES_MIN - 1))
    assert watcher(root, engine).check(["default"]) == []


def test_product_that_anothers_model_judges_is_compared_with_its_own_first_images(root: Path, engine: Engine) -> None:
    install(root)
    watch_ = watcher(root, engine)
    # All far from the calibration of `default`, and that from the beginning: no drift, only another product.
    values = np.random.default_rng(1).normal(60, 2, 300)
    fill(engine, values[:WINDOW], product="cap")
    assert watch_.check(["cap"]) == []
    fill(engine, values[WINDOW:], product="cap", begin=WINDOW)
    [row] = watch_.check(["cap"])
    assert (row.state, row.figures["reference"], row.figures["reference_images"]) == (STEADY, "first images", WINDOW)
    fill(engine, values[:50] + 20, product="cap", begin=300)
    [row] = watch_.check(["cap"])
    assert row.state == DRIFTING and row.first_image_id == f"cap{300:020d}"
    with engine.connect() as connection:
        assert set(drift.latest(connection)) == {"cap"}


def test_new_champion_has_no_state_until_enough_of_its_images_came(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, [300.0] * 60)
    watch_ = watcher(root, engine)
    assert watch_.check(["default"])[0].state == DRIFTING
    install(root, version="v2", scores=range(201, 401), state="challenger")
    with engine.begin() as connection:
        versions.promote(connection, "default", "v2", None, datetime.now(UTC) + timedelta(hours=1))
        assert drift.latest(connection) == {}
    assert watch_.check(["default"]) == []
    fill(engine, (np.asarray(steady(80)) * 2 + 200).tolist(), version="v2", begin=4000)
    [row] = watch_.check(["default"])
    assert (row.version, row.state) == ("v2", STEADY)
    with engine.begin() as connection:
        versions.rollback(connection, "default", None)
        assert drift.latest(connection) == {}


def test_damaged_figures_of_a_champion_are_said_once_and_stop_nothing(
    root: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    install(root)
    install(root, product="gears")
    for product in ("default", "gears"):
        fill(engine, [300.0] * 40, product=product)
    (root / "models/default/v1/model.json").write_text("{}")
    watch_ = watcher(root, engine)
    assert [row.product for row in watch_.check(["default", "gears"])] == ["gears"]
    assert watch_.check(["default"]) == []
    assert caplog.text.count("drift is not watched") == 1


def test_locked_database_puts_the_look_off(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, [300.0] * 40)
    quick = open_database(root, migrate=False, busy_timeout_s=0.05)
    watch_ = DriftWatch(root, load(root), quick, quick)
    with engine.begin() as connection:
        connection.execute(text("UPDATE images SET attempts = 2"))
        assert watch_.check(["default"]) == []
    assert [row.state for row in watch_.check(["default"])] == [DRIFTING]
    quick.dispose()


# In the daemon

SPOT = 120
CALIBRATION = np.random.default_rng(9).normal(SPOT, 12, 199).clip(85, 159).round().tolist()


@pytest.fixture
def house(root: Path) -> Path:
    install(root, scores=CALIBRATION)
    (root / "tamis.toml").write_text(SETTINGS + "drift_window = 40\nanomaly_maps = false\n")
    return root


def drop_batch(root: Path, batch: int, spots: Sequence[float], background: int = 80) -> None:
    """Drop an image for each of `spots`, its score, on a background that is the rest of its look."""
    for number, spot in enumerate(spots):
        path = root / "incoming" / f"{batch}-{number}.png.tmp"
        save_image(path.with_suffix(""), background, round(spot))


def normal_spots(images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(SPOT, 12, images).clip(85, 159)


def status(root: Path) -> dict[str, dict[str, str | None]]:
    return report(root, IGNORED_NAMES, datetime.now(UTC))["drift"]


def said(root: Path, state: str, cause: str | None) -> Callable[[], bool]:
    return lambda: (
        (status(root).get("default") or {}).get("state") == state and status(root)["default"]["cause"] == cause
    )


def number_of_first(root: Path) -> int:
    """Return as which of all images the one came with which drift began, from 0; its file is where status says."""
    found = status(root)["default"]
    assert found["first_image_path"] is not None and (root / found["first_image_path"]).is_file()
    with open_database(root).connect() as connection:
        ids = connection.execute(text("SELECT id FROM images ORDER BY received_at, id")).scalars().all()
    return ids.index(found["first_image_id"])


def test_daemon_says_that_images_turned_darker_and_with_which(house: Path) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        drop_batch(house, 0, normal_spots(60, 1))
        wait_until(lambda: finished(house) == 60, "the first finished")
        wait_until(said(house, STEADY, None), "word that it is steady")
        drop_batch(house, 1, normal_spots(60, 2) * 0.6, background=48)
        wait_until(lambda: finished(house) == 120, "the darker ones finished")
        wait_until(said(house, DRIFTING, "light"), "word of the light")
        assert daemon.stop() == 0
        assert "drifting product=default cause=light" in daemon.log_text()
    found = status(house)["default"]
    assert found["began_at"] is not None and abs(number_of_first(house) - 60) <= 3
    with open_database(house).connect() as connection:
        rows = connection.execute(text("SELECT brightness, contrast, sharpness FROM images ORDER BY id")).all()
        assert all(value is not None for row in rows for value in row)
        assert np.mean([row.brightness for row in rows[:60]]) > np.mean([row.brightness for row in rows[60:]]) + 20


def test_daemon_says_that_there_are_many_defects(house: Path) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        drop_batch(house, 0, normal_spots(60, 3))
        wait_until(said(house, STEADY, None), "word that it is steady")
        wait_until(lambda: finished(house) == 60, "the first finished")
        for batch in (1, 2, 3):
            spots = normal_spots(40, 10 + batch)
            spots[::3] = 170  # a third, a little brighter than any normal: the look of most images stays
            drop_batch(house, batch, np.random.default_rng(batch).permutation(spots))
            wait_until(lambda batch=batch: finished(house) == 60 + 40 * batch, "the next finished")
        wait_until(said(house, DRIFTING, "defects"), "word of the defects")
        assert daemon.stop() == 0
    assert 50 <= number_of_first(house) <= 75


def test_steady_product_does_not_drift_in_the_daemon(house: Path) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        drop_batch(house, 0, normal_spots(200, 5))
        wait_until(lambda: finished(house) == 200, "all finished")
        wait_until(said(house, STEADY, None), "word that it is steady")
        assert daemon.stop() == 0
        assert "drifting" not in daemon.log_text()
