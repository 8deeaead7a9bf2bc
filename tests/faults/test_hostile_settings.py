"""Settings files that somebody spoiled: read, or refused by the name of what is wrong; and values at their very ends.

What is accepted, the daemon can run with: it starts, stops when it is told to, and loses nothing.
"""

from __future__ import annotations

import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt

from service.commands.init import settings_text
from service.errors import ConfigurationError
from service.settings import Settings, load
from tests.conftest import REPOSITORY
from tests.faults.root_for_faults import drop_good, make_root, problems, run_until_settled, waiting
from tests.support.daemon_process import DaemonProcess

SEED = 20261126
SECONDS_MAX = 10.0
MEMORY_GROWTH_MAX = 200 * 1024  # kB; a key of 5,000 parts takes tomllib 97,000 of them
EXIT_CONFIGURATION = 78
RUNS_S, LEAVES_WITHIN_S = 3.0, 60.0
SAMPLED = 25
COUNTS = [pytest.param(500, id="500"), pytest.param(10_000, id="10000", marks=pytest.mark.long)]
# Where a name, a table, a value or a comment could stand.
SPLICES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"'''", b'"""', b"[", b"]", b"[[products]]\n", b"[products]\n", b"= = =\n",
    b"products = 1\n", b"[products.default]\nfalse_alarm_rate = 2\n", b"[products.'../..']\n", b"inf", b"-inf", b"nan",
    b"1e309", b"-1", b"0", b"9" * 5000, b"true", b"'text'", b"[]", b"{}", b"1979-05-27", b"[" * 5000, b"{a=" * 3000,
    b"a." * 5000, b"\\u0000", b"\\ud800", b"# \xf0\x9f\x98\x80\n", b"settle_time_s = 1\n", b"A" * 100_000, b"'\\0'",
    b'"\\u0000"',
)  # fmt: skip


def mutated(text: bytes, rng: random.Random) -> bytes:
    """Return `text` with one to four things wrong with it; sometimes none that matters."""
    spoiled = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(spoiled) + 1)
        match rng.randrange(7):
            case 0:
                spoiled[at : at + rng.randint(1, 200)] = b""
            case 1:
                spoiled[at:at] = rng.randbytes(rng.randint(1, 20))
            case 2 if at < len(spoiled):
                spoiled[at] ^= 1 << rng.randrange(8)
            case 3:
                del spoiled[at:]
            case 4:
                lines = bytes(spoiled).split(b"\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                spoiled[:] = b"\n".join(lines)
            case 5:
                # A value in the place of another.
                lines = bytes(spoiled).split(b"\n")
                line = rng.randrange(len(lines))
                lines[line] = lines[line].split(b"=")[0] + b"= " + rng.choice(SPLICES)
                spoiled[:] = b"\n".join(lines)
            case _:
                spoiled[at:at] = rng.choice(SPLICES)
    return bytes(spoiled)


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_settings_are_read_or_refused_with_the_name_of_the_file(count: int, tmp_path: Path) -> None:
    path = tmp_path / "tamis.toml"
    # Every setting set, which a new file has commented out.
    whole = re.sub("(?m)^#(?=[a-z[])", "", settings_text()).encode()
    rng = random.Random(SEED)
    said = {"read": 0, "refused": 0}
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        lines = [line for line in whole.split(b"\n") if rng.random() < 0.3]
        content = mutated(b"\n".join(lines), rng)
        path.write_bytes(content)
        began = time.monotonic()
        try:
            load(tmp_path)
            said["read"] += 1
        except ConfigurationError as error:
            assert str(path) in str(error), f"mutation {number}: {error}"
            said["refused"] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} escaped with {error!r:.300}; it was {content[:2000]!r}") from error
        slowest = max(slowest, time.monotonic() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{count} mutations: {said}, slowest {slowest:.2f} s, memory grown by {grown} kB")
    assert slowest < SECONDS_MAX and grown < MEMORY_GROWTH_MAX
    assert min(said.values()) > count // 50


def ends() -> list[tuple[str, str]]:
    """Return the numbers that are the least and the largest each setting takes, and some that none should."""
    found: list[tuple[str, str]] = []
    for name, about in Settings.model_fields.items():
        kind = str(about.annotation)
        if "int" not in kind and "float" not in kind:
            continue
        whole = "float" not in kind
        bounds = about.metadata
        values: list[Any] = [10**30 if whole else 1e308, 0 if whole else 1e-308, *([] if whole else ["inf", "nan"])]
        for bound in bounds:
            match bound:
                case Ge(least):
                    values.append(least)
                case Le(most):
                    values.append(most)
                case Gt(least):
                    values.append(least + 1 if whole else 1e-9)
                case Lt(most):
                    values.append(most - 1 if whole else 0.999999999)
        found += [(name, value) for value in dict.fromkeys(map(str, values))]
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={value}", marks=() if number % SAMPLED == 0 else pytest.mark.long)
        for number, (name, value) in enumerate(ends())
    ],
)
def test_daemon_runs_with_a_number_at_its_end_or_refuses_it_by_name(name: str, value: str, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    path = root / "tamis.toml"
    quick = path.read_text()
    lines = [line for line in quick.splitlines() if not line.startswith(f"{name} ")]
    path.write_text("\n".join([*lines, f"{name} = {value}", ""]))
    doctor = subprocess.run(
        [sys.executable, "-m", "service", "doctor", "--root", str(root)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in doctor.stderr, doctor.stderr[-2000:]
    dropped = drop_good(root, 3)
    with DaemonProcess(root) as process:
        # Sorted they need not be, with an hour of settling; but whatever would end it has had its time by then.
        until = time.monotonic() + (RUNS_S if taken(root, name) else LEAVES_WITHIN_S)
        while time.monotonic() < until and process.process.poll() is None and waiting(root):
            time.sleep(0.05)
        if process.process.poll() is None:
            process.wait_ready()
            assert taken(root, name) and process.stop() == 0, process.log_text()
        else:
            # Refused: as a setting, or where the model cannot do what it asks for.
            assert process.process.returncode == EXIT_CONFIGURATION, process.log_text()
            assert name in process.log_text() or name.replace("_", " ") in process.log_text().replace("-", " ")
        assert "Traceback" not in process.log_text(), process.log_text()
    path.write_text(quick)
    run_until_settled(root, 3)
    assert problems(root, dropped) == []


def taken(root: Path, name: str) -> bool:
    """Whether the settings file is accepted; if not, the setting is named."""
    try:
        load(root)
    except ConfigurationError as error:
        assert name in str(error)
        return False
    return True
