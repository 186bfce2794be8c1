"""One client's work in a round, without any transport: data in, update out.

The runtime holds what is expensive and shared (the frozen base with its adapter, tokenised
examples) and is handed an index and an instruction. In a simulation one runtime serves every
virtual client of the process; on a device it serves one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from client.evaluation import evaluate
from client.tokenization import make_examples
from client.training import (
    TrainSettings,
    train_plain,
    train_private,
    train_unprotected_poisson,
)
from client.update import clipped_update, noised_update, plain_update
from shared.config import RunConfig
from shared.errors import InvalidValue, NoUsableText, SchemaMismatch
from shared.lora import initial_factors
from shared.privacy.noise import NoiseSource
from shared.seeding import data_rng
from shared.wire import ClientUpdate, Instruction, Measurement

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.data import ClientData, Record
    from client.training import Example
    from shared.privacy.plan import PrivacyPlan

_CACHED_CLIENTS = 4096


class ClientSource(Protocol):
    """Where a client's records come from."""

    def client(self, index: int) -> ClientData:
        """Return the records of one client."""


class ClientRuntime:
    """Trains and measures clients on one shared frozen base.

    Guarantee:
        What leaves :meth:`train` is what the privacy mode allows to leave: a noised delta in
        mode ``example``, a clipped delta in ``client-central`` (where the server is trusted with
        it), a plain delta only in mode ``none``. No count, loss or norm is returned.

    Args:
        config: the scenario.
        plan: the privacy plan, made from the same scenario.
        model: the frozen base with its adapter; changed in place.
        source: where records come from.
    """

    def __init__(
        self, *, config: RunConfig, plan: PrivacyPlan, model: AdaptedModel, source: ClientSource
    ) -> None:
        self.config = config
        self.plan = plan
        self.model = model
        self._source = source
        self._kinds = config.trained_kinds
        self._digests = (config.digest(), plan.digest())
        self._cache: OrderedDict[int, tuple[list[Example], list[Example]]] = OrderedDict()
        model.load(initial_factors(model.spec, config.run.seed))
        model.set_trainable(self._kinds)

    def train(self, index: int, instruction: Instruction) -> ClientUpdate:
        """Train one client and return its update.

        Args:
            index: which client of the population.
            instruction: the global adapter and what it belongs to.

        Raises:
            SchemaMismatch: if the instruction belongs to another scenario or plan.
            NoUsableText: if the client has no text.
        """
        self._check(instruction)
        examples, _ = self.examples(index)
        before = instruction.vector
        self.model.load_vector(before, self._kinds)
        labels = (index, instruction.server_round)
        if self.plan.mode == "example":
            return self._train_example(examples, instruction, labels)
        rng = data_rng(self.config.run.seed, "batches", *labels)
        if self._twin_of_example():
            train_unprotected_poisson(
                self.model,
                examples,
                self._settings(),
                sampling_probability=self._sampling_probability(),
                source=NoiseSource.seeded(self.config.run.seed, "example-noise", *labels),
                rng=rng,
            )
        else:
            train_plain(self.model, examples, self._settings(), rng=rng)
        after = self.model.read_vector(self._kinds)
        if self.plan.mode == "none":
            return self._reply(instruction, plain_update(before, after), "plain")
        if self.plan.clipping_norm is None:
            msg = "clipping_norm=None, expected a bound in mode client-central."
            raise InvalidValue(msg)
        clipped = clipped_update(before, after, clipping_norm=self.plan.clipping_norm)
        return self._reply(instruction, clipped.vector, "clipped")

    def measure(self, index: int, instruction: Instruction) -> Measurement:
        """Return one client's held-out loss under the adapter of the instruction.

        Raises:
            SchemaMismatch: if the instruction belongs to another scenario or plan.
        """
        self._check(instruction)
        _, held_out = self.examples(index)
        if not held_out:
            return Measurement(loss=float("nan"), tokens=0)
        self.model.load_vector(instruction.vector, self._kinds)
        result = evaluate(self.model, held_out, batch_size=self.config.evaluation.batch_size)
        return Measurement(loss=result.loss, tokens=result.tokens)

    def examples(self, index: int) -> tuple[list[Example], list[Example]]:
        """Return a client's tokenised training and held-out examples, cached."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        data = self._source.client(index)
        train = self._tokenise(data.train)
        held_out = self._held_out(data.holdout)
        self._cache[index] = (train, held_out)
        if len(self._cache) > _CACHED_CLIENTS:
            self._cache.popitem(last=False)
        return train, held_out

    def _tokenise(self, records: Sequence[Record]) -> list[Example]:
        """Turn records into examples under the scenario's data section."""
        data = self.config.data
        return make_examples(
            records, self.model.base.tokenizer, max_length=data.max_length, template=data.template
        )

    def _held_out(self, records: Sequence[Record]) -> list[Example]:
        """Turn held-out records into examples; none where nothing of them is left after cutting."""
        if not records:
            return []
        try:
            return self._tokenise(records)
        except NoUsableText:
            return []

    def _train_example(
        self, examples: list[Example], instruction: Instruction, labels: tuple[int, int]
    ) -> ClientUpdate:
        """Run the DP-SGD steps of one participation."""
        plan = self.plan
        if plan.max_grad_norm is None or plan.noise_multiplier is None:
            msg = "Mode example needs max_grad_norm and noise_multiplier."
            raise InvalidValue(msg)
        before = instruction.vector
        steps = train_private(
            self.model,
            examples,
            self._settings(),
            max_grad_norm=plan.max_grad_norm,
            noise_multiplier=plan.noise_multiplier,
            sampling_probability=plan.sampling_probability,
            source=self._noise("example-noise", *labels),
            rng=data_rng(self.config.run.seed, "batches", *labels),
        )
        if steps != plan.releases_per_round:
            msg = f"Ran {steps} noised steps, expected {plan.releases_per_round} by the plan."
            raise SchemaMismatch(msg)
        after = self.model.read_vector(self._kinds)
        return self._reply(instruction, noised_update(before, after), "noised")

    def _noise(self, *labels: str | int) -> NoiseSource:
        """Return the generator of this participation's coins and noise."""
        if self.plan.noise_source == "seeded-simulation":
            return NoiseSource.seeded(self.config.run.seed, *labels)
        return NoiseSource.from_os()

    def _settings(self) -> TrainSettings:
        """Return the local optimizer's settings."""
        clients = self.config.clients
        return TrainSettings(
            local_steps=clients.local_steps,
            local_epochs=clients.local_epochs,
            batch_size=clients.batch_size,
            learning_rate=clients.learning_rate,
            optimizer=clients.optimizer,
            physical_batch=self.config.performance.physical_batch,
            clipper=self.config.performance.clipper,
        )

    def _twin_of_example(self) -> bool:
        """Tell whether this is the non-private twin of an ``example`` scenario."""
        return self.plan.mode == "none" and self.config.privacy.max_grad_norm is not None

    def _sampling_probability(self) -> float:
        """Return the scenario's sampling probability of an example."""
        probability = self.config.privacy.sampling_probability
        if probability is None:
            msg = "privacy.sampling_probability is not set."
            raise InvalidValue(msg)
        return probability

    def _check(self, instruction: Instruction) -> None:
        """Refuse an instruction of another scenario, plan or adapter shape."""
        if (instruction.config_digest, instruction.plan_digest) != self._digests:
            msg = "The instruction belongs to another scenario or privacy plan."
            raise SchemaMismatch(msg)
        expected = self.model.spec.size(self._kinds)
        if instruction.vector.size != expected or not np.isfinite(instruction.vector).all():
            msg = f"Found an adapter of {instruction.vector.size} values, expected {expected}."
            raise SchemaMismatch(msg, hint="All values must be finite.")

    def _reply(self, instruction: Instruction, vector: np.ndarray, stage: str) -> ClientUpdate:
        """Wrap a vector as the answer to an instruction."""
        return ClientUpdate(
            server_round=instruction.server_round,
            config_digest=instruction.config_digest,
            stage=stage,  # type: ignore[arg-type]
            vector=vector,
        )
