"""Trains in the process of the test, with all choices as keywords, or in a child as the service does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from models.data.select_images import ProductImages
from models.registry import MANIFEST, ModelVersion
from models.training.options import Reading, TrainingOptions
from service.training.job import TrainingJob
from service.training.run import run_joint_training


def train_jointly(products: Sequence[ProductImages], **choices: Any) -> list[ModelVersion]:
    """Call `models.training.train.train_jointly`; `choices` are its own and the fields of its options and reading."""
    from models.training import train

    options = {name: choices.pop(name) for name in TrainingOptions.model_fields if name in choices}
    reading = {field.name: choices.pop(field.name) for field in fields(Reading) if field.name in choices}
    return train.train_jointly(products, TrainingOptions(**options), Reading(**reading), **choices)


def train(
    images: Sequence[Path], *, product: str, false_alarm_rate: float, anomalies: Sequence[Path] = (), **choices: Any
) -> ModelVersion:
    """Train on the normal `images` of one product; return the version. `choices` are `train_jointly`'s."""
    return train_jointly([ProductImages(product, images, false_alarm_rate, anomalies)], **choices)[0]


def run_training(engine: Engine, job: TrainingJob, **options: Any) -> ModelVersion:
    """Train one product in a child process and register the version; return it."""
    return run_joint_training(engine, job, **options)[0]


def list_versions(models_root: Path, product: str) -> list[str]:
    """Return the names of the product's versions that have a `model.json`, oldest first."""
    folders = (models_root / product).glob(f"[!.]*/{MANIFEST}")
    return sorted(path.parent.name for path in folders)
