"""What the steps hand on: what is known of a claimed file, and what became of the image in it."""

from __future__ import annotations

from dataclasses import dataclass

from models.appearance import Appearance
from models.detector import Float32Array
from service.filesystem.file_state import FileState
from service.imaging.decode import DecodedImage
from service.inspection.claim import Claim
from service.scoring.decide import Decision
from service.scoring.shadow import ShadowDecision


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file: its state, SHA-256 in hex, size in bytes, and whether a private copy lies beside it."""

    state: FileState | None = None
    sha256: str | None = None
    bytes: int | None = None
    copied: bool = False


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """A claimed file with what became of it: a decision, or the reason why there is none.

    `error` beside a decision is a remark on how the image was read. `value_range` is that in which it was.
    """

    claim: Claim
    file: FileFacts
    image: DecodedImage | None = None
    decision: Decision | None = None
    model_version: str | None = None
    anomaly_map: Float32Array | None = None
    pixel_threshold: float = 1.0
    error_code: str | None = None
    error: str | None = None
    appearance: Appearance | None = None
    shadow: ShadowDecision | None = None
    value_range: tuple[float, float] | None = None
