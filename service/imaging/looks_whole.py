"""Looks whole: whether a file ends as its format says that it must, from its first and last bytes. Pure.

A hint, not a verdict: what seems cut off waits a little longer for its writer, and is decoded all the same after that.
"""

from __future__ import annotations

import struct

HEAD_BYTES = 4096
TAIL_BYTES = 4096

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# A marker that begins more of an image: after the end of a thumbnail in the header there are some to come.
_JPEG_MORE = tuple(bytes((0xFF, code)) for code in (0xDA, 0xDB, 0xC4, 0xC0, 0xC2))
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}
# By tag: where strips or tiles begin, and how long each is.
_TIFF_PIXELS = {273: 279, 324: 325}
_TIFF_SIZES = {3: ("H", 2), 4: ("I", 4)}


def looks_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes seems to be written to its end.

    `head` and `tail` are its first `HEAD_BYTES` and last `TAIL_BYTES`, or all of a smaller one. True for formats whose
    end is not known.
    """
    if head.startswith(_JPEG):
        _, end, after = tail.rpartition(_JPEG_END)
        return bool(end) and not any(more in after for more in _JPEG_MORE)
    if head.startswith(_PNG):
        return _PNG_END in tail
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return size >= 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(b"BM") and len(head) >= 6:
        return size >= int.from_bytes(head[2:6], "little")
    if head[:4] in _TIFF:
        return _tiff_looks_whole(head, tail, size)
    return True


def _tiff_looks_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Return whether the first directory, and all of the pixels that it names as far as it can be seen, lie within."""
    order = _TIFF[head[:4]]

    def read(format: str, at: int, count: int = 1) -> tuple[int, ...] | None:
        """Return `count` numbers at the offset `at` of the file; None where they lie in neither head nor tail."""
        length = struct.calcsize(f"{order}{count}{format}")
        for part, start in ((head, 0), (tail, size - len(tail))):
            if start <= at and at + length <= start + len(part):
                return struct.unpack_from(f"{order}{count}{format}", part, at - start)
        return None

    first = read("I", 4)
    if first is None or first[0] == 0 or first[0] + 2 > size:
        return False
    counted = read("H", first[0])
    if counted is None:
        return True
    if first[0] + 2 + 12 * counted[0] + 4 > size:
        return False
    found: dict[int, tuple[int, ...]] = {}
    for number in range(counted[0]):
        at = first[0] + 2 + 12 * number
        entry, count = read("HH", at), read("I", at + 4)
        if entry is None or count is None or entry[0] not in {*_TIFF_PIXELS, *_TIFF_PIXELS.values()}:
            continue
        format, bytes_each = _TIFF_SIZES.get(entry[1], ("", 0))
        if not bytes_each or count[0] > size:
            continue
        place = (at + 8,) if count[0] * bytes_each <= 4 else read("I", at + 8)
        if place is not None and place[0] + count[0] * bytes_each > size:
            return False
        values = read(format, place[0], count[0]) if place is not None else None
        if values is not None:
            found[entry[0]] = values
    return all(
        begin + length <= size
        for begins, lengths in _TIFF_PIXELS.items()
        if begins in found and lengths in found
        for begin, length in zip(found[begins], found[lengths], strict=False)
    )
