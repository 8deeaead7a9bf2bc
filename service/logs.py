"""Logs: one line per event on stderr, for people (`plain`) or machines (`json`)."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

_FIELDS = "fields"


def configure(log_format: str, level: str) -> None:
    """Send the service's log to stderr in `log_format`, from `level` on."""
    root = logging.getLogger()
    root.handlers = [_handler(log_format)]
    root.setLevel(level)


def warn_before_start(log: logging.Logger, log_format: str, message: str) -> None:
    """Write `message` as the warning that it will be once `configure` is called, which it is not for each command."""
    record = log.makeRecord(log.name, logging.WARNING, "", 0, message, (), None)
    _handler(log_format).handle(record)


def _handler(log_format: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _PlainFormatter())
    return handler


def fields(**values: Any) -> dict[str, Any]:
    """Return `values` in the form that a log call takes as `extra`."""
    return {_FIELDS: values}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [record.levelname.lower() + ":" if record.levelno >= logging.WARNING else "", record.getMessage()]
        parts += [
            f"{name}={_shown(value)}" for name, value in getattr(record, _FIELDS, {}).items() if value is not None
        ]
        line = " ".join(part for part in parts if part).replace("\n", "\\n")
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return json.dumps(text) if " " in text or not text.isprintable() else text


class RateLimit:
    """Lets `lines_max` lines through in each `period_s`, and counts those that it suppresses."""

    def __init__(self, lines_max: int, period_s: float) -> None:
        self._lines_max = lines_max
        self._period_s = period_s
        self._began_at = float("-inf")
        self._lines = 0
        self._left_out = 0

    def allows(self, now: float) -> bool:
        """Return whether a line may be written at `now`, monotonic s."""
        if now - self._began_at >= self._period_s:
            self._began_at, self._lines = now, 0
        self._lines += 1
        if self._lines > self._lines_max:
            self._left_out += 1
            return False
        return True

    def take_left_out(self) -> int:
        """Return how many lines were suppressed since the last call."""
        left_out, self._left_out = self._left_out, 0
        return left_out


class Repeated:
    """Says of something that goes on when it is worth a line: once it is new, and again after each `period_s`."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._what: str | None = None
        self._again_at = float("-inf")

    def is_worth_a_line(self, what: str | None, now: float) -> bool:
        """Return whether `what` is at `now`, monotonic s; None is that it ended. Numbers in it make it no other."""
        what = None if what is None else re.sub(r"\d+", "", what)
        if what is None or (what == self._what and now < self._again_at):
            self._what = what
            return False
        self._what, self._again_at = what, now + self._period_s
        return True
