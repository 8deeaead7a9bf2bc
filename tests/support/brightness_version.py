"""Makes a real version, without training: a graph whose score is the brightest of 4 x 6 cells of an image.

Hashed, verified, compiled and registered like any other; only its weights are not learned, so that every
outcome is plain. Calibrated on the scores 1 to 100: at a false-alarm rate of 0.01 the threshold is 100.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from models import registry
from models.registry import ModelVersion
from models.runtime.openvino_runtime import openvino
from service.storage import versions
from service.storage.database.open import open_database

HEIGHT, WIDTH = 16, 24
CREATED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def install(
    root: Path,
    product: str = "default",
    version: str = "v1",
    state: str = "champion",
    scores: Sequence[float] = range(1, 101),
    *,
    created_at: datetime = CREATED_AT,
    graph_offset: float = 0.0,
    value_range: tuple[float, float] | None = None,
) -> ModelVersion:
    """Publish the version into `root` and register it; `scores` are those it is calibrated on.

    What it scores is `graph_offset` above the brightness.
    """
    build = root / "models" / f".tmp-{product}-{version}"
    build.mkdir(parents=True)
    _save_graph(build, graph_offset)
    for name in (registry.WEIGHTS, registry.IMAGES):
        (build / name).write_bytes(b"")
    files = {path.name: registry.file_sha256(path) for path in build.iterdir()}
    manifest = {
        "format": 1,
        "product": product,
        "version": version,
        "kind": "pixel",
        "created_at": created_at.isoformat(),
        "input_size": [HEIGHT, WIDTH],
        "calibration": {
            "scores": sorted(scores),
            "false_alarm_rate": 0.01,
            "threshold": 100.0,
            "pixel_threshold": 100.0,
        },
        "value_range": value_range
        and {"low": value_range[0], "high": value_range[1], "source": "measured", "images": 30},
        "files": files,
    }
    (build / registry.MANIFEST).write_text(json.dumps(manifest))
    published = registry.publish(build, root / "models")
    engine = open_database(root)
    with engine.begin() as connection:
        versions.register(
            connection,
            product=product,
            version=version,
            kind="pixel",
            created_at=created_at,
            state=state,
            reason=None,
            threshold=100.0,
            false_alarm_rate=0.01,
            image_auroc=None,
            f1=None,
            training_wh=None,
            images=None,
            sha256=published.sha256,
        )
    engine.dispose()
    return published


def image(path: Path, background: int = 20, spot: int | None = None) -> Path:
    """Save an image of 48 x 32 (width x height), with a spot in the upper right corner if given."""
    pixels = np.full((32, 48, 3), background, np.uint8)
    if spot is not None:
        pixels[:8, 32:] = spot
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path) -> Path:
    """Save the mask of the spot."""
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:8, 32:] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _save_graph(build: Path, offset: float) -> None:
    ov = openvino()
    op = ov.opset13
    images = op.parameter([1, HEIGHT, WIDTH, 3], np.uint8, name="images")
    grey = op.reduce_mean(op.convert(images, np.float32), np.array([3]), False)
    cells = op.reshape(grey, np.array([1, 4, HEIGHT // 4, 6, WIDTH // 6]), False)
    maps = op.reduce_mean(cells, np.array([2, 4]), False)
    if offset:
        maps = op.add(maps, np.float32(offset))
    scores = op.reduce_max(maps, np.array([1, 2]), False)
    ov.save_model(
        ov.Model([op.result(scores), op.result(maps)], [images]), build / registry.GRAPH, compress_to_fp16=False
    )
