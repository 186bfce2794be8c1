"""What was spent, read from the ledger that all runs share.

Epsilon costs time to evaluate, and the ledger moves once a round: figures are kept for as long as
the end of the chain stays where it is.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.budget import POPULATION
from shared.canonical import sha256_hex
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_history import StoredCharge
from shared.privacy.ledger_signing import SignedHead
from shared.privacy.ledger_state import Spent
from shared.privacy.ledger_store import Head

_KEPT_FIGURES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReading:
    """What the ledger says about some subjects.

    Attributes:
        spent: one figure for each subject and scope, ascending.
        head: the end of the chain when reading began, signed if the ledger is; ``None`` while there
            is no ledger.
        charges: of the asked subjects, newest first, at most as many as were asked for.
        more_charges: whether there are older ones.
    """

    spent: tuple[Spent, ...]
    head: SignedHead | Head | None
    charges: tuple[StoredCharge, ...] = ()
    more_charges: bool = False


class Budgets:
    """Reads a ledger that runs write at the same time.

    Args:
        path: the ledger's file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._figures: OrderedDict[tuple[str, str, str], Spent] = OrderedDict()
        self._charges: tuple[str, Mapping[str, Sequence[StoredCharge]]] = ("", {})

    def of_client(self, client_index: int | None, *, charges: int = 0) -> BudgetReading:
        """Return what was spent about one client, and about the population that it is part of.

        Args:
            client_index: which client; ``None`` for the population alone.
            charges: how many of the client's own charges to return.
        """
        own = None if client_index is None else client_subject(client_index)
        names = [POPULATION] if own is None else [own, POPULATION]
        with self._open() as ledger:
            if ledger is None:
                return BudgetReading(spent=(), head=None)
            head, end = _ends(ledger)
            pairs = [pair for name in names for pair in ledger.subjects(name)]
            spent = tuple(self._spent(ledger, *pair, end) for pair in pairs)
            found = self._charges_of(ledger, own, end) if own is not None and charges else ()
        newest = tuple(found[::-1][:charges])
        more = len(found) > len(newest)
        return BudgetReading(spent=spent, head=head, charges=newest, more_charges=more)

    def page(self, page: int, size: int) -> tuple[BudgetReading, bool]:
        """Return one page of all subjects' budgets, and whether there are more."""
        with self._open() as ledger:
            if ledger is None:
                return BudgetReading(spent=(), head=None), False
            head, end = _ends(ledger)
            pairs = ledger.subjects()
            wanted = pairs[page * size : (page + 1) * size]
            spent = tuple(self._spent(ledger, *pair, end) for pair in wanted)
        return BudgetReading(spent=spent, head=head), len(pairs) > (page + 1) * size

    @contextmanager
    def _open(self) -> Iterator[Ledger | None]:
        """Open the ledger for reading; None while there is none."""
        if not self._path.exists():
            yield None
            return
        with Ledger(self._path, read_only=True) as ledger:
            yield ledger

    def _spent(self, ledger: Ledger, subject: str, scope: str, end: str) -> Spent:
        """Return a figure, evaluated once for each end of the chain."""
        key = (subject, scope, end)
        with self._lock:
            known = self._figures.get(key)
        if known is not None:
            return known
        found = ledger.spent(subject, scope)
        with self._lock:
            self._figures[key] = found
            while len(self._figures) > _KEPT_FIGURES:
                self._figures.popitem(last=False)
        return found

    def _charges_of(self, ledger: Ledger, subject: str, end: str) -> Sequence[StoredCharge]:
        """Return the charges of a subject in order, sorted out once for each end of the chain."""
        with self._lock:
            if self._charges[0] != end:
                scopes = sorted({scope for _, scope in ledger.subjects()})
                every = [charge for scope in scopes for charge in ledger.charges(scope)]
                sorted_out: dict[str, list[StoredCharge]] = defaultdict(list)
                for charge in sorted(every, key=lambda item: item.reservation):
                    for name in charge.subjects:
                        sorted_out[name].append(charge)
                self._charges = (end, dict(sorted_out))
            return self._charges[1].get(subject, ())


def client_subject(client_index: int) -> str:
    """Return how the ledger names a client."""
    return f"client-{client_index}"


def scope_label(scope: str) -> str:
    """Return a name of some data that gives no folder away and is still its own.

    >>> scope_label("builtin:clinics")
    'builtin:clinics'
    """
    if "/" not in scope and "\\" not in scope and len(scope) <= 100:
        return scope
    last = scope.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1][-60:]
    return f"{last}#{sha256_hex(scope)[:8]}"


def finite(value: float | None) -> float | None:
    """Return a number that bounds something."""
    return value if value is not None and math.isfinite(value) else None


def _ends(ledger: Ledger) -> tuple[SignedHead | Head, str]:
    """Return the chain's end, signed if the ledger is, and what figures are kept under."""
    end = ledger.head()
    signed = ledger.signed_head()
    return (end if signed is None else signed), end.hash
