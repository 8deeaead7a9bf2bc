"""Trains in the process of the test, with all choices as keywords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from models.data.select_images import ProductImages
from models.registry import ModelVersion
from models.training.options import Reading, TrainingOptions


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
