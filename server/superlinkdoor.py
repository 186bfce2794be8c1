"""What of the SuperLink is open to whom: the calls we know, and the door before all others.

In the open source Flower's Control API has no authentication of its own (docs/adr/0016). The names
are Flower's and are pinned by ``tests/contract/test_superlink_surface.py``; nothing of Flower is
imported here.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

FLEET_CALLS: Final = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What devices may call. Nodes are registered by the operator's side alone."""

RUNTIME_CALLS: Final = frozenset(
    f"/v1/runtime/{call}"
    for call in (
        "acquire-task",
        "send-task-heartbeat",
        "pull-task-input",
        "push-task-output",
        "push-object",
        "pull-object",
        "confirm-message-received",
        "push-messages",
        "pull-messages",
        "get-nodes",
        "push-logs",
    )
)
"""What ServerApps and their executor need; guarded by the executor's secret and task tokens."""

HEALTH: Final = "/health"
SECRET_HEADER: Final = "fedslm-control"  # noqa: S105 - the name of a header
PUBLIC_KEY_HEADER: Final = "flwr-public-key"
SIGNATURE_HEADER: Final = "flwr-signature"
TIMESTAMP_HEADER: Final = "flwr-timestamp"
CLOCK_AHEAD_SECONDS: Final = 5.0
CLOCK_BEHIND_SECONDS: Final = 305.0
MEDIA_TYPE: Final = "application/protobuf"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class ControlDoor:
    """ASGI middleware: all but the calls of nodes and ServerApps needs the control secret.

    Anything without it is answered with an empty 404, as if there were nothing.

    Args:
        app: the SuperLink.
        secret: what the header :data:`SECRET_HEADER` must hold.
    """

    def __init__(self, app: AsgiApp, secret: bytes) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through or refuse it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._open(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})

    def _open(self, scope: Scope) -> bool:
        """Tell whether a call may go through."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and (path in FLEET_CALLS or path in RUNTIME_CALLS):
            return True
        if path == HEALTH and method in {"GET", "HEAD"}:
            return True
        shown = [value for name, value in scope["headers"] if name == SECRET_HEADER.encode()]
        return len(shown) == 1 and hmac.compare_digest(shown[0], self._secret)
