"""How long an answer took and how much memory its process has used at most."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_KIBIBYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Wall time of one answer; loading the model is not in it.

    Attributes:
        first_token_seconds: from the question to its first token, tokenising included; None if
            the answer was cut off before.
        tokens_per_second: of the tokens after the first; None for fewer than two.
        seconds: from the question to the end of the answer.
    """

    first_token_seconds: float | None
    tokens_per_second: float | None
    seconds: float

    @classmethod
    def of(cls, marks: Sequence[float], end: float) -> Latency:
        """Compute it from the times, in seconds, of the question and of every token chosen.

        Args:
            marks: the question's, then one for each token, ascending.
            end: of the answer.
        """
        start, tokens = marks[0], marks[1:]
        between = tokens[-1] - tokens[0] if len(tokens) > 1 else 0.0
        return cls(
            first_token_seconds=tokens[0] - start if tokens else None,
            tokens_per_second=(len(tokens) - 1) / between if between > 0 else None,
            seconds=end - start,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the memory of this process beside it."""
        return {
            "first_token_seconds": self.first_token_seconds,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def line(self) -> str:
        """Return it as one line for people."""
        first, rate = self.first_token_seconds, self.tokens_per_second
        return (
            f"first token {'none' if first is None else f'{1000 * first:.0f} ms'}, "
            f"{'no rate' if rate is None else f'{rate:.1f} tokens/s'}, "
            f"{self.seconds:.2f} s in all, peak {peak_rss_bytes() / 2**20:.0f} MiB"
        )


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process since it began, libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIBIBYTES
