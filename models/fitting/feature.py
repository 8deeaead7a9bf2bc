"""Fits the detector `feature`: whitening and autoencoder to features of normal images, the head to defects drawn on
them, and the scale of each kind of evidence to normal images that neither was fitted to.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.calibration.split import balanced
from models.detector import Float32Array, UInt8Array
from models.fitting.augment import harmless, vary
from models.fitting.feature_cache import CROP_SIDE, KEPT, POOL_BYTES, SEEN, FrozenNetwork, crop_pool, position_pool
from models.fitting.fit_result import FitRequest, FitResult
from models.fitting.optimise import optimise
from models.fitting.segmentation_head import fit_head
from models.fitting.trim import mean_of_highest, worst
from models.fitting.warm_start import TRIM_STEPS_SHARE, WARM_RATE_SHARE, WARM_STEPS_SHARE, WarmStart, start_features
from models.networks import backbone
from models.networks.backbone import DETAIL, FEATURES, STRIDE, FeatureExtractor, load_extractor
from models.networks.feature_autoencoder import WIDTHS, FeatureAutoencoder, Standardisation, Whitening
from models.networks.feature_detector import (
    ERROR_SHARE,
    OVERVIEW_FLOOR,
    FeatureEvidence,
    FeaturesAndResiduals,
    FeatureScoringGraph,
)
from models.networks.segmentation_head import WIDTH, SegmentationHead
from models.synthetic_defects.draw import draw_defects, share_by_position

STEPS = 800
HEAD_STEPS_SHARE = 0.75  # of each of its two rounds
POSITIONS = 4096  # in a step of the autoencoder
LEARNING_RATE = 1e-2

# Images that neither network is fitted to, by which their evidence is scaled.
TUNE_SHARE = 0.12
TUNE_MIN, TUNE_MAX = 4, 100
# Their positions that show when the autoencoder begins to overfit.
VALIDATION_POSITIONS = 16_384
# With fewer images to fit to, each is used several times, in slightly other light.
IMAGES_FEW = 160
DRAWN, PLAIN = 900, 300
CROPS_EACH = 2
IMAGES_HELD = 1000


@dataclass(frozen=True)
class _Pool:
    """Features of the images fitted to, a row for each time that an image comes, in other light: its path, its
    product's number, int64 `(n,)`, `positions` float16 `(n * each, 312)` and `overviews` float32 `(n, 472)`.
    """

    paths: Sequence[Path]
    products: Tensor
    positions: Tensor
    overviews: Tensor

    def without(self, left_out: frozenset[Path]) -> _Pool:
        kept = torch.tensor([path not in left_out for path in self.paths])
        positions = self.positions[kept.repeat_interleave(len(self.positions) // len(self.paths))]
        paths = [path for path in self.paths if path not in left_out]
        return _Pool(paths, self.products[kept], positions, self.overviews[kept])


@dataclass(frozen=True)
class _Base:
    """What the head is fitted on, and its warm weights if there are any; `steps` are those that its fit may take."""

    network: FeaturesAndResiduals
    overviews: Sequence[Whitening]
    trimmed: frozenset[Path]
    warm_head: SegmentationHead | None
    steps: int
    steps_done: int
    loss: float


def fit_feature(request: FitRequest, warm: WarmStart | None = None, trim_fraction: float = 0.0) -> FitResult:
    """Return the detectors fitted to the normal images of the products, each in the order of its seeded hashes.

    All products share autoencoder and head, which start from the weights of `warm` if they fit, in half the steps.
    Each has its own overview and its own scale of the evidence. The `trim_fraction` of the images that is rebuilt
    worst is left out.
    """
    products, size, seed = request.products, request.size, request.seed
    held_out = [paths[: min(max(round(TUNE_SHARE * len(paths)), TUNE_MIN), TUNE_MAX)] for paths in products]
    all_held_out = frozenset(chain(*held_out))
    tunes = [[request.read(path, size) for path in paths] for paths in held_out]
    fitting = balanced([[path for path in paths if path not in all_held_out] for paths in products])

    base = _fit_base(request, fitting, list(chain(*tunes)), warm, trim_fraction)
    fitting = [path for path in fitting if path not in base.trimmed]
    network = FrozenNetwork(base.network, size)
    changes = harmless(list(chain(*tunes)), lambda images: _errors(network, images), seed)
    head, head_steps = _fit_head(request, base, network, fitting, changes)

    graphs = []
    for overview, tune in zip(base.overviews, tunes, strict=True):
        graph = FeatureScoringGraph(FeatureEvidence(base.network, overview, head)).eval()
        evidence = FrozenNetwork(graph.evidence, size).first_outputs(_several(tune, seed))
        graph.fit_tails(torch.from_numpy(evidence))
        graphs.append(graph)
    return FitResult(
        graphs=graphs,
        stride=STRIDE,
        steps=base.steps_done,
        loss=base.loss,
        architecture={
            "features": FEATURES,
            "autoencoder_widths": list(WIDTHS),
            "head_width": WIDTH,
            "head_steps": head_steps,
            "tuning_images": len(all_held_out),
            "harmless_changes": changes,
        },
        backbone={"name": backbone.BACKBONE, "weights_sha256": backbone.WEIGHTS_SHA256},
        map_meaning="softplus of the log of the mean of one over tail probability, of head and autoencoder",
        score_meaning="log of the mean of one over tail probability, of head and novelty (autoencoder and overview)",
        warm_start=warm.version if warm is not None and base.warm_head is not None else None,
        trimmed=tuple(sorted(base.trimmed)),
    )


def _fit_base(
    request: FitRequest,
    paths: Sequence[Path],
    tune: Sequence[UInt8Array],
    warm: WarmStart | None,
    trim_fraction: float,
) -> _Base:
    """Fit whitening, overviews and autoencoder to the images `paths`, those of the products in turn."""
    extractor, steps, products = load_extractor(), request.steps, len(request.products)
    pool, validation = _pools(request, extractor, paths, tune)
    whitening, standardisation = _scales(pool)
    trimmed: frozenset[Path] = frozenset()
    if trim_fraction > 0:
        weights = start_features(warm, whitening, standardisation)
        first = max(2, round(TRIM_STEPS_SHARE * steps))
        judge = weights[0] if weights else _fit_autoencoder(request, pool, validation, whitening, first)[0]
        trimmed = worst(pool.paths, _pool_errors(pool, whitening, judge), trim_fraction)
        pool = pool.without(trimmed)
        whitening, standardisation = _scales(pool)
    overviews = [_overview(pool.overviews[pool.products == number]) for number in range(products)]
    warm_autoencoder, warm_head = start_features(warm, whitening, standardisation) or (None, None)
    if warm_autoencoder:
        steps = max(2, round(WARM_STEPS_SHARE * steps))
    autoencoder, done, loss = _fit_autoencoder(request, pool, validation, whitening, steps, warm_autoencoder)
    network = FeaturesAndResiduals(extractor, whitening, autoencoder, standardisation).eval()
    return _Base(network, overviews, trimmed, warm_head, steps, done, loss)


def _pools(
    request: FitRequest, extractor: FeatureExtractor, paths: Sequence[Path], tune: Sequence[UInt8Array]
) -> tuple[_Pool, Tensor]:
    """Return the features to fit to, and of positions of the images `tune`, by which the fit is validated."""
    network = FrozenNetwork(extractor, request.size)
    copies = math.ceil(IMAGES_FEW / len(paths))
    rows = [path for path in paths for _ in range(copies)]
    room = min(POOL_BYTES, request.limits.pool_bytes // 2)
    positions, overviews = position_pool(
        network, _lit(request, paths, copies), len(rows), request.seed, request.report, room
    )
    product = torch.arange(len(paths)).remainder(len(request.products)).repeat_interleave(copies)
    room = 2 * KEPT * max(VALIDATION_POSITIONS, len(tune))
    validation, _ = position_pool(network, tune, len(tune), request.seed, request.report, room)
    return _Pool(rows, product, positions, overviews), validation


def _scales(pool: _Pool) -> tuple[Whitening, Standardisation]:
    whitening, standardisation = Whitening(), Standardisation(DETAIL)
    whitening.fit(pool.positions[:, :FEATURES])
    standardisation.fit(pool.positions[:, FEATURES:])
    return whitening, standardisation


def _overview(overviews: Tensor) -> Whitening:
    whitening = Whitening(overviews.shape[1])
    whitening.fit_standardised(overviews, OVERVIEW_FLOOR)
    return whitening


def _fit_autoencoder(
    request: FitRequest,
    pool: _Pool,
    validation: Tensor,
    whitening: Whitening,
    steps: int,
    warm_weights: FeatureAutoencoder | None = None,
) -> tuple[FeatureAutoencoder, int, float]:
    """Return the autoencoder, the steps done and the last loss; takes half of the time left at most."""
    autoencoder = warm_weights or FeatureAutoencoder()
    rate = LEARNING_RATE * (WARM_RATE_SHARE if warm_weights else 1)
    rng = torch.Generator().manual_seed(request.seed)
    now = time.monotonic()
    deadline = now + (request.limits.deadline - now) / 2

    def loss_of(positions: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = _whitened(whitening, positions)
        return functional.mse_loss(autoencoder(wanted), wanted)

    def loss() -> Tensor:
        # Positions from everywhere, not crops: those of one crop are alike, and a step learns less from them.
        return loss_of(pool.positions[torch.randint(len(pool.positions), (POSITIONS,), generator=rng)])

    validation_loss = functools.partial(loss_of, validation)
    done, last = optimise(autoencoder, loss, rate, steps, deadline, request.report, validation_loss=validation_loss)
    return autoencoder, done, last


def _pool_errors(pool: _Pool, whitening: Whitening, autoencoder: FeatureAutoencoder) -> Float32Array:
    """Return for each row of `pool` what the autoencoder leaves of its worst positions, float32 `(n,)`."""
    found = []
    with torch.inference_mode():
        for block in torch.split(pool.positions, 65_536):
            wanted = _whitened(whitening, block)
            found.append((autoencoder(wanted) - wanted).square().mean(dim=1).flatten())
    return mean_of_highest(torch.cat(found).reshape(len(pool.paths), -1).numpy(), ERROR_SHARE)


def _whitened(whitening: Whitening, positions: Tensor) -> Tensor:
    """Return `positions` `(n, 312)` of a pool as whitened features `(1, 176, 1, n)`."""
    whitened: Tensor = whitening(positions[:, :FEATURES].float().T.reshape(1, FEATURES, 1, len(positions)))
    return whitened


def _fit_head(
    request: FitRequest, base: _Base, network: FrozenNetwork, paths: Sequence[Path], changes: Sequence[str]
) -> tuple[SegmentationHead, int]:
    """Return the head fitted to what `network` makes of drawn defects and of normal images, and the steps done."""
    seed = request.seed
    most = max(1, min(request.limits.pool_bytes // (4 * request.size[0] * request.size[1] * 3), IMAGES_HELD))
    held = {path: request.read(path, request.size) for path in list(dict.fromkeys(paths))[:most]}
    # As many of each product, so that a shared head does not know best the one with the most images.
    normal = [held[path] for path in paths if path in held]
    share = request.limits.pool_bytes / (3 * (DRAWN + PLAIN) * CROPS_EACH * SEEN * CROP_SIDE**2)
    # A training cut short on purpose sees fewer images, too.
    share = min(1.0, share, base.steps / STEPS)

    drawn, plain = (
        crop_pool(network, images(normal, count, changes, seed), count, CROPS_EACH, seed, request.report)
        for images, count in ((_drawn, max(16, round(share * DRAWN))), (_plain, max(16, round(share * PLAIN))))
    )
    steps = max(2, round(HEAD_STEPS_SHARE * base.steps))
    return fit_head(request, network, list(held.values()), drawn, plain, steps, base.warm_head)


def _lit(request: FitRequest, paths: Sequence[Path], copies: int) -> Iterator[UInt8Array]:
    """Yield each image as it is and `copies` - 1 times in slightly other light; if it comes again, only the latter."""
    rng = np.random.default_rng([request.seed, 0])
    seen: set[Path] = set()
    for path in paths:
        image = request.read(path, request.size)
        for copy in range(copies):
            yield image if copy == 0 and path not in seen else vary(image, (), rng)
        seen.add(path)


def _drawn(
    normal: Sequence[UInt8Array], count: int, changes: Sequence[str], seed: int
) -> Iterator[tuple[UInt8Array, Float32Array]]:
    """Yield images with drawn defects, and the share of each position that is defect; drawn on two threads."""

    def one(number: int) -> tuple[UInt8Array, Float32Array]:
        rng = np.random.default_rng([seed, 1, number])
        image, mask = draw_defects(vary(normal[number % len(normal)], changes, rng), normal, rng)
        return image, share_by_position(mask, STRIDE)

    with ThreadPoolExecutor(2) as threads:
        yield from threads.map(one, range(count))


def _plain(
    normal: Sequence[UInt8Array], count: int, changes: Sequence[str], seed: int
) -> Iterator[tuple[UInt8Array, Float32Array]]:
    rng = np.random.default_rng([seed, 2])
    height, width = normal[0].shape[:2]
    nothing = np.zeros((height // STRIDE, width // STRIDE), dtype=np.float32)
    for number in range(count):
        yield vary(normal[number % len(normal)], changes, rng), nothing


def _several(tune: Sequence[UInt8Array], seed: int) -> list[UInt8Array]:
    """Return the images, and where they are few, each several times in slightly other light."""
    rng = np.random.default_rng([seed, 4])
    copies = math.ceil(TUNE_MAX / 2 / len(tune))
    return [image if copy == 0 else vary(image, (), rng) for copy in range(copies) for image in tune]


def _errors(network: FrozenNetwork, images: Sequence[UInt8Array]) -> Float32Array:
    """Return what the autoencoder leaves of each image: the mean square of its residuals, float32 `(n,)`."""
    return network.first_outputs(images, lambda places: np.square(places[FEATURES : 2 * FEATURES]).mean())
