"""More products than models fit into memory, through the real daemon: each is judged by its own."""

from __future__ import annotations

from pathlib import Path

from service.root import GRAPHS
from service.storage.database.driver import sqlite3
from tests.faults.root_for_faults import QUICK
from tests.support import brightness_version
from tests.support.daemon_process import DaemonProcess, finished, wait_until

PRODUCTS = ("a", "b", "c")
IMAGES = 3
BRIGHTNESS = 20


def test_each_product_is_judged_by_its_own_model_though_one_fits_into_memory(root: Path) -> None:
    (root / "tamis.toml").write_text(QUICK + "models_loaded_max = 1\n")
    for number, product in enumerate(PRODUCTS):
        brightness_version.install(root, product, graph_offset=10.0 * (number + 1))
    for run in (1, 2):
        with DaemonProcess(root) as daemon:
            daemon.wait_ready()
            for number in range(IMAGES):
                for product in PRODUCTS:
                    brightness_version.image(root / f"incoming/{product}/{run}-{number}.png", BRIGHTNESS)
            wait_until(lambda run=run: finished(root) == run * IMAGES * len(PRODUCTS), "all sorted")  # type: ignore[misc]
            assert daemon.stop() == 0, daemon.log_text()
        # The second run finds them, and scores the same.
        assert len(list((root / GRAPHS).iterdir())) == len(PRODUCTS)
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT product, score, count(*) FROM results GROUP BY 1, 2 ORDER BY 1").fetchall()
    offsets = {product: BRIGHTNESS + 10.0 * (number + 1) for number, product in enumerate(PRODUCTS)}
    assert rows == [(product, score, 2 * IMAGES) for product, score in offsets.items()]
