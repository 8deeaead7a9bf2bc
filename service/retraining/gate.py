"""The gate: whether a challenger is good enough to take the champion's place, from what both made of the same images.

Pure. Owns the figures, the margins and the decision. `service.retraining.gate_scoring` scores the images,
`service.retraining.retrain` acts on the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from models.evaluation.bootstrap import Interval, ScoredVersion, difference_intervals, wilson
from models.evaluation.metrics import Float64Array, at_threshold, image_auroc

NORMALS_MIN = 10
ANOMALIES_MIN = 5
"""Known anomalies below which drawn defects stand in for them."""
COST_MARGIN = 0.25
"""Share by which time or energy of an image may grow: a quarter, as both vary that much from run to run."""

NormalsFrom = Literal["golden", "calibration"]
AnomaliesFrom = Literal["golden", "drawn"]
Decision = Literal["better", "not better", "worse", "not judged"]

TITLES = {
    "image_auroc": "image AUROC",
    "recall": "recall",
    "false_alarm_rate": "false-alarm rate",
    "cpu_ms_per_image": "processor time per image",
    "wh_per_1000_images": "energy of 1,000 images",
}


@dataclass(frozen=True)
class Side:
    """What one version makes of the images: scores of normals `(n,)` and anomalies `(m,)`, and what that took.

    `promised_rate` is the false-alarm rate that its threshold was set for; None where another policy sets it.
    """

    version: str
    normal_scores: Float64Array
    anomaly_scores: Float64Array
    threshold: float
    promised_rate: float | None
    cpu_ms_per_image: float | None = None
    wh_per_1000_images: float | None = None


@dataclass(frozen=True)
class Figure:
    """One figure of both; `difference` is the challenger's less the champion's, `interval` its 95 % interval.

    `margin` is how much worse still counts as not worse; `verdict` is better, worse, even, or not judged.
    """

    name: str
    champion: float | None
    challenger: float | None
    difference: float | None
    interval: Interval | None
    margin: float | None
    verdict: Literal["better", "worse", "even", "not judged"]


@dataclass(frozen=True)
class GateResult:
    """The gate's finding, and what it rests on."""

    decision: Decision
    reason: str
    figures: tuple[Figure, ...]
    normals: int
    anomalies: int
    normals_from: NormalsFrom
    anomalies_from: AnomaliesFrom
    champion: Side | None = None
    challenger: Side | None = None

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it, without the scores."""
        return {
            "decision": self.decision,
            "reason": self.reason,
            "normals": self.normals,
            "normals_from": self.normals_from,
            "anomalies": self.anomalies,
            "anomalies_from": self.anomalies_from,
            "champion": _about(self.champion),
            "challenger": _about(self.challenger),
            "figures": [
                {**asdict(figure), "interval": _pair(figure.interval), "title": TITLES[figure.name]}
                for figure in self.figures
            ],
        }


def not_judged(reason: str) -> GateResult:
    """Return the finding where there is nothing to judge by."""
    return GateResult("not judged", reason, (), 0, 0, "golden", "golden")


def compare(
    champion: Side,
    challenger: Side,
    *,
    margin: float,
    normals_from: NormalsFrom,
    anomalies_from: AnomaliesFrom,
    drifting: bool = False,
) -> GateResult:
    """Return whether `challenger` is better than `champion`: in no figure worse, and in one better than by chance.

    The scores of both are of the same images in the same order. A figure is worse if it is so by more than `margin`,
    and by more than one image; it is better if the 95 % interval of a paired bootstrap says so. With `drifting`
    it is enough not to be worse. On calibration images nothing is said of false alarms: they set the threshold.
    """
    normals, anomalies = len(champion.normal_scores), len(champion.anomaly_scores)
    labels = np.repeat([0, 1], [normals, anomalies])
    sides = [_judged(side) for side in (champion, challenger)]
    values = [_values(side, labels) for side in (champion, challenger)]
    differences = {name: _difference(values[0][name], values[1][name]) for name in values[0]}
    intervals = difference_intervals(sides[0], sides[1], labels, differences)
    figures = []
    for name, images in (("image_auroc", min(normals, anomalies)), ("recall", anomalies)):
        allowed = max(margin, 1 / images) if name == "recall" and images else margin
        figures.append(_figure(name, values, differences[name], intervals.get(name), allowed))
    figures.append(
        _false_alarms(champion, challenger, values, intervals.get("false_alarm_rate"), margin)
        if normals_from == "golden"
        else Figure("false_alarm_rate", None, None, None, None, None, "not judged")
    )
    figures += [_cost(name, getattr(champion, name), getattr(challenger, name)) for name in list(TITLES)[3:]]
    decision, reason = _decide(figures, drifting)
    return GateResult(
        decision, reason, tuple(figures), normals, anomalies, normals_from, anomalies_from, champion, challenger
    )


def _judged(side: Side) -> ScoredVersion:
    return ScoredVersion(np.concatenate([side.normal_scores, side.anomaly_scores]), side.threshold)


def _values(side: Side, labels: Any) -> dict[str, float | None]:
    judged = _judged(side)
    counts = at_threshold(judged.scores, labels, side.threshold)
    return {
        "image_auroc": image_auroc(judged.scores, labels),
        "recall": counts.recall,
        "false_alarm_rate": counts.false_alarm_rate,
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else float(after - before)


def _figure(
    name: str,
    values: list[dict[str, float | None]],
    difference: float | None,
    interval: Interval | None,
    margin: float,
) -> Figure:
    before, after = values[0][name], values[1][name]
    if difference is None:
        return Figure(name, before, after, None, None, margin, "not judged")
    # No interval: every resample says the same.
    low = interval.low if interval is not None else difference
    # Float error must not make a difference of the margin one beyond it.
    worse = difference < -margin - 1e-9
    return Figure(
        name, before, after, difference, interval, margin, "worse" if worse else "better" if low > 0 else "even"
    )


def _false_alarms(
    champion: Side,
    challenger: Side,
    values: list[dict[str, float | None]],
    interval: Interval | None,
    margin: float,
) -> Figure:
    """Judge the realised rates by how far above, or off, the promised one they are.

    The challenger is worse if it is further above its promise by more than the margin. It is better if the champion's
    rate is off its promise by more than chance, the challenger's is nearer, and the two differ by more than chance.
    """
    name = "false_alarm_rate"
    normals = len(champion.normal_scores)
    before, after = values[0][name], values[1][name]
    difference = _difference(before, after)
    allowed = max(margin, 1 / normals)
    if before is None or after is None or difference is None:
        return Figure(name, before, after, difference, interval, allowed, "not judged")
    promised = [side.promised_rate for side in (champion, challenger)]
    if promised[0] is None or promised[1] is None:
        return Figure(name, before, after, difference, interval, allowed, "worse" if difference > allowed else "even")
    above = [max(0.0, rate - promise) for rate, promise in ((before, promised[0]), (after, promised[1]))]
    if above[1] - above[0] > allowed + 1e-9:
        return Figure(name, before, after, difference, interval, allowed, "worse")
    kept = wilson(round(before * normals), normals)
    off = kept is not None and not kept.low <= promised[0] <= kept.high
    nearer = abs(after - promised[1]) < abs(before - promised[0])
    certain = difference != 0 and (interval is None or interval.low > 0 or interval.high < 0)
    return Figure(
        name, before, after, difference, interval, allowed, "better" if off and nearer and certain else "even"
    )


def _cost(name: str, before: float | None, after: float | None) -> Figure:
    if not before or after is None:
        return Figure(name, before, after, None, None, None, "not judged")
    worse = after > before * (1 + COST_MARGIN)
    return Figure(name, before, after, after - before, None, COST_MARGIN * before, "worse" if worse else "even")


def _decide(figures: list[Figure], drifting: bool) -> tuple[Decision, str]:
    worse = [figure for figure in figures if figure.verdict == "worse"]
    if worse:
        return "worse", "worse in " + "; ".join(map(described, worse))
    better = [figure for figure in figures if figure.verdict == "better"]
    if better:
        return "better", "better in " + "; ".join(map(described, better))
    if drifting:
        return "better", "not worse in any figure, and the champion is drifting"
    return "not better", "in no figure better by more than chance: " + "; ".join(
        described(figure) for figure in figures[:3] if figure.difference is not None
    )


def described(figure: Figure) -> str:
    """Return the figure in words: `recall 0.600 to 0.850 (difference +0.150 to +0.350)`."""
    digits = 3 if figure.name in ("image_auroc", "recall", "false_alarm_rate") else 4
    text = f"{TITLES[figure.name]} {_number(figure.champion, digits)} to {_number(figure.challenger, digits)}"
    if figure.interval is not None:
        text += f" (difference between {figure.interval.low:+.3f} and {figure.interval.high:+.3f})"
    return text


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _about(side: Side | None) -> Mapping[str, Any] | None:
    if side is None:
        return None
    return {"version": side.version, "threshold": side.threshold, "promised_rate": side.promised_rate}


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
