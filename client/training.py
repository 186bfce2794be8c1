"""Local training: plain steps, and DP-SGD on each example's own clipped gradient.

Under privacy nothing is normalised by the realised batch size, an empty Poisson batch is a step of
noise alone, and the number of steps never depends on how many examples a client has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.clipping import (
    MicrobatchClipper,
    PerExampleClipper,
    gradients_of,
    make_clipper,
    no_gradient,
)
from client.examples import Example
from client.losses import Batch, collate, per_sequence_losses, token_losses
from client.stepping import NoisedSteps, TrainSettings, plain_batches, poisson_steps
from shared.errors import NoUsableText
from shared.validate import probability

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.privacy.noise import NoiseSource

__all__ = [
    "Batch",
    "Example",
    "TrainSettings",
    "collate",
    "per_sequence_losses",
    "plain_batches",
    "poisson_steps",
    "token_losses",
    "train_plain",
    "train_private",
    "train_unprotected_poisson",
]


def train_plain(
    model: AdaptedModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    rng: np.random.Generator,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Train the adapter in place, without any protection of single examples.

    For the modes ``none`` and ``client-central``, where the client's whole update is clipped later.
    A step follows the mean of the losses of ``batch_size`` examples drawn without replacement (all
    of them if the client has fewer); with ``local_epochs``, consecutive batches of shuffled passes.

    Args:
        model: its trainable factors are changed.
        examples: the client's training examples.
        settings: steps, batch size and optimiser.
        rng: draws batches and dropout masks.
        on_step: is told after each step.

    Raises:
        NoUsableText: if there are no examples.
        UnsupportedModel: if the adapter gets no gradient.
    """
    if not examples:
        msg = "A client has no training example."
        raise NoUsableText(msg)
    step = _optimizer(model, settings)
    with model.training(), _seeded_dropout(model, rng):
        for rows in plain_batches(len(examples), settings, rng):
            step(_mean_gradient(model, [examples[row] for row in rows], settings))
            if on_step is not None:
                on_step()


def train_private(
    model: AdaptedModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    max_grad_norm: float,
    noise_multiplier: float,
    sampling_probability: float,
    source: NoiseSource,
    rng: np.random.Generator | None = None,
) -> int:
    """Train the adapter in place by DP-SGD (mode ``example``).

    Every step takes each example with its own coin, sums the gradients that were clipped example by
    example, adds Gaussian noise, divides by the public ``batch_size`` and takes an optimiser step.

    Guarantee:
        Each step is one Poisson-subsampled Gaussian mechanism with ``noise_multiplier`` at L2
        sensitivity ``max_grad_norm`` (add or remove one example); the returned number of steps
        composes. An empty sample is a step of noise alone and counts like any other.

    Args:
        model: its trainable factors are changed.
        examples: the client's training examples; none at all is fine (noise alone).
        settings: steps, the public divisor, optimiser and engine.
        max_grad_norm: L2 bound on each example's gradient, > 0 and finite.
        noise_multiplier: noise standard deviation on the *sum*, in units of ``max_grad_norm``, > 0.
        sampling_probability: each example's probability of being in a step.
        source: of coins and noise.
        rng: of dropout masks, if the adapter has dropout; public randomness.

    Returns:
        The number of steps that were noised, for the plan's conformance check.

    Raises:
        InvalidValue: if a number is out of range.
        UnsupportedModel: if the adapter gets no gradient, or the engine cannot handle the model.
    """
    steps = NoisedSteps(
        settings,
        max_grad_norm=max_grad_norm,
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
    )
    step = _optimizer(model, settings)
    engine = make_clipper(settings.clipper, model)
    with model.training(), engine, _seeded_dropout(model, rng):
        for rows in steps.samples(len(examples), source):
            chosen = [examples[row] for row in rows]
            total = _clipped_sum(model, engine, chosen, settings, max_grad_norm)
            total += torch.from_numpy(steps.noise(total.numel(), source)).to(total.device)
            step(total / settings.batch_size)
    return steps.noised


def train_unprotected_poisson(
    model: AdaptedModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    sampling_probability: float,
    source: NoiseSource,
    rng: np.random.Generator | None = None,
) -> int:
    """Train like :func:`train_private` with neither clipping nor noise: NO privacy at all.

    For the non-private twin of a scenario in mode ``example``: same coins, same batches, same
    divisor, so that the difference between the two runs is the price of privacy alone.

    Args:
        model: its trainable factors are changed.
        examples: the client's training examples.
        settings: steps, the public divisor, optimiser and engine.
        sampling_probability: each example's probability of being in a step.
        source: of coins.
        rng: of dropout masks.

    Returns:
        The number of steps taken, empty ones included.
    """
    probability(sampling_probability=sampling_probability)
    steps = poisson_steps(settings, sampling_probability)
    step = _optimizer(model, settings)
    with model.training(), _seeded_dropout(model, rng):
        for _ in range(steps):
            rows = source.poisson_subsample(len(examples), sampling_probability)
            chosen = [examples[row] for row in rows]
            step(_mean_gradient(model, chosen, settings) * (len(chosen) / settings.batch_size))
    return steps


def _chunks(
    model: AdaptedModel, examples: Sequence[Example], physical_batch: int
) -> Iterator[Batch]:
    """Yield padded batches of at most ``physical_batch`` examples, on the model's device."""
    pad_id = int(model.base.tokenizer.pad_token_id or 0)
    for start in range(0, len(examples), physical_batch):
        yield collate(examples[start : start + physical_batch], pad_id).to(model.device)


def _mean_gradient(
    model: AdaptedModel, examples: Sequence[Example], settings: TrainSettings
) -> torch.Tensor:
    """Return the gradient of the mean loss as one flat vector; zero for no examples.

    An example whose gradient is not finite contributes zero.
    """
    total = torch.zeros(model.spec.size(model.kinds), device=model.device)
    for batch in _chunks(model, examples, settings.physical_batch):
        losses = per_sequence_losses(model.peft_model, batch)
        if not losses.requires_grad:
            raise no_gradient()
        found = gradients_of(model, losses.sum())
        flat = torch.cat([gradient.reshape(-1) for gradient in found])
        if not bool(torch.isfinite(flat.sum())):
            flat = _finite_sum(model, batch)
        total += flat
    return total / max(len(examples), 1)


def _finite_sum(model: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Return the summed gradients of those examples of a batch that have a finite one."""
    with MicrobatchClipper(model) as engine:
        gradients = engine.clipped_sum(batch, math.inf)
    return torch.cat([gradient.reshape(-1) for gradient in gradients]).float()


def _clipped_sum(
    model: AdaptedModel,
    engine: PerExampleClipper,
    examples: Sequence[Example],
    settings: TrainSettings,
    max_grad_norm: float,
) -> torch.Tensor:
    """Return the sum of clipped per-example gradients as one flat float64 vector."""
    total = torch.zeros(model.spec.size(model.kinds), dtype=torch.float64, device=model.device)
    for batch in _chunks(model, examples, settings.physical_batch):
        gradients = engine.clipped_sum(batch, max_grad_norm)
        total += torch.cat([gradient.reshape(-1) for gradient in gradients])
    return total


def _optimizer(model: AdaptedModel, settings: TrainSettings) -> Callable[[torch.Tensor], None]:
    """Return a function that takes one step along a flat gradient."""
    if settings.optimizer == "sgd":
        return lambda gradient: model.add_vector(gradient, scale=-settings.learning_rate)
    parameters = [parameter for _, parameter in model.trainable]
    # Decay would pull the factors to zero, which is a choice about the model, not about steps.
    adamw = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    sizes = [parameter.numel() for parameter in parameters]

    def step(gradient: torch.Tensor) -> None:
        pieces = torch.split(gradient.to(torch.float32), sizes)
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view(parameter.shape)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step


@contextmanager
def _seeded_dropout(model: AdaptedModel, rng: np.random.Generator | None) -> Iterator[None]:
    """Draw dropout masks from ``rng``, leaving torch's global generator as it was."""
    if model.dropout == 0 or rng is None:
        yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch's dropout knows the global generator alone; masks are no secret and no noise.
        torch.manual_seed(int(rng.integers(2**62)))
        yield
