"""Retrain: one retraining of one product, from the labels to the promotion, in the process that calls it.

Owns the order of the steps, and the row that says how far it came. A kill at any line leaves one champion, and the next
retraining cleans up.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from models.data.select_images import ProductImages
from models.errors import ModelError, TooFewImages
from models.fitting.limits import BYTES_PER_GB
from models.progress import Progress
from models.registry import BUILD_PREFIX, ModelVersion, read_manifest, remove_build
from service.errors import ConfigurationError, TamisError
from service.retraining.gate_report import render, write_page
from service.retraining.gate_scoring import run_gate
from service.retraining.lock import retraining_lock
from service.retraining.promotion import apply_gate_result
from service.retraining.training_data import TrainingData, select_training_data
from service.root import MODELS
from service.scoring.active_versions import load_version
from service.settings import Settings
from service.storage import energy, retrainings, versions
from service.storage.energy_sample import EnergySample
from service.storage.retrainings import KnownImage, NewLabels, RetrainingRow
from service.storage.thresholds import chosen
from service.training.job import EnergyExceeded, TrainingJob, from_settings
from service.training.run import register_trained, train_in_child

RETRAINING_BUILD = f"{BUILD_PREFIX}retrain-"

Report = Callable[[Progress], None]


def retrain(
    root: Path,
    engine: Engine,
    settings: Settings,
    product: str,
    *,
    trigger: str,
    fresh: bool = False,
    force: bool = False,
    steps: int | None = None,
    report: Report = lambda progress: None,
) -> RetrainingRow:
    """Retrain `product` from its labels, run the gate and act on its result; return the row of the run.

    It is skipped without new labels since the last run, unless `force`, and with too few images. `fresh` starts from
    zero and not with the champion's weights. Raises TamisError where another retraining runs or the product has no
    champion of its own, and what training raises; the row then says `failed`, or `stopped` after a signal.
    """
    with retraining_lock(root):
        clear_up(root, engine)
        began = datetime.now(UTC)
        with engine.begin() as connection:
            if versions.champion(connection, product) is None:
                there = ", ".join(sorted(versions.champions(connection))) or "none"
                raise TamisError(
                    f"product {product}: expected a champion of its own to retrain; products with one: {there}"
                )
            labels = retrainings.new_labels(connection, product, retrainings.last_learned(connection, product))
            row = retrainings.request(
                connection, product, trigger, state="running", requested_at=began, started_at=began
            )
            retrainings.change(connection, row.id, review_id=labels.review_id)
        try:
            if not labels.count and not force:
                return _finish(engine, row, outcome="skipped", reason="no new labels since the last retraining")
            begun = _Begun(root, engine, settings, row, labels, fresh or settings.retrain_fresh, steps)
            return _run(begun, report)
        except TooFewImages as error:
            return _finish(engine, row, outcome="skipped", reason=str(error))
        except EnergyExceeded as error:
            _fail(engine, row, "failed", str(error), error.sample)
            raise
        except Exception as error:
            _fail(engine, row, "failed", str(error) or type(error).__name__)
            raise
        except BaseException:
            _fail(engine, row, "stopped", "stopped by a signal")
            raise


def clear_up(root: Path, engine: Engine) -> None:
    """Finish what a killed retraining left: its row, its unfinished folder, a version that it had not registered.

    Only with the lock held. May be repeated.
    """
    for build in (root / MODELS).glob(f"{RETRAINING_BUILD}*"):
        remove_build(build)
    with engine.connect() as connection:
        left = retrainings.in_state(connection, "running")
        known = {(row.product, row.version) for row in versions.versions(connection)}
    for row in left:
        for folder in sorted((root / MODELS / row.product).glob("[!.]*")):
            if (row.product, folder.name) not in known and _made_by(folder) == row.id:
                shutil.rmtree(folder)
        with engine.begin() as connection:
            retrainings.change(
                connection, row.id, state="stopped", ended_at=datetime.now(UTC), reason="its process was killed"
            )


@dataclass(frozen=True)
class _Begun:
    """A retraining that has begun."""

    root: Path
    engine: Engine
    settings: Settings
    row: RetrainingRow
    labels: NewLabels
    fresh: bool
    steps: int | None


def _run(begun: _Begun, report: Report) -> RetrainingRow:
    root, engine, settings, row = begun.root, begun.engine, begun.settings, begun.row
    # Select the images
    with engine.connect() as connection:
        known = retrainings.known_images(connection, row.product)
    champion = _champion(root, engine, row.product)
    with engine.begin() as connection:
        retrainings.change(connection, row.id, champion=champion.version)
    data = select_training_data(root, champion.folder, known)
    if data.unreadable:
        left_out = f"{len(data.unreadable)} images cannot be read now and are left out, the first: {data.unreadable[0]}"
        report(Progress("checking", 0, 1, left_out))

    # Train
    trained = train_in_child(_job(begun, champion, data), report=report)
    challenger = trained.version
    with engine.begin() as connection:
        register_trained(connection, trained, reason=f"retrained, not judged yet (retraining {row.id})")
        total_wh = trained.energy.total_wh if trained.energy else None
        retrainings.change(connection, row.id, challenger=challenger.version, total_wh=total_wh)
        drifting = retrainings.drifting_since(connection, row.product) is not None
        chosen_rate = chosen(connection).get(row.product)

    # Compare
    result, samples = run_gate(
        root,
        settings,
        champion,
        challenger,
        known,
        drifting=drifting,
        chosen_rate=chosen_rate,
        report=lambda done, total: report(Progress("judging", done, total)),
    )

    # Promote, keep or reject; then report
    done = apply_gate_result(root, engine, settings, row, champion, challenger, result, [trained.energy, *samples])
    page = render(
        result,
        done,
        champion=champion,
        challenger=challenger,
        learned=_learned(done, begun.labels, data, known),
        made_at=datetime.now(UTC),
    )
    path = write_page(root, row.product, challenger.version, page)
    with engine.begin() as connection:
        retrainings.change(connection, row.id, report=path)
        return retrainings.get(connection, row.id)


def _champion(root: Path, engine: Engine, product: str) -> ModelVersion:
    try:
        return load_version(root, engine, product)[0]
    except ConfigurationError as error:
        # Not a configuration error: the daemon goes on with the version before it.
        raise TamisError(str(error)) from None


def _job(begun: _Begun, champion: ModelVersion, data: TrainingData) -> TrainingJob:
    root, settings, row = begun.root, begun.settings, begun.row
    manifest = champion.manifest
    return TrainingJob(
        products=(
            ProductImages(
                row.product,
                _absolute(data.normals),
                settings.false_alarm_rate_of(row.product, champion.trained_false_alarm_rate),
                _absolute(data.anomalies),
                _absolute(data.calibrate),
                settings.of(row.product, "value_range"),
            ),
        ),
        models_root=(root / MODELS).absolute(),
        kind=champion.kind,
        profile=manifest.profile or "fast",
        seed=manifest.training.seed or 0,
        minutes_max=settings.retrain_minutes_max,
        memory_bytes=int(settings.retrain_memory_gb * BYTES_PER_GB),
        energy_max_wh=settings.retrain_energy_max_wh,
        trim_fraction=settings.trim_fraction,
        warm=None if begun.fresh else champion.folder.absolute(),
        retraining=row.id,
        steps=begun.steps,
        backbone=manifest.backbone.name if manifest.backbone and champion.kind == "classifier" else None,
        build=f"{RETRAINING_BUILD}{uuid.uuid4().hex}",
        **from_settings(settings),
    )


def _finish(engine: Engine, row: RetrainingRow, *, outcome: str, reason: str) -> RetrainingRow:
    with engine.begin() as connection:
        retrainings.change(connection, row.id, state="done", ended_at=datetime.now(UTC), outcome=outcome, reason=reason)
        return retrainings.get(connection, row.id)


def _fail(engine: Engine, row: RetrainingRow, state: str, reason: str, sample: EnergySample | None = None) -> None:
    with engine.begin() as connection:
        # Unless it had ended before: then only the report is missing.
        if retrainings.get(connection, row.id).state != "running":
            return
        if sample is not None:
            energy.add(connection, sample)
            retrainings.change(connection, row.id, total_wh=sample.total_wh)
        retrainings.change(connection, row.id, state=state, ended_at=datetime.now(UTC), reason=reason)


def _learned(
    done: RetrainingRow, labels: NewLabels, data: TrainingData, known: Mapping[str, KnownImage]
) -> dict[str, Any]:
    labelled = [image for image in known.values() if image.label is not None]
    return {
        "trigger": done.trigger,
        "new labels": labels.count,
        "labelled normal": sum(image.label == "normal" for image in labelled),
        "labelled anomaly": sum(image.label == "anomaly" for image in labelled),
        "golden, never trained on": sum(image.role == "golden" for image in labelled),
        "normals given": len(data.normals) + len(data.calibrate),
        "the champion's, overruled by a person": data.overruled,
        "missing or changed": data.gone,
        "not readable": len(data.unreadable),
        "energy": None if done.total_wh is None else f"{done.total_wh:.3g} Wh",
        **({} if done.saved_g is None else {"saved by the hour (estimate)": f"{done.saved_g:.2f} g CO2e"}),
    }


def _made_by(folder: Path) -> int | None:
    try:
        return read_manifest(folder).manifest.training.retraining
    except ModelError:
        return None


def _absolute(paths: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(path.absolute() for path in paths)
