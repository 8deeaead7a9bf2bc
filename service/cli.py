"""The program `tamis`: finds the command asked for and turns errors into messages and exit codes.

The module of a command is imported only when it is called, so that `tamis --help` and the others start without it.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import warnings
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from models.errors import ModelError
from service import __version__
from service.errors import TamisError

# Each command with its help; that of `models` and `db` is also their own, which a test holds against this.
COMMANDS = {
    "init": "Make the folders, the settings file and the database of a root; what is there already stays.",
    "train": "Train a detector from normal images; a product's first one becomes its champion.",
    "retrain": "Retrain from new labels; a version that the gate finds better becomes the champion.",
    "run": "Watch ROOT/incoming, score what arrives, sort it and keep the record; until SIGTERM.",
    "web": "Serve the page to look at results, review images and choose models, and its JSON API; until SIGTERM.",
    "score": "Score images where they lie: verdict, score, threshold and p-value of each; with --json regions too.",
    "evaluate": "Evaluate a model on labelled images: metrics, images per second, energy.",
    "results": "Show what was decided, newest first.",
    "review": "Label images; their files go where the label says, and they are kept for training.",
    "import": "Copy images with a label into the training set; the originals stay as they are.",
    "retention": "Remove the files of old images without a label, as the settings keep_* say; their rows stay.",
    "energy": "Show Wh and grams of CO2e, per 1,000 images, per day and per kind.",
    "status": "Show whether the daemon runs, what waits and what was decided in the last 24 hours.",
    "doctor": (
        "Look at a root and this machine, and say what is wrong and what to do; exit code 1 if there is an error."
    ),
    "demo": (
        "Train on drawn parts, start the daemon, drop good and bad parts, and show what was found and what it cost."
    ),
    "models": "List, show, promote and roll back model versions; choose thresholds.",
    "db": "Upgrade, check, back up and restore the database.",
}
# Modules of service/commands that are not called as the command is.
MODULES = {"import": "import_images", "models": "versions", "db": "database"}
# Those that see to their signals themselves.
SERVICES = ("run", "web")


# Variables from which a library would take settings that change a score, an energy, a plot or what is printed, or that
# end a command: by their name, or by how it begins. Those by which people give work its threads, GPUs and proxies stay.
OF_LIBRARIES = (
    *("CODECARBON_", "SLURM_"),
    # How numbers are rounded, and which cores a thread is bound to: training and scoring would starve on the same ones.
    *("DNNL_", "ONEDNN_", "OPENBLAS_CORETYPE", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("GOMP_", "KMP_", "OMP_PLACES", "OMP_PROC_BIND"),
    # What is printed where a document in JSON is expected.
    *("MKL_VERBOSE", "OMP_DISPLAY_ENV", "OPENBLAS_VERBOSE", "OPENVINO_LOG_LEVEL", "TORCH_CPP_LOG_LEVEL", "TORCH_LOGS"),
    *("JOBLIB_", "MATPLOTLIBRC", "MPL", "NPY_", "NUMEXPR_", "PILLOW_", "PYTORCH_JIT", "SKLEARN_", "TIMM_", "TQDM_"),
    *("FORWARDED_ALLOW_IPS", "TERMINAL_WIDTH", "UVICORN_", "WEB_CONCURRENCY"),
)


class _LazyGroup(TyperGroup):
    """Lists the commands without their modules, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest


app = typer.Typer(
    name="tamis",
    cls=_LazyGroup,
    help="Visual inspection of a watched folder: learns from good parts, sorts images, counts its energy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def load(name: str) -> Any:
    """Return the command `name`, imported with its options and sub-commands."""
    module_name = MODULES.get(name, name)
    # What is imported stays: looking through it for garbage, now and ever after, would take a tenth of the start.
    gc.disable()
    module = import_module(f"service.commands.{module_name}")
    gc.freeze()
    gc.enable()
    if hasattr(module, "app"):
        return typer.main.get_group(module.app)
    one = typer.Typer(add_completion=False)
    one.command(name, help=COMMANDS[name])(getattr(module, module_name))
    return typer.main.get_command(one)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tamis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run `tamis`; the console script's entry point."""
    _speak_utf8()
    _keep_libraries_out()
    if not sys.argv[1:2] or sys.argv[1] not in SERVICES:
        # As Ctrl-C does: what a command has half made, such as the copy of a backup, is cleared away.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except (TamisError, ModelError) as error:
        typer.echo(f"tamis: {error}", err=True)
        sys.exit(getattr(error, "exit_code", TamisError.exit_code))


def _keep_libraries_out() -> None:
    """Take out of the environment what is not meant for Tamis, before a library reads it, for children too."""
    for name in [name for name in os.environ if name.startswith(OF_LIBRARIES)]:
        del os.environ[name]
    if os.environ.pop("PYTHONWARNINGS", None):
        # Else a library that tells its developers of a change to come would end a command.
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)


def _speak_utf8() -> None:
    """Have names, and what is printed, be UTF-8 whatever the locale: two commands must mean the same file by a name."""
    os.environ.pop("PYTHONIOENCODING", None)
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        # Only a start decides this. The arguments are the same bytes again.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
