"""The ``ledger`` audit: is the claimed epsilon what the stored events come to?

A reviewer with the ledger, the plan and the list of finished rounds recomputes everything: that the
chain is whole, that every finished round was charged, that what was charged is what the plan
says, and what epsilon that gives, by two accountants that share no code. No model is needed, and
``fedslm audit verify`` does all of it again from the report alone.

It cannot see whether the noise was really added (that is for the ``mechanism`` audit), nor charges
that never reached this ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.audit.canaries import PlantedCanaries
from server.audit.ledgerchecks import Check, checks_of, noticed
from server.audit.ledgerfacts import Facts
from server.audit.ledgerfigures import Figures, figures_of
from server.audit.protocol import AuditContext, Evidence, Finding, Terms, Verdict
from server.audit.runrecord import RoundRecord
from shared.canonical import canonical_json
from shared.errors import InvalidValue, LedgerTampered, UnsupportedEvent
from shared.privacy.ledger_history import StoredCharge
from shared.privacy.ledger_notes import CANARY_COINS, FIRST_ROUND, Note
from shared.privacy.ledger_reading import LedgerReading
from shared.privacy.ledger_signing import SignedHead
from shared.privacy.ledger_store import Head
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """What verifying the whole ledger gave.

    Attributes:
        whole: whether it verified; None if it holds an event that this version cannot read.
        problem: the first thing that does not fit; empty if it is whole.
        entries: rows of the chain, notes included.
        open_reservations: charges that were neither committed nor given back; they count in full.
        signatures: signed heads.
        public_key: the key of all of them; None without signatures.
        anchored: whether a head that was seen earlier is on the chain.
        trusted: whether the key was known from elsewhere.
    """

    whole: bool | None
    problem: str = ""
    entries: int = 0
    open_reservations: int = 0
    signatures: int = 0
    public_key: str | None = None
    anchored: bool = False
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerArtefact:
    """The run's budget ledger: its charges, plans, notes and chain, and the rounds that finished.

    Attributes:
        run_id: the run that is audited.
        plan: the plan that the run says it followed.
        registered: the plans of the scope, by digest, of all runs.
        of_run: digests of the plans that this run registered.
        charges: every reservation about the run's data, of all runs, up to the run's last.
        notes: of this run.
        began: number of the entry at which the run's first round began; None if unknown.
        rounds: the rounds that finished, ascending; None if nobody knows.
        units: how many units there are, to hold delta against; None if nobody knows.
        second_epsilon: the claimed epsilon of DP-SGD inside the clients, beside a client mode.
        chain: what verifying the whole ledger gave.
    """

    run_id: str
    plan: PrivacyPlan
    registered: Mapping[str, PrivacyPlan]
    of_run: tuple[str, ...]
    charges: tuple[StoredCharge, ...]
    notes: tuple[Note, ...]
    began: int | None
    rounds: tuple[RoundRecord, ...] | None
    units: int | None
    second_epsilon: float | None
    chain: ChainState


def ledger_artefact(
    ledger: LedgerReading,
    *,
    run_id: str,
    scope: str,
    plan: PrivacyPlan,
    population: int,
    rounds: Sequence[RoundRecord] | None,
    second_epsilon: float | None = None,
    anchor: Head | SignedHead | None = None,
    trusted_key: str | None = None,
) -> LedgerArtefact:
    """Verify a ledger and read what it says about one run.

    Charges of other runs count as far as they were made before this run's last: that is what the
    run's own figure was about. Nothing is read from a ledger that does not verify.

    Args:
        ledger: any ledger; opened for reading is enough.
        run_id: the run, as the ledger names it.
        scope: the run's data, as the ledger names it.
        plan: what the run says it followed.
        population: number of clients, canary clients included.
        rounds: the rounds that finished, aborted ones marked as such; None if nobody knows.
        second_epsilon: the claimed epsilon of a second guarantee, at the example level.
        anchor: a head that was seen earlier.
        trusted_key: the key that must have signed, known from elsewhere.

    Raises:
        LedgerError: if the store cannot be read.
        InvalidValue: if the run was charged about other data: that is a slip of the caller, not a
            budget that was under-counted.
    """
    chain = _verified(ledger, anchor, trusted_key)
    of_scope = ledger.plans(scope) if chain.whole else ()
    charges = ledger.charges(scope) if chain.whole else ()
    last = max((c.reservation for c in charges if c.run_id == run_id), default=0)
    notes = ledger.notes(run_id) if chain.whole else ()
    first = ledger.first_charge(run_id) if chain.whole else None
    if first is not None and last == 0:
        msg = f"run_id={run_id!r} was charged, but not about the data that were named."
        raise InvalidValue(msg, hint="Name the scope as the ledger does: fedslm budget status.")
    return LedgerArtefact(
        run_id=run_id,
        plan=plan,
        registered={known.digest(): known for _, known in of_scope},
        of_run=tuple(sorted({known.digest() for run, known in of_scope if run == run_id})),
        charges=tuple(c for c in charges if c.reservation <= last),
        notes=notes,
        began=_began(notes, first),
        rounds=None if rounds is None else tuple(rounds),
        units=plan.dataset_size if plan.mode == "example" else population,
        second_epsilon=second_epsilon,
        chain=chain,
    )


def committed_in_time(ledger: LedgerReading, *, run_id: str, commitment: str) -> bool:
    """Tell whether a ledger shows that canaries were committed to before the first round.

    A run that charges nobody (mode none) shows it only with a ``first-round`` note.

    Raises:
        LedgerTampered: if a stored note is not one.
    """
    notes = ledger.notes(run_id)
    began = _began(notes, ledger.first_charge(run_id))
    return began is not None and any(
        note.name == CANARY_COINS and note.digest == commitment and note.seq < began
        for note in notes
    )


class LedgerAudit:
    """Recomputes the claim from the ledger; attacks nobody."""

    name = "ledger"
    metric = "epsilon_recomputed"
    threat_model = (
        "A reviewer who holds the ledger and the run's plan and trusts neither: rounds that were "
        "not charged, charges for less than was released, a label that is too small."
    )
    needs = ("the run's ledger", "the plan", "the list of finished rounds")

    def cost(self, context: AuditContext) -> str:
        """Say that it needs no model."""
        found = context.find(LedgerArtefact)
        entries = "" if found is None else f" over {found.chain.entries} ledger entries"
        return f"two accountants{entries}, a few seconds, no model"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Collect what the ledger holds, in counts.

        Raises:
            MissingArtefact: without a ledger.
        """
        found = context.need(LedgerArtefact)
        events = sorted({_text(charge) for charge in found.charges})
        index = {text: number for number, text in enumerate(events)}
        planted = context.find(PlantedCanaries)
        return {
            "plan": json.loads(canonical_json(found.plan.to_json())),
            "registered": list(found.of_run),
            "events": [json.loads(text) for text in events],
            "charges": [
                {
                    "round": charge.server_round,
                    "subjects": len(charge.subjects),
                    "event": index[_text(charge)],
                    "plan": charge.plan_digest,
                    "counts": charge.state != "abandoned",
                }
                for charge in found.charges
                if charge.run_id == found.run_id
            ],
            "histories": _histories(found, index),
            "rounds": None
            if found.rounds is None
            else [
                {"round": r.server_round, "cohort": r.cohort, "aborted": r.aborted}
                for r in found.rounds
            ],
            "units": found.units,
            "second_epsilon": found.second_epsilon,
            "chain": asdict(found.chain),
            "notes": [
                {"seq": n.seq, "time": n.time, "name": n.name, "digest": n.digest}
                for n in found.notes
            ],
            "began": found.began,
            "commitment": None if planted is None or not planted.coins else planted.commitment,
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Recompute epsilon and every check from the evidence.

        Raises:
            AuditError: if the evidence is malformed.
        """
        facts = Facts.read(evidence)
        figures = figures_of(facts)
        checks = checks_of(facts, terms.claim, figures)
        control = noticed(facts, terms.claim, figures)
        broken = [check for check in checks if check.state == "broken"]
        doubts = [check for check in checks if check.state == "doubtful"]
        verdict: Verdict = "inconclusive" if doubts or control is False else "consistent"
        value = figures[0].epsilon if figures else None
        return Finding(
            audit=self.name,
            verdict="violation" if broken else verdict,
            strength="conformance",
            metric=self.metric,
            value=value,
            interval=None,
            ceiling=None,
            baseline=terms.claim.epsilon,
            detected=bool(broken),
            n_in=sum(charge.counts for charge in facts.charges),
            n_out=0,
            alpha=terms.alpha,
            positive_control=control,
            explanation=_explain(checks, figures, terms, control=control),
            evidence={
                **evidence,
                "derived": {
                    "checks": [asdict(check) for check in checks],
                    "figures": [asdict(figure) for figure in figures],
                },
            },
        )


def _verified(
    ledger: LedgerReading, anchor: Head | SignedHead | None, trusted_key: str | None
) -> ChainState:
    """Verify a ledger; what does not fit becomes a state, without anybody's name in it."""
    try:
        report = ledger.verify(anchor, trusted_key)
    except LedgerTampered as error:
        what, named, _ = error.message.partition("subject=")
        return ChainState(whole=False, problem=f"{what}one subject do not fit." if named else what)
    except UnsupportedEvent as error:
        return ChainState(whole=None, problem=error.message)
    return ChainState(
        whole=True,
        entries=report.entries,
        open_reservations=report.open_reservations,
        signatures=report.signatures,
        public_key=report.public_key,
        anchored=report.anchored,
        trusted=trusted_key is not None,
    )


def _began(notes: Sequence[Note], first_charge: int | None) -> int | None:
    """Return the number of the entry at which a run's first round began."""
    said = [note.seq for note in notes if note.name == FIRST_ROUND]
    return min([*said, *([] if first_charge is None else [first_charge])], default=None)


def _histories(found: LedgerArtefact, index: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what was charged to the subjects of the run, equal histories once, without names.

    Epsilon is the worst subject's, so which subject had which history does not matter.
    """
    mine = {s for c in found.charges if c.run_id == found.run_id for s in c.subjects}
    spent: dict[str, Counter[int]] = {subject: Counter() for subject in mine}
    terms: dict[str, tuple[str, str, float]] = {}
    for charge in found.charges:
        plan = found.registered[charge.plan_digest]
        for subject in mine.intersection(charge.subjects):
            if plan.delta is not None:
                terms[subject] = (str(plan.unit), str(plan.neighboring_relation), plan.delta)
            spent[subject][index[_text(charge)]] += charge.state != "abandoned"
    groups = Counter(
        (terms[subject], tuple(sorted((+counts).items())))
        for subject, counts in spent.items()
        if subject in terms
    )
    return [
        {
            "unit": unit,
            "neighboring_relation": relation,
            "delta": delta,
            "subjects": subjects,
            "counts": [{"event": event, "times": times} for event, times in counts],
        }
        for ((unit, relation, delta), counts), subjects in sorted(groups.items())
    ]


def _text(charge: StoredCharge) -> str:
    """Return the canonical JSON of a charge's event."""
    return canonical_json(charge.event.to_json())


def _explain(
    checks: Sequence[Check], figures: Sequence[Figures], terms: Terms, *, control: bool | None
) -> str:
    """Say the numbers, then what is broken or doubtful, then what was looked at."""
    parts = [figure.sentence() for figure in figures]
    if terms.claim.epsilon is not None and terms.claim.delta is not None:
        parts.append(
            f"The run claims epsilon {terms.claim.epsilon:.4g} at delta {terms.claim.delta:g}."
        )
    for state in ("broken", "doubtful"):
        parts += [check.reason for check in checks if check.state == state]
    if control is False:
        parts.append(
            "A missing charge or halved noise, put in on purpose, was not noticed: this audit "
            "would not have seen a violation."
        )
    parts += [check.reason for check in checks if check.state in {"holds", "not checked"}]
    return " ".join(parts)
