"""The frozen backbone: the right weights in the right places, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from models.errors import ModelCorrupt
from models.networks import backbone
from models.networks.backbone import DETAIL, FEATURES, OVERVIEW, FeatureExtractor, load_extractor
from models.networks.feature_autoencoder import Standardisation, Whitening


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return load_extractor()


def test_features_have_176_channels_at_an_eighth_of_each_side(extractor: FeatureExtractor) -> None:
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    features, overview = extractor(images)
    assert features.shape == (2, FEATURES + DETAIL, 8, 12)
    assert overview.shape == (2, OVERVIEW)


def test_weights_are_pretrained_and_none_is_trained_on(extractor: FeatureExtractor) -> None:
    assert all(not parameter.requires_grad for parameter in extractor.parameters())
    assert not extractor.training
    fresh = FeatureExtractor().backbone.state_dict()
    loaded = extractor.backbone.state_dict()
    convolutions = [name for name in loaded if name.endswith(("conv.weight", "conv_pw.weight", "conv_stem.weight"))]
    assert len(convolutions) > 5
    assert all(not torch.equal(fresh[name], loaded[name]) for name in convolutions)


def test_levels_are_those_of_the_whole_backbone(extractor: FeatureExtractor) -> None:
    whole = timm.create_model(backbone.BACKBONE, features_only=True, out_indices=backbone.LEVELS).eval()
    whole.load_state_dict(whole.state_dict() | extractor.backbone.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for count in (3, 4):
            for ours, theirs in zip(extractor._levels(pixels, count), whole(pixels)[:count], strict=True):
                torch.testing.assert_close(ours, theirs)


def test_overview_is_of_the_image_at_half_its_sides(extractor: FeatureExtractor) -> None:
    small = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    twice = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    pixels = (small.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        _, overview = extractor(twice)
        levels = extractor._levels(pixels, 4)[1:]
    torch.testing.assert_close(overview, torch.cat([level.mean((2, 3)) for level in levels], dim=1))


def test_detail_holds_every_place_of_the_finest_level(extractor: FeatureExtractor) -> None:
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        features, _ = extractor(images)
        finest, middle, _ = extractor._levels(pixels, 3)
    detail = features[:, FEATURES:]
    # Place (row 5, column 9) at stride 4 is the lower right one of place (2, 4) at stride 8.
    torch.testing.assert_close(detail[0, 3 : 4 * 24 : 4, 2, 4], finest[0, :, 5, 9])
    torch.testing.assert_close(detail[:, 4 * 24 :], middle)


def test_standardised_channels_have_mean_zero_and_variance_one() -> None:
    torch.manual_seed(0)
    values = (torch.randn(100_000, 3) * torch.tensor([0.1, 1.0, 30.0]) + 5).half()
    standardisation = Standardisation(3)
    standardisation.fit(values)
    out = standardisation(values.float().reshape(-1, 3, 1, 1))[:, :, 0, 0]
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(3), atol=0.01, rtol=0)


def test_file_with_another_hash_is_never_read_as_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelCorrupt, match="expected sha256"):
        load_extractor(path)
    with pytest.raises(ModelCorrupt, match="found no file"):
        load_extractor(tmp_path / "missing.pth")


def test_tensors_that_do_not_fit_are_refused() -> None:
    whole = timm.create_model(backbone.BACKBONE, pretrained=False).state_dict()
    assert len(whole) == 296
    with pytest.raises(ModelCorrupt, match="expected 296 tensors; found 295"):
        backbone._in_order(dict(list(whole.items())[:-1]))
    with pytest.raises(ModelCorrupt, match="expected shape"):
        backbone._in_order(dict(reversed(whole.items())))


def test_whitened_features_have_mean_zero_and_unit_covariance() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(20_000, 8) @ torch.randn(8, 8) + torch.arange(8)
    whitening = Whitening(8)
    whitening.fit(mixed.half())
    out = whitening(mixed.T.reshape(1, 8, 100, 200)).reshape(8, -1)
    torch.testing.assert_close(out.mean(1), torch.zeros(8), atol=0.02, rtol=0)
    torch.testing.assert_close(out.cov(), torch.eye(8), atol=0.05, rtol=0)


def test_whitening_does_not_blow_up_a_dead_channel() -> None:
    flat = torch.randn(1000, 4)
    flat[:, 2] = 1.0
    whitening = Whitening(4)
    whitening.fit(flat)
    assert whitening.matrix.isfinite().all() and whitening.matrix.abs().max() < 100


def test_standardised_whitening_does_not_depend_on_units() -> None:
    torch.manual_seed(0)
    values = torch.randn(500, 6) @ torch.randn(6, 6)
    units = torch.tensor([1.0, 10.0, 100.0, 0.1, 0.01, 1.0])
    lengths = []
    for scaled in (values, values * units):
        whitening = Whitening(6)
        whitening.fit_standardised(scaled, 1e-2)
        lengths.append(whitening(scaled.reshape(500, 6, 1, 1)).square().sum(dim=1))
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-3, atol=1e-4)
    assert lengths[0].mean().item() == pytest.approx(6, rel=0.2)
