"""Realised against promised false-alarm rates: on normals that a detector never saw, over random divisions of them.

For each of several detectors (seeds): all normals that did not train it are divided, again and again, into a part
that calibrates, as many as in training, and a part that tests. Then the threshold as shipped on normals that were
kept out altogether; and the same with few normals, where calibration has to do without a part of its own.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.calibration.thresholds import threshold_at
from models.errors import ModelError, TooFewImages
from models.registry import IMAGES, ROLE_CALIBRATE, ModelVersion
from service.errors import TamisError
from tests.benchmarks.detection import data, judge
from tests.benchmarks.run_file import Run, RunFile, arguments, markdown

RATES = (0.05, 0.01)
Scores = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def main() -> None:
    options = _options()
    runs = RunFile("calibration", options.output, options.resume)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for name in options.data:
            for seed in options.seeds:
                task = data.DATA[name](seed, Path(temporary) / name)
                normals = list(task.development_normals)
                if options.with_test:
                    normals += [sample.path for sample in task.test if sample.label == 0]
                for given in (len(normals) - options.hold_out, *options.few):
                    for rate in options.rates:
                        key = {
                            "data": name, "seed": seed, "given": given, "rate": rate, "normals": len(normals),
                            "profile": options.profile, "divisions": options.divisions, "job": options.job,
                        }  # fmt: skip
                        if runs.has(key):
                            continue
                        print(f"{name}, seed {seed}, {given} normals, rate {rate:g}", file=sys.stderr)
                        with tempfile.TemporaryDirectory(dir=temporary) as folder:
                            runs.add({"key": key, **_run(normals, given, seed, rate, Path(folder), options)})
                        runs.write(summary=summary(runs.runs))
    rows = summary(runs.runs)
    runs.write(summary=rows)
    print(_table(rows))


def _run(normals: Sequence[Path], given: int, seed: int, rate: float, folder: Path, options: argparse.Namespace) -> Run:
    """Train on `given` of `normals` and return the realised rates on those that it did not train on."""
    order = data.in_seeded_order(normals, f"calibration|{seed}")
    try:
        trained, took = judge.train(order[:given], options.profile, seed, rate, folder, judge.overrides(options.job))
        kept_out = judge.scores(trained.version, order[given:])
        calibrating = judge.scores(trained.version, _calibrating_alone(trained.version))
    except (ModelError, TamisError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return {"error": f"{type(error).__name__}: {error}"}
    calibration = trained.version.manifest.calibration
    count = len(calibrating)
    return {
        **took,
        "threshold": calibration.threshold,
        "kept_out": len(kept_out),
        "as_shipped": float((kept_out > calibration.threshold).mean()),
        "calibrating": count,
        "divisions": divisions(np.concatenate([kept_out, calibrating]), count, rate, options.divisions, seed)
        if count
        else None,
    }


def divisions(scores: Scores, calibrating: int, rate: float, times: int, seed: int) -> list[float] | None:
    """Return the realised false-alarm rate of each of `times` random divisions of the normals' `scores`.

    Of each, `calibrating` set the threshold for `rate` and the rest test it. None where so many are too few.
    """
    rng = np.random.default_rng(seed)
    realised = []
    for _ in range(times):
        shuffled = rng.permutation(scores)
        try:
            threshold = threshold_at(shuffled[:calibrating], rate)
        except TooFewImages:
            return None
        realised.append(float((shuffled[calibrating:] > threshold).mean()))
    return realised


def _calibrating_alone(version: ModelVersion) -> list[Path]:
    """Return the images that calibrated and did not train: with cross-conformal calibration there are none."""
    with (version.folder / IMAGES).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [Path(row["path"]) for row in csv.DictReader(file) if row["role"] == ROLE_CALIBRATE]


def summary(runs: Sequence[Run]) -> list[Run]:
    """Return for each data set, number given and rate: mean and spread of the realised rates, and their ratio."""
    groups: dict[str, tuple[Run, list[Run]]] = {}
    for run in runs:
        about = {name: value for name, value in run["key"].items() if name != "seed"}
        groups.setdefault(repr(about), (about, []))[1].append(run)
    rows = []
    for about, members in groups.values():
        done = [run for run in members if "error" not in run]
        divided = [rate for run in done for rate in run["divisions"] or ()]
        rows.append(
            {
                **about,
                "detectors": len(done),
                "failed": [run["error"] for run in members if "error" in run],
                "method": sorted({run["calibration_method"] for run in done}),
                "calibrating": sorted({run["calibrating"] for run in done}),
                "as_shipped": _realised([run["as_shipped"] for run in done], about["rate"]),
                "over_divisions": _realised(divided, about["rate"]),
            }
        )
    return rows


def _realised(rates: Sequence[float], promised: float) -> Run | None:
    if not rates:
        return None
    mean = statistics.fmean(rates)
    return {
        "mean": mean,
        "sd": statistics.stdev(rates) if len(rates) > 1 else None,
        "ratio": mean / promised,
        "least": min(rates),
        "most": max(rates),
        "of": len(rates),
    }


def _table(rows: Sequence[Run]) -> str:
    def shown(one: Run | None) -> str:
        if one is None:
            return "–"
        sd = "" if one["sd"] is None else f" ± {one['sd']:.4f}"
        return f"{one['mean']:.4f}{sd}, ratio {one['ratio']:.2f} (of {one['of']})"

    headings = ["data", "normals given", "method", "calibrating", "promised", "over divisions", "as shipped", "failed"]
    return markdown(
        headings,
        [
            [
                row["data"],
                str(row["given"]),
                ", ".join(row["method"]),
                ", ".join(map(str, row["calibrating"])),
                f"{row['rate']:g}",
                shown(row["over_divisions"]),
                shown(row["as_shipped"]),
                str(len(row["failed"])),
            ]
            for row in rows
        ],
    )


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", nargs="+", choices=sorted(data.DATA), default=["macaroni1", "solar"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="a detector for each")
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--divisions", type=int, default=20, help="random divisions for each detector (default: 20)")
    parser.add_argument("--hold-out", type=int, default=400, help="normals kept out of training (default: 400)")
    parser.add_argument("--few", type=int, nargs="*", default=[20, 46], help="small numbers of normals to train on")
    parser.add_argument("--with-test", action="store_true", help="the test split's normals are among the normals")
    return judge.parsed(parser)


if __name__ == "__main__":
    main()
