"""A runtime that lies for the attackers of a simulation, and is honest for everybody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from client.runtime import ClientRuntime
from simulations.attacks.backdoor import backdoor_examples
from simulations.attacks.members import attackers_of

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.config import RunConfig
    from shared.lora import Vector
    from shared.wire import Instruction
    from simulations.dataset import FederatedDataset


class AttackedRuntime(ClientRuntime):
    """Multiplies the change of every attacker.

    What follows is as for an honest client: in the client modes the clip, which a server repeats
    in ``client-central`` anyway. An attacker of ``client-distributed`` that skips its own clip is
    not simulated.

    Args:
        attackers: which clients attack.
        **arguments: as of :class:`client.runtime.ClientRuntime`.
    """

    def __init__(self, *, attackers: frozenset[int], **arguments: Any) -> None:  # noqa: ANN401
        super().__init__(**arguments)
        attack = self.config.attack
        self._attackers = attackers
        self._factor = -attack.scale if attack.kind == "sign-flip" else attack.scale

    def _after_local_steps(self, index: int, instruction: Instruction) -> Vector:
        """Return the factors after one participation, an attacker's as it wants them to be."""
        after = super()._after_local_steps(index, instruction)
        if index not in self._attackers or self._factor == 1.0:
            return after
        before = self._steps.sent_part(instruction.vector, instruction.server_round)
        change = after.astype(np.float64) - before
        with np.errstate(over="ignore"):
            return (before + self._factor * change).astype(np.float32)


def make_runtime(
    config: RunConfig,
    *,
    source: FederatedDataset,
    model: AdaptedModel,
    **arguments: Any,  # noqa: ANN401
) -> ClientRuntime:
    """Return the runtime of a scenario, with attackers where it asks for some.

    Args:
        config: the scenario.
        source: its clients.
        model: the adapted base.
        **arguments: the others of :class:`client.runtime.ClientRuntime`.

    Raises:
        InvalidValue: for a backdoor that does not fit ``data.max_length``.
    """
    if not config.attack.used:
        return ClientRuntime(config=config, source=source, model=model, **arguments)
    if config.attack.kind == "backdoor":
        backdoor_examples(config, source, model)
    attackers = attackers_of(config, population=source.population)
    return AttackedRuntime(
        attackers=attackers, config=config, source=source, model=model, **arguments
    )
