"""Draws `today.png` and `review.png` from a root that has sorted images: `tamis demo --root ROOT`, then
`python -m docs.images.pages ROOT` in the repository, with chromium and chromedriver installed.

The images of the demo come within a minute; here they are spread over the last day, as those of a line are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains

from service.storage.database.driver import sqlite3
from service.storage.tables import time_text
from tests.support.web_process import WebProcess, browser, look

WIDTH = 1180
COLOURS = 256
# Address and height of what is shown of it.
SHOTS = {"today": ("/", 1090), "review": ("/review?verdict=anomaly&order=newest", 810)}


def spread(root: Path) -> None:
    """Have the images of `root` received evenly over the last day."""
    with sqlite3.connect(root / "tamis.db") as connection:
        ids = [id for (id,) in connection.execute("SELECT id FROM images ORDER BY received_at, id")]
        now = datetime.now(UTC)
        for number, id in enumerate(ids):
            at = time_text(now - timedelta(hours=23.5) * (len(ids) - number) / len(ids))
            connection.execute("UPDATE images SET received_at = ? WHERE id = ?", (at, id))


def main(root: Path) -> None:
    spread(root)
    with (
        subprocess.Popen([sys.executable, "-m", "service", "run", "--root", root], stderr=subprocess.DEVNULL) as daemon,
        tempfile.TemporaryDirectory() as profile,
        WebProcess(root) as web,
    ):
        time.sleep(5)
        driver = browser(Path(profile))
        try:
            driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            for name, (address, height) in SHOTS.items():
                look(driver, WIDTH, height)
                driver.get(f"{web.url}{address}")
                time.sleep(2)
                if name == "review":
                    # All maps shown, and the filters out of the way.
                    ActionChains(driver).send_keys("M").perform()
                    driver.execute_script("document.querySelector('details[open]').open = false; scrollTo(0, 0)")
                    time.sleep(2)
                shot = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
                drawn = shot.quantize(COLOURS, dither=Image.Dither.NONE)
                drawn.save(Path(__file__).with_name(f"{name}.png"), optimize=True)
        finally:
            driver.quit()
            daemon.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
