"""A version on disk: published whole or not at all, never overwritten, checked byte by byte."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import registry
from models.errors import ModelCorrupt, ModelError
from models.registry import publish, remove_build, verify
from tests.support.trainings import list_versions

CALIBRATION = {"false_alarm_rate": 0.1, "threshold": 0.5, "pixel_threshold": 0.7, "scores": [0.5, 0.25]}
VERSION = "20260102T030405Z-pixel-abcdef"


def make_build(models: Path, name: str = ".tmp-1", **changes: Any) -> Path:
    build = models / name
    build.mkdir(parents=True)
    for file in registry.REQUIRED:
        (build / file).write_bytes(f"content of {file}".encode())
    manifest = {
        "format": 1,
        "product": "lid",
        "version": VERSION,
        "kind": "pixel",
        "created_at": "2026-01-02T03:04:05.000000Z",
        "input_size": [64, 96],
        "calibration": CALIBRATION,
        "files": {file: registry.file_sha256(build / file) for file in registry.REQUIRED},
        **changes,
    }
    (build / "model.json").write_text(json.dumps(manifest))
    return build


def test_published_version_says_what_it_is(tmp_path: Path) -> None:
    published = publish(make_build(tmp_path), tmp_path)
    found = verify(tmp_path / "lid" / VERSION, published.sha256)
    assert found == published
    assert (found.product, found.version, found.kind) == ("lid", VERSION, "pixel")
    assert found.input_size == (64, 96)
    assert found.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found.trained_false_alarm_rate == 0.1
    assert found.calibration_scores.dtype == np.float32
    assert found.calibration_scores.tolist() == [0.25, 0.5]
    assert found.sha256 == hashlib.sha256((found.folder / "model.json").read_bytes()).hexdigest()
    assert not (tmp_path / ".tmp-1").exists()


@pytest.mark.parametrize("file", registry.REQUIRED)
def test_one_changed_byte_is_found_and_named(tmp_path: Path, file: str) -> None:
    folder = publish(make_build(tmp_path), tmp_path).folder
    content = bytearray((folder / file).read_bytes())
    content[0] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ModelCorrupt, match=rf"{file}: expected sha256 [0-9a-f]{{64}}; found [0-9a-f]{{64}}"):
        verify(folder)


@pytest.mark.parametrize("file", [*registry.REQUIRED, "model.json"])
def test_missing_file_is_found_and_named(tmp_path: Path, file: str) -> None:
    folder = publish(make_build(tmp_path), tmp_path).folder
    (folder / file).unlink()
    with pytest.raises(ModelCorrupt, match=rf"{file}: expected .*No such file"):
        verify(folder)


def test_changed_manifest_is_found_by_its_registered_hash(tmp_path: Path) -> None:
    published = publish(make_build(tmp_path), tmp_path)
    path = published.folder / "model.json"
    path.write_text(path.read_text().replace("0.25", "0.75"))
    with pytest.raises(ModelCorrupt, match=rf"model\.json: expected sha256 {published.sha256}"):
        verify(published.folder, published.sha256)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", '{"format": 2}', '{"format": 1}', '{"format": 1, "files": []}', "\udc80"]
)
def test_manifest_that_is_none_is_corrupt(tmp_path: Path, content: str) -> None:
    folder = publish(make_build(tmp_path), tmp_path).folder
    (folder / "model.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelCorrupt, match=r"model\.json"):
        verify(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"created_at": "yesterday"},
        {"created_at": 3},
        {"input_size": [64]},
        {"input_size": [0, 96]},
        {"input_size": "64x96"},
        {"calibration": []},
        {"calibration": {k: v for k, v in CALIBRATION.items() if k != "scores"}},
        {"calibration": {**CALIBRATION, "false_alarm_rate": None}},
        {"calibration": {**CALIBRATION, "scores": [0.5, "x"]}},
        {"calibration": {**CALIBRATION, "scores": [float("inf")]}},
        {"calibration": {**CALIBRATION, "scores": [[0.5]]}},
        {"calibration": {**CALIBRATION, "pixel_threshold": "x"}},
    ],
    ids=str,
)
def test_manifest_with_figures_that_are_none_is_corrupt(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelCorrupt, match=r"model\.json: expected"):
        verify(make_build(tmp_path, **changes))


def test_message_on_a_damaged_manifest_names_the_field_with_what_was_expected_and_found(tmp_path: Path) -> None:
    for number, (changes, message) in enumerate(
        [
            ({"format": 2}, r"model\.json: expected format to be 1; found 2; another version of tamis made it\?"),
            ({"input_size": [0, 96]}, r"model\.json: expected input_size\.0 to be greater than 0; found 0"),
            ({"calibration": {}}, r"model\.json: expected a field calibration\.false_alarm_rate; found none"),
            (
                {"calibration": {**CALIBRATION, "scores": [1e39]}},
                r"calibration\.scores\.0 to be less than .*; found 1e\+39",
            ),
            ({"calibration": {**CALIBRATION, "look": {"brightness": [1]}}}, r"as many values of each of .*; found \{"),
            ({"created_at": "0001-01-01T00:00:00+23:00"}, r"created_at to be a time: .*; found '0001"),
        ]
    ):
        with pytest.raises(ModelCorrupt, match=message):
            verify(make_build(tmp_path, f".tmp-{number}", **changes))


def test_manifest_keeps_what_it_does_not_know_and_adds_nothing(tmp_path: Path) -> None:
    changes = {
        "later": {"more": [1, None]},
        "calibration": {**CALIBRATION, "look": None, "later": "x"},
        "training": {"seed": 3, "skipped": [{"path": "not-utf8-\udc80.png", "error": "gone"}]},
    }
    build = make_build(tmp_path, **changes)
    written = json.loads((build / "model.json").read_text())
    manifest = verify(build).manifest
    assert json.loads(manifest.as_json()) == written
    assert list(json.loads(manifest.as_json())["calibration"]) == list(written["calibration"])
    assert manifest.training.seed == 3 and manifest.training.seconds is None and manifest.energy is None


def test_manifest_cannot_speak_of_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    build = make_build(tmp_path)
    manifest = json.loads((build / "model.json").read_text())
    manifest["files"]["../secret"] = hashlib.sha256(b"").hexdigest()
    (build / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelCorrupt, match="plain file names"):
        verify(build)


def test_file_without_a_hash_is_corrupt(tmp_path: Path) -> None:
    build = make_build(tmp_path, files={})
    with pytest.raises(ModelCorrupt, match="expected a sha256 for"):
        publish(build, tmp_path)
    assert build.exists() and list_versions(tmp_path, "lid") == []


def test_version_is_never_overwritten(tmp_path: Path) -> None:
    first = publish(make_build(tmp_path), tmp_path)
    second = make_build(tmp_path, ".tmp-2", profile="other")
    with pytest.raises(ModelError, match="exists already"):
        publish(second, tmp_path)
    assert verify(first.folder, first.sha256) == first


@pytest.mark.parametrize("product", ["../lid", "a/b", ".", "..", ".tmp-x", ""])
def test_product_that_is_no_plain_folder_is_not_published(tmp_path: Path, product: str) -> None:
    build = make_build(tmp_path / "models", product=product)
    with pytest.raises(ModelError, match="plain name"):
        publish(build, tmp_path / "models")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_versions_are_listed_oldest_first_and_only_whole_ones(tmp_path: Path) -> None:
    names = ["20260302T000000Z-pixel-000001", "20260102T000000Z-feature-ffffff"]
    for number, name in enumerate(names):
        publish(make_build(tmp_path, f".tmp-{number}", version=name), tmp_path)
    (tmp_path / "lid" / "20250101T000000Z-pixel-000000").mkdir()
    assert list_versions(tmp_path, "lid") == sorted(names)
    assert list_versions(tmp_path, "another") == []


def test_only_builds_are_removed(tmp_path: Path) -> None:
    build = make_build(tmp_path)
    remove_build(build)
    remove_build(build)
    assert not build.exists()
    with pytest.raises(ValueError, match=r"\.tmp-"):
        remove_build(tmp_path)
    assert tmp_path.exists()
