"""The client of the control service against servers that fail, lie, or are somebody else."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.control import ControlClient, Identity, enroll
from client.controlchannel import back_off, first_key
from client.firstcontact import authority_behind
from client.home import DeviceHome, NodeConfig
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.errors import (
    AccessDenied,
    AdapterCorrupt,
    CertificateInvalid,
    EnrolmentRefused,
    FedSLMError,
    FleetError,
    InvalidValue,
    LedgerTampered,
    ProtocolError,
    ServerUnreachable,
)
from shared.pki import Authority, certificate_request, new_key, openssh_form
from shared.privatefiles import create_private, make_private_folder
from tests.client.liar import Liar, in_turn, lying, refuse

Code = grpc.StatusCode
CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module", name="authority")
def _authority() -> Authority:
    return Authority.create("test", days=30)


@pytest.fixture(name="liar")
def _liar(authority: Authority) -> Iterator[Liar]:
    with lying(authority) as found:
        yield found


@contextmanager
def client_of(liar: Liar, **more: Any) -> Iterator[tuple[ControlClient, list[float]]]:
    """Connect; pauses are written down and not waited for."""
    pauses: list[float] = []
    with ControlClient(liar.identity, pause=pauses.append, **more) as client:
        yield client, pauses


def own(raw: bytes, context: grpc.ServicerContext) -> bytes:
    return pb.GetOwnResponse(name="clinic-1").SerializeToString()


def test_a_server_that_comes_back_is_asked_again(liar: Liar) -> None:
    away = refuse(Code.UNAVAILABLE)
    liar.answers["Budget.GetOwn"] = in_turn(away, away, away, own)
    with client_of(liar) as (client, pauses):
        assert client.own_budget().name == "clinic-1"
    assert len(pauses) == 3
    for pause, longest in zip(pauses, (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_server_that_stays_away_is_given_up(liar: Liar) -> None:
    liar.answers["Budget.GetOwn"] = refuse(Code.UNAVAILABLE, "words of the server")
    with client_of(liar, attempts=4) as (client, pauses), pytest.raises(ServerUnreachable) as found:
        client.own_budget()
    assert (len(liar.asked), len(pauses)) == (4, 3)
    assert "words" not in str(found.value)


def test_a_busy_server_says_when(liar: Liar) -> None:
    busy = refuse(Code.RESOURCE_EXHAUSTED, fedslm_retry_after="7")
    liar.answers["Budget.GetOwn"] = in_turn(busy, own)
    with client_of(liar) as (client, pauses):
        client.own_budget()
    assert pauses == [7.0]


@pytest.mark.parametrize("wrong", ["-1", "1e9", "nan", "\u0663", "99999999999"])
def test_nonsense_about_when_is_bounded(wrong: str, liar: Liar) -> None:
    text = wrong.encode("ascii", "replace").decode()
    busy = refuse(Code.RESOURCE_EXHAUSTED, fedslm_retry_after=text)
    liar.answers["Budget.GetOwn"] = in_turn(busy, own)
    with client_of(liar) as (client, pauses):
        client.own_budget()
    assert 0.25 <= pauses[0] <= 60


def test_a_server_that_is_too_slow_is_given_up(liar: Liar) -> None:
    def slow(raw: bytes, context: grpc.ServicerContext) -> bytes:
        liar.stop.wait(5)
        return b""

    liar.answers["Budget.GetOwn"] = slow
    started = time.monotonic()
    with (
        client_of(liar, deadline=0.2, attempts=2) as (client, _),
        pytest.raises(ServerUnreachable),
    ):
        client.own_budget()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (Code.PERMISSION_DENIED, "access-denied", AccessDenied),
        (Code.PERMISSION_DENIED, "enrolment-refused", EnrolmentRefused),
        (Code.PERMISSION_DENIED, "", AccessDenied),
        (Code.UNAUTHENTICATED, "certificate-invalid", CertificateInvalid),
        (Code.UNAUTHENTICATED, "", AccessDenied),
        (Code.NOT_FOUND, "fleet", FleetError),
        (Code.INVALID_ARGUMENT, "fleet", ProtocolError),
        (Code.INVALID_ARGUMENT, "invalid-value", InvalidValue),
        (Code.INTERNAL, "ledger-tampered", LedgerTampered),
        (Code.INTERNAL, "unexpected", ProtocolError),
        (Code.UNIMPLEMENTED, "", ProtocolError),
        (Code.OUT_OF_RANGE, "no such code", ProtocolError),
        # Its constructor wants more than words.
        (Code.PERMISSION_DENIED, "budget-exhausted", AccessDenied),
    ],
)
def test_refusals_are_not_repeated_and_have_a_meaning(
    status: grpc.StatusCode, code: str, expected: type[FedSLMError], liar: Liar
) -> None:
    liar.answers["Budget.GetOwn"] = refuse(status, "why", fedslm_error=code)
    with client_of(liar) as (client, pauses), pytest.raises(FedSLMError) as found:
        client.own_budget()
    assert type(found.value) is expected
    assert found.value.message == "why"
    assert (len(liar.asked), pauses) == (1, [])


def test_words_of_a_server_are_bounded_and_harmless(liar: Liar) -> None:
    liar.answers["Budget.GetOwn"] = refuse(Code.PERMISSION_DENIED, "\x1b[2Jx\n" + "y" * 3000)
    with client_of(liar) as (client, _), pytest.raises(AccessDenied) as found:
        client.own_budget()
    assert len(found.value.message) == 400
    assert found.value.message.isprintable()


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("Fleet.Revoke", lambda client: client.revoke("x", "")),
        ("Fleet.NewToken", lambda client: client.new_token("x")),
        ("Certificates.Leave", lambda client: client.leave()),
    ],
)
def test_what_acts_is_asked_once(method: str, call: Any, liar: Liar) -> None:
    liar.answers[method] = refuse(Code.UNAVAILABLE)
    with client_of(liar) as (client, _), pytest.raises(ServerUnreachable):
        call(client)
    assert len(liar.asked) == 1


def test_an_answer_that_is_none_is_an_error(liar: Liar) -> None:
    liar.answers["Budget.GetOwn"] = lambda raw, context: b"\xff\xff\xff"
    with client_of(liar) as (client, _), pytest.raises(ProtocolError, match="GetOwnResponse"):
        client.own_budget()


def test_an_answer_that_is_too_long_is_an_error(liar: Liar) -> None:
    liar.answers["Budget.GetOwn"] = lambda raw, context: bytes(5_000_000)
    with client_of(liar, attempts=1) as (client, _), pytest.raises(FedSLMError):
        client.own_budget()


@pytest.mark.parametrize("kind", ["runs", "nodes", "adapters", "budgets"])
def test_pages_without_content_do_not_go_on_for_ever(kind: str, liar: Liar) -> None:
    more = {
        "runs": ("Runs.ListRuns", pb.ListRunsResponse(more=True)),
        "nodes": ("Fleet.ListNodes", pb.ListNodesResponse(more=True)),
        "adapters": ("Registry.ListAdapters", pb.ListAdaptersResponse(more=True)),
        "budgets": ("Budget.ListBudgets", pb.ListBudgetsResponse(more=True)),
    }
    name, answer = more[kind]
    liar.answers[name] = lambda raw, context: answer.SerializeToString()
    with client_of(liar) as (client, _):
        assert list(getattr(client, kind)()) == []


def part(offset: int, data: bytes, total: int = len(CONTENT)) -> bytes:
    return pb.DownloadResponse(offset=offset, data=data, total=total).SerializeToString()


def honest(limit: int = len(CONTENT), size: int = 1000) -> Any:
    """Stream the content from where it was asked, at most so many bytes, then break."""

    def answer(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        start = pb.DownloadRequest.FromString(raw).offset
        end = min(len(CONTENT), start + limit)
        for offset in range(start, end, size):
            yield part(offset, CONTENT[offset : min(offset + size, end)])
        if end < len(CONTENT):
            context.abort(Code.UNAVAILABLE, "the cable was pulled")

    return answer


def offsets(liar: Liar) -> list[int]:
    return [pb.DownloadRequest.FromString(raw).offset for _, raw in liar.asked]


def test_a_download_that_breaks_goes_on_where_it_ended(liar: Liar) -> None:
    liar.answers["Registry.Download"] = honest(limit=3000)
    target = io.BytesIO()
    with client_of(liar) as (client, pauses):
        client.download(SHA256, target, size=len(CONTENT))
    assert target.getvalue() == CONTENT
    assert offsets(liar) == [0, 3000, 6000, 9000]
    assert len(pauses) == 3


def test_a_stream_that_just_ends_is_asked_to_go_on(liar: Liar) -> None:
    def some(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        start = pb.DownloadRequest.FromString(raw).offset
        yield part(start, CONTENT[start : start + 4000])

    liar.answers["Registry.Download"] = some
    target = io.BytesIO()
    with client_of(liar) as (client, _):
        client.download(SHA256, target, size=len(CONTENT))
    assert target.getvalue() == CONTENT


def test_a_download_goes_on_in_another_process(liar: Liar) -> None:
    liar.answers["Registry.Download"] = honest()
    target = io.BytesIO(CONTENT[:5000])
    with client_of(liar) as (client, _):
        client.download(SHA256, target, size=len(CONTENT))
    assert target.getvalue() == CONTENT
    assert offsets(liar) == [5000]


def test_what_was_fetched_stays_when_the_server_stays_away(liar: Liar) -> None:
    liar.answers["Registry.Download"] = in_turn(honest(limit=2000), refuse(Code.UNAVAILABLE))
    target = io.BytesIO()
    with client_of(liar, attempts=2) as (client, _), pytest.raises(ServerUnreachable):
        client.download(SHA256, target, size=len(CONTENT))
    assert target.getvalue() == CONTENT[:2000]


def test_another_content_is_thrown_away(liar: Liar) -> None:
    liar.answers["Registry.Download"] = honest()
    target = io.BytesIO(b"x" * 5000)
    with client_of(liar) as (client, _), pytest.raises(AdapterCorrupt):
        client.download(SHA256, target, size=len(CONTENT))
    assert target.getvalue() == b""


def test_a_beginning_that_is_too_long_is_thrown_away(liar: Liar) -> None:
    liar.answers["Registry.Download"] = honest()
    target = io.BytesIO(b"x" * (len(CONTENT) + 1))
    with client_of(liar) as (client, _):
        client.download(SHA256, target, size=len(CONTENT))
    assert target.getvalue() == CONTENT


@pytest.mark.parametrize(
    "parts",
    [
        [part(1, CONTENT)],
        [part(0, CONTENT[:10]), part(20, CONTENT[10:20])],
        [part(0, CONTENT, total=len(CONTENT) + 1)],
        [part(0, CONTENT + b"more")],
        [part(0, b"")],
        [b"\xff\xff"],
    ],
    ids=["late", "gap", "another size", "too long", "empty", "nonsense"],
)
def test_a_download_that_does_not_fit_is_ended(parts: list[bytes], liar: Liar) -> None:
    liar.answers["Registry.Download"] = lambda raw, context: iter(parts)
    target = io.BytesIO()
    with client_of(liar) as (client, _), pytest.raises(ProtocolError):
        client.download(SHA256, target, size=len(CONTENT))
    assert len(target.getvalue()) <= len(CONTENT)


def test_an_endless_download_is_ended_at_its_size(liar: Liar) -> None:
    def endless(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for n in count():
            yield part(n * 1000, CONTENT[:1000])

    liar.answers["Registry.Download"] = endless
    target = io.BytesIO()
    with client_of(liar) as (client, _), pytest.raises(ProtocolError):
        client.download(SHA256, target, size=len(CONTENT))
    assert len(target.getvalue()) <= len(CONTENT)


def test_an_empty_file_needs_no_server(liar: Liar) -> None:
    target = io.BytesIO()
    with client_of(liar) as (client, _):
        client.download(hashlib.sha256(b"").hexdigest(), target, size=0)
    assert liar.asked == []


def enrolled(authority: Authority) -> Any:
    def answer(raw: bytes, context: grpc.ServicerContext) -> bytes:
        request = pb.EnrollRequest.FromString(raw)
        certificate = authority.sign_request(request.csr, name="clinic-1", role="node", days=1)
        return pb.EnrollResponse(
            certificate=certificate,
            ca=authority.certificate,
            name="clinic-1",
            role="node",
            client_index=3,
            control_address="localhost:1",
            fleet_address="localhost:2",
        ).SerializeToString()

    return answer


def test_enrolment_knows_the_authority_by_its_fingerprint(authority: Authority) -> None:
    request = certificate_request(new_key(), "clinic-1")
    with lying(authority, mutual=False) as liar:
        away = refuse(Code.UNAVAILABLE)
        liar.answers["Enrolment.Enroll"] = in_turn(away, enrolled(authority))
        pauses: list[float] = []
        answer = enroll(
            liar.identity.address, authority.fingerprint, "s", request, pause=pauses.append
        )
    assert (answer.name, answer.role, answer.client_index) == ("clinic-1", "node", 3)
    assert (answer.adapter_key, answer.base_digest) == (None, None)
    assert answer.ca == authority.certificate
    assert len(pauses) == 1


def test_the_token_is_not_shown_to_another_authority(authority: Authority) -> None:
    other = Authority.create("other", days=2)
    request = certificate_request(new_key(), "clinic-1")
    with lying(other, mutual=False) as liar:
        with pytest.raises(EnrolmentRefused, match="not the one that the token names"):
            enroll(liar.identity.address, authority.fingerprint, "s", request)
        assert liar.asked == []


def test_showing_the_right_authority_is_not_enough(authority: Authority) -> None:
    """Whoever sits in between can show the authority's certificate, but has no key under it."""
    other = Authority.create("other", days=2)
    request = certificate_request(new_key(), "clinic-1")
    with lying(other, mutual=False, chain=authority.certificate) as liar:
        address = liar.identity.address
        shown = authority_behind(address, authority.fingerprint, timeout=5)
        assert shown.split() == authority.certificate.split()
        with pytest.raises(ServerUnreachable):
            enroll(address, authority.fingerprint, "s", request, pause=lambda seconds: None)
        assert liar.asked == []


def test_a_fingerprint_of_a_leaf_is_no_authority(authority: Authority) -> None:
    from shared.pki import fingerprint

    issued = authority.issue_server(["127.0.0.1"], days=2)
    with lying(authority, mutual=False, chain=issued.certificate) as liar:
        request = certificate_request(new_key(), "clinic-1")
        print_of_leaf = fingerprint(issued.certificate)
        with pytest.raises(ServerUnreachable):
            enroll(liar.identity.address, print_of_leaf, "s", request, pause=lambda seconds: None)
        assert liar.asked == []


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Accept connections without TLS: send something and close, or say nothing for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()
        server.settimeout(0.1)

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    if answer is None:
                        stop.wait(3)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"", None])
def test_something_without_tls_is_no_server(answer: bytes | None) -> None:
    with listening(answer) as address, pytest.raises(ServerUnreachable):
        authority_behind(address, "0" * 64, timeout=0.5)


@pytest.mark.parametrize("address", ["", "x", "host:0", "host:99999", "a b:1", "http://x:1"])
def test_an_address_that_is_none_is_refused(address: str, authority: Authority) -> None:
    with pytest.raises(InvalidValue):
        authority_behind(address, "0" * 64, timeout=0.5)


def test_the_own_certificate_is_checked_before_anything_is_sent(liar: Liar) -> None:
    other = Authority.create("other", days=2)
    with pytest.raises(CertificateInvalid):
        ControlClient(replace(liar.identity, ca=other.certificate))
    with pytest.raises(CertificateInvalid):
        ControlClient(replace(liar.identity, key=b"nonsense"))
    with pytest.raises(InvalidValue):
        ControlClient(replace(liar.identity, address="nowhere"))


def test_an_expired_certificate_is_told_by_name() -> None:
    past = datetime.now(UTC) - timedelta(days=3)
    authority = Authority.create("test", days=30, now=past)
    key = new_key()
    certificate = authority.sign_request(
        certificate_request(key, "clinic-1"), name="clinic-1", role="node", days=1, now=past
    )
    who = Identity(
        address="localhost:1", ca=authority.certificate, certificate=certificate, key=key
    )
    with pytest.raises(CertificateInvalid, match="clinic-1"):
        ControlClient(who)


def test_an_enrolled_device_connects_with_its_folder(liar: Liar, tmp_path: Path) -> None:
    who, folder = liar.identity, tmp_path / "device"
    make_private_folder(folder)
    for name, data in (
        ("node.key", who.key + openssh_form(who.key)),
        ("node.crt", who.certificate),
        ("ca.crt", who.ca),
    ):
        create_private(folder / name, data)
    config = NodeConfig(name="clinic-1", fleet="localhost:1", control=who.address)
    home = DeviceHome.create(folder, config)
    liar.answers["Budget.GetOwn"] = own
    with ControlClient(home) as client:
        assert client.own_budget().name == "clinic-1"


def test_keys_are_not_shown(liar: Liar) -> None:
    assert "KEY" not in repr(liar.identity)
    assert repr(liar.identity).startswith("Identity(address=")


def test_of_a_file_with_two_forms_the_first_key_is_taken() -> None:
    key = new_key()
    assert first_key(key + openssh_form(key)).split() == key.split()
    with pytest.raises(CertificateInvalid):
        first_key(b"nothing")


@given(st.integers(1, 10_000))
def test_pauses_grow_and_are_bounded(failures: int) -> None:
    assert 0.25 <= back_off(failures) <= 20.0
