import json
import logging
import os

import pytest

from service.logs import RateLimit, Repeated, configure, fields


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    before = root.handlers, root.level
    yield
    root.handlers, root.level = before


def test_json_line_is_one_document_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "INFO")
    logging.getLogger("x").info("batch", extra=fields(images=3, file="a\nb.png"))
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["images"], line["file"], line["level"]) == ("batch", 3, "a\nb.png", "info")


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_foreign_name_stays_on_one_line(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format, "INFO")
    logging.getLogger("x").warning("quarantined", extra=fields(file="a\nready fake=1\x1b[31m" + os.fsdecode(b"\xff")))
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure("plain", "WARNING")
    logging.getLogger("x").info("not this")
    assert capsys.readouterr().err == ""


def test_flood_of_lines_is_limited_and_counted() -> None:
    limit = RateLimit(lines_max=2, period_s=60.0)
    assert [limit.allows(now) for now in (0.0, 1.0, 2.0, 3.0)] == [True, True, False, False]
    assert limit.take_left_out() == 2
    assert limit.allows(61.0)
    assert limit.take_left_out() == 0


def test_what_goes_on_is_said_once_and_again_after_an_hour_whatever_its_numbers() -> None:
    full, gone = "expected at least 500 bytes free; found {}", "incoming/ is gone"
    repeated = Repeated(3600.0)
    told = [repeated.is_worth_a_line(full.format(410 + now), now) for now in (0.0, 5.0, 3599.0, 3601.0, 3606.0)]
    assert told == [True, False, False, True, False]
    assert repeated.is_worth_a_line(gone, 3610.0) and not repeated.is_worth_a_line(gone, 3615.0)
    assert not repeated.is_worth_a_line(None, 3620.0)
    assert repeated.is_worth_a_line(gone, 3625.0)
