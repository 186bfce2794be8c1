"""The front before a real SuperLink: who passes, what passes, how much, how slowly."""

from __future__ import annotations

import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from google.protobuf.message import Message as Protobuf

from server.fleetdb import FleetDatabase
from server.front import ACTIVATE, HEADER_SECONDS, HEARTBEAT, PUSH
from server.home import ServerHome
from server.superlink import superlink_command
from server.superlinkclient import SuperLinkClient
from server.superlinkdoor import FLEET_CALLS, SECRET_HEADER
from tests.server.fleetkit import (
    Identity,
    client_of,
    enrolled,
    make_home,
    process,
    stranger,
    wait_until,
)

pytestmark = pytest.mark.slow

PULL = "/v1/fleet/pull-messages"
LARGEST = 200_000
RATE = 600


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHome]:
    made = make_home(
        tmp_path_factory.mktemp("front"), max_message_bytes=LARGEST, requests_per_minute=RATE
    )
    front = [sys.executable, "-m", "server.front", str(made.path)]
    with ExitStack() as stack:
        stack.enter_context(process(made, superlink_command(made)))
        stack.enter_context(process(made, front))
        client = stack.enter_context(SuperLinkClient.of(made))
        wait_until("health", client.healthy, seconds=40)
        wait_until("a front", lambda: _listens(made), seconds=20)
        yield made


def _listens(home: ServerHome) -> bool:
    try:
        socket.create_connection(("127.0.0.1", home.config.fleet_port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def http(home: ServerHome) -> Iterator[httpx.Client]:
    with client_of(home) as client:
        yield client


@pytest.fixture(scope="module")
def node(home: ServerHome) -> Identity:
    return registered(home, "clinic-1")


@pytest.fixture(scope="module")
def number(http: httpx.Client, node: Identity) -> int:
    """What Flower calls the node."""
    return activate(http, node)


def registered(home: ServerHome, name: str) -> Identity:
    identity = enrolled(home, name)
    with SuperLinkClient.of(home) as client:
        client.register_node(identity.public)
    return identity


def activate(http: httpx.Client, identity: Identity) -> int:
    request = ActivateNodeRequest(public_key=identity.pem, heartbeat_interval=30)
    reply = call(http, ACTIVATE, request, identity)
    assert reply.status_code == httpx.codes.OK
    return ActivateNodeResponse.FromString(reply.content).node_id


def call(
    http: httpx.Client, path: str, request: Protobuf | bytes, identity: Identity
) -> httpx.Response:
    body = request if isinstance(request, bytes) else request.SerializeToString()
    return http.post(path, content=body, headers=identity.headers())


def pull(http: httpx.Client, identity: Identity, number: int) -> httpx.Response:
    return call(http, PULL, PullMessagesRequest(node=Node(node_id=number)), identity)


def test_an_enrolled_node_passes_and_its_number_is_learnt(
    home: ServerHome, http: httpx.Client, node: Identity, number: int
) -> None:
    assert pull(http, node, number).status_code == httpx.codes.OK
    database = FleetDatabase(home.fleet_database)
    entry = database.node_by_key(node.public)
    assert entry is not None
    assert entry.flower_node_id == number
    assert entry.last_seen is not None
    assert database.client_of(number) == entry.client_index


def test_a_number_that_was_lost_is_learnt_from_a_heartbeat(
    home: ServerHome, http: httpx.Client
) -> None:
    identity = registered(home, "clinic-lost")
    number = activate(http, identity)
    database = FleetDatabase(home.fleet_database)
    database.activated(identity.public, 12345)
    beat = SendNodeHeartbeatRequest(node=Node(node_id=number), heartbeat_interval=30)
    assert call(http, HEARTBEAT, beat, identity).status_code == httpx.codes.OK
    assert database.client_of(number) is not None
    assert database.client_of(12345) is None


def test_a_node_that_was_enrolled_a_moment_ago_is_made_to_wait(
    home: ServerHome, http: httpx.Client
) -> None:
    """Nobody registered it: after five seconds it gets Flower's own refusal."""
    identity = enrolled(home, "clinic-new")
    request = ActivateNodeRequest(public_key=identity.pem, heartbeat_interval=30)
    began = time.monotonic()
    reply = call(http, ACTIVATE, request, identity)
    assert reply.status_code not in {httpx.codes.OK, httpx.codes.FORBIDDEN}
    assert time.monotonic() - began >= 4.5


def test_only_fleet_calls_pass(home: ServerHome, http: httpx.Client, node: Identity) -> None:
    """Every route of the SuperLink but the listed ones is as if it were not there."""
    secret = {SECRET_HEADER: home.control_secret.read_text()}
    with client_of(home, port=home.config.superlink_port) as direct:
        paths = direct.get("/openapi.json", headers=secret).json()["paths"]
    others = [*(set(paths) - FLEET_CALLS), "/docs", "/openapi.json", "/", "/v1/fleet/", "/v1"]
    assert len(others) > 50
    for path in others:
        for method in ("GET", "POST"):
            reply = http.request(method, path, headers=node.headers() | secret)
            assert (path, reply.status_code, reply.content) == (path, 404, b"")
            assert "server" not in reply.headers


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/V1/fleet/pull-messages",
        "/v1/fleet/pull-messages?x=1",
    ],
)
def test_crooked_paths_do_not_pass(home: ServerHome, node: Identity, path: str) -> None:
    """Sent by hand, since an HTTP client would straighten them."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-length: 0", "connection: close"]
    lines += [f"{name}: {value}" for name, value in node.headers().items()]
    with connection(home) as wire:
        wire.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert wire.recv(4096).startswith(b"HTTP/1.1 404 ")


def test_get_is_not_a_fleet_call(http: httpx.Client, node: Identity) -> None:
    assert http.get(PULL, headers=node.headers()).status_code == httpx.codes.NOT_FOUND


def test_strangers_and_the_revoked_are_refused(home: ServerHome, http: httpx.Client) -> None:
    assert pull(http, stranger(), 1).status_code == httpx.codes.FORBIDDEN
    identity = registered(home, "clinic-gone")
    number = activate(http, identity)
    assert pull(http, identity, number).status_code == httpx.codes.OK
    FleetDatabase(home.fleet_database).revoke("clinic-gone", "lost")
    refused = pull(http, identity, number)
    assert (refused.status_code, refused.content) == (403, b"")


@pytest.mark.parametrize("change", ["unsigned", "old", "forged"])
def test_calls_without_a_good_signature_are_refused(
    http: httpx.Client, node: Identity, change: str
) -> None:
    at = datetime.now(tz=UTC) - timedelta(days=2 if change == "old" else 0)
    headers = node.headers(at=at)
    if change == "unsigned":
        headers = {"content-type": headers["content-type"]}
    elif change == "forged":
        headers |= {"flwr-signature": stranger().headers()["flwr-signature"]}
    reply = http.post(PULL, content=b"", headers=headers)
    assert (reply.status_code, reply.content) == (401, b"")


def test_a_node_cannot_use_anothers_number(
    home: ServerHome, http: httpx.Client, number: int
) -> None:
    other = registered(home, "clinic-2")
    activate(http, other)
    assert pull(http, other, number).status_code == httpx.codes.UNAUTHORIZED


def test_a_node_cannot_answer_for_another(
    home: ServerHome, http: httpx.Client, node: Identity, number: int
) -> None:
    """Flower checks who calls, but not whose messages he brings; the front does, and flags it."""
    forged = PushMessagesRequest(
        node=Node(node_id=number),
        messages_list=[Message(metadata=Metadata(src_node_id=number + 1))],
    )
    assert call(http, PUSH, forged, node).status_code == httpx.codes.FORBIDDEN
    [flag] = FleetDatabase(home.fleet_database).flags("clinic-1")
    assert (flag.code, flag.count) == ("speaks-for-another", 1)


@pytest.mark.parametrize("path", [ACTIVATE, PUSH, HEARTBEAT, PULL])
def test_garbage_is_refused(http: httpx.Client, node: Identity, path: str) -> None:
    assert 400 <= call(http, path, b"\xff" * 50, node).status_code < 600


def test_a_body_may_be_so_large(http: httpx.Client, node: Identity) -> None:
    assert call(http, PULL, bytes(LARGEST + 1), node).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(LARGEST // 10_000 + 1):
            yield bytes(10_000)

    reply = http.post("/v1/fleet/push-object", content=chunks(), headers=node.headers())
    assert reply.status_code == 413


def test_other_kinds_of_bodies_are_refused(http: httpx.Client, node: Identity) -> None:
    headers = node.headers() | {"content-type": "application/json"}
    assert http.post(PULL, content=b"{}", headers=headers).status_code == 415


def test_a_node_may_call_so_often(home: ServerHome, http: httpx.Client) -> None:
    busy = registered(home, "clinic-busy")
    signed = busy.headers()
    made = 0
    while http.post(PULL, content=b"", headers=signed).status_code != 429:
        made += 1  # a slow machine gives back what it took to ask
        assert made < 3 * RATE, "none was one too many"
    assert made >= RATE


def test_plain_http_and_old_tls_are_refused(home: ServerHome) -> None:
    address = ("127.0.0.1", home.config.fleet_port)
    with socket.create_connection(address, timeout=10) as plain:
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP")
    old = ssl.create_default_context(cafile=str(home.ca_certificate))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(address, timeout=10) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw, server_hostname="localhost")


def connection(home: ServerHome) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(home.ca_certificate))
    raw = socket.create_connection(("127.0.0.1", home.config.fleet_port), timeout=30)
    return context.wrap_socket(raw, server_hostname="localhost")


def test_who_drips_headers_is_hung_up_on(home: ServerHome) -> None:
    began = time.monotonic()
    with connection(home) as wire:
        wire.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
        try:
            while wire.recv(100):
                pass
        except OSError:
            pass
    assert HEADER_SECONDS - 1 < time.monotonic() - began < HEADER_SECONDS + 5


def test_answers_carry_our_headers_alone(http: httpx.Client, node: Identity, number: int) -> None:
    headers = pull(http, node, number).headers
    assert set(headers) <= {
        "date",
        "strict-transport-security",
        "x-content-type-options",
        "cache-control",
        "content-security-policy",
        "content-type",
        "content-length",
    }
