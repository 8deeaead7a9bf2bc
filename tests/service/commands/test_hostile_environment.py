"""Commands among files and variables that are meant for libraries: what they do is the same, and none ends of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.imaging.synthetic_parts import draw
from tests.conftest import REPOSITORY, image_bytes
from tests.faults.root_for_faults import drop, make_root, query
from tests.support.daemon_process import DaemonProcess, finished, wait_until
from tests.support.web_process import WebProcess

NOWHERE = "/nonexistent"
FILES = {
    ".codecarbon.config": "[codecarbon\npue = 2",
    ".env": "TAMIS_SETTLE_TIME_S=99\nTAMIS_NO_SETTING=1\n",
    "alembic.ini": f"[alembic]\nscript_location = {NOWHERE}\nsqlalchemy.url = none\n",
    "matplotlibrc": "text.usetex: True\naxes.grid: perhaps\nbackend: TkAgg\nlines.linewidth: 40\n",
    ".config/matplotlib/matplotlibrc": "text.usetex: True\n",
    **dict.fromkeys(("torch.py", "numpy.py", "json.py", "logging.py", "service/__init__.py"), "raise SystemExit(9)\n"),
}
VARIABLES = {
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
    "TMPDIR": NOWHERE,
    **dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "TORCH_HOME", "HF_HOME"), NOWHERE),
    **dict.fromkeys(("JOBLIB_TEMP_FOLDER", "MPLCONFIGDIR", "MATPLOTLIBRC", "SQLITE_TMPDIR", "NOTIFY_SOCKET"), NOWHERE),
    "MPLBACKEND": "TkAgg",
    "CODECARBON_PUE": "2",
    "CODECARBON_LOG_LEVEL": "garbage",
    "SLURM_JOB_ID": "4",
    "OMP_NUM_THREADS": "1",
    # With which GNU's OpenMP starts a loop that has no end.
    "GOMP_CPU_AFFINITY": "garbage",
    "KMP_AFFINITY": "garbage",
    "NPY_DISABLE_CPU_FEATURES": "GARBAGE",
    "ONEDNN_VERBOSE": "1",
    "DNNL_VERBOSE": "1",
    "MKL_VERBOSE": "1",
    "OPENVINO_LOG_LEVEL": "9",
    "PILLOW_ALIGNMENT": "garbage",
    "SKLEARN_WORKING_MEMORY": "garbage",
    "TERMINAL_WIDTH": "garbage",
    "TIMM_FUSED_ATTN": "garbage",
    "TORCH_LOGS": "garbage",
    "TQDM_MININTERVAL": "garbage",
    "UVICORN_PORT": "9",
    "WATCHDOG_USEC": "garbage",
    "WEB_CONCURRENCY": "garbage",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def used_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("used") / "root", 'energy_country = "FRA"\n')


def tamis(folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call the program with `folder` as home and working folder."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "service", *map(str, arguments)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["run --help", "doctor", "energy"])
def test_command_does_and_says_the_same(hostile: Path, used_root: Path, tmp_path: Path, command: str) -> None:
    arguments: list[str | Path] = [*command.split()]
    if "--help" not in arguments:
        arguments += ["--root", used_root, "--json"]
    alone, among = tamis(tmp_path, *arguments), tamis(hostile, *arguments, **VARIABLES)
    assert (alone.returncode, among.returncode, among.stderr) == (0, 0, alone.stderr)
    if command == "doctor":
        # It also tells how much is free meanwhile.
        levels = [[(one["check"], one["level"]) for one in json.loads(text.stdout)] for text in (alone, among)]
        assert levels[0] == levels[1]
    else:
        assert among.stdout == alone.stdout


def test_report_of_an_evaluation_is_drawn_the_same(hostile: Path, used_root: Path, tmp_path: Path) -> None:
    for name, value in (("normal", 20), ("anomaly", 200)):
        for number in range(6):
            path = tmp_path / "parts" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(value + number, seed=number))
    plots = []
    for folder, variables in ((tmp_path, {}), (hostile, VARIABLES)):
        report = tmp_path / folder.name / "report"
        command = ["evaluate", tmp_path / "parts", "--root", used_root, "--layout", "folders", "--json"]
        ended = tamis(folder, *command, "--report", report, **variables)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["objects"][0]["images"] == 12
        plots.append(re.findall(r"<svg.*?</svg>", (report / "index.html").read_text(), re.DOTALL))
    assert plots[0] == plots[1] != []


def test_daemon_and_page_work_without_a_home(hostile: Path, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", 'energy_country = "FRA"\n')
    environment = {**VARIABLES, "HOME": NOWHERE, "XDG_CONFIG_HOME": str(hostile / ".config")}
    del environment["NOTIFY_SOCKET"]
    with DaemonProcess(root, environment=environment) as daemon:
        daemon.wait_ready()
        drop(root, "a.png", image_bytes(20, seed=1))
        wait_until(lambda: finished(root) == 1, "a verdict")
        assert daemon.stop() == 0
    assert query(root, "SELECT count(*) AS n FROM energy WHERE total_wh IS NULL") == [{"n": 0}]
    with WebProcess(root, environment=environment) as web, urllib.request.urlopen(web.url) as answer:
        assert answer.status == 200


def test_messages_to_a_supervisor_that_is_not_there_end_nothing(tmp_path: Path) -> None:
    """A container inherits NOTIFY_SOCKET, of a socket that it cannot reach."""
    root = make_root(tmp_path / "root")
    (tmp_path / "file").touch()
    command = [sys.executable, "-P", "-m", "service", "run", "--root", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NOTIFY_SOCKET": str(tmp_path / "file")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as daemon:
        drop(root, "a.png", image_bytes(20, seed=1))
        wait_until(lambda: finished(root) == 1 or daemon.poll() is not None, "a verdict")
        daemon.terminate()
        assert daemon.wait(30) == 0


def test_names_and_output_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    """In a locale of another encoding a folder of the same name would be another product."""
    latin = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    rng = np.random.default_rng(1)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(3):
        Image.fromarray(draw(rng, None, (48, 64)).image).save(parts / f"{number}.png")
    root = make_root(tmp_path / "root")
    words = ["import", parts, "--root", root, "--product", "Prüfling", "--label", "normal"]
    ended = tamis(tmp_path, *words, **latin)
    assert ended.returncode == 0, ended.stderr
    assert (root / "training" / "Prüfling").is_dir()
    refused = tamis(tmp_path, "status", "--root", tmp_path / "Öse", **latin, PYTHONIOENCODING="ascii")
    assert refused.returncode == 78 and "Öse" in refused.stderr


@pytest.mark.long
def test_training_ends_with_a_version_whose_energy_is_known(hostile: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(24):
        Image.fromarray(draw(rng, None, (120, 160)).image).save(parts / f"{number:02}.png")
    root = make_root(tmp_path / "root")
    choices = "--kind pixel --profile fast --false-alarm-rate 0.2 --calibration split --minutes 0.1 --json"
    ended = tamis(hostile, "train", "--root", root, "--product", "p", "--from", parts, *choices.split(), **VARIABLES)
    assert ended.returncode == 0, ended.stderr
    json.loads(ended.stdout)
    [row] = query(root, "SELECT total_wh FROM energy WHERE kind = 'training'")
    assert row["total_wh"] > 0
