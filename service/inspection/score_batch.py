"""What the threads beside the loop do with claimed files: read and decode one, score and decide a micro-batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.appearance import Appearance
from models.detector import Float32Array
from service.imaging.decode import DecodedImage, DecodeError, read_file
from service.imaging.decoder import Decoder
from service.inspection.claim import Claim
from service.inspection.inspected_image import FileFacts, InspectedImage
from service.inspection.private_copy import keep_private
from service.scoring.decide import ScoreNotFinite
from service.scoring.scorers import Scorer
from service.scoring.shadow import InShadow, Shadow, decide_in_shadow


@dataclass(frozen=True)
class Decoded:
    """A claimed file as an image of the size that `scorer` takes."""

    claim: Claim
    scorer: Scorer
    file: FileFacts
    image: DecodedImage
    appearance: Appearance | None = None
    shadow: InShadow | None = None


def read_claim(
    root: Path,
    claim: Claim,
    scorer: Scorer,
    *,
    file_bytes_max: int,
    pixels_max: int,
    decoder: Decoder | None = None,
    decoding: AbstractContextManager[Any] | None = None,
    shadow: Shadow | None = None,
) -> Decoded | InspectedImage:
    """Read the file of `claim` once, make it last through a power cut, and decode it, for `shadow` too if given.

    `decoder` decodes, in this thread if not given; `decoding` is entered meanwhile. Returns the reason for a file that
    was read and is not an image, or that ended its decoder; what cannot be read raises as in `read_file`.
    """
    file = read_file(root / claim.path, file_bytes_max=file_bytes_max, durable=True, below=root)
    copied = keep_private(root, claim.path, claim.id, file)
    facts = FileFacts(file.state, file.sha256, len(file.data), copied)
    decoder = decoder or Decoder()
    with decoding or nullcontext():
        try:
            image, appearance = decoder.look(
                file.data,
                scorer.detector.input_size,
                pixels_max=pixels_max,
                draft=scorer.draft,
                value_range=scorer.value_range,
            )
        except DecodeError as error:
            return InspectedImage(claim, facts, error_code=error.code, error=str(error))
        beside = _for_shadow(shadow, decoder, file.data, image, scorer, pixels_max) if shadow is not None else None
    return Decoded(claim, scorer, facts, image, appearance, beside)


def score_and_decide(batch: list[Decoded]) -> list[InspectedImage]:
    """Score and decide `batch`, of each detector what was decoded for it; what is returned is in that order."""
    of_detector: dict[int, list[Decoded]] = {}
    for decoded in batch:
        of_detector.setdefault(id(decoded.scorer.detector), []).append(decoded)
    inspected = []
    for alike in of_detector.values():
        scored = alike[0].scorer.detector.score(np.stack([decoded.image.pixels for decoded in alike]))
        inspected += [
            _decide(decoded, float(score), anomaly_map)
            for decoded, score, anomaly_map in zip(alike, scored.scores, scored.maps, strict=True)
        ]
    beside = [(decoded.claim.id, decoded.shadow) for decoded in batch if decoded.shadow is not None]
    said = decide_in_shadow(beside) if beside else {}
    return [replace(one, shadow=said[one.claim.id]) if one.claim.id in said else one for one in inspected]


def _for_shadow(
    shadow: Shadow, decoder: Decoder, data: bytes, image: DecodedImage, scorer: Scorer, pixels_max: int
) -> InShadow | None:
    """Return the image as `shadow` takes it: the champion's pixels where they are the same, else decoded again."""
    size, own = shadow.scorer.detector.input_size, scorer.detector.input_size
    # An image that was decoded in full serves a detector that would take a draft.
    same_values = not image.deep or shadow.scorer.value_range == scorer.value_range
    if size == own and same_values and (shadow.scorer.draft or not image.drafted):
        return InShadow(shadow, image.pixels)
    try:
        draft, value_range = shadow.scorer.draft, shadow.scorer.value_range
        again = decoder.decode(data, size, pixels_max=pixels_max, draft=draft, value_range=value_range)
        return InShadow(shadow, again.pixels)
    except DecodeError:
        return None  # memory may be short, since it could be decoded a moment ago; the champion has what it needs


def _decide(decoded: Decoded, score: float, anomaly_map: Float32Array) -> InspectedImage:
    scorer = decoded.scorer
    inspected = InspectedImage(
        decoded.claim,
        decoded.file,
        decoded.image,
        model_version=scorer.version,
        appearance=decoded.appearance,
        error_code=decoded.image.remark_code,
        error=decoded.image.remark,
        value_range=scorer.value_range,
    )
    try:
        decision = scorer.decider.decide(score)
    except ScoreNotFinite as error:
        return replace(inspected, error_code="score_not_finite", error=str(error))
    pixel_threshold = scorer.pixel_threshold
    return replace(inspected, decision=decision, anomaly_map=anomaly_map, pixel_threshold=pixel_threshold)
