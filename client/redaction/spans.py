"""Where personal data stands in a text, and of what kind it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of a text that is personal data.

    Args:
        start: index of its first character.
        end: index after its last character; greater than ``start``.
        kind: its type, in capitals: ``"PERSON"``.
        score: how sure the finder is, from 0 to 1; orders overlapping spans.
    """

    start: int
    end: int
    kind: str
    score: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty span and a kind that cannot name a placeholder.

        Raises:
            InvalidValue: if so.
        """
        if not 0 <= self.start < self.end:
            msg = f"span start={self.start} end={self.end}, expected 0 <= start < end."
            raise InvalidValue(msg)
        letters = self.kind.replace("_", "")
        if not (letters.isascii() and letters.isalpha() and letters.isupper()):
            msg = "the kind of a span is not made of capital letters and underscores."
            raise InvalidValue(msg)


class Finder(Protocol):
    """Something that finds personal data in a text."""

    def find(self, text: str) -> Sequence[Span]:
        """Return where personal data stands; spans may overlap and come in any order."""


def settle(spans: Iterable[Span]) -> list[Span]:
    """Return spans that do not overlap and cover every character that the given ones cover.

    Where spans overlap, the surest keeps its extent and names the kind; of equally sure ones the
    longer, then the earlier. What sticks out of another is kept as a span of its own, so that
    nothing that anybody found is left open.
    """
    kept: list[Span] = []
    order = sorted(spans, key=lambda span: (-span.score, span.start - span.end, span.start))
    for span in order:
        pieces = [(span.start, span.end)]
        for other in kept:
            pieces = [
                piece
                for start, end in pieces
                for piece in ((start, min(end, other.start)), (max(start, other.end), end))
                if piece[0] < piece[1]
            ]
        kept += [
            Span(start=start, end=end, kind=span.kind, score=span.score) for start, end in pieces
        ]
    return sorted(kept, key=lambda span: span.start)
