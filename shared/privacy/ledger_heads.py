"""Signed heads in the ledger: one for each transaction that appended entries.

Whoever opened a ledger with a signer leaves it signed for ever: it cannot be written without the
same key any more, and each transaction first checks that the chain ends where the last signature
says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import NoReturn

from shared.errors import LedgerError, LedgerTampered
from shared.privacy.ledger_signing import LedgerSigner, SignedHead, verify_head
from shared.privacy.ledger_store import ChainedEntry, Db, Head, head_of

RESTORE = "Restore the ledger from a copy; until then count its subjects' budgets as exhausted."
_COLUMNS = "SELECT seq, hash, public_key, signature FROM heads"


def last_signed_head(db: Db) -> SignedHead | None:
    """Return the last signed head; ``None`` in a ledger that was never signed."""
    row = db.execute(f"{_COLUMNS} ORDER BY seq DESC LIMIT 1").fetchone()
    return _head(row) if row else None


def require_right_to_write(db: Db, signer: LedgerSigner | None) -> SignedHead | None:
    """Require the key of a signed ledger, and that its chain ends where it was signed.

    Returns:
        The last signed head; ``None`` in a ledger that was never signed.

    Raises:
        LedgerError: if the ledger is signed and the signer is missing or another one.
        LedgerTampered: if the chain does not end at the last signature.
    """
    last = last_signed_head(db)
    if last is None:
        return None
    if signer is None:
        msg = f"the ledger is signed by key {last.public_key[:12]}, and no signer was given."
        hint = "Open it with the key file that it was signed with: Ledger(..., signer=...)."
        raise LedgerError(msg, hint=hint)
    if signer.public_key != last.public_key:
        msg = (
            f"the ledger is signed by key {last.public_key[:12]}, the signer has key "
            f"{signer.public_key[:12]}."
        )
        raise LedgerError(msg, hint="Restore the key file that the ledger was signed with.")
    verify_head(last)
    require_end(last, head_of(db))
    return last


def sign_head(db: Db, signer: LedgerSigner) -> None:
    """Store the signature of the chain's end."""
    signed = signer.sign(head_of(db))
    db.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", astuple(signed))


def require_end(last: SignedHead, head: Head) -> None:
    """Require that the chain ends at the last signature.

    Raises:
        LedgerTampered: naming the first entry that is missing, unsigned or another one.
    """
    if head.seq < last.seq:
        bad_entry(head.seq + 1, f"is missing: the head at entry {last.seq} was signed")
    if head.seq > last.seq:
        bad_entry(last.seq + 1, "is not covered by a signature")
    if head.hash != last.hash:
        bad_entry(head.seq, "is not the one that was signed")


class SignatureCheck:
    """Follows a chain from its start and checks the signed heads on the way.

    Args:
        db: a connection inside one transaction.
        trusted: the key that every signature must have been made with; ``None`` takes the first.
    """

    def __init__(self, db: Db, trusted: str | None) -> None:
        self._heads = _read(db)
        self._next = next(self._heads, None)
        self._previous = 0
        self.key = trusted
        self.last: SignedHead | None = None
        self.count = 0
        self.first: int | None = None if self._next is None else self._next.seq

    def follow(self, link: ChainedEntry) -> None:
        """Check the signature of one entry, if it has one.

        Raises:
            LedgerTampered: naming the entry.
        """
        if self._next is None or self._next.seq != link.seq:
            return
        self._check(self._next)
        if self._next.hash != link.hash:
            which = f"entries {self._previous + 1} to {link.seq} hold one that"
            bad_entry(link.seq, f"is not the one that was signed; {which} was changed")
        self._previous = link.seq
        self._next = next(self._heads, None)

    def finish(self, head: Head) -> None:
        """Require that the whole chain is signed, if any of it is or a key was given.

        Raises:
            LedgerTampered: naming the first entry that is missing or not signed.
        """
        if self._next is not None:
            self._check(self._next)
            require_end(self._next, head)
        if self.last is not None:
            require_end(self.last, head)
        elif self.key is not None and head.seq:
            bad_entry(1, "is not covered by a signature")

    def _check(self, head: SignedHead) -> None:
        """Check one signature and its key."""
        self.key = self.key or head.public_key
        try:
            verify_head(head, trusted=self.key)
        except LedgerTampered as error:
            msg = f"entry {head.seq} is not signed as it should be: {error.message}"
            raise LedgerTampered(msg, hint=RESTORE) from error
        self.last = head
        self.count += 1


def bad_entry(seq: int, what: str) -> NoReturn:
    """Raise for one entry."""
    msg = f"entry {seq} {what}."
    raise LedgerTampered(msg, hint=RESTORE)


def _read(db: Db) -> Iterator[SignedHead]:
    """Yield the signed heads in order."""
    page = db.execute(f"{_COLUMNS} ORDER BY seq LIMIT 5000").fetchall()
    while page:
        yield from map(_head, page)
        page = db.execute(
            f"{_COLUMNS} WHERE seq > ? ORDER BY seq LIMIT 5000", (page[-1][0],)
        ).fetchall()


def _head(row: tuple[int, str, str, str]) -> SignedHead:
    """Read a row."""
    seq, digest, public_key, signature = row
    return SignedHead(seq=seq, hash=digest, public_key=public_key, signature=signature)
