"""The range of a model: which values of images of more than 8 bits a sample become 0 to 255.

It is measured over the images that a model is trained on, and is the model's from then on: what a camera's 12 bits or
a thermal camera's counts come to is not said in the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Images whose own values are further out than those of all but one in fifty say nothing of the others.
ODD_IMAGES_SHARE = 0.02
# A scale that images use so much of is taken whole: 0 to 4095 for 12 bits. Otherwise few of 256 levels were left.
USED_SHARE_MIN = 0.25
# So much of the measured span is added on either side: what is hotter than any normal image shows as that.
HEADROOM_SHARE = 0.25
_BITS = (8, 10, 12, 14, 16)
_LEVELS = 256


@dataclass(frozen=True)
class ValueStatistics:
    """What values one image has: `kind` as of numpy, extremes, and the quantiles at 0.001 and 0.999."""

    kind: Literal["u", "i", "f"]
    least: float
    greatest: float
    low: float
    high: float


def measured_range(images: Sequence[ValueStatistics]) -> tuple[float, float] | None:
    """Return low and high of the range for `images`, None without any.

    It is the whole scale of 8, 10, 12, 14 or 16 bits, the least that holds all values, or 0 to 1 of floating point,
    where the images use a quarter of it; else what they use, with a quarter of that on either side.
    """
    if not images:
        return None
    low = float(np.quantile([image.low for image in images], ODD_IMAGES_SHARE, method="lower"))
    high = float(np.quantile([image.high for image in images], 1 - ODD_IMAGES_SHARE, method="higher"))
    whole_numbers = all(image.kind != "f" for image in images)
    scale = _scale(images, whole_numbers)
    if scale is not None and high - low >= USED_SHARE_MIN * scale:
        return 0.0, scale
    # No finer than the values themselves
    span = max(high - low, (_LEVELS - 1) / (1 + 2 * HEADROOM_SHARE) if whole_numbers else 0.0)
    if span <= 0:
        span = max(abs(high), 1.0) / 100
    middle, half = (low + high) / 2, span * (0.5 + HEADROOM_SHARE)
    low, high = middle - half, middle + half
    if whole_numbers:
        low, high = float(np.floor(low)), float(np.ceil(high))
        if all(image.kind == "u" for image in images):
            high, low = high - min(low, 0.0), max(low, 0.0)
    return low, high


def _scale(images: Sequence[ValueStatistics], whole_numbers: bool) -> float | None:
    """Return the end of the least usual scale from 0 that holds all values of `images`."""
    if min(image.least for image in images) < 0:
        return None
    greatest = max(image.greatest for image in images)
    if not whole_numbers:
        return 1.0 if greatest <= 1 else None
    return next((2.0**bits - 1 for bits in _BITS if greatest < 2**bits), None)
