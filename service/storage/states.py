"""The states of an image's row; docs/database.md says what each means."""

from __future__ import annotations

SCORED = "scored"
PLACED = "placed"
QUARANTINED = "quarantined"
MISSING = "missing"
CONFLICT = "conflict"

ATTEMPTS_EXHAUSTED = "attempts_exhausted"
"""The `error_code` of an image that ended what read or scored it, each time that was tried."""
