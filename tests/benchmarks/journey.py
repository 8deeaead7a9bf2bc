"""The main job on real images: train, start the daemon, drop the test images, and judge what the database says.

VisA macaroni1 with its official split, and the aliens (46 normals to train, chosen by a seed; the rest to
test). AUROC and the realised false-alarm rate come from the view `results` alone; every file is looked for in
the folder that its row names, with the bytes that were dropped.
"""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from service.storage.database.driver import sqlite3
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, nothing_left, wait_until

FALSE_ALARM_RATE = 0.05


@dataclass
class Task:
    """Images to train on, and images to drop with their labels (1 is an anomaly)."""

    train: list[Path]
    test: list[tuple[Path, int]]


def macaroni1() -> Task:
    visa = captures.REAL_DATA / "visa"
    with (visa / "split_csv" / "1cls.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["object"] == "macaroni1"]
    return Task(
        [visa / row["image"] for row in rows if row["split"] == "train"],
        [(visa / row["image"], int(row["label"] != "normal")) for row in rows if row["split"] == "test"],
    )


def aliens(seed: int) -> Task:
    folder = captures.REAL_DATA / "aliens"
    normals = sorted((folder / "normal").iterdir())
    random.Random(seed).shuffle(normals)
    anomalies = sorted((folder / "anomaly").iterdir())
    return Task(normals[:46], [(path, 0) for path in normals[46:]] + [(path, 1) for path in anomalies])


def journey(task: Task, kind: str, profile: str, seed: int, folder: Path) -> dict[str, Any]:
    """Go the whole way for `task` and return what came of it."""
    root = folder / "root"
    subprocess.run(
        [sys.executable, "-m", "service", "init", str(root)], cwd=captures.REPOSITORY, check=True, stdout=sys.stderr
    )
    with (root / "tamis.toml").open("a") as file:
        file.write(f"\nfalse_alarm_rate = {FALSE_ALARM_RATE}\n")
    normals = folder / "normals"
    normals.mkdir()
    for path in task.train:
        shutil.copy(path, normals)
    captures.tamis(
        "train", "--from", str(normals), "--kind", kind, "--profile", profile, "--seed", str(seed), root=root
    )  # fmt: skip
    dropped: dict[str, tuple[str, int]] = {}
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        for number, (path, label) in enumerate(task.test):
            content, name = path.read_bytes(), f"{number:04}_{path.name}"
            dropped[name] = (hashlib.sha256(content).hexdigest(), label)
            (root / "incoming" / name).write_bytes(content)
        wait_until(lambda: finished(root) == len(dropped), "all finished", 300)
        assert daemon.stop() == 0, daemon.log_text()
    with sqlite3.connect(root / "tamis.db") as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM results")]
        [training_wh] = connection.execute("SELECT training_wh FROM model_versions").fetchone()
        [scoring_wh] = connection.execute("SELECT sum(total_wh) FROM energy WHERE kind = 'scoring'").fetchone()
    labels = np.array([dropped[row["file_name"]][1] for row in rows])
    scores = np.array([row["score"] for row in rows])
    anomalies = np.array([row["verdict"] == "anomaly" for row in rows])
    where_it_says = [
        (root / row["path"]).is_file()
        and row["path"].split("/")[0] == row["verdict"]
        and hashlib.sha256((root / row["path"]).read_bytes()).hexdigest()
        == row["sha256"]
        == dropped[row["file_name"]][0]
        for row in rows
    ]
    return {
        "kind": kind,
        "profile": profile,
        "seed": seed,
        "dropped": len(dropped),
        "rows_placed": sum(row["state"] == "placed" for row in rows),
        "files_where_their_row_says_with_their_bytes": sum(where_it_says),
        "left_in_incoming_or_processing": not nothing_left(root),
        "image_auroc": float(roc_auc_score(labels, scores)),
        "false_alarm_rate_asked": FALSE_ALARM_RATE,
        "false_alarm_rate_realised": float(anomalies[labels == 0].mean()),
        "recall": float(anomalies[labels == 1].mean()),
        "training_wh": training_wh,
        "scoring_wh_per_1000": scoring_wh / len(rows) * 1000 if scoring_wh else None,
    }


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--profile", default="balanced")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"macaroni1": [], "aliens": []}
    for seed in options.seeds:
        runs = [
            ("macaroni1", macaroni1(), "feature"),
            ("aliens", aliens(seed), "feature"),
            ("aliens", aliens(seed), "pixel"),
        ]
        for name, task, kind in runs:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                results[name].append(journey(task, kind, options.profile, seed, Path(folder)))
    captures.report({"benchmark": "journey", **results}, options.output)


if __name__ == "__main__":
    main()
