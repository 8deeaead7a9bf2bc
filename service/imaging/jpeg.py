"""JPEG: which kinds are read, how much structure a file may have, and whether one without its end is whole.

Looks at markers alone; the pixels are decoded by Pillow.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

from PIL import Image

from service.imaging.decode_error import DecodeError

# Cameras write a few dozen segments before the pixels, progressive encoders ten scans. Each segment costs a step of
# an interpreter, each scan a pass over the whole image, however empty it is.
SEGMENTS_MAX = 1000
SCANS_MAX = 100
METADATA_BYTES_MAX = 32_000_000

_SOI, _EOI, _SOS, _DRI, _DAC = 0xD8, 0xD9, 0xDA, 0xDD, 0xCC
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NOT_READ = {
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic coding"),
    0xCB: "lossless, arithmetic coding",
    **dict.fromkeys((0xCD, 0xCE, 0xCF), "hierarchical, arithmetic coding"),
}
# A marker between entropy-coded data: not a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# What stands in for missing bits: nothing, zeros, ones and two patterns. All give the same pixels only if none is used.
_FILLERS = (b"", bytes(64), b"\xff\x00" * 64, b"\x55" * 64, b"\xaa" * 64, b"\x6d\xb6\xdb" * 22)


@dataclass
class _Scan:
    """A scan: its components by their place in the frame, spectral band, `low` bit, and where its data lie."""

    components: tuple[int, ...]
    band: range
    low: int
    begin: int
    end: int
    restart_interval: int


@dataclass
class _Frame:
    marker: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    ids: list[int] = field(default_factory=list)
    sampling: list[tuple[int, int]] = field(default_factory=list)

    @property
    def one_scan(self) -> bool:
        return self.marker != _PROGRESSIVE


def check_jpeg(data: bytes) -> None:
    """Raise DecodeError for a JPEG of a kind that is not read, or of more structure than any camera writes."""
    frame = _Frame()
    scans = 0
    for marker, begin, end in _segments(data):
        if marker in _FRAMES:
            frame = _frame(data, marker, begin, end)
            if marker in _NOT_READ:
                raise DecodeError("format", f"expected a baseline or progressive JPEG; found {_NOT_READ[marker]}")
            if frame.precision != 8:
                raise DecodeError("mode", f"expected a JPEG of 8 bits a sample; found {frame.precision}")
        elif marker == _DAC:
            raise DecodeError("format", "expected a baseline or progressive JPEG; found arithmetic coding")
        elif marker == _SOS:
            scans += 1
            if scans > SCANS_MAX:
                raise DecodeError("damaged", f"expected at most {SCANS_MAX} scans in a JPEG; found more")
            if frame.one_scan and begin < len(data) and data[begin] >= len(frame.ids):
                return  # all components in one scan: the decoder looks no further


def has_end(data: bytes) -> bool:
    """Return whether the JPEG in `data` ends as one does: its end marker is in what follows the last scan."""
    return any(marker == _EOI for marker, _, _ in _segments(data, bounded=False))


def completed(data: bytes) -> bytes | None:
    """Return the JPEG in `data`, that lacks its end marker, with one, if it lacks nothing else; else None.

    A decoder fills what is missing with grey and says nothing, so this is proved first: every coefficient was sent to
    its last bit, the last scan has all its restart intervals, and the pixels are the same whatever bits are put after
    the data: so none of them is read.
    """
    frame, scans = _scans(data)
    if not scans or not frame.ids or not _all_sent(frame, scans) or not _all_restarts(data, frame, scans[-1]):
        return None
    # Half an end marker is no data.
    whole = data[:-1] if data.endswith(b"\xff") else data
    if len(whole) <= scans[-1].begin:
        return None
    seen = {_pixels_digest(whole + filler + b"\xff\xd9") for filler in _FILLERS}
    return whole + b"\xff\xd9" if len(seen) == 1 and None not in seen else None


def _segments(data: bytes, *, bounded: bool = True) -> Iterator[tuple[int, int, int]]:
    """Yield each marker with where its content begins and ends, as far as they can be followed."""
    at, count, metadata = 2, 0, 0
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            found = _MARKER.search(data, at)
            if found is None:
                return
            at = found.start()
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker in (0xFF, 0x00, 0x01, _SOI) or 0xD0 <= marker <= 0xD7:
            continue
        count += 1
        if bounded and count > SEGMENTS_MAX:
            raise DecodeError("damaged", f"expected at most {SEGMENTS_MAX} segments in a JPEG; found more")
        if marker == _EOI:
            yield marker, at, at
            return
        end = at + int.from_bytes(data[at : at + 2], "big")
        if bounded and (metadata := metadata + end - at) > METADATA_BYTES_MAX:
            raise DecodeError("damaged", f"expected at most {METADATA_BYTES_MAX} bytes of metadata; found more")
        yield marker, at + 2, end
        at = max(end, at + 2)
        if marker == _SOS:
            found = _MARKER.search(data, at)
            if found is None:
                return
            at = found.start()


def _frame(data: bytes, marker: int, begin: int, end: int) -> _Frame:
    content = data[begin:end]
    if len(content) < 6 or len(content) < 6 + 3 * content[5]:
        raise DecodeError("damaged", "expected a JPEG's frame header; found one cut off")
    parts = [content[at : at + 3] for at in range(6, 6 + 3 * content[5], 3)]
    return _Frame(
        marker=marker,
        precision=content[0],
        height=int.from_bytes(content[1:3], "big"),
        width=int.from_bytes(content[3:5], "big"),
        ids=[part[0] for part in parts],
        sampling=[(part[1] >> 4, part[1] & 15) for part in parts],
    )


def _scans(data: bytes) -> tuple[_Frame, list[_Scan]]:
    frame, scans, interval = _Frame(), [], 0
    for marker, begin, end in _segments(data):
        content = data[begin:end]
        if marker in _FRAMES:
            frame = _frame(data, marker, begin, end)
        elif marker == _DRI:
            interval = int.from_bytes(content[:2], "big")
        elif marker == _SOS:
            number = content[0] if content else 0
            if number == 0 or len(content) < 4 + 2 * number:
                return frame, []
            ids = content[1 : 1 + 2 * number : 2]
            if any(id not in frame.ids for id in ids):
                return frame, []
            first, last, approximation = content[1 + 2 * number : 4 + 2 * number]
            band = range(first, last + 1) if frame.marker == _PROGRESSIVE else range(64)
            low = approximation & 15 if frame.marker == _PROGRESSIVE else 0
            found = _MARKER.search(data, end)
            stop = found.start() if found else len(data)
            scans.append(_Scan(tuple(frame.ids.index(id) for id in ids), band, low, end, stop, interval))
    return frame, scans


def _all_sent(frame: _Frame, scans: list[_Scan]) -> bool:
    """Return whether each coefficient of each component was sent down to its lowest bit."""
    sent = {(component, k) for scan in scans if scan.low == 0 for component in scan.components for k in scan.band}
    return all((component, k) in sent for component in range(len(frame.ids)) for k in range(64))


def _all_restarts(data: bytes, frame: _Frame, scan: _Scan) -> bool:
    """Return whether `scan` has each restart marker: at one that is missing a decoder skips what it finds."""
    if not scan.restart_interval:
        return True
    across, down = (max(sides) for sides in zip(*frame.sampling, strict=True))
    if not across or not down:
        return False
    if len(scan.components) == 1:  # of one component: a unit is one block, and none is padding
        own_across, own_down = frame.sampling[scan.components[0]]
        units = ceil(ceil(frame.width * own_across / across) / 8) * ceil(ceil(frame.height * own_down / down) / 8)
    else:
        units = ceil(frame.width / (8 * across)) * ceil(frame.height / (8 * down))
    found = [data[match.start() + 1] & 7 for match in _RESTART.finditer(data, scan.begin, scan.end)]
    return found == [number % 8 for number in range(ceil(units / scan.restart_interval) - 1)]


def _pixels_digest(data: bytes) -> bytes | None:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            # Not as RGB, where a small difference of colour may be lost.
            image.draft("YCbCr", None)
            return hashlib.sha256(image.tobytes()).digest()
    except Exception:  # noqa: BLE001  (what cannot be decoded with a filler is not whole; see `service.imaging.decode`)
        return None
