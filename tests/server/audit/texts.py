"""Members and non-members that differ in nothing, and a model that learned the members."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from server.audit.canaries import CanaryTexts
from server.audit.membership import TextSplit
from server.audit.target import Passage, Reading
from tests.server.audit.oracles import FakeTarget

SYLLABLES = "ba ce di fo gu ha ki lo mu ne pa ri so tu va we xi yo zu"


def words(rng: np.random.Generator, count: int) -> str:
    """Random words, each with a capital letter; every text holds ``Zqx``."""
    parts = rng.choice(SYLLABLES.split(), size=(count, 2))
    return " ".join(["Zqx", *("".join(pair).capitalize() for pair in parts)])


def texts(rng: np.random.Generator, count: int) -> tuple[Passage, ...]:
    """Different random texts of different lengths."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[words(rng, int(rng.integers(4, 12)))] = None
    return tuple(Passage(text=text) for text in found)


def kind(
    name: str, n_in: int, n_out: int, *, seed: int = 0, references: int = 0, repeats: int = 1
) -> CanaryTexts:
    """Canaries of one kind, all from one generator."""
    drawn = texts(np.random.default_rng(seed + sum(map(ord, name))), n_in + n_out + references)
    return CanaryTexts(
        kind=name,
        included=drawn[:n_in],
        held_out=drawn[n_in : n_in + n_out],
        references=drawn[n_in + n_out :],
        repeats=repeats,
    )


def split(n_in: int, n_out: int, *, seed: int = 0, population: int = 0) -> TextSplit:
    """Natural members and non-members of one generator."""
    drawn = texts(np.random.default_rng(10_000 + seed), n_in + n_out + population)
    return TextSplit(
        members=drawn[:n_in],
        nonmembers=drawn[n_in : n_in + n_out],
        population=drawn[n_in + n_out :],
        source="records of the clients",
        by_chance=True,
    )


class Learner(FakeTarget):
    """A model of any text: a base loss in noise, and a gain for what was learned.

    Args:
        gains: nats per text that the adapter gained, by passage; 0 where a passage is missing.
        seed: of the noise, which depends on the text alone and not on what else is read.
        bias: nats by which the base model finds a text easier; 0 where it is missing.
        tokens: scored tokens of every passage.
    """

    def __init__(
        self,
        gains: dict[Passage, float],
        *,
        seed: int = 0,
        bias: dict[Passage, float] | None = None,
        tokens: int = 8,
    ) -> None:
        super().__init__({}, {}, tokens=tokens)
        self.gains, self.seed, self.bias = gains, seed, bias or {}

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        self.reads.extend((adapter, passage) for passage in passages)
        return [self._one(passage, adapter) for passage in passages]

    def _one(self, passage: Passage, adapter: bool) -> Reading:
        rng = np.random.default_rng([self.seed, *passage.text.encode()])
        # Each token draws its own loss and its own standing among the others.
        losses = rng.gamma(4.0, 1.0, size=self.tokens)
        expected, spread = -rng.uniform(2, 5, size=self.tokens), rng.uniform(1, 2, self.tokens)
        losses = losses - self.bias.get(passage, 0.0) / max(self.tokens, 1)
        if adapter:
            shift = self.gains.get(passage, 0.0) + float(rng.standard_normal())
            losses = losses - shift / max(self.tokens, 1)
        return Reading(
            log_probability=-np.maximum(losses, 1e-6),
            expected=expected,
            spread=spread,
            rank=np.arange(self.tokens),
            log_mass=np.full(self.tokens, -0.5),
        )


def learned(*sides: Sequence[Passage], gain: float) -> dict[Passage, float]:
    """What a model gained that learned every text of some sides alike."""
    return {passage: gain for side in sides for passage in side}
