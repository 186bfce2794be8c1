"""One client's work in a round without torch: the exported step in place of the model.

Clip, noise, secure aggregation, ledger, policy and wire are those of every client
(:mod:`client.participant`, :mod:`client.guarding`); only the gradients come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.edge.adapter import EdgeAdapter
from client.edge.engines import open_engine
from client.edge.program import TOKENIZER, StepManifest
from client.edge.terms import require_step_for, spec_of_run
from client.edge.tokens import StepTokenizer
from client.edge.training import (
    train_plain,
    train_private,
    train_unprotected_poisson,
)
from client.guarding import Guarded
from client.ownfactors import OwnFactors
from client.participant import ClientSource, Keyring, Participant
from client.steprules import StepRules, check_steps, clip_and_noise
from shared.errors import ConflictingSettings, PolicyRefused
from shared.lora import Vector

if TYPE_CHECKING:
    from client.edge.engine import StepEngine
    from client.examples import Example
    from client.policy import ClientPolicy
    from shared.config import RunConfig
    from shared.mixedranks import MixedRanks
    from shared.privacy.plan import PrivacyPlan
    from shared.wire import Instruction, Measurement


class EdgeSteps(StepRules):
    """Takes the local steps of a participation by an exported step.

    Args:
        config: the scenario.
        plan: what the server is asked to keep to.
        engine: the step.
        factors: every factor at the largest rank, where everybody starts from.
        ranks: of the clients, where they differ.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: PrivacyPlan,
        engine: StepEngine,
        factors: Vector,
        ranks: MixedRanks | None = None,
    ) -> None:
        super().__init__(config, plan, spec_of_run(config, engine.manifest), ranks)
        self._engine = engine
        self._factors = factors
        self._adapters: dict[int, EdgeAdapter] = {}

    def adapter(self, r: int) -> EdgeAdapter:
        """Return the adapter of a rank; it holds what the last participation left in it."""
        if r not in self._adapters:
            spec = self.spec if self.ranks is None else self.ranks.spec_at(r)
            self._adapters[r] = EdgeAdapter(self._engine, self.config.policy_facts.trained(1), spec)
        return self._adapters[r]

    def begin(self, start: Vector, own: Vector | None = None) -> EdgeAdapter:
        """Return an adapter of the global factors, and of a client's own where it keeps some."""
        spec, factors = self.spec_of(start), self._factors
        if self.ranks is not None:
            factors = self.ranks.narrow(factors, spec.r, "AB")
        adapter = self.adapter(spec.r)
        adapter.load(factors, "AB")
        adapter.load(start, self.kinds)
        if own is not None:
            adapter.load(own, self.config.policy_facts.kept)
        return adapter

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
            start: the global factors that move.
            index: which client of the population.
            server_round: the round.
            examples: its training examples.
            own: the client's own factors, where it keeps some; they stay in the adapter.

        Raises:
            NoUsableText: if there are no examples and steps are plain.
            SchemaMismatch: if other steps were noised than the plan charges.
        """
        adapter = self.begin(start, own)
        adapter.set_trainable(self.config.policy_facts.trained(server_round))
        settings = self.settings(server_round)
        labels = (index, server_round)
        if self.private is not None:
            source = self.noise("example-noise", *labels)
            said = clip_and_noise(self.private, server_round)
            noised = train_private(adapter, examples, settings, source=source, **said)
            check_steps(noised, self.private)
        elif self.twin_of_example:
            train_unprotected_poisson(
                adapter,
                examples,
                settings,
                sampling_probability=self.sampling_probability(),
                source=self.twins_coins(labels),
            )
        else:
            train_plain(adapter, examples, settings, rng=self.batches_rng(labels))
        return adapter.read_vector(self.config.sent_kinds(server_round))


class EdgeRuntime(Participant):
    """Trains a client by an exported step.

    Args:
        config: the scenario.
        plan: the privacy plan, made from the same scenario.
        engine: the step.
        tokenizer: of the step.
        source: where records come from.
        keyring: identity and roster for secure aggregation; needed in client-distributed.

    Raises:
        ConflictingSettings: if the step was not exported for such a scenario.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        plan: PrivacyPlan,
        engine: StepEngine,
        tokenizer: StepTokenizer,
        source: ClientSource,
        keyring: Keyring | None = None,
    ) -> None:
        require_step_for(config, engine.manifest)
        spec = spec_of_run(config, engine.manifest)
        super().__init__(config=config, plan=plan, spec=spec, source=source, keyring=keyring)
        factors = spec.flatten(self._start)
        self._steps: EdgeSteps = EdgeSteps(config, plan, engine, factors, self.ranks)
        self._widest = engine.manifest.adapter.r
        self._tokenizer = tokenizer
        self.remember_in(None)

    @property
    def tokenizer(self) -> StepTokenizer:
        """Return the tokenizer of the step."""
        return self._tokenizer

    def remember_in(self, folder: Path | None) -> None:
        """Keep what clients do not send in a folder; see :meth:`Participant.remember_in`."""
        super().remember_in(folder)
        policy = self.config.policy_facts
        self._own = None
        if policy.kept:
            self._own = OwnFactors.stored(policy, self._steps.adapter(self.spec.r), folder)

    def measure(self, index: int, instruction: Instruction) -> Measurement:
        """Refuse: held-out losses leave no device.

        Raises:
            PolicyRefused: always.
        """
        del index, instruction
        msg = "Held-out losses do not leave a device."
        raise PolicyRefused(msg)

    def _check(self, instruction: Instruction, *clients: int) -> None:
        """Refuse an instruction that is not of this run, or of a rank that the step has not.

        Raises:
            ConflictingSettings: if a client's rank is above the step's.
        """
        super()._check(instruction, *clients)
        for client in clients:
            rank = self._rank(client)
            if not rank <= self._widest:
                msg = f"This device trains rank {rank}, its exported step has {self._widest}."
                raise ConflictingSettings(msg, hint="Export a step for this scenario.")

    def _held_out_loss(self, index: int, held_out: list[Example], vector: Vector) -> float:
        """Return a client's mean held-out loss under the factors that move."""
        del index
        return self._steps.begin(vector).loss_of(held_out)

    def _after_local_steps(self, index: int, instruction: Instruction) -> Vector:
        """Return the factors that the round sends after one participation's local steps."""
        examples, _ = self.examples(index)
        start, number = instruction.vector, instruction.server_round
        if self._own is None:
            return self._steps.take(start, index, number, examples)
        own = self._own.before(index, instruction)
        after = self._steps.take(start, index, number, examples, own=own)
        self._own.keep(index, instruction)
        return after


class GuardedEdgeRuntime(Guarded, EdgeRuntime):
    """The runtime of a device without torch; see :class:`client.guarding.Guarded`."""


def edge_runtime(
    folder: Path,
    manifest: StepManifest,
    *,
    config: RunConfig,
    plan: PrivacyPlan,
    source: ClientSource,
    policy: ClientPolicy,
    state: Path,
    keyring: Keyring | None = None,
) -> GuardedEdgeRuntime:
    """Return the runtime of a device that holds an exported step.

    Args:
        folder: of the step, already compared with its manifest.
        manifest: what the step is.
        config: the scenario.
        plan: the privacy plan, already checked against policy and scenario.
        source: where records come from.
        policy: the owner's limits.
        state: the device's state folder.
        keyring: identity and roster, for client-distributed.

    Raises:
        MissingDependency: if the step's runtime or the tokenizers package is not installed.
        BaseModelMismatch: if the program cannot be used.
        ConflictingSettings: if the step was not exported for such a scenario.
    """
    runtime = GuardedEdgeRuntime(
        config=config,
        plan=plan,
        engine=open_engine(folder, manifest),
        tokenizer=StepTokenizer(folder / TOKENIZER, manifest),
        source=source,
        keyring=keyring,
    )
    runtime.guard_by(policy, state)
    return runtime
