"""Shapes of drawn defects: how strongly each pixel of a box belongs to one, from 0 to 1.

Each takes a random generator and the height and width of the box in pixels, and returns float32 `(height, width)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from models.detector import Float32Array

Shape = Callable[[np.random.Generator, int, int], Float32Array]

_OVERSAMPLING = 4
_CRACK_STEPS = 14


def blob(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """An ellipse with a ragged edge."""
    y, x = _grid(height, width)
    edge = 0.35 * smooth_noise(rng, height, width, rng.uniform(2, 6))
    return np.asarray(np.sqrt(x * x + y * y) + edge < 0.75, dtype=np.float32)


def ellipse(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """The ellipse that fills the box."""
    y, x = _grid(height, width)
    return (x * x + y * y < 1).astype(np.float32)


def polygon(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """Three to seven corners around the middle."""
    corners = int(rng.integers(3, 8))
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, corners)), rng.uniform(0.5, 1, corners)
    xs = (width - 1) * (0.5 + 0.5 * radii * np.cos(angles))
    ys = (height - 1) * (0.5 + 0.5 * radii * np.sin(angles))
    drawing = Image.new("L", (width, height))
    ImageDraw.Draw(drawing).polygon([(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], fill=255)
    return np.asarray(drawing, dtype=np.float32) / np.float32(255)


def part(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """What lies on one side of one to three straight lines: a part that differs as a whole."""
    y, x = _grid(height, width)
    inside = np.ones((height, width), dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, 2 * np.pi)
        inside *= x * math.cos(angle) + y * math.sin(angle) < rng.uniform(0, 0.7)
    return inside


def specks(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """Some small spots, near each other."""
    y, x = _grid(height, width)
    high = smooth_noise(rng, height, width, rng.uniform(4, 12)) > 1.1
    return (high & (x * x + y * y < 1)).astype(np.float32)


def line(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """A line that wavers from one side of the box to the other."""
    points = int(rng.integers(2, 8))
    along = np.linspace(0, 1, points)
    across = np.clip(rng.uniform(0, 1) + np.cumsum(rng.normal(0, 0.25, points)), 0, 1)
    xs, ys = (along, across) if rng.random() < 0.5 else (across, along)
    thick = max(2, round(_OVERSAMPLING * rng.uniform(0.7, max(1.5, 0.12 * min(height, width)))))
    drawing = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    points_of = [(float(x) * drawing.width, float(y) * drawing.height) for x, y in zip(xs, ys, strict=True)]
    ImageDraw.Draw(drawing).line(points_of, fill=255, width=thick, joint="curve")
    return _shrunken(drawing, height, width)


def crack(rng: np.random.Generator, height: int, width: int) -> Float32Array:
    """A thin line that turns a little at each step, with branches."""
    drawing = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    pen = ImageDraw.Draw(drawing)
    middle_x, middle_y = drawing.width / 2, drawing.height / 2
    start = rng.uniform(0, 2 * np.pi)
    length = math.hypot(drawing.width, drawing.height) * rng.uniform(0.5, 1)
    x, y = middle_x * (1 + math.cos(start)), middle_y * (1 + math.sin(start))
    angle = start + np.pi + rng.normal(0, 0.3)
    # Where a line begins, which way it goes, its length and thickness, and how many branchings led to it.
    to_draw = [(x, y, angle, length, max(1.0, _OVERSAMPLING * rng.uniform(0.5, 2.2)), 0)]
    while to_draw:
        x, y, angle, length, thick, branchings = to_draw.pop()
        bend, step = rng.uniform(0.05, 0.45), max(4.0, length / _CRACK_STEPS)
        for _ in range(_CRACK_STEPS):
            end = x + step * math.cos(angle), y + step * math.sin(angle)
            pen.line([(x, y), end], fill=255, width=max(1, round(thick)))
            (x, y), angle = end, angle + rng.normal(0, bend)
            if branchings < 2 and rng.random() < 0.1:
                aside = angle + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
                to_draw.append((x, y, aside, length * rng.uniform(0.2, 0.5), thick * 0.8, branchings + 1))
    return _shrunken(drawing, height, width)


def smooth_noise(rng: np.random.Generator, height: int, width: int, bumps: float) -> Float32Array:
    """Return noise of mean 0 and standard deviation 1, float32 `(height, width)`, `bumps` along the longer side."""
    longer = max(height, width)
    rows, columns = (max(2, round(bumps * side / longer) + 1) for side in (height, width))
    coarse = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32), "F")
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noise: Float32Array = (fine - fine.mean()) / (fine.std() + 1e-6)
    return noise


def _grid(height: int, width: int) -> tuple[Float32Array, Float32Array]:
    """Return y and x of each pixel, from -1 to 1, float32 `(height, 1)` and `(1, width)`."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return y, x


def _shrunken(drawing: Image.Image, height: int, width: int) -> Float32Array:
    small = drawing.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)
