"""Duties: what the daemon does beside the scoring, and when: the end of probations, and old files."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from service.daemon.background_jobs import Duty
from service.operations.retention import RESTS_BESIDE_SCORING, Retention, rules_of
from service.retraining.shadow_trial import Probation
from service.settings import Settings

# Not at once: whoever starts the service with a new limit, or a wrong clock, has time to see it.
RETENTION_AFTER_S = 600.0
RETENTION_INTERVAL_S = 86_400.0


def duties_of(root: Path, engine: Engine, settings: Settings, stopping: threading.Event) -> list[Duty]:
    """Return the duties that `settings` ask for; each ends soon once `stopping` is set."""
    now = time.monotonic()
    duties = []
    if settings.shadow_hours:
        probation = Probation(root, engine, settings)
        duties.append(Duty("probation", lambda: _end_probations(probation), now, settings.rescan_interval_s))
    retention = Retention(
        root,
        engine,
        rules_of(settings),
        stopping=stopping.is_set,
        rest=stopping.wait,
        rests=RESTS_BESIDE_SCORING,
    )
    duties.append(
        Duty("retention", lambda: _remove_old_files(retention), now + RETENTION_AFTER_S, RETENTION_INTERVAL_S)
    )
    return duties


def _end_probations(probation: Probation) -> None:
    probation.end_those_over(datetime.now(UTC))


def _remove_old_files(retention: Retention) -> None:
    retention.run(datetime.now(UTC))
