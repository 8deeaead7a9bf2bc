"""Active versions: which version scores a product's images, which one scores beside it, and at which chosen rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from models.errors import ModelCorrupt
from models.registry import ModelVersion, verify
from service.errors import ConfigurationError, TamisError
from service.root import DEFAULT_PRODUCT, MODELS
from service.storage import shadow, thresholds, versions
from service.storage.database.open import trouble
from service.storage.versions import VersionRow

T = TypeVar("T")

# Fewer images than this cannot tell a flood of alarms from chance. A challenger that saw fewer scores on, beyond its
# hours.
SHADOW_IMAGES_MIN = 30


@dataclass(frozen=True)
class ActiveVersions:
    """By product: its champion and, should that be damaged, those before it; and the rates that people chose."""

    champions: Mapping[str, list[VersionRow]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


def unless_locked(connect: Callable[[], Connection], read: Callable[[Connection], T]) -> T | None:
    """Return what `read` finds, for the loop, which waits for nobody: None while the database is locked.

    `connect` gives connections that read, and give up soon on a lock.
    """
    try:
        with connect() as connection:
            return read(connection)
    except OperationalError as error:
        if trouble(error) is None:
            raise
        return None


def active_versions(connection: Connection) -> ActiveVersions:
    """Return the versions that score, and the chosen rates."""
    rows = versions.versions(connection)
    return ActiveVersions(
        {
            product: [champion, *(row for row in rows if row.product == product and row.state == "retired")]
            for product, champion in versions.champions(connection).items()
        },
        thresholds.chosen(connection),
    )


def challengers_in_shadow(connection: Connection, hours: float, now: datetime) -> dict[str, VersionRow]:
    """Return, per product, the challenger that scores beside the champion at `now`: the newest, in its hours.

    One that has scored too few images to be compared goes on beyond its hours.
    """
    found = {}
    for product, row in newest_challengers(connection).items():
        in_hours = now < row.created_at + timedelta(hours=hours)
        if hours and (in_hours or not shadow.has_scored(connection, product, row.version, SHADOW_IMAGES_MIN)):
            found[product] = row
    return found


def newest_challengers(connection: Connection) -> dict[str, VersionRow]:
    """Return the newest challenger of each product."""
    found: dict[str, VersionRow] = {}
    for row in versions.versions(connection):
        if row.state == "challenger":
            found.setdefault(row.product, row)
    return found


def champion_row(connection: Connection, product: str) -> VersionRow:
    """Return the champion that scores `product`: its own or that of `default`. Raises TamisError if there is none."""
    champions = versions.champions(connection)
    row = champions.get(product) or champions.get(DEFAULT_PRODUCT)
    if row is None:
        there = f"products with one: {', '.join(sorted(champions))}" if champions else "no product has one yet"
        raise TamisError(
            f"product {product}: expected a champion, its own or that of {DEFAULT_PRODUCT!r}; {there}; "
            f"train one with `tamis train --product {product} --from DIR`"
        )
    return row


def has_champion(engine: Engine, product: str) -> bool:
    """Return whether `product` has a champion of its own."""
    with engine.connect() as connection:
        return versions.champion(connection, product) is not None


def load_version(
    root: Path, engine: Engine, product: str, version: str | None = None
) -> tuple[ModelVersion, VersionRow]:
    """Return the verified version that scores `product`, by name or its champion or that of `default`, and its row.

    Raises TamisError naming the products or versions that there are, ConfigurationError for a folder that has changed.
    """
    with engine.connect() as connection:
        row = champion_row(connection, product) if version is None else _named(connection, product, version)
    try:
        return verify(root / MODELS / row.product / row.version, row.sha256), row
    except ModelCorrupt as error:
        raise ConfigurationError(
            f"product {row.product}, version {row.version}: {error}; restore the folder from a backup, or "
            f"choose another version with --version or `tamis models promote`"
        ) from None


def _named(connection: Connection, product: str, version: str) -> VersionRow:
    own = versions.versions(connection, product)
    known = own or versions.versions(connection, DEFAULT_PRODUCT)
    for row in known:
        if row.version == version:
            return row
    there = ", ".join(sorted(row.version for row in known)) or "none"
    owner = product if own else DEFAULT_PRODUCT
    raise TamisError(f"product {owner}: expected a version named {version!r}; found {there}")
