"""What retention removes: the rules that the settings make, the images that must go by them, and the counts of a run.

Pure: rows and times in, values out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from service.operations.remove_file import FOLDERS
from service.settings import Settings
from service.storage.retention import KeptImage

Reason = Literal["age", "size", "unfinished"]

GB = 1_000_000_000


@dataclass(frozen=True)
class Rule:
    """What may stay of one verdict: `age_max` and `bytes_max`; None is no limit."""

    verdict: str
    age_max: timedelta | None
    bytes_max: int | None


@dataclass(frozen=True, slots=True)
class Going:
    image: KeptImage
    reason: Reason


@dataclass
class Tally:
    """Images of one verdict by reason, their bytes, and the span of time in which they were received."""

    images: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None

    def document(self) -> dict[str, Any]:
        return {
            "pictures": self.images.total(),
            "bytes": self.bytes,
            "by_reason": dict(self.images),
            "oldest_received_at": self.oldest.isoformat() if self.oldest else None,
            "newest_received_at": self.newest.isoformat() if self.newest else None,
        }


@dataclass
class Outcome:
    """What a run did, or would do. `left` counts by reason the files that stay although their time is over."""

    tallies: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    left: Counter[str] = field(default_factory=Counter)
    folders: int = 0
    complete: bool = True

    def add(self, one: Going) -> None:
        tally, at = self.tallies[one.image.verdict], one.image.received_at
        tally.images[one.reason] += 1
        tally.bytes += one.image.bytes
        tally.oldest = min(tally.oldest or at, at)
        tally.newest = max(tally.newest or at, at)

    @property
    def images(self) -> int:
        return sum(tally.images.total() for tally in self.tallies.values())

    @property
    def bytes(self) -> int:
        return sum(tally.bytes for tally in self.tallies.values())

    def document(self) -> dict[str, Any]:
        return {
            "pictures": self.images,
            "bytes": self.bytes,
            "verdicts": {verdict: tally.document() for verdict, tally in sorted(self.tallies.items())},
            "left": dict(self.left),
            "folders": self.folders,
            "complete": self.complete,
        }


def rules_of(settings: Settings) -> list[Rule]:
    """Return the rules that the settings make; none where retention is off."""
    found = []
    for verdict in FOLDERS:
        days, gb = getattr(settings, f"keep_{verdict}_days"), getattr(settings, f"keep_{verdict}_gb")
        if days is not None or gb is not None:
            age = None if days is None else timedelta(days=days)
            found.append(Rule(verdict, age, None if gb is None else int(gb * GB)))
    return found


def rules_document(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Return `rules` as plain values, the age in days."""
    return [
        asdict(rule) | {"age_max": None if rule.age_max is None else rule.age_max / timedelta(days=1)} for rule in rules
    ]


def plan(page: Sequence[KeptImage], rule: Rule, total_bytes: int, now: datetime) -> list[Going]:
    """Return which of `page`, removable images of one verdict, oldest first, must go.

    `total_bytes` is that of all files of the verdict; the oldest go until what is left is within `rule`.
    """
    going = []
    for image in page:
        if rule.age_max is not None and now - image.received_at > rule.age_max:
            going.append(Going(image, "age"))
        elif rule.bytes_max is not None and total_bytes > rule.bytes_max:
            going.append(Going(image, "size"))
        else:
            break
        total_bytes -= image.bytes
    return going
