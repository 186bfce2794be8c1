"""Asking the server's control service: own budget, runs, adapters, certificates (gRPC, mutual TLS).

Whom the client talks to is decided by the authority's certificate alone, which an enrolled device
has and a new one recognises by the fingerprint in its token. Nothing that is downloaded is used
before its digest is checked; signatures are checked by :mod:`client.adapterstore`.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from client.controlerrors import error_of, retry_after
from client.firstcontact import authority_behind
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.control.methods import MAX_RESPONSE_BYTES, METHODS
from shared.enrolment import EnrolmentAnswer, EnrolmentToken, require_address, require_role
from shared.errors import AdapterCorrupt, InvalidValue, ProtocolError
from shared.pki import public_bytes, verify_certificate
from shared.privatefiles import read_private

if TYPE_CHECKING:
    from client.home import DeviceHome

M = TypeVar("M", bound=Message)
_Call: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"

DEADLINE_SECONDS: Final = 20.0
STREAM_SECONDS: Final = 120.0
ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 20.0
# A call that was not made, or that may be made twice, is tried again.
_AGAIN: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """With what a client shows who it is, and by what it knows the server.

    Attributes:
        address: of the control service, ``host:port``.
        ca: certificate of the server's authority, PEM.
        certificate: the client's own, PEM.
        key: its private key, PEM.
    """

    address: str
    ca: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        """Return nothing of the key."""
        return f"Identity(address={self.address!r})"

    @classmethod
    def of(cls, home: DeviceHome) -> Identity:
        """Read the files of an enrolled device.

        Raises:
            FleetError: if one is missing or may be read by others.
        """
        return cls(
            address=home.config.control,
            ca=read_private(home.ca),
            certificate=read_private(home.certificate),
            key=read_private(home.key),
        )


class ControlClient:
    """A connection to the control service; safe to use from several threads.

    Args:
        identity: an enrolled device's folder, or what it would hold.
        deadline: seconds that one attempt of a call may take.
        attempts: how often a call is tried when the server is away or busy.
        pause: waits between attempts; gets seconds.

    Raises:
        CertificateInvalid: if the own certificate is not of this authority, or not valid now.
        FleetError: if a file is missing or may be read by others.
        InvalidValue: for an address that is none.
    """

    def __init__(
        self,
        identity: DeviceHome | Identity,
        *,
        deadline: float = DEADLINE_SECONDS,
        attempts: int = ATTEMPTS,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        who = identity if isinstance(identity, Identity) else Identity.of(identity)
        require_address(who.address)
        # Said here in plain words; the handshake would only say that it failed.
        verify_certificate(who.certificate, who.ca, usage="client")
        credentials = grpc.ssl_channel_credentials(who.ca, first_key(who.key), who.certificate)
        self._channel = _channel(who.address, credentials)
        self._address = who.address
        self._deadline = deadline
        self._attempts = attempts
        self._pause = pause

    def own_budget(self) -> pb.GetOwnResponse:
        """Return what was spent about this client, with the signed end of the ledger."""
        return self._call("Budget.GetOwn", pb.GetOwnRequest(), pb.GetOwnResponse)

    def budget_of(self, name: str) -> pb.GetNodeResponse:
        """Return what was spent about a node; a node may ask about itself alone."""
        return self._call("Budget.GetNode", pb.GetNodeRequest(name=name), pb.GetNodeResponse)

    def budgets(self) -> Iterator[pb.Statement]:
        """Yield every subject's budget; for viewers and operators."""
        page, more = 0, True
        while more:
            request = pb.ListBudgetsRequest(page=page)
            answer = self._call("Budget.ListBudgets", request, pb.ListBudgetsResponse)
            yield from answer.statements
            page, more = page + 1, answer.more and bool(answer.statements)

    def runs(self) -> Iterator[pb.Run]:
        """Yield every run."""
        after, more = "", True
        while more:
            request = pb.ListRunsRequest(page_size=_PAGE, after=after)
            answer = self._call("Runs.ListRuns", request, pb.ListRunsResponse)
            yield from answer.runs
            more = answer.more and bool(answer.runs)
            after = answer.runs[-1].name if answer.runs else ""

    def run(self, name: str, *, first_round: int = 0) -> pb.GetRunResponse:
        """Return a run; with its rounds for viewers and operators, a page of them."""
        request = pb.GetRunRequest(name=name, first_round=first_round)
        return self._call("Runs.GetRun", request, pb.GetRunResponse)

    def audit(self, name: str) -> pb.GetAuditResponse:
        """Return the audit report of a run and its signature, which is not checked here."""
        return self._call("Runs.GetAudit", pb.GetAuditRequest(name=name), pb.GetAuditResponse)

    def nodes(self) -> Iterator[pb.Node]:
        """Yield everyone who was enrolled; for viewers and operators."""
        after, more = "", True
        while more:
            request = pb.ListNodesRequest(page_size=_PAGE, after=after)
            answer = self._call("Fleet.ListNodes", request, pb.ListNodesResponse)
            yield from answer.nodes
            more = answer.more and bool(answer.nodes)
            after = answer.nodes[-1].name if answer.nodes else ""

    def revoke(self, name: str, reason: str) -> None:
        """Shut a name out; for operators."""
        request = pb.RevokeRequest(name=name, reason=reason)
        self._call("Fleet.Revoke", request, pb.RevokeResponse, attempts=1)

    def new_token(self, name: str, *, role: str = "node", valid_seconds: int = 0) -> EnrolmentToken:
        """Make an enrolment token; for operators.

        Args:
            name: of the device or person.
            role: "node" or "viewer".
            valid_seconds: 0 for the server's own setting.
        """
        request = pb.NewTokenRequest(name=name, role=role, valid_seconds=valid_seconds)
        answer = self._call("Fleet.NewToken", request, pb.NewTokenResponse, attempts=1)
        return EnrolmentToken.from_text(answer.token)

    def renew(self, csr: bytes) -> bytes:
        """Return a new certificate (PEM) for a request of the same key."""
        request = pb.RenewRequest(csr=csr)
        return self._call("Certificates.Renew", request, pb.RenewResponse).certificate

    def leave(self) -> None:
        """Take this client out of the fleet for good."""
        self._call("Certificates.Leave", pb.LeaveRequest(), pb.LeaveResponse, attempts=1)

    def adapters(self) -> Iterator[pb.Adapter]:
        """Yield every version of an adapter, newest first."""
        after, more = "", True
        while more:
            request = pb.ListAdaptersRequest(page_size=_PAGE, after=after)
            answer = self._call("Registry.ListAdapters", request, pb.ListAdaptersResponse)
            yield from answer.adapters
            more = answer.more and bool(answer.adapters)
            after = answer.adapters[-1].digest if answer.adapters else ""

    def manifest(self, digest: str = "") -> pb.GetManifestResponse:
        """Return the signed manifest of a version; of the one in use by default."""
        request = pb.GetManifestRequest(digest=digest)
        return self._call("Registry.GetManifest", request, pb.GetManifestResponse)

    def order(self) -> pb.GetOrderResponse:
        """Return the newest signed order; its bytes are empty before the first."""
        return self._call("Registry.GetOrder", pb.GetOrderRequest(), pb.GetOrderResponse)

    def download(self, sha256: str, target: BinaryIO, *, size: int) -> None:
        """Fetch a file of an adapter, going on after an interruption where it ended.

        Args:
            sha256: of the file, from a manifest whose signature was checked.
            target: open for reading and writing; what it holds already is the file's beginning.
            size: of the file, from the same manifest; not a byte more is written.

        Raises:
            AdapterCorrupt: if the content is not what the digest says; the target is emptied.
            ServerUnreachable: if the server stays away; what was fetched stays for next time.
        """
        have = _length(target)
        if have > size:
            target.truncate(0)
            have = 0
        failures = 0
        while have < size:
            before = have
            try:
                have = self._fetch(sha256, target, have, size)
            except grpc.RpcError as found:
                failures = 0 if _length(target) > before else failures + 1
                self._wait(found, failures)
                have = _length(target)
        _require_digest(target, sha256)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fetch(self, sha256: str, target: BinaryIO, offset: int, size: int) -> int:
        """Read one stream into the target; return how much is there then.

        Raises:
            RpcError: if the stream breaks; what came before is in the target.
            ProtocolError: if a part is not the next one, or says another size.
        """
        open_stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            METHODS["Registry.Download"].path
        )
        request = pb.DownloadRequest(digest=sha256, offset=offset)
        call = open_stream(request.SerializeToString(), timeout=STREAM_SECONDS)
        try:
            for raw in call:
                part = _parse(raw, pb.DownloadResponse)
                good = part.offset == offset and part.total == size and part.data
                if not (good and offset + len(part.data) <= size):
                    msg = f"A download of {size} bytes went on with a part that does not fit."
                    raise ProtocolError(msg, hint="Ask the operator to check the registry.")
                target.seek(offset)
                target.write(part.data)
                offset += len(part.data)
        finally:
            call.cancel()
        return offset

    def _call(self, name: str, request: Message, answer: type[M], *, attempts: int = 0) -> M:
        """Make a call; again, with pauses, while the server is away or busy."""
        call: _Call = self._channel.unary_unary(METHODS[name].path)
        raw, made = request.SerializeToString(), 0
        while True:
            try:
                return _parse(call(raw, timeout=self._deadline), answer)
            except grpc.RpcError as found:
                made += 1
                self._wait(found, made, attempts=attempts)

    def _wait(self, found: grpc.RpcError, failures: int, *, attempts: int = 0) -> None:
        """Wait before another attempt, or give up.

        Args:
            found: how the last attempt failed.
            failures: attempts that failed one after the other.
            attempts: how many there may be; the client's own number by default.

        Raises:
            FedSLMError: what the failure means, if there is no use in another attempt.
        """
        code = found.code() if isinstance(found, grpc.Call) else None
        if code not in _AGAIN or failures >= (attempts or self._attempts):
            raise error_of(found, self._address) from None
        self._pause(max(retry_after(found), back_off(failures)))


def enroll(
    address: str,
    ca_fingerprint: str,
    token: str,
    csr: bytes,
    *,
    timeout: float = DEADLINE_SECONDS,
    attempts: int = 3,
    pause: Callable[[float], None] = time.sleep,
) -> EnrolmentAnswer:
    """Redeem a token at a server that nothing is known of but a fingerprint.

    Args:
        address: the enrolment port, ``host:port``, as the token names it.
        ca_fingerprint: SHA-256 of the authority's certificate, from the token.
        token: the token's secret; sent only to the server with this authority.
        csr: a certificate request, PEM.
        timeout: seconds that one attempt may take.
        attempts: how often to try while the server is away or busy; with the same key a token may
            come twice.
        pause: waits between attempts; gets seconds.

    Raises:
        EnrolmentRefused: if the token is refused, or the server is another one.
        ServerUnreachable: if there is none.
        ProtocolError: if the answer is not one.
    """
    ca = authority_behind(address, ca_fingerprint, timeout=timeout)
    request = pb.EnrollRequest(token=token, csr=csr).SerializeToString()
    failures = 0
    with _channel(address, grpc.ssl_channel_credentials(ca)) as channel:
        call: _Call = channel.unary_unary(METHODS["Enrolment.Enroll"].path)
        while True:
            try:
                return _answer(_parse(call(request, timeout=timeout), pb.EnrollResponse))
            except grpc.RpcError as found:
                failures += 1
                code = found.code() if isinstance(found, grpc.Call) else None
                if code not in _AGAIN or failures >= attempts:
                    raise error_of(found, address) from None
                pause(max(retry_after(found), back_off(failures)))


def redeem(token: EnrolmentToken, csr: bytes) -> EnrolmentAnswer:
    """Redeem a token where it says; what :func:`client.enrolling.enroll` calls."""
    return enroll(token.address, token.fingerprint, token.secret, csr)


def back_off(failures: int) -> float:
    """Return seconds to wait after some failures: twice as long each time, a random part of it."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + secrets.randbelow(1001) / 2000)


def first_key(pem: bytes) -> bytes:
    """Return the first key of a file that holds the same key in two forms.

    Raises:
        CertificateInvalid: if it is not an ECDSA P-384 private key.
    """
    public_bytes(pem)
    head, end, _ = pem.partition(b"-----END PRIVATE KEY-----")
    return head + end + b"\n"


def _channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
    """Open a channel with bounds on what the server may send; it connects at the first call."""
    return grpc.secure_channel(
        address,
        credentials,
        options=[
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 20_000),
        ],
    )


def _parse(raw: bytes, kind: type[M]) -> M:
    """Parse an answer.

    Raises:
        ProtocolError: if it is not one.
    """
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        msg = f"The server's answer is not a {kind.DESCRIPTOR.name}."
        raise ProtocolError(msg, hint="Is the server newer than this program?") from error


def _answer(found: pb.EnrollResponse) -> EnrolmentAnswer:
    """Read an enrolment's answer.

    Raises:
        ProtocolError: if the role is not known.
    """
    try:
        role = require_role(found.role)
    except InvalidValue as error:
        msg = "The server enrolled this device in a role that is not known here."
        raise ProtocolError(msg, hint="Is the server newer than this program?") from error
    return EnrolmentAnswer(
        certificate=found.certificate,
        ca=found.ca,
        name=found.name,
        role=role,
        client_index=found.client_index if found.HasField("client_index") else None,
        control_address=found.control_address,
        fleet_address=found.fleet_address,
        ledger_key=found.ledger_key or None,
        adapter_key=found.adapter_key or None,
        base_digest=found.base_digest or None,
    )


def _length(target: BinaryIO) -> int:
    """Return how many bytes a file holds."""
    return target.seek(0, io.SEEK_END)


def _require_digest(target: BinaryIO, sha256: str) -> None:
    """Compare a file's content with its digest.

    Raises:
        AdapterCorrupt: if it is another; the file is emptied.
    """
    target.seek(0)
    found = hashlib.sha256()
    for piece in iter(lambda: target.read(1 << 20), b""):
        found.update(piece)
    if not hmac.compare_digest(found.hexdigest(), sha256):
        target.truncate(0)
        msg = f"The download {sha256[:12]} has another content than its digest says."
        raise AdapterCorrupt(msg, hint="Fetch it again; if that does not help, tell the operator.")
    target.seek(0)
