"""`tamis init ROOT`: makes the folders, the settings file and the database of a root.

What exists already stays as it is. Owns the look of a new `tamis.toml`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.options import AsJson, print_json
from service.errors import ConfigurationError, TamisError, UsageError
from service.filesystem import mount_table as filesystem
from service.root import DATABASE_FILE, FOLDERS, SETTINGS_FILE
from service.settings import ProductSettings, Settings
from service.settings_file import database_url
from service.storage.database.open import has_database, name_of_database, open_database

# The first setting of each group, in the order of the class, and what the group is called.
GROUPS = {
    "instance": "The instance",
    "database_url": "Database",
    "watch_mode": "Watching",
    "file_bytes_max": "Decoding",
    "batch_size_max": "Scoring",
    "burst_gap_s": "Retraining",
    "drift_window": "Drift",
    "web_host": "Web page",
    "keep_normal_days": "Retention",
    "free_bytes_min": "Keeping safe",
    "energy_tracking": "Energy",
    "log_format": "Logs",
    "products": "Products",
}
# Settings that are not set by default have no value to show, so the file shows these.
EXAMPLES: dict[str, Any] = {
    "false_alarm_rate": 0.01,
    "threshold_fixed": 0.5,
    "cost_of_miss": 100.0,
    "cost_of_false_alarm": 1.0,
    "anomaly_prevalence": 0.01,
    "value_range": [0.0, 4095.0],
    "retrain_energy_max_wh": 20.0,
    "retrain_carbon_file": "grid_intensity.csv",
    "database_url": "postgresql://tamis@localhost/tamis",
    "web_password": "a long sentence",
    "web_user_header": "X-Forwarded-User",
    "keep_normal_days": 90.0,
    "keep_anomaly_days": 730.0,
    "keep_normal_gb": 200.0,
    "keep_anomaly_gb": 100.0,
    "energy_country": "FRA",
    "energy_cpu_max_w": 65.0,
}

_PREAMBLE = """\
# Settings of this root. Every setting is listed with its default; take away the '#' before a name to change it.
# An environment variable TAMIS_<NAME> overrides this file, an option of a command overrides both.
# `tamis doctor` shows each setting with its value and where it came from; docs/settings.md says more.
"""


@dataclass
class Made:
    """What `make_root` did: names relative to the root, those it made and those that were there."""

    root: str
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def init(
    root: Annotated[Path, typer.Argument(help="Folder to make into a root; made where it is missing.")],
    as_json: AsJson = False,
) -> None:
    made = make_root(root)
    if as_json:
        print_json(asdict(made))
        return
    for line in (*(f"made  {name}" for name in made.made), *(f"kept  {name}" for name in made.kept)):
        typer.echo(line)
    if not made.made:
        typer.echo(f"root {made.root}: everything was there already; nothing changed")
    else:
        typer.echo(f"root {made.root}: ready")
        typer.echo(f"next: tamis train --root {made.root} --product NAME --from FOLDER_OF_GOOD_IMAGES")


def make_root(root: Path) -> Made:
    """Make what is missing of a root, with modes that honour the umask, and return what was made and kept.

    Raises UsageError for what cannot be a root, ConfigurationError on a network file system, TamisError if unwritable.
    """
    root = root.absolute()
    _refuse_unfit(root)
    made = Made(str(root))
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            folder = root / name
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise UsageError(f"{folder}: expected a folder or nothing; found a link or a file; move it away first")
            if folder.is_dir():
                made.kept.append(f"{name}/")
            else:
                folder.mkdir()
                made.made.append(f"{name}/")
        _make_settings(root, made)
        _make_database(root, made)
    except OSError as error:
        raise TamisError(
            f"root {root}: expected a folder that can be written; found {error.strerror}"
            f" ({error.filename}); check its owner and mode"
        ) from None
    return made


def settings_text() -> str:
    """Return a new `tamis.toml`: every setting with its description and default, each commented out."""
    lines = [_PREAMBLE]
    for name, about in Settings.model_fields.items():
        if name in GROUPS:
            lines.append(f"\n# --- {GROUPS[name]} ---\n")
        unset = about.default is None
        lines.append(f"# {about.description}{' (not set by default)' if unset else ''}")
        if name == "products":
            lines.append("#[products.NAME]")
            defaults = {own: Settings.model_fields[own].default for own in ProductSettings.model_fields}
            lines += [f"#{own} = {toml_value(EXAMPLES.get(own, default))}" for own, default in defaults.items()]
        else:
            lines.append(f"#{name} = {toml_value(EXAMPLES[name] if unset else about.default)}")
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """Return `value`, a setting's, as TOML writes it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}"
    return json.dumps(value, ensure_ascii=False)  # booleans, floats and strings look the same in both


def _refuse_unfit(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UsageError(f"root {root}: expected a folder or nothing; found a file")
    real = root.resolve()
    for above in real.parents:
        if (above / SETTINGS_FILE).is_file():
            raise UsageError(
                f"root {root}: lies inside the root {above}, which would take its files for images;"
                " choose a folder outside it"
            )
        if above.exists() and not above.is_dir():
            raise UsageError(f"root {root}: expected folders on the way to it; found the file {above}")
    there = next(path for path in (real, *real.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise TamisError(
            f"root {root}: cannot write in {there}; run this as a user who can, or change its owner with chown"
        )
    try:
        mount = filesystem.mount_of(real)
    except (OSError, ValueError):
        return  # no mount table to read; opening the database looks again
    if filesystem.is_network(mount.type):
        raise ConfigurationError(
            f"root {root}: expected a local file system; found {mount.type} ({mount.source}), on which the"
            " database's locks are not safe. Put the root on a local disk and share its incoming/ from there"
        )


def _make_settings(root: Path, made: Made) -> None:
    try:
        with (root / SETTINGS_FILE).open("x", encoding="utf-8") as file:
            file.write(settings_text())
    except FileExistsError:
        made.kept.append(SETTINGS_FILE)
        return
    made.made.append(SETTINGS_FILE)


def _make_database(root: Path, made: Made) -> None:
    name = DATABASE_FILE if database_url(root) is None else name_of_database(root)
    if has_database(root):
        made.kept.append(name)  # an older one is left for `tamis db upgrade`
        return
    open_database(root, create=True).dispose()
    made.made.append(name)
