"""`tamis review`: labels images, by id or one after the other at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from sqlalchemy import Engine

from service import settings as settings_module
from service.commands.options import AsJson, By, Root, print_json, print_table, product_option, who
from service.errors import UsageError
from service.labelling.label import Labelled, label_images
from service.names import printable
from service.storage import reviews
from service.storage.database.open import open_database

COLUMNS = ("id", "label", "state", "path")
KEYS = "n normal, a anomaly, s skip, u undo, q quit"

Label = Literal["normal", "anomaly", "none"]


def review(
    root: Root,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID…", help="Images, as `tamis results` names them.")
    ] = None,
    label: Annotated[Label | None, typer.Option(help="What they show; none takes back what was said.")] = None,
    note: Annotated[str | None, typer.Option(help="Anything worth knowing; kept with the label.")] = None,
    by: By = None,
    next_: Annotated[
        bool, typer.Option("--next", help="Ask for one image after the other, most uncertain first.")
    ] = False,
    product: Annotated[str | None, product_option("With --next: of this product.")] = None,
    as_json: AsJson = False,
) -> None:
    settings = settings_module.load(root)
    if next_ == bool(ids):
        raise UsageError(
            "review: expected ids of images with --label, or --next; found " + ("both" if ids else "neither")
        )
    if ids and label is None:
        raise UsageError("review: expected --label normal, anomaly or none with ids; found no --label")
    if ids and product is not None:
        raise UsageError("--product: expected --next; ids say which images are meant")
    if next_ and (label is not None or note is not None):
        raise UsageError("review --next: expected no --label and no --note; each image is asked for")

    def say(images: list[str], said: str | None) -> list[Labelled]:
        return label_images(
            root, engine, images, said, by=who(by), source="command", note=note, burst_gap_s=settings.burst_gap_s
        )

    said = None if label == "none" else label
    with open_database(root) as engine:
        done = say(ids, said) if ids else _Walk(root, engine, product, say).go()
    if as_json:
        print_json({"labelled": [asdict(one) for one in done]})
    elif ids:
        print_table([asdict(one) for one in done], COLUMNS)
    else:
        typer.echo(f"{len(done):,} labelled")


@dataclass
class _Walk:
    """One person going through the review queue. Questions go to stderr, since the report is on stdout."""

    root: Path
    engine: Engine
    product: str | None
    say: Callable[[list[str], str | None], list[Labelled]]
    labelled: dict[str, Labelled] = field(default_factory=dict)
    skipped: dict[str, None] = field(default_factory=dict)
    before: list[dict[str, Any]] = field(default_factory=list)

    def go(self) -> list[Labelled]:
        """Ask until the queue or the input ends; return what was labelled and not undone."""
        typer.echo(KEYS, err=True)
        again: dict[str, Any] | None = None
        while (image := again or self._next()) is not None or self._undo_at_the_end():
            if image is None or (answer := self._ask(image)) == "u":
                again = self._undo() or image
            elif answer == "q":
                break
            else:
                again = None
                self._take(image, answer)
        return list(self.labelled.values())

    def _undo_at_the_end(self) -> bool:
        """Say that the queue is empty; return whether to undo the last answer."""
        typer.echo("nothing more to review", err=True)
        if not self.before:
            return False
        typer.echo("u undo, anything else ends: ", err=True, nl=False)
        return sys.stdin.readline().strip().lower() == "u"

    def _next(self) -> dict[str, Any] | None:
        with self.engine.connect() as connection:
            return reviews.next_in_queue(connection, self.product, set(self.skipped))

    def _ask(self, image: dict[str, Any]) -> str:
        path = printable(str(self.root / image["path"]))
        judged = f"{image['verdict']}, score {image['score']:.4g}, threshold {image['threshold']:.4g}"
        typer.echo(f"{image['id']}  {path}\n  {judged}", err=True)
        while True:
            typer.echo("n/a/s/u/q? ", err=True, nl=False)
            line = sys.stdin.readline()
            if not line:
                typer.echo(err=True)
                return "q"
            answer = line.strip().lower()
            if answer in ("n", "a", "s", "u", "q"):
                return answer
            typer.echo(f"expected {KEYS}; found {answer!r}", err=True)

    def _take(self, image: dict[str, Any], answer: str) -> None:
        id = image["id"]
        if answer == "s":
            self.skipped[id] = None
        else:
            [self.labelled[id]] = self.say([id], "normal" if answer == "n" else "anomaly")
        self.before.append(image)

    def _undo(self) -> dict[str, Any] | None:
        """Undo the last answer; return that image, to be asked about again."""
        if not self.before:
            typer.echo("nothing to undo", err=True)
            return None
        image = self.before.pop()
        self.skipped.pop(image["id"], None)
        if self.labelled.pop(image["id"], None) is not None:
            [now] = self.say([image["id"]], None)
            image = image | {"path": now.path}
        return image
