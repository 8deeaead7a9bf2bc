"""Fits the detector `feature`; reads from top to bottom.

Whitening and autoencoder to features of normal images, the head to defects drawn on them, and the scale of each
kind of evidence to normal images that neither was fitted to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.calibration.split import balanced
from models.data.select_images import Read
from models.detector import Float32Array, UInt8Array
from models.fitting.augment import harmless, vary
from models.fitting.feature_cache import CROP_SIDE, KEPT, POOL_BYTES, SEEN, FrozenNetwork, crop_pool, position_pool
from models.fitting.fit_result import FitResult
from models.fitting.limits import TrainingLimits
from models.fitting.optimise import optimise
from models.fitting.segmentation_head import fit_head
from models.fitting.trim import mean_of_highest, worst
from models.fitting.warm_start import TRIM_STEPS_SHARE, WARM_RATE_SHARE, WARM_STEPS_SHARE, WarmStart, start_features
from models.networks.backbone import BACKBONE, DETAIL, FEATURES, STRIDE, WEIGHTS_SHA256, load_extractor
from models.networks.feature_autoencoder import WIDTHS, FeatureAutoencoder, Standardisation, Whitening
from models.networks.feature_detector import (
    ERROR_SHARE,
    EVIDENCE,
    OVERVIEW_FLOOR,
    FeatureEvidence,
    FeaturesAndResiduals,
    FeatureScoringGraph,
)
from models.networks.segmentation_head import WIDTH as HEAD_WIDTH
from models.progress import Progress
from models.synthetic_defects.draw import draw_defects, share_by_position

STEPS = 800
HEAD_STEPS_SHARE = 0.75  # of each of its two rounds
POSITIONS = 4096  # in a step of the autoencoder
LEARNING_RATE = 1e-2

# Images kept from both networks, by which their evidence is measured.
TUNE_SHARE = 0.12
TUNE_MIN, TUNE_MAX = 4, 100
# With fewer, each is used several times, in slightly other light.
IMAGES_FEW = 160
DRAWN, PLAIN = 900, 300
CROPS_EACH = 2
IMAGES_HELD = 1000
# Of the images kept from both networks, what tells that the autoencoder begins to learn its images by heart.
APART_POSITIONS = 16_384


def fit_feature(
    products: Sequence[Sequence[Path]],
    size: tuple[int, int],
    seed: int,
    steps: int,
    limits: TrainingLimits,
    read: Read,
    report: Callable[[Progress], None],
    warm: WarmStart | None = None,
    trim_fraction: float = 0.0,
) -> FitResult:
    """Return the detectors fitted to the normal images of `products`, each in the order of its seeded hashes.

    Autoencoder and head are one for all, and begin with the weights of `warm` if they fit, in half the steps. What an
    ordinary image is, and by how much one differs, is each product's own: the overview and the scale of all evidence.
    The `trim_fraction` of the images that is rebuilt worst is left out.
    """
    kept_out = [_tuning(paths) for paths in products]
    held_out = frozenset(path for paths in kept_out for path in paths)
    tunes = [[read(path, size) for path in paths] for paths in kept_out]
    fitting = balanced([[path for path in paths if path not in held_out] for paths in products])

    # Whitening, autoencoder, overviews
    extractor = load_extractor()
    features = FrozenNetwork(extractor, size)
    copies = math.ceil(IMAGES_FEW / len(fitting))
    pool, overviews = position_pool(
        features,
        _lit(fitting, size, copies, seed, read),
        copies * len(fitting),
        size,
        seed,
        report,
        min(POOL_BYTES, limits.pool_bytes // 2),
    )
    validation = _positions_apart(features, list(chain(*tunes)), size, seed, report)
    del features
    whitening = Whitening()
    standardisation = Standardisation(DETAIL)
    whitening.fit(pool[:, :FEATURES])
    standardisation.fit(pool[:, FEATURES:])
    # As `_lit` has them: each image with its copies in other light behind it, the products in turn.
    shown = [path for path in fitting for _ in range(copies)]
    owner = torch.arange(len(fitting)).remainder(len(products)).repeat_interleave(copies)
    left_out: frozenset[Path] = frozenset()
    if trim_fraction > 0:
        judges = start_features(warm, whitening, standardisation)
        if judges is None:
            first = max(2, round(TRIM_STEPS_SHARE * steps))
            until = _half_way_to(limits.deadline)
            judge, _, _ = _fit_autoencoder(pool, validation, whitening, seed, first, until, report)
        else:
            judge = judges[0]
        left_out = worst(shown, _pool_errors(pool, len(shown), whitening, judge), trim_fraction)
        kept = torch.tensor([path not in left_out for path in shown])
        pool, overviews, owner = pool[kept.repeat_interleave(len(pool) // len(shown))], overviews[kept], owner[kept]
        fitting = [path for path in fitting if path not in left_out]
        whitening.fit(pool[:, :FEATURES])
        standardisation.fit(pool[:, FEATURES:])
    ordinary = [_overview(overviews[owner == number]) for number in range(len(products))]
    warm_weights = start_features(warm, whitening, standardisation)
    steps = max(2, round(WARM_STEPS_SHARE * steps)) if warm_weights else steps
    autoencoder, done, loss = _fit_autoencoder(
        pool,
        validation,
        whitening,
        seed,
        steps,
        _half_way_to(limits.deadline),
        report,
        warm_weights[0] if warm_weights else None,
    )
    del pool

    # Head, on what the autoencoder leaves
    seen = FeaturesAndResiduals(extractor, whitening, autoencoder, standardisation).eval()
    network = FrozenNetwork(seen, size)
    changes = harmless(list(chain(*tunes)), lambda images: _errors(network, images), seed)
    held = _held(fitting, limits.pool_bytes // (4 * size[0] * size[1] * 3), size, read)
    # Of each product as many, so that a head for several does not know best the one with the most images.
    normal = [held[path] for path in fitting if path in held]
    share = limits.pool_bytes / (3 * (DRAWN + PLAIN) * CROPS_EACH * SEEN * CROP_SIDE**2)
    # A training cut short on purpose sees fewer images, too.
    share = min(1.0, share, steps / STEPS)
    drawn_count, plain_count = (max(16, round(share * count)) for count in (DRAWN, PLAIN))
    drawn = crop_pool(network, _drawn(normal, drawn_count, changes, seed), drawn_count, CROPS_EACH, size, seed, report)
    plain = crop_pool(network, _plain(normal, plain_count, changes, seed), plain_count, CROPS_EACH, size, seed, report)
    head_steps = max(2, round(HEAD_STEPS_SHARE * steps))
    head, head_steps = fit_head(
        network,
        list(held.values()),
        drawn,
        plain,
        seed,
        head_steps,
        limits.deadline,
        report,
        warm_weights[1] if warm_weights else None,
    )
    del drawn, plain

    # Scale of the evidence
    graphs = []
    for overview, tune in zip(ordinary, tunes, strict=True):
        graph = FeatureScoringGraph(FeatureEvidence(seen, overview, head)).eval()
        graph.fit_tails(_evidence(FrozenNetwork(graph.evidence, size), _several(tune, seed)))
        graphs.append(graph)
    return FitResult(
        graphs=graphs,
        stride=STRIDE,
        steps=done,
        loss=loss,
        architecture={
            "features": FEATURES,
            "autoencoder_widths": list(WIDTHS),
            "head_width": HEAD_WIDTH,
            "head_steps": head_steps,
            "tuning_images": len(held_out),
            "harmless_changes": changes,
        },
        backbone={"name": BACKBONE, "weights_sha256": WEIGHTS_SHA256},
        map_meaning="softplus of the log of the mean of one over tail probability, of head and autoencoder",
        score_meaning="log of the mean of one over tail probability, of head and novelty (autoencoder and overview)",
        warm_start=warm.version if warm is not None and warm_weights else None,
        trimmed=tuple(sorted(left_out)),
    )


def _tuning(paths: Sequence[Path]) -> list[Path]:
    """Return the images, of those of one product, that are kept from both networks."""
    return list(paths[: min(max(round(TUNE_SHARE * len(paths)), TUNE_MIN), TUNE_MAX)])


def _positions_apart(
    features: FrozenNetwork,
    images: Sequence[UInt8Array],
    size: tuple[int, int],
    seed: int,
    report: Callable[[Progress], None],
) -> Tensor:
    """Return features of positions of `images`, those kept from both networks, float16 `(n, 312)`."""
    room = 2 * KEPT * max(APART_POSITIONS, len(images))
    return position_pool(features, images, len(images), size, seed, report, room)[0]


def _overview(overviews: Tensor) -> Whitening:
    whitening = Whitening(overviews.shape[1])
    whitening.fit_standardised(overviews, OVERVIEW_FLOOR)
    return whitening


def _fit_autoencoder(
    pool: Tensor,
    validation: Tensor,
    whitening: Whitening,
    seed: int,
    steps: int,
    deadline: float,
    report: Callable[[Progress], None],
    warm_weights: FeatureAutoencoder | None = None,
) -> tuple[FeatureAutoencoder, int, float]:
    autoencoder = warm_weights or FeatureAutoencoder()
    rate = LEARNING_RATE * (WARM_RATE_SHARE if warm_weights else 1)
    rng = torch.Generator().manual_seed(seed)

    def loss_of(positions: Tensor) -> Tensor:
        with torch.no_grad():
            wanted: Tensor = whitening(positions[:, :FEATURES].float().T.reshape(1, FEATURES, 1, len(positions)))
        return functional.mse_loss(autoencoder(wanted), wanted)

    def loss() -> Tensor:
        # Positions from everywhere, not crops: those of one crop are alike, and a step learns less from them.
        return loss_of(pool[torch.randint(len(pool), (POSITIONS,), generator=rng)])

    done, last = optimise(autoencoder, loss, rate, steps, deadline, report, validation_loss=lambda: loss_of(validation))
    return autoencoder, done, last


def _pool_errors(pool: Tensor, images: int, whitening: Whitening, autoencoder: FeatureAutoencoder) -> Float32Array:
    """Return for each image of the pool what the autoencoder leaves of its worst positions, float32 `(images,)`."""
    found = []
    with torch.inference_mode():
        for block in torch.split(pool[:, :FEATURES], 65_536):
            wanted = whitening(block.float().T.reshape(1, FEATURES, 1, len(block)))
            found.append((autoencoder(wanted) - wanted).square().mean(dim=1).flatten())
    return mean_of_highest(torch.cat(found).reshape(images, -1).numpy(), ERROR_SHARE)


def _half_way_to(deadline: float) -> float:
    now = time.monotonic()
    return now + (deadline - now) / 2


def _lit(paths: Sequence[Path], size: tuple[int, int], copies: int, seed: int, read: Read) -> Iterator[UInt8Array]:
    """Yield each image as it is, `copies` - 1 times in slightly other light, and where it comes again only so."""
    rng = np.random.default_rng([seed, 0])
    seen: set[Path] = set()
    for path in paths:
        image = read(path, size)
        for copy in range(copies):
            yield image if copy == 0 and path not in seen else vary(image, (), rng)
        seen.add(path)


def _held(paths: Sequence[Path], most: int, size: tuple[int, int], read: Read) -> dict[Path, UInt8Array]:
    """Return at most `most` of the images, and at most 1,000, to be held in memory."""
    return {path: read(path, size) for path in list(dict.fromkeys(paths))[: max(1, min(most, IMAGES_HELD))]}


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
    found = np.empty(len(images), dtype=np.float32)

    def take(index: int, places: Float32Array, overview: Float32Array) -> None:
        found[index] = np.square(places[FEATURES : 2 * FEATURES]).mean()

    network.run(images, take)
    return found


def _evidence(network: FrozenNetwork, images: Sequence[UInt8Array]) -> Tensor:
    """Return what each kind of evidence says of each image, float32 `(n, 3)`."""
    found = np.empty((len(images), len(EVIDENCE)), dtype=np.float32)

    def take(index: int, of_image: Float32Array, of_places: Float32Array) -> None:
        found[index] = of_image

    network.run(images, take)
    return torch.from_numpy(found)
