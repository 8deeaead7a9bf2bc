"""The page in a real browser: Debian's Chromium against a real `tamis web` on a real root with real images.

What is done is done by keys and clicks, and judged by the database and the files. Nothing may be said in the
browser's console; what breaks the page's policy is said there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.storage.database.driver import sqlite3
from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.web_process import ARTEFACTS, CHROMEDRIVER, CHROMIUM, WebProcess, browser, look

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed")

IMAGES = 60
PATIENCE_S = 20
# None while a label is on its way.
LABELLED = """
const count = (selector) => document.querySelectorAll(selector).length;
return count('#wall .shot.busy') ? null : count('#wall .shot.labelled');
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests: starting it takes seconds."""
    one = browser(tmp_path_factory.mktemp("browser") / "profile")
    yield one
    one.quit()


@pytest.fixture(scope="module")
def filled(empty_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with images and two versions, to be copied: drawing the images takes seconds."""
    root = Path(shutil.copytree(empty_root, tmp_path_factory.mktemp("filled") / "root"))
    install(root)
    install(root, version="v2", state="challenger")
    fill(root, IMAGES, drawn=True)
    return root


@pytest.fixture
def root(tmp_path: Path, filled: Path) -> Path:
    """A copy of it that one test may change."""
    return Path(shutil.copytree(filled, tmp_path / "root"))


@pytest.fixture
def shown(root: Path, driver: Any) -> Iterator[WebProcess]:
    """The page of the root."""
    with WebProcess(root) as process:
        yield process
        # What it still loads would be told in the console once the server is gone.
        driver.get("about:blank")


@pytest.fixture(autouse=True)
def _console_is_silent(driver: Any) -> Iterator[None]:
    driver.get("about:blank")
    driver.get_log("browser")
    look(driver, 1280, 900)
    yield
    assert driver.get_log("browser") == []


def until(driver: Any, condition: Callable[[], Any], what: str) -> Any:
    """Return what `condition` says once it is true."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(driver, PATIENCE_S, 0.03, [StaleElementReferenceException])
    return wait.until(lambda _: condition(), what)


def press(driver: Any, *keys: str) -> None:
    """Press keys on whatever has the focus."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver, duration=0).send_keys(*keys).perform()


def css(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def current(driver: Any) -> str:
    """The id of the image that the keys mean."""
    return str(driver.execute_script("return document.querySelector('#wall .shot[tabindex=\"0\"]').dataset.id"))


def labelled(driver: Any, count: int) -> None:
    until(driver, lambda: driver.execute_script(LABELLED) == count, f"{count} images labelled on the wall")


def ask(root: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True) as connection:
        return connection.execute(statement, values).fetchall()


def labels_of(root: Path) -> dict[str, str | None]:
    """The latest label of each image that has any review."""
    rows = ask(root, "SELECT image_id, label FROM reviews ORDER BY id")
    return dict(rows)


def keep(driver: Any, name: str) -> None:
    """Keep a screenshot, once all images that can be seen are there."""
    until(
        driver,
        lambda: driver.execute_script(
            "return [...document.images].every(i => i.complete || i.getBoundingClientRect().top > innerHeight)"
        ),
        "images loaded",
    )
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(ARTEFACTS / f"{name}.png"))


def test_thirty_images_are_reviewed_by_keyboard_alone_and_one_is_undone(driver, shown, root):
    from selenium.webdriver.common.keys import Keys

    driver.get(f"{shown.url}/review")
    keep(driver, "review")
    said: dict[str, str] = {}
    for number in range(30):
        id = current(driver)
        assert id not in said
        if number == 7:
            # Looks at its map, goes on and comes back by arrows.
            press(driver, "m")
            assert "mapped" in css(driver, f"#card-{id}").get_attribute("class")
            press(driver, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
            assert current(driver) == id
        label = "an"[number % 3 != 0]
        press(driver, label)
        said[id] = {"n": "normal", "a": "anomaly"}[label]
    labelled(driver, 30)
    assert labels_of(root) == said
    last = list(said)[-1]
    press(driver, "u")
    labelled(driver, 29)
    until(driver, lambda: "taken back" in css(driver, "#told").text, "the undoing told")
    assert current(driver) == last
    said[last] = None
    assert labels_of(root) == said
    assert len(ask(root, "SELECT id FROM reviews")) == 31
    assert {source for (source,) in ask(root, "SELECT DISTINCT source FROM reviews")} == {"web"}
    for id, label in said.items():
        [(path, verdict, state)] = ask(root, "SELECT path, verdict, state FROM images WHERE id = ?", id)
        assert state == "placed" and (root / path).is_file()
        assert path.split("/")[0] == (label or verdict)
    files = [path for kind in ("normal", "anomaly") for path in (root / kind).rglob("*.png")]
    assert len(files) == IMAGES
    kept = {role_label for (role_label,) in ask(root, "SELECT label FROM training_pictures WHERE label IS NOT NULL")}
    assert kept == {"normal", "anomaly"}
    keep(driver, "reviewed")


def test_many_are_selected_by_shift_and_labelled_at_once(driver, shown, root):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver.get(f"{shown.url}/review")
    cards = driver.find_elements("css selector", "#wall .shot")
    ids = [card.get_attribute("data-id") for card in cards]
    chain = ActionChains(driver, duration=0)
    chain.click(cards[1].find_element("css selector", ".name"))
    chain.key_down(Keys.SHIFT).click(cards[6].find_element("css selector", ".name")).key_up(Keys.SHIFT).perform()
    assert len(driver.find_elements("css selector", "[aria-selected=true]")) == 6
    keep(driver, "selected")
    press(driver, "n")
    labelled(driver, 6)
    assert labels_of(root) == dict.fromkeys(ids[1:7], "normal")
    # By keys alone too, and all of it undone as one.
    chain = ActionChains(driver, duration=0).key_down(Keys.SHIFT)
    chain.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    assert len(driver.find_elements("css selector", "[aria-selected=true]")) == 3
    press(driver, "a")
    labelled(driver, 9)
    press(driver, "u")
    labelled(driver, 6)
    assert labels_of(root) == dict.fromkeys(ids[1:7], "normal") | dict.fromkeys(ids[7:10])


def test_image_at_full_size_is_zoomed_by_keys_and_labelled_there(driver, shown, root):
    from selenium.webdriver.common.keys import Keys

    driver.get(f"{shown.url}/review?verdict=anomaly")
    id = current(driver)
    press(driver, Keys.ENTER)
    wide = "return document.querySelector('#big .image').naturalWidth"
    until(driver, lambda: driver.execute_script(wide) == 640, "the image at its full size")
    sheet = (
        "return document.querySelector('#big .sheet').clientWidth / document.querySelector('#big .pane').clientWidth"
    )
    press(driver, "+", "+")
    assert driver.execute_script(sheet) == pytest.approx(2.25, rel=0.05)
    press(driver, "m")
    shows_map = "const m = document.querySelector('#big .map'); return !m.hidden && m.complete && m.naturalWidth > 0"
    until(driver, lambda: driver.execute_script(shows_map), "the map over it")
    keep(driver, "full-size")
    press(driver, "0")
    assert driver.execute_script(sheet) == pytest.approx(1, rel=0.02)
    press(driver, "n")
    until(driver, lambda: labels_of(root) == {id: "normal"}, "the label kept")
    assert current(driver) != id
    press(driver, Keys.ESCAPE)
    until(driver, lambda: not css(driver, "#big").get_attribute("open"), "the image closed")
    driver.get(f"{shown.url}/images/{id}")
    assert "normal" in css(driver, "dl.facts .label").text
    keep(driver, "image")


def test_threshold_is_tried_by_the_slider_and_chosen_without_retraining(driver, shown, root):
    from selenium.webdriver.common.keys import Keys

    driver.get(f"{shown.url}/thresholds/default")
    before = css(driver, "#changes").text
    driver.execute_script("document.querySelector('#stop').focus()")
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    until(driver, lambda: css(driver, "#changes").text != before, "another rate explored")
    changed = css(driver, "#changes").text
    assert "would change sides" in changed
    until(driver, lambda: css(driver, "#stop").get_attribute("aria-valuetext") in css(driver, "#changes").text, "said")
    assert ask(root, "SELECT * FROM threshold_choices") == []
    keep(driver, "threshold")
    rate = float(css(driver, "#explored input[name=rate]").get_attribute("value"))
    css(driver, "#apply").click()
    until(driver, lambda: ask(root, "SELECT product, false_alarm_rate FROM threshold_choices"), "the choice kept")
    assert ask(root, "SELECT product, false_alarm_rate FROM threshold_choices") == [("default", rate)]


def test_model_is_promoted_with_a_confirmation_and_rolled_back(driver, shown, root):
    champion = "SELECT version FROM model_versions WHERE state = 'champion'"
    driver.get(f"{shown.url}/models/default")
    keep(driver, "models")
    css(driver, "a[href$='/v2/promote']").click()
    confirm = until(driver, lambda: css(driver, "#confirm"), "the confirmation")
    assert confirm.text == "Promote v2" and ask(root, champion) == [("v1",)]
    css(driver, "input[name=reason]").send_keys("fewer false alarms")
    keep(driver, "promote")
    confirm.click()
    until(driver, lambda: ask(root, champion) == [("v2",)], "v2 the champion")
    until(driver, lambda: "fewer false alarms" in css(driver, "main").text, "the reason on the page")
    css(driver, "a[href$='/rollback']").click()
    until(driver, lambda: driver.current_url.endswith("/rollback"), "the confirmation")
    css(driver, "#confirm").click()
    until(driver, lambda: ask(root, champion) == [("v1",)], "v1 the champion again")


PAGES = ("/", "/review", "/models", "/models/default", "/thresholds", "/thresholds/default", "/energy", "/api")


def test_every_page_fits_a_phone_and_is_dark_for_those_who_like_it(driver, shown, root):
    [(id,)] = ask(root, "SELECT id FROM images WHERE verdict = 'anomaly' ORDER BY id LIMIT 1")
    for path in (*PAGES, f"/images/{id}", "/models/default/v2/promote"):
        grounds = {}
        for light in ("light", "dark"):
            look(driver, 390, 844, light)
            driver.get(f"{shown.url}{path}")
            assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), path
            assert driver.execute_script("return innerWidth") == 390
            grounds[light] = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            if path in ("/", "/review"):
                keep(driver, f"phone-{light}-{path.strip('/') or 'today'}")
        assert grounds["light"] != grounds["dark"], path
    look(driver, 1280, 900, "dark")
    driver.get(f"{shown.url}/review")
    keep(driver, "dark-review")


def test_nothing_is_loaded_from_elsewhere_and_today_refreshes_itself(driver, shown, root):
    driver.get_log("performance")
    driver.get(f"{shown.url}/")
    keep(driver, "today")
    driver.execute_script("window.before = document.querySelector('#figures').firstElementChild")
    driver.execute_script("document.body.dispatchEvent(new Event('tick'))")
    fresh = "return !document.querySelector('#figures').contains(window.before)"
    until(driver, lambda: driver.execute_script(fresh), "the figures fetched anew")
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 3
    assert all(url.startswith((f"{shown.url}/", "about:", "data:")) for url in urls)
