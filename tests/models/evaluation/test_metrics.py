"""Metrics against counting by hand, against scikit-learn, and against properties that must hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from models.evaluation import metrics

# Histograms have a million bins: 25 examples are a second, and a busy machine is no failure.
FEW = settings(max_examples=25, deadline=None)
SCORES = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@st.composite
def labelled(draw, both=True):
    """Scores, many of them equal, and labels of which both kinds occur."""
    size = draw(st.integers(2, 60))
    few = draw(st.lists(SCORES, min_size=1, max_size=12))
    scores = np.asarray(draw(st.lists(st.sampled_from(few), min_size=size, max_size=size)))
    labels = np.asarray(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    if both:
        labels[:2] = 0, 1
    return scores, labels


@st.composite
def maps_with_masks(draw):
    """Up to three maps, rectangular, of sizes of their own, with masks in which both kinds of pixel occur."""
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.integers(2, 7)), draw(st.integers(2, 9))
        values = draw(nps.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.5, 0.75, 1.0, 3.0, -2.0])))
        mask = draw(nps.arrays(np.bool_, shape))
        mask[0, 0], mask[-1, -1] = True, False
        pairs.append((values, mask))
    return pairs


@FEW
@given(labelled())
def test_auroc_counts_pairs_in_which_the_anomaly_scores_higher(case):
    scores, labels = case
    pairs = [(a > n) + 0.5 * (a == n) for a in scores[labels == 1] for n in scores[labels == 0]]
    assert metrics.image_auroc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))


@FEW
@given(labelled())
def test_auroc_does_not_change_under_a_rising_map_of_the_scores(case):
    scores, labels = case
    order = np.unique(scores)
    rising = np.searchsorted(order, scores).astype(float) ** 3 - 5
    assert metrics.image_auroc(rising, labels) == pytest.approx(metrics.image_auroc(scores, labels))


@FEW
@given(labelled())
def test_auroc_of_turned_scores_is_the_rest_to_one(case):
    scores, labels = case
    assert metrics.image_auroc(scores, labels) + metrics.image_auroc(-scores, labels) == pytest.approx(1)


@FEW
@given(labelled())
def test_image_metrics_agree_with_scikit_learn(case):
    scores, labels = case
    assert metrics.image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    threshold = float(np.median(scores))
    found, called = metrics.at_threshold(scores, labels, threshold), scores > threshold
    assert (found.precision or 0.0) == pytest.approx(precision_score(labels, called, zero_division=0))
    assert found.recall == pytest.approx(recall_score(labels, called))
    assert found.f1 == pytest.approx(f1_score(labels, called))


@FEW
@given(labelled())
def test_best_f1_is_reached_at_its_threshold_and_beaten_by_none(case):
    scores, labels = case
    best = metrics.best_f1(scores, labels)
    assert metrics.at_threshold(scores, labels, best.threshold).f1 == pytest.approx(best.f1)
    for threshold in [-math.inf, *scores]:
        assert metrics.at_threshold(scores, labels, threshold).f1 <= best.f1 + 1e-12


@FEW
@given(labelled(both=False), SCORES)
def test_every_image_is_counted_once(case, threshold):
    scores, labels = case
    found = metrics.at_threshold(scores, labels, threshold)
    counts = found.true_positives, found.false_positives, found.true_negatives, found.false_negatives
    assert sum(counts) == len(scores)
    assert found.true_positives + found.false_negatives == labels.sum()


def test_perfect_and_inverted_scores():
    labels = np.asarray([0, 0, 0, 1, 1])
    scores = np.asarray([0.1, 0.2, 0.3, 0.8, 0.9])
    assert metrics.image_auroc(scores, labels) == 1
    assert metrics.average_precision(scores, labels) == pytest.approx(1)
    assert metrics.best_f1(scores, labels) == metrics.BestF1(1.0, 0.3)
    assert metrics.image_auroc(-scores, labels) == 0
    assert metrics.at_threshold(-scores, labels, -0.5).f1 == 0


def test_a_score_at_the_threshold_is_normal():
    found = metrics.at_threshold(np.asarray([0.5, 0.5]), np.asarray([0, 1]), 0.5)
    assert (found.true_positives, found.false_positives) == (0, 0)
    assert (found.true_negatives, found.false_negatives) == (1, 1)


def test_rates_by_hand():
    scores = np.asarray([1, 2, 3, 4, 5, 6, 7, 8])
    labels = np.asarray([0, 0, 0, 1, 0, 1, 1, 1])
    found = metrics.at_threshold(scores, labels, 4.5)
    assert found.precision == 3 / 4
    assert found.recall == 3 / 4
    assert found.f1 == 3 / 4
    assert found.accuracy == 6 / 8
    assert found.false_alarm_rate == 1 / 4


def test_without_anomalies_only_what_normals_tell_is_known():
    scores, labels = np.asarray([0.1, 0.9]), np.asarray([0, 0])
    found = metrics.at_threshold(scores, labels, 0.5)
    assert (found.false_alarm_rate, found.accuracy) == (0.5, 0.5)
    assert (found.precision, found.recall, found.f1) == (None, None, None)
    assert metrics.image_auroc(scores, labels) is None
    assert metrics.average_precision(scores, labels) is None
    assert metrics.best_f1(scores, labels) is None


def test_without_normals_only_what_anomalies_tell_is_known():
    scores, labels = np.asarray([0.1, 0.9]), np.asarray([1, 1])
    found = metrics.at_threshold(scores, labels, 0.5)
    assert (found.recall, found.accuracy) == (0.5, 0.5)
    assert (found.precision, found.f1, found.false_alarm_rate) == (None, None, None)
    assert metrics.image_auroc(scores, labels) is None


def test_without_images_nothing_is_known():
    found = metrics.at_threshold(np.asarray([]), np.asarray([]), 0.5)
    assert (found.accuracy, found.recall, found.false_alarm_rate) == (None, None, None)
    assert metrics.image_auroc(np.asarray([]), np.asarray([])) is None


def test_nothing_called_gives_no_precision_and_an_f1_of_zero():
    found = metrics.at_threshold(np.asarray([0.1, 0.2]), np.asarray([0, 1]), 0.5)
    assert (found.precision, found.recall, found.f1) == (None, 0.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [([math.nan, 1.0], [0, 1], "finite"), ([0.1, 0.2], [0, 2], "0 and 1"), ([0.1], [0, 1], r"\(N,\)")],
)
def test_wrong_scores_or_labels_are_refused(scores, labels, said):
    with pytest.raises(ValueError, match=said):
        metrics.image_auroc(np.asarray(scores), np.asarray(labels))


def exact_areas(pairs, limit=metrics.AUPRO_LIMIT):
    """Pixel AUROC and AUPRO by going through every threshold, straight from the definitions."""
    normal = np.concatenate([values[~mask] for values, mask in pairs])
    defect = np.concatenate([values[mask] for values, mask in pairs])
    regions = []
    for values, mask in pairs:
        numbered, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [values[numbered == number] for number in range(1, count + 1)]
    thresholds = [math.inf, *np.unique(np.concatenate([normal, defect]))[::-1]]
    fpr = np.asarray([np.mean(normal >= t) for t in thresholds])
    tpr = np.asarray([np.mean(defect >= t) for t in thresholds])
    pro = np.asarray([np.mean([np.mean(region >= t) for region in regions]) for t in thresholds])
    below = fpr <= limit
    if below.all():
        aupro = np.trapezoid(pro, fpr)
    else:
        first_after = int(np.argmin(below))
        rise = (limit - fpr[first_after - 1]) / (fpr[first_after] - fpr[first_after - 1])
        at_limit = pro[first_after - 1] + rise * (pro[first_after] - pro[first_after - 1])
        aupro = np.trapezoid([*pro[below], at_limit], [*fpr[below], limit])
    return np.trapezoid(tpr, fpr), aupro / limit


def histograms_of(pairs):
    histograms = metrics.PixelHistograms()
    for values, mask in pairs:
        histograms.add(values, mask)
    return histograms


@FEW
@given(maps_with_masks())
def test_areas_equal_the_exact_ones_where_no_two_values_share_a_bin(pairs):
    histograms = histograms_of(pairs)
    auroc, aupro = exact_areas(pairs)
    assert histograms.auroc().value == pytest.approx(auroc, abs=1e-9)
    assert histograms.aupro().value == pytest.approx(aupro, abs=1e-9)


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-4, 1.0, 1e20]), st.sampled_from([0.0, 1.0, -1000.0]))
def test_areas_lie_within_their_stated_error_of_the_exact_ones(seed, scale, offset):
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(2):
        mask = ndimage.binary_dilation(random.random((12, 17)) < 0.03, iterations=2)
        mask[0, 0], mask[-1, -1] = True, False
        values = (random.random(mask.shape) + 0.5 * mask + offset) * scale
        pairs.append((values.astype(np.float32), mask))
    histograms = histograms_of(pairs)
    auroc, aupro = exact_areas(pairs)
    assert abs(histograms.auroc().value - auroc) <= histograms.auroc().error + 1e-9
    assert abs(histograms.aupro().value - aupro) <= histograms.aupro().error + 1e-9


def test_stated_error_is_below_a_thousandth_for_smooth_maps():
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        mask = np.zeros((120, 200), bool)
        mask[30:50, 60:90] = True
        noise = ndimage.gaussian_filter(random.standard_normal(mask.shape), 3)
        pairs.append(((noise**2 + 0.02 * mask).astype(np.float32), mask))
    histograms = histograms_of(pairs)
    assert 0.5 < histograms.aupro().value < 1
    assert histograms.aupro().error < 1e-3
    assert histograms.auroc().error < 1e-3


@FEW
@given(maps_with_masks())
def test_the_mask_itself_is_a_perfect_map_and_its_inverse_the_worst(pairs):
    itself = histograms_of([(mask.astype(np.float32), mask) for _, mask in pairs])
    assert itself.aupro().value == pytest.approx(1)
    assert itself.auroc().value == pytest.approx(1)
    inverse = histograms_of([(1 - mask.astype(np.float32), mask) for _, mask in pairs])
    assert inverse.aupro().value == 0
    assert inverse.auroc().value == 0


@FEW
@given(maps_with_masks(), st.integers(-20, 20))
def test_pixel_areas_do_not_change_with_the_scale_of_the_maps(pairs, exponent):
    scaled = histograms_of([(values * np.float32(2.0**exponent), mask) for values, mask in pairs])
    assert scaled.aupro().value == pytest.approx(histograms_of(pairs).aupro().value)
    assert scaled.auroc().value == pytest.approx(histograms_of(pairs).auroc().value)


def test_aupro_weighs_a_small_region_like_a_large_one():
    mask = np.zeros((20, 30), bool)
    mask[2:12, 2:12] = True
    mask[15, 20] = True
    large_only, small_only = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    large_only[2:12, 2:12] = 1
    small_only[15, 20] = 1
    large, small = histograms_of([(large_only, mask)]), histograms_of([(small_only, mask)])
    assert large.regions == small.regions == 2
    assert large.aupro().value == pytest.approx(small.aupro().value)
    assert large.auroc().value > small.auroc().value


def test_regions_that_touch_at_a_corner_are_one():
    mask = np.zeros((4, 6), bool)
    mask[1, 1] = mask[2, 2] = True
    assert histograms_of([(mask.astype(np.float32), mask)]).regions == 1


def test_a_constant_map_is_chance():
    mask = np.zeros((8, 12), bool)
    mask[2:4, 2:8] = True
    histograms = histograms_of([(np.full(mask.shape, 0.7, np.float32), mask)])
    assert histograms.auroc().value == pytest.approx(0.5)
    assert histograms.aupro().value == pytest.approx(0.15)


def test_a_normal_image_counts_all_its_pixels_as_normal():
    mask = np.zeros((4, 6), bool)
    mask[0, :] = True
    bright = np.full((4, 6), 2.0, np.float32)
    alone = histograms_of([(mask.astype(np.float32), mask)])
    with_alarm = histograms_of([(mask.astype(np.float32), mask), (bright, None)])
    assert alone.auroc().value == 1
    assert with_alarm.auroc().value == pytest.approx(18 / 42)


def test_without_defect_pixels_or_without_normal_ones_areas_are_unknown():
    empty = metrics.PixelHistograms()
    assert (empty.auroc(), empty.aupro()) == (None, None)
    empty.add(np.ones((2, 3), np.float32), None)
    assert (empty.auroc(), empty.aupro()) == (None, None)
    full = histograms_of([(np.ones((2, 3), np.float32), np.ones((2, 3), bool))])
    assert (full.auroc(), full.aupro()) == (None, None)


def test_a_map_with_nan_or_of_another_shape_is_refused():
    histograms = metrics.PixelHistograms()
    with pytest.raises(ValueError, match="finite"):
        histograms.add(np.asarray([[math.nan, 1]], np.float32), None)
    with pytest.raises(ValueError, match="shape"):
        histograms.add(np.ones((2, 3), np.float32), np.ones((3, 2), bool))


def test_minus_zero_and_zero_are_one_value():
    mask = np.asarray([[True, False]])
    assert histograms_of([(np.asarray([[0.0, -0.0]], np.float32), mask)]).auroc().value == 0.5


@pytest.mark.parametrize(
    ("size", "common"),
    [
        ((512, 768), (512, 768)),
        ((1000, 1500), (683, 1024)),
        ((3000, 2000), (1024, 683)),
        ((1, 5000), (1, 1024)),
    ],
)
def test_common_size_keeps_the_ratio_and_is_bounded(size, common):
    assert metrics.common_size(*size) == common


@FEW
@given(nps.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.data())
def test_no_defect_is_lost_when_a_mask_shrinks(mask, data):
    size = data.draw(st.integers(1, mask.shape[0])), data.draw(st.integers(1, mask.shape[1]))
    shrunk = metrics.shrunk_mask(mask, size)
    assert shrunk.shape == size
    assert shrunk.any() == mask.any()
    for row, column in np.argwhere(mask):
        cell = (row + 1) * size[0] - 1, (column + 1) * size[1] - 1
        assert shrunk[cell[0] // mask.shape[0], cell[1] // mask.shape[1]]


def test_a_rectangular_map_keeps_its_orientation_when_resized():
    anomaly_map = np.zeros((2, 4), np.float32)
    anomaly_map[0, 3] = 1
    resized = metrics.resized_map(anomaly_map, (20, 80))
    assert resized.shape == (20, 80)
    assert resized[:8, 72:].min() > 0.5
    assert resized[12:].max() < 0.5
    assert resized[0, 79] == 1
