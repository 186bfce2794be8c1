"""What a whole ledger proves about the people in it: the numbers of a privacy statement.

Nothing here is configured: every figure comes from a ledger that was verified first, or from the
plans that are stored in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import LedgerError
from shared.privacy.events import PrivacyUnit
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_state import Spent
from shared.privacy.ledger_store import Head
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What was spent about one kind of unit in one scope.

    Attributes:
        unit: whose presence is hidden.
        spent: of the subject that spent most.
        subjects: how many subjects of this unit were charged.
        plans: that were registered for the scope and protect this unit, by digest.
    """

    unit: PrivacyUnit
    spent: Spent
    subjects: int
    plans: tuple[PrivacyPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a verified ledger says about one scope.

    Attributes:
        scope: which data.
        runs: names of the runs that registered a plan for it, ascending.
        guarantees: one per unit, client before example.
        entries: rows of the whole chain.
        open_reservations: charges that were neither committed nor abandoned; they count in full.
        head: the end of the chain when it was verified.
        anchored: whether an earlier head was found on the chain.
        public_key: that signed the chain, or ``None``.
        trusted: whether that key was known from elsewhere.
    """

    scope: str
    runs: tuple[str, ...]
    guarantees: tuple[Guarantee, ...]
    entries: int
    open_reservations: int
    head: Head
    anchored: bool
    public_key: str | None
    trusted: bool


def collect_evidence(
    ledger: Ledger,
    *,
    scope: str | None = None,
    anchor: Head | None = None,
    trusted_key: str | None = None,
) -> Evidence:
    """Verify a ledger and read what it proves.

    Args:
        ledger: any ledger.
        scope: which data; may be left out if the ledger knows only one.
        anchor: a head seen earlier, which the chain must contain.
        trusted_key: the public key that must have signed the chain.

    Returns:
        The evidence.

    Raises:
        LedgerTampered: if the ledger does not verify; nothing is read then.
        LedgerError: if it holds no private charge, several scopes and none was named, or not the
            one that was named.
    """
    report = ledger.verify(anchor, trusted_key)
    subjects = ledger.subjects()
    chosen = _scope({pair[1] for pair in subjects}, scope)
    registered = ledger.plans(chosen)
    spent = [ledger.spent(*pair) for pair in subjects if pair[1] == chosen]
    if any(one.unit is None for one in spent):
        msg = f"scope={chosen!r} was charged without privacy; there is nothing to state."
        raise LedgerError(msg, hint="Epsilon is infinite for everyone in this scope.")
    return Evidence(
        scope=chosen,
        runs=tuple(sorted({run for run, _ in registered})),
        guarantees=tuple(_guarantees(spent, [plan for _, plan in registered])),
        entries=report.entries,
        open_reservations=report.open_reservations,
        head=report.head,
        anchored=report.anchored,
        public_key=report.public_key,
        trusted=trusted_key is not None,
    )


def _guarantees(spent: Sequence[Spent], plans: Sequence[PrivacyPlan]) -> list[Guarantee]:
    """Group subjects by unit and keep the one that spent most."""
    by_digest = {plan.digest(): plan for plan in plans}
    found = []
    for unit in (PrivacyUnit.CLIENT, PrivacyUnit.EXAMPLE):
        mine = [one for one in spent if one.unit is unit]
        if mine:
            worst = max(mine, key=lambda one: (one.epsilon, one.subject))
            own = tuple(by_digest[d] for d in sorted(by_digest) if by_digest[d].unit is unit)
            found.append(Guarantee(unit=unit, spent=worst, subjects=len(mine), plans=own))
    return found


def _scope(known: set[str], wanted: str | None) -> str:
    """Return the scope that was asked for, or the only one there is."""
    if not known:
        msg = "the ledger holds no charge."
        raise LedgerError(msg, hint="A run in mode none charges nobody and promises nothing.")
    if wanted is None and len(known) == 1:
        return next(iter(known))
    if wanted in known:
        return str(wanted)
    names = ", ".join(sorted(known))
    msg = f"scope={wanted!r}, expected one of the ledger's: {names}."
    raise LedgerError(msg, hint="Charges in different scopes are about different data.")
