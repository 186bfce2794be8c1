"""The evidence of the ``ledger`` audit, read back and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.audit.evidence import boolean, integer, mapping, mappings, number, sequence, text
from server.audit.protocol import Evidence
from shared import validate
from shared.errors import AuditError, FedSLMError
from shared.privacy.accountant import relation_of
from shared.privacy.events import Composition, NeighboringRelation, event_from_json
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planform import unit_of

_HINT = "The report was changed or written by another version."


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One reservation of the run: its round, how many subjects, what, under which plan."""

    round: int
    subjects: int
    event: Composition
    plan: str
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What some subjects of the run, all alike, were charged for in all, and on which terms."""

    subjects: int
    unit: str
    relation: NeighboringRelation
    delta: float
    composition: Composition

    @property
    def terms(self) -> tuple[str, str, float]:
        """Unit, relation and delta, as a plan says them."""
        return self.unit, str(self.relation), self.delta

    def within(self, other: History) -> bool:
        """Tell whether this is a part of another history on the same terms."""
        return self.terms == other.terms and self.composition.within(other.composition)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One finished round."""

    round: int
    cohort: int
    aborted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One note of the run."""

    seq: int
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Whether the ledger verified, and who signed it."""

    whole: bool | None
    problem: str
    entries: int
    public_key: str | None
    anchored: bool
    trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the audit concludes from.

    Attributes:
        plan: what the run says it followed.
        registered: digests of the plans that the ledger knows for the run.
        charges: the run's own.
        histories: distinct ones of the subjects that the run charged.
        rounds: finished ones, or None.
        units: number of units, or None.
        second_epsilon: the label of a second guarantee, or None.
        chain: whether the ledger verified.
        notes: of the run.
        began: entry at which the first round began, or None.
        commitment: to the canaries' coins; None if none were planted.
    """

    plan: PrivacyPlan
    registered: frozenset[str]
    charges: tuple[Charge, ...]
    histories: tuple[History, ...]
    rounds: tuple[Done, ...] | None
    units: int | None
    second_epsilon: float | None
    chain: Chain
    notes: tuple[Said, ...]
    began: int | None
    commitment: str | None

    @property
    def parts(self) -> tuple[PrivacyPlan, ...]:
        """The plan, and the one of DP-SGD inside each client beside it; none in mode none."""
        found = (self.plan, self.plan.example)
        return tuple(part for part in found if part is not None and part.mode != "none")

    @classmethod
    def read(cls, evidence: Evidence) -> Facts:
        """Read evidence.

        Raises:
            AuditError: if it is malformed.
        """
        try:
            plan = PrivacyPlan.from_json(dict(mapping(evidence, "plan")))
            events = [Composition.of(event_from_json(e)) for e in sequence(evidence, "events")]
            facts = cls(
                plan=plan,
                registered=frozenset(map(str, sequence(evidence, "registered"))),
                charges=tuple(_charge(c, events) for c in mappings(evidence, "charges")),
                histories=tuple(_history(h, events) for h in mappings(evidence, "histories")),
                rounds=_rounds(evidence),
                units=_optional_integer(evidence, "units"),
                second_epsilon=_optional_number(evidence, "second_epsilon"),
                chain=_chain(mapping(evidence, "chain")),
                notes=tuple(map(_said, mappings(evidence, "notes"))),
                began=_optional_integer(evidence, "began"),
                commitment=_optional_text(evidence, "commitment"),
            )
        except AuditError:
            raise
        except (FedSLMError, TypeError, KeyError, ValueError) as error:
            msg = "the evidence holds a plan or an event that cannot be read."
            raise AuditError(msg, hint=_HINT) from error
        noised = (c for c in facts.charges if c.counts and c.event.private)
        own = sum(charge.subjects * charge.event.releases for charge in noised)
        if not sum(h.subjects * h.composition.releases for h in facts.histories) >= own:
            msg = "the histories hold fewer releases than the run's own charges."
            raise AuditError(msg, hint=_HINT)
        return facts

    def with_half_the_noise(self) -> Facts:
        """Return the facts as they were if every stored event had half its noise."""
        return replace(
            self,
            charges=tuple(replace(c, event=_halved(c.event)) for c in self.charges),
            histories=tuple(replace(h, composition=_halved(h.composition)) for h in self.histories),
        )


def _charge(data: Mapping[str, Any], events: list[Composition]) -> Charge:
    """Read one reservation."""
    return Charge(
        round=integer(data, "round"),
        subjects=integer(data, "subjects", low=1),
        event=events[integer(data, "event", low=0, high=len(events) - 1)],
        plan=text(data, "plan"),
        counts=boolean(data, "counts"),
    )


def _history(data: Mapping[str, Any], events: list[Composition]) -> History:
    """Read one history and compose it."""
    composed = Composition()
    for row in mappings(data, "counts"):
        event = events[integer(row, "event", low=0, high=len(events) - 1)]
        composed = composed.plus(_times(event, integer(row, "times", low=1)))
    delta = number(data, "delta")
    validate.open_unit(delta=delta)
    return History(
        subjects=integer(data, "subjects", low=1),
        unit=str(unit_of(text(data, "unit"))),
        relation=relation_of(text(data, "neighboring_relation")),
        delta=delta,
        composition=composed,
    )


def _times(event: Composition, times: int) -> Composition:
    """Return an event so many times."""
    return Composition(
        pairs=tuple((q, z, n * times) for q, z, n in event.pairs),
        private=event.private,
        skellams=tuple((q, z, g, n * times) for q, z, g, n in event.skellams),
    )


def _halved(event: Composition) -> Composition:
    """Return events with half their noise."""
    return replace(
        event,
        pairs=tuple((q, z / 2.0, n) for q, z, n in event.pairs),
        skellams=tuple((q, z / 2.0, g, n) for q, z, g, n in event.skellams),
    )


def _rounds(evidence: Evidence) -> tuple[Done, ...] | None:
    """Read the finished rounds, if they are known."""
    if evidence.get("rounds") is None:
        return None
    return tuple(
        Done(
            round=integer(row, "round", low=1),
            cohort=integer(row, "cohort", low=0),
            aborted=boolean(row, "aborted"),
        )
        for row in mappings(evidence, "rounds")
    )


def _chain(data: Mapping[str, Any]) -> Chain:
    """Read what verifying gave."""
    return Chain(
        whole=None if data.get("whole") is None else boolean(data, "whole"),
        problem=text(data, "problem"),
        entries=integer(data, "entries", low=0),
        public_key=_optional_text(data, "public_key"),
        anchored=boolean(data, "anchored"),
        trusted=boolean(data, "trusted"),
    )


def _said(data: Mapping[str, Any]) -> Said:
    """Read one note."""
    return Said(
        seq=integer(data, "seq", low=1), name=text(data, "name"), digest=text(data, "digest")
    )


def _optional_integer(data: Mapping[str, Any], key: str) -> int | None:
    """Read an integer, or None."""
    return None if data.get(key) is None else integer(data, key, low=1)


def _optional_number(data: Mapping[str, Any], key: str) -> float | None:
    """Read a number of at least 0, or None."""
    return None if data.get(key) is None else number(data, key, low=0.0)


def _optional_text(data: Mapping[str, Any], key: str) -> str | None:
    """Read a text, or None."""
    return None if data.get(key) is None else text(data, key)
