"""WebP: the size of its canvas, from its header; its decoder allocates that before it can be asked."""

from __future__ import annotations


def canvas_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width of the canvas of the WebP in `data`, None where the header says none."""
    if data[12:16] != b"VP8X" or len(data) < 30:
        return None
    return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
