"""The network in torch says what the graph says. On the CPU here; on a GPU where one is found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.registry import ModelVersion
from models.runtime.load_detector import gpu_found, load_detector
from models.runtime.load_network import CannotRebuild, network_of
from models.runtime.openvino_detector import OpenVinoDetector
from models.runtime.torch_detector import BATCH_SIZE, TOLERANCE, TorchDetector, on_gpu, probes, score_difference

REPOSITORY = Path(__file__).resolve().parents[3]
needs_gpu = pytest.mark.skipif(not gpu_found(), reason="needs an NVIDIA GPU; no /dev/nvidia* on this machine")


def test_network_rebuilt_from_a_version_scores_like_its_graph(trained: ModelVersion) -> None:
    images = probes(trained.input_size)
    found, expected = TorchDetector(trained, "cpu").score(images), OpenVinoDetector(trained).score(images)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-2, atol=1e-4 * float(expected.maps.max()))
    assert found.scores.dtype == found.maps.dtype == np.float32


@pytest.mark.parametrize("count", [1, 3, BATCH_SIZE, BATCH_SIZE + 5])
def test_score_in_torch_does_not_depend_on_the_batch(trained: ModelVersion, count: int) -> None:
    height, width = trained.input_size
    images = np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    detector = TorchDetector(trained, "cpu")
    together = detector.score(images)
    alone = [detector.score(images[index : index + 1]) for index in range(count)]
    np.testing.assert_array_equal(together.scores, np.concatenate([one.scores for one in alone]))
    np.testing.assert_array_equal(together.maps, np.concatenate([one.maps for one in alone]))


def test_results_stay_as_they_are_when_more_is_scored(trained: ModelVersion) -> None:
    detector = TorchDetector(trained, "cpu")
    first = detector.score(probes(trained.input_size))
    kept = first.scores.copy(), first.maps.copy()
    detector.score(255 - probes(trained.input_size))
    np.testing.assert_array_equal(first.scores, kept[0])
    np.testing.assert_array_equal(first.maps, kept[1])


def test_images_of_another_size_are_refused(trained: ModelVersion) -> None:
    with pytest.raises(ValueError, match="expected shape"):
        TorchDetector(trained, "cpu").score(np.zeros((1, 8, 8, 3), np.uint8))


def test_difference_of_a_detector_from_itself_is_none_and_from_a_brighter_one_is_seen(trained: ModelVersion) -> None:
    detector = OpenVinoDetector(trained)
    assert score_difference(trained, detector, detector) == 0
    shifted = ShiftedScores(detector, 100 * TOLERANCE * trained.manifest.calibration.threshold)
    assert score_difference(trained, shifted, detector) > TOLERANCE


class ShiftedScores:
    """Scores like another detector, and `by` more."""

    def __init__(self, detector: OpenVinoDetector, by: float) -> None:
        self.detector, self.by = detector, np.float32(by)
        self.input_size = detector.input_size

    def score(self, images):
        scored = self.detector.score(images)
        return replace(scored, scores=scored.scores + self.by)


def test_version_of_an_unknown_kind_says_which_are_known(trained: ModelVersion) -> None:
    other = replace(trained, manifest=trained.manifest.model_copy(update={"kind": "oracle"}))
    with pytest.raises(CannotRebuild, match=r"feature, pixel.*found oracle"):
        network_of(other)


def test_version_whose_weights_do_not_fit_is_not_rebuilt(trained: ModelVersion) -> None:
    other = replace(trained, manifest=trained.manifest.model_copy(update={"kind": "feature"}))
    with pytest.raises(CannotRebuild, match=r"model\.safetensors"):
        network_of(other)


def test_gpu_is_told_from_its_device_and_can_be_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert not gpu_found(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert gpu_found(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_found(tmp_path)


def test_loading_a_detector_without_a_gpu_brings_no_torch(trained: ModelVersion) -> None:
    script = f"""
import sys
from pathlib import Path
from models.runtime.load_detector import load_detector
from models.registry import verify
load_detector(verify(Path({str(trained.folder)!r})))
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )


def test_device_that_torch_cannot_use_falls_back_to_the_graph_with_a_line(
    trained: ModelVersion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine whose GPU torch cannot use; here it can")
    monkeypatch.setattr("models.runtime.load_detector.gpu_found", lambda: True)
    assert isinstance(load_detector(trained), OpenVinoDetector)
    assert "torch finds no CUDA device" in caplog.text


@needs_gpu
def test_gpu_scores_within_tolerance_of_the_graph_whatever_the_batch(trained: ModelVersion) -> None:
    reference = OpenVinoDetector(trained)
    detector = on_gpu(trained, reference)
    assert score_difference(trained, detector, reference) <= TOLERANCE
    images = probes(trained.input_size)
    alone = np.concatenate([detector.score(images[index : index + 1]).scores for index in range(len(images))])
    np.testing.assert_array_equal(detector.score(images).scores, alone)
