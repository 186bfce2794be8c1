"""Shadow adapters: the run's base and adapter shape, trained on chosen texts in one place.

An attacker cannot repeat a federated run for every shadow, and neither can an audit in minutes.
Texts are pooled and trained on in plain steps, without rounds, clipping or noise. Where the run
was private, its adapter learned less of every text than a shadow does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.data import Record
from client.tokenization import make_examples
from client.training import TrainSettings, train_plain
from server.audit.shadowscores import Shadows
from server.audit.target import Passage, Reading
from shared.lora import initial_factors
from shared.seeding import data_rng
from simulations.auditing.target import ModelTarget

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.config import RunConfig

PASSES = 4.0
"""Passes over the chosen texts."""

LEARNING_RATE = 5e-3
BATCH = 16


class TrainedShadows(Shadows):
    """Trains shadow adapters on the model under audit, which is as before after each.

    Args:
        model: base and adapter of the run; its factors are changed and put back.
        config: the scenario: which factors train, how texts are cut and joined, and the seed.
        passes: passes over the chosen texts.
        learning_rate: of AdamW.
    """

    def __init__(
        self,
        model: AdaptedModel,
        config: RunConfig,
        *,
        passes: float = PASSES,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self._model, self._config = model, config
        self._settings = TrainSettings(
            local_epochs=passes,
            batch_size=BATCH,
            learning_rate=learning_rate,
            optimizer="adamw",
            physical_batch=config.performance.physical_batch,
        )
        self._reader = ModelTarget(
            model, max_length=config.data.max_length, template=config.data.template
        )

    @property
    def recipe(self) -> str:
        """Return how an adapter is trained."""
        settings = self._settings
        return (
            f"{settings.local_epochs:g} passes of AdamW over pooled texts, batches of "
            f"{settings.batch_size}, learning rate {settings.learning_rate:g}, factors "
            f"{self._config.policy_facts.local}, nothing clipped or noised"
        )

    def read(
        self, chosen: Sequence[Passage], passages: Sequence[Passage], *, number: int
    ) -> list[Reading]:
        """Train one adapter from the run's own start, and read passages with it."""
        model, data = self._model, self._config.data
        examples = make_examples(
            [_record(passage) for passage in chosen],
            model.base.tokenizer,
            max_length=data.max_length,
            template=data.template,
        )
        before, kinds = model.factors(), model.kinds
        seed = self._config.run.seed
        try:
            model.load(initial_factors(model.spec, seed))
            model.set_trainable(self._config.policy_facts.local)
            with model.beneath.removed():
                train_plain(model, examples, self._settings, rng=data_rng(seed, "shadow", number))
                return self._reader.read(passages, adapter=True)
        finally:
            model.load(before)
            model.set_trainable(kinds)


def _record(passage: Passage) -> Record:
    """Return a passage as training reads it."""
    if passage.prompt:
        return Record(prompt=passage.prompt, response=passage.text)
    return Record(text=passage.text)
