"""The images that detectors are judged on: what trains, what tests, and what is free for choosing between models.

VisA macaroni1 with its official split, the aliens, solar cells (package `elpv-dataset`, CC BY-NC-SA 4.0: for
measuring only) and drawn parts. A test image is never anything else, whatever the seed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.data.datasets import Sample, read_dataset
from service.imaging.synthetic_parts import DEFECTS, draw
from tests.benchmarks import captures, journey

SOLAR_TRAIN, SOLAR_TEST = 800, 400
# The test cells are the same for every seed: no image that one seed develops with tests another.
SOLAR_TEST_SEED = "test"
HELD_OUT_SHARE, HELD_OUT_MAX = 0.25, 100
PARTS_TRAIN, PARTS_TEST = 3000, 140


@dataclass(frozen=True)
class Task:
    """The images of one data set under one seed.

    `spare` are normals that neither train nor test; `suspects` are probably defective ones that never test.
    """

    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    spare: tuple[Path, ...] = ()
    suspects: tuple[Path, ...] = ()

    @property
    def development_normals(self) -> tuple[Path, ...]:
        """All normals that never test."""
        return self.train + self.spare


@dataclass(frozen=True)
class Development:
    """The images of a data set that a choice between models may rest on: none of them is a test image."""

    train: tuple[Path, ...]
    normals: tuple[Path, ...]
    suspects: tuple[Path, ...]


def development(task: Task, seed: int) -> Development:
    """Return what trains and what judges where no test image may be looked at.

    Normals are the spare ones, or where there are none a quarter (at most 100) of those to train, by `seed`.
    """
    if task.spare:
        return Development(task.train, task.spare, task.suspects)
    shuffled = in_seeded_order(task.train, f"development|{seed}")
    held_out = min(HELD_OUT_MAX, round(HELD_OUT_SHARE * len(shuffled)))
    return Development(tuple(shuffled[held_out:]), tuple(shuffled[:held_out]), task.suspects)


def macaroni1(seed: int, folder: Path) -> Task:
    """VisA's official split, whatever the seed: 900 normals train, 100 and 100 anomalies with masks test."""
    data = read_dataset(captures.REAL_DATA / "visa", "macaroni1")
    return Task(tuple(sample.path for sample in data.select("train")), tuple(data.select("test")))


def aliens(seed: int, folder: Path) -> Task:
    """46 of the 58 normals train, by `seed`; 12 and the 60 anomalies test."""
    task = journey.aliens(seed)
    return Task(tuple(task.train), tuple(sample(path, label, "aliens") for path, label in task.test))


def solar(seed: int, folder: Path) -> Task:
    """Cells of defect probability 0: 400 test, 800 of the other 1,108 train, by `seed`; 400 of probability 1 test."""
    cells = _cells()
    normals = in_seeded_order(cells["0.0"], SOLAR_TEST_SEED)
    anomalies = in_seeded_order(cells["1.0"], SOLAR_TEST_SEED)
    others = in_seeded_order(normals[SOLAR_TEST:], seed)
    return Task(
        train=tuple(others[:SOLAR_TRAIN]),
        test=(
            *(sample(path, 0, "solar") for path in normals[:SOLAR_TEST]),
            *(sample(path, 1, "solar") for path in anomalies[:SOLAR_TEST]),
        ),
        spare=tuple(others[SOLAR_TRAIN:]),
        suspects=tuple(cells["0.6666666666666666"]),
    )


def parts(seed: int, folder: Path) -> Task:
    """Drawn flanges, for sizes that no real data set here has: 3,000 normals train, 140 and 140 anomalies test."""
    train = [_drawn_part(folder / "train", number, None) for number in range(PARTS_TRAIN)]
    test = [sample(_drawn_part(folder / "normal", 10_000 + n, None), 0, "parts") for n in range(PARTS_TEST)]
    for number in range(PARTS_TEST):
        path = _drawn_part(folder / "anomaly", 20_000 + number, DEFECTS[number % len(DEFECTS)])
        test.append(sample(path, 1, "parts", path.with_name(f"{path.stem}_mask.png")))
    return Task(tuple(in_seeded_order(train, seed)), tuple(test))


DATA: dict[str, Callable[[int, Path], Task]] = {
    "macaroni1": macaroni1,
    "aliens": aliens,
    "solar": solar,
    "parts": parts,
}


def sample(path: Path, label: int, name: str, mask: Path | None = None) -> Sample:
    """Return a test sample of the data set `name`; `label` 1 is an anomaly."""
    return Sample(path=path, label=1 if label else 0, split="test", object=name, mask=mask)


def in_seeded_order(paths: Sequence[Path], seed: int | str) -> list[Path]:
    """Return `paths` shuffled by `seed`, whatever order they came in; their names must differ."""
    return sorted(paths, key=lambda path: hashlib.sha256(f"{seed}|{path.name}".encode()).digest())


def chosen(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Return `count` of `paths`, by `seed`; exits where there are fewer."""
    if len(paths) < count:
        sys.exit(f"expected at least {count} images to choose from; found {len(paths)}")
    return random.Random(seed).sample(sorted(paths), count)


def _cells() -> dict[str, list[Path]]:
    """Return the solar cells by defect probability as the package writes it, 0.0 to 1.0."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or not package.submodule_search_locations:
        sys.exit("expected the package elpv-dataset with the solar cells; pip install '.[benchmarks]'")
    folder = Path(package.submodule_search_locations[0]) / "data"
    cells: dict[str, list[Path]] = {}
    for line in (folder / "labels.csv").read_text().splitlines():
        name, probability, _ = line.split()
        cells.setdefault(probability, []).append(folder / name)
    return cells


def _drawn_part(folder: Path, number: int, defect: str | None) -> Path:
    path = folder / f"{number:05}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw(np.random.default_rng(number), defect)
        if defect is not None:
            Image.fromarray(drawn.mask).save(path.with_name(f"{path.stem}_mask.png"))
        Image.fromarray(drawn.image).save(path, compress_level=1)
    return path
