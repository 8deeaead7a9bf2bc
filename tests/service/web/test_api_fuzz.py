"""The API against its own OpenAPI description: whatever fits it or does not, no answer is a failure of the server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.web_process import WebProcess

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="schemathesis is not installed")
@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.long)])
def test_nothing_that_is_asked_is_answered_by_a_failure(root: Path, ids: list[str], examples: int) -> None:
    with WebProcess(root) as page:
        ended = subprocess.run(
            [SCHEMATHESIS, "run", f"{page.url}/api/v1/openapi.json", "--checks", "not_a_server_error", "--seed", "1",
             "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--no-color"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-1000:]
        assert page.process.poll() is None
        assert page.stop() == 0
    generated = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
    assert generated and int(generated[1]) == int(generated[2]) > 500, ended.stdout[-2000:]
    assert "Traceback" not in page.log.read_text()
    print(f"{examples} examples an operation: {generated[1]} requests, {generated[2]} answered, none by a failure")
