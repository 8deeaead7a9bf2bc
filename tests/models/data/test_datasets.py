"""Reading the three layouts, and what is said when a folder is none of them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.datasets import VISA_SPLIT, Sample, read_dataset, read_mask
from models.errors import DatasetError


def image(path: Path, size=(6, 4), value=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def visa(folder: Path, rows, columns=("object", "split", "label", "image", "mask")) -> Path:
    path = folder / VISA_SPLIT
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder


@pytest.fixture
def two_objects_of_visa(tmp_path):
    for object in ("capsules", "macaroni1"):
        image(tmp_path / object / "Data/Images/Normal/0.JPG")
        image(tmp_path / object / "Data/Images/Normal/1.JPG")
        image(tmp_path / object / "Data/Images/Anomaly/0.JPG")
        image(tmp_path / object / "Data/Masks/Anomaly/0.png", value=1)
    rows = []
    for object in ("macaroni1", "capsules"):
        data = f"{object}/Data"
        rows.append((object, "train", "normal", f"{data}/Images/Normal/0.JPG", ""))
        rows.append((object, "test", "normal", f"{data}/Images/Normal/1.JPG", ""))
        rows.append((object, "test", "anomaly", f"{data}/Images/Anomaly/0.JPG", f"{data}/Masks/Anomaly/0.png"))
    return visa(tmp_path, rows)


def test_visa_gives_split_label_and_mask_of_each_row(two_objects_of_visa):
    dataset = read_dataset(two_objects_of_visa)
    assert (dataset.layout, dataset.objects) == ("visa", ("capsules", "macaroni1"))
    assert len(dataset.samples) == 6
    base = two_objects_of_visa / "macaroni1/Data"
    assert dataset.select("test", "macaroni1") == [
        Sample(base / "Images/Normal/1.JPG", 0, "test", "macaroni1", None),
        Sample(base / "Images/Anomaly/0.JPG", 1, "test", "macaroni1", base / "Masks/Anomaly/0.png"),
    ]


def test_visa_of_one_object_leaves_out_the_others(two_objects_of_visa):
    dataset = read_dataset(two_objects_of_visa, "capsules")
    assert dataset.objects == ("capsules",)
    assert {sample.object for sample in dataset.samples} == {"capsules"}


def test_visa_of_an_unknown_object_names_those_that_are_there(two_objects_of_visa):
    with pytest.raises(DatasetError, match=r"'candle'.*capsules, macaroni1"):
        read_dataset(two_objects_of_visa, "candle")


def test_visa_row_that_names_a_missing_file_is_named(two_objects_of_visa):
    missing = two_objects_of_visa / "macaroni1/Data/Images/Normal/1.JPG"
    missing.unlink()
    with pytest.raises(DatasetError, match=r"1cls\.csv, row 3: image: .*Normal/1\.JPG"):
        read_dataset(two_objects_of_visa)


def test_visa_row_that_names_a_missing_mask_is_named(two_objects_of_visa):
    (two_objects_of_visa / "capsules/Data/Masks/Anomaly/0.png").unlink()
    with pytest.raises(DatasetError, match=r"row 7: mask: .*Masks/Anomaly/0\.png"):
        read_dataset(two_objects_of_visa)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("a", "validate", "normal", "0.png", ""), "row 2: split: .*'validate'"),
        (("a", "test", "good", "0.png", ""), "row 2: label: .*'good'"),
        (("a", "test", "normal", "", ""), "row 2: image: .*no name"),
        (("a", "test"), "row 2: label"),
        (("a", "test", "normal"), "row 2: image: .*no name"),
    ],
)
def test_visa_row_that_makes_no_sense_is_named(tmp_path, row, said):
    image(tmp_path / "0.png")
    with pytest.raises(DatasetError, match=said):
        read_dataset(visa(tmp_path, [row]))


def test_visa_without_a_column_names_what_was_found(tmp_path):
    with pytest.raises(DatasetError, match="object,split,label,image,mask; found object,image"):
        read_dataset(visa(tmp_path, [], columns=("object", "image")))


@pytest.fixture
def two_objects_of_mvtec(tmp_path):
    for object in ("bottle", "cable"):
        base = tmp_path / object
        image(base / "train/good/000.png")
        image(base / "test/good/000.png")
        image(base / "test/bent/000.png")
        image(base / "test/bent/001.png")
        image(base / "ground_truth/bent/000_mask.png", value=255)
    return tmp_path


def test_mvtec_takes_the_label_from_the_folder_and_the_mask_by_its_name(two_objects_of_mvtec):
    dataset = read_dataset(two_objects_of_mvtec, "cable")
    base = two_objects_of_mvtec / "cable"
    assert dataset.layout == "mvtec"
    assert list(dataset.samples) == [
        Sample(base / "train/good/000.png", 0, "train", "cable"),
        Sample(base / "test/bent/000.png", 1, "test", "cable", base / "ground_truth/bent/000_mask.png"),
        Sample(base / "test/bent/001.png", 1, "test", "cable", None),
        Sample(base / "test/good/000.png", 0, "test", "cable"),
    ]


def test_mvtec_of_all_objects_reads_each(two_objects_of_mvtec):
    dataset = read_dataset(two_objects_of_mvtec)
    assert dataset.objects == ("bottle", "cable")
    assert len(dataset.samples) == 8


def test_mvtec_folder_of_one_object_is_that_object(two_objects_of_mvtec):
    dataset = read_dataset(two_objects_of_mvtec / "bottle")
    assert (dataset.layout, dataset.objects, len(dataset.samples)) == ("mvtec", ("bottle",), 4)


def test_mvtec_mask_may_lack_its_suffix(two_objects_of_mvtec):
    plain = image(two_objects_of_mvtec / "bottle/ground_truth/bent/001.png")
    samples = read_dataset(two_objects_of_mvtec, "bottle").samples
    assert [sample.mask for sample in samples if sample.path.stem == "001"] == [plain]


def test_folders_are_all_test_samples_of_an_object_named_like_the_folder(tmp_path):
    base = tmp_path / "aliens"
    image(base / "normal/1.png")
    image(base / "anomaly/1.JPG")
    image(base / "anomaly/left/2.png")
    mask = image(base / "masks/1.png")
    assert list(read_dataset(base).samples) == [
        Sample(base / "normal/1.png", 0, "test", "aliens"),
        Sample(base / "anomaly/1.JPG", 1, "test", "aliens", mask),
        Sample(base / "anomaly/left/2.png", 1, "test", "aliens"),
    ]


def test_other_files_and_hidden_ones_are_no_samples(tmp_path):
    image(tmp_path / "normal/1.png")
    image(tmp_path / "normal/.trash/2.png")
    image(tmp_path / "normal/._1.png")
    (tmp_path / "normal/notes.txt").write_text("x")
    assert [sample.path.name for sample in read_dataset(tmp_path).samples] == ["1.png"]


def test_a_layout_that_was_asked_for_is_read_where_another_would_come_first(two_objects_of_visa):
    image(two_objects_of_visa / "normal/1.png")
    assert read_dataset(two_objects_of_visa, layout="folders").layout == "folders"
    assert read_dataset(two_objects_of_visa).layout == "visa"


def test_a_folder_of_no_layout_says_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    for part in (
        str(tmp_path),
        "visa",
        "split_csv/1cls.csv",
        "mvtec",
        "train/good",
        "folders",
        "notes.txt",
        "pictures/",
    ):
        assert part in str(caught.value)


def test_a_layout_that_was_asked_for_and_is_not_there_is_an_error(tmp_path):
    (tmp_path / "normal").mkdir()
    with pytest.raises(DatasetError, match=r"expected the layout mvtec .*found normal/"):
        read_dataset(tmp_path, layout="mvtec")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch()])
def test_what_is_no_folder_is_an_error(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="expected a folder"):
        read_dataset(tmp_path / "nothing")


def test_a_layout_without_images_is_an_error(tmp_path):
    (tmp_path / "normal").mkdir()
    with pytest.raises(DatasetError, match=r"layout is folders; expected images .*found none"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA"])
def test_mask_is_true_where_any_channel_is_not_zero(tmp_path, mode):
    expected = np.zeros((3, 5), bool)
    expected[1, 4] = True
    if mode == "P":
        image = Image.fromarray(expected.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 0])  # both labels shown black
    elif mode == "I;16":
        image = Image.fromarray(expected.astype(np.uint16))
    elif mode in ("RGB", "RGBA"):
        image = Image.new(mode, (5, 3), (0, 0, 0, 255)[: len(mode)])
        image.putpixel((4, 1), (0, 1, 0, 255)[: len(mode)])
    else:
        image = Image.fromarray(expected.astype(np.uint8)).convert("L").point(lambda v: 255 * v).convert(mode)
    image.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png")
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected)


def test_mask_that_is_no_image_is_named(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DatasetError, match=r"mask .*mask\.png"):
        read_mask(tmp_path / "mask.png")
