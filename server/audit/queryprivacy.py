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

from scipy import stats as distributions

from server.audit.evidence import (
    DERIVED,
    boolean,
    integer,
    mapping,
    mappings,
    number,
    sequence,
    text,
)
from server.audit.protocol import AuditContext, Evidence, Finding, Terms, Verdict
from server.audit.querycounts import (
    GRAM,
    SUMS,
    Counts,
    FindsNothing,
    Labelled,
    LabelledQuery,
    QueryRedactor,
    Row,
)
from shared import validate
from shared.errors import AuditError, InvalidValue

GATE = 0.9
"""Recall that a kind should reach before anybody relies on the redactor for it."""

LEVEL = 1e-3
"""Chance that a redactor that keeps all its promises is said to break one."""

FEWEST = 29
"""Fewest examples of a kind that can show a recall of 0.9: 0.9^29 < 0.05 even if none is missed."""


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
        read = _Read.of(evidence, terms.alpha)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """Evidence after it was checked."""

    redactor: str
    source: str
    rows: Mapping[str, Row]
    protected: tuple[str, ...]
    promised: Mapping[str, float]
    sums: Mapping[str, int]
    caught: bool
    alpha: float

    @classmethod
    def of(cls, evidence: Evidence, alpha: float) -> _Read:
        """Check evidence; ``alpha`` is shared among the protected kinds.

        Raises:
            AuditError: if it is malformed.
        """
        rows = [Row.read(data) for data in mappings(evidence, "kinds")]
        protected = sequence(evidence, "protected")
        if not all(isinstance(kind, str) for kind in protected):
            msg = "evidence 'protected' holds something else than names of kinds."
            raise AuditError(msg, hint="The report was changed.")
        promised = mapping(evidence, "promised")
        sums = {key: integer(evidence, key, low=0) for key in SUMS}
        whole = integer(evidence, "queries", low=1)
        if max(sums[key] for key in ("restored", "restored_in_answer", "untraceable")) > whole:
            msg = "evidence counts more queries of some sort than there are queries."
            raise AuditError(msg, hint="The report was changed.")
        control = mapping(evidence, "control")
        labels = integer(control, "labels", low=1)
        return cls(
            redactor=text(evidence, "redactor"),
            source=text(evidence, "source"),
            rows={row.kind: row for row in rows},
            protected=tuple(sorted(set(protected))),
            promised={kind: number(promised, kind, low=0.0, high=1.0) for kind in promised},
            sums=sums,
            caught=integer(control, "hidden", low=0, high=labels) == labels
            and integer(control, "hidden_by_nothing", low=0) == 0
            and boolean(control, "invented_reported"),
            alpha=alpha / max(1, len(set(protected))),
        )

    @property
    def chosen(self) -> list[Row]:
        """The protected kinds that have an example."""
        rows = [self.rows[kind] for kind in self.protected if kind in self.rows]
        return [row for row in rows if row.counts["count"]]

    @property
    def worst(self) -> Row | None:
        """The protected kind of which the smallest share is hidden."""
        return min(self.chosen, key=lambda row: (row.recall, row.kind), default=None)

    def below(self) -> list[str]:
        """Return the protected kinds that are below the gate beyond doubt."""
        return [row.kind for row in self.chosen if row.interval(self.alpha)[1] < GATE]

    def above(self) -> list[str]:
        """Return the protected kinds that reach the gate beyond doubt."""
        return [row.kind for row in self.chosen if row.interval(self.alpha)[0] >= GATE]

    def broken(self) -> dict[str, float]:
        """Return promises that the counts contradict, with exact binomial p-values."""
        found = {}
        for kind, promise in sorted(self.promised.items()):
            row = self.rows.get(kind)
            if row is None:
                continue
            p = float(distributions.binom.cdf(row.counts["hidden"], row.counts["count"], promise))
            if row.counts["count"] and p < LEVEL / len(self.promised):
                found[kind] = p
        return found

    def doubts(self) -> list[str]:
        """Return why the counts would say little, as sentences."""
        found = []
        if not self.caught:
            found.append(
                "The positive control was not caught: an obvious sentence was not taken apart, or "
                "an invented placeholder was not reported."
            )
        few = [
            kind
            for kind in sorted({*self.protected, *self.promised})
            if kind not in self.rows or self.rows[kind].counts["count"] < FEWEST
        ]
        if few:
            found.append(f"Fewer than {FEWEST} examples, too few to tell: {', '.join(few)}.")
        if not self.chosen:
            found.append("There is no example of anything that is to be protected.")
        if self.sums["untraceable"]:
            found.append(
                f"{self.sums['untraceable']} redacted queries are not the query with pieces taken "
                "out, and count as not redacted."
            )
        return found

    def share(self, part: str, whole: str) -> float | None:
        """Return a share over all protected kinds; None without any."""
        total = sum(row.counts[whole] for row in self.chosen)
        return sum(row.counts[part] for row in self.chosen) / total if total else None

    def derived(self, broken: Mapping[str, float]) -> dict[str, object]:
        """Return what follows from the counts."""
        plain = self.sums["plain_characters"]
        return {
            "kinds": {kind: row.to_dict(self.alpha) for kind, row in self.rows.items()},
            "gate": GATE,
            "above_gate": self.above(),
            "below_gate": self.below(),
            "broken_promises": dict(broken),
            "hidden": self.share("hidden", "count"),
            "characters_left": self.share("characters_left", "characters"),
            "residue": self.share("grams_left", "grams"),
            "removed_needlessly": self.sums["plain_removed"] / plain if plain else None,
            "restored": self.sums["restored"] / self.sums["queries"],
            "restored_in_answer": self.sums["restored_in_answer"] / self.sums["queries"],
        }

    def sentences(self) -> list[str]:
        """Return what was found, in words."""
        queries = self.sums["queries"]
        found = [f"{self.redactor} on {queries} queries ({self.source})."]
        worst = self.worst
        if worst is not None:
            hidden, count = (sum(row.counts[k] for row in self.chosen) for k in ("hidden", "count"))
            characters, residue = (
                self.share("characters_left", "characters"),
                self.share("grams_left", "grams"),
            )
            low, high = worst.interval(self.alpha)
            found.append(
                f"{hidden} of {count} pieces of personal data were hidden completely; "
                f"{characters or 0:.1%} of their letters and digits leave, and {residue or 0:.1%} "
                f"of their runs of {GRAM} characters stand somewhere in what leaves. The worst "
                f"kind is {worst.kind}: {worst.recall:.1%} (interval {low:.1%} to {high:.1%})."
            )
        found += _gate_words(self)
        found.append(
            f"{self.sums['restored']} of {queries} queries were restored exactly, and "
            f"{self.sums['restored_in_answer']} when an answer quoted them twice."
        )
        return found


def _gate_words(read: _Read) -> list[str]:
    """Return how the kinds stand to the gate."""
    below, above = read.below(), read.above()
    unsure = [row.kind for row in read.chosen if row.kind not in {*below, *above}]
    said = (
        (f"Below {GATE:.0%} beyond doubt: {{}}; do not rely on the redactor for these.", below),
        (f"Not shown to reach {GATE:.0%}: {{}}.", unsure),
        (f"At least {GATE:.0%} beyond doubt: {{}}.", above),
    )
    return [words.format(", ".join(kinds)) for words, kinds in said if kinds]


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
