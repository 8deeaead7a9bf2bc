"""`tamis evaluate`: how good a model is on labelled images, how fast, and what that cost in energy.

Changes nothing but rows of energy: one for each evaluation, and one for each training of a learning curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from models.data.datasets import Dataset, Sample, read_dataset
from models.errors import DatasetError
from service import settings as settings_module
from service.commands.options import (
    AsJson,
    FalseAlarmRate,
    Root,
    check_rate,
    folder_option,
    print_json,
    product_option,
)
from service.energy.meter import EnergyMeter
from service.errors import UsageError
from service.evaluation import report as page
from service.evaluation import text_report as output
from service.evaluation.learning_curve import job_like, sizes_asked, training_pool
from service.evaluation.outcome import Evaluated, LearningPoint
from service.evaluation.run import Bench, Work, plan
from service.evaluation.thumbnails import thumbnail
from service.imaging.read import image_reader, size_reader
from service.progress_bar import TrainingLines, scoring_progress
from service.root import DEFAULT_PRODUCT
from service.settings import Settings
from service.storage.database.open import open_database

Layout = Literal["auto", "visa", "mvtec", "folders"]
Split = Literal["test", "train"]


def evaluate(
    root: Root,
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="VisA, MVTec AD, or normal/ and anomaly/."),
    ],
    product: Annotated[
        str,
        product_option("Whose champion is evaluated; of several objects, those with a champion use their own."),
    ] = DEFAULT_PRODUCT,
    version: Annotated[str | None, typer.Option(help="Another version of that product, for all objects.")] = None,
    object_name: Annotated[str | None, typer.Option("--object", metavar="NAME", help="Only this object.")] = None,
    layout: Annotated[Layout, typer.Option(help="How the folder is laid out.")] = "auto",
    split: Annotated[Split, typer.Option(help="Which images.")] = "test",
    false_alarm_rate: FalseAlarmRate = None,
    compare_with: Annotated[
        str | None,
        typer.Option("--compare", metavar="VERSION", help="Another version of the product, beside the first."),
    ] = None,
    as_json: AsJson = False,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", dir_okay=False, help="Write the score of each image.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write DIR/index.html, a page that needs no network.")
    ] = None,
    learning_sizes: Annotated[
        str | None,
        typer.Option("--learning-curve", metavar="N,N,N", help="Train on so many images of --from, and evaluate."),
    ] = None,
    normals: Annotated[Path | None, folder_option("--from", help="Normal images for that.")] = None,
    steps: Annotated[int | None, typer.Option(min=2, hidden=True)] = None,
) -> None:
    settings = settings_module.load(root)
    check_rate(false_alarm_rate)
    sizes = sizes_asked(learning_sizes, normals)
    dataset = read_dataset(folder, object_name, layout)
    if sizes and len(dataset.objects) > 1:
        raise UsageError(
            f"--learning-curve: expected one object, since --from shows one; found {len(dataset.objects)}; "
            f"choose with --object"
        )
    samples = {name: _samples(dataset, folder, split, name) for name in dataset.objects}
    if report is not None:
        page.prepare(report)
    with open_database(root) as engine:
        works = plan(root, engine, settings, samples, product, version, compare_with, false_alarm_rate)
        pool = [] if normals is None else _pool(normals, works[0], settings, steps)
        meter = EnergyMeter(
            tracking=settings.energy_tracking, country=settings.energy_country, cpu_max_w=settings.energy_cpu_max_w
        )
        with closing(meter):
            bench = Bench(engine, settings, meter, scoring_progress, TrainingLines)
            evaluated = _evaluate_all(bench, works, scores)
            learned = bench.learn(works[0], pool, sizes, steps) if pool else []
    written = None
    if report is not None:
        sections = _sections(evaluated, learned, settings)
        mean = output.mean_metrics(evaluated)
        html = page.render(folder, dataset.layout, split, datetime.now(UTC), sections, mean)
        written = page.write(report, html)
    if as_json:
        print_json(output.document(folder, dataset, split, evaluated, learned, written))
    else:
        output.show(evaluated, learned, written)


def _samples(dataset: Dataset, folder: Path, split: Split, object: str) -> list[Sample]:
    samples = dataset.select(split, object)
    if not samples:
        raise DatasetError(f"{folder}: expected images of object {object!r} in the split {split}; found none")
    return samples


def _pool(normals: Path, work: Work, settings: Settings, steps: int | None) -> list[Path]:
    """Return the images that a learning curve may train on, having refused a version that cannot be trained."""
    job_like(work.first.version, work.rate, settings, steps)
    pool, left_out = training_pool(normals, work.samples)
    if left_out:
        typer.echo(f"learning curve: {left_out} images left out, since they are evaluated", err=True)
    return pool


def _evaluate_all(bench: Bench, works: Sequence[Work], scores: Path | None) -> list[Evaluated]:
    evaluated = []
    with output.score_file(scores) as write_scores:
        for work in works:
            evaluated.append(bench.evaluate(work))
            write_scores(evaluated[-1])
    return evaluated


def _sections(
    evaluated: Sequence[Evaluated], learned: Sequence[LearningPoint], settings: Settings
) -> list[page.Section]:
    size_of = size_reader(settings)

    def section(one: Evaluated) -> page.Section:
        version = one.evaluated_version.version
        pixel_threshold = version.manifest.calibration.pixel_threshold
        read = image_reader(settings, value_range=version.value_range)
        mistakes = one.evaluated_version.mistakes
        missed, alarms = (
            [thumbnail(mistake, pixel_threshold, read, size_of) for mistake in worst]
            for worst in (mistakes.missed, mistakes.false_alarms)
        )
        return page.Section(one, missed, alarms, learned)

    return [section(one) for one in evaluated]
