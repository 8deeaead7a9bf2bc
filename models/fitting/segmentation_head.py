"""Fits the segmentation head: to crops of drawn defects and of normal images, then to its own false alarms as well, as
random crops seldom show them (hard negative mining; Shrivastava et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.detector import UInt8Array
from models.fitting.feature_cache import Crops, FrozenNetwork, hardest_crops
from models.fitting.fit_result import FitRequest
from models.fitting.optimise import optimise
from models.networks.segmentation_head import SegmentationHead, defect_loss

LEARNING_RATES = (3e-3, 2e-3)
# Crops in a step of each round: with drawn defects, of normal images, of false alarms.
ROUNDS = ((12, 4, 0), (10, 2, 4))
FALSE_ALARMS = 300
# Share of a crop's channels that are left out of a step, so that the head relies on no single one.
DROPPED = 0.1


def fit_head(
    request: FitRequest,
    network: FrozenNetwork,
    normal: Sequence[UInt8Array],
    drawn: Crops,
    plain: Crops,
    steps: int,
    warm_weights: SegmentationHead | None = None,
) -> tuple[SegmentationHead, int]:
    """Return the head, starting from `warm_weights` if given, and the steps done, at most twice `steps`.

    `normal` are searched for its false alarms.
    """
    head = (warm_weights or SegmentationHead()).to(memory_format=torch.channels_last)
    done = _round(request, head, (drawn, plain), 0, steps)
    hard = hardest_crops(
        network,
        lambda seen: head(seen.contiguous(memory_format=torch.channels_last)),
        normal,
        FALSE_ALARMS,
        request.report,
    )
    done += _round(request, head, (drawn, plain, hard), 1, steps)
    return head.to(memory_format=torch.contiguous_format), done


def _round(request: FitRequest, head: SegmentationHead, pools: Sequence[Crops], number: int, steps: int) -> int:
    rng = torch.Generator().manual_seed(2 * request.seed + number)

    def loss() -> Tensor:
        seen, shares = [], []
        for pool, count in zip(pools, ROUNDS[number], strict=False):
            picked = torch.randint(len(pool.seen), (count,), generator=rng)
            seen.append(pool.seen[picked])
            shares.append(pool.defect_share[picked])
        crops = torch.cat(seen).float()
        kept = torch.rand((*crops.shape[:2], 1, 1), generator=rng) >= DROPPED
        crops = (crops * kept / (1 - DROPPED)).contiguous(memory_format=torch.channels_last)
        return defect_loss(head(crops)[:, 0], torch.cat(shares))

    stage = f"training the head, round {number + 1} of {len(ROUNDS)}"
    return optimise(head, loss, LEARNING_RATES[number], steps, request.limits.deadline, request.report, stage)[0]
