"""Trains one detector exactly as `tamis train` does, and measures it: how well, how fast, at what energy and memory."""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.data.datasets import Sample
from models.data.select_images import ProductImages
from models.evaluation.evaluate import Read, evaluate, score_files
from models.progress import Progress
from models.registry import ModelVersion
from models.runtime.openvino_detector import OpenVinoDetector
from service.energy.meter import EnergyMeter
from service.imaging.decode import DecodeError, image_size, read_image
from service.training.job import TrainingJob
from service.training.run import Trained, train_in_child
from tests.benchmarks.run_file import Run

UNREADABLE: tuple[type[Exception], ...] = (DecodeError, OSError)
PRODUCT = "default"
PIXEL = "pixel"
TIMED_IMAGES, TIMED_ROUNDS, WARM_UP = 10, 10, 5
METERED_IMAGES_MAX = 200


def train(
    images: Sequence[Path],
    profile: str,
    seed: int,
    rate: float,
    folder: Path,
    overrides: Run,
    anomalies: Sequence[Path] = (),
) -> tuple[Trained, Run]:
    """Train `profile` (or `pixel`) on `images` into `folder`; return the version, and what training it took.

    `anomalies` are a classifier's. `overrides` are fields of TrainingJob. Raises what
    `service.training.run.train_in_child` raises.
    """
    job = TrainingJob(
        **{
            "products": (
                ProductImages(PRODUCT, [p.absolute() for p in images], rate, [p.absolute() for p in anomalies]),
            ),
            "models_root": folder / "models",
            "kind": PIXEL if profile == PIXEL else "feature",
            "profile": "balanced" if profile == PIXEL else profile,
            "seed": seed,
            **overrides,
        }
    )
    memory = _PeakMemory()
    began = time.perf_counter()
    trained = train_in_child(job, report=memory.look, on_start=memory.watch)
    seconds = time.perf_counter() - began
    manifest = trained.version.manifest
    told_mb = manifest.training.memory_peak_mb
    return trained, {
        "training_images": manifest.training.images,
        "calibration_images": manifest.calibration.images,
        "calibration_method": manifest.calibration.method,
        "training_steps": manifest.training.steps,
        "training_s": seconds,
        "training_wh": trained.energy.total_wh if trained.energy else None,
        "training_energy_source": trained.energy.source if trained.energy else None,
        "training_peak_mb": told_mb if told_mb is not None else memory.peak_mb,
        "input_size": list(trained.version.input_size),
    }


def quality(version: ModelVersion, samples: Sequence[Sample]) -> Run:
    """Return the metrics of `samples` at the threshold that `version` was calibrated to."""
    result = evaluate(
        OpenVinoDetector(version),
        samples,
        version.manifest.calibration.threshold,
        reader(version),
        image_size,
        unreadable=UNREADABLE,
    )
    if result.failures:
        failure = result.failures[0]
        raise OSError(f"expected {len(samples)} images that can be scored; found {failure.path}: {failure.error}")
    return {
        **asdict(result.metrics),
        "threshold": result.threshold,
        "normals": result.normals,
        "anomalies": result.anomalies,
        "masked": result.masked,
    }


def reader(version: ModelVersion) -> Read:
    """Return how the daemon reads images for `version`: as drafts where its training found that harmless."""
    return functools.partial(read_image, draft=version.draft)


def cost(version: ModelVersion, paths: Sequence[Path]) -> Run:
    """Return ms of the graph alone for an image on one thread, and Wh and images/s from file to score."""
    paths, read = paths[:METERED_IMAGES_MAX], reader(version)
    meter = EnergyMeter()
    try:
        detector = OpenVinoDetector(version)
        detector.score(read(paths[0], detector.input_size)[None])
        meter.take("evaluation")  # what the meter and the compiling took is nobody's
        began = time.perf_counter()
        scored = sum(len(batch.scored) for batch in score_files(detector, paths, read, unreadable=UNREADABLE))
        seconds = time.perf_counter() - began
        energy = meter.take("evaluation", scored)
    finally:
        meter.close()
    return {
        "graph_ms_one_thread": graph_ms(version, paths[:TIMED_IMAGES]),
        "images_per_s": scored / seconds,
        "wh_per_1000": energy.total_wh / scored * 1000 if energy else None,
        "energy_source": energy.source if energy else None,
    }


def graph_ms(version: ModelVersion, paths: Sequence[Path]) -> float:
    """Return the median milliseconds of scoring one decoded image on one thread, each of `paths` several times."""
    detector = OpenVinoDetector(version, threads=1)
    images = [reader(version)(path, detector.input_size)[None] for path in paths]
    for number in range(WARM_UP):
        detector.score(images[number % len(images)])
    taken = []
    for _ in range(TIMED_ROUNDS):
        for image in images:
            began = time.perf_counter()
            detector.score(image)
            taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def scores(version: ModelVersion, paths: Sequence[Path]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the scores of `paths`, float64 `(N,)`. Raises OSError if one cannot be scored."""
    found = []
    for batch in score_files(OpenVinoDetector(version), paths, reader(version), unreadable=UNREADABLE):
        if batch.failures:
            raise OSError(f"{batch.failures[0].path}: expected an image; found {batch.failures[0].error}")
        found += [file.score for file in batch.scored]
    return np.array(found)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of `parser`, with `--job` for fields of TrainingJob added and looked at."""
    parser.add_argument("--job", action="append", default=[], metavar="NAME=VALUE", help="a field of TrainingJob")
    options = parser.parse_args()
    try:
        overrides(options.job)
    except ValueError as error:
        parser.error(str(error))
    return options


def overrides(given: Sequence[str]) -> Run:
    """Return `NAME=VALUE` pairs as fields of TrainingJob, values as JSON or else text. Raises ValueError."""
    known, found = set(TrainingJob.model_fields), {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--job {pair}: expected NAME=VALUE with a name of {', '.join(sorted(known))}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


class _PeakMemory:
    """The highest resident memory of the training process so far, looked at whenever it reports."""

    def __init__(self) -> None:
        self.peak_mb: float | None = None
        self._status: Path | None = None

    def watch(self, child: subprocess.Popen[bytes]) -> None:
        self._status = Path("/proc") / str(child.pid) / "status"

    def look(self, progress: Progress) -> None:
        try:
            lines = self._status.read_text().splitlines() if self._status else []
        except OSError:
            return
        for line in lines:
            if line.startswith("VmHWM:"):
                self.peak_mb = int(line.split()[1]) * 1024 / 1e6
