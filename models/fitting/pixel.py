"""Fits the detector `pixel`: the autoencoder, to the training images themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.calibration.split import balanced
from models.detector import Float32Array
from models.fitting.fit_result import FitRequest, FitResult
from models.fitting.optimise import optimise
from models.fitting.trim import mean_of_highest, worst
from models.fitting.warm_start import TRIM_STEPS_SHARE, WARM_RATE_SHARE, WARM_STEPS_SHARE, WarmStart
from models.networks.pixel_autoencoder import BOTTLENECK, WIDTHS, PixelAutoencoder, PixelScoringGraph, as_pixels

STEPS = 400
IMAGES = 16  # in a step
LEARNING_RATE = 2e-3
# Share of an image's pixels, the worst ones, by whose errors images are left out.
ERROR_SHARE = 0.03


def fit_pixel(request: FitRequest, warm: WarmStart | None = None, trim_fraction: float = 0.0) -> FitResult:
    """Return the detector of all products, starting from the weights of `warm` if they fit."""
    size, steps, deadline = request.size, request.steps, request.limits.deadline
    held = balanced(request.products)[: request.limits.pool_bytes // (size[0] * size[1] * 3)]
    images = torch.from_numpy(np.stack([request.read(path, size) for path in held]))
    autoencoder = PixelAutoencoder()
    rng = torch.Generator().manual_seed(request.seed)

    warm_weights = warm is not None and warm.fill(autoencoder, "autoencoder")
    rate = LEARNING_RATE * (WARM_RATE_SHARE if warm_weights else 1)

    def loss() -> Tensor:
        wanted = as_pixels(images[torch.randint(len(images), (IMAGES,), generator=rng)])
        return functional.mse_loss(autoencoder(wanted), wanted)

    left_out: frozenset[Path] = frozenset()
    if trim_fraction > 0:
        if not warm_weights:
            first = max(2, round(TRIM_STEPS_SHARE * steps))
            optimise(autoencoder, loss, LEARNING_RATE, first, deadline, request.report, "training to trim")
        left_out = worst(held, _errors(autoencoder.eval(), images), trim_fraction)
        images = images[torch.tensor([path not in left_out for path in held])]
    steps = max(2, round(WARM_STEPS_SHARE * steps)) if warm_weights else steps
    done, last = optimise(autoencoder, loss, rate, steps, deadline, request.report)
    return FitResult(
        graphs=[PixelScoringGraph(autoencoder).eval()] * len(request.products),
        stride=PixelScoringGraph.stride,
        steps=done,
        loss=last,
        architecture={"autoencoder_widths": list(WIDTHS), "bottleneck": BOTTLENECK},
        backbone=None,
        map_meaning="mean over colours of the squared error of pixels in [0, 1], averaged over 5x5 pixels",
        score_meaning="mean of the map",
        warm_start=warm.version if warm is not None and warm_weights else None,
        trimmed=tuple(sorted(left_out)),
    )


def _errors(autoencoder: PixelAutoencoder, images: Tensor) -> Float32Array:
    """Return for each of `images` the mean square of the errors of its worst pixels, float32 `(n,)`."""
    found = []
    with torch.inference_mode():
        for batch in torch.split(images, IMAGES):
            wanted = as_pixels(batch)
            found.append((autoencoder(wanted) - wanted).square().mean(dim=1).flatten(1).numpy())
    return mean_of_highest(np.concatenate(found), ERROR_SHARE)
