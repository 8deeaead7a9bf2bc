"""Retraining for real: a child that trains, a gate that judges, rows, files and a report that tell of it."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from models.data.image_list import read_image_list
from models.progress import Progress
from models.registry import ModelVersion, file_sha256, write_manifest
from service import settings as settings_module
from service.errors import TamisError
from service.filesystem.place import Place
from service.retraining import gate, gate_scoring
from service.retraining.lock import retraining_lock
from service.retraining.retrain import clear_up, retrain
from service.retraining.training_data import select_training_data
from service.root import RETRAINING_LOCK
from service.storage import retrainings, versions
from service.storage.database.open import open_database
from service.storage.retrainings import KnownImage
from service.training.job import EnergyExceeded
from tests.support import brightness_version
from tests.support.daemon_process import wait_until
from tests.support.labelled_root import AT, PRODUCT, label, train_champion

REPOSITORY = Path(__file__).resolve().parents[3]
SETTINGS = "energy_cpu_max_w = 20.0\nfree_bytes_min = 0\n"
STEPS = 60
COST_MARGIN = 1e6


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


@pytest.fixture
def champion(root: Path, engine: Engine) -> ModelVersion:
    (root / "tamis.toml").write_text(SETTINGS)
    return train_champion(root, engine)


@pytest.fixture(autouse=True)
def costs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """No difference in cost is too much: two versions of one kind differ by what else the machine does."""
    monkeypatch.setattr(gate, "COST_MARGIN", COST_MARGIN)


@pytest.fixture(autouse=True)
def costs_are_measured_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_scoring, "_TURN_S_MIN", 0.05)


def labelled(root: Path, engine: Engine) -> None:
    label(root, engine, range(100, 130), "normal", "train")
    label(root, engine, range(130, 145), "normal", "calibrate")
    label(root, engine, range(145, 165), "normal", "golden")
    label(root, engine, range(200, 212), "anomaly", "golden")
    label(root, engine, range(212, 218), "anomaly", "train")


def run(root: Path, engine: Engine, **changes: Any) -> retrainings.RetrainingRow:
    given: dict[str, Any] = {"trigger": "command", "steps": STEPS}
    return retrain(root, engine, settings_module.load(root), PRODUCT, **given | changes)


def states(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {row.version: row.state for row in versions.versions(connection, PRODUCT)}


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "models").iterdir() if path.name not in (PRODUCT, RETRAINING_LOCK)]


def test_a_better_challenger_becomes_champion_and_the_report_says_why(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    labelled(root, engine)
    told: list[Progress] = []
    row = run(root, engine, report=told.append)
    assert (row.state, row.outcome, row.champion) == ("done", "promoted", champion.version), row.reason
    assert row.challenger is not None and "better in" in (row.reason or "")
    assert states(engine) == {row.challenger: "champion", champion.version: "retired"}
    found = json.loads(row.gate or "")
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert (found["normals"], found["normals_from"]) == (20, "golden")
    assert (found["anomalies"], found["anomalies_from"]) == (12, "golden")
    assert figures["image_auroc"]["challenger"] > figures["image_auroc"]["champion"]
    assert figures["cpu_ms_per_image"]["challenger"] > 0 and figures["wh_per_1000_images"]["challenger"] > 0
    page = (root / (row.report or "")).read_text()
    assert row.report == f"reports/{PRODUCT}/{row.challenger}.html"
    assert "it is the champion now" in page and page.count("<svg") == 3
    assert "http" not in re.sub("http-equiv|xmlns[^ >]*", "", page)
    listed = {image.sha256: image.role for image in read_image_list(root / "models" / PRODUCT / row.challenger)}
    with engine.connect() as connection:
        known = retrainings.known_images(connection, PRODUCT)
    assert {listed.get(sha256) for sha256, said in known.items() if said.role == "golden"} == {None}
    # Of those set apart to calibrate as many do as keep the rate; the others are not trained on either.
    assert {listed.get(sha256) for sha256, said in known.items() if said.role == "calibrate"} == {"calibrate", None}
    manifest = json.loads((root / "models" / PRODUCT / row.challenger / "model.json").read_text())
    assert manifest["training"]["warm_start"] == champion.version
    with engine.connect() as connection:
        kinds = [kind for (kind,) in connection.exec_driver_sql("SELECT kind FROM energy_rows ORDER BY id")]
    assert kinds[:2] == ["training", "training"] and set(kinds[2:]) == {"evaluation"}
    assert row.total_wh is not None and row.total_wh > 0
    assert {progress.stage for progress in told} >= {"training", "calibrating", "judging"}
    assert leftovers(root) == []


def test_without_new_labels_nothing_is_trained_unless_forced(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    row = run(root, engine)
    assert (row.state, row.outcome, row.challenger) == ("done", "skipped", None)
    assert "no new labels" in (row.reason or "")
    label(root, engine, range(100, 104), "normal", "train")
    with engine.begin() as connection:
        since = retrainings.last_learned(connection, PRODUCT)
        assert retrainings.new_labels(connection, PRODUCT, since).count == 4
    forced = run(root, engine, force=True, steps=5)
    assert forced.challenger is not None
    with engine.connect() as connection:
        assert retrainings.new_labels(connection, PRODUCT, retrainings.last_learned(connection, PRODUCT)).count == 0
    assert run(root, engine).outcome == "skipped"


def test_without_known_anomalies_drawn_defects_stand_in_and_are_called_so(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    label(root, engine, range(100, 130), "normal", "train")
    label(root, engine, range(145, 165), "normal", "golden")
    first, second = (json.loads(run(root, engine, force=True, fresh=True, steps=5).gate or "") for _ in range(2))
    assert (first["anomalies_from"], first["anomalies"]) == ("drawn", 20)
    with engine.connect() as connection:
        row = retrainings.runs(connection, PRODUCT)[-1]
    assert "drawn defects stand in" in (root / (row.report or "")).read_text()
    # The same defects are drawn on the same images each time, so the same version is judged alike.
    auroc = [{figure["name"]: figure for figure in found["figures"]}["image_auroc"] for found in (first, second)]
    if row.outcome != "promoted":
        assert auroc[0]["champion"] == auroc[1]["champion"]


def test_with_too_few_golden_normals_those_that_calibrated_are_judged_by(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    label(root, engine, range(100, 105), "normal", "train")
    found = json.loads(run(root, engine, steps=5).gate or "")
    assert (found["decision"], found["normals"]) == ("not judged", 0)  # 9 calibrated: too few as well
    row = run(root, engine, force=True, steps=5)
    assert row.outcome == "challenger" and "too few" in (root / (row.report or "")).read_text()
    assert states(engine)[champion.version] == "champion"


def test_a_promotion_waits_for_a_person_where_that_is_asked_for(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    (root / "tamis.toml").write_text(SETTINGS + "promote_automatically = false\n")
    labelled(root, engine)
    row = run(root, engine)
    assert row.outcome == "challenger" and "waits for a person" in (row.reason or "")
    assert states(engine) == {champion.version: "champion", row.challenger: "challenger"}


def test_a_champion_chosen_meanwhile_is_not_replaced(root: Path, engine: Engine, champion: ModelVersion) -> None:
    labelled(root, engine)
    label(root, engine, range(300, 301), "normal", "train")

    def rival(progress: Progress) -> None:
        if progress.stage == "exporting" and progress.done == 0:
            with engine.begin() as connection:
                if len(versions.versions(connection, PRODUCT)) == 1:
                    row = versions.champion(connection, PRODUCT)
                    assert row is not None
                    values = {name: getattr(row, name) for name in versions.VersionRow.__dataclass_fields__}
                    versions.register(connection, **{**values, "version": "rival", "state": "champion"})

    row = run(root, engine, report=rival)
    assert row.outcome == "challenger" and "not the champion any more" in (row.reason or "")
    assert states(engine)["rival"] == "champion"


def test_a_worse_challenger_is_rejected_with_its_reason(root: Path, engine: Engine) -> None:
    (root / "tamis.toml").write_text(SETTINGS)
    champion = train_champion(root, engine, 40, steps=STEPS)
    labelled(root, engine)
    row = run(root, engine, fresh=True, steps=2)
    assert row.outcome == "rejected" and row.reason, row
    assert states(engine) == {champion.version: "champion", row.challenger: "rejected"}
    with engine.connect() as connection:
        version = versions.get(connection, PRODUCT, row.challenger or "")
    assert version is not None and version.reason == row.reason
    assert "rejected" in (root / (row.report or "")).read_text()


def test_what_a_person_says_goes_over_what_the_champion_learned(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    listed = read_image_list(champion.folder)
    trained = [root / image.path for image in listed if image.role == "train"]
    calibrated = [root / image.path for image in listed if image.role == "calibrate"]
    label(root, engine, range(1, 2), "anomaly", "train", source=trained[0])
    label(root, engine, range(2, 3), None, "train", source=trained[1])
    label(root, engine, range(3, 4), "normal", "golden", source=trained[2])
    # It was fitted to: it must not calibrate, whatever its role.
    kept = label(root, engine, range(4, 5), "normal", "calibrate", source=trained[3])
    trained[4].unlink()
    trained[5].write_bytes(trained[6].read_bytes())
    with engine.connect() as connection:
        known = retrainings.known_images(connection, PRODUCT)
    found = select_training_data(root, champion.folder, known)
    assert (found.overruled, found.gone) == (3, 2)
    assert set(found.normals) == {*trained[6:], *kept}
    assert set(found.calibrate) == set(calibrated)
    assert [path.parent.name for path in found.anomalies] == ["anomaly"]


def test_images_listed_from_the_root_are_found_wherever_the_command_is_called(root: Path) -> None:
    version = brightness_version.install(root, PRODUCT)
    image = brightness_version.image(root / "good" / "1.png")
    (version.folder / "images.csv").write_text(f"sha256,role,path\n{file_sha256(image)},train,good/1.png\n")
    assert select_training_data(root, version.folder, {}).normals == (image,)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_images_that_cannot_be_read_now_are_counted_apart_from_those_that_are_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    version = brightness_version.install(root, PRODUCT)
    paths = [f"{PRODUCT}/normal/{number}.png" for number in range(3)]
    known = {}
    for number, path in enumerate(paths):
        image = brightness_version.image(root / "training" / path)
        image.write_bytes(image.read_bytes() + bytes([number]))
        known[file_sha256(image)] = KnownImage(file_sha256(image), "normal", "train", f"training/{path}")
    (root / "training" / paths[0]).unlink()
    known["outside"] = KnownImage("outside", "normal", "train", "training/../../outside.png")
    real = Place.sha256

    def sha256(place: Place) -> str:
        if place.name == "1.png":
            raise OSError(code, os.strerror(code))
        return real(place)

    monkeypatch.setattr(Place, "sha256", sha256)
    found = select_training_data(root, version.folder, known)
    assert found.normals[-1] == root / "training" / paths[2] and root / "training" / paths[1] not in found.normals
    told = [f"training/{paths[1]}: {os.strerror(code)}"]
    assert [one for one in found.unreadable if "outside" not in one] == told and len(found.unreadable) == 2


def test_too_few_images_are_skipped_with_what_is_needed(root: Path, engine: Engine, champion: ModelVersion) -> None:
    for image in read_image_list(champion.folder):
        (root / image.path).unlink()
    label(root, engine, range(100, 110), "normal", "train")
    row = run(root, engine)
    assert row.outcome == "skipped" and "found 10" in (row.reason or "")
    assert states(engine) == {champion.version: "champion"}


def test_more_energy_than_allowed_ends_it_and_says_how_much(root: Path, engine: Engine, champion: ModelVersion) -> None:
    (root / "tamis.toml").write_text(SETTINGS + "retrain_energy_max_wh = 0.000001\n")
    labelled(root, engine)
    with pytest.raises(EnergyExceeded, match=r"at most 1e-06 Wh; found .* Wh used; .*retrain_energy_max_wh"):
        run(root, engine, steps=100_000)
    with engine.connect() as connection:
        [row] = retrainings.runs(connection, PRODUCT)
        used = connection.exec_driver_sql("SELECT total_wh FROM energy_rows ORDER BY id DESC LIMIT 1").scalar_one()
    assert row.state == "failed" and row.total_wh == used > 1e-6
    assert leftovers(root) == [] and len(list((root / "models" / PRODUCT).iterdir())) == 1


def test_a_product_without_a_champion_of_its_own_is_refused(root: Path, engine: Engine, champion: ModelVersion) -> None:
    with pytest.raises(TamisError, match=r"product nut: expected a champion of its own .* with one: bar"):
        retrain(root, engine, settings_module.load(root), "nut", trigger="command")


# The process


def command(root: Path, *options: str) -> subprocess.Popen[str]:
    script = (
        f"from service.retraining import gate; gate.COST_MARGIN = {COST_MARGIN}; from service.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, "retrain", "--root", str(root), "--product", PRODUCT, *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"expected a line with {text!r}; it ended with {process.wait()}")


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def ended(pid: int) -> Callable[[], bool]:
    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    return gone


def test_the_command_tells_the_row_as_json_and_runs_behind_everything_else(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    labelled(root, engine)
    process = command(root, "--steps", str(STEPS), "--json")
    wait_for_line(process, "training")
    [child] = children(process.pid)
    assert os.sched_getscheduler(process.pid) == os.sched_getscheduler(child) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, child) > os.getpriority(os.PRIO_PROCESS, process.pid) >= 10
    out, err = process.communicate()
    assert process.returncode == 0, err
    row = json.loads(out)
    assert (row["product"], row["state"], row["trigger"], row["outcome"]) == (PRODUCT, "done", "command", "promoted")
    assert row["gate"]["decision"] == "better" and (root / row["report"]).is_file()


def test_sigterm_ends_child_and_row_and_leaves_nothing(root: Path, engine: Engine, champion: ModelVersion) -> None:
    labelled(root, engine)
    process = command(root, "--steps", "100000")
    wait_for_line(process, "reading: ")
    [child] = children(process.pid)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert ended(child)()
    with engine.connect() as connection:
        [row] = retrainings.runs(connection, PRODUCT)
    assert (row.state, row.reason, row.outcome) == ("stopped", "stopped by a signal", None)
    assert leftovers(root) == [] and states(engine) == {champion.version: "champion"}


def test_sigkill_ends_the_child_too_and_the_next_run_clears_up(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    labelled(root, engine)
    process = command(root, "--steps", "100000")
    wait_for_line(process, "reading: ")
    [child] = children(process.pid)
    (root / "models" / ".tmp-retrain-left").mkdir()
    process.kill()
    process.communicate()
    wait_until(ended(child), "the end of the training process")
    assert states(engine) == {champion.version: "champion"}
    row = run(root, engine, force=True, steps=5)
    with engine.connect() as connection:
        newest, killed = retrainings.runs(connection, PRODUCT)
    assert (killed.state, killed.reason) == ("stopped", "its process was killed") and newest.id == row.id
    assert newest.state == "done" and leftovers(root) == []


def test_a_version_that_a_killed_retraining_did_not_register_is_cleared_up(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    with engine.begin() as connection:
        row = retrainings.request(connection, PRODUCT, "cron", state="running", requested_at=AT, started_at=AT)
    for name, number in (("unregistered", row.id), ("of-another", row.id + 1)):
        folder = root / "models" / PRODUCT / name
        folder.mkdir()
        training = champion.manifest.training.model_copy(update={"retraining": number})
        write_manifest(champion.manifest.model_copy(update={"training": training}), folder)
    with retraining_lock(root):
        clear_up(root, engine)
        clear_up(root, engine)
    assert {path.name for path in (root / "models" / PRODUCT).iterdir()} == {champion.version, "of-another"}


def test_only_one_retraining_of_a_root_at_a_time(root: Path, engine: Engine, champion: ModelVersion) -> None:
    with retraining_lock(root):
        process = command(root)
        _, err = process.communicate()
    assert process.returncode == 1 and f'"pid": {os.getpid()}' in err
    with engine.connect() as connection:
        assert retrainings.runs(connection) == []


def test_judging_brings_no_torch_into_the_process() -> None:
    script = "import sys, service.commands.retrain, service.retraining.gate_scoring; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
