"""What is computed ahead: who is in a group, what is kept, and that no answer changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.adapter import adapt
from client.app import make_client_app
from client.cohortahead import LookAhead, group_size, tokens_at_once
from client.data import ClientData, Record
from client.model import load_base
from client.runtime import ClientRuntime
from client.tokencache import TokenCache
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import FedSLMError, NoUsableText
from shared.lora import Vector
from shared.privacy.distributed import to_signed
from shared.scenarioplan import plan_of
from shared.wire import (
    Instruction,
    decode_measurement,
    decode_update,
    encode_instruction,
)
from simulations.engine import InProcessGrid
from tests.client.conftest import make_examples, save_model

TOLERANCE = 1e-5  # a learning rate at which training diverges multiplies rounding, so none here is
POPULATION = 9
EMPTY, CANARY = 4, 6
TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "ahead", "rounds": 2, "seed": 5},
    "lora": {"r": 2},
    "data": {"path": "builtin:clinics", "max_length": 24},
    "clients": {"population": POPULATION, "cohort": 4.0, "batch_size": 2, "learning_rate": 0.5},
    "privacy": {
        "mode": "client-central",
        "neighboring_relation": "add-or-remove-one",
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "clipping_norm": 50.0,
        "max_grad_norm": 0.5,
        "sampling_probability": 0.5,
        "noise_source": "seeded-simulation",
    },
}
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=3",
)
MODES = {
    "central": (),
    "steps": ("clients.local_steps=3", "clients.optimizer=adamw", "clients.learning_rate=0.01"),
    "epochs": ("clients.local_epochs=1.5", "clients.learning_rate=0.01"),
    "none": ("privacy.mode=none",),
    "example": ("privacy.mode=example", "clients.local_steps=2"),
}


@dataclass
class Clients:
    """Nine clients: one whose text is blank, one canary, the others with 2 to 10 texts."""

    population: int = POPULATION
    read: list[int] = field(default_factory=list)

    def client(self, index: int) -> ClientData:
        self.read.append(index)
        if index == EMPTY:
            blank = [Record(text="  ", client="blank")]
            return ClientData(name="blank", train=blank, holdout=[])
        texts = [
            " ".join(f"w{token % 40}" for token in example.ids)
            for example in make_examples(2 + index, seed=index)
        ]
        records = [Record(text=text) for text in texts]
        return ClientData(name=str(index), train=records, holdout=records[:1])

    def direction(self, index: int, dimension: int) -> Vector | None:
        return np.full(dimension, 0.25, dtype=np.float32) if index == CANARY else None


def config_of(*overrides: str) -> RunConfig:
    steps = {} if any("local_" in said for said in overrides) else {"local_steps": 1}
    tables = {**TABLES, "clients": {**TABLES["clients"], **steps}}
    return resolve(tables, overrides, source="test").config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "llama", "llama")


def runtime_of(folder: Path, *overrides: str, dropout: float = 0.0) -> ClientRuntime:
    config = config_of(*overrides)
    return ClientRuntime(
        config=config,
        plan=plan_of(config, population=POPULATION),
        model=adapt(
            load_base(str(folder)), r=2, alpha=8.0, target_modules="all-linear", dropout=dropout
        ),
        source=Clients(),
    )


def instruction_for(runtime: ClientRuntime, **changes: Any) -> Instruction:
    rng = np.random.default_rng(1)
    values: dict[str, Any] = {
        "run_id": "r",
        "server_round": 1,
        "config_digest": runtime.digests[0],
        "plan_digest": runtime.digests[1],
        "vector": 0.1 * rng.standard_normal(runtime.dimension).astype(np.float32),
    }
    return Instruction(**{**values, **changes})


def answers(runtime: ClientRuntime, kind: str, instruction: Instruction) -> list[Any]:
    """Return every client's answer through the grid: a vector, a measurement, or a code."""
    grid = InProcessGrid(make_client_app(lambda _: runtime, simulated=True), POPULATION)
    content = encode_instruction(instruction)
    waiting = grid.push_messages(
        [Message(content, node, kind, group_id="1") for node in range(1, POPULATION + 1)]
    )
    found: list[Any] = []
    stage = {"none": "plain", "example": "noised"}.get(runtime.plan.mode, "clipped")
    for _ in waiting:
        (reply,) = grid.pull_messages(waiting)
        try:
            if kind == "evaluate":
                found.append(decode_measurement(reply.content))
            else:
                update = decode_update(
                    reply.content,
                    server_round=instruction.server_round,
                    config_digest=instruction.config_digest,
                    stage=stage,  # type: ignore[arg-type]
                    size=instruction.vector.size,
                )
                found.append(update.vector)
        except FedSLMError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clients", ["3", '"auto"'])
def test_answers_are_those_of_one_client_after_another(
    folder: Path, mode: str, clients: str
) -> None:
    plain = runtime_of(folder, *MODES[mode], "performance.cohort_batch=1")
    grouped = runtime_of(folder, *MODES[mode], f"performance.cohort_batch={clients}")
    told = instruction_for(plain)
    expected, found = (answers(runtime, "train", told) for runtime in (plain, grouped))
    assert grouped.digests == plain.digests
    assert isinstance(expected[EMPTY], str)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if index == EMPTY:
            assert one == other
        elif index == CANARY:
            assert np.array_equal(one, other)
        else:
            length = float(np.linalg.norm(other))
            assert length > 0
            assert float(np.linalg.norm(one - other)) <= TOLERANCE * length


def test_measurements_are_those_of_one_client_after_another(folder: Path) -> None:
    plain = runtime_of(folder, "performance.cohort_batch=1")
    grouped = runtime_of(folder)
    told = instruction_for(plain)
    expected, found = (answers(runtime, "evaluate", told) for runtime in (plain, grouped))
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if index == EMPTY:
            assert one == other
        else:
            assert one.tokens == other.tokens > 0
            assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_a_share_of_a_secure_sum_is_that_of_a_client_alone(folder: Path) -> None:
    """The mechanism rounds to a grid: a difference in the last digits moves few steps, by one."""
    plain, grouped = runtime_of(folder, *DISTRIBUTED), runtime_of(folder, *DISTRIBUTED)
    told = instruction_for(plain)
    cohort = [0, 1, 2, EMPTY, CANARY]
    grouped.expect_training(0, told, ((index, told) for index in cohort[1:]))
    for index in cohort:
        one = to_signed(grouped.train_share(index, told, cohort=5).words)
        other = to_signed(plain.train_share(index, told, cohort=5).words)
        assert np.abs(one - other).max() <= 1
        assert np.mean(one != other) <= 0.02


def test_two_runs_give_the_same_bits(folder: Path) -> None:
    one, other = (runtime_of(folder, *MODES["example"]) for _ in range(2))
    told = instruction_for(one)
    answers(other, "train", replace(told, server_round=7))
    first, second = (answers(runtime, "train", told) for runtime in (one, other))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_with_dropout_and_other_clippers_clients_train_alone(folder: Path) -> None:
    for runtime in (
        runtime_of(folder, dropout=0.5),
        runtime_of(folder, "performance.clipper=microbatch"),
        runtime_of(folder, "performance.cohort_batch=1"),
    ):
        told = instruction_for(runtime)
        runtime.expect_training(0, told, iter([(1, told), (2, told)]))
        assert runtime.config.performance.cohort_batch in {1, "auto"}
        source: Any = runtime._source
        assert source.read == []


def test_an_empty_participation_is_not_trained(folder: Path) -> None:
    runtime = runtime_of(folder, *DISTRIBUTED)
    told = instruction_for(runtime)
    empty = replace(told, empty=True)
    source: Any = runtime._source
    runtime.expect_training(0, empty, iter([(1, told), (2, told)]))
    assert source.read == []
    runtime.expect_training(0, told, iter([(1, empty), (2, told), (3, empty), (5, told)]))
    assert source.read == [0, 2, 5]


def counted(log: list[list[int]]) -> Any:
    def compute(clients: Sequence[int], instruction: Instruction) -> Mapping[int, int]:
        log.append(list(clients))
        return {client: client + instruction.server_round for client in clients}

    return compute


def told(server_round: int, value: float = 0.0) -> Instruction:
    vector = np.full(3, value, dtype=np.float32)
    return Instruction(
        run_id="r", server_round=server_round, config_digest="c", plan_digest="p", vector=vector
    )


def queue(clients: Sequence[int], instruction: Instruction) -> Iterator[tuple[int, Instruction]]:
    return iter([(client, instruction) for client in clients])


def test_groups_follow_the_queue_and_results_are_used_once() -> None:
    log: list[list[int]] = []
    ahead: LookAhead[int] = LookAhead(counted(log), clients=3)
    clients = [7, 3, 9, 1, 2, 8, 5]
    for place, client in enumerate(clients):
        ahead.expect(client, told(4), queue(clients[place + 1 :], told(4)))
        assert ahead.take(client, told(4)) == client + 4
        assert ahead.take(client, told(4)) is None
    assert log == [[7, 3], [9, 1], [2, 8, 5]]


def test_another_instruction_is_a_miss() -> None:
    log: list[list[int]] = []
    ahead: LookAhead[int] = LookAhead(counted(log), clients=4)
    ahead.expect(1, told(4), queue([2, 3], told(4)))
    assert ahead.take(2, told(5)) is None
    ahead.expect(1, told(4), queue([2, 3], told(4)))
    assert ahead.take(2, told(4, value=0.5)) is None
    assert ahead.take(3, replace(told(4), plan_digest="q")) is None
    # A client that was foreseen and never called is foreseen again in the next round.
    ahead.expect(3, told(5), queue([2, 1], told(5)))
    assert ahead.take(2, told(5)) == 7
    assert log == [[1, 2, 3], [1, 2, 3], [3, 2, 1]]


def test_a_group_ends_where_the_work_changes() -> None:
    log: list[list[int]] = []
    ahead: LookAhead[int] = LookAhead(counted(log), clients=4)
    mixed = [*queue([2, 3], told(4)), *queue([4], told(5)), *queue([6], told(4))]
    ahead.expect(1, told(4), iter(mixed))
    assert log == [[1, 2, 3]]


def test_a_group_that_fails_is_not_tried_again_for_each_client(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[list[int]] = []

    def fail(clients: Sequence[int], instruction: Instruction) -> Mapping[int, Vector]:
        del instruction
        tried.append(list(clients))
        msg = "a record in a message"
        raise ValueError(msg)

    runtime, plain = runtime_of(folder), runtime_of(folder, "performance.cohort_batch=1")
    runtime._trained = LookAhead(fail, clients=100)
    instruction = instruction_for(runtime)
    with caplog.at_level(logging.WARNING, logger="fedslm.client"):
        found = answers(runtime, "train", instruction)
    expected = answers(plain, "train", instruction)
    assert tried == [list(range(POPULATION))]
    assert "a record" not in caplog.text
    assert "ValueError" in caplog.text
    assert found[EMPTY] == expected[EMPTY]
    for client in (0, 1, 8):
        assert np.array_equal(found[client], expected[client])


def test_what_cannot_be_read_is_left_to_the_client(folder: Path) -> None:
    runtime = runtime_of(folder)
    app = make_client_app(lambda _: runtime, simulated=True)
    context = Context(
        run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={}
    )
    InProcessGrid(app, POPULATION)
    broken = Message(RecordDict(), 1, "train", group_id="1")
    app.expect(broken, context, iter([(1, broken)]))
    good = Message(encode_instruction(instruction_for(runtime)), 1, "train", group_id="1")
    app.expect(good, context, iter([(1, broken)]))
    with pytest.raises(NoUsableText):
        runtime.train(EMPTY, instruction_for(runtime))


def test_sizes(folder: Path) -> None:
    config = config_of()
    assert group_size(config, dimension=19_200) == 32
    assert group_size(config, dimension=1_000_000) == 4
    assert group_size(config, dimension=100_000_000) == 1
    assert group_size(config_of("performance.cohort_batch=17"), dimension=10**9) == 17
    model = runtime_of(folder).model
    assert tokens_at_once(config, model, examples=2) == 2 * 24
    assert tokens_at_once(config, model, examples=10_000) == 200_000 // 32


@pytest.mark.parametrize("bad", ["0", "-1", "true", "1.5", '"all"'])
def test_a_cohort_batch_is_a_number_or_auto(bad: str) -> None:
    with pytest.raises(FedSLMError, match="cohort_batch"):
        config_of(f"performance.cohort_batch={bad}")


def test_the_cache_of_tokens_is_bounded_by_bytes() -> None:
    clients = {
        index: (make_examples(4, seed=index), make_examples(1, seed=99)) for index in range(3)
    }
    sizes = [
        sum(e.ids.nbytes + e.labels.nbytes + 300 for side in sides for e in side)
        for sides in clients.values()
    ]
    cache = TokenCache(room=sum(sizes) - 1)
    for index, sides in enumerate(clients.values()):
        cache.keep(index, sides)
        assert cache.get(0) is None or cache.get(0) == clients[0]
    assert cache.get(1) is None
    assert cache.get(0) is not None
    assert cache.get(2) is not None
    nothing = TokenCache(room=10)
    nothing.keep(0, clients[0])
    assert nothing.get(0) is None
