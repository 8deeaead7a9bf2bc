"""A challenger beside the champion, through the real pipeline: it scores its share and changes nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from models.calibration.thresholds import AtFalseAlarmRate
from models.detector import Detector, Scored
from models.registry import ModelVersion
from models.runtime.openvino_detector import OpenVinoDetector
from service.scoring.active_versions import SHADOW_IMAGES_MIN, ActiveVersions, challengers_in_shadow
from service.scoring.decide import ThresholdDecider
from service.scoring.scorers import ScorerCache
from service.scoring.shadow import Shadows, in_share
from service.storage import shadow
from service.storage.database.open import open_database
from service.storage.tables import time_text
from service.storage.versions import VersionRow, champions
from tests.service.inspection.test_pipeline import LIMITS, PATIENCE_S, House
from tests.support.brightness_version import CREATED_AT, install

IN_HOURS = CREATED_AT + timedelta(hours=1)


class Wrong(OpenVinoDetector):
    """Says the opposite of what the graph says: 255 less the brightest cell."""

    def score(self, images: np.ndarray) -> Scored:
        scored = super().score(images)
        return Scored(np.float32(255) - scored.scores, scored.maps)


class Stage:
    """A house with a champion `v1` and challengers, whose detectors `load` makes."""

    def __init__(
        self,
        root: Path,
        engine: Engine,
        *,
        load: Callable[[ModelVersion], Detector] = OpenVinoDetector,
        share: float = 1.0,
        loaded_max: int = 4,
        limits: object = LIMITS,
    ) -> None:
        self.engine, self.now = engine, IN_HOURS
        self.scorers = ScorerCache(root, self._champions, self._decider_of, OpenVinoDetector, loaded_max)
        self.shadows = Shadows(root, self.scorers, self._challengers, load, share=share, loaded_max=loaded_max)
        self.house = House(root, engine, self.scorers, limits, shadows=self.shadows)  # type: ignore[arg-type]
        self.scorers.refresh()

    def loaded(self) -> None:
        """Load the champion, and wait for what is loaded beside it."""
        self.scorers.get("default")
        until = time.monotonic() + PATIENCE_S
        self.shadows.refresh(champions_changed=False)
        while self.shadows._loading and time.monotonic() < until:
            for loading in list(self.shadows._loading.values()):
                loading.exception(PATIENCE_S)
            self.shadows.refresh(champions_changed=False)

    def scores(self) -> dict[str, tuple[object, ...]]:
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT i.file_name, s.product, s.version, s.score, s.threshold, s.verdict, s.champion_verdict"
                " FROM shadow_scores s JOIN images i ON i.id = s.image_id"
            )
            return {row[0]: tuple(row)[1:] for row in rows}

    def close(self) -> None:
        self.house.pipeline.close()
        self.shadows.close()

    def _champions(self) -> ActiveVersions:
        with self.engine.connect() as connection:
            return ActiveVersions({product: [row] for product, row in champions(connection).items()})

    def _challengers(self) -> dict[str, VersionRow]:
        with self.engine.connect() as connection:
            return challengers_in_shadow(connection, 24.0, self.now)

    def _decider_of(self, _product: str, version: ModelVersion, _rate: float | None) -> ThresholdDecider:
        return ThresholdDecider(version.calibration_scores, AtFalseAlarmRate(0.01))


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


@pytest.fixture
def stage(root: Path, engine: Engine) -> Iterator[Callable[..., Stage]]:
    stages = []

    def make(**options: object) -> Stage:
        install(root)
        install(root, version="v2", state="challenger")
        stages.append(Stage(root, engine, **options))  # type: ignore[arg-type]
        return stages[-1]

    yield make
    for one in stages:
        one.close()


def test_challenger_scores_beside_the_champion_and_the_verdict_is_the_champions(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage(load=Wrong)
    one.loaded()
    drop("dark.png", brightness=20)
    drop("bright.png", brightness=200)
    one.house.settle_and_run()
    rows = {row["file_name"]: row for row in one.house.rows()}
    assert {name: (row["verdict"], row["model_version"]) for name, row in rows.items()} == {
        "dark.png": ("normal", "v1"),
        "bright.png": ("anomaly", "v1"),
    }
    assert one.scores() == {
        "dark.png": ("default", "v2", 235.0, 100.0, "anomaly", "normal"),
        "bright.png": ("default", "v2", 55.0, 100.0, "normal", "anomaly"),
    }
    with one.engine.connect() as connection:
        seen = shadow.summary(connection, "default", "v2")
    assert (seen.images, seen.disagreements, seen.champion_rate, seen.challenger_rate) == (2, 2, 0.5, 0.5)


def test_share_is_of_the_ids_and_always_the_same() -> None:
    ids = [f"01ARZ3NDEKTSV4RRFFQ69G{number:04d}" for number in range(4000)]
    chosen = [id for id in ids if in_share(id, 0.25)]
    assert 900 < len(chosen) < 1100
    assert chosen == [id for id in ids if in_share(id, 0.25)]
    assert set(chosen) <= {id for id in ids if in_share(id, 0.5)} and all(in_share(id, 1.0) for id in ids)


def test_only_the_share_is_scored_twice(stage: Callable[..., Stage], drop: Callable[..., Path]) -> None:
    one = stage(share=0.5)
    one.loaded()
    for number in range(8):
        drop(f"{number}.png", seed=number)
    one.house.settle_and_run()
    expected = {row["file_name"] for row in one.house.rows() if in_share(row["id"], 0.5)}
    assert len(one.house.rows()) == 8 and one.scores().keys() == expected


@pytest.mark.parametrize("what", ["raises", "nan"])
def test_challenger_that_fails_is_dropped_with_a_word_and_harms_no_image(
    what: str, stage: Callable[..., Stage], drop: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(OpenVinoDetector):
        def score(self, images: np.ndarray) -> Scored:
            if what == "raises":
                raise RuntimeError("the graph broke")
            return Scored(np.full(len(images), np.nan, np.float32), np.zeros((len(images), 4, 6), np.float32))

    one = stage(load=Failing)
    one.loaded()
    with caplog.at_level(logging.ERROR):
        for round_ in range(3):
            for number in range(4):
                drop(f"{round_}-{number}.png", seed=10 * round_ + number)
            one.house.settle_and_run()
            one.shadows.refresh(champions_changed=False)
    assert [row["state"] for row in one.house.rows()] == ["placed"] * 12 and one.scores() == {}
    assert [record.message for record in caplog.records] == ["challenger dropped from the shadow until the next start"]


def test_challenger_that_cannot_be_loaded_is_dropped_with_a_word(
    stage: Callable[..., Stage], drop: Callable[..., Path], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = stage()
    (root / "models/default/v2/model.bin").write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR):
        one.loaded()
        drop("a.png")
        one.house.settle_and_run()
        one.loaded()
    assert [row["state"] for row in one.house.rows()] == ["placed"] and one.scores() == {}
    assert len(caplog.records) == 1 and "model.bin" in str(vars(caplog.records[0]))


def test_challenger_of_another_size_gets_its_own_pixels(stage: Callable[..., Stage], drop: Callable[..., Path]) -> None:
    sizes: list[tuple[int, ...]] = []

    class Small(OpenVinoDetector):
        def __init__(self, version: ModelVersion) -> None:
            super().__init__(version)
            self.input_size = (8, 12)

        def score(self, images: np.ndarray) -> Scored:
            sizes.append(images.shape[1:])
            return Scored(np.full(len(images), 5.0, np.float32), np.zeros((len(images), 4, 6), np.float32))

    one = stage(load=Small)
    one.loaded()
    drop("a.png", brightness=20)
    one.house.settle_and_run()
    assert sizes == [(8, 12, 3)] and one.scores()["a.png"][2:] == (5.0, 100.0, "normal", "normal")


def test_challenger_rests_while_more_files_wait_than_there_is_room_for(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage(limits=replace(LIMITS, in_flight_max=4))
    one.loaded()
    for number in range(40):
        drop(f"{number}.png", seed=number)
    one.house.settle_and_run()
    assert len(one.house.rows()) == 40
    # Only the last ones, behind which nothing waits, are scored twice.
    assert 1 <= len(one.scores()) <= 8


def test_image_that_ended_the_service_once_is_not_given_to_the_challenger(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage()
    one.loaded()
    drop("a.png")
    claim = one.house.claims.claim("a.png", now=0.0)
    assert claim is not None
    one.house.pipeline.retry([claim])
    one.house.run()
    assert [row["state"] for row in one.house.rows()] == ["placed"] and one.scores() == {}


def test_no_more_models_are_in_memory_than_allowed(
    stage: Callable[..., Stage], drop: Callable[..., Path], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = stage(loaded_max=1)
    with caplog.at_level(logging.WARNING):
        one.loaded()
        one.loaded()
        drop("a.png")
        one.house.settle_and_run()
    assert one.shadows._loaded == {} and one.scores() == {} and one.scorers.loaded == 1
    assert [record.message for record in caplog.records] == ["no room for a challenger in the shadow"]


def test_challenger_makes_room_for_another_products_champion(stage: Callable[..., Stage], root: Path) -> None:
    one = stage(loaded_max=2)
    one.loaded()
    assert len(one.shadows._loaded) == 1
    other = install(root, product="gears", graph_offset=1.0)
    assert other.product == "gears"
    one.scorers.refresh()
    one.scorers.get("gears")
    assert (len(one.shadows._loaded), one.scorers.loaded) == (0, 2)


def test_a_challengers_time_ends_and_its_model_leaves_the_memory(
    stage: Callable[..., Stage], drop: Callable[..., Path], engine: Engine
) -> None:
    one = stage()
    one.loaded()
    for number in range(SHADOW_IMAGES_MIN):
        drop(f"{number}.png", seed=number)
        one.house.settle_and_run()
    one.now = CREATED_AT + timedelta(hours=23.9)
    one.shadows.refresh(champions_changed=False)
    assert one.shadows._loaded
    one.now = CREATED_AT + timedelta(hours=24.1)
    one.shadows.refresh(champions_changed=False)
    assert not one.shadows._loaded and len(one.scores()) == SHADOW_IMAGES_MIN


def test_a_challenger_that_saw_too_few_images_goes_on_beyond_its_hours(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage()
    one.now = CREATED_AT + timedelta(days=30)
    one.loaded()
    drop("a.png")
    one.house.settle_and_run()
    assert len(one.scores()) == 1


def test_images_of_a_product_without_a_model_are_seen_by_the_challenger_of_default(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage(load=Wrong)
    one.loaded()
    drop("screws/a.png", brightness=20)
    one.house.settle_and_run()
    assert one.scores()["a.png"][:2] == ("default", "v2")
    with one.engine.connect() as connection:
        [row] = shadow.disagreements(connection, "default", "v2", 10)
    assert (row["product"], row["shadow_score"], row["score"]) == ("screws", 235.0, 20.0)


def test_loading_a_challenger_does_not_hold_up_the_images(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    release = threading.Event()

    def slow(version: ModelVersion) -> Detector:
        assert release.wait(PATIENCE_S)
        return OpenVinoDetector(version)

    one = stage(load=slow)
    one.scorers.get("default")
    one.shadows.refresh(champions_changed=False)
    drop("a.png")
    one.house.settle_and_run()
    assert [row["state"] for row in one.house.rows()] == ["placed"] and one.scores() == {}
    release.set()
    one.loaded()
    drop("b.png", seed=1)
    one.house.settle_and_run()
    assert one.scores().keys() == {"b.png"}


def test_disagreements_are_paged_unlabelled_first_and_newest_first(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage(load=Wrong)
    one.loaded()
    for number in range(6):
        drop(f"{number}.png", brightness=20, seed=number)
        one.house.settle_and_run()
    drop("agreed.png", brightness=128)
    one.house.settle_and_run()
    ids = {row["file_name"]: row["id"] for row in one.house.rows()}
    with one.engine.begin() as connection:
        for name, label in (("4.png", "normal"), ("1.png", "anomaly"), ("2.png", "normal"), ("2.png", None)):
            connection.exec_driver_sql(
                "INSERT INTO reviews (image_id, label, labelled_at, source) VALUES (?, ?, ?, 'command')",
                (ids[name], label, time_text(datetime.now(UTC))),
            )
    with one.engine.connect() as connection:
        pages, before = [], None
        while page := shadow.disagreements(connection, "default", "v2", 2, before):
            pages.append([row["file_name"] for row in page])
            before = (page[-1]["label"] is not None, page[-1]["id"])
        assert [row["verdict"] for row in shadow.disagreements(connection, "default", "v2", 9)] == ["normal"] * 6
    assert pages == [["5.png", "3.png"], ["2.png", "0.png"], ["4.png", "1.png"]]


def test_what_is_recorded_again_keeps_its_first_shadow_score(
    stage: Callable[..., Stage], drop: Callable[..., Path]
) -> None:
    one = stage()
    one.loaded()
    drop("a.png", brightness=20)
    one.house.settle_and_run()
    [row] = one.house.rows()
    again = shadow.ShadowRecord(row["id"], "default", "v2", 250.0, 100.0, "anomaly", "normal")
    with one.engine.begin() as connection:
        shadow.record(connection, [again])
    assert one.scores()["a.png"][2] == 20.0
