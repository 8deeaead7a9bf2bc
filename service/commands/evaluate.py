"""`tamis evaluate`: how good a model is on labelled pictures, how fast, and what that cost in energy.

Changes nothing but one row of energy for each object evaluated.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Engine

from models import evaluate as evaluation
from models.calibrate import p_values, threshold_at
from models.datasets import Dataset, Sample, read_dataset
from models.errors import DatasetError
from models.evaluate import Evaluation, Metrics
from models.registry import ModelVersion
from service import settings as settings_module
from service.champions import has_champion, load_version
from service.commands.options import AsJson, Root, print_json
from service.commands.score import UNKNOWN, UNREADABLE, check_rate, picture_reader, rate_of, upright_size
from service.decide import ANOMALY, NORMAL
from service.energy import EnergyMeter
from service.errors import TamisError, UsageError
from service.names import shown_name
from service.settings import DEFAULT_PRODUCT, Settings
from service.storage import energy
from service.storage.energy import EnergySample
from service.storage.engine import open_database

SHOWN = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "accuracy": "accuracy",
    "false_alarm_rate": "false alarms",
    "image_auroc": "image AUROC",
    "average_precision": "average precision",
    "best_f1": "best F1",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
SCORE_COLUMNS = ("object", "product", "version", "path", "split", "label", "score", "threshold", "verdict", "p_value")


class LayoutName(StrEnum):
    """How the folder keeps pictures and labels."""

    auto = "auto"
    visa = "visa"
    mvtec = "mvtec"
    folders = "folders"


class SplitName(StrEnum):
    """Which part of the data."""

    test = "test"
    train = "train"


@dataclass(frozen=True)
class _Evaluated:
    object: str
    rate: float
    version: ModelVersion
    result: Evaluation
    energy: EnergySample | None


def evaluate(
    root: Root,
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="VisA, MVTec AD, or normal/ and anomaly/."),
    ],
    product: Annotated[
        str, typer.Option(help="Whose champion is evaluated; of several objects, those with a champion use their own.")
    ] = DEFAULT_PRODUCT,
    version: Annotated[str | None, typer.Option(help="Another version of that product, for all objects.")] = None,
    object_name: Annotated[str | None, typer.Option("--object", metavar="NAME", help="Only this object.")] = None,
    layout: Annotated[LayoutName, typer.Option(help="How the folder is laid out.")] = LayoutName.auto,
    split: Annotated[SplitName, typer.Option(help="Which pictures.")] = SplitName.test,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Sets the threshold, instead of the setting of that name.")
    ] = None,
    as_json: AsJson = False,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", dir_okay=False, help="Write the score of each picture.")
    ] = None,
) -> None:
    """Evaluate a model on labelled pictures: metrics, pictures per second, energy."""
    settings = settings_module.load(root)
    check_rate(false_alarm_rate)
    dataset = read_dataset(folder, object_name, layout.value)
    work = {name: _samples(dataset, folder, split, name) for name in dataset.objects}
    engine = open_database(root)
    meter = EnergyMeter(
        tracking=settings.energy_tracking, country=settings.energy_country, cpu_max_w=settings.energy_cpu_max_w
    )
    evaluated = []
    try:
        with _score_file(scores) as write_scores:
            for name, samples in work.items():
                owner = name if len(work) > 1 and version is None and has_champion(engine, name) else product
                model, _ = load_version(root, engine, owner, version)
                rate = rate_of(settings, owner, false_alarm_rate, model)
                result = _evaluate(model, samples, rate, settings, name)
                sample = meter.take("evaluation", images=result.images)
                _record(engine, sample)
                evaluated.append(_Evaluated(name, rate, model, result, sample))
                write_scores(evaluated[-1])
    finally:
        meter.close()
        engine.dispose()
    if as_json:
        print_json(_document(folder, dataset, split, evaluated))
    else:
        _print(evaluated)


def _samples(dataset: Dataset, folder: Path, split: SplitName, object: str) -> list[Sample]:
    samples = dataset.select(split.value, object)
    if not samples:
        raise DatasetError(f"{folder}: expected pictures of object {object!r} in the split {split.value}; found none")
    return samples


def _evaluate(model: ModelVersion, samples: Sequence[Sample], rate: float, settings: Settings, name: str) -> Evaluation:
    from models.openvino_detector import OpenVinoDetector

    with _progress(name) as report:
        result = evaluation.evaluate(
            OpenVinoDetector(model, settings.scoring_threads),
            samples,
            threshold_at(model.calibration_scores, rate),
            picture_reader(settings),
            upright_size,
            unreadable=UNREADABLE,
            decode_threads=settings.decode_threads,
            report=report,
        )
    if not result.images:
        first = result.failures[0]
        raise TamisError(
            f"object {name}: expected pictures; none of {len(samples)} could be scored, "
            f"the first being {shown_name(str(first.path))}: {shown_name(first.error)}"
        )
    return result


def _record(engine: Engine, sample: EnergySample | None) -> None:
    if sample is not None:
        with engine.begin() as connection:
            energy.add(connection, sample)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows progress on stderr: a bar on a terminal, a line each tenth elsewhere."""
    if not sys.stderr.isatty():
        told = 0

        def line(done: int, total: int) -> None:
            nonlocal told
            if done * 10 // total > told:
                told = done * 10 // total
                typer.echo(f"{shown_name(name)}: {done} of {total} pictures", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(shown_name(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _score_file(path: Path | None) -> Iterator[Callable[[_Evaluated], None]]:
    """Give a function that writes an object's scores; the file is opened first, so that a long run is not lost."""
    if path is None:
        yield lambda evaluated: None
        return
    try:
        file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"--scores {path}: expected a file that can be written; found {error.strerror}") from None
    with file:
        writer = csv.writer(file)
        writer.writerow(SCORE_COLUMNS)

        def write(one: _Evaluated) -> None:
            pictures = one.result.scores
            p = p_values(one.version.calibration_scores, [picture.score for picture in pictures])
            writer.writerows(
                (
                    one.object,
                    one.version.product,
                    one.version.version,
                    picture.sample.path,
                    picture.sample.split,
                    ANOMALY if picture.sample.label else NORMAL,
                    picture.score,
                    one.result.threshold,
                    ANOMALY if picture.score > one.result.threshold else NORMAL,
                    float(p_value),
                )
                for picture, p_value in zip(pictures, p, strict=True)
            )

        yield write


def _document(folder: Path, dataset: Dataset, split: SplitName, evaluated: Sequence[_Evaluated]) -> dict[str, Any]:
    mean = evaluation.mean([one.result.metrics for one in evaluated]) if len(evaluated) > 1 else None
    return {
        "folder": shown_name(str(folder)),
        "layout": dataset.layout,
        "split": split.value,
        "objects": [_object_document(one) for one in evaluated],
        "mean": asdict(mean) if mean is not None else None,
    }


def _object_document(one: _Evaluated) -> dict[str, Any]:
    result = one.result
    return {
        "object": shown_name(one.object),
        "product": one.version.product,
        "version": one.version.version,
        "images": result.images,
        "normals": result.normals,
        "anomalies": result.anomalies,
        "masked": result.masked,
        "regions": result.regions,
        "calibrated_false_alarm_rate": one.rate,
        "threshold": result.threshold,
        "metrics": asdict(result.metrics),
        "images_per_second": result.images_per_second,
        "scoring_seconds": result.scoring_seconds,
        "seconds": result.seconds,
        "total_wh": one.energy.total_wh if one.energy else None,
        "emissions_g": one.energy.emissions_g if one.energy else None,
        "energy_source": one.energy.source if one.energy else None,
        "failures": [
            {"path": shown_name(str(failure.path)), "error": shown_name(failure.error)} for failure in result.failures
        ],
    }


def _print(evaluated: Sequence[_Evaluated]) -> None:
    if len(evaluated) == 1:
        one = evaluated[0]
        for name, value in (_facts(one) | _metric_cells(one.result.metrics) | _costs(one)).items():
            typer.echo(f"{name:<18} {value}")
    else:
        mean = evaluation.mean([one.result.metrics for one in evaluated])
        rows = [
            {"object": shown_name(one.object), "version": f"{one.version.product}/{one.version.version}"}
            | _metric_cells(one.result.metrics)
            | _costs(one)
            for one in evaluated
        ]
        rows.append({"object": "mean", "version": ""} | _metric_cells(mean) | dict.fromkeys(_costs(evaluated[0]), ""))
        _print_wide(rows)
    for one in evaluated:
        for failure in one.result.failures:
            typer.echo(f"left out: {shown_name(str(failure.path))}: {shown_name(failure.error)}", err=True)


def _facts(one: _Evaluated) -> dict[str, str]:
    result = one.result
    return {
        "object": shown_name(one.object),
        "model": f"product {one.version.product}, version {one.version.version}",
        "pictures": f"{result.normals} normal, {result.anomalies} anomalies ({result.masked} with a mask), "
        f"{len(result.failures)} left out",
        "threshold": f"{result.threshold:.6g} at a false-alarm rate of {one.rate:g}",
    }


def _metric_cells(values: Metrics) -> dict[str, str]:
    known = {field.name: getattr(values, field.name) for field in fields(Metrics)}
    return {heading: _cell(known[name], ".4f") for name, heading in SHOWN.items()}


def _costs(one: _Evaluated) -> dict[str, str]:
    return {
        "images/s": _cell(one.result.images_per_second, ".1f"),
        "Wh": _cell(one.energy.total_wh if one.energy else None, ".4g"),
        "g CO2e": _cell(one.energy.emissions_g if one.energy else None, ".4g"),
    }


def _print_wide(rows: Sequence[dict[str, str]]) -> None:
    # Folded to a terminal's width the rows of fifteen columns could not be compared.
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        typer.echo("  ".join(f"{row[name]:<{width}}" for name, width in widths.items()).rstrip())


def _cell(value: float | None, format: str) -> str:
    return UNKNOWN if value is None else f"{value:{format}}"
