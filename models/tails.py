"""Measures the three kinds of evidence of the detector `feature` on normal pictures that no network was fitted to.

Owns how the false alarms that a picture may cause are shared among the kinds: in proportion to what each finds of
defects drawn on such pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.detector import UInt8Array
from models.drawn_defects import draw_defects
from models.export import converted
from models.feature_graph import EVIDENCE, FeatureEvidence
from models.openvino_runtime import compile_queue

# At the false-alarm rate by which kinds are compared.
COMPARED_AT = 0.05
# No kind is given up: drawn defects are not all that there is.
FOUND_MIN = 0.1
DRAWN = 200


class Evidence:
    """What each kind of evidence says of pictures, on OpenVINO."""

    def __init__(self, evidence: FeatureEvidence, size: tuple[int, int]) -> None:
        """Compile `evidence`, in eval mode, for pictures of `size`."""
        self._queue = compile_queue(converted(evidence, size))

    def of(self, pictures: Sequence[UInt8Array]) -> Tensor:
        """Return float32 `(n, 3)`."""
        found = np.empty((len(pictures), len(EVIDENCE)), dtype=np.float32)

        def keep(request: Any, index: int) -> None:
            found[index] = request.get_output_tensor(0).data[0]

        self._queue.set_callback(keep)
        for index, picture in enumerate(pictures):
            self._queue.start_async({0: picture[np.newaxis]}, index)
        self._queue.wait_all()
        return torch.from_numpy(found)


def shares_of_false_alarms(
    evidence: Evidence, tune: Sequence[UInt8Array], others: Sequence[UInt8Array], seed: int
) -> Tensor:
    """Return, float32 `(3,)` of sum 1, which share of false alarms each kind of evidence may cause.

    `tune` are normal pictures that no network was fitted to; on copies of them defects are drawn.
    """
    chance = np.random.default_rng([seed, 5])
    drawn = [draw_defects(tune[number % len(tune)], others, chance)[0] for number in range(max(DRAWN, len(tune)))]
    normal, unusual = evidence.of(tune), evidence.of(drawn)
    limits = torch.quantile(normal, 1 - COMPARED_AT, dim=0)
    found = (unusual > limits).float().mean(dim=0).clamp_min(FOUND_MIN)
    return found / found.sum()
