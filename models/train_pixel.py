"""Fits the detector `pixel`: the autoencoder, to the training pictures themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.descent import descend
from models.division import balanced
from models.fitted import Fitted
from models.limits import Limits
from models.pixel_autoencoder import BOTTLENECK, WIDTHS, PixelAutoencoder, PixelScoringGraph, as_pixels
from models.progress import Progress
from models.training_pictures import Read

STEPS = 400
PICTURES = 16  # in a step
LEARNING_RATE = 2e-3


def fit_pixel(
    products: Sequence[Sequence[Path]],
    size: tuple[int, int],
    seed: int,
    steps: int,
    limits: Limits,
    read: Read,
    report: Callable[[Progress], None],
) -> Fitted:
    """Return the detector fitted to the normal pictures of all `products`, the same for each."""
    held = balanced(products)[: limits.pool_bytes // (size[0] * size[1] * 3)]
    images = torch.from_numpy(np.stack([read(path, size) for path in held]))
    autoencoder = PixelAutoencoder()
    chance = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        wanted = as_pixels(images[torch.randint(len(images), (PICTURES,), generator=chance)])
        return functional.mse_loss(autoencoder(wanted), wanted)

    done, last = descend(autoencoder, loss, LEARNING_RATE, steps, limits.deadline, report)
    return Fitted(
        graphs=[PixelScoringGraph(autoencoder).eval()] * len(products),
        stride=PixelScoringGraph.stride,
        steps=done,
        loss=last,
        architecture={"autoencoder_widths": list(WIDTHS), "bottleneck": BOTTLENECK},
        backbone=None,
        map_meaning="mean over colours of the squared error of pixels in [0, 1], averaged over 5x5 pixels",
        score_meaning="mean of the map",
    )
