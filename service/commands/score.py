"""`tamis score`: says what a model makes of images, without moving or recording anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.data.datasets import SUFFIXES, images_under
from models.detector import Detector, UInt8Array
from models.evaluation.evaluate import Failure, Read, ScoredFile, score_files
from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json
from service.errors import TamisError, UsageError
from service.imaging.decode import DecodeError, StillChanging, decode, image_size, read_file
from service.imaging.overlay import PANEL_SIDE_MAX, drawn_size, regions_of, save_overlay, side_by_side
from service.names import safe_name, shown_name
from service.root import DEFAULT_PRODUCT
from service.scoring.active_versions import load_version
from service.scoring.decide import ThresholdDecider
from service.scoring.threshold_policy import decider_of
from service.settings import Settings
from service.storage.database.open import open_database
from service.storage.thresholds import chosen

UNREADABLE: tuple[type[Exception], ...] = (DecodeError, StillChanging, OSError)
"""What reading one image raises where only that image is to blame."""

COLUMNS = ("verdict", "score", "threshold", "p_value", "file")
UNKNOWN = "–"


def score(
    root: Root,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", exists=True, help="Images, or folders of them at any depth.")
    ],
    product: Annotated[str, typer.Option(help="Whose champion judges.")] = DEFAULT_PRODUCT,
    version: Annotated[str | None, typer.Option(help="Another version of that product.")] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Sets the threshold, instead of the setting of that name.")
    ] = None,
    as_json: AsJson = False,
    maps: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for images, maps and overlays side by side.")
    ] = None,
) -> None:
    """Score images where they lie: verdict, score, threshold and p-value of each; with --json regions too."""
    settings = settings_module.load(root)
    check_rate(false_alarm_rate)
    files = list(_files(paths))
    if not files:
        raise TamisError(f"{', '.join(map(_shown, paths))}: expected images ({SUFFIXES}); found none")
    engine = open_database(root, read_only=True)
    try:
        model, row = load_version(root, engine, product, version)
        with engine.connect() as connection:
            chosen_rate = chosen(connection).get(product)
    finally:
        engine.dispose()
    decider = decider_of(settings, product, model, false_alarm_rate, chosen_rate)

    from models.runtime.load_detector import load_detector

    detector = load_detector(model, settings.scoring_threads)
    read = image_reader(settings, draft=model.draft)
    pixel_threshold = model.manifest.calibration.pixel_threshold
    if not as_json:
        typer.echo(_line({column: column for column in COLUMNS}))
    rows, failed = [], 0
    for outcome in _outcomes(detector, [path for path, _ in files], read, settings.decoders):
        result = _row(outcome, decider)
        failed += isinstance(outcome, Failure)
        if isinstance(outcome, ScoredFile) and (as_json or maps is not None):
            size = upright_size(outcome.path)
            regions = regions_of(outcome.map, pixel_threshold, *size)
            result["regions"] = [asdict(region) for region in regions]
            if maps is not None:
                image = read(outcome.path, drawn_size(*size, PANEL_SIDE_MAX))
                drawn = side_by_side(image, outcome.map, pixel_threshold, regions, size)
                _save(maps / files[outcome.index][1], drawn)
        if as_json:
            rows.append(result)
        else:
            typer.echo(_line(result))
    if as_json:
        print_json(
            {
                "product": row.product,
                "version": row.version,
                "threshold_policy": decider.policy.name,
                "false_alarm_rate": getattr(decider.policy, "false_alarm_rate", None),
                "threshold": decider.threshold,
                "images": rows,
                "failed": failed,
            }
        )
    if failed:
        typer.echo(f"tamis: {failed} of {len(files)} could not be scored", err=True)
        raise typer.Exit(1)


def image_reader(settings: Settings, *, draft: bool = False) -> Read:
    """Return how images are read under the limits of `settings`; links are followed, unlike in `incoming/`.

    `draft` is the version's: its images are read as those were by which it was calibrated.
    """

    def read(path: Path, size: tuple[int, int]) -> UInt8Array:
        file = read_file(path.resolve(), file_bytes_max=settings.file_bytes_max)
        return decode(file.data, size, pixels_max=settings.pixels_max, draft=draft).pixels

    return read


def upright_size(path: Path) -> tuple[int, int]:
    """Return the height and width of the image at `path`, upright; links are followed."""
    return image_size(path.resolve())


def check_rate(asked: float | None) -> None:
    """Raise UsageError for a false-alarm rate outside (0, 1)."""
    if asked is not None and not 0 < asked < 1:
        raise UsageError(f"--false-alarm-rate: expected more than 0 and less than 1; found {asked:g}")


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield each file with the place of its map under the folder of maps, which no other file shares."""
    used: set[Path] = set()
    for given in paths:
        if given.is_dir():
            # A folder of maps of two folders has one of each name in it.
            found = [(path, Path(given.resolve().name) / path.relative_to(given)) for path in images_under(given)]
        else:
            found = [(given, Path(given.name))]
        for path, place in found:
            stem, number = safe_name(place.name), 1
            map_place = place.with_name(f"{stem}.png")
            while map_place in used:
                number += 1
                map_place = place.with_name(f"{stem}.{number}.png")
            used.add(map_place)
            yield path, map_place


def _outcomes(
    detector: Detector, paths: Sequence[Path], read: Read, decode_threads: int
) -> Iterator[ScoredFile | Failure]:
    for batch in score_files(detector, paths, read, unreadable=UNREADABLE, decode_threads=decode_threads):
        both: list[ScoredFile | Failure] = [*batch.scored, *batch.failures]
        yield from sorted(both, key=lambda outcome: outcome.index)


def _row(outcome: ScoredFile | Failure, decider: ThresholdDecider) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        nothing = dict.fromkeys(("verdict", "score", "threshold", "p_value", "uncertain", "uncertainty", "regions"))
        return {"file": _shown(outcome.path), **nothing, "error": shown_name(outcome.error)}
    decision = decider.decide(outcome.score)
    return {
        "file": _shown(outcome.path),
        "verdict": decision.verdict,
        "score": decision.score,
        "threshold": decision.threshold,
        "p_value": decision.p_value,
        "uncertain": decision.uncertain,
        "uncertainty": decision.uncertainty,
        "error": None,
    }


def _save(path: Path, drawn: UInt8Array) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_overlay(path, drawn)
    except OSError as error:
        raise TamisError(f"map {_shown(path)}: cannot be written: {error.strerror or error}") from None


def _line(row: dict[str, Any]) -> str:
    verdict, score, threshold, p_value = (_cell(row[column]) for column in COLUMNS[:4])
    name = row["file"] if not row.get("error") else f"{row['file']}: {row['error']}"
    # Names come from outside: control characters must not reach the terminal.
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return f"{verdict:<8} {score:>12} {threshold:>12} {p_value:>10}  {printable}"


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shown(path: Path) -> str:
    return shown_name(str(path))
