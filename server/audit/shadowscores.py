"""LiRA with few shadow models: halves to train them on, and scores from what they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.audit.protocol import Floats
from server.audit.scores import lira, lira_offline, logit_scaled, mean_log_probability
from server.audit.target import Passage, Reading
from shared.errors import AuditError
from shared.seeding import data_rng

Mask: TypeAlias = NDArray[np.bool_]

_LEAST_SPREAD = 1e-6
_LARGEST_LOG = -1e-9


class Shadows(ABC):
    """A way to train adapters like the audited one, on chosen texts, and to read with them."""

    @abstractmethod
    def read(
        self, chosen: Sequence[Passage], passages: Sequence[Passage], *, number: int
    ) -> list[Reading]:
        """Train one adapter from the start, and read passages with it.

        Args:
            chosen: what it is trained on; a passage that is there twice counts twice.
            passages: what it reads afterwards.
            number: names the order of training; from 0.

        Returns:
            One reading per passage, in order.
        """

    @property
    @abstractmethod
    def recipe(self) -> str:
        """Return how an adapter is trained, in words that quote no text."""


def lira_scores(own: Floats, shadows: Floats, halves: Mask) -> dict[str, Floats]:
    """Return both LiRA scores of every text of a set, with one spread for each side.

    The audited adapter was trained otherwise than the shadows, which shifts all its confidences
    alike; so they are centred on the shadows' first. That needs no membership.

    Args:
        own: confidences under the audited adapter, shape ``(n,)``.
        shadows: the same under shadow adapters, shape ``(k, n)``.
        halves: what each shadow was trained on, shape ``(k, n)``.
    """
    own = own - float(np.median(own - shadows.mean(axis=0)))
    with_it, without_it = _pooled(shadows, halves), _pooled(shadows, ~halves)
    return {"online": lira(own, with_it, without_it), "offline": lira_offline(own, without_it)}


def _pooled(shadows: Floats, chosen: Mask) -> Floats:
    """Return two made-up shadows per text with its own mean and the spread of all texts.

    Two values ``mean - s`` and ``mean + s`` have maximum-likelihood moments ``mean`` and ``s``.
    """
    count = chosen.sum(axis=0)
    mean = np.where(chosen, shadows, 0.0).sum(axis=0) / count
    squares = np.where(chosen, np.square(shadows - mean), 0.0).sum()
    spread = max(float(np.sqrt(squares / (count - 1).sum())), _LEAST_SPREAD)
    return np.stack([mean - spread, mean + spread])


def halves_of(sizes: Sequence[int], count: int, seed: int) -> list[Mask]:
    """Draw halves of every set, each followed by its complement, and one more for the control.

    Args:
        sizes: texts of each set, one set after another.
        count: shadow models, an even number.
        seed: of the draws.

    Returns:
        ``count + 1`` masks over all texts.
    """
    rng = data_rng(seed, "shadow-halves")

    def half() -> Mask:
        return np.concatenate([rng.permutation(size) < size // 2 for size in sizes])

    found: list[Mask] = []
    for _ in range(count // 2):
        drawn = half()
        found += [drawn, ~drawn]
    return [*found, half()]


def confidences(readings: Sequence[Reading], count: int) -> Floats:
    """Return the logit of each text's probability per token.

    Raises:
        AuditError: if a reading is missing or not finite.
    """
    found = np.array([mean_log_probability(reading) for reading in readings], dtype=np.float64)
    if not (found.shape == (count,) and np.isfinite(found).all()):
        msg = f"{found.size} readings of {count} texts, or one that is not finite."
        raise AuditError(msg, hint="A shadow adapter has probably diverged.")
    return logit_scaled(np.minimum(found, _LARGEST_LOG))
