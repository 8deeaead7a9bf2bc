"""Trains a detector and publishes it as a version; reads from top to bottom.

Data, model, optimiser, loop, export, calibrate, save. Seeded, bounded in steps, minutes and memory. Only a training
process imports this: it brings torch, and what the kind that is trained needs besides, once that is known.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.calibration.split import FOLDS
from models.data.image_list import write_image_list
from models.data.select_images import Chosen, ProductImages, choose_images
from models.detector import Detector
from models.fitting.fit_result import FitRequest, FitResult
from models.fitting.limits import TrainingLimits, memory_peak_bytes
from models.manifest import Backbone, Calibration, DraftCheck, Manifest, Parity, Training, TrainingEnergy
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
from models.training.draft_check import check_drafts
from models.training.options import KINDS, PROFILES, Reading, TrainingOptions
from models.training.ranges import FirstReading, reading_in_ranges

PARITY_IMAGES = 16
LIBRARIES = ("torch", "timm", "openvino", "numpy", "scikit-learn")

Meter = Callable[[int], Mapping[str, Any] | None]


def train_jointly(
    products: Sequence[ProductImages],
    options: TrainingOptions,
    reading: Reading,
    *,
    destination: Path,
    report: Report,
    meter: Meter | None = None,
    build: Path | None = None,
    tamis_version: str | None = None,
    again: Sequence[Chosen] = (),
    root: Path | None = None,
) -> list[ModelVersion]:
    """Train one network on all `products`; return a version for each, published in `destination/<product>/`.

    `meter(images)` returns the energy used, which the versions share alike. Nothing is left behind in `build` (a new
    `.tmp-` folder in `destination`) if this fails, and no product gets a version. `again` are images that were
    chosen before, to be used as they are, whatever `products` say. Paths are listed relative to `root` where they lie
    under it. The same seed and images give the same weights on the same machine, unless `minutes_max` cuts the loop.
    Raises a ModelError.
    """
    if options.kind not in KINDS or options.profile not in PROFILES:
        found = f"{options.kind}, {options.profile}"
        raise ValueError(f"expected a kind of {sorted(KINDS)}, a profile of {sorted(PROFILES)}; found {found}")
    started, created_at = time.monotonic(), datetime.now(UTC)
    options = _deterministic(options)
    chosen = list(again) or _choose(products, options, reading, report)
    reading = reading_in_ranges(reading, chosen)
    fit, steps = _fitting(options, chosen, reading)
    limits = TrainingLimits(started + 60 * options.minutes_max, options.memory_bytes)
    networks = 1 + (FOLDS if any(each.method == "cross" for each in chosen) else 0)
    fitted = fit([[image.path for image in each.train] for each in chosen], limits.shared_among(networks), report)

    build = build or destination / f"{BUILD_PREFIX}{uuid.uuid4().hex}"
    build.mkdir(parents=True)
    folders = [build / str(number) for number in range(len(chosen))]
    try:
        detectors, parities = _export(fitted, chosen, folders, options, reading, report)
        # With what ships, read as it will be
        drafts, read = check_drafts(detectors, chosen, reading.read, reading.read_draft)
        calibrations = calibrate(
            detectors,
            chosen,
            fit,
            comparable=fitted.comparable,
            limits=limits,
            workspace=build,
            threads=options.threads or 0,
            read=read,
            report=report,
        )
        chosen = [each.without(set(fitted.trimmed)) for each in chosen]
        run = _Run(
            options,
            fitted,
            steps,
            started,
            created_at,
            version=f"{created_at:%Y%m%dT%H%M%SZ}-{options.kind}-{file_sha256(folders[0] / WEIGHTS)[:6]}",
            joint=tuple(each.product for each in chosen) if len(chosen) > 1 else None,
            energy=_share(meter(sum(len(each.train) for each in chosen)), len(chosen)) if meter else None,
            tamis_version=tamis_version,
        )
        for each, draft, calibration, parity, folder in zip(
            chosen, drafts, calibrations, parities, folders, strict=True
        ):
            write_image_list(each, folder, root)
            write_manifest(_manifest(run, each, draft, calibration, parity, folder), folder)
        return publish_all(folders, destination)
    finally:
        remove_build(build)


def _deterministic(options: TrainingOptions) -> TrainingOptions:
    """Make torch give the same numbers each time; return `options` with the number of threads, on which sums depend."""
    threads = options.threads or allowed_cores()
    torch.set_num_threads(threads)
    # As `use_deterministic_algorithms(True)`, which imports a compiler that nothing here uses, for a second of a core.
    torch.set_deterministic_debug_mode("error")
    torch.manual_seed(options.seed)
    return options.model_copy(update={"threads": threads})


def _choose(
    products: Sequence[ProductImages], options: TrainingOptions, reading: Reading, report: Report
) -> list[Chosen]:
    """Return the images of each product as they are divided, with the range in which they are read."""
    first = FirstReading(reading)
    chosen = choose_images(
        products,
        kind=options.kind,
        side=options.image_side,
        seed=options.seed,
        read=first.read,
        image_size=reading.image_size,
        unreadable=reading.unreadable,
        report=report,
        method=options.method,
    )
    chosen = first.with_ranges(chosen, products)
    for each in chosen:
        if (found := each.value_range) is not None:
            told = f"{each.product}: values of more than 8 bits: {found.low:g} to {found.high:g} become 0 to 255"
            report(Progress("reading", found.images, len(each.train), f"{told} ({found.source})"))
    return chosen


def _fitting(options: TrainingOptions, chosen: Sequence[Chosen], reading: Reading) -> tuple[FitNetwork, int]:
    """Return the fitting that knows all but which normals to fit to and within what limits, and how many steps it has.

    Each kind brings its own libraries, and none those of another.
    """
    fit: Callable[..., FitResult]
    if options.kind == "classifier":
        from models.fitting import classifier
        from models.networks.pretrained import BackboneSource

        source = BackboneSource(options.backbone or BackboneSource.name, options.backbone_weights)
        anomalies = [image.path for each in chosen for image in each.train_anomalies]
        fit, steps = functools.partial(classifier.fit_classifier, anomalies=anomalies, source=source), classifier.STEPS
    else:
        from models.fitting.warm_start import read_warm_start

        if options.kind == "feature":
            from models.fitting import feature

            fit, steps = feature.fit_feature, feature.STEPS
        else:
            from models.fitting import pixel

            fit, steps = pixel.fit_pixel, pixel.STEPS
        warm = read_warm_start(options.warm, options.kind) if all(each.roles_given for each in chosen) else None
        fit = functools.partial(fit, warm=warm, trim_fraction=options.trim_fraction)
    steps = options.steps or steps

    def network(products: Sequence[Sequence[Path]], limits: TrainingLimits, report: Report) -> FitResult:
        return fit(FitRequest(products, chosen[0].input_size, options.seed, steps, limits, reading.read, report))

    return network, steps


def _export(
    fitted: FitResult,
    chosen: Sequence[Chosen],
    folders: Sequence[Path],
    options: TrainingOptions,
    reading: Reading,
    report: Report,
) -> tuple[list[Detector], list[Parity]]:
    """Write graph and weights of each product into its folder; return the detectors that ship and their parity."""
    size = chosen[0].input_size
    detectors: list[Detector] = []
    parities = []
    for number, (graph, folder, each) in enumerate(zip(fitted.graphs, folders, chosen, strict=True)):
        report(Progress("exporting", number, len(folders)))
        first = fitted.graphs.index(graph)
        if first == number:
            folder.mkdir()
            export_graph(graph, size, folder)
            detectors.append(OpenVinoDetector(unpublished(folder, size), options.threads or 0))
            save_weights(graph, folder, {"kind": options.kind, "input_size": size, "seed": options.seed})
        else:
            share_files(folders[first], folder)
            detectors.append(detectors[first])
        probes = np.stack([reading.read(image.path, size) for image in each.train[:PARITY_IMAGES]])
        difference = check_parity(graph, detectors[-1], probes)
        parities.append(Parity(images=len(probes), max_relative_difference=difference))
    report(Progress("exporting", len(folders), len(folders)))
    return detectors, parities


@dataclass(frozen=True)
class _Run:
    """What the versions of one training have in common; `started` is on `time.monotonic`'s clock."""

    options: TrainingOptions
    fitted: FitResult
    steps: int
    started: float
    created_at: datetime
    version: str
    joint: tuple[str, ...] | None
    energy: TrainingEnergy | None
    tamis_version: str | None


def _manifest(
    run: _Run, chosen: Chosen, draft: DraftCheck, calibration: Calibration, parity: Parity, folder: Path
) -> Manifest:
    """Return what `model.json` says of the version in `folder`, all of whose other files are written."""
    options, fitted = run.options, run.fitted
    return Manifest(
        format=1,
        product=chosen.product,
        version=run.version,
        kind=options.kind,
        profile=options.profile,
        created_at=run.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        tamis_version=run.tamis_version,
        joint=run.joint,
        input_size=chosen.input_size,
        resample="bilinear",
        colour="RGB",
        decode=draft,
        value_range=chosen.value_range,
        stride=fitted.stride,
        map=fitted.map_meaning,
        score=fitted.score_meaning,
        architecture=fitted.architecture,
        backbone=Backbone(**fitted.backbone) if fitted.backbone else None,
        training=Training(
            seed=options.seed,
            images=len(chosen.train),
            anomalies=len(chosen.train_anomalies),
            steps=fitted.steps,
            steps_asked=run.steps,
            seconds=round(time.monotonic() - run.started, 3),
            final_loss=fitted.loss,
            minutes_max=options.minutes_max,
            memory_max_mb=options.memory_bytes / 1e6,
            memory_peak_mb=round(memory_peak_bytes() / 1e6, 1),
            threads=options.threads,
            warm_start=fitted.warm_start,
            retraining=options.retraining,
            trim_fraction=options.trim_fraction,
            trimmed=tuple({"path": str(image.path), "sha256": image.sha256} for image in chosen.trimmed),
            skipped=tuple({"path": str(path), "error": why} for path, why in chosen.skipped),
            libraries={name: metadata.version(name) for name in LIBRARIES},
        ),
        calibration=calibration,
        energy=run.energy,
        parity=parity,
        files=file_hashes(folder),
    )


def _share(energy: Mapping[str, Any] | None, products: int) -> TrainingEnergy | None:
    """Return one product's part of the `energy` of all: its Wh and g; how long it took is not divided."""
    if energy is None:
        return None
    return TrainingEnergy(
        **{
            name: value / products if name.endswith(("_wh", "_g")) and value is not None else value
            for name, value in energy.items()
        }
    )
