"""What an audit may ask of the model under audit: read a text, write a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.audit.protocol import Floats
from shared.errors import AuditError

Integers: TypeAlias = NDArray[np.int64]
TOP_K = 40
"""Tokens that sampling keeps: the common default, and what ``(n, p)`` extraction is stated for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text to read; its ``repr`` shows nothing of it.

    Args:
        text: what is scored.
        prompt: what is read before it and not scored; may be empty. How the two are joined is the
            matter of the reader, and the same as in training.
    """

    text: str = field(repr=False)
    prompt: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """How the model took one passage, token by scored token; every array has shape ``(n,)``.

    Args:
        log_probability: natural logarithm of the probability of the token that stands there.
        expected: mean of the log-probability of a token drawn from the model there.
        spread: standard deviation of the same, nats.
        rank: how many tokens the model finds likelier; 0 is what greedy decoding writes.
        log_mass: logarithm of the mass of the :data:`TOP_K` likeliest tokens.
    """

    log_probability: Floats
    expected: Floats
    spread: Floats
    rank: Integers
    log_mass: Floats

    @property
    def loss(self) -> float:
        """Negative log-likelihood of the whole passage, nats."""
        return -float(self.log_probability.sum())


class Target(ABC):
    """The model under audit, with its adapter and without."""

    @abstractmethod
    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        """Read passages.

        Args:
            passages: what to read.
            adapter: with the adapter, or with the base model alone.

        Returns:
            One reading per passage, in order.
        """

    @abstractmethod
    def write(
        self,
        prompts: Sequence[str],
        *,
        adapter: bool,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Go on from prompts.

        Args:
            prompts: what to go on from.
            adapter: with the adapter, or with the base model alone.
            max_tokens: most tokens to write; an end-of-text token stops earlier.
            temperature: 0 is greedy; above it, tokens are sampled among the :data:`TOP_K`
                likeliest.
            seed: of the sampling.

        Returns:
            What was written after each prompt, without the prompt.
        """


def losses(target: Target, passages: Sequence[Passage], *, adapter: bool) -> Floats:
    """Return the loss of each passage, nats, checked.

    Returns:
        Shape ``(len(passages),)``.

    Raises:
        AuditError: if a loss is missing or not finite.
    """
    found = np.array([r.loss for r in target.read(passages, adapter=adapter)], dtype=np.float64)
    if found.shape != (len(passages),):
        msg = f"losses.shape={found.shape}, expected ({len(passages)},)."
        raise AuditError(msg)
    if not np.isfinite(found).all():
        bad = int(np.count_nonzero(~np.isfinite(found)))
        msg = f"{bad} of {len(passages)} losses are not finite, expected finite nats."
        raise AuditError(msg, hint="The adapter has probably diverged; lower the learning rate.")
    return found


class CachedTarget(Target):
    """Reads each passage once however many audits ask for it.

    Args:
        target: the target that does the work.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._known: dict[tuple[bool, Passage], Reading] = {}

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        """Read passages, only those not read before."""
        fresh = list(dict.fromkeys(p for p in passages if (adapter, p) not in self._known))
        if fresh:
            readings = self._target.read(fresh, adapter=adapter)
            self._known.update(((adapter, p), r) for p, r in zip(fresh, readings, strict=True))
        return [self._known[adapter, passage] for passage in passages]

    def write(
        self,
        prompts: Sequence[str],
        *,
        adapter: bool,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Go on from prompts."""
        return self._target.write(
            prompts, adapter=adapter, max_tokens=max_tokens, temperature=temperature, seed=seed
        )


class KnownBase(CachedTarget):
    """A target that reads each passage once with the base model alone, whatever the adapter is.

    A positive control attacks another adapter on the same base: what it read of the base is what
    the run's own audits read. Readings with the adapter are never kept.

    Args:
        target: the target that does the work.
    """

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        """Read passages; with the base alone only those not read before."""
        if adapter:
            return self._target.read(passages, adapter=True)
        return super().read(passages, adapter=False)
