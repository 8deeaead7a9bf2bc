"""Checks whether a root and this machine are fit for the service: facts in, findings out.

Pure; `service.operations.doctor` gathers the facts. Owns the levels and the advice on whatever is not ok.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from models.calibration.thresholds import AtFalseAlarmRate, Policy
from service.filesystem.mount_table import Mount, Space, is_network, sends_events
from service.filesystem.odd_entries import sentence
from service.names import meant
from service.root import DEFAULT_PRODUCT
from service.storage.database.journal import JournalChoice
from service.storage.drift import DriftRow
from service.storage.thresholds import Choice

Level = Literal["ok", "warning", "error"]

INSTANCES_FEW = 16
EVENTS_FEW = 4096
FULL_WITHIN_DAYS = 14
CLOCK_OFF_MAX = timedelta(seconds=5)
# Nobody runs this before it was written: a machine with an earlier clock has lost its battery.
CLOCK_EARLIEST = datetime.fromisoformat("2025-01-01T00:00:00+00:00")
DRIFT_ADVICE = {
    "light": "look at lamp and lens first; if the new light is to stay, confirm images and retrain",
    "defects": "look at the line: parts are not as they were, the light is; review the latest anomalies",
    "unknown": "review the latest images: new material, a moved camera, or a fault on every part",
}
# The instruction sets that the scoring graph gains most from, best first.
FAST_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2")


@dataclass(frozen=True)
class Finding:
    """The result of one check. `advice` says what to do; None only where the level is ok."""

    check: str
    level: Level
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class InotifyLimits:
    """The kernel's limits for one user's file events, as in /proc/sys/fs/inotify."""

    max_user_watches: int
    max_user_instances: int
    max_queued_events: int


@dataclass(frozen=True)
class LeftOver:
    """Images in the processing folder of one instance; `alive` where a running daemon holds its lock."""

    instance: str
    images: int
    alive: bool


def check_settings(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[Finding]:
    return [Finding(f"setting {name}", "ok", f"{value!r}, from {origins[name]}") for name, value in values.items()]


def check_inotify(limits: InotifyLimits | None, folders: int) -> Finding:
    """Check the limits of file events against the number of folders under incoming/, each of which takes a watch."""
    check = "file events"
    if limits is None:
        advised = 'set watch_mode = "polling" if new images are only seen at the rescan'
        return Finding(check, "warning", "this kernel does not say its inotify limits", advised)
    found = f"{folders} folders to watch; {', '.join(f'{name} {value}' for name, value in asdict(limits).items())}"
    # The limit is the user's, so half of it is left to other programs of the same user.
    too_low = {"max_user_watches": 4 * folders} if folders > limits.max_user_watches // 2 else {}
    if limits.max_user_instances < INSTANCES_FEW:
        too_low["max_user_instances"] = 128
    if limits.max_queued_events < EVENTS_FEW:
        too_low["max_queued_events"] = 16384
    if not too_low:
        return Finding(check, "ok", found)
    advice = [f"sysctl -w fs.inotify.{one}={least} (and in /etc/sysctl.d to keep it)" for one, least in too_low.items()]
    return Finding(check, "warning", found, "; ".join([*advice, "until then rescans and polling find the images"]))


def check_mount(name: str, mount: Mount, watch_mode: str) -> Finding:
    """Check the file system of the root (`name` "root") or of one of its folders."""
    check = f"file system of {name}"
    found = f"{mount.type} on {mount.mount_point}"
    if mount.read_only:
        return Finding(check, "error", f"{found}, read-only", f"mount -o remount,rw {mount.mount_point}")
    if name == "root" and is_network(mount.type):
        advice = "put the root on a local disk and share its incoming/ from there: SQLite's locks are not safe here"
        return Finding(check, "error", f"{found}, a network share", advice)
    if sends_events(mount.type):
        return Finding(check, "ok", f"{found}, sends file events")
    if watch_mode == "events":
        return Finding(check, "warning", f"{found}, sends no file events", 'set watch_mode = "auto" or "polling"')
    return Finding(check, "ok", f"{found}, sends no file events: it is polled")


def check_folders(devices: Mapping[str, int | None]) -> Finding:
    """Check the folders of the root by the device each lies on; None is a folder that is not there."""
    missing = sorted(name for name, device in devices.items() if device is None)
    if missing:
        return Finding("folders", "error", f"missing: {', '.join(missing)}", "make them with `tamis init ROOT`")
    away = sorted(name for name, device in devices.items() if device != devices["incoming"])
    if not away:
        return Finding("folders", "ok", f"all {len(devices)} on one file system")
    if "processing" in away:
        found = "incoming and processing lie on two file systems, so an image cannot be claimed by a rename"
        return Finding("folders", "error", found, "mount the disk at the root, not at one of its folders")
    found = f"on another file system than incoming: {', '.join(away)}"
    advice = "images are copied there instead of renamed, which is slower; mount the disk at the root instead"
    return Finding("folders", "warning", found, advice)


def check_renames(failure: str | None) -> Finding:
    """Check the trial of renaming a file incoming → processing → normal; `failure` is the error it met."""
    advice = (
        "give the service's user the folders (chown -R tamis:tamis ROOT); under systemd give the unit one"
        " ReadWritePaths= for the whole root, not one a folder"
    )
    return _unless("renames", failure, "a file went from incoming to processing to normal", advice)


def check_sqlite(version: str, choice: JournalChoice) -> Finding:
    """Report the version of SQLite and the journal that follows from it; both choices are safe."""
    found = f"{version}: journal {choice.mode}, synchronous {choice.synchronous}, since {choice.reason}"
    if choice.mode == "WAL":
        return Finding("SQLite", "ok", f"{found}; reports do not wait for the daemon")
    advice = (
        "nothing needs doing; `pip install pysqlite3`, or a Python with SQLite 3.51.3 or later, gives the faster log"
    )
    return Finding("SQLite", "ok", f"{found}; safe, but each commit costs more and reports wait for it", advice)


def check_journal(trouble: str | None) -> Finding:
    """Check the journal as it is; `trouble` says why it is not as it should be, and who is in its way."""
    advice = "end that program, or its transaction; the running service then sees to the rest within a minute or two"
    return _unless("database journal", trouble, "as it should be; nobody reads for long", advice, "warning")


def check_postgresql(facts: Mapping[str, str]) -> Finding:
    """Check the server by its settings: whether what it has committed lasts through a power cut, and damage is seen."""
    check, version = "PostgreSQL", facts["server_version"]
    off = [name for name in ("fsync", "full_page_writes") if facts[name] != "on"]
    if off:
        advice = f"set {' and '.join(off)} to on: images leave incoming/ once their rows are committed"
        return Finding(check, "error", f"{version}: {' and '.join(off)} off, a power cut can lose rows", advice)
    if facts["data_checksums"] != "on":
        advice = "stop the server and run pg_checksums --enable; damage of the disk is then seen when it is read"
        return Finding(check, "warning", f"{version}: commits last; no data checksums", advice)
    return Finding(check, "ok", f"{version}: commits last, data checksums on")


def check_database(revision: str | None, head: str, quick_check: str) -> list[Finding]:
    other = None if revision == head else f"{revision or 'none'}, expected {head}"
    damage = None if quick_check == "ok" else quick_check
    put_back = "stop the service, keep a copy of the database, put back a backup (docs/database.md, 'Backup')"
    return [
        _unless(
            "database revision", other, head, "bring it up to date with `tamis db upgrade`, after `tamis db backup`"
        ),
        _unless("database integrity", damage, "quick check passed", put_back),
    ]


def check_space(space: Space, bytes_min: int, inodes_min: int) -> list[Finding]:
    found = [_check_free("free space", space.bytes, bytes_min, "bytes", "free_bytes_min")]
    if space.inodes is None:
        return [*found, Finding("free inodes", "ok", "this file system makes inodes as it needs them")]
    return [*found, _check_free("free inodes", space.inodes, inodes_min, "inodes", "free_inodes_min")]


def check_growth(space: Space, bytes_min: int, bytes_a_day: float | None, *, retention: bool) -> Finding:
    """Check when the disk is full at the images' `bytes_a_day`; `retention` says whether any rule of it is set."""
    limits = "keep_normal_days, keep_anomaly_days, keep_normal_gb, keep_anomaly_gb"
    state = "on" if retention else "off"
    if bytes_a_day is None:
        return Finding("retention", "ok", f"{state}; no images in the last days")
    days = max(0.0, space.bytes - bytes_min) / bytes_a_day if bytes_a_day else math.inf
    found = f"{state}; {bytes_a_day / 1e9:.3g} GB of images a day"
    if space.bytes >= 4 * bytes_min if retention else days >= FULL_WITHIN_DAYS:
        return Finding("retention", "ok", found)
    if retention:
        advice = f"keep less ({limits}), or make room: `tamis retention --dry-run` shows what may go"
        return Finding("retention", "warning", f"{found}, and free space is low all the same", advice)
    advice = f"make room, or let old files go: {limits} (docs/retention.md)"
    return Finding("retention", "warning", f"{found}: no room for more in {days:.1f} days", advice)


def check_odd_entries(odd: Mapping[str, Any]) -> list[Finding]:
    """Report what waits since it cannot be worked on now, `odd` as in the status of a daemon."""
    check = "entries that wait"
    if not odd["files"]:
        return [Finding(check, "ok", "none that cannot be worked on")]
    named = [
        Finding(check, "warning", sentence(one), one["advice"] or "look at it, and at the kernel's log (dmesg)")
        for one in odd["first"]
    ]
    more = odd["files"] - sum(one["files"] for one in odd["first"])
    if more > 0 or not named:
        reasons = ", ".join(f"{files} {reason}" for reason, files in sorted(odd["by_reason"].items()))
        found = f"{max(more, 0) or odd['files']} more files; in all {reasons}"
        named.append(Finding(check, "warning", found, "see to those named first; the others are named after them"))
    return named


def check_products(products: Collection[str], champions: Collection[str]) -> list[Finding]:
    """Check for each product with a folder under incoming/ whether there is a model that scores its images."""
    train = "train one: tamis train --product {} --from FOLDER_OF_GOOD_IMAGES"
    found = []
    for product in sorted(set(products) - set(champions)):  # the champion's own health is a finding of its own
        check = f"model of {product}"
        if (guess := meant(product, champions)) is not None:
            advice = f"did you mean {guess}? Rename the folder under incoming/, or {train.format(product)}"
            found.append(Finding(check, "warning", f"none of its own; {guess} has one", advice))
        elif DEFAULT_PRODUCT in champions:
            found.append(Finding(check, "ok", f"none of its own; {DEFAULT_PRODUCT}'s scores its images"))
        else:
            found.append(Finding(check, "warning", "none: its images wait in incoming/", train.format(product)))
    if not champions and not found:
        check, advice = f"model of {DEFAULT_PRODUCT}", train.format(DEFAULT_PRODUCT)
        found.append(Finding(check, "warning", "none: images will wait in incoming/", advice))
    return found


def check_champion(product: str, version: str, failure: str | None) -> Finding:
    """Check one champion; `failure` is what the registry's check of its files said."""
    advice = (
        f"put the folder models/{product}/{version} back from a backup, or go to another version:"
        f" tamis models rollback --product {product}, or train again"
    )
    return _unless(f"model of {product}", failure, f"{version}, every file as registered", advice)


def check_threshold(product: str, policy: Policy, refused: str | None, choice: Choice | None = None) -> Finding:
    """Check whether the champion's calibration can give a threshold by `policy`; `refused` says why it cannot."""
    check = f"threshold of {product}"
    if isinstance(policy, AtFalseAlarmRate):
        told = f"at a false-alarm rate of {policy.false_alarm_rate:g}"
        advice = f"raise the rate (false_alarm_rate under [products.{product}]), or train on more good images"
        if choice is not None and choice.false_alarm_rate is not None:
            told += f", chosen{f' by {choice.chosen_by}' if choice.chosen_by else ''} over the settings'"
            advice = f"choose another: tamis models threshold --product {product} --rate R, or --reset"
    else:
        told = f"by the policy {policy.name}"
        advice = f"train with --anomalies DIR, or set another threshold_policy under [products.{product}]"
    if refused is not None:
        return Finding(check, "error", refused, advice)
    if choice is not None and choice.false_alarm_rate is not None and not isinstance(policy, AtFalseAlarmRate):
        found = f"{told}; the chosen rate of {choice.false_alarm_rate:g} is without effect"
        return Finding(check, "warning", found, f"take it back: tamis models threshold --product {product} --reset")
    return Finding(check, "ok", told)


def check_drift(product: str, row: DriftRow) -> Finding:
    check = f"drift of {product}"
    if row.state == "steady":
        return Finding(check, "ok", f"steady by version {row.version}")
    found = f"drifting since image {row.first_image_id}, cause {row.cause}"
    return Finding(check, "warning", found, DRIFT_ADVICE[row.cause or "unknown"])


def check_scoring(
    openvino: str | None, failure: str | None, flags: frozenset[str] | None, machine: str
) -> list[Finding]:
    """Check the scoring runtime and the processor's flags; `flags` is None where /proc/cpuinfo is not readable."""
    again = "install Tamis again into its environment: pip install --force-reinstall openvino"
    cannot = None if failure is None else f"cannot be imported: {failure}"
    found = _unless("OpenVINO", cannot, openvino or "importable", again)
    if flags is None:
        advice = "take ProcSubset=pid out of the unit: without /proc/cpuinfo the slowest code is chosen"
        return [found, Finding("processor", "warning", "/proc/cpuinfo shows no flags", advice)]
    fast = [flag for flag in FAST_FLAGS if flag in flags]
    if fast or machine not in ("x86_64", "AMD64"):
        return [found, Finding("processor", "ok", f"{machine}: {', '.join(fast) or 'its own code path'}")]
    advice = "scoring works, slowly; a virtual machine may hide AVX2: let it pass the host's processor through"
    return [found, Finding("processor", "warning", f"{machine} without AVX2", advice)]


def check_energy(rapl: Literal["readable", "closed", "absent"], country: str | None) -> list[Finding]:
    closed = "estimated: RAPL is there, but not readable" if rapl == "closed" else None
    known = "measured by the processor (RAPL)"
    if rapl == "absent":
        known = "estimated from load and the processor's model: it has no RAPL here"
    readable = "let the service's user read it: deploy/tamis-rapl.conf, see docs/deployment.md, 'Energy'"
    unset = "not set" if country is None else None
    named = 'set energy_country, such as "FRA"; until then emissions are unknown (null)'
    return [
        _unless("energy source", closed, known, readable, "warning"),
        _unless("energy country", unset, country or "", named, "warning"),
    ]


def check_permissions(mode: int, umask: int, owner: int, user: int) -> list[Finding]:
    """Check who else can look into the root; `mode` of its folder, `owner` and `user` (the caller) are ids."""
    shown = f"root {mode & 0o7777:04o}, umask {umask:04o}"
    open_to_all = f"{shown}: every local user can look in" if mode & 0o007 else None
    kept_out = f"{shown}: other local users are kept out"
    found = [_unless("permissions", open_to_all, kept_out, "chmod o-rwx ROOT", "warning")]
    if owner != user:
        advice = "run tamis as the owner (sudo -u tamis tamis …), or the service cannot touch what this user makes"
        found.append(Finding("user", "warning", f"the root belongs to user {owner}; this is user {user}", advice))
    return found


def check_left_overs(left: Sequence[LeftOver]) -> Finding:
    dead = [one for one in left if one.images and not one.alive]
    if not dead:
        return Finding("left-overs", "ok", "no images in processing of instances that do not run")
    found = ", ".join(f"{one.images} of {one.instance}" for one in dead)
    if any(one.alive for one in left):
        return Finding("left-overs", "ok", f"{found}: the running daemon will take them over")
    advice = "start the service: it goes on with its own and takes over those of others; never move them by hand"
    return Finding("left-overs", "warning", found, advice)


def check_clock(now: datetime, disk_now: datetime | None, newest: datetime | None) -> Finding:
    """Check the clock by that of the disk (None: not known) and by the newest image in the database."""
    advice = "set the clock and keep it set: timedatectl set-ntp true"
    if now < CLOCK_EARLIEST:
        return Finding("clock", "error", f"{now:%Y-%m-%d %H:%M} UTC, which is past", advice)
    if disk_now is not None and abs(disk_now - now) > CLOCK_OFF_MAX:
        off = (disk_now - now).total_seconds()
        return Finding("clock", "warning", f"the disk stamps files {off:+.0f} s from this machine's clock", advice)
    if newest is not None and newest - now > CLOCK_OFF_MAX:
        ahead = (newest - now).total_seconds()
        found = f"the newest image was received {ahead:.0f} s in the future: the clock was set back"
        return Finding("clock", "warning", found, advice)
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def cpu_flags(cpuinfo: str) -> frozenset[str] | None:
    """Return the flags of the first processor in the text of /proc/cpuinfo; None where it names none."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split()) if match else None


def _unless(check: str, failure: str | None, found: str, advice: str, level: Level = "error") -> Finding:
    """Return a finding of `level` for the `failure`, or one that all is well without any."""
    return Finding(check, "ok", found) if failure is None else Finding(check, level, failure, advice)


def _check_free(check: str, left: int, least: int, unit: str, setting: str) -> Finding:
    found = f"{left:_} {unit}; claiming stops below {least:_} ({setting})"
    if left < least:
        return Finding(check, "error", f"{found}: it has stopped", "make room on the root's disk; it goes on by itself")
    if left < 4 * least:
        return Finding(check, "warning", found, "make room on the root's disk soon, or lower the setting")
    return Finding(check, "ok", found)
