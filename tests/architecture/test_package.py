"""What is built is what is in the tree: the wheel, installed in an empty environment, holds the same files."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "models", "migrations")


def source_files() -> set[str]:
    return {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("tamis-*.whl")
    return wheel


def test_wheel_installed_alone_holds_the_files_of_the_tree(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    [site_packages] = (tmp_path / "empty/lib").glob("python3*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index",
         "--target", str(site_packages), str(wheel)],
        check=True,
    )  # fmt: skip
    installed = {
        str(path.relative_to(site_packages))
        for package in PACKAGES
        for path in (site_packages / package).rglob("*")
        if path.is_file()
    }
    assert installed == source_files()
    [metadata] = site_packages.glob("tamis-*.dist-info")
    assert "tamis = service.cli:main" in (metadata / "entry_points.txt").read_text()


def test_installed_package_says_its_version_without_its_dependencies(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path),
            str(wheel),
        ],
        check=True,
    )
    said = subprocess.run(
        [sys.executable, "-S", "-c", "import service; print(service.__version__)"],
        cwd="/", env={"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"tamis-{said.stdout.strip()}-" in wheel.name
