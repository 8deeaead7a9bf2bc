"""CPU seconds, user and system, of commands that people wait for: the least of several runs, beside bare Python's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from service.commands.init import make_root
from tests.benchmarks import captures


def cpu_s(*arguments: str) -> float:
    """Run Python with `arguments` and return the CPU seconds that it took."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = make_root(Path(folder) / "root").root
        commands = {
            "python": ("-c", "pass"),
            "--version": ("-m", "service", "--version"),
            "--help": ("-m", "service", "--help"),
            "status": ("-m", "service", "status", "--root", root),
            "results": ("-m", "service", "results", "--root", root),
        }
        # In turn, so that what else the machine does falls on all alike.
        runs = [{name: cpu_s(*arguments) for name, arguments in commands.items()} for _ in range(options.runs)]
    least = {name: min(run[name] for run in runs) for name in commands}
    captures.report(
        {
            "benchmark": "start_up",
            "runs": options.runs,
            "cpu_s_least": least,
            "times_bare_python": {name: seconds / least["python"] for name, seconds in least.items()},
        },
        options.output,
    )


if __name__ == "__main__":
    main()
