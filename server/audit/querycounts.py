"""What is counted when labelled queries go through a redactor; no text is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.audit.evidence import integer, text
from server.audit.stats import clopper_pearson
from shared.errors import AuditError, InvalidValue

GRAM = 5
"""Letters and digits in a row that count as residue where they stand in what leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A piece of personal data in a text.

    Args:
        start: index of its first character.
        end: index after its last.
        kind: its kind, in capitals.
    """

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledQuery:
    """A query in which somebody has marked what is personal."""

    text: str = field(repr=False)
    labels: tuple[Labelled, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse labels outside the text, or without a letter or digit.

        Raises:
            InvalidValue: if there is one; the text is not shown.
        """
        for label in self.labels:
            inside = 0 <= label.start < label.end <= len(self.text)
            if not (inside and solid(self.text[label.start : label.end])):
                msg = f"a label start={label.start} end={label.end} marks no letter or digit."
                raise InvalidValue(msg, hint="Labels are characters, not bytes.")


class QueryRedactor(ABC):
    """What takes personal data out of a query on the device, and puts it back into the answer."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in words fit for a report."""

    @abstractmethod
    def redact(self, query: str) -> tuple[str, Sequence[Labelled]]:
        """Return what would leave the device, and what was taken out, by its place in the query.

        What was taken out is in order and does not overlap. Every call starts a conversation, to
        which the next :meth:`restore` belongs.
        """

    @abstractmethod
    def restore(self, answer: str) -> tuple[str, int]:
        """Return an answer with everything back in place, and how many placeholders were unknown.

        A placeholder that was never given out must be counted and left as it stands.
        """


class FindsNothing(QueryRedactor):
    """A redactor that lets everything through: what the counts must look like without one."""

    name = "a redactor that finds nothing"

    def redact(self, query: str) -> tuple[str, Sequence[Labelled]]:
        """Return the query as it is."""
        return query, ()

    def restore(self, answer: str) -> tuple[str, int]:
        """Return the answer as it is."""
        return answer, 0


class Counts:
    """Sums over queries."""

    def __init__(self) -> None:
        self._kinds: dict[str, Counter[str]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, query: LabelledQuery, redactor: QueryRedactor) -> None:
        """Send one query through a redactor, back again, and count."""
        sent, taken = redactor.redact(query.text)
        self._sums["queries"] += 1
        self._round_trip(query.text, sent, redactor)
        pieces = left_over(query.text, sent, taken)
        if pieces is None:
            # What left is not the query with pieces taken out: then nothing counts as hidden.
            self._sums["untraceable"] += 1
            taken, pieces = (), [query.text, sent]
        gone = {place for span in taken for place in range(span.start, span.end)}
        self._found(query, taken)
        self._labels(query, taken, gone, pieces)

    def _round_trip(self, query: str, sent: str, redactor: QueryRedactor) -> None:
        """Restore what was sent, once as it is and once quoted twice in an answer."""
        restored, unknown = redactor.restore(sent)
        self._sums["restored"] += restored == query and unknown == 0
        quoted, unknown = redactor.restore(f"You wrote: {sent}\n\nAgain: {sent}")
        expected = f"You wrote: {query}\n\nAgain: {query}"
        self._sums["restored_in_answer"] += quoted == expected and unknown == 0

    def _found(self, query: LabelledQuery, taken: Sequence[Labelled]) -> None:
        """Count findings, those that meet a label, and those that meet one of their kind."""
        for span in taken:
            met = [k for k in query.labels if k.start < span.end and span.start < k.end]
            row = self._row(span.kind)
            row["found"] += 1
            row["right"] += bool(met)
            row["right_kind"] += any(label.kind == span.kind for label in met)

    def _labels(
        self,
        query: LabelledQuery,
        taken: Sequence[Labelled],
        gone: set[int],
        pieces: Sequence[str],
    ) -> None:
        """Count what was hidden of each label, and characters."""
        borders = {(span.start, span.end, span.kind) for span in taken}
        leaving = [solid(piece) for piece in pieces]
        personal: set[int] = set()
        for label in query.labels:
            places = [k for k in range(label.start, label.end) if query.text[k].isalnum()]
            left = [k for k in places if k not in gone]
            personal.update(places)
            row = self._row(label.kind)
            row["count"] += 1
            row["hidden"] += not left
            row["touched"] += len(left) < len(places)
            row["exact"] += (label.start, label.end, label.kind) in borders
            grams = _grams(solid(query.text[label.start : label.end]))
            row["grams"] += len(grams)
            row["grams_left"] += sum(any(gram in piece for piece in leaving) for gram in grams)
            row["characters"] += len(places)
            row["characters_left"] += len(left)
        plain = [k for k, c in enumerate(query.text) if c.isalnum() and k not in personal]
        self._sums["plain_characters"] += len(plain)
        self._sums["plain_removed"] += sum(k in gone for k in plain)

    def _row(self, kind: str) -> Counter[str]:
        return self._kinds.setdefault(kind, Counter())

    @property
    def hidden(self) -> int:
        """How many labels were hidden."""
        return sum(row["hidden"] for row in self._kinds.values())

    @property
    def labels(self) -> int:
        """How many labels there were."""
        return sum(row["count"] for row in self._kinds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as evidence."""
        rows = [
            {"kind": kind, **{key: self._kinds[kind][key] for key in ROW}}
            for kind in sorted(self._kinds)
        ]
        return {"kinds": rows, **{key: self._sums[key] for key in SUMS}}


ROW = (
    "count",
    "hidden",
    "touched",
    "exact",
    "found",
    "right",
    "right_kind",
    "characters",
    "characters_left",
    "grams",
    "grams_left",
)
SUMS = (
    "queries",
    "restored",
    "restored_in_answer",
    "untraceable",
    "plain_characters",
    "plain_removed",
)
# What each number of a row is part of, and so cannot exceed.
_WITHIN = {
    "hidden": "touched",
    "touched": "count",
    "exact": "count",
    "right": "found",
    "right_kind": "right",
    "characters_left": "characters",
    "grams_left": "grams",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The counts of one kind, as they were stored."""

    kind: str
    counts: Mapping[str, int]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Row:
        """Read a stored row.

        Raises:
            AuditError: if a count is missing, or a part is larger than its whole.
        """
        counts = {key: integer(data, key, low=0) for key in ROW}
        for part, whole in _WITHIN.items():
            if counts[part] > counts[whole]:
                msg = f"evidence {part!r} is larger than {whole!r}, of which it is a part."
                raise AuditError(msg, hint="The report was changed.")
        return cls(kind=text(data, "kind"), counts=counts)

    @property
    def recall(self) -> float:
        """Share of the labels that was hidden; 1 where there is none."""
        return self.counts["hidden"] / self.counts["count"] if self.counts["count"] else 1.0

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the exact interval of :attr:`recall`; all of [0, 1] without a label."""
        if not self.counts["count"]:
            return 0.0, 1.0
        return clopper_pearson(self.counts["hidden"], self.counts["count"], alpha=alpha)

    def to_dict(self, alpha: float) -> dict[str, object]:
        """Return what follows from the counts."""
        found = self.counts["found"]
        precision = None
        if found:
            low, high = clopper_pearson(self.counts["right"], found, alpha=alpha)
            precision = {"value": self.counts["right"] / found, "interval": [low, high]}
        recall = None
        if self.counts["count"]:
            recall = {
                "hidden": self.recall,
                "interval": list(self.interval(alpha)),
                "touched": self.counts["touched"] / self.counts["count"],
                "exact": self.counts["exact"] / self.counts["count"],
            }
        return {"recall": recall, "precision": precision}


def solid(piece: str) -> str:
    """Return the letters and digits of a text in a row, without their case."""
    return "".join(letter for letter in piece.casefold() if letter.isalnum())


def left_over(query: str, sent: str, taken: Sequence[Labelled]) -> list[str] | None:
    """Return the pieces of a query that were not taken out, if just these are in what was sent.

    Returns:
        One piece more than was taken out; None if what was taken out overlaps or is out of order,
        or if what was sent is not these pieces, in order, with something else in between.
    """
    pieces, done = [], 0
    for span in taken:
        if not done <= span.start < span.end <= len(query):
            return None
        pieces.append(query[done : span.start])
        done = span.end
    pieces.append(query[done:])
    if len(pieces) == 1:
        return pieces if sent == query else None
    first, *middle, last = pieces
    if not (sent.startswith(first) and sent.endswith(last)):
        return None
    place, end = len(first), len(sent) - len(last)
    for span, piece in zip(taken, [*middle, None], strict=True):
        # At least one character stands for what was taken out.
        after = end if piece is None else sent.find(piece, place + 1, end)
        if after <= place or _still_there(query, span, sent[place:after]):
            return None
        place = after + len(piece or "")
    return pieces


def _still_there(query: str, span: Labelled, instead: str) -> bool:
    """Tell whether what stands for something is, or holds, the thing itself.

    A word of the kind's name ("person") may stand in a placeholder, and so may a few characters.
    """
    taken = query[span.start : span.end]
    letters = solid(taken)
    telling = len(letters) > _FEW and letters not in solid(span.kind)
    return instead == taken or (telling and letters in solid(instead))


_FEW = 3


def _grams(letters: str) -> list[str]:
    """Return every run of :data:`GRAM` characters."""
    return [letters[k : k + GRAM] for k in range(len(letters) - GRAM + 1)]
