"""How good a detector is by how many normals it is trained on: 20, 60, 300, and as many as the data set has.

Images are chosen by the seed from the training split, the smaller numbers out of the larger; judged on the test
split, or with `--dev` on normals held out of training against suspects. 3,000 need the drawn parts (`--data parts`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.data.datasets import Sample
from models.errors import ModelError
from service.errors import TamisError
from tests.benchmarks.detection import data, judge
from tests.benchmarks.run_file import Run, RunFile, arguments, cell, markdown, spread

METRICS = {
    "image_auroc": 4,
    "best_f1": 3,
    "f1": 3,
    "recall": 3,
    "false_alarm_rate": 3,
    "aupro": 3,
    "training_s": 0,
    "training_wh": 2,
    "training_peak_mb": 0,
}


def main() -> None:
    options = _options()
    runs = RunFile("learning_curve", options.output, options.resume)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for name in options.data:
            for seed in options.seeds:
                task = data.DATA[name](seed, Path(temporary) / name)
                normals, samples = _images(task, seed, options.dev)
                for images in sizes(options.images, len(normals)):
                    key = {
                        "data": name, "profile": options.profile, "images": images, "seed": seed,
                        "rate": options.rate, "dev": options.dev, "job": options.job,
                    }  # fmt: skip
                    if runs.has(key):
                        continue
                    print(f"{name}, {options.profile}, {images} normals, seed {seed}", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=temporary) as folder:
                        runs.add({"key": key, **_run(normals[:images], samples, seed, Path(folder), options)})
                    runs.write(summary=_summary(runs.runs))
    summary = _summary(runs.runs)
    runs.write(summary=summary)
    print(_table(summary))


def sizes(asked: Sequence[int], found: int) -> list[int]:
    """Return those of `asked` that `found` images allow, and `found` itself in place of those above it."""
    return sorted({min(images, found) for images in asked})


def _images(task: data.Task, seed: int, dev: bool) -> tuple[list[Path], Sequence[Sample]]:
    if not dev:
        return data.in_seeded_order(task.train, f"curve|{seed}"), task.test
    development = data.development(task, seed)
    if not development.suspects:
        sys.exit("--dev: expected a data set with suspects; solar has some")
    normals = [data.sample(path, 0, "development") for path in development.normals]
    suspects = [data.sample(path, 1, "development") for path in development.suspects]
    return data.in_seeded_order(development.train, f"curve|{seed}"), [*normals, *suspects]


def _run(
    normals: Sequence[Path], samples: Sequence[Sample], seed: int, folder: Path, options: argparse.Namespace
) -> Run:
    try:
        trained, took = judge.train(normals, options.profile, seed, options.rate, folder, judge.overrides(options.job))
        return {**took, **judge.quality(trained.version, samples)}
    except (ModelError, TamisError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}


def _summary(runs: Sequence[Run]) -> list[Run]:
    groups: dict[str, tuple[Run, list[Run]]] = {}
    for run in runs:
        about = {name: value for name, value in run["key"].items() if name != "seed"}
        groups.setdefault(repr(about), (about, []))[1].append(run)
    rows = []
    for about, members in groups.values():
        done = [run for run in members if "error" not in run]
        errors = [run["error"] for run in members if "error" in run]
        figures = {metric: spread([run[metric] for run in done]) for metric in METRICS}
        rows.append({**about, "errors": errors, **figures})
    return rows


def _table(rows: Sequence[Run]) -> str:
    headings = ["data", "profile", "normals", *METRICS]
    return markdown(
        headings,
        [
            [
                row["data"],
                row["profile"],
                str(row["images"]),
                *(cell(row[name], places) for name, places in METRICS.items()),
            ]
            for row in rows
        ],
    )


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", nargs="+", choices=sorted(data.DATA), default=["macaroni1"])
    parser.add_argument("--images", type=int, nargs="+", default=[20, 60, 300, 3000])
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--dev", action="store_true", help="judge on development images, not on the test split")
    return judge.parsed(parser)


if __name__ == "__main__":
    main()
