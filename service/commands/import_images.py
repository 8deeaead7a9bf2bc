"""`tamis import`: copies images that were never inspected into the training set, with a label."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.data.datasets import SUFFIXES, images_under
from service import settings as settings_module
from service.commands.options import AsJson, By, Root, print_json, product_option, say_left_out, who
from service.commands.review import Label
from service.errors import TamisError, UsageError
from service.imaging.read import decoder_of
from service.labelling import import_images as importing
from service.labelling.import_images import SKIPPED
from service.names import check_product, shown_name
from service.root import DEFAULT_PRODUCT
from service.storage.database.open import open_database

OUTCOMES = ("added", "relabelled", "labelled", "unchanged", "skipped")
LINE_EVERY = 100


def import_images(
    root: Root,
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Images, at any depth.")],
    label: Annotated[Label, typer.Option(help="What they all show.")],
    product: Annotated[str, product_option("What they are images of.")] = DEFAULT_PRODUCT,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    settings = settings_module.load(root)
    check_product(product)
    if label == "none":
        raise UsageError("--label: expected normal or anomaly for images to import; found none")
    files = images_under(folder, say_left_out)
    if not files:
        raise TamisError(f"{shown_name(folder)}: expected images ({SUFFIXES}) at any depth; found none")
    found = []
    # Files from anywhere: one that ends what decodes it is skipped.
    with open_database(root) as engine, closing(decoder_of(settings)) as decoder:
        for one in importing.import_images(
            root,
            engine,
            files,
            label,
            product,
            by=who(by),
            decoder=decoder,
            **settings.model_dump(include={"burst_gap_s", "file_bytes_max", "pixels_max"}),
        ):
            found.append(one)
            if one.outcome == SKIPPED:
                typer.echo(f"skipped {one.file}: {one.why}", err=True)
            if len(found) % LINE_EVERY == 0 or (sys.stderr.isatty() and len(found) % 10 == 0):
                typer.echo(f"{len(found):,} of {len(files):,}", err=True)
    done = Counter(one.outcome for one in found)
    counts = {outcome: done[outcome] for outcome in OUTCOMES}
    if as_json:
        print_json({"product": product, "label": label, **counts, "files": [asdict(one) for one in found]})
    else:
        typer.echo(", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if count))
    if done[SKIPPED] == len(found):
        raise TamisError(f"{shown_name(folder)}: expected images; none of {len(found)} can be read")
