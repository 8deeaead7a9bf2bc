"""The gate: whether a challenger is good enough to replace the champion, from what both made of the same images. Pure.

`service.retraining.gate_scoring` scores the images, `service.retraining.retrain` acts on the decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from models.evaluation.bootstrap import Interval, ScoredVersion, difference_intervals, wilson
from models.evaluation.metrics import Float64Array, Labels, at_threshold, image_auroc

NORMALS_MIN = 10
ANOMALIES_MIN = 5
"""Known anomalies below which drawn defects stand in for them."""
COST_MARGIN = 0.25
"""Share by which time or energy of an image may grow: a quarter, as both vary that much from run to run."""

NormalsFrom = Literal["golden", "calibration"]
AnomaliesFrom = Literal["golden", "drawn"]
Decision = Literal["better", "not better", "worse", "not judged"]
Verdict = Literal["better", "worse", "even", "not judged"]

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

    @property
    def scores(self) -> Float64Array:
        """The scores of normals, then anomalies, `(n + m,)`."""
        return np.concatenate([self.normal_scores, self.anomaly_scores])

    @property
    def labels(self) -> Labels:
        """0 for a normal and 1 for an anomaly, in the order of `scores`."""
        return np.repeat([0, 1], [len(self.normal_scores), len(self.anomaly_scores)])


@dataclass(frozen=True)
class Figure:
    """One figure of both; `difference` is the challenger's less the champion's, `interval` its 95 % interval.

    `margin` is how much worse still counts as not worse.
    """

    name: str
    champion: float | None = None
    challenger: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    margin: float | None = None
    verdict: Verdict = "not judged"


@dataclass(frozen=True)
class GateResult:
    """The gate's decision, and what it rests on."""

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
        plain = ("decision", "reason", "normals", "normals_from", "anomalies", "anomalies_from")
        sides = {name: _about(getattr(self, name)) for name in ("champion", "challenger")}
        figures = [asdict(figure) | {"title": TITLES[figure.name]} for figure in self.figures]
        for figure in figures:
            figure["interval"] = figure["interval"] and [figure["interval"]["low"], figure["interval"]["high"]]
        return {name: getattr(self, name) for name in plain} | sides | {"figures": figures}


def not_judged(reason: str) -> GateResult:
    """Return the result where there is nothing to compare on."""
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
    before, after = _metrics(champion), _metrics(challenger)
    differences = {name: _difference(before[name], after[name]) for name in before}
    first, second = (ScoredVersion(side.scores, side.threshold) for side in (champion, challenger))
    intervals = difference_intervals(first, second, champion.labels, differences)

    def figure(name: str, images: int) -> Figure:
        allowed = max(margin, 1 / images) if images else margin
        return Figure(name, before[name], after[name], differences[name], intervals.get(name), allowed)

    false_alarms = figure("false_alarm_rate", normals)
    figures = (
        _by_difference(figure("image_auroc", 0)),
        _by_difference(figure("recall", anomalies)),
        replace(false_alarms, verdict=_verdict_on_false_alarms(false_alarms, champion, challenger))
        if normals_from == "golden"
        else Figure("false_alarm_rate"),
        _cost("cpu_ms_per_image", champion.cpu_ms_per_image, challenger.cpu_ms_per_image),
        _cost("wh_per_1000_images", champion.wh_per_1000_images, challenger.wh_per_1000_images),
    )
    decision, reason = _decide(figures, drifting)
    return GateResult(decision, reason, figures, normals, anomalies, normals_from, anomalies_from, champion, challenger)


def _metrics(side: Side) -> dict[str, float | None]:
    counts = at_threshold(side.scores, side.labels, side.threshold)
    return {
        "image_auroc": image_auroc(side.scores, side.labels),
        "recall": counts.recall,
        "false_alarm_rate": counts.false_alarm_rate,
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else float(after - before)


def _by_difference(figure: Figure) -> Figure:
    if figure.difference is None or figure.margin is None:
        return figure
    # No interval: every resample says the same.
    low = figure.interval.low if figure.interval is not None else figure.difference
    # Float error must not make a difference of the margin one beyond it.
    worse = figure.difference < -figure.margin - 1e-9
    return replace(figure, verdict="worse" if worse else "better" if low > 0 else "even")


def _verdict_on_false_alarms(figure: Figure, champion: Side, challenger: Side) -> Verdict:
    """Compare the realised rates by how far above, or off, the promised one they are.

    The challenger is worse if it is further above its promise by more than the margin. It is better if the champion's
    rate is off its promise by more than chance, the challenger's is nearer, and the two differ by more than chance.
    """
    before, after, difference, allowed = figure.champion, figure.challenger, figure.difference, figure.margin
    if before is None or after is None or difference is None or allowed is None:
        return "not judged"
    promised, new_promised = champion.promised_rate, challenger.promised_rate
    if promised is None or new_promised is None:
        return "worse" if difference > allowed else "even"
    if max(0.0, after - new_promised) - max(0.0, before - promised) > allowed + 1e-9:
        return "worse"
    normals = len(champion.normal_scores)
    kept = wilson(round(before * normals), normals)
    off = kept is not None and not kept.low <= promised <= kept.high
    nearer = abs(after - new_promised) < abs(before - promised)
    certain = difference != 0 and (figure.interval is None or figure.interval.low > 0 or figure.interval.high < 0)
    return "better" if off and nearer and certain else "even"


def _cost(name: str, before: float | None, after: float | None) -> Figure:
    if not before or after is None:
        return Figure(name, before, after)
    worse = after > before * (1 + COST_MARGIN)
    return Figure(name, before, after, after - before, None, COST_MARGIN * before, "worse" if worse else "even")


def _decide(figures: Sequence[Figure], drifting: bool) -> tuple[Decision, str]:
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
