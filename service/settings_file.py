"""Reads `tamis.toml`, and the one setting that commands need which need no other: where the database is."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from service.root import SETTINGS_FILE

ENVIRONMENT_PREFIX = "TAMIS_"


def read_toml(path: Path) -> dict[str, Any]:
    """Return what the file says. Raises ConfigurationError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    # Not only what is not TOML or not UTF-8: an integer of 5,000 digits is a ValueError too.
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected TOML; found {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: expected TOML; found lists or tables nested too deeply") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a file that can be read; found {error.strerror}") from None


def database_url(root: Path) -> str | None:
    """Return the setting `database_url` of `root`, None where there is none. Raises ConfigurationError."""
    name = ENVIRONMENT_PREFIX + "DATABASE_URL"
    value: Any = next((value for variable, value in os.environ.items() if variable.upper() == name), None)
    path = root / SETTINGS_FILE
    if value is None and path.is_file():
        value = read_toml(path).get("database_url")
        if not isinstance(value, str | None):
            raise ConfigurationError(f"{path}: setting database_url: expected text; found {value!r}")
    return value or None
