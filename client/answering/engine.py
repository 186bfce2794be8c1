"""What every runtime that answers can do, and how the next token is chosen from its numbers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared import validate
from shared.errors import AdapterCorrupt, InvalidValue

if TYPE_CHECKING:
    from shared.lora import Factors
    from shared.loraconfig import LoraTerms

Logits = NDArray[np.float32]

KV_CACHES = ("none", "int8", "q8_0", "q4_0")
"""How keys and values are kept between tokens; each runtime has some of them."""

_SEEDS = 1 << 63


class Turn(Protocol):
    """One text that is being written: it remembers the tokens that it was fed."""

    def feed(self, ids: Sequence[int]) -> Logits:
        """Take further tokens, one or more; return float32 ``(V,)`` of the token after them."""


class Engine(Protocol):
    """A base model in some runtime, with at most one adapter."""

    @property
    def window(self) -> int | None:
        """Return the most tokens of a text, prompt included; None without a limit."""

    @property
    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the one that begins a text; markers are text."""

    def ask(self, question: str) -> list[int]:
        """Return the tokens of a question as the user's turn of the base's chat template.

        Raises:
            TokenizerMissing: if the base has none.
            InvalidValue: if the template refuses the question.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text; U+FFFD for a character of which bytes are missing."""

    def wear(self, factors: Factors, terms: LoraTerms) -> None:
        """Put an adapter on the base.

        Raises:
            AdapterIncompatible: if it is not one of this base's layers; nothing is changed then.
        """

    def turn(self) -> Turn:
        """Begin a text."""


def with_begin(ids: Sequence[int], begin: int | None, end: int | None) -> list[int]:
    """Return a prompt's tokens with the token that begins a text, if there is one.

    Args:
        ids: of the prompt.
        begin: the token that begins a text.
        end: the token that ends one; begins an empty prompt where nothing else does.

    Raises:
        InvalidValue: for an empty prompt without either.
    """
    first = end if begin is None and not ids else begin
    if first is not None and list(ids[:1]) != [first]:
        return [first, *ids]
    if not ids:
        msg = "An empty prompt, and a tokenizer without a token to begin from."
        raise InvalidValue(msg, hint="Ask something.")
    return list(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How the next token is chosen; the same for every runtime.

    Attributes:
        temperature: 0 for the likeliest token.
        top_k: among how many of the likeliest is drawn.
        generator: of the draws.
    """

    temperature: float
    top_k: int
    generator: np.random.Generator

    @classmethod
    def of(cls, temperature: float, top_k: int, seed: int | None) -> Draws:
        """Check the numbers, and seed the draws; from the operating system without a seed.

        Raises:
            InvalidValue: if a number is out of range.
        """
        validate.non_negative(temperature=temperature)
        validate.positive_integer(top_k=top_k)
        if seed is not None and not (type(seed) is int and 0 <= seed < _SEEDS):
            msg = f"seed={seed!r}, expected an integer from 0 to {_SEEDS - 1}."
            raise InvalidValue(msg)
        bits = np.random.PCG64(secrets.randbits(128) if seed is None else seed)
        return cls(temperature=temperature, top_k=top_k, generator=np.random.Generator(bits))

    def choose(self, logits: Logits) -> int:
        """Return the likeliest token, or one among the ``top_k`` likeliest.

        Raises:
            AdapterCorrupt: if the model gives numbers that are not finite.
        """
        best = float(logits.max())
        if not np.isfinite(best):
            msg = "The model gives numbers that are not finite."
            raise AdapterCorrupt(msg, hint="The adapter has probably diverged; roll it back.")
        if self.temperature == 0 or self.top_k == 1:
            return int(logits.argmax())
        count = min(self.top_k, logits.size)
        top: NDArray[Any] = np.argpartition(-logits, count - 1)[:count]
        top = top[np.lexsort((top, -logits[top]))]
        weights = np.exp((logits[top].astype(np.float64) - best) / self.temperature)
        steps = np.cumsum(weights)
        place = np.searchsorted(steps, self.generator.random() * steps[-1], side="right")
        return int(top[min(int(place), count - 1)])
