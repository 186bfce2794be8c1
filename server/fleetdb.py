"""Who may take part: tokens, nodes, revocations and the operators' log, in one SQLite file.

Several processes use it at once. Every write is one immediate transaction that is on the disk when
it returns. A name keeps its role and its client index for ever, so that a device which is enrolled
again spends the same budget; a key belongs to one enrolment for ever, so that a revoked one never
comes back.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from server import fleettokens
from server.fleetfile import FleetFile
from server.fleetrecords import (
    NODE_QUERY,
    Event,
    Fact,
    Flag,
    NodeEntry,
    Redeemed,
    add_event,
    add_flag,
    entry_of,
    read_events,
)
from shared.enrolment import Role, require_name, require_role
from shared.errors import AccessDenied, EnrolmentRefused, InvalidValue

__all__ = ["Event", "Flag", "FleetDatabase", "NodeEntry", "Redeemed"]

MAX_VALID_SECONDS: Final = 365 * 24 * 3600.0
MAX_KEY_BYTES: Final = 1024
MAX_REASON: Final = 200
_SEEN_EVERY = 10.0


class FleetDatabase:
    """The open file; safe to use from several threads and processes.

    Args:
        path: the file; created with mode 600 if it does not exist.

    Raises:
        FleetError: if it cannot be opened, may be read by others, or is of another version.
        OutOfDisk: if there is no space to create it.
    """

    def __init__(self, path: Path) -> None:
        self._file = FleetFile(path)

    def new_token(
        self,
        name: str,
        *,
        valid_seconds: float,
        role: Role = "node",
        now: float | None = None,
        actor: str = "operator",
    ) -> str:
        """Make the secret of a token; earlier open tokens of the name are void from now on.

        Args:
            name: of the device or person.
            valid_seconds: in (0, 365 days].
            role: what the holder may do.
            now: Unix seconds; default the clock.
            actor: who did it, for the log.

        Returns:
            32 bytes as base64url; only a digest of them is kept.

        Raises:
            InvalidValue: for a bad name, role or validity.
            EnrolmentRefused: if the name is in use, or has another role.
        """
        require_name(name)
        require_role(role)
        if not (_number(valid_seconds) and 0 < valid_seconds <= MAX_VALID_SECONDS):
            msg = f"valid_seconds={valid_seconds!r}, expected more than 0, at most 365 days."
            raise InvalidValue(msg)
        moment = _moment(now)
        with self._file.transaction() as db:
            secret = fleettokens.issue(db, name, role, valid_seconds=valid_seconds, now=moment)
            hours = valid_seconds / 3600
            add_event(db, "token", moment, name=name, role=role, hours=hours, by=actor)
        return secret

    def redeem(self, token: str, public_key: bytes, *, now: float | None = None) -> Redeemed:
        """Enroll a key with a token's secret, once.

        The same key may come again while the token is valid and is told the same, so that a lost
        reply locks nobody out. Of several keys that come with one token, at most one ever gets in.

        Args:
            token: the secret.
            public_key: SubjectPublicKeyInfo, DER; that its holder has the private key was checked.
            now: Unix seconds; default the clock.

        Raises:
            EnrolmentRefused: if the token is unknown, void, expired, or was used by another key, or
                the key belongs to another enrolment.
            InvalidValue: for a key that is empty or too long.
        """
        if not (isinstance(public_key, bytes) and 0 < len(public_key) <= MAX_KEY_BYTES):
            msg = f"The public key is not 1 to {MAX_KEY_BYTES} bytes."
            raise InvalidValue(msg)
        moment = _moment(now)
        with self._file.transaction() as db:
            found = fleettokens.redeem(db, token, public_key, now=moment)
        if isinstance(found, EnrolmentRefused):
            raise found
        return found

    def nodes(self) -> tuple[NodeEntry, ...]:
        """Return every enrolment, revoked ones too, by name and then by time."""
        with self._file.reading() as db:
            rows = db.execute(NODE_QUERY + "ORDER BY n.name, n.enrolled_at, n.id").fetchall()
        return tuple(entry_of(row) for row in rows)

    def node_by_key(self, public_key: bytes) -> NodeEntry | None:
        """Return the enrolment of a key, revoked or not."""
        with self._file.reading() as db:
            row = db.execute(NODE_QUERY + "WHERE n.public_key = ?", (public_key,)).fetchone()
        return None if row is None else entry_of(row)

    def node_by_name(self, name: str) -> NodeEntry | None:
        """Return the enrolment in force under a name; failing that, the last one revoked."""
        with self._file.reading() as db:
            row = db.execute(
                NODE_QUERY
                + "WHERE n.name = ? ORDER BY n.revoked_at IS NULL DESC, n.id DESC LIMIT 1",
                (name,),
            ).fetchone()
        return None if row is None else entry_of(row)

    def allowed(self, public_key: bytes, *, role: Role = "node") -> bool:
        """Tell whether a key is enrolled in a role and not revoked; cheap, asked at every call."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT 1 FROM nodes n JOIN names m ON m.name = n.name "
                "WHERE n.public_key = ? AND n.revoked_at IS NULL AND m.role = ?",
                (public_key, role),
            ).fetchone()
        return row is not None

    def revoke(
        self, name: str, reason: str, *, now: float | None = None, actor: str = "operator"
    ) -> NodeEntry | None:
        """Shut a name out for good: its key, and every token that is open for it.

        Args:
            name: of the device or person.
            reason: up to 200 printable characters, for the log and the list.
            now: Unix seconds; default the clock.
            actor: who did it, for the log.

        Returns:
            The enrolment that was revoked, or ``None`` if only tokens were open.

        Raises:
            InvalidValue: for a bad name or reason.
            AccessDenied: if nothing under the name is in force.
        """
        require_name(name)
        if not (isinstance(reason, str) and len(reason) <= MAX_REASON and reason.isprintable()):
            msg = f"The reason is not at most {MAX_REASON} printable characters."
            raise InvalidValue(msg)
        moment = _moment(now)
        with self._file.transaction() as db:
            row = db.execute(
                NODE_QUERY + "WHERE n.name = ? AND n.revoked_at IS NULL", (name,)
            ).fetchone()
            # A used token stays until it expires, so that who comes with it again is noticed.
            void = db.execute(
                "DELETE FROM tokens WHERE name = ? AND used_key IS NULL", (name,)
            ).rowcount
            if row is None and not void:
                msg = f"name={name!r} is not enrolled and has no open token."
                raise AccessDenied(msg, hint="fedslm server nodes lists what there is.")
            db.execute(
                "UPDATE nodes SET revoked_at = ?, revoked_reason = ? "
                "WHERE name = ? AND revoked_at IS NULL",
                (moment, reason, name),
            )
            add_event(db, "revoke", moment, name=name, reason=reason, by=actor)
        return None if row is None else self.node_by_key(bytes(row[3]))

    def activated(
        self, public_key: bytes, flower_node_id: int, *, now: float | None = None
    ) -> None:
        """Note what Flower calls a node, learnt from Flower's answer and never from the node.

        Raises:
            AccessDenied: if the key is not that of an enrolled node, or another one has the id.
            InvalidValue: if the id is not in 1..2^64-1.
        """
        if not (type(flower_node_id) is int and 0 < flower_node_id < 1 << 64):
            msg = f"flower_node_id={flower_node_id!r}, expected an integer in 1..2^64-1."
            raise InvalidValue(msg)
        moment, text = _moment(now), str(flower_node_id)
        with self._file.transaction() as db:
            row = db.execute(
                NODE_QUERY + "WHERE n.public_key = ? AND n.revoked_at IS NULL", (public_key,)
            ).fetchone()
            if row is None or row[1] != "node":
                raise _not_enrolled()
            other = db.execute(
                "SELECT name FROM nodes WHERE flower_node_id = ? AND public_key != ?",
                (text, public_key),
            ).fetchone()
            if other is not None:
                msg = f"flower_node_id={text} belongs to {other[0]}, not to {row[0]}."
                raise AccessDenied(msg)
            db.execute(
                "UPDATE nodes SET flower_node_id = ?, last_seen = ? WHERE public_key = ?",
                (text, moment, public_key),
            )

    def seen(self, public_key: bytes, *, now: float | None = None) -> None:
        """Note a sign of life; writes at most once in ten seconds, and nothing for others."""
        moment = _moment(now)
        with self._file.reading() as db:
            row = db.execute(
                "SELECT last_seen FROM nodes WHERE public_key = ? AND revoked_at IS NULL",
                (public_key,),
            ).fetchone()
        # A clock that was set back must not freeze the time that is shown.
        if row is None or (row[0] is not None and abs(moment - row[0]) < _SEEN_EVERY):
            return
        with self._file.transaction() as db:
            db.execute("UPDATE nodes SET last_seen = ? WHERE public_key = ?", (moment, public_key))

    def client_of(self, flower_node_id: int) -> int | None:
        """Return which client a Flower node speaks for; ``None`` if unknown or revoked."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT m.client_index FROM nodes n JOIN names m ON m.name = n.name "
                "WHERE n.flower_node_id = ? AND n.revoked_at IS NULL",
                (str(flower_node_id),),
            ).fetchone()
        return None if row is None else row[0]

    def flag(self, name: str, code: str, *, now: float | None = None) -> None:
        """Note something about a name, by a code; how often is counted, so this never grows large.

        Raises:
            InvalidValue: for a bad name, or a code that is not lower-case letters and hyphens.
        """
        require_name(name)
        require_name(code)
        with self._file.transaction() as db:
            add_flag(db, name, code, _moment(now))

    def flags(self, name: str) -> tuple[Flag, ...]:
        """Return what was noticed about a name, newest first."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT code, count, first_at, last_at FROM flags WHERE name = ? "
                "ORDER BY last_at DESC, code",
                (name,),
            ).fetchall()
        return tuple(Flag(code=c, count=n, first_at=f, last_at=t) for c, n, f, t in rows)

    def renewed(self, name: str, serial: int, *, now: float | None = None) -> None:
        """Note the certificate that was issued to the enrolment in force under a name.

        Raises:
            AccessDenied: if there is none.
            InvalidValue: if the serial is not a positive number of at most 159 bits.
        """
        if not (type(serial) is int and 0 < serial < 1 << 159):
            msg = "A certificate's serial number is out of bounds."
            raise InvalidValue(msg)
        moment, text = _moment(now), f"{serial:x}"
        with self._file.transaction() as db:
            row = db.execute(
                "SELECT id FROM nodes WHERE name = ? AND revoked_at IS NULL", (name,)
            ).fetchone()
            if row is None:
                raise _not_enrolled()
            db.execute("UPDATE nodes SET serial = ? WHERE id = ?", (text, row[0]))
            db.execute("INSERT INTO certificates VALUES (?, ?, ?)", (text, row[0], moment))
            add_event(db, "certificate", moment, name=name, serial=text)

    def issued_to(self, serial: int) -> bytes | None:
        """Return the key that a certificate was issued to; ``None`` if it never was."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT n.public_key FROM certificates c JOIN nodes n ON n.id = c.node "
                "WHERE c.serial = ?",
                (f"{serial:x}",),
            ).fetchone()
        return None if row is None else bytes(row[0])

    def revoked_serials(self) -> tuple[tuple[int, float], ...]:
        """Return the serial of every certificate of a revoked key, with when that was."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT c.serial, n.revoked_at FROM certificates c JOIN nodes n ON n.id = c.node "
                "WHERE n.revoked_at IS NOT NULL ORDER BY c.issued_at, c.serial"
            ).fetchall()
        return tuple((int(serial, 16), moment) for serial, moment in rows)

    def event(self, kind: str, *, now: float | None = None, **facts: Fact) -> None:
        """Add an action to the operators' log, which cannot be changed afterwards.

        Args:
            kind: lower-case letters, digits and hyphens.
            now: Unix seconds; default the clock.
            **facts: public facts, at most 4 KiB as JSON.

        Raises:
            InvalidValue: for a bad kind, or facts that are too long.
        """
        with self._file.transaction() as db:
            add_event(db, kind, _moment(now), **facts)

    def events(self, limit: int = 100) -> tuple[Event, ...]:
        """Return the last actions, newest first; at most 10,000."""
        with self._file.reading() as db:
            return read_events(db, limit)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> FleetDatabase:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _moment(now: float | None) -> float:
    """Return a time in Unix seconds.

    Raises:
        InvalidValue: if it is not a finite number of at least zero.
    """
    moment = time.time() if now is None else now
    if not (_number(moment) and moment >= 0):
        msg = f"now={now!r}, expected Unix seconds."
        raise InvalidValue(msg)
    return float(moment)


def _number(value: float) -> bool:
    """Tell whether a value is a finite number."""
    return type(value) in {int, float} and math.isfinite(value)


def _not_enrolled() -> AccessDenied:
    """Return the error for a key or name that is not in force."""
    msg = "This device is not enrolled, or was revoked."
    return AccessDenied(msg, hint="Ask the operator for a new enrolment token.")
