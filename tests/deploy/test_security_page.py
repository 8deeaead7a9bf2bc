"""SECURITY.md and docs/reliability.md name the tests that tried what they claim: they are there."""

from __future__ import annotations

import re

import pytest

from tests.conftest import REPOSITORY
from tests.deploy.nspawn import checks

PAGE = (REPOSITORY / "SECURITY.md").read_text()


def named() -> list[tuple[str, str | None]]:
    """Return each file of tests that the page names, with the test of it, or None where all of it is meant."""
    found: list[tuple[str, str | None]] = []
    for file, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", PAGE):
        if file or test:
            # One without its file belongs to the file named before it.
            found.append((file or found[-1][0], test or None))
    return found


@pytest.mark.parametrize(("file", "test"), named())
def test_every_test_that_the_page_names_is_there(file: str, test: str | None) -> None:
    text = (REPOSITORY / file).read_text()
    assert test is None or f"def {test}(" in text


def test_every_check_of_the_booted_machine_that_the_page_names_is_there_and_runs() -> None:
    of_boots = {function.__name__ for boot in checks.BOOTS for function in boot}
    assert of_boots == set(checks.CHECKS)
    in_words = {word for word in re.findall(r"`([a-z]+(?:_[a-z0-9]+){3,})`", PAGE) if not word.startswith("retrain_")}
    assert in_words
    assert in_words <= of_boots


def test_every_test_that_the_page_of_promises_names_is_there() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    defined = {
        name
        for path in (REPOSITORY / "tests").rglob("*.py")
        for name in re.findall(r"^\s*def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    named_here = set(re.findall(r"`(?:tests/[\w/]+\.py)?(?:::)?(test_\w+)`", page))
    assert len(named_here) > 40 and named_here <= defined, named_here - defined
    files = set(re.findall(r"`(tests/[\w/]+\.py)", page))
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
    assert set(re.findall(r"machine `([a-z_]+)`", page)) <= set(checks.CHECKS)
