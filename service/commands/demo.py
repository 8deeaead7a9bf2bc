"""`tamis demo`: a root's whole day in a minute or two: trains on drawn parts with the real `tamis train`, starts the
real daemon, drops good and bad parts as a camera would, and shows the results.

Owns its child processes and, unless asked to keep it, the folder.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table
from sqlalchemy import Engine

import service
from service.commands.init import make_root
from service.commands.options import AsJson, print_json
from service.errors import TamisError
from service.imaging.synthetic_parts import DEFECTS, draw
from service.root import SETTINGS_FILE
from service.settings_file import ENVIRONMENT_PREFIX
from service.storage import energy as energy_rows
from service.storage import images as image_rows
from service.storage.database.open import open_database

PRODUCT = "demo"
FALSE_ALARM_RATE = 0.02
TRAINING_LOOP_MINUTES = 1.5
INTERVAL_S = 0.3
POLL_S = 0.1
READY_TIMEOUT_S = 180.0
PLACED_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
TRAINING_TIMEOUT_S = 900.0
ROWS_SHOWN = 16
COLUMNS = ("image", "drawn as", "verdict", "score/threshold", "latency_ms")

Child = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Drop:
    """An image to be dropped: its file name, and the defect that is drawn on it, if any."""

    file_name: str
    defect: str | None


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder and the daemon for trying by hand.")] = False,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder to use, which stays; default: a temporary one.")
    ] = None,
    images: Annotated[
        int, typer.Option("--pictures", min=3, max=10_000, help="Images to drop, a third of them bad.")
    ] = 60,
    normals: Annotated[int, typer.Option(min=80, max=10_000, help="Good parts to train on.")] = 240,
    seed: Annotated[int, typer.Option(help="The same seed draws the same parts.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train on drawn parts, start the daemon, drop good and bad parts, and show what was found and what it cost."""
    # With --json only the document goes to stdout.
    console = Console(stderr=as_json, highlight=False, markup=False)
    # It would name another root's database; this root has a file of its own.
    os.environ.pop(f"{ENVIRONMENT_PREFIX}DATABASE_URL", None)
    with ExitStack() as stack:
        place = _make_root(root, keep, stack)
        console.print(f"root {place}")
        rng = np.random.default_rng(seed)
        good = place / "training" / PRODUCT / "normal"
        _draw_normals(good, normals, rng, console)
        started_at = datetime.now(UTC)
        _train(place, good, stack, console)
        daemon = _start_daemon(place, stack, console)
        engine = open_database(place, migrate=False, read_only=True)
        stack.callback(engine.dispose)
        camera = _Camera(place, engine, plan(images, rng), daemon, started_at, console)
        camera.run(rng)
        if not keep:
            _stop_daemon(daemon, place)
        document = report(list(camera.rows), [row for row in camera.rows.values() if row is not None])
        with engine.connect() as connection:
            document |= {"root": str(place), "energy": energy_rows.per_kind(connection, started_at)}
        if keep:
            stack.pop_all()  # nothing is ended or removed
        if as_json:
            print_json(document)
        else:
            _print_report(document, console)
        if keep:
            _print_by_hand(place, daemon.pid, console)
    if document["unplaced"]:
        raise TamisError(f"{document['unplaced']} images were not placed")


def plan(images: int, rng: np.random.Generator) -> list[Drop]:
    """Return the images in the order in which they are dropped: a third bad, every kind of defect in turn."""
    bad = max(1, images // 3)
    kinds: list[str | None] = [DEFECTS[i % len(DEFECTS)] for i in range(bad)]
    kinds += [None] * (images - bad)
    return [Drop(f"part-{n + 1:04d}.jpg", kinds[i]) for n, i in enumerate(rng.permutation(len(kinds)))]


def report(drops: Sequence[Drop], rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the confusion of verdicts and drawings, anomaly being positive, in all and per kind of defect.

    `rows` are those of the view `results`. A figure whose denominator is 0 is None; each kind's precision counts all
    false alarms.
    """
    verdict_of = {row["file_name"]: row["verdict"] for row in rows if row["state"] == "placed"}
    decided = Counter((drop.defect, verdict_of[drop.file_name]) for drop in drops if drop.file_name in verdict_of)
    fp, tn = decided[None, "anomaly"], decided[None, "normal"]
    kinds = {}
    for kind in sorted({drop.defect for drop in drops if drop.defect is not None}):
        found, missed = decided[kind, "anomaly"], decided[kind, "normal"]
        kinds[kind] = {"pictures": found + missed} | _figures(found, fp, missed)
    tp, fn = (sum(decided[kind, verdict] for kind in kinds) for verdict in ("anomaly", "normal"))
    whole = {"tp": tp, "fp": fp, "fn": fn, "tn": tn} | _figures(tp, fp, fn)
    return {"dropped": len(drops), "unplaced": len(drops) - decided.total(), "confusion": whole, "defects": kinds}


def _figures(tp: int, fp: int, fn: int) -> dict[str, float | None]:
    figures = {"precision": (tp, tp + fp), "recall": (tp, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}
    return {name: part / whole if whole else None for name, (part, whole) in figures.items()}


def _make_root(root: Path | None, keep: bool, stack: ExitStack) -> Path:
    if root is not None:
        place = root.resolve()
    else:
        place = Path(tempfile.mkdtemp(prefix="tamis-demo-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
    if SETTINGS_FILE in make_root(place).made:
        # In the file, so that it also holds for what is tried by hand afterwards.
        with (place / SETTINGS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"\n[products.{PRODUCT}]\nfalse_alarm_rate = {FALSE_ALARM_RATE}\n")
    return place


def _draw_normals(folder: Path, count: int, rng: np.random.Generator, console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in track(range(count), f"drawing {count} good parts", console=console, disable=not console.is_terminal):
        (folder / f"good-{number + 1:04d}.jpg").write_bytes(_jpeg(None, rng))
    console.print(f"drew {count} good parts into {folder}")


def _jpeg(defect: str | None, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(rng, defect).image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _child(*arguments: str, **more: Any) -> Child:
    """Start `tamis` with this interpreter, in a session of its own: Ctrl-C reaches us, and we end the child."""
    environment = dict(os.environ, **more.pop("environment", {}))
    environment[f"TAMIS_PRODUCTS__{PRODUCT}__FALSE_ALARM_RATE"] = str(FALSE_ALARM_RATE)
    # Found from any working directory, installed or not.
    found = [str(Path(service.__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in found if path)
    # A service manager above us must not take the child for its own.
    environment.pop("WATCHDOG_USEC", None)
    command = [sys.executable, "-P", "-m", "service", *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **more)


def _train(root: Path, good: Path, stack: ExitStack, console: Console) -> None:
    console.print("training on them")
    arguments = ["--root", str(root), "--product", PRODUCT, "--from", str(good), "--kind", "feature"]
    # Promoted: in a root that has seen a demo before, the new version is the one to be tried.
    arguments += ["--profile", "fast", "--minutes", str(TRAINING_LOOP_MINUTES), "--promote"]
    child = _child("train", *arguments, stdout=_stream(console), stderr=sys.stderr)
    stack.callback(_end, child)
    code = child.wait(TRAINING_TIMEOUT_S)
    if code != 0:
        raise TamisError(f"training: expected exit code 0; found {code}; its messages are above")


def _start_daemon(root: Path, stack: ExitStack, console: Console) -> Child:
    """Start the real daemon and return when it says that it is ready, as it would tell systemd."""
    with (
        tempfile.TemporaryDirectory(prefix="tamis-demo-ready-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        address = str(Path(folder) / "notify")
        ready.bind(address)
        ready.settimeout(POLL_S)
        with (root / "daemon.log").open("ab") as log:
            child = _child("run", "--root", str(root), stdout=log, stderr=log, environment={"NOTIFY_SOCKET": address})
        stack.callback(_end, child)
        until, said = time.monotonic() + READY_TIMEOUT_S, b""
        while b"READY=1" not in said.splitlines():
            if child.poll() is not None or time.monotonic() > until:
                raise TamisError(f"daemon: expected it to become ready; {_last_words(root, child)}")
            with suppress(TimeoutError):
                said = ready.recv(4096)
    console.print(f"daemon {child.pid} watches {root / 'incoming'}")
    return child


class _Camera:
    """Drops images one by one; `rows` has the row of `results` of each, None until it is there."""

    def __init__(
        self, root: Path, engine: Engine, drops: Sequence[Drop], daemon: Child, since: datetime, console: Console
    ) -> None:
        self.rows: dict[Drop, dict[str, Any] | None] = dict.fromkeys(drops)
        self._root, self._engine, self._daemon, self._since = root, engine, daemon, since
        self._drop_of = {drop.file_name: drop for drop in drops}
        self._shown = _Shown(console)

    def run(self, rng: np.random.Generator) -> None:
        """Draw and drop all images, and wait until all have results, or none have come for too long."""
        folder = self._root / "incoming" / PRODUCT
        folder.mkdir(exist_ok=True)
        with self._shown.live:
            for drop in self.rows:
                next_at = time.monotonic() + INTERVAL_S
                _write_in_place(folder / drop.file_name, _jpeg(drop.defect, rng))
                while time.monotonic() < next_at:
                    self._wait_and_read()
            until = time.monotonic() + PLACED_TIMEOUT_S
            while None in self.rows.values() and time.monotonic() < until:
                self._wait_and_read()

    def _wait_and_read(self) -> None:
        """Wait a little, then read and show the new results. Raises TamisError if the daemon has ended."""
        if self._daemon.poll() is not None:
            raise TamisError(f"daemon: expected it to run; {_last_words(self._root, self._daemon)}")
        time.sleep(POLL_S)
        with self._engine.connect() as connection:
            found = image_rows.search(connection, since=self._since, product=PRODUCT, limit=None)
        for row in reversed(found):
            drop = self._drop_of.get(row["file_name"])
            if drop is not None and self.rows[drop] is None and row["state"] != "scored":
                self.rows[drop] = row
                self._shown.add(drop, row)


def _write_in_place(path: Path, content: bytes) -> None:
    """Write as a camera does: under the final name, piece by piece."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), 16384):
            file.write(content[start : start + 16384])


class _Shown:
    """The results as they come: a live table on a terminal, a line each elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cells: list[tuple[str, ...]] = []
        self.live = Live(console=console, refresh_per_second=8) if console.is_terminal else nullcontext()

    def add(self, drop: Drop, row: Mapping[str, Any]) -> None:
        ratio = _number(row["score"] / row["threshold"] if row["score"] is not None and row["threshold"] else None)
        verdict = row["verdict"] or row["state"]
        wrong = "" if (row["verdict"] == "anomaly") == (drop.defect is not None) else "  (wrong)"
        cells = (drop.file_name, drop.defect or "good", verdict + wrong, ratio, _number(row["latency_ms"], ".0f"))
        self._cells.append(cells)
        if isinstance(self.live, Live):
            table = _table(f"{len(self._cells)} images", *COLUMNS)
            for shown in self._cells[-ROWS_SHOWN:]:
                table.add_row(*shown, style=None if shown[1] == "good" else "bold")
            self.live.update(table)
        else:
            self._console.print("{:<14} {:<13} {:<18} score/threshold {:<6} {} ms".format(*cells))


def _stop_daemon(daemon: Child, root: Path) -> None:
    """Stop the daemon as systemd would, which lets it finish what it has in hand."""
    daemon.send_signal(signal.SIGTERM)
    try:
        code = daemon.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TamisError(f"daemon: expected it to stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM; it did not") from None
    if code != 0:
        raise TamisError(f"daemon: expected exit code 0; {_last_words(root, daemon)}")


def _end(child: Child) -> None:
    """End a child, and whatever it started, if it still runs."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _last_words(root: Path, daemon: Child) -> str:
    code = daemon.poll()
    said = (root / "daemon.log").read_text(errors="replace").splitlines()[-5:]
    return f"found {'it still starting' if code is None else f'exit code {code}'}; its log ends: " + " / ".join(said)


def _print_report(document: Mapping[str, Any], console: Console) -> None:
    whole = document["confusion"]
    table = _table("\nConfusion", "", "called anomaly", "called normal")
    table.add_row("drawn bad", f"{whole['tp']} tp", f"{whole['fn']} fn")
    table.add_row("drawn good", f"{whole['fp']} fp", f"{whole['tn']} tn")
    console.print(table)
    names = ("precision", "recall", "f1")
    table = _table("\nPer kind of defect", "defect", "pictures", *names)
    for kind, figures in [*document["defects"].items(), ("all", whole | {"pictures": whole["tp"] + whole["fn"]})]:
        table.add_row(kind, str(figures["pictures"]), *(_number(figures[name]) for name in names))
    console.print(table)
    table = _table("\nEnergy", "kind", "images", "total_wh", "wh_per_1000_images", "source")
    for row in document["energy"]:
        wh = (_number(row[name], ".4g") for name in ("total_wh", "wh_per_1000_images"))
        table.add_row(row["kind"], str(row["images"]), *wh, row["source"])
    console.print(table)
    console.print(f"\n{document['dropped']} images dropped, {document['dropped'] - document['unplaced']} placed")


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, title=title, title_justify="left")


def _print_by_hand(root: Path, pid: int, console: Console) -> None:
    console.print(
        f"\nThe daemon ({pid}) goes on. Try it:\n"
        f"  cp {root}/anomaly/{PRODUCT}/*/*.jpg {root}/incoming/{PRODUCT}/\n"
        f"  tamis results --root {root}\n"
        f"  tamis status --root {root}\n"
        f"Stop it: kill {pid}, then remove {root}",
        soft_wrap=True,
    )


def _stream(console: Console) -> IO[str]:
    return console.file if console.file in (sys.stdout, sys.stderr) else sys.stderr


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)
