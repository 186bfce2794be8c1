"""How hard the search for a text behind a gradient tries, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared.validate import positive_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How hard the search tries.

    Attributes:
        beams: beginnings that are kept.
        width: next tokens that each of them tries.
        polished: grown texts that are improved further.
        passes: most passes over a text while improving it.
        pool: tokens tried at each place while improving.
    """

    beams: int = 8
    width: int = 32
    polished: int = 2
    passes: int = 4
    pool: int = 90

    def __post_init__(self) -> None:
        """Refuse numbers that are not positive."""
        positive_integer(
            beams=self.beams,
            width=self.width,
            polished=self.polished,
            passes=self.passes,
            pool=self.pool,
        )

    def evaluations(self, length: int) -> int:
        """Return the most gradients that one text of a length takes."""
        moves = 2 * length * length
        grown = 3 * self.beams * self.width * length // 2
        return grown + self.polished * self.passes * (moves + 4 * length * self.pool // 3)

    def shorter(self) -> SearchSettings:
        """Return what one of several texts gets: half the passes, over the best text alone."""
        return replace(self, polished=1, passes=max(1, self.passes // 2))
