"""The pipeline on real files and a real database; the detector is a stand-in: brightness above 100 is an anomaly."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine

from models.detector import Scored
from service.filesystem.file_state import NameFilter
from service.filesystem.mounts import Mounts
from service.filesystem.place import Place
from service.imaging.decode import FileBytes
from service.imaging.decoder import Decoder, DecoderAnswer
from service.imaging.decoder_processes import DecoderEnded
from service.inspection import score_batch
from service.inspection.claim import Claims
from service.inspection.deliver import Delivery, Move, deliver
from service.inspection.intake import Intake
from service.inspection.pipeline import Pipeline, PipelineLimits
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.inspection.settle import Settling
from service.inspection.watch import Hint
from service.labelling.label import label_images
from service.root import KINDS
from service.scoring.shadow import Shadows
from service.settings import IGNORED_NAMES
from service.storage import images, regions
from service.storage.database.open import open_database
from service.storage.energy_sample import EnergySample
from tests.conftest import BrightnessDetector, BrightnessScorers, image_bytes

LIMITS = PipelineLimits(
    in_flight_max=8,
    batch_size_max=4,
    batch_wait_ms=5.0,
    decode_threads=2,
    attempts_max=3,
    settle_time_s=1.0,
    file_bytes_max=1_000_000,
    pixels_max=1_000_000,
)
PATIENCE_S = 20.0


class House:
    """A pipeline on a root, driven by hand with a clock that starts at 1000 s and moves when told."""

    def __init__(
        self,
        root: Path,
        engine: Engine,
        scorers: BrightnessScorers,
        limits: PipelineLimits = LIMITS,
        shadows: Shadows | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        self.root, self.engine, self.now = root, engine, 1000.0
        self.woken = threading.Event()
        self.claims = Claims(root, "main")
        self.mounts = Mounts(root, KINDS)
        self.recorder = Recorder(
            root,
            engine,
            self.claims,
            anomaly_maps=True,
            clock=lambda: self.now,
            mounts=self.mounts,
        )
        settling = Settling(limits.settle_time_s, empty_file_timeout_s=60.0)
        names = NameFilter(IGNORED_NAMES)
        self.intake = Intake(root, names, scorers, settling, shadows, truncated_wait_s=1.0)  # type: ignore[arg-type]
        self.pipeline = Pipeline(
            root,
            limits,
            self.intake,
            self.claims,
            self.recorder,
            decoder or Decoder(),
            self.woken.set,
            lambda: self.now,
        )

    def scan(self) -> None:
        self.intake.scan(self.now)

    def run(self, *, claiming: bool = True) -> None:
        """Step until nothing is in flight."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.woken.clear()
            self.pipeline.step(self.now, claiming=claiming)
            if self.pipeline.idle:
                return
            # Batches wait on the pipeline's clock, which stands still here.
            self.now += 0.01
            self.woken.wait(0.05)
        pytest.fail(f"expected nothing in flight; found {self.pipeline.in_flight}")

    def settle_and_run(self) -> None:
        self.scan()
        self.now += 2.0
        self.run()

    def recover_and_run(self) -> None:
        recovered = recover(
            self.root,
            self.engine,
            self.claims,
            self.recorder,
            in_flight=(),
            attempts_max=3,
            has_model=lambda _: True,
        )
        self.pipeline.retry(recovered.again)
        self.run()

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return images.search(connection, limit=None)

    def files(self, *folders: str) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for f in folders for p in (self.root / f).rglob("*") if p.is_file())


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


@pytest.fixture
def build(root: Path, engine: Engine) -> Iterator[Callable[..., House]]:
    houses = []

    def make(
        *known: str,
        limits: PipelineLimits = LIMITS,
        detector: object | None = None,
        decoder: Decoder | None = None,
    ) -> House:
        scorers = BrightnessScorers(*(known or ("default",)), detector=detector)
        houses.append(House(root, engine, scorers, limits, decoder=decoder))
        return houses[-1]

    yield make
    for house in houses:
        house.pipeline.close()


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()


def test_dropped_images_are_scored_sorted_and_on_record(house: House, drop: Callable[..., Path]) -> None:
    drop("good.png", brightness=10)
    drop("bad.png", brightness=200)
    house.settle_and_run()
    rows = {row["file_name"]: row for row in house.rows()}
    assert rows["good.png"]["verdict"] == "normal" and rows["bad.png"]["verdict"] == "anomaly"
    for row in rows.values():
        assert row["state"] == "placed" and (house.root / row["path"]).is_file()
        assert row["path"].startswith(row["verdict"]) and row["id"] in row["path"]
        assert (row["width"], row["height"]) == (30, 20) and row["latency_ms"] >= 0
    assert house.files("incoming", "processing") == []


def test_image_for_a_mount_that_is_gone_is_on_record_and_stays_where_recovery_finds_it(
    house: House, drop: Callable[..., Path]
) -> None:
    drop("good.png", brightness=10)
    drop("bad.png", brightness=220)
    house.mounts.seen = frozenset(["normal"])
    house.settle_and_run()
    bad, row = sorted(house.rows(), key=lambda one: str(one["verdict"]))
    assert bad["state"] == "placed" and (row["state"], row["verdict"]) == ("scored", "normal")
    assert house.files("normal") == [] and house.files("processing") == [row["path"]]
    house.mounts.seen = frozenset()
    recovered = recover(
        house.root,
        house.engine,
        house.claims,
        house.recorder,
        in_flight=(),
        attempts_max=3,
        has_model=lambda _: True,
    )
    assert recovered.delivered == 1 and [one["state"] for one in house.rows()] == ["placed", "placed"]


def test_anomaly_gets_a_map_and_a_normal_image_none(house: House, drop: Callable[..., Path]) -> None:
    drop("good.png", brightness=10)
    drop("bad.png", brightness=200)
    house.settle_and_run()
    [bad] = [row["id"] for row in house.rows() if row["verdict"] == "anomaly"]
    assert house.files("maps") == [f"maps/{bad}.png"]


def test_regions_are_on_record_with_their_anomaly_in_pixels_of_the_image(
    house: House, drop: Callable[..., Path]
) -> None:
    drop("good.png", brightness=10)
    drop("bad.png", brightness=200)
    house.settle_and_run()
    ids = {row["file_name"]: row["id"] for row in house.rows()}
    with house.engine.connect() as connection:
        found = regions.of_images(connection, ids.values())
    # The stand-in's map is the brightness all over; its pixel threshold is 100.
    [region] = found[ids["bad.png"]]
    assert (region["x"], region["y"], region["width"], region["height"]) == (0, 0, 30, 20)
    assert (region["area"], region["area_share"]) == (600, 1.0)
    assert region["peak"] == pytest.approx(2.0, rel=0.01) and region["mean"] == pytest.approx(2.0, rel=0.01)
    assert found[ids["good.png"]] == []


def test_image_near_the_threshold_keeps_its_verdict_and_goes_to_review_first(
    house: House, drop: Callable[..., Path]
) -> None:
    # Held-out normals are 1 to 100 bright, so at a rate of 0.01 the band of 3 is 98 to 102.
    for brightness in (10, 99, 101, 200):
        drop(f"{brightness}.png", brightness=brightness)
    house.settle_and_run()
    verdicts = {row["file_name"]: row["verdict"] for row in house.rows()}
    assert verdicts == {"10.png": "normal", "99.png": "normal", "101.png": "anomaly", "200.png": "anomaly"}
    with house.engine.connect() as connection:
        queue = connection.exec_driver_sql("SELECT file_name, uncertain, path FROM review_queue").all()
    assert sorted(row[0] for row in queue[:2]) == ["101.png", "99.png"]
    assert [(row[0], row[1]) for row in queue[2:]] == [("10.png", 0), ("200.png", 0)]
    assert all(row[1] == 1 for row in queue[:2])
    assert {row[0]: row[2].split("/")[0] for row in queue}["99.png"] == "normal"
    # People look at the maps of what they review.
    assert len(house.files("maps")) == 3


def test_map_is_drawn_at_the_size_of_the_image_as_dropped_and_upright(house: House) -> None:
    pixels = np.full((400, 900, 3), 200, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(house.root / "incoming" / "a.jpg", exif=exif)
    Image.fromarray(np.full((40, 3200, 3), 200, np.uint8)).save(house.root / "incoming" / "wide.png")
    house.settle_and_run()
    sizes = {}
    for row in house.rows():
        with Image.open(house.root / "maps" / f"{row['id']}.png") as drawn:
            sizes[row["file_name"]] = drawn.size
    assert sizes == {"a.jpg": (400, 900), "wide.png": (1600, 20)}


def test_map_of_a_image_that_cannot_be_read_again_is_drawn_from_what_is_in_memory(
    house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_args: object, **_kwargs: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("service.inspection.anomaly_maps.read_file", gone)
    drop("bad.png", brightness=200)
    house.settle_and_run()
    [row] = house.rows()
    with Image.open(house.root / "maps" / f"{row['id']}.png") as drawn:
        assert drawn.size == (30, 20)


@pytest.mark.parametrize("moment", ["before it moves", "in the middle of a copy", "after it moved"])
def test_label_during_the_first_delivery_leaves_one_file_where_the_label_says(
    house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    labelled: list[str] = []

    def label() -> None:
        if labelled:
            return
        [row] = house.rows()
        labelled.append(label_images(house.root, house.engine, [row["id"]], "anomaly", by="ada", source="web")[0].state)

    def deliver_and_label(root: Path, moves: Iterable[Move], *options: Any) -> dict[str, Delivery]:
        if moment == "before it moves":
            label()
        ended = deliver(root, moves, *options)
        label()
        return ended

    def label_and_write(descriptor: int, data: bytes) -> None:
        label()
        os.write(descriptor, data)

    rename = Place.rename

    def other_device(place: Place, target: Place) -> None:
        if not place.name.startswith(".tmp."):
            raise OSError(errno.EXDEV, "another device")
        rename(place, target)

    if moment == "in the middle of a copy":
        monkeypatch.setattr(Place, "rename", other_device)
        monkeypatch.setattr("service.filesystem.place.write_all", label_and_write)
    monkeypatch.setattr("service.inspection.record.deliver", deliver_and_label)
    drop("good.png", brightness=10)
    house.settle_and_run()
    [row] = house.rows()
    assert labelled == ["scored"] and (row["verdict"], row["label"], row["state"]) == ("normal", "anomaly", "placed")
    assert house.files("incoming", "processing", "normal", "anomaly") == [row["path"]]
    assert row["path"].startswith("anomaly/") and row["latency_ms"] is not None


def test_what_is_recorded_again_after_a_crash_has_its_regions_once(
    house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes after the commit, and the same claim is judged and recorded a second time."""
    drop("bad.png", brightness=200)
    commit, batches = house.recorder.commit, []

    def remember(batch: list[Any], meter: Any) -> Any:
        batches.append(batch)
        return commit(batch, meter)

    monkeypatch.setattr(house.recorder, "commit", remember)
    house.settle_and_run()
    [[inspected]] = batches
    [row] = house.rows()
    (house.root / row["path"]).rename(house.root / inspected.claim.path)
    commit([inspected], None)
    with house.engine.connect() as connection:
        assert len(regions.of_images(connection, [row["id"]])[row["id"]]) == 1
    assert len(house.rows()) == 1


def test_sub_folder_is_the_product(build: Callable[..., House], drop: Callable[..., Path]) -> None:
    house = build("gears", "default")
    drop("gears/2026/a.png")
    drop("b.png", seed=1)
    house.settle_and_run()
    assert {row["product"]: row["path"].split("/")[1] for row in house.rows()} == {
        "gears": "gears",
        "default": "default",
    }


def test_product_without_a_model_waits_in_incoming(build: Callable[..., House], drop: Callable[..., Path]) -> None:
    house = build("gears")
    drop("screws/a.png")
    drop("gears/b.png")
    house.settle_and_run()
    assert house.intake.waiting == {"screws": 1}
    assert house.files("incoming") == ["incoming/screws/a.png"] and len(house.rows()) == 1


def test_same_name_and_same_bytes_again_are_rows_of_their_own(house: House, drop: Callable[..., Path]) -> None:
    for _ in range(3):
        drop("a.png")
        house.settle_and_run()
    rows = house.rows()[::-1]
    assert len({row["id"] for row in rows}) == 3 and len(house.files("normal")) == 3
    assert [row["duplicate_of"] for row in rows] == [None, rows[0]["id"], rows[0]["id"]]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.png", b"not an image", "format"),
        ("a.gif", b"GIF89a" + bytes(20), "format"),
        ("a.png", image_bytes(10)[:60], "damaged"),
        ("a.png", bytes(1_000_001), "too_many_bytes"),
    ],
)
def test_bad_file_is_quarantined_with_its_reason(house: House, name: str, content: bytes, code: str) -> None:
    (house.root / "incoming" / name).write_bytes(content)
    house.settle_and_run()
    [row] = house.rows()
    assert (row["state"], row["verdict"], row["error_code"]) == ("quarantined", None, code)
    assert row["error"] and (house.root / row["path"]).read_bytes() == content
    assert row["path"].startswith("quarantine/default/")


def test_bad_file_does_not_hold_up_the_good_ones(house: House, drop: Callable[..., Path]) -> None:
    (house.root / "incoming/bad.png").write_bytes(b"x")
    for number in range(5):
        drop(f"{number}.png", seed=number)
    house.settle_and_run()
    assert sorted(row["state"] for row in house.rows()) == ["placed"] * 5 + ["quarantined"]


def test_image_with_a_remark_is_sorted_and_its_row_says_it(house: House) -> None:
    """A JPEG without its end marker, and 12 bits for a model that knows of none; what they cost is theirs."""
    whole = io.BytesIO()
    Image.new("RGB", (60, 40), (50, 50, 50)).save(whole, "JPEG")
    (house.root / "incoming" / "a.jpg").write_bytes(whole.getvalue()[:-2])
    deep = io.BytesIO()
    Image.fromarray(np.full((40, 60), 2000, np.uint16)).save(deep, "PNG")
    (house.root / "incoming" / "b.png").write_bytes(deep.getvalue())
    house.pipeline.meter = _Meter()  # type: ignore[assignment]
    house.settle_and_run()
    rows = {row["file_name"]: row for row in house.rows()}
    assert [(rows[name]["verdict"], rows[name]["state"]) for name in ("a.jpg", "b.png")] == [("normal", "placed")] * 2
    assert rows["a.jpg"]["error_code"] == "no_end_marker" and "end marker" in rows["a.jpg"]["error"]
    assert rows["b.png"]["error_code"] == "out_of_range" and "0 to 65535" in rows["b.png"]["error"]
    assert all(row["energy_wh"] for row in rows.values())


def test_empty_file_waits_and_is_then_quarantined(house: House) -> None:
    (house.root / "incoming/a.png").touch()
    house.settle_and_run()
    assert house.rows() == []
    house.now += 60.0
    house.run()
    assert [row["error_code"] for row in house.rows()] == ["empty"]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_score_that_is_not_finite_is_quarantined_and_never_normal(
    build: Callable[..., House], drop: Callable[..., Path], score: float
) -> None:
    class Broken(BrightnessDetector):
        def score(self, images: np.ndarray) -> Scored:
            return Scored(np.full(len(images), score, np.float32), np.zeros((len(images), 2, 3), np.float32))

    house = build(detector=Broken())
    drop("a.png")
    house.settle_and_run()
    [row] = house.rows()
    assert (row["state"], row["verdict"], row["error_code"]) == ("quarantined", None, "score_not_finite")


@pytest.mark.parametrize("name", [b"a\xff\xfe.png", b"-rf.png", b"new\nline.png", b"<b>'\".png", b"x" * 251 + b".png"])
def test_strange_names_are_stored_safely(house: House, name: bytes) -> None:
    (house.root / "incoming" / os.fsdecode(name)).write_bytes(image_bytes(10))
    house.settle_and_run()
    [row] = house.rows()
    assert row["state"] == "placed" and (house.root / row["path"]).is_file()
    assert row["file_name"].encode() == name or b"\xff" in name


def test_ignored_names_links_and_fifos_stay_where_they_are(house: House, drop: Callable[..., Path]) -> None:
    for name in ("a.png.part", "._b.png", ".DS_Store", "@eaDir/c.png"):
        drop(name)
    (house.root / "incoming/link.png").symlink_to(house.root / "tamis.toml")
    os.mkfifo(house.root / "incoming/fifo.png")
    house.intake.take_hints([Hint("a.png.part", True), Hint("link.png", True), Hint("fifo.png", True)], house.now)
    house.settle_and_run()
    assert house.rows() == [] and len(house.intake) == 0


def test_file_that_somebody_has_open_for_writing_is_not_claimed(house: House, drop: Callable[..., Path]) -> None:
    path = drop("a.png")
    with path.open("ab"):
        house.settle_and_run()
        assert house.rows() == [] and path.exists()
    house.settle_and_run()
    assert [row["state"] for row in house.rows()] == ["placed"]


def test_file_removed_while_it_waits_leaves_no_row(house: House, drop: Callable[..., Path]) -> None:
    path = drop("a.png")
    house.scan()
    path.unlink()
    house.now += 2.0
    house.run()
    assert house.rows() == [] and len(house.intake) == 0


def test_file_changed_after_it_was_read_is_read_again(build: Callable[..., House], drop: Callable[..., Path]) -> None:
    class Meddler(BrightnessDetector):
        """Somebody writes into the claimed file while it is being scored, once."""

        def __init__(self) -> None:
            self.house: House | None = None

        def score(self, images: np.ndarray) -> Scored:
            if self.house is not None:
                [path] = (self.house.root / "processing/main").glob("*.png")
                path.write_bytes(image_bytes(200))
                self.house = None
            return super().score(images)

    meddler = Meddler()
    house = build(detector=meddler)
    meddler.house = house
    drop("a.png", brightness=10)
    house.settle_and_run()
    [row] = house.rows()
    assert row["verdict"] == "anomaly" and (house.root / row["path"]).read_bytes() == image_bytes(200)


def test_no_more_than_in_flight_max_are_claimed(build: Callable[..., House], drop: Callable[..., Path]) -> None:
    release = threading.Event()

    class Slow(BrightnessDetector):
        def score(self, images: np.ndarray) -> Scored:
            assert release.wait(PATIENCE_S)
            return super().score(images)

    house = build(detector=Slow(), limits=replace(LIMITS, in_flight_max=3))
    for number in range(10):
        drop(f"{number}.png", seed=number)
    house.scan()
    house.now += 2.0
    for _ in range(20):
        house.pipeline.step(house.now)
        house.now += 0.01
        assert len(house.files("processing")) <= 3
    assert len(house.files("incoming")) == 7
    release.set()
    house.run()
    assert len(house.rows()) == 10


def test_stopping_finishes_what_is_in_flight_and_claims_nothing_new(house: House, drop: Callable[..., Path]) -> None:
    for number in range(20):
        drop(f"{number}.png", seed=number)
    house.scan()
    house.now += 2.0
    house.pipeline.step(house.now)
    claimed = len(house.pipeline.in_flight)
    assert 0 < claimed < 20
    house.run(claiming=False)
    assert len(house.rows()) == claimed and len(house.files("incoming")) == 20 - claimed
    assert house.files("processing") == []


class EndingDecoder(Decoder):
    """Ends at each image with `MARK` in it, the first `times`; how many were tried again at once is kept."""

    MARK = b"ends its decoder"

    def __init__(self, times: int) -> None:
        self.times = times
        self.asked: list[bytes] = []
        self.again_at_once_max = 0
        self._again_at_once = 0
        self._lock = threading.Lock()

    def run(self, task: str, data: bytes, **arguments: Any) -> DecoderAnswer:
        if self.MARK not in data:
            return super().run(task, data, **arguments)
        with self._lock:
            self.asked.append(data)
            tries = self.asked.count(data)
            self._again_at_once += tries > 1
            self.again_at_once_max = max(self.again_at_once_max, self._again_at_once)
        time.sleep(0.01)
        with self._lock:
            self._again_at_once -= tries > 1
        if tries <= self.times:
            raise DecoderEnded("ended on purpose")
        return super().run(task, data, **arguments)


def drop_suspects(house: House, count: int) -> None:
    for number in range(count):
        content = image_bytes(10, seed=900 + number) + EndingDecoder.MARK
        (house.root / "incoming" / f"suspect-{number}.png").write_bytes(content)


def test_image_that_ended_its_decoder_is_tried_again_and_scored(build: Callable[..., House]) -> None:
    decoder = EndingDecoder(times=LIMITS.attempts_max - 1)
    house = build(decoder=decoder)
    drop_suspects(house, 1)
    house.settle_and_run()
    [row] = house.rows()
    assert (row["state"], row["verdict"]) == ("placed", "normal") and len(decoder.asked) == LIMITS.attempts_max


def test_image_that_ends_its_decoder_each_time_is_quarantined_and_holds_up_no_other(
    build: Callable[..., House], drop: Callable[..., Path]
) -> None:
    decoder = EndingDecoder(times=100)
    house = build(decoder=decoder)
    drop_suspects(house, 4)
    for number in range(10):
        drop(f"{number}.png", seed=number)
    house.settle_and_run()
    rows = {row["file_name"]: row for row in house.rows()}
    suspects = [rows.pop(f"suspect-{number}.png") for number in range(4)]
    for row in suspects:
        assert (row["state"], row["error_code"]) == ("quarantined", "attempts_exhausted")
        assert row["sha256"] and row["bytes"] and "ended on purpose" in row["error"]
    assert len(decoder.asked) == 4 * LIMITS.attempts_max
    assert len(rows) == 10 and {row["state"] for row in rows.values()} == {"placed"}
    assert house.files("processing") == [] and house.pipeline.counts.quarantined == 4


def test_images_that_ended_their_decoder_are_tried_one_at_a_time(build: Callable[..., House]) -> None:
    decoder = EndingDecoder(times=100)
    house = build(decoder=decoder)
    drop_suspects(house, 4)
    house.settle_and_run()
    assert len(decoder.asked) == 4 * LIMITS.attempts_max and decoder.again_at_once_max == 1


def test_suspects_stay_with_their_attempts_when_the_daemon_stops(build: Callable[..., House]) -> None:
    house = build(decoder=EndingDecoder(times=100))
    drop_suspects(house, 1)
    house.scan()
    house.now += 2.0
    house.pipeline.step(house.now)
    house.run(claiming=False)
    [left] = house.files("processing")
    assert "--1--suspect-0.png" in left and house.rows() == [] and not house.pipeline.in_flight


def test_time_at_the_decoder_is_not_the_loops(build: Callable[..., House], drop: Callable[..., Path]) -> None:
    entered, release = threading.Event(), threading.Event()

    class Waiting(Decoder):
        def run(self, task: str, data: bytes, **arguments: Any) -> DecoderAnswer:
            entered.set()
            assert release.wait(PATIENCE_S)
            return super().run(task, data, **arguments)

    house = build(decoder=Waiting())
    drop("a.png")
    house.scan()
    house.now += 2.0
    house.pipeline.step(house.now)
    assert entered.wait(PATIENCE_S)
    # Somebody else bounds it; the watchdog is not to be kept from its food.
    assert house.pipeline.stuck_for_s(house.now + 1000.0) == 0.0
    release.set()
    house.run()
    assert len(house.rows()) == 1


def test_reading_that_hangs_is_seen(house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(*_args: object, **_kwargs: object) -> None:
        entered.set()
        release.wait(PATIENCE_S)

    monkeypatch.setattr("service.inspection.score_batch.read_file", hang)
    drop("a.png")
    house.scan()
    house.now += 2.0
    house.pipeline.step(house.now)
    assert entered.wait(PATIENCE_S)
    assert house.pipeline.stuck_for_s(house.now + 31.0) >= 31.0
    release.set()


def test_suspects_of_an_earlier_run_go_one_by_one_before_new_files(house: House, drop: Callable[..., Path]) -> None:
    suspects = []
    for number in range(3):
        drop(f"{number}.png", seed=number)
        claim = house.claims.claim(f"{number}.png", now=0.0)
        assert claim is not None
        suspects.append(claim)
    drop("new.png", seed=9)
    house.scan()
    house.now += 2.0
    house.pipeline.retry(suspects)
    house.pipeline.step(house.now)
    assert len(house.pipeline.in_flight) == 3 and len(house.files("incoming")) == 1
    house.run()
    house.run()
    assert len(house.rows()) == 4 and all(row["state"] == "placed" for row in house.rows())


def test_error_of_a_stage_reaches_the_loop(build: Callable[..., House], drop: Callable[..., Path]) -> None:
    class Failing(BrightnessDetector):
        def score(self, images: np.ndarray) -> Scored:
            raise RuntimeError("the graph broke")

    house = build(detector=Failing())
    drop("a.png")
    with pytest.raises(RuntimeError, match="the graph broke"):
        house.settle_and_run()
    assert len(house.files("processing")) == 1


class _Meter:
    """Counts 1 Wh for each sample taken."""

    def take(self, kind: str, images: int = 0) -> EnergySample:
        from datetime import UTC, datetime

        return EnergySample(kind, datetime.now(UTC), 1.0, images, 0.6, 0.0, 0.4, 1.0, None, "estimated", None)


def test_energy_of_a_batch_is_shared_and_idling_has_rows_of_its_own(house: House, drop: Callable[..., Path]) -> None:
    house.pipeline.meter = _Meter()  # type: ignore[assignment]
    for number in range(4):
        drop(f"{number}.png", seed=number)
    house.settle_and_run()
    with house.engine.connect() as connection:
        energy = connection.exec_driver_sql("SELECT kind, images, total_wh FROM energy ORDER BY 1").all()
    batches = [row for row in energy if row[0] == "scoring"]
    assert [tuple(row) for row in energy if row[0] == "idle"] == [("idle", 0, 1.0)]
    assert sum(row[1] for row in batches) == 4
    assert sum(row["energy_wh"] for row in house.rows()) == pytest.approx(len(batches) * 1.0)


def test_claimed_file_that_cannot_be_read_waits_for_its_attempts_and_is_then_quarantined(
    house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("service.inspection.score_batch.read_file", broken)
    drop("a.png")
    house.settle_and_run()
    for attempt in (1, 2):
        assert house.rows() == [] and f"--{attempt}--a.png" in house.files("processing")[0]
        house.recover_and_run()
    [row] = house.rows()
    assert (row["error_code"], row["state"]) == ("not_readable", "quarantined")
    assert row["error"] == "expected a file that can be read; Input/output error, 3 times"


def test_claimed_file_that_can_be_read_after_all_is_scored(
    house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = score_batch.read_file, [OSError(errno.ESTALE, "Stale file handle")]

    def fails_once(*args: Any, **kwargs: Any) -> FileBytes:
        if failures:
            raise failures.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr("service.inspection.score_batch.read_file", fails_once)
    drop("a.png")
    house.settle_and_run()
    house.recover_and_run()
    assert [row["state"] for row in house.rows()] == ["placed"]


def test_batch_whose_renames_cannot_be_made_to_last_is_recorded_once_they_can(
    house: House, drop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = os.fsync, [OSError(errno.EIO, "Input/output error")]

    def fails_once(descriptor: int) -> None:
        if failures and str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith("processing/main/default"):
            raise failures.pop()
        real(descriptor)

    (house.root / "processing/main/default").mkdir(parents=True)
    drop("default/a.png")
    monkeypatch.setattr(os, "fsync", fails_once)
    monkeypatch.setattr("service.inspection.pipeline.UNSYNCED_RETRY_S", 0.05)
    house.settle_and_run()
    assert not failures and [row["state"] for row in house.rows()] == ["placed"]
