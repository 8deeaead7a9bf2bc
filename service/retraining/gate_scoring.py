"""Gate scoring: has both versions score the same golden images, decoded as in production, for the gate to compare.

What an image costs is measured apart, in turns of both versions: the neighbours of this process, and images not yet in
memory, would count against whichever comes first. No torch comes into this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from models.detector import UInt8Array
from models.errors import TooFewImages
from models.evaluation.evaluate import Read, score_files
from models.registry import ModelVersion, file_sha256
from models.runtime.openvino_detector import OpenVinoDetector
from models.synthetic_defects.draw import draw_defects
from service.energy.meter import EnergyMeter
from service.imaging.decode import DecodeError, StillChanging, decode, read_file
from service.retraining import gate
from service.retraining.training_data import calibration_images, golden
from service.scoring.decide import ThresholdDecider
from service.scoring.threshold_policy import decider_of
from service.settings import Settings
from service.storage.energy_sample import EnergySample
from service.storage.retrainings import KnownImage

NORMALS_MAX = 1000
DRAWN_MAX = 200
_DONORS = 8  # normals that drawn defects take parts from
_TURNS = 5
_TURN_S_MIN = 0.5
"""How long one turn of a version lasts: long against the 50 ms below which the meter counts nothing."""
_TURN_IMAGES = 12
_UNREADABLE: tuple[type[Exception], ...] = (DecodeError, StillChanging, OSError)

Take = Callable[[int], EnergySample | None]
"""Takes a sample of the energy since the last one, for so many images."""


@dataclass(frozen=True)
class _Images:
    normals: Sequence[Path]
    anomalies: Sequence[Path]
    normals_from: gate.NormalsFrom
    anomalies_from: gate.AnomaliesFrom


class _Contestant:
    """A version, loaded: how images are read for it, and what it made of those that it could score."""

    def __init__(self, version: ModelVersion, settings: Settings) -> None:
        self.version = version
        self._detector = OpenVinoDetector(version, settings.scoring_threads)
        self._settings = settings
        self.normals: dict[Path, float] = {}
        self.anomalies: dict[Path, float] = {}
        self.turns: list[tuple[float, float | None]] = []
        """Processor ms an image and Wh of 1,000 images, from the file to the score, in each turn."""

    def score(self, chosen: _Images, base: tuple[int, int], report: Callable[[int], None]) -> None:
        """Score the images; where defects are drawn, at the size `base`."""
        self.normals = self.scores(chosen.normals, report=report)
        drawing = None
        if chosen.anomalies_from == "drawn":
            drawing = _drawing(self._read, base, [self._read(path, base) for path in list(self.normals)[:_DONORS]])
        self.anomalies = self.scores(chosen.anomalies, drawing, report)

    def scores(
        self, paths: Sequence[Path], read: Read | None = None, report: Callable[[int], None] = lambda count: None
    ) -> dict[Path, float]:
        """Return the scores of the images that can be read."""
        found: dict[Path, float] = {}
        for batch in score_files(
            self._detector, paths, read or self._read, unreadable=_UNREADABLE, decode_threads=self._settings.decoders
        ):
            found |= {scored.path: scored.score for scored in batch.scored}
            report(len(batch.scored) + len(batch.failures))
        return found

    def side(self, normals: Sequence[Path], anomalies: Sequence[Path], decider: ThresholdDecider) -> gate.Side:
        """Return what the gate compares: the scores of these images, and the medians of the turns."""
        energies = [wh for _, wh in self.turns if wh is not None]
        return gate.Side(
            version=self.version.version,
            normal_scores=np.array([self.normals[path] for path in normals], dtype=np.float64),
            anomaly_scores=np.array([self.anomalies[path] for path in anomalies], dtype=np.float64),
            threshold=decider.threshold,
            promised_rate=getattr(decider.policy, "false_alarm_rate", None),
            cpu_ms_per_image=median(cpu_ms for cpu_ms, _ in self.turns),
            wh_per_1000_images=median(energies) if energies else None,
        )

    def _read(self, path: Path, size: tuple[int, int]) -> UInt8Array:
        file = read_file(path.resolve(), file_bytes_max=self._settings.file_bytes_max)
        version, limit = self.version, self._settings.pixels_max
        return decode(file.data, size, pixels_max=limit, draft=version.draft, value_range=version.value_range).pixels


def run_gate(
    root: Path,
    settings: Settings,
    champion: ModelVersion,
    challenger: ModelVersion,
    known: Mapping[str, KnownImage],
    *,
    drifting: bool,
    chosen_rate: float | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[gate.GateResult, list[EnergySample | None]]:
    """Return the gate's finding on `challenger`, and the energy that finding it took, samples of kind evaluation.

    Both are compared at `chosen_rate`, a person's, where both can keep it; else at what the settings say.
    """
    versions = (champion, challenger)
    folders = [version.folder for version in versions]
    found = golden(root, folders, known)
    chosen = _choose(found, calibration_images(root, folders, known))
    if chosen is None:
        return gate.not_judged(
            f"expected at least {gate.NORMALS_MIN} golden normals that neither version has seen, or as many that "
            f"calibrated the champion; found {len(found['normal'])}; label more images as normal"
        ), []
    samples: list[EnergySample | None] = []
    meter = EnergyMeter(
        tracking=settings.energy_tracking, country=settings.energy_country, cpu_max_w=settings.energy_cpu_max_w
    )

    def take(images: int) -> EnergySample | None:
        samples.append(meter.take("evaluation", images))
        return samples[-1]

    with closing(meter):
        first, second = (_Contestant(version, settings) for version in versions)
        _score((first, second), chosen, take, report)
        normals = [path for path in first.normals if path in second.normals]
        if len(normals) < gate.NORMALS_MIN:
            return gate.not_judged(
                f"expected at least {gate.NORMALS_MIN} normals that both versions can score; found {len(normals)}"
            ), samples
        _take_turns((first, second), normals[:_TURN_IMAGES], take)
    anomalies = [path for path in first.anomalies if path in second.anomalies]
    deciders = _deciders(settings, versions, chosen_rate)
    result = gate.compare(
        first.side(normals, anomalies, deciders[0]),
        second.side(normals, anomalies, deciders[1]),
        margin=settings.promotion_margin,
        normals_from=chosen.normals_from,
        anomalies_from=chosen.anomalies_from,
        drifting=drifting,
    )
    return result, samples


def _choose(found: Mapping[str, Sequence[Path]], calibration: Sequence[Path]) -> _Images | None:
    enough = len(found["normal"]) >= gate.NORMALS_MIN
    normals = found["normal"] if enough else calibration
    if len(normals) < gate.NORMALS_MIN:
        return None
    known = len(found["anomaly"]) >= gate.ANOMALIES_MIN
    return _Images(
        normals[:NORMALS_MAX],
        found["anomaly"][:NORMALS_MAX] if known else normals[:DRAWN_MAX],
        "golden" if enough else "calibration",
        "golden" if known else "drawn",
    )


def _score(contestants: Sequence[_Contestant], chosen: _Images, take: Take, report: Callable[[int, int], None]) -> None:
    base = max((one.version.input_size for one in contestants), key=lambda size: size[0] * size[1])
    total = len(contestants) * (len(chosen.normals) + len(chosen.anomalies))
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        report(done, total)

    for contestant in contestants:
        contestant.score(chosen, base, count)
        take(len(contestant.normals) + len(contestant.anomalies))


def _take_turns(contestants: Sequence[_Contestant], paths: Sequence[Path], take: Take) -> None:
    """Measure what an image takes of each, in turns on the same images; who begins changes each time."""
    take(0)
    for turn in range(_TURNS):
        for contestant in contestants if turn % 2 == 0 else reversed(contestants):
            images, cpu_s, until = 0, time.process_time(), time.monotonic() + _TURN_S_MIN
            while not images or time.monotonic() < until:
                contestant.scores(paths)
                images += len(paths)
            cpu_s = time.process_time() - cpu_s
            sample = take(images)
            wh = None if sample is None or sample.total_wh is None else 1000 * sample.total_wh / images
            contestant.turns.append((1000 * cpu_s / images, wh))


def _drawing(read: Read, base: tuple[int, int], donors: Sequence[UInt8Array]) -> Read:
    """Return a reader of the same images with defects on them, the same ones at each call and for each version."""

    def drawn(path: Path, size: tuple[int, int]) -> UInt8Array:
        from PIL import Image

        seed = int(file_sha256(path)[:16], 16)
        image, _ = draw_defects(read(path, base), donors, np.random.default_rng(seed))
        if size == base:
            return image
        resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.uint8)

    return drawn


def _deciders(
    settings: Settings, versions: Sequence[ModelVersion], chosen_rate: float | None
) -> list[ThresholdDecider]:
    with suppress(TooFewImages):
        return [decider_of(settings, version.product, version, chosen_rate=chosen_rate) for version in versions]
    return [decider_of(settings, version.product, version) for version in versions]
