"""What a scenario and its plan say about a client's local steps, whatever computes them.

Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from client.stepping import TrainSettings
from shared.errors import InvalidValue, SchemaMismatch
from shared.lora import coordinates
from shared.privacy.noise import NoiseSource
from shared.schedules import rate_factor
from shared.seeding import data_rng

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shared.config import RunConfig
    from shared.lora import AdapterSpec, Vector
    from shared.mixedranks import MixedRanks
    from shared.privacy.plan import PrivacyPlan


class StepRules:
    """The rules of local steps, as a scenario and its plan say them.

    Args:
        config: the scenario.
        plan: what the server is asked to keep to.
        spec: of the adapter.
        ranks: of the clients, where they differ.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: PrivacyPlan,
        spec: AdapterSpec,
        ranks: MixedRanks | None = None,
    ) -> None:
        self.config = config
        self.plan = plan
        self.spec = spec
        self.ranks = ranks
        self.kinds = config.trained_kinds
        self._parts: dict[tuple[str, int], NDArray[np.bool_]] = {}
        clients, performance = config.clients, config.performance
        self._settings = TrainSettings(
            local_steps=clients.local_steps,
            local_epochs=clients.local_epochs,
            batch_size=clients.batch_size,
            learning_rate=clients.learning_rate,
            optimizer=clients.optimizer,
            physical_batch=performance.physical_batch,
            clipper=performance.clipper,
        )

    @property
    def by_poisson_samples(self) -> bool:
        """Whether steps draw Poisson samples: for them, a client without text is one like all."""
        return self.private is not None or self.twin_of_example

    def sent_part(self, vector: Vector, server_round: int) -> Vector:
        """Return those of the global factors that a round trains and sends."""
        kinds = self.config.sent_kinds(server_round)
        if kinds == self.kinds:
            return vector
        key = (kinds, vector.size)
        if key not in self._parts:
            self._parts[key] = coordinates(self.spec_of(vector), kinds, within=self.kinds)
        return vector[self._parts[key]]

    def settings(self, server_round: int) -> TrainSettings:
        """Return how clients train in a round: the learning rate follows the scenario's schedule.

        Raises:
            InvalidValue: if the rate changes over the rounds and the round is not planned.
        """
        clients, rounds = self.config.clients, self.config.run.rounds
        if clients.schedule == "constant" and clients.warmup_rounds == 0:
            return self._settings
        factor = rate_factor(
            clients.schedule,
            server_round=server_round,
            rounds=rounds,
            warmup_rounds=clients.warmup_rounds,
        )
        return replace(self._settings, learning_rate=clients.learning_rate * factor)

    def noise(self, *labels: str | int) -> NoiseSource:
        """Return the generator of one participation's coins and noise."""
        if self.plan.noise_source == "seeded-simulation":
            return NoiseSource.seeded(self.config.run.seed, *labels)
        return NoiseSource.from_os()

    def spec_of(self, vector: Vector) -> AdapterSpec:
        """Return the adapter that a vector of all factors that move is of."""
        if self.ranks is None:
            return self.spec
        return self.ranks.spec_of(vector, self.kinds)

    @property
    def private(self) -> PrivacyPlan | None:
        """The plan of DP-SGD steps, where there are any."""
        return self.plan if self.plan.mode == "example" else self.plan.example

    @property
    def twin_of_example(self) -> bool:
        """Whether this is the non-private twin of a scenario whose local steps are DP-SGD."""
        config = self.config
        return self.plan.mode == "none" and any(
            said.max_grad_norm is not None for said in (config.privacy, config.example)
        )

    def batches_rng(self, labels: tuple[int, int]) -> np.random.Generator:
        """Return the generator of a participation's batches and dropout masks."""
        return data_rng(self.config.run.seed, "batches", *labels)

    def twins_coins(self, labels: tuple[int, int]) -> NoiseSource:
        """Return the coins of a participation in a non-private twin."""
        return NoiseSource.seeded(self.config.run.seed, "example-noise", *labels)

    def sampling_probability(self) -> float:
        """Return the scenario's sampling probability of an example."""
        config = self.config
        probability = config.privacy.sampling_probability or config.example.sampling_probability
        if probability is None:
            msg = "sampling_probability is set neither in privacy nor in example."
            raise InvalidValue(msg)
        return probability


def clip_and_noise(plan: PrivacyPlan, server_round: int) -> dict[str, float]:
    """Return what a plan of DP-SGD steps fixes for a round."""
    noise = plan.noise_multiplier_of(server_round)
    if plan.max_grad_norm is None or noise is None:
        msg = "Mode example needs max_grad_norm and noise_multiplier."
        raise InvalidValue(msg)
    return {
        "max_grad_norm": plan.max_grad_norm,
        "noise_multiplier": noise,
        "sampling_probability": plan.sampling_probability,
    }


def check_steps(noised: int, plan: PrivacyPlan) -> None:
    """Refuse a number of noised steps other than the one that the plan charges."""
    if noised != plan.releases_per_round:
        msg = f"Ran {noised} noised steps, expected {plan.releases_per_round} by the plan."
        raise SchemaMismatch(msg)
