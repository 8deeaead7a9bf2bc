"""Which detectors are in memory: one for each graph, however many products are judged by it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from models import registry
from models.calibration.thresholds import AtFalseAlarmRate
from models.registry import ModelVersion
from models.runtime.openvino_detector import OpenVinoDetector
from service.errors import ConfigurationError
from service.scoring.active_versions import ActiveVersions
from service.scoring.decide import ThresholdDecider
from service.scoring.scorers import ScorerCache
from service.storage.versions import VersionRow
from tests.support import brightness_version

PATIENCE_S = 20.0


def row_of(version: ModelVersion) -> VersionRow:
    unknown = dict.fromkeys(("reason", "threshold", "image_auroc", "f1", "training_wh", "images"))
    return VersionRow(
        product=version.product,
        version=version.version,
        kind=version.kind,
        created_at=datetime.now(UTC),
        state="champion",
        false_alarm_rate=0.01,
        sha256=version.sha256,
        **unknown,
    )


def joint_version(root: Path, other: ModelVersion, product: str, scores: list[float]) -> ModelVersion:
    """Publish a version with the files of `other` and a calibration of its own."""
    build = root / "models" / f".tmp-{product}"
    registry.share_files(other.folder, build)
    manifest = {**other.manifest.as_plain(), "product": product}
    manifest["calibration"] = {**manifest["calibration"], "scores": scores}
    (build / registry.MANIFEST).unlink()
    (build / registry.MANIFEST).write_text(json.dumps(manifest))
    return registry.publish(build, root / "models")


def decider_of(product: str, version: ModelVersion, rate: float | None) -> ThresholdDecider:
    return ThresholdDecider(version.calibration_scores, AtFalseAlarmRate(0.01))


def test_products_trained_jointly_have_one_detector_and_a_threshold_each(root: Path) -> None:
    first = brightness_version.install(root, "bar")
    second = joint_version(root, first, "bolt", [score + 50.0 for score in range(1, 101)])
    loaded: list[ModelVersion] = []

    def load(version: ModelVersion) -> OpenVinoDetector:
        loaded.append(version)
        return OpenVinoDetector(version)

    known = {version.product: [row_of(version)] for version in (first, second)}

    scorers = ScorerCache(root, lambda: ActiveVersions(known), decider_of, load, loaded_max=1)
    scorers.refresh()
    bar, bolt = scorers.get("bar"), scorers.get("bolt")
    assert bar.detector is bolt.detector and len(loaded) == 1
    assert (bar.decider.threshold, bolt.decider.threshold) == (100.0, 150.0)
    pixels = np.full((1, brightness_version.HEIGHT, brightness_version.WIDTH, 3), 120, np.uint8)
    score = float(bar.detector.score(pixels).scores[0])
    assert [scorers.get(product).decider.decide(score).verdict for product in ("bar", "bolt")] == ["anomaly", "normal"]


def test_a_version_that_is_not_what_was_registered_is_refused_though_its_graph_is_in_memory(root: Path) -> None:
    first = brightness_version.install(root, "bar")
    second = joint_version(root, first, "bolt", [1.0] * 100)
    known = {"bar": [row_of(first)], "bolt": [replace(row_of(second), sha256="0" * 64)]}
    scorers = ScorerCache(root, lambda: ActiveVersions(known), decider_of, OpenVinoDetector, loaded_max=2)
    scorers.refresh()
    scorers.get("bar")
    with pytest.raises(ConfigurationError, match="expected sha256 0000"):
        scorers.get("bolt")


class Loads:
    """Loads detectors for `scorers`, and can be held up; says which versions it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, version: ModelVersion) -> OpenVinoDetector:
        self.asked.append(version.product)
        assert self.may_go_on.wait(PATIENCE_S)
        return OpenVinoDetector(version, 1)


def scorers_of(root: Path, load: Loads, loaded_max: int, *products: str) -> tuple[ScorerCache, threading.Event]:
    """Return scorers of `products`, each with a graph of its own, and what is set when one has been loaded."""
    versions = [brightness_version.install(root, name, graph_offset=1.0 + n) for n, name in enumerate(products)]
    known = {version.product: [row_of(version)] for version in versions}
    woken = threading.Event()
    scorers = ScorerCache(root, lambda: ActiveVersions(known), decider_of, load, loaded_max, on_loaded=woken.set)
    scorers.refresh()
    return scorers, woken


def load_beside(scorers: ScorerCache, woken: threading.Event, product: str, keep: tuple[str, ...] = ()) -> bool:
    woken.clear()
    return scorers.begin_to_load(product, keep) and woken.wait(PATIENCE_S)


def in_memory(scorers: ScorerCache, *products: str) -> list[str]:
    return [product for product in products if scorers.in_memory(product) is not None]


def test_model_is_loaded_beside_the_loop_and_the_others_score_meanwhile(root: Path) -> None:
    load = Loads()
    scorers, woken = scorers_of(root, load, 2, "a", "b")
    scorers.get("a")
    woken.clear()
    load.may_go_on.clear()
    assert scorers.begin_to_load("b", keep=["a"]) and not scorers.begin_to_load("b", keep=["a"])
    assert in_memory(scorers, "a", "b") == ["a"]
    load.may_go_on.set()
    assert woken.wait(PATIENCE_S) and in_memory(scorers, "a", "b") == ["a", "b"]
    assert load.asked == ["a", "b"]
    scorers.close()


def test_model_used_least_makes_way_and_one_that_is_to_stay_does_not(root: Path) -> None:
    scorers, woken = scorers_of(root, Loads(), 2, "a", "b", "c", "d")
    scorers.get("a"), scorers.get("b")
    scorers.in_memory("a", use=True)
    assert load_beside(scorers, woken, "c") and in_memory(scorers, "a", "b", "c") == ["a", "c"]
    assert load_beside(scorers, woken, "d", keep=("a",)) and in_memory(scorers, "a", "c", "d") == ["a", "d"]
    assert not scorers.begin_to_load("b", keep=["a", "d"])
    scorers.close()


def test_models_that_still_score_count_as_in_memory(root: Path) -> None:
    scorers, woken = scorers_of(root, Loads(), 1, "a", "b", "c", "d")
    in_flight = [scorers.get("a").detector]
    for product in ("b", "c"):
        assert load_beside(scorers, woken, product)
        scorer = scorers.in_memory(product)
        assert scorer is not None
        in_flight.append(scorer.detector)
    assert not scorers.begin_to_load("d", keep=[])
    del scorer
    in_flight.clear()
    assert load_beside(scorers, woken, "d")
    scorers.close()


def test_damaged_version_that_is_loaded_beside_gives_way_to_the_one_before_it(root: Path) -> None:
    before, damaged = (brightness_version.install(root, "a", name, graph_offset=1.0) for name in ("v1", "v2"))
    (damaged.folder / registry.GRAPH).write_text("no graph")
    known = {"a": [row_of(damaged), row_of(before)]}
    woken = threading.Event()
    scorers = ScorerCache(
        root, lambda: ActiveVersions(known), decider_of, OpenVinoDetector, loaded_max=1, on_loaded=woken.set
    )
    scorers.refresh()
    assert load_beside(scorers, woken, "a") and scorers.in_memory("a") is None
    assert load_beside(scorers, woken, "a")
    scorer = scorers.in_memory("a")
    assert scorer is not None and scorer.version == "v1"
    scorers.close()


def test_champions_that_no_image_asked_for_are_loaded_ahead_while_there_is_room(root: Path) -> None:
    load = Loads()
    scorers, woken = scorers_of(root, load, 3, "a", "b", "c", "d")
    scorers.get("b")
    for loaded in (["a", "b"], ["a", "b", "c"]):
        woken.clear()
        scorers.load_ahead()
        assert woken.wait(PATIENCE_S) and in_memory(scorers, "a", "b", "c", "d") == loaded
    scorers.load_ahead()
    assert load.asked == ["b", "a", "c"]
    # Who has an image needs a place, and gets it.
    assert load_beside(scorers, woken, "d", keep=("a", "b")) and in_memory(scorers, "c", "d") == ["d"]
    scorers.close()
