"""Draws `sorted.png` from a root that has sorted images: `python docs/images/sorted.py ROOT`.

The images of README.md are of VisA's macaroni1: a `balanced` version, trained on the 900 normal images of the official
split, sorted the split's test images at a false-alarm rate of 0.05. Shown are the four normal ones with the lowest
scores and the four anomalies whose maps have the highest peaks.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from service.storage.database.driver import sqlite3

WIDTH, HEIGHT, GAP, LINE = 240, 160, 10, 24
COLUMNS = 4
BACKGROUND, TEXT, FAINT = "#ffffff", "#1f2328", "#59636e"
NORMAL = "SELECT path, score / threshold FROM results WHERE verdict = 'normal' ORDER BY score LIMIT 4"
ANOMALIES = """SELECT path, score / threshold FROM results JOIN regions ON image_id = results.id AND number = 1
               WHERE verdict = 'anomaly' ORDER BY peak DESC LIMIT 4"""


def main(root: Path) -> None:
    connection = sqlite3.connect(f"file:{root / 'tamis.db'}?mode=ro", uri=True)
    size = (COLUMNS * (WIDTH + GAP) + GAP, 4 * (HEIGHT + GAP) + 4 * LINE + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    top = draw(sheet, GAP, root, "normal/ with its maps", connection.execute(NORMAL).fetchall())
    draw(sheet, top, root, "anomaly/ with its maps", connection.execute(ANOMALIES).fetchall())
    sheet.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(Path(__file__).with_name("sorted.png"), optimize=True)


def draw(sheet: Image.Image, top: int, root: Path, title: str, rows: list[tuple[str, float]]) -> int:
    """Draw images with their maps under a title, and return where the next title belongs."""
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, top), title, TEXT, ImageFont.load_default(17))
    top += LINE
    for column, (path, ratio) in enumerate(rows):
        left = GAP + column * (WIDTH + GAP)
        for row, panel in enumerate(image_and_map(root, root / path)):
            small = panel.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, top + row * (HEIGHT + GAP // 2)))
        below = (left, top + 2 * HEIGHT + GAP // 2 + 4)
        pen.text(below, f"score {ratio:.2f} x threshold", FAINT, ImageFont.load_default(13))
    return top + 2 * HEIGHT + LINE + 2 * GAP


def image_and_map(root: Path, path: Path) -> list[Image.Image]:
    """Return the first two of the three panels that `tamis score --maps` draws side by side."""
    product = path.relative_to(root).parts[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "service", "score", "--root", str(root), "--product", product, str(path)]
        subprocess.run([*command, "--maps", folder], check=True, stdout=subprocess.DEVNULL)
        panels = Image.open(next(Path(folder).glob("*.png"))).convert("RGB")
    width = Image.open(path).width
    gap = (panels.width - 3 * width) // 2
    return [panels.crop((at, 0, at + width, panels.height)) for at in (0, width + gap)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
