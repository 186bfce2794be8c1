"""The round loop against clients that answer, fail, lie, vanish or speak another protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.budget import RunBudget
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import QuorumNotReached
from shared.lora import AdapterSpec, Factor
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from shared.wire import (
    ClientUpdate,
    Instruction,
    Introduction,
    Measurement,
    decode_instruction,
    encode_failure,
    encode_introduction,
    encode_measurement,
    encode_update,
)
from simulations.engine import InProcessGrid
from tests.integration.scenario import TABLES

POPULATION = 12
SPEC = AdapterSpec(
    factors=(
        Factor(name="m.lora_A.weight", kind="A", shape=(2, 6)),
        Factor(name="m.lora_B.weight", kind="B", shape=(50, 2)),
    ),
    r=2,
    lora_alpha=4.0,
    target_modules=("m",),
)
SIZE = 100
Answer = Callable[[int, Instruction], RecordDict]


class Quiet:
    """Remembers what the run reported."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def started(self, server_round: int, cohort: int) -> None:
        """Forget it."""

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Forget it."""

    def finished(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)


def update(
    instruction: Instruction, vector: np.ndarray, *, stage: str = "clipped", **changes: object
) -> RecordDict:
    fields: dict[str, Any] = {
        "server_round": instruction.server_round,
        "config_digest": instruction.config_digest,
        "stage": stage,
        "vector": vector.astype(np.float32),
        **changes,
    }
    return encode_update(ClientUpdate(**fields))


def run(
    tmp_path: Path, answer: Answer, *overrides: str, grid: type[InProcessGrid] = InProcessGrid
) -> tuple[FederatedRun, Quiet, PrivacyPlan, RunConfig]:
    settings = ["clients.cohort=12.0", "server.optimizer=mean", "evaluation.clients=12", *overrides]
    config = resolve(TABLES, settings, source="test").config
    plan = plan_of(config, population=POPULATION)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return Message(answer(client, decode_instruction(message.content)), reply_to=message)

    @app.evaluate()
    def measure(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client == 0:
            return Message(encode_failure("no-usable-text"), reply_to=message)
        loss = float("nan") if client == 1 else float(client)
        return Message(encode_measurement(Measurement(loss=loss, tokens=1)), reply_to=message)

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        said = Introduction(client=int(context.node_config["partition-id"]))
        return Message(encode_introduction(said), reply_to=message)

    observer = Quiet()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        budget = RunBudget(ledger, plan=plan, run_id="r", scope="test")
        setup = RunSetup(
            run_id="r",
            config=config,
            plan=plan,
            spec=SPEC,
            population=POPULATION,
            folder=tmp_path,
        )
        federated = FederatedRun(setup, budget=budget, observer=observer)
        federated.restore()
        federated.train(federated.connect(grid(app, POPULATION)))
    return federated, observer, plan, config


def test_failing_and_lying_clients_do_not_stop_or_steer_a_round(tmp_path: Path) -> None:
    """Six kinds of bad answers beside six honest zeros: the mean is noise and one clip at most."""

    def answer(client: int, instruction: Instruction) -> RecordDict:
        ones = np.ones(SIZE)
        bad: dict[int, Callable[[], RecordDict]] = {
            0: lambda: encode_failure("unexpected"),
            1: lambda: update(instruction, 1e9 * ones),
            2: lambda: update(instruction, np.nan * ones),
            3: lambda: update(instruction, np.ones(3)),
            4: lambda: update(instruction, ones, server_round=99),
            5: lambda: update(instruction, ones, stage="plain"),
        }
        return bad.get(client, lambda: update(instruction, 0 * ones))()

    federated, observer, plan, config = run(tmp_path, answer, "run.rounds=1")
    assert observer.records[0]["answered"] == 8
    noise = plan.mechanism.noise_stddev / 12
    clip = (config.privacy.clipping_norm or 0.0) / 12
    # The noise alone is longer than this with probability below 1e-9 (chi with 100 degrees).
    assert np.linalg.norm(federated.vector) < clip + noise * (np.sqrt(SIZE) + 6)


def test_a_cohort_below_quorum_stops_the_run_and_stays_charged(tmp_path: Path) -> None:
    def answer(client: int, instruction: Instruction) -> RecordDict:
        if client < 7:
            return encode_failure("unexpected")
        return update(instruction, np.zeros(SIZE))

    with pytest.raises(QuorumNotReached, match="5 of 12"):
        run(tmp_path, answer)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.spent("population", "test").releases == 1
        assert len(ledger.open_reservations("r")) == 1


def test_without_privacy_the_round_is_the_plain_mean(tmp_path: Path) -> None:
    def answer(client: int, instruction: Instruction) -> RecordDict:
        assert instruction.vector.shape == (SIZE,)
        return update(instruction, np.full(SIZE, float(client)), stage="plain")

    federated, observer, _, _ = run(tmp_path, answer, "privacy.mode=none", "run.rounds=2")
    assert np.allclose(federated.vector, 2 * 5.5)
    assert [record["epsilon"] for record in observer.records] == [None, None]


def test_losses_are_averaged_over_the_clients_that_have_one(tmp_path: Path) -> None:
    def answer(client: int, instruction: Instruction) -> RecordDict:
        del client
        return update(instruction, np.zeros(SIZE), stage="plain")

    _, observer, _, _ = run(tmp_path, answer, "privacy.mode=none", "run.rounds=1")
    assert observer.records[0]["loss"] == pytest.approx(np.mean(range(2, 12)))


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    failing = True

    def answer(client: int, instruction: Instruction) -> RecordDict:
        if failing and instruction.server_round == 3:
            return encode_failure("unexpected")
        return update(instruction, np.full(SIZE, client / 100), stage="plain")

    options = ("privacy.mode=none", "server.optimizer=momentum", "server.averaging=0.7")
    with pytest.raises(QuorumNotReached):
        run(tmp_path, answer, *options)
    failing = False
    resumed, observer, _, _ = run(tmp_path, answer, *options)
    assert [record["round"] for record in observer.records] == [3]
    (tmp_path / "whole").mkdir()
    whole, _, _, _ = run(tmp_path / "whole", answer, *options)
    assert np.array_equal(resumed.vector, whole.vector)
    assert np.array_equal(resumed.released, whole.released)
    assert not np.array_equal(whole.released, whole.vector)


class ForeignGrid(InProcessGrid):
    """A grid that does not promise which node speaks for whom."""

    nodes_are_clients = False


def test_nodes_that_introduce_themselves_badly_are_left_out(tmp_path: Path) -> None:
    """Twelve nodes: one is silent, one lies, one repeats another; nine clients remain."""
    config = resolve(TABLES, ["privacy.mode=none"], source="test").config
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        claims = {1: 2, 3: -1, 4: POPULATION}
        client = int(context.node_config["partition-id"])
        if client == 0:
            return Message(encode_failure("unexpected"), reply_to=message)
        said = Introduction(client=claims.get(client, client))
        return Message(encode_introduction(said), reply_to=message)

    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        plan = plan_of(config, population=POPULATION)
        setup = RunSetup(
            run_id="r",
            config=config,
            plan=plan,
            spec=SPEC,
            population=POPULATION,
            folder=tmp_path,
        )
        budget = RunBudget(ledger, plan=plan, run_id="r", scope="test")
        federated = FederatedRun(setup, budget=budget, observer=Quiet())
        messenger = federated.connect(ForeignGrid(app, POPULATION))
    assert messenger.nodes() == list(range(1, POPULATION + 1))
    known = federated.presence.population.nodes
    assert known == {2: 2, **{client: client + 1 for client in range(5, POPULATION)}}
