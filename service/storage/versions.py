"""Statements on model versions: register them, and say which is the champion of its product.

The files of a version belong to `models.registry`; which is champion is kept here, with the history for rollbacks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Update, insert, select, update

from service.errors import TamisError
from service.storage.tables import promotions_table as _promotions
from service.storage.tables import versions_table as _versions


@dataclass(frozen=True)
class VersionRow:
    """A row of the view `model_versions`; None is unknown.

    `training_wh` in Wh, `images` those that it was trained on, `sha256` that of its model.json.
    """

    product: str
    version: str
    kind: str
    created_at: datetime
    state: str
    reason: str | None
    threshold: float | None
    image_auroc: float | None
    f1: float | None
    false_alarm_rate: float | None
    training_wh: float | None
    images: int | None
    sha256: str


_rows = select(*(_versions.c[name] for name in VersionRow.__dataclass_fields__))


def register(connection: Connection, **values: Any) -> None:
    """Insert a version of the `values` of `VersionRow`; as `champion` it is promoted, and the champion so far retires.

    Raises TamisError where the version is registered already: a version never changes.
    """
    row = VersionRow(**values)
    if get(connection, row.product, row.version) is not None:
        raise TamisError(f"model {row.product}/{row.version}: expected a new version; found it registered already")
    is_champion = row.state == "champion"
    connection.execute(insert(_versions).values(values | {"state": "challenger"} if is_champion else values))
    if is_champion:
        promote(connection, row.product, row.version, row.reason)


def champion(connection: Connection, product: str) -> VersionRow | None:
    """Return the champion of `product`, or None; the product `default` is not looked at in its place."""
    return champions(connection, product).get(product)


def champions(connection: Connection, product: str | None = None) -> dict[str, VersionRow]:
    statement = _rows.where(_versions.c.state == "champion")
    if product is not None:
        statement = statement.where(_versions.c.product == product)
    return {row.product: VersionRow(*row) for row in connection.execute(statement)}


def versions(connection: Connection, product: str | None = None) -> list[VersionRow]:
    """Return all versions, of `product` if given, by product and newest first."""
    statement = _rows.order_by(_versions.c.product, _versions.c.created_at.desc(), _versions.c.version.desc())
    if product is not None:
        statement = statement.where(_versions.c.product == product)
    return [VersionRow(*row) for row in connection.execute(statement)]


def known(connection: Connection, product: str, version: str) -> VersionRow:
    """Return that version. Raises TamisError for an unknown one, with those there are."""
    row = get(connection, product, version)
    if row is None:
        raise TamisError(_unknown(connection, product, version))
    return row


def get(connection: Connection, product: str, version: str) -> VersionRow | None:
    statement = _rows.where(_versions.c.product == product, _versions.c.version == version)
    row = connection.execute(statement).one_or_none()
    return None if row is None else VersionRow(*row)


def promote(
    connection: Connection, product: str, version: str, reason: str | None, at: datetime | None = None
) -> VersionRow:
    """Make `version` the champion of `product`, and return it; the champion so far retires.

    The champion itself stays as it is. `at` is the time of it, now if not given. Raises TamisError for an
    unknown version, with those there are.
    """
    wanted = known(connection, product, version)
    return wanted if wanted.state == "champion" else _crown(connection, product, version, "promote", reason, at)


def reject(connection: Connection, product: str, version: str, reason: str) -> None:
    """Say of a challenger that it was not good enough; a version in any other state stays as it is."""
    connection.execute(_challenger(product, version).values(state="rejected", reason=reason))


def explain(connection: Connection, product: str, version: str, reason: str) -> None:
    """Say why a challenger is one still."""
    connection.execute(_challenger(product, version).values(reason=reason))


def rollback(connection: Connection, product: str, reason: str | None, at: datetime | None = None) -> VersionRow:
    """Make the champion before this one champion again, and return it; again goes one further back.

    Raises TamisError where `product` has no champion, or never had another.
    """
    line = _line_of(connection, product)
    if len(line) < 2:
        found = f"{line[0]} alone" if line else "none"
        raise TamisError(f"product {product}: expected an earlier champion to go back to; found {found}")
    return _crown(connection, product, line[-2], "rollback", reason, at)


def previous(connection: Connection, product: str) -> str | None:
    """Return the version that a rollback would make champion of `product`; None where there is none."""
    line = _line_of(connection, product)
    return line[-2] if len(line) > 1 else None


def _challenger(product: str, version: str) -> Update:
    of_version = update(_versions).where(_versions.c.product == product, _versions.c.version == version)
    return of_version.where(_versions.c.state == "challenger")


def _line_of(connection: Connection, product: str) -> list[str]:
    history = select(_promotions.c.action, _promotions.c.version).where(_promotions.c.product == product)
    return _line(tuple(row) for row in connection.execute(history.order_by(_promotions.c.id)))


def _line(history: Iterable[tuple[str, str]]) -> list[str]:
    """Return the champions that lead to the present one, oldest first; `history` is of (action, version)."""
    line: list[str] = []
    for action, version in history:
        if action == "promote":
            line.append(version)
        else:
            line.pop()
    return line


def _crown(
    connection: Connection, product: str, version: str, action: str, reason: str | None, at: datetime | None
) -> VersionRow:
    of_product = _versions.c.product == product
    # First the old one steps down: at no time are there two, the index would refuse it.
    retired = f"{'replaced by' if action == 'promote' else 'rolled back to'} {version}"
    champion, wanted = _versions.c.state == "champion", _versions.c.version == version
    connection.execute(update(_versions).where(of_product, champion).values(state="retired", reason=retired))
    connection.execute(update(_versions).where(of_product, wanted).values(state="champion", reason=reason))
    change = {"product": product, "version": version, "action": action, "reason": reason}
    connection.execute(insert(_promotions).values(change | {"at": at or datetime.now(UTC)}))
    return known(connection, product, version)


def _unknown(connection: Connection, product: str, version: str) -> str:
    known = [row.version for row in versions(connection, product)]
    if known:
        return f"model {product}/{version}: no such version; there are {', '.join(known)}"
    others = ", ".join(sorted({row.product for row in versions(connection)})) or "none"
    return f"model {product}/{version}: product {product} has no versions; products with some: {others}"
