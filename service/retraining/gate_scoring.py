"""Has champion and challenger score the same golden images, decoded as they ship, for the gate to judge.

Where too few anomalies are known, defects drawn on the normals stand in for them. No torch comes into this process;
what it takes is metered. What an image costs is measured apart from that, in turns of both versions: the neighbours of
this process, and images not yet in memory, would count against whichever comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from models.detector import UInt8Array
from models.errors import TooFewImages
from models.evaluation.evaluate import Read, score_files
from models.evaluation.metrics import Float64Array
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
from service.storage.energy import EnergySample
from service.storage.retrainings import KnownImage

NORMALS_MAX = 1000
DRAWN_MAX = 200
_OTHERS = 8  # normals that drawn defects take parts from
_TURNS = 5
_TURN_S_MIN = 0.5
"""How long one turn of a version lasts: long against the 50 ms below which the meter counts nothing."""
_TURN_IMAGES = 12
_UNREADABLE: tuple[type[Exception], ...] = (DecodeError, StillChanging, OSError)


@dataclass(frozen=True)
class _Images:
    normals: Sequence[Path]
    anomalies: Sequence[Path]
    normals_from: gate.NormalsFrom
    anomalies_from: gate.AnomaliesFrom


@dataclass(frozen=True)
class _Scored:
    """What one version made of the images that it could score."""

    normals: Mapping[Path, float]
    anomalies: Mapping[Path, float]


@dataclass(frozen=True)
class _Cost:
    """What an image takes of one version, from the file to its score: the median of its turns."""

    cpu_ms_per_image: float
    wh_per_1000_images: float | None


class _Contestant:
    """A version, loaded, and how images are read for it."""

    def __init__(self, version: ModelVersion, settings: Settings) -> None:
        self.version = version
        self.detector = OpenVinoDetector(version, settings.scoring_threads)
        self._settings = settings

    def read(self, path: Path, size: tuple[int, int]) -> UInt8Array:
        settings = self._settings
        file = read_file(path.resolve(), file_bytes_max=settings.file_bytes_max)
        return decode(file.data, size, pixels_max=settings.pixels_max, draft=self.version.draft).pixels

    def scores(
        self, paths: Sequence[Path], read: Read | None = None, tell: Callable[[int], None] = lambda count: None
    ) -> dict[Path, float]:
        """Return the scores of the images that can be read."""
        found: dict[Path, float] = {}
        batches = score_files(
            self.detector, paths, read or self.read, unreadable=_UNREADABLE, decode_threads=self._settings.decoders
        )
        for batch in batches:
            found |= {scored.path: scored.score for scored in batch.scored}
            tell(len(batch.scored) + len(batch.failures))
        return found


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
) -> tuple[gate.GateResult, list[EnergySample]]:
    """Return the gate's finding on `challenger`, and the energy that finding it took, samples of kind evaluation.

    Both are judged at `chosen_rate`, a person's, where both can keep it; else at what the settings say.
    """
    folders = [champion.folder, challenger.folder]
    found = golden(root, folders, known)
    chosen = _choose(found, calibration_images(folders, known))
    if chosen is None:
        return gate.not_judged(
            f"expected at least {gate.NORMALS_MIN} golden normals that neither version has seen, or as many that "
            f"calibrated the champion; found {len(found['normal'])}; label more images as normal"
        ), []
    versions = (champion, challenger)
    base = max((version.input_size for version in versions), key=lambda size: size[0] * size[1])
    total = 2 * (len(chosen.normals) + len(chosen.anomalies))
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    samples: list[EnergySample] = []
    meter = EnergyMeter(
        tracking=settings.energy_tracking, country=settings.energy_country, cpu_max_w=settings.energy_cpu_max_w
    )

    def take(images: int) -> EnergySample | None:
        sample = meter.take("evaluation", images)
        if sample is not None:
            samples.append(sample)
        return sample

    try:
        contestants = [_Contestant(version, settings) for version in versions]
        scored = []
        for contestant in contestants:
            scored.append(_score(contestant, chosen, base, tell))
            take(len(scored[-1].normals) + len(scored[-1].anomalies))
        normals = [path for path in scored[0].normals if path in scored[1].normals]
        if len(normals) < gate.NORMALS_MIN:
            return gate.not_judged(
                f"expected at least {gate.NORMALS_MIN} normals that both versions can score; found {len(normals)}"
            ), samples
        costs = _costs(contestants, normals[:_TURN_IMAGES], take)
    finally:
        meter.close()
    sides = _paired(versions, _judges(settings, versions, chosen_rate), scored, costs)
    result = gate.compare(
        sides[0],
        sides[1],
        margin=settings.promotion_margin,
        normals_from=chosen.normals_from,
        anomalies_from=chosen.anomalies_from,
        drifting=drifting,
    )
    return result, samples


def _choose(found: Mapping[str, Sequence[Path]], calibration: Sequence[Path]) -> _Images | None:
    """Return what to judge by; None where there are too few normals of any sort."""
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


def _score(contestant: _Contestant, chosen: _Images, base: tuple[int, int], tell: Callable[[int], None]) -> _Scored:
    normals = contestant.scores(chosen.normals, tell=tell)
    if chosen.anomalies_from == "golden":
        return _Scored(normals, contestant.scores(chosen.anomalies, tell=tell))
    other_instances = [contestant.read(path, base) for path in list(normals)[:_OTHERS]]
    drawing = _drawing(contestant.read, base, other_instances)
    return _Scored(normals, contestant.scores(chosen.anomalies, drawing, tell))


def _costs(
    contestants: Sequence[_Contestant], paths: Sequence[Path], take: Callable[[int], EnergySample | None]
) -> list[_Cost]:
    """Return what an image takes of each, measured in turns on the same images, who begins changing each time."""
    turns: dict[_Contestant, list[tuple[float, float | None]]] = {contestant: [] for contestant in contestants}
    take(0)
    for turn in range(_TURNS):
        for contestant in contestants if turn % 2 == 0 else reversed(contestants):
            images, cpu_s, until = 0, time.process_time(), time.monotonic() + _TURN_S_MIN
            while time.monotonic() < until:
                contestant.scores(paths)
                images += len(paths)
            cpu_s = time.process_time() - cpu_s
            sample = take(images)
            wh = None if sample is None or sample.total_wh is None else 1000 * sample.total_wh / images
            turns[contestant].append((1000 * cpu_s / images, wh))
    return [_median_cost(turns[contestant]) for contestant in contestants]


def _median_cost(turns: Sequence[tuple[float, float | None]]) -> _Cost:
    energies = [wh for _, wh in turns if wh is not None]
    return _Cost(median(cpu_ms for cpu_ms, _ in turns), median(energies) if energies else None)


def _drawing(read: Read, base: tuple[int, int], other_instances: Sequence[UInt8Array]) -> Read:
    """Return a reader of the same images with defects on them, the same ones at each call and for each version."""

    def drawn(path: Path, size: tuple[int, int]) -> UInt8Array:
        from PIL import Image

        seed = int(file_sha256(path)[:16], 16)
        image, _ = draw_defects(read(path, base), other_instances, np.random.default_rng(seed))
        if size == base:
            return image
        resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.uint8)

    return drawn


def _judges(settings: Settings, versions: Sequence[ModelVersion], chosen_rate: float | None) -> list[ThresholdDecider]:
    with suppress(TooFewImages):
        return [decider_of(settings, version.product, version, chosen_rate=chosen_rate) for version in versions]
    return [decider_of(settings, version.product, version) for version in versions]


def _paired(
    versions: Sequence[ModelVersion],
    deciders: Sequence[ThresholdDecider],
    scored: Sequence[_Scored],
    costs: Sequence[_Cost],
) -> tuple[gate.Side, gate.Side]:
    """Return both sides on the images that both could score."""
    normals = [path for path in scored[0].normals if path in scored[1].normals]
    anomalies = [path for path in scored[0].anomalies if path in scored[1].anomalies]
    sides = []
    for version, decider, one, cost in zip(versions, deciders, scored, costs, strict=True):
        sides.append(
            gate.Side(
                version=version.version,
                normal_scores=_array(one.normals, normals),
                anomaly_scores=_array(one.anomalies, anomalies),
                threshold=decider.threshold,
                promised_rate=getattr(decider.policy, "false_alarm_rate", None),
                cpu_ms_per_image=cost.cpu_ms_per_image,
                wh_per_1000_images=cost.wh_per_1000_images,
            )
        )
    return sides[0], sides[1]


def _array(scores: Mapping[Path, float], paths: Sequence[Path]) -> Float64Array:
    return np.array([scores[path] for path in paths], dtype=np.float64)
