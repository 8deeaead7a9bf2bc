"""The report: one HTML file, `index.html`, with everything in it; a policy in its head forbids loading anything.

Owns where it is written and what it overwrites.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.evaluation.bootstrap import RESAMPLES, Interval
from models.evaluation.curves import precision_recall, roc
from models.evaluation.evaluate import Metrics
from service import __version__
from service.errors import UsageError
from service.evaluation.outcome import TITLES, UNKNOWN, Evaluated, EvaluatedVersion, LearningPoint
from service.evaluation.plots import Plots, load_matplotlib
from service.evaluation.thumbnails import Thumbnail
from service.names import printable, shown_name

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX = "index.html"
GENERATOR = "Tamis"
CHANGES_SHOWN = 200
_HEAD_BYTES = 4096

FIRST_SHOWN = ("image_auroc", "f1", "recall", "precision", "false_alarm_rate")


@dataclass(frozen=True)
class Section:
    """One object with its worst mistakes drawn, and its learning curve where one was asked for."""

    evaluated: Evaluated
    missed: Sequence[Thumbnail]
    false_alarms: Sequence[Thumbnail]
    learning: Sequence[LearningPoint] = ()


def prepare(folder: Path) -> None:
    """Make `folder` and check, before hours of work, that a report can be written there.

    Raises UsageError where it is a file, cannot be written, or holds an `index.html` that is not a report, and
    where the libraries that draw the page are not installed.
    """
    _require_libraries()
    shown = shown_name(str(folder))
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--report {shown}: expected a folder, or nothing; found a file")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--report {shown}: expected a folder that can be written; found {error.strerror or error}"
        ) from None
    index = folder / INDEX
    if (index.exists() or index.is_symlink()) and not is_report(index):
        raise UsageError(
            f"--report {shown}: expected no {INDEX}, or one of an earlier report; found one that Tamis did not make; "
            f"choose another folder"
        )


def is_report(path: Path) -> bool:
    """Return whether `path` is a page that this module wrote."""
    try:
        with path.open("rb") as file:
            return f'<meta name="generator" content="{GENERATOR} '.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def write(folder: Path, html: str) -> Path:
    """Write the page as `folder/index.html`, whole or not at all; return its path."""
    path, partial = folder / INDEX, folder / f".tmp.{secrets.token_hex(8)}.html"
    try:
        try:
            with partial.open("x", encoding="utf-8") as file:
                file.write(html)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"report {shown_name(str(path))}: cannot be written: {error.strerror or error}") from None
    return path


def render(
    folder: Path, layout: str, split: str, made_at: datetime, sections: Sequence[Section], mean: Metrics | None
) -> str:
    """Return the page of the images in `folder`, with a section for each object, as HTML."""
    plots = Plots()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            folder=str(folder),
            layout=layout,
            split=split,
            made_at=made_at,
            generator=f"{GENERATOR} {__version__}",
            sections=[_section_values(section, plots, number) for number, section in enumerate(sections, start=1)],
            mean=asdict(mean) if mean is not None else None,
            names=TITLES,
            first_shown=FIRST_SHOWN,
            changes_shown=CHANGES_SHOWN,
            resamples=f"{RESAMPLES:,}",
        )
    )


def _section_values(section: Section, plots: Plots, number: int) -> dict[str, Any]:
    from markupsafe import Markup

    evaluated, evaluated_version = section.evaluated, section.evaluated.evaluated_version
    scores, labels, rates = evaluated_version.scores, evaluated_version.labels, evaluated_version.sweep
    versions = [evaluated_version] + ([evaluated.comparison.other] if evaluated.comparison else [])
    rocs = [(one.version.version, roc(one.scores, one.labels)) for one in versions]
    recalls = [(one.version.version, precision_recall(one.scores, one.labels)) for one in versions]
    drawn: dict[str, str] = {}
    if known := [(name, curve) for name, curve in rocs if curve is not None]:
        drawn["ROC curve"] = plots.roc(known)
    if known := [(name, curve) for name, curve in recalls if curve is not None]:
        drawn["Precision and recall"] = plots.precision_recall(known, float(labels.mean()))
    drawn["Scores"] = plots.histogram(scores[labels == 0], scores[labels == 1], evaluated_version.result.threshold)
    if rates:
        drawn["False alarms, promised and realised"] = plots.realised_rates(rates, evaluated_version.rate)
        drawn["What other false-alarm rates would give"] = plots.rates(rates, evaluated_version.rate)
    learned: dict[str, str] = {}
    if any(point.metrics is not None for point in section.learning):
        learned["Accuracy"] = plots.learning(section.learning)
        learned["Cost"] = plots.learning_cost(section.learning)
    return {
        "id": f"object-{number}",
        "name": printable(evaluated.object),
        "evaluated_version": evaluated_version,
        "metrics": asdict(evaluated_version.result.metrics),
        "intervals": evaluated_version.intervals,
        "facts": facts_of(evaluated_version),
        "plots": {title: Markup(svg) for title, svg in drawn.items()},
        "learning_plots": {title: Markup(svg) for title, svg in learned.items()},
        "learning": section.learning,
        "mistakes": {"Missed anomalies": section.missed, "False alarms": section.false_alarms},
        "comparison": evaluated.comparison,
        "other_facts": facts_of(evaluated.comparison.other) if evaluated.comparison else None,
        "compared": [asdict(metrics) for metrics in evaluated.comparison.metrics] if evaluated.comparison else None,
    }


def facts_of(evaluated_version: EvaluatedVersion) -> dict[str, Any]:
    """Return what the page says of a version; None is unknown."""
    version, row = evaluated_version.version, evaluated_version.row
    manifest, training, (height, width) = version.manifest, version.manifest.training, version.input_size
    source = f" ({manifest.energy.source})" if manifest.energy and manifest.energy.source else ""
    energy = None if row.training_wh is None else f"{row.training_wh:.3g} Wh{source}"
    return {
        "product": version.product,
        "version": version.version,
        "kind": version.kind,
        "profile": manifest.profile,
        "state": row.state,
        "made": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
        "Tamis version": manifest.tamis_version,
        "input size": f"{width} × {height} px",
        "training images": training.images,
        "training time": None if training.seconds is None else f"{training.seconds:.0f} s",
        "training energy": energy,
        "calibration": f"{len(version.calibration_scores)} held-out images",
        "threshold": f"{evaluated_version.result.threshold:.6g}",
        "threshold set": evaluated_version.promise,
        "trained for a rate of": f"{version.trained_false_alarm_rate:g}",
        "pixel threshold": f"{manifest.calibration.pixel_threshold:.6g}",
    }


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("service.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda value: UNKNOWN if value is None else f"{value:.4f}",
        "signed": lambda value: UNKNOWN if value is None else f"{value:+z.4f}",
        "interval": _interval,
        "quantity": lambda value: UNKNOWN if value is None else f"{value:.4g}",
        "fact": lambda value: UNKNOWN if value is None else printable(str(value)),
        "file": lambda sample: printable("/".join(sample.path.parts[-2:])),
        "path": lambda path: printable(str(path)),
        "printable": printable,
    }
    return environment


def _interval(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return UNKNOWN
    return f"{interval.low:+z.3f} to {interval.high:+z.3f}" if signed else f"{interval.low:.3f} to {interval.high:.3f}"


def _require_libraries() -> None:
    try:
        import jinja2  # noqa: F401

        load_matplotlib()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--report: expected the library {error.name}; found none; install it with pip install 'tamis[report]'"
        ) from None
