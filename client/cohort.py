"""Local training of many clients at once: each as :mod:`client.training` trains it alone.

Every client keeps its own batches, coins and noise. Its result differs from that of training alone
by the rounding of float32 sums only: a mean over four examples is then added up in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.cohortbatches import by_length
from client.examples import Example
from client.grouped import GroupedAdapter
from client.losses import Batch, collate
from client.training import TrainSettings, plain_batches, poisson_steps
from shared.errors import NoUsableText
from shared.validate import positive, probability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.adapter import AdaptedModel
    from shared.privacy.noise import NoiseSource

Examples = Sequence[Sequence[Example]]
Drawn = list[tuple[int, Example]]


def train_plain_group(
    model: AdaptedModel,
    clients: Examples,
    settings: TrainSettings,
    *,
    rngs: Sequence[np.random.Generator],
    tokens: int,
) -> NDArray[np.float32]:
    """Train each client as :func:`client.training.train_plain` does, all of them at once.

    Args:
        model: its factors are where every client starts; they are not changed. No dropout.
        clients: the training examples of each.
        settings: steps, batch size and optimiser of every client.
        rngs: one for each client, drawing its batches.
        tokens: how many go through the model at once, padding included; changes memory only.

    Returns:
        The trained factors of each client, shape ``(C, d)``.

    Raises:
        NoUsableText: if a client has no examples.
        UnsupportedModel: if the adapter gets no gradient, or clients cannot be told apart.
    """
    if not all(clients):
        msg = "A client has no training example."
        raise NoUsableText(msg)
    group = _Group(model, len(clients), settings, tokens)
    plans = [
        plain_batches(len(examples), settings, rng)
        for examples, rng in zip(clients, rngs, strict=True)
    ]
    with model.training(), group.adapter.attached():
        while True:
            batches = [next(plan, None) for plan in plans]
            active = [batch is not None for batch in batches]
            if not any(active):
                return group.vectors()
            rows = [batch or [] for batch in batches]
            total = group.sums(_drawn(clients, rows))
            group.step(total / _column(total, [max(len(r), 1) for r in rows]), active)


def train_private_group(
    model: AdaptedModel,
    clients: Examples,
    settings: TrainSettings,
    *,
    sources: Sequence[NoiseSource],
    max_grad_norm: float,
    noise_multiplier: float,
    sampling_probability: float,
    tokens: int,
) -> tuple[NDArray[np.float32], int]:
    """Train each client as :func:`client.training.train_private` does, all of them at once.

    Guarantee:
        That of :func:`client.training.train_private` for every client: each example is clipped by
        itself, each client's sum gets its own noise from its own source, at every step.

    Args:
        model: its factors are where every client starts; they are not changed. No dropout.
        clients: the training examples of each; none at all is fine (noise alone).
        settings: steps, the public divisor and optimiser of every client.
        sources: one for each client, of its coins and its noise.
        max_grad_norm: L2 bound on each example's gradient, > 0 and finite.
        noise_multiplier: noise standard deviation on the *sum*, in units of ``max_grad_norm``, > 0.
        sampling_probability: each example's probability of being in a step.
        tokens: how many go through the model at once, padding included; changes memory only.

    Returns:
        The trained factors of each client, shape ``(C, d)``, and the number of steps that were
        noised, which is the same for all.

    Raises:
        InvalidValue: if a number is out of range.
        UnsupportedModel: if the adapter gets no gradient, or clients cannot be told apart.
    """
    positive(max_grad_norm=max_grad_norm, noise_multiplier=noise_multiplier)
    probability(sampling_probability=sampling_probability)
    stddev = noise_multiplier * max_grad_norm
    group = _Group(model, len(clients), settings, tokens)
    noised = 0
    with model.training(), group.adapter.attached():
        for _ in range(poisson_steps(settings, sampling_probability)):
            rows = _poisson_rows(clients, sources, sampling_probability)
            total = group.clipped_sums(_drawn(clients, rows), max_grad_norm)
            for row, source in zip(total, sources, strict=True):
                row += stddev * torch.from_numpy(source.normal(row.numel())).to(row.device)
            noised += 1
            group.step(total / settings.batch_size, [True] * len(clients))
    return group.vectors(), noised


def train_unprotected_group(
    model: AdaptedModel,
    clients: Examples,
    settings: TrainSettings,
    *,
    sources: Sequence[NoiseSource],
    sampling_probability: float,
    tokens: int,
) -> NDArray[np.float32]:
    """Train each client as :func:`client.training.train_unprotected_poisson` does: NO privacy.

    Args:
        model: its factors are where every client starts; they are not changed. No dropout.
        clients: the training examples of each.
        settings: steps, the public divisor and optimiser of every client.
        sources: one for each client, of its coins.
        sampling_probability: each example's probability of being in a step.
        tokens: how many go through the model at once, padding included; changes memory only.

    Returns:
        The trained factors of each client, shape ``(C, d)``.
    """
    probability(sampling_probability=sampling_probability)
    group = _Group(model, len(clients), settings, tokens)
    with model.training(), group.adapter.attached():
        for _ in range(poisson_steps(settings, sampling_probability)):
            rows = _poisson_rows(clients, sources, sampling_probability)
            total = group.sums(_drawn(clients, rows))
            group.step(total / settings.batch_size, [True] * len(clients))
    return group.vectors()


class _Group:
    """The adapters of a group with their optimiser."""

    def __init__(
        self, model: AdaptedModel, clients: int, settings: TrainSettings, tokens: int
    ) -> None:
        self.adapter = GroupedAdapter(model, clients)
        self._model = model
        self._tokens = tokens
        self._take_step = _optimizer(self.adapter.flat, settings)

    def sums(self, drawn: Drawn) -> torch.Tensor:
        """Return each client's sum of gradients, float32, shape ``(C, d)``."""
        total = torch.zeros_like(self.adapter.flat)
        for batch, clients in self._batches(drawn):
            self.adapter.add_sums(batch, clients, total)
        return total

    def clipped_sums(self, drawn: Drawn, max_grad_norm: float) -> torch.Tensor:
        """Return each client's sum of clipped gradients, float64, shape ``(C, d)``."""
        total = torch.zeros_like(self.adapter.flat, dtype=torch.float64)
        for batch, clients in self._batches(drawn):
            self.adapter.add_clipped_sums(batch, clients, max_grad_norm, total)
        return total

    def step(self, gradient: torch.Tensor, active: Sequence[bool]) -> None:
        """Take a step with the clients that are still training; the others stay where they are."""
        flat = self.adapter.flat
        done = torch.tensor([not going for going in active], device=flat.device)
        kept = None if all(active) else flat[done]
        self._take_step(gradient.to(torch.float32))
        if kept is not None:
            flat[done] = kept
        self.adapter.moved = True

    def vectors(self) -> NDArray[np.float32]:
        """Return the factors of every client."""
        found: NDArray[np.float32] = self.adapter.flat.cpu().numpy()
        return found

    def _batches(self, drawn: Drawn) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yield padded batches with the client of each example, on the model's device."""
        device = self._model.device
        pad_id = int(self._model.base.tokenizer.pad_token_id or 0)
        examples = [example for _, example in drawn]
        for rows in by_length(examples, tokens=self._tokens):
            clients = torch.tensor([drawn[row][0] for row in rows], device=device)
            yield collate([examples[row] for row in rows], pad_id).to(device), clients


def _optimizer(flat: torch.Tensor, settings: TrainSettings) -> Callable[[torch.Tensor], None]:
    """Return a function that takes one step with every client along its row of a gradient."""
    if settings.optimizer == "sgd":

        def descend(gradient: torch.Tensor) -> None:
            flat.add_(gradient, alpha=-settings.learning_rate)

        return descend
    # Element by element, so that one optimiser over all clients is one for each of them.
    parameter = torch.nn.Parameter(flat)
    adamw = torch.optim.AdamW([parameter], lr=settings.learning_rate, weight_decay=0.0)

    def step(gradient: torch.Tensor) -> None:
        parameter.grad = gradient
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step


def _drawn(clients: Examples, rows: Sequence[Sequence[int]]) -> Drawn:
    """Return the drawn examples of all clients, each with the client's place in the group."""
    return [
        (place, examples[row])
        for place, (examples, chosen) in enumerate(zip(clients, rows, strict=True))
        for row in chosen
    ]


def _poisson_rows(
    clients: Examples, sources: Sequence[NoiseSource], sampling_probability: float
) -> list[list[int]]:
    """Throw every client's own coins for one step."""
    return [
        source.poisson_subsample(len(examples), sampling_probability).tolist()
        for examples, source in zip(clients, sources, strict=True)
    ]


def _column(like: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """Return numbers as a column."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
