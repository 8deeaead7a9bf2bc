"""The states of an image's row; docs/database.md says what each means."""

from __future__ import annotations

SCORED = "scored"
PLACED = "placed"
QUARANTINED = "quarantined"
MISSING = "missing"
CONFLICT = "conflict"
