"""`tamis web` as a real process: what it refuses to start with, and that it stops when asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.web_process import REPOSITORY, WebProcess, free_port


def tamis_web(root: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "web", "--root", str(root), *options],
        cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "factory.example"])
def test_address_that_others_reach_is_refused_without_a_password_or_proxy(root: Path, host: str) -> None:
    done = tamis_web(root, "--host", host)
    assert done.returncode == 78
    assert f"setting web_host: expected this machine's own address, such as 127.0.0.1; found '{host}'" in done.stderr
    assert "TAMIS_WEB_PASSWORD" in done.stderr
    assert done.stdout == ""


def test_empty_password_is_none(root: Path) -> None:
    done = tamis_web(root, "--host", "0.0.0.0", TAMIS_WEB_PASSWORD="")
    assert done.returncode == 78
    assert "web_password" in done.stderr


def test_without_the_extra_the_error_says_what_to_install(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('fastapi', 'uvicorn'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name in ('fastapi', 'uvicorn') else"
        " real(name, package)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    done = tamis_web(root, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert done.returncode == 78
    assert "found no fastapi, no uvicorn" in done.stderr
    assert "pip install 'tamis[web]'" in done.stderr
    status = subprocess.run(
        [sys.executable, "-m", "service", "--version"],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert status.returncode == 0


def test_port_that_is_taken_is_named(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tamis_web(root, "--port", str(port))
    assert done.returncode == 1
    assert f"expected 127.0.0.1 port {port} to be free" in done.stderr


def test_root_without_a_database_is_refused(tmp_path: Path) -> None:
    done = tamis_web(tmp_path)
    assert done.returncode in (1, 2, 78)
    assert str(tmp_path) in done.stderr
    assert not (tmp_path / "tamis.db").exists()


def test_page_is_served_until_sigterm_which_ends_it_with_0(root: Path) -> None:
    install(root)
    fill(root, 3)
    with WebProcess(root) as page:
        with urllib.request.urlopen(f"{page.url}/api/v1/images", timeout=10) as answer:
            assert len(json.load(answer)["images"]) == 3
            assert "server" not in answer.headers
        # A connection that says nothing must not hold it up.
        with socket.create_connection(("127.0.0.1", page.port)) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\n")
            assert page.stop() == 0
    log = page.log.read_text()
    assert "serving" in log
    assert "stopped" in log
    assert "Traceback" not in log


def test_labels_that_arrive_while_it_is_stopped_are_kept_or_never_answered(root: Path) -> None:
    install(root)
    ids = fill(root, 40)
    said: list[str] = []
    with WebProcess(root) as page:
        first = threading.Event()

        def label() -> None:
            for id in ids:
                request = urllib.request.Request(
                    f"{page.url}/api/v1/images/{id}/label",
                    data=b'{"label": "anomaly"}',
                    headers={"content-type": "application/json"},
                )
                try:
                    with urllib.request.urlopen(request, timeout=20) as answer:
                        said.append(json.load(answer)["id"])
                except (OSError, urllib.error.URLError):
                    first.set()
                    return
                first.set()

        labelling = threading.Thread(target=label)
        labelling.start()
        assert first.wait(30)
        assert page.stop() == 0
        labelling.join(30)
    assert said
    with WebProcess(root) as page:
        for id in said:
            with urllib.request.urlopen(f"{page.url}/api/v1/images/{id}", timeout=10) as answer:
                assert json.load(answer)["label"] == "anomaly"
        assert page.stop() == 0


def test_password_lets_it_listen_for_others_and_is_in_no_log(root: Path) -> None:
    port = free_port()
    with WebProcess(root, "--host", "0.0.0.0", environment={"TAMIS_WEB_PASSWORD": "correct horse"}) as page:
        assert page.port != port
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{page.url}/api/v1/status", timeout=10)
        assert refused.value.code == 401
        assert page.stop() == 0
    assert "correct horse" not in page.log.read_text()
