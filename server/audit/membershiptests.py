"""What follows from the scores of the membership audit: tests, intervals, rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from server.audit import stats
from server.audit.canaries import MIN_CANARIES
from server.audit.evidence import boolean, integer, mapping, mappings, numbers, text
from server.audit.permutation import permutation_p_values
from server.audit.protocol import Floats, Terms
from server.audit.scores import PRIMARY, PRIMARY_OF_CANARIES, SCORES
from server.audit.verdict import bound_for
from shared.errors import AuditError
from shared.seeding import derive_seed

FALSE_POSITIVE_RATES = (0.1, 0.01, 0.001)
BLIND_ALPHA = 0.01
"""Chance that sides of one population are said to differ, over all blind tests together."""

PREFERRED = ("rare-token", "secret", "natural")
"""Which set gives the value, fixed beforehand: the first that is there and not in doubt."""

Pair: TypeAlias = tuple[Floats, Floats]
Key: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSet:
    """The scores of one set of texts, as evidence holds them.

    Args:
        name: kind of the canaries, or ``"natural"``.
        source: where the texts come from, in words.
        planted: whether they are canaries.
        by_chance: whether the program itself drew the sides.
        one_client: whether each canary is alone in its client and in one client only.
        repeats: copies of a member in training.
        scores: by score, members and non-members; always with the primary one.
        blind_loss: mean log-probability under the base model alone.
        blind_words: scores from words and lengths, by half.
    """

    name: str
    source: str
    planted: bool
    by_chance: bool
    one_client: bool
    repeats: int
    scores: Mapping[str, Pair]
    blind_loss: Pair
    blind_words: tuple[Pair, ...]

    @property
    def primary_score(self) -> str:
        """The score that was chosen beforehand for texts like these."""
        return PRIMARY_OF_CANARIES if self.planted else PRIMARY

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> ScoredSet:
        """Read one set of the evidence.

        Raises:
            AuditError: if a key is missing or malformed, a score is unknown, the primary score is
                missing, or a side is too small.
        """
        found = mapping(entry, "scores")
        known = {name: _pair(found, name) for name in SCORES if name in found}
        primary = PRIMARY_OF_CANARIES if boolean(entry, "planted") else PRIMARY
        if primary not in known or len(known) != len(found):
            msg = f"evidence 'scores' has {len(found)} scores, expected {primary!r} and known ones."
            raise AuditError(msg)
        return cls(
            name=text(entry, "name"),
            source=text(entry, "source"),
            planted=boolean(entry, "planted"),
            by_chance=boolean(entry, "by_chance"),
            one_client=boolean(entry, "one_client"),
            repeats=integer(entry, "repeats", low=1),
            scores=known,
            blind_loss=_pair(entry, "blind_loss"),
            blind_words=tuple(
                _pair({"blind_words": fold}, "blind_words")
                for fold in mappings(entry, "blind_words")
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """One set with its corrected p-values.

    Args:
        scored: the set.
        p_values: by score.
        blind: by blind attack.
        allowed: the largest AUC that the claim allows; None if it does not speak of these texts.
        interval: of the primary score's AUC, at ``1 - alpha``.
        corrected: the same, corrected for the number of sets.
    """

    scored: ScoredSet
    p_values: Mapping[str, float]
    blind: Mapping[str, float]
    allowed: float | None
    interval: tuple[float, float]
    corrected: tuple[float, float]

    @property
    def differs(self) -> bool:
        """Whether the sides can be told apart without the adapter."""
        return any(p < BLIND_ALPHA for p in self.blind.values())

    @property
    def above(self) -> bool:
        """Whether the attack does better than the claim allows, as far as an interval can say."""
        return self.allowed is not None and self.corrected[0] > self.allowed

    @property
    def primary(self) -> Pair:
        """The scores that were chosen beforehand."""
        return self.scored.scores[self.scored.primary_score]

    @property
    def auc(self) -> float:
        """AUC of the primary score."""
        return stats.auc(*self.primary)

    @property
    def blind_auc(self) -> float:
        """AUC of the base model alone."""
        return stats.auc(*self.scored.blind_loss)

    def detected(self, alpha: float) -> list[str]:
        """Return the scores that tell the sides apart."""
        return [name for name in SCORES if self.p_values.get(name, 1.0) < alpha]

    def rates(self, alpha: float) -> list[stats.TprAtFpr]:
        """Return how many members are found at each false positive rate."""
        return _rates(self.primary, alpha)

    def to_dict(self, terms: Terms) -> dict[str, Any]:
        """Return what was worked out, for the report."""
        words = [stats.auc(*pair) for pair in self.scored.blind_words]
        return {
            "primary_score": self.scored.primary_score,
            "auc_allowed": self.allowed,
            "differs_without_training": self.differs,
            "blind": {
                "base_loss": {"auc": self.blind_auc, "p_value": self.blind["base_loss"]},
                "words": {
                    "auc": float(np.mean(words)) if words else None,
                    "p_value": self.blind.get("words"),
                },
            },
            "scores": {
                name: _score(pair, self.p_values[name], terms)
                for name, pair in self.scored.scores.items()
            },
        }


def run_tests(sets: Sequence[ScoredSet], terms: Terms) -> list[Tested]:
    """Test every score on every set, and every blind attack.

    Args:
        sets: at least one.
        terms: claim, alpha and seed.

    Returns:
        The sets in order, with p-values that are corrected over all sets and scores (Holm), those
        of the blind attacks apart from the others.
    """
    raw = {
        (place, name): pair for place, one in enumerate(sets) for name, pair in one.scores.items()
    }
    blind = {(place, name): pair for place, one in enumerate(sets) for name, pair in _blind(one)}
    seed = derive_seed(terms.seed, "membership")
    found = permutation_p_values({**raw, **blind}, seed=seed)
    p_values = _corrected({key: found[key] for key in raw})
    blind_p_values = _corrected(_joined({key: found[key] for key in blind}))
    return [
        Tested(
            scored=one,
            p_values={name: p_values[place, name] for name in one.scores},
            blind={name: p for (at, name), p in blind_p_values.items() if at == place},
            allowed=_allowed(one, terms),
            interval=stats.auc_interval(*one.scores[one.primary_score], alpha=terms.alpha),
            corrected=stats.auc_interval(
                *one.scores[one.primary_score], alpha=terms.alpha / len(sets)
            ),
        )
        for place, one in enumerate(sets)
    ]


def _blind(one: ScoredSet) -> list[tuple[str, Pair]]:
    """Return the blind tests of a set, each with one side.

    The base model may find either side likelier, so there is a test for each direction; the word
    classifier has one for each half.
    """
    inside, outside = one.blind_loss
    words = [(f"words {half}", pair) for half, pair in enumerate(one.blind_words)]
    return [("base_loss high", (inside, outside)), ("base_loss low", (outside, inside)), *words]


def _joined(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return one p-value per blind attack: the smallest of its tests, times their number."""
    tests: dict[Key, list[float]] = {}
    for (place, name), p_value in p_values.items():
        tests.setdefault((place, name.split()[0]), []).append(p_value)
    return {key: min(1.0, len(found) * min(found)) for key, found in tests.items()}


def _corrected(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return Holm's step-down p-values under the same keys."""
    adjusted = stats.holm(np.array(list(p_values.values())))
    return dict(zip(p_values, adjusted.tolist(), strict=True))


def _allowed(one: ScoredSet, terms: Terms) -> float | None:
    """Return the largest AUC that the claim allows on a set; None if it says nothing about it.

    It speaks of canaries that one coin each put into one client each, and of nothing else.
    """
    bound = bound_for(terms.claim, repeats=one.repeats)
    if not (one.planted and one.by_chance and one.one_client):
        return None
    if bound.epsilon is None or bound.delta is None:
        return None
    return stats.largest_auc(bound.epsilon, bound.delta)


def preferred(tested: Sequence[Tested]) -> Tested:
    """Return the set that gives the value: the first of :data:`PREFERRED`, else the first."""
    by_name = {one.scored.name: one for one in reversed(tested)}
    return next((by_name[name] for name in PREFERRED if name in by_name), tested[0])


def _score(pair: Pair, p_value: float, terms: Terms) -> dict[str, Any]:
    """Return what was worked out about one score on one set."""
    return {
        "auc": stats.auc(*pair),
        "interval": list(stats.auc_interval(*pair, alpha=terms.alpha)),
        "p_value": p_value,
        "detected": p_value < terms.alpha,
        "tpr_at_fpr": [rate.to_dict() for rate in _rates(pair, terms.alpha)],
    }


def _rates(pair: Pair, alpha: float) -> list[stats.TprAtFpr]:
    """Return how many members one score finds at each false positive rate."""
    return [stats.tpr_at_fpr(*pair, fpr=fpr, alpha=alpha) for fpr in FALSE_POSITIVE_RATES]


def _pair(entry: Mapping[str, Any], key: str) -> Pair:
    """Return both sides of a score.

    Raises:
        AuditError: if a side is malformed or too small.
    """
    both = mapping(entry, key)
    inside, outside = numbers(both, "in"), numbers(both, "out")
    if not min(inside.size, outside.size) >= MIN_CANARIES:
        msg = (
            f"evidence {key!r} has {inside.size} and {outside.size} scores, expected at least "
            f"{MIN_CANARIES} each."
        )
        raise AuditError(msg)
    return inside, outside
