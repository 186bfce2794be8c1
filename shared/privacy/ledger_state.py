"""What a subject has spent, kept so that a decision does not replay history."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Literal

from shared.errors import LedgerConflict, PrivacyBudgetExhausted
from shared.privacy.accountant import (
    ONLINE,
    REPORT,
    best_order,
    epsilon_of,
    filter_epsilon,
    reporting_accountant,
)
from shared.privacy.events import (
    Composition,
    NeighboringRelation,
    NonPrivateEvent,
    PrivacyUnit,
)
from shared.privacy.ledger_store import Db
from shared.privacy.plan import PrivacyPlan

# The one kind of release whose number does not matter: one is as bad as many.
_NON_PRIVATE = Composition.of(NonPrivateEvent()).counts()[0][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a subject has spent in a scope; reserved charges count like committed ones.

    Attributes:
        subject: whose budget.
        scope: which data.
        epsilon: the figure that decides about the next release.
        delta: of every epsilon here; ``None`` if a plan of mode none charged the subject.
        unit: the privacy unit.
        relation: the neighbouring relation.
        releases: noised releases; infinite if one was not private.
        epsilon_rdp: the Renyi cross-check, at the best order.
        accountant: which one gave ``epsilon``: ``"pld"``, ``"rdp"`` where Skellam noise is too
            coarse for PLD, or ``"rdp-filter"`` once several plans charged the subject.
        cap: the smallest cap of those plans; infinite in mode none.
        remaining: ``cap - epsilon``, at least 0.
    """

    subject: str
    scope: str
    epsilon: float
    delta: float | None
    unit: PrivacyUnit | None
    relation: NeighboringRelation | None
    releases: float
    epsilon_rdp: float
    accountant: Literal["pld", "rdp", "rdp-filter"]
    cap: float
    remaining: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a subject's budget is counted; the same for all its plans in a scope.

    Attributes:
        unit: the privacy unit, or ``None`` in mode none.
        relation: the neighbouring relation, or ``None`` in mode none.
        delta: of every epsilon, or ``None`` in mode none.
        cap: the smallest cap of the plans so far; infinite in mode none.
        filter_order: Renyi order of the adaptive filter, fixed by the first plan.
    """

    unit: PrivacyUnit | None
    relation: NeighboringRelation | None
    delta: float | None
    cap: float
    filter_order: float | None

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Terms:
        """Return the terms of a first plan."""
        return cls(
            unit=plan.unit,
            relation=plan.neighboring_relation,
            delta=plan.delta,
            cap=math.inf if plan.cap is None else plan.cap,
            filter_order=_filter_order(plan),
        )


# Charges by plan digest, ascending.
Charges = tuple[tuple[str, Composition], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One subject in one scope: its terms and its charges, one composition per plan."""

    subject: str
    scope: str
    terms: Terms
    charges: Charges = ()

    def under(self, plan: PrivacyPlan) -> Account:
        """Return the account as another plan finds it: a cap only ever becomes smaller.

        Raises:
            LedgerConflict: if the plan counts in another unit, relation or delta.
        """
        mine, theirs = self.terms, Terms.of(plan)
        if (mine.unit, mine.relation, mine.delta) != (theirs.unit, theirs.relation, theirs.delta):
            msg = (
                f"subject={self.subject!r}, scope={self.scope!r} is counted with unit="
                f"{mine.unit}, relation={mine.relation}, delta={mine.delta}; the plan says "
                f"unit={theirs.unit}, relation={theirs.relation}, delta={theirs.delta}."
            )
            hint = "Epsilons of different kinds do not add up; keep the first kind."
            raise LedgerConflict(msg, hint=hint)
        return replace(self, terms=replace(mine, cap=min(mine.cap, theirs.cap)))

    def fits(self, asked: Composition, plan: PrivacyPlan, digest: str) -> bool:
        """Tell whether a charge under a plan stays within the cap."""
        return _decide(self.charges, self.terms, asked, plan, digest)

    def refusal(self, asked: Composition, plan: PrivacyPlan, digest: str) -> PrivacyBudgetExhausted:
        """Return the error that says what was spent, asked for, and left."""
        after = _plus(self.charges, digest, asked)
        spent, asks = _figure(self.charges, self.terms), _figure(after, self.terms)
        cap = self.terms.cap
        msg = (
            f"subject={self.subject!r}, scope={self.scope!r}: this release would bring epsilon "
            f"from {spent:.6g} to {asks:.6g}, cap={cap:.6g}, at delta={self.terms.delta}, "
            f"unit={self.terms.unit}, {self.terms.relation}."
        )
        hint = f"Stop here, or plan more noise from the start (planned rounds: {plan.rounds})."
        return PrivacyBudgetExhausted(msg, hint=hint, spent=spent, requested=asks, cap=cap)

    def in_full(self, plan: PrivacyPlan) -> Account:
        """Return the account as it would be with all that a plan may charge, not a part of it.

        More than that may stand already, where rounds were repeated: then it stays, and the plan's
        own is added.
        """
        digest, whole = plan.digest(), Composition.of(plan.total_events())
        own = dict(self.charges).get(digest, Composition())
        kept = tuple(item for item in self.charges if item[0] != digest)
        due = whole if own.within(whole) else own.plus(whole)
        return replace(self, charges=tuple(sorted((*kept, (digest, due)), key=itemgetter(0))))

    def spent(self, plans: Iterable[PrivacyPlan]) -> Spent:
        """Evaluate the account; ``plans`` are those that charged it."""
        total = _sum(self.charges)
        epsilon = _figure(self.charges, self.terms, interval=ONLINE)
        if len(self.charges) == 1:
            for plan in plans:
                if total.within(Composition.of(plan.total_events())):
                    epsilon = min(epsilon, plan.epsilon())
        terms, rdp, event = self.terms, math.inf, total.to_event()
        if terms.delta is not None and terms.relation is not None:
            rdp = epsilon_of(event, delta=terms.delta, relation=terms.relation, accountant="rdp")
        return Spent(
            subject=self.subject,
            scope=self.scope,
            epsilon=epsilon,
            delta=terms.delta,
            unit=terms.unit,
            relation=terms.relation,
            releases=total.releases,
            epsilon_rdp=rdp,
            accountant="rdp-filter" if len(self.charges) > 1 else reporting_accountant(event),
            cap=terms.cap,
            remaining=max(0.0, terms.cap - epsilon) if math.isfinite(epsilon) else 0.0,
        )


def read_accounts(db: Db, names: Sequence[str], scope: str) -> dict[str, Account]:
    """Return the accounts that exist among some subjects, in one query each for terms and sums."""
    wanted = (scope, json.dumps(list(names)))
    where = f"WHERE scope = ? AND subject IN ({db.among})"
    terms = {
        row[0]: Terms(
            unit=None if row[1] is None else PrivacyUnit(row[1]),
            relation=None if row[2] is None else NeighboringRelation(row[2]),
            delta=row[3],
            cap=math.inf if row[4] is None else row[4],
            filter_order=row[5],
        )
        for row in db.execute(
            f"SELECT subject, unit, relation, delta, cap, filter_order FROM subjects {where}",  # noqa: S608
            wanted,
        )
    }
    rows: dict[str, dict[str, list[tuple[str, int]]]] = {name: {} for name in terms}
    for subject, digest, release, count in db.execute(
        f"SELECT subject, plan_digest, release, count FROM spent {where} "  # noqa: S608
        "ORDER BY subject, plan_digest, release",
        wanted,
    ):
        rows[subject].setdefault(digest, []).append((release, count))
    return {
        name: Account(
            subject=name,
            scope=scope,
            terms=terms[name],
            charges=tuple(
                (digest, _composition(tuple(sums))) for digest, sums in rows[name].items()
            ),
        )
        for name in terms
    }


def write_terms(db: Db, accounts: Iterable[Account]) -> None:
    """Store new accounts' terms; of known ones only the cap may have changed."""
    db.executemany(
        "INSERT INTO subjects VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (subject, scope) DO UPDATE SET cap = excluded.cap",
        [terms_row(account) for account in accounts],
    )


def terms_row(account: Account) -> tuple[object, ...]:
    """Return the stored row of an account's terms."""
    t = account.terms
    cap = t.cap if math.isfinite(t.cap) else None
    unit = None if t.unit is None else str(t.unit)
    relation = None if t.relation is None else str(t.relation)
    return (account.subject, account.scope, unit, relation, t.delta, cap, t.filter_order)


def add_charges(
    db: Db,
    names: Sequence[str],
    scope: str,
    digest: str,
    asked: Composition,
    *,
    sign: Literal[1, -1],
) -> None:
    """Add one composition to several subjects' sums, or take it back."""
    for release, count in asked.counts():
        db.executemany(
            "INSERT INTO spent VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (subject, scope, plan_digest, release) "
            "DO UPDATE SET count = spent.count + excluded.count",
            [(name, scope, digest, release, sign * count) for name in names],
        )
    if sign < 0:
        db.executemany(
            "DELETE FROM spent WHERE subject = ? AND scope = ? AND count = 0",
            [(name, scope) for name in names],
        )


@lru_cache(maxsize=4096)
def _composition(sums: tuple[tuple[str, int], ...]) -> Composition:
    """Read stored sums; equal histories of many subjects are read once."""
    return Composition.from_counts((text, 1 if text == _NON_PRIVATE else n) for text, n in sums)


def _plus(charges: Charges, digest: str, asked: Composition) -> Charges:
    """Return the charges with one more, still one composition per plan."""
    sums = dict(charges)
    sums[digest] = sums.get(digest, Composition()).plus(asked)
    return tuple(sorted(sums.items()))


def _sum(charges: Charges) -> Composition:
    """Compose the charges of all plans."""
    return Composition.of(*(composition.to_event() for _, composition in charges))


@lru_cache(maxsize=4096)
def _decide(
    charges: Charges, terms: Terms, asked: Composition, plan: PrivacyPlan, digest: str
) -> bool:
    """Decide for one history; equal histories of many subjects cost one decision."""
    after = _plus(charges, digest, asked)
    # The plan's own figure bounds every part of it, and is known already.
    planned = len(after) == 1 and after[0][1].within(Composition.of(plan.total_events()))
    if planned and plan.epsilon() <= terms.cap:
        return True
    # Every grid gives an upper bound; the coarse one is quick.
    return any(_figure(after, terms, interval=grid) <= terms.cap for grid in (ONLINE, REPORT))


def _figure(charges: Charges, terms: Terms, *, interval: float = REPORT) -> float:
    """Return the epsilon that decides: the reported one for one plan, the filter for several.

    The reported one may turn from PLD to Renyi as Skellam releases add up; it does not fall there
    (:func:`~shared.privacy.accountant.reporting_accountant`).
    """
    if not charges:
        return 0.0
    total = _sum(charges).to_event()
    if terms.delta is None or terms.relation is None or terms.filter_order is None:
        return math.inf
    if len(charges) > 1:
        return filter_epsilon(
            total, delta=terms.delta, relation=terms.relation, order=terms.filter_order
        )
    return epsilon_of(total, delta=terms.delta, relation=terms.relation, interval=interval)


@lru_cache(maxsize=256)
def _filter_order(plan: PrivacyPlan) -> float | None:
    """Return the Renyi order that is best for a whole plan."""
    if plan.delta is None or plan.neighboring_relation is None:
        return None
    return best_order(plan.total_events(), delta=plan.delta, relation=plan.neighboring_relation)
