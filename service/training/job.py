"""What is to be trained, and what the training says: the values that go to its process and come back as JSON."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from models.data.select_images import Chosen, ProductImages
from models.progress import Progress
from models.registry import BUILD_PREFIX
from models.training.options import TrainingOptions
from service.errors import TamisError
from service.imaging.decode import FILE_BYTES_MAX, PIXELS_MAX
from service.settings import Settings
from service.storage.energy_sample import EnergySample


class TrainingJob(TrainingOptions):
    """What is to be trained: the child gets all of it.

    One network is trained on all `products`. A retraining may say how many Wh it may use. A repetition says which
    images were `chosen`, one entry a product, and nothing else of them.
    """

    products: tuple[ProductImages, ...]
    models_root: Path
    chosen: tuple[Chosen, ...] = ()
    file_bytes_max: int = FILE_BYTES_MAX
    pixels_max: int = PIXELS_MAX
    energy_tracking: str = "process"
    energy_country: str | None = None
    energy_cpu_max_w: float | None = None
    energy_max_wh: float | None = None
    build: str = Field(default_factory=lambda: f"{BUILD_PREFIX}{uuid.uuid4().hex}")

    @property
    def subject(self) -> str:
        """What messages call it."""
        first, *others = self.products
        return f"product {first.product}" + (f" and {len(others)} more" if others else "")

    def as_json(self) -> bytes:
        """Return it as `from_json` reads it. Paths may hold surrogates, which JSON of pydantic's own cannot."""
        return json.dumps(self.model_dump(mode="json")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> TrainingJob:
        """Return the job that `as_json` gave."""
        return cls.model_validate(json.loads(content))


def from_settings(settings: Settings) -> dict[str, Any]:
    """Return the fields of a job that are settings of the same name."""
    names = {"file_bytes_max", "pixels_max", "energy_tracking", "energy_country", "energy_cpu_max_w"}
    return settings.model_dump(include=names)


class EnergyExceeded(TamisError):
    """The training was ended as it had used more energy than it may; `sample` is what it used."""

    def __init__(self, message: str, sample: EnergySample | None) -> None:
        super().__init__(message)
        self.sample = sample


class TrainingFailed(BaseModel):
    """The training ended with the error `type`; `energy` is what it used, where it had a bound on that."""

    model_config = ConfigDict(frozen=True)

    type: str
    message: str
    code: str | None = None
    energy: EnergySample | None = None


class TrainingMade(BaseModel):
    """The training published `versions`: folder and sha256 of each."""

    model_config = ConfigDict(frozen=True)

    versions: tuple[tuple[Path, str], ...]
    energy: EnergySample | None


Event = Progress | TrainingFailed | TrainingMade
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def event_as_line(event: Event) -> str:
    """Return `event` as a line of JSON in ASCII."""
    plain: Any = _EVENTS.dump_python(event, mode="json")
    return json.dumps(plain) + "\n"


def event_of_line(line: bytes) -> Event:
    """Return the event of `event_as_line`."""
    return _EVENTS.validate_python(json.loads(line))
