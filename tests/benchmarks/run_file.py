"""Keeps the runs of a long benchmark: the JSON file is written again after each run, so that a kill loses at most one.

A run is a dictionary whose `key` says which run it is; with `--resume` those that are there are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import captures

Run = dict[str, Any]


class RunFile:
    """The runs of one benchmark so far, in the file `path` or, without one, in memory alone."""

    def __init__(self, benchmark: str, path: Path | None, resume: bool) -> None:
        """Begin anew, or go on with what `path` holds; exits where that would overwrite runs or mix benchmarks."""
        self.runs: list[Run] = []
        self._benchmark, self._path = benchmark, path
        if path is None or not path.exists():
            return
        if not resume:
            sys.exit(f"--output {path}: expected no such file, or --resume to go on with it; found {path}")
        document = json.loads(path.read_text())
        if document.get("benchmark") != benchmark:
            sys.exit(f"--output {path}: expected runs of {benchmark}; found those of {document.get('benchmark')!r}")
        self.runs = document["runs"]

    def has(self, key: Run) -> bool:
        """Whether a run of `key` is there that did not fail."""
        return any(run["key"] == key and "error" not in run for run in self.runs)

    def add(self, run: Run, **summary: Any) -> None:
        """Take `run` in place of those of its key, and write the file with `summary` beside the runs."""
        self.runs = [one for one in self.runs if one["key"] != run["key"]] + [run]
        self.write(**summary)

    def write(self, **summary: Any) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        document = {"benchmark": self._benchmark, "machine": captures.machine(), "runs": self.runs, **summary}
        beside = self._path.with_name(f"{self._path.name}.tmp")
        beside.write_text(json.dumps(document, indent=2) + "\n")
        beside.replace(self._path)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has that keeps its runs."""
    parser = captures.arguments(description)
    parser.add_argument("--resume", action="store_true", help="go on with the runs in --output")
    return parser


def spread(values: Sequence[float | None]) -> Run:
    """Return mean, standard deviation (None of one value) and each of `values`; all None where one is unknown."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "sd": None, "each": list(values)}
    sd = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "sd": sd, "each": known}


def cell(one: Run, decimals: int) -> str:
    """Return `spread`'s answer as text, `0.951 ± 0.004 (0.947 0.951 0.955)`; a dash where it is unknown."""
    if one["mean"] is None:
        return "–"
    each = " ".join("–" if value is None else f"{value:.{decimals}f}" for value in one["each"])
    if one["sd"] is None:
        return each
    return f"{one['mean']:.{decimals}f} ± {one['sd']:.{decimals}f} ({each})"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
