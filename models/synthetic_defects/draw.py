"""Draws defects on normal images, for the head to learn from and for challengers to be tested on.

They are of no real material, after the synthetic anomalies of CutPaste (Li et al., CVPR 2021) and DRAEM (Zavrtanik et
al., ICCV 2021). Owns where and in which order they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.detector import Float32Array, UInt8Array
from models.synthetic_defects import fills, shapes
from models.synthetic_defects.foreground import foreground

# A pixel is part of a defect where one of its colours changed by more levels than this.
CHANGE_MIN = 10
CHANGED_PIXELS_MIN = 4
# Of the side of a square of the image's area.
SIDE_SHARE = (0.007, 0.10)
DEFECTS_MAX = 4
# Share of defects placed on visible structure, and anywhere on the part; the rest falls anywhere, background too.
# Those are few: a background has its own scratches and dust, and a head that learns them as defects finds them in
# normal images.
ON_STRUCTURE = 0.6
ON_PART = 0.38
_TRIES = 4


@dataclass(frozen=True)
class Kind:
    """A kind of defect: its shapes, its fill, its size as a share of the side, the softness of its edge in pixels."""

    shapes: tuple[shapes.Shape, ...]
    fill: fills.Fill
    side_share: tuple[float, float] = SIDE_SHARE
    softness: tuple[float, float] = (0.4, 1.5)


AREAS = (shapes.blob, shapes.polygon, shapes.ellipse, shapes.blob)
SPOTS = (*AREAS, shapes.specks)
KINDS: Mapping[str, Kind] = {
    "paste": Kind(AREAS, fills.paste),
    "turn": Kind(AREAS, fills.turn),
    "texture": Kind(AREAS, fills.texture),
    "stain": Kind(SPOTS, fills.stain),
    "shade": Kind(SPOTS, fills.shade),
    "warp": Kind(AREAS, fills.warp),
    "blur": Kind(AREAS, fills.blur),
    "erase": Kind(AREAS, fills.erase),
    "noise": Kind(AREAS, fills.noise),
    "part": Kind((shapes.part, shapes.blob), fills.shade, (0.08, 0.6), (0.5, 8.0)),
    "crack": Kind((shapes.crack,), fills.crack, (0.05, 0.9), (0.0, 0.0)),
    "scratch": Kind((shapes.line,), fills.shade, (0.017, 0.25), (0.0, 0.0)),
    "fibre": Kind((shapes.line,), fills.stain, (0.017, 0.25), (0.0, 0.0)),
}


def draw_defects(
    image: UInt8Array, others: Sequence[UInt8Array], rng: np.random.Generator
) -> tuple[UInt8Array, npt.NDArray[np.bool_]]:
    """Return `image` with one to four defects, uint8 `(H, W, 3)`, and where it changed, bool `(H, W)`.

    `others` are normal images of the same kind, from which parts are pasted. A grey image stays grey. Where too little
    changes, it tries again; the mask may still be empty at the end.
    """
    height, width = image.shape[:2]
    drawn, mask = image.copy(), np.zeros((height, width), dtype=bool)
    grey = is_grey(image)
    places = _places(image)
    for _ in range(min(DEFECTS_MAX, 1 + int(rng.geometric(0.5)))):
        for _ in range(_TRIES):
            if _draw_one(drawn, mask, others, rng, places, grey):
                break
    return drawn, mask


def is_grey(image: UInt8Array) -> bool:
    """Return whether the three colours of `image` are the same everywhere."""
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())


def share_by_position(mask: npt.NDArray[np.bool_], stride: int) -> Float32Array:
    """Return, float32 `(H/stride, W/stride)`, the share of each position's pixels that `mask` `(H, W)` holds."""
    height, width = mask.shape
    blocks = mask.reshape(height // stride, stride, width // stride, stride)
    shares: Float32Array = blocks.mean(axis=(1, 3), dtype=np.float32)
    return shares


def _draw_one(
    drawn: UInt8Array,
    mask: npt.NDArray[np.bool_],
    others: Sequence[UInt8Array],
    rng: np.random.Generator,
    places: tuple[Float32Array, Float32Array],
    grey: bool,
) -> bool:
    """Draw one defect into `drawn` and `mask`; return whether enough changed, and leave both as they were if not."""
    kind = KINDS[_one_of(list(KINDS), rng)]
    box = _box(kind, drawn.shape[:2], places, rng)
    top, left, height, width = box
    patch = drawn[top : top + height, left : left + width].astype(np.float32)
    shape = _one_of(kind.shapes, rng)(rng, height, width)
    softness = rng.uniform(*kind.softness)
    if softness > 0 and rng.random() < 0.6:
        shape = ndimage.gaussian_filter(shape, softness)
    filled = kind.fill(rng, fills.Canvas(patch, drawn, _one_of(others, rng), box, grey))
    changed = patch + shape[..., None] * (filled - patch)
    rounded = np.clip(changed, 0, 255).round().astype(np.uint8)
    differs = np.abs(rounded - patch).max(axis=2) > CHANGE_MIN
    if differs.sum() < CHANGED_PIXELS_MIN:
        return False
    drawn[top : top + height, left : left + width] = rounded
    mask[top : top + height, left : left + width] |= differs
    return True


def _box(
    kind: Kind, size: tuple[int, int], places: tuple[Float32Array, Float32Array], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width in pixels of the next defect."""
    rows, columns = size
    least, most = (math.log(share) for share in kind.side_share)
    side = math.sqrt(rows * columns) * math.exp(rng.uniform(least, most))
    aspect = math.exp(rng.normal(0, 0.45))
    height = int(np.clip(round(side * aspect), 4, rows - 2))
    width = int(np.clip(round(side / aspect), 4, columns - 2))
    which = rng.random()
    if which < ON_STRUCTURE + ON_PART:
        cumulated = places[0] if which < ON_STRUCTURE else places[1]
        place = int(np.searchsorted(cumulated.ravel(), rng.random()))
        row, column = divmod(min(place, cumulated.size - 1), cumulated.shape[1])
        middle = (row + 0.5) * rows / cumulated.shape[0], (column + 0.5) * columns / cumulated.shape[1]
    else:
        middle = rng.uniform(0, rows), rng.uniform(0, columns)
    top = int(np.clip(round(middle[0] - height / 2), 0, rows - height))
    left = int(np.clip(round(middle[1] - width / 2), 0, columns - width))
    return top, left, height, width


def _places(image: UInt8Array) -> tuple[Float32Array, Float32Array]:
    """Return two cumulated probabilities of places, a quarter of the size: by visible structure, and even; both cover
    the part alone where it lies on a plain background.
    """
    quarter = image[::4, ::4].mean(axis=2, dtype=np.float32)
    slope = ndimage.gaussian_filter(ndimage.gaussian_gradient_magnitude(quarter, 1), 3) + 1e-3
    part = foreground(image)
    evenly = np.ones_like(slope) if part is None else part.astype(np.float32)
    return _cumulated(slope * evenly), _cumulated(evenly)


def _cumulated(weights: Float32Array) -> Float32Array:
    total = np.cumsum(weights, dtype=np.float64)
    return np.asarray(total / total[-1], dtype=np.float32).reshape(weights.shape)


def _one_of(choices: Sequence[fills.T], rng: np.random.Generator) -> fills.T:
    return choices[int(rng.integers(len(choices)))]
