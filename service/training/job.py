"""What is to be trained, as the value that travels to the training process as JSON."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.calibration.split import Method
from models.data.select_images import Chosen, TrainingImage
from models.fitting.limits import MEMORY_GB
from models.registry import BUILD_PREFIX
from service.imaging.decode import FILE_BYTES_MAX, PIXELS_MAX

MINUTES_MAX = 30.0


@dataclass(frozen=True)
class JobProduct:
    """What one product brings to a training: its normal images, its anomalies if any, and normals set apart."""

    product: str
    images: tuple[str, ...]
    false_alarm_rate: float
    anomalies: tuple[str, ...] = ()
    calibrate: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobChosen:
    """The images of one product as they were chosen before: lists of path and sha256, in the order of their use."""

    product: str
    false_alarm_rate: float
    method: Method
    train: tuple[tuple[str, str], ...]
    calibrate: tuple[tuple[str, str], ...]
    train_anomalies: tuple[tuple[str, str], ...]
    held_out_anomalies: tuple[tuple[str, str], ...]
    input_size: tuple[int, int]
    roles_given: bool

    @classmethod
    def of(cls, chosen: Chosen) -> JobChosen:
        """Return `chosen` as it travels."""
        return cls(
            product=chosen.product,
            false_alarm_rate=chosen.false_alarm_rate,
            method=chosen.method,
            train=_plain(chosen.train),
            calibrate=_plain(chosen.calibrate),
            train_anomalies=_plain(chosen.train_anomalies),
            held_out_anomalies=_plain(chosen.held_out_anomalies),
            input_size=chosen.input_size,
            roles_given=chosen.roles_given,
        )

    def chosen(self) -> Chosen:
        """Return it as the training takes it, after its travel as JSON."""
        height, width = self.input_size
        return Chosen(
            product=self.product,
            false_alarm_rate=self.false_alarm_rate,
            method=self.method,
            train=_images(self.train),
            calibrate=_images(self.calibrate),
            train_anomalies=_images(self.train_anomalies),
            held_out_anomalies=_images(self.held_out_anomalies),
            input_size=(height, width),
            skipped=(),
            roles_given=self.roles_given,
        )


def _plain(images: Sequence[TrainingImage]) -> tuple[tuple[str, str], ...]:
    return tuple((str(image.path), image.sha256) for image in images)


def _images(plain: Sequence[Sequence[str]]) -> tuple[TrainingImage, ...]:
    return tuple(TrainingImage(Path(path), sha256) for path, sha256 in plain)


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained: the child gets all of it, as JSON.

    One network is trained on `product` and on the products `beside` it; with none beside, on `product` alone.
    `method` says how to calibrate, None: as many images as there are suggest. A retraining also says which normals
    `calibrate`, from which version's folder it starts (`warm`), what share it leaves out and how many Wh it may use. A
    repetition says which images were `chosen`, one entry a product, and nothing else of them.
    """

    images: tuple[str, ...]
    models_root: str
    product: str
    kind: str
    profile: str
    false_alarm_rate: float
    seed: int = 0
    minutes_max: float = MINUTES_MAX
    steps: int | None = None
    side: int | None = None
    file_bytes_max: int = FILE_BYTES_MAX
    pixels_max: int = PIXELS_MAX
    energy_tracking: str = "process"
    energy_country: str | None = None
    energy_cpu_max_w: float | None = None
    anomalies: tuple[str, ...] = ()
    beside: tuple[JobProduct, ...] = ()
    method: Method | None = None
    backbone: str | None = None
    backbone_weights: str | None = None
    memory_gb: float = MEMORY_GB
    calibrate: tuple[str, ...] = ()
    warm: str | None = None
    trim_fraction: float = 0.0
    energy_max_wh: float | None = None
    retraining: int | None = None
    threads: int | None = None
    chosen: tuple[JobChosen, ...] = ()
    build: str = field(default_factory=lambda: f"{BUILD_PREFIX}{uuid.uuid4().hex}")

    @property
    def products(self) -> tuple[JobProduct, ...]:
        """Every product that it trains for."""
        own = JobProduct(self.product, self.images, self.false_alarm_rate, self.anomalies, self.calibrate)
        return (own, *self.beside)

    @property
    def subject(self) -> str:
        """What messages call it."""
        return f"product {self.product}" + (f" and {len(self.beside)} more" if self.beside else "")
