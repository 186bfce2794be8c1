"""One client's answer to a round, without any transport and whatever trains it.

What is clipped, noised, coded and checked is the same for a client with torch
(:mod:`client.runtime`) and one without (:mod:`client.edge.runtime`). Nothing here needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from client.localexamples import local_examples
from client.residuals import FOLDER, StoredResiduals
from client.steprules import StepRules
from client.tokencache import TokenCache
from client.update import clipped_update, noised_update, plain_update
from client.uplink import Uplink
from client.voting import require_reference, vote_on
from shared.config import RunConfig
from shared.errors import NoUsableText, SchemaMismatch, SensitivityError
from shared.link import Downlink
from shared.lora import AdapterSpec, Vector, initial_factors
from shared.mixedranks import mixed_ranks
from shared.privacy.distributed import NoisedShare
from shared.ranklinks import first_links
from shared.wire import ClientUpdate, Instruction, Measurement, Stage

if TYPE_CHECKING:
    from client.data import ClientData
    from client.examples import Example
    from shared.privacy.plan import PrivacyPlan
    from shared.privacy.secagg.keys import Identity, Roster
    from shared.residual import Residual


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


class Participant(ABC):
    """Answers rounds for clients; a subclass takes the local steps.

    Guarantee:
        What leaves :meth:`train` is what the privacy mode allows to leave: a noised delta in
        mode ``example``, a clipped delta in ``client-central`` (where the server is trusted with
        it), a plain delta only in mode ``none``. In ``client-distributed`` only
        :meth:`train_share` answers, with an encoded, noised share that is masked before it travels.
        No count, loss or norm is returned; a vote only in the rounds in which the plan has one.

    Args:
        config: the scenario.
        plan: the privacy plan, made from the same scenario.
        spec: of the adapter.
        source: where records come from.
        keyring: identity and roster for secure aggregation; needed in client-distributed.
    """

    _steps: StepRules

    def __init__(
        self,
        *,
        config: RunConfig,
        plan: PrivacyPlan,
        spec: AdapterSpec,
        source: ClientSource,
        keyring: Keyring | None = None,
    ) -> None:
        self.config = config
        self.plan = plan
        self.spec = spec
        self.keyring = keyring
        self._source = source
        self._kinds = config.trained_kinds
        self.digests = (config.digest(), plan.digest())
        self._cache = TokenCache()
        self.ranks = mixed_ranks(config, spec)
        self._start = initial_factors(spec, config.adapter_seed)
        moved = spec.flatten(self._start, self._kinds)
        self._downlinks = first_links(config, moved, self.ranks, r=spec.r)
        self._uplink = Uplink(config, plan)

    @property
    @abstractmethod
    def tokenizer(self) -> Any:  # noqa: ANN401  (transformers' or our own: client.tokenization)
        """Return what turns text into token ids."""

    @abstractmethod
    def measure(self, index: int, instruction: Instruction) -> Measurement:
        """Return one client's held-out loss under the adapter of the instruction."""

    @abstractmethod
    def _after_local_steps(self, index: int, instruction: Instruction) -> Vector:
        """Return the factors that the round sends after one participation's local steps."""

    @abstractmethod
    def _held_out_loss(self, index: int, held_out: list[Example], vector: Vector) -> float:
        """Return a client's mean held-out loss under the factors that move; NaN for no token."""

    def _vote(self, index: int, instruction: Instruction) -> int | None:
        """Return a client's vote in a round that has one; None in every other."""
        if instruction.reference is None:
            return None
        held_out = self.examples(index)[1]
        if not held_out:
            return 0
        return vote_on(
            lambda vector: self._held_out_loss(index, held_out, vector),
            instruction.vector,
            instruction.reference,
            min_improvement=self.config.stopping.min_improvement,
        )

    def expect_training(
        self, index: int, instruction: Instruction, coming: Iterable[tuple[int, Instruction]]
    ) -> None:
        """Be told who trains now and who trains next; a participant may train some ahead."""
        del index, instruction, coming

    def expect_measuring(
        self, index: int, instruction: Instruction, coming: Iterable[tuple[int, Instruction]]
    ) -> None:
        """Be told who is measured now and next; a participant may measure some ahead."""
        del index, instruction, coming

    @property
    def dimension(self) -> int:
        """Return the number of parameters that a run moves, and that a round starts from."""
        return self.spec.size(self._kinds)

    def update_size(self, server_round: int) -> int:
        """Return the number of parameters that a round sums: those of the largest rank."""
        return self.spec.size(self.config.sent_kinds(server_round))

    def downlink_of(self, index: int) -> Downlink:
        """Return what reads the coded adapter of one client."""
        return self._downlinks[self._rank(index)]

    def _rank(self, index: int) -> int:
        """Return the rank that a client trains."""
        return self.spec.r if self.ranks is None else self.ranks.of(index)

    def remember_in(self, folder: Path | None) -> None:
        """Keep what clients do not send in a folder, so that it outlives the process.

        Args:
            folder: of the run in a simulation, of the device's state on a device; None keeps it in
                memory, and leaves what an earlier folder holds as it is.
        """
        stored = None if folder is None else StoredResiduals(folder / FOLDER)
        self._uplink = Uplink(self.config, self.plan, stored)

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

    def examples(self, index: int) -> tuple[list[Example], list[Example]]:
        """Return a client's tokenised training and held-out examples, cached."""
        known = self._cache.get(index)
        if known is None:
            known = local_examples(self._source.client(index), self.config, self.tokenizer)
            self._cache.keep(index, known)
        return known

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
        ranks = {self._rank(client) for client in clients} or {self.spec.r}
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
        self._put_beneath(instruction.residual)

    def _put_beneath(self, residual: Residual | None) -> None:
        """Refuse what lies beneath an adapter: a subclass that can change its base puts it in."""
        if residual is not None:
            msg = "The instruction has a residual, and this client cannot change its base."
            raise SchemaMismatch(msg)

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
