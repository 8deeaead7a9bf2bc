"""A root with a trained champion of kind `pixel` and with images that people labelled, as rows and files.

The champion learned from few images; what was labelled is what it lacks.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sqlalchemy import Engine, insert

from models.data.select_images import ProductImages
from models.registry import ModelVersion, file_sha256, verify
from service.root import MODELS
from service.storage.tables import images_table, reviews_table, training_images_table
from service.training.job import TrainingJob
from service.training.run import Trained, register_trained, train_in_child

PRODUCT = "bar"
GOOD = "good"
RATE = 0.1
AT = datetime(2026, 3, 1, 8, tzinfo=UTC)


def make_image(path: Path, number: int, *, defect: bool = False) -> Path:
    """Save an image of 96 x 64: a light bar on a ground, whose place and brightness differ a little."""
    rng = np.random.default_rng(number)
    pixels = np.full((64, 96, 3), 60, dtype=np.uint8)
    pixels[20:44, 10 + number % 24 : 60 + number % 24] = 150 + number % 5 * 12
    if defect:
        top, left = 22 + number % 12, 30 + number % 20
        pixels[top : top + 9, left : left + 12] = [250, 30, 90]
    pixels = np.clip(pixels + rng.integers(-10, 10, pixels.shape), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def train_champion(root: Path, engine: Engine, count: int = 30, steps: int = 5) -> ModelVersion:
    """Register a champion of `root`, badly trained: `steps` are few. The images it was made from are in `root/good`.

    A real child process trains it, once for each `count` and `steps` in a run of the tests; each root gets a copy.
    """
    trained_root, trained = _trained(count, steps)
    shutil.copytree(trained_root / GOOD, root / GOOD)
    version = trained.version
    own = root / version.folder.relative_to(trained_root)
    shutil.copytree(version.folder, own)
    copied = replace(trained, versions=(verify(own, version.sha256),))
    with engine.begin() as connection:
        register_trained(connection, copied)
    return copied.version


@cache
def _trained(count: int, steps: int) -> tuple[Path, Trained]:
    root = Path(tempfile.mkdtemp(prefix="tamis-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    images = [make_image(root / GOOD / f"{number:03}.png", number) for number in range(count)]
    job = TrainingJob(
        products=(ProductImages(PRODUCT, images, RATE),),
        models_root=root / MODELS,
        kind="pixel",
        profile="fast",
        steps=steps,
        method="split",
        energy_cpu_max_w=20.0,
    )
    return root, train_in_child(job)


def label(
    root: Path,
    engine: Engine,
    numbers: range,
    said: str | None,
    role: str | None,
    *,
    defect: bool | None = None,
    source: Path | None = None,
    product: str = PRODUCT,
    at: datetime = AT,
) -> list[Path]:
    """Have a person label images: files in `training/`, and rows as a review writes them; return the files.

    `defect` says what the image shows, where that is not what is `said`.
    """
    shows = said == "anomaly" if defect is None else defect
    paths = []
    with engine.begin() as connection:
        for number in numbers:
            id = f"{'AN'[said == 'normal']}{number:025}"
            relative = f"training/{product}/{said or 'normal'}/{id}.png"
            path = root / relative
            if source is None:
                make_image(path, number, defect=shows)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, path)
            sha256 = file_sha256(path)
            taken = at + timedelta(minutes=number)
            connection.execute(
                insert(images_table).values(
                    id=id,
                    product=product,
                    file_name=f"{number}.png",
                    path=f"normal/{product}/{number}.png",
                    destination=f"normal/{product}/{number}.png",
                    state="placed",
                    sha256=sha256,
                    received_at=taken,
                    decided_at=taken,
                    attempts=1,
                )
            )
            connection.execute(
                insert(reviews_table).values(image_id=id, label=said, labelled_at=taken, source="command")
            )
            connection.execute(
                insert(training_images_table).values(
                    product=product,
                    sha256=sha256,
                    label=said,
                    role=role,
                    path=relative,
                    file_name=f"{number}.png",
                    image_id=id,
                    taken_at=taken,
                    added_at=taken,
                )
            )
            paths.append(path)
    return paths
