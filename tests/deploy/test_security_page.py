"""SECURITY.md names the tests that tried what it claims: they are there."""

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
