"""The installed service on a machine of its own, booted with systemd as its first process.

What is only read elsewhere (the units, the install script below a prefix) is here installed, started, killed, hung,
stopped, probed, upgraded and taken away. The checks run within the machine, see `nspawn/checks.py`; each is a test.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.deploy.nspawn import checks, machine

NAMES = [(number, function.__name__) for number, boot in enumerate(checks.BOOTS) for function in boot]
REPORT = REPOSITORY / "artefacts" / "booted.json"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(machine.missing() is not None, reason=machine.missing() or ""),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each check found, by its name."""
    try:
        machine.bare_system()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no bare Debian can be made here: {getattr(error, 'stderr', None) or error}")
    booted = machine.Machine(tmp_path_factory.mktemp("booted"))
    results = [result for number in range(len(checks.BOOTS)) for result in booted.boot(number)]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(results, indent=1))
    return {result["check"]: result for result in results}


@pytest.mark.parametrize(("boot", "name"), NAMES, ids=[name for _, name in NAMES])
def test_on_a_booted_machine(found: dict[str, dict[str, Any]], boot: int, name: str) -> None:
    result = found[name]
    print(json.dumps(result))
    if result["lacks"]:
        pytest.skip(result["lacks"])
    assert result["passed"], result["wrong"]
