"""Plots of the report: SVG drawn by matplotlib, without its global state, in placeholder colours that are then replaced
by the page's CSS variables, so that it suits dark and light.

Text stays text.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np

from models.evaluation.curves import Curve, SweepPoint
from models.evaluation.metrics import Float64Array
from service.evaluation.outcome import LearningPoint

Axes = Any
"""matplotlib's axes, loaded only where drawn; what is checked of them differs between its versions."""

INK, MUTED, GRID, NORMAL, ANOMALY, FIRST, SECOND, THIRD = ROLES = (
    "#000101", "#000102", "#000103", "#000104", "#000105", "#000106", "#000107", "#000108",
)  # fmt: skip
VARIABLES = dict(zip(ROLES, ("ink", "muted", "grid", "normal", "anomaly", "first", "second", "third"), strict=True))
_STYLES: Any = ({"color": FIRST, "linestyle": "-"}, {"color": SECOND, "linestyle": "--"})
_GUIDE: Any = {"color": MUTED, "linewidth": 0.8, "linestyle": ":"}
_SIZE_IN = (4.6, 3.3)
_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "tamis", "font.size": 10.0, "font.family": "sans-serif"}
_LOG_SPAN = 30.0
_BINS = 40
_UNIT = (-0.02, 1.02)
_RATE_MARKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class Plots:
    """Draws the plots of one page; each gets ids of its own."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def roc(self, curves: Sequence[tuple[str, Curve]]) -> str:
        """Return recall over the false-alarm rate, a line for each named curve."""

        def draw(axes: Axes) -> None:
            axes.plot([0, 1], [0, 1], **_GUIDE)
            for (name, curve), style in zip(curves, _STYLES, strict=False):
                axes.plot(curve.x, curve.y, label=name, linewidth=1.8, **style)
            axes.set(xlabel="false-alarm rate", ylabel="recall", xlim=_UNIT, ylim=_UNIT)
            if len(curves) > 1:
                _legend(axes, "lower right")

        return self._svg(draw, "ROC curve: recall over the false-alarm rate")

    def precision_recall(self, curves: Sequence[tuple[str, Curve]], anomaly_share: float) -> str:
        """Return precision over recall; the dotted line is what guessing has."""

        def draw(axes: Axes) -> None:
            axes.axhline(anomaly_share, **_GUIDE)
            for (name, curve), style in zip(curves, _STYLES, strict=False):
                # From a threshold to the next lower one precision is not between the two: steps, no chords.
                axes.step(curve.x, curve.y, where="pre", label=name, linewidth=1.8, **style)
            axes.set(xlabel="recall", ylabel="precision", xlim=_UNIT, ylim=_UNIT)
            if len(curves) > 1:
                _legend(axes, "lower left")

        return self._svg(draw, "Precision over recall")

    def histogram(self, normal: Float64Array, anomaly: Float64Array, threshold: float) -> str:
        """Return how many images have which score, normal ones and anomalies, and the threshold."""
        everything = np.concatenate([normal, anomaly, [threshold]])
        logarithmic = everything.min() > 0 and everything.max() > _LOG_SPAN * np.median(everything)
        low, high = float(everything.min()), float(everything.max())
        if high <= low:
            low, high = low - 0.5, high + 0.5
        edges = np.geomspace(low, high, _BINS + 1) if logarithmic else np.linspace(low, high, _BINS + 1)
        edges[0], edges[-1] = low, high  # rounding must not lose the lowest or the highest

        def draw(axes: Axes) -> None:
            for scores, colour, name in ((normal, NORMAL, "normal"), (anomaly, ANOMALY, "anomaly")):
                if len(scores):
                    label = f"{name} ({len(scores)})"
                    axes.hist(scores, edges, color=colour, alpha=0.6, label=label, edgecolor=colour, linewidth=0.5)
            axes.axvline(threshold, color=INK, linewidth=1.5, linestyle="--", label=f"threshold {threshold:.4g}")
            if logarithmic:
                axes.set_xscale("log")
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="anomaly score", ylabel="images")
            _legend(axes, "best")

        return self._svg(draw, "Histogram of the scores of normal images and anomalies, with the threshold")

    def realised_rates(self, points: Sequence[SweepPoint], used: float | None) -> str:
        """Return the realised over the calibrated false-alarm rate; on the dotted line the promise is kept exactly."""

        def draw(axes: Axes) -> None:
            rates = [point.calibrated_rate for point in points]
            axes.plot(rates, rates, **_GUIDE, label="as promised")
            _line(axes, rates, [point.false_alarm_rate for point in points], "realised", FIRST)
            _rate_axis(axes, rates, used)
            axes.set(ylabel="realised false-alarm rate", ylim=(0, None))
            _legend(axes, "upper left")

        return self._svg(draw, "Realised over calibrated false-alarm rate")

    def rates(self, points: Sequence[SweepPoint], used: float | None) -> str:
        """Return recall, precision and F1 over the calibrated false-alarm rate."""

        def draw(axes: Axes) -> None:
            rates = [point.calibrated_rate for point in points]
            _line(axes, rates, [point.recall for point in points], "recall", FIRST)
            _line(axes, rates, [point.precision for point in points], "precision", SECOND, "s")
            _line(axes, rates, [point.f1 for point in points], "F1", THIRD, "^")
            _rate_axis(axes, rates, used)
            axes.set_ylim(_UNIT)
            _legend(axes, "best")

        return self._svg(draw, "Recall, precision and F1 over the calibrated false-alarm rate")

    def learning(self, points: Sequence[LearningPoint]) -> str:
        """Return image AUROC and F1 over the number of training images."""
        known = [(point.images, point.metrics) for point in points if point.metrics is not None]

        def draw(axes: Axes) -> None:
            sizes = [images for images, _ in known]
            _line(axes, sizes, [metrics.image_auroc for _, metrics in known], "image AUROC", FIRST)
            _line(axes, sizes, [metrics.f1 for _, metrics in known], "F1 at the threshold", SECOND, "s")
            _number_axis(axes, sizes)
            axes.set_ylim(_UNIT)
            _legend(axes, "best")

        return self._svg(draw, "Learning curve: image AUROC and F1 over the number of training images")

    def learning_cost(self, points: Sequence[LearningPoint]) -> str:
        """Return seconds and Wh of training over the number of training images."""
        known = [point for point in points if point.metrics is not None]

        def draw(axes: Axes) -> None:
            sizes = [point.images for point in known]
            _line(axes, sizes, [point.seconds for point in known], "seconds", FIRST)
            _number_axis(axes, sizes)
            axes.set(ylabel="s of training", ylim=(0, None))
            if any(point.training_wh is not None for point in known):
                right = axes.twinx()
                _line(right, sizes, [point.training_wh for point in known], "Wh", SECOND, "s")
                _style(right)
                right.grid(visible=False)
                right.set_ylabel("Wh of training", color=INK)
                right.set_ylim(bottom=0)
                axes.plot([], [], color=SECOND, marker="s", label="Wh")
            _legend(axes, "lower right")

        return self._svg(draw, "Seconds and Wh of training over the number of training images")

    def _svg(self, draw: Callable[[Axes], None], description: str) -> str:
        matplotlib = load_matplotlib()
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            # Not what a matplotlibrc in the home or the working folder says.
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            figure = Figure(figsize=_SIZE_IN, layout="constrained")
            FigureCanvasSVG(figure)
            axes = figure.add_subplot()
            _style(axes)
            draw(axes)
            buffer = io.StringIO()
            metadata: Any = {"Date": None, "Creator": None, "Type": None}
            figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
        return _for_the_page(buffer.getvalue(), f"p{next(self._numbers)}", description)


def load_matplotlib() -> Any:
    """Return the module `matplotlib`. Raises ModuleNotFoundError where it is not installed."""
    # It warns of files of settings that it cannot read; they do not count here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    return matplotlib


def _for_the_page(svg: str, prefix: str, description: str) -> str:
    """Return the `<svg>` element with ids of its own, the page's colours, and no size but its ratio."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A rule for everything would hold for the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    # Drawn by matplotlib, whose texts are ours alone: numbers, axes, names of versions that it escapes.
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg class="plot" role="img" aria-label="{description}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]}>',
        svg,
        count=1,
    )
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def _style(axes: Axes) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float | None], name: str, colour: str, marker: str = "o") -> None:
    known = [(at, value) for at, value in zip(x, y, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)


def _rate_axis(axes: Axes, rates: Sequence[float], used: float | None) -> None:
    if used is not None:
        axes.axvline(used, color=INK, linewidth=1.0, linestyle="--", label=f"in use, {used:g}")
    axes.set_xscale("log")
    marks = [mark for mark in _RATE_MARKS if min(rates) <= mark <= max(rates)]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel("calibrated false-alarm rate")


def _number_axis(axes: Axes, sizes: Sequence[int]) -> None:
    if len(sizes) > 1 and max(sizes) > 3 * min(sizes):
        axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("normal images to train and calibrate")


def _legend(axes: Axes, place: str) -> None:
    axes.legend(loc=place, frameon=False, labelcolor=INK, fontsize=9)
