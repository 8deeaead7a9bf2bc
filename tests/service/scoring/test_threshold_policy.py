"""Which threshold holds: settings and a real version together, the same for whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.calibration.thresholds import AtBestF1, AtFalseAlarmRate, AtFixedScore, AtLeastCost, threshold_for_f1
from models.errors import TooFewImages
from models.registry import ModelVersion
from service.errors import ConfigurationError
from service.scoring.threshold_policy import decider_of, policy_of, threshold_of
from service.settings import Settings, load
from tests.support.brightness_version import install

POLICIES = """\
false_alarm_rate = 0.05
anomaly_prevalence = 0.1
[products.valve]
threshold_policy = "cost"
cost_of_miss = 50
cost_of_false_alarm = 2
[products.lid]
threshold_policy = "f1"
[products.cap]
threshold_policy = "fixed"
threshold_fixed = 42
"""


def settings_of(root: Path, text: str = "") -> Settings:
    (root / "tamis.toml").write_text(text)
    return load(root)


@pytest.fixture
def version(root: Path) -> ModelVersion:
    """Calibrated on the normal scores 1 to 100, and no known anomalies, as every version was before there were any."""
    return install(root)


def with_anomalies(version: ModelVersion, *scores: float) -> ModelVersion:
    calibration = version.manifest.calibration.model_copy(update={"anomaly_scores": scores})
    return replace(version, manifest=version.manifest.model_copy(update={"calibration": calibration}))


def test_each_product_has_the_policy_of_its_settings(root: Path) -> None:
    settings = settings_of(root, POLICIES)
    assert policy_of(settings, "valve", 0.01) == AtLeastCost(50, 2, 0.1)
    assert policy_of(settings, "lid", 0.01) == AtBestF1(0.1)
    assert policy_of(settings, "cap", 0.01) == AtFixedScore(42)
    assert policy_of(settings, "other", 0.01) == AtFalseAlarmRate(0.05)
    assert policy_of(settings_of(root), "other", 0.03) == AtFalseAlarmRate(0.03)


def test_rate_that_a_command_asks_for_goes_over_any_policy(root: Path, version: ModelVersion) -> None:
    settings = settings_of(root, POLICIES)
    for product in ("valve", "lid", "cap", "other"):
        assert threshold_of(settings, product, version, 0.1) == 91


def test_threshold_is_that_of_the_policy(root: Path, version: ModelVersion) -> None:
    settings, known = settings_of(root, POLICIES), with_anomalies(version, 98.5, 150, 160)
    assert threshold_of(settings, "other", version) == 96
    assert threshold_of(settings, "cap", version) == 42
    assert threshold_of(settings, "lid", known) == threshold_for_f1(range(1, 101), [98.5, 150, 160], 0.1)


@pytest.mark.parametrize("product", ["valve", "lid"])
@pytest.mark.parametrize("known", [True, False])
def test_policy_without_known_anomalies_is_a_mistake_and_nothing_takes_its_place(
    root: Path, version: ModelVersion, product: str, known: bool
) -> None:
    model = with_anomalies(version) if known else version
    with pytest.raises(ConfigurationError, match=rf"product {product}, version v1.*calibration\.anomaly_scores"):
        decider_of(settings_of(root, POLICIES), product, model)


def test_too_few_normals_for_the_rate_are_refused(root: Path, version: ModelVersion) -> None:
    with pytest.raises(TooFewImages, match=r"0\.001"):
        threshold_of(settings_of(root), "lid", version, 0.001)


def test_band_is_that_of_the_product(root: Path, version: ModelVersion) -> None:
    settings = settings_of(root, "[products.lid]\nuncertain_band = 1\n")
    assert decider_of(settings, "lid", version).band_half_width == 0
    assert decider_of(settings, "cap", version).band_half_width == 2
