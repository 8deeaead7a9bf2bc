"""Whom the page answers: by which name, from where, with which password; and what every answer says."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import TimestampSigner

from service.storage.database.driver import sqlite3
from service.web import security
from service.web.security import BODY_BYTES_MAX, POLICY, is_loopback, names_of
from service.web.sessions import SESSION_S, Attempts
from tests.support.visitor import FROM_OUR_PAGE, ORIGIN, Page, Visitor

PASSWORD = "correct horse "


def reviews(root: Path) -> int:
    with sqlite3.connect(root / "tamis.db") as connection:
        return int(connection.execute("SELECT count(*) FROM reviews").fetchone()[0])


# By which name


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "localhost@evil.example", "127.0.0.1.nip.io", "",
     "localhost:80:80", "[::1", "user@localhost", "localhost/x", "0.0.0.0"],
)  # fmt: skip
def test_foreign_host_is_refused_and_named(reader: Visitor, host: str) -> None:
    for address in ("/", "/api/v1/status", "/static/page.css"):
        answer = reader.get(address, host=host)
        assert answer.status_code == 421
        assert "expected one of 127.0.0.1, ::1, localhost" in answer.text
        assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", "localhost."]
)
def test_own_names_are_answered(reader: Visitor, host: str) -> None:
    assert reader.get("/api", host=host).status_code == 200


def test_two_hosts_are_refused(reader: Visitor) -> None:
    answer = reader.client.get("/", headers=[("host", "localhost"), ("host", "evil.example")])
    assert answer.status_code == 421


def test_names_of_the_setting_are_answered_and_no_others(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_hosts=("tamis.factory.example",)) as visitor:
        assert visitor.get("/api", host="tamis.factory.example").status_code == 200
        assert visitor.get("/api", host="tamis.factory.example.evil").status_code == 421


def test_wildcard_address_is_no_name() -> None:
    assert "0.0.0.0" not in names_of("0.0.0.0", ())
    assert "192.0.2.7" in names_of("192.0.2.7", ())


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("192.168.1.5", False), ("::", False), ("factory.example", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str, own: bool) -> None:
    assert is_loopback(host) is own


# From where


WRITES = (
    ("/review/label", {"id": "ID", "label": "anomaly"}),
    ("/models/default/v2/promote", {"now": "v1"}),
    ("/models/default/rollback", {"now": "v1"}),
    ("/thresholds/default", {"rate": "0.05"}),
    ("/who", {"who": "Mallory"}),
    ("/login", {"password": "guess"}),
    ("/logout", {}),
)
API_WRITES = (
    ("/api/v1/images/ID/label", {"label": "anomaly"}),
    ("/api/v1/labels", {"ids": ["ID"], "label": "anomaly"}),
    ("/api/v1/models/default/v2/promote", {}),
    ("/api/v1/models/default/rollback", {}),
    ("/api/v1/thresholds/default", {"false_alarm_rate": 0.05}),
)


def test_every_route_that_writes_is_among_those_tried() -> None:
    """By the text of the modules: no route is forgotten, however they are put together."""
    web = Path(security.__file__).parent
    found = [re.findall(r'router\.(?!get)(\w+)\(\s*"', path.read_text()) for path in web.rglob("*.py")]
    assert sorted(method for methods in found for method in methods) == ["post"] * len(WRITES + API_WRITES)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"origin": "http://[::1"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": ""},
        {"sec-fetch-site": "same-origin", "origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site", "origin": ORIGIN},
    ],
)
def test_write_from_another_site_is_refused_and_changes_nothing(
    reader: Visitor, ids: list[str], headers: dict[str, str]
) -> None:
    refuses_all(reader, ids[0], headers, [*WRITES, *API_WRITES])


def refuses_all(visitor: Visitor, id: str, headers: dict[str, str], writes: Sequence[tuple[str, Any]]) -> None:
    """Try `writes` on the image `id`: each is refused for where it comes from, and the root stays as it was."""
    before = dump(visitor.root)
    for address, fields in writes:
        address, body = address.replace("ID", id), json.loads(json.dumps(fields).replace("ID", id))
        api = address.startswith("/api/")
        answer = visitor.client.post(address, headers=headers, **({"json": body} if api else {"data": body}))
        assert answer.status_code == 403, (address, answer.text)
        assert "origin: expected" in (answer.json()["error"] if api else answer.text)
        assert "set-cookie" not in answer.headers
    assert dump(visitor.root) == before


def dump(root: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of every table."""
    with sqlite3.connect(root / "tamis.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: connection.execute(f'SELECT * FROM "{name}" ORDER BY 1').fetchall() for [name] in tables}


def test_form_of_a_browser_that_says_not_where_it_comes_from_is_refused(reader: Visitor, ids: list[str]) -> None:
    """An old browser sends neither header, not even for another site's form: none of its forms can be told apart."""
    refuses_all(reader, ids[0], {}, WRITES)
    refuses_all(reader, ids[0], {"referer": f"{ORIGIN}/review"}, WRITES)


@pytest.mark.parametrize("headers", [{"origin": ORIGIN}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}])
def test_either_header_does_for_a_form_of_the_page(visitor: Visitor, ids: list[str], headers: dict[str, str]) -> None:
    answer = visitor.client.post("/review/label", data={"id": ids[0], "label": "anomaly"}, headers=headers)
    assert answer.status_code == 303
    assert reviews(visitor.root) == 1


def test_program_that_is_no_browser_needs_neither_header_to_write_by_the_api(visitor: Visitor, ids: list[str]) -> None:
    assert visitor.json(f"/images/{ids[0]}/label", {"label": "anomaly"})["label"] == "anomaly"


def test_no_other_site_is_ever_allowed_to_read(reader: Visitor) -> None:
    for method in ("GET", "OPTIONS"):
        answer = reader.client.request(
            method,
            "/api/v1/images",
            headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
        )
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_api_takes_json_alone_so_that_no_foreign_form_can_write(
    reader: Visitor, ids: list[str], content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = reader.client.post(f"/api/v1/images/{ids[0]}/label", content=b'{"label": "anomaly"}', headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"].startswith("content-type: expected application/json; found")
    assert reviews(reader.root) == 0


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
def test_form_of_another_type_is_refused(reader: Visitor, ids: list[str], content_type: str) -> None:
    answer = reader.client.post(
        "/review/label", content=f"id={ids[0]}&label=anomaly", headers=FROM_OUR_PAGE | {"content-type": content_type}
    )
    assert answer.status_code == 415
    assert reviews(reader.root) == 0


# With which password


def basic(password: str, user: str = "") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_without_the_password_nothing_is_told_but_where_to_sign_in(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        for address in ("/", "/review", f"/images/{ids[0]}", "/models/default", "/energy", "/api", "/nowhere"):
            answer = visitor.get(address)
            assert answer.status_code in (303, 401)
            assert ids[0] not in answer.text
        assert visitor.get("/review?product=a").headers["location"] == "/login?back=%2Freview%3Fproduct%3Da"
        for address in ("/images", "/status", "/openapi.json", f"/images/{ids[0]}"):
            answer = visitor.get(f"/api/v1{address}")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
            assert answer.json() == {"error": "password: expected one; found none"}
        for name in ("picture", "thumb", "map", "map-thumb"):
            assert visitor.get(f"/images/{ids[0]}/{name}").status_code == 401
        answer = visitor.client.post(f"/api/v1/images/{ids[0]}/label", json={"label": "anomaly"})
        assert answer.status_code == 401
        part = visitor.get("/", **{"hx-request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login")
        assert reviews(root) == 0


def sign_in(visitor: Visitor, password: str, back: str = "/") -> Any:
    return visitor.send("/login", {"password": password, "back": back})


def test_password_signs_in_until_signed_out(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        answer = sign_in(visitor, PASSWORD, "/review?product=default")
        assert (answer.status_code, answer.headers["location"]) == (303, "/review?product=default")
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "SameSite=strict" in answer.headers["set-cookie"]
        assert visitor.get("/review").status_code == 200
        assert visitor.json("/status")["champions"] == {"default": "v1"}
        assert visitor.send("/logout", {}).headers["location"] == "/login"
        assert visitor.get("/review").status_code == 303


@pytest.mark.parametrize("wrong", ["", "correct horse", "Correct horse ", "x" * 5000, "ä\x00"])
def test_wrong_password_does_not_sign_in(root: Path, ids: list[str], wrong: str) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        answer = sign_in(visitor, wrong)
        assert answer.status_code == 401
        assert "password: wrong" in Page(answer.text).said()
        assert visitor.get("/review").status_code == 303
        assert visitor.get("/api/v1/status", authorization=basic("wrong")).status_code == 401


def test_the_cookie_of_before_the_sign_in_never_becomes_one_that_is_signed_in(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        before = {"cookie": "tamis_8080=chosen.by.another"}
        answer = visitor.send("/login", {"password": PASSWORD}, **before)
        assert answer.status_code == 303
        assert "chosen" not in answer.headers["set-cookie"]
        visitor.client.cookies.clear()
        assert visitor.get("/review", **before).status_code == 303


@pytest.mark.parametrize("authorization", [basic(PASSWORD, "PLC 7"), f"Bearer {PASSWORD.strip()}"])
def test_programs_send_the_password_with_each_request(root: Path, ids: list[str], authorization: str) -> None:
    password = PASSWORD if authorization.startswith("Basic") else PASSWORD.strip()
    with Visitor(root, web_password=password) as visitor:
        done = visitor.json(
            f"/images/{ids[0]}/label", {"label": "anomaly", "by": "forged"}, authorization=authorization
        )
        assert done["label"] == "anomaly"
        known = visitor.json(f"/images/{ids[0]}", authorization=authorization)
        assert known["labelled_by"] == ("PLC 7" if authorization.startswith("Basic") else "forged")


@pytest.mark.parametrize("authorization", ["Basic", "Basic !!!", "Basic /w==", "Digest x", "Bearer", "x" * 1000])
def test_what_is_no_authorization_is_none(root: Path, ids: list[str], authorization: str) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        assert visitor.get("/api/v1/status", authorization=authorization).status_code == 401


def test_password_can_be_tried_ten_times_and_then_has_to_wait(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        tried = [sign_in(visitor, f"guess {number}").status_code for number in range(10)]
        assert tried == [401] * 10
        answer = sign_in(visitor, PASSWORD)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert "tried too often" in Page(answer.text).said()
        api = visitor.get("/api/v1/status", authorization=basic(PASSWORD))
        assert (api.status_code, int(api.headers["retry-after"]) > 0) == (429, True)


def test_attempts_come_back_with_time_and_one_address_does_not_stop_another() -> None:
    attempts = Attempts(each_max=3, each_s=6.0, all_max=10, all_s=1.0)
    for _ in range(3):
        assert attempts.wait_s("a", 100.0) == 0
        attempts.failed("a", 100.0)
    assert attempts.wait_s("a", 100.0) == pytest.approx(6.0)
    assert attempts.wait_s("b", 100.0) == 0
    assert attempts.wait_s("a", 106.1) == 0


def test_many_addresses_together_have_a_limit_too() -> None:
    attempts = Attempts(each_max=3, each_s=6.0, all_max=10, all_s=1.0)
    for number in range(10):
        attempts.failed(f"address {number}", 100.0)
    assert attempts.wait_s("another", 100.0) > 0
    assert attempts.wait_s("another", 111.0) == 0


def test_no_number_of_addresses_fills_the_memory() -> None:
    attempts = Attempts()
    for number in range(5000):
        attempts.failed(str(number), float(number))
    assert len(attempts._of) <= 1000


def test_session_ends_at_its_age_and_none_is_made_up(
    root: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        sign_in(visitor, PASSWORD)
        given = visitor.client.cookies["tamis_8080"]
        now = time.time()
        for moved_s, status in ((SESSION_S - 60, 200), (SESSION_S + 60, 303), (-60, 303), (0, 200)):
            monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _, at=int(now + moved_s): at)
            assert visitor.get("/api").status_code == status, moved_s
        nonce, at, signature = given.split(".")
        for forged in (
            "", ".", "..", "a.b.c.d", f"{'0' * 32}.{at}.{signature}", f"{nonce}.zzzzzz.{signature}", f"{nonce}.{at}",
            f"{nonce}.{at}.", given[:-1], given + "A", "ü.ü.ü",
        ):  # fmt: skip
            visitor.client.cookies.clear()
            assert (
                visitor.client.get("/api", headers=[(b"cookie", f"tamis_8080={forged}".encode())]).status_code == 303
            ), forged


def test_session_ends_with_the_process_and_so_with_its_password(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        sign_in(visitor, PASSWORD)
        given = dict(visitor.client.cookies)
    for password in (PASSWORD, "another"):
        with Visitor(root, web_password=password) as visitor:
            visitor.client.cookies.update(given)
            assert visitor.get("/api").status_code == 303


def test_cookie_is_given_to_those_who_sign_in_alone(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_password=PASSWORD) as visitor:
        assert "set-cookie" not in visitor.get("/login").headers
        assert "set-cookie" not in sign_in(visitor, "wrong").headers
        assert "set-cookie" not in visitor.get("/api", authorization=basic(PASSWORD)).headers
        assert visitor.get("/api").status_code == 303


# Who


def test_header_of_the_proxy_says_who_and_nobody_else_can(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_user_header="x-remote-user") as visitor:
        assert visitor.get("/review").status_code == 403
        assert "expected the user's name" in visitor.get("/api/v1/status").json()["error"]
        visitor.client.headers["x-remote-user"] = "Ada"
        visitor.client.cookies.set("tamis_who", "Mallory")
        visitor.json(f"/images/{ids[0]}/label", {"label": "anomaly", "by": "Mallory"})
        assert visitor.json(f"/images/{ids[0]}")["labelled_by"] == "Ada"


def test_header_that_came_twice_is_refused_and_one_in_utf_8_is_read(root: Path, ids: list[str]) -> None:
    with Visitor(root, web_user_header="x-remote-user") as visitor:
        twice = [("x-remote-user", "Mallory"), ("X-Remote-User", "Ada")]
        assert visitor.client.get("/review", headers=twice).status_code == 403
        answer = visitor.client.get("/review", headers=[(b"x-remote-user", "Zoë Łuk".encode())])
        assert "You are <strong>Zoë Łuk</strong>" in answer.text


def test_header_is_nothing_where_no_setting_names_it(visitor: Visitor, ids: list[str]) -> None:
    visitor.json(f"/images/{ids[0]}/label", {"label": "anomaly"}, **{"x-remote-user": "Mallory"})
    assert visitor.json(f"/images/{ids[0]}")["labelled_by"] is None


def test_own_name_is_remembered_plain_and_of_bounded_length(visitor: Visitor, ids: list[str]) -> None:
    visitor.send("/who", {"who": "<b>Zoë</b>\r\nSet-Cookie: x\x00" + "y" * 500, "back": "/review"})
    visitor.send("/review/label", {"id": ids[0], "label": "anomaly"})
    said = visitor.json(f"/images/{ids[0]}")["labelled_by"]
    assert said.startswith("<b>Zoë</b>  Set-Cookie: x")
    assert len(said) <= 100
    page = visitor.get(f"/images/{ids[0]}").text
    assert "<b>Zoë" not in page
    assert "&lt;b&gt;Zoë" in page


@pytest.mark.parametrize(
    "back", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nb: c"]
)
def test_no_form_leads_to_another_site(visitor: Visitor, ids: list[str], back: str) -> None:
    who = visitor.send("/who", {"who": "Ada", "back": back})
    label = visitor.send("/review/label", {"id": ids[0], "label": "anomaly", "back": back})
    assert who.headers["location"] == "/"
    assert label.headers["location"] == "/review"


# Which file


@pytest.mark.parametrize(
    "id",
    ["..%2F..%2Ftamis.toml", "..%2Ftamis.db", "%2e%2e", "tamis.db", "%00", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x" * 300,
     "'%20OR%201=1--", "%F0%9F%92%A9", "..%5C..%5Ctamis.db"],
)  # fmt: skip
def test_what_is_no_id_shows_nothing(reader: Visitor, id: str) -> None:
    for address in ("/images/{}", "/images/{}/picture", "/images/{}/thumb", "/images/{}/map", "/images/{}/map-thumb",
                    "/api/v1/images/{}"):  # fmt: skip
        answer = reader.get(address.format(id))
        assert answer.status_code in (404, 422), address
        assert b"SQLite format" not in answer.content
    answer = reader.client.post(f"/api/v1/images/{id}/label", json={"label": "anomaly"})
    assert answer.status_code in (404, 409, 422)
    assert reviews(reader.root) == 0


@pytest.mark.parametrize(
    "name", ["..%2Fapp.py", "..%2F..%2Fsecurity.py", "%2Fetc%2Fpasswd", ".", "page.css%00", "htmx.LICENSE.txt", "x"]
)
def test_no_file_but_the_own_ones_is_served(reader: Visitor, name: str) -> None:
    assert reader.get(f"/static/{name}").status_code == 404


def rewrite(root: Path, id: str, path: str) -> None:
    with sqlite3.connect(root / "tamis.db") as connection:
        connection.execute("UPDATE images SET path = ?, destination = ? WHERE id = ?", (path, path, id))


@pytest.mark.parametrize(
    "path", ["tamis.toml", "../outside.png", "normal/../../outside.png", "/etc/passwd", "models/x.png", "normal"]
)
def test_nothing_outside_the_folders_of_images_is_opened_whatever_a_row_says(
    visitor: Visitor, ids: list[str], path: str
) -> None:
    (visitor.root.parent / "outside.png").write_bytes(
        (visitor.root / visitor.json(f"/images/{ids[0]}")["path"]).read_bytes()
    )
    rewrite(visitor.root, ids[0], path)
    for name in ("picture", "thumb"):
        answer = visitor.get(f"/images/{ids[0]}/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "image/svg+xml")


def test_links_fifos_and_what_is_no_image_are_not_shown(visitor: Visitor, ids: list[str]) -> None:
    lies = [visitor.root / visitor.json(f"/images/{id}")["path"] for id in ids[:4]]
    outside = visitor.root.parent / "outside.png"
    outside.write_bytes(lies[0].read_bytes())
    replaced: list[Callable[[Path], Any]] = [
        lambda path: path.symlink_to(outside),
        os.mkfifo,
        Path.mkdir,
        lambda path: path.write_bytes(b"<html><script>alert(1)</script>"),
    ]
    for path, make in zip(lies, replaced, strict=True):
        path.unlink()
        make(path)
    for id in ids[:4]:
        for name in ("picture", "thumb"):
            answer = visitor.get(f"/images/{id}/{name}")
            assert (answer.status_code, answer.headers["content-type"]) == (404, "image/svg+xml")


def test_folder_that_is_a_link_is_not_followed(visitor: Visitor, ids: list[str]) -> None:
    day = (visitor.root / visitor.json(f"/images/{ids[0]}")["path"]).parent
    day.rename(visitor.root.parent / "elsewhere")
    day.symlink_to(visitor.root.parent / "elsewhere")
    assert visitor.get(f"/images/{ids[0]}/picture").status_code == 404


def test_image_opened_by_itself_runs_nothing(reader: Visitor, ids: list[str]) -> None:
    answer = reader.get(f"/images/{ids[0]}/picture")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


# How much


def test_body_has_a_bound_announced_or_not(reader: Visitor, ids: list[str]) -> None:
    body = json.dumps({"label": "anomaly", "note": "x" * BODY_BYTES_MAX}).encode()
    headers = {"content-type": "application/json"}
    address = f"/api/v1/images/{ids[0]}/label"
    announced = reader.client.post(address, content=body, headers=headers)
    streamed = reader.client.post(
        address, content=(body[at : at + 65536] for at in range(0, len(body), 65536)), headers=headers
    )
    # A digit to some, no number to others.
    lying = reader.client.post(address, content=b"{}", headers=[*headers.items(), (b"content-length", b"\xb2")])
    assert [one.status_code for one in (announced, streamed, lying)] == [413, 413, 413]
    assert reviews(reader.root) == 0


def test_form_of_too_many_fields_is_refused(reader: Visitor) -> None:
    answer = reader.client.post("/review/label", content="id=x&" * 1001, headers=FROM_OUR_PAGE)
    assert answer.status_code == 400
    assert "Too many fields" in answer.text


@pytest.mark.parametrize("content", ["id=%FF", "id=ä".encode().decode("latin-1"), "&&&", "=", "id"])
def test_form_that_is_none_is_an_error_and_not_a_failure(reader: Visitor, content: str) -> None:
    answer = reader.client.post("/review/label", content=content.encode(), headers=FROM_OUR_PAGE)
    assert answer.status_code == 400


# Every answer


def test_every_answer_of_every_kind_carries_the_headers(root: Path, ids: list[str]) -> None:
    with Visitor(root) as visitor:
        answers = [
            visitor.get("/"),
            visitor.get("/static/page.css"),
            visitor.get("/static/htmx.min.js"),
            visitor.get("/api/v1/status"),
            visitor.get(f"/images/{ids[0]}/thumb"),
            visitor.get("/login"),
            visitor.get("/nowhere"),
            visitor.get("/api/v1/nowhere"),
            visitor.get("/api/v1/images?limit=x"),
            visitor.get("/", host="evil.example"),
            visitor.client.post("/api/v1/labels", json={}),
            visitor.client.put("/api/v1/status", json={}),
            visitor.client.post("/review/label", data={}),
            visitor.send("/review/label", {}),
            visitor.send("/who", {"who": "Ada"}),
        ]
        with sqlite3.connect(root / "tamis.db") as connection:
            connection.execute("ALTER TABLE shadow_scores RENAME TO gone")
        answers += [visitor.get(f"/images/{ids[0]}"), visitor.get(f"/api/v1/images/{ids[0]}")]
    assert {one.status_code for one in answers} == {200, 303, 400, 403, 404, 405, 421, 422, 500}
    for one in answers:
        assert "default-src 'none'" in one.headers["content-security-policy"], one.url
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["x-frame-options"] == "DENY"
        assert one.headers["referrer-policy"] == "same-origin"
        assert one.headers["cross-origin-opener-policy"] == "same-origin"
        assert one.headers["cross-origin-resource-policy"] == "same-origin"
        assert one.headers["cache-control"]
        assert "server" not in one.headers
    assert "shadow_scores" not in answers[-1].text


def test_policy_lets_no_script_style_or_image_in_from_elsewhere() -> None:
    allowed = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert allowed.pop("default-src") == "'none'"
    assert allowed.pop("frame-ancestors") == "'none'"
    assert allowed.pop("base-uri") == "'none'"
    assert set(allowed.values()) == {"'self'"}


def test_what_is_private_is_kept_by_no_cache(reader: Visitor, ids: list[str]) -> None:
    for address in ("/", "/review", f"/images/{ids[0]}", "/api/v1/images"):
        assert reader.get(address).headers["cache-control"] == "no-store"
    assert reader.get(f"/images/{ids[0]}/thumb").headers["cache-control"].startswith("private")


def test_behind_tls_cookies_are_for_tls_alone(root: Path, ids: list[str]) -> None:
    assert ORIGIN.startswith("http:")
    with Visitor(root, web_password=PASSWORD) as visitor:
        for address, fields in (("/login", {"password": PASSWORD}), ("/who", {"who": "Ada"}), ("/logout", {})):
            behind_tls = visitor.send(address, fields, **{"x-forwarded-proto": "https"}).headers["set-cookie"]
            visitor.client.cookies.clear()
            sign_in(visitor, PASSWORD)
            plain = visitor.send(address, fields).headers["set-cookie"]
            for said in (behind_tls, plain):
                assert "HttpOnly" in said and "SameSite=strict" in said
            assert "Secure" in behind_tls and "Secure" not in plain
