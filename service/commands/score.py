"""`tamis score`: says what a model makes of images, without moving or recording anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.data.datasets import SUFFIXES, images_under
from models.detector import Detector, UInt8Array
from models.evaluation.evaluate import Failure, Read, ScoredFile, score_files
from models.regions import Region
from models.runtime.load_detector import load_detector
from service import settings as settings_module
from service.commands.options import AsJson, FalseAlarmRate, Root, check_rate, print_json, product_option
from service.errors import TamisError
from service.evaluation.outcome import UNKNOWN
from service.imaging.overlay import PANEL_SIDE_MAX, drawn_size, regions_of, save_overlay, side_by_side
from service.imaging.read import UNREADABLE, decoder_of, image_reader, size_reader
from service.names import printable, safe_name, shown_name
from service.root import DEFAULT_PRODUCT
from service.scoring.active_versions import load_version
from service.scoring.decide import ThresholdDecider
from service.scoring.threshold_policy import decider_of
from service.storage.database.open import open_database
from service.storage.thresholds import chosen

COLUMNS = ("verdict", "score", "threshold", "p_value", "file")
DECIDED = ("verdict", "score", "threshold", "p_value", "uncertain", "uncertainty")


def score(
    root: Root,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", exists=True, help="Images, or folders of them at any depth.")
    ],
    product: Annotated[str, product_option("Whose champion judges.")] = DEFAULT_PRODUCT,
    version: Annotated[str | None, typer.Option(help="Another version of that product.")] = None,
    false_alarm_rate: FalseAlarmRate = None,
    as_json: AsJson = False,
    maps: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for images, maps and overlays side by side.")
    ] = None,
) -> None:
    settings = settings_module.load(root)
    check_rate(false_alarm_rate)
    files = list(_files(paths))
    if not files:
        raise TamisError(f"{', '.join(map(shown_name, paths))}: expected images ({SUFFIXES}); found none")
    with open_database(root, read_only=True) as engine:
        model, row = load_version(root, engine, product, version)
        with engine.connect() as connection:
            chosen_rate = chosen(connection).get(product)
    decider = decider_of(settings, product, model, false_alarm_rate, chosen_rate)
    detector = load_detector(model, settings.scoring_threads)
    # Files from anywhere: one that ends what decodes it is a failure among the others.
    decoder = decoder_of(settings)
    remarks: dict[Path, str] = {}
    read = image_reader(settings, draft=model.draft, value_range=model.value_range, remarks=remarks, decoder=decoder)
    size_of = size_reader(settings)
    pixel_threshold = model.manifest.calibration.pixel_threshold
    if not as_json:
        typer.echo(_line({column: column for column in COLUMNS}))
    rows, failed = [], 0
    with closing(decoder):
        for outcome in _outcomes(detector, [path for path, _ in files], read, settings.decoders):
            result = _row(outcome, decider) | {"remark": remarks.pop(outcome.path, None)}
            failed += isinstance(outcome, Failure)
            if isinstance(outcome, ScoredFile) and (as_json or maps is not None):
                map_path = None if maps is None else maps / files[outcome.index][1]
                regions = _locate(outcome, pixel_threshold, read, size_of(outcome.path), map_path)
                result["regions"] = [asdict(region) for region in regions]
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
        nothing = dict.fromkeys((*DECIDED, "regions"))
        return {"file": shown_name(outcome.path), **nothing, "error": shown_name(outcome.error)}
    decision = decider.decide(outcome.score)
    return {"file": shown_name(outcome.path), **{name: getattr(decision, name) for name in DECIDED}, "error": None}


def _locate(
    outcome: ScoredFile, pixel_threshold: float, read: Read, size: tuple[int, int], map_path: Path | None
) -> Sequence[Region]:
    """Return the regions above `pixel_threshold`; with `map_path` draw them there, beside image and map."""
    regions = regions_of(outcome.map, pixel_threshold, *size)
    if map_path is not None:
        image = read(outcome.path, drawn_size(*size, PANEL_SIDE_MAX))
        _save(map_path, side_by_side(image, outcome.map, pixel_threshold, regions, size))
    return regions


def _save(path: Path, drawn: UInt8Array) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_overlay(path, drawn)
    except OSError as error:
        raise TamisError(f"map {shown_name(path)}: cannot be written: {error.strerror or error}") from None


def _line(row: dict[str, Any]) -> str:
    verdict, score, threshold, p_value = (_cell(row[column]) for column in COLUMNS[:4])
    said = row.get("error") or row.get("remark")
    name = f"{row['file']}: {said}" if said else row["file"]
    return f"{verdict:<8} {score:>12} {threshold:>12} {p_value:>10}  {printable(name)}"


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)
