"""Cron expressions: what one means, with cron's own weekdays. Pure.

APScheduler counts weekdays from Monday and takes no 7; here 0 and 7 are Sunday, as in every crontab.
"""

from __future__ import annotations

from datetime import tzinfo
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = ("minute", "hour", "day", "month", "weekday")


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


def check_cron(expression: str) -> None:
    """Raise ValueError naming what is wrong with `expression`, or that it has no time at all (30 February)."""
    from datetime import UTC, datetime

    trigger = parse_cron(expression)
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ValueError(f"expected a cron expression with a time to come; found {expression!r}, which never comes")


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
