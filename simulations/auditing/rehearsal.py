"""DP-SGD steps of the installed client code, on examples that nobody owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from client.training import Example, TrainSettings, train_private
from server.audit.protocol import Floats
from server.audit.steps import PrivateSteps
from shared.errors import InvalidValue
from shared.lora import initial_factors
from shared.privacy.noise import SEEDED, NoiseSource
from shared.seeding import data_rng

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.privacy.plan import PrivacyPlan

_TOKENS = 16
# Against a bound this small every gradient of a fresh adapter is far too long.
_TIGHT = 1e-6
# A coin that draws as many bits as any other and never comes up.
_NEVER = 1e-300


class RehearsedSteps(PrivateSteps):
    """The steps of :func:`client.training.train_private` on the run's model.

    The learning rate is set so that one step adds noise of unit standard deviation. The adapter is
    as it was after each call.

    Args:
        model: base and adapter; the trainable factors are changed and put back.
        plan: the plan whose steps are noised: of mode example, or inside a client mode.
        clipper: the engine that the scenario names.
        seed: of noise where it may repeat.

    Raises:
        InvalidValue: for a plan without noised steps.
    """

    def __init__(
        self, model: AdaptedModel, plan: PrivacyPlan, *, clipper: str = "fused", seed: int
    ) -> None:
        steps = plan if plan.mode == "example" else plan.example
        if steps is None or steps.noise_multiplier is None or steps.max_grad_norm is None:
            msg = f"mode={plan.mode!r}: no step of a client is noised."
            raise InvalidValue(msg)
        self._model, self._clipper, self._seed = model, clipper, seed
        self._multiplier, self._norm = steps.noise_multiplier, steps.max_grad_norm
        self._fresh = steps.noise_source != SEEDED

    def noise(self, steps: int) -> Floats:
        """Return what steps without any example add, standardised."""
        sources = [self._source("step", number) for number in range(steps)]
        return np.stack([self._step(source, norm=self._norm) for source in sources])

    def contribution(self) -> float:
        """Return how far one example moves a step, in clips: the same noise with and without it."""
        with_it, without = (
            self._step(self._seeded("clip"), norm=_TIGHT, examples=[self._example()], taken=taken)
            for taken in (1.0, _NEVER)
        )
        return float(np.linalg.norm(with_it - without)) * self._multiplier

    def repeatable(self) -> bool:
        """Tell whether a step with the same seeded source adds the same noise."""
        first, second = (self._step(self._seeded("again"), norm=self._norm) for _ in range(2))
        return bool(np.array_equal(first, second))

    def _example(self) -> Example:
        """Return an example of random tokens."""
        tokens = int(self._model.base.model.config.vocab_size)
        ids = data_rng(self._seed, "rehearsed-example").integers(tokens, size=_TOKENS)
        array = ids.astype(np.int64)
        return Example(ids=array, labels=array.copy())

    def _step(
        self,
        source: NoiseSource,
        *,
        norm: float,
        examples: Sequence[Example] = (),
        taken: float = 1.0,
    ) -> Floats:
        """Return what one step adds to the adapter, in standard deviations of its noise."""
        model = self._model
        before = model.factors()
        settings = TrainSettings(
            local_steps=1,
            batch_size=1,
            learning_rate=1.0 / (self._multiplier * norm),
            clipper=self._clipper,
        )
        try:
            # A fresh adapter: its A is not zero, so a gradient reaches B.
            model.load(initial_factors(model.spec, self._seed))
            start = model.read_vector(model.kinds).astype(np.float64)
            train_private(
                model,
                examples,
                settings,
                max_grad_norm=norm,
                noise_multiplier=self._multiplier,
                sampling_probability=taken,
                source=source,
            )
            return model.read_vector(model.kinds).astype(np.float64) - start
        finally:
            model.load(before)

    def _source(self, *labels: str | int) -> NoiseSource:
        """Return a noise source of the kind that the plan names."""
        return NoiseSource.from_os() if self._fresh else self._seeded(*labels)

    def _seeded(self, *labels: str | int) -> NoiseSource:
        """Return a noise source that repeats."""
        return NoiseSource.seeded(self._seed, "rehearsed-steps", *labels)
