"""What it costs to move by open folders and to keep what was judged: ms an image, and ratios within one run.

`own` is a file of the service with one name, as it mostly is; `shared` has a second name: it becomes a private copy.
`rename` is the bare system call with both folders synced once a batch, which no delivery can do without.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from service.filesystem.durable import sync_folder
from service.imaging.decode import read_file
from service.inspection.deliver import Move, deliver
from service.inspection.private_copy import keep_private, take_place
from service.names import new_id
from tests.benchmarks import captures

BATCH = 16
BATCHES = 40


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--kilobytes", type=int, default=400, help="size of each file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), os.urandom(options.kilobytes * 1000))
    captures.report(
        {"benchmark": "after_the_verdict", "kilobytes": options.kilobytes, "ms_per_image": found}, options.output
    )


def measure(root: Path, data: bytes) -> dict[str, float]:
    """Return medians over the batches, in ms an image, of each way; the ways take turns."""
    ways: dict[str, Callable[[list[Path]], None]] = {
        "rename": lambda paths: _rename(root, paths),
        "deliver": lambda paths: _deliver(root, paths),
        "read": _read,
        "read and keep, own": lambda paths: _keep(root, paths),
        "read and keep, shared": lambda paths: _keep(root, paths),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(BATCHES):
        for name, way in ways.items():
            paths = _files(root, data, shared="shared" in name)
            began = time.perf_counter()
            way(paths)
            taken[name].append((time.perf_counter() - began) * 1000 / BATCH)
            for path in root.rglob("*.png"):
                path.unlink()
    found = {name: round(statistics.median(times), 4) for name, times in taken.items()}
    found["deliver / rename"] = round(found["deliver"] / found["rename"], 3)
    for kind in ("own", "shared"):
        found[f"read and keep, {kind} / read"] = round(found[f"read and keep, {kind}"] / found["read"], 3)
    return found


def _files(root: Path, data: bytes, *, shared: bool) -> list[Path]:
    folder, kept = root / "processing/main/lid", root / "kept"
    folder.mkdir(parents=True, exist_ok=True)
    kept.mkdir(exist_ok=True)
    paths = []
    for _ in range(BATCH):
        path = folder / f"{new_id()}--1--a.png"
        path.write_bytes(data)
        if shared:
            os.link(path, kept / path.name)
        paths.append(path)
    return paths


def _read(paths: list[Path]) -> None:
    for path in paths:
        read_file(path, durable=True)


def _rename(root: Path, paths: list[Path]) -> None:
    target = root / "normal/lid/2026-11-22"
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.rename(target / path.name)
    sync_folder(paths[0].parent)
    sync_folder(target)


def _deliver(root: Path, paths: list[Path]) -> None:
    moves = []
    for path in paths:
        id = path.name[:26]
        moves.append(Move(id, str(path.relative_to(root)), f"normal/lid/2026-11-22/a.{id}.png", None))
    deliver(root, moves)


def _keep(root: Path, paths: list[Path]) -> None:
    for path in paths:
        relative, id = str(path.relative_to(root)), path.name[:26]
        if keep_private(root, relative, id, read_file(path, durable=True)):
            take_place(root, relative, id)


if __name__ == "__main__":
    main()
