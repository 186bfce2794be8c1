"""Which examples a local step sees, and what noise it adds: public numbers, coins, one stream.

Shared by training with torch (:mod:`client.training`) and without it (:mod:`client.edge.training`),
so that sampling, noise and the number of steps are one thing. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidValue, SensitivityError
from shared.validate import positive, positive_integer, probability

if TYPE_CHECKING:
    from shared.privacy.noise import NoiseSource


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a client trains in one round.

    Attributes:
        local_steps: number of optimiser steps; or None.
        local_epochs: passes over the client's examples, fractions allowed; or None. Exactly one of
            the two is given.
        batch_size: examples per step; under Poisson sampling the public divisor (the expected
            size).
        learning_rate: of the local optimiser.
        optimizer: ``"sgd"`` or ``"adamw"`` (no weight decay, fresh state every round).
        physical_batch: how many examples go through the model at once; changes memory only.
        clipper: engine of per-example gradients: ``"fused"``, ``"microbatch"`` or ``"opacus"``.
    """

    local_steps: int | None = None
    local_epochs: float | None = None
    batch_size: int
    learning_rate: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    physical_batch: int = 32
    clipper: str = "fused"

    def __post_init__(self) -> None:
        """Check every number; booleans and NaN do not pass."""
        if (self.local_steps is None) == (self.local_epochs is None):
            msg = (
                f"local_steps={self.local_steps!r}, local_epochs={self.local_epochs!r}, expected "
                "exactly one of them."
            )
            raise InvalidValue(msg)
        if self.local_steps is not None:
            positive_integer(local_steps=self.local_steps)
        if self.local_epochs is not None:
            positive(local_epochs=self.local_epochs)
        positive_integer(batch_size=self.batch_size, physical_batch=self.physical_batch)
        positive(learning_rate=self.learning_rate)
        if self.optimizer not in {"sgd", "adamw"}:
            msg = f"optimizer={self.optimizer!r}, expected 'sgd' or 'adamw'."
            raise InvalidValue(msg)


def plain_batches(
    examples: int, settings: TrainSettings, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Yield the rows of each step of plain training."""
    size = min(settings.batch_size, examples)
    if settings.local_steps is not None:
        for _ in range(settings.local_steps):
            yield rng.choice(examples, size=size, replace=False).tolist()
        return
    left = max(1, round((settings.local_epochs or 0.0) * examples))
    while left > 0:
        order = rng.permutation(examples)[:left].tolist()
        left -= len(order)
        for start in range(0, len(order), size):
            yield order[start : start + size]


def poisson_steps(settings: TrainSettings, sampling_probability: float) -> int:
    """Return the number of DP-SGD steps: a public number, whatever the client holds."""
    if settings.local_steps is not None:
        return settings.local_steps
    # The tolerance keeps 0.3 / 0.1 = 2.9999999999999996 and its like from costing a step.
    return max(1, math.ceil((settings.local_epochs or 0.0) / sampling_probability - 1e-9))


class NoisedSteps:
    """The steps of one participation under DP-SGD: samples, noise, and how many were noised.

    Guarantee:
        A caller that adds :meth:`noise` to the sum of the sampled examples' gradients, each of L2
        norm ``max_grad_norm`` at most, once for each sample of :meth:`samples`, runs ``noised``
        Poisson-subsampled Gaussian mechanisms with ``noise_multiplier`` (add or remove one
        example). An empty sample is one of them.

    Args:
        settings: how many steps, in local steps or epochs.
        max_grad_norm: L2 bound on each example's gradient, > 0 and finite.
        noise_multiplier: noise standard deviation on the *sum*, in units of ``max_grad_norm``, > 0.
        sampling_probability: each example's probability of being in a step.

    Attributes:
        noised: steps that noise was drawn for.

    Raises:
        InvalidValue: if a number is out of range.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        max_grad_norm: float,
        noise_multiplier: float,
        sampling_probability: float,
    ) -> None:
        positive(max_grad_norm=max_grad_norm, noise_multiplier=noise_multiplier)
        probability(sampling_probability=sampling_probability)
        self.noised = 0
        self._stddev = noise_multiplier * max_grad_norm
        self._probability = sampling_probability
        self._steps = poisson_steps(settings, sampling_probability)

    def samples(self, examples: int, source: NoiseSource) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each step; each example is taken by its own coin.

        Args:
            examples: how many there are; none is fine.
            source: of the coins.

        Raises:
            SensitivityError: at the next step, if one was left without noise.
        """
        for step in range(self._steps):
            yield source.poisson_subsample(examples, self._probability)
            if self.noised != step + 1:
                msg = f"Step {step + 1} took noise {self.noised - step} times, expected once."
                raise SensitivityError(msg)

    def noise(self, size: int, source: NoiseSource) -> NDArray[np.float64]:
        """Return the noise of one step, shape ``(size,)``; called once a step.

        Args:
            size: parameters that train.
            source: of the noise.
        """
        self.noised += 1
        return self._stddev * source.normal(size)
