"""Files that writers put beside images: ignored, quarantined, or carried to where their image went, exactly once."""

from __future__ import annotations

import errno
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ulid import ULID

from service.inspection.sidecars import Sidecar, Sidecars, meant_by
from service.names import product_of, split_suffix
from service.storage.database.open import open_database
from service.storage.images import Lying
from tests.conftest import image_bytes
from tests.faults.root_for_faults import drop, make_root, query
from tests.support.daemon_process import DaemonProcess, finished, wait_until
from tests.support.made_root import fill

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
CARRY = 'sidecars = "carry"\n'


def sidecar(came_s: float = 0.0, path: str = "incoming/flange/part.json") -> Sidecar:
    stem, suffix = split_suffix(Path(path).name)
    folder = str(Path(path).parent).removeprefix("incoming").lstrip("/")
    return Sidecar(path, product_of(folder), stem, suffix, NOW + timedelta(seconds=came_s))


def image(taken_s: float, name: str = "part.png") -> Lying:
    id = str(ULID.from_datetime(NOW + timedelta(seconds=taken_s)))
    return Lying(id, "flange", name, f"normal/flange/2026-11-28/part.{id}.png")


@pytest.mark.parametrize(("sidecars", "rows"), [("ignore", 1), ("quarantine", 3)])
def test_sidecars_stay_or_are_quarantined(tmp_path: Path, sidecars: str, rows: int) -> None:
    root = make_root(tmp_path / "root", f'sidecars = "{sidecars}"\n')
    for name in ("part.json", "lone.TXT"):
        drop(root, name, b"{}")
    drop(root, "part.png", image_bytes(20, seed=1))
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(root) == rows, "what is to be sorted")
        assert daemon.stop() == 0
    stays = sorted(path.name for path in (root / "incoming").iterdir())
    assert stays == (["lone.TXT", "part.json"] if sidecars == "ignore" else [])
    reasons = [row["error_code"] for row in query(root, "SELECT error_code FROM results ORDER BY error_code")]
    assert reasons == [None, *["format"] * (rows - 1)]


def test_sidecars_go_where_their_image_went_whether_they_came_before_it_or_after(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", CARRY)
    (root / "incoming/cam1").mkdir()
    drop(root, "cam1/part.JSON", b"before")
    drop(root, "orphan.txt", b"nobody's")
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        drop(root, "cam1/part.png", image_bytes(20, seed=1))
        drop(root, "bright.png", image_bytes(200, seed=2))
        drop(root, "broken.png", b"no image")
        wait_until(lambda: finished(root) == 3, "three verdicts")
        drop(root, "bright.png.xml", b"after")
        drop(root, "broken.txt", b"why")
        wait_until(lambda: len(waiting(root)) == 1, "the sidecars on their way", timeout_s=20)
        assert daemon.stop() == 0
        assert "sidecar stays" not in daemon.log_text()
    paths = {row["file_name"]: Path(row["path"]) for row in query(root, "SELECT file_name, path FROM results")}
    assert set(paths) == {"part.png", "bright.png", "broken.png"}
    assert (root / paths["part.png"]).with_suffix(".JSON").read_bytes() == b"before"
    assert (root / f"{paths['bright.png']}.xml").read_bytes() == b"after"
    assert (root / paths["broken.png"]).with_suffix(".txt").read_bytes() == b"why"
    assert waiting(root) == ["orphan.txt"]
    assert query(root, "SELECT count(*) AS n FROM results WHERE label IS NOT NULL") == [{"n": 0}]


def waiting(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "incoming").rglob("*") if path.is_file())


def test_every_sidecar_is_carried_once_however_often_the_daemon_is_killed(tmp_path: Path) -> None:
    root, rng = make_root(tmp_path / "root", CARRY), random.Random(20261128)
    names = [f"part-{number:02}" for number in range(16)]
    for number, name in enumerate(names):
        drop(root, f"{name}.png", image_bytes(20 + number, seed=number))
        drop(root, f"{name}.json", name.encode())
    for _ in range(2):
        with DaemonProcess(root) as daemon:
            daemon.wait_ready()
            enough = rng.randrange(1, len(names))
            wait_until(lambda: len(carried(root)) >= enough or len(waiting(root)) == 0, "some of them", timeout_s=20)  # noqa: B023
            daemon.kill()
        assert sorted([*carried(root), *(n for n in waiting(root) if n.endswith(".json"))]) == [
            f"{name}.json" for name in names
        ]
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()  # there may be nothing left for it, and it is told to stop
        wait_until(lambda: waiting(root) == [], "all of them", timeout_s=20)
        assert daemon.stop() == 0
    assert carried(root) == [f"{name}.json" for name in names]


def carried(root: Path) -> list[str]:
    """Return the names, as dropped, of the sidecars beside their image; AssertionError where one is not."""
    found = []
    for path in root.glob("normal/**/*.json"):
        stem, _, id = path.stem.rpartition(".")
        assert path.with_suffix(".png").exists() and path.read_text() == stem and len(id) == 26
        found.append(f"{stem}.json")
    return sorted(found)


def test_image_nearest_in_time_is_meant() -> None:
    first, second = image(-20.0), image(-0.4)
    assert meant_by(sidecar(), [first, second]) == [second]
    assert meant_by(sidecar(-19.0), [first, second]) == [first]
    # However long its image waited.
    assert meant_by(sidecar(), [image(7200.0)]) == [image(7200.0)] or len(meant_by(sidecar(), [image(7200.0)])) == 1
    assert meant_by(sidecar(), [image(-61.0)]) == [] == meant_by(sidecar(), [])


def test_of_two_images_of_one_name_at_one_time_none_is_guessed() -> None:
    assert len(meant_by(sidecar(), [image(0.1), image(0.9)])) == 2


@pytest.mark.parametrize(
    ("name", "place"),
    [("part.json", "part.{id}.json"), ("part.png.json", "part.{id}.png.json"), ("part.XML", "part.{id}.XML")],
)
def test_sidecar_has_the_id_in_its_name(name: str, place: str) -> None:
    beside = image(0.0)
    found = sidecar(path=f"incoming/flange/{name}").place_beside(beside)
    assert found == f"normal/flange/2026-11-28/{place.format(id=beside.id)}"


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, list[str]]:
    root = make_root(tmp_path / "root")
    return root, fill(root, 3, names=("a.png", "b.png", "b.png"))


def look(root: Path, clock_s: float = 10.0) -> Sidecars:
    later = datetime.now(UTC) + timedelta(seconds=clock_s)
    sidecars = Sidecars(root, open_database(root), [".*"], [".json"], settle_time_s=1.0, clock=lambda: later)
    sidecars.run()
    return sidecars


def test_sidecar_that_has_not_settled_or_is_open_or_whose_image_is_still_here_waits(
    filled: tuple[Path, list[str]],
) -> None:
    root, _ = filled
    drop(root, "a.json", b"{}")
    look(root, clock_s=0.0)
    assert waiting(root) == ["a.json"]
    with (root / "incoming/a.json").open("ab"):
        look(root)
    assert waiting(root) == ["a.json"]
    drop(root, "a.jpg", b"another")
    look(root)
    assert waiting(root) == ["a.jpg", "a.json"]
    (root / "incoming/a.jpg").unlink()
    look(root)
    assert waiting(root) == []


def test_links_folders_and_what_is_beside_another_are_left_alone(
    filled: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = filled
    (root / "incoming/a.json").symlink_to(root / "tamis.toml")
    drop(root, "b.json", b"{}")
    look(root)
    assert sorted(path.name for path in (root / "incoming").iterdir()) == ["a.json", "b.json"]
    assert "more than one image has its name" in caplog.text


def test_second_sidecar_never_takes_the_place_of_the_first(filled: tuple[Path, list[str]]) -> None:
    root, _ = filled
    for content in (b"one", b"two"):
        drop(root, "a.json", content)
        look(root)
    [carried_one] = root.glob("*/default/*/a.*.json")
    assert carried_one.read_bytes() == b"one" and (root / "incoming/a.json").read_bytes() == b"two"
    # What a crash between the copy and the removal leaves: the same bytes at both places.
    drop(root, "a.json", b"one")
    look(root)
    assert waiting(root) == []


def test_sidecar_is_copied_whole_to_another_disk(
    filled: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, [id, *_] = filled
    rename = os.rename

    def across(source: str, target: str, **folders: int) -> None:
        if not source.startswith(".tmp."):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", across)
    place = next(root.glob(f"*/default/*/a.{id}.png")).with_suffix(".json")
    # What a crash in the middle of such a copy left.
    place.with_name(f".tmp.{place.name}").write_bytes(b"ha")
    content = random.Random(1).randbytes(3_000_000)
    (root / "incoming/a.json").write_bytes(content)
    look(root)
    assert place.read_bytes() == content and waiting(root) == []
    assert not place.with_name(f".tmp.{place.name}").exists()
