"""Rounds of mode client-distributed over Flower messages, with clients that vanish or lie.

The clients run the real protocol of ``client.secure``; in place of training, each has a known
update. The oracle is a plain sum of what the clients encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.runtime import Keyring
from client.secure import answer_phase
from server.budget import POPULATION, RunBudget
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import FedSLMError, LedgerError, QuorumNotReached, SecureAggregationError
from shared.link import Downlink
from shared.lora import AdapterSpec, Factor
from shared.privacy.distributed import NoisedShare, wire_words
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from shared.wire import (
    Instruction,
    decode_phase_call,
    encode_failure,
    encode_phase_reply,
)
from simulations.engine import InProcessGrid
from simulations.keyring import SimulatedKeyring
from tests.integration.scenario import TABLES
from tests.server.test_strategy import Quiet

CLIENTS = 8
SIZE = 100
SPEC = AdapterSpec(
    factors=(
        Factor(name="m.lora_A.weight", kind="A", shape=(2, 6)),
        Factor(name="m.lora_B.weight", kind="B", shape=(50, 2)),
    ),
    r=2,
    lora_alpha=4.0,
    target_modules=("m",),
)
SETTINGS = (
    "clients.population=8",
    "clients.cohort=8.0",
    "run.rounds=1",
    "server.optimizer=mean",
    "evaluation.every=99",
    "evaluation.clients=1",
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
    "privacy.epsilon=5.0",
)


@dataclass
class Contributor:
    """A client whose update is known, and what it gave to the sum."""

    plan: PrivacyPlan
    digests: tuple[str, str]
    keyring: Keyring | None
    given: dict[int, np.ndarray] = field(default_factory=dict)
    cohorts: set[int] = field(default_factory=set)
    empty: set[int] = field(default_factory=set)

    def downlink_of(self, index: int) -> Downlink | None:
        return None

    def update_size(self, server_round: int) -> int:
        return SIZE

    def train_share(self, index: int, instruction: Instruction, *, cohort: int) -> NoisedShare:
        mechanism = self.plan.distributed_mechanism
        vector = np.full(SIZE, (index + 1) / 100, dtype=np.float32)
        if instruction.empty:
            self.empty.add(index)
            vector[:] = 0.0
        delta = clip_update(AdapterDelta(vector=vector), clipping_norm=mechanism.clipping_norm)
        source = NoiseSource.seeded(1, "share", index, instruction.server_round)
        share = mechanism.share(delta, cohort=cohort, source=source)
        self.given[index] = wire_words(share)
        self.cohorts.add(cohort)
        return share


class UnreliableGrid(InProcessGrid):
    """Loses the messages of some clients in some phases, and may alter others on the way."""

    def __init__(self, app: ClientApp, gone: dict[str, set[int]]) -> None:
        super().__init__(app, CLIENTS)
        self._gone = gone

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        kept = []
        for message in messages:
            call = decode_phase_call(message.content)
            phase = "" if call is None else call.phase
            if message.metadata.dst_node_id - 1 not in self._gone.get(phase, set()):
                kept.append(message)
        return super().push_messages(kept)


class Federation:
    """One run of the small federation."""

    def __init__(
        self, folder: Path, *overrides: str, gone: dict[str, set[int]] | None = None
    ) -> None:
        self.config: RunConfig = resolve(TABLES, [*SETTINGS, *overrides], source="test").config
        self.plan = plan_of(self.config, population=CLIENTS)
        keyring = SimulatedKeyring(self.config.run.seed, CLIENTS)
        self.clients = Contributor(
            plan=self.plan, digests=(self.config.digest(), self.plan.digest()), keyring=keyring
        )
        self.app = ClientApp()
        self.app.train()(self._answer)
        self.app.evaluate()(_measure_nothing)
        self.grid = UnreliableGrid(self.app, gone or {})
        self.observer = Quiet()
        self.refused: list[FedSLMError] = []
        self.ledger = Ledger(folder / "ledger.sqlite")
        budget = RunBudget(self.ledger, plan=self.plan, run_id="r", scope="test")
        setup = RunSetup(
            run_id="r",
            config=self.config,
            plan=self.plan,
            spec=SPEC,
            population=CLIENTS,
            folder=folder,
            roster=keyring.roster,
        )
        self.run = FederatedRun(setup, budget=budget, observer=self.observer)

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def train(self) -> None:
        self.run.train(self.run.connect(self.grid))

    def record(self) -> dict[str, Any]:
        return dict(self.observer.records[-1])

    def spent(self) -> float:
        try:
            return self.ledger.spent(POPULATION, "test").releases
        except LedgerError:
            return 0.0

    def _answer(self, message: Message, context: Context) -> Message:
        call = decode_phase_call(message.content)
        assert call is not None
        try:
            reply = answer_phase(
                call,
                message.content,
                runtime=self.clients,
                client=int(context.node_config["partition-id"]),
                state=context.state,
            )
        except FedSLMError as error:
            self.refused.append(error)
            return Message(encode_failure(error.code), reply_to=message)
        return Message(encode_phase_reply(reply), reply_to=message)


def _measure_nothing(message: Message, context: Context) -> Message:
    """Answer a measurement as a device does."""
    del context
    return Message(encode_failure("policy-refused"), reply_to=message)


def expected_mean(federation: Federation, survivors: set[int]) -> np.ndarray:
    """Sum what the survivors gave with plain integers, and decode it by hand."""
    total = np.zeros(SIZE, dtype=np.int64)
    for client in survivors:
        total += federation.clients.given[client].astype(np.int64)
    total = (total + 2**31) % 2**32 - 2**31
    terms = federation.plan.distributed
    assert terms is not None
    clip = federation.config.privacy.clipping_norm or 0.0
    return total * (clip / terms.grid / 8.0)


def test_the_sum_is_exact_when_everybody_stays(tmp_path: Path) -> None:
    with Federation(tmp_path) as federation:
        federation.train()
        mean = expected_mean(federation, set(range(CLIENTS)))
        np.testing.assert_allclose(federation.run.vector, mean, rtol=1e-6, atol=1e-9)
        assert federation.record()["answered"] == CLIENTS
        assert federation.record()["aborted"] is None
        assert federation.clients.cohorts == {CLIENTS}
        assert federation.spent() == 1
        assert not federation.grid._states


PHASES = ("advertise", "share", "mask", "confirm", "reveal")
AFTER_MASK = {"confirm", "reveal"}


@pytest.mark.parametrize("gone", [{0}, {2, 5}])
@pytest.mark.parametrize("phase", PHASES)
def test_clients_may_vanish_between_any_two_phases(
    tmp_path: Path, phase: str, gone: set[int]
) -> None:
    """Whoever's vector came counts; the noise of those missing is drawn by the server."""
    with Federation(tmp_path, gone={phase: gone}) as federation:
        federation.train()
        survivors = set(range(CLIENTS)) - (set() if phase in AFTER_MASK else gone)
        announced = CLIENTS - len(gone) if phase == "advertise" else CLIENTS
        record = federation.record()
        assert record["aborted"] is None
        assert record["answered"] == len(survivors)
        assert federation.clients.cohorts == {announced}
        assert federation.spent() == 1
        difference = federation.run.vector - expected_mean(federation, survivors)
        missing = 1.0 - len(survivors) / announced
        stddev = _noise_stddev(federation) * np.sqrt(missing)
        if missing == 0.0:
            assert np.abs(difference).max() < 1e-8
        else:
            # Chi-square with 100 degrees: outside these bounds with probability below 1e-9.
            assert 0.5 * stddev < np.sqrt(np.mean(np.square(difference))) < 1.6 * stddev


def _noise_stddev(federation: Federation) -> float:
    """Return the noise of the whole on one coordinate of the mean."""
    plan = federation.plan
    assert plan.noise_multiplier is not None
    assert plan.clipping_norm is not None
    return plan.noise_multiplier * plan.clipping_norm / 8.0


@pytest.mark.parametrize("phase", PHASES)
def test_below_quorum_a_round_is_aborted_and_spends_what_it_must(
    tmp_path: Path, phase: str
) -> None:
    """Before the sum could be opened nothing was readable; from then on the charge stays."""
    gone = set(range(5)) if phase == "advertise" else {0, 1, 2, 3}
    with Federation(tmp_path, gone={phase: gone}) as federation:
        before = federation.run.vector.copy()
        federation.train()
        record = federation.record()
        assert record["aborted"] is not None
        assert record["answered"] == 0
        np.testing.assert_array_equal(federation.run.vector, before)
        assert federation.spent() == (1 if phase == "reveal" else 0)
        federation.ledger.verify()


def test_a_run_that_only_aborts_stops_and_says_why(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "run.rounds=9", gone={"mask": {0, 1, 2, 3}})
    with federation, pytest.raises(QuorumNotReached, match="Rounds 1 to 3 were aborted"):
        federation.train()
    assert [r["round"] for r in federation.observer.records] == [1, 2]


def test_a_small_cohort_is_filled_up_with_empty_updates(tmp_path: Path) -> None:
    """The size of a cohort decides nothing: padding adds noise and zeros, never data."""
    with Federation(tmp_path, "clients.cohort=0.5", "run.rounds=3") as federation:
        federation.train()
        rounds = federation.observer.records
        assert [r["aborted"] for r in rounds] == [None] * 3
        assert all(r["cohort"] < 4 for r in rounds)
        assert [r["answered"] for r in rounds] == [4, 4, 4]
        assert federation.clients.empty
        assert federation.spent() == 3


class Replaying(UnreliableGrid):
    """A server that asks every client twice in one phase."""

    def __init__(self, app: ClientApp, phase: str) -> None:
        super().__init__(app, {})
        self._phase = phase

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        for message in sent:
            call = decode_phase_call(message.content)
            if call is not None and call.phase == self._phase:
                self._call(_copy(message))
        return super().push_messages(sent)


def _copy(message: Message) -> Message:
    return Message(
        RecordDict(dict(message.content)),
        message.metadata.dst_node_id,
        message.metadata.message_type,
        group_id="1",
    )


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_phase_asked_for_twice_reveals_nothing_more(tmp_path: Path, phase: str) -> None:
    with Federation(tmp_path) as federation:
        federation.grid = Replaying(federation.app, phase)
        federation.train()
        assert federation.record()["aborted"] is not None
        assert any(isinstance(error, SecureAggregationError) for error in federation.refused)


def _sent(federation: Federation) -> Iterator[RecordDict]:
    """Yield a copy of everything that clients send in a run."""
    grid = federation.grid
    original = grid._call
    sent: list[RecordDict] = []

    def listen(message: Message) -> Message:
        reply = original(message)
        if message.metadata.message_type == "train":
            sent.append(reply.content)
        return reply

    grid._call = listen  # type: ignore[method-assign]
    federation.train()
    yield from sent


def test_beside_masked_words_nothing_leaves_a_client(tmp_path: Path) -> None:
    """Peers send num_examples and losses in clear beside a masked update."""
    with Federation(tmp_path) as federation:
        contents = list(_sent(federation))
    assert len(contents) == 5 * CLIENTS
    for content in contents:
        (record,) = content.values()
        assert set(record) == {"protocol", "phase", "payload"}


def test_an_update_cannot_be_read_off_a_masked_one(tmp_path: Path) -> None:
    """The same bytes would be there if a client sent its share unmasked."""
    with Federation(tmp_path) as federation:
        payloads = [bytes(content["fedslm"]["payload"]) for content in _sent(federation)]  # type: ignore[arg-type]
        for words in federation.clients.given.values():
            raw = words.astype("<u4").tobytes()
            swapped = words.astype(">u4").tobytes()
            assert not any(raw[:16] in p or swapped[:16] in p for p in payloads)


def test_a_client_without_keys_or_of_another_plan_answers_nothing(tmp_path: Path) -> None:
    with Federation(tmp_path) as federation:
        federation.clients.keyring = None
        federation.train()
        assert {type(e) for e in federation.refused} == {SecureAggregationError}
        assert federation.spent() == 0
    with Federation(tmp_path) as federation:
        federation.clients.digests = ("another", "plan")
        federation.train()
        assert {e.code for e in federation.refused} == {"schema-mismatch"}
        assert not federation.grid._states


def test_a_run_without_roster_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with Federation(tmp_path) as federation:
        setup = RunSetup(
            run_id="r",
            config=federation.config,
            plan=federation.plan,
            spec=SPEC,
            population=CLIENTS,
            folder=tmp_path,
        )
        budget = RunBudget(federation.ledger, plan=federation.plan, run_id="r", scope="test")
        run = FederatedRun(setup, budget=budget, observer=Quiet())
        with pytest.raises(SecureAggregationError, match="identity keys"):
            run.train(run.connect(federation.grid))
