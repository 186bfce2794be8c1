"""What the ``ledger`` audit concludes from its evidence: pure functions, the same for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from server.audit.ledgerfacts import Charge, Done, Facts
from server.audit.ledgerfigures import Figures, history_epsilon, worst_history
from server.audit.protocol import Claim
from shared.privacy.accountant import ONLINE
from shared.privacy.events import Composition, PrivacyUnit
from shared.privacy.ledger_notes import CANARY_COINS
from shared.privacy.plan import PrivacyPlan

State = Literal["holds", "broken", "doubtful", "not checked"]

ROUNDING = 0.005
"""A label may be this share below the recomputed figure: it may be printed with three digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: which.
        state: ``"broken"`` makes a violation, ``"doubtful"`` an inconclusive finding, ``"not
            checked"`` is said and changes nothing.
        reason: what was found, one or two sentences.
    """

    name: str
    state: State
    reason: str


def checks_of(facts: Facts, claim: Claim, figures: tuple[Figures, ...]) -> tuple[Check, ...]:
    """Make every check that the evidence allows."""
    checks = [_chain(facts)]
    if claim.epsilon is None:
        reason = "The run claims no epsilon, so there is nothing to hold the ledger against."
        checks.append(Check(name="claim", state="doubtful", reason=reason))
    elif facts.chain.whole:
        checks += [_label(facts, claim), _plan(facts), _events(facts), _charged(facts)]
        checks += [
            _size_of_label(facts, claim, figures),
            _accountants(figures),
            _delta(facts, claim),
        ]
    if facts.commitment is not None and facts.chain.whole:
        checks.append(_canaries(facts))
    return tuple(checks)


def noticed(facts: Facts, claim: Claim, figures: tuple[Figures, ...]) -> bool | None:
    """Tell whether sabotage of these very facts would be seen; None if nothing can be spoiled.

    One charge of a finished round is taken out, and the noise of all events is halved.
    """
    if claim.epsilon is None or not figures or _charged(facts).state != "holds":
        return None
    seen = [_charged(spoiled).state == "broken" for spoiled in _without_one_charge(facts)]
    honest, halved = figures[0].epsilon, facts.with_half_the_noise()
    worst = worst_history(halved, figures[0].unit)
    if honest is not None and worst is not None:
        grown = history_epsilon(worst, interval=ONLINE)
        seen.append(_events(halved).state == "broken" and grown > honest * (1.0 + ROUNDING))
    return all(seen) if seen else None


def _chain(facts: Facts) -> Check:
    """Say whether the chain is whole, and who signed it."""
    chain = facts.chain
    if chain.whole is None:
        return Check(name="chain", state="doubtful", reason=f"Not verified: {chain.problem}")
    if not chain.whole:
        reason = f"The ledger does not verify: {chain.problem}"
        return Check(name="chain", state="broken", reason=reason)
    signed = "it is not signed, so whoever held it could have written it anew"
    if chain.public_key is not None:
        known = "known from elsewhere" if chain.trusted else "which nobody vouched for here"
        signed = f"it is signed by key {chain.public_key[:12]}, {known}"
    kept = (
        "" if chain.anchored else " Without an earlier head, a tail that was cut off is not seen."
    )
    reason = f"The ledger's chain of {chain.entries} entries is whole; {signed}.{kept}"
    return Check(name="chain", state="holds", reason=reason)


def _label(facts: Facts, claim: Claim) -> Check:
    """Compare mode, unit, relation and delta of the claim with plan and ledger."""
    plan = facts.plan
    said: dict[str, tuple[object, object]] = {
        "mode": (claim.mode, plan.mode),
        "unit": (claim.unit, _word(plan.unit)),
        "relation": (claim.neighboring_relation, _word(plan.neighboring_relation)),
        "delta": (claim.delta, plan.delta),
    }
    wrong = [f"{name}={a!r} where the plan has {b!r}" for name, (a, b) in said.items() if a != b]
    for part in facts.parts:
        due = (_word(part.unit), _word(part.neighboring_relation), part.delta)
        wrong += [
            f"the ledger counts in {h.terms} where the plan has {due}"
            for h in facts.histories
            if h.unit == part.unit and h.terms != due
        ]
    units = {_word(part.unit) for part in facts.parts}
    wrong += [f"unit={h.unit!r} in the ledger" for h in facts.histories if h.unit not in units]
    if wrong:
        reason = f"The label is not that of what was charged: {'; '.join(dict.fromkeys(wrong))}."
        return Check(name="label", state="broken", reason=reason)
    reason = "Unit, relation and delta are the same in claim, plan and ledger."
    return Check(name="label", state="holds", reason=reason)


def _plan(facts: Facts) -> Check:
    """Require that the run was charged under the plan that it shows."""
    known = {part.digest() for part in facts.parts}
    strange = {c.plan for c in facts.charges} | set(facts.registered)
    if not strange <= known or not {c.plan for c in facts.charges} <= set(facts.registered):
        reason = "The run was charged under another plan than the one that it shows."
        return Check(name="plan", state="broken", reason=reason)
    reason = "Every charge was made under the plan that the run shows."
    return Check(name="plan", state="holds", reason=reason)


def _events(facts: Facts) -> Check:
    """Require that each charge is what one round of the plan costs."""
    parts = {part.digest(): part for part in facts.parts}
    for charge in facts.charges:
        part = parts.get(charge.plan)
        if part is not None and charge.counts and not _as_planned(charge, part):
            reason = (
                f"Round {charge.round} was charged for {_words(charge.event)} where the plan says "
                f"{_words(Composition.of(part.event_for_participation(charge.round)))}."
            )
            return Check(name="events", state="broken", reason=reason)
    reason = "Noise, sampling and number of releases of each charge are those of the plan."
    return Check(name="events", state="holds", reason=reason)


def _charged(facts: Facts) -> Check:
    """Require that each finished round, if it released something, was charged."""
    if facts.rounds is None:
        if not any(charge.counts for charge in facts.charges):
            reason = "The label names an epsilon, and the ledger holds no event of this run."
            return Check(name="charged", state="broken", reason=reason)
        reason = "Which rounds finished is not known, so a round without a charge cannot be seen."
        return Check(name="charged", state="doubtful", reason=reason)
    missing = list(_uncharged(facts))
    if missing:
        shown = ", ".join(map(str, missing[:5])) + ("" if len(missing) <= 5 else ", ...")
        reason = (
            f"{len(missing)} of {len(facts.rounds)} finished rounds released something that the "
            f"ledger does not hold in full: {shown}."
        )
        return Check(name="charged", state="broken", reason=reason)
    if all(done.aborted for done in facts.rounds):
        reason = "No round released anything, so the claim is about nothing."
        return Check(name="charged", state="doubtful", reason=reason)
    reason = (
        f"Every one of {len(facts.rounds)} finished rounds that released something was charged."
    )
    return Check(name="charged", state="holds", reason=reason)


def _size_of_label(facts: Facts, claim: Claim, figures: tuple[Figures, ...]) -> Check:
    """Require that no label is below what the stored events come to."""
    for figure in figures:
        first = figure.unit == _word(facts.plan.unit)
        label = claim.epsilon if first else facts.second_epsilon
        if label is not None and not (
            figure.epsilon is not None and figure.epsilon <= label * (1.0 + ROUNDING)
        ):
            found = "no finite epsilon" if figure.epsilon is None else f"{figure.epsilon:.4g}"
            reason = (
                f"The label is too small: epsilon {label:.4g} per {figure.unit}, where the stored "
                f"events come to {found}."
            )
            return Check(name="size", state="broken", reason=reason)
    if len(figures) < len(facts.parts):
        reason = (
            "A unit that the plan protects was never charged, so nothing was recomputed for it."
        )
        return Check(name="size", state="doubtful", reason=reason)
    return Check(name="size", state="holds", reason="No label is below what the events come to.")


def _accountants(figures: tuple[Figures, ...]) -> Check:
    """Require that two accountants agree, and that the Renyi bound is not below them."""
    for f in figures:
        if f.epsilon is None:
            continue
        allowed = 0.02 + 0.01 * f.epsilon + f.slack
        if f.second is not None and not abs(f.second - f.epsilon) <= allowed:
            reason = f"Two accountants disagree: {f.epsilon:.4g} and {f.second:.4g}."
            return Check(name="accountants", state="doubtful", reason=reason)
        if f.renyi is not None and not f.renyi >= f.epsilon * (1.0 - ROUNDING) - 1e-3:
            reason = f"The Renyi bound {f.renyi:.4g} is below {f.epsilon:.4g}, which cannot be."
            return Check(name="accountants", state="doubtful", reason=reason)
    if any(f.second is not None for f in figures):
        reason = "Two accountants that share no code agree within 0.02 and 1 %."
        return Check(name="accountants", state="holds", reason=reason)
    reason = "No second accountant could be asked; the Renyi bound is the only cross-check."
    return Check(name="accountants", state="not checked", reason=reason)


def _delta(facts: Facts, claim: Claim) -> Check:
    """Hold every delta against one over the number of units, where that is stated."""
    stated = [(claim.delta, facts.units), *((p.delta, p.dataset_size) for p in facts.parts[1:])]
    known = [(delta, units) for delta, units in stated if delta is not None and units is not None]
    for delta, units in known:
        if not delta * units < 1.0:
            reason = (
                f"delta {delta:g} is not below one over the {units} units: publishing one of them "
                "in full would satisfy the claim, so the claim is empty."
            )
            return Check(name="delta", state="doubtful", reason=reason)
    if len(known) < len(stated):
        reason = "How many units there are is not stated, so delta was not held against it."
        return Check(name="delta", state="not checked", reason=reason)
    counts = " and ".join(str(units) for _, units in known)
    reason = f"delta is below one over the number of units ({counts})."
    return Check(name="delta", state="holds", reason=reason)


def _canaries(facts: Facts) -> Check:
    """Require that the canaries' coins were committed to before the first round."""
    notes = [note for note in facts.notes if note.name == CANARY_COINS]
    same = [note for note in notes if note.digest == facts.commitment]
    if not same:
        said = "another commitment" if notes else "no commitment"
        reason = f"Canaries were planted, and the ledger holds {said} to their coins."
    elif facts.began is None:
        reason = "The ledger does not show when the first round began, so not what came before it."
    elif not same[0].seq < facts.began:
        reason = "The commitment to the canaries' coins came after the first round had begun."
    else:
        reason = "The canaries' coins were committed to before the first round."
        return Check(name="canaries", state="holds", reason=reason)
    return Check(name="canaries", state="doubtful", reason=reason)


def _uncharged(facts: Facts) -> Iterator[int]:
    """Yield the finished rounds that released something and were not charged in full."""
    released = [done for done in facts.rounds or () if not done.aborted]
    most: Counter[tuple[str, int]] = Counter()
    for part in facts.parts:
        digest = part.digest()
        for charge in facts.charges:
            due = Composition.of(part.event_for_participation(charge.round))
            if charge.counts and charge.plan == digest and charge.event == due:
                key = (digest, charge.round)
                most[key] = max(most[key], charge.subjects)
    for done in released:
        if not all(_paid(done, part, most) for part in facts.parts):
            yield done.round


def _paid(done: Done, part: PrivacyPlan, most: Counter[tuple[str, int]]) -> bool:
    """Tell whether one round was charged under one part of the plan.

    The population is charged once a round, or once for a run of correlated noise, which is one
    release as a whole. Where clients are charged, all of the cohort are.
    """
    digest = part.digest()
    if part.correlated is not None:
        return any(known == digest and start <= done.round for known, start in most)
    needed = done.cohort if part.unit is PrivacyUnit.EXAMPLE else 1
    return most[digest, done.round] >= needed


def _without_one_charge(facts: Facts) -> Iterator[Facts]:
    """Yield the facts without the last charge that alone pays for a round, if there is one."""
    released = {done.round for done in facts.rounds or () if not done.aborted}
    times = Counter((c.plan, c.round) for c in facts.charges if c.counts)
    for charge in reversed(facts.charges):
        if charge.counts and charge.round in released and times[charge.plan, charge.round] == 1:
            left = tuple(other for other in facts.charges if other is not charge)
            yield replace(facts, charges=left)
            return


def _as_planned(charge: Charge, part: PrivacyPlan) -> bool:
    """Tell whether a charge is what its round costs: in full, or nothing where the plan says so."""
    due = (part.event_for_participation(charge.round), part.event_for_round(charge.round))
    return charge.event in {Composition.of(event) for event in due}


def _word(value: object) -> str | None:
    """Return a word of a plan as a claim holds it."""
    return None if value is None else str(value)


def _words(event: Composition) -> str:
    """Say what an event is."""
    kinds = [*event.pairs, *((q, z, n) for q, z, _, n in event.skellams)]
    said = [f"{n} x noise multiplier {z:.6g} at sampling probability {q:.6g}" for q, z, n in kinds]
    said += [] if event.private else ["a release without noise"]
    return " and ".join(said) or "nothing"
