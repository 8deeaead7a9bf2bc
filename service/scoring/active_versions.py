"""In charge: which versions judge and challenge, and at which rates, as the database says.

Asked by the loop, which waits for nobody: while the database is locked, what it said last holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from models.registry import ModelVersion
from service.retraining.shadow_trial import standing
from service.scoring.decide import ThresholdDecider
from service.scoring.threshold_policy import decider_of
from service.settings import Settings
from service.storage.database.open import trouble
from service.storage.thresholds import chosen
from service.storage.versions import VersionRow, champions, versions


class ActiveVersions:
    """Who judges what; `connect` gives connections that read, and give up soon on a lock."""

    def __init__(self, connect: Callable[[], Connection], settings: Settings) -> None:
        self._connect = connect
        self._settings = settings
        self._champions: Mapping[str, list[VersionRow]] = {}
        self._challengers: Mapping[str, VersionRow] = {}
        self.rates: Mapping[str, float] = {}
        """The false-alarm rates that people chose, by product, as of the last look at the champions."""

    def champions(self) -> Mapping[str, list[VersionRow]]:
        """Return for each product its champion and, should that be damaged, those before it."""
        try:
            with self._connect() as connection:
                all_versions = versions(connection)
                champion_of = champions(connection)
                self.rates = chosen(connection)
        except OperationalError as error:
            if trouble(error) is None:
                raise
            return self._champions
        self._champions = {
            product: [champion] + [row for row in all_versions if row.product == product and row.state == "retired"]
            for product, champion in champion_of.items()
        }
        return self._champions

    def challengers(self) -> Mapping[str, VersionRow]:
        """Return for each product the version that scores beside its champion, if any."""
        try:
            with self._connect() as connection:
                self._challengers = standing(connection, self._settings.shadow_hours, datetime.now(UTC))
        except OperationalError as error:
            if trouble(error) is None:
                raise
        return self._challengers

    def decider_of(self, product: str, version: ModelVersion) -> ThresholdDecider:
        """Return the judge of `product` by `version`. Raises as `service.scoring.threshold_policy.decider_of`."""
        return decider_of(self._settings, product, version, chosen_rate=self.rates.get(product))
