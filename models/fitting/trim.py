"""Finds the images that are rebuilt worst, to leave them out: a few wrong labels must not teach defects as normal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.detector import Float32Array


def worst(paths: Sequence[Path], errors: Float32Array, fraction: float) -> frozenset[Path]:
    """Return the `fraction` of the different `paths`, rounded up, whose `errors` `(n,)` are highest; none at 0.

    A path that comes several times counts with its lowest error: of its copies, the one that is like the others.
    """
    found: dict[Path, float] = {}
    for path, error in zip(paths, errors, strict=True):
        found[path] = min(float(error), found.get(path, math.inf))
    count = math.ceil(fraction * len(found)) if fraction > 0 else 0
    # Ties go in the order given, so that the same images give the same result.
    return frozenset(sorted(found, key=found.__getitem__, reverse=True)[:count])


def mean_of_highest(errors: Float32Array, share: float) -> Float32Array:
    """Return the mean of the highest `share` of each row of `errors` `(n, positions)`: a defect is a small part."""
    count = max(1, round(share * errors.shape[1]))
    highest = np.partition(errors, errors.shape[1] - count, axis=1)[:, -count:]
    means: Float32Array = highest.mean(axis=1, dtype=np.float32)
    return means
