"""Sessions on the server's side, and the slowing down of failed logins.

A browser keeps a random id; the file keeps only its SHA-256, so that a stolen copy of the file
opens no session. A session ends when it was idle too long, when it is too old, at logout, and when
its person is removed or gets a new password.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from server.dashboard.store import UserFile
from server.dashboard.users import Role

IDLE_SECONDS = 30 * 60.0
ABSOLUTE_SECONDS = 12 * 3600.0

_ID_BYTES = 32
_TOUCH_SECONDS = 30.0
_MOST_PER_PERSON = 10
_MOST_FAILURES = 10_000
_FORGET_SECONDS = 24 * 3600.0
_FREE = 5
_LONGEST: Mapping[str, float] = {"name": 60.0, "address": 900.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One open session.

    Attributes:
        ref: names it within the server; not what the browser holds.
        name: whose.
        role: what that person may do, as of now.
    """

    ref: str
    name: str
    role: Role


class Sessions:
    """All open sessions.

    Args:
        file: where they are kept.
        idle: seconds without a request of the person after which a session ends.
        absolute: seconds after which it ends in any case.
    """

    def __init__(
        self, file: UserFile, *, idle: float = IDLE_SECONDS, absolute: float = ABSOLUTE_SECONDS
    ) -> None:
        self._file = file
        self._idle = idle
        self._absolute = absolute

    def begin(self, name: str, *, now: float) -> str:
        """Open a session; a person's oldest ones end when there are more than ten.

        Returns:
            What the browser is to keep.
        """
        secret = secrets.token_urlsafe(_ID_BYTES)
        with self._file.change() as db:
            db.execute(
                "DELETE FROM sessions WHERE seen < ? OR created < ?",
                (now - self._idle, now - self._absolute),
            )
            db.execute(
                "INSERT INTO sessions (ref, name, created, seen) VALUES (?, ?, ?, ?)",
                (reference(secret), name, now, now),
            )
            db.execute(
                "DELETE FROM sessions WHERE name = ?1 AND ref NOT IN (SELECT ref FROM sessions "
                "WHERE name = ?1 ORDER BY created DESC, rowid DESC LIMIT ?2)",
                (name, _MOST_PER_PERSON),
            )
        return secret

    def find(self, ref: str, *, now: float, touch: bool) -> Session | None:
        """Return an open session, or None.

        Args:
            ref: :func:`reference` of what the browser sent.
            now: seconds since 1970.
            touch: whether this counts as activity; a page that refreshes itself is none.
        """
        with self._file.read() as db:
            row = db.execute(
                "SELECT sessions.name, users.role, sessions.seen FROM sessions JOIN users "
                "ON users.name = sessions.name WHERE ref = ? AND seen >= ? "
                "AND sessions.created >= ?",
                (ref, now - self._idle, now - self._absolute),
            ).fetchone()
        if row is None:
            return None
        name, role, seen = row
        if touch and now - seen > _TOUCH_SECONDS:
            with self._file.change() as db:
                db.execute("UPDATE sessions SET seen = ? WHERE ref = ?", (now, ref))
        return Session(ref=ref, name=name, role=role)

    def end(self, ref: str) -> None:
        """Close a session."""
        with self._file.change() as db:
            db.execute("DELETE FROM sessions WHERE ref = ?", (ref,))

    def tell(self, ref: str, notice: str) -> None:
        """Leave a sentence for the next page of a session."""
        with self._file.change() as db:
            db.execute("UPDATE sessions SET notice = ? WHERE ref = ?", (notice, ref))

    def told(self, ref: str) -> str | None:
        """Return that sentence, once."""
        with self._file.read() as db:
            row = db.execute("SELECT notice FROM sessions WHERE ref = ?", (ref,)).fetchone()
        if row is None or row[0] is None:
            return None
        with self._file.change() as db:
            db.execute("UPDATE sessions SET notice = NULL WHERE ref = ?", (ref,))
        return str(row[0])


class Brake:
    """Makes whoever fails to log in wait, longer each time.

    Each name and each address has its own count. The first few failures cost nothing; then the wait
    doubles, for a name up to a minute (so that nobody can lock out a person for long), for an
    address up to a quarter of an hour. A count is forgotten after a day, and that of a name when
    its person logs in.

    Args:
        file: where the counts are kept, so that a restart does not clear them.
    """

    def __init__(self, file: UserFile) -> None:
        self._file = file

    def take(self, name: str, address: str, *, now: float) -> float:
        """Ask for one attempt; it counts as failed until :meth:`clear`.

        Returns:
            0 if it may be made, else how many seconds to wait; then it was not counted.
        """
        keys = {"name": _key("name", name), "address": _key("address", address)}
        with self._file.change() as db:
            db.execute("DELETE FROM failures WHERE last < ?", (now - _FORGET_SECONDS,))
            wait = 0.0
            for kind, key in keys.items():
                row = db.execute(
                    "SELECT count, last FROM failures WHERE key = ?", (key,)
                ).fetchone()
                if row is not None and row[0] >= _FREE:
                    pause = min(2.0 ** min(row[0] - _FREE, 32), _LONGEST[kind])
                    wait = max(wait, row[1] + pause - now)
            if wait > 0:
                return wait
            for key in keys.values():
                db.execute(
                    "INSERT INTO failures VALUES (?, 1, ?) "
                    "ON CONFLICT (key) DO UPDATE SET count = count + 1, last = excluded.last",
                    (key, now),
                )
            db.execute(
                "DELETE FROM failures WHERE key IN (SELECT key FROM failures ORDER BY last DESC "
                "LIMIT -1 OFFSET ?)",
                (_MOST_FAILURES,),
            )
        return 0.0

    def clear(self, name: str, address: str) -> None:
        """Forget the failures of a name that has logged in, and this attempt of the address."""
        with self._file.change() as db:
            db.execute("DELETE FROM failures WHERE key = ?", (_key("name", name),))
            db.execute(
                "UPDATE failures SET count = max(count - 1, 0) WHERE key = ?",
                (_key("address", address),),
            )


def reference(secret: str) -> str:
    """Return how the server names a session."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key(kind: str, value: str) -> str:
    """Name a count without keeping what people typed."""
    digest = hashlib.sha256(f"{kind}|{value}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}|{digest[:32]}"
