"""The server optimizer of policies that move one factor at a time, or change the basis.

Each factor has moments and a count of steps of its own: a round of B says nothing about A's second
moment, and Adam's correction counts the steps that a coordinate took.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.optimizer import ServerOptimizer
from server.refactor import refactored, turned
from shared.config import RunConfig
from shared.errors import InvalidValue
from shared.lora import AdapterSpec, Vector, coordinates
from shared.mixedranks import MixedRanks, mixed_ranks
from shared.policies import Policy

_STEPS = "steps"


class VectorOptimizer(Protocol):
    """Moves the global vector by what a round released, and can be kept and taken up again."""

    @property
    def steps(self) -> int:
        """How many updates were applied."""

    def learning_rate(self, server_round: int) -> float:
        """Return the server learning rate of a 1-based round."""

    def step(self, vector: Vector, mean: NDArray[np.float64], server_round: int) -> Vector:
        """Return the next global vector."""

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what a checkpoint must keep besides the number of steps."""

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Take up a checkpoint's state."""


class FactorOptimizer:
    """One server optimizer for each kind of factor; a round moves the kind that it released.

    Args:
        config: the scenario, under a policy that alternates.
        spec: names and shapes of the factors.
    """

    def __init__(self, config: RunConfig, spec: AdapterSpec) -> None:
        self._policy: Policy = config.policy_facts
        kinds = sorted(set(self._policy.cycle))
        self._inner = {
            kind: ServerOptimizer(config.server, rounds=config.run.rounds, size=spec.size(kind))
            for kind in kinds
        }
        self._masks = {k: coordinates(spec, k, within=self._policy.moved) for k in kinds}

    @property
    def steps(self) -> int:
        """How many updates were applied, of all kinds together."""
        return sum(inner.steps for inner in self._inner.values())

    def learning_rate(self, server_round: int) -> float:
        """Return the server learning rate of a 1-based round."""
        return self._inner[self._policy.sent(server_round)].learning_rate(server_round)

    def step(self, vector: Vector, mean: NDArray[np.float64], server_round: int) -> Vector:
        """Return the next global vector: the round's factors moved, the others bit for bit.

        Args:
            vector: the current one, float32, of all kinds that the policy moves.
            mean: the released mean update of the round's kinds.
            server_round: 1-based.
        """
        kind = self._policy.sent(server_round)
        mask = self._masks[kind]
        moved = vector.copy()
        moved[mask] = self._inner[kind].step(vector[mask], mean, server_round)
        return moved

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what a checkpoint must keep: moments and steps of each kind."""
        found: dict[str, NDArray[np.float64]] = {}
        for kind, inner in self._inner.items():
            found |= {f"{kind}.{name}": value for name, value in inner.state().items()}
            found[f"{kind}.{_STEPS}"] = np.array([inner.steps], dtype=np.float64)
        return found

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Take up a checkpoint's state.

        Raises:
            InvalidValue: if it belongs to another optimizer, or its steps do not add up.
        """
        if set(state) != set(self.state()):
            msg = f"Found optimizer state {sorted(state)}, expected {sorted(self.state())}."
            raise InvalidValue(msg)
        for kind, inner in self._inner.items():
            own = {
                name.removeprefix(f"{kind}."): value
                for name, value in state.items()
                if name.startswith(f"{kind}.")
            }
            inner.restore(own, int(own.pop(_STEPS)[0]))
        if self.steps != steps:
            msg = f"Found {self.steps} optimizer steps, expected {steps}."
            raise InvalidValue(msg)


class RefactoringOptimizer:
    """The server optimizer of B, with a new basis after every so many rounds.

    Args:
        config: the scenario, with ``aggregation.refactor_every`` above 0.
        spec: names and shapes of the factors.
    """

    def __init__(self, config: RunConfig, spec: AdapterSpec) -> None:
        self._every = config.aggregation.refactor_every
        self._inner = FactorOptimizer(config, spec)
        self._spec = spec

    @property
    def steps(self) -> int:
        """How many updates were applied."""
        return self._inner.steps

    def learning_rate(self, server_round: int) -> float:
        """Return the server learning rate of a 1-based round."""
        return self._inner.learning_rate(server_round)

    def step(self, vector: Vector, mean: NDArray[np.float64], server_round: int) -> Vector:
        """Return the next global vector, in a new basis if the round's number says so.

        Args:
            vector: the current one, float32, of A and B.
            mean: the released mean update of B.
            server_round: 1-based.
        """
        moved = self._inner.step(vector, mean, server_round)
        if server_round % self._every != 0:
            return moved
        found, turns = refactored(self._spec, self._spec.unflatten(moved))
        self._inner.restore(turned(self._spec, self._inner.state(), turns), self.steps)
        return self._spec.flatten(found)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what a checkpoint must keep besides the number of steps."""
        return self._inner.state()

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Take up a checkpoint's state.

        Raises:
            InvalidValue: if it belongs to another optimizer, or its steps do not add up.
        """
        self._inner.restore(state, steps)


class PerHolder:
    """Makes of a mean over the cohort one over the clients that hold a column, and steps with it.

    Guarantee:
        Post-processing: what is multiplied was released with its noise, by constants of the
        scenario. The count of holders that came is not used; under a client-level guarantee it
        would be a second release.

    Args:
        inner: takes the step.
        config: the scenario.
        ranks: of the clients.
    """

    def __init__(self, inner: VectorOptimizer, config: RunConfig, ranks: MixedRanks) -> None:
        self._inner = inner
        self._policy: Policy = config.policy_facts
        self._weights = {kinds: ranks.per_holder(kinds) for kinds in set(self._policy.cycle)}

    @property
    def steps(self) -> int:
        """How many updates were applied."""
        return self._inner.steps

    def learning_rate(self, server_round: int) -> float:
        """Return the server learning rate of a 1-based round."""
        return self._inner.learning_rate(server_round)

    def step(self, vector: Vector, mean: NDArray[np.float64], server_round: int) -> Vector:
        """Return the next global vector; ``mean`` is the released one, over the cohort."""
        weights = self._weights[self._policy.sent(server_round)]
        return self._inner.step(vector, mean * weights, server_round)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what a checkpoint must keep besides the number of steps."""
        return self._inner.state()

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Take up a checkpoint's state."""
        self._inner.restore(state, steps)


def make_optimizer(config: RunConfig, spec: AdapterSpec) -> VectorOptimizer:
    """Return the server optimizer of a scenario; each column's mean is over whom it says."""
    ranks = mixed_ranks(config, spec) if config.aggregation.columns == "holders" else None
    inner = _over_the_cohort(config, spec)
    return inner if ranks is None else PerHolder(inner, config, ranks)


def _over_the_cohort(config: RunConfig, spec: AdapterSpec) -> VectorOptimizer:
    """Return one optimizer for all factors, or one for each kind."""
    if config.aggregation.refactor_every > 0:
        return RefactoringOptimizer(config, spec)
    if config.policy_facts.alternates:
        return FactorOptimizer(config, spec)
    size = spec.size(config.trained_kinds)
    return ServerOptimizer(config.server, rounds=config.run.rounds, size=size)
