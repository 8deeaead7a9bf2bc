"""Somebody at the page, without a browser: keeps cookies, sends the forms that a page holds, reads what it says."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from types import TracebackType
from typing import Any

from httpx2 import Response
from starlette.testclient import TestClient

from service import settings as settings_module
from service.web.app import create_app

ORIGIN = "http://localhost:8080"
FROM_OUR_PAGE = {"origin": ORIGIN, "sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}


class Element:
    """An element of a page: its name, its attributes and the text right within it."""

    def __init__(self, tag: str, attributes: dict[str, str | None], inside: tuple[str, ...]) -> None:
        self.tag, self.attributes, self.inside = tag, attributes, inside
        self.text = ""

    def __getitem__(self, name: str) -> str:
        return self.attributes[name] or ""

    def has(self, name: str) -> bool:
        return name in self.attributes


class Page(HTMLParser):
    """The elements of a page in order; `inside` of one are the names of those around it."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), tuple(one.tag for one in self._open))
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1].text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = attributes.items()
        return [one for one in self.elements if one.tag == tag and all(one.attributes.get(k) == v for k, v in wanted)]

    def said(self) -> str:
        """What the page says went wrong."""
        return " ".join(one.text for one in self.elements if "said" in (one.attributes.get("class") or ""))

    def cards(self) -> list[str]:
        """The ids of the images on the wall, in order."""
        return [one["data-id"] for one in self.elements if one.has("data-id")]


class Visitor:
    """A client of the page of `root`, with the settings given over those of the root."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.app = create_app(root, settings_module.load(root, **settings))
        self.client = TestClient(
            self.app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False, client=("203.0.113.7", 50)
        )

    def __enter__(self) -> Visitor:
        self.client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.__exit__(kind, value, trace)

    def get(self, address: str, **headers: str) -> Response:
        return self.client.get(address, headers=headers)

    def page(self, address: str, status: int = 200) -> Page:
        """The page at `address`."""
        answer = self.get(address)
        assert answer.status_code == status, answer.text
        return Page(answer.text)

    def send(self, address: str, fields: dict[str, Any], **headers: str) -> Response:
        """Send a form as a browser does from one of our pages."""
        return self.client.post(address, data=fields, headers=FROM_OUR_PAGE | headers)

    def json(self, address: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        """What the API answers to a read or, with a body, to a write."""
        if body is None:
            answer = self.client.get(f"/api/v1{address}", headers=headers)
        else:
            answer = self.client.post(f"/api/v1{address}", json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()
