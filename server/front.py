"""The front: the only thing that devices reach of Flower's SuperLink.

Forwards the Fleet calls of enrolled, unrevoked nodes to the SuperLink on loopback, over TLS 1.2 or
later, with limits on size, rate and slowness. Everything else gets an empty 404, 401 or 403. It
holds neither the control secret nor any signing key: who breaks it can do what a node can.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.fleetdb import FleetDatabase
from server.flowermessages import activated_node, beating_node, speaks_for_itself
from server.freshtls import context_factory
from server.frontbody import Answer, Body, Refusal
from server.frontgate import RateLimit, signer_of
from server.home import ServerHome
from server.superlinkdoor import FLEET_CALLS, MEDIA_TYPE, Receive, Scope, Send
from shared.errors import AccessDenied, FedSLMError, ProtocolError

logger = logging.getLogger("fedslm.front")

ACTIVATE: Final = "/v1/fleet/activate-node"
HEARTBEAT: Final = "/v1/fleet/send-node-heartbeat"
PUSH: Final = "/v1/fleet/push-messages"
SMALL_BODY: Final = 4_194_304
REFUSALS_PER_MINUTE: Final = 60
MOST_CONNECTIONS: Final = 2000
HEADER_SECONDS: Final = 10.0

_OWN_HEADERS = "flwr-"
_ACTIVATION_SECONDS = 5.0
_ACTIVATION_PAUSE = 0.5
_SEEN_SECONDS = 10.0
_UPSTREAM_SECONDS = 60.0
_KEEP_ALIVE_SECONDS = 75


class Front:
    """The ASGI application.

    Args:
        database: who is enrolled.
        upstream: a client whose base URL is the SuperLink's.
        max_bytes: largest body in either direction.
        requests_per_minute: of one node.
    """

    def __init__(
        self,
        database: FleetDatabase,
        upstream: httpx.AsyncClient,
        *,
        max_bytes: int,
        requests_per_minute: int,
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._max_bytes = max_bytes
        self._nodes = RateLimit(requests_per_minute)
        self._refused = RateLimit(REFUSALS_PER_MINUTE)
        self._seen: dict[bytes, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        answer = Answer(send)
        try:
            await self._forward(scope, Body(receive, self._max_bytes), answer)
        except Refusal as refusal:
            await answer.refuse(refusal.status)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            await answer.refuse(503)
        except httpx.HTTPError as error:
            logger.warning("the SuperLink broke off: %s", type(error).__name__)
            await answer.refuse(502)
        except TimeoutError:
            await answer.refuse(408)
        except ProtocolError:
            await answer.refuse(400)
        except FedSLMError as error:
            logger.warning("%s", error.message)
            await answer.refuse(500)

    async def _forward(self, scope: Scope, body: Body, answer: Answer) -> None:
        """Check a call and pass it on.

        Raises:
            Refusal: if it may not pass.
        """
        path = scope["path"]
        if scope["method"] != "POST" or path not in FLEET_CALLS or scope["query_string"]:
            raise Refusal(404)
        headers = _headers(scope)
        key = self._caller(scope, headers)
        if headers.get("content-type") != [MEDIA_TYPE]:
            raise Refusal(415)
        if _announced(headers) > self._max_bytes:
            raise Refusal(413)
        passed = {n: v[0] for n, v in headers.items() if n.startswith(_OWN_HEADERS)}
        passed |= {"content-type": MEDIA_TYPE, "accept-encoding": "identity"}
        if path == ACTIVATE:
            await self._activate(key, passed, await body.whole(SMALL_BODY), answer)
            return
        small: bytes | None = None
        if path in {PUSH, HEARTBEAT}:
            small = await body.whole(SMALL_BODY)
        if path == PUSH and not speaks_for_itself(small or b""):
            self._flag(key, "speaks-for-another")
            raise Refusal(403)
        content = body.chunks() if small is None else small
        request = self._upstream.build_request("POST", path, content=content, headers=passed)
        reply = await self._upstream.send(request, stream=True)
        try:
            if path == HEARTBEAT and reply.status_code == httpx.codes.OK:
                self._learn(key, beating_node(small or b""))
            await answer.stream(reply, self._max_bytes)
        finally:
            await reply.aclose()

    def _caller(self, scope: Scope, headers: dict[str, list[str]]) -> bytes:
        """Return the key of an enrolled node that signed a call.

        Raises:
            Refusal: if nobody did, or too often.
        """
        now = time.monotonic()
        address = str((scope.get("client") or ("", 0))[0]).encode()
        if self._refused.exhausted(address, now=now):
            raise Refusal(429)
        try:
            key = signer_of(headers, now=datetime.now(tz=UTC))
        except AccessDenied:
            self._refused.take(address, now=now)
            raise Refusal(401) from None
        if not self._database.allowed(key):
            self._refused.take(address, now=now)
            raise Refusal(403)
        if not self._nodes.take(key, now=now):
            raise Refusal(429)
        if now - self._seen.get(key, -_SEEN_SECONDS) >= _SEEN_SECONDS:
            self._seen[key] = now
            self._database.seen(key)
        return key

    async def _activate(
        self, key: bytes, headers: dict[str, str], content: bytes, answer: Answer
    ) -> None:
        """Pass an activation on and learn what Flower calls the node.

        A key that was enrolled a moment ago may not be known to the SuperLink yet; the node is
        made to wait for it rather than turned away.
        """
        known = self._database.node_by_key(key)
        patient = known is not None and known.flower_node_id is None
        end = time.monotonic() + (_ACTIVATION_SECONDS if patient else 0.0)
        while True:
            reply = await self._upstream.post(ACTIVATE, content=content, headers=headers)
            if reply.status_code == httpx.codes.OK:
                self._learn(key, activated_node(reply.content))
                break
            if time.monotonic() >= end:
                break
            await asyncio.sleep(_ACTIVATION_PAUSE)
        await answer.whole(reply.status_code, reply.headers.get("content-type"), reply.content)

    def _learn(self, key: bytes, flower_node_id: int) -> None:
        """Note what Flower calls a node, if that is new.

        Raises:
            Refusal: if another node has that number, or the node was revoked meanwhile.
        """
        known = self._database.node_by_key(key)
        if known is not None and known.flower_node_id == flower_node_id:
            return
        try:
            self._database.activated(key, flower_node_id)
        except AccessDenied:
            raise Refusal(403) from None

    def _flag(self, key: bytes, code: str) -> None:
        """Note what a node did."""
        known = self._database.node_by_key(key)
        if known is not None:
            logger.warning("%s: %s", known.name, code)
            self._database.flag(known.name, code)


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol, which also hangs up on whoever takes too long to say what he wants."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Wait on while a request is incomplete, from its first byte."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        """Forget the timer."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def serve(home: ServerHome) -> None:
    """Run the front of a folder in this process until it is told to stop."""
    import uvicorn

    trusted = ssl.create_default_context(cafile=str(home.ca_certificate))
    upstream = httpx.AsyncClient(
        base_url=f"https://{home.config.superlink_address}",
        verify=trusted,
        trust_env=False,
        timeout=httpx.Timeout(_UPSTREAM_SECONDS, connect=5.0, pool=10.0),
        limits=httpx.Limits(max_connections=100, keepalive_expiry=3.0),
    )
    database = FleetDatabase(home.fleet_database)
    front = Front(
        database,
        upstream,
        max_bytes=home.config.max_message_bytes,
        requests_per_minute=home.config.requests_per_minute,
    )
    uvicorn.run(
        front,
        host=home.config.bind,
        port=home.config.fleet_port,
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        ssl_certfile=home.server_certificate,
        ssl_keyfile=home.server_key,
        ssl_context_factory=context_factory(home),
    )


def _headers(scope: Scope) -> dict[str, list[str]]:
    """Return the headers of a call by name."""
    found: dict[str, list[str]] = {}
    raw: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in raw:
        found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return found


def _announced(headers: dict[str, list[str]]) -> int:
    """Return how long a call says that its body is; 0 if it does not say.

    Raises:
        Refusal: if it says so twice, or wrongly.
    """
    values = headers.get("content-length", ["0"])
    if len(values) != 1 or not (values[0].isdecimal() and len(values[0]) <= 20):
        raise Refusal(400)
    return int(values[0])


if __name__ == "__main__":
    from server.logs import log_as_json

    log_as_json()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    serve(ServerHome.open(Path(sys.argv[1])))
