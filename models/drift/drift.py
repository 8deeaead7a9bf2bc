"""Drift: whether the latest scores of a product are still like its calibration's, since when, and why.

Pure. Tests are made again and again over overlapping windows, so the level is low, and drift ends at another level than
it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.appearance import FIGURES
from models.drift.p_values import Float64Array, binomial_p_value, ks_distance, ks_p_value, share_p_value

Cause = Literal["light", "defects", "unknown"]

IMAGES_MIN = 20
"""Images without which nothing is said, neither of a window nor of what it is compared with."""

# So low that of 100 products that do not drift, fewer than one is ever said to drift in 10,000 images:
# tests/models/drift/test_drift.py simulates it. The share can be told at a higher level, as its windows differ less.
# Drift ends at another level than it begins, so that no product goes to and fro.
DISTANCE_BEGINS_BELOW = 1e-6
SHARE_BEGINS_BELOW = 1e-5
ENDS_ABOVE = 1e-3
# The cause is looked for once there is drift, so its tests are of the usual kind.
CAUSE_LEVEL = 0.01
# Look of the images: how far a median must have moved, in robust standard deviations of the reference, and the least
# deviation that counts as one: a grey level, and for sharpness a share of its median.
MOVED_DEVIATIONS = 2.0
GREY_LEVELS_MIN = 1.0
SHARPNESS_SHARE_MIN = 0.05
# A detector may miss two defects for each that it finds; but most parts are none.
SEEN_OF_DEFECTS = 3
DEFECTS_MAX = 0.75
MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """A window of `images` scores against a reference, each test with its p-value: `distance` is that of Kolmogorov and
    Smirnov, 0 to 1, for any change; `beyond`, for few images that are far out, is how many scores are above the
    threshold, None where there is none.
    """

    images: int
    distance: float
    distance_p_value: float
    beyond: int | None
    beyond_p_value: float | None

    def drifts(self, *, already: bool) -> bool:
        """Return whether there is drift, given whether there was `already`."""
        far = self.distance_p_value < (ENDS_ABOVE if already else DISTANCE_BEGINS_BELOW)
        return far or self.exceeds(already=already)

    def exceeds(self, *, already: bool) -> bool:
        """Return whether there is drift by the share beyond the threshold alone."""
        level = ENDS_ABOVE if already else SHARE_BEGINS_BELOW
        return self.beyond_p_value is not None and self.beyond_p_value < level


def compare(reference: npt.ArrayLike, scores: npt.ArrayLike, threshold: float | None) -> ScoreComparison:
    """Return how `scores` `(m,)` compare with those of the reference `(n,)`, both not empty and finite."""
    known, window = _sorted(reference), np.asarray(scores, dtype=np.float64)
    distance = ks_distance(known, window)
    p_value = ks_p_value(distance, len(known), len(window))
    if threshold is None:
        return ScoreComparison(len(window), distance, p_value, None, None)
    beyond = int(np.count_nonzero(window > threshold))
    return ScoreComparison(
        len(window), distance, p_value, beyond, share_p_value(beyond, len(window), *_promise(known, threshold))
    )


def change_point(reference: npt.ArrayLike, scores: npt.ArrayLike, threshold: float | None) -> int:
    """Return the index of the score, in order of time, from which on `scores` are least like the reference.

    The index is that of the highest log likelihood ratio of all that follows against the reference, the higher of two:
    of a share q beyond the threshold against the promised r, m KL(q, r); and of a mean rank away from that of the
    reference, 6 (sum of (u - 1/2))^2 / m with the rank u in (0, 1), whose variance is 1/12. It is the estimate of
    maximum likelihood of the time of a change from a known state to one that is not (Hinkley, Inference about the
    change-point in a sequence of random variables, Biometrika 1970).
    """
    known, series = _sorted(reference), np.asarray(scores, dtype=np.float64)
    following = np.arange(len(series), 0, -1)
    middle = (np.searchsorted(known, series, "left") + np.searchsorted(known, series, "right")) / 2
    ranks = (middle + 0.5) / (len(known) + 1)
    gain = 6 * _sums_from(ranks - 0.5) ** 2 / following
    if threshold is not None:
        false_alarms, n = _promise(known, threshold)
        promised = false_alarms / (n + 1)
        share = _sums_from(series > threshold) / following
        gain = np.maximum(gain, np.where(share > promised, following * _divergence(share, promised), 0.0))
    return int(np.argmax(gain))


@dataclass(frozen=True, slots=True)
class Moved:
    """How the look of images moved: the medians before and after, and whether that is more than they vary."""

    before: float
    after: float
    moved: bool


def moved(before: npt.ArrayLike, after: npt.ArrayLike, deviation_min: float) -> Moved | None:
    """Return how one figure of the look moved between two groups of images; None where one has too few of them.

    It moved if the medians are `MOVED_DEVIATIONS` robust standard deviations apart and the groups differ by the
    Kolmogorov-Smirnov test. NaN is a figure that is not known.
    """
    old, new = (values[np.isfinite(values)] for values in (np.asarray(before, float), np.asarray(after, float)))
    if min(len(old), len(new)) < IMAGES_MIN:
        return None
    centre, other = float(np.median(old)), float(np.median(new))
    deviation = max(MAD_TO_DEVIATION * float(np.median(np.abs(old - centre))), deviation_min)
    far = abs(other - centre) >= MOVED_DEVIATIONS * deviation
    differ = ks_p_value(ks_distance(np.sort(old), new), len(old), len(new)) < CAUSE_LEVEL / len(FIGURES)
    return Moved(centre, other, far and differ)


def look_moved(before: npt.ArrayLike, after: npt.ArrayLike) -> dict[str, Moved | None]:
    """Return for each of `FIGURES` how it moved, from arrays `(n, 3)` in their order; NaN is not known."""
    old, new = np.asarray(before, float).reshape(-1, 3), np.asarray(after, float).reshape(-1, 3)
    found = {}
    for column, name in enumerate(FIGURES):
        least = GREY_LEVELS_MIN
        if name == "sharpness":
            known = old[:, column][np.isfinite(old[:, column])]
            least = SHARPNESS_SHARE_MIN * float(np.median(known)) if len(known) else 0.0
        found[name] = moved(old[:, column], new[:, column], least)
    return found


def cause_of(
    reference: npt.ArrayLike, scores: npt.ArrayLike, threshold: float | None, image_statistics: dict[str, Moved | None]
) -> Cause:
    """Return why `scores` `(m,)`, those since drift began, are not like the reference, as far as that can be told.

    A defect leaves the other parts as they were, and the look of most images; the light changes every image.

    - `light`: brightness, contrast or sharpness moved, and so did the bulk of the scores: fewer lie at or below the
      reference's median than if all that is beyond the threshold were defects, or more than half of them are beyond.
    - `defects`: none of the three moved, and the bulk is as before: no fewer lie at or below that median than if twice
      as many defects again were hidden below the threshold, and no more than half of the images are beyond it.
    - `unknown`: anything else, such as all images scoring higher in the same light.
    """
    known, after = _sorted(reference), np.asarray(scores, dtype=np.float64)
    judged = [one for one in image_statistics.values() if one is not None]
    if not len(after):
        return "unknown"
    share = 0.0 if threshold is None else float(np.mean(after > threshold))
    low = int(np.count_nonzero(after <= np.median(known)))
    if any(one.moved for one in judged):
        shifted = _too_few(low, len(after), 0.5 * (1 - share)) or _too_many(low, len(after))
        return "light" if shifted or share > 0.5 else "unknown"
    if len(judged) < len(image_statistics) or threshold is None or not 0 < share <= 0.5:
        return "unknown"
    defects = min(SEEN_OF_DEFECTS * share, DEFECTS_MAX)
    as_before = not _too_few(low, len(after), 0.5 * (1 - defects)) and not _too_many(low, len(after))
    return "defects" if as_before and _raised(known, after, threshold) else "unknown"


def _promise(known: Float64Array, threshold: float) -> tuple[int, int]:
    """Return as which highest of the reference `threshold` counts, and how many these are."""
    n = len(known)
    above = n - int(np.searchsorted(known, threshold, "right"))
    at_least = n - int(np.searchsorted(known, threshold, "left"))
    return max(above + 1, at_least), n


def _divergence(share: Float64Array, promised: float) -> Float64Array:
    """Return KL(share, promised) of two Bernoulli distributions, in nats."""
    p = min(max(promised, 1e-12), 1 - 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_ones = np.where(share > 0, share * np.log(share / p), 0.0)
        of_zeros = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - p)), 0.0)
    divergence: Float64Array = of_ones + of_zeros
    return divergence


def _sums_from(values: npt.ArrayLike) -> Float64Array:
    """Return for each index the sum of the values from it on."""
    sums: Float64Array = np.cumsum(np.asarray(values, dtype=np.float64)[::-1])[::-1]
    return sums


def _too_few(low: int, images: int, share: float) -> bool:
    """Return whether `low` of `images` is less than a share of `share` gives."""
    return binomial_p_value(images - low, images, 1 - share) < CAUSE_LEVEL


def _too_many(low: int, images: int) -> bool:
    """Return whether `low` of `images` is more than half of them give."""
    return binomial_p_value(low, images, 0.5) < CAUSE_LEVEL


def _raised(known: Float64Array, after: Float64Array, threshold: float) -> bool:
    """Return whether more of `after` is above the threshold than the promise gives."""
    beyond = int(np.count_nonzero(after > threshold))
    return share_p_value(beyond, len(after), *_promise(known, threshold)) < CAUSE_LEVEL


def _sorted(values: npt.ArrayLike) -> Float64Array:
    return np.sort(np.asarray(values, dtype=np.float64))
