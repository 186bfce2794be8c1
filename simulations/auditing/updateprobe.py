"""Single updates as a server would see them, made by the client's real code, for the span audit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data import ClientData
from client.gradientcheck import public_row
from client.runtime import ClientRuntime
from client.training import Example, TrainSettings, train_plain
from server.audit.protocol import Floats
from server.audit.tokenscores import Sighting, Stage, UpdateProbe, View
from shared.errors import AuditError, NoUsableText
from shared.lora import Factors, Vector
from shared.privacy.distributed import to_signed
from shared.seeding import data_rng
from shared.wire import Instruction
from simulations.auditing.firstlayers import Group, first_layers, inputs_alone, read_ids

_STAGES: dict[str, Stage] = {
    "none": "plain",
    "client-central": "clipped",
    "example": "noised",
    "client-distributed": "masked",
}
_CLIENTS = 32
_POSITIONS = 64


class RuntimeProbe(UpdateProbe):
    """Lets clients of a simulation train once more, and keeps what would have left them.

    Nothing is released and nothing is charged: the operator of a simulation holds the text anyway.

    Args:
        runtime: the clients; its adapter is changed and put back.
        vector: the trained factors that the round starts from. With A and B both travelling, a B
            of zeros hides A's gradient in the first step.
        clients: indices of clients with text.
        seed: of made-up texts.
        server_round: the round that is played, which names batches and noise.
        clipping_norm: the clip in force, for quantile clipping.

    Raises:
        AuditError: if no adapted layer is fed with embeddings alone.
    """

    def __init__(
        self,
        runtime: ClientRuntime,
        *,
        vector: Vector,
        clients: Sequence[int],
        seed: int,
        server_round: int = 1,
        clipping_norm: float | None = None,
    ) -> None:
        self._runtime = runtime
        self._model = runtime.model
        self._indices = tuple(clients)
        self._seed = seed
        config_digest, plan_digest = runtime.digests
        self._instruction = Instruction(
            run_id="span",
            server_round=server_round,
            config_digest=config_digest,
            plan_digest=plan_digest,
            vector=vector,
            clipping_norm=clipping_norm,
        )
        self._frozen = self._model.factors()
        travelling = self._model.spec.unflatten(vector, runtime.config.trained_kinds)
        self._start: Factors = {**self._frozen, **travelling}
        self._groups, self._moving = first_layers(self._model)
        self._inputs: dict[tuple[Group, int], Floats] = {}

    @classmethod
    def of_run(cls, runtime: ClientRuntime, *, released: Vector, population: int) -> RuntimeProbe:
        """Return a probe of a finished run: some of its clients, chosen by its seed.

        Args:
            runtime: the clients.
            released: the trained factors of the released adapter.
            population: real clients; canary clients come after them and own no text.
        """
        seed = runtime.config.run.seed
        order = data_rng(seed, "span-clients").permutation(population).tolist()
        quantile = runtime.plan.quantile
        ranks, r = runtime.ranks, runtime.model.spec.r
        # A longer update tells more, so those of the largest rank are looked at.
        widest = (i for i in order if ranks is None or ranks.of(i) == r)
        return cls(
            runtime,
            vector=released,
            clients=list(itertools.islice((i for i in widest if _has_text(runtime, i)), _CLIENTS)),
            seed=seed,
            server_round=runtime.config.policy_facts.probed_round,
            clipping_norm=None if quantile is None else quantile.initial,
        )

    @property
    def mode(self) -> str:
        """Return the privacy mode."""
        return self._runtime.plan.mode

    @property
    def stage(self) -> Stage:
        """Return what is done to an update before it leaves."""
        return _STAGES[self.mode]

    @property
    def factors(self) -> str:
        """Return which factors travel."""
        return self._runtime.config.sent_kinds(self._instruction.server_round)

    @property
    def capacity(self) -> int:
        """Return r for each layer that is fed the same; under ffa one less than r."""
        rank = self._model.spec.r
        if self.factors == "B":
            return rank - 1
        return max(rank * len(group.layers) for group in self._groups)

    @property
    def clients(self) -> int:
        """Return how many clients there are."""
        return len(self._indices)

    def sighting(self, number: int) -> Sighting:
        """Return the update of one client."""
        index = self._indices[number]
        with read_ids(self._model) as fed:
            change = self._leaves(self._runtime, index)
        examples, _ = self._runtime.examples(index)
        return self._sighting(change, self.factors, self._start, fed, examples)

    def without_text(self) -> Sighting:
        """Return the update of a client without any record."""
        runtime = ClientRuntime(
            config=self._runtime.config,
            plan=self._runtime.plan,
            model=self._model,
            source=_NoText(),
        )
        # Where ranks differ, the largest is played: one of the clients that have it.
        index = 0 if runtime.ranks is None else self._indices[0]
        return self._sighting(self._leaves(runtime, index), self.factors, self._start, [], [])

    def control(self, number: int) -> Sighting:
        """Return one plain step on a made-up text that is as short as the attack needs.

        Of r + 1 tokens, r leave a trace in A; where B alone travels, r - 1 do in B. A rank of 1
        leaves B no room, so there both factors train.
        """
        model, spec = self._model, self._model.spec
        kinds = self.factors if spec.r > 1 else "AB"
        size = spec.r if kinds == "B" else spec.r + 1
        rng = data_rng(self._seed, "span-control", number)
        ids = rng.choice(self._vocabulary, size=size, replace=False).astype(np.int64)
        example = Example(ids=ids, labels=ids.copy())
        start = dict(self._frozen)
        for factor in spec.of_kind("B"):
            start[factor.name] = (0.05 * rng.standard_normal(factor.shape)).astype(np.float32)
        settings = TrainSettings(local_steps=1, batch_size=1, learning_rate=1.0)
        try:
            model.load(start)
            model.set_trainable(kinds)
            with read_ids(model) as fed:
                train_plain(model, [example], settings, rng=rng)
            change = model.read_vector(kinds) - spec.flatten(start, kinds)
        finally:
            model.set_trainable(self.factors)
            model.load(self._frozen)
        return self._sighting(change, kinds, start, fed, [example])

    @property
    def _vocabulary(self) -> int:
        """Return the number of embeddings."""
        embeddings: Any = self._model.base.model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    def _leaves(self, runtime: ClientRuntime, index: int) -> Vector:
        """Return what leaves a client, without its mask where it has one."""
        try:
            if self.stage != "masked":
                return runtime.train(index, self._instruction).vector
            mechanism = runtime.plan.distributed_mechanism
            cohort = max(1, round(runtime.plan.expected_cohort))
            share = runtime.train_share(index, self._instruction, cohort=cohort)
            unit = mechanism.clipping_norm / mechanism.grid
            return (to_signed(share.words) * unit).astype(np.float32)
        except NoUsableText as error:
            msg = "a client has no text to train on, expected clients with text."
            raise AuditError(msg) from error
        finally:
            self._model.load(self._frozen)

    def _sighting(
        self,
        change: Vector,
        kinds: str,
        start: Factors,
        fed: Sequence[NDArray[np.int64]],
        examples: Sequence[Example],
    ) -> Sighting:
        """Cut a change into views of the first block, and find out which tokens made it."""
        present, tokens, longest = self._traces(fed, examples)
        factors = self._model.spec.unflatten(change, kinds)
        views = [view for group in self._groups for view in self._views(group, factors, start)]
        positions = min(longest, _POSITIONS) if self._moving else 1
        return Sighting(
            views=tuple(views), present=present, tokens=tokens, positions=max(1, positions)
        )

    def _views(self, group: Group, factors: Factors, start: Factors) -> Iterator[View]:
        """Yield the rows of A of all layers that are fed the same, or else those of each B.

        Where B was zero, A has not moved; then B's rows are read with the A that was sent.
        """
        matrices = [factors.get(f"{layer}.lora_A.weight") for layer in group.layers]
        rows = [matrix for matrix in matrices if matrix is not None and matrix.any()]
        if rows:
            stacked = np.vstack(rows).astype(np.float64)
            yield View(rows=stacked, inputs=lambda position: self._fed(group, position))
            return
        for layer in group.layers:
            projection = start[f"{layer}.lora_A.weight"].astype(np.float64)
            yield View(
                rows=factors[f"{layer}.lora_B.weight"].astype(np.float64),
                inputs=_projected(lambda position: self._fed(group, position), projection),
            )

    def _traces(
        self, fed: Sequence[NDArray[np.int64]], examples: Sequence[Example]
    ) -> tuple[NDArray[np.bool_], int, int]:
        """Return which tokens left a trace, how many positions did, and the longest text.

        The last token of a text predicts nothing, so its position has no gradient. The row that
        every client checks its model with is no text, and leaves nothing.
        """
        present = np.zeros(self._vocabulary, dtype=np.bool_)
        tokens = longest = 0
        checked = public_row(self._model).ids
        for row in fed:
            if np.array_equal(row, checked):
                continue
            size = max(
                (e.ids.size for e in examples if np.array_equal(e.ids, row[: e.ids.size])),
                default=row.size,
            )
            present[row[: size - 1]] = True
            tokens += size - 1
            longest = max(longest, size)
        return present, tokens, longest

    def _fed(self, group: Group, position: int) -> Floats:
        """Return what layers are fed for every token of the vocabulary at a position."""
        key = (group, position)
        if key in self._inputs:
            return self._inputs[key]
        found = inputs_alone(self._model, group.layers[0], self._vocabulary, position)
        if not self._moving:
            self._inputs[key] = found
        return found


class _NoText:
    """A source whose clients own nothing."""

    def client(self, index: int) -> ClientData:
        """Return a client without records."""
        return ClientData(name=f"empty-{index}", train=[], holdout=[])


def _has_text(runtime: ClientRuntime, index: int) -> bool:
    """Tell whether a client has anything to train on."""
    try:
        examples, _ = runtime.examples(index)
    except NoUsableText:
        return False
    return bool(examples)


def _projected(inputs: Callable[[int], Floats], projection: Floats) -> Callable[[int], Floats]:
    """Return inputs as a frozen A projects them, shape ``(vocabulary, r)``."""
    return lambda position: inputs(position) @ projection.T
