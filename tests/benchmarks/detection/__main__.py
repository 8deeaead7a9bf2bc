"""How good detectors are, over data sets, profiles and seeds: each is trained as `tamis train` does, then judged.

Saves after every run; `--resume` goes on. The test split is for the final table alone: choices between models are
made with `--dev`, which looks at no test image.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.data.datasets import Sample
from models.errors import ModelError
from service.errors import TamisError
from service.imaging.decode import read_image
from tests.benchmarks.detection import data, judge
from tests.benchmarks.run_file import Run, RunFile, arguments, cell, markdown, spread

PROFILES = ("fast", "balanced", "accurate", judge.PIXEL)
METRICS = {
    "image_auroc": 4,
    "best_f1": 3,
    "f1": 3,
    "precision": 3,
    "recall": 3,
    "false_alarm_rate": 3,
    "accuracy": 3,
    "pixel_auroc": 4,
    "aupro": 3,
    "graph_ms_one_thread": 1,
    "images_per_s": 1,
    "training_s": 0,
    "training_wh": 2,
    "training_peak_mb": 0,
    "wh_per_1000": 3,
}

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Draw = Callable[[Pixels, np.random.Generator], tuple[Pixels, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]]
"""Takes a normal image uint8 `(H, W, 3)` RGB; returns it with a defect drawn in, and where, bool `(H, W)`."""


def main() -> None:
    options = _options()
    runs = RunFile("detection", options.output, options.resume)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for name in options.data:
            for seed in options.seeds:
                task = data.DATA[name](seed, Path(temporary) / name)
                for profile in options.profiles:
                    key = {"data": name, "profile": profile, "seed": seed, **_setting(options)}
                    if runs.has(key):
                        continue
                    print(f"{name}, {profile}, seed {seed}", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=temporary) as folder:
                        runs.add({"key": key, **_run(task, profile, seed, Path(folder), options)})
                    runs.write(summary=_summary(runs.runs))
    summary = _summary(runs.runs)
    runs.write(summary=summary)
    print(table(summary))


def _run(task: data.Task, profile: str, seed: int, folder: Path, options: argparse.Namespace) -> Run:
    """Train and judge; return figures by what the normals were judged `against`, or the error that ended it."""
    development = data.development(task, seed) if options.dev else None
    images = development.train if development else task.train
    try:
        trained, took = judge.train(images, profile, seed, options.rate, folder, judge.overrides(options.job))
        against = _development_sets(development, seed, options.drawn, folder) if development else {"test": task.test}
        judged = {name: judge.quality(trained.version, samples) for name, samples in against.items()}
        costs = judge.cost(trained.version, [sample.path for samples in against.values() for sample in samples])
    except (ModelError, TamisError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}
    return {**took, **costs, "against": judged}


def _development_sets(
    development: data.Development, seed: int, draw: Draw | None, folder: Path
) -> dict[str, Sequence[Sample]]:
    """Return the sets to judge by: normals against suspects where there are any, and against drawn defects."""
    normals = [data.sample(path, 0, "development") for path in development.normals]
    sets: dict[str, Sequence[Sample]] = {}
    if development.suspects:
        sets["suspects"] = [*normals, *(data.sample(path, 1, "development") for path in development.suspects)]
    if draw is not None:
        sets["drawn"] = [*normals, *_drawn(development.normals, seed, draw, folder / "drawn")]
    if not sets:
        sys.exit("--dev: expected suspects in the data (solar has some), or --drawn MODULE:FUNCTION; found neither")
    return sets


def _drawn(normals: Sequence[Path], seed: int, draw: Draw, folder: Path) -> list[Sample]:
    """Return each of `normals` once more with a defect that `draw` put into it, saved in `folder` with its mask."""
    folder.mkdir()
    samples = []
    for number, path in enumerate(normals):
        with Image.open(path) as image:
            size = (image.height, image.width)
        pixels, mask = draw(read_image(path, size), np.random.default_rng((seed, number)))
        target = folder / f"{number:05}.png"
        Image.fromarray(pixels).save(target, compress_level=1)
        Image.fromarray(mask).save(folder / f"{number:05}_mask.png")
        samples.append(data.sample(target, 1, "development", folder / f"{number:05}_mask.png"))
    return samples


def _summary(runs: Sequence[Run]) -> list[Run]:
    """Return for each data set, profile, setting and set judged against the spread of every metric over seeds."""
    groups: dict[str, Run] = {}
    for run in runs:
        for against, quality in run.get("against", {}).items():
            about = {name: value for name, value in run["key"].items() if name != "seed"} | {"against": against}
            group = groups.setdefault(repr(about), {**about, "seeds": [], "values": []})
            group["seeds"].append(run["key"]["seed"])
            group["values"].append({**run, **quality})
    return [
        {
            **{name: value for name, value in group.items() if name != "values"},
            **{metric: spread([values[metric] for values in group["values"]]) for metric in METRICS},
        }
        for group in groups.values()
    ]


def table(summary: Sequence[Run]) -> str:
    """Return a Markdown table for each data set and set judged against: a row for each metric, a column a profile."""
    parts = []
    for name, against in dict.fromkeys((row["data"], row["against"]) for row in summary):
        columns = [row for row in summary if (row["data"], row["against"]) == (name, against)]
        lines = [[metric, *(cell(row[metric], places) for row in columns)] for metric, places in METRICS.items()]
        headings = [f"{name}, {against}", *(" ".join([row["profile"], *row["job"]]) for row in columns)]
        parts.append(markdown(headings, lines))
    return "\n\n".join(parts)


def _setting(options: argparse.Namespace) -> Run:
    drawn = f"{options.drawn.__module__}:{options.drawn.__name__}" if options.drawn else None
    return {"dev": options.dev, "drawn": drawn, "rate": options.rate, "job": options.job}


def _function(name: str) -> Draw:
    module, _, function = name.partition(":")
    try:
        found: Draw = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"expected MODULE:FUNCTION that can be imported; found {name}: {error}"
        ) from None
    return found


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=["fast", "balanced"])
    parser.add_argument("--data", nargs="+", choices=sorted(data.DATA), default=["macaroni1", "aliens", "solar"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=0.05, help="the false-alarm rate (default: 0.05)")
    parser.add_argument("--dev", action="store_true", help="judge on development images, not on the test split")
    parser.add_argument(
        "--drawn", type=_function, metavar="MODULE:FUNCTION", help="with --dev: draws a defect into a held-out normal"
    )
    options = judge.parsed(parser)
    if options.drawn and not options.dev:
        parser.error("--drawn: expected --dev as well; drawn defects are for development")
    return options


if __name__ == "__main__":
    main()
