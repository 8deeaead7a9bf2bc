"""Trains a detector and publishes it as a version; reads from top to bottom.

Data, model, optimiser, loop, export, calibrate, save. Seeded, bounded in steps, minutes and memory. Only a training
process imports this: it brings torch.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.calibration.split import FOLDS, Method
from models.data.image_list import write_image_list
from models.data.select_images import Chosen, ImageSize, ProductImages, Read, choose_images
from models.fitting.classifier import STEPS as CLASSIFIER_STEPS
from models.fitting.classifier import fit_classifier
from models.fitting.feature import STEPS as FEATURE_STEPS
from models.fitting.feature import fit_feature
from models.fitting.fit_result import FitResult
from models.fitting.limits import BYTES_PER_GB, MEMORY_GB, TrainingLimits, memory_peak_bytes
from models.fitting.pixel import STEPS as PIXEL_STEPS
from models.fitting.pixel import fit_pixel
from models.fitting.warm_start import WarmStart, read_warm_start
from models.manifest import Backbone, Manifest, Parity, Training, TrainingEnergy
from models.networks.pretrained import BackboneSource
from models.progress import Progress
from models.registry import (
    BUILD_PREFIX,
    WEIGHTS,
    ModelVersion,
    file_hashes,
    file_sha256,
    publish_all,
    remove_build,
    share_files,
    unpublished,
    write_manifest,
)
from models.runtime.export import check_parity, export_graph, save_weights
from models.runtime.openvino_detector import OpenVinoDetector
from models.runtime.openvino_runtime import allowed_cores
from models.training.calibrate import FitNetwork, Report, calibrate
from models.training.draft_check import ReadDraft, check_drafts

PROFILES = {"fast": 256, "balanced": 384, "accurate": 768}
PIXEL_SIDE = 128
STEPS = {"feature": FEATURE_STEPS, "pixel": PIXEL_STEPS, "classifier": CLASSIFIER_STEPS}
FITS: Mapping[str, Callable[..., FitResult]] = {
    "feature": fit_feature,
    "pixel": fit_pixel,
    "classifier": fit_classifier,
}
PARITY_IMAGES = 16
LIBRARIES = ("torch", "timm", "openvino", "numpy", "scikit-learn")

Meter = Callable[[int], Mapping[str, Any] | None]


def train(
    images: Sequence[Path],
    *,
    product: str,
    false_alarm_rate: float,
    anomalies: Sequence[Path] = (),
    **options: Any,
) -> ModelVersion:
    """Train on the normal `images` of one product; return the version. `options` are `train_jointly`'s.

    Of `anomalies`, which are optional, a `classifier` learns from four in five; what it does not learn from, and
    the other kinds from none, is scored for the calibration.
    """
    only = ProductImages(product, images, false_alarm_rate, anomalies)
    return train_jointly([only], **options)[0]


def train_jointly(
    products: Sequence[ProductImages],
    *,
    kind: str,
    profile: str,
    seed: int,
    read: Read,
    image_size: ImageSize,
    destination: Path,
    minutes_max: float,
    report: Report,
    memory_bytes: int = int(MEMORY_GB * BYTES_PER_GB),
    method: Method | None = None,
    backbone: BackboneSource | None = None,
    unreadable: tuple[type[Exception], ...] = (OSError,),
    steps: int | None = None,
    side: int | None = None,
    meter: Meter | None = None,
    build: Path | None = None,
    tamis_version: str | None = None,
    read_draft: ReadDraft | None = None,
    warm: Path | None = None,
    trim_fraction: float = 0.0,
    retraining: int | None = None,
    threads: int | None = None,
    again: Sequence[Chosen] = (),
    root: Path | None = None,
) -> list[ModelVersion]:
    """Train one network on all `products`; return a version for each, published in `destination/<product>/`.

    `kind` is a key of `STEPS`, `profile` one of `PROFILES`; `side` (px) and `steps` override what these give.
    `method` is how to calibrate, chosen by the number of images if None; `backbone` is the classifier's. `read`
    and `image_size` raise one of `unreadable` for an image that is to be skipped. `read_draft` reads a draft, as
    images of the versions will be read where that changes their scores little enough. `meter(images)` returns the
    energy used, which the versions share alike. Pools are sized by `memory_bytes`. Nothing is left behind in `build`
    (a new `.tmp-` folder in `destination`) if this fails, and no product gets a version. `warm` is the folder of a
    version whose weights are begun with where they fit and none of the calibration images can have made them;
    `trim_fraction` of the normals, those rebuilt worst, are left out; `retraining` is the number of the retraining
    that this is for; `threads` are all cores unless given. `again` are images that were chosen before, to be used as
    they are, whatever `products` say. Paths are listed relative to `root` where they lie under it. The same seed and
    images give the same weights on the same machine, unless `minutes_max` cuts the loop. Raises a ModelError.
    """
    if kind not in STEPS or profile not in PROFILES:
        raise ValueError(
            f"expected a kind of {sorted(STEPS)}, a profile of {sorted(PROFILES)}; found {kind}, {profile}"
        )
    started, created_at = time.monotonic(), datetime.now(UTC)
    threads = _deterministic(seed, threads)

    # Data
    chosen = list(again) or choose_images(
        products,
        kind=kind,
        side=side or (PIXEL_SIDE if kind == "pixel" else PROFILES[profile]),
        seed=seed,
        read=read,
        image_size=image_size,
        unreadable=unreadable,
        report=report,
        method=method,
    )
    size = chosen[0].input_size
    training = [[image.path for image in each.train] for each in chosen]

    # Model, optimiser, loop
    warm_start = read_warm_start(warm, kind) if all(each.roles_given for each in chosen) else None
    fit = _fitting(
        kind, chosen, seed, steps or STEPS[kind], read, backbone or BackboneSource(), warm_start, trim_fraction
    )
    limits = TrainingLimits(started + 60 * minutes_max, memory_bytes)
    networks = 1 + (FOLDS if any(each.method == "cross" for each in chosen) else 0)
    fitted = fit(training, limits.shared_among(networks), report)

    build = build or destination / f"{BUILD_PREFIX}{uuid.uuid4().hex}"
    build.mkdir(parents=True)
    folders = [build / str(number) for number in range(len(chosen))]
    try:
        # Export, parity
        detectors, parities = [], []
        for number, (graph, folder, paths) in enumerate(zip(fitted.graphs, folders, training, strict=True)):
            report(Progress("exporting", number, len(folders)))
            first = fitted.graphs.index(graph)
            if first == number:
                folder.mkdir()
                export_graph(graph, size, folder)
                detectors.append(OpenVinoDetector(unpublished(folder, size), threads))
                save_weights(graph, folder, {"kind": kind, "input_size": size, "seed": seed})
            else:
                share_files(folders[first], folder)
                detectors.append(detectors[first])
            probes = np.stack([read(path, size) for path in paths[:PARITY_IMAGES]])
            difference = check_parity(graph, detectors[-1], probes)
            parities.append(Parity(images=len(probes), max_relative_difference=difference))
        report(Progress("exporting", len(folders), len(folders)))

        # Calibrate with what ships, read as it will be
        drafts, read_as_shipped = check_drafts(detectors, chosen, read, read_draft)
        calibrations = calibrate(
            detectors,
            chosen,
            fit,
            comparable=fitted.comparable,
            limits=limits,
            workspace=build,
            threads=threads,
            read=read_as_shipped,
            report=report,
        )

        # Save
        chosen = [each.without(set(fitted.trimmed)) for each in chosen]
        energy = _share(meter(sum(len(each.train) for each in chosen)), len(chosen)) if meter else None
        memory_peak_mb = round(memory_peak_bytes() / 1e6, 1)
        for each, calibration, draft, parity, folder in zip(
            chosen, calibrations, drafts, parities, folders, strict=True
        ):
            write_image_list(each, folder, root)
            write_manifest(
                Manifest(
                    format=1,
                    product=each.product,
                    version=f"{created_at:%Y%m%dT%H%M%SZ}-{kind}-{file_sha256(folders[0] / WEIGHTS)[:6]}",
                    kind=kind,
                    profile=profile,
                    created_at=created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                    tamis_version=tamis_version,
                    joint=tuple(one.product for one in chosen) if len(chosen) > 1 else None,
                    input_size=size,
                    resample="bilinear",
                    colour="RGB",
                    decode=draft,
                    stride=fitted.stride,
                    map=fitted.map_meaning,
                    score=fitted.score_meaning,
                    architecture=fitted.architecture,
                    backbone=Backbone(**fitted.backbone) if fitted.backbone else None,
                    training=Training(
                        seed=seed,
                        images=len(each.train),
                        anomalies=len(each.train_anomalies),
                        steps=fitted.steps,
                        steps_asked=steps or STEPS[kind],
                        seconds=round(time.monotonic() - started, 3),
                        final_loss=fitted.loss,
                        minutes_max=minutes_max,
                        memory_max_mb=memory_bytes / 1e6,
                        memory_peak_mb=memory_peak_mb,
                        threads=threads,
                        warm_start=fitted.warm_start,
                        retraining=retraining,
                        trim_fraction=trim_fraction,
                        trimmed=tuple({"path": str(p.path), "sha256": p.sha256} for p in each.trimmed),
                        skipped=tuple({"path": str(path), "error": why} for path, why in each.skipped),
                        libraries={name: metadata.version(name) for name in LIBRARIES},
                    ),
                    calibration=calibration,
                    energy=None if energy is None else TrainingEnergy(**energy),
                    parity=parity,
                    files=file_hashes(folder),
                ),
                folder,
            )
        return publish_all(folders, destination)
    finally:
        remove_build(build)


def _deterministic(seed: int, threads: int | None) -> int:
    """Make torch give the same numbers each time; return the number of threads, on which sums depend."""
    threads = threads or allowed_cores()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    return threads


def _fitting(
    kind: str,
    chosen: Sequence[Chosen],
    seed: int,
    steps: int,
    read: Read,
    backbone: BackboneSource,
    warm: WarmStart | None,
    trim_fraction: float,
) -> FitNetwork:
    """Return the fitting of `kind` that knows all but which normals to fit to, within what limits."""
    fit = FITS[kind]
    if kind == "classifier":
        anomalies = [image.path for each in chosen for image in each.train_anomalies]
        fit = functools.partial(fit, anomalies=anomalies, source=backbone)
    else:
        fit = functools.partial(fit, warm=warm, trim_fraction=trim_fraction)

    def network(products: Sequence[Sequence[Path]], limits: TrainingLimits, report: Report) -> FitResult:
        return fit(products, chosen[0].input_size, seed, steps, limits, read, report)

    return network


def _share(energy: Mapping[str, Any] | None, products: int) -> dict[str, Any] | None:
    """Return one product's part of the `energy` of all: its Wh and g; how long it took is not divided."""
    if energy is None:
        return None
    return {
        name: value / products if name.endswith(("_wh", "_g")) and value is not None else value
        for name, value in energy.items()
    }
