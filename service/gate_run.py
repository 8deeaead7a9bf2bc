"""Has champion and challenger score the same golden pictures, decoded as they ship, for the gate to judge.

Where too few anomalies are known, defects drawn on the normals stand in for them. No torch comes into this process;
what it takes is metered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.detector import Detector, UInt8Array
from models.drawn_defects import draw_defects
from models.evaluate import Read, score_files
from models.metrics import Float64Array
from models.openvino_detector import OpenVinoDetector
from models.registry import ModelVersion, file_sha256
from service import gate
from service.decode import DecodeError, StillChanging, decode, read_file
from service.energy import EnergyMeter
from service.gather import calibration_pictures, golden
from service.settings import Settings
from service.storage.energy import EnergySample
from service.storage.retrainings import KnownPicture
from service.thresholds import judge_of

NORMALS_MAX = 1000
DRAWN_MAX = 200
_OTHERS = 8  # normals that drawn defects take parts from
_UNREADABLE: tuple[type[Exception], ...] = (DecodeError, StillChanging, OSError)


@dataclass(frozen=True)
class _Pictures:
    normals: Sequence[Path]
    anomalies: Sequence[Path]
    normals_from: gate.NormalsFrom
    anomalies_from: gate.AnomaliesFrom


@dataclass(frozen=True)
class _Scored:
    """What one version made of the pictures that it could score, and what a picture took of the processor."""

    normals: Mapping[Path, float]
    anomalies: Mapping[Path, float]
    cpu_ms_per_image: float
    wh_per_1000_images: float | None


def run_gate(
    root: Path,
    settings: Settings,
    champion: ModelVersion,
    challenger: ModelVersion,
    known: Mapping[str, KnownPicture],
    *,
    drifting: bool,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[gate.Judgement, list[EnergySample]]:
    """Return the gate's finding on `challenger`, and the energy that finding it took, samples of kind evaluation."""
    folders = [champion.folder, challenger.folder]
    found = golden(root, folders, known)
    pictures = _choose(found, calibration_pictures(folders, known))
    if pictures is None:
        return gate.not_judged(
            f"expected at least {gate.NORMALS_MIN} golden normals that neither version has seen, or as many that "
            f"calibrated the champion; found {len(found['normal'])}; label more pictures as normal"
        ), []
    versions = (champion, challenger)
    base = max((version.input_size for version in versions), key=lambda size: size[0] * size[1])
    total = 2 * (len(pictures.normals) + len(pictures.anomalies))
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    samples: list[EnergySample] = []
    meter = EnergyMeter(
        tracking=settings.energy_tracking, country=settings.energy_country, cpu_max_w=settings.energy_cpu_max_w
    )
    try:
        scored = [_score(version, settings, pictures, base, meter, samples, tell) for version in versions]
    finally:
        meter.close()
    sides = _paired(settings, versions, scored)
    if len(sides[0].normal_scores) < gate.NORMALS_MIN:
        return gate.not_judged(
            f"expected at least {gate.NORMALS_MIN} normals that both versions can score; found "
            f"{len(sides[0].normal_scores)}"
        ), samples
    judgement = gate.judge(
        sides[0],
        sides[1],
        margin=settings.promotion_margin,
        normals_from=pictures.normals_from,
        anomalies_from=pictures.anomalies_from,
        drifting=drifting,
    )
    return judgement, samples


def _choose(found: Mapping[str, Sequence[Path]], calibration: Sequence[Path]) -> _Pictures | None:
    """Return what to judge by; None where there are too few normals of any sort."""
    enough = len(found["normal"]) >= gate.NORMALS_MIN
    normals = found["normal"] if enough else calibration
    if len(normals) < gate.NORMALS_MIN:
        return None
    known = len(found["anomaly"]) >= gate.ANOMALIES_MIN
    return _Pictures(
        normals[:NORMALS_MAX],
        found["anomaly"][:NORMALS_MAX] if known else normals[:DRAWN_MAX],
        "golden" if enough else "calibration",
        "golden" if known else "drawn",
    )


def _score(
    version: ModelVersion,
    settings: Settings,
    pictures: _Pictures,
    base: tuple[int, int],
    meter: EnergyMeter,
    samples: list[EnergySample],
    tell: Callable[[int], None],
) -> _Scored:
    def read(path: Path, size: tuple[int, int]) -> UInt8Array:
        file = read_file(path.resolve(), file_bytes_max=settings.file_bytes_max)
        return decode(file.data, size, pixels_max=settings.pixels_max, draft=version.draft).pixels

    def take(images: int) -> EnergySample | None:
        sample = meter.take("evaluation", images)
        if sample is not None:
            samples.append(sample)
        return sample

    detector = OpenVinoDetector(version, settings.scoring_threads)
    detector.score(np.zeros((1, *version.input_size, 3), dtype=np.uint8))  # the first one also allocates
    take(0)
    began = time.process_time()
    normals = _scores(detector, pictures.normals, read, settings.decoders, tell)
    drawn = pictures.anomalies_from == "drawn"
    anomalies = {} if drawn else _scores(detector, pictures.anomalies, read, settings.decoders, tell)
    images = max(1, len(normals) + len(anomalies))
    cpu_ms = 1000 * (time.process_time() - began) / images
    sample = take(images)
    if drawn:
        others = [read(path, base) for path in list(normals)[:_OTHERS]]
        anomalies = _scores(detector, pictures.anomalies, _drawing(read, base, others), settings.decoders, tell)
        take(len(anomalies))
    wh = None if sample is None or sample.total_wh is None else 1000 * sample.total_wh / images
    return _Scored(normals, anomalies, cpu_ms, wh)


def _scores(
    detector: Detector, paths: Sequence[Path], read: Read, threads: int, tell: Callable[[int], None]
) -> dict[Path, float]:
    found: dict[Path, float] = {}
    for batch in score_files(detector, paths, read, unreadable=_UNREADABLE, decode_threads=threads):
        found |= {scored.path: scored.score for scored in batch.scored}
        tell(len(batch.scored) + len(batch.failures))
    return found


def _drawing(read: Read, base: tuple[int, int], others: Sequence[UInt8Array]) -> Read:
    """Return a reader of the same pictures with defects on them, the same ones at each call and for each version."""

    def drawn(path: Path, size: tuple[int, int]) -> UInt8Array:
        from PIL import Image

        seed = int(file_sha256(path)[:16], 16)
        picture, _ = draw_defects(read(path, base), others, np.random.default_rng(seed))
        if size == base:
            return picture
        resized = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.uint8)

    return drawn


def _paired(
    settings: Settings, versions: Sequence[ModelVersion], scored: Sequence[_Scored]
) -> tuple[gate.Side, gate.Side]:
    """Return both sides on the pictures that both could score."""
    normals = [path for path in scored[0].normals if path in scored[1].normals]
    anomalies = [path for path in scored[0].anomalies if path in scored[1].anomalies]
    sides = []
    for version, one in zip(versions, scored, strict=True):
        judge = judge_of(settings, version.product, version)
        sides.append(
            gate.Side(
                version=version.version,
                normal_scores=_array(one.normals, normals),
                anomaly_scores=_array(one.anomalies, anomalies),
                threshold=judge.threshold,
                promised_rate=getattr(judge.policy, "false_alarm_rate", None),
                cpu_ms_per_image=one.cpu_ms_per_image,
                wh_per_1000_images=one.wh_per_1000_images,
            )
        )
    return sides[0], sides[1]


def _array(scores: Mapping[Path, float], paths: Sequence[Path]) -> Float64Array:
    return np.array([scores[path] for path in paths], dtype=np.float64)
