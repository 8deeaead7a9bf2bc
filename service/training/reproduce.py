"""Repeat: the training of a version once more, of the same images in the same roles, to the same weights.

Owns where the images of a version are by now: labels move them, so each is looked for by its bytes where it is not at
its place. What a version was made from is read by `models.data.image_list`, trained by `service.training.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.data.image_list import ListedImage, chosen_again, read_image_list
from models.data.select_images import Chosen, ProductImages
from models.fitting.limits import MEMORY_BYTES
from models.progress import Progress
from models.registry import WEIGHTS, ModelVersion, file_sha256, verify
from service.errors import TamisError
from service.filesystem.row_path import IMAGE_FOLDERS, is_refused
from service.names import shown_name
from service.root import MODELS, TRAINING
from service.settings import Settings
from service.storage import images, training_images, versions
from service.training.job import TrainingJob, from_settings

SHOWN = 3


@dataclass(frozen=True)
class Repeat:
    """A training to be repeated: the job, and the versions that it is to give again, one for each product."""

    job: TrainingJob
    of: tuple[ModelVersion, ...]

    def is_same(self, again: Sequence[ModelVersion]) -> bool:
        """Return whether `again` have the same weights, bit for bit."""
        return all(
            file_sha256(one.folder / WEIGHTS) == file_sha256(other.folder / WEIGHTS)
            for one, other in zip(self.of, again, strict=True)
        )


def repeat_of(
    root: Path,
    engine: Engine,
    product: str,
    version: str,
    settings: Settings,
    minutes_max: float,
    backbone_weights: Path | None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Repeat:
    """Return how to train `version` of `product` again, its images found and their hashes checked.

    A version that was trained together with those of other products is repeated together with them. Raises TamisError
    where the version is unknown, or naming images that are gone or changed.
    """
    first = _verified(root, engine, product, version)
    joint = first.manifest.joint or (product,)
    of = tuple(first if name == product else _verified(root, engine, name, version) for name in joint)
    training = first.manifest.training
    backbone = first.manifest.backbone
    job = TrainingJob(
        products=tuple(ProductImages(one.product, (), one.trained_false_alarm_rate) for one in of),
        models_root=(root / MODELS).absolute(),
        kind=first.kind,
        profile=first.manifest.profile or "balanced",
        seed=training.seed or 0,
        minutes_max=max(minutes_max, training.minutes_max or 0),
        steps=training.steps_asked or training.steps,
        backbone=backbone.name if first.kind == "classifier" and backbone else None,
        backbone_weights=backbone_weights,
        # What a training holds in memory depends on each byte that it may.
        memory_bytes=round(training.memory_max_mb * 1e6) if training.memory_max_mb else MEMORY_BYTES,
        warm=_warm(root, first),
        trim_fraction=training.trim_fraction,
        threads=training.threads,
        chosen=_choose_again(root, engine, of, report),
        **from_settings(settings),
    )
    return Repeat(job, of)


def _choose_again(
    root: Path, engine: Engine, of: Sequence[ModelVersion], report: Callable[[Progress], None]
) -> tuple[Chosen, ...]:
    """Return the images of each version of `of` as they were chosen, where they lie now."""
    listed = [read_image_list(version.folder) for version in of]
    done, total = 0, sum(map(len, listed))
    chosen = []
    for version, its_images in zip(of, listed, strict=True):
        found: dict[str, Path] = {}
        lacking: list[str] = []
        with engine.connect() as connection:
            for image in its_images:
                path = _find(root, connection, version.product, image, lacking)
                if path is not None:
                    found[image.sha256] = path
                done += 1
                report(Progress("checking", done, total))
        if lacking:
            more = f"; and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
            raise TamisError(
                f"model {version.product}/{version.version}: expected the images that it was made from; "
                f"{'; '.join(lacking[:SHOWN])}{more}"
            )
        chosen.append(chosen_again(version, its_images, found))
    return tuple(chosen)


def _verified(root: Path, engine: Engine, product: str, version: str) -> ModelVersion:
    with engine.connect() as connection:
        row = versions.known(connection, product, version)
    return verify(root / MODELS / product / version, row.sha256)


def _find(root: Path, connection: Connection, product: str, image: ListedImage, lacking: list[str]) -> Path | None:
    """Return where the bytes of `image` lie now; else None, having said in `lacking` what was found."""
    # An absolute path stays as it is.
    first = root / image.path
    there = _sha256(first)
    if there == image.sha256:
        return first
    kept = training_images.of_hash(connection, product, image.sha256)
    elsewhere = [kept.path] if kept is not None else []
    elsewhere += [one.path for one in images.with_bytes(connection, image.sha256)]
    for path in elsewhere:
        if is_refused(path, (*IMAGE_FOLDERS, TRAINING)):
            continue
        if _sha256(root / path) == image.sha256:
            return root / path
    name = shown_name(str(first))
    lacking.append(f"{name} is gone" if there is None else f"{name} has changed, its sha256 is {there[:12]}…")
    return None


def _sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


def _warm(root: Path, version: ModelVersion) -> Path | None:
    """Return the folder of the version whose weights `version` began with. Raises TamisError where it is gone."""
    name = version.manifest.training.warm_start
    if name is None:
        return None
    folder = root / MODELS / version.product / name
    if not folder.is_dir():
        raise TamisError(
            f"model {version.product}/{version.version}: expected version {name}, whose weights it began with, at "
            f"{folder}; found none"
        )
    return folder.absolute()
