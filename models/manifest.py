"""What `model.json` says of a version, as one typed value: the fields, which of them may be missing, their checks.

Keys that are not known here are kept. Fields with a default came later than the first versions, and are absent in
those. Which file it is in, and the hashes of the others, are the registry's concern.
"""

from __future__ import annotations

import json
import reprlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from models.appearance import FIGURES
from models.errors import ModelCorrupt

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _check_statistics(statistics: dict[str, tuple[float | None, ...]]) -> dict[str, tuple[float | None, ...]]:
    if not statistics.keys() >= set(FIGURES) or len({len(statistics[name]) for name in FIGURES}) > 1:
        raise ValueError(f"to have as many values of each of {', '.join(FIGURES)}")
    return statistics


def _check_time(text: str) -> str:
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"to be a time: {error}") from None
    return text


Statistics = Annotated[dict[str, tuple[float | None, ...]], AfterValidator(_check_statistics)]
# The text stays as it was written.
Time = Annotated[str, AfterValidator(_check_time)]
# Scores are float32 once they are loaded.
Score = Annotated[float, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, defer_build=True)


class DraftCheck(_Part):
    """What drafts did to scores: whether they may be used, how many images said so, and why not.

    `max_score_change` is the largest change of a score, in units of the threshold; None where nothing was compared.
    """

    draft: bool = False
    images: int | None = None
    max_score_change: Annotated[float, Field(allow_inf_nan=True)] | None = None
    reason: str | None = None


class ValueRange(_Part):
    """Which values of images of more than 8 bits a sample become 0 to 255: `low` to `high`, both among them.

    `source` says whether it was `measured` over `images` of the training or came from a `setting`.
    """

    low: float
    high: float
    source: Literal["measured", "setting"]
    images: int

    @model_validator(mode="after")
    def _low_is_lower(self) -> ValueRange:
        if not self.low < self.high:
            raise ValueError("to have a low below its high")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


class Backbone(_Part):
    """The pretrained network that features come from."""

    name: str
    weights_sha256: str | None = None


class Training(_Part):
    """How it was trained. Paths in `trimmed` and `skipped` may hold surrogates, for names that are not UTF-8."""

    seed: int | None = None
    images: int | None = None
    anomalies: int = 0
    steps: int | None = None
    steps_asked: int | None = None
    seconds: float | None = None
    final_loss: float | None = None
    minutes_max: float | None = None
    memory_max_mb: float | None = None
    memory_peak_mb: float | None = None
    threads: int | None = None
    warm_start: str | None = None
    retraining: int | None = None
    trim_fraction: float = 0.0
    trimmed: tuple[dict[str, Any], ...] | None = None
    skipped: tuple[dict[str, Any], ...] = ()
    libraries: dict[str, str] = {}


class Calibration(_Part):
    """How unseen images scored: `scores` of normals, ascending, and `anomaly_scores` of known anomalies.

    `image_statistics` says how the normals look: a list for each name of `models.appearance.FIGURES`, null where one
    is not known, in an order of its own. `fold_steps` are those of the networks of the folds, with the method `cross`.
    """

    method: Literal["split", "cross"] = "split"
    false_alarm_rate: float
    threshold: Score
    pixel_threshold: Score
    images: int | None = None
    scores: tuple[Score, ...]
    anomaly_scores: tuple[Score, ...] = ()
    image_auroc: float | None = None
    image_statistics: Statistics | None = Field(None, alias="look")
    fold_steps: tuple[int, ...] = ()


class TrainingEnergy(_Part):
    """What the training took, or a product's part of it: null where it could not be metered."""

    cpu_wh: float | None = None
    gpu_wh: float | None = None
    ram_wh: float | None = None
    total_wh: float | None = None
    emissions_g: float | None = None
    duration_s: float | None = None
    source: str | None = None


class Parity(_Part):
    """How far the exported graph's scores are from the network's."""

    images: int
    max_relative_difference: float


class Manifest(_Part):
    """`model.json`, format 1; `input_size` is height and width in pixels, `files` the sha256 of every other file."""

    format: Literal[1]
    product: str
    version: str
    kind: str
    profile: str | None = None
    created_at: Time
    tamis_version: str | None = None
    joint: tuple[str, ...] | None = None
    input_size: tuple[PositiveInt, PositiveInt]
    resample: str = "bilinear"
    colour: str = "RGB"
    decode: DraftCheck = Field(default_factory=DraftCheck)
    value_range: ValueRange | None = None
    stride: int | None = None
    map: str | None = None
    score: str | None = None
    architecture: dict[str, Any] = {}
    backbone: Backbone | None = None
    training: Training = Field(default_factory=Training)
    calibration: Calibration
    energy: TrainingEnergy | None = None
    parity: Parity | None = None
    files: dict[str, str]

    def as_plain(self) -> dict[str, Any]:
        """Return the keys and values of the file: those that were given, with null for what is not known."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def as_json(self) -> bytes:
        """Return the content of the file."""
        return (json.dumps(self.as_plain(), indent=2, allow_nan=False) + "\n").encode()


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """Return what `content`, of the file `path`, says. Raises ModelCorrupt with what was expected and found."""
    try:
        # Not pydantic's own parser: it refuses the surrogates of file names that are not UTF-8.
        return Manifest.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path}: expected JSON; found {error}") from None
    field = ".".join(map(str, first["loc"])) or "all of it"
    if first["type"] == "missing":
        raise ModelCorrupt(f"{path}: expected a field {field}; found none")
    wanted = first["msg"].replace("Input should be", "to be").removeprefix("Value error, ")
    hint = "; another version of tamis made it?" if field == "format" else ""
    raise ModelCorrupt(f"{path}: expected {field} {wanted}; found {reprlib.repr(first['input'])}{hint}")
