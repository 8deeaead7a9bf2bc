"""Files that take much of what decodes them, before a real daemon and a real page: `tests/benchmarks/decoding_bombs.py`
in small. What they may take of time and memory is measured there.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from tests.faults.root_for_faults import drop, drop_good, make_root, problems, query, settled
from tests.support.bombs import KINDS, bombs
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.web_process import WebProcess

GOOD = 12


def test_bombs_end_neither_the_daemon_nor_the_page_nor_any_other_image(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", "anomaly_maps = false\nattempts_max = 1\ndecode_timeout_s = 3.0\n")
    dropped = [
        drop(root, f"bomb-{number:02}-{kind}.png", data) for number, (kind, data) in enumerate(bombs(2 * len(KINDS)))
    ]
    dropped += drop_good(root, GOOD)
    with DaemonProcess(root) as daemon:
        wait_until(settled(root, len(dropped)), "all sorted", poll_s=0.1)
        # The same one, from the first to the last.
        assert daemon.stop() == 0, daemon.log_text()
        assert "Traceback" not in daemon.log_text()
    assert problems(root, dropped) == []
    rows = query(root, "SELECT id, file_name, state, error_code FROM results")
    good = [row for row in rows if row["file_name"].startswith("good-")]
    assert len(good) == GOOD and {row["state"] for row in good} == {"placed"}
    outcome = {row["file_name"][8:-4]: row["error_code"] for row in rows if row not in good}
    assert outcome["one_row"] == "too_many_pixels" and outcome["tile"] in ("too_much_memory", "damaged")
    with WebProcess(root) as page:
        answers = {row["id"]: status_of(f"{page.url}/images/{row['id']}/thumb") for row in rows}
        assert page.process.poll() is None
    assert {answers[row["id"]] for row in good} == {200}
    assert set(answers.values()) == {200, 404}


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
