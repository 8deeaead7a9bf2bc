"""One network for several products against one for each: the same images, the same judging, thresholds per product.

Trains jointly as `tamis train --product all` does, then each product by itself, both in child processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.data.select_images import ProductImages
from models.errors import ModelError
from models.registry import ModelVersion
from service.errors import TamisError
from service.training.job import TrainingJob
from service.training.run import train_in_child
from tests.benchmarks.detection import data, judge
from tests.benchmarks.run_file import Run, RunFile, arguments, cell, markdown, spread

METRICS = {"image_auroc": 4, "best_f1": 3, "f1": 3, "recall": 3, "false_alarm_rate": 3, "aupro": 3}
JOINT, OWN = "one for all", "one for each"


def main() -> None:
    options = _options()
    runs = RunFile("joint", options.output, options.resume)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for seed in options.seeds:
            tasks = {name: data.DATA[name](seed, Path(temporary) / name) for name in options.data}
            groups = {JOINT: [list(tasks)], OWN: [[name] for name in tasks]}
            for way, products in groups.items():
                for names in products:
                    key = {"way": way, "data": names, "profile": options.profile, "seed": seed, "rate": options.rate}
                    if runs.has(key):
                        continue
                    print(f"{way}: {', '.join(names)}, seed {seed}", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=temporary) as folder:
                        runs.add({"key": key, **_run({name: tasks[name] for name in names}, key, Path(folder))})
    rows = _summary(runs.runs)
    runs.write(summary=rows)
    print(_table(rows))


def _run(tasks: Mapping[str, data.Task], key: Run, folder: Path) -> Run:
    try:
        versions, took = _train(tasks, key, folder)
        return {**took, "judged": {name: judge.quality(versions[name], task.test) for name, task in tasks.items()}}
    except (ModelError, TamisError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}


def _train(tasks: Mapping[str, data.Task], key: Run, folder: Path) -> tuple[dict[str, ModelVersion], Run]:
    """Return the version of each product, and what their training took: one network for all of `tasks`."""
    trained = train_in_child(
        TrainingJob(
            products=tuple(
                ProductImages(name, tuple(path.absolute() for path in task.train), key["rate"])
                for name, task in tasks.items()
            ),
            models_root=folder / "models",
            kind="feature",
            profile=key["profile"],
            seed=key["seed"],
        )
    )
    versions = {version.product: version for version in trained.versions}
    size = trained.versions[0].input_size
    return versions, {
        "input_size": list(size),
        "training_s": trained.versions[0].manifest.training.seconds,
        "training_wh": trained.energy.total_wh if trained.energy else None,
    }


def _summary(runs: Sequence[Run]) -> list[Run]:
    """Return a row for each data set and way: every metric's spread over the seeds."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        for name, quality in run.get("judged", {}).items():
            groups.setdefault((name, run["key"]["way"]), []).append({**run, **quality})
    return [
        {
            "data": name,
            "way": way,
            "input_size": members[0]["input_size"],
            **{metric: spread([run[metric] for run in members]) for metric in METRICS},
        }
        for (name, way), members in sorted(groups.items())
    ]


def _table(rows: Sequence[Run]) -> str:
    headings = ["data", "network", "px", *METRICS]
    return markdown(
        headings,
        [
            [
                row["data"],
                row["way"],
                "{1} x {0}".format(*row["input_size"]),
                *(cell(row[name], places) for name, places in METRICS.items()),
            ]
            for row in rows
        ],
    )


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", nargs="+", choices=sorted(data.DATA), default=["macaroni1", "aliens", "solar"])
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=0.05)
    options = parser.parse_args()
    if len(options.data) < 2:
        parser.error(f"--data: expected two products or more; found {', '.join(options.data)}")
    return options


if __name__ == "__main__":
    main()
