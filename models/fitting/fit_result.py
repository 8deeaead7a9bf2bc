"""What fitting a network gives: the value that each kind's fit returns to the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class FitResult:
    """A network as trained, and how that went.

    `graphs` are exported, one for each product, the same object where products do not differ. A graph takes uint8
    `(N, H, W, 3)` and returns score `(N,)` and map `(N, H/stride, W/stride)`; `map_meaning` and `score_meaning` say in
    words what those are. `comparable`: scores and maps of two networks fitted to parts of the same images are in the
    same unit, as probabilities are.
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
