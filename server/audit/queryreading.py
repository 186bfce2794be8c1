"""From counts of what a redactor hid to what they say; pure, so anybody can repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats as distributions

from server.audit.evidence import boolean, integer, mapping, mappings, number, sequence, text
from server.audit.protocol import Evidence
from server.audit.querycounts import GRAM, SUMS, Row
from shared.errors import AuditError

GATE = 0.9
"""Recall that a kind should reach before anybody relies on the redactor for it."""

LEVEL = 1e-3
"""Chance that a redactor that keeps all its promises is said to break one."""

FEWEST = 29
"""Fewest examples of a kind that can show a recall of 0.9: 0.9^29 < 0.05 even if none is missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryReading:
    """The evidence of the audit after it was checked, and what follows from it."""

    redactor: str
    source: str
    rows: Mapping[str, Row]
    protected: tuple[str, ...]
    promised: Mapping[str, float]
    sums: Mapping[str, int]
    caught: bool
    alpha: float

    @classmethod
    def of(cls, evidence: Evidence, alpha: float) -> QueryReading:
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


def _gate_words(read: QueryReading) -> list[str]:
    """Return how the kinds stand to the gate."""
    below, above = read.below(), read.above()
    unsure = [row.kind for row in read.chosen if row.kind not in {*below, *above}]
    said = (
        (f"Below {GATE:.0%} beyond doubt: {{}}; do not rely on the redactor for these.", below),
        (f"Not shown to reach {GATE:.0%}: {{}}.", unsure),
        (f"At least {GATE:.0%} beyond doubt: {{}}.", above),
    )
    return [words.format(", ".join(kinds)) for words, kinds in said if kinds]
