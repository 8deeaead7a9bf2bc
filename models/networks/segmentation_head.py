"""The head of the detector `feature`: learns from drawn defects which features and residuals mean a defect.

Owns the network and its loss; `models.fitting.segmentation_head` trains it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.backbone import DETAIL, FEATURES

WIDTH = 64
# A position is defect where more than this share of its 8x8 pixels is; with less, but some, it does not count.
DEFECT_SHARE_MIN = 0.1
FOCUS = 2.0
DEFECT_WEIGHT = 0.75
FOCAL_WEIGHT = 4.0


class SegmentationHead(nn.Sequential):
    """Whitened features, the autoencoder's residuals and detail of 5x5 positions to one logit: is there a defect?"""

    def __init__(self, width: int = WIDTH) -> None:
        layers: list[nn.Module] = [nn.Conv2d(2 * FEATURES + DETAIL, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, 1, 1))


def defect_loss(logits: Tensor, defect_share: Tensor) -> Tensor:
    """Return focal plus Dice loss of `logits` `(N, h, w)`, given the share of each position that is defect.

    Focal: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, eq. 5, for the many easy positions. Dice:
    Milletari et al., V-Net, 3DV 2016, eq. 3, for the few that are defect.
    """
    wanted = (defect_share > DEFECT_SHARE_MIN).float()
    counted = ((defect_share == 0) | (wanted > 0)).float()
    found = torch.sigmoid(logits)
    right = found * wanted + (1 - found) * (1 - wanted)
    weight = DEFECT_WEIGHT * wanted + (1 - DEFECT_WEIGHT) * (1 - wanted)
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (counted * weight * (1 - right) ** FOCUS * entropy).sum() / counted.sum()
    found, wanted = found * counted, wanted * counted
    dice = 1 - (2 * (found * wanted).sum() + 1) / (found.square().sum() + wanted.square().sum() + 1)
    return FOCAL_WEIGHT * focal + dice
