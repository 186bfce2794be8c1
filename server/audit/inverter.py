"""What the inversion audit attacks: updates whose texts are known, and a search for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TypeAlias

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What one attack gave; tokens of private text, so its ``repr`` shows nothing.

    Args:
        truth: the texts behind the update, without what all texts begin with.
        found: what the attack says they are, as many.
        guess: what the model writes by itself, the text that could be had without the update.
        others: texts of other clients, at least as many as behind the update.
    """

    truth: tuple[Tokens, ...] = field(repr=False)
    found: tuple[Tokens, ...] = field(repr=False)
    guess: Tokens = field(repr=False)
    others: tuple[Tokens, ...] = field(repr=False)


class Inverter(ABC):
    """Updates of single clients, an attack that looks for their texts, and those texts."""

    @property
    @abstractmethod
    def mode(self) -> str:
        """Return the privacy mode of the run."""

    @property
    @abstractmethod
    def factors(self) -> str:
        """Return which LoRA factors travel: ``"AB"`` or ``"B"``."""

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """Return what can be attacked: ``plain``, ``clipped``, ``noised``, ``summed``."""

    @property
    @abstractmethod
    def sent(self) -> str:
        """Return the arm that a server of this run sees."""

    @property
    @abstractmethod
    def clients(self) -> int:
        """Return how many clients can be looked at."""

    @property
    @abstractmethod
    def largest_batch(self) -> int:
        """Return how many texts every client has at least."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Return how many tokens of a text are trained on and looked for."""

    @property
    @abstractmethod
    def together(self) -> int:
        """Return over how many clients the arm ``summed`` sums, one text each."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Return the most gradients that looking for one text takes."""

    @abstractmethod
    def attack(self, arm: str, number: int, *, batch: int) -> Recovered:
        """Attack one update of one step on ``batch`` texts of a client."""

    @abstractmethod
    def control(self, number: int) -> Recovered:
        """Attack a plain update of one text that is as short as this attack likes it."""
