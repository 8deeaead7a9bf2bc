"""What the fit of every kind gets from the training, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.data.select_images import Read
from models.fitting.limits import TrainingLimits
from models.progress import Progress


@dataclass(frozen=True)
class FitRequest:
    """What to fit to: the normal images of each product, read at `size`, in `steps` steps within `limits`."""

    products: Sequence[Sequence[Path]]
    size: tuple[int, int]
    seed: int
    steps: int
    limits: TrainingLimits
    read: Read
    report: Callable[[Progress], None]


@dataclass(frozen=True)
class FitResult:
    """A network as trained.

    `graphs` are exported, one for each product, the same object where products do not differ. A graph takes uint8 `(N,
    H, W, 3)` and returns score `(N,)` and map `(N, H/stride, W/stride)`. `comparable`: scores and maps of networks
    fitted to parts of the same images are in the same unit, as probabilities are.
    """

    graphs: Sequence[nn.Module]
    stride: int
    steps: int
    loss: float
    architecture: dict[str, Any]
    backbone: dict[str, str] | None
    map_meaning: str
    score_meaning: str
    comparable: bool = False
    warm_start: str | None = None
    """The version whose weights it started from."""
    trimmed: tuple[Path, ...] = ()
    """Images left out, since they were rebuilt worst."""
