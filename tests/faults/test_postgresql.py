"""PostgreSQL restarted, crashed or gone while the daemon works: it waits, loses nothing and does nothing twice."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.faults.daemon_hooks import losing_answers
from tests.faults.root_for_faults import drop_good, make_root, problems, query, settled
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.postgres_server import PostgresServer
from tests.support.web_process import WebProcess

pytest.importorskip("psycopg")

AWAY_S = 5.0
A_ROUND = 40
BATCH_WAITS_S = 60.0


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def house(server: PostgresServer, tmp_path: Path) -> Path:
    return make_root(tmp_path / "root", f'database_url = "{server.url()}"\nfalse_alarm_rate = 0.01\n')


def restart(server: PostgresServer) -> None:
    """As an update of its package does: whoever is connected is told, and cut off."""
    server.restart("fast")


def restart_at_once(server: PostgresServer) -> None:
    """As by SIGQUIT: nothing is finished, and it recovers from its log at the start."""
    server.restart("immediate")


def crash(server: PostgresServer) -> None:
    """All of its processes are killed, and it recovers from its log at the start."""
    server.crash()
    server.start()


def go_away(server: PostgresServer) -> None:
    """It stays away for a while, for longer than any query takes."""
    server.stop("fast")
    time.sleep(AWAY_S)
    server.start()


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.long)])
def test_postgresql_that_goes_away_under_load_costs_no_image_and_repeats_none(
    rounds: int, server: PostgresServer, house: Path
) -> None:
    dropped = []
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        for number in range(rounds):
            for interrupt in (restart, restart_at_once, crash, go_away):
                dropped += drop_good(house, A_ROUND, f"{number}-{interrupt.__name__}")
                before = len(dropped) - A_ROUND
                wait_until(lambda least=before: _rows(house) > least, "the first of a round on record", 120.0)
                interrupt(server)
                wait_until(settled(house, len(dropped)), "all at their place", 120.0)
        assert daemon.process.poll() is None, daemon.log_text()
        assert daemon.stop() == 0, daemon.log_text()
    print(f"{4 * rounds} times away, {len(dropped)} images: {_rows(house)} rows, {problems(house, dropped)}")
    assert problems(house, dropped) == []


def test_start_without_its_postgresql_fails_by_name_and_moves_nothing(server: PostgresServer, house: Path) -> None:
    dropped = drop_good(house, 3)
    server.stop()
    with DaemonProcess(house) as daemon:
        # 1 and not 78: the service manager is to try again.
        assert daemon.process.wait(BATCH_WAITS_S) == 1
        assert "expected a server that answers" in daemon.log_text()
    server.start()
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(settled(house, 3), "all at their place")
        assert daemon.stop() == 0
    assert problems(house, dropped) == []


def test_stop_without_its_postgresql_does_not_wait_for_it(server: PostgresServer, house: Path) -> None:
    dropped: list[str] = []
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()

        def metered() -> bool:
            # The meter starts beside the work, and has a last row to write only then.
            dropped.extend(drop_good(house, 3, f"good-{len(dropped)}"))
            wait_until(settled(house, len(dropped)), "all at their place")
            return bool(query(house, "SELECT id FROM energy"))

        wait_until(metered, "a row of energy")
        server.stop()
        assert daemon.stop() == 0, daemon.log_text()
        assert "the energy since the last row is not on record" in daemon.log_text()
    server.start()
    assert problems(house, dropped) == []


def test_page_says_so_while_its_postgresql_is_away_and_works_again_after(server: PostgresServer, house: Path) -> None:
    def asked(page: WebProcess) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{page.url}/api/v1/images", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with WebProcess(house) as page:
        assert asked(page)[0] == 200
        server.stop()
        status, said = asked(page)
        assert status == 503 and "its server does not answer" in said
        server.start()
        assert asked(page)[0] == 200
        assert page.stop() == 0


def test_commit_whose_answer_is_lost_is_not_made_twice(house: Path, tmp_path: Path) -> None:
    """A server that ends between a commit and its answer leaves open whether it holds; here it does."""
    dropped = []
    with DaemonProcess(house, environment=losing_answers(tmp_path, 2)) as daemon:
        daemon.wait_ready()
        for number in range(5):
            dropped += drop_good(house, 10, f"round-{number}")
            wait_until(settled(house, len(dropped)), "all at their place")
        assert daemon.process.poll() is None and daemon.stop() == 0, daemon.log_text()
    assert problems(house, dropped) == []
    [scored] = query(house, "SELECT sum(images) AS images FROM energy WHERE kind = 'scoring'")
    [charged] = query(house, "SELECT count(*) AS images FROM images WHERE energy_id IS NOT NULL")
    [twice] = query(house, "SELECT count(*) - count(DISTINCT started_at) AS rows FROM energy")
    assert scored["images"] == charged["images"] > 0 and twice["rows"] == 0


def _rows(house: Path) -> int:
    try:
        [row] = query(house, "SELECT count(*) AS n FROM images")
    except psycopg.OperationalError:
        return -1
    return int(row["n"])
