"""Statements on threshold choices: the false-alarm rate that a person chose for a product while it runs.

Rows are only ever added and a product's latest holds. Whether a model's calibration does for a rate is not asked
here, see `service.scoring.threshold_preview`; what it outranks is said in `service.scoring.threshold_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from service.storage.tables import thresholds_table as _choices


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a product, by whom and when; `false_alarm_rate` None went back to the settings."""

    product: str
    false_alarm_rate: float | None
    chosen_by: str | None
    chosen_at: datetime


# Made once, as the daemon asks every second: SQLAlchemy takes longer to know a statement again than SQLite to answer.
_insert = insert(_choices)
_latest_ids = select(func.max(_choices.c.id)).group_by(_choices.c.product)
_latest = select(*(_choices.c[name] for name in Choice.__dataclass_fields__)).where(_choices.c.id.in_(_latest_ids))


def choose(connection: Connection, product: str, rate: float | None, by: str | None, at: datetime) -> None:
    """Put on record that `by` chose the false-alarm rate `rate` for `product`; None goes back to the settings."""
    connection.execute(_insert, {"product": product, "false_alarm_rate": rate, "chosen_by": by, "chosen_at": at})


def latest(connection: Connection) -> dict[str, Choice]:
    """Return the latest choice of each product for which there ever was one."""
    return {row.product: Choice(*row) for row in connection.execute(_latest)}


def chosen(connection: Connection) -> dict[str, float]:
    """Return the rate of each product for which one is chosen now."""
    rates = {product: choice.false_alarm_rate for product, choice in latest(connection).items()}
    return {product: rate for product, rate in rates.items() if rate is not None}
