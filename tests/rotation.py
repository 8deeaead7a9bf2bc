"""Says which part of the long tests is run today: paths for pytest, another part each day, in turn.

Each part takes at most five minutes on two cores; what takes longer is run by `make test-faults` alone.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

PARTS = (
    ("tests/real_data/test_drift.py", "tests/models", "tests/service/training"),
    ("tests/faults/test_kill_while_labelling.py",),
    ("tests/faults/test_hostile_model.py", "tests/faults/test_process.py"),
    ("tests/faults/test_arrival.py", "tests/service/web/test_api_fuzz.py"),
)


def part_of(day: date) -> tuple[str, ...]:
    """Return the paths whose long tests are run on `day`."""
    return PARTS[day.toordinal() % len(PARTS)]


if __name__ == "__main__":
    print(*part_of(datetime.now(UTC).date()))
