"""The optimiser's loop: how long it goes on, and that it goes back to where what is kept apart was met best."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.fitting.optimise import CHECKS_FROM, optimise
from models.progress import Progress

STEPS = 100


class Fit:
    """One weight drawn towards 1 by its loss; what is kept apart wants it to be `wanted`."""

    def __init__(self, wanted: float) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.wanted = wanted
        self.told: list[Progress] = []
        nn.init.zeros_(self.network.weight)

    def loss(self) -> Tensor:
        return (self.network.weight - 1).square().sum()

    def validation_loss(self) -> Tensor:
        assert not self.network.training
        return (self.network.weight - self.wanted).square().sum() + 0.01

    def run(self, watched: bool = True, deadline: float = math.inf) -> int:
        validation_loss = self.validation_loss if watched else None
        done, _ = optimise(
            self.network, self.loss, 0.05, STEPS, deadline, self.told.append, validation_loss=validation_loss
        )
        return done

    @property
    def weight(self) -> float:
        return self.network.weight.item()

    @property
    def notes(self) -> list[str]:
        return [one.note for one in self.told if one.note]


def test_it_stops_when_what_is_kept_apart_gets_worse_and_goes_back_to_the_best() -> None:
    unwatched = Fit(0)
    unwatched.run(watched=False)
    fit = Fit(0)
    done = fit.run()
    assert CHECKS_FROM * STEPS < done < STEPS
    # It drew away from 0 all the while: the best was the first look.
    assert fit.weight < unwatched.weight
    [note] = fit.notes
    assert f"stopped after {done} of {STEPS} steps" in note and f"lowest after {int(CHECKS_FROM * STEPS)}" in note
    assert fit.told[-1].done == done and not fit.network.training


@pytest.mark.parametrize("wanted", [1.0, 2.0])
def test_looking_changes_nothing_where_it_never_gets_worse(wanted: float) -> None:
    torch.manual_seed(3)
    unwatched, watched = Fit(wanted), Fit(wanted)
    assert unwatched.run(watched=False) == watched.run() == STEPS
    assert watched.weight == unwatched.weight and watched.notes == []


def test_once_worse_is_not_for_good() -> None:
    fit = Fit(1)
    looks: list[int] = []

    def validation_loss() -> Tensor:
        looks.append(1)
        return torch.tensor(2.0 if len(looks) % 3 == 2 else 1.0)

    done, _ = optimise(fit.network, fit.loss, 0.05, STEPS, math.inf, fit.told.append, validation_loss=validation_loss)
    assert done == STEPS and len(looks) > 6


def test_it_ends_at_its_deadline_and_says_so() -> None:
    fit = Fit(1)
    assert fit.run(deadline=-math.inf) == 1
    assert fit.notes == [f"training stopped after 1 of {STEPS} steps: the minutes allowed are used up"]


def test_few_steps_are_taken_without_a_look_that_divides_by_none() -> None:
    fit = Fit(0)
    optimise(fit.network, fit.loss, 0.05, 3, math.inf, fit.told.append, validation_loss=fit.validation_loss)
    assert fit.told[-1].done == 3
