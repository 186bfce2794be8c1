"""What the shared ledger says: per population and per node, and whether its chain verifies.

Evaluating accounts and recomputing the chain takes seconds for a long ledger, so both are done once
for each state of the file.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shared.errors import FedSLMError
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_state import Spent

NEARLY = 0.9
"""Share of a cap from which on somebody is told."""

_CLIENT = "client-"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one subject has spent; infinite figures are None, beside ``private`` false.

    Attributes:
        subject: ``"population"`` or ``"client-N"``.
        node: the enrolled node that speaks for that client, if any.
        scope: which data.
        epsilon: spent.
        delta: of epsilon and cap.
        cap: that the ledger enforces, None if there is none.
        share: epsilon divided by cap, None without a cap.
        unit: the privacy unit.
        relation: the neighbouring relation.
        releases: noised ones.
        accountant: which one gave epsilon.
        private: whether everything about the subject was released with privacy.
    """

    subject: str
    node: str | None
    scope: str
    epsilon: float | None
    delta: float | None
    cap: float | None
    share: float | None
    unit: str | None
    relation: str | None
    releases: int | None
    accountant: str
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The chain of the ledger.

    Attributes:
        exists: whether there is a ledger yet.
        whole: whether it verified; None where it does not exist.
        entries: rows.
        open_reservations: charged, and neither committed nor given back.
        head: hash of the last row.
        seq: its number.
        public_key: that signed it.
        trusted: whether that is the key of this server.
        problem: what does not fit.
        hint: what to do about it.
        checked: seconds since 1970.
    """

    exists: bool
    whole: bool | None
    entries: int = 0
    open_reservations: int = 0
    head: str = ""
    seq: int = 0
    public_key: str | None = None
    trusted: bool = False
    problem: str = ""
    hint: str = ""
    checked: float = 0.0


class Budget:
    """Reads the ledger.

    Args:
        path: ``ledger.sqlite`` of the server.
        trusted_key: gives the public key that must have signed it, or None.
    """

    def __init__(self, path: Path, trusted_key: Callable[[], str | None]) -> None:
        self._path = path
        self._trusted_key = trusted_key
        self._lock = threading.Lock()
        self._accounts: tuple[object, tuple[Spent, ...]] | None = None
        self._chain: tuple[object, Chain] | None = None

    def accounts(self, clients: Mapping[int, str]) -> tuple[Account, ...]:
        """Return every account: the population first, then clients by number.

        Args:
            clients: the node that speaks for each client.

        Raises:
            LedgerError: if the ledger cannot be read.
        """
        state = self._state()
        if state is None:
            return ()
        with self._lock:
            if self._accounts is None or self._accounts[0] != state:
                with Ledger(self._path, read_only=True) as ledger:
                    spent = tuple(ledger.spent(*pair) for pair in ledger.subjects())
                self._accounts = (state, spent)
            found = self._accounts[1]
        return tuple(_account(one, clients) for one in sorted(found, key=_order))

    def chain(self) -> Chain:
        """Recompute the chain; what does not fit is in the answer, not raised."""
        state = self._state()
        if state is None:
            return Chain(exists=False, whole=None)
        with self._lock:
            if self._chain is None or self._chain[0] != state:
                self._chain = (state, self._verified())
            return self._chain[1]

    def _verified(self) -> Chain:
        """Recompute the chain."""
        now = time.time()
        try:
            trusted = self._trusted_key()
            with Ledger(self._path, read_only=True) as ledger:
                report = ledger.verify(None, trusted)
        except FedSLMError as error:
            return Chain(
                exists=True,
                whole=False,
                problem=str(error.message),
                hint=error.hint,
                checked=now,
            )
        return Chain(
            exists=True,
            whole=True,
            entries=report.entries,
            open_reservations=report.open_reservations,
            head=report.head.hash,
            seq=report.head.seq,
            public_key=report.public_key,
            trusted=trusted is not None,
            checked=now,
        )

    def _state(self) -> object:
        """Return what changes with the file or its write-ahead log; None if it is not there."""
        if not self._path.exists():
            return None
        found = []
        for path in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            if path.exists():
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)


def _account(spent: Spent, clients: Mapping[int, str]) -> Account:
    """Return a subject's account with the name of its node."""
    finite = math.isfinite(spent.epsilon)
    capped = math.isfinite(spent.cap) and spent.cap > 0
    number = spent.subject.removeprefix(_CLIENT)
    index = int(number) if number.isascii() and number.isdigit() else None
    return Account(
        subject=spent.subject,
        node=None if index is None else clients.get(index),
        scope=spent.scope,
        epsilon=spent.epsilon if finite else None,
        delta=spent.delta,
        cap=spent.cap if capped else None,
        share=spent.epsilon / spent.cap if finite and capped else None,
        unit=None if spent.unit is None else str(spent.unit),
        relation=None if spent.relation is None else str(spent.relation),
        releases=round(spent.releases) if math.isfinite(spent.releases) else None,
        accountant=spent.accountant,
        private=finite and spent.unit is not None,
    )


def _order(spent: Spent) -> tuple[str, int, int, str]:
    """Sort by data, the population before clients, clients by number."""
    number = spent.subject.removeprefix(_CLIENT)
    index = int(number) if number.isascii() and number.isdigit() else -1
    return spent.scope, int(spent.subject.startswith(_CLIENT)), index, spent.subject
