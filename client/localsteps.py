"""How a scenario's clients train locally: plain or by DP-SGD, one alone or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.cohort import train_plain_group, train_private_group, train_unprotected_group
from client.gradientcheck import require_gradient
from client.steprules import StepRules, check_steps, clip_and_noise
from client.training import train_plain, train_private, train_unprotected_poisson

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.training import Example
    from shared.config import RunConfig
    from shared.lora import Vector
    from shared.mixedranks import MixedRanks
    from shared.privacy.plan import PrivacyPlan


class LocalSteps(StepRules):
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
        super().__init__(config, plan, model.spec, ranks)
        self._model = model
        self._reached: set[str] = set()

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
        with self._model.narrowed(self.spec_of(start)):
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
        rng = self.batches_rng(labels)
        if self.private is not None:
            noised = train_private(
                self._model,
                examples,
                settings,
                **clip_and_noise(self.private, server_round),
                source=self.noise("example-noise", *labels),
                rng=rng,
            )
            check_steps(noised, self.private)
        elif self.twin_of_example:
            train_unprotected_poisson(
                self._model,
                examples,
                settings,
                sampling_probability=self.sampling_probability(),
                source=self.twins_coins(labels),
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
        with self._model.narrowed(self.spec_of(start)):
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
        if self.private is not None:
            found, noised = train_private_group(
                model,
                examples,
                settings,
                **clip_and_noise(self.private, server_round),
                sources=[self.noise("example-noise", *label) for label in labels],
                tokens=tokens,
            )
            check_steps(noised, self.private)
        elif self.twin_of_example:
            found = train_unprotected_group(
                model,
                examples,
                settings,
                sampling_probability=self.sampling_probability(),
                sources=[self.twins_coins(label) for label in labels],
                tokens=tokens,
            )
        else:
            rngs = [self.batches_rng(label) for label in labels]
            found = train_plain_group(model, examples, settings, rngs=rngs, tokens=tokens)
        return list(found)

    def _begin(self, start: Vector, server_round: int, own: Vector | None = None) -> str:
        """Load a client's factors, let those train that move; return the kinds it sends."""
        policy = self.config.policy_facts
        self._model.load_vector(start, self.kinds)
        if own is not None:
            self._model.load_vector(own, policy.kept)
        trained = policy.trained(server_round)
        if self._model.kinds != trained:
            self._model.set_trainable(trained)
        if trained not in self._reached:
            require_gradient(self._model)
            self._reached.add(trained)
        return policy.sent(server_round)
