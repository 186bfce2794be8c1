"""How the mean update moves the global adapter; post-processing of what was released.

The mean update plays the part of a negative gradient (Reddi et al. 2021, arXiv:2003.00295).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.config import ServerSection
from shared.errors import InvalidValue
from shared.lora import Vector
from shared.schedules import rate_factor

State = dict[str, NDArray[np.float64]]


class ServerOptimizer:
    """Applies mean updates to the global vector, with momentum or Adam.

    Args:
        settings: the scenario's ``server`` section.
        rounds: how many rounds the schedule spans.
        size: number of parameters.
    """

    def __init__(self, settings: ServerSection, *, rounds: int, size: int) -> None:
        self._settings = settings
        self._rounds = rounds
        self._steps = 0
        names = {"mean": (), "momentum": ("first",), "adam": ("first", "second")}
        self._state: State = {
            name: np.zeros(size, dtype=np.float64) for name in names[settings.optimizer]
        }

    def learning_rate(self, server_round: int) -> float:
        """Return the server learning rate of a 1-based round."""
        settings = self._settings
        factor = rate_factor(settings.schedule, server_round=server_round, rounds=self._rounds)
        return settings.learning_rate * factor

    def step(self, vector: Vector, mean: NDArray[np.float64], server_round: int) -> Vector:
        """Return the next global vector.

        Args:
            vector: the current one, float32.
            mean: the released mean update.
            server_round: 1-based.
        """
        rate = self.learning_rate(server_round)
        moved = vector.astype(np.float64) + rate * self._direction(mean)
        return moved.astype(np.float32)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what a checkpoint must keep besides the number of steps."""
        return dict(self._state)

    @property
    def steps(self) -> int:
        """How many updates were applied."""
        return self._steps

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Take up a checkpoint's state.

        Raises:
            InvalidValue: if it belongs to another optimizer.
        """
        if set(state) != set(self._state):
            msg = f"Found optimizer state {sorted(state)}, expected {sorted(self._state)}."
            raise InvalidValue(msg)
        self._state = {name: np.array(value, dtype=np.float64) for name, value in state.items()}
        self._steps = steps

    def _direction(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fold the mean update into the moments and return the step's direction."""
        self._steps += 1
        settings = self._settings
        if settings.optimizer == "mean":
            return mean
        if settings.optimizer == "momentum":
            first = settings.momentum * self._state["first"] + mean
            self._state["first"] = first
            return first
        beta1, beta2 = settings.momentum, settings.second_momentum
        first = beta1 * self._state["first"] + (1 - beta1) * mean
        second = beta2 * self._state["second"] + (1 - beta2) * mean**2
        self._state.update(first=first, second=second)
        corrected = first / (1 - beta1**self._steps)
        scale = np.sqrt(second / (1 - beta2**self._steps))
        return corrected / (scale + settings.adaptivity)
