"""The detector `classifier`: a pretrained network without its last layer and a linear head, normal against anomaly.

Owns how levels are pooled, and how pooled features become probability and map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.pretrained import STRIDES, PretrainedLevels

Statistic = Literal["average", "max"]
Part = tuple[Statistic, int]
"""A level, by its index, pooled over all its positions."""

PARTS: tuple[Part, ...] = (*(("average", level) for level in range(3)), *(("max", level) for level in range(3)))
POOLS: dict[str, tuple[Part, ...]] = {
    "average of the last level": (("average", 2),),
    "average of three levels": PARTS[:3],
    "average and maximum of three levels": PARTS,
}


class PooledFeatures(nn.Module):
    """Images to one vector each, pooled over positions: what the head learns from."""

    def __init__(self, backbone: PretrainedLevels) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 `(N, features)` of uint8 `(N, H, W, 3)` RGB: the `PARTS` in their order."""
        levels = self.backbone(images)
        return torch.cat([pooled(levels, part) for part in PARTS], dim=1)


class ClassifierScoringGraph(nn.Module):
    """Images to score and map, all preprocessing inside; in eval mode this is what is exported."""

    weight: Tensor
    centre: Tensor
    offset: Tensor

    def __init__(
        self,
        backbone: PretrainedLevels,
        channels: Sequence[int],
        parts: Sequence[Part],
        weight: Tensor,
        centre: Tensor,
        offset: float,
    ) -> None:
        """Take the head: log-odds are `weight · (features - centre) + offset`, float32 `(features,)` of `parts` in
        turn.

        `channels` are those of the three levels.
        """
        super().__init__()
        self.backbone = backbone
        self.parts = tuple(parts)
        self.sizes = [channels[level] for _, level in parts]
        self.stride = min(STRIDES[level] for _, level in parts)
        self.register_buffer("weight", weight)
        self.register_buffer("centre", centre)
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return score float32 `(N,)` and map float32 `(N, H/stride, W/stride)` of uint8 `(N, H, W, 3)` RGB.

        The score is the probability of an anomaly. The map is the class activation map: what each position, by the
        head's weights, adds to the log-odds (Zhou et al., Learning Deep Features for Discriminative Localization, CVPR
        2016, eq. 2), summed over levels; where it is negative, 0.
        """
        levels = self.backbone(images)
        height, width = int(images.shape[1]) // self.stride, int(images.shape[2]) // self.stride
        log_odds = self.offset
        activation = torch.zeros(1)
        weights, centres = torch.split(self.weight, self.sizes), torch.split(self.centre, self.sizes)
        for part, weight, centre in zip(self.parts, weights, centres, strict=True):
            log_odds = log_odds + ((pooled(levels, part) - centre) * weight).sum(dim=1)
            added = functional.conv2d(levels[part[1]] - centre[None, :, None, None], weight[None, :, None, None])
            grown = functional.interpolate(added, size=(height, width), mode="bilinear", align_corners=False)
            activation = activation + grown[:, 0]
        return torch.sigmoid(log_odds), functional.relu(activation)


def pooled(levels: Sequence[Tensor], part: Part) -> Tensor:
    """Return level and statistic `part` of `levels`, `(N, channels, h, w)` each, as `(N, channels)`."""
    statistic, level = part
    return levels[level].mean(dim=(2, 3)) if statistic == "average" else levels[level].amax(dim=(2, 3))
