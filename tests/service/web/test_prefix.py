"""The page below a path of a host that it shares: every address that it gives stays below it, through any proxy."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from service import settings as settings_module
from service.web.app import create_app
from service.web.prefix import Prefixed, with_prefix
from tests.support.daemon_process import wait_until
from tests.support.visitor import FROM_OUR_PAGE, ORIGIN, Page
from tests.support.web_process import WebProcess, free_port

PREFIX = "/shop/tamis"
PASSWORD = "a long sentence"
GIVEN = ("href", "src", "action", "hx-get", "hx-post")
NGINX = """daemon off; pid {folder}/pid; error_log {folder}/error; events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location {prefix}/ {{ proxy_set_header Host $http_host; proxy_pass http://127.0.0.1:{web}{keeps}; }}
  }}
}}
"""


def behind(app: ASGIApp, strips: bool) -> ASGIApp:
    """Return `app` as seen through a proxy that passes on what is below the prefix, with or without it."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{PREFIX}/"):
                await PlainTextResponse("another's", 404)(scope, receive, send)
                return
            if strips:
                raw = scope["raw_path"].removeprefix(PREFIX.encode())
                scope = {**scope, "path": scope["path"].removeprefix(PREFIX), "raw_path": raw}
        await app(scope, receive, send)

    return proxy


@pytest.fixture(params=[True, False], ids=["stripped", "kept"])
def client(request: pytest.FixtureRequest, root: Path, ids: list[str]) -> Iterator[TestClient]:
    settings = settings_module.load(root, web_path_prefix=f"{PREFIX}/", web_password=PASSWORD)
    app = behind(create_app(root, settings), request.param)
    with TestClient(app, base_url=ORIGIN, follow_redirects=False) as client:
        yield client


def crawl(get: Callable[[str], tuple[int, str, str]], start: str) -> list[str]:
    """Follow what the pages give from `start` on; return the addresses found. `get` gives status, type and text.

    Of addresses that differ in their numbers or their query alone, three are followed.
    """
    seen, pending, alike = {start}, [start], dict[str, int]()
    while pending:
        address = pending.pop()
        status, content_type, text = get(address)
        assert status in (200, 303), f"{address}: {status}"
        if not content_type.startswith("text/html"):
            continue
        for element in Page(text).elements:
            for name in GIVEN:
                if not element.has(name) or element[name].startswith("#"):
                    continue
                found = urljoin(address, element[name])
                assert found.startswith(f"{PREFIX}/"), f"{address}: {element.tag} {name}={element[name]}"
                kind = "/".join("*" if len(part) > 20 else part for part in urlsplit(found).path.split("/"))
                followed = element.tag != "form" or element.attributes.get("method", "get") == "get"
                if found not in seen and followed and alike.get(kind, 0) < 3:
                    alike[kind] = alike.get(kind, 0) + 1
                    seen.add(found)
                    pending.append(found)
    return sorted(seen)


def sign_in(client: TestClient) -> Any:
    return client.post(f"{PREFIX}/login", data={"password": PASSWORD, "back": "/models"}, headers=FROM_OUR_PAGE)


def test_every_address_that_the_pages_give_is_below_the_prefix_and_there(client: TestClient) -> None:
    first = client.get(f"{PREFIX}/review?verdict=anomaly")
    assert (first.status_code, first.headers["location"]) == (303, f"{PREFIX}/login?back=%2Freview%3Fverdict%3Danomaly")
    answer = sign_in(client)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PREFIX}/models")
    assert f"Path={PREFIX};" in answer.headers["set-cookie"]

    def get(address: str) -> tuple[int, str, str]:
        answer = client.get(address)
        return answer.status_code, answer.headers.get("content-type", ""), answer.text

    found = crawl(get, f"{PREFIX}/")
    kinds = {address.removeprefix(PREFIX).split("?")[0].split("/")[1] for address in found}
    assert kinds == {"", "review", "models", "thresholds", "energy", "api", "images", "static"}
    assert len(found) > 30


def test_what_is_sent_leads_back_below_the_prefix(client: TestClient, ids: list[str]) -> None:
    sign_in(client)
    said = {"id": ids[0], "label": "anomaly", "back": "/review?verdict=normal"}
    answer = client.post(f"{PREFIX}/review/label", data=said, headers=FROM_OUR_PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PREFIX}/review?verdict=normal")
    card = client.post(f"{PREFIX}/review/label", data=said, headers=FROM_OUR_PAGE | {"HX-Request": "true"})
    assert f'href="{PREFIX}/images/{ids[0]}"' in card.text and 'href="/images' not in card.text
    # An address that the framework makes whole, of what it was called by.
    slash = client.get(f"{PREFIX}/review/")
    assert (slash.status_code, slash.headers["location"]) == (307, f"{PREFIX}/review")
    out = client.post(f"{PREFIX}/logout", headers=FROM_OUR_PAGE)
    assert out.headers["location"] == f"{PREFIX}/login" and f"Path={PREFIX};" in out.headers["set-cookie"]
    asked = client.get(f"{PREFIX}/", headers={"HX-Request": "true"})
    assert asked.headers["hx-redirect"] == f"{PREFIX}/login"


def test_api_is_below_the_prefix_and_says_so(client: TestClient, ids: list[str]) -> None:
    authorization = {"authorization": f"Bearer {PASSWORD}"}
    known = client.get(f"{PREFIX}/api/v1/images/{ids[0]}", headers=authorization).json()
    assert client.get(known["files"]["picture"], headers=authorization).status_code == 200
    described = client.get(f"{PREFIX}/api/v1/openapi.json", headers=authorization).json()
    assert described["servers"] == [{"url": PREFIX}]
    assert client.get("/api/v1/status", headers=authorization).status_code == 404


def test_foreign_site_is_refused_below_the_prefix_too(client: TestClient, ids: list[str]) -> None:
    sign_in(client)
    said = {"id": ids[0], "label": "anomaly"}
    headers = FROM_OUR_PAGE | {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    assert client.post(f"{PREFIX}/review/label", data=said, headers=headers).status_code == 403


def test_text_that_looks_like_an_address_is_left_alone() -> None:
    html = '<a href="/x">href="/y" src=&#34;/z&#34;</a><a href="//other/">o</a><input value="/w"><a href="#m">'
    assert with_prefix(html, "/p") == html.replace('<a href="/x"', '<a href="/p/x"')
    assert with_prefix(html, "") == html


@pytest.mark.parametrize(
    ("address", "outside"),
    [
        ("/review", "/p/review"),
        ("http://shop/review?a=http://shop/", "/p/review?a=http://shop/"),
        ("http://shop", "/p/"),
        ("http://other/review", "http://other/review"),
        ("//other/review", "//other/review"),
        ("https://shop/x", "/p/x"),
    ],
)
def test_redirects_to_elsewhere_stay(address: str, outside: str) -> None:
    assert Prefixed(PlainTextResponse(""), "/p")._outside(address, "shop") == outside


@pytest.mark.parametrize(
    "keeps", [pytest.param(False, id="stripped"), pytest.param(True, id="kept", marks=pytest.mark.long)]
)
def test_page_behind_a_real_nginx(root: Path, ids: list[str], tmp_path: Path, keeps: bool) -> None:
    """`location /tamis/ { proxy_pass http://127.0.0.1:8080/; }`, and the same without the last slash."""
    if (nginx := shutil.which("nginx")) is None:
        pytest.skip("nginx not installed")
    port, folder = free_port(), tmp_path / "nginx"
    folder.mkdir()
    environment = {"TAMIS_WEB_PATH_PREFIX": PREFIX, "TAMIS_WEB_PASSWORD": PASSWORD}
    with WebProcess(root, environment=environment) as web:
        config = folder / "nginx.conf"
        config.write_text(
            NGINX.format(folder=folder, port=port, prefix=PREFIX, web=web.port, keeps="" if keeps else "/")
        )
        here = f"http://localhost:{port}"
        with subprocess.Popen([nginx, "-p", folder, "-c", config], stderr=subprocess.DEVNULL) as server:
            try:
                browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

                def get(address: str) -> tuple[int, str, str]:
                    with browser.open(here + address) as answer:
                        assert urlsplit(answer.url).path.startswith(f"{PREFIX}/")
                        return answer.status, answer.headers["content-type"], answer.read().decode("latin-1")

                wait_until(lambda: answers(f"{here}{PREFIX}/login"), "nginx")
                form = urlencode({"password": PASSWORD, "back": "/review"}).encode()
                request = urllib.request.Request(f"{here}{PREFIX}/login", form, {"Origin": here})
                with browser.open(request) as answer:
                    assert (answer.status, answer.url) == (200, f"{here}{PREFIX}/review")
                assert len(crawl(get, f"{PREFIX}/")) > 30
            finally:
                server.terminate()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False
