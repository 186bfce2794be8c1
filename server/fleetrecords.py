"""What the fleet's database hands out: enrolments, flags, and the operators' log.

All times are Unix seconds by the server's clock.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.canonical import canonical_json
from shared.enrolment import Role, require_name, require_role
from shared.errors import InvalidValue

MAX_FACTS: Final = 4096
MAX_EVENTS: Final = 10_000
MAX_FLAG_CODES: Final = 64
OTHER: Final = "other"
NODE_QUERY: Final = (
    "SELECT n.name, m.role, m.client_index, n.public_key, n.serial, n.enrolled_at, n.revoked_at, "
    "n.revoked_reason, n.last_seen, n.flower_node_id FROM nodes n JOIN names m ON m.name = n.name "
)

Fact = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeemed:
    """What a token was good for.

    Attributes:
        name: of the device or person.
        role: what its certificate will allow.
        client_index: which client of a run a node speaks for; ``None`` for people.
    """

    name: str
    role: Role
    client_index: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEntry:
    """One enrolment: a name with a key.

    Attributes:
        name: what the operator called it.
        role: what it may do.
        client_index: which client of a run it speaks for; ``None`` for people.
        public_key: SubjectPublicKeyInfo, DER.
        serial: of its newest certificate; ``None`` until one was issued.
        enrolled_at: when its token was redeemed.
        revoked_at: when it was shut out, if it was.
        revoked_reason: why; empty if it was not.
        last_seen: when it last called, to about ten seconds.
        flower_node_id: what Flower calls it since it was last activated.
    """

    name: str
    role: Role
    client_index: int | None
    public_key: bytes
    serial: int | None
    enrolled_at: float
    revoked_at: float | None
    revoked_reason: str
    last_seen: float | None
    flower_node_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """Something that was noticed about a name, and how often."""

    code: str
    count: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the operators' log."""

    number: int
    at: float
    kind: str
    facts: Mapping[str, Fact]


def entry_of(row: tuple[object, ...]) -> NodeEntry:
    """Build an enrolment from a row of :data:`NODE_QUERY`."""
    name, role, index, key, serial, enrolled, revoked, reason, seen, flower = row
    return NodeEntry(
        name=str(name),
        role=require_role(str(role)),
        client_index=index if isinstance(index, int) else None,
        public_key=key if isinstance(key, bytes) else b"",
        serial=None if serial is None else int(str(serial), 16),
        enrolled_at=_seconds(enrolled) or 0.0,
        revoked_at=_seconds(revoked),
        revoked_reason=str(reason),
        last_seen=_seconds(seen),
        flower_node_id=None if flower is None else int(str(flower)),
    )


def add_flag(db: sqlite3.Connection, name: str, code: str, now: float) -> None:
    """Count one more of a flag, inside a transaction; beyond 64 codes a name, count "other"."""
    require_name(name)
    require_name(code)
    known = [row[0] for row in db.execute("SELECT code FROM flags WHERE name = ?", (name,))]
    if code not in known and len(known) >= MAX_FLAG_CODES:
        code = OTHER
    db.execute(
        "INSERT INTO flags VALUES (?, ?, 1, ?, ?) ON CONFLICT (name, code) "
        "DO UPDATE SET count = count + 1, last_at = excluded.last_at",
        (name, code, now, now),
    )


def add_event(db: sqlite3.Connection, kind: str, now: float, **facts: Fact) -> None:
    """Add a line to the operators' log, inside a transaction.

    Raises:
        InvalidValue: for a kind that is no name, or facts of more than 4 KiB as JSON.
    """
    require_name(kind)
    text = canonical_json(facts)
    if len(text) > MAX_FACTS:
        msg = f"The facts of an event are {len(text)} characters, expected at most {MAX_FACTS}."
        raise InvalidValue(msg)
    db.execute("INSERT INTO events (at, kind, facts) VALUES (?, ?, ?)", (now, kind, text))


def read_events(db: sqlite3.Connection, limit: int) -> tuple[Event, ...]:
    """Return the last lines of the log, newest first.

    Raises:
        InvalidValue: if the limit is not in 1..10,000.
    """
    if not (type(limit) is int and 0 < limit <= MAX_EVENTS):
        msg = f"limit={limit!r}, expected an integer in 1..{MAX_EVENTS}."
        raise InvalidValue(msg)
    rows = db.execute(
        "SELECT number, at, kind, facts FROM events ORDER BY number DESC LIMIT ?", (limit,)
    ).fetchall()
    return tuple(Event(number=n, at=t, kind=k, facts=json.loads(f)) for n, t, k, f in rows)


def _seconds(value: object) -> float | None:
    """Return a time of a row."""
    return float(value) if isinstance(value, int | float) else None
