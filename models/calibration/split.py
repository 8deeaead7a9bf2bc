"""How images are divided: how many train and how many calibrate, in folds or once, and how products share a fit.

Pure: counts and sequences in, counts and sequences out. Which images there are is `models.data.select_images`'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

from models.calibration.thresholds import calibration_images_needed, decimal, lowest_rate
from models.errors import TooFewImages

Method = Literal["split", "cross"]
"""`split`: some normals are held out. `cross`: all train, and networks fitted without a fold score that fold."""

T = TypeVar("T")

TRAINING_IMAGES_MIN = 16
# A split that would leave fewer to train costs more accuracy than fitting once for each fold costs time.
TRAINING_IMAGES_COMFORTABLE = 40
FOLDS = 5
CALIBRATION_SHARE = 0.2
CALIBRATION_SHARE_MAX = 0.35
# More images than these change little and cost time; a larger calibration set only if the rate asks for it.
TRAINING_IMAGES_MAX = 4000
CALIBRATION_IMAGES_MAX = 1000
ANOMALIES_MAX = 1000
# A classifier learns from at least this many anomalies: cross-validation leaves out one and needs one to learn from.
CLASSIFIER_ANOMALIES_MIN = 2
ANOMALIES_HELD_OUT_SHARE = 0.2


def split(found: int, false_alarm_rate: float, method: Method | None = None) -> tuple[Method, int]:
    """Return how `found` different normals calibrate, and how many of them: with `cross`, all of them.

    Where `method` is None it is `split`, unless that would leave fewer than 40 to train and there are enough for
    folds. Raises TooFewImages naming what is needed, and the rate that `found` would do for.
    """
    needed = calibration_images_needed(false_alarm_rate)
    can_split = found >= needed + TRAINING_IMAGES_MIN
    can_cross = found >= max(needed, _cross_least())
    comfortable = found >= needed + TRAINING_IMAGES_COMFORTABLE
    if method != "split" and can_cross and (method == "cross" or not comfortable):
        return "cross", found
    if method != "cross" and can_split:
        kept = TRAINING_IMAGES_COMFORTABLE if comfortable else TRAINING_IMAGES_MIN
        fifth = min(math.ceil(CALIBRATION_SHARE * found), CALIBRATION_IMAGES_MAX, found - kept)
        most = min(math.floor(CALIBRATION_SHARE_MAX * found), found - kept)
        return "split", _whole(max(needed, fifth), most, false_alarm_rate)
    raise TooFewImages(_too_few(found, false_alarm_rate, needed, method))


def fixed_calibration(calibrate: int, train: int, false_alarm_rate: float) -> int | None:
    """Return how many of `calibrate` normals, set apart for it, do calibrate; None where too few are there or train.

    As many as can keep the rate exactly, and at most 1,000 unless the rate asks for more.
    """
    needed = calibration_images_needed(false_alarm_rate)
    if calibrate < needed or train < TRAINING_IMAGES_MIN:
        return None
    rate, most = decimal(false_alarm_rate), min(calibrate, max(needed, CALIBRATION_IMAGES_MAX))
    return next((n for n in range(most, needed - 1, -1) if ((n + 1) * rate).denominator == 1), most)


def balanced(products: Sequence[Sequence[T]]) -> list[T]:
    """Return the images of all products in turn, as many of each, at most 4,000; those of small products come again."""
    each = min(max(map(len, products)), TRAINING_IMAGES_MAX // len(products))
    return [images[number % len(images)] for number in range(each) for images in products]


def anomalies_held_out(found: int, kind: str) -> int:
    """Return how many of `found` labelled anomalies are held out: all, but for a classifier a fifth, rounded down.

    Raises TooFewImages where fewer than two would be left for a classifier to learn from.
    """
    if kind != "classifier":
        return found
    if found < CLASSIFIER_ANOMALIES_MIN:
        raise TooFewImages(
            f"training a classifier: needs at least {CLASSIFIER_ANOMALIES_MIN} different images of anomalies, as "
            f"cross-validation leaves some out and learns from the others; found {found}; the kinds feature and "
            f"pixel need none"
        )
    return math.floor(ANOMALIES_HELD_OUT_SHARE * found)


def _whole(least: int, most: int, false_alarm_rate: float) -> int:
    """Return the first n from `least` to `most` for which (n + 1) times the rate is whole; `least` if there is none.

    The expected share of false alarms is floor((n + 1) rate) / (n + 1): with n = 180 a rate of 0.01 would be kept by
    0.0055, which costs recall that nobody asked to pay.
    """
    rate = decimal(false_alarm_rate)
    return next((n for n in range(least, most + 1) if ((n + 1) * rate).denominator == 1), least)


def _cross_least() -> int:
    """Return the least number of images of which a network without its fold still has 16 to train on."""
    return math.ceil(TRAINING_IMAGES_MIN * FOLDS / (FOLDS - 1))


def _too_few(found: int, rate: float, needed: int, method: Method | None) -> str:
    ways = {"split": needed + TRAINING_IMAGES_MIN, "cross": max(needed, _cross_least())}
    least = ways[method] if method else min(ways.values())
    # How many could calibrate, at whatever rate they do for.
    split = found - TRAINING_IMAGES_MIN if method != "cross" else 0
    cross = found if method != "split" and found >= _cross_least() else 0
    usable = max(split, cross)
    fewest = _cross_least() if method == "cross" else TRAINING_IMAGES_MIN + 1
    advice = f"at least {fewest} are needed at any rate"
    if usable > 0:
        advice = f"{found} do for a rate of {lowest_rate(usable):g} or more"
    return (
        f"training at a false-alarm rate of {rate:g}: needs {least} different normal images ({needed} to "
        f"calibrate, {TRAINING_IMAGES_MIN} to train each network); found {found}; {advice}"
    )
