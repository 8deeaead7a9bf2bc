"""`tamis results`: prints or exports rows of the view `results`, newest first.

Rows are read in pages, so that an export of millions needs little memory: all of one moment, in one transaction, or
each in a transaction of its own where that would hold up whoever writes.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TextIO, get_args

import typer
from sqlalchemy import Connection

from service.commands.options import AsJson, Root, print_table, product_option
from service.errors import TamisError, UsageError
from service.storage import images, regions
from service.storage.database.open import open_database
from service.storage.tables import ImageState, Verdict, results_view

PAGE = 5000
TABLE_COLUMNS = ["received_at", "product", "file_name", "verdict", "score", "threshold", "state", "label", "error_code"]
COLUMNS = tuple(results_view.c.keys())
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Row = Mapping[str, Any]
Format = Literal["table", "csv", "json", "parquet"]


def results(
    root: Root,
    since: Annotated[
        str | None, typer.Option(help="From then on: 24h, 7d, 30m, or a UTC time such as 2026-01-31.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then; as --since.")] = None,
    product: Annotated[str | None, product_option("Of this product.")] = None,
    verdict: Annotated[str | None, typer.Option(help="normal or anomaly.")] = None,
    state: Annotated[str | None, typer.Option(help="scored, placed, quarantined, missing or conflict.")] = None,
    uncertain: Annotated[bool, typer.Option("--uncertain", help="Only those near the threshold.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows at most, the newest; 0 is all.")] = 100,
    format: Annotated[Format, typer.Option(help="How to write them.")] = "table",
    output: Annotated[Path | None, typer.Option(help="Write to this file, not to stdout.")] = None,
    as_json: AsJson = False,
    with_regions: Annotated[
        bool, typer.Option("--regions", help="With --json: where in each image the map was above the threshold.")
    ] = False,
) -> None:
    now = datetime.now(UTC)
    filters: images.Filters = {
        "since": None if since is None else moment(since, now),
        "until": None if until is None else moment(until, now),
        "product": product,
        "verdict": _one_of("--verdict", verdict, get_args(Verdict)),
        "state": _one_of("--state", state, get_args(ImageState)),
        "uncertain": uncertain,
    }
    format = "json" if as_json else format
    if with_regions and format != "json":
        raise UsageError(f"--regions: expected --json, since an image has any number of them; found {format}")
    if format == "parquet":
        _require_pyarrow()
        if output is None and sys.stdout.isatty():
            raise UsageError("--format parquet: expected --output FILE, or stdout that is no terminal")
    if format == "table" and output is not None:
        raise UsageError("--output: expected --format csv, json or parquet; found table")
    with open_database(root, read_only=True) as engine, engine.connect() as connection:
        one_moment = engine.reads_hold_up_nobody(connection)
        total = images.count(connection, **filters)
        shown = Counter[str]()
        pages = _rows(connection, filters, min(total, limit) if limit else total, shown, one_moment=one_moment)
        _write(_with_regions(connection, pages) if with_regions else pages, format, output, total)
    everything = "; --limit 0 shows all" if limit and limit < total else ""
    typer.echo(f"{shown['rows']:,} of {total:,} shown{everything}", err=True)


def moment(text: str, now: datetime) -> datetime:
    """Return the UTC time that `text` means: an age before `now`, such as `24h`, or ISO 8601 (UTC if no zone).

    Raises UsageError.
    """
    try:
        if age := re.fullmatch(r"(\d+)([smhdw])", text):
            return now - timedelta(**{UNITS[age[2]]: int(age[1])})
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"time: expected 24h, 7d, 30m or ISO 8601 such as 2026-01-31T08:00; found {text!r}") from None


def safe_cell(value: Any) -> Any:
    r"""Return `value` as it may stand in a CSV file that a spreadsheet opens.

    Text that a spreadsheet would run as a formula gets a leading `'`; control characters are written as `\x1b`.
    """
    if not isinstance(value, str):
        return value
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)
    return "'" + plain if plain.startswith(("=", "+", "-", "@")) else plain


def _one_of(option: str, value: str | None, names: tuple[str, ...]) -> str | None:
    if value is not None and value not in names:
        raise UsageError(f"{option}: expected {', '.join(names)}; found {value!r}")
    return value


def _rows(
    connection: Connection, filters: images.Filters, most: int, shown: Counter[str], *, one_moment: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yield `most` rows at most, in pages, and count them in `shown`.

    Rows that arrive meanwhile are newer than all and do not shift them. The rows are the caller's to change.
    """
    before = None
    while most > shown["rows"]:
        page = images.search(connection, **filters, limit=min(PAGE, most - shown["rows"]), before=before)
        if not page:
            return
        # Now: whoever is given the page may change it.
        before = (page[-1]["received_at"], page[-1]["id"])
        shown["rows"] += len(page)
        yield page
        if not one_moment:
            connection.rollback()


def _with_regions(connection: Connection, pages: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Yield `pages`, each row with its list `regions`."""
    for page in pages:
        found = regions.of_images(connection, [row["id"] for row in page])
        yield [row | {"regions": found[row["id"]]} for row in page]


def _write(pages: Iterable[list[dict[str, Any]]], format: Format, output: Path | None, total: int) -> None:
    rows = chain.from_iterable(pages)
    if format == "table":
        print_table([row | {"received_at": row["received_at"][:19] + "Z"} for row in rows], TABLE_COLUMNS)
        return
    with _opened(output, binary=format == "parquet") as file:
        if format == "parquet":
            _write_parquet(pages, file)
        elif format == "csv":
            _write_csv(rows, file)
        else:
            _write_json(rows, file, total)


def _write_csv(rows: Iterable[Row], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([safe_cell(row[column]) for column in COLUMNS])


def _write_json(rows: Iterable[Row], file: TextIO, total: int) -> None:
    file.write(f'{{\n"total": {total},\n"results": [')
    separator = "\n"
    for row in rows:
        file.write(separator + json.dumps(row, ensure_ascii=False))
        separator = ",\n"
    file.write("\n]\n}\n")


def _write_parquet(pages: Iterable[list[dict[str, Any]]], file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(COLUMNS, pa.string())
    types |= dict.fromkeys(("score", "threshold", "p_value", "latency_ms", "energy_wh"), pa.float64())
    types |= dict.fromkeys(("width", "height", "bytes"), pa.int64())
    times = ("received_at", "decided_at", "labelled_at")
    types |= dict.fromkeys(times, pa.timestamp("us", tz="UTC"))
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(file, schema) as writer:
        for page in pages:
            rows = [row | {name: _moment_of(row[name]) for name in times} for row in page]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _moment_of(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise TamisError("--format parquet: expected pyarrow; install it with `pip install 'tamis[parquet]'`") from None


@contextmanager
def _opened(output: Path | None, *, binary: bool) -> Iterator[Any]:
    """Yield a file to write to: stdout, or `output`, which appears whole or not at all."""
    if output is None:
        yield sys.stdout.buffer if binary else sys.stdout
        return
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") if binary else part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(output)
    except OSError as error:
        raise TamisError(f"--output {output}: expected to write it; found {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
