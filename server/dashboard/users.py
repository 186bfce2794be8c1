"""Who may use the dashboard: names, roles and passwords, hashed with scrypt.

Checking a password takes the same work for a name that does not exist. The cost of a hash is kept
beside it; a password that was hashed at another cost is hashed anew at its next login.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from server.dashboard.store import UserFile
from shared.errors import AccessDenied, InvalidValue, UsageError

Role = Literal["operator", "viewer"]
ROLES: tuple[Role, ...] = get_args(Role)
SHORTEST, LONGEST = 12, 256

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_SALT_BYTES, _HASH_BYTES = 16, 32
_FEWEST_DIFFERENT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one hash costs: ``128 * n * r`` bytes of memory, ``p`` times the work.

    Attributes:
        n: a power of two above 1.
        r: block size.
        p: repetitions.
    """

    n: int
    r: int
    p: int

    @property
    def memory(self) -> int:
        """Return the memory of one hash in bytes."""
        return 128 * self.n * self.r


STRONG = Cost(n=2**17, r=8, p=1)
"""128 MiB a hash: the first choice for scrypt in OWASP's password storage recommendations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One person; times are seconds since 1970."""

    name: str
    role: Role
    created: float
    last_login: float | None


class UserStore:
    """The people who may log in.

    Args:
        file: where they are kept.
        cost: of new hashes.
    """

    def __init__(self, file: UserFile, *, cost: Cost = STRONG) -> None:
        self._file = file
        self._cost = cost
        self._nobody = secrets.token_bytes(_SALT_BYTES)

    def add(self, name: str, password: str, role: str, *, now: float | None = None) -> User:
        """Let somebody in.

        Args:
            name: lower-case letters, digits, ``.``, ``_`` and ``-``, at most 32.
            password: at least 12 characters.
            role: ``"operator"`` or ``"viewer"``.
            now: seconds since 1970.

        Raises:
            InvalidValue: for a name, password or role that is not as described.
            UsageError: if the name is taken.
        """
        if _NAME.fullmatch(name) is None:
            msg = f"user name {name!r}, expected lower-case letters, digits, '.', '_' and '-'."
            raise InvalidValue(msg, hint="Choose a name of at most 32 such characters.")
        known = require_role(role)
        require_good(password, name=name)
        made = time.time() if now is None else now
        row = (name, role, *self._hashed(password), made)
        with self._file.change() as db:
            try:
                db.execute(
                    "INSERT INTO users (name, role, n, r, p, salt, hash, created) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError as error:
                msg = f"user {name!r} exists already."
                raise UsageError(msg, hint="Use: fedslm server user password NAME") from error
        return User(name=name, role=known, created=made, last_login=None)

    def remove(self, name: str) -> None:
        """Shut somebody out; all sessions of that person end.

        Raises:
            AccessDenied: if nobody has this name.
        """
        with self._file.change() as db:
            if db.execute("DELETE FROM users WHERE name = ?", (name,)).rowcount == 0:
                raise _unknown(name)

    def set_password(self, name: str, password: str) -> None:
        """Replace a password; all sessions of that person end.

        Raises:
            InvalidValue: for a password that is too short, too long or too simple.
            AccessDenied: if nobody has this name.
        """
        require_good(password, name=name)
        values = (*self._hashed(password), name)
        with self._file.change() as db:
            query = "UPDATE users SET n = ?, r = ?, p = ?, salt = ?, hash = ? WHERE name = ?"
            if db.execute(query, values).rowcount == 0:
                raise _unknown(name)
            db.execute("DELETE FROM sessions WHERE name = ?", (name,))

    def users(self) -> tuple[User, ...]:
        """Return everybody, by name."""
        with self._file.read() as db:
            rows = db.execute("SELECT name, role, created, last_login FROM users ORDER BY name")
            return tuple(
                User(name=name, role=role, created=created, last_login=last)
                for name, role, created, last in rows
            )

    def check(self, name: str, password: str, *, now: float | None = None) -> User | None:
        """Return whose name and password these are, or None.

        One hash is computed in any case, so the time does not tell which of the two was wrong.
        """
        query = "SELECT role, n, r, p, salt, hash, created FROM users WHERE name = ?"
        with self._file.read() as db:
            row = db.execute(query, (name[:LONGEST],)).fetchone()
        role, n, r, p, salt, stored, created = row or (
            "viewer",
            self._cost.n,
            self._cost.r,
            self._cost.p,
            self._nobody,
            bytes(_HASH_BYTES),
            0.0,
        )
        cost = Cost(n=n, r=r, p=p)
        found = _scrypt(password[: LONGEST + 1], salt, cost)
        if not hmac.compare_digest(found, stored) or row is None or len(password) > LONGEST:
            return None
        made = time.time() if now is None else now
        with self._file.change() as db:
            db.execute("UPDATE users SET last_login = ? WHERE name = ?", (made, name))
            if cost != self._cost:
                db.execute(
                    "UPDATE users SET n = ?, r = ?, p = ?, salt = ?, hash = ? WHERE name = ?",
                    (*self._hashed(password), name),
                )
        return User(name=name, role=require_role(role), created=created, last_login=made)

    def _hashed(self, password: str) -> tuple[int, int, int, bytes, bytes]:
        """Return the columns of a new hash."""
        salt = secrets.token_bytes(_SALT_BYTES)
        cost = self._cost
        return cost.n, cost.r, cost.p, salt, _scrypt(password, salt, cost)


def require_role(role: str) -> Role:
    """Return a known role.

    Raises:
        InvalidValue: for any other.
    """
    for known in ROLES:
        if role == known:
            return known
    msg = f"role={role[:40]!r}, expected one of {', '.join(ROLES)}."
    raise InvalidValue(msg, hint="An operator may change things, a viewer may look.")


def require_good(password: str, *, name: str) -> None:
    """Refuse a password that is too short, too long or too simple; it is never shown.

    Raises:
        InvalidValue: saying which.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        msg = f"a password of {len(password)} characters, expected {SHORTEST} to {LONGEST}."
        raise InvalidValue(msg, hint="Several words that do not belong together make a good one.")
    plain = password.casefold()
    if len(set(plain)) < _FEWEST_DIFFERENT or plain.strip("0123456789!.-_ ") in {name, "password"}:
        msg = "a password that is repetitive or close to the name, expected one hard to guess."
        raise InvalidValue(msg, hint="Several words that do not belong together make a good one.")


def _scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    """Hash a password; equal-looking ways to type it are the same."""
    return hashlib.scrypt(
        unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass"),
        salt=salt,
        n=cost.n,
        r=cost.r,
        p=cost.p,
        maxmem=2 * cost.memory,
        dklen=_HASH_BYTES,
    )


def _unknown(name: str) -> AccessDenied:
    """Return the error about somebody who is not there."""
    return AccessDenied(f"no user {name!r}.", hint="See: fedslm server user list")
