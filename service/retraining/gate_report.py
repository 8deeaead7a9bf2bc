"""The report on a retraining: one HTML file with what the gate found, and all that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from models.registry import ModelVersion
from service import __version__
from service.evaluation.outcome import UNKNOWN
from service.evaluation.report import GENERATOR
from service.names import printable
from service.retraining.gate import ANOMALIES_MIN, COST_MARGIN, TITLES, Figure, GateResult
from service.root import REPORTS
from service.storage.retrainings import RetrainingRow

NO_PLOTS = "There are no plots here: they need the library matplotlib; pip install 'tamis[report]' brings it."
_OUTCOMES = {
    "promoted": "promoted: it is the champion now",
    "challenger": "waits as challenger",
    "rejected": "rejected",
}


def write_page(root: Path, product: str, version: str, html: str) -> str:
    """Write the page, whole or not at all; return its path relative to the root."""
    relative = f"{REPORTS}/{product}/{version}.html"
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".tmp.{path.name}")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return relative


def render(
    result: GateResult,
    done: RetrainingRow,
    *,
    champion: ModelVersion,
    challenger: ModelVersion,
    learned: Mapping[str, Any],
    made_at: datetime,
) -> str:
    """Return the page on the finished run `done` as HTML; `learned` are facts to show, by name, None is unknown."""
    return Template(resources.files("service.retraining").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        generator=f"{GENERATOR} {__version__}",
        style=resources.files("service.evaluation").joinpath("page.css").read_text(encoding="utf-8"),
        product=_text(challenger.product),
        champion=_text(champion.version),
        challenger=_text(challenger.version),
        outcome=_text(_OUTCOMES.get(done.outcome or "", done.outcome or "")),
        reason=_text(done.reason or ""),
        made_at=f"{made_at:%Y-%m-%d %H:%M}",
        images=_text(_images(result)),
        figures=_figures(result.figures),
        cost_margin=f"{COST_MARGIN:.0%}",
        plots=_plots(result),
        learned=_facts(learned),
        champion_facts=_facts(_about(champion)),
        challenger_facts=_facts(_about(challenger)),
    )


def _images(result: GateResult) -> str:
    if result.champion is None:
        return "There were too few images to compare on, so a person has to decide."
    normals = (
        f"{result.normals} golden normals"
        if result.normals_from == "golden"
        else f"{result.normals} normals that calibrated the champion, as too few are golden: they set the "
        "threshold, so that they say nothing of false alarms"
    )
    anomalies = (
        f"{result.anomalies} golden anomalies"
        if result.anomalies_from == "golden"
        else f"{result.anomalies} of them again with defects drawn on them. Fewer than {ANOMALIES_MIN} anomalies "
        "are known, and drawn defects stand in: they tell whether it still finds defects, not how many of yours"
    )
    return f"Compared on {normals}, and {anomalies}. Neither version was trained on any of them."


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    rows = []
    for figure in figures:
        shade = {"better": " class='good'", "worse": " class='bad'"}.get(figure.verdict, "")
        rows.append(
            f"<tr><th>{_text(TITLES[figure.name])}</th><td class='n'>{_number(figure.champion)}</td>"
            f"<td class='n'>{_number(figure.challenger)}</td><td class='n'>{_number(figure.difference, '+.4f')}</td>"
            f"<td class='n'>{_interval(figure)}</td><td class='n'>{_number(figure.margin)}</td>"
            f"<td{shade}>{_text(figure.verdict)}</td></tr>"
        )
    heads = ("figure", "champion", "challenger", "difference", "95 % interval", "margin", "finding")
    head = "".join(f"<th{' class=n' if 0 < place < 6 else ''}>{name}</th>" for place, name in enumerate(heads))
    return f"<div class='card wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _plots(result: GateResult) -> str:
    if result.champion is None or result.challenger is None:
        return "<p>None were compared.</p>"
    if find_spec("matplotlib") is None:
        return f"<p>{_text(NO_PLOTS)}</p>"
    from models.evaluation.curves import roc
    from service.evaluation.plots import Plots

    plots = Plots()
    sides = {"champion": result.champion, "challenger": result.challenger}
    drawn = {
        f"Scores of the {name}": plots.histogram(side.normal_scores, side.anomaly_scores, side.threshold)
        for name, side in sides.items()
    }
    curves = [(name, curve) for name, side in sides.items() if (curve := roc(side.scores, side.labels)) is not None]
    if curves:
        drawn["ROC curve"] = plots.roc(curves)
    cards = "".join(
        f"<figure class='card'><figcaption>{_text(title)}</figcaption>{svg}</figure>" for title, svg in drawn.items()
    )
    return f"<div class='plots'>{cards}</div>"


def _about(version: ModelVersion) -> dict[str, Any]:
    manifest = version.manifest
    training, calibration = manifest.training, manifest.calibration
    height, width = version.input_size
    return {
        "version": version.version,
        "kind": version.kind,
        "profile": manifest.profile,
        "input size": f"{width} × {height} px",
        "training images": training.images,
        "left out as rebuilt worst": None if training.trimmed is None else len(training.trimmed),
        "began with": training.warm_start or "nothing",
        "steps": training.steps,
        "calibration images": len(calibration.scores),
        "threshold as trained": f"{calibration.threshold:.6g}",
        "false-alarm rate trained for": f"{version.trained_false_alarm_rate:g}",
    }


def _facts(values: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{UNKNOWN if value is None else _text(str(value))}</dd></div>"
        for name, value in values.items()
    )
    return f"<dl class='facts'>{lines}</dl>"


def _number(value: float | None, form: str = ".4f") -> str:
    return UNKNOWN if value is None else format(value, form)


def _interval(figure: Figure) -> str:
    return UNKNOWN if figure.interval is None else f"{figure.interval.low:+.3f} to {figure.interval.high:+.3f}"


def _text(value: str) -> str:
    """Return text from outside as HTML, with what cannot be shown replaced."""
    return escape(printable(str(value)))
