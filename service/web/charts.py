"""Drawings for the pages, as SVG: numbers in, markup out. Pure; colours are classes that the style sheet owns.

Every drawing says in words what it shows, for those who do not see it, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 28
TICKS = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of stacked parts: (class, value) from the bottom up; `title` is shown when pointed at."""

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


def bars(said: str, all_bars: Sequence[Bar], labels: Sequence[tuple[int, str]], unit: str = "") -> Markup:
    """Return stacked bars from left to right; `labels` are of the places that they are given for."""
    top = _round_up(max((bar.total for bar in all_bars), default=0.0))
    step = _inner_width() / max(1, len(all_bars))
    drawn = [_frame(top, unit), _labels(labels, step)]
    for place, bar in enumerate(all_bars):
        below = 0.0
        shapes = []
        for kind, value in bar.parts:
            if value <= 0:
                continue
            low, high = _y(below, top), _y(below + value, top)
            shapes.append(
                f'<rect class="{kind}" x="{_x(place, step) + 0.1 * step:.2f}" y="{high:.2f}"'
                f' width="{max(0.5, 0.8 * step):.2f}" height="{max(0.5, low - high):.2f}"/>'
            )
            below += value
        if shapes:
            drawn.append(f"<g>{''.join(shapes)}<title>{escape(bar.title)}</title></g>")
    return _svg(said, drawn)


def lines(
    said: str,
    all_lines: Sequence[Line],
    labels: Sequence[tuple[int, str]],
    unit: str = "",
    least_top: float = 0.0,
) -> Markup:
    """Return lines over the same places; a place alone between gaps is a dot. The scale reaches `least_top`."""
    known = [value for line in all_lines for value in line.values if value is not None]
    top = _round_up(max([*known, least_top]))
    places = max((len(line.values) for line in all_lines), default=1)
    step = _inner_width() / max(1, places)
    drawn = [_frame(top, unit), _labels(labels, step)]
    for line in all_lines:
        for run in _runs(line.values):
            points = [(_x(place, step) + step / 2, _y(value, top)) for place, value in run]
            if len(points) == 1:
                drawn.append(f'<circle class="{line.kind}" cx="{points[0][0]:.2f}" cy="{points[0][1]:.2f}" r="2.5"/>')
            else:
                path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
                drawn.append(f'<polyline class="line {line.kind}" points="{path}"/>')
    return _svg(said, drawn)


def histogram(said: str, scores: Sequence[float], threshold: float | None, marks: Sequence[float] = ()) -> Markup:
    """Return a histogram of anomaly scores with the threshold in it; `marks` are other thresholds, dashed.

    What lies far above all thresholds is counted in the last bar, so that a few extreme scores hide nothing.
    """
    if not scores:
        return Markup("")
    ordered = sorted(scores)
    lines_at = [at for at in (threshold, *marks) if at is not None]
    low = min(ordered[0], *lines_at) if lines_at else ordered[0]
    usual = ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))]
    high = max([usual, *(low + 1.25 * (at - low) for at in lines_at)])
    if high <= low:
        high = low + (abs(low) or 1.0)
    places = 48
    width = (high - low) / places
    counts = [[0, 0] for _ in range(places)]
    for score in ordered:
        place = min(places - 1, max(0, int((score - low) / width)))
        counts[place][threshold is not None and score > threshold] += 1
    top = _round_up(max(below + above for below, above in counts))
    step = _inner_width() / places
    labels = [(place, f"{low + place * width:.3g}") for place in range(0, places, 12)]
    drawn = [_frame(top, ""), _labels(labels, step)]
    for place, (below, above) in enumerate(counts):
        more = " and more" if place == places - 1 and ordered[-1] > high else ""
        title = f"{low + place * width:.4g} to {low + (place + 1) * width:.4g}{more}: {below + above}"
        shapes, under = [], 0
        for kind, value in (("normal", below), ("anomaly", above)):
            if value:
                y = _y(under + value, top)
                shapes.append(
                    f'<rect class="{kind}" x="{_x(place, step) + 0.5:.2f}" y="{y:.2f}" width="{step - 1:.2f}"'
                    f' height="{max(0.5, _y(under, top) - y):.2f}"/>'
                )
                under += value
        if shapes:
            drawn.append(f"<g>{''.join(shapes)}<title>{escape(title)}</title></g>")
    for kind, at in [
        *(("mark", mark) for mark in marks),
        *([("threshold", threshold)] if threshold is not None else []),
    ]:
        x = LEFT + (at - low) / (high - low) * _inner_width()
        drawn.append(
            f'<line class="{kind}" x1="{x:.2f}" x2="{x:.2f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>threshold {at:.4g}</title></line>"
        )
    return _svg(said, drawn)


def _svg(said: str, drawn: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f"{''.join(drawn)}</svg>"
    )


def _frame(top: float, unit: str) -> str:
    parts = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.2f}" text-anchor="end">{value:.3g}{escape(unit)}</text>')
    return "".join(parts)


def _labels(labels: Sequence[tuple[int, str]], step: float) -> str:
    return "".join(
        f'<text x="{_x(place, step) + step / 2:.2f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>'
        for place, label in labels
    )


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((place, value))
    return [run for run in runs if run]


def _inner_width() -> float:
    return float(WIDTH - LEFT - RIGHT)


def _x(place: int, step: float) -> float:
    return LEFT + place * step


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 5, 8 or 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next((one * power for one in (1, 2, 4, 5, 8) if one * power >= value * (1 - 1e-9)), 10 * power)
