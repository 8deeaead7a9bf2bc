"""Writes a trained network as the files of a version: weights, OpenVINO graph, `images.csv`, `model.json`.

Owns the check that the graph scores like the network that it was made from. Publishing is the registry's.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from models.data.select_images import Chosen, TrainingImage
from models.detector import Detector, UInt8Array
from models.errors import ParityFailed
from models.registry import (
    GRAPH,
    IMAGES,
    ROLE_CALIBRATE,
    ROLE_CALIBRATE_ANOMALY,
    ROLE_TRAIN,
    ROLE_TRAIN_AND_CALIBRATE,
    ROLE_TRAIN_ANOMALY,
    ROLE_TRIMMED,
    WEIGHTS,
    file_sha256,
)
from models.runtime.openvino_runtime import openvino

PARITY_TOLERANCE = 1e-3


def export_graph(graph: nn.Module, input_size: tuple[int, int], build: Path) -> None:
    """Write `model.xml` and `model.bin`: float32, uint8 `(1, H, W, 3)` in, outputs `score` and `map`."""
    model = converted(graph, input_size)
    for output, name in zip(model.outputs, ("score", "map"), strict=True):
        output.get_tensor().set_names({name})
    openvino().save_model(model, build / GRAPH, compress_to_fp16=False)


def converted(network: nn.Module, input_size: tuple[int, int]) -> Any:
    """Return `network`, in eval mode, as an ov.Model that takes uint8 `(1, H, W, 3)`."""
    shape = (1, *input_size, 3)
    example = torch.zeros(shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        # Tracing warns of every Python number taken from a shape; shapes are fixed here.
        warnings.simplefilter("ignore")
        return openvino().convert_model(network.eval(), example_input=example, input=list(shape))


def check_parity(graph: nn.Module, detector: Detector, images: UInt8Array) -> float:
    """Return the largest relative difference of scores between network and exported graph on `images`.

    Relative to the score, or to the standard deviation of all if that is larger: scores may lie about 0. Raises
    ParityFailed if it is above 1e-3 or not a number.
    """
    with torch.inference_mode():
        expected = graph.eval()(torch.from_numpy(images))[0].numpy().astype(np.float64)
    found = detector.score(images).scores
    differences = np.abs(found - expected) / np.maximum(np.maximum(np.abs(expected), expected.std()), 1e-12)
    worst = float(differences.max())
    if not worst <= PARITY_TOLERANCE:
        index = int(np.argmax(differences))
        raise ParityFailed(
            f"exported graph: expected scores within {PARITY_TOLERANCE:g} (relative) of the network's; found "
            f"{found[index]:.6g} for {expected[index]:.6g}, a difference of {worst:.3g}; nothing was published"
        )
    return worst


def save_weights(graph: nn.Module, build: Path, about: Mapping[str, Any]) -> str:
    """Write every tensor of `graph` to `model.safetensors`; return the file's sha256. Equal weights, equal bytes."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(graph.state_dict().items())}
    # One entry only: the order of several would not be the same each time.
    save_file(tensors, build / WEIGHTS, metadata={"tamis": json.dumps(about, sort_keys=True)})
    return file_sha256(build / WEIGHTS)


def write_images(chosen: Chosen, build: Path, root: Path | None = None) -> None:
    """Write `images.csv`: sha256, role (see docs/models.md) and path of each image used or left out.

    A path is relative to `root` where it lies under it, else as given.
    """
    roles: list[tuple[str, Sequence[TrainingImage]]]
    if chosen.method == "cross":
        roles = [(ROLE_TRAIN_AND_CALIBRATE, chosen.train)]
    else:
        roles = [(ROLE_TRAIN, chosen.train), (ROLE_CALIBRATE, chosen.calibrate)]
    roles += [
        (ROLE_TRIMMED, chosen.trimmed),
        (ROLE_TRAIN_ANOMALY, chosen.train_anomalies),
        (ROLE_CALIBRATE_ANOMALY, chosen.held_out_anomalies),
    ]
    with (build / IMAGES).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("sha256", "role", "path"))
        for role, images in roles:
            writer.writerows((image.sha256, role, _listed(image.path, root)) for image in images)


def _listed(path: Path, root: Path | None) -> Path:
    return path.relative_to(root) if root is not None and path.is_relative_to(root) else path
