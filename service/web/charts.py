"""Drawings for the pages, as SVG: numbers in, markup out. Pure; colours are classes that the style sheet owns.

Every drawing has a text for those who cannot see it, and loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 28
INNER_WIDTH = WIDTH - LEFT - RIGHT
TICKS = 4
PLACES = 48


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of stacked parts: (class, value) from the bottom up; `title` is shown on hover."""

    title: str
    parts: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        """The height of all parts."""
        return sum(value for _, value in self.parts)


@dataclass(frozen=True, slots=True)
class Line:
    """A line through `values`, one for each place from left to right; None leaves a gap."""

    kind: str
    values: Sequence[float | None]


def bars(said: str, all_bars: Sequence[Bar], labels: Sequence[tuple[int, str]]) -> Markup:
    """Return stacked bars from left to right; `labels` are (place, text)."""
    step = INNER_WIDTH / max(1, len(all_bars))
    return _svg(said, _stacks(all_bars, labels, 0.1 * step, max(0.5, 0.8 * step)))


def lines(
    said: str, all_lines: Sequence[Line], labels: Sequence[tuple[int, str]], unit: str = "", least_top: float = 0.0
) -> Markup:
    """Return lines over the same places; a single value between gaps is a dot. The scale reaches `least_top`."""
    known = [value for line in all_lines for value in line.values if value is not None]
    top = _round_up(max([*known, least_top]))
    places = max((len(line.values) for line in all_lines), default=1)
    step = INNER_WIDTH / max(1, places)
    drawn = [_frame(top, unit), _labels(labels, step)]
    for line in all_lines:
        for run in _runs(line.values):
            points = [(LEFT + place * step + step / 2, _y(value, top)) for place, value in run]
            if len(points) == 1:
                drawn.append(f'<circle class="{line.kind}" cx="{points[0][0]:.2f}" cy="{points[0][1]:.2f}" r="2.5"/>')
            else:
                path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
                drawn.append(f'<polyline class="line {line.kind}" points="{path}"/>')
    return _svg(said, drawn)


def histogram(said: str, scores: Sequence[float], threshold: float | None, marks: Sequence[float] = ()) -> Markup:
    """Return a histogram of anomaly scores with the threshold in it; `marks` are other thresholds, dashed.

    Scores far above all thresholds are counted in the last bar, so that a few extreme ones hide nothing.
    """
    if not scores:
        return Markup("")
    ordered = sorted(scores)
    shown = [("mark", mark) for mark in marks] + ([] if threshold is None else [("threshold", threshold)])
    low = min(ordered[0], *(at for _, at in shown)) if shown else ordered[0]
    usual = ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))]
    high = max([usual, *(low + 1.25 * (at - low) for _, at in shown)])
    if high <= low:
        high = low + (abs(low) or 1.0)
    width = (high - low) / PLACES
    counts = [[0, 0] for _ in range(PLACES)]
    for score in ordered:
        place = min(PLACES - 1, max(0, int((score - low) / width)))
        counts[place][threshold is not None and score > threshold] += 1
    all_bars = []
    for place, (below, above) in enumerate(counts):
        more = " and more" if place == PLACES - 1 and ordered[-1] > high else ""
        title = f"{low + place * width:.4g} to {low + (place + 1) * width:.4g}{more}: {below + above}"
        all_bars.append(Bar(title, (("normal", below), ("anomaly", above))))
    labels = [(place, f"{low + place * width:.3g}") for place in range(0, PLACES, 12)]
    drawn = _stacks(all_bars, labels, 0.5, INNER_WIDTH / PLACES - 1)
    for kind, at in shown:
        x = LEFT + (at - low) / (high - low) * INNER_WIDTH
        drawn.append(
            f'<line class="{kind}" x1="{x:.2f}" x2="{x:.2f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>threshold {at:.4g}</title></line>"
        )
    return _svg(said, drawn)


def time_labels(times: Sequence[datetime], form: str) -> list[tuple[int, str]]:
    """Return labels for about six of the places, each of which begins at its time."""
    every = max(1, len(times) // 6)
    return [(place, f"{at:{form}}") for place, at in enumerate(times) if place % every == 0]


def _stacks(all_bars: Sequence[Bar], labels: Sequence[tuple[int, str]], margin: float, width: float) -> list[str]:
    """Return the frame and the bars, each `width` wide and `margin` right of where its place begins."""
    top = _round_up(max((bar.total for bar in all_bars), default=0.0))
    step = INNER_WIDTH / max(1, len(all_bars))
    drawn = [_frame(top), _labels(labels, step)]
    for place, bar in enumerate(all_bars):
        below, shapes = 0.0, []
        for kind, value in bar.parts:
            if value <= 0:
                continue
            low, high = _y(below, top), _y(below + value, top)
            shapes.append(
                f'<rect class="{kind}" x="{LEFT + place * step + margin:.2f}" y="{high:.2f}" width="{width:.2f}"'
                f' height="{max(0.5, low - high):.2f}"/>'
            )
            below += value
        if shapes:
            drawn.append(f"<g>{''.join(shapes)}<title>{escape(bar.title)}</title></g>")
    return drawn


def _svg(said: str, drawn: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f"{''.join(drawn)}</svg>"
    )


def _frame(top: float, unit: str = "") -> str:
    parts = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.2f}" text-anchor="end">{value:.3g}{escape(unit)}</text>')
    return "".join(parts)


def _labels(labels: Sequence[tuple[int, str]], step: float) -> str:
    return "".join(
        f'<text x="{LEFT + place * step + step / 2:.2f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>'
        for place, label in labels
    )


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Return the values that follow each other without a gap, each with its place."""
    runs = groupby(enumerate(values), key=lambda one: one[1] is not None)
    return [[(place, value) for place, value in run if value is not None] for known, run in runs if known]


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 5, 8 or 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((one * power for one in (1, 2, 4, 5, 8) if one * power >= value * (1 - 1e-9)), 10 * power)
