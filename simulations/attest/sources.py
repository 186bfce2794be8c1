"""Where the facts of a statement come from: a verified ledger, a run's files, the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.privacy.events import PrivacyUnit
from shared.privacy.evidence import Evidence, Guarantee
from shared.privacy.plan import PrivacyPlan
from shared.privacy.statement import Clause, PrivacyStatement, privacy_statement
from simulations.attest.about import About
from simulations.runfolder import AUDIT, SUMMARY, RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a run folder adds to its ledger.

    Attributes:
        name: of the run, or None outside a run folder.
        losses_measured: whether a simulator measured held-out losses; None if not known.
        records_bound: the largest number of records a client could train on, if bounded.
        audit: the audit's verdict, if there was one.
        versions: of what the run depended on.
        base_model: what was fine-tuned.
    """

    name: str | None = None
    losses_measured: bool | None = None
    records_bound: int | None = None
    audit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One guarantee with the sentences that state it.

    Attributes:
        guarantee: the numbers, from the ledger.
        plan: the plan that is quoted; with several, the one that allows the most.
        statement: the sentences with the numbers that they rest on.
        clauses: the sentences to be shown; a guarantee that has a promise of its own is left out
            of the others.
    """

    guarantee: Guarantee
    plan: PrivacyPlan
    statement: PrivacyStatement
    clauses: tuple[Clause, ...]

    def texts(self, *topics: str) -> str:
        """Return the sentences about some topics, in order, as one text."""
        return " ".join(c.text for c in self.clauses if c.topic in topics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dossier:
    """Everything that an export is written from.

    Attributes:
        evidence: of the verified ledger.
        promises: one per unit, client before example; at least one.
        about: the operator's words.
        run: the run folder's facts.
    """

    evidence: Evidence
    promises: tuple[Promise, ...]
    about: About
    run: RunFacts

    @property
    def title(self) -> str:
        """Return the name of what is stated about."""
        return self.about.name or self.run.name or "An adapter trained with fedslm"


def make_dossier(evidence: Evidence, about: About, run: RunFacts) -> Dossier:
    """Write the sentences of every guarantee."""
    promises = []
    for guarantee in evidence.guarantees:
        plan = max(guarantee.plans, key=lambda plan: (plan.epsilon(), plan.digest()))
        statement = privacy_statement(
            plan,
            epsilon_spent=guarantee.spent.epsilon,
            releases=round(guarantee.spent.releases),
            examples_per_person=_owned(guarantee.unit, about, run),
            losses_measured=bool(run.losses_measured),
        )
        hidden = _said_elsewhere(guarantee, evidence)
        clauses = tuple(c for c in statement.clauses if c.topic not in hidden)
        promises.append(
            Promise(guarantee=guarantee, plan=plan, statement=statement, clauses=clauses)
        )
    return Dossier(evidence=evidence, promises=tuple(promises), about=about, run=run)


def _said_elsewhere(guarantee: Guarantee, evidence: Evidence) -> set[str]:
    """Return the topics that another guarantee of the same run speaks about better."""
    if len(evidence.guarantees) == 1:
        return set()
    if guarantee.unit is PrivacyUnit.CLIENT:
        return {"second-guarantee"}
    # The plan inside the clients does not know what happens to an update afterwards.
    return {"who-sees-what"}


def _owned(unit: PrivacyUnit, about: About, run: RunFacts) -> int | None:
    """Return the bound on the units of one person: the operator's, else the run's."""
    if unit is PrivacyUnit.CLIENT:
        return about.clients_per_person
    return about.examples_per_person or run.records_bound


def read_run(path: Path) -> RunFacts:
    """Read what a run folder says beside its ledger; an unfinished run says little."""
    folder = RunFolder(path)
    summary: Mapping[str, Any] = folder.read_json(SUMMARY) or {}
    audit: Mapping[str, Any] = folder.read_json(AUDIT) or {}
    bound = (summary.get("statement") or {}).get("group_size")
    return RunFacts(
        name=summary.get("scenario"),
        losses_measured=summary.get("loss_after") is not None if summary else None,
        records_bound=bound,
        audit=audit.get("verdict"),
        versions=summary.get("versions") or {},
        base_model=summary.get("base_model"),
    )
