"""Settings: where a value comes from, what is refused and how, and that the documentation says the same."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from service.commands.init import GROUPS, toml_value
from service.errors import ConfigurationError
from service.filesystem.file_state import NameFilter
from service.settings import ProductSettings, Settings, load, origins
from service.settings_file import ENVIRONMENT_PREFIX

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
# The end or beginning of a name says the unit.
UNITS = (
    (r"_ms$", "ms"),
    (r"_s$", "s"),
    (r"_w$", "W"),
    (r"bytes_", "bytes"),
    (r"pixels_", "pixels"),
    (r"inodes_", "inodes"),
    (r"_threads$", "threads"),
    (r"_rate$|_prevalence$", "share, between 0 and 1"),
    (r"_band$", "times the false-alarm rate"),
    (r"_minutes_max$", "minutes"),
    (r"_gb$", "GB"),
    (r"_wh$", "Wh"),
    (r"_h$|_hours$", "hours"),
    (r"_share$|_fraction$", "share"),
    (r"_window$", "images"),
    (r"_days$", "days"),
)


@pytest.fixture(autouse=True)
def no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


def root_with(tmp_path: Path, text: str = "") -> Path:
    (tmp_path / "tamis.toml").write_text(text, encoding="utf-8")
    return tmp_path


def unit_of(name: str) -> str:
    return next((unit for pattern, unit in UNITS if re.search(pattern, name)), "")


def row_of(name: str) -> str:
    """Return the line of docs/settings.md that `name` must have."""
    about = Settings.model_fields[name]
    default = about.get_default(call_default_factory=True)
    if default is None:
        shown = "not set"
    elif default == {}:
        shown = "none"
    else:
        shown = f"`{toml_value(default)}`"
    return f"| `{name}` | {shown} | {unit_of(name)} | {about.description} |"


# --- where values come from ---------------------------------------------------------------------------------


def test_empty_file_gives_the_defaults_and_says_so(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    settings = load(root)
    assert settings.settle_time_s == Settings.model_fields["settle_time_s"].default
    assert set(origins(root).values()) == {"default"}
    assert set(origins(root)) == set(Settings.model_fields)


def test_file_goes_over_the_default(tmp_path: Path) -> None:
    root = root_with(tmp_path, "settle_time_s = 2.5\n")
    settings = load(root)
    assert settings.settle_time_s == 2.5
    assert origins(root)["settle_time_s"] == "tamis.toml"


def test_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_SETTLE_TIME_S", "3.5")
    root = root_with(tmp_path, "settle_time_s = 2.5\n")
    settings = load(root)
    assert settings.settle_time_s == 3.5
    assert origins(root)["settle_time_s"] == "TAMIS_SETTLE_TIME_S"


def test_option_goes_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_INSTANCE", "second")
    root = root_with(tmp_path, 'instance = "first"\n')
    settings = load(root, instance="third", log_format=None)
    assert settings.instance == "third"
    assert settings.log_format == "plain"


def test_list_from_the_file_replaces_the_default(tmp_path: Path) -> None:
    assert load(root_with(tmp_path, 'ignored_names = ["*.bak"]\n')).ignored_names == ("*.bak",)


def test_sidecars_are_ignored_by_their_suffix_unless_they_are_to_be_quarantined(tmp_path: Path) -> None:
    names = NameFilter(load(root_with(tmp_path, 'sidecar_suffixes = [".json", ".[x]"]')).names_to_ignore)
    assert [name for name in ("a.JSON", "a.png.json", "a.[x]", "a.x", "a.txt", "json") if names.ignores(name)] == [
        *("a.JSON", "a.png.json", "a.[x]"),
    ]
    names = NameFilter(load(root_with(tmp_path, 'sidecars = "quarantine"\n')).names_to_ignore)
    assert not names.ignores("a.json")


@pytest.mark.parametrize("suffix", [".PNG", "json", ".", ".a/b", ".tar.gz", ""])
def test_suffix_that_is_none_or_an_images_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigurationError, match="setting sidecar_suffixes"):
        load(root_with(tmp_path, f'sidecar_suffixes = [".json", "{suffix}"]\n'))


@pytest.mark.parametrize(
    "prefix", ["tamis", "//tamis", "/a//b", "/a/../b", "/a b", "/api", "/review/x", "/a?b", "/ä", "/.."]
)
def test_prefix_that_is_no_path_or_one_of_the_pages_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="setting web_path_prefix"):
        load(root_with(tmp_path), web_path_prefix=prefix)


@pytest.mark.parametrize(("prefix", "path"), [("/", ""), ("", ""), ("/tamis/", "/tamis"), ("/a/b-1.x", "/a/b-1.x")])
def test_prefix_ends_without_a_slash(tmp_path: Path, prefix: str, path: str) -> None:
    assert load(root_with(tmp_path), web_path_prefix=prefix).web_path_prefix == path


def test_list_from_the_environment_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_IGNORED_NAMES", '["*.bak", ".*"]')
    assert load(root_with(tmp_path)).ignored_names == ("*.bak", ".*")


def test_root_in_the_environment_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_ROOT", str(tmp_path))
    assert load(root_with(tmp_path)).instance == "main"


def test_settings_of_two_roots_do_not_mix(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, text in ((first, "batch_size_max = 3\n"), (second, "")):
        folder.mkdir()
        root_with(folder, text)
    assert (load(first).batch_size_max, load(second).batch_size_max, load(first).batch_size_max) == (3, 0, 3)


OF_SERVICES = {
    "TAMIS_PORT": "tcp://192.0.2.1:80",
    "TAMIS_SERVICE_HOST": "192.0.2.1",
    "TAMIS_SERVICE_PORT": "80",
    "TAMIS_SERVICE_PORT_HTTP": "80",
    "TAMIS_PORT_8080_TCP": "tcp://[2001:db8::1]:8080",
    "TAMIS_PORT_8080_TCP_PROTO": "tcp",
    "TAMIS_PORT_8080_TCP_PORT": "8080",
    "TAMIS_PORT_8080_TCP_ADDR": "2001:db8::1",
    "TAMIS_NAME": "/web/tamis",
    "TAMIS_ENV_LANG": "C",
    # A service `tamis-web`: the first has the name of a setting.
    "TAMIS_WEB_PORT": "tcp://192.0.2.1:80",
    "TAMIS_WEB_SERVICE_HOST": "192.0.2.1",
    "TAMIS_WEB_SERVICE_PORT": "80",
    "TAMIS_WEB_PORT_80_UDP_ADDR": "192.0.2.1",
    "TAMIS_WEB_NAME": "/a/tamis-web",
}


def test_variables_made_for_a_service_are_one_warning_and_set_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in OF_SERVICES.items():
        monkeypatch.setenv(name, value)
    root = root_with(tmp_path, "web_port = 8081\n")
    assert load(root).web_port == load(root).web_port == 8081
    assert origins(root)["web_port"] == "tamis.toml"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "TAMIS_ENV_LANG and 14 more" in said[0] and said[0].startswith("warning: ")


def test_their_warning_is_for_machines_where_the_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIS_SERVICE_HOST", "192.0.2.1")
    load(root_with(tmp_path), log_format="json")
    assert json.loads(capsys.readouterr().err)["level"] == "warning"


def test_service_beside_a_setting_of_the_same_name_leaves_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIS_WEB_SERVICE_PORT", "80")
    monkeypatch.setenv("TAMIS_WEB_PORT", "8082")
    assert load(root_with(tmp_path)).web_port == 8082


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TAMIS_SETLE_TIME_S", "2"),
        ("TAMIS_PORT", "8081"),
        ("TAMIS_NAME", "line 3"),
        ("TAMIS_SERVICE", "x"),
        ("TAMIS_PORT_TCP", "1"),
        ("TAMIS_SERVICEHOST", "192.0.2.1"),
        ("TAMIS_ENVIRONMENT", "test"),
    ],
)
def test_mistyped_variable_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"unknown setting {name}"):
        load(root_with(tmp_path))


# --- products -----------------------------------------------------------------------------------------------


def test_product_overrides_its_false_alarm_rate_and_others_keep_the_general_one(tmp_path: Path) -> None:
    settings = load(root_with(tmp_path, "false_alarm_rate = 0.02\n[products.flange]\nfalse_alarm_rate = 0.05\n"))
    assert settings.false_alarm_rate_of("flange") == 0.05
    assert settings.false_alarm_rate_of("gasket") == 0.02


def test_rate_of_the_training_holds_where_no_setting_says_otherwise(tmp_path: Path) -> None:
    settings = load(root_with(tmp_path, "[products.flange]\nfalse_alarm_rate = 0.05\n"))
    assert settings.false_alarm_rate_of("gasket", trained=0.03) == 0.03
    assert settings.false_alarm_rate_of("flange", trained=0.03) == 0.05
    assert settings.false_alarm_rate_of("gasket") == 0.01


def test_product_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_PRODUCTS__flange__FALSE_ALARM_RATE", "0.05")
    root = root_with(tmp_path)
    settings = load(root)
    assert settings.false_alarm_rate_of("flange") == 0.05
    assert origins(root)["products"] == "TAMIS_PRODUCTS"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[products.flange]\nfalse_alarm_rte = 0.05\n", "products.flange.false_alarm_rte"),
        ("[products.flange]\nfalse_alarm_rate = 2\n", "products.flange.false_alarm_rate"),
    ],
)
def test_mistake_in_a_product_is_named_with_the_product(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        load(root_with(tmp_path, text))


# --- what sets the threshold --------------------------------------------------------------------------------


def test_product_overrides_its_policy_and_takes_the_rest_from_the_general_settings(tmp_path: Path) -> None:
    text = 'cost_of_miss = 50\ncost_of_false_alarm = 2\n[products.flange]\nthreshold_policy = "cost"\n'
    settings = load(root_with(tmp_path, text + "anomaly_prevalence = 0.01\nuncertain_band = 1\n"))
    assert (settings.of("flange", "threshold_policy"), settings.of("gasket", "threshold_policy")) == (
        "cost",
        "false_alarm_rate",
    )
    assert (settings.of("flange", "cost_of_miss"), settings.of("flange", "anomaly_prevalence")) == (50, 0.01)
    assert (settings.of("flange", "uncertain_band"), settings.of("gasket", "uncertain_band")) == (1, 3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('threshold_policy = "fixed"', r"threshold_policy 'fixed': expected threshold_fixed; found no threshold_fixed"),
        (
            'threshold_policy = "cost"\ncost_of_miss = 3',
            r"expected cost_of_miss, .*; found no cost_of_false_alarm, no anomaly_prevalence",
        ),
        ('[products.lid]\nthreshold_policy = "fixed"', r"'fixed' of product lid: expected threshold_fixed"),
        ('threshold_policy = "best"', r"setting threshold_policy: .* found 'best'"),
        ("threshold_fixed = inf", r"setting threshold_fixed: .* found inf"),
        ("cost_of_miss = 0", r"setting cost_of_miss: .* found 0"),
        ("uncertain_band = 0.5", r"setting uncertain_band: .* found 0\.5"),
        ("value_range = [4095, 0]", r"setting value_range: .*expected \[low, high\], the first the lower"),
        ("[products.lid]\nvalue_range = [1]", r"setting products\.lid\.value_range"),
    ],
)
def test_policy_without_what_it_needs_is_refused_at_the_start(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(root_with(tmp_path, text + "\n"))


# --- what is refused ----------------------------------------------------------------------------------------


def test_unknown_setting_is_named_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'settel_time_s'; did you mean 'settle_time_s'\?"):
        load(root_with(tmp_path, "settel_time_s = 1\n"))


def test_unknown_setting_unlike_any_other_points_to_the_documentation(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'qqq'; docs/settings\.md lists them all"):
        load(root_with(tmp_path, "qqq = 1\n"))


def test_unknown_variable_is_named_with_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_SETTLE_TIME", "1")
    with pytest.raises(ConfigurationError, match=r"TAMIS_SETTLE_TIME; did you mean 'settle_time_s'\?"):
        load(root_with(tmp_path))


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ('settle_time_s = "long"', "settle_time_s", "'long'"),
        ("settle_time_s = 0", "settle_time_s", "0"),
        ("false_alarm_rate = 1.0", "false_alarm_rate", "1.0"),
        ('energy_country = "France"', "energy_country", "'France'"),
        ('watch_mode = "sometimes"', "watch_mode", "'sometimes'"),
        ('instance = "../other"', "instance", "'../other'"),
        ("batch_size_max = 2.5", "batch_size_max", "2.5"),
        ("settle_time_s = nan", "settle_time_s", "nan"),
        ("settle_time_s = inf", "settle_time_s", "inf"),
    ],
)
def test_value_that_does_not_fit_is_named_with_what_was_found(tmp_path: Path, text: str, name: str, found: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(root_with(tmp_path, text + "\n"))
    assert f"setting {name}:" in str(caught.value)
    assert f"found {found}" in str(caught.value)
    assert caught.value.exit_code == 78


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(root_with(tmp_path, "settle_time_s = -1\nbatch_size_max = -1\n"))
    assert "settle_time_s" in str(caught.value)
    assert "batch_size_max" in str(caught.value)


@pytest.mark.parametrize("content", [b"settle_time_s = \n", b"\xff\xfe", b"[products"])
def test_file_that_is_not_toml_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tamis.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"tamis\.toml: expected TOML"):
        load(tmp_path)


def test_missing_root_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no such folder; make one with `tamis init"):
        load(tmp_path / "nowhere")


def test_folder_without_settings_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no tamis\.toml in it; make one with `tamis init"):
        load(tmp_path)


def test_settings_cannot_be_changed_afterwards(tmp_path: Path) -> None:
    settings: Any = load(root_with(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        settings.settle_time_s = 9.0


# --- the documentation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default_unit_and_meaning(name: str) -> None:
    assert row_of(name) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_every_documented_setting_exists() -> None:
    rows = re.findall(r"(?m)^\| `([a-z0-9_]+)` \|", DOCUMENT.read_text(encoding="utf-8"))
    own = set(ProductSettings.model_fields)
    assert sorted(set(rows) - own) == sorted(set(Settings.model_fields) - own)
    assert {name: rows.count(name) for name in rows if name not in own and rows.count(name) != 1} == {}


def test_documentation_has_the_groups_of_the_settings_file() -> None:
    headings = re.findall(r"(?m)^## (.+)$", DOCUMENT.read_text(encoding="utf-8"))
    assert [heading for heading in headings if heading in GROUPS.values()] == list(GROUPS.values())


def test_every_field_has_a_description_and_a_default() -> None:
    for name, about in Settings.model_fields.items():
        assert about.description, name
        assert not about.is_required(), name


def test_settings_of_a_product_hold_whatever_form_its_name_is_written_in(tmp_path: Path) -> None:
    sent, trained = unicodedata.normalize("NFD", "Prüfling"), unicodedata.normalize("NFC", "Prüfling")
    settings = load(root_with(tmp_path, f'[products."{sent}"]\nfalse_alarm_rate = 0.2\n'))
    assert settings.false_alarm_rate_of(trained) == 0.2
