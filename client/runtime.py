"""One client's work in a round, without any transport: data in, update out.

The runtime holds what is expensive and shared (the frozen base with its adapter, tokenised
examples) and is handed an index and an instruction. In a simulation one runtime serves every
virtual client of the process; on a device it serves one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from client.cohortahead import Helper, LookAhead, group_size, tokens_at_once
from client.evaluation import evaluate, evaluate_group
from client.labelled import class_counts
from client.localexamples import local_examples
from client.localsteps import LocalSteps
from client.ownfactors import OwnFactors
from client.residuals import FOLDER, StoredResiduals
from client.tokencache import TokenCache
from client.update import clipped_update, noised_update, plain_update
from client.uplink import Uplink
from client.voting import require_reference, vote_on
from shared.config import RunConfig
from shared.errors import NoUsableText, SchemaMismatch, SensitivityError
from shared.link import Downlink
from shared.lora import Vector, initial_factors
from shared.mixedranks import mixed_ranks
from shared.privacy.distributed import NoisedShare
from shared.ranklinks import first_links
from shared.wire import ClientUpdate, Instruction, Measurement, Stage

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.data import ClientData
    from client.training import Example
    from shared.privacy.plan import PrivacyPlan
    from shared.privacy.secagg.keys import Identity, Roster


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
        No count, loss or norm is returned; a vote only in the rounds in which the plan has one.

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
        self._cache = TokenCache()
        self.ranks = mixed_ranks(config, model.spec)
        self._steps = LocalSteps(config, plan, model, self.ranks)
        size = group_size(config, dimension=self.dimension)
        # Heads and mixtures are not trained side by side, nor what each client keeps; what dropout
        # drops is drawn client by client, and other engines keep no client apart.
        classifies = config.task.classifies or bool(config.policy_facts.kept)
        alone = (
            classifies
            or model.router is not None
            or model.dropout > 0
            or config.performance.clipper != "fused"
        )
        self._trained = LookAhead(self.train_group, clients=1 if alone else size)
        self._measured = LookAhead(self.measure_group, clients=1 if classifies else size)
        start = initial_factors(model.spec, config.adapter_seed)
        moved = model.spec.flatten(start, self._kinds)
        self._downlinks = first_links(config, moved, self.ranks, r=model.spec.r)
        self.remember_in(None)
        model.load(start)
        model.set_trainable(config.policy_facts.local)

    @property
    def dimension(self) -> int:
        """Return the number of parameters that a run moves, and that a round starts from."""
        return self.model.spec.size(self._kinds)

    def update_size(self, server_round: int) -> int:
        """Return the number of parameters that a round sums: those of the largest rank."""
        return self.model.spec.size(self.config.sent_kinds(server_round))

    def downlink_of(self, index: int) -> Downlink:
        """Return what reads the coded adapter of one client."""
        return self._downlinks[self._rank(index)]

    def _rank(self, index: int) -> int:
        """Return the rank that a client trains."""
        return self.model.spec.r if self.ranks is None else self.ranks.of(index)

    def expect_training(
        self, index: int, instruction: Instruction, coming: Iterable[tuple[int, Instruction]]
    ) -> None:
        """Be told who trains now and who trains next; may train some of them ahead, together.

        Nothing leaves here: what was trained ahead goes through the same clip, noise and checks
        when its client is called. An empty participation trains nothing.

        Args:
            index: which client is about to be called.
            instruction: what it is told.
            coming: the clients after it with what they are told, in order.
        """
        if not instruction.empty:
            self._trained.expect(index, instruction, (c for c in coming if not c[1].empty))

    def expect_measuring(
        self, index: int, instruction: Instruction, coming: Iterable[tuple[int, Instruction]]
    ) -> None:
        """Be told who is measured now and next; may measure some of them ahead, together."""
        self._measured.expect(index, instruction, coming)

    def helped_by(
        self, trainers: Sequence[Helper[Vector]], measurers: Sequence[Helper[Measurement]]
    ) -> None:
        """Let groups be computed elsewhere too.

        Args:
            trainers: each does what :meth:`train_group` does.
            measurers: each does what :meth:`measure_group` does.
        """
        self._trained.helped_by(trainers)
        self._measured.helped_by(measurers)

    def remember_in(self, folder: Path | None) -> None:
        """Keep what clients do not send in a folder, so that it outlives the process.

        Args:
            folder: of the run in a simulation, of the device's state on a device; None keeps it in
                memory, and leaves what an earlier folder holds as it is.
        """
        stored = None if folder is None else StoredResiduals(folder / FOLDER)
        self._uplink = Uplink(self.config, self.plan, stored)
        self._own = OwnFactors.stored(self.config.policy_facts, self.model, folder)

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
        self._check(instruction, index)
        if self.plan.mode == "client-distributed":
            msg = "mode='client-distributed': an update leaves only as a share of a masked sum."
            raise SensitivityError(msg)
        before = self._steps.sent_part(instruction.vector, instruction.server_round)
        after = self._after_local_steps(index, instruction)
        if self.plan.mode == "example":
            return self._reply(index, instruction, noised_update(before, after), "noised")
        if self.plan.mode == "none":
            return self._reply(index, instruction, plain_update(before, after), "plain")
        clip = self._clipping_norm(instruction)
        clipped = clipped_update(before, after, clipping_norm=clip)
        update = self._reply(index, instruction, clipped.vector, "clipped", clipping_norm=clip)
        return replace(update, vote=self._vote(index, instruction))

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
        self._check(instruction, index)
        mechanism = self.plan.distributed_mechanism
        before = after = self._steps.sent_part(instruction.vector, instruction.server_round)
        if not instruction.empty:
            with suppress(NoUsableText):
                after = self._after_local_steps(index, instruction)
        if self.ranks is not None:
            # Masks have one length. A zero change of what this client lacks is clipped with the
            # rest, and noised like it.
            rank, kinds = self._rank(index), self.config.sent_kinds(instruction.server_round)
            before, after = (self.ranks.widen(v, rank, kinds) for v in (before, after))
        clipped = clipped_update(before, after, clipping_norm=mechanism.clipping_norm)
        source = self._steps.noise("share", index, instruction.server_round)
        return mechanism.share(clipped, cohort=cohort, source=source)

    def measure(self, index: int, instruction: Instruction) -> Measurement:
        """Return one client's held-out loss under the adapter of the instruction.

        Raises:
            SchemaMismatch: if the instruction belongs to another scenario or plan.
        """
        self._check(instruction)
        ahead = self._measured.take(index, instruction)
        if ahead is not None:
            return ahead
        _, held_out = self.examples(index)
        if not held_out:
            return Measurement(loss=float("nan"), tokens=0)
        self.model.load_vector(instruction.vector, self._kinds)
        self._own.load(index, instruction.run_id)
        result = evaluate(self.model, held_out, batch_size=self.config.evaluation.batch_size)
        classes: list[int] = []
        if self.config.task.classifies:
            labels, rows = len(self.config.task.labels), self.config.evaluation.batch_size
            classes = class_counts(self.model, held_out, labels=labels, batch_size=rows)
        return Measurement(loss=result.loss, tokens=result.tokens, classes=tuple(classes))

    def examples(self, index: int) -> tuple[list[Example], list[Example]]:
        """Return a client's tokenised training and held-out examples, cached."""
        known = self._cache.get(index)
        if known is None:
            known = local_examples(
                self._source.client(index), self.config, self.model.base.tokenizer
            )
            self._cache.keep(index, known)
        return known

    def _after_local_steps(self, index: int, instruction: Instruction) -> Vector:
        """Return the factors after one participation's local steps, or a canary's fixed change."""
        server_round = instruction.server_round
        fixed = self._fixed_change(index, server_round)
        if fixed is not None:
            return self._steps.sent_part(instruction.vector, server_round) + fixed
        ahead = self._trained.take(index, instruction)
        if ahead is not None:
            return ahead
        examples, _ = self.examples(index)
        own = self._own.before(index, instruction)
        after = self._steps.take(instruction.vector, index, server_round, examples, own=own)
        self._own.keep(index, instruction)
        return after

    def train_group(self, indices: Sequence[int], instruction: Instruction) -> dict[int, Vector]:
        """Take the local steps of those of some clients that train, all at once.

        What it returns has passed no clip and no noise of the privacy mode: it stays in the process
        until :meth:`train` or :meth:`train_share` is called.
        """
        self._check(instruction, *indices)
        group: dict[int, list[Example]] = {}
        if self.config.policy_facts.kept:
            return {}
        for index in indices:
            with suppress(NoUsableText):
                if self._fixed_change(index, instruction.server_round) is None:
                    examples, _ = self.examples(index)
                    if examples or self._steps.by_poisson_samples:
                        group[index] = examples
        if len(group) < 2:
            return {}
        said = self.config.performance.physical_batch
        vectors = self._steps.take_together(
            instruction.vector,
            list(group),
            instruction.server_round,
            list(group.values()),
            tokens=tokens_at_once(self.config, self.model, examples=said),
        )
        return dict(zip(group, vectors, strict=True))

    def measure_group(
        self, indices: Sequence[int], instruction: Instruction
    ) -> dict[int, Measurement]:
        """Measure those of some clients that hold text out, all at once."""
        self._check(instruction)
        group = {}
        for index in indices:
            with suppress(NoUsableText):
                _, group[index] = self.examples(index)
        self.model.load_vector(instruction.vector, self._kinds)
        said = self.config.evaluation.batch_size
        tokens = tokens_at_once(self.config, self.model, examples=said)
        results = evaluate_group(self.model, list(group.values()), tokens=tokens)
        return {
            index: Measurement(loss=result.loss, tokens=result.tokens)
            for index, result in zip(group, results, strict=True)
            if result.tokens > 0
        }

    def _vote(self, index: int, instruction: Instruction) -> int | None:
        """Return a client's vote in a round that has one; a canary client holds nothing out."""
        if instruction.reference is None:
            return None
        if self._fixed_change(index, instruction.server_round) is not None:
            return 0
        newest, best = instruction.vector, instruction.reference
        if self.ranks is not None:
            rank = self._rank(index)
            newest, best = (self.ranks.widen(v, rank, self._kinds) for v in (newest, best))
        return vote_on(self.model, self.examples(index)[1], newest, best, config=self.config)

    def _fixed_change(self, index: int, server_round: int) -> Vector | None:
        """Return what a canary client sends in place of training; None for every other client.

        Only a simulation's source knows any. What follows is the same for all: clip, noise, mask.
        """
        if not isinstance(self._source, DirectedSource):
            return None
        kinds = self.config.sent_kinds(server_round)
        size = self.model.spec.size(kinds)
        if self.ranks is not None:
            size = self.ranks.size(self._rank(index), kinds)
        return self._source.direction(index, size)

    def _clipping_norm(self, instruction: Instruction) -> float:
        """Return the clip of a round: the plan's, or the server's where the plan lets it move."""
        moving = self.plan.quantile is not None
        norm = instruction.clipping_norm if moving else self.plan.clipping_norm
        if norm is None or moving != (instruction.clipping_norm is not None):
            msg = f"clipping_norm={instruction.clipping_norm!r} in an instruction, and the plan "
            msg += "lets the clip move." if moving else "fixes the clip."
            raise SchemaMismatch(msg)
        return norm

    def _check(self, instruction: Instruction, *clients: int) -> None:
        """Refuse an instruction of another scenario, plan or adapter shape.

        The adapter is as wide as each of some clients trains it; without any, the whole one.
        """
        if (instruction.config_digest, instruction.plan_digest) != self.digests:
            msg = "The instruction belongs to another scenario or privacy plan."
            raise SchemaMismatch(msg)
        ranks = {self._rank(client) for client in clients} or {self.model.spec.r}
        expected = self.dimension
        if self.ranks is not None:
            expected = self.ranks.size(min(ranks), self._kinds)
        if (
            len(ranks) > 1
            or instruction.vector.size != expected
            or not np.isfinite(instruction.vector).all()
        ):
            msg = f"Found an adapter of {instruction.vector.size} values, expected {expected}."
            raise SchemaMismatch(msg, hint="All values must be finite.")
        require_reference(self.plan, instruction)

    def _reply(
        self,
        index: int,
        instruction: Instruction,
        vector: Vector,
        stage: Stage,
        *,
        clipping_norm: float | None = None,
    ) -> ClientUpdate:
        """Wrap a vector as the answer to an instruction, coded as the scenario says."""
        return ClientUpdate(
            server_round=instruction.server_round,
            config_digest=instruction.config_digest,
            stage=stage,
            vector=vector,
            coded=self._uplink.code(index, instruction, vector, clipping_norm=clipping_norm),
        )
