"""Due times of retrainings: whether a product is to be retrained now, and why. Pure.

A time that passed while nothing ran is made up once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.cron import Cron
from service.storage.retrainings import NewLabels, RetrainingRow

DueReason = Literal["cron", "labels", "drift"]


@dataclass(frozen=True)
class RetrainingFacts:
    """What is known of a product: its last runs, newest first; the labels since the last one that learned, and since
    the last one that counts, see `counting`; and since when it drifts.
    """

    runs: Sequence[RetrainingRow]
    unlearned: NewLabels
    since_last_run: NewLabels
    drifting_since: datetime | None = None


def due(
    facts: RetrainingFacts, now: datetime, *, cron: Cron | None, after_labels: int = 0, on_drift: bool = False
) -> DueReason | None:
    """Return why a product is to be retrained now, or None; without new labels it never is.

    By `cron` it is once a time of it has passed since the first new label and since the last run. A run that was
    stopped is made up like one that was missed, once.
    """
    if not facts.unlearned.count:
        return None
    last = counting(facts.runs)
    asked_at = last.requested_at if last is not None else None
    if on_drift and facts.drifting_since is not None and (asked_at is None or facts.drifting_since > asked_at):
        return "drift"
    if after_labels and facts.since_last_run.count >= after_labels:
        return "labels"
    if cron is not None and facts.unlearned.first_at is not None:
        since = max(filter(None, (facts.unlearned.first_at, asked_at)))
        at = cron.next_time(since)
        if at is not None and at <= now:
            return "cron"
    return None


def counting(runs: Sequence[RetrainingRow]) -> RetrainingRow | None:
    """Return the last run that counts as one: of two that were stopped in a row the earlier one is made up for."""
    if not runs:
        return None
    stopped = runs[0].state == "stopped"
    if stopped and (len(runs) < 2 or runs[1].state != "stopped"):
        return runs[1] if len(runs) > 1 else None
    return runs[0]
