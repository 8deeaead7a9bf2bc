"""Fills of drawn defects: what a box of an image would look like if all of it were the defect.

Each takes a random generator and a `Canvas`, and returns float32 `(height, width, 3)` in grey levels, unclipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image
from scipy import ndimage

from models.detector import Float32Array, UInt8Array
from models.synthetic_defects.shapes import smooth_noise

T = TypeVar("T")


@dataclass(frozen=True)
class Canvas:
    """What there is to draw on and with: `patch`, the box as it is, float32 `(height, width, 3)`; all of `image` and an
    `other` one, uint8 `(H, W, 3)`; `box` top, left, height and width; `grey`: the three colours must stay equal.
    """

    patch: Float32Array
    image: UInt8Array
    other: UInt8Array
    box: tuple[int, int, int, int]
    grey: bool


Fill = Callable[[np.random.Generator, Canvas], Float32Array]


def paste(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """Another place of another image, larger or smaller, turned, lighter or darker."""
    height, width = canvas.box[2:]
    rows, columns = canvas.other.shape[:2]
    scale = rng.uniform(0.7, 1.4)
    tall, wide = min(rows, max(2, round(height * scale))), min(columns, max(2, round(width * scale)))
    top, left = int(rng.integers(0, rows - tall + 1)), int(rng.integers(0, columns - wide + 1))
    found = _turned(rng, Image.fromarray(canvas.other[top : top + tall, left : left + wide]), canvas)
    return found * rng.uniform(0.7, 1.3) + rng.uniform(-20, 20) if rng.random() < 0.5 else found


def turn(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """The same place, mirrored or turned: a part the wrong way round."""
    return _turned(rng, Image.fromarray(canvas.patch.astype(np.uint8)), canvas)


def texture(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """Two colours that run into each other in bumps of any size."""
    height, width = canvas.box[2:]
    one, other = _colour(rng, canvas.grey), _colour(rng, canvas.grey)
    bumps = smooth_noise(rng, height, width, rng.uniform(2, max(3, max(height, width) / 2)))
    mixed = one + (other - one) * np.clip(0.5 + 0.4 * bumps[..., None], 0, 1)
    return _over(canvas.patch, mixed, rng.uniform(0.25, 1))


def stain(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """One colour, through which what was there shows more or less."""
    return _over(canvas.patch, _colour(rng, canvas.grey), rng.uniform(0.15, 0.8))


def shade(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """Lighter or darker, and a little of another hue."""
    gain = math.exp(rng.choice([-1, 1]) * math.exp(rng.uniform(math.log(0.06), 0)))
    hue = 1.0 if canvas.grey else np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    return canvas.patch * np.float32(gain) * hue


def crack(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """Dark, or now and then light, as an opening is."""
    level = rng.uniform(0, 60) if rng.random() < 0.8 else rng.uniform(190, 255)
    return _over(canvas.patch, np.float32(level), rng.uniform(0.15, 1))


def warp(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """The same place, bent."""
    top, left, height, width = canvas.box
    rows, columns = canvas.image.shape[:2]
    reach = rng.uniform(0.08, 0.3) * max(height, width) + 1
    y, x = np.mgrid[top : top + height, left : left + width].astype(np.float32)
    y = np.clip(y + reach * smooth_noise(rng, height, width, rng.uniform(1.5, 4)), 0, rows - 1)
    x = np.clip(x + reach * smooth_noise(rng, height, width, rng.uniform(1.5, 4)), 0, columns - 1)
    colours = [ndimage.map_coordinates(canvas.image[..., c], [y, x], np.float32, order=1) for c in range(3)]
    return np.stack(colours, axis=-1)


def blur(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """The same place, out of focus."""
    spread = rng.uniform(1.5, 5)
    blurred: Float32Array = ndimage.gaussian_filter(canvas.patch, (spread, spread, 0))
    return blurred


def erase(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """What lies beside it, or one colour of its edge: something is missing."""
    top, left, height, width = canvas.box
    rows, columns = canvas.image.shape[:2]
    if rng.random() < 0.5:
        patch = canvas.patch
        edge = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
        noise = rng.normal(0, 3, (height, width, 1)).astype(np.float32)
        return np.asarray(edge[int(rng.integers(len(edge)))] + noise, dtype=np.float32)
    down, right = rng.uniform(-1.5, 1.5, 2)
    top = int(np.clip(top + down * height, 0, rows - height))
    left = int(np.clip(left + right * width, 0, columns - width))
    return canvas.image[top : top + height, left : left + width].astype(np.float32)


def noise(rng: np.random.Generator, canvas: Canvas) -> Float32Array:
    """The same place with grains."""
    colours = 1 if canvas.grey or rng.random() < 0.5 else 3
    grains = rng.normal(0, rng.uniform(15, 50), (*canvas.box[2:], colours))
    return canvas.patch + grains.astype(np.float32)


def _turned(rng: np.random.Generator, found: Image.Image, canvas: Canvas) -> Float32Array:
    height, width = canvas.box[2:]
    turned = found.transpose(Image.Transpose(int(rng.integers(0, 5))))
    return np.asarray(turned.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)


def _over(patch: Float32Array, colour: Float32Array | np.float32, opacity: float) -> Float32Array:
    mixed: Float32Array = patch + np.float32(opacity) * (colour - patch)
    return mixed


def _colour(rng: np.random.Generator, grey: bool) -> Float32Array:
    if grey:
        return np.full(3, rng.uniform(0, 255), dtype=np.float32)
    if rng.random() < 0.5:
        return np.clip(rng.uniform(0, 255) + rng.normal(0, 15, 3), 0, 255).astype(np.float32)
    return rng.uniform(0, 255, 3).astype(np.float32)
