import os
from pathlib import Path

import pytest

from service.filesystem.open_below import open_folder
from service.inspection.claim import Claims
from service.instances import instance_lock, instances, last_status, read_status
from service.names import parse_claimed_name


def put(root: Path, name: str, content: bytes = b"x") -> None:
    path = root / "incoming" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_claim_moves_the_file_and_keeps_its_folder(root: Path) -> None:
    put(root, "gears/2026/a.png", b"bytes")
    claim = Claims(root, "main").claim("gears/2026/a.png", now=5.0)
    assert claim is not None
    assert (claim.product, claim.file_name, claim.attempt, claim.settled_at) == ("gears", "a.png", 1, 5.0)
    assert claim.path == f"processing/main/gears/2026/{claim.id}--1--a.png"
    assert (root / claim.path).read_bytes() == b"bytes"
    assert not (root / "incoming/gears/2026/a.png").exists()


def test_file_claimed_by_another_is_simply_gone(root: Path) -> None:
    assert Claims(root, "main").claim("gone.png", now=0.0) is None


def test_same_name_twice_is_two_claims(root: Path) -> None:
    claims = Claims(root, "main")
    put(root, "a.png", b"1")
    first = claims.claim("a.png", now=0.0)
    put(root, "a.png", b"2")
    second = claims.claim("a.png", now=0.0)
    assert first is not None and second is not None and first.id != second.id
    assert [(root / c.path).read_bytes() for c in (first, second)] == [b"1", b"2"]


def test_claims_are_found_again_with_what_their_names_say(root: Path) -> None:
    put(root, "gears/a.png")
    put(root, "b.png")
    claims = Claims(root, "main")
    made = [claims.claim(name, now=0.0) for name in ("gears/a.png", "b.png")]
    found = list(Claims(root, "main").found())
    assert {c.id for c in found} == {c.id for c in made if c}
    assert {(c.product, c.path) for c in found} == {(c.product, c.path) for c in made if c}
    assert abs((found[0].received_at - made[0].received_at).total_seconds()) < 1  # type: ignore[union-attr]


def test_next_attempt_is_in_the_name(root: Path) -> None:
    put(root, "gears/a.png")
    claims = Claims(root, "main")
    claim = claims.claim("gears/a.png", now=0.0)
    assert claim is not None
    again = claims.next_attempt(claim)
    name = parse_claimed_name(Path(again.path).name)
    assert name is not None and name.attempt == again.attempt == 2 and again.id == claim.id
    assert (root / again.path).exists() and not (root / claim.path).exists()


def test_foreign_files_in_processing_are_left_alone(root: Path) -> None:
    (root / "processing/main").mkdir()
    (root / "processing/main/notes.txt").write_text("mine")
    assert list(Claims(root, "main").found()) == []


def test_sync_survives_folders_that_are_gone(root: Path) -> None:
    put(root, "gears/a.png")
    claims = Claims(root, "main")
    claim = claims.claim("gears/a.png", now=0.0)
    assert claim is not None
    (root / "incoming/gears").rmdir()
    claims.sync([claim])
    assert (root / claim.path).exists()


def test_lock_names_its_holder_to_the_second(root: Path) -> None:
    first, second = instance_lock(root, "main"), instance_lock(root, "main")
    assert first.acquire() is None
    holder = second.acquire()
    assert holder is not None and '"instance": "main"' in holder
    first.release()
    assert second.acquire() is None
    second.release()


def test_claims_of_a_dead_instance_are_adopted(root: Path) -> None:
    put(root, "gears/a.png", b"bytes")
    dead = Claims(root, "dead").claim("gears/a.png", now=0.0)
    assert dead is not None and instances(root) == ["dead"]
    mine = Claims(root, "main")
    assert mine.adopt("dead") == 1
    assert mine.owns(dead.path)
    [found] = mine.found()
    assert (found.id, found.product) == (dead.id, "gears")
    assert (root / found.path).read_bytes() == b"bytes"
    mine.disown("dead")
    assert not mine.owns(dead.path)


def test_link_on_the_way_to_a_folder_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "normal/gears").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="found a link"):
        os.close(open_folder(root / "normal/gears/2026-11-22", root, make=True))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_empty_folders_are_pruned_and_files_kept(root: Path) -> None:
    put(root, "gears/today/a.png")
    claims = Claims(root, "main")
    claim = claims.claim("gears/today/a.png", now=0.0)
    (root / "processing/main/gears/yesterday").mkdir()
    claims.prune()
    assert claim is not None and (root / claim.path).exists()
    assert not (root / "processing/main/gears/yesterday").exists() and (root / "processing/main").is_dir()


def test_looking_at_a_lock_neither_takes_nor_makes_it(root: Path) -> None:
    lock = instance_lock(root, "main")
    assert not lock.held() and instances(root) == []
    assert lock.acquire_patiently() is None
    assert instance_lock(root, "main").held() and instance_lock(root, "main").acquire_patiently() is not None
    lock.release()
    assert not lock.held()


@pytest.mark.parametrize("content", [b"", b'{"paused": nu', b"[]", b"\xff"])
def test_status_that_a_power_cut_cut_short_says_nothing(root: Path, content: bytes) -> None:
    (root / "processing/main").mkdir()
    (root / "processing/main/.status.json").write_bytes(content)
    assert last_status(root, "main") == {} and read_status(root, "main") == {"instance": "main", "running": False}
