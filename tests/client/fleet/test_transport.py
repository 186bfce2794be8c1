"""HTTPS to a small real server of ours, which may say anything."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.fleet.fleet_pb2 import SendNodeHeartbeatResponse
from client.fleet.identity import NodeIdentity, ServerClock
from client.fleet.protocol import FleetClient, RunOver
from client.fleet.transport import Answer, Connection, Endpoint, parse_address
from shared.errors import (
    AccessDenied,
    CertificateInvalid,
    FedSLMError,
    FleetError,
    InvalidValue,
    SchemaMismatch,
    ServerUnreachable,
)
from shared.pki import Authority, new_key, openssh_form

GOOD = SendNodeHeartbeatResponse(success=True).SerializeToString()


def answer(body: bytes = GOOD, status: str = "200 OK", *headers: str) -> bytes:
    """Return an HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Server:
    """Answers each request with the next bytes; with none left it closes the connection."""

    answers: list[bytes]
    tls: ssl.SSLContext | None = None
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            with suppress(OSError), plain:
                if self.tls is None:
                    self._answer(plain)
                else:
                    with self.tls.wrap_socket(plain, server_side=True) as wrapped:
                        self._answer(wrapped)

    def _answer(self, stream: socket.socket) -> None:
        stream.settimeout(1)
        while self.answers:
            data = b""
            while b"\r\n\r\n" not in data:
                piece = stream.recv(65536)
                if not piece:
                    return
                data += piece
            self.requests.append(data)
            stream.sendall(self.answers.pop(0))

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join(10)


@contextmanager
def server(*answers: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    found = Server(list(answers), tls)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def identity() -> NodeIdentity:
    return NodeIdentity(ec.generate_private_key(ec.SECP384R1()))


@contextmanager
def connected(port: int, identity: NodeIdentity, ca: Path | None = None) -> Iterator[Connection]:
    endpoint = Endpoint(host="127.0.0.1", port=port, ca=ca)
    connection = Connection(endpoint, identity, ServerClock(), read_seconds=1.0)
    try:
        yield connection
    finally:
        connection.close()


def test_one_connection_serves_many_requests(identity: NodeIdentity) -> None:
    with server(answer(b"1"), answer(b"2")) as there, connected(there.port, identity) as here:
        assert here.post("/a", b"x").body == b"1"
        assert here.post("/b", b"y").body == b"2"
        assert there.connections == 1
        assert there.requests[0].startswith(b"POST /a HTTP/1.1\r\n")


def test_a_request_is_signed_with_the_time(identity: NodeIdentity) -> None:
    from base64 import b64decode

    headers = identity.headers(1_800_000_000.0)
    key = load_pem_public_key(b64decode(headers["flwr-public-key"]))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert headers["flwr-timestamp"] == "2027-01-15T08:00:00+00:00"
    signature = b64decode(headers["flwr-signature"])
    key.verify(signature, headers["flwr-timestamp"].encode(), ec.ECDSA(hashes.SHA256()))


def test_a_kept_connection_that_was_closed_is_opened_again(identity: NodeIdentity) -> None:
    with server(answer(b"1")) as there, connected(there.port, identity) as here:
        here.post("/", b"")
        time.sleep(0.1)
        there.answers.append(answer(b"2"))
        assert here.post("/", b"").body == b"2"
        assert there.connections == 2


def test_a_silent_server_is_unreachable(identity: NodeIdentity) -> None:
    with (
        server(b"") as there,
        connected(there.port, identity) as here,
        pytest.raises(ServerUnreachable),
    ):
        here.post("/", b"")


def test_nobody_there_is_unreachable(identity: NodeIdentity) -> None:
    with server() as there:
        port = there.port
    with connected(port, identity) as here, pytest.raises(ServerUnreachable, match="refused"):
        here.post("/", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000 + b"\r\n\r\n",
        answer(b"x" * 200),
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n" + b"x" * 200,
    ],
    ids=lambda data: repr(data[:25]),
)
def test_what_is_no_answer_or_too_long_is_refused(identity: NodeIdentity, data: bytes) -> None:
    with server(data) as there, connected(there.port, identity) as here:
        with pytest.raises(ServerUnreachable) as caught:
            here.post("/", b"", max_answer=100)
        assert "xxxx" not in str(caught.value)


@given(st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_answer_or_an_error_of_ours(identity: NodeIdentity, data: bytes) -> None:
    for sent in (data, answer(data), answer(data, "412 Precondition Failed")):
        with server(sent) as there, connected(there.port, identity) as here:
            client = FleetClient(here)
            with suppress(FedSLMError, RunOver):
                assert client.heartbeat(1, heartbeat_seconds=30) in {True, False}


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (Answer(status=401, body=b""), AccessDenied),
        (Answer(status=403, body=b""), AccessDenied),
        (Answer(status=412, body=b"", code=2004), AccessDenied),
        (Answer(status=412, body=b"", code=2007), RunOver),
        (Answer(status=412, body=b"", code=2008), RunOver),
        (Answer(status=412, body=b"", code=1), SchemaMismatch),
        (Answer(status=404, body=b""), SchemaMismatch),
        (Answer(status=302, body=b""), SchemaMismatch),
        (Answer(status=429, body=b""), ServerUnreachable),
        (Answer(status=503, body=b""), ServerUnreachable),
        (Answer(status=200, body=b"\xff"), SchemaMismatch),
    ],
    ids=str,
)
def test_a_status_means_one_thing(found: Answer, error: type[Exception]) -> None:
    class Once:
        def post(self, path: str, body: bytes, *, max_answer: int = 0) -> Answer:
            return found

    with pytest.raises(error):
        FleetClient(Once()).heartbeat(1, heartbeat_seconds=30)


def test_a_wrong_clock_is_set_and_the_request_sent_again(identity: NodeIdentity) -> None:
    late = time.time() + 3 * 86400
    refused = answer(b"", "401 Unauthorized", f"date: {formatdate(late, usegmt=True)}")
    with server(refused, answer(b"ok")) as there, connected(there.port, identity) as here:
        assert here.post("/", b"").body == b"ok"
    first, second = (
        next(line for line in request.split(b"\r\n") if line.lower().startswith(b"flwr-timestamp"))
        for request in there.requests
    )
    assert first != second


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Foo 2026", "0" * 500])
def test_a_date_that_is_none_is_ignored(date: str | None) -> None:
    clock = ServerClock()
    assert not clock.learn(date)
    assert clock.offset == 0


def test_small_differences_are_no_wrong_clock() -> None:
    clock = ServerClock()
    assert not clock.learn(formatdate(time.time() - 2, usegmt=True))
    assert clock.learn(formatdate(time.time() - 3600, usegmt=True))
    assert abs(clock.now() - (time.time() - 3600)) < 2
    assert clock.learn(formatdate(time.time(), usegmt=True))
    assert clock.offset == 0


def test_another_thread_ends_a_request(identity: NodeIdentity) -> None:
    with server(b"") as there:
        endpoint = Endpoint(host="127.0.0.1", port=there.port, ca=None)
        connection = Connection(endpoint, identity, ServerClock(), read_seconds=30)
        started = time.monotonic()
        threading.Timer(0.2, connection.abort).start()
        with pytest.raises(ServerUnreachable):
            connection.post("/", b"")
        with pytest.raises(ServerUnreachable):
            connection.post("/", b"")
        connection.close()
        assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ssl.SSLContext]]:
    folder = tmp_path_factory.mktemp("pki")
    authority = Authority.create("test", days=2)
    (folder / "ca.crt").write_bytes(authority.certificate)

    def serving(host: str) -> tuple[Path, ssl.SSLContext]:
        issued = authority.issue_server([host], days=1)
        for name, data in (("crt", issued.certificate), ("key", issued.key)):
            (folder / f"{host}.{name}").write_bytes(data)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{host}.crt", folder / f"{host}.key")
        return folder / "ca.crt", context

    return serving


def test_tls_is_spoken_with_the_authoritys_server_alone(
    identity: NodeIdentity, pki: Callable[[str], tuple[Path, ssl.SSLContext]], tmp_path: Path
) -> None:
    ca, tls = pki("127.0.0.1")
    with server(answer(b"ok"), tls=tls) as there, connected(there.port, identity, ca) as here:
        assert here.post("/", b"").body == b"ok"
    other = tmp_path / "other.crt"
    other.write_bytes(Authority.create("other", days=1).certificate)
    with server(answer(), tls=tls) as there, connected(there.port, identity, other) as here:
        with pytest.raises(CertificateInvalid):
            here.post("/", b"")
        assert there.requests == []


def test_a_certificate_for_another_host_is_refused(
    identity: NodeIdentity, pki: Callable[[str], tuple[Path, ssl.SSLContext]]
) -> None:
    ca, tls = pki("fleet.example.org")
    with server(answer(), tls=tls) as there, connected(there.port, identity, ca) as here:
        with pytest.raises(CertificateInvalid):
            here.post("/", b"")
        assert there.requests == []


def test_a_server_without_tls_is_refused(
    identity: NodeIdentity, pki: Callable[[str], tuple[Path, ssl.SSLContext]]
) -> None:
    ca, _ = pki("127.0.0.1")
    with (
        server(answer()) as there,
        connected(there.port, identity, ca) as here,
        pytest.raises(ServerUnreachable),
    ):
        here.post("/", b"")


@pytest.mark.parametrize(
    "host", ["fleet.example.org", "10.0.0.1", "::", "192.0.2.1", "127.0.0.1.x"]
)
def test_no_tls_is_for_this_host_alone(host: str) -> None:
    with pytest.raises(FleetError):
        Endpoint(host=host, port=1, ca=None)


def test_an_authority_that_is_none_is_refused(identity: NodeIdentity, tmp_path: Path) -> None:
    for ca in (tmp_path / "missing.crt", tmp_path / "junk.crt"):
        (tmp_path / "junk.crt").write_bytes(b"junk")
        with pytest.raises(CertificateInvalid):
            Connection(Endpoint(host="h", port=1, ca=ca), identity, ServerClock())


def test_a_key_is_read_in_both_forms(tmp_path: Path) -> None:
    pem = new_key()
    found = []
    for name, data in {
        "pkcs8": pem,
        "ssh": openssh_form(pem),
        "both": pem + openssh_form(pem),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        path.chmod(0o600)
        found.append(NodeIdentity.load(path).public_key)
    assert len(set(found)) == 1


def test_a_key_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for data in (b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", other):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(CertificateInvalid):
            NodeIdentity.load(path)
    path.write_bytes(new_key())
    path.chmod(0o644)
    with pytest.raises(FleetError, match="mode"):
        NodeIdentity.load(path)


@pytest.mark.parametrize(
    ("address", "found"),
    [("a.b:1", ("a.b", 1)), ("[::1]:65535", ("::1", 65535)), ("127.0.0.1:80", ("127.0.0.1", 80))],
)
def test_an_address_is_read(address: str, found: tuple[str, int]) -> None:
    assert parse_address(address) == found


@pytest.mark.parametrize(
    "address", ["", "a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:x", "a:\uff11"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidValue):
        parse_address(address)
