"""The detector `feature` as one graph: three kinds of evidence of a picture, brought to one score and one map.

The head finds what looks like a drawn defect, the autoencoder places unlike any seen, the overview pictures that
differ as a whole. Each is measured against held-out normal pictures, so that they can be added up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbone import OVERVIEW, STRIDE, FeatureExtractor
from models.feature_autoencoder import FeatureAutoencoder, Whitening
from models.segmentation_head import SegmentationHead

EVIDENCE = ("head", "autoencoder", "overview")
# Shares of the positions, the worst ones, whose mean speaks for a picture. Both were chosen on drawn defects and on
# solar cells kept for development, see docs/experiments.md.
HEAD_SHARE = 0.002
ERROR_SHARE = 0.03
# Evidence is measured from the quantile of normal pictures beyond which its tail begins.
TAIL = 0.25
# Share of the mean eigenvalue below which a direction of the overview is not stretched further.
OVERVIEW_FLOOR = 1e-2
_SMALLEST = 1e-12


class FeaturesAndResiduals(nn.Module):
    """Pictures to what the head sees, `(N, 352, h, w)`, and the overview: run once over the training pictures."""

    def __init__(self, extractor: FeatureExtractor, whitening: Whitening, autoencoder: FeatureAutoencoder) -> None:
        """Put the three parts, as trained, one behind the other."""
        super().__init__()
        self.extractor = extractor
        self.whitening = whitening
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return whitened features and what the autoencoder left of them, stacked, and the overview."""
        features, overview = self.extractor(images)
        whitened = self.whitening(features)
        return torch.cat([whitened, whitened - self.autoencoder(whitened)], dim=1), overview


class FeatureEvidence(nn.Module):
    """Pictures to what each kind of evidence says of them and of their places, each in a unit of its own."""

    def __init__(self, seen: FeaturesAndResiduals, overview: Whitening, head: SegmentationHead) -> None:
        """Put the parts, as trained, together."""
        super().__init__()
        self.seen = seen
        self.overview = overview
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 `(N, 3)` of pictures, in the order of `EVIDENCE`, and `(N, 2, h, w)` of places, without
        the overview: the head's logits, and the log of the autoencoder's error, mean over channels and 3x3 places.
        """
        seen, overview = self.seen(images)
        logits = self.head(seen)[:, 0]
        residuals = seen[:, seen.shape[1] // 2 :]
        errors = residuals.square().mean(dim=1, keepdim=True)
        errors = functional.avg_pool2d(errors, 3, stride=1, padding=1, count_include_pad=False)[:, 0]
        distance = self.overview(overview.reshape(-1, OVERVIEW, 1, 1)).flatten(1).square().mean(dim=1)
        of_picture = [
            _mean_of_worst(logits, HEAD_SHARE),
            _mean_of_worst(errors, ERROR_SHARE).clamp_min(_SMALLEST).log(),
            distance.clamp_min(_SMALLEST).log(),
        ]
        return torch.stack(of_picture, dim=1), torch.stack([logits, errors.clamp_min(_SMALLEST).log()], dim=1)


class FeatureScoringGraph(nn.Module):
    """Pictures to score and map, all preprocessing inside; in eval mode this is what is exported."""

    stride = STRIDE
    start: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, evidence: FeatureEvidence) -> None:
        """Make the kinds of `evidence` count alike and unscaled; `fit_tails` makes them comparable."""
        super().__init__()
        self.evidence = evidence
        self.register_buffer("start", torch.zeros(len(EVIDENCE)))
        self.register_buffer("scale", torch.ones(len(EVIDENCE)))
        self.register_buffer("weight", torch.full((len(EVIDENCE),), 1 / len(EVIDENCE)))

    def fit_tails(self, evidence: Tensor, weight: Tensor) -> None:
        """Take an exponential tail of each column of `evidence` `(n, 3)` of normal pictures not trained on.

        Beyond its 75 % quantile a column's excess has the mean `scale` (the maximum-likelihood estimate of an
        exponential tail). `weight` `(3,)`, of sum 1, is the share of false alarms that each may cause.
        """
        for column in range(len(EVIDENCE)):
            values = evidence[:, column].double()
            start = torch.quantile(values, 1 - TAIL)
            beyond = values[values > start]
            scale = (beyond - start).mean() if len(beyond) else torch.ones((), dtype=torch.float64)
            self.start[column] = start
            self.scale[column] = scale.clamp_min(1e-6)
        self.weight.copy_(weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return score float32 `(N,)` and map float32 `(N, H/8, W/8)`, ≥ 0, of uint8 `(N, H, W, 3)` RGB.

        The score is about -ln of the share of normal pictures that score as high: the log of the sum, over kinds, of
        weight over tail probability, a soft form of the weighted Bonferroni correction. The map says the same of
        each place, from head and autoencoder, made positive by softplus.
        """
        of_picture, of_places = self.evidence(images)
        return self._together(of_picture), functional.softplus(self._together(of_places))

    def _together(self, evidence: Tensor) -> Tensor:
        """Return `(N, ...)` of `evidence` `(N, kinds, ...)`."""
        kinds = evidence.shape[1]
        shape = [1, kinds] + [1] * (evidence.dim() - 2)
        start, scale, weight = (part[:kinds].reshape(shape) for part in (self.start, self.scale, self.weight))
        surprise = (evidence - start) / scale + weight.clamp_min(_SMALLEST).log()
        return surprise.logsumexp(dim=1) - math.log(TAIL)


def _mean_of_worst(places: Tensor, share: float) -> Tensor:
    flat = places.flatten(1)
    worst = max(1, round(share * int(flat.shape[1])))
    return flat.topk(worst, dim=1).values.mean(dim=1)
