"""The detector `pixel`: a plain convolutional autoencoder on pixels; what it cannot redraw is unusual.

Owns the network and how its error becomes map and score. Needs no pretrained weights.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (3, 32, 64, 128, 128)  # each step halves the sides
BOTTLENECK = 32


class PixelAutoencoder(nn.Sequential):
    """Strided convolutions down to 32 channels at a sixteenth of the sides, and the same way up again.

    The bottleneck holds a 24th of the numbers of the image, so what was never seen cannot pass unchanged.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(WIDTHS):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(WIDTHS[-1], BOTTLENECK, 1), nn.Conv2d(BOTTLENECK, WIDTHS[-1], 1), nn.ReLU()]
        for before, after in itertools.pairwise(WIDTHS[:0:-1]):
            layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(before, after, 3, padding=1)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(WIDTHS[1], WIDTHS[0], 3, padding=1), nn.Sigmoid()]
        super().__init__(*layers)


class PixelScoringGraph(nn.Module):
    """Images to score and map, all preprocessing inside; in eval mode this is what is exported."""

    stride = 1

    def __init__(self, autoencoder: PixelAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return score float32 `(N,)` and map float32 `(N, H, W)` of uint8 `(N, H, W, 3)` RGB, sides in 16ths.

        The map is the squared error of pixels in [0, 1], mean over channels, averaged over 5x5; the score is its mean.
        """
        pixels = as_pixels(images)
        errors = (self.autoencoder(pixels) - pixels).square().mean(dim=1, keepdim=True)
        smooth = functional.avg_pool2d(errors, 5, stride=1, padding=2, count_include_pad=False)[:, 0]
        return smooth.flatten(1).mean(dim=1), smooth


def as_pixels(images: Tensor) -> Tensor:
    """Return uint8 `(N, H, W, 3)` as float32 `(N, 3, H, W)` in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255
