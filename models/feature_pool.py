"""Runs the frozen backbone once over the training pictures and keeps a bounded sample of what it says.

On OpenVINO, which is faster here than torch; the network that learns then draws its positions from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backbone import FEATURES, STRIDE, FeatureExtractor
from models.export import converted
from models.openvino_runtime import compile_queue
from models.progress import Progress
from models.training_pictures import Read

POOL_BYTES = 600_000_000


def feature_pool(
    extractor: FeatureExtractor,
    paths: Sequence[Path],
    size: tuple[int, int],
    seed: int,
    read: Read,
    report: Callable[[Progress], None],
) -> Tensor:
    """Return features of positions drawn from every picture alike, float16 `(n, 176)`, at most 600 MB."""
    queue = compile_queue(converted(extractor, size))
    positions = size[0] * size[1] // STRIDE**2
    each = min(positions, POOL_BYTES // (len(paths) * FEATURES * 2))
    pool = np.empty((len(paths), each, FEATURES), dtype=np.float16)

    def keep(request: Any, index: int) -> None:
        drawn = np.random.default_rng([seed, index]).permutation(positions)[:each]
        pool[index] = request.get_output_tensor(0).data.reshape(FEATURES, positions)[:, drawn].T

    queue.set_callback(keep)
    for index, path in enumerate(paths):
        queue.start_async({0: read(path, size)[np.newaxis]}, index)
        report(Progress("features", index + 1, len(paths)))
    queue.wait_all()
    return torch.from_numpy(pool.reshape(-1, FEATURES))
