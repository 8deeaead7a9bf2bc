"""The training loop of every network here: AdamW with a one-cycle schedule and early stopping."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.progress import Progress

LOSS_STEPS = 50  # over which the last loss is averaged

# The validation loss is checked so many times, evenly over the steps, but only once the learning rate falls: before,
# losses go up and down with it. It has risen once so many checks in a row were worse than the best by this factor.
CHECKS = 20
CHECKS_FROM = 0.4
CHECKS_WORSE = 3
WORSE = 1.05


def optimise(
    network: nn.Module,
    loss: Callable[[], Tensor],
    learning_rate: float,
    steps: int,
    deadline: float,
    report: Callable[[Progress], None],
    stage: str = "training",
    validation_loss: Callable[[], Tensor] | None = None,
) -> tuple[int, float]:
    """Train `network` to minimise `loss`, of a new batch at each call; return steps done and last loss.

    Ends early at `deadline`, on `time.monotonic`'s clock, and when `validation_loss`, of data that `network` is not
    trained on, rises: the weights are then those with which it was lowest. `report` is told of either.
    """
    watch = EarlyStopping(network, validation_loss, steps) if validation_loss is not None else None
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
        why = None
        if step < steps and time.monotonic() > deadline:
            why = "the minutes allowed are used up"
        elif step < steps and watch is not None and watch.rises(step):
            why = f"the loss on images kept apart rises; it was lowest after {watch.go_back()}"
        report(Progress(stage, step, steps, why and f"{stage} stopped after {step} of {steps} steps: {why}"))
        if why:
            break
    network.eval()
    return len(losses), float(np.mean(losses[-LOSS_STEPS:]))


class EarlyStopping:
    """Checks the validation loss, and keeps the weights with which it was lowest."""

    def __init__(self, network: nn.Module, validation_loss: Callable[[], Tensor], steps: int) -> None:
        self._network, self._validation_loss = network, validation_loss
        self._every, self._from = max(1, steps // CHECKS), CHECKS_FROM * steps
        self._best, self._best_step, self._worse = float("inf"), 0, 0
        self._weights: dict[str, Tensor] = {}

    def rises(self, step: int) -> bool:
        """Return whether the loss has risen for good by `step`."""
        if step < self._from or step % self._every:
            return False
        self._network.eval()
        with torch.inference_mode():
            found = self._validation_loss().item()
        self._network.train()
        if found < self._best:
            self._best, self._best_step, self._worse = found, step, 0
            self._weights = copy.deepcopy(self._network.state_dict())
        else:
            self._worse = self._worse + 1 if found > WORSE * self._best else 0
        return self._worse >= CHECKS_WORSE

    def go_back(self) -> int:
        """Restore the weights with which the loss was lowest; return the step of that."""
        self._network.load_state_dict(self._weights)
        return self._best_step
