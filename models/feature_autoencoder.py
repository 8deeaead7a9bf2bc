"""The detector `feature`: an autoencoder over features of a frozen backbone; what it cannot rebuild is unusual.

Owns the network and the whitening before it, and how an error map becomes a score. Training it is
`models.train`'s, the backbone `models.backbone`'s.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbone import FEATURES, STRIDE, FeatureExtractor

WIDTHS = (FEATURES, 108, 80, 40, 80, 108, FEATURES)
# Share of the mean eigenvalue below which a direction is not stretched further: it is mostly rounding.
EIGENVALUE_FLOOR = 1e-3
# Share of the map's positions, the worst ones, whose mean is the score: steadier than the single worst.
SCORED_SHARE = 0.01


class Whitening(nn.Module):
    """A fixed 1x1 convolution after which training features have mean 0 and covariance (nearly) the identity."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int = FEATURES) -> None:
        """Make one that changes nothing; `fit` gives it its mean and matrix."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    def fit(self, positions: Tensor) -> None:
        """Take mean and principal axes of `positions`, `(n, channels)` of any float type, n ≥ 2."""
        count = len(positions)
        blocks = [positions[start : start + 65_536] for start in range(0, count, 65_536)]
        mean = torch.stack([block.to(torch.float64).sum(0) for block in blocks]).sum(0) / count
        products = [(c := block.to(torch.float64) - mean).T @ c for block in blocks]
        covariance = torch.stack(products).sum(0) / (count - 1)
        values, axes = torch.linalg.eigh(covariance)
        floored = values.clamp_min(EIGENVALUE_FLOOR * values.mean())
        self.mean.copy_(mean)
        self.matrix.copy_((axes / floored.sqrt()).T)

    def forward(self, features: Tensor) -> Tensor:
        """Return whitened features, `(N, channels, h, w)` as they came."""
        centred = features - self.mean[None, :, None, None]
        return functional.conv2d(centred, self.matrix[:, :, None, None])


class FeatureAutoencoder(nn.Sequential):
    """1x1 convolutions 176-108-80-40-80-108-176 with batch norm and ReLU between: each position for itself."""

    def __init__(self) -> None:
        """Make it with random weights from torch's seed."""
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(WIDTHS):
            layers += [nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers[:-2])


class FeatureScoringGraph(nn.Module):
    """Pictures to score and map, all preprocessing inside; in eval mode this is what is exported."""

    stride = STRIDE

    def __init__(self, extractor: FeatureExtractor, whitening: Whitening, autoencoder: FeatureAutoencoder) -> None:
        """Put the three parts, as trained, one behind the other."""
        super().__init__()
        self.extractor = extractor
        self.whitening = whitening
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return score float32 `(N,)` and map float32 `(N, H/8, W/8)` of uint8 `(N, H, W, 3)` RGB.

        The map is the mean over channels of the squared error, averaged over 3x3; the score is the mean of
        its highest 1 %.
        """
        whitened = self.whitening(self.extractor(images))
        errors = (self.autoencoder(whitened) - whitened).square().mean(dim=1, keepdim=True)
        smooth = functional.avg_pool2d(errors, 3, stride=1, padding=1, count_include_pad=False)[:, 0]
        positions = smooth.flatten(1)
        worst = max(1, round(SCORED_SHARE * int(positions.shape[1])))
        return positions.topk(worst, dim=1).values.mean(dim=1), smooth
