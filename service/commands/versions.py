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
from service.commands.options import AsJson, Root, print_json, print_result, print_table
from service.commands.threshold import threshold
from service.errors import TamisError
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

Product = Annotated[str, typer.Argument(help="The product.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the version.")]


@app.command("list")
def list_(
    root: Root, product: Annotated[str | None, typer.Option(help="Of this product.")] = None, as_json: AsJson = False
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
    product: Product,
    version: Annotated[str | None, typer.Argument(help="The version; without it the champion.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one version, and check its files against their hashes."""
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
    product: Product,
    version: Annotated[str, typer.Argument(help="The version.")],
    reason: Reason = "promoted by hand",
    as_json: AsJson = False,
) -> None:
    """Make a version the champion of its product, once its files are checked and it can keep the chosen rate."""
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
def rollback(root: Root, product: Product, reason: Reason = "rolled back by hand", as_json: AsJson = False) -> None:
    """Make the champion before this one champion again, once its files are checked and it can keep the chosen rate."""
    settings = settings_module.load(root)
    with open_database(root) as engine, engine.begin() as connection:
        now = versions.rollback(connection, product, reason)
        # Inside the transaction: a version that is not whole leaves the champion as it was.
        _refuse_unfit(connection, settings, registry.verify(_folder(root, now), now.sha256))
    _say_champion(now, as_json)


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
