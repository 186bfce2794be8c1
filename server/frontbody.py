"""Bodies that pass the front: read and sent with limits on size and slowness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx

from server.superlinkdoor import Receive, Send

_SECURITY = (
    (b"strict-transport-security", b"max-age=31536000"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'"),
)
_CHUNK_SECONDS = 15.0
_BODY_SECONDS = 30.0
_SLOWEST_BYTES_PER_SECOND = 4096
_SEND_SECONDS = 60.0


class Refusal(Exception):
    """An answer without a body."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class Body:
    """The body of a call, read with limits.

    Args:
        receive: ASGI's.
        max_bytes: largest body.
    """

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes

    async def whole(self, most: int) -> bytes:
        """Return a body that is expected to be small."""
        parts = [part async for part in self.chunks(most)]
        return b"".join(parts)

    async def chunks(self, most: int | None = None) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            Refusal: if it is too large, or breaks off.
            TimeoutError: if it comes too slowly.
        """
        limit = self._max_bytes if most is None else min(most, self._max_bytes)
        began, size = time.monotonic(), 0
        more = True
        while more:
            event = await asyncio.wait_for(self._receive(), _CHUNK_SECONDS)
            if event["type"] != "http.request":
                raise Refusal(400)
            part = event.get("body", b"")
            size += len(part)
            if size > limit:
                raise Refusal(413)
            if time.monotonic() - began > _BODY_SECONDS + size / _SLOWEST_BYTES_PER_SECOND:
                raise TimeoutError
            more = event.get("more_body", False)
            if part:
                yield part


class Answer:
    """The answer to a call, sent with limits.

    Args:
        send: ASGI's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False

    async def refuse(self, status: int) -> None:
        """Send a status and nothing else; an answer that has begun is broken off."""
        if not self._begun:
            await self.whole(status, None, b"")

    async def whole(self, status: int, kind: str | None, body: bytes) -> None:
        """Send an answer at once."""
        await self._start(status, kind, len(body))
        await self._part(body, more=False)

    async def stream(self, reply: httpx.Response, most: int) -> None:
        """Pass the SuperLink's answer on.

        Raises:
            Refusal: if it is too large.
        """
        length = reply.headers.get("content-length")
        size = int(length) if length is not None and length.isdecimal() else None
        if size is not None and size > most:
            raise Refusal(502)
        await self._start(reply.status_code, reply.headers.get("content-type"), size)
        sent = 0
        async for part in reply.aiter_raw():
            sent += len(part)
            if sent > most:
                raise Refusal(502)
            await self._part(part, more=True)
        await self._part(b"", more=False)

    async def _start(self, status: int, kind: str | None, size: int | None) -> None:
        """Send the status and our own headers; none of the SuperLink's but the type."""
        headers = list(_SECURITY)
        if kind is not None:
            headers.append((b"content-type", kind.encode("latin-1")))
        if size is not None:
            headers.append((b"content-length", str(size).encode()))
        if status in {429, 503}:
            headers.append((b"retry-after", b"5"))
        self._begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _part(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body to a reader that takes it in time."""
        event = {"type": "http.response.body", "body": body, "more_body": more}
        await asyncio.wait_for(self._send(event), _SEND_SECONDS)
