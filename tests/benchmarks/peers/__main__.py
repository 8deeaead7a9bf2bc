"""anomalib's PaDiM and PatchCore against Tamis `fast`: the same Lite0 weights, 256 px, the same images, one run.

Trains all on the same macaroni1 normals, judges them on the official test split, then lets each, in turn and in a
process of its own, say of full-size captures whether they are anomalies, from file to verdict.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from models.data.datasets import Sample
from tests.benchmarks import captures
from tests.benchmarks.detection import data, judge
from tests.benchmarks.peers import environment
from tests.benchmarks.run_file import Run, RunFile, arguments, markdown

TAMIS = "tamis"
# anomalib's own defaults: PaDiM takes layer1 to layer3 of a ResNet, PatchCore layer2 and layer3.
STRIDES = {"padim": [4, 8, 16], "patchcore": [8, 16]}
RATE = 0.05
WARM_UP = 3


def main() -> None:
    options = _options()
    python = environment.ensure(options.venv)
    runs = RunFile("peers", options.output, options.resume)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        # Kept with --folder, for its models are what --resume goes on with.
        folder = options.folder.absolute() if options.folder else Path(temporary)
        images = _images(folder, options)
        for contender in (TAMIS, *options.peers):
            key = _key("train", contender, options)
            if not runs.has(key):
                runs.add({"key": key, **_train(contender, python, images, folder / contender, options)})
        for number in range(options.rounds):
            for threads in options.threads:
                for contender in (TAMIS, *options.peers):
                    key = _key("infer", contender, options, threads=threads, round=number)
                    if runs.has(key):
                        continue
                    [trained] = [run for run in runs.runs if run["key"] == _key("train", contender, options)]
                    job = {
                        "do": "infer",
                        "threads": threads,
                        "captures": images.captures,
                        "warm_up": WARM_UP,
                        **trained,
                    }
                    runs.add({"key": key, **environment.call(_command(contender, python), job, folder / "infer")})
        summary = _summary(runs.runs, options)
        runs.write(summary=summary, versions=environment.versions(python))
    print(_table(summary))


class _Images:
    """What trains and what tests, as files; `captures` as paths, `folder` in the layout that anomalib reads."""

    def __init__(self, train: list[Path], test: list[Sample], captures: list[str], folder: Path) -> None:
        self.train, self.test, self.captures, self.folder = train, test, captures, folder


def _images(folder: Path, options: argparse.Namespace) -> _Images:
    task = data.macaroni1(options.seed, folder)
    train = data.chosen(task.train, options.train, options.seed)
    test = list(task.test)
    if options.test:
        test = [sample for label in (0, 1) for sample in [s for s in task.test if s.label == label][: options.test]]
    layout = folder / "images"
    for name, paths in {
        "normal": train,
        "normal_test": [sample.path for sample in test if sample.label == 0],
        "abnormal": [sample.path for sample in test if sample.label == 1],
    }.items():
        (layout / name).mkdir(parents=True, exist_ok=True)
        for path in paths:
            link = layout / name / path.name
            if not link.is_symlink():
                link.symlink_to(path)
    store = folder / "captures"
    store.mkdir(exist_ok=True)
    dropped = []
    for number, content in enumerate(captures.variants(options.captures)):
        path = store / f"{number:05}.jpg"
        path.write_bytes(content)
        dropped.append(str(path))
    return _Images(train, test, dropped, layout)


def _train(contender: str, python: Path, images: _Images, folder: Path, options: argparse.Namespace) -> Run:
    print(f"training {contender}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    if contender == TAMIS:
        overrides = judge.overrides(options.job)
        trained, took = judge.train(images.train, "fast", options.seed, RATE, folder, overrides)
        quality = judge.quality(trained.version, images.test)
        return {
            "version": str(trained.version.folder),
            "image_auroc": quality["image_auroc"],
            "training_s": took["training_s"],
            "training_wh": took["training_wh"],
            "training_peak_mb": took["training_peak_mb"],
            "how": f"profile fast, {took['input_size'][1]} x {took['input_size'][0]} px",
        }
    job: dict[str, Any] = {
        "do": "train",
        "peer": contender,
        "strides": options.patchcore_strides if contender == "patchcore" else STRIDES["padim"],
        "seed": options.seed,
        "threads": max(options.threads),
        "quick_coreset": options.quick_coreset,
        "folder": str(folder),
        "images": str(images.folder),
        "capture": images.captures[0],
        "test": [(str(sample.path), sample.label) for sample in images.test],
    }
    answer = environment.call(_command(contender, python), job, folder)
    training = answer["training"]
    return {
        **answer,
        "training_s": training["seconds"],
        "training_wh": training["wh"],
        "training_peak_mb": training["peak_mb"],
        "how": f"layers of stride {', '.join(map(str, job['strides']))}; export: {answer['export']}",
    }


def _command(contender: str, python: Path) -> list[str]:
    if contender == TAMIS:
        # Called in another folder, so the project is put on the path as a module would be.
        code = (
            f"import sys; sys.path.insert(0, {str(captures.REPOSITORY)!r}); "
            "from tests.benchmarks.peers.tamis_side import main; main()"
        )
        return [sys.executable, "-c", code]
    return [str(python), str(environment.SIDE)]


def _summary(runs: list[Run], options: argparse.Namespace) -> list[Run]:
    rows = []
    for contender in (TAMIS, *options.peers):
        [trained] = [run for run in runs if run["key"] == _key("train", contender, options)]
        for threads in options.threads:
            measured = [
                run
                for number in range(options.rounds)
                for run in runs
                if run["key"] == _key("infer", contender, options, threads=threads, round=number)
            ]
            rows.append(
                {
                    "contender": contender,
                    "threads": threads,
                    "image_auroc": trained["image_auroc"],
                    "images_per_cpu_s": statistics.median(run["images"] / run["cpu_s"] for run in measured),
                    "images_per_s": statistics.median(run["images"] / run["seconds"] for run in measured),
                    "wh_per_1000": statistics.median(1000 * run["wh"] / run["images"] for run in measured),
                    "peak_mb": max(run["peak_mb"] for run in measured),
                    "training_s": trained["training_s"],
                    "training_wh": trained["training_wh"],
                    "training_peak_mb": trained["training_peak_mb"],
                    "how": trained["how"],
                }
            )
    for row in rows:
        [own] = [one for one in rows if one["contender"] == TAMIS and one["threads"] == row["threads"]]
        row["tamis_images_per_cpu_s_ratio"] = own["images_per_cpu_s"] / row["images_per_cpu_s"]
        row["tamis_wh_ratio"] = own["wh_per_1000"] / row["wh_per_1000"]
    return rows


def _table(rows: list[Run]) -> str:
    shown = {
        "threads": "d",
        "image_auroc": ".4f",
        "images_per_cpu_s": ".1f",
        "tamis_images_per_cpu_s_ratio": ".2f",
        "images_per_s": ".1f",
        "wh_per_1000": ".4f",
        "tamis_wh_ratio": ".2f",
        "peak_mb": ".0f",
        "training_s": ".0f",
        "training_wh": ".3f",
        "training_peak_mb": ".0f",
    }
    headings = ["", *(name.replace("_", " ") for name in shown)]
    lines = [
        [row["contender"], *("–" if row[name] is None else f"{row[name]:{how}}" for name, how in shown.items())]
        for row in rows
    ]
    told = {row["contender"]: row["how"] for row in rows}
    return "\n".join([markdown(headings, lines), "", *(f"{name}: {how}" for name, how in told.items())])


def _key(do: str, contender: str, options: argparse.Namespace, **more: int) -> Run:
    """Return what a run is a run of: figures of other choices are not to be mixed with it."""
    key = {"do": do, "contender": contender, "train": options.train, "test": options.test, "seed": options.seed, **more}
    if do == "infer":
        key["captures"] = options.captures
    if contender == TAMIS:
        key["job"] = options.job
    if contender == "patchcore":
        key |= {"strides": options.patchcore_strides, "quick_coreset": options.quick_coreset}
    return key


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    default = Path(tempfile.gettempdir()) / "tamis-peers-venv"
    parser.add_argument("--venv", type=Path, default=default, help=f"the peers' environment (default: {default})")
    parser.add_argument("--peers", nargs="+", choices=sorted(STRIDES), default=sorted(STRIDES))
    parser.add_argument("--train", type=int, default=300, help="normals to train on, by the seed (default: 300)")
    parser.add_argument("--test", type=int, help="test images of each label, for a short run (default: all 100)")
    parser.add_argument("--captures", type=int, default=200, help="images of 1500x1000 to judge (default: 200)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="cores that inference is kept to")
    parser.add_argument("--rounds", type=int, default=3, help="how often each has its turn (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patchcore-strides", type=int, nargs="+", default=STRIDES["patchcore"])
    parser.add_argument(
        "--quick-coreset", action="store_true", help="PatchCore's greedy coreset by matrix-vector products (see docs)"
    )
    parser.add_argument("--job", action="append", default=[], metavar="NAME=VALUE", help="a field of Tamis's training")
    options = parser.parse_args()
    try:
        judge.overrides(options.job)
    except ValueError as error:
        parser.error(str(error))
    if options.resume and not options.folder:
        parser.error("--resume: expected --folder as well; the trained models lie there")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
