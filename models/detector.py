"""The one seam between the service and what it knows of pictures.

Everything that scores, be it a graph on OpenVINO or a stand-in in a test, is a `Detector`. The daemon,
`tamis score` and `tamis evaluate` see nothing else.
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
    """What a detector says of N pictures; in both fields higher is more anomalous.

    `scores` is float32 `(N,)`; `maps` is float32 `(N, h, w)`, the anomaly map, whose sides divide those of
    the input by the detector's stride.
    """

    scores: Float32Array
    maps: Float32Array


@runtime_checkable
class Detector(Protocol):
    """Scores pictures. Implementations are safe to call from one thread at a time."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that `score` takes."""
        ...

    def score(self, images: UInt8Array) -> Scored:
        """Score `images`, uint8 `(N, H, W, 3)` RGB with `(H, W) == input_size`, N ≥ 1.

        The score of a picture does not depend on the others in the call. Raises ValueError for another
        shape or dtype.
        """
        ...
