"""Certificates: for holders of a token, and again for keys that are enrolled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.control.identity import Caller
from server.control.refusals import Malformed
from server.control.settings import ControlSettings
from server.enrolling import enroll, leave, renew
from server.fleetdb import FleetDatabase
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.errors import CertificateInvalid
from shared.pki import Authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a new device is told to trust, beside the authority.

    Attributes:
        adapter_key: signs adapters, 64 hexadecimal digits.
        ledger_key: signs the ledger, 64 hexadecimal digits.
        base_digest: returns the digest of the base model of the current adapter, or nothing.
    """

    adapter_key: str
    ledger_key: str
    base_digest: Callable[[], str]


class Certifier:
    """The services ``Enrolment`` and ``Certificates``.

    Args:
        fleet: the fleet.
        authority: issues certificates.
        settings: addresses and limits.
        announced: what devices are told.
    """

    def __init__(
        self,
        fleet: FleetDatabase,
        authority: Authority,
        settings: ControlSettings,
        announced: Announced,
    ) -> None:
        self._fleet = fleet
        self._authority = authority
        self._settings = settings
        self._announced = announced

    def enroll(self, request: pb.EnrollRequest, caller: Caller) -> pb.EnrollResponse:
        """Redeem a token.

        Raises:
            Malformed: for a request that is none.
            EnrolmentRefused: if the token is not good for this key.
        """
        del caller
        with _requests():
            done = enroll(
                self._fleet,
                self._authority,
                secret=request.token,
                csr=request.csr,
                days=self._settings.certificate_days,
            )
        return pb.EnrollResponse(
            certificate=done.certificate,
            ca=self._authority.certificate,
            name=done.redeemed.name,
            role=done.redeemed.role,
            client_index=done.redeemed.client_index,
            control_address=self._settings.control_address,
            fleet_address=self._settings.fleet_address,
            adapter_key=self._announced.adapter_key,
            ledger_key=self._announced.ledger_key,
            base_digest=self._announced.base_digest(),
        )

    def renew(self, request: pb.RenewRequest, caller: Caller) -> pb.RenewResponse:
        """Issue a new certificate for the caller's key, with the caller's name and role.

        Raises:
            Malformed: for a request that is none.
            AccessDenied: for another key than the caller's.
        """
        with _requests():
            certificate = renew(
                self._fleet,
                self._authority,
                public_key=caller.public_key,
                csr=request.csr,
                days=self._settings.certificate_days,
            )
        return pb.RenewResponse(certificate=certificate, ca=self._authority.certificate)

    def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveResponse:
        """Take the caller out of the fleet.

        Raises:
            AccessDenied: if it is out already.
        """
        del request
        leave(self._fleet, caller.public_key)
        return pb.LeaveResponse()


@contextmanager
def _requests() -> Iterator[None]:
    """Tell a bad certificate request from a bad certificate of the connection.

    Raises:
        Malformed: if it is not a request.
    """
    try:
        yield
    except CertificateInvalid as error:
        raise Malformed(error.message, hint=error.hint) from error
