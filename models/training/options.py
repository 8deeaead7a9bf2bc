"""How to train: what a caller may choose, and how it reads images. Brings no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from models.calibration.split import Method
from models.data.select_images import ImageSize, Read
from models.data.value_range import ValueStatistics
from models.fitting.limits import MEMORY_BYTES
from models.training.draft_check import ReadDraft

KINDS = ("classifier", "feature", "pixel")
PROFILES = {"fast": 256, "balanced": 384, "accurate": 768}
PIXEL_SIDE = 128
MINUTES_MAX = 30.0


class TrainingOptions(BaseModel):
    """What a training may be asked for beside its images; `kind` is one of `KINDS`, `profile` of `PROFILES`.

    `side` (px) and `steps` override what these give. `method` is how to calibrate, chosen by the number of images if
    None. `backbone`, and the file of its weights, are the classifier's. `warm` is the folder of a version whose
    weights are begun with where they fit and none of the calibration images can have made them. `trim_fraction` of
    the normals, those rebuilt worst, are left out. `retraining` is the number of the retraining that this is for.
    Pools are sized by `memory_bytes`; `threads` are all cores unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    profile: str
    seed: int = 0
    minutes_max: float = MINUTES_MAX
    memory_bytes: int = MEMORY_BYTES
    method: Method | None = None
    steps: int | None = None
    side: int | None = None
    backbone: str | None = None
    backbone_weights: Path | None = None
    warm: Path | None = None
    trim_fraction: float = 0.0
    retraining: int | None = None
    threads: int | None = None

    @property
    def image_side(self) -> int:
        """The side, in pixels, of a square as large as the images that the network takes."""
        return self.side or (PIXEL_SIDE if self.kind == "pixel" else PROFILES[self.profile])


@dataclass(frozen=True)
class Reading:
    """How images are read. `read` and `image_size` raise one of `unreadable` for an image to be skipped.

    `read_draft` reads a draft, as images of the versions will be read where that changes their scores little enough.
    `check` reads an image for the first time, and says what values one of more than 8 bits a sample has; `in_ranges`
    gives the reading of images with the ranges of their products, by path.
    """

    read: Read
    image_size: ImageSize
    read_draft: ReadDraft | None = None
    unreadable: tuple[type[Exception], ...] = (OSError,)
    check: Callable[[Path, tuple[int, int]], ValueStatistics | None] | None = None
    in_ranges: Callable[[Mapping[Path, tuple[float, float]]], Reading] | None = None
