"""How figures, shares and times are written on the pages; an unknown one is a dash."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

UNKNOWN = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Return `value` to so many significant digits."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e15 else text


def count(value: int | None) -> str:
    """Return a whole number with thousands separators."""
    return UNKNOWN if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """Return a share as a percentage."""
    return UNKNOWN if value is None else f"{number(100 * value, 3)} %"


def size(value: int | None) -> str:
    """Return a number of bytes in a suitable unit."""
    if value is None:
        return UNKNOWN
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= least:
            return f"{value / least:.3g} {unit}"
    return f"{value} bytes"


def moment(value: str | datetime | None) -> Markup:
    """Return a UTC time to the second, as a `<time>` element."""
    if value is None:
        return Markup(UNKNOWN)
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), at.strftime("%Y-%m-%d %H:%M:%S")
    )
