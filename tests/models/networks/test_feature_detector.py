"""The detector `feature` as one graph: how evidence becomes score and map, and what the head learns from."""

from __future__ import annotations

import math

import pytest
import torch

from models.networks.backbone import DETAIL, OVERVIEW, load_extractor
from models.networks.feature_autoencoder import FeatureAutoencoder, Standardisation, Whitening
from models.networks.feature_detector import FeatureEvidence, FeaturesAndResiduals, FeatureScoringGraph
from models.networks.segmentation_head import SegmentationHead, defect_loss


@pytest.fixture(scope="module")
def graph() -> FeatureScoringGraph:
    torch.manual_seed(0)
    seen = FeaturesAndResiduals(load_extractor(), Whitening(), FeatureAutoencoder(), Standardisation(DETAIL))
    return FeatureScoringGraph(FeatureEvidence(seen, Whitening(OVERVIEW), SegmentationHead())).eval()


def test_scores_and_maps_do_not_depend_on_the_batch_and_maps_are_positive(graph: FeatureScoringGraph) -> None:
    images = torch.randint(0, 256, (3, 128, 160, 3), dtype=torch.uint8)
    with torch.inference_mode():
        scores, maps = graph(images)
        alone, map_alone = graph(images[1:2])
    assert scores.shape == (3,) and maps.shape == (3, 16, 20)
    assert (maps >= 0).all()
    torch.testing.assert_close(scores[1:2], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[1:2], map_alone, rtol=1e-4, atol=1e-4)


def test_score_is_about_minus_the_log_of_the_share_of_normals_that_score_as_high(graph: FeatureScoringGraph) -> None:
    torch.manual_seed(1)
    # Of exponential evidence, in any unit.
    normal = torch.empty(20_000, 3).exponential_() * torch.tensor([1.0, 50.0, 0.01]) + torch.tensor([0.0, 7.0, -3.0])
    graph.fit_tails(normal)
    scores = graph.score(normal)
    for share in (0.05, 0.01):
        at = torch.quantile(scores, 1 - share).item()
        assert at == pytest.approx(-math.log(share), abs=0.35)


def test_head_and_novelty_cause_about_as_many_false_alarms(graph: FeatureScoringGraph) -> None:
    torch.manual_seed(2)
    normal = torch.empty(20_000, 3).exponential_() * torch.tensor([30.0, 1.0, 0.1])
    graph.fit_tails(normal)
    scores = graph.score(normal)
    alarms = normal[scores > torch.quantile(scores, 0.99)]
    by_head = (alarms[:, 0] > torch.quantile(normal[:, 0], 0.98)).float().mean()
    assert 0.35 < by_head < 0.65


def test_unusual_by_autoencoder_and_by_overview_counts_more_than_by_one(graph: FeatureScoringGraph) -> None:
    torch.manual_seed(3)
    graph.fit_tails(torch.randn(1_000, 3))
    of_one, of_both, of_none = graph.score(torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
    assert of_none < of_one < of_both - 1


def test_evidence_that_never_varies_gives_finite_scores(graph: FeatureScoringGraph) -> None:
    graph.fit_tails(torch.zeros(8, 3))
    assert graph.score(torch.tensor([[0.0, 1.0, -1.0]])).isfinite().all()


def test_places_that_are_hardly_defect_teach_nothing() -> None:
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    share = torch.zeros(1, 4, 4)
    share[0, 1, 1], share[0, 2, 2] = 0.05, 0.6
    defect_loss(logits, share).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1, 1] == 0
    assert logits.grad[0, 2, 2] < 0 < logits.grad[0, 0, 0]


def test_right_answers_lose_less_than_wrong_ones() -> None:
    share = (torch.rand(2, 8, 8) > 0.9).float()
    right = (2 * share - 1) * 6
    assert defect_loss(right, share) < 0.05 < defect_loss(torch.zeros_like(share), share) < defect_loss(-right, share)
