"""Starts a fit from the weights of an earlier version of the same architecture.

The whitening is fitted anew, to images that it never saw; its weights are then expressed in the new units, exactly: the
layers on either side are 1x1 convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.manifest import Backbone
from models.networks.backbone import BACKBONE, FEATURES, WEIGHTS_SHA256
from models.networks.feature_autoencoder import FeatureAutoencoder, Standardisation, Whitening
from models.networks.segmentation_head import SegmentationHead
from models.registry import WEIGHTS, read_manifest

# A fit that starts where another ended needs fewer steps, and smaller ones.
WARM_STEPS_SHARE = 0.5
WARM_RATE_SHARE = 0.5
TRIM_STEPS_SHARE = 0.25  # of a first fit from random weights, by which images are left out


@dataclass(frozen=True)
class WarmStart:
    """The tensors of an earlier version, by their names in its graph."""

    version: str
    tensors: dict[str, Tensor]

    def fill(self, module: nn.Module, part: str) -> bool:
        """Load the tensors of the graph's `part` into `module`; return False and change nothing where shapes differ."""
        wanted = module.state_dict()
        first = next(iter(wanted))
        ends = [f".{part}.{first}", f"{part}.{first}"]
        prefixes = [name[: -len(first)] for name in self.tensors if name.endswith(ends[0]) or name == ends[1]]
        for prefix in prefixes:
            found = {name: self.tensors.get(prefix + name) for name in wanted}
            if all(tensor is not None and tensor.shape == wanted[name].shape for name, tensor in found.items()):
                module.load_state_dict(found)
                return True
        return False


def read_warm_start(folder: Path | None, kind: str) -> WarmStart | None:
    """Return what the version in `folder` has to begin with; None where it is of another kind or another backbone."""
    if folder is None:
        return None
    version = read_manifest(folder)
    backbone = Backbone(name=BACKBONE, weights_sha256=WEIGHTS_SHA256) if kind == "feature" else None
    if version.kind != kind or version.manifest.backbone != backbone or kind not in ("feature", "pixel"):
        return None
    return WarmStart(version.version, load_file(folder / WEIGHTS))


def start_features(
    warm: WarmStart | None, whitening: Whitening, standardisation: Standardisation
) -> tuple[FeatureAutoencoder, SegmentationHead] | None:
    """Return autoencoder and head of `warm`, in the units of the new `whitening` and `standardisation`.

    None where there is nothing to start from. With w = M (f - m) of features f, the old whitened features are
    A w + b of the new ones, A = M_old M_new^-1 and b = M_old (m_new - m_old); the networks' outputs are the same.
    """
    old_whitening, old_standardisation = Whitening(), Standardisation(len(standardisation.mean))
    autoencoder, head = FeatureAutoencoder(), SegmentationHead()
    parts: list[tuple[nn.Module, str]] = [
        (old_whitening, "whitening"),
        (old_standardisation, "standardisation"),
        (autoencoder, "autoencoder"),
        (head, "head"),
    ]
    if warm is None or not all(warm.fill(module, part) for module, part in parts):
        return None
    with torch.no_grad():
        new, old = whitening.matrix.double(), old_whitening.matrix.double()
        change = old @ torch.linalg.inv(new)
        shift = old @ (whitening.mean - old_whitening.mean).double()
        back = torch.linalg.inv(change)
        first, last = _first_and_last(autoencoder)
        _set(first, _weight(first) @ change, _bias(first) + _weight(first) @ shift)
        _set(last, back @ _weight(last), back @ (_bias(last) - shift))
        entry, _ = _first_and_last(head)
        whitened, residuals, detail = torch.split(
            _weight(entry), [FEATURES, FEATURES, len(standardisation.mean)], dim=1
        )
        stretch = (standardisation.deviation / old_standardisation.deviation).double()
        moved = ((standardisation.mean - old_standardisation.mean) / old_standardisation.deviation).double()
        _set(
            entry,
            torch.cat([whitened @ change, residuals @ change, detail * stretch], dim=1),
            _bias(entry) + whitened @ shift + detail @ moved,
        )
    return autoencoder, head


def _first_and_last(network: nn.Sequential) -> tuple[nn.Conv2d, nn.Conv2d]:
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    return convolutions[0], convolutions[-1]


def _weight(layer: nn.Conv2d) -> Tensor:
    return layer.weight[:, :, 0, 0].double()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.double()


def _set(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(weight[:, :, None, None])
    layer.bias.copy_(bias)
