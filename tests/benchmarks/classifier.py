"""From how many labelled anomalies on the classifier beats the autoencoder on features, and what either costs in Wh.

Labelled anomalies are drawn from the test split by seed, and all that are drawn for the largest number are left out
of the test for every detector, so that all are judged on the same images. Each is trained as `tamis train` does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.data.datasets import Sample
from models.errors import ModelError
from service.errors import TamisError
from tests.benchmarks.detection import data, judge
from tests.benchmarks.run_file import Run, RunFile, arguments, cell, markdown, spread

FEATURE = "feature"
CLASSIFIER = "classifier"
METRICS = {
    "image_auroc": 4,
    "f1": 3,
    "false_alarm_rate": 3,
    "training_s": 0,
    "training_wh": 2,
    "wh_per_1000": 3,
    "graph_ms_one_thread": 1,
}


def main() -> None:
    options = _options()
    runs = RunFile("classifier", options.output, options.resume)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for name in options.data:
            for seed in options.seeds:
                task = data.DATA[name](seed, Path(temporary) / name)
                labelled, test = _divided(task, options.labelled, seed)
                normals = data.in_seeded_order(task.train, f"classifier|{seed}")[: options.images]
                # The autoencoder needs no labelled anomaly and gets none.
                for kind, count in ((FEATURE, 0), *((CLASSIFIER, count) for count in options.labelled)):
                    about = {"profile": options.profile, "images": options.images, "job": options.job}
                    key = {"data": name, "seed": seed, "kind": kind, "labelled": count, **about}
                    if runs.has(key):
                        continue
                    print(f"{name}, seed {seed}: {kind} with {count} labelled anomalies", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=temporary) as folder:
                        run = _run(normals, labelled[:count], test, kind, seed, Path(folder), options)
                    runs.add({"key": key, **run}, summary=_summary([*runs.runs, {"key": key, **run}]))
    summary = _summary(runs.runs)
    runs.write(summary=summary)
    print(_table(summary["rows"]))
    for name, count in summary["beats_feature_from"].items():
        found = f"from {count} labelled anomalies on" if count is not None else "with none of the numbers tried"
        print(f"{name}: the classifier's mean image AUROC is higher {found}")


def _divided(task: data.Task, counts: Sequence[int], seed: int) -> tuple[list[Path], list[Sample]]:
    """Return the anomalies that may be labelled, in the order that they are drawn in, and what is left to test."""
    anomalies = data.in_seeded_order([one.path for one in task.test if one.label == 1], f"labelled|{seed}")
    most = max(counts)
    if len(anomalies) <= most:
        sys.exit(f"--labelled {most}: expected fewer than the {len(anomalies)} anomalies of the test split")
    labelled = anomalies[:most]
    return labelled, [one for one in task.test if one.path not in set(labelled)]


def _run(
    normals: Sequence[Path],
    labelled: Sequence[Path],
    test: Sequence[Sample],
    kind: str,
    seed: int,
    folder: Path,
    options: argparse.Namespace,
) -> Run:
    overrides = {"kind": kind, **judge.overrides(options.job)}
    try:
        trained, took = judge.train(normals, options.profile, seed, options.rate, folder, overrides, labelled)
        quality = judge.quality(trained.version, test)
        cost = judge.cost(trained.version, [one.path for one in test])
    except (ModelError, TamisError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}
    return {**took, **quality, **cost}


def _summary(runs: Sequence[Run]) -> Run:
    """Return a row for each data set, kind and number of labelled anomalies, and where the classifier gets ahead."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        if "error" not in run:
            groups.setdefault((run["key"]["data"], run["key"]["kind"], run["key"]["labelled"]), []).append(run)
    rows = [
        {
            "data": name,
            "kind": kind,
            "labelled": labelled,
            "seeds": len(members),
            **{metric: spread([run[metric] for run in members]) for metric in METRICS},
        }
        for (name, kind, labelled), members in groups.items()
    ]
    return {"rows": rows, "beats_feature_from": {name: _ahead_from(rows, name) for name in {n for n, _, _ in groups}}}


def _ahead_from(rows: Sequence[Run], name: str) -> int | None:
    """Return the least number from which on, with every larger one too, the classifier's mean image AUROC is higher."""
    own = {row["labelled"]: row["image_auroc"]["each"] for row in rows if row["data"] == name}
    if 0 not in own:
        return None
    means = {labelled: statistics.fmean(values) for labelled, values in own.items()}
    ahead = None
    for labelled in sorted(set(means) - {0}, reverse=True):
        if means[labelled] <= means[0]:
            break
        ahead = labelled
    return ahead


def _table(rows: Sequence[Run]) -> str:
    return markdown(
        ["data", "kind", "labelled anomalies", *METRICS],
        [
            [
                row["data"],
                row["kind"],
                str(row["labelled"]),
                *(cell(row[metric], places) for metric, places in METRICS.items()),
            ]
            for row in rows
        ],
    )


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", nargs="+", choices=sorted(data.DATA), default=["macaroni1", "aliens"])
    parser.add_argument("--labelled", type=int, nargs="+", default=[2, 5, 10, 20, 40])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--images", type=int, help="normals to train on, all unless given")
    parser.add_argument("--rate", type=float, default=0.05)
    return judge.parsed(parser)


if __name__ == "__main__":
    main()
