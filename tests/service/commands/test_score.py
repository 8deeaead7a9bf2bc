"""`tamis score` on a real root, database and graph whose score is brightness."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from models.data.datasets import IMAGE_SUFFIXES
from models.errors import TooFewImages
from service.commands.score import score
from service.errors import ConfigurationError, TamisError, UsageError
from service.imaging import decode
from service.scoring.active_versions import load_version
from service.storage.database.open import open_database
from tests.conftest import REPOSITORY
from tests.support.brightness_version import image, install
from tests.support.failing_decoder import bad_image, hook


def run(root: Path, *arguments: object):
    app = typer.Typer()
    app.command()(score)
    result = CliRunner().invoke(app, ["--root", str(root), *map(str, arguments)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def document(root: Path, *arguments: object):
    return json.loads(run(root, "--json", *arguments).stdout)


@pytest.fixture
def ready(root):
    install(root)
    return root


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    image(folder / "dark.png")
    image(folder / "inner" / "bright.JPG", spot=200)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_image_that_ends_what_decodes_it_is_a_failure_among_the_others(
    ready: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{hook(tmp_path)}{os.pathsep}{REPOSITORY}")
    (images / "evil.png").write_bytes(bad_image("crash"))
    found = {Path(row["file"]).name: row for row in document(ready, images)["images"]}
    assert found["evil.png"]["verdict"] is None and "SIGSEGV" in found["evil.png"]["error"]
    assert (found["dark.png"]["verdict"], found["bright.JPG"]["verdict"]) == ("normal", "anomaly")


def tree(folder: Path):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def test_each_image_of_a_folder_gets_a_verdict(ready, images):
    found = document(ready, images)
    assert (found["product"], found["version"], found["threshold"]) == ("default", "v1", 100.0)
    assert [(Path(row["file"]).name, row["verdict"], row["error"]) for row in found["images"]] == [
        ("dark.png", "normal", None),
        ("bright.JPG", "anomaly", None),
    ]
    dark, bright = found["images"]
    assert dark["score"] == pytest.approx(20)
    assert dark["p_value"] == pytest.approx(82 / 101)
    assert bright["score"] > 150
    assert bright["p_value"] == pytest.approx(1 / 101)


def test_nothing_is_moved_and_nothing_recorded(ready, images):
    before = tree(images), (ready / "tamis.db").read_bytes(), tree(ready / "models")
    run(ready, images)
    assert (tree(images), (ready / "tamis.db").read_bytes(), tree(ready / "models")) == before


def test_lines_name_file_verdict_score_threshold_and_p_value(ready, images):
    lines = run(ready, images).stdout.splitlines()
    assert lines[0].split() == ["verdict", "score", "threshold", "p_value", "file"]
    assert lines[1].split() == ["normal", "20", "100", "0.811881", str(images / "dark.png")]
    assert len(lines) == 3


def test_a_file_that_is_no_image_has_a_row_with_its_error_and_the_exit_code_is_1(ready, images):
    (images / "broken.png").write_bytes(b"no image")
    result = run(ready, "--json", images)
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["images"]
    assert [Path(row["file"]).name for row in rows] == ["broken.png", "dark.png", "bright.JPG"]
    broken = rows[0]
    assert "expected one of JPEG" in broken["error"]
    assert all(broken[name] is None for name in ("verdict", "score", "threshold", "p_value"))
    plain = run(ready, images)
    assert plain.exit_code == 1
    assert plain.stdout.splitlines()[1].startswith("–")
    assert "1 of 3 could not be scored" in plain.stderr


def test_a_file_named_by_itself_is_scored_whatever_its_suffix(ready, tmp_path):
    path = image(tmp_path / "capture.png").rename(tmp_path / "capture.frame")
    assert document(ready, path)["images"][0]["verdict"] == "normal"


def test_a_linked_image_is_scored(ready, images, tmp_path):
    (tmp_path / "link.png").symlink_to(images / "inner/bright.JPG")
    assert document(ready, tmp_path / "link.png")["images"][0]["verdict"] == "anomaly"


def test_names_with_strange_bytes_are_printed_safely(ready, tmp_path):
    folder = tmp_path / "strange"
    image(folder / "plain.png")
    for name in (b"bad\xff.png", b"new\nline.png", b"\x1b[31mred.png"):
        os.link(folder / "plain.png", os.fsencode(folder) + b"/" + name)
    files = {Path(row["file"]).name for row in document(ready, folder)["images"]}
    assert files == {"plain.png", "bad\\xff.png", "new\nline.png", "\x1b[31mred.png"}
    printed = run(ready, folder).stdout
    assert "bad\\xff.png" in printed
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 5


def test_image_map_and_overlay_are_drawn_side_by_side(ready, images, tmp_path):
    maps = tmp_path / "maps"
    run(ready, images, images / "dark.png", "--maps", maps)
    written = sorted(str(path.relative_to(maps)) for path in maps.rglob("*") if path.is_file())
    assert written == ["dark.png.png", "pictures/dark.png.png", "pictures/inner/bright.JPG.png"]
    with Image.open(maps / "pictures/inner/bright.JPG.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    assert drawn.shape == (32, 3 * 48 + 2 * 8, 3)
    original, heat, over = drawn[:, :48], drawn[:, 56:104], drawn[:, 112:]
    np.testing.assert_array_equal(original[20:], over[20:])
    assert not (np.abs(original[..., 0] - original[..., 2]) > 20).any()
    # On dark, what is below the threshold can be seen as well, but it is faint.
    for panel, faint in ((heat, 100), (over, 20)):
        coloured = np.abs(panel[..., 0] - panel[..., 2]) > faint
        assert coloured[2, 45]
        assert not coloured[25:, :20].any()


def test_json_has_the_regions_of_each_image_in_its_own_pixels_and_how_certain_it_is(ready, images):
    dark, bright = document(ready, images)["images"]
    [region] = bright["regions"]
    assert dark["regions"] == [] and 1.9 < region["peak"] < 2.1
    # The spot is in the upper right corner, 16 wide and 8 high.
    assert 28 <= region["x"] <= 34 and region["y"] == 0
    assert region["x"] + region["width"] == 48 and 7 <= region["height"] <= 12
    assert (dark["uncertain"], bright["uncertain"]) == (False, False)
    assert 0 < dark["uncertainty"] < 0.5 and 0 < bright["uncertainty"] < 0.5


def test_policy_of_the_settings_sets_the_threshold_and_is_told(ready, images):
    (ready / "tamis.toml").write_text('threshold_policy = "fixed"\nthreshold_fixed = 250\n')
    found = document(ready, images)
    assert (found["threshold_policy"], found["threshold"], found["false_alarm_rate"]) == ("fixed", 250.0, None)
    assert {row["verdict"] for row in found["images"]} == {"normal"}
    found = document(ready, images, "--false-alarm-rate", "0.1")
    assert (found["threshold_policy"], found["false_alarm_rate"]) == ("false_alarm_rate", 0.1)


def test_policy_that_needs_known_anomalies_ends_the_command_with_what_is_missing(ready, images):
    (ready / "tamis.toml").write_text('threshold_policy = "f1"\n')
    with pytest.raises(ConfigurationError, match=r"product default, version v1.*calibration\.anomaly_scores"):
        run(ready, images)


def test_maps_of_files_of_one_name_do_not_overwrite_each_other(ready, tmp_path):
    first, second = image(tmp_path / "a" / "x.png"), image(tmp_path / "b" / "x.png", spot=200)
    run(ready, first, second, "--maps", tmp_path / "maps")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["x.png.2.png", "x.png.png"]


def test_maps_that_cannot_be_written_are_an_error(ready, images, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "pictures").write_text("in the way")
    with pytest.raises(TamisError, match="cannot be written"):
        run(ready, images, "--maps", tmp_path / "maps")


def test_the_rate_moves_the_threshold(ready, images):
    found = document(ready, images, "--false-alarm-rate", "0.9")
    assert found["threshold"] == pytest.approx(11)
    assert {row["verdict"] for row in found["images"]} == {"anomaly"}


def test_the_rate_of_the_settings_holds_where_none_is_asked_for(ready, images):
    (ready / "tamis.toml").write_text("false_alarm_rate = 0.1\n[products.bolts]\nfalse_alarm_rate = 0.2\n")
    assert document(ready, images)["threshold"] == pytest.approx(91)
    assert document(ready, images, "--product", "bolts")["threshold"] == pytest.approx(81)


@pytest.mark.parametrize("rate", ["0", "1", "-3"])
def test_a_rate_outside_0_and_1_is_wrong_usage(ready, images, rate):
    with pytest.raises(UsageError, match="more than 0 and less than 1"):
        run(ready, images, f"--false-alarm-rate={rate}")


def test_a_rate_that_the_calibration_cannot_give_says_so(ready, images):
    with pytest.raises(TooFewImages, match=r"0\.001"):
        run(ready, images, "--false-alarm-rate", "0.001")


def test_a_folder_without_images_is_an_error(ready, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TamisError, match=r"empty: expected images .*found none"):
        run(ready, tmp_path / "empty")


def test_a_path_that_is_not_there_is_wrong_usage(ready, tmp_path):
    assert run(ready, tmp_path / "nowhere").exit_code == 2


def test_a_product_without_a_model_uses_that_of_default(ready, images):
    assert document(ready, images, "--product", "bolts")["product"] == "default"


def test_a_product_of_its_own_is_judged_by_its_own_champion(ready, images):
    install(ready, "bolts", "v7")
    found = document(ready, images, "--product", "bolts")
    assert (found["product"], found["version"]) == ("bolts", "v7")


def test_without_any_model_the_products_that_have_one_are_named(root, images):
    with pytest.raises(TamisError, match="no product has one yet"):
        run(root, images)
    install(root, "bolts")
    install(root, "nuts")
    with pytest.raises(TamisError, match="products with one: bolts, nuts"):
        run(root, images, "--product", "screws")


def test_a_version_by_name_need_not_be_champion(ready, images):
    install(ready, version="v2", state="challenger")
    assert document(ready, images)["version"] == "v1"
    assert document(ready, images, "--version", "v2")["version"] == "v2"


def test_an_unknown_version_names_the_known(ready, images):
    install(ready, version="v2", state="rejected")
    with pytest.raises(TamisError, match="'v3'; found v1, v2"):
        run(ready, images, "--version", "v3")


def test_a_damaged_version_refuses_with_the_file_named(ready):
    graph = ready / "models/default/v1/model.bin"
    graph.write_bytes(graph.read_bytes() + b"x")
    engine = open_database(ready, read_only=True)
    with pytest.raises(ConfigurationError, match=r"model\.bin") as caught:
        load_version(ready, engine, "default")
    engine.dispose()
    assert caught.value.exit_code == 78


def test_limits_of_the_settings_hold(ready, images):
    (ready / "tamis.toml").write_text("pixels_max = 1000\n")
    result = run(ready, "--json", images / "dark.png")
    assert result.exit_code == 1
    assert "at most 1000 pixels" in json.loads(result.stdout)["images"][0]["error"]


def test_suffixes_looked_for_are_those_that_are_decoded():
    assert set(IMAGE_SUFFIXES) == decode.SUFFIXES


def deep(path: Path, brightness: int) -> Path:
    """Save an image of one brightness of 12 bits, in 16."""
    Image.fromarray(np.full((32, 48), brightness * 16, np.uint16)).save(path)
    return path


def test_image_of_12_bits_is_seen_in_the_range_of_the_version(root, tmp_path):
    install(root, value_range=(0.0, 4095.0))
    (row,) = document(root, deep(tmp_path / "a.png", 20))["images"]
    assert row["score"] == pytest.approx(20) and row["remark"] is None


def test_image_whose_values_do_not_fit_says_so(ready, tmp_path):
    path = deep(tmp_path / "a.png", 20)
    (row,) = document(ready, path)["images"]
    assert row["error"] is None and "found 320 to 320" in row["remark"]
    assert "found 320 to 320" in run(ready, path).stdout.splitlines()[1]
