"""Which detectors are in memory: one for each graph, however many products are judged by it."""

from __future__ import annotations

import json
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
