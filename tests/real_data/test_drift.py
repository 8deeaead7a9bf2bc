"""Drift on VisA macaroni1 by a small trained detector: what of a changed light and of many defects is told apart.

The figures are printed (`pytest -s`); training and scoring take about a minute and a half on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from models.appearance import appearance_of
from models.calibration.thresholds import threshold_at
from models.data.datasets import read_dataset
from models.runtime.openvino_detector import OpenVinoDetector
from service.drift.assess import DRIFTING, DriftSubject, assess
from service.imaging.decode import image_size, read_image
from service.storage.drift import DriftRow, ScoredImage
from tests.conftest import REAL_DATA
from tests.support import trainings

pytestmark = [pytest.mark.realdata, pytest.mark.long]

RATE = 0.02
WINDOW = 100
STEADY_IMAGES = 200
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

Light = Callable[[Image.Image], Image.Image]
Scored = tuple[float, tuple[float, float, float]]

LIGHTS: dict[str, Light] = {
    "brightness x 0.9": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "brightness x 0.8": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brightness x 1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast x 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "blur of 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


class Line:
    """Images of macaroni1 as a small detector scores them."""

    def __init__(self, folder: Path) -> None:
        dataset = read_dataset(REAL_DATA / "visa")
        normals = [sample.path for sample in dataset.select("train")]
        normals = [normals[index] for index in np.random.default_rng(0).permutation(len(normals))]
        test = dataset.select("test")
        self.version = trainings.train(
            normals[:450],
            product="macaroni1",
            false_alarm_rate=RATE,
            kind="feature",
            profile="fast",
            side=256,
            steps=150,
            seed=1,
            destination=folder,
            read=read_image,
            image_size=image_size,
            minutes_max=10,
            report=lambda progress: None,
        )
        self._detector = OpenVinoDetector(self.version)
        self.normals = self.scored(normals[450:])
        self.changed = normals[650:800]
        self.anomalies = self.scored([sample.path for sample in test if sample.label == 1])

    def scored(self, paths: Sequence[Path], light: Light = lambda image: image) -> list[Scored]:
        found: list[Scored] = []
        for start in range(0, len(paths), 16):
            images = (Image.fromarray(read_image(p, self.version.input_size)) for p in paths[start : start + 16])
            pixels = [np.asarray(light(image)) for image in images]
            looks = [appearance_of(one).as_row() for one in pixels]
            found += zip(self._detector.score(np.stack(pixels)).scores.tolist(), looks, strict=True)
        return found

    def watched(self, after: Sequence[Scored]) -> list[tuple[int, DriftRow]]:
        """Return the changes of state while `after` follows steady normals, with how many images had come."""
        scores = self.version.calibration_scores.astype(np.float64)
        image_statistics = self.version.calibration_look
        assert image_statistics is not None
        of = DriftSubject(
            "macaroni1", "v1", WINDOW, threshold_at(scores, RATE), scores, True, image_statistics.astype(np.float64)
        )
        images = [
            ScoredImage(f"{n:026d}", NOON + timedelta(seconds=n), "v1", score, *figures, None)
            for n, (score, figures) in enumerate([*self.normals[:STEADY_IMAGES], *after])
        ]
        rows: list[tuple[int, DriftRow]] = []
        for end in range(10, len(images) + 1, 5):
            before = rows[-1][1] if rows else None
            row = assess(of, images[: min(end, WINDOW)], images[max(0, end - 2 * WINDOW) : end], before, NOON)
            if row is not None:
                rows.append((end, row))
        return rows

    def mixed(self, share: float, images: int = 140) -> list[Scored]:
        generator = np.random.default_rng(3)
        bad = round(share * images)
        chosen = [self.anomalies[index] for index in generator.choice(len(self.anomalies), bad, replace=False)]
        chosen += self.normals[STEADY_IMAGES : STEADY_IMAGES + images - bad]
        return [chosen[index] for index in generator.permutation(len(chosen))]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line(tmp_path_factory.mktemp("models"))


def tell(what: str, rows: list[tuple[int, DriftRow]]) -> None:
    said = [f"{row.cause} after {end - STEADY_IMAGES} images, since {row.first_image_id}" for end, row in rows[1:]]
    print(f"{what}: {'; '.join(said) or 'steady'}")


def test_held_out_normals_do_not_drift(line: Line) -> None:
    rows = line.watched(line.normals[STEADY_IMAGES:])
    tell("held-out normals", rows)
    assert [row.state for _, row in rows] == ["steady"]


@pytest.mark.parametrize("name", LIGHTS)
def test_changed_light_is_told_as_such_and_dated(line: Line, name: str) -> None:
    rows = line.watched(line.scored(line.changed, LIGHTS[name]))
    tell(name, rows)
    assert rows[-1][1].state == DRIFTING and rows[-1][1].cause == "light"
    assert abs(int(rows[-1][1].first_image_id or 0) - STEADY_IMAGES) <= 5
    assert rows[1][0] <= STEADY_IMAGES + 60


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_real_defects_are_never_told_as_a_changed_light(line: Line, share: float) -> None:
    rows = line.watched(line.mixed(share))
    tell(f"{share:.0%} real defects", rows)
    assert "light" not in {row.cause for _, row in rows}
    if share >= 0.5:
        assert rows[-1][1].cause == "defects"
