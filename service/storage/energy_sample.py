"""A sample of energy, as the meter gives it and a row keeps it. The training process needs it without SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class EnergySample:
    """Energy in Wh and emissions in g of CO2e, of `images` images in `duration_s`; None is unknown."""

    kind: str
    started_at: datetime
    duration_s: float
    images: int
    cpu_wh: float | None
    gpu_wh: float | None
    ram_wh: float | None
    total_wh: float | None
    emissions_g: float | None
    source: str
    country: str | None
