"""Instances: the daemons of one root, each with a folder in `processing/`, its lock and its status file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from service.filesystem.mounts import Mounts
from service.filesystem.process_lock import ProcessLock
from service.root import INSTANCE_LOCK, INSTANCE_STATUS, KINDS, PROCESSING


def instance_lock(root: Path, instance: str) -> ProcessLock:
    """Return the lock that the daemon `instance` of `root` holds while it runs."""
    return ProcessLock(root / PROCESSING / instance / INSTANCE_LOCK, instance=instance)


def instances(root: Path) -> list[str]:
    """Return the names of all instances that have a processing folder under `root`."""
    return sorted(path.name for path in (root / PROCESSING).iterdir() if path.is_dir() and not path.is_symlink())


def instances_that_ran(root: Path) -> list[str]:
    """Return the names of the instances that run, or ran once; a start that was refused is none."""

    def ran(name: str) -> bool:
        try:
            return _status_path(root, name).exists() or instance_lock(root, name).held()
        except OSError:  # this user may not look
            return True

    return [name for name in instances(root) if ran(name)]


def lock_root(root: Path, instance: str, *, shared: bool, stack: ExitStack) -> None:
    """Lock `root` for the daemon `instance` until `stack` closes.

    Raises ConfigurationError where one of that name runs already, or, unless the root is `shared`, any other.
    """
    if not shared:
        # Before the own lock too: one that is refused leaves no folder behind.
        _refuse_others(root, instance)
    lock = instance_lock(root, instance)
    holder = lock.acquire_patiently()
    if holder is not None:
        raise ConfigurationError(f"root {root}: instance {instance!r} is already running: {holder}")
    stack.callback(lock.release)
    if not shared:
        _refuse_others(root, instance)


def _refuse_others(root: Path, instance: str) -> None:
    for name in other_instances(root, instance):
        other = instance_lock(root, name)
        holder = other.acquire()
        if holder is not None:
            raise ConfigurationError(
                f"root {root}: expected no other daemon; found {holder}. Stop it, or set share_root on both."
            )
        other.release()


def other_instances(root: Path, instance: str) -> list[str]:
    return [name for name in instances(root) if name != instance]


def read_status(root: Path, instance: str) -> dict[str, Any]:
    """Return the last status of the daemon `instance`, and whether it is running.

    `running` is None, with the reason in `unknown`, where this user may not look.
    """
    try:
        running = instance_lock(root, instance).held()
        said = last_status(root, instance)
    except OSError as error:
        return {"instance": instance, "running": None, "unknown": f"{error.strerror}: {error.filename}"}
    return {"instance": instance, "running": running} | said | {"instance": instance}


def statuses(root: Path) -> list[dict[str, Any]]:
    """Return the status of each daemon of `root` as `read_status`; of none where this user may not list them."""
    try:
        names = instances_that_ran(root)
    except OSError as error:
        return [{"instance": "any", "running": None, "unknown": f"{error.strerror}: {error.filename}"}]
    return [read_status(root, name) for name in names]


def last_status(root: Path, instance: str) -> dict[str, Any]:
    """Return the status that the daemon `instance` last wrote; empty where there is none or a power cut emptied it."""
    try:
        said = json.loads(_status_path(root, instance).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def mounts_of(root: Path, *names: str) -> Mounts:
    """Return the mounts that the daemons `names`, by default all of `root`, have seen in its folders."""
    seen: set[str] = set()
    for name in names or instances(root):
        said = last_status(root, name).get("mounts", ())
        seen |= {one for one in said if isinstance(one, str)} if isinstance(said, list) else set()
    return Mounts(root.resolve(), KINDS, seen)


def write_status(root: Path, instance: str, status: Mapping[str, object]) -> None:
    """Replace the status of `instance`."""
    path = _status_path(root, instance)
    partial = path.with_name(INSTANCE_STATUS + ".tmp")
    partial.write_text(json.dumps(status), encoding="utf-8")
    partial.replace(path)


def _status_path(root: Path, instance: str) -> Path:
    return root / PROCESSING / instance / INSTANCE_STATUS
