from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from service.filesystem.odd_advice import advice_on
from service.filesystem.odd_entries import KEPT_MAX, LINES_A_MINUTE, OddEntries, sentence, told_by


def denied() -> OSError:
    return PermissionError(errno.EACCES, "Permission denied")


def test_entry_is_said_once_counted_and_forgotten_when_it_went_well(caplog: pytest.LogCaptureFixture) -> None:
    odd = OddEntries()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            odd.note("incoming/a", "scan", denied(), files=7)
    [one] = odd.all()
    assert (one.path, one.tries, one.files, one.reason) == ("incoming/a", 3, 7, "Permission denied")
    assert len(caplog.records) == 1
    odd.clear("incoming/a", "scan")
    assert odd.all() == [] and odd.document() == {"files": 0, "by_reason": {}, "first": []}


def test_error_of_the_whole_root_is_raised() -> None:
    with pytest.raises(OSError, match="No space"):
        OddEntries().note("incoming/a", "claim", OSError(errno.ENOSPC, "No space left on device"))


def test_many_are_few_lines_and_a_bounded_status_with_their_true_number(caplog: pytest.LogCaptureFixture) -> None:
    odd = OddEntries(clock=lambda: 0.0)
    with caplog.at_level(logging.WARNING):
        for number in range(KEPT_MAX + 500):
            odd.note(f"incoming/flange/{number:05}.png", "read", denied())
        odd.note("incoming/gears/one.png", "read", denied())
    assert len(caplog.records) == LINES_A_MINUTE and len(odd.all()) == KEPT_MAX
    document = odd.document()
    assert document["files"] == KEPT_MAX + 501
    [together] = document["first"]
    assert (together["path"], together["files"]) == ("incoming/flange", KEPT_MAX + 500)
    assert sentence(together) == f"incoming/flange ({KEPT_MAX + 500} files) waits: cannot read it, Permission denied"
    # The next round counts anew, and is told of as the one before until it has come as far.
    odd.begin()
    odd.note("incoming/flange/01400.png", "read", denied())
    assert odd.document() == document


def test_round_forgets_what_was_not_met_again_below_a_folder_alone() -> None:
    odd = OddEntries()
    for path in ("incoming/gone", "incoming/kept", "incoming/met", "processing/main/a"):
        odd.note(path, "claim", denied())
    odd.begin()
    odd.keep("incoming/kept")
    odd.note("incoming/met", "claim", denied())
    odd.end("incoming")
    assert odd.paths() == {"incoming/kept", "incoming/met", "processing/main/a"}


def test_statuses_of_running_daemons_are_told_together_whatever_they_say() -> None:
    odd = OddEntries()
    odd.note("incoming/a", "scan", denied(), files=2)
    daemons = [
        {"running": True, "odd_entries": odd.document()},
        {"running": True, "odd_entries": odd.document()},
        {"running": False, "odd_entries": odd.document()},
        {"running": True},
        {"running": True, "odd_entries": "nonsense"},
    ]
    told = told_by(daemons)
    assert told["files"] == 4 and told["by_reason"] == {"Permission denied": 4} and len(told["first"]) == 2


def test_advice_names_owner_and_mode_of_what_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "incoming" / "2026-11-27"
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    told = advice_on(tmp_path, "incoming/2026-11-27/gone/a.png", "claim", errno.EACCES)
    assert told.startswith("incoming/2026-11-27 belongs to ") and "mode 0750" in told and "chmod g+rwxs" in told
    (folder / "a.png").touch(0o200)
    assert "chmod u+rw it" in advice_on(tmp_path, "incoming/2026-11-27/a.png", "read", errno.EACCES)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "chmod g+r it" in advice_on(tmp_path, "incoming/2026-11-27/a.png", "read", errno.EACCES)
    assert "lsattr" in advice_on(tmp_path, "incoming/2026-11-27/a.png", "claim", errno.EPERM)
    folder.chmod(0o1777)
    assert "sticky" in advice_on(tmp_path, "incoming/2026-11-27", "claim", errno.EPERM)


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_advice_on_any_error_of_anything_is_text(tmp_path: Path, number: int) -> None:
    assert isinstance(advice_on(tmp_path, os.fsdecode(b"no\xff/such"), "claim", number), str)
    assert isinstance(advice_on(None, "incoming", "claim", number), str)
