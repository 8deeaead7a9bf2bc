"""A tiny trained `pixel` version, made once for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.registry import ModelVersion
from tests.support.made_images import image_size, make_normals, read


@pytest.fixture(scope="session")
def normals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_normals(tmp_path_factory.mktemp("normals"))


@pytest.fixture(scope="session")
def trained(normals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    from tests.support.trainings import train

    return train(
        normals,
        kind="pixel",
        profile="fast",
        product="bar",
        seed=3,
        false_alarm_rate=0.1,
        read=read,
        image_size=image_size,
        destination=tmp_path_factory.mktemp("models"),
        minutes_max=5,
        report=lambda progress: None,
        steps=15,
        side=96,
        method="split",
    )
