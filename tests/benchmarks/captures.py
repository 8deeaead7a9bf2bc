"""Captures and models for the benchmarks: real images where they are, and a root to drop them into."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_DATA = REPOSITORY.parent / "shared" / "data"
MACARONI = REAL_DATA / "visa" / "macaroni1" / "Data" / "Images" / "Normal"
FULL_SIZE = REAL_DATA / "captures_full_size"


def captures() -> list[bytes]:
    """The 40 captures of 1500x1000 as a camera drops them, JPEG bytes. Exits where the data are absent."""
    paths = sorted(FULL_SIZE.glob("*.JPG"))
    if not paths:
        sys.exit(f"expected captures in {FULL_SIZE}; found none")
    return [path.read_bytes() for path in paths]


def variants(count: int) -> Iterator[bytes]:
    """`count` captures of 1500x1000, no two with the same bytes: the originals with a comment of their own."""
    originals = captures()
    for number in range(count):
        content = originals[number % len(originals)]
        comment = f"capture {number}".encode()
        # A JPEG comment segment right after the start marker: same pixels, another file.
        yield content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]


def tamis(*arguments: str, root: Path) -> str:
    """Run `tamis` on `root` and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "TAMIS_ROOT": str(root)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return ended.stdout


def trained_root(folder: Path, profile: str, steps: int | None = None, *, full_size: bool = False) -> Path:
    """Make a root in `folder` with a `feature` model of `profile` trained on macaroni1 normals.

    With `full_size` on the 40 captures as the camera drops them, at a rate of 0.05, which so few allow: the training
    then finds out whether such images may be decoded as drafts.
    """
    root = folder / "root"
    subprocess.run([sys.executable, "-m", "service", "init", str(root)], cwd=REPOSITORY, check=True, stdout=sys.stderr)
    options = ["--steps", str(steps)] if steps else []
    if full_size:
        options += ["--false-alarm-rate", "0.05", "--calibration", "split"]
    images = FULL_SIZE if full_size else MACARONI
    tamis("train", "--from", str(images), "--profile", profile, *options, root=root)
    return root


def empty(root: Path) -> None:
    """Take all images and rows out of `root`, so that the next run begins alike; the model stays."""
    from service.storage.database.driver import sqlite3

    for name in ("incoming", "processing", "normal", "anomaly", "quarantine", "maps"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    with sqlite3.connect(root / "tamis.db") as connection:
        connection.execute("DELETE FROM shadow_scores")
        connection.execute("DELETE FROM images")
        connection.execute("DELETE FROM energy_rows WHERE kind IN ('scoring', 'idle')")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    return parser


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print `result` as JSON, with what it was measured on, and write it to `output` if given."""
    text = json.dumps({**result, "machine": machine()}, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    import openvino

    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "openvino": openvino.__version__,
    }


def percentile(values: list[float], share: float) -> float:
    """The value at `share` (0 to 1) of `values`, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
