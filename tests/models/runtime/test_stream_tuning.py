from __future__ import annotations

import numpy as np
import pytest

from models.registry import ModelVersion
from models.runtime.openvino_detector import OpenVinoDetector
from models.runtime.stream_tuning import batch_size, chosen, measure_streams
from models.runtime.torch_detector import probes


class Machine:
    """A clock that a run moves: `seconds[n]` for one image on each of n streams at once."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.runs = seconds, 0.0, 0

    def run(self, streams: int) -> None:
        self.now += self.seconds[streams]
        self.runs += 1

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("images_per_s", "streams"),
    [
        ({2: 50.0, 1: 49.0}, 2),
        ({2: 50.0, 1: 54.9}, 2),
        ({2: 50.0, 1: 55.1}, 1),
        ({8: 80.0, 7: 90.0, 4: 95.0, 1: 20.0}, 4),
    ],
)
def test_default_stays_unless_another_is_more_than_a_tenth_faster(images_per_s: dict[int, float], streams: int) -> None:
    assert chosen(images_per_s) == streams


def test_two_streams_that_hinder_each_other_become_one() -> None:
    machine = Machine({2: 0.030, 1: 0.010})
    measured = measure_streams(machine.run, 2, clock=machine.clock)
    assert measured.streams == 1
    assert measured.chosen_images_per_s == pytest.approx(100)


def test_measuring_is_over_before_its_time_is() -> None:
    machine = Machine({8: 0.010, 7: 0.010, 4: 0.008, 1: 0.006})
    assert measure_streams(machine.run, 8, 0.4, machine.clock).streams == 8
    assert 0.3 < machine.now <= 0.4


def test_graph_too_slow_to_measure_keeps_the_default() -> None:
    machine = Machine({2: 0.2, 1: 0.01})
    measured = measure_streams(machine.run, 2, 0.4, machine.clock)
    assert measured.streams == 2 and machine.runs == 2
    assert measured.chosen_images_per_s == pytest.approx(10)


def test_one_core_has_nothing_to_choose() -> None:
    machine = Machine({1: 0.01})
    assert measure_streams(machine.run, 1, clock=machine.clock).streams == 1


@pytest.mark.parametrize(
    ("images_per_s", "in_flight_max", "images"),
    [(5.0, 64, 8), (60.0, 64, 12), (1000.0, 64, 16), (60.0, 16, 4), (60.0, 1, 1)],
)
def test_batch_is_what_a_fifth_of_a_second_scores_with_four_in_flight(
    images_per_s: float, in_flight_max: int, images: int
) -> None:
    assert batch_size(images_per_s, in_flight_max) == images


def test_scores_are_the_same_on_any_number_of_streams(trained: ModelVersion) -> None:
    detector = OpenVinoDetector(trained, 2)
    expected = detector.score(probes(trained.input_size))
    assert detector.measure().images_per_s.keys() == {1, 2}
    detector.use_streams(1)
    found = detector.score(probes(trained.input_size))
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.maps, expected.maps)
