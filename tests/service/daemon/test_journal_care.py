"""What the daemon says of a program that holds up the database's journal."""

from __future__ import annotations

import logging

import pytest

from service.daemon.journal_care import JournalCare


def test_who_is_in_the_way_is_said_once_and_that_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    found = [None, "log: 70_000_000 bytes; process 41", "log: 90_000_000 bytes; process 41", None, None]
    care = JournalCare(lambda: found.pop(0))
    caplog.set_level(logging.INFO)
    for _ in range(5):
        care.run()
    assert [(record.levelname, "any more" in record.message) for record in caplog.records] == [
        ("WARNING", False),
        ("INFO", True),
    ]
