"""Query privacy: what a redactor on the device lets through to the service that answers.

Labelled queries go through the redactor, and what would leave is compared with the labels. Kept
are counts by kind; neither a query nor a label nor a redacted text enters the evidence.

An entity counts as *hidden* when none of its letters and digits leaves, whatever kind the redactor
took it for; as *touched* when some do not; as *exact* when a finding has its borders and its kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.audit.evidence import DERIVED
from server.audit.protocol import AuditContext, Evidence, Finding, Terms, Verdict
from server.audit.querycounts import (
    Counts,
    FindsNothing,
    Labelled,
    LabelledQuery,
    QueryRedactor,
)
from server.audit.queryreading import QueryReading
from shared import validate
from shared.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledQueries:
    """Queries in which somebody has marked what is personal.

    Args:
        queries: at least one.
        source: where they come from, in words fit for a report.
        protected: the kinds that are meant to be hidden; None for every kind that is labelled.
        promised: the recall that the redactor's makers promise, by kind. A promise is about the
            population that the queries are drawn from.
    """

    queries: tuple[LabelledQuery, ...] = field(repr=False)
    source: str
    protected: frozenset[str] | None = None
    promised: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty set and promises that are no shares.

        Raises:
            InvalidValue: if so.
        """
        if not self.queries:
            msg = "queries=0, expected at least one labelled query."
            raise InvalidValue(msg)
        for kind, promise in self.promised.items():
            validate.probability(**{f"promised.{kind}": promise})


CONTROL = LabelledQuery(
    text="My name is John Smith, write to john.smith@example.org or call +1 212 555 0123.",
    labels=(
        Labelled(start=11, end=21, kind="PERSON"),
        Labelled(start=32, end=54, kind="EMAIL_ADDRESS"),
        Labelled(start=63, end=78, kind="PHONE_NUMBER"),
    ),
)
"""A sentence that any redactor must take apart; the address and the number belong to nobody."""

# Like a placeholder, but with a number that no conversation reaches.
_INVENTED = "<PERSON_987654321>"


class QueryPrivacy:
    """The share of labelled personal data that a redactor hides before a query leaves."""

    name = "query-privacy"
    metric = "share of the worst protected kind of personal data that is hidden"
    threat_model = (
        "The service that answers queries, or whoever relays or logs them, reads every query as it "
        "leaves the device."
    )
    needs = ("a redactor", "queries with labelled personal data")

    def cost(self, context: AuditContext) -> str:
        """Say how many queries will be redacted."""
        found = context.find(LabelledQueries)
        count = 0 if found is None else len(found.queries)
        return f"{count} queries through the redactor on this machine, no model"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Redact every query, the control sentence, and all of it with no redactor at all.

        Raises:
            MissingArtefact: without a redactor or without labelled queries.
        """
        redactor, given = context.need(QueryRedactor), context.need(LabelledQueries)
        count, control, nothing = Counts(), Counts(), Counts()
        for query in given.queries:
            count.add(query, redactor)
            nothing.add(query, FindsNothing())
        control.add(CONTROL, redactor)
        kinds = {label.kind for query in given.queries for label in query.labels}
        return {
            "redactor": redactor.name,
            "source": given.source,
            "protected": sorted(kinds if given.protected is None else given.protected),
            "promised": {kind: float(share) for kind, share in sorted(given.promised.items())},
            **count.to_dict(),
            "control": {
                "labels": control.labels,
                "hidden": control.hidden,
                "hidden_by_nothing": nothing.hidden,
                "invented_reported": _reports_invented(redactor),
            },
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Compare what is hidden of each kind with the gate and with what was promised.

        Raises:
            AuditError: if the evidence is malformed.
        """
        read = QueryReading.of(evidence, terms.alpha)
        doubts = read.doubts()
        broken = read.broken()
        verdict: Verdict = "violation" if broken else "inconclusive" if doubts else "consistent"
        worst = read.worst
        interval = None if worst is None else worst.interval(read.alpha)
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="conformance" if read.promised else "descriptive",
            metric=self.metric,
            value=None if worst is None else worst.recall,
            interval=interval,
            ceiling=None if worst is None else 1.0,
            baseline=None if worst is None else 0.0,
            detected=bool(broken or read.below()),
            n_in=sum(row.counts["count"] for row in read.chosen),
            n_out=read.sums["queries"],
            alpha=terms.alpha,
            positive_control=read.caught,
            explanation=" ".join([*read.sentences(), *_broken_words(broken), *doubts, _LAST]),
            evidence={
                **{key: value for key, value in evidence.items() if key != DERIVED},
                DERIVED: read.derived(broken),
            },
        )


_LAST = "No epsilon covers a query: what is not hidden is simply read."


def _broken_words(broken: Mapping[str, float]) -> Sequence[str]:
    """Return which promises do not hold."""
    return [
        f"What was promised for {kind} does not hold (p = {p:.1g})." for kind, p in broken.items()
    ]


def _reports_invented(redactor: QueryRedactor) -> bool:
    """Tell whether a placeholder that was never given out is reported and left alone."""
    sent, _ = redactor.redact(CONTROL.text)
    restored, unknown = redactor.restore(f"{sent} {_INVENTED}")
    return unknown > 0 and restored.endswith(_INVENTED)
