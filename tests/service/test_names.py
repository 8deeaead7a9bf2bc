import os
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.names import (
    check_product,
    delivered_name,
    destination,
    meant,
    new_id,
    parse_claimed_name,
    plainer_folder,
    plainer_name,
    product_in,
    product_of,
    safe_name,
    shown_name,
)

ANY_NAME = st.binary(min_size=1, max_size=255).filter(
    lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b"..")
)


@given(ANY_NAME)
def test_any_name_becomes_one_that_is_safe_to_store(raw: bytes) -> None:
    name = safe_name(os.fsdecode(raw))
    encoded = name.encode("utf-8")
    assert 0 < len(encoded) <= 200
    assert "/" not in name and name not in (".", "..") and name[0] not in "-.~"
    assert all(ord(c) >= 32 and c != "\x7f" for c in name)


@given(ANY_NAME, st.integers(1, 99))
def test_claimed_name_tells_what_went_in(raw: bytes, attempt: int) -> None:
    safe = safe_name(os.fsdecode(raw))
    id = new_id()
    claimed = parse_claimed_name(f"{id}--{attempt}--{safe}")
    assert claimed is not None
    assert (claimed.id, claimed.attempt, claimed.name) == (id, attempt, safe)
    assert len(str(claimed).encode()) <= 255


@pytest.mark.parametrize(
    "name", ["a.png", "..--1--a", ".lock", "01ARZ3NDEKTSV4RRFFQ69G5FAV--1--", "01ARZ3NDEKTSV4RRFFQ69G5FAV-1-a.png"]
)
def test_foreign_names_in_processing_are_not_claims(name: str) -> None:
    assert parse_claimed_name(name) is None


def test_plain_names_stay_as_they_are() -> None:
    assert safe_name("Teil 12_ä (3).JPG") == "Teil 12_ä (3).JPG"


def test_long_name_keeps_its_suffix() -> None:
    name = safe_name("ü" * 127 + ".jpeg")
    assert name.endswith(".jpeg") and len(name.encode()) <= 200


def test_name_that_is_not_utf_8_is_shown_escaped() -> None:
    assert shown_name(os.fsdecode(b"a\xff.png")) == "a\\xff.png"
    assert safe_name(os.fsdecode(b"a\xff\n.png")) == "a%FF%0A.png"


def test_product_is_the_first_folder() -> None:
    assert product_of("") == "default"
    assert product_of("gears") == "gears"
    assert product_of("gears/2026/11") == "gears"


def test_destination_carries_date_and_id() -> None:
    when = datetime(2026, 11, 22, 23, 59, tzinfo=UTC)
    assert destination("normal", "gears", when, "a.b.png", "X" * 26) == f"normal/gears/2026-11-22/a.b.{'X' * 26}.png"
    assert destination("anomaly", "default", when, "noext", "X" * 26) == f"anomaly/default/2026-11-22/noext.{'X' * 26}"


def test_ids_are_unique_and_in_order_of_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [i[:10] for i in ids] == sorted(i[:10] for i in ids)


@given(ANY_NAME, ANY_NAME)
def test_plainer_name_is_one_that_any_system_takes_and_tells_the_same_id_and_product(raw: bytes, folder: bytes) -> None:
    id, product = new_id(), product_of(os.fsdecode(folder))
    path = destination("normal", product, datetime(2026, 11, 22, tzinfo=UTC), os.fsdecode(raw), id)
    plainer = plainer_folder(plainer_name(path, id))
    assert plainer == plainer_folder(plainer_name(plainer, id))
    kind, its_folder, day, name = plainer.split("/")
    assert (kind, day) == ("normal", "2026-11-22")
    told = delivered_name(name)
    assert told is not None and told.id == id
    for part in (its_folder, name):
        assert part.isascii() and len(part) <= 100 and part[0] != "." and part[-1] not in ". "
        assert not set(part) & set('<>:"|?*\\ ')
        assert part.partition(".")[0].upper() not in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT9")
    if len(product) < 15:
        assert product_in(its_folder) == product


@pytest.mark.parametrize("name", ["a.png", "Teil-12_b.JPG", "100%.tiff"])
def test_name_that_any_system_takes_is_no_plainer(name: str) -> None:
    id = new_id()
    path = destination("anomaly", "flange", datetime(2026, 11, 22, tzinfo=UTC), name, id)
    assert plainer_folder(plainer_name(path, id)) == path


@given(ANY_NAME)
def test_a_name_made_safe_stays_as_it_is(raw: bytes) -> None:
    safe = safe_name(os.fsdecode(raw))
    assert safe_name(safe) == safe
    product = product_of(os.fsdecode(raw))
    assert product_of(product) == product_of(f"{product}/today") == product and shown_name(product) == product


def test_products_are_compared_in_one_form_of_their_letters() -> None:
    sent, trained = unicodedata.normalize("NFD", "Prüfling"), unicodedata.normalize("NFC", "Prüfling")
    assert sent != trained and product_of(sent) == product_of(f"{sent}/2026") == check_product(sent) == trained


@pytest.mark.parametrize("name", ["gear box", "Gearbox", "gear-box", "GEAR_BOX", "gearbox "])
def test_name_that_differs_in_case_or_spaces_alone_gives_a_guess(name: str) -> None:
    assert meant(name, ["screws", "gearbox"]) == "gearbox"


@pytest.mark.parametrize("name", ["gearbox", "gearbox2", "screw", "---"])
def test_no_guess_is_made_for_another_name(name: str) -> None:
    assert meant(name, ["screws", "gearbox"]) is None
