"""How easily a model gives a text away, from one reading of it: no sampling is needed.

Greedy decoding writes exactly the tokens of rank 0, so a reading tells what greedy decoding would
have written after every prefix (Carlini et al., "Quantifying Memorization Across Neural Language
Models", 2022). Sampling among the 40 likeliest tokens at temperature 1 writes the text with a
probability that follows from the same reading, and with it the number of tries that an attacker
needs (Hayes et al., "Measuring memorization through probabilistic discoverable extraction", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions

from server.audit import evidence as stored
from server.audit.target import TOP_K, Reading
from shared import validate
from shared.errors import AuditError, InvalidValue

SETTINGS: tuple[tuple[int, float], ...] = ((1_000, 0.1), (1_000, 0.5), (1_000_000, 0.5))
"""Tries, and the chance that one of them gives the text; the first is what is tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a reading of one text tells about extracting it.

    Args:
        tokens: scored tokens.
        hits: how many of them greedy decoding would write after all before them.
        tail: tokens at the end that greedy decoding writes by itself once it has seen those before.
        log_p: logarithm of the probability that one sample is the text; None if it cannot be, for
            want of a token among the :data:`~server.audit.target.TOP_K` likeliest.
    """

    tokens: int
    hits: int
    tail: int
    log_p: float | None

    def __post_init__(self) -> None:
        """Refuse counts that no text has.

        Raises:
            AuditError: unless ``0 <= tail <= hits <= tokens``, with at least one token, and
                ``log_p`` is at most 0.
        """
        possible = 0 <= self.tail <= self.hits <= self.tokens and self.tokens >= 1
        if not (possible and (self.log_p is None or self.log_p <= 0)):
            msg = "a trace has counts or a probability that no text has."
            raise AuditError(msg, hint="The report was changed or written by another version.")

    @classmethod
    def of(cls, reading: Reading) -> Trace:
        """Return the trace of a reading."""
        hit = reading.rank == 0
        missed = np.flatnonzero(~hit)
        possible = bool(np.all(reading.rank < TOP_K))
        log_p = float((reading.log_probability - reading.log_mass).sum()) if possible else None
        return cls(
            tokens=hit.size,
            hits=int(np.count_nonzero(hit)),
            tail=int(hit.size - 1 - missed[-1]) if missed.size else hit.size,
            log_p=None if log_p is None else min(0.0, log_p),
        )

    @property
    def greedy(self) -> bool:
        """Whether greedy decoding writes the whole text after its prompt."""
        return self.tail == self.tokens

    @property
    def strength(self) -> float:
        """Extraction strength: the largest share of the text that greedy decoding completes."""
        return self.tail / self.tokens

    @property
    def memorized(self) -> float:
        """Exact memorization: the share of tokens that greedy decoding would write."""
        return self.hits / self.tokens

    def greedy_after(self, shown: int) -> bool:
        """Tell whether greedy decoding completes the text once ``shown`` of its tokens are seen.

        Of a text that is not longer than that nothing is left to extract, which is no success.
        """
        return shown < self.tokens and self.tail >= self.tokens - shown

    def discoverable(self, tries: int, chance: float) -> bool:
        """Tell whether so many samples give the text with so much chance."""
        return self.log_p is not None and queries_needed(self.log_p, chance) <= tries


def queries_needed(log_p: float, chance: float) -> float:
    """Return how many samples give a text at least once with some chance.

    The smallest integer ``n >= ln(1 - chance) / ln(1 - p)``.

    Args:
        log_p: natural logarithm of the probability of the text in one sample, at most 0.
        chance: in (0, 1).

    Returns:
        At least 1; infinite where it is too large for a float.

    Raises:
        InvalidValue: for a probability or chance outside its range.
    """
    validate.open_unit(chance=chance)
    if not log_p <= 0:
        msg = f"log_p={log_p!r}, expected at most 0."
        raise InvalidValue(msg)
    if log_p == 0:
        return 1.0
    wanted = -math.log1p(-chance)
    if log_p > -600:
        # 1 - p by expm1, so that p next to 1 keeps its digits; log1p does so for a tiny p.
        p = math.exp(log_p)
        each = -math.log(-math.expm1(log_p)) if p > 0.5 else -math.log1p(-p)
        return float(max(1, math.ceil(wanted / each)))
    return math.inf if math.log(wanted) - log_p > 700 else math.exp(math.log(wanted) - log_p)


def store(traces: Sequence[Trace]) -> dict[str, list[Any]]:
    """Return traces as evidence holds them."""
    return {
        "tokens": [trace.tokens for trace in traces],
        "hits": [trace.hits for trace in traces],
        "tail": [trace.tail for trace in traces],
        "log_p": [None if t.log_p is None else round(t.log_p, 6) + 0.0 for t in traces],
    }


def restore(evidence: Mapping[str, Any], key: str) -> list[Trace]:
    """Read traces from evidence.

    Raises:
        AuditError: if the key does not hold what :func:`store` wrote.
    """
    entry = stored.mapping(evidence, key)
    columns = [stored.sequence(entry, name) for name in ("tokens", "hits", "tail", "log_p")]
    if len({len(column) for column in columns}) != 1:
        msg = f"evidence {key!r} has columns of different lengths."
        raise AuditError(msg)
    return [
        Trace(
            tokens=stored.integer({key: tokens}, key, low=1),
            hits=stored.integer({key: hits}, key, low=0),
            tail=stored.integer({key: tail}, key, low=0),
            log_p=None if log_p is None else stored.number({key: log_p}, key, high=0.0),
        )
        for tokens, hits, tail, log_p in zip(*columns, strict=True)
    ]


def found(traces: Sequence[Trace]) -> list[bool]:
    """Return which texts are extractable in the setting that is tested."""
    return [trace.discoverable(*SETTINGS[0]) for trace in traces]


def summary(traces: Sequence[Trace]) -> dict[str, object]:
    """Return counts and means over traces; nothing per text."""
    count = len(traces)
    totals: dict[str, object] = {"count": count, "greedy": sum(trace.greedy for trace in traces)}
    for shown in (1, 2, 3):
        totals[f"greedy_after_{shown}"] = sum(trace.greedy_after(shown) for trace in traces)
    totals["greedy_after_half"] = sum(t.greedy_after((t.tokens + 1) // 2) for t in traces)
    for tries, chance in SETTINGS:
        totals[f"discoverable_{tries}_{chance:g}"] = sum(
            trace.discoverable(tries, chance) for trace in traces
        )
    totals["extraction_strength"] = sum(trace.strength for trace in traces) / max(1, count)
    totals["exact_memorization"] = sum(trace.memorized for trace in traces) / max(1, count)
    likeliest = [trace.log_p for trace in traces if trace.log_p is not None]
    totals["largest_log_p"] = max(likeliest, default=None)
    return totals


def stratified_p_value(tables: Sequence[tuple[int, int, int, int]]) -> float:
    """Return the exact one-sided p-value of "members are found no more often", over strata.

    Within each stratum the number of members among those found is hypergeometric, given both
    margins; the total over strata is their convolution. One stratum gives Fisher's exact test.

    Args:
        tables: for each stratum, members found, members, others found, others.

    Raises:
        InvalidValue: for more found than there are.
    """
    density, observed = np.ones(1), 0
    for hits, members, others_hit, others in tables:
        if not (0 <= hits <= members and 0 <= others_hit <= others):
            msg = f"found={hits} and {others_hit}, expected at most {members} and {others}."
            raise InvalidValue(msg)
        counts = np.arange(members + 1)
        term = distributions.hypergeom.pmf(counts, members + others, hits + others_hit, members)
        density = np.convolve(density, np.nan_to_num(term) if members + others else np.ones(1))
        observed += hits
    return float(min(1.0, density[observed:].sum())) if observed else 1.0


def mcnemar_p_value(with_adapter: Sequence[bool], without: Sequence[bool]) -> float:
    """Return the exact one-sided p-value of "the adapter gives away no more than the base".

    McNemar's test on the texts that only one of the two gives away.
    """
    more = sum(a and not b for a, b in zip(with_adapter, without, strict=True))
    less = sum(b and not a for a, b in zip(with_adapter, without, strict=True))
    return float(distributions.binom.sf(more - 1, more + less, 0.5)) if more + less else 1.0
