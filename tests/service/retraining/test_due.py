"""When a retraining is due, by a clock that is set and never waited for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from service.cron import parse_cron
from service.retraining.due import DueReason, RetrainingFacts, due
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
        ("0 2 * apr *", SUNDAY, datetime(2026, 4, 1, 2, tzinfo=UTC)),
        # Day or weekday, whichever comes first: Friday the 13th, the next Friday, the 13th of April.
        ("0 2 13 * 5", SUNDAY, SUNDAY + 5 * DAY),
        ("0 2 13 * 5", SUNDAY + 5 * DAY, SUNDAY + 12 * DAY),
        ("0 2 13 * 5", SUNDAY + 33 * DAY, SUNDAY + 36 * DAY),
    ],
)
def test_cron_means_what_crontab_says(expression: str, after: datetime, expected: datetime) -> None:
    assert parse_cron(expression, UTC).next_time(after) == expected


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("0 2 * *", "five fields"),
        ("0 0 2 * * 0", "five fields"),
        ("0 2 * * 8", "day-of-week"),
        ("0 2 * * friday", "day-of-week"),
        ("61 2 * * 0", "found '61 2 .*minute"),
        ("0 2 30 2 *", "with a time to come; found '0 2 30 2"),
        ("0 2 */20 * 1L", "never comes"),
        ("nightly", "nightly"),
        ("0 2 * * 1/0", "day-of-week"),
    ],
)
def test_an_expression_that_means_nothing_is_refused_by_name(expression: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_cron(expression)


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


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        # A night of 23 hours, in which there is no 02:30, and one of 25, in which there are two.
        ("0 4 * * *", "2026-03-28T04:00+01:00", "2026-03-29T04:00+02:00"),
        ("30 2 * * *", "2026-03-28T04:00+01:00", "2026-03-29T03:00+02:00"),
        ("30 2 * * *", "2026-10-24T04:00+02:00", "2026-10-25T02:30+02:00"),
        ("30 2 * * *", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        ("30 2 * * *", "2026-10-25T02:10+01:00", "2026-10-26T02:30+01:00"),
        ("*/30 * * * *", "2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00"),
    ],
)
def test_local_time_goes_through_the_change_of_clocks(expression: str, after: str, expected: str) -> None:
    paris = parse_cron(expression, ZoneInfo("Europe/Paris"))
    assert paris.next_time(datetime.fromisoformat(after)) == datetime.fromisoformat(expected)
