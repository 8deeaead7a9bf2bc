"""Shadow trial: what becomes of a challenger once its hours in the shadow are over.

Promotes the one that passed the gate and caused no flood of alarms; leaves every other to a person, and logs why.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.errors import ModelError
from models.registry import ModelVersion, verify
from service.logs import fields
from service.root import MODELS
from service.scoring.active_versions import SHADOW_IMAGES_MIN, newest_challengers
from service.scoring.threshold_policy import reason_not_to_promote
from service.settings import Settings
from service.storage import shadow, versions
from service.storage.shadow import GatedRun, ShadowSummary

log = logging.getLogger(__name__)

RATE_FACTOR = 2.0
RATE_MARGIN = 0.01


@dataclass(frozen=True)
class DueTrial:
    """A challenger whose hours in the shadow are over."""

    product: str
    version: str
    over_at: datetime
    summary: ShadowSummary


@dataclass(frozen=True)
class TrialFacts:
    """What decides how a trial ends, beside the shadow's own figures."""

    run: GatedRun | None
    champion: str | None
    newest_challenger: str | None
    promote_automatically: bool


def due(connection: Connection, settings: Settings, now: datetime) -> list[DueTrial]:
    """Return the challengers whose hours in the shadow are over at `now`; none where `shadow_hours` is 0."""
    if not settings.shadow_hours:
        return []
    hours = timedelta(hours=settings.shadow_hours)
    return [
        DueTrial(row.product, row.version, row.created_at + hours, shadow.summary(connection, row.product, row.version))
        for row in versions.versions(connection)
        if row.state == "challenger" and row.created_at + hours <= now
    ]


def reason_to_wait(one: DueTrial, facts: TrialFacts) -> str | None:
    """Return why the challenger is left to a person, or None where it may be promoted. Pure."""
    run, seen = facts.run, one.summary
    if not facts.promote_automatically:
        return "promote_automatically is off"
    if run is None:
        return "no retraining made it, so no gate compared it with the champion"
    if run.outcome != "challenger" or run.passed is not True:
        return f"it did not pass its gate (outcome {run.outcome or 'none'})"
    if one.version != facts.newest_challenger:
        return f"there is a newer challenger, {facts.newest_challenger}"
    if run.champion != facts.champion:
        return f"its gate compared it with {run.champion}; the champion is {facts.champion} now"
    if seen.images < SHADOW_IMAGES_MIN or seen.champion_rate is None or seen.challenger_rate is None:
        return f"expected at least {SHADOW_IMAGES_MIN} images in the shadow; found {seen.images}"
    most = RATE_FACTOR * seen.champion_rate + RATE_MARGIN
    if seen.challenger_rate > most:
        return (
            f"it calls {seen.challenger_rate:.2%} of the images anomalies, the champion {seen.champion_rate:.2%};"
            f" expected at most {most:.2%}"
        )
    return None


class ShadowTrial:
    """Ends the trials of one root; remembers what it logged, so that each reason is logged once a run."""

    def __init__(self, root: Path, engine: Engine, settings: Settings) -> None:
        self._root = root
        self._engine = engine
        self._settings = settings
        self._logged: set[tuple[str, ...]] = set()

    def finish_due_trials(self, now: datetime) -> list[DueTrial]:
        """Promote or leave each challenger whose hours are over at `now`; return those that were promoted."""
        with self._engine.connect() as connection:
            over = due(connection, self._settings, now)
        return [one for one in over if self._end(one)]

    def _end(self, one: DueTrial) -> bool:
        self._log_once("shadow hours are over", one, over_at=one.over_at.isoformat(), **asdict(one.summary))
        with self._engine.connect() as connection:
            reason = reason_to_wait(one, self._facts(connection, one.product, one.version))
            row = versions.get(connection, one.product, one.version)
        if reason is None and row is not None:
            try:
                version = verify(self._root / MODELS / one.product / one.version, row.sha256)
                reason = self._promote(one, version)
            except ModelError as error:
                reason = str(error)
        if reason is None:
            log.info("promoted", extra=fields(product=one.product, version=one.version, reason=_promoted_since(one)))
            return True
        self._log_once("challenger waits for a person", one, reason=reason)
        return False

    def _promote(self, one: DueTrial, version: ModelVersion) -> str | None:
        with self._engine.begin() as connection:
            # Checked again under the write lock: a person may have promoted or rolled back since.
            row = versions.get(connection, one.product, one.version)
            facts = self._facts(connection, one.product, one.version)
            if row is None or row.state != "challenger":
                return f"expected a challenger; found it {row.state if row is not None else 'gone'}"
            reason = reason_to_wait(one, facts) or reason_not_to_promote(connection, self._settings, version)
            if reason is None:
                versions.promote(connection, one.product, one.version, _promoted_since(one))
        return reason

    def _facts(self, connection: Connection, product: str, version: str) -> TrialFacts:
        champion, newest = versions.champion(connection, product), newest_challengers(connection).get(product)
        return TrialFacts(
            shadow.gated_run(connection, product, version),
            champion.version if champion is not None else None,
            newest.version if newest is not None else None,
            self._settings.promote_automatically,
        )

    def _log_once(self, event: str, one: DueTrial, **values: object) -> None:
        # Figures may still grow while a reason stays; only another reason is news.
        once = (event, one.product, one.version, str(values.get("reason", "")).split(";")[0])
        if once not in self._logged:
            self._logged.add(once)
            log.info(event, extra=fields(product=one.product, version=one.version, **values))


def _promoted_since(one: DueTrial) -> str:
    seen = one.summary
    return (
        f"gate passed, and in the shadow it called {seen.challenger_rate:.2%} of {seen.images} images anomalies, the"
        f" champion {seen.champion_rate:.2%}"
    )
