"""A client's own adapter: a few steps on its own text, on top of the one that all share.

Guarantee:
    None, and none is needed: the result is a function of one client's text that is returned to
    that client. It must not be sent, shown to others, or averaged; nothing here can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from client.training import TrainSettings, train_plain

if TYPE_CHECKING:
    import numpy as np

    from client.adapter import AdaptedModel
    from client.examples import Example
    from shared.config import RunConfig
    from shared.lora import Vector


def personal_settings(config: RunConfig) -> TrainSettings:
    """Return how a client trains its own adapter: as in a round, with steps and rate of its own."""
    return TrainSettings(
        local_steps=config.personal.steps,
        batch_size=config.clients.batch_size,
        learning_rate=config.personal.learning_rate,
        optimizer=config.clients.optimizer,
        physical_batch=config.performance.physical_batch,
    )


def personal_vector(
    model: AdaptedModel,
    shared: Vector,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    rng: np.random.Generator,
    on_step: Callable[[], None] | None = None,
) -> Vector:
    """Return a client's own trained factors, without noise.

    Args:
        model: the frozen base with its adapter; its trained factors are changed.
        shared: the released adapter's trained factors, float32, shape ``(d,)``.
        examples: the client's training examples.
        settings: steps, batch size, rate and optimiser.
        rng: draws batches and dropout masks.
        on_step: is told after each step.

    Raises:
        NoUsableText: if there are no examples.
    """
    model.load_vector(shared, model.kinds)
    train_plain(model, examples, settings, rng=rng, on_step=on_step)
    return model.read_vector(model.kinds)
