"""The service against callers who mean harm, over real connections."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.control import Identity, enroll
from server.home import ServerHome
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.control.methods import MAX_REQUEST_BYTES, METHODS
from shared.errors import EnrolmentRefused, ServerUnreachable
from shared.pki import Authority, certificate_request, new_key
from tests.server.control.registries import add_adapter
from tests.server.control.service import Service, code_of, identity, make_home, serving

pytestmark = pytest.mark.slow

OWN = METHODS["Budget.GetOwn"].path
DOWNLOAD = METHODS["Registry.Download"].path
Code = grpc.StatusCode


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    return make_home(tmp_path_factory.mktemp("hostile") / "server")


@pytest.fixture(scope="module", name="running")
def _running(home: ServerHome) -> Iterator[Service]:
    """Tight limits, and an adapter of 32 MB, so that limits are reached soon."""
    add_adapter(home, width=1_000_000)
    with serving(
        home, requests_per_minute=120, calls_per_key=2, stream_seconds=3.0, enrolments_per_minute=5
    ) as service:
        yield service


@contextmanager
def channel_of(who: Identity, *options: tuple[str, object]) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(who.ca, who.key or None, who.certificate or None)
    with grpc.secure_channel(who.address, credentials, options=options) as channel:
        yield channel


def ask(channel: grpc.Channel, path: str, raw: bytes = b"", **more: object) -> Code:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    try:
        call(raw, timeout=10, **more)  # type: ignore[arg-type]
    except grpc.RpcError as found:
        return code_of(found)
    return Code.OK


def asked_by(who: Identity) -> Code:
    with channel_of(who) as channel:
        return ask(channel, OWN)


def test_without_a_certificate_there_is_no_connection(running: Service) -> None:
    who = running.identity("node-1")
    assert asked_by(who) is Code.OK
    assert asked_by(replace(who, certificate=b"", key=b"")) is Code.UNAVAILABLE


def test_certificates_of_others_are_refused(running: Service, home: ServerHome) -> None:
    who = running.identity("node-2")
    request = certificate_request(who.key, "node-2")
    stranger = Authority.create("stranger", days=2)
    foreign = stranger.sign_request(request, name="node-2", role="operator", days=1)
    assert asked_by(replace(who, certificate=foreign)) is Code.UNAVAILABLE
    # Ours, and the key even enrolled, but issued by nobody's leave.
    unknown = home.authority().sign_request(request, name="node-2", role="node", days=1)
    assert asked_by(replace(who, certificate=unknown)) is Code.PERMISSION_DENIED
    # The server's own certificate is for servers alone.
    server = replace(
        who, certificate=home.server_certificate.read_bytes(), key=home.server_key.read_bytes()
    )
    assert asked_by(server) in {Code.UNAVAILABLE, Code.PERMISSION_DENIED}


def with_times(home: ServerHome, certificate: bytes, before: float, after: float) -> bytes:
    """Sign a certificate anew, the same but for its times (seconds from now)."""
    old = x509.load_pem_x509_certificate(certificate)
    key = serialization.load_pem_private_key(home.ca_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(now + timedelta(seconds=before))
        .not_valid_after(now + timedelta(seconds=after))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(key, hashes.SHA384())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_a_certificate_out_of_its_time_opens_no_connection(
    running: Service, home: ServerHome
) -> None:
    who = running.identity("node-3")
    for before, after in ((-3600, -60), (3600, 7200)):
        wrong = with_times(home, who.certificate, before, after)
        assert asked_by(replace(who, certificate=wrong)) is Code.UNAVAILABLE
    right = with_times(home, who.certificate, -3600, 60)
    assert asked_by(replace(who, certificate=right)) is Code.OK


def test_a_certificate_that_runs_out_ends_what_a_connection_may(
    running: Service, home: ServerHome
) -> None:
    who = running.identity("node-13")
    short = replace(who, certificate=with_times(home, who.certificate, -60, 3))
    with channel_of(short) as channel:
        assert ask(channel, OWN) is Code.OK
        time.sleep(3.5)
        assert ask(channel, OWN) is Code.UNAUTHENTICATED


def test_plaintext_is_no_way_in(running: Service) -> None:
    for address in (running.address, running.enrol):
        with grpc.insecure_channel(address) as channel:
            assert ask(channel, OWN) is Code.UNAVAILABLE
        host, port = address.split(":")
        for sent in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 5000, b"PRI * HTTP/2.0\r\n"):
            with socket.create_connection((host, int(port)), timeout=15) as plain:
                plain.sendall(sent)
                plain.shutdown(socket.SHUT_WR)
                with _reset_is_fine():
                    answer = plain.recv(65536)
                    # At most an alert of TLS; nothing that was understood.
                    assert answer[:1] in {b"", b"\x15"}


@contextmanager
def _reset_is_fine() -> Iterator[None]:
    try:
        yield
    except ConnectionResetError:
        return


def test_old_versions_of_tls_are_refused(running: Service) -> None:
    host, port = running.enrol.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname=host)
    # The same client with one version more gets in: it was the version.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        assert secure.version() == "TLSv1.2"


def test_a_server_of_another_authority_is_not_talked_to(running: Service, tmp_path: Path) -> None:
    other = make_home(tmp_path / "other")
    who = identity(other, "node-1", address=running.address)
    assert asked_by(who) is Code.UNAVAILABLE
    request = certificate_request(new_key(), "node-1")
    with pytest.raises(EnrolmentRefused, match="not the one that the token names"):
        enroll(running.enrol, other.authority().fingerprint, "x", request)


def test_oversized_messages_and_headers_are_refused(running: Service) -> None:
    who = running.identity("node-4")
    before = running.resident()
    with channel_of(who, ("grpc.max_send_message_length", -1)) as channel:
        assert ask(channel, OWN, b"\x00" * (MAX_REQUEST_BYTES + 1)) is Code.RESOURCE_EXHAUSTED
        assert ask(channel, OWN, b"\x00" * 50_000_000) is Code.RESOURCE_EXHAUSTED
        big = (("x-big", "y" * 100_000),)
        assert ask(channel, OWN, metadata=big) is not Code.OK
    with channel_of(who) as channel:
        bomb = bytes(10_000_000)
        squeezed = ask(channel, OWN, bomb, compression=grpc.Compression.Gzip)
        assert squeezed in {Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL}
        assert ask(channel, OWN) is Code.OK
    assert running.resident() - before < 50_000_000


def test_a_flood_of_calls_is_cut_to_the_rate_and_harms_nobody_else(running: Service) -> None:
    loud, quiet = running.identity("node-5"), running.identity("node-6")
    before = running.resident()
    with channel_of(loud) as channel, channel_of(quiet) as other:
        codes = [ask(channel, OWN) for _ in range(300)]
        assert set(codes) == {Code.OK, Code.RESOURCE_EXHAUSTED}
        # A burst of 20, then 2 a second; each of these calls costs 2.
        assert 10 <= codes.count(Code.OK) <= 60
        started = time.monotonic()
        assert ask(other, OWN) is Code.OK
        assert time.monotonic() - started < 2
    assert running.resident() - before < 50_000_000
    refused = [line for line in running.log() if line.get("status") == "RESOURCE_EXHAUSTED"]
    assert len(refused) <= 5


def test_a_refused_caller_is_told_when_to_come_again(running: Service) -> None:
    with channel_of(running.identity("node-7")) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(OWN)
        answers = [call.with_call(b"", timeout=10) for _ in range(5)]
        assert len(answers) == 5
        calls = [call.future(b"", timeout=10) for _ in range(100)]
        refused = [c for c in calls if c.code() is Code.RESOURCE_EXHAUSTED]
    assert refused
    for found in refused:
        trailing = {pair[0]: pair[1] for pair in found.trailing_metadata()}
        assert trailing["fedslm-error"] == "fleet"
        assert int(trailing["fedslm-retry-after"]) >= 1


def test_calls_at_the_same_time_are_bounded_for_each_key(running: Service) -> None:
    version = next(iter((running.home.adapters / "versions").glob("*.json"))).stem
    request = pb.DownloadRequest(digest=version).SerializeToString()
    with channel_of(running.identity("node-8")) as channel:
        opened: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(DOWNLOAD)
        calls = [opened(request, timeout=20) for _ in range(3)]
        results = [_first(call) for call in calls]
        for call in calls:
            call.cancel()
    assert sorted(results, key=str) == sorted([Code.OK, Code.OK, Code.RESOURCE_EXHAUSTED], key=str)


def _first(call: Iterator[bytes]) -> Code:
    try:
        next(call)
    except grpc.RpcError as found:
        return code_of(found)
    return Code.OK


def test_a_reader_who_stalls_is_let_go(running: Service) -> None:
    version = next(iter((running.home.adapters / "versions").glob("*.json"))).stem
    request = pb.DownloadRequest(digest=version).SerializeToString()
    with channel_of(running.identity("node-9")) as channel:
        opened: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(DOWNLOAD)
        call = opened(request)  # without a deadline of its own
        next(call)
        time.sleep(4)
        with pytest.raises(grpc.RpcError) as found:
            list(call)
        assert code_of(found.value) is Code.DEADLINE_EXCEEDED
        assert _first(opened(request, timeout=10)) is Code.OK


def test_revoked_during_a_download_is_the_end_of_it(running: Service) -> None:
    version = next(iter((running.home.adapters / "versions").glob("*.json"))).stem
    request = pb.DownloadRequest(digest=version).SerializeToString()
    with channel_of(running.identity("node-10")) as channel:
        opened: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(DOWNLOAD)
        call, got, code = opened(request, timeout=20), 0, Code.OK
        got += len(next(call))
        with running.fleet() as fleet:
            fleet.revoke("node-10", "lost")
        try:
            for part in call:
                got += len(part)
        except grpc.RpcError as found:
            code = code_of(found)
    assert code is Code.PERMISSION_DENIED
    assert got < 30_000_000


def test_calls_that_never_send_their_request_hold_nobody_up(running: Service) -> None:
    loud, quiet = running.identity("node-11"), running.identity("node-12")
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait(30)
        return
        yield b""

    with channel_of(loud) as channel, channel_of(quiet) as other:
        try:
            silent: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(OWN)
            hanging = [silent.future(nothing()) for _ in range(40)]
            time.sleep(0.5)
            started = time.monotonic()
            assert ask(other, OWN) is Code.OK
            assert time.monotonic() - started < 2
        finally:
            stop.set()
            for call in hanging:
                call.cancel()


def test_tokens_cannot_be_tried_one_after_the_other(running: Service, home: ServerHome) -> None:
    request = certificate_request(new_key(), "node-1")
    fingerprint, refused, cut = home.authority().fingerprint, 0, 0
    for n in range(20):
        try:
            enroll(running.enrol, fingerprint, f"{n:043d}", request, attempts=1)
        except EnrolmentRefused:
            refused += 1
        except ServerUnreachable:
            cut += 1
    assert refused + cut == 20
    assert refused <= 8
    # Long tokens and requests never reach the database.
    credentials = grpc.ssl_channel_credentials(home.authority().certificate)
    with grpc.secure_channel(running.enrol, credentials) as channel:
        path = METHODS["Enrolment.Enroll"].path
        long = pb.EnrollRequest(token="x" * 30_000, csr=request).SerializeToString()
        assert ask(channel, path, long) is Code.RESOURCE_EXHAUSTED
        for other in ("Budget.GetOwn", "Fleet.NewToken", "Fleet.Revoke", "Registry.Download"):
            assert ask(channel, METHODS[other].path) is Code.UNIMPLEMENTED


def test_a_second_server_on_the_port_is_an_error(running: Service, home: ServerHome) -> None:
    from server.control.serve import run
    from shared.errors import AlreadyRunning

    with pytest.raises(AlreadyRunning):
        run(home, replace(running.settings, enrol_port=0))


def test_nothing_failed_on_the_way(running: Service) -> None:
    assert running.process.poll() is None
    assert [line for line in running.log() if line["event"] == "failure"] == []
