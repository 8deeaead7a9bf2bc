"""The detector `feature` as one graph.

The head finds what looks like a drawn defect, the autoencoder places unlike any seen, the overview images that differ
as a whole; each is scaled by held-out normal images, so that they add up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.backbone import DETAIL, FEATURES, OVERVIEW, STRIDE, FeatureExtractor
from models.networks.feature_autoencoder import FeatureAutoencoder, Standardisation, Whitening
from models.networks.segmentation_head import SegmentationHead

EVIDENCE = ("head", "autoencoder", "overview")
# An image's evidence is the mean over this share of its positions, the worst ones. Both were chosen on drawn defects
# and on solar cells kept for development, see docs/experiments.md.
HEAD_SHARE = 0.002
ERROR_SHARE = 0.03
# The share of normal images in the tail of each kind of evidence.
TAIL = 0.25
# Share of the mean eigenvalue below which a direction of the overview is not stretched further.
OVERVIEW_FLOOR = 1e-2
_SMALLEST = 1e-12


class FeaturesAndResiduals(nn.Module):
    """Images to what the head sees, `(N, 488, h, w)`, and the overview: run once over the training images."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        whitening: Whitening,
        autoencoder: FeatureAutoencoder,
        standardisation: Standardisation,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.whitening = whitening
        self.autoencoder = autoencoder
        self.standardisation = standardisation

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return whitened features, what the autoencoder left of them and detail, stacked, and the overview."""
        kept, overview = self.extractor(images)
        features, detail = kept.split((FEATURES, DETAIL), dim=1)
        whitened = self.whitening(features)
        residuals = whitened - self.autoencoder(whitened)
        return torch.cat([whitened, residuals, self.standardisation(detail)], dim=1), overview


class FeatureEvidence(nn.Module):
    """Images to each kind of evidence, for the image and for its places, each in a unit of its own."""

    def __init__(self, seen: FeaturesAndResiduals, overview: Whitening, head: SegmentationHead) -> None:
        super().__init__()
        self.seen = seen
        self.overview = overview
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 `(N, 3)` of images, in the order of `EVIDENCE`, and `(N, 2, h, w)` of places, without
        the overview: the head's logits, and the log of the autoencoder's error, mean over channels and 3x3 places.
        """
        seen, overview = self.seen(images)
        logits = self.head(seen)[:, 0]
        residuals = seen[:, FEATURES : 2 * FEATURES]
        errors = residuals.square().mean(dim=1, keepdim=True)
        errors = functional.avg_pool2d(errors, 3, stride=1, padding=1, count_include_pad=False)[:, 0]
        distance = self.overview(overview.reshape(-1, OVERVIEW, 1, 1)).flatten(1).square().mean(dim=1)
        of_image = [
            _mean_of_worst(logits, HEAD_SHARE),
            _mean_of_worst(errors, ERROR_SHARE).clamp_min(_SMALLEST).log(),
            distance.clamp_min(_SMALLEST).log(),
        ]
        return torch.stack(of_image, dim=1), torch.stack([logits, errors.clamp_min(_SMALLEST).log()], dim=1)


class FeatureScoringGraph(nn.Module):
    """Images to score and map, all preprocessing inside; in eval mode this is what is exported.

    Autoencoder and overview both measure what was never seen and err together, so they are first added up to one kind
    of evidence, the novelty.
    """

    stride = STRIDE
    middle: Tensor
    spread: Tensor
    start: Tensor
    scale: Tensor

    def __init__(self, evidence: FeatureEvidence) -> None:
        """Keep `evidence` in its own units until `fit_tails` makes its kinds comparable."""
        super().__init__()
        self.evidence = evidence
        self.register_buffer("middle", torch.zeros(len(EVIDENCE)))
        self.register_buffer("spread", torch.ones(len(EVIDENCE)))
        # Of head, autoencoder (for the map) and novelty.
        self.register_buffer("start", torch.zeros(len(EVIDENCE)))
        self.register_buffer("scale", torch.ones(len(EVIDENCE)))

    def fit_tails(self, evidence: Tensor) -> None:
        """Set unit and tail of each kind from `evidence` `(n, 3)` of normal images that nothing was fitted to.

        The unit is the distance from median to 84 % quantile, a standard deviation where values are Gaussian. A tail
        is exponential: beyond the 75 % quantile the excess has the mean `scale`, its maximum-likelihood estimate.
        """
        values = evidence.double()
        middle = values.quantile(0.5, dim=0)
        self.middle.copy_(middle)
        self.spread.copy_((values.quantile(0.84, dim=0) - middle).clamp_min(1e-6))
        for column, kind in enumerate((values[:, 0], values[:, 1], self._novelty(evidence).double())):
            start = torch.quantile(kind, 1 - TAIL)
            beyond = kind[kind > start]
            self.start[column] = start
            self.scale[column] = (beyond - start).mean().clamp_min(1e-6) if len(beyond) else 1.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return score float32 `(N,)` and map float32 `(N, H/8, W/8)`, ≥ 0, of uint8 `(N, H, W, 3)` RGB.

        The score is about -ln of the share of normal images that score as high: the log of the mean, over head and
        novelty, of one over the tail probability, a soft form of Bonferroni's correction. The map is the same for each
        place, from head and autoencoder, made positive by softplus.
        """
        of_image, of_places = self.evidence(images)
        return self.score(of_image), functional.softplus(self._together(of_places[:, 0], of_places[:, 1], 1))

    def score(self, evidence: Tensor) -> Tensor:
        """Return the score `(N,)` of `evidence` `(N, 3)` of images."""
        return self._together(evidence[:, 0], self._novelty(evidence), 2)

    def _novelty(self, evidence: Tensor) -> Tensor:
        return ((evidence[:, 1:] - self.middle[1:]) / self.spread[1:]).sum(dim=1)

    def _together(self, head: Tensor, other: Tensor, column: int) -> Tensor:
        """Return -ln of the share of normals that reach as high in `head` and in `other`, evidence of kind `column`."""
        kinds = (head - self.start[0]) / self.scale[0], (other - self.start[column]) / self.scale[column]
        return torch.stack(kinds).logsumexp(dim=0) - math.log(2 * TAIL)


def _mean_of_worst(places: Tensor, share: float) -> Tensor:
    flat = places.flatten(1)
    worst = max(1, round(share * int(flat.shape[1])))
    return flat.topk(worst, dim=1).values.mean(dim=1)
