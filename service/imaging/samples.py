"""Samples: pixels as a file stores them, in bands of rows, and how they become 8 bits a channel.

Images of more than 8 bits a sample, and layouts that Pillow has no mode for, come this way. Up to 8 bits the full
scale is what the bits can hold; above that, the range that becomes 0 to 255 is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.data.value_range import ValueStatistics
from service.imaging.decode_error import DecodeError

FULL_RANGE = (0.0, 65535.0)
"""The range of 16-bit values for a model that says none."""

_TAIL = 0.001
_MEASURED_PIXELS = 4_000_000

Values = npt.NDArray[Any]
Band = tuple[int, Values, Values | None]
"""A band: its first row, colours `(rows, W, C)` in the file's own type, and alpha `(rows, W)` or None."""


@dataclass(frozen=True)
class Samples:
    """Pixels as stored. `bands` gives them from top to bottom; C is 1 (grey or palette), 3 (RGB) or 4 (CMYK).

    `kind` is that of numpy: `u`, `i` or `f`. `associated` alpha is multiplied into the colours. `transparent` is the
    one colour that is not shown. `palette` is uint8 `(n, 3)`.
    """

    height: int
    width: int
    mode: str
    bits: int
    kind: Literal["u", "i", "f"]
    colours: Literal[1, 3, 4]
    bands: Callable[[], Iterator[Band]]
    inverted: bool = False
    associated: bool = False
    transparent: tuple[int, ...] | None = None
    palette: npt.NDArray[np.uint8] | None = None

    @property
    def deep(self) -> bool:
        """Whether a range says what of the values becomes 0 to 255."""
        return self.palette is None and self.colours != 4 and (self.bits > 8 or self.kind != "u")

    @property
    def whole_numbers(self) -> bool:
        return self.kind != "f"

    def natural(self) -> Iterator[Band]:
        """Yield the bands with 0 for black, and with finite values only. Raises DecodeError for others."""
        for row, colours, alpha in self.bands():
            if self.kind == "f" and not np.isfinite(colours).all():
                raise DecodeError("mode", "expected finite values; found NaN or infinite ones")
            if self.inverted:
                colours = colours.dtype.type(2**self.bits - 1) - colours
            if self.associated and alpha is not None and self.deep:
                # The range is that of the colours themselves.
                colours = colours / np.maximum(alpha, 1e-6)[..., np.newaxis]
            yield row, colours, alpha


@dataclass(frozen=True)
class Rendered:
    """Samples as an image, `L` or `RGB`.

    `outside` is the share of deep values beyond the range, below and above, `extremes` the least and the greatest.
    """

    image: Image.Image
    outside: tuple[float, float] = (0.0, 0.0)
    extremes: tuple[float, float] = (0.0, 0.0)


def render(samples: Samples, value_range: Sequence[float] | None) -> Rendered:
    """Return `samples` as 8 bits a channel; of deep ones `value_range` (low, high) becomes 0 to 255.

    Without it, it is that of 16 bits. Raises DecodeError with the code `mode` for what has none then.
    """
    if samples.deep and value_range is None and (samples.kind != "u" or samples.bits > 16):
        raise DecodeError(
            "mode", f"expected whole numbers of up to 16 bits; found {named(samples)}, whose range is not defined"
        )
    low, high = value_range or FULL_RANGE
    mode = "L" if samples.colours == 1 and samples.palette is None else "RGB"
    image = Image.new(mode, (samples.width, samples.height))
    # Of 16 bits there are fewer values than pixels.
    table = to_8_bits(np.arange(65536), low, high, whole_numbers=True)
    below = above = 0
    least, greatest = np.inf, -np.inf
    for row, colours, alpha in samples.natural():
        if samples.palette is not None:
            shown = samples.palette[np.minimum(colours[..., 0], len(samples.palette) - 1)]
        elif samples.deep:
            ends = float(colours.min()), float(colours.max())
            below += int((colours < low).sum()) if ends[0] < low else 0
            above += int((colours > high).sum()) if ends[1] > high else 0
            least, greatest = min(least, ends[0]), max(greatest, ends[1])
            if colours.dtype == np.uint16:
                shown = table[colours]
            else:
                shown = to_8_bits(colours, low, high, whole_numbers=samples.whole_numbers)
        else:
            shown = _full_scale(colours, samples.bits)
        hidden = _hidden(samples, colours, alpha)
        if samples.colours == 4:
            shown = np.asarray(Image.fromarray(np.ascontiguousarray(shown), "CMYK").convert("RGB"))
        if hidden is not None:
            shown = _over_white(shown, hidden, premultiplied=samples.associated and not samples.deep)
        image.paste(Image.fromarray(np.ascontiguousarray(shown[..., 0] if mode == "L" else shown)), (0, row))
    count = max(1, samples.height * samples.width * samples.colours)
    return Rendered(image, (below / count, above / count), (least, greatest))


def statistics(samples: Samples) -> ValueStatistics:
    """Return what values the deep `samples` have, of pixels that are shown.

    The quantiles of whole numbers of up to 16 bits are exact, those of others of every n-th row and column.
    """
    counts = np.zeros(65536, dtype=np.int64)
    thinned: list[Values] = []
    least, greatest = np.inf, -np.inf
    step = max(1, int(np.sqrt(samples.height * samples.width / _MEASURED_PIXELS)))
    exact = samples.kind == "u" and samples.bits <= 16
    for row, colours, alpha in samples.natural():
        hidden = _hidden(samples, colours, alpha)
        shown = colours if hidden is None else colours[hidden < 1]
        if not shown.size:
            continue
        least, greatest = min(least, float(shown.min())), max(greatest, float(shown.max()))
        if exact:
            counts += np.bincount(shown.astype(np.int64, copy=False).ravel(), minlength=65536)[:65536]
        else:
            thinned.append(shown[-row % step :: step, ::step].ravel() if shown.ndim == 3 else shown.ravel())
    if least > greatest:
        return ValueStatistics(samples.kind, 0.0, 0.0, 0.0, 0.0)
    if exact:
        reached = np.cumsum(counts)
        last = int(reached[-1]) - 1
        ranks = (int(np.floor(_TAIL * last)), int(np.ceil((1 - _TAIL) * last)))
        low, high = (float(np.searchsorted(reached, rank, side="right")) for rank in ranks)
    else:
        values = np.concatenate(thinned) if any(part.size for part in thinned) else np.array([least, greatest])
        low = float(np.quantile(values, _TAIL, method="lower"))
        high = float(np.quantile(values, 1 - _TAIL, method="higher"))
    return ValueStatistics(samples.kind, least, greatest, low, high)


def to_8_bits(values: Values, low: float, high: float, *, whole_numbers: bool) -> npt.NDArray[np.uint8]:
    """Return `values` with `low` to `high` as 0 to 255, in 256 steps of equal width, and what lies beyond at the ends.

    The steps of whole numbers are equal in how many of them they hold: 0 to 65535 are shifted by 8 bits, 0 to 4095 by
    4.
    """
    steps = 256 / (high - low + (1 if whole_numbers else 0))
    wide = np.subtract(values, low, dtype=np.float64)
    wide *= steps
    np.floor(wide, out=wide)
    np.clip(wide, 0, 255, out=wide)
    return wide.astype(np.uint8)


def named(samples: Samples) -> str:
    """Return what a message calls the type of `samples`."""
    kind = {"u": "whole numbers", "i": "signed whole numbers", "f": "floating point"}[samples.kind]
    return f"{kind} of {samples.bits} bits"


def _full_scale(colours: Values, bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return np.asarray(colours, dtype=np.uint8)
    if bits > 8:  # CMYK
        return np.right_shift(colours, bits - 8).astype(np.uint8)
    wide = colours.astype(np.uint16) * 255 // (2**bits - 1)
    return np.asarray(wide, dtype=np.uint8)


def _hidden(samples: Samples, colours: Values, alpha: Values | None) -> Values | None:
    """Return how much of each pixel is not shown, 0 to 1."""
    if samples.transparent is not None:
        same = np.equal(colours, np.array(samples.transparent))
        return np.asarray(same.all(axis=-1), dtype=np.float64)
    return None if alpha is None else 1.0 - alpha


def _over_white(shown: npt.NDArray[np.uint8], hidden: Values, *, premultiplied: bool) -> npt.NDArray[np.uint8]:
    # White, as every viewer shows it: colours under full transparency are arbitrary.
    kept = shown if premultiplied else shown * (1.0 - hidden[..., np.newaxis])
    return np.clip(np.rint(kept + 255.0 * hidden[..., np.newaxis]), 0, 255).astype(np.uint8)
