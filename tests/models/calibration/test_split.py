"""How images are divided: what a rate needs, when folds take the place of a split, how products share a fit."""

from __future__ import annotations

import pytest

from models.calibration.split import Method, anomalies_held_out, balanced, split
from models.errors import TooFewImages


@pytest.mark.parametrize(
    ("found", "rate", "expected"),
    [
        (900, 0.05, ("split", 199)),
        (900, 0.01, ("split", 199)),
        (150, 0.01, ("split", 99)),
        (138, 0.01, ("cross", 138)),
        (139, 0.01, ("split", 99)),
        (99, 0.01, ("cross", 99)),
        (46, 0.05, ("cross", 46)),
        (58, 0.05, ("cross", 58)),
        (20, 0.05, ("cross", 20)),
        (59, 0.05, ("split", 19)),
        (17, 0.5, ("split", 1)),
    ],
)
def test_folds_calibrate_where_a_split_would_leave_too_few_to_train(
    found: int, rate: float, expected: tuple[Method, int]
) -> None:
    assert split(found, rate) == expected


def test_a_method_asked_for_is_the_one_used() -> None:
    assert split(46, 0.05, "split") == ("split", 19)
    assert split(900, 0.05, "cross") == ("cross", 900)


@pytest.mark.parametrize(
    ("found", "rate", "method", "message"),
    [
        (98, 0.01, None, r"needs 99 .*\(99 to calibrate, 16 to train .*; found 98; 98 do for a rate of 0\.0102"),
        (40, 0.01, "split", r"needs 115 .*; found 40; 40 do for a rate of 0\.04 or more"),
        (19, 0.05, None, r"needs 20 .*; found 19; 19 do for a rate of 0\.25 or more"),
        (16, 0.5, None, "at least 17 are needed at any rate"),
        (19, 0.05, "cross", "at least 20 are needed at any rate"),
    ],
)  # fmt: skip
def test_too_few_images_say_what_is_needed_and_what_rate_they_would_do_for(
    found: int, rate: float, method: Method | None, message: str
) -> None:
    with pytest.raises(TooFewImages, match=message):
        split(found, rate, method)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("method", [None, "split", "cross"])
def test_every_number_that_is_taken_leaves_enough_to_train_and_to_calibrate(rate: float, method: Method | None) -> None:
    for found in range(1, 300):
        try:
            used, calibrate = split(found, rate, method)
        except TooFewImages:
            continue
        train = found - calibrate if used == "split" else found - -(-found // 5)
        assert train >= 16 and (calibrate + 1) * rate >= 1 - 1e-9


def test_products_are_drawn_from_alike() -> None:
    assert balanced([list("abc")]) == list("abc")
    assert balanced([list("abcde"), list("xy")]) == list("axbycxdyex")
    many = balanced([list(range(5000)), list(range(9000))])
    assert len(many) == 4000 and many[:4] == [0, 0, 1, 1]


def test_a_classifier_learns_from_most_anomalies_and_the_others_from_none() -> None:
    assert [anomalies_held_out(found, "classifier") for found in (2, 4, 5, 10, 40)] == [0, 0, 1, 2, 8]
    assert anomalies_held_out(40, "feature") == 40 and anomalies_held_out(0, "pixel") == 0
    with pytest.raises(TooFewImages, match=r"at least 2 different images of anomalies, as cross-validation .* found 1"):
        anomalies_held_out(1, "classifier")
