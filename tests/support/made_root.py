"""Fills a root with images that look as if a daemon had sorted them: real files, rows, maps and energy.

Deterministic: the same seed makes the same images and scores. Scores are those of `brightness_version`, whose
threshold is 100 at a false-alarm rate of 0.01.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from models.calibration.thresholds import p_values
from models.regions import find_regions
from service.imaging.overlay import overlay, save_overlay
from service.imaging.synthetic_parts import DEFECTS, draw
from service.names import destination, new_id
from service.storage import energy, images, regions
from service.storage.database.open import open_database
from service.storage.images import Finished, ImageRecord

THRESHOLD = 100.0
BAND = 6.0
CALIBRATION = np.arange(1, 101, dtype=np.float32)


def fill(
    root: Path,
    count: int,
    product: str = "default",
    *,
    now: datetime | None = None,
    every: timedelta = timedelta(minutes=10),
    drawn: bool = False,
    seed: int = 1,
    version: str = "v1",
    suffix: str = ".png",
    names: Sequence[str] = (),
) -> list[str]:
    """Add `count` images of `product`, the last received at `now`; return their ids, oldest first.

    A fifth are anomalies. `drawn` makes machined parts of 640 x 480 where otherwise they are small and plain.
    """
    rng = np.random.default_rng(seed)
    now = now or datetime.now(UTC)
    engine = open_database(root)
    ids = []
    with engine.begin() as connection:
        for number in range(count):
            anomaly = number % 5 == 2
            # Some on either side lie near the threshold.
            near = number % 3 == 0
            offset = float(rng.uniform(0.2, 5) if near else rng.uniform(15, 45))
            score = THRESHOLD + offset if anomaly else THRESHOLD - offset * (1 if near else 1.8)
            at = now - every * (count - 1 - number)
            id, name = new_id(), names[number] if number < len(names) else f"part-{number + 1:04d}{suffix}"
            verdict = "anomaly" if anomaly else "normal"
            path = destination(verdict, product, at, name, id)
            pixels, mask = _pixels(rng, anomaly, number, drawn)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
            height, width = pixels.shape[:2]
            uncertainty = 1 / (1 + abs(score - THRESHOLD) / BAND)
            p_value = float(p_values(CALIBRATION, [score])[0])
            sample = energy.EnergySample(
                "scoring", at, 0.05, 1, 0.0004, None, 0.0001, 0.0005, 0.00003, "estimated", "FRA"
            )
            row = ImageRecord(
                id=id, product=product, file_name=name, path=path, destination=path, state="scored", verdict=verdict,
                score=score, threshold=THRESHOLD, p_value=p_value, model_version=version,
                sha256=hashlib.sha256((root / path).read_bytes()).hexdigest(), width=width, height=height, mode="RGB",
                bytes=(root / path).stat().st_size, received_at=at, decided_at=at + timedelta(milliseconds=80),
                attempts=1, error_code=None, error=None, uncertain=uncertainty > 0.5, uncertainty=uncertainty,
            )  # fmt: skip
            images.record(connection, [row], energy.add(connection, sample))
            images.finish(connection, [Finished(id, "placed", path, at + timedelta(milliseconds=120), 120.0)])
            if anomaly or uncertainty > 0.5:
                heat = np.maximum(mask, 0.2).astype(np.float32) * np.float32(3 if anomaly else 0.9)
                found = find_regions(heat, height, width)
                save_overlay(root / "maps" / f"{id}.png", overlay(pixels, heat, 1.0, found))
                regions.record(connection, {id: found})
            ids.append(id)
        for day in range(4):
            idle = energy.EnergySample(
                "idle",
                now - timedelta(days=day, minutes=5),
                300.0,
                0,
                0.02,
                None,
                0.01,
                0.03,
                0.002,
                "estimated",
                "FRA",
            )
            energy.add(connection, idle)
        training = energy.EnergySample(
            "training", now - timedelta(days=3), 60.0, 200, 0.9, None, 0.1, 1.0, 0.06, "estimated", "FRA"
        )
        energy.add(connection, training)
    engine.dispose()
    return ids


def _pixels(rng: np.random.Generator, anomaly: bool, number: int, drawn: bool) -> tuple[np.ndarray, np.ndarray]:
    if drawn:
        part = draw(rng, DEFECTS[number % len(DEFECTS)] if anomaly else None, (480, 640))
        small = Image.fromarray(part.mask.astype(np.uint8) * 255).resize((40, 30), Image.Resampling.BOX)
        return part.image, np.clip(np.asarray(small, np.float32) / 60, 0, 1)
    pixels = np.full((48, 64, 3), 40 + number % 100, np.uint8)
    # No two alike: images of the same bytes share their place in the training set.
    pixels[0, :2] = [[number % 256, number // 256 % 256, 0], rng.integers(0, 256, 3)]
    mask = np.zeros((6, 8), np.float32)
    if anomaly:
        pixels[8:16, 40:56] = (230, 60, 30)
        mask[1:2, 5:7] = 1
    return pixels, mask
