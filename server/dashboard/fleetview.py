"""The nodes of a fleet as a reader wants them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from server.fleetdb import FleetDatabase
from server.fleetrecords import Flag, NodeEntry

ONLINE_SECONDS = 120.0
SILENT_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One enrolment.

    Attributes:
        name: what the operator called it.
        role: what its certificate allows.
        client_index: which client of a run it speaks for; None for people.
        fingerprint: SHA-256 of its public key.
        state: ``"online"``, ``"away"``, ``"silent"`` (a day or more), ``"new"`` (never called) or
            ``"revoked"``.
        enrolled_at: seconds since 1970.
        last_seen: likewise; None if it never called.
        revoked_at: likewise; None if it was not.
        revoked_reason: why.
        flags: what was noticed about it, newest first.
    """

    name: str
    role: str
    client_index: int | None
    fingerprint: str
    state: str
    enrolled_at: float
    last_seen: float | None
    revoked_at: float | None
    revoked_reason: str
    flags: tuple[Flag, ...]


def nodes_of(fleet: FleetDatabase, *, now: float) -> list[Node]:
    """Return every enrolment: those in force first, by name."""
    found = [node_of(entry, fleet.flags(entry.name), now=now) for entry in fleet.nodes()]
    return sorted(found, key=lambda node: (node.state == "revoked", node.name, node.enrolled_at))


def node_of(entry: NodeEntry, flags: Sequence[Flag], *, now: float) -> Node:
    """Return one enrolment with its state."""
    return Node(
        name=entry.name,
        role=entry.role,
        client_index=entry.client_index,
        fingerprint=hashlib.sha256(entry.public_key).hexdigest(),
        state=_state(entry, now),
        enrolled_at=entry.enrolled_at,
        last_seen=entry.last_seen,
        revoked_at=entry.revoked_at,
        revoked_reason=entry.revoked_reason or "",
        flags=tuple(flags),
    )


def _state(entry: NodeEntry, now: float) -> str:
    """Return a node's state in one word."""
    if entry.revoked_at is not None:
        return "revoked"
    if entry.last_seen is None:
        return "new"
    quiet = now - entry.last_seen
    if quiet <= ONLINE_SECONDS:
        return "online"
    return "away" if quiet <= SILENT_SECONDS else "silent"
