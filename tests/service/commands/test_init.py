"""`tamis init` makes a whole root, once, and refuses places that cannot be one."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service.commands import init
from service.commands.init import EXAMPLES, GROUPS, make_root, settings_text, toml_value
from service.errors import ConfigurationError, TamisError, UsageError
from service.filesystem.mount_table import Mount
from service.root import FOLDERS
from service.settings import Settings, load


@pytest.fixture(autouse=True)
def no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TAMIS_"):
            monkeypatch.delenv(name)


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def test_makes_every_folder_the_settings_and_the_database(tmp_path: Path) -> None:
    root = tmp_path / "far" / "root"
    made = make_root(root)
    assert all((root / name).is_dir() for name in FOLDERS)
    assert (root / "tamis.toml").is_file()
    assert (root / "tamis.db").is_file()
    assert set(made.made) == {f"{name}/" for name in FOLDERS} | {"tamis.toml", "tamis.db"}
    assert made.kept == []


def test_second_run_changes_nothing_and_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_root(root)
    (root / "tamis.toml").write_text("settle_time_s = 3.0\n")
    before = snapshot(root)
    made = make_root(root)
    assert made.made == []
    assert len(made.kept) == len(FOLDERS) + 2
    assert snapshot(root) == before


def test_missing_folder_is_made_again(tmp_path: Path) -> None:
    make_root(tmp_path)
    (tmp_path / "maps").rmdir()
    assert make_root(tmp_path).made == ["maps/"]


@pytest.mark.parametrize("umask", [0o077, 0o027])
def test_modes_honour_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_root(tmp_path / "root")
    finally:
        os.umask(before)
    for path in [tmp_path / "root", *(tmp_path / "root").iterdir()]:
        assert path.stat().st_mode & umask == 0, path


def test_file_is_refused_as_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder or nothing; found a file"):
        make_root(tmp_path / "file")


@pytest.mark.parametrize("inside", ["incoming/camera", "normal", "elsewhere"])
def test_place_inside_another_root_is_refused(tmp_path: Path, inside: str) -> None:
    make_root(tmp_path)
    with pytest.raises(UsageError, match="lies inside the root"):
        make_root(tmp_path / inside / "root")
    assert not (tmp_path / inside / "root").exists()


def test_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "incoming").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"incoming: expected a folder or nothing; found a link"):
        make_root(root)


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(TamisError, match="cannot write in"):
        make_root(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_network_file_system_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = Mount(tmp_path, "nfs4", "server:/share", read_only=False)
    monkeypatch.setattr(init.filesystem, "mount_of", lambda path: share)
    with pytest.raises(ConfigurationError, match="expected a local file system; found nfs4"):
        make_root(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_new_settings_file_sets_nothing() -> None:
    assert tomllib.loads(settings_text()) == {}


def test_new_settings_file_with_every_setting_uncommented_is_valid_and_is_the_default(tmp_path: Path) -> None:
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in settings_text().splitlines()
    ]
    (tmp_path / "tamis.toml").write_text("\n".join(lines))
    table = tomllib.loads("\n".join(lines))
    assert set(table) == set(Settings.model_fields)
    loaded = load(tmp_path)
    for name, about in Settings.model_fields.items():
        if name in EXAMPLES or name == "products":
            continue
        assert getattr(loaded, name) == about.default, name


def test_every_setting_is_described_in_the_new_file() -> None:
    text = settings_text()
    for about in Settings.model_fields.values():
        assert about.description
        assert about.description in text


def test_groups_and_examples_name_settings_that_exist() -> None:
    fields = Settings.model_fields
    assert set(GROUPS) <= set(fields)
    assert {name for name, about in fields.items() if about.default is None} == set(EXAMPLES)


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (200_000_000, "200_000_000"), (1.5, "1.5"), ('a"b', '"a\\"b"'), (("*~", ".*"), '["*~", ".*"]')],
)
def test_values_are_written_as_toml_reads_them(value: object, text: str) -> None:
    assert toml_value(value) == text
    expected = list(value) if isinstance(value, tuple) else value
    assert tomllib.loads(f"x = {text}")["x"] == expected


def command(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(init.init)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def test_command_says_that_nothing_changed(tmp_path: Path) -> None:
    code, first = command(str(tmp_path / "root"))
    assert code == 0
    assert "made  incoming/" in first
    code, second = command(str(tmp_path / "root"))
    assert code == 0
    assert "nothing changed" in second
    assert "made" not in second


def test_command_with_json_prints_one_document(tmp_path: Path) -> None:
    code, output = command(str(tmp_path / "root"), "--json")
    assert code == 0
    assert json.loads(output)["root"] == str(tmp_path / "root")
