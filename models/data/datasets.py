"""Reads labelled folders of images: VisA, MVTec AD, or plain `normal/` and `anomaly/`.

Owns where each layout keeps its images, labels, splits and masks. Decoding images is left to the
caller; only masks, whose values are labels and not light, are read here.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.errors import DatasetError

Layout = Literal["visa", "mvtec", "folders"]
Split = Literal["train", "test"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SUFFIXES = ", ".join(IMAGE_SUFFIXES)
VISA_SPLIT = Path("split_csv") / "1cls.csv"
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
LAYOUTS: dict[Layout, str] = {
    "visa": "visa (split_csv/1cls.csv)",
    "mvtec": "mvtec (train/good or test/good, in the folder or in folders of it, one an object)",
    "folders": "folders (normal/ or anomaly/)",
}


@dataclass(frozen=True)
class Sample:
    """A labelled image.

    `label` is 0 for normal and 1 for anomaly. `mask` is an image of the same size in which every pixel that
    is not 0 is defect; None where none was drawn, which for a normal image means that nothing is defect.
    """

    path: Path
    label: Literal[0, 1]
    split: Split
    object: str
    mask: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """What was read: the layout found, the samples in a fixed order, the objects by name."""

    layout: Layout
    samples: tuple[Sample, ...]
    objects: tuple[str, ...]

    def select(self, split: Split | None = None, object: str | None = None) -> list[Sample]:
        """Return the samples of a split and of an object; None stands for all."""
        return [
            sample
            for sample in self.samples
            if (split is None or sample.split == split) and (object is None or sample.object == object)
        ]


def read_dataset(
    folder: Path, object: str | None = None, layout: Literal["auto", "visa", "mvtec", "folders"] = "auto"
) -> Dataset:
    """Return the images under `folder`, of one object or of all.

    `auto` takes the first layout that fits of visa, mvtec and folders. In the layout `folders` every image
    is a test sample, and the only object is named like the folder. Raises DatasetError where no layout fits,
    the object is not there, a row of the CSV is wrong, or there is no image at all.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder of images; found {'a file' if folder.exists() else 'nothing'}")
    found = _layout_of(folder, layout)
    samples = list({"visa": _read_visa, "mvtec": _read_mvtec, "folders": _read_folders}[found](folder, object))
    if not samples:
        if object is not None:
            there = _objects_in(folder, found)
            raise DatasetError(f"{folder}: expected object {object!r}; found, in the layout {found}: {there}")
        raise DatasetError(f"{folder}: the layout is {found}; expected images ({SUFFIXES}); found none")
    return Dataset(found, tuple(samples), tuple(sorted({sample.object for sample in samples})))


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Return the mask at `path`, bool `(H, W)` at its own size: true where any channel is not 0.

    Raises DatasetError where it is not an image.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF", "WEBP")) as image:
            # Alpha says how a mask is shown, not where the defect is; a palette's indices are the labels.
            plain = image if image.mode in {"1", "L", "P", "I", "I;16", "F"} else image.convert("RGB")
            values = np.asarray(plain)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"mask {path}: expected an image; found {error}") from None
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)


def images_under(folder: Path, failed: Callable[[OSError], None] | None = None) -> list[Path]:
    """Return the images under `folder` at any depth, by name; hidden files and folders are left out.

    `failed` is called with the error of each folder that cannot be listed, whose images are left out as well.
    """
    found = []
    for base, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(base, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _layout_of(folder: Path, asked: Literal["auto", "visa", "mvtec", "folders"]) -> Layout:
    candidates: tuple[Layout, ...] = ("visa", "mvtec", "folders") if asked == "auto" else (asked,)
    fits = {
        "visa": lambda: (folder / VISA_SPLIT).is_file(),
        "mvtec": lambda: bool(_mvtec_objects(folder)),
        "folders": lambda: (folder / "normal").is_dir() or (folder / "anomaly").is_dir(),
    }
    for candidate in candidates:
        if fits[candidate]():
            return candidate
    looked_for = ", or ".join(LAYOUTS[candidate] for candidate in candidates)
    raise DatasetError(f"{folder}: expected the layout {looked_for}; found {_entries(folder)}")


def _entries(folder: Path, shown: int = 8) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _objects_in(folder: Path, layout: Layout) -> str:
    if layout == "visa":
        with (folder / VISA_SPLIT).open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            names = {row["object"] for row in csv.DictReader(file) if row.get("object")}
    else:
        names = set(_mvtec_objects(folder)) if layout == "mvtec" else {_name_of(folder)}
    return ", ".join(sorted(names)) or "none"


def _read_visa(folder: Path, object: str | None) -> Iterator[Sample]:
    """Yield the rows of VisA's one-class split (Zou et al., ECCV 2022, arXiv 2207.14315)."""
    path = folder / VISA_SPLIT
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        missing = [column for column in VISA_COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise DatasetError(
                f"{path}: expected the columns {','.join(VISA_COLUMNS)}; "
                f"found {','.join(rows.fieldnames or ()) or 'an empty file'}"
            )
        for row in rows:
            if object is None or row["object"] == object:
                yield _visa_sample(folder, row, f"{path}, row {rows.line_num}")


def _visa_sample(folder: Path, row: dict[str, str], where: str) -> Sample:
    if row["split"] not in ("train", "test"):
        raise DatasetError(f"{where}: split: expected train or test; found {row['split']!r}")
    if row["label"] not in ("normal", "anomaly"):
        raise DatasetError(f"{where}: label: expected normal or anomaly; found {row['label']!r}")
    for column in ("image", "mask"):
        if (column == "image" or row[column]) and not (folder / (row[column] or "")).is_file():
            raise DatasetError(
                f"{where}: {column}: expected a file of {folder}; {row[column] or 'no name'!r} is not there"
            )
    return Sample(
        path=folder / row["image"],
        label=1 if row["label"] == "anomaly" else 0,
        split="train" if row["split"] == "train" else "test",
        object=row["object"],
        mask=folder / row["mask"] if row["mask"] else None,
    )


def _mvtec_objects(folder: Path) -> dict[str, Path]:
    def is_object(candidate: Path) -> bool:
        return (candidate / "train" / "good").is_dir() or (candidate / "test" / "good").is_dir()

    if is_object(folder):
        return {_name_of(folder): folder}
    return {child.name: child for child in sorted(folder.iterdir()) if is_object(child)}


def _read_mvtec(folder: Path, object: str | None) -> Iterator[Sample]:
    """Yield the images of MVTec AD's layout (Bergmann et al., IJCV 129, 2021)."""
    for name, base in _mvtec_objects(folder).items():
        if object is not None and name != object:
            continue
        for path in images_under(base / "train" / "good"):
            yield Sample(path, 0, "train", name)
        for kind in sorted(child for child in (base / "test").glob("*") if child.is_dir()):
            for path in images_under(kind):
                if kind.name == "good":
                    yield Sample(path, 0, "test", name)
                else:
                    yield Sample(path, 1, "test", name, _mvtec_mask(base / "ground_truth" / kind.name, path.stem))


def _mvtec_mask(folder: Path, stem: str) -> Path | None:
    # Sets brought into this layout by VisA's own script leave out `_mask`.
    for name in (f"{stem}_mask.png", f"{stem}.png"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_folders(folder: Path, object: str | None) -> Iterator[Sample]:
    name = _name_of(folder)
    if object is not None and object != name:
        return
    for path in images_under(folder / "normal"):
        yield Sample(path, 0, "test", name)
    for path in images_under(folder / "anomaly"):
        mask = folder / "masks" / path.relative_to(folder / "anomaly").with_suffix(".png")
        yield Sample(path, 1, "test", name, mask if mask.is_file() else None)


def _name_of(folder: Path) -> str:
    return folder.name or folder.resolve().name
