"""Finds the part on a plain background, so that defects can be drawn on it and not on the table under it.

The background is what the image's edge shows. Where there is none, as where a surface fills the image, all is part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.detector import Float32Array, UInt8Array

STEP = 4  # pixels in each direction for each place that is looked at
EDGE_SHARE = 0.04
# Background and part are told apart if their distances from the edge's colours explain this share of the variance.
SEPARATION_MIN = 0.6
PART_SHARE = (0.01, 0.85)
EDGE_PART_MAX = 0.1


def foreground(image: UInt8Array) -> npt.NDArray[np.bool_] | None:
    """Return where the part is, bool `(H/4, W/4)` rounded up, in uint8 `(H, W, 3)`; None if there is no background.

    The Mahalanobis distance of a place's colour from the colours at the edge decides, at the threshold of Otsu (A
    threshold selection method from gray-level histograms, 1979).
    """
    colours = ndimage.uniform_filter(image.astype(np.float32), (STEP, STEP, 0))[::STEP, ::STEP]
    rows, columns = colours.shape[:2]
    deep = max(1, round(EDGE_SHARE * min(rows, columns)))
    edge = np.ones((rows, columns), dtype=bool)
    edge[deep:-deep, deep:-deep] = False
    distances = _distances(colours, colours[edge])
    threshold, separation = _otsu(distances)
    part: npt.NDArray[np.bool_] = distances > threshold
    least, most = PART_SHARE
    if separation < SEPARATION_MIN or not least < part.mean() < most or part[edge].mean() > EDGE_PART_MAX:
        return None
    # A defect of the part's outline starts beside it.
    grown: npt.NDArray[np.bool_] = ndimage.binary_dilation(ndimage.binary_opening(part, iterations=1), iterations=2)
    return grown if grown.any() else None


def _distances(colours: Float32Array, ground: Float32Array) -> Float32Array:
    """Return how many standard deviations of `ground` `(n, 3)` each of `colours` `(h, w, 3)` lies from its middle."""
    middle = np.median(ground, axis=0)
    covariance = np.cov(ground - middle, rowvar=False) + 9 * np.eye(3)  # three grey levels are noise anywhere
    away = colours - middle
    distances: Float32Array = np.sqrt(np.einsum("hwi,ij,hwj->hw", away, np.linalg.inv(covariance), away))
    return distances


def _otsu(values: Float32Array) -> tuple[float, float]:
    """Return the threshold that explains most of the variance of `values`, and that share."""
    counts, edges = np.histogram(np.log1p(values), bins=128)
    middles = (edges[:-1] + edges[1:]) / 2
    weights = counts / counts.sum()
    below, mean = np.cumsum(weights), np.cumsum(weights * middles)
    total = mean[-1]
    variance = float((weights * (middles - total) ** 2).sum())
    inner = (below > 0) & (below < 1)
    if variance <= 0 or not inner.any():
        return float(values.max()), 0.0
    between = np.zeros_like(below)
    between[inner] = (total * below[inner] - mean[inner]) ** 2 / (below[inner] * (1 - below[inner]))
    best = int(between.argmax())
    return float(np.expm1(edges[best + 1])), float(between[best] / variance)
