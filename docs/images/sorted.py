"""Draws `sorted.png` from a root that has sorted images: `tamis demo --root ROOT`, then `python sorted.py ROOT`."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, GAP, LINE = 232, 174, 12, 26
COLUMNS = 4
BACKGROUND, TEXT, FAINT = "#ffffff", "#1f2328", "#59636e"


def main(root: Path) -> None:
    connection = sqlite3.connect(root / "tamis.db")
    query = "SELECT id, path, file_name, score / threshold FROM results WHERE verdict = ? ORDER BY score {} LIMIT ?"
    normal = connection.execute(query.format("ASC"), ("normal", COLUMNS)).fetchall()
    # From the plainest to the least plain.
    anomalies = connection.execute(query.format("DESC"), ("anomaly", 1000)).fetchall()
    anomalies = [anomalies[(len(anomalies) - 1) * column // (COLUMNS - 1)] for column in range(COLUMNS)]
    size = (COLUMNS * (WIDTH + GAP) + GAP, 3 * HEIGHT + 3 * LINE + 2 * LINE + 4 * GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)

    def row_of(top: int, title: str, rows: list[tuple[str, str, str, float]], maps: bool) -> int:
        pen.text((GAP, top), title, TEXT, font)
        top += LINE
        for column, (id_, path, name, ratio) in enumerate(rows):
            left = GAP + column * (WIDTH + GAP)
            source = root / "maps" / f"{id_}.png" if maps else root / path
            sheet.paste(Image.open(source).convert("RGB").resize((WIDTH, HEIGHT)), (left, top))
            caption = "where it looked" if maps else f"{name}  {ratio:.2f} x threshold"
            pen.text((left, top + HEIGHT + 4), caption, FAINT, small)
        return top + HEIGHT + LINE + GAP // 2

    top = row_of(GAP, "normal/", normal, maps=False)
    top = row_of(top, "anomaly/", anomalies, maps=False)
    row_of(top, "maps/", anomalies, maps=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(Path(__file__).with_name("sorted.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
