"""Training through the real child process: what is registered, what comes back as an error, what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine, text

from models import errors as model_errors
from models.data.image_list import chosen_again, read_image_list
from models.data.select_images import ProductImages
from models.errors import DatasetError, MemoryExceeded, TooFewImages
from models.progress import Progress
from models.registry import verify
from service.errors import TamisError, UsageError
from service.imaging.decode import DecodeError
from service.names import check_product
from service.storage import versions
from service.storage.database.open import open_database
from service.storage.energy_sample import EnergySample
from service.training import child as training_process
from service.training import run as training
from service.training.job import TrainingFailed, TrainingJob, TrainingMade, event_as_line, event_of_line
from service.training.run import run_joint_training, train_in_child
from tests.support.made_images import NORMALS, make_normals
from tests.support.trainings import list_versions, run_training

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def job(root: Path, tmp_path: Path) -> TrainingJob:
    return TrainingJob(
        products=(ProductImages("bar", make_normals(tmp_path / "good"), 0.1),),
        models_root=root / "models",
        kind="pixel",
        profile="fast",
        steps=5,
        side=64,
        method="split",
        energy_cpu_max_w=20.0,
    )


def changed(job: TrainingJob, *, product: dict[str, Any] | None = None, **changes: Any) -> TrainingJob:
    """Return `job` with `changes`, and those of its first `product`."""
    if product is not None:
        changes["products"] = (replace(job.products[0], **product), *job.products[1:])
    return job.model_copy(update=changes)


@pytest.fixture
def engine(root: Path) -> Engine:
    return open_database(root)


def test_first_version_is_champion_and_later_ones_challengers_unless_promoted(job: TrainingJob, engine: Engine) -> None:
    told: list[Progress] = []
    first = run_training(engine, job, report=told.append)
    second = run_training(engine, changed(job, seed=1, build=".tmp-second"))
    with engine.connect() as connection:
        rows = {row.version: row for row in versions.versions(connection, "bar")}
        assert rows[first.version].state == "champion"
        assert rows[second.version].state == "challenger"
        energy = connection.execute(text("SELECT kind, images, total_wh, source FROM energy")).all()
    third = run_training(engine, changed(job, seed=2, build=".tmp-third"), promote=True)
    with engine.connect() as connection:
        champion = versions.champion(connection, "bar")
    assert champion is not None and champion.version == third.version

    row = rows[first.version]
    assert row.sha256 == first.sha256 == verify(first.folder).sha256
    assert (row.kind, row.images, row.false_alarm_rate) == ("pixel", NORMALS - 9, 0.1)
    assert row.threshold == first.manifest.calibration.threshold
    assert row.training_wh == first.manifest.energy.total_wh == energy[0].total_wh
    assert row.training_wh is not None and row.training_wh > 0
    assert [(one.kind, one.images) for one in energy] == [("training", NORMALS - 9)] * 2
    assert {progress.stage for progress in told} == {"reading", "training", "exporting", "calibrating"}
    assert list(job.models_root.glob(".tmp-*")) == []
    # Images of 8 bits have no range.
    assert first.value_range is None


def test_too_few_images_are_the_same_error_in_the_parent(job: TrainingJob, engine: Engine) -> None:
    with pytest.raises(TooFewImages, match=r"needs 115 .* found 30; 30 do for a rate of 0\.0667 or more"):
        run_training(engine, changed(job, product={"false_alarm_rate": 0.01}))
    with engine.connect() as connection:
        assert versions.versions(connection) == []
    assert list(job.models_root.iterdir()) == []


@pytest.mark.parametrize("name", ["TooFewImages", "ParityFailed", "ModelCorrupt", "DatasetError"])
def test_model_errors_of_the_child_keep_their_class_and_message(name: str) -> None:
    error = training._error(TrainingFailed(type=name, message="what was found"))
    assert type(error) is getattr(model_errors, name) and str(error) == "what was found"


def test_other_errors_of_the_child_keep_their_message() -> None:
    error = training._error(TrainingFailed(type="DecodeError", message="cut short", code="damaged"))
    assert isinstance(error, DecodeError) and (error.code, str(error)) == ("damaged", "cut short")
    full = training._error(TrainingFailed(type="OSError", message="No space left on device"))
    assert isinstance(full, TamisError) and "No space left" in str(full)
    assert type(training._error(TrainingFailed(type="annotations", message="odd"))) is TamisError


def test_killed_child_is_a_clear_error_and_leaves_nothing(job: TrainingJob, engine: Engine) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def kill_in_the_loop(progress: Progress) -> None:
        if progress.stage == "training":
            assert os.getpriority(os.PRIO_PROCESS, children[0].pid) >= training_process.CHILD_NICENESS
            children[0].kill()

    with pytest.raises(TamisError, match=r"product bar: .* ended by signal SIGKILL; .*out of memory"):
        run_training(engine, changed(job, steps=100_000), report=kill_in_the_loop, on_start=children.append)
    assert list(job.models_root.iterdir()) == []


def test_child_killed_in_export_leaves_no_partial_version(job: TrainingJob, engine: Engine) -> None:
    children: list[subprocess.Popen[bytes]] = []
    builds: list[Path] = []

    def kill_in_export(progress: Progress) -> None:
        if progress.stage == "exporting":
            builds.extend(job.models_root.glob(".tmp-*"))
            children[0].kill()

    with pytest.raises(TamisError, match="SIGKILL"):
        run_training(engine, job, report=kill_in_export, on_start=children.append)
    assert [build.name for build in builds] == [job.build]
    assert list(job.models_root.iterdir()) == []


def test_interrupt_of_the_parent_ends_the_child(job: TrainingJob) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def interrupt(progress: Progress) -> None:
        if progress.stage == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_child(changed(job, steps=100_000), report=interrupt, on_start=children.append)
    assert children[0].returncode is not None
    assert list(job.models_root.iterdir()) == []


SIGTERM_TO_ITSELF = """
import json, os, signal, sys
from service.training.run import train_in_child
from service.training.job import TrainingJob

children = []

def terminate(progress):
    if progress.stage == "training":
        os.kill(os.getpid(), signal.SIGTERM)

try:
    train_in_child(TrainingJob.from_json(sys.stdin.buffer.read()), report=terminate, on_start=children.append)
except SystemExit as ended:
    is_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print(json.dumps([ended.code, children[0].returncode is not None, is_default]))
"""


def test_sigterm_of_the_parent_ends_the_child(job: TrainingJob) -> None:
    # In a process of its own: only a main thread handles signals, and the one that runs this may be none.
    ended = subprocess.run(
        [sys.executable, "-c", SIGTERM_TO_ITSELF],
        input=changed(job, steps=100_000).as_json().decode(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(ended.stdout) == [143, True, True]
    assert list(job.models_root.iterdir()) == []


def test_training_in_another_thread_can_be_ended_through_its_child(job: TrainingJob) -> None:
    running = threading.Event()
    children: list[subprocess.Popen[bytes]] = []
    failures: list[BaseException] = []

    def in_thread() -> None:
        try:
            train_in_child(
                changed(job, steps=100_000),
                report=lambda progress: running.set() if progress.stage == "training" else None,
                on_start=children.append,
            )
        except TamisError as error:
            failures.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    assert running.wait(120)
    children[0].terminate()
    thread.join(60)
    assert len(failures) == 1 and "exit code 143" in str(failures[0])
    assert list(job.models_root.iterdir()) == []


def test_what_a_dead_training_left_is_removed_and_a_running_one_is_left_alone(job: TrainingJob) -> None:
    old, new = (job.models_root / name for name in (".tmp-old", ".tmp-new"))
    for build in (old, new):
        build.mkdir()
        (build / "model.bin").write_bytes(b"half")
    long_ago = time.time() - training.ABANDONED_AFTER_S - 60
    os.utime(old, (long_ago, long_ago))
    with pytest.raises(TooFewImages):
        train_in_child(changed(job, product={"normals": job.products[0].normals[:5]}))
    assert [path.name for path in job.models_root.iterdir()] == [".tmp-new"]


def test_job_and_events_come_out_of_their_json_as_they_were(job: TrainingJob) -> None:
    odd = changed(job, product={"normals": (Path("not-utf8-\udc80.png"),)}, warm=Path("\udc80"))
    found = TrainingJob.from_json(odd.as_json())
    assert found.as_json() == odd.as_json() and list(found.products[0].normals) == list(odd.products[0].normals)
    sample = EnergySample("training", datetime.now(UTC), 1.5, 3, 1.0, None, 0.5, 1.5, None, "estimated", None)
    for event in (
        Progress("reading", 1, 2, "note \udc80"),
        TrainingFailed(type="ParityFailed", message="m", energy=sample),
        TrainingMade(versions=((Path("/v"), "ab"),), energy=sample),
    ):
        line = event_as_line(event)
        assert line.isascii() and event_of_line(line.encode()) == event


def test_training_a_pixel_model_imports_neither_timm_nor_scikit_learn(job: TrainingJob) -> None:
    script = (
        "import sys, service.training.child as t\n"
        "t.main()\n"
        "unneeded = {'timm', 'torchvision', 'sklearn', 'scipy.stats', 'sqlalchemy'}\n"
        "print(sorted(unneeded & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], input=job.as_json(), cwd=REPOSITORY, capture_output=True, check=False
    )
    assert isinstance(event_of_line(ended.stdout.splitlines()[-1]), TrainingMade), ended.stderr
    assert ended.stderr.splitlines()[-1] == b"[]", ended.stderr


def test_stray_output_of_libraries_does_not_mix_with_events(job: TrainingJob) -> None:
    script = (
        "import os, service.training.child as t\n"
        "def noisy(job, events):\n"
        "    print('stray'); os.write(1, b'raw\\n'); raise t.DecodeError('damaged', 'cut short')\n"
        "t._train = noisy\n"
        "t.main()\n"
    )
    given = job.as_json()
    ended = subprocess.run(
        [sys.executable, "-c", script], input=given, cwd=REPOSITORY, capture_output=True, check=False
    )
    assert event_of_line(ended.stdout) == TrainingFailed(type="DecodeError", message="cut short", code="damaged")
    assert b"stray" in ended.stderr and b"raw" in ended.stderr


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "-x", "a\nb", "x" * 101, "a:b", "\udc80"])
def test_product_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="product: expected a plain name"):
        check_product(name)


@pytest.mark.parametrize("name", ["default", "lid 12", "Dé-ckel_2.b", "x" * 100])
def test_plain_product_names_are_taken(name: str) -> None:
    assert check_product(name) == name


@pytest.fixture
def tamis() -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service", *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    return call


def test_command_trains_and_says_what_it_made(
    root: Path, tmp_path: Path, tamis: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    make_normals(tmp_path / "good" / "monday", NORMALS)
    arguments = ("train", "--root", root, "--from", tmp_path / "good", "--kind", "pixel", "--steps", 5)
    arguments += ("--calibration", "split")
    ended = tamis(*arguments, "--product", "bar", "--false-alarm-rate", 0.1, "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert (document["product"], document["state"], document["kind"]) == ("bar", "champion", "pixel")
    assert document["input_size"] == [64, 96]
    assert document["training_images"] + document["calibration_images"] == NORMALS
    assert list_versions(root / "models", "bar") == [document["version"]]
    assert f"training: {5} of {5}" in ended.stderr

    plain = tamis(*arguments, "--product", "bar", "--false-alarm-rate", 0.1, "--seed", 1)
    assert plain.returncode == 0, plain.stderr
    for word in ("challenger", "96 x 64 pixels", "false-alarm rate of 0.1", " Wh", " s"):
        assert word in plain.stdout


def test_command_refuses_what_cannot_be_trained_on(root: Path, tmp_path: Path) -> None:
    import click
    import typer

    from service.commands.train import train

    context = typer.Context(click.Command("train"))

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(model_errors.DatasetError, match=r"empty: expected images .* found none"):
        train(context, root, tmp_path / "empty")
    with pytest.raises(UsageError, match="--false-alarm-rate"):
        train(context, root, tmp_path / "empty", false_alarm_rate=1.5)
    with pytest.raises(UsageError, match="product"):
        train(context, root, tmp_path / "empty", product="../elsewhere")
    with pytest.raises(UsageError, match="--kind classifier: expected images of defects"):
        train(context, root, tmp_path / "empty", kind="classifier")
    with pytest.raises(UsageError, match="--backbone: expected --kind classifier; found feature"):
        train(context, root, tmp_path / "empty", backbone="resnet18")


def test_products_trained_jointly_are_registered_together_and_share_the_energy(
    job: TrainingJob, engine: Engine, tmp_path: Path
) -> None:
    bolts = make_normals(tmp_path / "bolts", 26)
    anomalies = tuple(map(str, make_normals(tmp_path / "bad", 32)[30:]))
    beside = ProductImages("bolt", bolts, 0.1, anomalies)
    trained = run_joint_training(engine, changed(job, products=(*job.products, beside)))
    with engine.connect() as connection:
        rows = versions.versions(connection)
        energy = connection.execute(text("SELECT images, total_wh FROM energy")).all()
    assert [(row.product, row.state) for row in rows] == [("bar", "champion"), ("bolt", "champion")]
    assert {row.version for row in rows} == {trained[0].version}
    assert [one.images for one in energy] == [21 + 17]
    assert sum(row.training_wh or 0 for row in rows) == pytest.approx(energy[0].total_wh) and energy[0].total_wh > 0
    assert rows[0].image_auroc is None
    assert rows[1].image_auroc == trained[1].manifest.calibration.image_auroc is not None


def test_training_ends_before_it_takes_more_memory_than_it_may(job: TrainingJob, engine: Engine) -> None:
    message = r"product bar: expected to need at most 0\.1 GB of memory; found \d\.\d\d GB, .*--memory-gb"
    with pytest.raises(MemoryExceeded, match=message):
        run_training(engine, changed(job, memory_bytes=100_000_000))
    with pytest.raises(MemoryExceeded, match=r"expected at least 1\.6 GB of memory; found a limit of 1\.2 GB"):
        run_training(engine, changed(job, memory_bytes=1_200_000_000))
    assert list(job.models_root.iterdir()) == []


def test_memory_that_was_needed_is_on_record(job: TrainingJob, engine: Engine) -> None:
    training = run_training(engine, job).manifest.training
    assert 100 < training.memory_peak_mb < training.memory_max_mb == 6000


@pytest.mark.parametrize("name", ["all", "All"])
def test_no_model_is_trained_for_a_product_named_all(name: str, job: TrainingJob, engine: Engine) -> None:
    with pytest.raises(UsageError, match="stands for all of them"):
        run_training(engine, changed(job, product={"product": name}))


def test_command_trains_one_network_for_every_sub_folder(
    root: Path, tmp_path: Path, tamis: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for product, count in (("bar", 26), ("bolt", 28)):
        make_normals(tmp_path / "good" / product, count)
    arguments = ("train", "--root", root, "--from", tmp_path / "good", "--product", "all", "--kind", "pixel")
    arguments += ("--steps", 5, "--calibration", "split", "--false-alarm-rate", 0.1, "--json")
    ended = tamis(*arguments)
    assert ended.returncode == 0, ended.stderr
    documents = json.loads(ended.stdout)["versions"]
    assert [(each["product"], each["joint"]) for each in documents] == [
        ("bar", ["bar", "bolt"]),
        ("bolt", ["bar", "bolt"]),
    ]
    (tmp_path / "good" / "loose.png").write_bytes((tmp_path / "good" / "bar" / "000.png").read_bytes())
    ended = tamis(*arguments)
    assert ended.returncode == 1 and "found loose.png beside them" in ended.stderr


def test_range_of_images_of_12_bits_is_the_models_and_a_setting_goes_before_it(
    job: TrainingJob, engine: Engine, tmp_path: Path
) -> None:
    deep = []
    for path in job.products[0].normals:
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        deep.append(tmp_path / f"{path.stem}.deep.png")
        Image.fromarray(values).save(deep[-1])
    told: list[Progress] = []
    first = run_training(engine, changed(job, product={"normals": deep}), report=told.append)
    assert first.value_range == (0, 4095)
    assert first.manifest.value_range is not None and first.manifest.value_range.source == "measured"
    assert any("0 to 4095 become 0 to 255" in (progress.note or "") for progress in told)
    # The look of the images is that of their 8 bits.
    look = first.calibration_look
    assert look is not None and 60 < look[:, 0].mean() < 180
    given = {"normals": deep, "value_range": (100.0, 3000.0)}
    second = run_training(engine, changed(job, product=given, build=".tmp-second"))
    assert second.value_range == (100, 3000) and second.manifest.value_range.source == "setting"
    images = read_image_list(first.folder)
    found = {one.sha256: first.folder.parent.parent.parent / one.path for one in images}
    assert chosen_again(first, images, found).value_range == first.manifest.value_range


def test_images_are_limited_by_the_job_alone(job: TrainingJob, engine: Engine) -> None:
    with pytest.raises(DatasetError, match="at most 6143 pixels; found 96 x 64"):
        run_training(engine, changed(job, pixels_max=96 * 64 - 1))
