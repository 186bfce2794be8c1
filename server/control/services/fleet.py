"""The fleet: viewers see it, operators act on it, and what they did is kept."""

from __future__ import annotations

from typing import Final

from server.control.identity import Caller
from server.control.refusals import Malformed, NotThere
from server.control.requests import page_after, page_size
from server.control.settings import MAX_VALID_SECONDS, ControlSettings
from server.enrolling import issue_token
from server.fleetdb import FleetDatabase, NodeEntry
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.enrolment import Role, require_name
from shared.errors import AccessDenied

_MAX_NODES = 200
_MAX_FLAGS = 16
_TOKEN_ROLES: Final[tuple[Role, ...]] = ("node", "viewer")


class FleetService:
    """The service ``Fleet``.

    Args:
        fleet: the fleet.
        settings: addresses and limits.
        fingerprint: SHA-256 of the authority's certificate, hexadecimal.
    """

    def __init__(
        self, fleet: FleetDatabase, settings: ControlSettings, *, fingerprint: str
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._fingerprint = fingerprint

    def list_nodes(self, request: pb.ListNodesRequest, caller: Caller) -> pb.ListNodesResponse:
        """Return a page of the fleet by name; of each name the enrolment in force."""
        del caller
        newest = {entry.name: entry for entry in self._fleet.nodes()}
        size = page_size(request.page_size, _MAX_NODES)
        names, more = page_after(sorted(newest), request.after, size)
        return pb.ListNodesResponse(nodes=[self._node(newest[name]) for name in names], more=more)

    def revoke(self, request: pb.RevokeRequest, caller: Caller) -> pb.RevokeResponse:
        """Shut a name out.

        Raises:
            InvalidValue: for a bad name or reason.
            NotThere: if nobody is enrolled under it.
            AccessDenied: if it is the caller's own.
        """
        name = require_name(request.name)
        if name == caller.name:
            msg = "an operator cannot revoke itself."
            raise AccessDenied(msg, hint="Another operator can, or fedslm server revoke.")
        if self._fleet.node_by_name(name) is None:
            msg = "nobody was enrolled under this name."
            raise NotThere(msg)
        self._fleet.revoke(name, request.reason, actor=caller.name)
        return pb.RevokeResponse()

    def new_token(self, request: pb.NewTokenRequest, caller: Caller) -> pb.NewTokenResponse:
        """Make a token. Tokens of operators are made on the server itself.

        Raises:
            InvalidValue: for a bad name.
            Malformed: for another role or too long a time.
            EnrolmentRefused: if the name is taken.
        """
        role = next((known for known in _TOKEN_ROLES if request.role == known), None)
        if role is None:
            msg = f"the role is not one of: {', '.join(_TOKEN_ROLES)}."
            raise Malformed(msg, hint="Make an operator's token on the server itself.")
        seconds = request.valid_seconds or self._settings.token_seconds
        if seconds > MAX_VALID_SECONDS:
            msg = f"valid_seconds={seconds}, expected at most {MAX_VALID_SECONDS}."
            raise Malformed(msg)
        token = issue_token(
            self._fleet,
            name=request.name,
            role=role,
            address=self._settings.enrol_address,
            fingerprint=self._fingerprint,
            valid_seconds=seconds,
            actor=caller.name,
        )
        return pb.NewTokenResponse(token=token.to_text(), expires_at=token.expires_at)

    def _node(self, entry: NodeEntry) -> pb.Node:
        """Return one entry with what was noticed about it."""
        flags = [
            pb.Flag(code=flag.code, count=min(flag.count, 2**32 - 1), last_at=int(flag.last_at))
            for flag in self._fleet.flags(entry.name)[:_MAX_FLAGS]
        ]
        return pb.Node(
            name=entry.name,
            role=entry.role,
            client_index=entry.client_index,
            enrolled_at=int(entry.enrolled_at),
            revoked_at=None if entry.revoked_at is None else int(entry.revoked_at),
            revoked_reason=entry.revoked_reason,
            last_seen=None if entry.last_seen is None else int(entry.last_seen),
            flags=flags,
        )
