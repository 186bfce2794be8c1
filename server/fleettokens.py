"""The life of an enrolment token, as steps inside one transaction of the fleet's database.

Of several keys that come with one token, at most one ever gets in.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
from typing import Final

from server.fleetrecords import Redeemed, add_event, add_flag
from shared.canonical import sha256_hex
from shared.enrolment import SECRET_BYTES, Role, encode_bytes, require_secret, secret_digest
from shared.errors import EnrolmentRefused, InvalidValue

MAX_NAMES: Final = 100_000
_ASK = "Ask the operator for a new one."


def issue(
    db: sqlite3.Connection, name: str, role: Role, *, valid_seconds: float, now: float
) -> str:
    """Make a secret for a name; an open token of that name is void from now on.

    Returns:
        32 bytes as base64url; only a digest of them is kept.

    Raises:
        EnrolmentRefused: if the name is in use or was given another role, or there are too many.
    """
    if db.execute("SELECT 1 FROM nodes WHERE name = ? AND revoked_at IS NULL", (name,)).fetchone():
        msg = f"name={name!r} is enrolled already."
        raise EnrolmentRefused(msg, hint="Give another name, or revoke it first.")
    known = db.execute("SELECT role FROM names WHERE name = ?", (name,)).fetchone()
    if known is not None and known[0] != role:
        msg = f"name={name!r} had role={known[0]!r}, which it keeps; found role={role!r}."
        raise EnrolmentRefused(msg, hint="Give another name.")
    # Used and expired tokens answer nothing any more; the log remembers them.
    db.execute(
        "DELETE FROM tokens WHERE (name = ? AND used_key IS NULL) OR expires_at <= ?", (name, now)
    )
    taken = "SELECT (SELECT count(*) FROM names) + (SELECT count(*) FROM tokens)"
    if not db.execute(taken).fetchone()[0] < MAX_NAMES:
        msg = f"There are {MAX_NAMES} names and tokens, which is the most."
        raise EnrolmentRefused(msg, hint="Revoke tokens that nobody used.")
    secret = encode_bytes(secrets.token_bytes(SECRET_BYTES))
    db.execute(
        "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, NULL)",
        (secret_digest(secret), name, role, now, now + valid_seconds),
    )
    return secret


def redeem(
    db: sqlite3.Connection, token: str, public_key: bytes, *, now: float
) -> Redeemed | EnrolmentRefused:
    """Enroll a key, or tell the same key the same again.

    Returns:
        What the token was good for; an error to be raised once the transaction is kept.

    Raises:
        EnrolmentRefused: if nothing is to be kept of the attempt.
    """
    try:
        digest = secret_digest(require_secret(token))
    except InvalidValue:
        raise _unknown() from None
    row = db.execute(
        "SELECT digest, name, role, expires_at, used_key FROM tokens WHERE digest = ?", (digest,)
    ).fetchone()
    if row is None or not hmac.compare_digest(row[0], digest):
        raise _unknown()
    _, name, role, expires_at, used_key = row
    if not now < expires_at:
        msg = f"The enrolment token of {name} has expired."
        raise EnrolmentRefused(msg, hint=_ASK)
    if used_key is not None and not hmac.compare_digest(used_key, public_key):
        # The true device and a thief came with the same token: the operator should know.
        add_flag(db, name, "token-replayed", now)
        msg = f"The enrolment token of {name} was used already, with another key."
        hint = "If that was not you, tell the operator, who revokes it and issues another."
        return EnrolmentRefused(msg, hint=hint)
    holder = db.execute(
        "SELECT name, revoked_at FROM nodes WHERE public_key = ?", (public_key,)
    ).fetchone()
    if used_key is not None:
        if holder is None or holder[0] != name or holder[1] is not None:
            msg = f"The enrolment of {name} was revoked."
            raise EnrolmentRefused(msg, hint=_ASK)
    else:
        if holder is not None:
            msg = "This key belongs to another enrolment, or to a revoked one."
            hint = "A key is enrolled once: enroll into an empty folder, which makes a new key."
            raise EnrolmentRefused(msg, hint=hint)
        _enroll(db, digest, name, role, public_key, now)
    index = db.execute("SELECT client_index FROM names WHERE name = ?", (name,)).fetchone()[0]
    return Redeemed(name=name, role=role, client_index=index)


def _enroll(
    db: sqlite3.Connection, digest: bytes, name: str, role: Role, public_key: bytes, now: float
) -> None:
    """Write a key under a name, and the name if it is new."""
    # Clients are numbered from 0 without gaps, as a run counts them.
    index = "(SELECT coalesce(max(client_index), -1) + 1 FROM names)" if role == "node" else "NULL"
    db.execute(
        f"INSERT INTO names VALUES (?, ?, {index}) ON CONFLICT DO NOTHING",  # noqa: S608
        (name, role),
    )
    db.execute(
        "INSERT INTO nodes (name, public_key, enrolled_at) VALUES (?, ?, ?)",
        (name, public_key, now),
    )
    db.execute("UPDATE tokens SET used_key = ? WHERE digest = ?", (public_key, digest))
    add_event(db, "enrolled", now, name=name, role=role, key=sha256_hex(public_key))


def _unknown() -> EnrolmentRefused:
    """Return the error for a token that this server has not, or no longer."""
    msg = "The enrolment token is unknown here: it is wrong, was replaced, or was revoked."
    return EnrolmentRefused(msg, hint=_ASK)
