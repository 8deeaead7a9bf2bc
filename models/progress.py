"""How far a training is: the value that it reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps of `stage` (reading, features, training, calibrating, exporting) are done.

    `note` is a sentence for the person who waits, such as an image that was skipped; mostly None.
    """

    stage: str
    done: int
    total: int
    note: str | None = None
