"""`tamis results`, `energy`, `models` and `db` as they are called, on a real root."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import migrations
from models import registry
from models.errors import ModelCorrupt
from models.manifest import Calibration, Manifest
from models.regions import Region
from service.commands import database, energy, results, versions
from service.commands.results import COLUMNS, moment, safe_cell
from service.errors import TamisError, UsageError
from service.root import DATABASE_FILE
from service.storage import energy as stored_energy
from service.storage import images, regions
from service.storage import versions as stored_versions
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from service.storage.images import Finished
from tests.service.storage.conftest import on_sqlite

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

app = typer.Typer()
app.command()(results.results)
app.command()(energy.energy)
app.add_typer(versions.app, name="models")
app.add_typer(database.app, name="db")


def call(*words: object, fails: type[BaseException] | None = None):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if fails is None:
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result
    assert isinstance(result.exception, fails), result.output
    return result.exception


@pytest.fixture
def root(engine, tmp_path: Path, record_of) -> Path:
    (tmp_path / "tamis.toml").touch()
    with engine.begin() as connection:
        numbers = range(1, 121)
        records = [record_of(n, verdict="anomaly" if n % 40 == 0 else "normal") for n in numbers]
        images.record(connection, records, None)
    return tmp_path


# results


def test_json_is_one_document_of_the_newest_rows_and_the_footer_says_how_many_there_are(root):
    found = call("results", "--root", root, "--json")
    document = json.loads(found.stdout)
    assert document["total"] == 120 and len(document["results"]) == 100
    assert tuple(document["results"][0]) == COLUMNS and document["results"][0]["file_name"] == "120.png"
    assert found.stderr == "100 of 120 shown; --limit 0 shows all\n"


def test_limit_zero_shows_all_over_several_pages(root, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 7)
    found = call("results", "--root", root, "--limit", 0, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert [row["file_name"] for row in rows] == [f"{n}.png" for n in range(120, 0, -1)]
    assert found.stderr == "120 of 120 shown\n"


def test_filters_reach_the_query(root):
    found = call("results", "--root", root, "--json", "--verdict", "anomaly", "--since", "2026-01-31T12:50")
    assert [row["file_name"] for row in json.loads(found.stdout)["results"]] == ["120.png", "80.png"]


def test_uncertain_ones_alone_can_be_asked_for(root, engine, record_of):
    with engine.begin() as connection:
        near = [record_of(n, uncertain=n % 2 == 0, uncertainty=0.7, product="cap") for n in range(200, 206)]
        images.record(connection, near, None)
    found = json.loads(call("results", "--root", root, "--json", "--uncertain", "--limit", 2).stdout)
    assert found["total"] == 3 and [row["file_name"] for row in found["results"]] == ["204.png", "202.png"]
    assert json.loads(call("results", "--root", root, "--json", "--uncertain", "--product", "lid").stdout)["total"] == 0


def test_regions_come_with_their_images_when_asked_for(root, engine):
    with engine.begin() as connection:
        regions.record(connection, {f"{120:026d}": [Region(1, 2, 3, 4, 10, 0.5, 2.5, 1.5)]})
    found = json.loads(call("results", "--root", root, "--json", "--regions", "--limit", 2).stdout)["results"]
    [region] = found[0]["regions"]
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    assert region == {"number": 1} | box | {"area": 10, "area_share": 0.5, "peak": 2.5, "mean": 1.5}
    assert found[1]["regions"] == [] and tuple(found[1]) == (*COLUMNS, "regions")


def test_the_table_names_the_images(root):
    assert "120.png" in call("results", "--root", root, "--limit", 1).stdout


def test_an_output_file_appears_whole(root, tmp_path):
    call("results", "--root", root, "--format", "csv", "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().count("\n") == 101
    assert not list(tmp_path.glob(".*.part"))


def test_parquet_has_the_columns_with_their_types(root, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    call("results", "--root", root, "--limit", 0, "--format", "parquet", "--output", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert tuple(table.column_names) == COLUMNS and table.num_rows == 120
    first = table.slice(0, 1).to_pylist()[0]
    assert first["received_at"] == NOON + timedelta(minutes=120)
    assert (first["width"], first["score"], first["label"]) == (640, 0.25, None)


def test_parquet_of_no_rows_still_has_its_columns(root, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    call("results", "--root", root, "--product", "x", "--format", "parquet", "--output", tmp_path / "out.parquet")
    assert tuple(parquet.read_table(tmp_path / "out.parquet").column_names) == COLUMNS


def test_parquet_without_pyarrow_says_how_to_install_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = call("results", "--root", root, "--format", "parquet", "--output", "x.parquet", fails=TamisError)
    assert "pip install 'tamis[parquet]'" in str(error)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--verdict", "bad"], "normal, anomaly"),
        (["--state", "lost"], "scored, placed"),
        (["--since", "yesterday"], "yesterday"),
        (["--output", "x.txt"], "csv, json or parquet"),
        (["--regions"], "expected --json"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_names_what_is_expected(root, words, named):
    assert named in str(call("results", "--root", root, *words, fails=UsageError))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@sum", "'@sum"),
        ("\t=1", "\\t=1"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("café.png", "café.png"),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_csv_cells_are_inert_in_a_spreadsheet_and_on_a_terminal(value, expected):
    assert safe_cell(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", NOON - timedelta(hours=24)),
        ("7d", NOON - timedelta(days=7)),
        ("30m", NOON - timedelta(minutes=30)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-30T10:00:00+02:00", datetime(2026, 1, 30, 8, tzinfo=UTC)),
        ("2026-01-30T10:00:00Z", datetime(2026, 1, 30, 10, tzinfo=UTC)),
    ],
)
def test_times_are_ages_or_iso_8601_in_utc(text, expected):
    assert moment(text, NOON) == expected


@pytest.mark.parametrize("text", ["", "h", "-1h", "99999999999999d", "24 h", "2026-13-01", "0001-01-01T00:00+09:00"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="expected 24h"):
        moment(text, NOON)


# energy


def add_energy(engine, kind, images, wh, grams):
    sample = stored_energy.EnergySample(kind, NOON, 60.0, images, wh, None, None, wh, grams, "estimated", None)
    with engine.begin() as connection:
        stored_energy.add(connection, sample)


def test_energy_reports_per_thousand_images_and_the_share_of_idling(engine, root):
    add_energy(engine, "scoring", 100, 0.3, 0.02)
    add_energy(engine, "idle", 0, 0.1, 0.01)
    found = json.loads(call("energy", "--root", root, "--json").stdout)
    assert (found["wh_per_1000_images"], found["g_per_1000_images"]) == (pytest.approx(3.0), pytest.approx(0.2))
    assert found["idle_share"] == pytest.approx(0.25) and found["source"] == "estimated"
    assert {row["kind"] for row in found["per_kind"]} == {"scoring", "idle"} and len(found["per_day"]) == 1
    assert set(json.loads(call("energy", "--root", root, "--per", "day", "--json").stdout)) & {"per_kind"} == set()


def test_unknown_grams_are_null_and_a_note_names_the_setting(engine, root):
    add_energy(engine, "scoring", 100, 0.3, None)
    found = call("energy", "--root", root, "--json")
    document = json.loads(found.stdout)
    assert document["emissions_g"] is None and document["g_per_1000_images"] is None
    assert any("energy_country" in note for note in document["notes"])
    plain = call("energy", "--root", root)
    assert "unknown g CO2e" in plain.stdout and "energy_country" in plain.stderr


def test_energy_of_nothing_is_unknown_and_not_zero(root):
    document = json.loads(call("energy", "--root", root, "--json").stdout)
    assert document["total_wh"] is None and document["notes"] == ["no energy was recorded in this time"]


# models


@pytest.fixture
def two_versions(engine, root, monkeypatch):
    """Register v1 (champion) and v2; `verify` is the registry's, but for folders that it calls corrupt."""
    corrupt: set[str] = set()

    def verify(folder: Path, sha256: str | None = None) -> registry.ModelVersion:
        if folder.name in corrupt:
            raise ModelCorrupt(f"{folder}/model.bin: expected another hash")
        manifest = Manifest(
            format=1,
            product="lid",
            version=folder.name,
            kind="pixel",
            created_at=NOON.isoformat(),
            input_size=(16, 24),
            calibration=Calibration(scores=(0.1,) * 500, false_alarm_rate=0.01, threshold=0.1, pixel_threshold=0.1),
            files={},
        )
        return registry.ModelVersion(folder, manifest, sha256 or "")

    monkeypatch.setattr(registry, "verify", verify)
    with engine.begin() as connection:
        for version, state in (("v1", "champion"), ("v2", "challenger")):
            stored_versions.register(
                connection,
                product="lid",
                version=version,
                kind="pixel",
                created_at=NOON,
                state=state,
                reason="trained",
                threshold=0.5,
                false_alarm_rate=0.01,
                image_auroc=None,
                f1=None,
                training_wh=None,
                images=9,
                sha256="a" * 64,
            )
    return corrupt


def test_models_list_show_promote_and_rollback(root, two_versions):
    listed = json.loads(call("models", "list", "--root", root, "--json").stdout)
    assert {row["version"]: row["state"] for row in listed} == {"v1": "champion", "v2": "challenger"}
    shown = json.loads(call("models", "show", "lid", "--root", root, "--json").stdout)
    assert shown["version"] == "v1" and shown["verified"] and "calibration_scores" not in shown["manifest"]
    assert json.loads(call("models", "promote", "lid", "v2", "--root", root, "--json").stdout)["state"] == "champion"
    assert "champion of lid: v1" in call("models", "rollback", "lid", "--root", root, "--reason", "worse").stdout
    assert "v2" in call("models", "list", "--root", root).stdout
    assert "pixel" in call("models", "show", "lid", "v2", "--root", root).stdout


def test_the_product_may_be_given_by_name_as_doctor_advises_it(root, two_versions):
    by_name = ["--product", "lid", "--root", root]
    assert "champion of lid: v2" in call("models", "promote", *by_name, "v2").stdout
    assert "champion of lid: v1" in call("models", "rollback", *by_name).stdout
    assert "v1" in call("models", "show", *by_name).stdout and "v2" in call("models", "show", *by_name, "v2").stdout
    assert "--product" in str(call("models", "rollback", "--root", root, fails=UsageError))
    assert "once" in str(call("models", "rollback", "cap", *by_name, fails=UsageError))
    assert "VERSION" in str(call("models", "promote", "lid", "--root", root, fails=UsageError))


@pytest.mark.parametrize("words", [["promote", "lid", "v2"], ["rollback", "lid"]])
def test_a_corrupt_version_does_not_become_champion(root, two_versions, words):
    if words[0] == "rollback":
        call("models", "promote", "lid", "v2", "--root", root)
    before = json.loads(call("models", "list", "--root", root, "--json").stdout)
    two_versions.update({"v1", "v2"})
    call("models", *words, "--root", root, fails=ModelCorrupt)
    assert json.loads(call("models", "list", "--root", root, "--json").stdout) == before


def test_an_unknown_version_is_named_with_those_there_are(root, two_versions):
    assert "v1" in str(call("models", "show", "lid", "v9", "--root", root, fails=TamisError))
    assert "v1" in str(call("models", "promote", "lid", "v9", "--root", root, fails=TamisError))


# db


def test_check_of_a_sound_database_counts_rows_whose_file_is_gone(engine, root):
    (root / "normal").mkdir()
    (root / "normal" / "1.png").touch()
    with engine.begin() as connection:
        finished = [Finished(f"{n:026d}", "placed", f"normal/{n}.png", NOON, 1.0) for n in (1, 2, 3)]
        images.finish(connection, finished)
    result = call("db", "check", "--root", root, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["sound"] and found["integrity"] == ["ok"]
    assert (found["rows"], found["rows_without_file"]) == (3, 2)


@on_sqlite
def test_check_of_a_broken_reference_fails(engine, root):
    connection = sqlite3.connect(root / DATABASE_FILE)
    connection.execute("UPDATE images SET energy_id = 99 WHERE id LIKE '%7'")
    connection.commit()
    connection.close()
    result = call("db", "check", "--root", root, "--no-files", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["broken_references"] == 12


def test_check_of_a_corrupt_file_fails_and_says_so(tmp_path):
    (tmp_path / DATABASE_FILE).write_bytes(b"garbage " * 4096)
    result = call("db", "check", "--root", tmp_path)
    assert result.exit_code == 1 and "sound: False" in result.stdout and "not a database" in result.stdout


def test_upgrade_says_that_there_was_nothing_to_do(root):
    assert f"at revision {migrations.HEAD} already" in call("db", "upgrade", "--root", root).stdout


@on_sqlite
def test_backup_writes_a_file_that_opens(engine, root, tmp_path):
    (tmp_path / "backup").mkdir()
    call("db", "backup", "--root", root, tmp_path / "backup" / DATABASE_FILE)
    copied = open_database(tmp_path / "backup", read_only=True)
    with copied.connect() as connection:
        assert images.count(connection) == 120
    copied.dispose()
    assert "--force" in str(call("db", "backup", "--root", root, tmp_path / "backup" / DATABASE_FILE, fails=TamisError))
