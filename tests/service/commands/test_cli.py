"""The program as a process: exit codes, messages, one JSON document on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import COMMANDS, load

REPOSITORY = Path(__file__).resolve().parents[3]


def tamis(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", [("results",), ("status",), ("energy",), ("models", "list")])
def test_every_report_is_one_json_document_on_stdout(root: Path, command: tuple[str, ...]) -> None:
    ended = tamis(*command, "--root", root, "--json")
    assert ended.returncode == 0, ended.stderr
    json.loads(ended.stdout)


def test_wrong_usage_exits_with_2_and_names_it(root: Path) -> None:
    ended = tamis("results", "--root", root, "--colour", "red")
    assert ended.returncode == 2 and "--colour" in ended.stderr


def test_folder_that_is_no_root_exits_with_78_and_says_what_to_do(tmp_path: Path) -> None:
    ended = tamis("status", "--root", tmp_path)
    assert ended.returncode == 78
    assert f"tamis init {tmp_path}" in ended.stderr and "Traceback" not in ended.stderr


def test_unknown_product_is_a_failure_that_names_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    ended = tamis("score", tmp_path / "a.png", "--root", root, "--product", "gears")
    assert ended.returncode == 1 and "gears" in ended.stderr and "Traceback" not in ended.stderr


def test_the_help_that_is_listed_is_that_of_each_command() -> None:
    summaries = {name: " ".join(load(name).help.split("\n\n")[0].split()) for name in COMMANDS}
    assert summaries == COMMANDS


def test_help_and_version_import_nothing_heavy() -> None:
    for option in ("--help", "--version"):
        assert not imported_by(option) & {"sqlalchemy", "alembic", "numpy", "pydantic"}
    assert not imported_by("--version") & {"rich", "models.registry"}


def test_status_and_results_import_no_more_than_they_need(root: Path) -> None:
    for command in ("status", "results"):
        heavy = {"alembic", "sqlalchemy.orm", "numpy", "openvino", "torch", "scipy", "PIL"}
        assert not imported_by(command, "--root", root) & heavy


def imported_by(*arguments: str | Path) -> set[str]:
    """Return the modules in memory when `tamis` with these arguments is done."""
    script = "import sys, atexit; atexit.register(lambda: print(*sys.modules)); from service.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(ended.stdout.splitlines()[-1].split())
