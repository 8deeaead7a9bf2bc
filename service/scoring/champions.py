"""Champions: the model version that a product's images are judged by, for commands that judge on request.

Owns the choice among versions by name or by being champion, and the product that stands in. The daemon's own
way, which falls back to older versions and alerts, is in `service.scoring.scorers`.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from models.errors import ModelCorrupt
from models.registry import ModelVersion, verify
from service.errors import ConfigurationError, TamisError
from service.root import DEFAULT_PRODUCT, MODELS
from service.storage import versions
from service.storage.versions import VersionRow


def load_version(
    root: Path, engine: Engine, product: str, version: str | None = None
) -> tuple[ModelVersion, VersionRow]:
    """Return the verified version that judges `product`, and its row.

    It is the product's champion, or the version named; a product without a model uses those of `default`. Raises
    TamisError naming the products or versions that there are, ConfigurationError where the folder is not what
    was registered.
    """
    row = _champion(engine, product) if version is None else _named(engine, product, version)
    try:
        return verify(root / MODELS / row.product / row.version, row.sha256), row
    except ModelCorrupt as error:
        raise ConfigurationError(
            f"product {row.product}, version {row.version}: {error}; restore the folder from a backup, or "
            f"choose another version with --version or `tamis models promote`"
        ) from None


def has_champion(engine: Engine, product: str) -> bool:
    """Return whether `product` has a champion of its own."""
    with engine.connect() as connection:
        return versions.champion(connection, product) is not None


def _champion(engine: Engine, product: str) -> VersionRow:
    with engine.connect() as connection:
        champions = versions.champions(connection)
    row = champions.get(product) or champions.get(DEFAULT_PRODUCT)
    if row is None:
        there = f"products with one: {', '.join(sorted(champions))}" if champions else "no product has one yet"
        raise TamisError(
            f"product {product}: expected a champion, its own or that of {DEFAULT_PRODUCT!r}; {there}; "
            f"train one with `tamis train --product {product} --from DIR`"
        )
    return row


def _named(engine: Engine, product: str, version: str) -> VersionRow:
    with engine.connect() as connection:
        own = versions.versions(connection, product)
        owner = product if own else DEFAULT_PRODUCT
        known = own or versions.versions(connection, DEFAULT_PRODUCT)
    for row in known:
        if row.version == version:
            return row
    there = ", ".join(sorted(row.version for row in known)) or "none"
    raise TamisError(f"product {owner}: expected a version named {version!r}; found {there}")
