"""`tamis train`: trains a detector on a folder of normal images, in a process of its own, and registers it.

With `--product all` it trains one network for the products of all sub-folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from sqlalchemy import Engine

from models.data.datasets import SUFFIXES, images_under
from models.data.select_images import ProductImages
from models.errors import DatasetError
from models.fitting.limits import BYTES_PER_GB, MEMORY_GB
from models.registry import ModelVersion
from models.training.options import MINUTES_MAX
from service import settings as settings_module
from service.commands.options import (
    AsJson,
    FalseAlarmRate,
    Root,
    check_rate,
    folder_option,
    print_json,
    product_option,
    say_left_out,
)
from service.errors import UsageError
from service.names import ALL_PRODUCTS, check_product, shown_name
from service.progress_bar import training_progress
from service.root import DEFAULT_PRODUCT, MODELS
from service.settings import Settings
from service.storage import versions
from service.storage.database.open import open_database
from service.storage.versions import VersionRow
from service.training.job import TrainingJob, from_settings
from service.training.reproduce import repeat_of
from service.training.run import run_joint_training

Kind = Literal["feature", "pixel", "classifier"]
# How large images are scored: with the area of 256, 384 or 768 pixels squared.
Profile = Literal["fast", "balanced", "accurate"]
# Where the images that set the threshold come from; `auto` lets their number decide.
Calibration = Literal["auto", "split", "cross"]

# What a version says itself, so that it cannot be asked for when the version is repeated.
GIVEN_BY_VERSION = (
    *("kind", "profile", "anomalies", "backbone", "false_alarm_rate", "calibration", "seed", "memory_gb", "steps"),
)
# What a version's row says of it, in JSON.
ROW_FACTS = (
    *("product", "version", "kind", "state", "threshold", "false_alarm_rate"),
    *("image_auroc", "training_wh", "sha256"),
)


def train(
    context: typer.Context,
    root: Root,
    folder: Annotated[Path | None, folder_option("--from", help="Normal images, at any depth.")] = None,
    from_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Repeat a version: the same images, roles, seed and steps.")
    ] = None,
    product: Annotated[
        str, product_option("What the images show; `all`: one network for all sub-folders' products.")
    ] = DEFAULT_PRODUCT,
    kind: Annotated[
        Kind, typer.Option(help="Features of a pretrained network, plain pixels, or normal against anomaly.")
    ] = "feature",
    profile: Annotated[Profile, typer.Option(help="Size at which images are scored.")] = "balanced",
    anomalies: Annotated[
        Path | None, folder_option(help="Images of defects: a classifier's, others score them.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="The classifier's pretrained network, by timm's name.")] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Its weights, a safetensors file.")
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    calibration: Annotated[
        Calibration, typer.Option(help="Hold normals out, or fit again without each fold of them.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Divides the images and starts the network.")] = 0,
    promote: Annotated[bool, typer.Option("--promote", help="Make it champion, even if the product has one.")] = False,
    minutes_max: Annotated[
        float, typer.Option("--minutes", min=0.1, help="Minutes after which the training loop stops.")
    ] = MINUTES_MAX,
    memory_gb: Annotated[
        float, typer.Option(min=0.1, help="Memory in GB that the training may hold; beyond it, it ends.")
    ] = MEMORY_GB,
    steps: Annotated[int | None, typer.Option(min=2, hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    settings = settings_module.load(root)
    if (folder is None) == (from_version is None):
        raise UsageError(
            "train: expected images, --from DIR, or a version to repeat, --from-version VERSION; found "
            + ("both" if folder is not None else "neither")
        )
    weights = backbone_weights and backbone_weights.absolute()
    if from_version is not None:
        _refuse_given(context)
        with open_database(root) as engine:
            with training_progress() as report:
                repeat = repeat_of(root, engine, product, from_version, settings, minutes_max, weights, report)
                reason = f"repeats {from_version}"
                again = run_joint_training(engine, repeat.job, promote=promote, reason=reason, report=report)
            about = {"repeats": from_version, "identical": repeat.is_same(again)}
            _report(engine, again, as_json, many=len(again) > 1, **about)
        return
    assert folder is not None
    check_rate(false_alarm_rate)
    _check_parts(kind, anomalies, backbone, backbone_weights)
    job = TrainingJob(
        products=_products(folder, anomalies, product, settings, false_alarm_rate),
        models_root=(root / MODELS).absolute(),
        kind=kind,
        profile=profile,
        method=None if calibration == "auto" else calibration,
        seed=seed,
        minutes_max=minutes_max,
        memory_bytes=int(memory_gb * BYTES_PER_GB),
        backbone=backbone,
        backbone_weights=weights,
        steps=steps,
        **from_settings(settings),
    )
    with open_database(root) as engine:
        with training_progress() as report:
            trained = run_joint_training(engine, job, promote=promote, report=report)
        _report(engine, trained, as_json, many=product == ALL_PRODUCTS)


def _check_parts(kind: Kind, anomalies: Path | None, backbone: str | None, backbone_weights: Path | None) -> None:
    if kind == "classifier" and anomalies is None:
        raise UsageError("--kind classifier: expected images of defects, --anomalies DIR; found none")
    if backbone is not None and kind != "classifier":
        raise UsageError(f"--backbone: expected --kind classifier; found {kind}, which has its own")
    if backbone_weights is not None and backbone is None:
        raise UsageError("--backbone-weights: expected --backbone NAME, the network that they are of; found none")


def _products(
    folder: Path, anomalies: Path | None, product: str, settings: Settings, asked_rate: float | None
) -> tuple[ProductImages, ...]:
    images = _by_product(folder, product)
    defects = _by_product(anomalies, product) if anomalies is not None else {}
    if strange := sorted(set(defects) - set(images)):
        raise DatasetError(f"{anomalies}: expected sub-folders named like those of {folder}; found {strange[0]!r}")
    rates = {name: settings.false_alarm_rate_of(name) if asked_rate is None else asked_rate for name in images}
    return tuple(
        ProductImages(
            name, images[name], rates[name], defects.get(name, ()), value_range=settings.of(name, "value_range")
        )
        for name in images
    )


def _refuse_given(context: typer.Context) -> None:
    for name in GIVEN_BY_VERSION:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--from-version: expected no --{name.replace('_', '-')}, which the version says itself")


def _report(engine: Engine, trained: Sequence[ModelVersion], as_json: bool, *, many: bool, **about: Any) -> None:
    """Print the versions, as JSON in a list if there may be `many`; `about` is added to each."""
    with engine.connect() as connection:
        rows = [versions.known(connection, version.product, version.version) for version in trained]
    documents = []
    for version, row in zip(trained, rows, strict=True):
        documents.append(_document(version, row) | about)
        if not as_json:
            _print(version, row)
    if as_json:
        print_json({"versions": documents} if many else documents[0])
    elif about:
        same = "the same, bit for bit" if about["identical"] else f"other than those of {about['repeats']}"
        typer.echo(f"{'weights':<12} {same}")


def _by_product(folder: Path, product: str) -> dict[str, tuple[Path, ...]]:
    """Return the images of `product` in `folder`, or with `all` of each product, by the name of its sub-folder."""
    if product != ALL_PRODUCTS:
        return {check_product(product): _images(folder)}
    loose = [entry for entry in images_under(folder) if entry.parent == folder]
    if loose:
        raise DatasetError(
            f"{shown_name(folder)}: expected images in sub-folders alone, one for each product; "
            f"found {shown_name(loose[0].name)} beside them"
        )
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DatasetError(f"{shown_name(folder)}: expected a sub-folder for each product; found none")
    return {check_product(entry.name): _images(entry) for entry in folders}


def _images(folder: Path) -> tuple[Path, ...]:
    images = images_under(folder, say_left_out)
    if not images:
        raise DatasetError(f"{shown_name(folder)}: expected images ({SUFFIXES}) at any depth; found none")
    return tuple(Path(os.path.abspath(path)) for path in images)  # noqa: PTH100  (links stay as they are given)


def _document(version: ModelVersion, row: VersionRow) -> dict[str, Any]:
    manifest = version.manifest
    training, calibration = manifest.training, manifest.calibration
    return {
        **{name: getattr(row, name) for name in ROW_FACTS},
        "profile": manifest.profile,
        "folder": shown_name(version.folder),
        "input_size": manifest.input_size,
        "training_images": training.images,
        "calibration_images": calibration.images,
        "calibration_method": calibration.method,
        "training_anomalies": training.anomalies,
        "calibration_anomalies": len(calibration.anomaly_scores),
        "joint": manifest.joint,
        "skipped": len(training.skipped),
        "steps": training.steps,
        "seconds": training.seconds,
        "memory_peak_mb": training.memory_peak_mb,
        "energy": manifest.energy and manifest.energy.model_dump(exclude_unset=True),
    }


def _print(version: ModelVersion, row: VersionRow) -> None:
    training, calibration = version.manifest.training, version.manifest.calibration
    # It was trained just now, so these are known.
    assert training.seconds is not None and training.memory_peak_mb is not None
    height, width = version.input_size
    skipped = f", {len(training.skipped)} skipped" if training.skipped else ""
    held_out = " and, in folds," if calibration.method == "cross" else f", {calibration.images}"
    known = f"{training.anomalies} to train, {len(calibration.anomaly_scores)} to calibrate"
    auroc = "" if row.image_auroc is None else f", image AUROC {row.image_auroc:.3f}"
    facts = {
        "version": f"{row.product}/{row.version}",
        "state": f"{row.state} ({row.reason})",
        "images": f"{training.images} to train{held_out} to calibrate{skipped}",
        **({"anomalies": known + auroc} if training.anomalies or calibration.anomaly_scores else {}),
        "input size": f"{width} x {height} pixels",
        "threshold": f"{row.threshold:.6g} at a false-alarm rate of {row.false_alarm_rate:g}",
        "energy": "unknown" if row.training_wh is None else f"{row.training_wh:.3g} Wh",
        "time": f"{training.seconds:.0f} s, at most {training.memory_peak_mb / 1000:.2f} GB of memory",
    }
    for name, value in facts.items():
        typer.echo(f"{name:<12} {value}")
