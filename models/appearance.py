"""How an image looks as a whole: brightness, contrast and sharpness, three figures that follow the light and the lens.

They tell a change of the light from a change of the parts; no verdict rests on them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.detector import UInt8Array

FIGURES = ("brightness", "contrast", "sharpness")

LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Appearance:
    """`brightness`: mean of the luma, 0 to 255. `contrast`: its standard deviation. `sharpness`: the mean absolute
    Laplacian of the luma, in grey levels; None where an image has no pixel with four neighbours.
    """

    brightness: float
    contrast: float
    sharpness: float | None

    def as_row(self) -> tuple[float, float, float]:
        """Return the three in the order of `FIGURES`; NaN is not known."""
        return self.brightness, self.contrast, float("nan") if self.sharpness is None else self.sharpness


def appearance_of(pixels: UInt8Array) -> Appearance:
    """Return how `pixels`, uint8 `(H, W, 3)` RGB, look; comparable with images of the same size.

    The luma is that of ITU-R BT.601, rounded to whole grey levels. The Laplacian at a pixel is four times its luma less
    that of the four neighbours; pixels at the edge have none.
    """
    grey = Image.fromarray(pixels).convert("L")
    counts = np.asarray(grey.histogram(), dtype=np.float64)
    brightness = float(counts @ LEVELS / counts.sum())
    contrast = float(np.sqrt(counts @ (LEVELS - brightness) ** 2 / counts.sum()))
    return Appearance(brightness, contrast, _sharpness(np.asarray(grey)))


def _sharpness(luma: UInt8Array) -> float | None:
    if min(luma.shape) < 3:
        return None
    # 16 bits hold four times 255 with its sign.
    wide = luma.astype(np.int16)
    laplacian = wide[1:-1, 1:-1] << 2
    for neighbours in (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]):
        laplacian -= neighbours
    np.abs(laplacian, out=laplacian)
    return float(laplacian.sum(dtype=np.int64) / laplacian.size)
