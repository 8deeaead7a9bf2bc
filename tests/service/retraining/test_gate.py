"""The gate's decision, on scores made so that the outcome is plain."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.retraining.gate import NORMALS_MIN, GateResult, Side, compare, not_judged


def normals(count: int = 100, above: int = 1, seed: int = 0) -> np.ndarray:
    """Scores below 1, but for `above` of them at 2."""
    scores = np.random.default_rng(seed).uniform(0, 1, count)
    scores[:above] = 2
    return scores


def anomalies(count: int, found: int, seed: int = 1) -> np.ndarray:
    """Scores from 0.6 to 0.9, but for `found` of them at 3."""
    scores = np.random.default_rng(seed).uniform(0.6, 0.9, count)
    scores[:found] = 3
    return scores


def side(normal: np.ndarray, anomaly: np.ndarray, version: str = "v", rate: float | None = 0.01, **cost: float) -> Side:
    return Side(version, normal, anomaly, 1.0, rate, **cost)


def decide(champion: Side, challenger: Side, margin: float = 0.01, **options: object) -> GateResult:
    given: dict[str, object] = {"normals_from": "golden", "anomalies_from": "golden"}
    return compare(champion, challenger, margin=margin, **given | options)  # type: ignore[arg-type]


def verdicts(result: GateResult) -> dict[str, str]:
    return {figure.name: figure.verdict for figure in result.figures}


def test_a_challenger_that_finds_more_is_better() -> None:
    found = decide(side(normals(), anomalies(40, 20)), side(normals(), anomalies(40, 36)))
    assert found.decision == "better" and "recall 0.500 to 0.900" in found.reason
    assert verdicts(found)["recall"] == "better"
    recall = next(figure for figure in found.figures if figure.name == "recall")
    assert recall.interval is not None and 0 < recall.interval.low < 0.4 < recall.interval.high


def test_the_same_again_is_not_better() -> None:
    found = decide(side(normals(), anomalies(40, 20)), side(normals(), anomalies(40, 20)))
    assert found.decision == "not better" and "no figure better" in found.reason


def test_one_more_found_is_no_more_than_chance() -> None:
    found = decide(side(normals(), anomalies(40, 20)), side(normals(), anomalies(40, 21)))
    assert found.decision == "not better"


def test_better_in_one_and_worse_in_another_is_worse() -> None:
    found = decide(side(normals(), anomalies(40, 20)), side(normals(above=9), anomalies(40, 40)))
    assert found.decision == "worse" and "false-alarm rate 0.010 to 0.090" in found.reason


def test_worse_by_no_more_than_the_margin_is_not_worse() -> None:
    champion, challenger = side(normals(), anomalies(100, 60)), side(normals(), anomalies(100, 57))
    assert verdicts(decide(champion, challenger, margin=0.03))["recall"] == "even"
    assert verdicts(decide(champion, challenger, margin=0.02))["recall"] == "worse"


def test_a_single_image_decides_nothing() -> None:
    found = decide(side(normals(20, 0), anomalies(10, 5)), side(normals(20, 1), anomalies(10, 4)), margin=0.0)
    assert verdicts(found)["recall"] == verdicts(found)["false_alarm_rate"] == "even"


def test_false_alarms_nearer_to_the_promise_are_better() -> None:
    found = decide(side(normals(above=20), anomalies(0, 0)), side(normals(above=1), anomalies(0, 0)))
    assert found.decision == "better" and verdicts(found)["image_auroc"] == "not judged"
    kept = decide(side(normals(above=2), anomalies(0, 0)), side(normals(above=0), anomalies(0, 0)))
    assert kept.decision == "not better"


def test_fewer_false_alarms_than_promised_are_not_worse_than_more() -> None:
    found = decide(
        side(normals(above=5), anomalies(0, 0), rate=0.2), side(normals(above=20), anomalies(0, 0), rate=0.2)
    )
    assert verdicts(found)["false_alarm_rate"] != "worse"


def test_a_drifting_champion_is_replaced_by_one_that_is_not_worse() -> None:
    champion = side(normals(), anomalies(40, 20))
    assert decide(champion, champion, drifting=True).decision == "better"
    assert decide(champion, side(normals(above=9), anomalies(40, 20)), drifting=True).decision == "worse"


def test_time_and_energy_may_grow_by_a_quarter() -> None:
    champion = side(normals(), anomalies(40, 20), cpu_ms_per_image=40.0, wh_per_1000_images=0.4)
    slower = side(normals(), anomalies(40, 36), cpu_ms_per_image=51.0, wh_per_1000_images=0.4)
    found = decide(champion, slower)
    assert found.decision == "worse" and "processor time per image 40.0000 to 51.0000" in found.reason
    assert decide(champion, side(normals(), anomalies(40, 36), cpu_ms_per_image=49.0)).decision == "better"


def test_images_that_set_the_threshold_say_nothing_of_false_alarms() -> None:
    found = decide(
        side(normals(above=20), anomalies(40, 20)),
        side(normals(above=1), anomalies(40, 20)),
        normals_from="calibration",
    )
    assert verdicts(found)["false_alarm_rate"] == "not judged"


def test_where_every_resample_agrees_there_is_no_interval_and_still_a_verdict() -> None:
    found = decide(side(normals(), np.full(20, 0.5)), side(normals(), np.full(20, 3.0)))
    recall = next(figure for figure in found.figures if figure.name == "recall")
    assert recall.interval is None and recall.verdict == "better"


def test_the_same_scores_give_the_same_finding_each_time() -> None:
    champion, challenger = side(normals(), anomalies(40, 20)), side(normals(seed=2), anomalies(40, 25, seed=3))
    assert decide(champion, challenger).document() == decide(champion, challenger).document()


@pytest.mark.parametrize("result", [not_judged(f"fewer than {NORMALS_MIN} normals")], ids=["not judged"])
def test_the_finding_is_json(result: GateResult) -> None:
    assert json.loads(json.dumps(result.document()))["decision"] == "not judged"
    full = decide(side(normals(), anomalies(40, 20)), side(normals(), anomalies(40, 36)))
    document = json.loads(json.dumps(full.document(), allow_nan=False))
    assert [figure["name"] for figure in document["figures"]][:3] == ["image_auroc", "recall", "false_alarm_rate"]
    assert document["challenger"] == {"version": "v", "threshold": 1.0, "promised_rate": 0.01}
