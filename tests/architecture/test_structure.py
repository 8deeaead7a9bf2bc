"""The structure that docs/architecture.md draws, held against what the modules import."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from tests.architecture.rooms import (
    PACKAGES,
    REPOSITORY,
    ROOMS,
    Imports,
    circles,
    module_of,
    modules_in,
    names_at_import,
    names_in,
    problems,
    read_imports,
)

PATHS = {module_of(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}
NAMES = {module: names_in(path) for module, path in PATHS.items()}
TRAINING_ONLY = frozenset({"torch", "torchvision", "timm"})
MODULES_SIDE_BY_SIDE = {"service": 12, "models": 8}
FILES_IN_A_FOLDER_MAX = 20
LINES_MAX, LINES_OF_MOST, LONGER_ONES_MAX = 80, 60, 8


def importing(*libraries: str, below: str = "") -> dict[str, set[str]]:
    """Return which modules whose names begin with `below` import something of `libraries`, and what."""
    found = {
        module: {name for name in names if name.split(".")[0] in libraries}
        for module, names in NAMES.items()
        if module.startswith(below)
    }
    return {module: names for module, names in found.items() if names}


def test_imports_point_one_way_and_every_module_has_its_room() -> None:
    assert problems(read_imports(), ROOMS) == []


def test_a_module_moved_one_floor_down_is_found() -> None:
    """As a file alone it is in no room. With the list changed too, what it imports gives it away, wherever it can."""
    imports = read_imports()
    floor = {module: number for number, room in enumerate(ROOMS) for module in modules_in(room, ROOMS)}
    given_away = 0
    for number, (below, room) in enumerate(pairwise(ROOMS)):
        for module in modules_in(room, ROOMS):
            there = f"{below.split()[0]}.moved"
            moved = {
                there if one == module else one: frozenset(there if other == module else other for other in names)
                for one, names in imports.items()
            }
            assert f"{there}: in no room; give it a place in ROOMS" in problems(moved, ROOMS)
            others = [name for name in ROOMS[room].split() if not module.endswith(f".{name}")]
            rooms = {**ROOMS, room: " ".join(others), below: f"{ROOMS[below]} moved"}
            is_above = any(floor[other] > number for other in imports[module])
            assert bool(problems(moved, rooms)) == is_above, module
            given_away += is_above
    assert given_away > len(imports) / 2


def test_an_import_of_what_is_above_is_found_for_each_two_rooms() -> None:
    plain: Imports = {module: frozenset() for room in ROOMS for module in modules_in(room, ROOMS)}
    firsts = [modules_in(room, ROOMS)[0] for room in ROOMS]
    for low, module in enumerate(firsts):
        for high, other in enumerate(firsts):
            found = problems({**plain, module: frozenset({other})}, ROOMS)
            assert bool(found) == (high > low or module == other), (module, other)


def test_a_circle_is_found_within_a_package_too() -> None:
    imports = {"a.one": frozenset({"a.two"}), "a.two": frozenset({"a.three"}), "a.three": frozenset({"a.one"})}
    assert problems(imports, {"a": "one two three"}) == ["a circle: a.one -> a.two -> a.three -> a.one"]
    assert list(circles({"a.one": frozenset({"a.two"}), "a.two": frozenset()})) == []


def test_no_folder_is_so_full_that_nothing_is_found_in_it() -> None:
    folders: dict[Path, list[str]] = {}
    for path in PATHS.values():
        folders.setdefault(path.parent.relative_to(REPOSITORY), []).append(path.name)
    full = {str(folder): len(names) for folder, names in folders.items() if len(names) > FILES_IN_A_FOLDER_MAX}
    assert full == {}
    for package, at_most in MODULES_SIDE_BY_SIDE.items():
        assert len(folders[Path(package)]) <= at_most, sorted(folders[Path(package)])


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, path in PATHS.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert {name: lines for name, lines in long.items() if lines > LINES_MAX} == {}
    assert sum(lines > LINES_OF_MOST for lines in long.values()) <= LONGER_ONES_MAX


def test_no_two_public_classes_have_one_name() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in PATHS.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}


def test_models_know_nothing_of_the_service() -> None:
    foreign = ("service", "migrations", "sqlalchemy", "alembic", "pydantic_settings", "typer", "rich")
    assert importing(*foreign, below="models") == {}


def test_only_its_own_command_knows_the_page_and_only_once_it_is_asked_for() -> None:
    """The daemon and every other command run without the page's packages."""
    asking = {module for module, names in NAMES.items() if any(name.startswith("service.web") for name in names)}
    assert {module for module in asking if not module.startswith("service.web")} == {"service.commands.web"}
    script = "import sys, service.cli; assert not {'fastapi', 'starlette', 'uvicorn', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_no_command_brings_what_only_training_needs_before_it_is_asked_for() -> None:
    """The daemon runs for years in the memory that is left once the commands are known."""
    script = "import sys, service.cli; assert not {'scipy', 'sklearn', 'pandas', 'openvino'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_torch_is_named_nowhere_in_the_service() -> None:
    assert importing(*TRAINING_ONLY, below="service") == {} == importing(*TRAINING_ONLY, below="migrations")


def test_importing_modules_starts_nothing_and_brings_no_torch() -> None:
    """No thread, no open file or socket, no logging handler, no file written, for each module the scorer may load."""
    # At the top of a module: what a function imports once it is called is its own affair.
    at_import = {module: names_at_import(path) for module, path in PATHS.items()}
    with_torch = {
        module for module, names in at_import.items() if {name.split(".")[0] for name in names} & TRAINING_ONLY
    }
    while more := {m for m, names in at_import.items() if names & with_torch} - with_torch:
        with_torch |= more
    modules = [
        module for module in PATHS
        if module not in with_torch and module not in ("service.__main__", "migrations.env")
        and not module.startswith("migrations.versions")
    ]  # fmt: skip
    script = f"""
import importlib, logging, os, sys, threading
def open_files():
    links = [f"/proc/self/fd/{{fd}}" for fd in os.listdir("/proc/self/fd")]
    return {{os.readlink(link) for link in links if os.path.exists(link)}}
files, folder = open_files(), sorted(os.listdir("."))
for name in {modules!r}:
    importlib.import_module(name)
    assert threading.active_count() == 1, (name, threading.enumerate())
    assert "torch" not in sys.modules, name
    assert not logging.getLogger().handlers, name
assert open_files() <= files, open_files() - files
assert sorted(os.listdir(".")) == folder
print(len({modules!r}))
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == len(modules) > 30


def test_torch_scores_only_from_one_module_and_only_once_a_gpu_is_found() -> None:
    """`load_detector` alone names `torch_detector`, within a function; importing it brings no torch."""
    naming = {module for module, names in NAMES.items() if "models.runtime.torch_detector" in names}
    assert naming == {"models.runtime.load_detector"}
    tree = ast.parse((REPOSITORY / "models" / "runtime" / "load_detector.py").read_text())
    assert "models.runtime.torch_detector" not in {
        node.module for node in tree.body if isinstance(node, ast.ImportFrom)
    }
    script = "import sys, models.runtime.load_detector; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_nothing_is_ever_unpickled() -> None:
    for module, path in PATHS.items():
        text = path.read_text()
        assert "torch.load(" not in text and "LOAD_TRUNCATED_IMAGES" not in text, module
    assert importing("pickle", "dill", "joblib", "shelve") == {}


def test_one_sqlite_is_used_for_all_since_two_in_a_process_drop_each_others_locks() -> None:
    owner = "service.storage.database.driver"
    assert set(importing("sqlite3", "pysqlite3")) <= {owner}
    # Tests open the same file in the same process. These are read by processes of their own, as a program of others is.
    outside = {"tests/deploy/nspawn/checks.py", "tests/faults/check_labels.py", "tests/faults/check_nothing_lost.py"}
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        if name not in outside:
            imported = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
                if alias.asname is None
            }
            assert "sqlite3" not in imported, name
