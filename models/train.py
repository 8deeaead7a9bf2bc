"""Trains a detector from normal pictures and publishes it as a version; reads from top to bottom.

Data, model, optimiser, loop, calibrate, export, save. Seeded, bounded in steps and in minutes. Only a training
process imports this: it brings torch.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.backbone import BACKBONE, FEATURES, WEIGHTS_SHA256, load_extractor
from models.calibrate import threshold_at
from models.detector import Float32Array, UInt8Array
from models.export import check_parity, export_graph, save_weights, write_images, write_manifest
from models.feature_autoencoder import WIDTHS as FEATURE_WIDTHS
from models.feature_autoencoder import FeatureAutoencoder, FeatureScoringGraph, Whitening
from models.feature_pool import feature_pool
from models.openvino_detector import OpenVinoDetector
from models.openvino_runtime import allowed_cores
from models.pixel_autoencoder import BOTTLENECK, PixelAutoencoder, PixelScoringGraph, as_pixels
from models.pixel_autoencoder import WIDTHS as PIXEL_WIDTHS
from models.progress import Progress
from models.registry import BUILD_PREFIX, FORMAT, ModelVersion, publish, remove_build
from models.training_pictures import ImageSize, Read, TrainingPicture, choose_pictures

PROFILES = {"fast": 256, "balanced": 384, "accurate": 512}
PIXEL_SIDE = 128
STEPS = {"feature": 800, "pixel": 400}
POSITIONS = 4096  # positions in a step of `feature`
PICTURES = 16  # pictures in a step of `pixel`
PARITY_IMAGES = 16
LEARNING_RATE = {"feature": 1e-2, "pixel": 2e-3}
_LOSS_STEPS = 50

Report = Callable[[Progress], None]
Meter = Callable[[int], Mapping[str, Any] | None]


@dataclass(frozen=True)
class _Fitted:
    """A network as trained, and how that went."""

    graph: FeatureScoringGraph | PixelScoringGraph
    steps: int
    loss: float
    architecture: dict[str, Any]
    backbone: dict[str, str] | None


def train(
    pictures: Sequence[Path],
    *,
    kind: str,
    profile: str,
    product: str,
    seed: int,
    false_alarm_rate: float,
    read: Read,
    image_size: ImageSize,
    destination: Path,
    minutes_max: float,
    report: Report,
    unreadable: tuple[type[Exception], ...] = (OSError,),
    steps: int | None = None,
    side: int | None = None,
    meter: Meter | None = None,
    build: Path | None = None,
    tamis_version: str | None = None,
) -> ModelVersion:
    """Train on the normal `pictures`; return the version, published in `destination/<product>/`.

    `kind` is `feature` or `pixel`, `profile` a key of `PROFILES`; `side` (px) and `steps` override what these
    give. `read` and `image_size` raise one of `unreadable` for a picture that is to be skipped. `meter(images)`
    returns the energy used, for model.json. Nothing is left behind in `build` (a new `.tmp-` folder in
    `destination`) if this fails. The same seed and pictures give the same weights on the same machine, unless
    `minutes_max` cuts the loop. Raises TooFewImages, DatasetError, ParityFailed, ModelCorrupt.
    """
    if kind not in STEPS or profile not in PROFILES:
        raise ValueError(
            f"expected a kind of {sorted(STEPS)}, a profile of {sorted(PROFILES)}; found {kind}, {profile}"
        )
    started, created_at = time.monotonic(), datetime.now(UTC)
    threads = _deterministic(seed)

    # Data
    chosen = choose_pictures(
        pictures,
        side=side or (PROFILES[profile] if kind == "feature" else PIXEL_SIDE),
        seed=seed,
        false_alarm_rate=false_alarm_rate,
        read=read,
        image_size=image_size,
        unreadable=unreadable,
        report=report,
    )
    size = chosen.input_size
    training = [picture.path for picture in chosen.train]

    # Model, optimiser, loop
    fit = _fit_feature if kind == "feature" else _fit_pixel
    deadline = started + 60 * minutes_max
    fitted = fit(training, size, seed, steps or STEPS[kind], deadline, read, report)

    build = build or destination / f"{BUILD_PREFIX}{uuid.uuid4().hex}"
    build.mkdir(parents=True)
    try:
        # Export, parity
        report(Progress("exporting", 0, 1))
        export_graph(fitted.graph, size, build)
        detector = OpenVinoDetector(ModelVersion(build, {"input_size": size}, ""), threads)
        probes = np.stack([read(path, size) for path in training[:PARITY_IMAGES]])
        difference = check_parity(fitted.graph, detector, probes)
        report(Progress("exporting", 1, 1))

        # Calibrate with what ships
        scores, map_maxima = _calibrate(detector, chosen.calibrate, size, read, report)

        # Save
        weights_sha256 = save_weights(fitted.graph, build, {"kind": kind, "input_size": size, "seed": seed})
        write_images(chosen, build)
        write_manifest(
            {
                "format": FORMAT,
                "product": product,
                "version": f"{created_at:%Y%m%dT%H%M%SZ}-{kind}-{weights_sha256[:6]}",
                "kind": kind,
                "profile": profile,
                "created_at": created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "tamis_version": tamis_version,
                "input_size": list(size),
                "resample": "bilinear",
                "colour": "RGB",
                "stride": fitted.graph.stride,
                "map": MAP[kind],
                "score": SCORE[kind],
                "architecture": fitted.architecture,
                "backbone": fitted.backbone,
                "training": {
                    "seed": seed,
                    "images": len(chosen.train),
                    "steps": fitted.steps,
                    "seconds": round(time.monotonic() - started, 3),
                    "final_loss": fitted.loss,
                    "minutes_max": minutes_max,
                    "threads": threads,
                    "skipped": [{"path": str(path), "error": why} for path, why in chosen.skipped],
                    "libraries": {name: metadata.version(name) for name in ("torch", "timm", "openvino", "numpy")},
                },
                "calibration": {
                    "false_alarm_rate": false_alarm_rate,
                    "threshold": threshold_at(scores, false_alarm_rate),
                    "pixel_threshold": threshold_at(map_maxima, false_alarm_rate),
                    "images": len(scores),
                    "scores": sorted(float(score) for score in scores),
                },
                "energy": meter(len(training)) if meter else None,
                "parity": {"images": len(probes), "max_relative_difference": difference},
            },
            build,
        )
        return publish(build, destination)
    finally:
        remove_build(build)


MAP = {
    "feature": "mean over channels of the squared error of whitened features, averaged over 3x3 positions",
    "pixel": "mean over colours of the squared error of pixels in [0, 1], averaged over 5x5 pixels",
}
SCORE = {"feature": "mean of the highest 1 % of the map", "pixel": "mean of the map"}


def _deterministic(seed: int) -> int:
    """Make torch give the same numbers each time; return the number of threads, on which sums depend."""
    threads = allowed_cores()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    return threads


def _fit_feature(
    paths: Sequence[Path], size: tuple[int, int], seed: int, steps: int, deadline: float, read: Read, report: Report
) -> _Fitted:
    extractor = load_extractor()
    pool = feature_pool(extractor, paths, size, seed, read, report)
    whitening = Whitening()
    whitening.fit(pool)
    autoencoder = FeatureAutoencoder()
    chance = torch.Generator().manual_seed(seed)

    def batch() -> Tensor:
        # Positions from everywhere, not crops: those of one crop are alike, and a step learns less from them.
        drawn = torch.randint(len(pool), (POSITIONS,), generator=chance)
        with torch.no_grad():
            whitened: Tensor = whitening(pool[drawn].float().T.reshape(1, FEATURES, 1, POSITIONS))
        return whitened

    done, loss = _descend(autoencoder, batch, LEARNING_RATE["feature"], steps, deadline, report)
    return _Fitted(
        graph=FeatureScoringGraph(extractor, whitening, autoencoder).eval(),
        steps=done,
        loss=loss,
        architecture={"features": FEATURES, "autoencoder_widths": list(FEATURE_WIDTHS)},
        backbone={"name": BACKBONE, "weights_sha256": WEIGHTS_SHA256},
    )


def _fit_pixel(
    paths: Sequence[Path], size: tuple[int, int], seed: int, steps: int, deadline: float, read: Read, report: Report
) -> _Fitted:
    images = torch.from_numpy(np.stack([read(path, size) for path in paths]))
    autoencoder = PixelAutoencoder()
    chance = torch.Generator().manual_seed(seed)

    def batch() -> Tensor:
        drawn = torch.randint(len(images), (PICTURES,), generator=chance)
        return as_pixels(images[drawn])

    done, loss = _descend(autoencoder, batch, LEARNING_RATE["pixel"], steps, deadline, report)
    return _Fitted(
        graph=PixelScoringGraph(autoencoder).eval(),
        steps=done,
        loss=loss,
        architecture={"autoencoder_widths": list(PIXEL_WIDTHS), "bottleneck": BOTTLENECK},
        backbone=None,
    )


def _descend(
    network: nn.Module,
    batch: Callable[[], Tensor],
    learning_rate: float,
    steps: int,
    deadline: float,
    report: Report,
) -> tuple[int, float]:
    """Train `network` to give back what `batch` gives, by mean squared error; return steps done and last loss."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=learning_rate, total_steps=steps)
    losses: list[float] = []
    for step in range(1, steps + 1):
        wanted = batch()
        loss = nn.functional.mse_loss(network(wanted), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        cut = step < steps and time.monotonic() > deadline
        note = f"stopped after {step} of {steps} steps: the minutes allowed are used up" if cut else None
        report(Progress("training", step, steps, note))
        if cut:
            break
    return len(losses), float(np.mean(losses[-_LOSS_STEPS:]))


def _calibrate(
    detector: OpenVinoDetector,
    pictures: Sequence[TrainingPicture],
    size: tuple[int, int],
    read: Read,
    report: Report,
) -> tuple[Float32Array, Float32Array]:
    """Return scores and highest map values, each float32 `(n,)`, of the held-out pictures."""
    scores, maxima = [], []
    done = 0
    for images in _batches(pictures, size, read):
        scored = detector.score(images)
        scores.append(scored.scores)
        maxima.append(scored.maps.max(axis=(1, 2)))
        done += len(images)
        report(Progress("calibrating", done, len(pictures)))
    return np.concatenate(scores), np.concatenate(maxima)


def _batches(pictures: Sequence[TrainingPicture], size: tuple[int, int], read: Read) -> Iterator[UInt8Array]:
    for start in range(0, len(pictures), PICTURES):
        yield np.stack([read(picture.path, size) for picture in pictures[start : start + PICTURES]])
