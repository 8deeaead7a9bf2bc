"""The structure that docs/architecture.md draws, held against what the modules import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "models", "migrations")
MODULES = sorted(
    str(path.relative_to(REPOSITORY).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob("*.py")
)
STEPS = frozenset(
    {
        "names", "settle", "watch", "claim", "decode", "batch", "decide", "score", "deliver", "record", "recover",
        "energy", "maps", "notify", "logs", "filesystem", "explore", "drift", "drift_watch", "shadow", "probation",
        "retention",
        "place", "roles", "review",
        "training_set", "folder_memory", "folder_labels",
    }
)  # fmt: skip
# Who may be imported by whom: a module may import its own layer and those below it.
LAYERS = ["storage", "steps", "web", "pipeline", "daemon", "commands", "cli"]
TRAINING_ONLY = frozenset({"torch", "torchvision", "timm"})


def imports_of(module: str) -> set[str]:
    path = REPOSITORY / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = REPOSITORY / module.replace(".", "/") / "__init__.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "service" or len(parts) < 2:
        return None
    if parts[1] in ("storage", "web", "commands", "daemon", "cli"):
        return parts[1]
    if parts[1] in ("pipeline", "intake", "inspection", "workers", "folder_watch"):
        return "pipeline"
    return "steps" if parts[1] in STEPS else None


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("models")])
def test_models_know_nothing_of_the_service(module: str) -> None:
    foreign = {"service", "migrations", "sqlalchemy", "alembic", "pydantic", "pydantic_settings", "typer", "rich"}
    assert {name for name in imports_of(module) if name.split(".")[0] in foreign} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m)])
def test_imports_point_one_way(module: str) -> None:
    own = layer_of(module)
    assert own is not None
    # What a layer needs of a value's type may live below; `filesystem` and `settings` are leaves anyone may read.
    above = {
        name
        for name in imports_of(module)
        if (layer := layer_of(name))
        and LAYERS.index(layer) > LAYERS.index(own)
        and name != "service.filesystem.mount_table"
    }
    assert {name for name in above if not name.startswith("service.filesystem.mount_table")} == set()


def test_only_its_own_command_knows_the_page_and_only_once_it_is_asked_for() -> None:
    """The daemon and every other command run without the page's packages."""
    asking = {m for m in MODULES for name in imports_of(m) if name.startswith("service.web")}
    assert {m for m in asking if not m.startswith("service.web")} == {"service.commands.web"}
    script = "import sys, service.cli; assert not {'fastapi', 'starlette', 'uvicorn', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_no_command_brings_what_only_training_needs_before_it_is_asked_for() -> None:
    """The daemon runs for years in the memory that is left once the commands are known."""
    script = "import sys, service.cli; assert not {'scipy', 'sklearn', 'pandas', 'openvino'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("models")])
def test_torch_is_named_nowhere_in_the_service(module: str) -> None:
    assert {name for name in imports_of(module) if name.split(".")[0] in TRAINING_ONLY} == set()


def test_importing_modules_starts_nothing_and_brings_no_torch() -> None:
    """No thread, no open file or socket, no logging handler, no file written, for each module the scorer may load."""
    trained_with_torch = {m for m in MODULES if m.startswith("models") and imports_of(m) & TRAINING_ONLY}
    modules = [
        m for m in MODULES
        if m not in trained_with_torch and not imports_of(m) & trained_with_torch
        and m not in ("service.__main__", "migrations.env") and not m.startswith("migrations.versions")
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
    naming = {module for module in MODULES if "models.runtime.torch_detector" in imports_of(module)}
    assert naming == {"models.runtime.load_detector"}
    tree = ast.parse((REPOSITORY / "models" / "detectors.py").read_text())
    assert "models.runtime.torch_detector" not in {
        node.module for node in tree.body if isinstance(node, ast.ImportFrom)
    }
    script = "import sys, models.runtime.load_detector; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_ever_unpickled(module: str) -> None:
    path = REPOSITORY / (module.replace(".", "/") + ".py")
    text = path.read_text() if path.exists() else ""
    assert "torch.load(" not in text and "LOAD_TRUNCATED_IMAGES" not in text
    assert {
        name for name in imports_of(module) if name.split(".")[0] in {"pickle", "dill", "joblib", "shelve"}
    } == set()
