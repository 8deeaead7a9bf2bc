"""Duties: what the daemon does beside the scoring, and when: the end of probations, and old files."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from service.daemon.background_jobs import Job
from service.operations.retention import RESTS_BESIDE_SCORING, Retention
from service.operations.retention_plan import rules_of
from service.retraining.shadow_trial import ShadowTrial
from service.settings import Settings

# Not at once: whoever starts the service with a new limit, or a wrong clock, has time to see it.
RETENTION_AFTER_S = 600.0
RETENTION_INTERVAL_S = 86_400.0


def jobs_for(root: Path, engine: Engine, settings: Settings, stopping: threading.Event) -> list[Job]:
    """Return the duties that `settings` ask for; each ends soon once `stopping` is set."""
    now = time.monotonic()
    duties = []
    if settings.shadow_hours:
        probation = ShadowTrial(root, engine, settings)
        duties.append(Job("probation", lambda: _end_probations(probation), now, settings.rescan_interval_s))
    retention = Retention(
        root,
        engine,
        rules_of(settings),
        stopping=stopping.is_set,
        rest=stopping.wait,
        rests=RESTS_BESIDE_SCORING,
    )
    duties.append(Job("retention", lambda: _remove_old_files(retention), now + RETENTION_AFTER_S, RETENTION_INTERVAL_S))
    return duties


def _end_probations(probation: ShadowTrial) -> None:
    probation.finish_due_trials(datetime.now(UTC))


def _remove_old_files(retention: Retention) -> None:
    retention.run(datetime.now(UTC))
