"""Asking the server's control service: own budget, runs, adapters, certificates (gRPC, mutual TLS).

Whom the client talks to is decided by the authority's certificate alone, which an enrolled device
has and a new one recognises by the fingerprint in its token. Nothing that is downloaded is used
before its digest is checked; signatures are checked by :mod:`client.adapterstore`.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

import grpc
from google.protobuf.message import Message

from client.controlchannel import (
    DEADLINE_SECONDS,
    Identity,
    Patience,
    call_again,
    first_key,
    open_channel,
    parse,
)
from client.firstcontact import enroll, redeem
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.control.methods import METHODS
from shared.enrolment import EnrolmentToken, require_address
from shared.errors import AdapterCorrupt, ProtocolError
from shared.pki import verify_certificate

if TYPE_CHECKING:
    from client.home import DeviceHome

__all__ = ["ControlClient", "Identity", "enroll", "redeem"]

M = TypeVar("M", bound=Message)

STREAM_SECONDS: Final = 120.0
ATTEMPTS: Final = 5
_PAGE: Final = 100


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
        self._channel = open_channel(who.address, credentials)
        self._address = who.address
        self._deadline = deadline
        self._patience = Patience(attempts=attempts, pause=pause)

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
        self._call("Fleet.Revoke", request, pb.RevokeResponse, once=True)

    def new_token(self, name: str, *, role: str = "node", valid_seconds: int = 0) -> EnrolmentToken:
        """Make an enrolment token; for operators.

        Args:
            name: of the device or person.
            role: "node" or "viewer".
            valid_seconds: 0 for the server's own setting.
        """
        request = pb.NewTokenRequest(name=name, role=role, valid_seconds=valid_seconds)
        answer = self._call("Fleet.NewToken", request, pb.NewTokenResponse, once=True)
        return EnrolmentToken.from_text(answer.token)

    def renew(self, csr: bytes) -> bytes:
        """Return a new certificate (PEM) for a request of the same key."""
        request = pb.RenewRequest(csr=csr)
        return self._call("Certificates.Renew", request, pb.RenewResponse).certificate

    def leave(self) -> None:
        """Take this client out of the fleet for good."""
        self._call("Certificates.Leave", pb.LeaveRequest(), pb.LeaveResponse, once=True)

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
                self._patience.wait(found, failures, self._address)
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
                part = parse(raw, pb.DownloadResponse)
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

    def _call(self, name: str, request: Message, answer: type[M], *, once: bool = False) -> M:
        """Make a call; unless it may be made once only, again while the server is away or busy."""
        return call_again(
            self._channel.unary_unary(METHODS[name].path),
            request,
            answer,
            seconds=self._deadline,
            patience=replace(self._patience, attempts=1) if once else self._patience,
            at=self._address,
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
