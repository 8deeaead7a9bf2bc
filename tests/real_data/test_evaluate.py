"""Reading and judging the real images of ../shared/data: VisA macaroni1 and the aliens."""

from pathlib import Path

import numpy as np
import pytest

from models.data.datasets import read_dataset, read_mask
from models.detector import Scored
from models.evaluation.evaluate import evaluate
from service.imaging.decode import DecodeError, image_size, read_image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real images are not at {DATA}"),
]


class DifferenceFromMean:
    """The crudest detector there is: the distance of each 8 x 8 cell from the mean of some normal images."""

    def __init__(self, normals, input_size):
        self.input_size = input_size
        images = np.stack([self._cells(read_image(path, input_size)[None])[0] for path in normals])
        self._mean, self._spread = images.mean(axis=0), images.std(axis=0) + 1

    def score(self, images):
        maps = np.abs((self._cells(images) - self._mean) / self._spread).mean(axis=3).astype(np.float32)
        return Scored(maps.max(axis=(1, 2)), maps)

    @staticmethod
    def _cells(images):
        count, height, width, _ = images.shape
        return images.reshape(count, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4), dtype=np.float64)


@pytest.fixture(scope="module")
def visa():
    return read_dataset(DATA / "visa")


def test_visa_has_the_official_one_class_split(visa):
    assert (visa.layout, visa.objects) == ("visa", ("macaroni1",))
    assert len(visa.select("train")) == 900
    test = visa.select("test")
    assert sum(sample.label == 0 for sample in test) == 100
    assert sum(sample.label == 1 for sample in test) == 100
    assert sum(sample.mask is not None for sample in visa.samples) == 100
    assert all(sample.label == 1 for sample in visa.samples if sample.mask is not None)
    assert not {sample.path for sample in test} & {sample.path for sample in visa.select("train")}


def test_every_mask_of_visa_fits_its_image_and_shows_a_defect(visa):
    for sample in visa.samples:
        if sample.mask is not None:
            mask = read_mask(sample.mask)
            assert mask.shape == image_size(sample.path) == (512, 768)
            assert 0 < mask.mean() < 0.5


def test_aliens_are_all_test_images_without_masks():
    dataset = read_dataset(DATA / "aliens")
    assert (dataset.layout, dataset.objects) == ("folders", ("aliens",))
    assert sum(sample.label == 0 for sample in dataset.samples) == 58
    assert sum(sample.label == 1 for sample in dataset.samples) == 60
    assert {sample.split for sample in dataset.samples} == {"test"}
    assert {sample.mask for sample in dataset.samples} == {None}


def test_a_crude_detector_on_visa_gives_every_metric_within_its_range(visa):
    detector = DifferenceFromMean([sample.path for sample in visa.select("train")[:20]], (128, 192))
    found = evaluate(detector, visa.select("test"), 3.0, read_image, image_size, unreadable=(DecodeError,))
    assert (found.images, found.normals, found.anomalies, found.masked) == (200, 100, 100, 100)
    assert found.failures == ()
    assert found.regions >= 100
    known = vars(found.metrics)
    assert all(value is not None for value in known.values())
    assert all(0 <= value <= 1 for name, value in known.items() if name != "best_f1_threshold")
    assert known["aupro_error"] < 1e-3
    assert known["pixel_auroc_error"] < 1e-3


def test_a_crude_detector_tells_aliens_apart_better_than_chance():
    samples = list(read_dataset(DATA / "aliens").samples)
    normals = [sample.path for sample in samples if sample.label == 0]
    rest = [sample for sample in samples if sample.path not in normals[:20]]
    detector = DifferenceFromMean(normals[:20], (96, 136))
    found = evaluate(detector, rest, 3.0, read_image, image_size, unreadable=(DecodeError,))
    assert (found.normals, found.anomalies) == (38, 60)
    assert found.metrics.image_auroc > 0.6
    assert found.metrics.pixel_auroc is None
