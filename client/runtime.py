"""One client's work in a round, without any transport: data in, update out.

The runtime holds what is expensive and shared (the frozen base with its adapter, tokenised
examples) and is handed an index and an instruction. In a simulation one runtime serves every
virtual client of the process; on a device it serves one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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
from shared.errors import InvalidValue, NoUsableText, SchemaMismatch, SensitivityError
from shared.lora import Vector, initial_factors
from shared.privacy.distributed import NoisedShare
from shared.privacy.noise import NoiseSource
from shared.seeding import data_rng
from shared.wire import ClientUpdate, Instruction, Measurement

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.data import ClientData, Record
    from client.training import Example
    from shared.privacy.plan import PrivacyPlan
    from shared.privacy.secagg.keys import Identity, Roster

_CACHED_CLIENTS = 4096


class ClientSource(Protocol):
    """Where a client's records come from."""

    def client(self, index: int) -> ClientData:
        """Return the records of one client."""


@runtime_checkable
class DirectedSource(Protocol):
    """A source some of whose clients are canaries: they own no text and send one fixed change."""

    def direction(self, index: int, dimension: int) -> Vector | None:
        """Return the change that a canary client sends, shape ``(dimension,)``; else None."""


class Keyring(Protocol):
    """The keys with which a client takes part in secure aggregation."""

    @property
    def roster(self) -> Roster:
        """Return the identity keys of all clients, which never come from the server."""

    def identity(self, client: int) -> Identity:
        """Return the signing key of a client that this process speaks for."""


class ClientRuntime:
    """Trains and measures clients on one shared frozen base.

    Guarantee:
        What leaves :meth:`train` is what the privacy mode allows to leave: a noised delta in
        mode ``example``, a clipped delta in ``client-central`` (where the server is trusted with
        it), a plain delta only in mode ``none``. In ``client-distributed`` only
        :meth:`train_share` answers, with an encoded, noised share that is masked before it travels.
        No count, loss or norm is returned.

    Args:
        config: the scenario.
        plan: the privacy plan, made from the same scenario.
        model: the frozen base with its adapter; changed in place.
        source: where records come from.
        keyring: identity and roster for secure aggregation; needed in client-distributed.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        plan: PrivacyPlan,
        model: AdaptedModel,
        source: ClientSource,
        keyring: Keyring | None = None,
    ) -> None:
        self.config = config
        self.plan = plan
        self.model = model
        self.keyring = keyring
        self._source = source
        self._kinds = config.trained_kinds
        self.digests = (config.digest(), plan.digest())
        self._cache: OrderedDict[int, tuple[list[Example], list[Example]]] = OrderedDict()
        model.load(initial_factors(model.spec, config.run.seed))
        model.set_trainable(self._kinds)

    @property
    def dimension(self) -> int:
        """Return the number of trained parameters."""
        return self.model.spec.size(self._kinds)

    def train(self, index: int, instruction: Instruction) -> ClientUpdate:
        """Train one client and return its update.

        Args:
            index: which client of the population.
            instruction: the global adapter and what it belongs to.

        Raises:
            SchemaMismatch: if the instruction belongs to another scenario or plan.
            SensitivityError: in mode client-distributed, where only :meth:`train_share` may answer.
            NoUsableText: if the client has no text.
        """
        self._check(instruction)
        if self.plan.mode == "client-distributed":
            msg = "mode='client-distributed': an update leaves only as a share of a masked sum."
            raise SensitivityError(msg)
        before, after = instruction.vector, self._after_local_steps(index, instruction)
        if self.plan.mode == "example":
            return self._reply(instruction, noised_update(before, after), "noised")
        if self.plan.mode == "none":
            return self._reply(instruction, plain_update(before, after), "plain")
        clipping_norm = self._clipping_norm(instruction)
        clipped = clipped_update(before, after, clipping_norm=clipping_norm)
        return self._reply(instruction, clipped.vector, "clipped")

    def train_share(self, index: int, instruction: Instruction, *, cohort: int) -> NoisedShare:
        """Train one client and return its noised share of a secure sum (client-distributed).

        A client without text, and one that fills a cohort up, answers with an empty update and its
        share of the noise: on the wire nobody can tell.

        Args:
            index: which client of the population.
            instruction: the global adapter and what it belongs to.
            cohort: clients in the announced cohort; each adds that part of the noise.

        Raises:
            SchemaMismatch: if the instruction belongs to another scenario or plan.
            ConflictingSettings: in any other mode.
        """
        self._check(instruction)
        mechanism = self.plan.distributed_mechanism
        before = after = instruction.vector
        if not instruction.empty:
            with suppress(NoUsableText):
                after = self._after_local_steps(index, instruction)
        clipped = clipped_update(before, after, clipping_norm=mechanism.clipping_norm)
        source = self._noise("share", index, instruction.server_round)
        return mechanism.share(clipped, cohort=cohort, source=source)

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

    def _after_local_steps(self, index: int, instruction: Instruction) -> Vector:
        """Return the factors after one participation's local steps, or a canary's fixed change."""
        fixed = self._fixed_change(index)
        if fixed is not None:
            return instruction.vector + fixed
        examples, _ = self.examples(index)
        self.model.load_vector(instruction.vector, self._kinds)
        labels = (index, instruction.server_round)
        rng = data_rng(self.config.run.seed, "batches", *labels)
        private = self.plan if self.plan.mode == "example" else self.plan.example
        if private is not None:
            self._private_steps(private, examples, labels, rng)
        elif self._twin_of_example():
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
        return self.model.read_vector(self._kinds)

    def _fixed_change(self, index: int) -> Vector | None:
        """Return what a canary client sends in place of training; None for every other client.

        Only a simulation's source knows any. What follows is the same for all: clip, noise, mask.
        """
        if not isinstance(self._source, DirectedSource):
            return None
        return self._source.direction(index, self.dimension)

    def _private_steps(
        self,
        plan: PrivacyPlan,
        examples: list[Example],
        labels: tuple[int, int],
        rng: np.random.Generator,
    ) -> None:
        """Run the DP-SGD steps of one participation, as many as the plan charges."""
        if plan.max_grad_norm is None or plan.noise_multiplier is None:
            msg = "Mode example needs max_grad_norm and noise_multiplier."
            raise InvalidValue(msg)
        steps = train_private(
            self.model,
            examples,
            self._settings(),
            max_grad_norm=plan.max_grad_norm,
            noise_multiplier=plan.noise_multiplier,
            sampling_probability=plan.sampling_probability,
            source=self._noise("example-noise", *labels),
            rng=rng,
        )
        if steps != plan.releases_per_round:
            msg = f"Ran {steps} noised steps, expected {plan.releases_per_round} by the plan."
            raise SchemaMismatch(msg)

    def _clipping_norm(self, instruction: Instruction) -> float:
        """Return the clip of a round: the plan's, or the server's where the plan lets it move."""
        moving = self.plan.quantile is not None
        norm = instruction.clipping_norm if moving else self.plan.clipping_norm
        if norm is None or moving != (instruction.clipping_norm is not None):
            msg = f"clipping_norm={instruction.clipping_norm!r} in an instruction, and the plan "
            msg += "lets the clip move." if moving else "fixes the clip."
            raise SchemaMismatch(msg)
        return norm

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
        """Tell whether this is the non-private twin of a scenario whose local steps are DP-SGD."""
        return self.plan.mode == "none" and any(
            said.max_grad_norm is not None for said in (self.config.privacy, self.config.example)
        )

    def _sampling_probability(self) -> float:
        """Return the scenario's sampling probability of an example."""
        config = self.config
        probability = config.privacy.sampling_probability or config.example.sampling_probability
        if probability is None:
            msg = "sampling_probability is set neither in privacy nor in example."
            raise InvalidValue(msg)
        return probability

    def _check(self, instruction: Instruction) -> None:
        """Refuse an instruction of another scenario, plan or adapter shape."""
        if (instruction.config_digest, instruction.plan_digest) != self.digests:
            msg = "The instruction belongs to another scenario or privacy plan."
            raise SchemaMismatch(msg)
        expected = self.dimension
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
