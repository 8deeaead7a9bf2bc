"""The report of `tamis evaluate`, and a comparison of versions: what is on the page, and whose it is.

A real root, database and graph whose score is brightness; a real browser where there is one.
"""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from models.data.datasets import Sample
from models.data.select_images import ProductImages
from models.errors import DatasetError
from models.evaluation.evaluate import ScoredFile
from service.errors import TamisError, UsageError
from service.evaluation.learning_curve import learning_curve, training_pool
from service.evaluation.worst_mistakes import WorstMistakes
from service.training.job import TrainingJob
from tests.service.commands.test_evaluate import document, energy_rows, meter, mvtec, run  # noqa: F401
from tests.support.brightness_version import image, install, mask
from tests.support.made_images import make_normals

CHROMIUM, CHROMEDRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture
def ready(root):
    install(root)
    install(root, version="v2", state="challenger")
    return root


@pytest.fixture
def parts(tmp_path):
    """Twelve normals, two of them too bright; eight anomalies, two of them too dark, one of those with a mask."""
    folder = tmp_path / "parts"
    for index, background in enumerate([10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 120, 140]):
        image(folder / f"normal/n{index}.png", background)
    for index, spot in enumerate([90, 60, 150, 160, 170, 180, 190, 200]):
        image(folder / f"anomaly/a{index}.png", spot=spot)
    mask(folder / "masks/a0.png")
    return folder


class ReportPage(HTMLParser):
    """What is in a page: its text, the values of attributes that can load something, its ids."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.loads, self.ids, self.tags, self.images = "", [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.loads += [values[name] for name in ("src", "href", "srcset", "xlink:href", "action") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values["alt"]] if tag == "img" else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.text += data


def test_report_is_one_file_that_holds_everything(ready, parts, tmp_path):
    (ready / "tamis.toml").write_text('energy_country = "FRA"\n')
    found = document(ready, parts, "--report", tmp_path / "new/report")
    assert found["report"] == str(tmp_path / "new/report/index.html")
    assert [path.name for path in (tmp_path / "new/report").iterdir()] == ["index.html"]
    page = ReportPage(Path(found["report"]))
    for text in ("image AUROC", "95 % interval", "0.7500", "estimated", "FRA", "25 Wh", "v1", "24 × 16 px"):
        assert text in page.text, text
    assert page.tags.count("svg") == 5
    assert "script" not in page.tags
    assert all(value.startswith(("data:", "#")) for value in page.loads)
    assert len(page.ids) == len(set(page.ids))


def test_worst_mistakes_are_shown_with_their_maps_the_worst_first(ready, parts, tmp_path):
    run(ready, parts, "--report", tmp_path / "out")
    page = ReportPage(tmp_path / "out/index.html")
    shown = [alt for alt in page.images if alt != "its anomaly map"]
    assert shown == [
        "anomaly/a1.png",
        "anomaly/a0.png, the labelled defect outlined",
        "normal/n11.png",
        "normal/n10.png",
    ]
    assert len(page.images) == 8


def test_a_image_gone_before_it_is_drawn_is_said_and_not_fatal(ready, parts, tmp_path, monkeypatch):
    from service.commands import evaluate as command

    prepared = command.thumbnail

    def gone(mistake, *arguments):
        (parts / "normal/n11.png").unlink(missing_ok=True)
        return prepared(mistake, *arguments)

    monkeypatch.setattr(command, "thumbnail", gone)
    run(ready, parts, "--report", tmp_path / "out")
    assert "could not be read again" in ReportPage(tmp_path / "out/index.html").text


def test_names_from_outside_are_text_and_never_markup(ready, parts, tmp_path):
    image(parts / "normal" / '"><script>alert(1).png', 200)
    (parts / "normal" / "\u202egnp.\udcff\x1b[31m.png").write_bytes(b"no image")
    run(ready, parts, "--report", tmp_path / "out")
    page = ReportPage(tmp_path / "out/index.html")
    assert "script" not in page.tags
    assert '"><script>alert(1).png' in page.text
    assert "\x1b" not in page.text and "\u202e" not in page.text


def test_unknown_is_a_dash_and_no_plot_is_drawn_of_it(ready, tmp_path):
    image(tmp_path / "parts/normal/0.png")
    run(ready, tmp_path / "parts", "--report", tmp_path / "out")
    page = ReportPage(tmp_path / "out/index.html")
    assert "ROC curve" not in page.text
    assert re.search(r"image AUROC\s*–\s*–", page.text)


def test_several_objects_have_a_section_each_and_a_table_of_means(ready, tmp_path):
    sets = mvtec(tmp_path / "sets", "bottle", "cable")
    run(ready, sets, "--report", tmp_path / "out")
    page = ReportPage(tmp_path / "out/index.html")
    assert [name for name in page.ids if name.startswith("object-")] == ["object-1", "object-2"]
    assert "All objects" in page.text and "mean" in page.text
    assert page.tags.count("svg") == 10
    assert len(page.ids) == len(set(page.ids))


def test_an_earlier_report_is_overwritten_and_a_foreign_page_is_not(ready, parts, tmp_path):
    out = tmp_path / "out"
    run(ready, parts, "--report", out)
    first = (out / "index.html").read_bytes()
    run(ready, parts, "--report", out, "--false-alarm-rate", "0.3")
    assert (out / "index.html").read_bytes() != first
    (out / "index.html").write_text("<meta name='generator' content='Another'><p>Tamis was here</p>")
    before = energy_rows(ready)
    with pytest.raises(UsageError, match="found one that Tamis did not make"):
        run(ready, parts, "--report", out)
    assert energy_rows(ready) == before
    assert "Tamis was here" in (out / "index.html").read_text()


@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300, "/proc/self"])
def test_a_place_where_no_report_can_be_is_refused_before_the_work(ready, parts, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--report .*: expected a folder"):
        run(ready, parts, "--report", tmp_path / where)
    assert energy_rows(ready) == []


def test_an_index_that_is_a_folder_is_refused(ready, parts, tmp_path):
    (tmp_path / "out/index.html").mkdir(parents=True)
    with pytest.raises(UsageError, match="Tamis did not make"):
        run(ready, parts, "--report", tmp_path / "out")


def test_the_worst_mistakes_are_kept_in_bounded_memory():
    mistakes = WorstMistakes(threshold=10.0, most=2)
    for index, (label, score) in enumerate(
        [(0, 11), (0, 30), (0, 20), (0, 30), (0, 5), (1, 9), (1, 1), (1, 4), (1, 12)]
    ):
        sample = Sample(Path(f"{index}.png"), label, "test", "part")
        mistakes.offer(sample, ScoredFile(index, sample.path, float(score), np.full((2, 3), score, np.float32)))
    assert [(one.sample.path.name, one.score) for one in mistakes.false_alarms] == [("1.png", 30), ("3.png", 30)]
    assert [one.score for one in mistakes.missed] == [1, 4]
    assert mistakes.missed[0].map[0, 0] == 1


def recalibrated(root: Path, version: str, scores) -> None:
    """Give the registered `version` other calibration scores."""
    from sqlalchemy import text

    from models.registry import verify
    from service.storage.database.open import open_database

    path = root / "models/default" / version / "model.json"
    manifest = json.loads(path.read_text())
    manifest["calibration"]["scores"] = list(scores)
    path.write_text(json.dumps(manifest))
    engine = open_database(root)
    with engine.begin() as connection:
        table = next(
            name
            for (name,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
            if {"version", "sha256", "state"}
            <= {row[1] for row in connection.execute(text(f"PRAGMA table_info({name})"))}
        )
        sha256 = verify(path.parent).sha256
        connection.execute(text(f"UPDATE {table} SET sha256 = '{sha256}' WHERE version = '{version}'"))
    engine.dispose()


def test_comparison_shows_differences_and_every_image_whose_verdict_changes(ready, parts, tmp_path):
    recalibrated(ready, "v2", range(51, 151))
    arguments = (parts, "--compare", "v2", "--report", tmp_path / "out")
    (found,) = document(ready, *arguments)["objects"]
    comparison = found["comparison"]
    assert (found["version"], comparison["version"], comparison["threshold"]) == ("v1", "v2", 150)
    changes = {Path(one["path"]).name: one for one in comparison["changes"]}
    assert set(changes) == {"n10.png", "n11.png", "a2.png"}
    assert changes["n10.png"]["verdicts"] == ["anomaly", "normal"]
    assert changes["n10.png"]["scores"] == [120, 120]
    assert comparison["differences"]["recall"] == pytest.approx(-1 / 8)
    assert comparison["differences"]["false_alarm_rate"] == pytest.approx(-2 / 12)
    assert comparison["differences"]["image_auroc"] == 0
    low, high = comparison["difference_intervals"]["false_alarm_rate"]
    assert low < -2 / 12 < high <= 0
    assert comparison["difference_intervals"]["image_auroc"] is None
    assert [row[0] for row in energy_rows(ready)] == ["evaluation", "evaluation"]
    page = ReportPage(tmp_path / "out/index.html")
    assert "Verdicts that change: 3" in page.text
    printed = run(ready, *arguments).stdout
    assert "n10.png" in printed and "-0.1667" in printed


def test_a_version_that_is_not_there_or_is_the_same_is_refused_before_the_work(ready, parts):
    with pytest.raises(TamisError, match="expected a version named 'v9'; found v1, v2"):
        run(ready, parts, "--compare", "v9")
    with pytest.raises(UsageError, match="expected another version than the one evaluated"):
        run(ready, parts, "--compare", "v1")
    assert energy_rows(ready) == []


@pytest.mark.parametrize("sizes", ["", "0", "20,,30", "20,-3", "many", "1e3", "²"])
def test_sizes_that_are_no_numbers_are_wrong_usage(ready, parts, sizes):
    with pytest.raises(UsageError, match="--learning-curve: expected numbers"):
        run(ready, parts, "--learning-curve", sizes, "--from", parts / "normal")


def test_a_learning_curve_needs_both_options_one_object_and_images_that_are_not_evaluated(ready, parts, tmp_path):
    with pytest.raises(UsageError, match="--learning-curve: expected --from"):
        run(ready, parts, "--learning-curve", "20")
    with pytest.raises(UsageError, match="--from: expected --learning-curve"):
        run(ready, parts, "--from", parts)
    with pytest.raises(UsageError, match="expected one object"):
        run(ready, mvtec(tmp_path / "sets", "a", "b"), "--learning-curve", "20", "--from", parts)
    with pytest.raises(DatasetError, match="found only those that are evaluated"):
        run(ready, parts, "--learning-curve", "20", "--from", parts / "normal")
    assert energy_rows(ready) == []


def test_images_that_are_evaluated_are_not_trained_on_whatever_they_are_called(tmp_path):
    judged = image(tmp_path / "test/a.png", 33)
    image(tmp_path / "good/copy.png", 33)
    kept = image(tmp_path / "good/other.png", 34)
    assert training_pool(tmp_path / "good", [Sample(judged, 0, "test", "part")]) == ([kept], 1)


def test_a_learning_curve_trains_unregistered_versions_and_says_which_size_is_too_few(ready, tmp_path):
    """Sizes rise; too few images are no failure; the versions are gone, what they were judged by stays."""
    from service.storage import versions
    from service.storage.database.open import open_database

    make_normals(tmp_path / "good", 30)
    make_normals(tmp_path / "make", 40)
    for index in range(30, 40):
        path = tmp_path / f"parts/normal/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"make/{index:03}.png").rename(path)
    image(tmp_path / "parts/anomaly/0.png", spot=255)
    arguments = (
        "--learning-curve",
        "26,3,99",
        "--from",
        tmp_path / "good",
        "--steps",
        "2",
        "--report",
        tmp_path / "out",
    )
    found = document(ready, tmp_path / "parts", "--false-alarm-rate", "0.2", *arguments)["learning_curve"]
    assert [point["pictures"] for point in found] == [3, 26, 99]
    assert "needs" in found[0]["error"] and found[0]["metrics"] is None
    assert found[2]["error"] == "expected 99 normal images to train on; found 30"
    assert found[1]["error"] is None and found[1]["metrics"]["image_auroc"] is not None and found[1]["seconds"] > 0
    engine = open_database(ready, read_only=True)
    with engine.connect() as connection:
        assert {row.version for row in versions.versions(connection)} == {"v1", "v2"}
    engine.dispose()
    assert sorted(path.name for path in (ready / "models").iterdir()) == ["default"]
    assert [row[0] for row in energy_rows(ready)] == ["evaluation", "training", "evaluation"]
    page = ReportPage(tmp_path / "out/index.html")
    assert "Learning curve" in page.text and "found 30" in page.text


def test_a_smaller_subset_is_a_part_of_every_larger_one(tmp_path, monkeypatch):
    from models.errors import TooFewImages
    from service.evaluation import learning_curve as module

    jobs = []

    def refuse(job, report):
        jobs.append(job)
        raise TooFewImages("too few")

    monkeypatch.setattr(module, "train_in_child", refuse)
    pool = [Path(f"{index}.png") for index in range(20)]
    for seed in (1, 1, 2):
        job = TrainingJob(
            products=(ProductImages("bar", (), 0.1),), models_root=Path(), kind="pixel", profile="fast", seed=seed
        )
        assert [point.error for point in learning_curve(job, pool, [9, 4], evaluate=None)] == ["too few"] * 2
    four, nine, four_again, nine_again, other, _ = (job.products[0].normals for job in jobs)
    assert nine[:4] == four and (four, nine) == (four_again, nine_again) and other != four


def test_what_draws_the_report_is_loaded_by_it_alone():
    script = "import sys, service.cli, service.daemon.run; print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed")
def test_a_browser_opens_the_page_without_asking_a_network_and_in_both_lights(ready, parts, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    recalibrated(ready, "v2", range(51, 151))
    run(ready, parts, "--compare", "v2", "--report", tmp_path / "out")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        backgrounds = {}
        for light, width in (("light", 1280), ("dark", 1280), ("light", 360)):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            media = {"features": [{"name": "prefers-color-scheme", "value": light}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.get((tmp_path / "out/index.html").as_uri())
            backgrounds[light] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            ink = browser.execute_script("return getComputedStyle(document.querySelector('svg.plot text')).fill")
            assert ink == browser.execute_script("return getComputedStyle(document.body).color")
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (light, width)
            assert browser.execute_script(
                "document.querySelectorAll('img').forEach(i => i.loading = 'eager');"
                "return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))"
                ".then(all => all.length > 0 && all.every(Boolean))"
            )
        assert backgrounds["light"] != backgrounds["dark"]
        assert browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = {
            message["params"]["request"]["url"].split(":")[0]
            for message in messages
            # Before the page it shows one of its own.
            if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"].startswith("file:")
        }
        assert asked == {"file", "data"}
    finally:
        browser.quit()
