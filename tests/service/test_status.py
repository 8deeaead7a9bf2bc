from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.claim import InstanceLock
from service.commands.status import report
from service.settings import IGNORED_NAMES
from tests.service.brightness_version import install


def test_new_root_has_no_daemon_and_nothing_waits(root: Path) -> None:
    found = report(root, IGNORED_NAMES, datetime.now(UTC))
    assert (found["daemons"], found["incoming"], found["champions"], found["last_received_at"]) == ([], {}, {}, None)


def test_files_that_wait_are_counted_by_product_and_by_lack_of_a_model(root: Path, drop: Callable[..., Path]) -> None:
    install(root, product="gears")
    for name in ("gears/a.png", "gears/b.png", "screws/c.png", "screws/d.png.part"):
        drop(name)
    found = report(root, IGNORED_NAMES, datetime.now(UTC))
    assert found["incoming"] == {"gears": 2, "screws": 1}
    assert found["waiting_for_model"] == ["screws"] and found["champions"] == {"gears": "v1"}


def test_running_daemon_is_told_from_one_that_ended(root: Path) -> None:
    lock = InstanceLock(root, "main")
    assert lock.acquire() is None
    assert [d["running"] for d in report(root, IGNORED_NAMES, datetime.now(UTC))["daemons"]] == [True]
    lock.release()
    (root / "processing/main/.status.json").write_text('{"instance": "main", "placed": 7}')
    [daemon] = report(root, IGNORED_NAMES, datetime.now(UTC))["daemons"]
    assert (daemon["running"], daemon["placed"]) == (False, 7)
