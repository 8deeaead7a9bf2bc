"""Measures the three kinds of evidence of the detector `feature` on pictures, on OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.detector import UInt8Array
from models.export import converted
from models.feature_graph import EVIDENCE, FeatureEvidence
from models.openvino_runtime import compile_queue


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
