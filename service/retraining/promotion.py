"""Promotion: promotes, keeps or rejects the challenger by the gate's result, and finishes the run: one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.registry import ModelVersion
from service.energy import grid_intensity
from service.retraining.gate import GateResult
from service.scoring.threshold_policy import reason_not_to_promote
from service.settings import Settings
from service.storage import energy, retrainings, versions
from service.storage.energy_sample import EnergySample
from service.storage.retrainings import RetrainingRow


def apply_gate_result(
    root: Path,
    engine: Engine,
    settings: Settings,
    row: RetrainingRow,
    champion: ModelVersion,
    challenger: ModelVersion,
    result: GateResult,
    samples: Sequence[EnergySample | None],
) -> RetrainingRow:
    """Act on `result`, finish the run `row` and return it.

    `samples` are the energy used: the training's, which is recorded already, then the gate's, which are recorded here.
    """
    ended = datetime.now(UTC)
    total_wh = _total_wh(samples)
    saved_g = _saved_g(root, settings, row, ended, total_wh)
    with engine.begin() as connection:
        for sample in samples[1:]:
            if sample is not None:
                energy.add(connection, sample)
        outcome, reason = _act(connection, settings, champion, challenger, result, ended)
        retrainings.change(
            connection,
            row.id,
            state="done",
            ended_at=ended,
            outcome=outcome,
            reason=reason,
            gate=json.dumps(result.document(), allow_nan=False),
            total_wh=total_wh,
            saved_g=saved_g,
        )
        return retrainings.get(connection, row.id)


def _act(
    connection: Connection,
    settings: Settings,
    champion: ModelVersion,
    challenger: ModelVersion,
    result: GateResult,
    at: datetime,
) -> tuple[str, str]:
    product, version, reason = challenger.product, challenger.version, result.reason
    if result.decision in ("worse", "not better"):
        versions.reject(connection, product, version, reason)
        return "rejected", reason
    now = versions.champion(connection, product)
    outcome, reason = "challenger", f"not judged: {reason}" if result.decision == "not judged" else reason
    if result.decision == "better":
        if now is None or now.version != champion.version:
            # A person chose another one meanwhile, which the gate did not compare it with.
            reason = f"{reason}; but {champion.version}, which it was compared with, is not the champion any more"
        elif cannot := reason_not_to_promote(connection, settings, challenger):
            reason = f"passed the gate, but cannot be the champion: {cannot}"
        elif not settings.promote_automatically:
            reason = f"passed the gate and waits for a person: {reason}"
        elif settings.shadow_hours > 0:
            reason = f"passed the gate and scores in the shadow for {settings.shadow_hours:g} h first: {reason}"
        else:
            versions.promote(connection, product, version, reason, at)
            return "promoted", reason
    versions.explain(connection, product, version, reason)
    return outcome, reason


def _total_wh(samples: Sequence[EnergySample | None]) -> float | None:
    """Return the sum; None where the training's, which is nearly all of it, is unknown."""
    if samples[0] is None or samples[0].total_wh is None:
        return None
    return sum(sample.total_wh or 0.0 for sample in samples if sample is not None)


def _saved_g(
    root: Path, settings: Settings, row: RetrainingRow, ended: datetime, total_wh: float | None
) -> float | None:
    """Return the estimate of what waiting saved; None for a run that did not wait, or without a table."""
    if row.planned_at is None or row.started_at is None or settings.retrain_carbon_file is None:
        return None
    with suppress(grid_intensity.CarbonFileWrong):
        intensity = grid_intensity.read_intensity(root / settings.retrain_carbon_file)
        return grid_intensity.saved_g(intensity, row.requested_at, row.started_at, ended - row.started_at, total_wh)
    return None
