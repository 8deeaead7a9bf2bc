"""Reads `tamis.toml`, and the one setting that commands need which need no other: where the database is.

Tells the variables that set something from those that Kubernetes and Docker make for a service of the name `tamis`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from service.root import SETTINGS_FILE

ENVIRONMENT_PREFIX = "TAMIS_"
# Kubernetes gives these to each container beside a service `tamis` or `tamis-...`, Docker to one linked to such a one.
_OF_SERVICES = re.compile(
    r"TAMIS_([A-Z0-9_]+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|PORT_START|PORT_END))?|ENV_\w+)"
)
_ADDRESS_OF_SERVICE = re.compile(r"(tcp|udp|sctp)://\S*", re.IGNORECASE)


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


def variables_of_services(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables that say `TAMIS_...` and are no settings: what is made for a service of such a name."""
    return sorted(name for name, value in environment.items() if _is_of_service(name.upper(), value))


def _is_of_service(name: str, value: str) -> bool:
    if not name.startswith(ENVIRONMENT_PREFIX):
        return False
    # The setting `web_port` and the address of a service `tamis-web` have one name.
    if name.endswith("_PORT") and _ADDRESS_OF_SERVICE.fullmatch(value):
        return True
    if name.endswith("_NAME") and value.startswith("/"):
        return True
    return _OF_SERVICES.fullmatch(name) is not None


def database_url(root: Path) -> str | None:
    """Return the setting `database_url` of `root`, None where there is none. Raises ConfigurationError."""
    name = ENVIRONMENT_PREFIX + "DATABASE_URL"
    value: Any = next((value for variable, value in os.environ.items() if variable.upper() == name), None)
    path = root / SETTINGS_FILE
    if value is None and path.is_file():
        value = read_toml(path).get("database_url")
        if not isinstance(value, str | None):
            kind = type(value).__name__  # and not the value, which may hold a password
            raise ConfigurationError(f"{path}: setting database_url: expected text; found {kind}, not shown here")
    return value or None
