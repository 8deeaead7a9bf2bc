"""`tamis models`: lists the versions, shows one, and says which is the champion of its product."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from models import registry
from models.registry import ModelVersion
from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json, print_result, print_table, product_option
from service.commands.threshold import threshold
from service.errors import TamisError, UsageError
from service.names import composed
from service.root import MODELS
from service.scoring.threshold_policy import reason_not_to_promote
from service.settings import Settings
from service.storage import shadow, versions
from service.storage.database.open import open_database
from service.storage.versions import VersionRow

app = typer.Typer(help="List, show, promote and roll back model versions; choose thresholds.", no_args_is_help=True)
app.command()(threshold)

LIST_COLUMNS = (
    *("product", "version", "kind", "state", "created_at"),
    *("image_auroc", "f1", "threshold", "images", "shadow", "reason"),
)

# A longer list, such as the calibration's scores, is not shown.
LIST_MAX = 16

# By its place, or by name as other commands take it; then the place is the next word's.
First = Annotated[str | None, typer.Argument(metavar="PRODUCT", help="The product.", show_default=False)]
Second = Annotated[str | None, typer.Argument(metavar="VERSION", show_default=False)]
OfProduct = Annotated[str | None, typer.Option("--product", help="The product, instead of PRODUCT.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the version.")]


@app.command("list")
def list_(
    root: Root, product: Annotated[str | None, product_option("Of this product.")] = None, as_json: AsJson = False
) -> None:
    """List the versions, newest first, with their state and figures."""
    with open_database(root, read_only=True) as engine, engine.connect() as connection:
        rows = [
            _plain(row) | {"shadow": _seen_in_shadow(connection, row)} for row in versions.versions(connection, product)
        ]
    if as_json:
        print_json(rows)
    else:
        print_table([row | {"shadow": _shadow_text(row["shadow"])} for row in rows], LIST_COLUMNS)


@app.command()
def show(
    root: Root,
    first: First = None,
    second: Second = None,
    of_product: OfProduct = None,
    as_json: AsJson = False,
) -> None:
    """Show one version, without VERSION the champion, and check its files against their hashes."""
    product, version = _asked_for("show", of_product, first, second)
    with open_database(root, read_only=True) as engine, engine.connect() as connection:
        row = versions.get(connection, product, version) if version else versions.champion(connection, product)
        if row is None:
            known = ", ".join(r.version for r in versions.versions(connection, product)) or "none"
            raise TamisError(f"model {product}/{version or 'champion'}: not found; versions there are: {known}")
        seen = _seen_in_shadow(connection, row)
    folder = _folder(root, row)
    manifest = registry.verify(folder, row.sha256).manifest.as_plain()
    facts = {name: value for name, value in manifest.items() if not (isinstance(value, list) and len(value) > LIST_MAX)}
    document = {**_plain(row), "shadow": seen, "folder": str(folder), "verified": True, "manifest": facts}
    if as_json:
        print_json(document)
        return
    lines = {**facts, **{name: value for name, value in document.items() if name not in ("manifest", "shadow")}}
    lines["shadow"] = _shadow_text(seen)
    rows = [{"fact": name, "value": value if value is None else str(value)} for name, value in lines.items()]
    print_table(rows, ("fact", "value"))


@app.command()
def promote(
    root: Root,
    first: First = None,
    second: Second = None,
    of_product: OfProduct = None,
    reason: Reason = "promoted by hand",
    as_json: AsJson = False,
) -> None:
    """Make a version the champion of its product, once its files are checked and it can keep the chosen rate."""
    product, version = _asked_for("promote", of_product, first, second)
    if version is None:
        raise UsageError(f"models promote: expected PRODUCT and VERSION; found {product!r} alone")
    settings = settings_module.load(root)
    with open_database(root) as engine:
        with engine.connect() as connection:
            row = versions.known(connection, product, version)
        verified = registry.verify(_folder(root, row), row.sha256)
        with engine.begin() as connection:
            _refuse_unfit(connection, settings, verified)
            now = versions.promote(connection, product, version, reason)
    _say_champion(now, as_json)


@app.command()
def rollback(
    root: Root,
    first: First = None,
    of_product: OfProduct = None,
    reason: Reason = "rolled back by hand",
    as_json: AsJson = False,
) -> None:
    """Make the champion before this one champion again, once its files are checked and it can keep the chosen rate."""
    product, _ = _asked_for("rollback", of_product, first)
    settings = settings_module.load(root)
    with open_database(root) as engine, engine.begin() as connection:
        now = versions.rollback(connection, product, reason)
        # Inside the transaction: a version that is not whole leaves the champion as it was.
        _refuse_unfit(connection, settings, registry.verify(_folder(root, now), now.sha256))
    _say_champion(now, as_json)


def _asked_for(command: str, of_product: str | None, *words: str | None) -> tuple[str, str | None]:
    """Return the product, and the version if there is one: of `words`, the product first unless it is `of_product`."""
    given = [word for word in (of_product, *words) if word is not None]
    if not given:
        raise UsageError(f"models {command}: expected a product, as PRODUCT or --product PRODUCT; found none")
    if len(given) > len(words):
        raise UsageError(f"models {command}: expected a product once; found --product {of_product} and {words[0]!r}")
    return composed(given[0]), given[1] if len(given) > 1 else None


def _refuse_unfit(connection: Connection, settings: Settings, version: ModelVersion) -> None:
    if reason := reason_not_to_promote(connection, settings, version):
        raise TamisError(reason)


def _say_champion(row: VersionRow, as_json: bool) -> None:
    print_result(_plain(row), f"champion of {row.product}: {row.version} ({row.reason})", as_json)


def _folder(root: Path, row: VersionRow) -> Path:
    return root / MODELS / row.product / row.version


def _plain(row: VersionRow) -> dict[str, Any]:
    return asdict(row) | {"created_at": row.created_at.isoformat()}


def _seen_in_shadow(connection: Connection, row: VersionRow) -> dict[str, Any] | None:
    """Return how the version did beside the champion; None where it never scored beside one."""
    seen = shadow.summary(connection, row.product, row.version)
    return asdict(seen) if seen.images else None


def _shadow_text(seen: dict[str, Any] | None) -> str | None:
    if seen is None:
        return None
    return (
        f"{seen['images']} images, {seen['disagreements']} judged otherwise; anomalies {seen['challenger_rate']:.2%},"
        f" the champion's {seen['champion_rate']:.2%}"
    )
