"""The one seam between the service and what it knows of images: everything that scores, be it a graph on OpenVINO or a
stand-in in a test, is a `Detector`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """What a detector says of N images: `scores` float32 `(N,)` and anomaly maps `maps` float32 `(N, h, w)`, whose
    sides divide those of the input by the detector's stride.

    In both higher is more anomalous.
    """

    scores: Float32Array
    maps: Float32Array


@runtime_checkable
class Detector(Protocol):
    """Scores images of `input_size`, height and width. Implementations are safe to call from one thread at a time."""

    input_size: tuple[int, int]

    def score(self, images: UInt8Array) -> Scored:
        """Score `images`, uint8 `(N, H, W, 3)` RGB with `(H, W) == input_size`, N ≥ 1, each for itself.

        Raises ValueError for another shape or dtype.
        """
        ...


def check_images(images: UInt8Array, input_size: tuple[int, int]) -> None:
    """Raise ValueError where `images` are not what a detector of `input_size` takes."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise ValueError(f"images: expected dtype uint8; found {getattr(images, 'dtype', type(images).__name__)}")
    height, width = input_size
    if images.ndim != 4 or images.shape[1:] != (height, width, 3) or len(images) < 1:
        raise ValueError(f"images: expected shape (N, {height}, {width}, 3) with N ≥ 1; found {images.shape}")
