"""Pretrained networks without their last layer, by name: the default backbone's package, a local file, or the hub.

Owns where weights come from and the error when there are none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import BackboneUnavailable
from models.networks.backbone import BACKBONE, WEIGHTS_SHA256, package_weights
from models.registry import file_sha256

LEVELS = (2, 3, 4)  # of five
STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class BackboneSource:
    """Which network, and the safetensors file of its weights; None: the installed package's, or the hub's."""

    name: str = BACKBONE
    weights: Path | None = None


class PretrainedLevels(nn.Module):
    """Images to the last three levels of a pretrained network, normalised as in its training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        """Take `network`, which returns the levels; `mean` and `deviation` of colours in [0, 1], red first."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return float32 `(N, channels, H/s, W/s)` for s of 8, 16, 32, of uint8 `(N, H, W, 3)` RGB."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        levels: list[Tensor] = self.network((pixels - self.mean) / self.deviation)
        return levels


def load_pretrained(source: BackboneSource) -> tuple[PretrainedLevels, tuple[int, ...], dict[str, str]]:
    """Return the network in eval mode, the channels of its three levels, and name and sha256 for model.json.

    Raises BackboneUnavailable naming what was tried, ModelCorrupt if the installed package has changed.
    """
    import timm

    network = _network(source.name)
    wanted = network.state_dict()
    if source.weights is not None:
        tensors, sha256, where = _from_file(source.name, source.weights)
    elif source.name == BACKBONE:
        tensors, sha256, where = package_weights(), WEIGHTS_SHA256, "its installed package"
    else:
        tensors, sha256, where = _from_hub(source.name)
    for name, own in wanted.items():
        found = tuple(tensors[name].shape) if name in tensors else "none of that name"
        if found != tuple(own.shape) and not name.endswith("num_batches_tracked"):
            raise BackboneUnavailable(
                f"backbone {source.name}: expected {name} of shape {tuple(own.shape)} in {where}; found {found}"
            )
    network.load_state_dict({name: tensors.get(name, own) for name, own in wanted.items()}, strict=True)
    about: Any = timm.get_pretrained_cfg(source.name)
    levels = PretrainedLevels(network, tuple(about.mean), tuple(about.std)).eval().requires_grad_(False)
    return levels, tuple(network.feature_info.channels()), {"name": source.name, "weights_sha256": sha256}


def _network(name: str) -> Any:
    import timm

    try:
        network: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=LEVELS)
        strides = tuple(network.feature_info.reduction())
    # timm has many ways of saying that a network has no levels; its own message is the best there is.
    except (RuntimeError, AttributeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise BackboneUnavailable(
            f"backbone {name}: expected a convolutional network of timm, such as resnet18; found: {error}"
        ) from None
    if strides != STRIDES:
        raise BackboneUnavailable(f"backbone {name}: expected levels at strides {STRIDES}; found {strides}")
    return network


def _from_file(name: str, path: Path) -> tuple[dict[str, Tensor], str, str]:
    if not path.is_file():
        raise BackboneUnavailable(f"backbone {name}: expected its weights in {path}; found no file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneUnavailable(f"backbone {name}: {path}: expected a safetensors file; found: {error}") from None
    return tensors, file_sha256(path), str(path)


def _from_hub(name: str) -> tuple[dict[str, Tensor], str, str]:
    import timm

    try:
        tensors = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # noqa: BLE001  (hub, network and cache fail in ways that only they know)
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise BackboneUnavailable(
            f"backbone {name}: no weights; tried --backbone-weights (not given) and the hub ({why}); give a "
            f"safetensors file with --backbone-weights, or use {BACKBONE}, whose weights are installed"
        ) from None
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].numpy().tobytes())
    return tensors, digest.hexdigest(), "the hub's file"
