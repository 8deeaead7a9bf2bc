"""Checks a root from outside, with no code of the service: no acknowledged label lost, no file half-moved.

`python check_labels.py ROOT SAID.json`, where SAID.json is a list of [who, id, label] in the order in which each was
acknowledged. Prints what is wrong, one line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import sqlite3
import sys

FOLDERS = ("processing", "normal", "anomaly", "quarantine")


def problems(root: pathlib.Path, said: list[tuple[str, str, str | None]]) -> list[str]:
    database = sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True)
    found = [*_lost(database, said), *_misplaced(root, database), *_training(root, database)]
    [by_folder] = database.execute("SELECT count(*) FROM reviews WHERE source = 'folder'").fetchone()
    if by_folder:
        found.append(f"{by_folder} moves of the service taken for labels by folder")
    found += [f"{path.relative_to(root)}: half a copy left" for path in root.rglob(".tmp.*")]
    [integrity] = database.execute("PRAGMA integrity_check").fetchone()
    if integrity != "ok":
        found.append(f"database: {integrity}")
    return found


def _lost(database: sqlite3.Connection, said: list[tuple[str, str, str | None]]) -> list[str]:
    kept: dict[str, list[tuple[str, str | None]]] = collections.defaultdict(list)
    for who, id_, label in database.execute("SELECT labelled_by, image_id, label FROM reviews ORDER BY id"):
        kept[who].append((id_, label))
    acknowledged: dict[str, list[tuple[str, str | None]]] = collections.defaultdict(list)
    for who, id_, label in said:
        acknowledged[who].append((id_, label))
    return [
        f"{who}: {len(labels)} labels acknowledged, of which these are kept: {kept[who]}"
        for who, labels in acknowledged.items()
        # What was under way when it was killed may be there as well.
        if kept[who][: len(labels)] != labels
    ]


def _misplaced(root: pathlib.Path, database: sqlite3.Connection) -> list[str]:
    found = []
    files = collections.Counter(
        path.relative_to(root).as_posix()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    rows = database.execute("SELECT id, path, state, verdict, label, sha256 FROM results").fetchall()
    for id_, path, state, verdict, label, sha256 in rows:
        belongs = label or verdict or "quarantine"
        if state != ("quarantined" if belongs == "quarantine" else "placed"):
            found.append(f"{id_}: state {state} after everything settled")
        if path.split("/")[0] != belongs:
            found.append(f"{id_}: label {label}, verdict {verdict} and file in {path}")
        if path not in files or hashlib.sha256((root / path).read_bytes()).hexdigest() != sha256:
            found.append(f"{id_}: {path} is not there with its bytes")
    return found + [f"{path}: file that no row has" for path in files.keys() - {row[1] for row in rows}]


def _training(root: pathlib.Path, database: sqlite3.Connection) -> list[str]:
    found = []
    expected = set()
    rows = database.execute(
        "SELECT t.path, t.label, t.sha256, r.label FROM training_pictures AS t JOIN results AS r ON r.id = t.image_id"
    ).fetchall()
    for path, label, sha256, latest in rows:
        if label != latest:
            found.append(f"{path}: kept as {label}, and what was said last is {latest}")
        if label is None:
            continue
        expected.add(path)
        if not (root / path).is_file() or hashlib.sha256((root / path).read_bytes()).hexdigest() != sha256:
            found.append(f"{path}: not kept for training")
    there = {path.relative_to(root).as_posix() for path in (root / "training").rglob("*") if path.is_file()}
    return found + [f"{path}: kept for training without a row that says so" for path in there - expected]


if __name__ == "__main__":
    wrong = problems(
        pathlib.Path(sys.argv[1]), [tuple(one) for one in json.loads(pathlib.Path(sys.argv[2]).read_text())]
    )
    print("\n".join(wrong) or "no label lost, no file half-moved")
    sys.exit(bool(wrong))
