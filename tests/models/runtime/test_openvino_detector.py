"""What ships: scores that do not depend on the batch, refusals by ValueError, and no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.detector import Detector
from models.errors import ModelCorrupt
from models.registry import ModelVersion
from models.runtime.openvino_detector import OpenVinoDetector

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def detector(trained: ModelVersion) -> OpenVinoDetector:
    return OpenVinoDetector(trained, threads=2)


def made(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_score_and_map_have_the_shapes_of_the_protocol(detector: OpenVinoDetector) -> None:
    assert isinstance(detector, Detector)
    height, width = detector.input_size
    assert height < width  # a rectangle: swapped sides would show
    scored = detector.score(made(3, (height, width)))
    assert scored.scores.shape == (3,) and scored.scores.dtype == np.float32
    assert scored.maps.shape == (3, height, width) and scored.maps.dtype == np.float32
    assert np.isfinite(scored.scores).all() and np.isfinite(scored.maps).all()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_score_does_not_depend_on_the_batch(trained: ModelVersion, detector: OpenVinoDetector, threads: int) -> None:
    images = made(7, detector.input_size)
    together = OpenVinoDetector(trained, threads=threads).score(images)
    for index in range(len(images)):
        alone = detector.score(images[index : index + 1])
        assert alone.scores[0] == together.scores[index]
        np.testing.assert_array_equal(alone.maps[0], together.maps[index])


def test_earlier_results_stay_when_more_is_scored(detector: OpenVinoDetector) -> None:
    images = made(4, detector.input_size)
    first = detector.score(images)
    kept = first.maps.copy()
    detector.score(255 - images)
    np.testing.assert_array_equal(first.maps, kept)


def test_views_with_odd_strides_score_like_their_copies(detector: OpenVinoDetector) -> None:
    images = made(4, detector.input_size)
    mirrored = images[::-1, :, ::-1]
    np.testing.assert_array_equal(
        detector.score(mirrored).scores, detector.score(np.ascontiguousarray(mirrored)).scores
    )


def test_other_shapes_and_types_are_refused(detector: OpenVinoDetector) -> None:
    height, width = detector.input_size
    good = made(1, (height, width))
    for bad in (good[0], good[:0], good[..., :1], np.swapaxes(good, 1, 2), good[:, 1:]):
        with pytest.raises(ValueError, match=rf"expected shape \(N, {height}, {width}, 3\)"):
            detector.score(bad)
    for wrong in (good.astype(np.float32), good.astype(np.int8)):
        with pytest.raises(ValueError, match="expected dtype uint8"):
            detector.score(wrong)


def test_graph_that_cannot_be_read_is_corrupt(tmp_path: Path, trained: ModelVersion) -> None:
    (tmp_path / "model.xml").write_text("<net/>")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelCorrupt, match=r"model\.xml"):
        OpenVinoDetector(ModelVersion(tmp_path, trained.manifest, ""))


def test_scoring_brings_no_torch_and_no_telemetry(trained: ModelVersion) -> None:
    script = f"""
import sys
from pathlib import Path
import numpy as np
from models.runtime.openvino_detector import OpenVinoDetector
from models.registry import verify
assert "openvino" not in sys.modules
detector = OpenVinoDetector(verify(Path({str(trained.folder)!r})))
detector.score(np.zeros((1, *detector.input_size, 3), np.uint8))
assert "openvino" in sys.modules
print([name for name in ("torch", "timm") if name in sys.modules], sys.modules["openvino_telemetry"])
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "[] None", ended.stderr
