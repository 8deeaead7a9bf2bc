"""Reads images for commands, under the limits of the settings; links are followed, unlike in `incoming/`."""

from __future__ import annotations

from pathlib import Path

from models.data.select_images import ImageSize
from models.detector import UInt8Array
from models.evaluation.evaluate import Read
from service.imaging.decode import DecodeError, StillChanging, image_size, read_file
from service.imaging.decoder import Decoder
from service.imaging.decoder_processes import DecoderProcesses, memory_needed
from service.settings import Settings

UNREADABLE: tuple[type[Exception], ...] = (DecodeError, StillChanging, OSError)
"""What reading one image raises where only that image is to blame."""


def decoder_of(settings: Settings) -> DecoderProcesses:
    """Return the processes that decode under the limits of `settings`; whoever has them closes them."""
    return DecoderProcesses(
        settings.decoders,
        timeout_s=settings.decode_timeout_s,
        memory_max=memory_needed(settings.pixels_max, settings.file_bytes_max),
    )


def image_reader(
    settings: Settings,
    *,
    draft: bool = False,
    value_range: tuple[float, float] | None = None,
    remarks: dict[Path, str] | None = None,
    decoder: Decoder | None = None,
) -> Read:
    """Return how images are read; with a version's `draft` and `value_range`, as those that calibrated it were.

    What a person should know of one is put into `remarks`, by its path. `decoder` decodes, if given.
    """
    by = decoder or Decoder()

    def read(path: Path, size: tuple[int, int]) -> UInt8Array:
        file = read_file(path.resolve(), file_bytes_max=settings.file_bytes_max)
        limit = settings.pixels_max
        image = by.decode(file.data, size, pixels_max=limit, draft=draft, value_range=value_range)
        if remarks is not None and image.remark is not None:
            remarks[path] = image.remark
        return image.pixels

    return read


def size_reader(settings: Settings) -> ImageSize:
    """Return what gives the height and width of the image at a path, upright."""
    limits = {"file_bytes_max": settings.file_bytes_max, "pixels_max": settings.pixels_max}
    return lambda path: image_size(path.resolve(), **limits)
