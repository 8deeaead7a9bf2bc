"""Drift: whether a product's images still score like those its champion was calibrated on, since when, and why. Pure.

Owns which images the tests of `models.drift.drift` compare: the latest since the champion became one, without those
that people confirmed as anomalies, and the first ones, whose image statistics show whether the light changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from models.appearance import FIGURES
from models.drift.drift import IMAGES_MIN, Moved, cause_of, change_point, compare, look_moved
from service.root import ANOMALY, NORMAL
from service.storage.drift import DriftRow, ScoredImage

STEADY = "steady"
DRIFTING = "drifting"
# A cause on record is replaced by another one only after so many windows' worth of new images.
NEW_CAUSE_WINDOWS = 0.25

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DriftSubject:
    """A product and what its images are compared with.

    `reference` holds scores, from the calibration or, for a product that another's champion scores, from its own first
    images; `image_statistics` those of the images which the version was calibrated on, `(n, 3)`, where they are known.
    """

    product: str
    version: str
    window: int
    threshold: float | None
    reference: Float64Array
    of_calibration: bool
    image_statistics: Float64Array


def assess(
    subject: DriftSubject,
    first: Sequence[ScoredImage],
    recent: Sequence[ScoredImage],
    before: DriftRow | None,
    at: datetime,
) -> DriftRow | None:
    """Return the row of a change of state, or None where the state is as `before`, or nothing can be said yet.

    `first` are the images since the champion became one, `recent` the latest of them; both oldest first, scored by
    the version of `subject`, and without gaps.
    """
    known = before if before is not None and before.version == subject.version else None
    window = recent[-subject.window :]
    normals = [image for image in window if image.label != ANOMALY]
    if len(window) < IMAGES_MIN:
        return None
    drifting = known if known is not None and known.state == DRIFTING else None
    already = drifting is not None
    of_all = compare(subject.reference, scores_of(window), subject.threshold)
    of_normals = (
        compare(subject.reference, scores_of(normals), subject.threshold) if len(normals) >= IMAGES_MIN else None
    )
    normals_drift = of_normals is not None and of_normals.drifts(already=already)
    # What people confirmed counts as defects: by their number, and not as normals that score otherwise.
    confirmed = of_all.exceeds(already=already)
    figures = {
        **asdict(of_normals or of_all),
        "confirmed_anomalies": len(window) - len(normals),
        "threshold": subject.threshold,
        "reference": "calibration" if subject.of_calibration else "first images",
        "reference_images": len(subject.reference),
        "last_image_id": window[-1].id,
    }
    if not normals_drift and not confirmed:
        if known is not None and drifting is None:
            return None
        return DriftRow(subject.product, subject.version, STEADY, None, None, at, figures)
    began_at = _began(subject, drifting, recent, only_normals=normals_drift)
    after = [image for image in recent if order_of(image) >= began_at]
    image_statistics = look_moved(_statistics_before(subject, first, began_at), _statistics(after))
    cause = _cause(subject, after, image_statistics) if normals_drift else "defects"
    if drifting is not None and not _another_cause(drifting, cause, recent, subject.window):
        return None
    first_id = drifting.first_image_id if drifting is not None else began_at[1]
    look = {name: None if one is None else asdict(one) for name, one in image_statistics.items()}
    figures |= {"images_since": len(after), "look": look}
    return DriftRow(subject.product, subject.version, DRIFTING, cause, first_id, at, figures)


def _began(
    subject: DriftSubject, drifting: DriftRow | None, recent: Sequence[ScoredImage], *, only_normals: bool
) -> tuple[datetime, str]:
    if drifting is not None:
        return order_of(next((image for image in recent if image.id == drifting.first_image_id), recent[0]))
    series = [image for image in recent if not only_normals or image.label != ANOMALY]
    return order_of(series[change_point(subject.reference, scores_of(series), subject.threshold)])


def _cause(subject: DriftSubject, after: Sequence[ScoredImage], image_statistics: dict[str, Moved | None]) -> str:
    normals = [image for image in after if image.label != ANOMALY]
    cause = cause_of(subject.reference, scores_of(normals), subject.threshold, image_statistics)
    if cause == "defects" and subject.threshold is not None:
        beyond = [image for image in after if (image.score or 0.0) > subject.threshold]
        labels = [image.label for image in beyond]
        # People looked, and found more of them good than bad.
        if labels.count(NORMAL) > labels.count(ANOMALY):
            return "unknown"
    return cause


def _another_cause(known: DriftRow, cause: str, recent: Sequence[ScoredImage], window: int) -> bool:
    if cause in (known.cause, "unknown"):
        return False
    if known.cause == "unknown":
        return True
    ids = [image.id for image in recent]
    last = known.figures.get("last_image_id")
    return last not in ids or len(ids) - 1 - ids.index(last) >= NEW_CAUSE_WINDOWS * window


def _statistics_before(
    subject: DriftSubject, first: Sequence[ScoredImage], began_at: tuple[datetime, str]
) -> Float64Array:
    before = _statistics([image for image in first if order_of(image) < began_at and image.label != ANOMALY])
    enough = np.isfinite(before).any(axis=1).sum() >= IMAGES_MIN
    return before if enough or not len(subject.image_statistics) else subject.image_statistics


def scores_of(images: Sequence[ScoredImage]) -> Float64Array:
    """Return the scores of `images`, float64 `(n,)`."""
    return np.asarray([image.score for image in images], dtype=np.float64)


def _statistics(images: Sequence[ScoredImage]) -> Float64Array:
    """Return brightness, contrast and sharpness, float64 `(n, 3)`; NaN is not known."""
    values = [(image.brightness, image.contrast, image.sharpness) for image in images]
    return np.asarray(values, dtype=np.float64).reshape(-1, len(FIGURES))


def order_of(image: ScoredImage) -> tuple[datetime, str]:
    """Return the place of `image` in time."""
    return image.received_at, image.id
