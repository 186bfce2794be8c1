"""Placeholders for personal data, and the way back: what replaced what never leaves the device.

``<PERSON_1>`` stands for one piece of text through a whole session, so that a service can tell two
people apart without learning who they are. A text may already hold something that looks like a
placeholder; that is itself replaced (``<TEXT_1>``), so nothing in what leaves can be mistaken for
one of ours. The service's answer may write placeholders in its own way (lower case, other brackets,
none, a possessive); those are recognised. A placeholder that was never given out is reported and
left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from client.redaction.spans import Span, settle
from shared.errors import DataError

LITERAL = "TEXT"
"""Kind of what only looked like a placeholder."""

SCHEMA = 1

# Without brackets only with an underscore: "person 1" may be the service's own words.
_NAME = r"([A-Za-z]+(?:_[A-Za-z]+)*)"
_LIKE = re.compile(
    rf"(?:&lt;|<)\s*{_NAME}[_ -]?([0-9]{{1,9}})\s*(?:&gt;|>)"
    rf"|\[\s*{_NAME}[_ -]([0-9]{{1,9}})\s*\]"
    rf"|\{{\s*{_NAME}[_ -]([0-9]{{1,9}})\s*\}}"
    rf"|(?<![A-Za-z0-9_]){_NAME}_([0-9]{{1,9}})(?![A-Za-z0-9_])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redacted:
    """A query as it may leave the device.

    Args:
        text: the query with placeholders.
        spans: what was replaced, by its place in the original, in order.
        placeholders: the placeholder of each span.
    """

    text: str
    spans: tuple[Span, ...]
    placeholders: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Return how many pieces of each kind were replaced."""
        kinds = [span.kind for span in self.spans]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """An answer with the personal data back in place.

    Args:
        text: the answer; for the device's owner alone.
        restored: placeholders that were replaced, each once, in the order in which they were met.
        missing: placeholders of the query that the answer does not mention.
        unknown: what looks like a placeholder and was never given out; left as it stands.
    """

    text: str = field(repr=False)
    restored: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


class Session:
    """What stands for what, in one conversation.

    Args:
        known: texts by placeholder, as :meth:`to_dict` of an earlier session gave them.
        last: the placeholders of its last query.
    """

    def __init__(self, known: Mapping[str, str] | None = None, *, last: Iterable[str] = ()) -> None:
        self._texts: dict[str, str] = dict(known or {})
        self._names = {(_kind_of(name), text): name for name, text in self._texts.items()}
        self._last: tuple[str, ...] = tuple(last)

    def __repr__(self) -> str:
        """Return how much is kept; never what."""
        return f"Session({len(self._texts)} placeholders)"

    def redact(self, text: str, spans: Iterable[Span]) -> Redacted:
        """Replace pieces of a text.

        Args:
            text: the query.
            spans: what to replace; may overlap.
        """
        found = _with_literals(text, settle(spans))
        names, pieces, done = [], [], 0
        for span in found:
            name = self._name(span.kind, text[span.start : span.end])
            names.append(name)
            pieces += [text[done : span.start], name]
            done = span.end
        self._last = tuple(dict.fromkeys(names))
        return Redacted(
            text="".join((*pieces, text[done:])), spans=tuple(found), placeholders=tuple(names)
        )

    def restore(self, answer: str) -> Restored:
        """Put the personal data back into an answer.

        ``missing`` is about the last query that was redacted.
        """
        used: dict[str, None] = {}
        unknown: dict[str, None] = {}

        def back(match: re.Match[str]) -> str:
            kind, number = (part for part in match.groups() if part is not None)
            name = f"<{kind.upper()}_{number}>"
            if name in self._texts:
                used[name] = None
                return self._texts[name]
            unknown[match.group()] = None
            return match.group()

        text = _LIKE.sub(back, answer)
        return Restored(
            text=text,
            restored=tuple(used),
            missing=tuple(name for name in self._last if name not in used),
            unknown=tuple(unknown),
        )

    def values(self, kind: str) -> tuple[str, ...]:
        """Return every text of a kind that was replaced so far."""
        return tuple(text for (known, text) in self._names if known == kind)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form. It holds the personal data: keep it on the device."""
        return {"schema": SCHEMA, "placeholders": dict(self._texts), "last": list(self._last)}

    @classmethod
    def from_dict(cls, data: object) -> Session:
        """Read the JSON form.

        Raises:
            DataError: if it is not one.
        """
        if isinstance(data, Mapping) and data.get("schema") == SCHEMA:
            known, last = data.get("placeholders"), data.get("last")
            if isinstance(known, Mapping) and isinstance(last, list) and _whole(known, last):
                return cls(known, last=last)
        msg = "the file is not a map of placeholders."
        raise DataError(msg, hint="Give the file that `fedslm client redact --map` wrote.")

    def _name(self, kind: str, text: str) -> str:
        """Return the placeholder of a text, a new one if it has none."""
        key = (kind, text)
        if key not in self._names:
            number = 1 + sum(known == kind for known, _ in self._names)
            name = f"<{kind}_{number}>"
            self._names[key] = name
            self._texts[name] = text
        return self._names[key]


_OURS = re.compile(r"<[A-Z]+(?:_[A-Z]+)*_[1-9][0-9]*>")


def _whole(known: Mapping[str, str], last: list[str]) -> bool:
    """Tell whether a map holds texts by placeholders, no text twice under one kind, no gap.

    A gap in the numbers would give out a placeholder a second time.
    """
    good = all(
        isinstance(name, str) and isinstance(text, str) and _OURS.fullmatch(name)
        for name, text in known.items()
    )
    if not good or len({(_kind_of(name), text) for name, text in known.items()}) < len(known):
        return False
    kinds = [_kind_of(name) for name in known]
    numbered = {f"<{kind}_{k + 1}>" for kind in set(kinds) for k in range(kinds.count(kind))}
    return numbered == set(known) and all(name in known for name in last)


def _kind_of(name: str) -> str:
    """Return the kind in a placeholder."""
    return name[1:-1].rpartition("_")[0]


def _with_literals(text: str, spans: list[Span]) -> list[Span]:
    """Add spans for what would look like a placeholder of ours beside the placeholders.

    Looked at is what would be sent, since taking something out may leave a placeholder-like rest.
    """
    while True:
        sent, origin = "", list[int | None]()
        done = 0
        for span in spans:
            sent += text[done : span.start] + _STAND_IN
            origin += [*range(done, span.start), *[None] * len(_STAND_IN)]
            done = span.end
        sent += text[done:]
        origin += range(done, len(text))
        literal = {
            place
            for match in _LIKE.finditer(sent)
            for place in origin[match.start() : match.end()]
            if place is not None
        }
        if not literal:
            return spans
        spans = sorted([*spans, *_runs(literal, spans)], key=lambda span: span.start)


_STAND_IN = "<X_1>"


def _runs(places: set[int], spans: list[Span]) -> list[Span]:
    """Return places as spans, each as long as it can be without a gap or a given span's border."""
    borders = {span.start for span in spans} | {span.end for span in spans}
    starts = [p for p in sorted(places) if p - 1 not in places or p in borders]
    ends = [p + 1 for p in sorted(places) if p + 1 not in places or p + 1 in borders]
    return [Span(start=a, end=b, kind=LITERAL) for a, b in zip(starts, ends, strict=True)]
