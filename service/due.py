"""Due times of retrainings: what a cron expression means, and whether a product is to be retrained now. Pure.

`now` is passed in everywhere. A time that passed while nothing ran is made up once: what counts is the first time after
the labels that nothing has learned from yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Literal

from service.storage.retrainings import NewLabels, RetrainingRow

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = ("minute", "hour", "day", "month", "weekday")

Due = Literal["cron", "labels", "drift"]


@dataclass(frozen=True)
class Facts:
    """What is known of a product: its last runs, newest first; the labels since the last one that learned, and since
    the last one of any kind; and since when it drifts.
    """

    runs: Sequence[RetrainingRow]
    unlearned: NewLabels
    since_last_run: NewLabels
    drifting_since: datetime | None = None


def parse_cron(expression: str, timezone: tzinfo | None = None) -> CronTrigger:
    """Return the trigger of a cron expression: minute hour day month weekday, in local time unless given.

    Weekdays are cron's, 0 and 7 are Sunday. Where day and weekday are both given, both must hold. Raises ValueError
    naming what is wrong.
    """
    from apscheduler.triggers.cron import CronTrigger

    fields = expression.split()
    if len(fields) != len(FIELDS):
        raise ValueError(f"expected five fields, {' '.join(FIELDS)}; found {expression!r}")
    minute, hour, day, month, weekday = fields
    values = {"minute": minute, "hour": hour, "day": day, "month": month, "day_of_week": _weekdays(weekday)}
    try:
        return CronTrigger(timezone=timezone, **values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected a cron expression, {' '.join(FIELDS)}; found {expression!r}: {error}") from None


def next_time(cron: CronTrigger, after: datetime) -> datetime | None:
    """Return the first time of `cron` that is later than `after`."""
    found: datetime | None = cron.get_next_fire_time(after, after)
    if found is not None and found <= after:
        found = cron.get_next_fire_time(found, found)
    return found


def due(
    facts: Facts, now: datetime, *, cron: CronTrigger | None, after_labels: int = 0, on_drift: bool = False
) -> Due | None:
    """Return why a product is to be retrained now, or None; without new labels it never is.

    By `cron` it is once a time of it has passed since the first new label and since the last run. A run that was
    stopped is made up like one that was missed, once.
    """
    if not facts.unlearned.count:
        return None
    last = _counting(facts.runs)
    asked_at = last.requested_at if last is not None else None
    if on_drift and facts.drifting_since is not None and (asked_at is None or facts.drifting_since > asked_at):
        return "drift"
    if after_labels and facts.since_last_run.count >= after_labels:
        return "labels"
    if cron is not None and facts.unlearned.first_at is not None:
        since = max(filter(None, (facts.unlearned.first_at, asked_at)))
        at = next_time(cron, since)
        if at is not None and at <= now:
            return "cron"
    return None


def _counting(runs: Sequence[RetrainingRow]) -> RetrainingRow | None:
    """Return the last run that counts as one: of two that were stopped in a row the earlier one is made up for."""
    if not runs:
        return None
    stopped = runs[0].state == "stopped"
    if stopped and (len(runs) < 2 or runs[1].state != "stopped"):
        return runs[1] if len(runs) > 1 else None
    return runs[0]


def _weekdays(field: str) -> str:
    """Return a weekday field of cron, whose week begins with Sunday as 0, as a list of names."""
    if field == "*":
        return field
    found: set[int] = set()
    for part in field.split(","):
        spread, _, step = part.partition("/")
        if not spread or ("/" in part and not (step.isdecimal() and int(step) > 0)):
            raise ValueError(f"weekday: expected numbers from 0 to 7 or names such as mon; found {field!r}")
        first, dash, last = ("0", "-", "6") if spread == "*" else spread.partition("-")
        low, high = _weekday(first, field), _weekday(last if dash else first, field)
        if "/" in part and not dash:
            high = 6
        if high < low:
            high += 7
        found |= {day % 7 for day in range(low, high + 1, int(step) if step else 1)}
    return ",".join(WEEKDAYS[day] for day in sorted(found))


def _weekday(text: str, field: str) -> int:
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    if text.lower() in WEEKDAYS:
        return WEEKDAYS.index(text.lower())
    raise ValueError(f"weekday: expected numbers from 0 to 7 or names such as mon; found {field!r}")
