"""One client's work in a round without torch: the exported step in place of the model.

Clip, noise, secure aggregation, ledger, policy and wire are those of every client
(:mod:`client.participant`, :mod:`client.guarding`); only the gradients come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.edge.engines import open_engine
from client.edge.program import TOKENIZER, StepManifest
from client.edge.terms import require_step_for
from client.edge.tokens import StepTokenizer
from client.edge.training import (
    EdgeAdapter,
    train_plain,
    train_private,
    train_unprotected_poisson,
)
from client.guarding import Guarded
from client.participant import ClientSource, Keyring, Participant
from client.steprules import StepRules, check_steps, clip_and_noise
from shared.errors import ConflictingSettings, PolicyRefused, UnsupportedModel
from shared.lora import Vector

if TYPE_CHECKING:
    from client.edge.engine import StepEngine
    from client.examples import Example
    from client.policy import ClientPolicy
    from shared.config import RunConfig
    from shared.privacy.plan import PrivacyPlan
    from shared.wire import Instruction, Measurement


class EdgeSteps(StepRules):
    """Takes the local steps of a participation by an exported step.

    Args:
        config: the scenario.
        plan: what the server is asked to keep to.
        engine: the step.
    """

    def __init__(self, config: RunConfig, plan: PrivacyPlan, engine: StepEngine) -> None:
        super().__init__(config, plan, engine.manifest.adapter)
        self._engine = engine

    def take(
        self,
        factors: Vector,
        start: Vector,
        index: int,
        server_round: int,
        examples: list[Example],
    ) -> Vector:
        """Train one client and return those of its factors that the round sends.

        Args:
            factors: every factor, where everybody starts from.
            start: the global factors, in place of those that move.
            index: which client of the population.
            server_round: the round.
            examples: its training examples.

        Raises:
            NoUsableText: if there are no examples and steps are plain.
            SchemaMismatch: if other steps were noised than the plan charges.
        """
        if self.config.policy_facts.kept:
            msg = "An exported step keeps no factors of its own, and the scenario shares A alone."
            raise UnsupportedModel(msg, hint="Use a node with torch.")
        adapter = EdgeAdapter(self._engine, self.config.sent_kinds(server_round))
        adapter.load(factors, "AB")
        adapter.load(start, self.kinds)
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
        return adapter.read()


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
        ConflictingSettings: if the step was not exported for such a scenario, or the plan has
            votes.
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
        if plan.vote is not None:
            msg = "The plan has votes on held-out losses, which an exported step does not give."
            raise ConflictingSettings(msg, hint="Leave the votes of [stopping] out.")
        spec = engine.manifest.adapter
        super().__init__(config=config, plan=plan, spec=spec, source=source, keyring=keyring)
        self._steps: EdgeSteps = EdgeSteps(config, plan, engine)
        self._tokenizer = tokenizer
        self._everything = spec.flatten(self._start)

    @property
    def tokenizer(self) -> StepTokenizer:
        """Return the tokenizer of the step."""
        return self._tokenizer

    def measure(self, index: int, instruction: Instruction) -> Measurement:
        """Refuse: a step gives gradients, and held-out losses leave no device.

        Raises:
            PolicyRefused: always.
        """
        del index, instruction
        msg = "Held-out losses do not leave a device."
        raise PolicyRefused(msg)

    def _vote(self, index: int, instruction: Instruction) -> int | None:
        """Return None: a plan with votes was refused."""
        del index, instruction
        return None

    def _after_local_steps(self, index: int, instruction: Instruction) -> Vector:
        """Return the factors that the round sends after one participation's local steps."""
        examples, _ = self.examples(index)
        number = instruction.server_round
        return self._steps.take(self._everything, instruction.vector, index, number, examples)


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
