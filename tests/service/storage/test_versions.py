"""Model versions: one champion per product, and the way back to the one before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from service.errors import TamisError
from service.storage import versions

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def register(connection, version, product="lid", state="challenger"):
    versions.register(
        connection,
        product=product,
        version=version,
        kind="feature",
        created_at=NOON + timedelta(hours=int(version[1:])),
        state=state,
        reason="trained",
        threshold=0.5,
        false_alarm_rate=0.01,
        image_auroc=None,
        f1=None,
        training_wh=None,
        images=100,
        sha256="a" * 64,
    )


@pytest.fixture
def connection(engine):
    with engine.begin() as connection:
        for version in ("v1", "v2", "v3"):
            register(connection, version)
        yield connection


def champion(connection, product="lid"):
    row = versions.champion(connection, product)
    return row and row.version


def test_a_version_comes_back_as_registered_with_the_unknown_as_none(connection):
    row = versions.get(connection, "lid", "v1")
    assert row is not None
    assert (row.created_at, row.image_auroc, row.training_wh, row.images) == (
        NOON + timedelta(hours=1),
        None,
        None,
        100,
    )


def test_a_version_is_registered_once(connection):
    with pytest.raises(TamisError, match=r"lid/v1.*registered already"):
        register(connection, "v1")


def test_promoting_retires_the_old_champion(connection):
    versions.promote(connection, "lid", "v1", "first")
    versions.promote(connection, "lid", "v2", "better AUROC")
    states = {row.version: (row.state, row.reason) for row in versions.versions(connection, "lid")}
    assert states == {
        "v1": ("retired", "replaced by v2"),
        "v2": ("champion", "better AUROC"),
        "v3": ("challenger", "trained"),
    }


def test_registering_a_champion_promotes_it(connection):
    versions.promote(connection, "lid", "v1", "first")
    register(connection, "v4", state="champion")
    assert champion(connection) == "v4"
    assert versions.rollback(connection, "lid", "worse").version == "v1"


def test_each_product_has_its_own_champion_and_a_product_without_has_none(connection):
    register(connection, "v1", product="cap", state="champion")
    versions.promote(connection, "lid", "v2", "first")
    assert {p: row.version for p, row in versions.champions(connection).items()} == {"cap": "v1", "lid": "v2"}
    assert versions.champion(connection, "default") is None


def test_two_champions_are_refused_by_the_database(connection):
    versions.promote(connection, "lid", "v1", "first")
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        connection.execute(text("UPDATE versions SET state = 'champion' WHERE version = 'v2'"))


def test_an_unknown_version_is_refused_with_those_there_are(connection):
    with pytest.raises(TamisError, match="lid/v9: no such version; there are v3, v2, v1"):
        versions.promote(connection, "lid", "v9", "typo")
    with pytest.raises(TamisError, match="product lit has no versions; products with some: lid"):
        versions.promote(connection, "lit", "v1", "typo")


def test_rolling_back_again_goes_one_further_back(connection):
    for version in ("v1", "v2", "v3"):
        versions.promote(connection, "lid", version, "better")
    assert versions.rollback(connection, "lid", "worse").version == "v2"
    assert versions.rollback(connection, "lid", "worse").version == "v1"
    with pytest.raises(TamisError, match="found v1 alone"):
        versions.rollback(connection, "lid", "worse")
    assert champion(connection) == "v1"


def test_without_a_champion_there_is_nothing_to_roll_back(connection):
    with pytest.raises(TamisError, match="found none"):
        versions.rollback(connection, "lid", "worse")


def test_promoting_the_champion_again_changes_nothing(connection):
    versions.promote(connection, "lid", "v1", "first")
    versions.promote(connection, "lid", "v2", "better")
    versions.promote(connection, "lid", "v2", "again")
    assert versions.get(connection, "lid", "v2").reason == "better"
    assert versions.rollback(connection, "lid", "worse").version == "v1"


@given(st.lists(st.sampled_from(["v1", "v2", "v3", "back"]), max_size=30))
def test_any_history_ends_with_the_champion_that_a_stack_of_promotions_has_on_top(steps):
    stack, history = [], []
    for step in steps:
        if step == "back" and len(stack) > 1:
            stack.pop()
            history.append(("rollback", stack[-1]))
        elif step != "back" and stack[-1:] != [step]:
            stack.append(step)
            history.append(("promote", step))
    assert versions._line(history) == stack
