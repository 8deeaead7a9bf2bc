"""Checks a root from outside, with no code of the service: every file that was dropped exists once, with its bytes.

`python check_nothing_lost.py ROOT DROPPED.json`, where DROPPED.json maps the name of each file to its SHA-256
(names may repeat: a list of pairs). Prints what is wrong, one line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import sqlite3
import sys
import tomllib
from typing import Any

FOLDERS = ("incoming", "processing", "normal", "anomaly", "quarantine")


def problems(root: pathlib.Path, dropped: list[tuple[str, str]]) -> list[str]:
    found = []
    files = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    expected = collections.Counter(sha256 for _, sha256 in dropped)
    there = collections.Counter(files.values())
    for sha256, count in expected.items():
        if there[sha256] != count:
            found.append(f"content {sha256[:12]}: dropped {count} times, found {there[sha256]} times")
    found += [f"content {sha256[:12]}: found and never dropped" for sha256 in there.keys() - expected.keys()]
    url = tomllib.loads((root / "tamis.toml").read_text()).get("database_url")
    database = sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True) if url is None else _server(url)
    rows = database.execute(
        "SELECT id, path, state, coalesce(label, verdict), sha256, error_code FROM results"
    ).fetchall()
    if len({row[0] for row in rows}) != len(rows):
        found.append("an id has more than one row")
    at_path = collections.Counter(row[1] for row in rows)
    for id_, path, state, kind, sha256, error_code in rows:
        folder = path.split("/")[0]
        if state not in ("placed", "quarantined"):
            found.append(f"{id_}: state {state} after everything settled")
        elif folder != (kind or "quarantine"):
            found.append(f"{id_}: label or verdict {kind} and file in {folder}/")
        elif files.get(root / path) != sha256 and error_code not in ("attempts_exhausted", "too_many_bytes", "empty"):
            found.append(f"{id_}: {path} is not there with its bytes")
        elif at_path[path] > 1:
            found.append(f"{id_}: {path} has more than one row")
    with_row = {root / row[1] for row in rows}
    found += [
        f"{path.relative_to(root)}: file without a row"
        for path in files
        if path.relative_to(root).parts[0] not in ("incoming", "processing") and path not in with_row
    ]
    found += [
        f"{path.relative_to(root)}: still in flight"
        for path in files
        if path.relative_to(root).parts[0] in ("incoming", "processing")
    ]
    found += [f"{path.relative_to(root)}: half a copy left" for path in root.rglob(".tmp.*")]
    if url is None:
        [integrity] = database.execute("PRAGMA integrity_check").fetchone()
        if integrity != "ok":
            found.append(f"database: {integrity}")
    charged, scored = database.execute(
        "SELECT (SELECT sum(energy_wh) FROM results), (SELECT sum(total_wh) FROM energy WHERE kind = 'scoring')"
    ).fetchone()
    if charged is not None and charged > scored * (1 + 1e-9):
        found.append(f"energy: images were charged {charged} Wh of {scored} Wh")
    database.close()
    return found


def _server(url: str) -> Any:
    import psycopg

    return psycopg.connect(url, autocommit=True)


if __name__ == "__main__":
    wrong = problems(
        pathlib.Path(sys.argv[1]), [tuple(pair) for pair in json.loads(pathlib.Path(sys.argv[2]).read_text())]
    )
    print("\n".join(wrong) or "nothing lost, nothing twice, nothing half-moved")
    sys.exit(bool(wrong))
