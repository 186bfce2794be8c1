"""What a browser does, without one: cookies, forms, tokens."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from types import TracebackType
from typing import Any

from httpx import ASGITransport, AsyncClient, Cookies, Response

from server.dashboard.app import build_app
from server.dashboard.board import Board
from tests.server.dashboard.homes import PASSWORD

ORIGIN = "https://localhost:9094"


class Form(HTMLParser):
    """Collects the hidden fields of a page and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append((tag, found))
        if tag == "input" and found.get("type") == "hidden":
            self.hidden[found["name"]] = found.get("value", "")


class Client:
    """Sends requests to the application, each in the same event loop; follows no redirect."""

    def __init__(self, board: Board, address: str) -> None:
        transport = ASGITransport(
            build_app(board), raise_app_exceptions=False, client=(address, 40000)
        )
        self._loop = asyncio.Runner()
        self._client = AsyncClient(transport=transport, base_url=ORIGIN)

    @property
    def cookies(self) -> Cookies:
        """What the browser keeps."""
        return self._client.cookies

    def request(self, method: str, path: str, **more: Any) -> Response:
        """Send one request."""
        return self._loop.run(self._client.request(method, path, **more))

    def close(self) -> None:
        """Close the loop."""
        self._loop.run(self._client.aclose())
        self._loop.close()


class Visitor:
    """Somebody with a browser."""

    def __init__(self, board: Board, *, address: str = "192.0.2.7") -> None:
        self.http = Client(board, address)

    def __enter__(self) -> Visitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()

    def get(self, path: str, **headers: str) -> Response:
        return self.http.request("GET", path, headers=headers)

    def token(self, path: str = "/activity") -> str:
        """Return the token in the forms of a page."""
        return Form(self.get(path).text).hidden["csrf"]

    def post(
        self, path: str, fields: Mapping[str, str], *, origin: str | None = ORIGIN, **headers: str
    ) -> Response:
        """Send a form as a browser would; without the token unless it is given."""
        sent = dict(headers) if origin is None else {"origin": origin, **headers}
        return self.http.request("POST", path, data=dict(fields), headers=sent)

    def submit(self, path: str, **fields: str) -> Response:
        """Send a form of one of our pages."""
        return self.post(path, {"csrf": self.token(), **fields})

    def login(self, name: str, password: str = PASSWORD) -> Response:
        return self.post(
            "/login", {"csrf": self.token("/login"), "name": name, "password": password}
        )


@contextmanager
def visiting(board: Board, name: str | None = None) -> Iterator[Visitor]:
    """Open a browser, and log somebody in."""
    with Visitor(board) as visitor:
        if name is not None:
            assert visitor.login(name).status_code == 303
        yield visitor


def shown(text: str) -> str:
    """Return the words of a page."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))
