"""Errors that end a command, with the exit code that goes with each.

A message names the thing, what was expected and what was found, and what to do about it where that is known.
"""

from __future__ import annotations


class TamisError(Exception):
    """The command failed: exit code 1."""

    exit_code = 1


class UsageError(TamisError):
    """The command was called wrongly: exit code 2."""

    exit_code = 2


class ConfigurationError(TamisError):
    """Settings, schema, model or folder refuse a start: exit code 78 (EX_CONFIG); a restart would not help."""

    exit_code = 78


class RootMissing(ConfigurationError):
    """The root is not there, or bare: never made, or a disk that is not mounted."""
