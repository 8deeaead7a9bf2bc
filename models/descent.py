"""The optimiser's loop that every network here is trained with: AdamW and a one-cycle schedule."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.progress import Progress

LOSS_STEPS = 50  # over which the last loss is averaged


def descend(
    network: nn.Module,
    loss: Callable[[], Tensor],
    learning_rate: float,
    steps: int,
    deadline: float,
    report: Callable[[Progress], None],
    stage: str = "training",
) -> tuple[int, float]:
    """Train `network` to make small what `loss` returns, of a new batch each time; return steps done and last loss.

    Ends early at `deadline`, on `time.monotonic`'s clock; `report` is told so.
    """
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=learning_rate, total_steps=steps)
    losses: list[float] = []
    for step in range(1, steps + 1):
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(value.item())
        cut = step < steps and time.monotonic() > deadline
        note = f"{stage} stopped after {step} of {steps} steps: the minutes allowed are used up" if cut else None
        report(Progress(stage, step, steps, note))
        if cut:
            break
    network.eval()
    return len(losses), float(np.mean(losses[-LOSS_STEPS:]))
