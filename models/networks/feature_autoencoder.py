"""The autoencoder of the detector `feature`, on features of a frozen backbone: what it cannot rebuild is unusual.

Owns the network and the whitening before it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.backbone import FEATURES

WIDTHS = (FEATURES, 108, 80, 40, 80, 108, FEATURES)
# Share of the mean eigenvalue below which a direction is not stretched further: it is mostly rounding.
EIGENVALUE_FLOOR = 1e-3


class Whitening(nn.Module):
    """A fixed 1x1 convolution after which training features have mean 0 and (nearly) the identity as covariance;
    changes nothing before `fit`.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int = FEATURES) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    def fit(self, positions: Tensor, floor: float = EIGENVALUE_FLOOR) -> None:
        """Take mean and principal axes of `positions`, `(n, channels)` of any float type, n ≥ 2.

        Directions whose variance is below `floor` times the mean are stretched as if it were that.
        """
        count = len(positions)
        blocks = [positions[start : start + 65_536] for start in range(0, count, 65_536)]
        mean = torch.stack([block.to(torch.float64).sum(0) for block in blocks]).sum(0) / count
        products = [(c := block.to(torch.float64) - mean).T @ c for block in blocks]
        covariance = torch.stack(products).sum(0) / (count - 1)
        values, axes = torch.linalg.eigh(covariance)
        floored = values.clamp_min(floor * values.mean().clamp_min(1e-12))
        self.mean.copy_(mean)
        self.matrix.copy_((axes / floored.sqrt()).T)

    def fit_standardised(self, positions: Tensor, floor: float) -> None:
        """Like `fit`, but first brings channels, whose units differ, to variance 1."""
        spread = positions.to(torch.float64).std(0).clamp_min(1e-6)
        self.fit(positions.to(torch.float64) / spread, floor)
        self.mean.copy_(self.mean.double() * spread)
        self.matrix.copy_(self.matrix.double() / spread)

    def forward(self, features: Tensor) -> Tensor:
        """Return whitened features, `(N, channels, h, w)` as they came."""
        centred = features - self.mean[None, :, None, None]
        return functional.conv2d(centred, self.matrix[:, :, None, None])


class Standardisation(nn.Module):
    """Brings each channel of training features to mean 0 and variance 1."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def fit(self, positions: Tensor) -> None:
        """Take means and standard deviations of `positions`, `(n, channels)` of any float type, n ≥ 2."""
        self.mean.copy_(positions.mean(0, dtype=torch.float32))
        squares = torch.stack([(block.float() - self.mean).square().sum(0) for block in torch.split(positions, 65_536)])
        self.deviation.copy_((squares.sum(0) / len(positions)).sqrt().clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Return standardised features, `(N, channels, h, w)` as they came."""
        return (features - self.mean[None, :, None, None]) / self.deviation[None, :, None, None]


class FeatureAutoencoder(nn.Sequential):
    """1x1 convolutions 176-108-80-40-80-108-176 with batch norm and ReLU between: each position by itself."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(WIDTHS):
            layers += [nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers[:-2])
