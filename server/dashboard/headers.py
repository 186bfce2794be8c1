"""What every answer carries, and which hosts are answered at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
FRAMED_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""For report pages, which are one file with its own style: no script, no request, no origin."""

_ALWAYS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # not no-referrer: that makes browsers send "Origin: null" with forms
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
_HSTS = "max-age=31536000"


def host_of(header: str) -> str:
    """Return the host of a ``Host`` header, lower case, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HeaderGuard:
    """The outermost layer: refuses foreign hosts and puts headers on every answer, errors included.

    Args:
        app: what answers.
        hosts: names and addresses that the server is called by; another one is answered with 421,
            so that a foreign name that points here reads nothing.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = host_of(Headers(scope=scope).get("host", ""))

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/") and message["status"] in {200, 304}:
                    headers.setdefault("cache-control", "private, no-cache")
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if host != "localhost" and not is_address(host):
                    headers.setdefault("strict-transport-security", _HSTS)
            await send(message)

        if host not in self._hosts:
            answer = PlainTextResponse(
                "This server does not go by that name. Add it to hosts in server.toml.", 421
            )
            await answer(scope, receive, dressed)
            return
        await self._app(scope, receive, dressed)
