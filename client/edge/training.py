"""Local training without torch: the steps of :mod:`client.training` on an exported step.

Coins, noise and the number of steps come from :mod:`client.stepping`, as with torch; clipped
gradients from :mod:`client.edge.adapter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.stepping import NoisedSteps, TrainSettings, plain_batches, poisson_steps
from shared.errors import ConflictingSettings, NoUsableText
from shared.validate import probability

if TYPE_CHECKING:
    from client.edge.adapter import EdgeAdapter
    from client.examples import Example
    from shared.privacy.noise import NoiseSource

_BETAS = (0.9, 0.999)
_SMALL = 1e-8


def train_private(
    adapter: EdgeAdapter,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    max_grad_norm: float,
    noise_multiplier: float,
    sampling_probability: float,
    source: NoiseSource,
) -> int:
    """Train the adapter in place by DP-SGD; as :func:`client.training.train_private`.

    Guarantee:
        That of :class:`client.stepping.NoisedSteps`: each step is one Poisson-subsampled Gaussian
        mechanism at L2 sensitivity ``max_grad_norm`` (add or remove one example), empty ones too.

    Args:
        adapter: its trained factors are changed.
        examples: the client's training examples; none at all is fine (noise alone).
        settings: steps, the public divisor and the optimiser.
        max_grad_norm: L2 bound on each example's gradient, > 0 and finite.
        noise_multiplier: noise standard deviation on the sum, in units of ``max_grad_norm``, > 0.
        sampling_probability: each example's probability of being in a step.
        source: of coins and noise.

    Returns:
        The number of steps that were noised.

    Raises:
        InvalidValue: if a number is out of range.
        ConflictingSettings: if the program clips to less than is asked for, which would bias it.
    """
    steps = NoisedSteps(
        settings,
        max_grad_norm=max_grad_norm,
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
    )
    _require_clip(adapter, max_grad_norm)
    step = optimizer(adapter, settings)
    for rows in steps.samples(len(examples), source):
        total = adapter.sum_of((examples[row] for row in rows), max_grad_norm)
        total += steps.noise(adapter.size, source)
        step(total / settings.batch_size)
    return steps.noised


def train_plain(
    adapter: EdgeAdapter,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    rng: np.random.Generator,
) -> None:
    """Train the adapter in place without protection; as :func:`client.training.train_plain`.

    Args:
        adapter: its trained factors are changed.
        examples: the client's training examples.
        settings: steps, batch size and optimiser.
        rng: draws batches.

    Raises:
        NoUsableText: if there are no examples.
        ConflictingSettings: if the program clips.
    """
    if not examples:
        msg = "A client has no training example."
        raise NoUsableText(msg)
    _require_clip(adapter, None)
    step = optimizer(adapter, settings)
    for rows in plain_batches(len(examples), settings, rng):
        total = adapter.sum_of(examples[row] for row in rows)
        step(total / len(rows))


def train_unprotected_poisson(
    adapter: EdgeAdapter,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    sampling_probability: float,
    source: NoiseSource,
) -> int:
    """Train like :func:`train_private` with neither clipping nor noise: NO privacy at all.

    Args:
        adapter: its trained factors are changed.
        examples: the client's training examples.
        settings: steps, the public divisor and the optimiser.
        sampling_probability: each example's probability of being in a step.
        source: of coins.

    Returns:
        The number of steps taken.
    """
    probability(sampling_probability=sampling_probability)
    _require_clip(adapter, None)
    steps = poisson_steps(settings, sampling_probability)
    step = optimizer(adapter, settings)
    for _ in range(steps):
        rows = source.poisson_subsample(len(examples), sampling_probability)
        step(adapter.sum_of(examples[row] for row in rows) / settings.batch_size)
    return steps


class Sgd:
    """Plain gradient descent."""

    def __init__(self, adapter: EdgeAdapter, learning_rate: float) -> None:
        self._adapter = adapter
        self._rate = np.float32(learning_rate)

    def __call__(self, gradient: NDArray[np.float64]) -> None:
        """Take one step along a flat gradient."""
        moved = self._adapter.read()
        moved -= self._rate * gradient.astype(np.float32)
        self._adapter.write(moved)


class AdamW:
    """AdamW as torch computes it in float32, without decay."""

    def __init__(self, adapter: EdgeAdapter, learning_rate: float) -> None:
        self._adapter = adapter
        self._rate = learning_rate
        self._taken = 0
        self._mean = np.zeros(adapter.size, dtype=np.float32)
        self._square = np.zeros(adapter.size, dtype=np.float32)

    def __call__(self, gradient: NDArray[np.float64]) -> None:
        """Take one step along a flat gradient."""
        single = gradient.astype(np.float32)
        first, second = _BETAS
        self._taken += 1
        self._mean += np.float32(1 - first) * (single - self._mean)
        self._square *= np.float32(second)
        self._square += np.float32(1 - second) * single * single
        root = float(np.sqrt(1 - second**self._taken))
        below = np.sqrt(self._square) / np.float32(root) + np.float32(_SMALL)
        moved = self._adapter.read()
        moved -= np.float32(self._rate / (1 - first**self._taken)) * (self._mean / below)
        self._adapter.write(moved)


def optimizer(adapter: EdgeAdapter, settings: TrainSettings) -> Sgd | AdamW:
    """Return what takes a step along a flat gradient."""
    kind = Sgd if settings.optimizer == "sgd" else AdamW
    return kind(adapter, settings.learning_rate)


def _require_clip(adapter: EdgeAdapter, wanted: float | None) -> None:
    """Refuse a program that clips to less than the round does, or where the round does not.

    A clip that counts factors which do not train scales by a norm that is not the gradient's.
    """
    manifest = adapter.engine.manifest
    found, whole = manifest.max_grad_norm, adapter.kinds == manifest.trained
    if found is None or (whole and wanted is not None and found >= wanted):
        return
    asked = "does not clip" if wanted is None else f"clips to {wanted:g}"
    if not whole:
        asked = f"trains {adapter.kinds!r} alone"
    msg = f"The exported step clips each gradient to {found:g}, the round {asked}."
    raise ConflictingSettings(msg, hint="Export a step for this scenario.")
