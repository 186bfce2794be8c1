"""Notes in the ledger's chain: what was said, and before what, that charges nobody.

A note binds a digest to a place in the chain: the commitment to the coins of canaries before the
first charge, the audit report that a release had seen. It is a row of its own state, so the tables
stay as they are. A program that does not know notes finds such a row senseless when it verifies,
and says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shared.canonical import canonical_json
from shared.errors import InvalidValue, LedgerConflict
from shared.privacy.ledger_charge import require_names
from shared.privacy.ledger_heads import bad_entry
from shared.privacy.ledger_reservations import utc_now
from shared.privacy.ledger_store import ENTRY_FIELDS, ChainedEntry, Db, Entry, append

NOTE = "note"
CANARY_COINS = "canary-coins"
"""Name of the commitment to which canaries were planted."""
FIRST_ROUND = "first-round"
"""Name of a run's digest, said as its first round begins; tells before from after in mode none."""
AUDIT_REPORT = "audit-report"
"""Name of the digest of an audit report that a release had seen."""

_SCHEMA = 1
# Every other name is said once in a run: a commitment that may be replaced commits to nothing.
_SAID_OFTEN = frozenset({AUDIT_REPORT})
_NAME = re.compile(r"[a-z]{1,24}(-[a-z]{1,24}){0,3}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COLUMNS = ", ".join(ENTRY_FIELDS)
# Reservations count from 1, and the chain is indexed by them.
_NO_RESERVATION = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A digest with its place in the chain.

    Attributes:
        seq: number of its entry; whatever has a larger number came later.
        time: UTC, ISO 8601, by the clock of whoever wrote it.
        run_id: the run that it is about.
        scope: that run's data.
        name: what the digest is of.
        digest: 64 hexadecimal digits.
    """

    seq: int
    time: str
    run_id: str
    scope: str
    name: str
    digest: str

    @property
    def key(self) -> tuple[str, ...]:
        """What may be said once: the name in its run, or that name with that digest."""
        often = (self.digest,) if self.name in _SAID_OFTEN else ()
        return (self.run_id, self.name, *often)


def note_entry(*, run_id: str, scope: str, name: str, digest: str) -> Entry:
    """Return the row of a note.

    Raises:
        InvalidValue: for a name that is not one to four lower-case words joined by hyphens, a
            digest that is not 64 lower-case hexadecimal digits, or a run or scope without a name.
    """
    require_names(run_id=run_id, scope=scope)
    if _NAME.fullmatch(name) is None:
        msg = f"note name={name!r}, expected lower-case words joined by hyphens."
        raise InvalidValue(msg, hint=f"For instance {CANARY_COINS!r}.")
    if _DIGEST.fullmatch(digest) is None:
        msg = f"note {name!r} with a digest of {len(digest)} characters, expected 64 hex digits."
        raise InvalidValue(msg, hint="A note holds a SHA-256 digest, never the thing itself.")
    said = {"schema": _SCHEMA, "type": NOTE, "name": name, "digest": digest}
    return Entry(
        time=utc_now(),
        state=NOTE,
        reservation=_NO_RESERVATION,
        run_id=run_id,
        server_round=0,
        attempt=0,
        subject=None,
        scope=scope,
        plan_digest="",
        event=canonical_json(said),
        idempotency_key=None,
    )


def add_note(db: Db, entry: Entry) -> Note:
    """Append a note, or return the one that says the same already.

    Args:
        db: a connection inside :meth:`~shared.privacy.ledger_store.Store.transaction`.
        entry: from :func:`note_entry`.

    Raises:
        LedgerConflict: if the run has another scope, or said something else under a name that is
            said once.
        LedgerTampered: if a stored note is not one.
    """
    require_scope(db, entry.run_id, entry.scope)
    fresh = _note(0, entry)
    for known in notes_of(db, entry.run_id):
        if known.key != fresh.key:
            continue
        if known.digest != fresh.digest:
            msg = f"run_id={fresh.run_id!r} has noted another digest as {fresh.name!r} before."
            raise LedgerConflict(msg, hint=f"It stands at entry {known.seq} and is said once.")
        return known
    return _note(append(db, [entry]).seq, entry)


def notes_of(db: Db, run_id: str | None = None) -> tuple[Note, ...]:
    """Return the notes of one run or of all, in their order in the chain.

    Raises:
        LedgerTampered: if one of them is not a note as it should be.
    """
    query = f"SELECT seq, {_COLUMNS} FROM entries WHERE reservation = ? AND state = ?"  # noqa: S608
    values: tuple[object, ...] = (_NO_RESERVATION, NOTE)
    if run_id is not None:
        query, values = f"{query} AND run_id = ?", (*values, run_id)
    return tuple(
        _note(seq, Entry(**dict(zip(ENTRY_FIELDS, fields, strict=True))))
        for seq, *fields in db.execute(f"{query} ORDER BY seq", values)
    )


def require_scope(db: Db, run_id: str, scope: str) -> None:
    """Require that neither a plan nor a note of a run is about another scope.

    Raises:
        LedgerConflict: otherwise.
    """
    known = (
        "SELECT scope FROM runs WHERE run_id = ? "
        "UNION SELECT scope FROM entries WHERE reservation = ? AND run_id = ?"
    )
    for (other,) in db.execute(known, (run_id, _NO_RESERVATION, run_id)):
        if other != scope:
            msg = f"run_id={run_id!r} is registered with another scope than {scope!r}."
            raise LedgerConflict(msg, hint="Data of another scope needs another run.")


class NoteCheck:
    """Follows a chain from its start and checks the notes on the way.

    Args:
        scopes: the scope of each run that registered a plan.
    """

    def __init__(self, scopes: Mapping[str, str]) -> None:
        self._scopes = dict(scopes)
        self._said: dict[tuple[str, ...], int] = {}

    @property
    def count(self) -> int:
        """How many notes there were so far."""
        return len(self._said)

    def follow(self, link: ChainedEntry) -> None:
        """Check one note.

        Raises:
            LedgerTampered: naming the entry.
        """
        note = _note(link.seq, link.entry)
        if self._scopes.setdefault(note.run_id, note.scope) != note.scope:
            bad_entry(link.seq, "is a note about another scope than its run's")
        earlier = self._said.setdefault(note.key, link.seq)
        if earlier != link.seq:
            bad_entry(link.seq, f"says again what entry {earlier} had said")


def _note(seq: int, entry: Entry) -> Note:
    """Read a row, which must be one that :func:`note_entry` can have made.

    Raises:
        LedgerTampered: naming the entry.
    """
    try:
        said = json.loads(entry.event)
        name, digest = str(said["name"]), str(said["digest"])
        due = note_entry(run_id=entry.run_id, scope=entry.scope, name=name, digest=digest)
    except (ValueError, TypeError, KeyError):
        bad_entry(seq, "is not a note of a form that is known")
    if entry.values()[1:] != due.values()[1:]:
        bad_entry(seq, "is not a note of a form that is known")
    return Note(
        seq=seq,
        time=entry.time,
        run_id=entry.run_id,
        scope=entry.scope,
        name=name,
        digest=digest,
    )
