"""How a scenario's clients train locally: plain or by DP-SGD, one alone or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from client.cohort import train_plain_group, train_private_group, train_unprotected_group
from client.gradientcheck import require_gradient
from client.training import (
    TrainSettings,
    train_plain,
    train_private,
    train_unprotected_poisson,
)
from shared.errors import InvalidValue, SchemaMismatch
from shared.lora import coordinates
from shared.privacy.noise import NoiseSource
from shared.schedules import rate_factor
from shared.seeding import data_rng

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from client.adapter import AdaptedModel
    from client.training import Example
    from shared.config import RunConfig
    from shared.lora import AdapterSpec, Vector
    from shared.mixedranks import MixedRanks
    from shared.privacy.plan import PrivacyPlan


class LocalSteps:
    """Takes the local steps of a participation, as a scenario and its plan say.

    Args:
        config: the scenario.
        plan: what the server is asked to keep to.
        model: the adapted base.
        ranks: of the clients, where they differ: each trains the adapter that it was sent, and
            what DP-SGD clips and noises are its own coordinates alone.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: PrivacyPlan,
        model: AdaptedModel,
        ranks: MixedRanks | None = None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._model = model
        self._ranks = ranks
        self._kinds = config.trained_kinds
        self._parts: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self._reached: set[str] = set()
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
        return self._private is not None or self._twin_of_example

    def sent_part(self, vector: Vector, server_round: int) -> Vector:
        """Return those of the global factors that a round trains and sends."""
        kinds = self._config.sent_kinds(server_round)
        if kinds == self._kinds:
            return vector
        key = (kinds, vector.size)
        if key not in self._parts:
            self._parts[key] = coordinates(self._spec_of(vector), kinds, within=self._kinds)
        return vector[self._parts[key]]

    def settings(self, server_round: int) -> TrainSettings:
        """Return how clients train in a round: the learning rate follows the scenario's schedule.

        Raises:
            InvalidValue: if the rate changes over the rounds and the round is not planned.
        """
        clients, rounds = self._config.clients, self._config.run.rounds
        if clients.schedule == "constant" and clients.warmup_rounds == 0:
            return self._settings
        factor = rate_factor(
            clients.schedule,
            server_round=server_round,
            rounds=rounds,
            warmup_rounds=clients.warmup_rounds,
        )
        return replace(self._settings, learning_rate=clients.learning_rate * factor)

    def take(
        self,
        start: Vector,
        index: int,
        server_round: int,
        examples: list[Example],
        *,
        own: Vector | None = None,
    ) -> Vector:
        """Train one client and return those of its factors that the round sends.

        Args:
            start: the global factors.
            index: which client of the population.
            server_round: the round.
            examples: its training examples.
            own: the client's own factors, where it keeps some; their kinds stay in the model.

        Raises:
            NoUsableText: if there are no examples and steps are plain.
            SchemaMismatch: if other steps were noised than the plan charges.
        """
        with self._model.narrowed(self._spec_of(start)):
            return self._taken(start, index, server_round, examples, own)

    def _taken(
        self,
        start: Vector,
        index: int,
        server_round: int,
        examples: list[Example],
        own: Vector | None,
    ) -> Vector:
        """Train one client on the model as wide as its adapter."""
        sent = self._begin(start, server_round, own)
        settings = self.settings(server_round)
        labels = (index, server_round)
        rng = self._batches_rng(labels)
        if self._private is not None:
            noised = train_private(
                self._model,
                examples,
                settings,
                **_clip_and_noise(self._private, server_round),
                source=self.noise("example-noise", *labels),
                rng=rng,
            )
            _check_steps(noised, self._private)
        elif self._twin_of_example:
            train_unprotected_poisson(
                self._model,
                examples,
                settings,
                sampling_probability=self._sampling_probability(),
                source=self._twins_coins(labels),
                rng=rng,
            )
        else:
            train_plain(self._model, examples, settings, rng=rng)
        return self._model.read_vector(sent)

    def take_together(
        self,
        start: Vector,
        indices: Sequence[int],
        server_round: int,
        examples: Sequence[Sequence[Example]],
        *,
        tokens: int,
    ) -> list[Vector]:
        """Train several clients at once; each result is that of :meth:`take`, up to rounding.

        Args:
            start: the global factors, as wide as all of these clients hold them.
            indices: which clients of the population.
            server_round: the round.
            examples: the training examples of each.
            tokens: how many go through the model at once.
        """
        with self._model.narrowed(self._spec_of(start)):
            return self._taken_together(start, indices, server_round, examples, tokens)

    def _taken_together(
        self,
        start: Vector,
        indices: Sequence[int],
        server_round: int,
        examples: Sequence[Sequence[Example]],
        tokens: int,
    ) -> list[Vector]:
        """Train several clients at once on the model as wide as their adapters."""
        self._begin(start, server_round)
        model, settings = self._model, self.settings(server_round)
        labels = [(index, server_round) for index in indices]
        if self._private is not None:
            found, noised = train_private_group(
                model,
                examples,
                settings,
                **_clip_and_noise(self._private, server_round),
                sources=[self.noise("example-noise", *label) for label in labels],
                tokens=tokens,
            )
            _check_steps(noised, self._private)
        elif self._twin_of_example:
            found = train_unprotected_group(
                model,
                examples,
                settings,
                sampling_probability=self._sampling_probability(),
                sources=[self._twins_coins(label) for label in labels],
                tokens=tokens,
            )
        else:
            rngs = [self._batches_rng(label) for label in labels]
            found = train_plain_group(model, examples, settings, rngs=rngs, tokens=tokens)
        return list(found)

    def noise(self, *labels: str | int) -> NoiseSource:
        """Return the generator of one participation's coins and noise."""
        if self._plan.noise_source == "seeded-simulation":
            return NoiseSource.seeded(self._config.run.seed, *labels)
        return NoiseSource.from_os()

    def _spec_of(self, vector: Vector) -> AdapterSpec:
        """Return the adapter that a vector of all factors that move is of."""
        if self._ranks is None:
            return self._model.spec
        return self._ranks.spec_of(vector, self._kinds)

    def _begin(self, start: Vector, server_round: int, own: Vector | None = None) -> str:
        """Load a client's factors, let those train that move; return the kinds it sends."""
        policy = self._config.policy_facts
        self._model.load_vector(start, self._kinds)
        if own is not None:
            self._model.load_vector(own, policy.kept)
        trained = policy.trained(server_round)
        if self._model.kinds != trained:
            self._model.set_trainable(trained)
        if trained not in self._reached:
            require_gradient(self._model)
            self._reached.add(trained)
        return policy.sent(server_round)

    @property
    def _private(self) -> PrivacyPlan | None:
        """The plan of DP-SGD steps, where there are any."""
        return self._plan if self._plan.mode == "example" else self._plan.example

    @property
    def _twin_of_example(self) -> bool:
        """Whether this is the non-private twin of a scenario whose local steps are DP-SGD."""
        config = self._config
        return self._plan.mode == "none" and any(
            said.max_grad_norm is not None for said in (config.privacy, config.example)
        )

    def _batches_rng(self, labels: tuple[int, int]) -> np.random.Generator:
        """Return the generator of a participation's batches and dropout masks."""
        return data_rng(self._config.run.seed, "batches", *labels)

    def _twins_coins(self, labels: tuple[int, int]) -> NoiseSource:
        """Return the coins of a participation in a non-private twin."""
        return NoiseSource.seeded(self._config.run.seed, "example-noise", *labels)

    def _sampling_probability(self) -> float:
        """Return the scenario's sampling probability of an example."""
        config = self._config
        probability = config.privacy.sampling_probability or config.example.sampling_probability
        if probability is None:
            msg = "sampling_probability is set neither in privacy nor in example."
            raise InvalidValue(msg)
        return probability


def _clip_and_noise(plan: PrivacyPlan, server_round: int) -> dict[str, float]:
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


def _check_steps(noised: int, plan: PrivacyPlan) -> None:
    """Refuse a number of noised steps other than the one that the plan charges."""
    if noised != plan.releases_per_round:
        msg = f"Ran {noised} noised steps, expected {plan.releases_per_round} by the plan."
        raise SchemaMismatch(msg)
