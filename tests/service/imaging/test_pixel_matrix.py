"""The pixel matrix: the right pixels, or a refusal that names what is not read; never silently something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from service.imaging.decode import DecodeError, decode
from tests.support.pixel_matrix import HEIGHT, WIDTH, Case, all_cases

REPOSITORY = Path(__file__).resolve().parents[3]


def wrong(case: Case) -> str | None:
    """Return what is wrong with how `case` is read, None if nothing is."""
    try:
        found = decode(case.data, (HEIGHT, WIDTH), value_range=case.value_range)
    except DecodeError as error:
        if case.code == error.code and case.words in str(error):
            return None
        return f"{error.code}: {error}; expected {case.code or 'pixels'} {case.words}"
    if case.pixels is None:
        return f"expected {case.code} {case.words}; found pixels"
    if (found.height, found.width) != (HEIGHT, WIDTH):
        return f"expected {HEIGHT} x {WIDTH}; found {found.height} x {found.width}"
    off = np.abs(found.pixels.astype(int) - case.pixels.astype(int)).max()
    return None if off <= case.tolerance else f"expected pixels within {case.tolerance}; found {off} off"


def test_every_kind_of_image_has_the_right_pixels_or_is_refused_by_name(capsys) -> None:
    cases = list(all_cases())
    found = {case.name: said for case in cases if (said := wrong(case)) is not None}
    refused = sum(case.pixels is None for case in cases)
    said = f"{len(cases)} cases, {len(cases) - refused} read, {refused} refused by name, {len(found)} wrong"
    with capsys.disabled():
        print(f"\npixel matrix: {said}")
    assert not found
    page = " ".join((REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8").split())
    assert f"reads {len(cases):,} small images" in page
    assert f"{len(cases) - refused:,} have the right pixels, {refused} are refused by name, 0 are wrong" in page
