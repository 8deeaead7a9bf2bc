"""Files that writers put beside images, as the daemon treats them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import image_bytes
from tests.faults.root_for_faults import drop, make_root, query
from tests.support.daemon_process import DaemonProcess, finished, wait_until


@pytest.mark.parametrize(("sidecars", "rows"), [("ignore", 1), ("quarantine", 3)])
def test_sidecars_stay_or_are_quarantined(tmp_path: Path, sidecars: str, rows: int) -> None:
    root = make_root(tmp_path / "root", f'sidecars = "{sidecars}"\n')
    for name in ("part.json", "lone.TXT"):
        drop(root, name, b"{}")
    drop(root, "part.png", image_bytes(20, seed=1))
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(root) == rows, "what is to be sorted")
        assert daemon.stop() == 0
    stays = sorted(path.name for path in (root / "incoming").iterdir())
    assert stays == (["lone.TXT", "part.json"] if sidecars == "ignore" else [])
    reasons = [row["error_code"] for row in query(root, "SELECT error_code FROM results ORDER BY error_code")]
    assert reasons == [None, *["format"] * (rows - 1)]
