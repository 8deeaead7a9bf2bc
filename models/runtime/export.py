"""Writes a trained network as two files of a version, weights and OpenVINO graph.

Owns the check that the graph scores like the network that it was made from.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from models.detector import Detector, UInt8Array
from models.errors import ParityFailed
from models.registry import GRAPH, WEIGHTS
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


def save_weights(graph: nn.Module, build: Path, about: Mapping[str, Any]) -> None:
    """Write every tensor of `graph` to `model.safetensors`: equal weights, equal bytes."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(graph.state_dict().items())}
    # One entry only: the order of several would not be the same each time.
    save_file(tensors, build / WEIGHTS, metadata={"tamis": json.dumps(about, sort_keys=True)})
