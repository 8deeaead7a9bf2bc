"""The output of `tamis evaluate`: lines and tables on a terminal, one JSON document, a CSV of scores."""

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
from service.evaluation.outcome import (
    TITLES,
    UNKNOWN,
    Evaluated,
    EvaluatedVersion,
    LearningPoint,
    VersionComparison,
    verdict,
)
from service.names import printable, shown_name
from service.root import ANOMALY, NORMAL

# What the threshold decides first.
_AT_THRESHOLD = ("precision", "recall", "f1", "accuracy", "false_alarm_rate")
SHOWN = (*_AT_THRESHOLD, *(name for name in TITLES if name not in _AT_THRESHOLD))
SCORE_COLUMNS = ("object", "product", "version", "path", "split", "label", "score", "threshold", "verdict", "p_value")
CHANGES_PRINTED = 50
REMARKS_SHOWN = 5

Row = dict[str, str]


@contextmanager
def score_file(path: Path | None) -> Iterator[Callable[[Evaluated], None]]:
    """Give a function that writes an object's scores; opens the file at once, so that no long run is lost."""
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
            version, result = one.evaluated_version.version, one.evaluated_version.result
            p = p_values(version.calibration_scores, [image.score for image in result.scores])
            writer.writerows(
                (
                    one.object,
                    version.product,
                    version.version,
                    image.sample.path,
                    image.sample.split,
                    ANOMALY if image.sample.label else NORMAL,
                    image.score,
                    result.threshold,
                    verdict(image.score, result.threshold),
                    float(p_value),
                )
                for image, p_value in zip(result.scores, p, strict=True)
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
        only = evaluated[0].evaluated_version
        lines = _facts(evaluated[0]) | _metric_cells(only.result.metrics, only.intervals) | _costs(only)
        for name, value in lines.items():
            typer.echo(f"{name:<18} {value}")
    else:
        rows = [
            {"object": shown_name(one.object), "version": one.evaluated_version.name}
            | _metric_cells(one.evaluated_version.result.metrics)
            | _costs(one.evaluated_version)
            for one in evaluated
        ]
        _print_wide([*rows, dict.fromkeys(rows[0], "") | {"object": "mean"} | _metric_cells(mean)])
    for one in evaluated:
        if one.comparison is not None:
            _show_comparison(one, one.comparison)
    if learning:
        typer.echo("")
        _print_wide([_learning_row(point) for point in learning])
    for one in evaluated:
        for evaluated_version in [one.evaluated_version] + ([one.comparison.other] if one.comparison else []):
            for failure in evaluated_version.result.failures:
                typer.echo(f"left out: {printable(str(failure.path))}: {shown_name(failure.error)}", err=True)
            _show_remarks(evaluated_version.remarks)
    if report is not None:
        typer.echo(f"report: {printable(str(report))}", err=True)


def _show_remarks(remarks: Mapping[Path, str]) -> None:
    for path, remark in sorted(remarks.items())[:REMARKS_SHOWN]:
        typer.echo(f"remark: {printable(str(path))}: {remark}", err=True)
    if len(remarks) > REMARKS_SHOWN:
        typer.echo(f"remark: and {len(remarks) - REMARKS_SHOWN} images more", err=True)


def _version_document(one: EvaluatedVersion) -> dict[str, Any]:
    result, energy = one.result, one.energy
    wh, grams = (energy.total_wh, energy.emissions_g) if energy else (None, None)
    return {
        "product": one.version.product,
        "version": one.version.version,
        **{name: getattr(result, name) for name in ("images", "normals", "anomalies", "masked", "regions")},
        "threshold_policy": one.policy.name,
        "calibrated_false_alarm_rate": one.rate,
        "threshold": result.threshold,
        "counts": asdict(one.counts),
        "metrics": asdict(result.metrics),
        **{name: getattr(result, name) for name in ("images_per_second", "scoring_seconds", "seconds")},
        "total_wh": wh,
        "emissions_g": grams,
        "wh_per_1000_images": one.per_1000_images(wh),
        "g_per_1000_images": one.per_1000_images(grams),
        "energy_source": energy.source if energy else None,
        "failures": [
            {"path": shown_name(str(failure.path)), "error": shown_name(failure.error)} for failure in result.failures
        ],
        "remarks": [{"path": shown_name(str(path)), "remark": said} for path, said in sorted(one.remarks.items())],
    }


def _comparison_document(comparison: VersionComparison) -> dict[str, Any]:
    return {
        **_version_document(comparison.other),
        "images_of_both": comparison.images,
        "differences": dict(comparison.differences),
        "difference_intervals": as_document(comparison.intervals),
        "changes": [asdict(change) | {"path": shown_name(str(change.path))} for change in comparison.changes],
    }


def _facts(one: Evaluated) -> Row:
    version, result = one.evaluated_version.version, one.evaluated_version.result
    return {
        "object": shown_name(one.object),
        "model": f"product {version.product}, version {version.version}",
        "images": f"{result.normals} normal, {result.anomalies} anomalies ({result.masked} with a mask), "
        f"{len(result.failures)} left out",
        "threshold": f"{result.threshold:.6g} {one.evaluated_version.promise}",
    }


def _metric_cells(values: Metrics, intervals: Mapping[str, Interval | None] | None = None) -> Row:
    known, cells = asdict(values), {}
    for name in SHOWN:
        cells[TITLES[name]] = _cell(known[name], ".4f")
        if intervals is not None and (interval := intervals.get(name)) is not None:
            cells[TITLES[name]] += f"   {interval.low:.3f} to {interval.high:.3f} (95 %)"
    return cells


def _costs(one: EvaluatedVersion) -> Row:
    return {
        "images/s": _cell(one.result.images_per_second, ".1f"),
        "Wh": _cell(one.energy.total_wh if one.energy else None, ".4g"),
        "g CO2e": _cell(one.energy.emissions_g if one.energy else None, ".4g"),
    }


def _show_comparison(one: Evaluated, comparison: VersionComparison) -> None:
    typer.echo(f"\n{shown_name(one.object)}: {comparison.images} images scored by both versions")
    versions = one.evaluated_version, comparison.other
    this, other = (each.version.version for each in versions)
    first, second = (asdict(metrics) for metrics in comparison.metrics)
    rows = []
    for name in SHOWN:
        interval = comparison.intervals.get(name)
        rows.append(
            {
                "metric": TITLES[name],
                this: _cell(first[name], ".4f"),
                other: _cell(second[name], ".4f"),
                "difference": _cell(comparison.differences[name], "+z.4f"),
                "95 % interval": UNKNOWN if interval is None else f"{interval.low:+z.3f} to {interval.high:+z.3f}",
            }
        )
    costs = zip(_costs(versions[0]).items(), _costs(versions[1]).values(), strict=True)
    rows += [dict.fromkeys(rows[0], "") | {"metric": name, this: cost, other: its} for (name, cost), its in costs]
    _print_wide(rows)
    typer.echo("")
    _show_changes(comparison, this, other)


def _show_changes(comparison: VersionComparison, this: str, other: str) -> None:
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
                "image": printable(str(change.path)),
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
    # Rows of fifteen columns, folded to a terminal's width, could not be compared.
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        typer.echo("  ".join(f"{row[name]:<{width}}" for name, width in widths.items()).rstrip())


def _cell(value: float | None, format: str) -> str:
    return UNKNOWN if value is None else f"{value:{format}}"
