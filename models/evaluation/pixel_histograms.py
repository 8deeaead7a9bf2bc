"""Pixel AUROC and AUPRO of resampled images, in little memory: of each image three coarse histograms of its map's
values are kept, so that a resample is a weighted sum of histograms.

`models.evaluation.metrics` has the finer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import AUPRO_LIMIT, BoolArray, Float32Array, Float64Array, defect_regions, value_bins

# Of the 11 bits of fraction of a bin of `models.evaluation.metrics`, 5 are left: 3 % of a value, far below what
# resampling moves.
_DROPPED_BITS = 6


@dataclass(frozen=True)
class _Image:
    bins: npt.NDArray[np.int64]
    counts: Float32Array  # (3, bins): normal pixels, defect pixels, defect pixels by 1 / size of their region


class ImageHistograms:
    """Coarse histograms of the maps of any number of images, some kilobytes each."""

    def __init__(self) -> None:
        self._images: dict[Path, _Image] = {}

    def add(self, path: Path, anomaly_map: Float32Array, mask: BoolArray | None) -> None:
        """Count the pixels of an image: finite map float32 `(H, W)`, mask bool `(H, W)`, None for no defect."""
        bins = (value_bins(anomaly_map) >> np.uint32(_DROPPED_BITS)).astype(np.int64)
        low = int(bins.min())
        places = int(bins.max()) - low + 1
        counts = np.zeros((3, places))
        if mask is None or not mask.any():
            counts[0] = np.bincount(bins.ravel() - low, minlength=places)
        else:
            regions = defect_regions(mask)[0][mask]
            of_defect = bins[mask] - low
            counts[0] = np.bincount(bins[~mask] - low, minlength=places)
            counts[1] = np.bincount(of_defect, minlength=places)
            counts[2] = np.bincount(of_defect, 1.0 / np.bincount(regions)[regions], minlength=places)
        used = np.flatnonzero(counts[0] + counts[1])
        self._images[path] = _Image(used + low, counts[:, used].astype(np.float32))

    def of(self, paths: Sequence[Path]) -> ResampledPixels | None:
        """Return what resamples the images at `paths`, N of them; None where no map of them was counted."""
        known = [(index, self._images[path]) for index, path in enumerate(paths) if path in self._images]
        return ResampledPixels(known) if known else None


class ResampledPixels:
    """Pixel AUROC and AUPRO of resamples of a fixed list of images."""

    def __init__(self, known: Sequence[tuple[int, _Image]]) -> None:
        bins = np.unique(np.concatenate([image.bins for _, image in known]))
        self._indices = [index for index, _ in known]
        self._counts = np.zeros((3, len(known), len(bins)), np.float32)
        for row, (_, image) in enumerate(known):
            # From the highest value down, as thresholds fall.
            self._counts[:, row, len(bins) - 1 - np.searchsorted(bins, image.bins)] = image.counts

    def resampled(self, weights: npt.NDArray[np.integer[Any]]) -> dict[str, Float64Array]:
        """Return `pixel_auroc` and `aupro`, float64 `(B,)` each, of B resamples; NaN without normal or without defect
        pixels.

        `weights` `(B, N)` says how often each of the N images is in a resample.
        """
        known = weights[:, self._indices].astype(np.float32)
        normal, defect, overlap = (np.cumsum(known @ part, axis=1, dtype=np.float64) for part in self._counts)
        return {"pixel_auroc": _areas(normal, defect, 1.0), "aupro": _areas(normal, overlap, AUPRO_LIMIT)}


def _areas(normal: Float64Array, gain: Float64Array, limit: float) -> Float64Array:
    """Return the areas by chords under `gain` over `normal`, cumulative `(B, K)` both, from 0 to `limit`, over it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.pad(normal / normal[:, -1:], ((0, 0), (1, 0)))
        y = np.pad(gain / gain[:, -1:], ((0, 0), (1, 0)))
        step = np.diff(x, axis=1)
        inside = np.clip((limit - x[:, :-1]) / np.where(step > 0, step, 1.0), 0.0, 1.0)
    end = y[:, :-1] + inside * np.diff(y, axis=1)
    return np.asarray(np.sum(inside * step * (y[:, :-1] + end) / 2, axis=1) / limit)
