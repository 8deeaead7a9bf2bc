"""Evaluating with a detector whose score is brightness, so that every outcome is plain."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from models.data.datasets import Sample
from models.detector import Detector, Scored
from models.evaluation.evaluate import Metrics, evaluate, mean, score_files


class Brightness(Detector):
    """Scores the brightest cell of a map of means over 4 x 4 pixels; takes rectangles."""

    input_size = (16, 24)

    def __init__(self):
        self.batches = []

    def score(self, images):
        assert images.shape[1:] == (16, 24, 3)
        assert images.dtype == np.uint8
        self.batches.append(len(images))
        maps = images.astype(np.float32).reshape(len(images), 4, 4, 6, 4, 3).mean(axis=(2, 4, 5))
        return Scored(maps.max(axis=(1, 2)), maps)


class NotAnImage(Exception):
    pass


def read(path, size):
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))
    except OSError as error:
        raise NotAnImage(f"{path.name}: {type(error).__name__}") from None


def image_size(path):
    with Image.open(path) as image:
        return image.height, image.width


def run(samples, threshold=100.0, detector=None, **options):
    return evaluate(detector or Brightness(), samples, threshold, read, image_size, unreadable=(NotAnImage,), **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def sample(folder: Path, name: str, background=20, defect=None, brightness=200, mask=True) -> Sample:
    """An image of 32 x 48; `defect` is (rows, columns) as slices."""
    pixels = np.full((32, 48), background, np.uint8)
    drawn = np.zeros(pixels.shape, np.uint8)
    if defect is not None:
        pixels[defect], drawn[defect] = brightness, 255
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    if defect is None or not mask:
        return Sample(path, 0 if defect is None else 1, "test", "part")
    Image.fromarray(drawn).save(folder / f"{name}_mask.png")
    return Sample(path, 1, "test", "part", folder / f"{name}_mask.png")


CORNER = np.s_[0:8, 32:48]


def test_a_detector_that_sees_the_defect_is_perfect(folder):
    samples = [sample(folder, f"n{i}", background=10 + i) for i in range(5)]
    samples += [sample(folder, f"a{i}", defect=CORNER, brightness=150 + i) for i in range(5)]
    found = run(samples)
    assert (found.images, found.normals, found.anomalies, found.masked, found.regions) == (10, 5, 5, 5, 5)
    assert (found.metrics.precision, found.metrics.recall, found.metrics.f1) == (1, 1, 1)
    assert (found.metrics.accuracy, found.metrics.false_alarm_rate) == (1, 0)
    assert (found.metrics.image_auroc, found.metrics.best_f1) == (1, 1)
    assert found.metrics.pixel_auroc > 0.99
    assert found.metrics.aupro > 0.95


def test_a_defect_in_the_corner_opposite_of_the_mask_is_no_success(folder):
    """Height and width, or up and down, exchanged anywhere on the way would pass with squares."""
    wrong = sample(folder, "a", defect=CORNER)
    drawn = np.zeros((32, 48), np.uint8)
    drawn[24:, :16] = 255
    Image.fromarray(drawn).save(wrong.mask)
    found = run([sample(folder, "n"), wrong])
    assert found.metrics.image_auroc == 1
    assert found.metrics.aupro < 0.2


def test_scores_keep_the_order_of_the_samples_over_batches(folder):
    samples = [sample(folder, f"n{i}", background=3 * i) for i in range(21)]
    detector = Brightness()
    found = run(samples, detector=detector, batch_size=8)
    assert detector.batches == [8, 8, 5]
    assert [image.sample for image in found.scores] == samples
    assert [image.score for image in found.scores] == [3.0 * i for i in range(21)]


def test_verdict_metrics_are_at_the_threshold_given(folder):
    samples = [sample(folder, f"n{i}", background=b) for i, b in enumerate([10, 20, 30, 120])]
    samples += [sample(folder, f"a{i}", defect=CORNER, brightness=b) for i, b in enumerate([90, 150, 160])]
    found = run(samples, threshold=100.0)
    assert found.metrics.precision == pytest.approx(2 / 3)
    assert found.metrics.recall == pytest.approx(2 / 3)
    assert found.metrics.false_alarm_rate == 1 / 4
    labels = [image.sample.label for image in found.scores]
    assert found.metrics.image_auroc == pytest.approx(roc_auc_score(labels, [p.score for p in found.scores]))


def test_a_image_that_cannot_be_read_is_listed_and_left_out(folder):
    samples = [sample(folder, f"n{i}") for i in range(3)] + [sample(folder, "a", defect=CORNER)]
    samples[1].path.write_bytes(b"no image")
    found = run(samples, batch_size=2)
    assert found.images == 3
    assert [(failure.path, failure.error) for failure in found.failures] == [
        (samples[1].path, "n1.png: UnidentifiedImageError")
    ]
    assert found.metrics.image_auroc == 1


def test_a_whole_batch_that_cannot_be_read_is_passed_over(folder):
    samples = [sample(folder, f"n{i}") for i in range(6)]
    for broken in samples[2:4]:
        broken.path.write_bytes(b"")
    detector = Brightness()
    found = run(samples, detector=detector, batch_size=2)
    assert (found.images, len(found.failures), detector.batches) == (4, 2, [2, 2])


def test_a_score_that_is_not_finite_is_no_verdict(folder):
    class NotFinite(Brightness):
        def score(self, images):
            scored = super().score(images)
            scored.scores[0] = np.nan
            return scored

    found = run([sample(folder, "n0"), sample(folder, "n1")], detector=NotFinite())
    assert found.images == 1
    assert "finite" in found.failures[0].error


def test_an_unexpected_error_while_reading_is_not_hidden(folder):
    def broken(path, size):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(Brightness(), [sample(folder, "n")], 100.0, broken, image_size, unreadable=(NotAnImage,))


def test_without_masks_pixel_metrics_are_unknown_and_image_metrics_known(folder):
    found = run([sample(folder, "n"), sample(folder, "a", defect=CORNER, mask=False)])
    assert found.metrics.image_auroc == 1
    assert (found.metrics.pixel_auroc, found.metrics.aupro, found.masked) == (None, None, 0)
    assert (found.metrics.pixel_auroc_error, found.metrics.aupro_error) == (None, None)


def test_an_anomaly_without_a_mask_does_not_count_as_normal_pixels(folder):
    masked = [sample(folder, "n"), sample(folder, "a0", defect=CORNER)]
    unmasked = sample(folder, "a1", defect=np.s_[0:32, 0:48], brightness=255, mask=False)
    assert run([*masked, unmasked]).metrics.pixel_auroc == run(masked).metrics.pixel_auroc


def test_without_anomalies_only_the_false_alarm_rate_and_accuracy_are_known(folder):
    found = run([sample(folder, "n0"), sample(folder, "n1", background=150)]).metrics
    assert (found.false_alarm_rate, found.accuracy) == (0.5, 0.5)
    known = {"false_alarm_rate", "accuracy"}
    assert all(value is None for name, value in vars(found).items() if name not in known)


@pytest.mark.parametrize("content", ["turned", "no image"])
def test_a_mask_that_does_not_fit_is_listed_and_its_image_still_counts(folder, content):
    samples = [sample(folder, "n"), sample(folder, "a0", defect=CORNER), sample(folder, "a1", defect=CORNER)]
    if content == "turned":
        Image.new("L", (32, 48)).save(samples[2].mask)
    else:
        samples[2].mask.write_bytes(b"no image")
    found = run(samples)
    assert (found.images, found.masked) == (3, 1)
    assert [failure.path for failure in found.failures] == [samples[2].mask]
    assert found.metrics.aupro is not None


def test_progress_reaches_the_total(folder):
    samples = [sample(folder, f"n{i}") for i in range(5)]
    samples[0].path.write_bytes(b"")
    told = []
    run(samples, batch_size=2, report=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_no_more_than_two_batches_of_images_are_held(folder):
    lock, held, most = threading.Lock(), 0, 0

    def counted(path, size):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return read(path, size)

    class Releases(Brightness):
        def score(self, images):
            nonlocal held
            with lock:
                held -= len(images)
            return super().score(images)

    paths = [sample(folder, f"n{i}").path for i in range(40)]
    batches = list(score_files(Releases(), paths, counted, batch_size=4))
    assert sum(len(batch.scored) for batch in batches) == 40
    assert most <= 8


def test_pace_counts_from_file_to_score_and_not_the_caller(folder):
    found = run([sample(folder, f"n{i}") for i in range(4)])
    assert 0 < found.scoring_seconds <= found.seconds
    assert found.images_per_second == pytest.approx(4 / found.scoring_seconds)


def test_no_samples_give_an_evaluation_in_which_nothing_is_known():
    found = run([])
    assert (found.images, found.images_per_second) == (0, None)
    assert all(value is None for value in vars(found.metrics).values())


def metrics_of(**known):
    return Metrics(**{name: known.get(name) for name in Metrics.__dataclass_fields__})


def test_mean_over_objects_is_unknown_where_one_object_lacks_the_metric():
    found = mean([metrics_of(image_auroc=0.5, aupro=0.4), metrics_of(image_auroc=1.0)])
    assert found.image_auroc == 0.75
    assert found.aupro is None


def test_a_mean_threshold_of_different_detectors_is_not_given():
    assert mean([metrics_of(best_f1_threshold=1.0), metrics_of(best_f1_threshold=3.0)]).best_f1_threshold is None
