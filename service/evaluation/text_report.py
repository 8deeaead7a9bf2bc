"""How `tamis evaluate` shows what it found: lines and tables on a terminal, one JSON document, a CSV of scores."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from models.calibration.thresholds import p_values
from models.data.datasets import Dataset
from models.evaluation import evaluate as evaluation
from models.evaluation.bootstrap import Interval, as_document
from models.evaluation.evaluate import Metrics
from service.errors import UsageError
from service.evaluation.outcome import Evaluated, EvaluatedVersion, LearningPoint, VersionComparison, verdict
from service.imaging.read import UNKNOWN
from service.names import shown_name
from service.root import ANOMALY, NORMAL

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
CHANGES_PRINTED = 50

Row = dict[str, str]


@contextmanager
def score_file(path: Path | None) -> Iterator[Callable[[Evaluated], None]]:
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

        def write(one: Evaluated) -> None:
            evaluated_version = one.evaluated_version
            images, threshold = evaluated_version.result.scores, evaluated_version.result.threshold
            p = p_values(evaluated_version.version.calibration_scores, [image.score for image in images])
            writer.writerows(
                (
                    one.object,
                    evaluated_version.version.product,
                    evaluated_version.version.version,
                    image.sample.path,
                    image.sample.split,
                    ANOMALY if image.sample.label else NORMAL,
                    image.score,
                    threshold,
                    verdict(image.score, threshold),
                    float(p_value),
                )
                for image, p_value in zip(images, p, strict=True)
            )

        yield write


def mean_metrics(evaluated: Sequence[Evaluated]) -> Metrics | None:
    """Return the mean over several objects; None for one."""
    return evaluation.mean([one.evaluated_version.result.metrics for one in evaluated]) if len(evaluated) > 1 else None


def document(
    folder: Path,
    dataset: Dataset,
    split: str,
    evaluated: Sequence[Evaluated],
    learning: Sequence[LearningPoint],
    report: Path | None,
) -> dict[str, Any]:
    """Return what `--json` prints."""
    mean = mean_metrics(evaluated)
    return {
        "folder": shown_name(str(folder)),
        "layout": dataset.layout,
        "split": split,
        "objects": [
            {
                "object": shown_name(one.object),
                **_version_document(one.evaluated_version),
                "intervals": as_document(one.evaluated_version.intervals),
                "sweep": [asdict(point) for point in one.evaluated_version.sweep],
                "comparison": _comparison_document(one.comparison) if one.comparison else None,
            }
            for one in evaluated
        ],
        "mean": asdict(mean) if mean is not None else None,
        "learning_curve": [_point_document(point) for point in learning] or None,
        "report": None if report is None else shown_name(str(report)),
    }


def show(evaluated: Sequence[Evaluated], learning: Sequence[LearningPoint], report: Path | None) -> None:
    """Print what was found: one object in lines, several in a table with their mean."""
    mean = mean_metrics(evaluated)
    if mean is None:
        evaluated_version = evaluated[0].evaluated_version
        lines = (
            _facts(evaluated[0])
            | _metric_cells(evaluated_version.result.metrics, evaluated_version.intervals)
            | _costs(evaluated_version)
        )
        for name, value in lines.items():
            typer.echo(f"{name:<18} {value}")
    else:
        rows = [
            {"object": shown_name(one.object), "version": one.evaluated_version.name}
            | _metric_cells(one.evaluated_version.result.metrics)
            | _costs(one.evaluated_version)
            for one in evaluated
        ]
        empty = dict.fromkeys(_costs(evaluated[0].evaluated_version), "")
        rows.append({"object": "mean", "version": ""} | _metric_cells(mean) | empty)
        _print_wide(rows)
    for one in evaluated:
        if one.comparison is not None:
            _show_comparison(one, one.comparison)
    if learning:
        typer.echo("")
        _print_wide([_learning_row(point) for point in learning])
    for one in evaluated:
        for evaluated_version in [one.evaluated_version] + ([one.comparison.other] if one.comparison else []):
            for failure in evaluated_version.result.failures:
                typer.echo(f"left out: {_printable(failure.path)}: {shown_name(failure.error)}", err=True)
    if report is not None:
        typer.echo(f"report: {_printable(report)}", err=True)


def _version_document(one: EvaluatedVersion) -> dict[str, Any]:
    result, counts = one.result, one.counts
    wh = one.energy.total_wh if one.energy else None
    grams = one.energy.emissions_g if one.energy else None
    return {
        "product": one.version.product,
        "version": one.version.version,
        "images": result.images,
        "normals": result.normals,
        "anomalies": result.anomalies,
        "masked": result.masked,
        "regions": result.regions,
        "threshold_policy": one.policy.name,
        "calibrated_false_alarm_rate": one.rate,
        "threshold": result.threshold,
        "counts": asdict(counts),
        "metrics": asdict(result.metrics),
        "images_per_second": result.images_per_second,
        "scoring_seconds": result.scoring_seconds,
        "seconds": result.seconds,
        "total_wh": wh,
        "emissions_g": grams,
        "wh_per_1000_images": one.per_1000_images(wh),
        "g_per_1000_images": one.per_1000_images(grams),
        "energy_source": one.energy.source if one.energy else None,
        "failures": [
            {"path": shown_name(str(failure.path)), "error": shown_name(failure.error)} for failure in result.failures
        ],
    }


def _comparison_document(comparison: VersionComparison) -> dict[str, Any]:
    return {
        **_version_document(comparison.other),
        "images_of_both": comparison.images,
        "differences": dict(comparison.differences),
        "difference_intervals": as_document(comparison.intervals),
        "changes": [
            {
                "path": shown_name(str(change.path)),
                "label": change.label,
                "scores": list(change.scores),
                "verdicts": list(change.verdicts),
            }
            for change in comparison.changes
        ],
    }


def _facts(one: Evaluated) -> Row:
    evaluated_version = one.evaluated_version
    result = evaluated_version.result
    return {
        "object": shown_name(one.object),
        "model": f"product {evaluated_version.version.product}, version {evaluated_version.version.version}",
        "images": f"{result.normals} normal, {result.anomalies} anomalies ({result.masked} with a mask), "
        f"{len(result.failures)} left out",
        "threshold": f"{result.threshold:.6g} {evaluated_version.promise}",
    }


def _metric_cells(values: Metrics, intervals: Mapping[str, Interval | None] | None = None) -> Row:
    known = asdict(values)
    cells = {heading: _cell(known[name], ".4f") for name, heading in SHOWN.items()}
    for name, heading in SHOWN.items():
        if intervals is not None and (interval := intervals.get(name)) is not None:
            cells[heading] += f"   {interval.low:.3f} to {interval.high:.3f} (95 %)"
    return cells


def _costs(one: EvaluatedVersion) -> Row:
    return {
        "images/s": _cell(one.result.images_per_second, ".1f"),
        "Wh": _cell(one.energy.total_wh if one.energy else None, ".4g"),
        "g CO2e": _cell(one.energy.emissions_g if one.energy else None, ".4g"),
    }


def _show_comparison(one: Evaluated, comparison: VersionComparison) -> None:
    first, second = (asdict(metrics) for metrics in comparison.metrics)
    typer.echo("")
    typer.echo(f"{shown_name(one.object)}: {comparison.images} images scored by both versions")
    this, other = one.evaluated_version.version.version, comparison.other.version.version
    rows = []
    for name, heading in SHOWN.items():
        interval = comparison.intervals.get(name)
        rows.append(
            {
                "metric": heading,
                this: _cell(first[name], ".4f"),
                other: _cell(second[name], ".4f"),
                "difference": _cell(comparison.differences[name], "+z.4f"),
                "95 % interval": UNKNOWN if interval is None else f"{interval.low:+z.3f} to {interval.high:+z.3f}",
            }
        )
    costs = _costs(one.evaluated_version), _costs(comparison.other)
    rows += [
        {"metric": name, this: costs[0][name], other: costs[1][name], "difference": "", "95 % interval": ""}
        for name in costs[0]
    ]
    _print_wide(rows)
    typer.echo("")
    if not comparison.changes:
        typer.echo("no verdict changes")
        return
    _print_wide(
        [
            {
                "label": change.label,
                f"verdict of {this}": change.verdicts[0],
                "score": f"{change.scores[0]:.6g}",
                f"verdict of {other}": change.verdicts[1],
                "its score": f"{change.scores[1]:.6g}",
                "image": _printable(change.path),
            }
            for change in comparison.changes[:CHANGES_PRINTED]
        ]
    )
    if (more := len(comparison.changes) - CHANGES_PRINTED) > 0:
        typer.echo(f"and {more} more; --json lists all")


def _point_document(point: LearningPoint) -> dict[str, Any]:
    known = asdict(point)
    return {"pictures": known.pop("images"), **known}


def _learning_row(point: LearningPoint) -> Row:
    metrics = asdict(point.metrics) if point.metrics else {}
    return {
        "training images": str(point.images),
        "image AUROC": _cell(metrics.get("image_auroc"), ".4f"),
        "F1": _cell(metrics.get("f1"), ".4f"),
        "false alarms": _cell(metrics.get("false_alarm_rate"), ".4f"),
        "s": _cell(point.seconds, ".0f"),
        "Wh": _cell(point.training_wh, ".3g"),
        "": shown_name(point.error) if point.error else "",
    }


def _print_wide(rows: Sequence[Row]) -> None:
    # Folded to a terminal's width the rows of fifteen columns could not be compared.
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        typer.echo("  ".join(f"{row[name]:<{width}}" for name, width in widths.items()).rstrip())


def _cell(value: float | None, format: str) -> str:
    return UNKNOWN if value is None else f"{value:{format}}"


def _printable(path: Path) -> str:
    # Names come from outside: control characters must not reach the terminal.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown_name(str(path)))
