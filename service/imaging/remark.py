"""Remarks: what a person should know of an image that was read all the same, in words for its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.imaging.samples import FULL_RANGE, Rendered, Samples

# A hot pixel, or the edge of a reflection, is no trouble; a hundredth of a percent of a defect is not seen by a model.
OUTSIDE_SHARE_MAX = 0.001
# Less of the scale than this, and few of the 256 levels are left of the image.
USED_SHARE_MIN = 0.25


@dataclass(frozen=True, slots=True)
class Remark:
    """`code` is a short name for it, `text` the words."""

    code: str
    text: str

    def with_other(self, other: Remark | None) -> Remark:
        """Return both as one, this one first."""
        return self if other is None else Remark(self.code, f"{self.text}; {other.text}")


def without_end() -> Remark:
    """Return what is said of a JPEG that lacks nothing but its end marker."""
    return Remark("no_end_marker", "expected an end marker; found a JPEG without one, whose pixels are all there")


def of_range(samples: Samples | None, rendered: Rendered | None, value_range: Sequence[float] | None) -> Remark | None:
    """Return what is said of an image whose values do not fit the range of the model, None if they do.

    `samples` is None for an image of up to 8 bits, that comes through as it is.
    """
    if samples is None or rendered is None or not samples.deep:
        if value_range is None or is_full_scale(value_range):
            return None
        return Remark(
            "out_of_range",
            f"expected values within {_told(value_range)}, the range of the model; found an image of 8 bits, which "
            f"is taken as it is",
        )
    if value_range is None:
        low, high = rendered.extremes
        if high - low >= USED_SHARE_MIN * (FULL_RANGE[1] - FULL_RANGE[0]):
            return None
        return Remark(
            "out_of_range",
            f"expected values that use the range {_told(FULL_RANGE)}, as the model says none; found {low:g} to {high:g}"
            f"; a model trained on such images has their range",
        )
    below, above = rendered.outside
    if below + above <= OUTSIDE_SHARE_MAX:
        return None
    parts = [f"{share:.2%} {side}" for share, side in ((below, "below"), (above, "above")) if share > 0]
    low, high = rendered.extremes
    return Remark(
        "out_of_range",
        f"expected values within {_told(value_range)}, the range of the model; found {' and '.join(parts)}, "
        f"from {low:g} to {high:g}",
    )


def is_full_scale(value_range: Sequence[float]) -> bool:
    """Return whether `value_range` is all that some number of bits can hold, as 0 to 4095, or 0 to 1."""
    low, high = value_range
    return low == 0 and (high == 1 or (high > 1 and float(high).is_integer() and int(high) & (int(high) + 1) == 0))


def _told(value_range: Sequence[float]) -> str:
    return f"{value_range[0]:g} to {value_range[1]:g}"
