"""The pages: what they show, that hostile names stay text, and that nothing of them needs a script."""

from __future__ import annotations

import errno
import html
import io
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from service.filesystem.odd_entries import OddEntries
from service.instances import instance_lock, write_status
from service.storage import drift, shadow, thresholds
from service.storage.database.open import open_database
from service.storage.drift import DriftRow
from service.storage.shadow import ShadowRecord
from service.web import images
from service.web.pages.thresholds import stops_of
from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.visitor import Page, Visitor

HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "\"><script>alert('x')<&script>.png",
    "'onmouseover='alert(1).png",
    "{{ 7 * 7 }}{% raw %}.png",
    "javascript:alert(1).png",
    "a" * 180 + ".png",
    "%3Cb%3E.png",
    "naïve 部品 <!-- .png",
)
PRODUCT = "screw <b>&'"


def addresses(id: str, product: str = "default") -> list[str]:
    return [
        "/", "/?span=7d", "/review", "/review?reviewed=all&order=newest", f"/images/{id}", "/models",
        f"/models/{product}", f"/models/{product}/v2/promote", "/thresholds", f"/thresholds/{product}",
        f"/thresholds/{product}?rate=5%25", "/energy", "/energy?span=all", "/api",
    ]  # fmt: skip


# What they show


def test_today_says_what_came_what_is_wrong_and_what_it_cost(reader: Visitor, ids: list[str]) -> None:
    page = reader.get("/").text
    for said in ("no daemon has run on this root yet", "Anomaly rate", "Scores of default", "energy, 24h", "above the"):
        assert said in page
    tiles = re.findall(r"<dt>(?:<[^>]+>)?([^<]+)(?:</a>)?</dt><dd>([^<]*)</dd>", page)
    found = dict(tiles)
    assert found["images, 24h"] == "30"
    assert found["anomalies, 24h"] == "6"
    assert found["anomaly rate"] == "20 %"
    assert found["energy, 24h"].endswith(" Wh")
    assert reader.page("/").all("line", **{"class": "threshold"})


def test_today_says_where_drift_began_and_forgets_it_with_its_champion(visitor: Visitor, ids: list[str]) -> None:
    engine = open_database(visitor.root)
    with engine.begin() as connection:
        drift.add(connection, DriftRow("default", "v1", "drifting", "light", ids[7], datetime.now(UTC), {}))
    engine.dispose()
    [said] = [one for one in visitor.json("/status")["wrong"] if "drifts" in one]
    assert said in visitor.get("/").text
    assert "product default drifts" in said
    assert "cause: light" in said
    assert ids[7] in said
    assert visitor.json("/drift")["drift"][0]["first_image_id"] == ids[7]
    visitor.json("/models/default/v2/promote", {})
    assert visitor.json("/drift")["drift"] == []


def test_today_names_a_few_of_the_entries_that_wait_and_the_api_more(visitor: Visitor, ids: list[str]) -> None:
    odd, lock = OddEntries(), instance_lock(visitor.root, "main")
    for number in range(8):
        error = PermissionError(errno.EACCES, "Permission denied")
        odd.note(f"incoming/{number}/<b>", "claim", error, files=10 - number, advice="chmod it")
    assert lock.acquire() is None
    write_status(visitor.root, "main", {"odd_entries": odd.document()})
    told = visitor.json("/status")
    assert told["odd_entries"]["files"] == 52 and len(told["odd_entries"]["first"]) == 8
    page = html.unescape(visitor.get("/").text)
    assert "incoming/0/<b> (10 files) waits: cannot claim it, Permission denied; chmod it" in page
    assert "incoming/5/<b>" not in page and "12 more files wait" in page
    lock.release()


def test_wall_begins_with_what_the_challenger_judges_otherwise(visitor: Visitor, ids: list[str]) -> None:
    engine = open_database(visitor.root)
    with engine.begin() as connection:
        shadow.record(connection, [ShadowRecord(ids[4], "default", "v2", 120.0, 100.0, "anomaly", "normal")])
    engine.dispose()
    page = visitor.page("/review")
    assert page.cards()[0] == ids[4]
    assert "challenger: anomaly" in page.html
    assert len(page.cards()) == len(set(page.cards())) == len(ids)
    assert "1 images, 1 judged differently" in visitor.get("/models/default?v=v2").text
    visitor.json(f"/images/{ids[4]}/label", {"label": "normal"})
    assert ids[4] not in visitor.page("/review").cards()


def test_pages_of_the_wall_follow_their_links_to_all_images(root: Path) -> None:
    install(root)
    ids = fill(root, 120)
    with Visitor(root) as visitor:
        found: list[str] = []
        address: str | None = "/review"
        while address is not None:
            page = visitor.page(address)
            found += page.cards()
            links = [one for one in page.all("a") if one.has("hx-get")]
            address = links[0]["href"] if links else None
    assert sorted(found) == ids


def test_every_filter_narrows_the_wall_and_is_kept_by_its_links(visitor: Visitor, ids: list[str]) -> None:
    fill(visitor.root, 60, product="screw", seed=3)
    page = visitor.page("/review?product=screw&verdict=normal&score_min=1&order=newest")
    assert page.cards()
    assert not set(page.cards()) & set(ids)
    [more] = [one for one in page.all("a") if one.has("hx-get")] or [None]
    if more is not None:
        assert "product=screw" in more["href"] and "score_min=1" in more["href"]
    assert [one.text for one in page.all("option", selected=None) if "screw" in one.text] == ["screw"]


def test_a_day_is_shown_from_its_first_to_its_last_moment(root: Path) -> None:
    install(root)
    fill(root, 48, now=datetime(2026, 3, 2, 23, 59, 59, tzinfo=UTC), every=timedelta(hours=1))
    with Visitor(root) as visitor:
        assert len(visitor.page("/review?since=2026-03-02&until=2026-03-02&reviewed=all").cards()) == 24


def test_image_page_tells_history_model_and_neighbours(visitor: Visitor, ids: list[str]) -> None:
    visitor.json(f"/images/{ids[12]}/label", {"label": "normal", "by": "Ada", "note": "allowed"})
    visitor.json(f"/images/{ids[12]}/label", {"label": None, "by": "Bob"})
    page = visitor.page(f"/images/{ids[12]}")
    for said in ("p-value", "v1", "Ada", "Bob", "allowed", "taken back", "Regions", "SHA-256"):
        assert said in page.html
    near = [one["href"] for one in page.all("a", **{"class": "frame"})]
    assert near == [f"/images/{id}" for id in [*ids[8:12], *ids[13:17]]]


def test_removed_file_is_a_drawing_that_says_so_and_the_page_stays(visitor: Visitor, ids: list[str]) -> None:
    (visitor.root / visitor.json(f"/images/{ids[0]}")["path"]).unlink()
    answer = visitor.get(f"/images/{ids[0]}/picture")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "image/svg+xml")
    assert "no image" in answer.text
    assert visitor.get(f"/images/{ids[0]}").status_code == 200


def test_image_that_cannot_be_read_now_is_not_shown_and_its_page_answers(
    visitor: Visitor, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Path(visitor.json(f"/images/{ids[2]}")["path"]).name
    real, code = os.open, errno.EACCES

    def failing(path: Any, *args: Any, **options: Any) -> int:
        if path == name:
            raise OSError(code, os.strerror(code))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", failing)
    for code in (errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG):
        for view in ("picture", "thumb"):
            assert visitor.get(f"/images/{ids[2]}/{view}").status_code == 404, code
        assert visitor.get(f"/images/{ids[2]}").status_code == 200


def test_page_of_an_image_says_that_its_file_is_not_the_one_that_was_judged(visitor: Visitor, ids: list[str]) -> None:
    said = "is not the one that was judged"
    assert said not in visitor.page(f"/images/{ids[1]}").html
    path = visitor.root / visitor.json(f"/images/{ids[1]}")["path"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert said in visitor.page(f"/images/{ids[1]}").html


def test_thumbnail_is_small_kept_and_made_anew_when_its_cache_is_gone(visitor: Visitor, ids: list[str]) -> None:
    first = visitor.get(f"/images/{ids[0]}/thumb")
    assert first.headers["content-type"] == "image/jpeg"
    [kept] = (visitor.root / "maps" / ".thumbs").rglob("*.jpg")
    assert kept.read_bytes() == first.content
    kept.unlink()
    assert visitor.get(f"/images/{ids[0]}/thumb").content == first.content
    same = visitor.get(f"/images/{ids[0]}/thumb", **{"if-none-match": first.headers["etag"]})
    other = visitor.get(f"/images/{ids[1]}/thumb", **{"if-none-match": first.headers["etag"]})
    assert (same.status_code, other.status_code) == (304, 200)


def test_image_of_12_bits_is_shown_in_the_range_of_the_version_that_judged_it(root: Path) -> None:
    install(root, version="v3", value_range=(0.0, 4095.0))
    [id] = fill(root, 1, suffix=".tiff")
    with Visitor(root) as visitor:
        path = visitor.json(f"/images/{id}")["path"]
        with open_database(root) as engine, engine.begin() as connection:
            connection.execute(text("UPDATE images SET model_version = 'v3' WHERE id = :id"), {"id": id})
        Image.fromarray(np.full((40, 60), 150 * 16, np.uint16)).save(root / path, "TIFF")
        for address in (f"/images/{id}/thumb", f"/images/{id}/picture"):
            shown = np.asarray(Image.open(io.BytesIO(visitor.get(address).content)))
            assert shown.shape == (40, 60, 3) and abs(int(shown.mean()) - 150) <= 1


def test_thumbnails_that_are_kept_have_a_bound(
    visitor: Visitor, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 5 * len(visitor.get(f"/images/{ids[0]}/thumb").content)
    monkeypatch.setattr(images, "CACHE_BYTES_MAX", bound)
    for id in ids:
        assert visitor.get(f"/images/{id}/thumb").status_code == 200
    assert 0 < sum(path.stat().st_size for path in (visitor.root / "maps" / ".thumbs").rglob("*.jpg")) <= bound


@pytest.mark.parametrize("suffix", [".tiff", ".bmp", ".webp", ".jpg"])
def test_every_format_is_shown_as_browsers_can(root: Path, suffix: str) -> None:
    install(root)
    [id] = fill(root, 1, suffix=suffix)
    with Visitor(root) as visitor:
        answer = visitor.get(f"/images/{id}/picture")
        assert answer.status_code == 200
        assert answer.headers["content-type"] in ("image/png", "image/jpeg", "image/webp")
        assert int(answer.headers["content-length"]) == len(answer.content)


def test_empty_root_has_pages_that_say_what_to_do(root: Path) -> None:
    with Visitor(root) as visitor:
        assert "no daemon has run" in visitor.get("/").text
        assert "Nothing to review" in visitor.page("/review").said()
        assert "tamis train" in visitor.get("/models").text
        assert "No product has a champion yet" in visitor.page("/thresholds").said()
        assert visitor.get("/energy").status_code == 200


# Changes ask first


def test_promotion_and_rollback_ask_first_and_say_what_will_be(visitor: Visitor) -> None:
    assert visitor.page("/models/default/v2/promote").all("button", id="confirm")
    assert visitor.json("/status")["champions"] == {"default": "v1"}
    unasked = visitor.send("/models/default/v2/promote", {"reason": "haste"})
    assert unasked.status_code == 400
    assert "expected the champion shown by the confirmation page" in Page(unasked.text).said()
    assert visitor.json("/status")["champions"] == {"default": "v1"}
    done = visitor.send("/models/default/v2/promote", {"now": "v1", "reason": "sees dents"})
    assert (done.status_code, done.headers["location"]) == (303, "/models/default")
    assert visitor.json("/status")["champions"] == {"default": "v2"}
    question = visitor.page("/models/default/rollback")
    assert "then: v1" in question.html
    assert visitor.send("/models/default/rollback", {}).status_code == 400
    late = visitor.send("/models/default/rollback", {"now": "v1"})
    assert late.status_code == 409
    assert "Somebody changed it meanwhile" in Page(late.text).said()
    assert visitor.send("/models/default/rollback", {"now": "v2"}).status_code == 303
    assert visitor.json("/status")["champions"] == {"default": "v1"}


def test_rollback_without_an_earlier_champion_is_not_offered(reader: Visitor) -> None:
    assert "There is no earlier champion" in reader.get("/models/default").text
    assert reader.get("/models/default/rollback").status_code == 409


def test_reading_changes_nothing(reader: Visitor, ids: list[str]) -> None:
    def state() -> dict[str, list[str]]:
        engine = open_database(reader.root, read_only=True)
        try:
            with engine.connect() as connection:
                tables = engine.tables(connection)
                return {name: sorted(map(str, connection.exec_driver_sql(f"SELECT * FROM {name}"))) for name in tables}
        finally:
            engine.dispose()

    before = state()
    for address in addresses(ids[0]):
        assert reader.get(address).status_code == 200
    assert state() == before and len(before["images"]) == len(ids)


# Thresholds


def test_explorer_says_how_many_change_sides_and_applies_without_retraining(visitor: Visitor, ids: list[str]) -> None:
    tried = visitor.page("/thresholds/default?rate=10%25")
    assert re.search(r"<strong>\d+</strong>\s+of the latest 30 images would change sides", tried.html)
    [rate] = tried.all("input", name="rate", type="hidden")
    done = visitor.send("/thresholds/default", {"rate": rate["value"]})
    assert done.headers["location"] == "/thresholds/default"
    engine = open_database(visitor.root)
    with engine.connect() as connection:
        assert thresholds.chosen(connection) == {"default": 0.1}
    engine.dispose()
    assert "10 % was chosen by" in visitor.get("/thresholds/default").text
    visitor.send("/thresholds/default", {"action": "reset"})
    assert "was chosen by" not in visitor.get("/thresholds/default").text


def test_slider_fetches_the_part_that_changes_and_no_more(reader: Visitor) -> None:
    [slider] = reader.page("/thresholds/default").all("input", type="range")
    part = reader.get(f"{slider['hx-get']}?stop={slider['max']}", **{"hx-request": "true"}).text
    assert "<html" not in part
    assert "At <strong>50 %</strong>" in part


def test_too_few_calibration_images_offer_no_button(root: Path) -> None:
    install(root, scores=range(1, 21))
    fill(root, 10)
    with Visitor(root) as visitor:
        page = visitor.page("/thresholds/default?rate=0.01")
        assert "too few calibration images for this rate" in page.html
        assert not page.all("button", id="apply")


@pytest.mark.parametrize("rate", ["0", "100 %", "-1", "nan", "inf", "1e999", "<b>", "1,2,3", "9" * 1000])
def test_what_is_no_rate_is_named_on_the_page(reader: Visitor, rate: str) -> None:
    tried = reader.client.get("/thresholds/default", params={"rate": rate})
    chosen = reader.send("/thresholds/default", {"rate": rate})
    for answer in (tried, chosen):
        assert answer.status_code == 400
        assert "false-alarm rate: expected more than 0 and less than 1" in Page(answer.text).said()


def test_stops_of_the_slider_read_as_people_say_them() -> None:
    stops = stops_of(0.005)
    assert stops[0] == 0.005
    assert stops[-1] == 0.5
    assert all(float(f"{one:.2g}") == one for one in stops)
    assert stops == sorted(set(stops))
    assert stops_of(0.9) == [0.9]


@pytest.mark.parametrize(
    "address",
    ["/review?order=random", "/review?score_min=high", "/review?since=tomorrow", "/review?after=nothing",
     "/review?reviewed=perhaps", "/review?score_max=nan", "/thresholds/default?stop=x", "/?span=1y",
     "/?product=nothing",
     "/energy?span=1", "/models/nothing", "/models/default/v9/promote", "/thresholds/nothing",
     "/models/default/v1/report", "/images/nothing"],
)  # fmt: skip
def test_what_cannot_be_shown_is_named_on_a_page(reader: Visitor, address: str) -> None:
    answer = reader.get(address)
    assert answer.status_code in (400, 404, 409)
    assert "expected" in Page(answer.text).said()
    assert "found" in Page(answer.text).said() or "expected one of" in Page(answer.text).said()


# Names are text


@pytest.fixture
def hostile(root: Path) -> tuple[list[str], Path]:
    """Ids of images whose names are markup, of a product whose name is, with labels and notes that are."""
    install(root)
    ids = fill(root, len(HOSTILE), names=[name.replace("/", "_") for name in HOSTILE])
    ids += fill(root, 3, product=PRODUCT, seed=5)
    return ids, root


def test_names_notes_and_products_of_markup_stay_text(hostile: tuple[list[str], Path]) -> None:
    ids, root = hostile
    markup = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    with Visitor(root) as visitor:
        visitor.send("/who", {"who": markup})
        visitor.json("/labels", {"ids": ids[:2], "label": "anomaly", "note": markup})
        pages = [f"/images/{id}" for id in ids]
        pages += ["/", "/review", "/review?reviewed=yes", f"/review?product={markup}", "/?span=7d", "/thresholds"]
        for address in pages:
            answer = visitor.client.get(address)
            assert answer.status_code == 200, answer.text
            harmless(Page(answer.text))
        shown = Page(visitor.get("/review?reviewed=all").text)
        names = {one["data-name"] for one in shown.elements if one.has("data-name")}
        assert set(HOSTILE[:4]) <= names
        for address in (f"/models/{markup}", f"/thresholds/{markup}", f"/images/{markup}", f"/?span={markup}"):
            answer = visitor.client.get(address)
            assert answer.status_code in (404, 409)
            harmless(Page(answer.text))


def harmless(page: Page) -> None:
    """No script but our files, no style or handler in the markup, no image from elsewhere."""
    for element in page.elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            assert name != "style", element.tag
            if name in ("src", "href", "action", "formaction", "hx-get", "hx-post"):
                assert re.match(r"/(?!/)|#|\?", value or ""), (element.tag, name, value)
        if element.tag == "script":
            assert element["src"].startswith("/static/")
            assert element.text == ""
        if element.tag == "img":
            assert re.fullmatch(
                r"/images/[0-9A-Z]{26}/(picture|map|thumb|map-thumb)", element.attributes.get("src") or ""
            ) or ("dialog" in element.inside)
        assert element.tag not in ("style", "iframe", "object", "embed", "base")


def test_name_of_an_image_is_a_safe_header(hostile: tuple[list[str], Path]) -> None:
    ids, root = hostile
    with Visitor(root) as visitor:
        for id in ids:
            said = visitor.get(f"/images/{id}/picture").headers["content-disposition"]
            assert re.fullmatch(r"inline; filename\*=UTF-8''[A-Za-z0-9%._~-]+", said)


# No script needed


def test_pages_hold_nothing_that_the_policy_forbids(reader: Visitor, ids: list[str]) -> None:
    for address in addresses(ids[0]):
        harmless(reader.page(address))


def test_everything_can_be_reached_and_done_without_scripts(reader: Visitor, ids: list[str]) -> None:
    reached: set[str] = set()
    open_ = ["/"]
    posts: set[str] = set()
    while open_:
        address = open_.pop()
        if address in reached or len(reached) > 150:
            continue
        reached.add(address)
        answer = reader.get(address)
        assert answer.status_code in (200, 409), address
        if "html" not in answer.headers["content-type"]:
            continue
        page = Page(answer.text)
        for one in page.all("a"):
            # What htmx fetches is a page to all others.
            assert one.has("href"), address
            if one["href"].startswith("/"):
                open_.append(one["href"])
        for form in page.all("form"):
            assert form["action"].startswith("/")
            if form["method"] == "post":
                posts.add(re.sub(r"/v\d+/", "/v/", form["action"]))
        for button in page.all("button"):
            inside_form = "form" in button.inside
            assert inside_form or "dialog" in button.inside or button.has("hidden"), (address, button.attributes)
    assert posts >= {"/review/label", "/models/default/v/promote", "/thresholds/default", "/who"}
    assert {f"/images/{ids[0]}", "/models/default", "/thresholds/default", "/energy", "/review"} <= reached


def test_every_field_has_a_name_and_every_image_words(reader: Visitor, ids: list[str]) -> None:
    for address in addresses(ids[0]):
        page = reader.page(address)
        for field in [*page.all("input"), *page.all("select")]:
            named = "label" in field.inside or field.has("aria-label") or field["type"] == "hidden"
            assert named, (address, field.attributes)
        for image in page.all("img"):
            assert image.has("alt")
        for drawing in page.all("svg"):
            assert drawing["aria-label"]
            assert drawing["role"] == "img"
        assert len(page.all("h1")) == 1
        assert page.all("html")[0]["lang"] == "en"
        assert page.all("a", **{"class": "skip"})[0]["href"] == "#main"
        ids_of = [one["id"] for one in page.elements if one.has("id")]
        assert len(ids_of) == len(set(ids_of))


# Colours

TEXT = 4.5
SHAPE = 3.0
# Which colours lie on which; every colour that the style sheet names has to be in here.
ON = [
    (TEXT, "ink link muted normal anomaly bad fourth", "page card"),
    (TEXT, "ink link muted normal anomaly fourth", "normal-back anomaly-back"),
    (TEXT, "ink link", "grid"),
    (TEXT, "ink", "chosen"),
    (TEXT, "on-main", "main"),
    (SHAPE, "field focus normal anomaly main good bad", "page card"),
    (SHAPE, "field focus", "normal-back anomaly-back"),
    (SHAPE, "third fourth field ink", "card"),
]
# Lines that tell nothing by themselves.
DECORATION = {"edge"}


def style_sheet() -> str:
    return (Path(__file__).parents[3] / "service" / "web" / "static" / "page.css").read_text()


def schemes() -> dict[str, dict[str, str]]:
    parts = re.findall(r":root \{(.*?)\}", style_sheet(), re.S)
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in parts)
    return {"light": light, "dark": dark}


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance of sRGB."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_colours_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    colours = schemes()[scheme]
    for least, fronts, backs in ON:
        for front in fronts.split():
            for back in backs.split():
                found = contrast(colours[front], colours[back])
                assert found >= least, f"{scheme}: {front} on {back}: {found:.2f}"


def test_every_colour_of_the_style_sheet_is_among_those_whose_contrast_is_known() -> None:
    css = style_sheet()
    known = {name for _, fronts, backs in ON for name in (fronts + " " + backs).split()} | DECORATION
    assert set(re.findall(r"var\(--([a-z-]+)\)", css)) == known
    assert set(schemes()["light"]) == set(schemes()["dark"]) == known
    fronts = set(re.findall(r"(?<![-a-z])(?:color|fill): var\(--([a-z-]+)\)", css))
    assert fronts <= {name for _, fronts, _ in ON for name in fronts.split()}
    backs = set(re.findall(r"background: var\(--([a-z-]+)\)", css))
    of_shapes = {"third", "fourth", "field", "normal", "anomaly"}
    assert backs - of_shapes <= {name for _, _, backs in ON for name in backs.split()}
    # No colour by another way, but for the shade behind a dialog.
    rest = re.sub(r":root \{.*?\}", "", css, flags=re.S)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|\brgb\([^)]*\)|hsl\(", rest) == ["rgb(0 0 0 / 70%)"]


def test_verdicts_are_told_in_words_and_not_by_colour_alone(reader: Visitor, ids: list[str]) -> None:
    for element in reader.page("/review").elements:
        if (element.attributes.get("class") or "").startswith("verdict"):
            assert element.text.strip() in ("normal", "anomaly", "quarantined", "scored")
