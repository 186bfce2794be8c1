"""One client's work in a round, without any transport: data in, update out.

The runtime holds what is expensive and shared (the frozen base with its adapter, tokenised
examples) and is handed an index and an instruction. In a simulation one runtime serves every
virtual client of the process; on a device it serves one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from client.cohortahead import Helper, LookAhead, group_size, tokens_at_once
from client.evaluation import evaluate, evaluate_group
from client.labelled import class_counts
from client.localsteps import LocalSteps
from client.ownfactors import OwnFactors
from client.participant import ClientSource, DirectedSource, Keyring, Participant
from shared.config import RunConfig
from shared.errors import NoUsableText
from shared.lora import Vector
from shared.wire import Instruction, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.adapter import AdaptedModel
    from client.examples import Example
    from shared.privacy.plan import PrivacyPlan
    from shared.residual import Residual

__all__ = ["ClientRuntime", "ClientSource", "DirectedSource", "Keyring"]


class ClientRuntime(Participant):
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
        super().__init__(config=config, plan=plan, spec=model.spec, source=source, keyring=keyring)
        self.model = model
        self._steps: LocalSteps = LocalSteps(config, plan, model, self.ranks)
        size = group_size(config, dimension=self.dimension)
        # Heads are not trained side by side, nor what each client keeps, nor what is no pair of
        # factors; what dropout drops is drawn client by client, and other engines keep no client
        # apart. In bfloat16 a client's neighbours would change what it sends.
        half = model.base.compute_dtype != "float32"
        classifies = config.task.classifies or bool(config.policy_facts.kept)
        alone = (
            classifies
            or bool(model.vectors)
            or model.dropout > 0
            or config.performance.clipper != "fused"
            or half
        )
        self._trained = LookAhead(self.train_group, clients=1 if alone else size)
        self._measured = LookAhead(self.measure_group, clients=1 if classifies or half else size)
        self.remember_in(None)
        model.load(self._start)
        model.set_trainable(config.policy_facts.local)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the base model."""
        return self.model.base.tokenizer

    def remember_in(self, folder: Path | None) -> None:
        """Keep what clients do not send in a folder; see :meth:`Participant.remember_in`."""
        super().remember_in(folder)
        self._own = OwnFactors.stored(self.config.policy_facts, self.model, folder)

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
        voting = instruction.reference is not None
        if voting and self._fixed_change(index, instruction.server_round) is not None:
            return 0
        return super()._vote(index, instruction)

    def _held_out_loss(self, index: int, held_out: list[Example], vector: Vector) -> float:
        """Return a client's mean held-out loss; the model holds the adapter afterwards."""
        if self.ranks is not None:
            vector = self.ranks.widen(vector, self._rank(index), self._kinds)
        self.model.load_vector(vector, self._kinds)
        try:
            size = self.config.evaluation.batch_size
            return evaluate(self.model, held_out, batch_size=size).loss
        except NoUsableText:
            return math.nan

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

    def _put_beneath(self, residual: Residual | None) -> None:
        """Put a residual into the base's weights."""
        self.model.beneath.put_told(residual, self.config.policy_facts)
