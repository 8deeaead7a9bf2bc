"""A program that is none of ours and reads the database: Python's own SQLite in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None, timeout=60)
connection.execute("BEGIN")
[[count]] = connection.execute("SELECT count(*) FROM images").fetchall()
print(count, flush=True)
sys.stdin.readline()
[[after]] = connection.execute("SELECT count(*) FROM images").fetchall()
sys.exit(0 if after == count else 1)
"""


@contextmanager
def reading(root: Path) -> Iterator[int]:
    """Hold a transaction that has read the database of `root`; yield the reader's process id.

    AssertionError where the rows that it sees do not stay the same.
    """
    command = [sys.executable, "-I", "-c", SCRIPT, str(root / "tamis.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline().strip().isdigit(), "expected the reader to have read"
            yield process.pid
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait(60) == 0, "expected the reader to see one moment"
        finally:
            process.kill()
