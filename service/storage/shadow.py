"""Statements on shadow scores: what a challenger said of images that the champion judged.

A version is named by its product and its name, since versions trained jointly share the name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, literal, select, true

from service.storage.database.insert_new import insert_new
from service.storage.reviews import last_label
from service.storage.tables import results_view
from service.storage.tables import retrainings_table as _runs
from service.storage.tables import shadow_scores_table as _scores


@dataclass(frozen=True, slots=True)
class ShadowRecord:
    """What the version `version` of `product` said of an image, and the verdict that the image got."""

    image_id: str
    product: str
    version: str
    score: float
    threshold: float
    verdict: str
    champion_verdict: str


@dataclass(frozen=True, slots=True)
class ShadowSummary:
    """A challenger beside the champion, on the images that both scored; the rates are of anomalies, None of none."""

    images: int
    disagreements: int
    champion_rate: float | None
    challenger_rate: float | None


@dataclass(frozen=True, slots=True)
class GatedRun:
    """The retraining that made a version: its outcome, the champion it was compared with, and whether it passed."""

    id: int
    outcome: str | None
    champion: str | None
    passed: bool | None


SHADOWED = ("score", "threshold", "verdict")

_insert = insert_new(_scores)
_of_version = and_(_scores.c.product == bindparam("product"), _scores.c.version == bindparam("version"))
_verdicts = (_scores.c.verdict, _scores.c.champion_verdict)
_counts = select(*_verdicts, func.count()).where(_of_version).group_by(*_verdicts)
_some = select(literal(1)).where(_of_version).limit(bindparam("enough"))
_label = last_label(_scores.c.image_id)
_differ = _scores.c.verdict != _scores.c.champion_verdict


def record(connection: Connection, records: Sequence[ShadowRecord]) -> None:
    """Insert `records` in the transaction of their images' own rows; what is there already stays as it is."""
    if records:
        connection.execute(_insert, [asdict(one) for one in records])


def summary(connection: Connection, product: str, version: str) -> ShadowSummary:
    """Return how the version did beside the champions of its time."""
    images = disagreements = by_champion = by_challenger = 0
    for verdict, champion_verdict, count in connection.execute(_counts, {"product": product, "version": version}):
        images += count
        disagreements += count * (verdict != champion_verdict)
        by_challenger += count * (verdict == "anomaly")
        by_champion += count * (champion_verdict == "anomaly")
    if not images:
        return ShadowSummary(0, 0, None, None)
    return ShadowSummary(images, disagreements, by_champion / images, by_challenger / images)


def has_scored(connection: Connection, product: str, version: str, images: int) -> bool:
    """Return whether the version scored at least so many `images`; counts no further."""
    of = {"product": product, "version": version, "enough": images}
    return len(connection.execute(_some, of).all()) >= images


def disagreements(
    connection: Connection, product: str, version: str, limit: int, before: tuple[bool, str] | None = None
) -> list[dict[str, Any]]:
    """Return images on which the version and the champion differ: those without a label first, then newest first.

    Each is a row of the view `results` with `shadow_score`, `shadow_threshold` and `shadow_verdict` beside it. `before`
    is of the last row of the page before this one: whether it had a label, and its id.
    """
    rows: list[dict[str, Any]] = []
    first, last = before or (False, None)
    for labelled in (False, True)[first:]:
        if len(rows) < limit:
            rows += _differing(connection, product, version, limit - len(rows), labelled=labelled, before=last)
        last = None
    return rows


def gated_run(connection: Connection, product: str, version: str) -> GatedRun | None:
    """Return the latest retraining that made the version; None where no retraining did."""
    of_version = and_(_runs.c.product == product, _runs.c.challenger == version)
    statement = select(_runs).where(of_version).order_by(_runs.c.id.desc()).limit(1)
    row = connection.execute(statement).one_or_none()
    return None if row is None else GatedRun(row.id, row.outcome, row.champion, _passed(row.gate))


def _differing(
    connection: Connection, product: str, version: str, limit: int, *, labelled: bool, before: str | None
) -> list[dict[str, Any]]:
    # Ids are in order of time, and the index of disagreements is in order of ids: nothing is sorted.
    page = (
        select(_scores.c.image_id, *(_scores.c[name].label(f"shadow_{name}") for name in SHADOWED))
        .where(
            _scores.c.product == product,
            _scores.c.version == version,
            _differ,
            _label.is_not(None) if labelled else _label.is_(None),
            _scores.c.image_id < before if before is not None else true(),
        )
        .order_by(_scores.c.image_id.desc())
        .limit(limit)
        .subquery()
    )
    statement = (
        select(results_view, *(page.c[f"shadow_{name}"] for name in SHADOWED))
        .select_from(page.join(results_view, results_view.c.id == page.c.image_id))
        .order_by(page.c.image_id.desc())
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def _passed(gate: str | None) -> bool | None:
    """Return whether the comparison in `gate` says that the challenger passed; None where it says neither."""
    try:
        found = json.loads(gate or "null")
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if isinstance(passed := found.get("passed"), bool):
        return passed
    return found["decision"] == "better" if isinstance(found.get("decision"), str) else None
