"""How good scores and anomaly maps are against labels and masks.

Label 1 is anomaly, 0 normal; an image is called an anomaly if and only if its score is above the threshold. A metric
whose labels are not there is None. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

AUPRO_LIMIT = 0.3
"""False-positive rate up to which per-region overlap is integrated (Bergmann et al. 2021, section 5.3)."""

COMMON_SIDE_MAX = 1024
"""Pixels of the longer side at which maps and masks are compared, at most."""

# A bin keeps a float32's sign, exponent and 11 leading bits of its fraction: 2**20 bins over all floats.
_DROPPED_BITS = 12
_BINS = 1 << (32 - _DROPPED_BITS)


@dataclass(frozen=True)
class AtThreshold:
    """Counts of verdicts against labels at one threshold, and the rates they give."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); None without both labels, or when nothing was called an anomaly."""
        called = self.true_positives + self.false_positives
        return self.true_positives / called if self._has_both and called else None

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); None without anomalies."""
        return self.true_positives / self._anomalies if self._anomalies else None

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN) (van Rijsbergen 1979); None without both labels."""
        if not self._has_both:
            return None
        return 2 * self.true_positives / (2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def accuracy(self) -> float | None:
        """(TP + TN) / all; None without images."""
        total = self._anomalies + self._normals
        return (self.true_positives + self.true_negatives) / total if total else None

    @property
    def false_alarm_rate(self) -> float | None:
        """FP / (FP + TN), the share of normal images called anomalies; None without normal images."""
        return self.false_positives / self._normals if self._normals else None

    @property
    def _anomalies(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def _normals(self) -> int:
        return self.false_positives + self.true_negatives

    @property
    def _has_both(self) -> bool:
        return self._anomalies > 0 and self._normals > 0


@dataclass(frozen=True)
class BestF1:
    """The highest F1 that any threshold reaches, and the highest threshold that reaches it."""

    f1: float
    threshold: float


@dataclass(frozen=True)
class Area:
    """An area under a curve, and how far at most it can lie from the one without binning."""

    value: float
    error: float


def at_threshold(scores: Scores, labels: Labels, threshold: float) -> AtThreshold:
    """Return the counts at `threshold`; `scores` `(N,)` finite, `labels` `(N,)` of 0 and 1."""
    scores, labels = checked(scores, labels)
    called, anomaly = scores > threshold, labels == 1
    return AtThreshold(
        true_positives=int(np.sum(called & anomaly)),
        false_positives=int(np.sum(called & ~anomaly)),
        true_negatives=int(np.sum(~called & ~anomaly)),
        false_negatives=int(np.sum(~called & anomaly)),
    )


def image_auroc(scores: Scores, labels: Labels) -> float | None:
    """Return the area under the ROC curve; None without both labels.

    It is the share of pairs (anomaly, normal) in which the anomaly scores higher, ties counting half: the
    Mann-Whitney U over n₀ n₁ (Hanley and McNeil 1982, Radiology 143:29-36).
    """
    scores, labels = checked(scores, labels)
    normal, anomaly = np.sort(scores[labels == 0]), scores[labels == 1]
    if not len(normal) or not len(anomaly):
        return None
    below = np.searchsorted(normal, anomaly, side="left")
    not_above = np.searchsorted(normal, anomaly, side="right")
    return float((below + not_above).sum() / (2 * len(normal) * len(anomaly)))


def average_precision(scores: Scores, labels: Labels) -> float | None:
    """Return Σ (Rₙ − Rₙ₋₁) Pₙ over falling thresholds, without interpolation; None without both labels.

    Davis and Goadrich 2006, as scikit-learn's `average_precision_score`; equal scores are one threshold.
    """
    scores, labels = checked(scores, labels)
    anomalies = int(labels.sum())
    if anomalies in (0, len(labels)):
        return None
    true, called, _ = falling_steps(scores, labels)
    return float(np.sum(np.diff(true, prepend=0) / anomalies * true / called))


def best_f1(scores: Scores, labels: Labels) -> BestF1 | None:
    """Return the best F1 over all thresholds, what a perfect calibration could reach; None without both labels."""
    scores, labels = checked(scores, labels)
    anomalies = int(labels.sum())
    if anomalies in (0, len(labels)):
        return None
    true, called, lowest = falling_steps(scores, labels)
    f1 = 2 * true / (called + anomalies)
    best = int(np.argmax(f1))
    # Above the next lower score, that is, so that exactly the scores from lowest[best] upwards are called.
    threshold = lowest[best + 1] if best + 1 < len(lowest) else np.nextafter(lowest[best], -np.inf)
    return BestF1(float(f1[best]), float(threshold))


class PixelHistograms:
    """Pixel AUROC and AUPRO over any number of maps in 25 MB, by histograms of the maps' values.

    Both are areas under curves that need, at each threshold t, only the numbers of normal and of defect pixels above
    t, and the sum over defect regions of the share of the region above t: a sum over pixels too, each weighing
    1 / (size of its region). So three histograms are enough.

    A bin holds the float32 values that share sign, exponent and the 11 leading bits of the fraction: at most
    0.05 % of a value wide, at any scale. From one corner of a bin to the next both curves only rise, so the chord
    errs by at most half of the bin's rectangle; `Area.error` is the sum of these.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(_BINS, np.int64)
        self._defect = np.zeros(_BINS, np.int64)
        self._overlap = np.zeros(_BINS, np.float64)
        self.regions = 0

    def add(self, anomaly_map: Float32Array, mask: BoolArray | None) -> None:
        """Count the pixels of one image: map float32 `(H, W)`, mask bool `(H, W)` or None for no defect.

        Raises ValueError where the shapes differ or a value of the map is not finite.
        """
        if not np.isfinite(anomaly_map).all():
            raise ValueError("anomaly map: expected finite values; found NaN or infinity")
        keys = value_bins(anomaly_map)
        if mask is None:
            _count(self._normal, keys.ravel())
            return
        if mask.shape != anomaly_map.shape:
            raise ValueError(f"mask: expected the shape of its map, {anomaly_map.shape}; found {mask.shape}")
        _count(self._normal, keys[~mask])
        if mask.any():
            labels, regions = defect_regions(mask)
            _count(self._defect, keys[mask])
            of_pixel = labels[mask]
            _count(self._overlap, keys[mask], 1.0 / np.bincount(of_pixel)[of_pixel])
            self.regions += regions

    def auroc(self) -> Area | None:
        """Return the area under the ROC curve of all pixels; None without normal or without defect pixels."""
        return _area(self._normal, self._defect, 1.0)

    def aupro(self, limit: float = AUPRO_LIMIT) -> Area | None:
        """Return the normalised area under the per-region-overlap curve; None as for `auroc`.

        PRO(t) = 1/K Σₖ |{map > t} ∩ Cₖ| / |Cₖ| over the K connected regions Cₖ (8-connected) of all masks,
        against the false-positive rate of all normal pixels, integrated from 0 to `limit` and divided by it
        (Bergmann et al. 2021, The MVTec Anomaly Detection Dataset, IJCV 129:1038-1059, section 5.3).
        """
        return _area(self._normal, self._overlap, limit)


def common_size(height: int, width: int, side_max: int = COMMON_SIDE_MAX) -> tuple[int, int]:
    """Return height and width with the longer side at most `side_max`, the ratio kept, each at least 1."""
    shrink = min(1.0, side_max / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def resized_map(anomaly_map: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Return the map float32 `(h, w)` at `size` `(H, W)`, bilinear between the centres of its cells."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def shrunk_mask(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """Return the mask bool `(H, W)` at `size`, no larger: true where any pixel covered is; none is lost."""
    if mask.shape == size:
        return mask
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, axis=0), columns, axis=1)


def checked(scores: Scores, labels: Labels) -> tuple[Float64Array, Counts]:
    """Return both as float64 and int64 `(N,)`. Raises ValueError unless scores are finite and labels 0 or 1."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores and labels: expected (N,) both; found {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite values; found NaN or infinity")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels: expected 0 and 1; found {np.unique(labels)[:5].tolist()}")
    return scores.astype(np.float64), labels.astype(np.int64)


def falling_steps(scores: Float64Array, labels: Counts) -> tuple[Counts, Counts, Float64Array]:
    """Return, from the highest distinct score down: anomalies and images from it upwards, and the score."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    return np.cumsum(labels[order])[last], last.astype(np.int64) + 1, ordered[last]


def value_bins(values: Float32Array) -> npt.NDArray[np.uint32]:
    """Return the bin of each value; IEEE 754 floats of a sign order as integers, so bins rise with values."""
    bits = (values.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # adding 0 makes -0 into 0
    sign = np.uint32(0x8000_0000)
    return np.where(bits & sign, ~bits, bits | sign) >> np.uint32(_DROPPED_BITS)


def _count(histogram: npt.NDArray[Any], keys: npt.NDArray[np.uint32], weights: Float64Array | None = None) -> None:
    if keys.size:
        low = int(keys.min())
        counts = np.bincount(keys - np.uint32(low), weights)
        histogram[low : low + len(counts)] += counts


def defect_regions(mask: BoolArray) -> tuple[npt.NDArray[np.int32], int]:
    """Return the 8-connected regions of `mask`, numbered from 1 in int32 `(H, W)`, and how many there are."""
    from scipy import ndimage

    labels, regions = ndimage.label(mask, structure=np.ones((3, 3), np.int8))
    return labels, int(regions)


def _area(normal: Counts, gain: npt.NDArray[Any], limit: float) -> Area | None:
    """Integrate the share of `gain` over the share of `normal` from 0 to `limit`, thresholds falling."""
    if not normal.sum() or not gain.sum():
        return None
    used = np.flatnonzero((normal > 0) | (gain > 0))[::-1]
    x = np.concatenate(([0.0], np.cumsum(normal[used]) / normal.sum()))
    y = np.concatenate(([0.0], np.cumsum(gain[used]) / gain.sum()))
    at_limit = np.clip((limit - x[:-1]) / np.where(np.diff(x) > 0, np.diff(x), 1.0), 0.0, 1.0)
    width = at_limit * np.diff(x)
    end = y[:-1] + at_limit * np.diff(y)
    value = np.sum(width * (y[:-1] + end) / 2)
    # In the bin that the limit cuts, the curve may already be at the bin's upper corner.
    error = np.sum(width * np.maximum((end - y[:-1]) / 2, y[1:] - (y[:-1] + end) / 2))
    return Area(float(value / limit), float(error / limit))
