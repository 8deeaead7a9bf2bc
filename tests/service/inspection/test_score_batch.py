from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from models.appearance import appearance_of
from models.detector import Scored, UInt8Array
from service.inspection.claim import Claim
from service.inspection.inspected_image import InspectedImage
from service.inspection.score_batch import read_claim
from service.scoring.decide import ThresholdDecider
from service.scoring.scorers import Scorer
from service.scoring.shadow import Shadow


class Anything:
    input_size = (40, 60)

    def score(self, images: UInt8Array) -> Scored:
        raise AssertionError("nothing is scored here")


def claimed(root: Path, content: bytes) -> Claim:
    path = root / "processing/main/a.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Claim("id", 1, "default", "processing/main/a.jpg", "a.jpg", datetime.now(UTC), 0.0)


def jpeg() -> bytes:
    ramp = np.linspace(0, 255, 600).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (400, 600, 3)).copy()).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("draft", [False, True])
def test_claimed_file_is_decoded_as_its_version_was_calibrated(tmp_path: Path, draft: bool) -> None:
    scorer = Scorer(Anything(), cast(ThresholdDecider, None), "v1", 1.0, draft)
    decoded = read_claim(tmp_path, claimed(tmp_path, jpeg()), scorer, file_bytes_max=10**6, pixels_max=10**6)
    assert decoded.image.drafted is draft
    assert (decoded.image.height, decoded.image.width) == (400, 600)


@pytest.mark.parametrize("orientation", [1, 6])
def test_light_of_a_claimed_file_is_that_of_the_pixels_that_are_scored(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (400, 600, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    scorer = Scorer(Anything(), cast(ThresholdDecider, None), "v1", 1.0)
    decoded = read_claim(tmp_path, claimed(tmp_path, buffer.getvalue()), scorer, file_bytes_max=10**6, pixels_max=10**6)
    assert decoded.appearance == appearance_of(decoded.image.pixels)


def test_cut_jpeg_is_undecodable_as_a_draft_too(tmp_path: Path) -> None:
    scorer = Scorer(Anything(), cast(ThresholdDecider, None), "v1", 1.0, draft=True)
    read = read_claim(tmp_path, claimed(tmp_path, jpeg()[:-2000]), scorer, file_bytes_max=10**6, pixels_max=10**6)
    assert isinstance(read, InspectedImage) and read.error_code == "damaged" and read.file.sha256


def deep() -> bytes:
    """The value 2000 of 12 bits, in 16."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((400, 600), 2000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("same", [True, False])
def test_champion_and_challenger_each_see_values_in_their_own_range(tmp_path: Path, same: bool) -> None:
    own, other = (0.0, 4095.0), (0.0, 4095.0) if same else (0.0, 8191.0)
    scorers = [
        Scorer(Anything(), cast(ThresholdDecider, None), f"v{number}", 1.0, value_range=value_range)
        for number, value_range in enumerate((own, other))
    ]
    shadow = Shadow("default", scorers[1], lambda reason: None)
    limits = {"file_bytes_max": 10**6, "pixels_max": 10**6}
    decoded = read_claim(tmp_path, claimed(tmp_path, deep()), scorers[0], shadow=shadow, **limits)
    assert decoded.shadow is not None
    assert (decoded.image.pixels is decoded.shadow.pixels) is same
    assert np.unique(decoded.image.pixels).tolist() == [2000 // 16]
    assert np.unique(decoded.shadow.pixels).tolist() == [2000 // (16 if same else 32)]
