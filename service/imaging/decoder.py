"""The decoder: what the service asks of a foreign file, each as a task by name.

A task takes the bytes of a file and plain values, and gives plain values and bytes, so that it can run anywhere:
`Decoder` runs it at once, `service.imaging.decoder_processes` in a process that may end without harm.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from models.appearance import Appearance, appearance_of
from service.imaging.decode import DecodedImage, check, decode, decode_within, format_of

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DecoderAnswer:
    """What a task gives: `values` by name, of the kinds that JSON has, and `content`, uint8 of any shape."""

    values: Mapping[str, Any]
    content: Pixels


class Decoder:
    """Reads images from the bytes of foreign files, in the thread that asks.

    Every method raises DecodeError as `decode` does.
    """

    def run(self, task: str, data: bytes, **arguments: Any) -> DecoderAnswer:
        """Return what the task of that name makes of `data`."""
        return TASKS[task](data, **arguments)

    def close(self) -> None:
        """Let go of what decoding has taken."""

    def decode(self, data: bytes, size: tuple[int, int], **keywords: Any) -> DecodedImage:
        """Return what `service.imaging.decode.decode` returns."""
        return _image(self.run("decode", data, size=size, **keywords))

    def look(self, data: bytes, size: tuple[int, int], **keywords: Any) -> tuple[DecodedImage, Appearance]:
        """Return what `decode` returns, and how it looks."""
        made = self.run("look", data, size=size, **keywords)
        return _image(made), Appearance(*made.values["appearance"])

    def within(self, data: bytes, side_max: int | None, **keywords: Any) -> Pixels:
        """Return what `decode_within` returns, as uint8 `(H, W, 3)`."""
        return self.run("within", data, side_max=side_max, **keywords).content

    def jpeg(self, data: bytes, side_max: int | None, *, quality: int, **keywords: Any) -> bytes:
        """Return what `decode_within` returns, as a JPEG of that `quality`."""
        return self.run("jpeg", data, side_max=side_max, quality=quality, **keywords).content.tobytes()

    def check(self, data: bytes, size: tuple[int, int], *, pixels_max: int) -> None:
        """Decode the image to know that it can be, as `service.imaging.decode.check`."""
        self.run("check", data, size=size, pixels_max=pixels_max)

    def format_of(self, data: bytes, *, pixels_max: int) -> str:
        """Return which format `data` has, by its header."""
        return str(self.run("format", data, pixels_max=pixels_max).values["format"])


NOTHING = np.empty(0, np.uint8)
_DESCRIBING = tuple(field.name for field in fields(DecodedImage) if field.name != "pixels")


def _decode(data: bytes, **keywords: Any) -> DecoderAnswer:
    image = decode(data, **keywords)
    return DecoderAnswer({name: getattr(image, name) for name in _DESCRIBING}, image.pixels)


def _image(made: DecoderAnswer) -> DecodedImage:
    return DecodedImage(made.content, **{name: made.values[name] for name in _DESCRIBING})


def _look(data: bytes, **keywords: Any) -> DecoderAnswer:
    made = _decode(data, **keywords)
    seen = appearance_of(made.content)
    return DecoderAnswer({**made.values, "appearance": (seen.brightness, seen.contrast, seen.sharpness)}, made.content)


def _within(data: bytes, **keywords: Any) -> DecoderAnswer:
    return DecoderAnswer({}, np.asarray(decode_within(data, **keywords)))


def _jpeg(data: bytes, quality: int, **keywords: Any) -> DecoderAnswer:
    buffer = io.BytesIO()
    decode_within(data, **keywords).save(buffer, "JPEG", quality=quality)
    return DecoderAnswer({}, np.frombuffer(buffer.getvalue(), np.uint8))


def _check(data: bytes, **keywords: Any) -> DecoderAnswer:
    check(data, **keywords)
    return DecoderAnswer({}, NOTHING)


def _format(data: bytes, pixels_max: int) -> DecoderAnswer:
    return DecoderAnswer({"format": format_of(data, pixels_max=pixels_max)}, NOTHING)


TASKS: Mapping[str, Callable[..., DecoderAnswer]] = {
    "decode": _decode,
    "look": _look,
    "within": _within,
    "jpeg": _jpeg,
    "check": _check,
    "format": _format,
}
