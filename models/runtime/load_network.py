"""Rebuilds the torch network of a version from its `model.json` and `model.safetensors`: kind and weights say all.

A kind is added by naming how its empty network is made.
"""

from __future__ import annotations

from collections.abc import Callable

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.registry import WEIGHTS, ModelVersion


class CannotRebuild(Exception):
    """There is no network for a version: of its kind none is known here, or its weights do not fit."""


def network_of(version: ModelVersion) -> nn.Module:
    """Return the scoring network of `version`, what was exported as its graph, in eval mode on the CPU. It takes uint8
    `(N, H, W, 3)` and returns score `(N,)` and map.

    Raises CannotRebuild.
    """
    make = _NETWORKS.get(version.kind)
    if make is None:
        raise CannotRebuild(
            f"version {version.version}: expected a kind of {', '.join(sorted(_NETWORKS))}; found {version.kind}"
        )
    network = make()
    try:
        network.load_state_dict(load_file(version.folder / WEIGHTS), strict=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise CannotRebuild(
            f"{version.folder / WEIGHTS}: expected the tensors of {version.kind}; found: {error}"
        ) from None
    return network.eval().requires_grad_(False)


def _feature() -> nn.Module:
    from models.networks.backbone import DETAIL, OVERVIEW, FeatureExtractor
    from models.networks.feature_autoencoder import FeatureAutoencoder, Standardisation, Whitening
    from models.networks.feature_detector import FeatureEvidence, FeaturesAndResiduals, FeatureScoringGraph
    from models.networks.segmentation_head import SegmentationHead

    seen = FeaturesAndResiduals(FeatureExtractor(), Whitening(), FeatureAutoencoder(), Standardisation(DETAIL))
    return FeatureScoringGraph(FeatureEvidence(seen, Whitening(OVERVIEW), SegmentationHead()))


def _pixel() -> nn.Module:
    from models.networks.pixel_autoencoder import PixelAutoencoder, PixelScoringGraph

    return PixelScoringGraph(PixelAutoencoder())


_NETWORKS: dict[str, Callable[[], nn.Module]] = {"feature": _feature, "pixel": _pixel}
