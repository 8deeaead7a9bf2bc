"""Makes images to train on, and reads them without the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.detector import UInt8Array

NORMALS = 30


def read(path: Path, size: tuple[int, int]) -> UInt8Array:
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def make_normals(folder: Path, count: int = NORMALS) -> list[Path]:
    """Save images of 96 x 64 (width x height): a light bar on a ground, both a little different each time."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.full((64, 96, 3), 60, dtype=np.uint8)
        pixels[20:44, 20 + number % 8 : 70] = 180
        pixels = np.clip(pixels + rng.integers(-10, 10, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
