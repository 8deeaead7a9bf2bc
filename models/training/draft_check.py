"""Decides at training whether images may be read as drafts: large JPEGs decoded at a fraction of their size.

A draft is decoded several times faster and differs by a grey level here and there. It is used where that moves
no score by more than a hundredth of the threshold; how one is read is the caller's, what came of it is the version's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.data.select_images import Chosen, Read
from models.detector import Detector, Float32Array, UInt8Array
from models.manifest import DraftCheck

# Gives None for an image of which there is no draft: no JPEG, or not large enough.
ReadDraft = Callable[[Path, tuple[int, int]], UInt8Array | None]

IMAGES_MAX = 64
CHANGE_MAX = 0.01


NOT_ASKED = DraftCheck(draft=False, images=0, max_score_change=None, reason="there is no way to read a draft")


def check_drafts(
    detectors: Sequence[Detector], products: Sequence[Chosen], read: Read, read_draft: ReadDraft | None
) -> tuple[list[DraftCheck], Read]:
    """Return for each of `products`, scored by its own detector, whether drafts may be used, and how to read then."""
    checks = [
        check_draft(detector, [p.path for p in each.calibrate], read, read_draft, each.false_alarm_rate)
        for detector, each in zip(detectors, products, strict=True)
    ]
    as_drafts = {
        image.path
        for each, check in zip(products, checks, strict=True)
        if check.draft
        for image in (*each.calibrate, *each.held_out_anomalies)
    }

    def as_shipped(path: Path, size: tuple[int, int]) -> UInt8Array:
        draft = read_draft(path, size) if read_draft is not None and path in as_drafts else None
        return read(path, size) if draft is None else draft

    return checks, as_shipped


def check_draft(
    detector: Detector, images: Sequence[Path], read: Read, read_draft: ReadDraft | None, false_alarm_rate: float
) -> DraftCheck:
    """Compare the scores of up to 64 held-out normal `images`, read whole and as drafts.

    A change counts in units of the threshold t that these images give, their score at `false_alarm_rate`:
    max |s_draft - s_whole| / max(|t|, t - median). Where scores lie around 0 or below it, so that t says nothing of
    their size, it is the distance from an ordinary image to the threshold that counts.
    """
    if read_draft is None:
        return NOT_ASKED
    whole, drafted, compared = [], [], 0
    for path in images[:IMAGES_MAX]:
        draft = read_draft(path, detector.input_size)
        whole.append(_score(detector, read(path, detector.input_size)))
        drafted.append(whole[-1] if draft is None else _score(detector, draft))
        compared += draft is not None
    if not compared:
        reason = "no image is a JPEG of at least four times the input size"
        return DraftCheck(draft=False, images=0, max_score_change=None, reason=reason)
    change = score_change(np.concatenate(whole), np.concatenate(drafted), false_alarm_rate)
    if change <= CHANGE_MAX:
        return DraftCheck(draft=True, images=compared, max_score_change=change)
    reason = f"expected a change of at most {CHANGE_MAX:g} of the threshold"
    return DraftCheck(draft=False, images=compared, max_score_change=change, reason=reason)


def score_change(whole: Float32Array, drafted: Float32Array, false_alarm_rate: float) -> float:
    """Return the largest change between two scores of each image, both `(n,)`, in units of the threshold.

    Infinite where a score is not finite, or where all scores are the same and one changes.
    """
    if not (np.isfinite(whole).all() and np.isfinite(drafted).all()):
        return float("inf")
    largest = float(np.abs(drafted.astype(np.float64) - whole).max())
    threshold = float(np.quantile(whole, 1 - false_alarm_rate, method="higher"))
    unit = max(abs(threshold), threshold - float(np.median(whole)))
    if largest == 0:
        return 0.0
    return largest / unit if unit > 0 else float("inf")


def _score(detector: Detector, pixels: UInt8Array) -> Float32Array:
    return detector.score(pixels[np.newaxis]).scores
