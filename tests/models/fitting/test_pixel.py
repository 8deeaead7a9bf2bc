"""Training the detector `pixel`, as a process of its own does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from tests.support.trainings import train
from tests.support.made_images import image_size, make_normals, read

folder = Path(sys.argv[1])
train(
    make_normals(folder / "normals", 20), kind="pixel", profile="fast", product="bar", seed=3, false_alarm_rate=0.2,
    read=read, image_size=image_size, destination=folder / "models", minutes_max=5, report=lambda progress: None,
    steps=2, side=64, method="split", threads=1,
)
print({"timm", "sklearn"} & set(sys.modules) or "neither")
"""


def test_training_it_imports_neither_timm_nor_scikit_learn(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1:] == ["neither"], ended.stderr
