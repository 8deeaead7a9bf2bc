"""Gathers facts about a root and its machine, and has `service.operations.checks` judge them.

Changes nothing: the only file it makes is for the trial of renaming; the watching ignores its name, and it is removed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import stat
import time
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection

import migrations
from models import registry
from models.errors import ModelError
from service.errors import ConfigurationError, TamisError
from service.filesystem import mount_table as filesystem
from service.filesystem.file_state import NameFilter
from service.filesystem.odd_entries import OddEntries, told_by
from service.filesystem.scan import walk
from service.instances import instance_lock, instances, statuses
from service.names import parse_claimed_name, product_of
from service.operations import checks
from service.operations.checks import Finding, InotifyLimits, LeftOver
from service.operations.retention_plan import rules_of
from service.root import DEFAULT_PRODUCT, FOLDERS, INCOMING, MODELS, NORMAL, PROCESSING
from service.scoring.threshold_policy import policy_of, threshold_of
from service.settings import TRAINING_FALSE_ALARM_RATE, Settings, load, origins
from service.storage import retention
from service.storage.database.driver import sqlite3
from service.storage.database.journal import journal_choice
from service.storage.drift import DriftRow
from service.storage.thresholds import Choice
from service.storage.versions import VersionRow

INOTIFY = Path("/proc/sys/fs/inotify")
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
CPUINFO = Path("/proc/cpuinfo")
RATE_OF = timedelta(days=7)


def examine(root: Path) -> list[Finding]:
    """Return the findings on `root` and this machine. Raises ConfigurationError where there is no such folder."""
    if not root.is_dir():
        raise ConfigurationError(f"root {root}: no such folder; make one with `tamis init {root}`")
    settings, findings = _settings(root)
    findings += [
        _mount(name, root / below, settings.watch_mode) for name, below in (("root", ""), (INCOMING, INCOMING))
    ]
    findings.append(checks.check_folders({name: _device(root / name) for name in FOLDERS}))
    failure, disk_now = try_renames(root)
    findings.append(checks.check_renames(failure))
    products, folders, unlisted = _incoming(root)
    findings.append(checks.check_inotify(read_inotify(), folders))
    findings += checks.check_odd_entries(_odd_entries(root, unlisted))
    if not settings.database_url:
        findings.append(checks.check_sqlite(sqlite3.sqlite_version, journal_choice(sqlite3.sqlite_version_info)))
    known = _database(root)
    findings += known.findings
    space = filesystem.free_space(root)
    findings += checks.check_space(space, settings.free_bytes_min, settings.free_inodes_min)
    kept = bool(rules_of(settings))
    findings.append(checks.check_growth(space, settings.free_bytes_min, known.bytes_a_day, retention=kept))
    findings += _models(root, settings, products, known.champions, known.choices)
    findings += [checks.check_drift(product, row) for product, row in sorted(known.drift.items())]
    findings += checks.check_scoring(*_openvino(), checks.cpu_flags(_text(CPUINFO)), platform.machine())
    findings += checks.check_energy(read_rapl(), settings.energy_country)
    there = root.stat()
    findings += checks.check_permissions(there.st_mode, _umask(), there.st_uid, os.geteuid())
    findings.append(checks.check_left_overs(read_left_overs(root)))
    findings.append(checks.check_clock(datetime.now(UTC), disk_now, known.newest))
    return findings


def try_renames(root: Path) -> tuple[str | None, datetime | None]:
    """Rename a file incoming → processing → normal; return the failure, if any, and the disk's time of the file."""
    # The watching ignores names that begin with a dot, and so does recovery.
    name = f".tamis-doctor-{os.getpid()}-{time.monotonic_ns()}.tmp"
    steps = [root / folder / name for folder in (INCOMING, PROCESSING, NORMAL)]
    disk_now = None
    try:
        descriptor = os.open(steps[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        disk_now = datetime.fromtimestamp(os.fstat(descriptor).st_mtime, UTC)
        os.close(descriptor)
        for source, target in itertools.pairwise(steps):
            source.rename(target)
    except OSError as error:
        where = " → ".join(str(path) for path in (error.filename, error.filename2) if path)
        return f"{error.strerror}: {where}", disk_now
    finally:
        for path in steps:
            with contextlib.suppress(OSError):  # it is at one of the three places; what failed is returned
                path.unlink()
    return None, disk_now


def read_inotify(folder: Path = INOTIFY) -> InotifyLimits | None:
    try:
        return InotifyLimits(*(int((folder / one.name).read_text()) for one in fields(InotifyLimits)))
    except (OSError, ValueError):
        return None


def read_rapl(path: Path = RAPL) -> Literal["readable", "closed", "absent"]:
    try:
        path.read_text()
    except FileNotFoundError:
        return "absent"
    except OSError:
        return "closed"
    return "readable"


def read_left_overs(root: Path) -> list[LeftOver]:
    found = []
    names: list[str] = []
    with contextlib.suppress(OSError):  # as below
        names = instances(root)
    for name in names:
        images = 0
        with contextlib.suppress(OSError):
            for folder in walk(root / PROCESSING / name, NameFilter(())):
                images += sum(parse_claimed_name(entry.name) is not None for entry in folder.files)
        alive = False
        with contextlib.suppress(OSError):  # not readable for this user, of which the check of permissions warns
            alive = instance_lock(root, name).held()
        found.append(LeftOver(name, images, alive))
    return found


@dataclass
class _Database:
    findings: list[Finding]
    champions: dict[str, VersionRow] = field(default_factory=dict)
    newest: datetime | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    drift: dict[str, DriftRow] = field(default_factory=dict)
    bytes_a_day: float | None = None


def _settings(root: Path) -> tuple[Settings, list[Finding]]:
    try:
        settings = load(root)
    except ConfigurationError as error:
        # The other checks go on with the defaults, so that one mistake does not hide another.
        advice = "correct it as the message says; docs/settings.md lists every setting"
        return Settings.model_construct(), [Finding("settings", "error", str(error), advice)]
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return settings, checks.check_settings(values, origins(root))


def _mount(name: str, path: Path, watch_mode: str) -> Finding:
    try:
        return checks.check_mount(name, filesystem.mount_of(path), watch_mode)
    except (OSError, ValueError) as error:
        advice = 'mount /proc; until then set watch_mode = "polling" if the root is a share'
        return Finding(f"file system of {name}", "warning", f"not known: {error}", advice)


def _device(folder: Path) -> int | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev if stat.S_ISDIR(status.st_mode) else None


def _incoming(root: Path) -> tuple[set[str], int, dict[str, Any]]:
    """Return the products with a folder under `incoming/`, how many folders a watch takes, and what is not listed.

    The last is as in `OddEntries.document`.
    """
    odd = OddEntries(root=root, says=False)

    def failed(path: str, error: OSError) -> None:
        odd.note(f"{INCOMING}/{path}", "scan", error)
        products.add(product_of(path))

    products: set[str] = set()
    folders = 0
    with contextlib.suppress(FileNotFoundError):  # of which the check of folders tells
        try:
            for folder in walk(root / INCOMING, NameFilter((".*",)), failed, filesystem.mounted_below(root / INCOMING)):
                folders += 1
                if folder.path:
                    products.add(product_of(folder.path))
        except PermissionError as error:
            odd.note(INCOMING, "scan", error)
    return products, folders, odd.document()


def _odd_entries(root: Path, unlisted: dict[str, Any]) -> dict[str, Any]:
    """Return what the daemons say that waits; where none runs or may be asked, what is `unlisted` to this user."""
    daemons = statuses(root)
    return told_by(daemons) if any(daemon["running"] for daemon in daemons) else unlisted


def _database(root: Path) -> _Database:
    from service.storage import drift, statistics, thresholds, versions
    from service.storage.database import schema
    from service.storage.database.open import open_database

    try:
        engine = open_database(root, migrate=False, read_only=True)
    except TamisError as error:
        advice = "do as the message says; no image was touched"
        return _Database([Finding("database", "error", str(error), advice)])
    try:
        with engine, engine.connect() as connection:
            revision = schema.revision_of(connection)
            [answer] = engine.check(connection, quick=True)
            known = _Database(checks.check_database(revision, migrations.HEAD, answer))
            if engine.dialect.name == "postgresql":
                known.findings.append(checks.check_postgresql(read_server(connection)))
            else:
                known.findings.append(checks.check_journal(engine.journal_trouble()))
            if revision != migrations.HEAD:
                return known
            newest = statistics.newest(connection)
            known.newest = datetime.fromisoformat(newest) if newest else None
            known.champions = versions.champions(connection)
            known.choices, known.drift = thresholds.latest(connection), drift.latest(connection)
            known.bytes_a_day = _bytes_a_day(connection, datetime.now(UTC))
            return known
    except ConfigurationError as error:  # what the engine raises for damage that a statement met
        advice = "stop the service, keep a copy of the database, put back a backup"
        return _Database([Finding("database integrity", "error", str(error), advice)])


def read_server(connection: Connection) -> dict[str, str]:
    names = ("server_version", "fsync", "full_page_writes", "data_checksums")
    return {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in names}


def _bytes_a_day(connection: Connection, now: datetime) -> float | None:
    """Return the bytes of images received per day over the last 7 days, or since the first; None without images."""
    received, first = retention.received_bytes(connection, now - RATE_OF)
    return None if first is None else received / max((now - first) / timedelta(days=1), 1.0)


def _models(
    root: Path, settings: Settings, products: set[str], champions: dict[str, VersionRow], choices: dict[str, Choice]
) -> list[Finding]:
    findings = []
    models = {product: (product, row) for product, row in champions.items()}
    if DEFAULT_PRODUCT in champions:
        # A product without a model of its own may have a rate of its own.
        chosen = {product for product, choice in choices.items() if choice.false_alarm_rate is not None}
        for product in chosen - champions.keys():
            models[product] = (DEFAULT_PRODUCT, champions[DEFAULT_PRODUCT])
    for product, (owner, row) in sorted(models.items()):
        failure = refused = None
        choice = choices.get(product)
        chosen_rate = choice.false_alarm_rate if choice else None
        rate = TRAINING_FALSE_ALARM_RATE
        try:
            version = registry.verify(root / MODELS / owner / row.version, row.sha256)
        except ModelError as error:
            failure = str(error)
        else:
            rate = version.trained_false_alarm_rate
            try:
                threshold_of(settings, product, version, chosen_rate=chosen_rate)
            except (ModelError, ConfigurationError) as error:
                refused = str(error)
        if owner == product:
            findings.append(checks.check_champion(product, row.version, failure))
        policy = policy_of(settings, product, rate, chosen_rate=chosen_rate)
        findings.append(checks.check_threshold(product, policy, refused, choice))
    return findings + checks.check_products(products, set(champions))


def _openvino() -> tuple[str | None, str | None]:
    """Return OpenVINO's version, or else why it cannot be imported."""
    from models.runtime.openvino_runtime import openvino  # which keeps its telemetry out

    try:
        return str(openvino().get_version()), None
    except (ImportError, OSError) as error:
        return None, str(error)


def _umask() -> int:
    # The only way to read it is to set it; /proc is asked first, since a thread could make a file in between.
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
