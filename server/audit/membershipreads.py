"""Reading both sides of a set of texts, and scoring what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.audit import blind, scores
from server.audit.canaries import MIN_CANARIES
from server.audit.evidence import stored
from server.audit.protocol import Floats
from server.audit.target import Passage, Reading, Target
from shared.errors import AuditError
from shared.seeding import data_rng

POPULATION = 256
"""Most texts that RMIA compares with."""

_LEAST_POPULATION = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Texts that are scored together.

    Args:
        name: kind of the canaries, or ``"natural"``.
        source: where they come from, in words.
        members: what was trained on.
        nonmembers: what was not.
        population: further texts that were not; may be empty.
        planted: whether they are canaries.
        by_chance: whether the program itself drew the sides.
        repeats: copies of a member in training.
        one_client: whether each canary is alone in its client and in one client only.
    """

    name: str
    source: str
    members: tuple[Passage, ...]
    nonmembers: tuple[Passage, ...]
    population: tuple[Passage, ...]
    planted: bool
    by_chance: bool
    repeats: int = 1
    one_client: bool = True


def measure_sides(sides: Sides, target: Target, seed: int) -> dict[str, Any]:
    """Score one set of texts.

    Args:
        sides: at least :data:`MIN_CANARIES` texts on either side.
        target: the model under audit.
        seed: of the halves of the blind attack, and of what is set aside.

    Returns:
        The evidence of the set, with every list of scores sorted.

    Raises:
        AuditError: if the model answers nonsense.
    """
    rng = data_rng(seed, "membership-blind", sides.name)
    read = {
        name: _Read.of(target, passages)
        for name, passages in (("in", sides.members), ("out", sides.nonmembers))
    }
    found = {name: one.plain_scores() for name, one in read.items()}
    pairs = {score: (found["in"][score], found["out"][score]) for score in scores.SCORES[:-1]}
    if not any(one.changed for one in read.values()):
        del pairs["lowercase"]
    population = _rmia(sides, target, read, rng)
    if population is not None:
        pairs["rmia"] = population
    folds = blind.word_scores(
        [_whole(passage) for passage in sides.members],
        [_whole(passage) for passage in sides.nonmembers],
        rng=rng,
        smallest=MIN_CANARIES,
    )
    return {
        "name": sides.name,
        "source": sides.source,
        "planted": sides.planted,
        "by_chance": sides.by_chance,
        "one_client": sides.one_client,
        "repeats": sides.repeats,
        "scores": {score: _pair(*pair) for score, pair in pairs.items()},
        "blind_loss": _pair(read["in"].base_loss(), read["out"].base_loss()),
        "blind_words": [_pair(fold.members, fold.nonmembers) for fold in folds],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One side as the adapter, the base, and the adapter in lower case took it."""

    passages: tuple[Passage, ...]
    tuned: list[Reading]
    base: list[Reading]
    lowered: list[Reading]
    changed: int

    @classmethod
    def of(cls, target: Target, passages: tuple[Passage, ...]) -> _Read:
        """Read one side; texts without a capital letter are not read again."""
        tuned = _readings(target, passages, adapter=True)
        lower = [Passage(text=p.text.lower(), prompt=p.prompt) for p in passages]
        changed = [i for i, (p, q) in enumerate(zip(passages, lower, strict=True)) if p != q]
        again = _readings(target, [lower[i] for i in changed], adapter=True)
        lowered = list(tuned)
        for i, reading in zip(changed, again, strict=True):
            lowered[i] = reading
        return cls(
            passages=passages,
            tuned=tuned,
            base=_readings(target, passages, adapter=False),
            lowered=lowered,
            changed=len(changed),
        )

    def plain_scores(self) -> dict[str, Floats]:
        """Return every score that needs nothing but the text itself."""
        rows = [
            (
                scores.reference(tuned, base),
                scores.mean_log_probability(tuned),
                scores.zlib_ratio(tuned, passage.text),
                scores.lowercase(tuned, lowered),
                scores.min_k(tuned),
                scores.min_k_plus(tuned),
            )
            for passage, tuned, base, lowered in zip(
                self.passages, self.tuned, self.base, self.lowered, strict=True
            )
        ]
        return dict(zip(scores.SCORES, np.array(rows, dtype=np.float64).T, strict=False))

    def base_loss(self) -> Floats:
        """Return the mean log-probability of each text under the base model alone."""
        return np.array([scores.mean_log_probability(reading) for reading in self.base])


def _rmia(
    sides: Sides, target: Target, read: dict[str, _Read], rng: np.random.Generator
) -> tuple[Floats, Floats] | None:
    """Return RMIA's scores of both sides, with the base model as the one reference.

    The population is apart from both sides. Without one, a random quarter of the non-members is
    set aside for it, which leaves members and the other non-members as exchangeable as before.
    """
    inside, outside = _ratios(read["in"]), _ratios(read["out"])
    if len(sides.population) >= _LEAST_POPULATION:
        return _compared(inside, outside, _ratios(_Read.of(target, sides.population)))
    apart = min(outside.size // 4, POPULATION)
    if not (apart >= _LEAST_POPULATION and outside.size - apart >= MIN_CANARIES):
        return None
    order = rng.permutation(outside.size)
    return _compared(inside, outside[order[apart:]], outside[order[:apart]])


def _compared(inside: Floats, outside: Floats, population: Floats) -> tuple[Floats, Floats]:
    """Return both sides' shares of the population."""
    return scores.rmia(inside, population), scores.rmia(outside, population)


def _ratios(read: _Read) -> Floats:
    """Return RMIA's likelihood ratio of each text."""
    tuned, base = (
        np.exp([scores.mean_log_probability(reading) for reading in side]).clip(max=1.0)
        for side in (read.tuned, read.base)
    )
    return scores.likelihood_ratio(tuned, base[None])


def _readings(target: Target, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
    """Read passages and check what came back.

    Raises:
        AuditError: for a missing reading, one without a token, or numbers that are not finite.
    """
    found = target.read(passages, adapter=adapter)
    bad = sum(
        not (
            one.log_probability.size
            and all(np.isfinite(c).all() for c in (one.log_probability, one.expected, one.spread))
        )
        for one in found
    )
    if len(found) != len(passages) or bad:
        msg = f"{len(found)} readings of {len(passages)} texts, {bad} of them empty or not finite."
        raise AuditError(msg, hint="The adapter has probably diverged; lower the learning rate.")
    return found


def _whole(passage: Passage) -> str:
    """Return prompt and text, which a blind attacker knows both."""
    return f"{passage.prompt}\n{passage.text}"


def _pair(inside: Floats, outside: Floats) -> dict[str, list[float]]:
    """Return two sides as evidence holds them: rounded and sorted."""
    return {"in": stored(np.sort(inside)), "out": stored(np.sort(outside))}
