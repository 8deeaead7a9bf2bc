"""When a retraining is due, by a clock that is set and never waited for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from service.cron import check_cron, parse_cron
from service.retraining.due import DueReason, RetrainingFacts, due, next_time
from service.storage.retrainings import NewLabels, RetrainingRow

SUNDAY = datetime(2026, 3, 8, 2, tzinfo=UTC)
WEEKLY = parse_cron("0 2 * * 0", UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def row(requested_at: datetime, state: str = "done", review_id: int = 0) -> RetrainingRow:
    nothing = dict.fromkeys(RetrainingRow.__dataclass_fields__)
    known = {"id": 1, "product": "bar", "trigger": "cron", "state": state, "requested_at": requested_at}
    return RetrainingRow(**{**nothing, **known, "review_id": review_id})  # type: ignore[arg-type]


def asked(
    now: datetime,
    first_label_at: datetime | None,
    *runs: RetrainingRow,
    labels: int = 1,
    since_last: int | None = None,
    drifting_since: datetime | None = None,
    after_labels: int = 0,
    on_drift: bool = False,
) -> DueReason | None:
    unlearned = NewLabels(labels if first_label_at else 0, first_label_at, 7)
    recent = NewLabels(labels if since_last is None else since_last, first_label_at, 7)
    facts = RetrainingFacts(runs, unlearned, recent, drifting_since)
    return due(facts, now, cron=WEEKLY, after_labels=after_labels, on_drift=on_drift)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 2 * * 0", SUNDAY, SUNDAY + 7 * DAY),
        ("0 2 * * 0", SUNDAY - HOUR, SUNDAY),
        ("0 2 * * 7", SUNDAY - HOUR, SUNDAY),
        ("0 2 * * sun", SUNDAY - HOUR, SUNDAY),
        ("0 2 * * 1", SUNDAY, SUNDAY + DAY),
        ("30 3 * * 1-5", SUNDAY, SUNDAY + DAY + timedelta(minutes=90)),
        ("0 2 * * 5-7", SUNDAY, SUNDAY + 5 * DAY),
        ("0 2 * * */2", SUNDAY, SUNDAY + 2 * DAY),
        ("0 2 * * 6,0", SUNDAY, SUNDAY + 6 * DAY),
        ("*/20 * * * *", SUNDAY, SUNDAY + timedelta(minutes=20)),
        ("0 2 1 * *", SUNDAY, datetime(2026, 4, 1, 2, tzinfo=UTC)),
    ],
)
def test_cron_means_what_crontab_says(expression: str, after: datetime, expected: datetime) -> None:
    assert next_time(parse_cron(expression, UTC), after) == expected


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("0 2 * *", "five fields"),
        ("0 2 * * 8", "weekday"),
        ("0 2 * * friday", "weekday"),
        ("61 2 * * 0", "61"),
        ("0 2 30 2 *", "never comes"),
        ("nightly", "nightly"),
        ("0 2 * * 1/0", "weekday"),
    ],
)
def test_an_expression_that_means_nothing_is_refused_by_name(expression: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_cron(expression)


def test_nothing_is_due_without_new_labels() -> None:
    assert asked(SUNDAY + HOUR, None, drifting_since=SUNDAY, on_drift=True, after_labels=1) is None


def test_a_label_waits_for_the_next_time_and_no_longer() -> None:
    wednesday = SUNDAY - 4 * DAY
    assert asked(SUNDAY - timedelta(seconds=1), wednesday) is None
    assert asked(SUNDAY, wednesday) == "cron"


def test_a_missed_time_is_made_up_once() -> None:
    labelled, started = SUNDAY - DAY, SUNDAY + 3 * DAY
    assert asked(started, labelled) == "cron"
    assert asked(started + HOUR, labelled, row(started, "failed")) is None
    assert asked(SUNDAY + 7 * DAY, labelled, row(started, "failed")) == "cron"


def test_times_that_passed_before_there_were_labels_are_no_missed_ones() -> None:
    long_ago = row(SUNDAY - 30 * DAY)
    assert asked(SUNDAY + 2 * DAY, SUNDAY + DAY, long_ago) is None


def test_a_stopped_run_is_made_up_once() -> None:
    labelled = SUNDAY - DAY
    stopped = row(SUNDAY, "stopped")
    assert asked(SUNDAY + HOUR, labelled, stopped) == "cron"
    assert asked(SUNDAY + 2 * HOUR, labelled, row(SUNDAY + HOUR, "stopped"), stopped) is None


def test_enough_labels_are_due_at_once_and_a_failure_waits_for_as_many_again() -> None:
    labelled = SUNDAY + HOUR
    assert asked(SUNDAY + 2 * HOUR, labelled, labels=19, after_labels=20) is None
    assert asked(SUNDAY + 2 * HOUR, labelled, labels=20, after_labels=20) == "labels"
    failed = row(SUNDAY + 2 * HOUR, "failed", review_id=7)
    assert asked(SUNDAY + 3 * HOUR, labelled, failed, labels=20, since_last=0, after_labels=20) is None


def test_drift_is_answered_once_where_that_is_asked_for() -> None:
    labelled, since = SUNDAY + HOUR, SUNDAY + 2 * HOUR
    assert asked(SUNDAY + 3 * HOUR, labelled, drifting_since=since) is None
    assert asked(SUNDAY + 3 * HOUR, labelled, drifting_since=since, on_drift=True) == "drift"
    after = row(SUNDAY + 3 * HOUR)
    assert asked(SUNDAY + 4 * HOUR, labelled, after, drifting_since=since, on_drift=True) is None


def test_local_time_goes_through_the_change_of_clocks() -> None:
    paris = ZoneInfo("Europe/Paris")
    cron = parse_cron("0 4 * * *", paris)
    before = datetime(2026, 3, 28, 4, tzinfo=paris)
    at = next_time(cron, before)
    assert at is not None and at.astimezone(UTC) - before.astimezone(UTC) == timedelta(hours=23)
    assert at.astimezone(paris).hour == 4
