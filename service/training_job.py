"""What is to be trained, as the value that travels to the training process as JSON."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from models.division import Method
from models.limits import MEMORY_GB
from models.registry import BUILD_PREFIX
from service.decode import FILE_BYTES_MAX, PIXELS_MAX

MINUTES_MAX = 30.0


@dataclass(frozen=True)
class JobProduct:
    """What one product brings to a training: its normal pictures, its anomalies if any, and normals set apart."""

    product: str
    pictures: tuple[str, ...]
    false_alarm_rate: float
    anomalies: tuple[str, ...] = ()
    calibrate: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained: the child gets all of it, as JSON.

    One network is trained on `product` and on the products `beside` it; with none beside, on `product` alone.
    `method` says how to calibrate, None: as many pictures as there are suggest. A retraining also says which normals
    `calibrate`, from which version's folder it starts (`warm`), what share it leaves out and how many Wh it may use.
    """

    pictures: tuple[str, ...]
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
    build: str = field(default_factory=lambda: f"{BUILD_PREFIX}{uuid.uuid4().hex}")

    @property
    def products(self) -> tuple[JobProduct, ...]:
        """Every product that it trains for."""
        own = JobProduct(self.product, self.pictures, self.false_alarm_rate, self.anomalies, self.calibrate)
        return (own, *self.beside)

    @property
    def subject(self) -> str:
        """What messages call it."""
        return f"product {self.product}" + (f" and {len(self.beside)} more" if self.beside else "")
