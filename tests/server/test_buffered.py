"""Asynchronous rounds against schedules worked out by hand, numpy, and synchronous runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from server.buffered import BufferedSchedule, Task
from server.checkpoint import read_checkpoint
from server.updatebuffer import UpdateBuffer, staleness_weight
from shared.clock import SimulatedClock
from shared.configclock import BufferSection, ClockSection
from shared.errors import InvalidValue, NotResumable, QuorumNotReached
from shared.privacy.ledger import Ledger
from shared.wire import Instruction, encode_failure
from tests.server.test_strategy import POPULATION, SIZE, run, update

MIXED = (
    "clock.shares=[0.5, 0.5]",
    "clock.step_seconds=[1.0, 7.0]",
    "clock.upload=[1e6, 1e6]",
    "clock.download=[1e6, 1e6]",
    "clock.jitter=0.4",
    "evaluation.every=99",
    "server.quorum=0.0",
)
BUFFERED = ("privacy.mode=none", *MIXED, "buffer.size=3", "buffer.concurrency=5")


def schedule(
    *, size: int, concurrency: int, population: int, quota: int | None = None, **clock: object
) -> tuple[BufferedSchedule, SimulatedClock]:
    values: dict[str, object] = {
        "shares": (1.0,),
        "step_seconds": (10.0,),
        "upload": (1e9,),
        "download": (1e9,),
        **clock,
    }
    times = SimulatedClock(ClockSection.model_validate(values), seed=3, local_steps=1)
    settings = BufferSection(size=size, concurrency=concurrency)
    found = BufferedSchedule(times, settings, population=population, seed=3, quota=quota)
    return found, times


def test_a_schedule_by_hand() -> None:
    """Three clients, two at a time, 10 s each, buffer of 2, everybody as fast as the others.

    Two begin at 0 and end at 10: the first full buffer. The third begins at 10, when the first has
    ended; whoever of the others begins beside it has seen the step.
    """
    plan, _ = schedule(size=2, concurrency=2, population=3)
    begun, counted = plan.advance(1, down=0, up=0, taken={})
    assert [task.ends for task in counted] == [10.0, 10.0]
    assert {task.client for task in begun} == {0, 1, 2}
    assert plan.now == 10.0
    late = next(task for task in begun if task.ends == 20.0)
    assert plan.in_flight == 1
    begun, counted = plan.advance(2, down=0, up=0, taken={})
    assert counted[0] == late
    assert (counted[0].server_round, counted[1].server_round) == (1, 2)
    assert plan.now == 20.0


def test_a_version_is_given_to_a_client_once_and_a_short_buffer_is_a_step() -> None:
    """Two clients cannot fill a buffer of three: each answers once, and the step is short."""
    plan, _ = schedule(size=3, concurrency=3, population=2)
    begun, counted = plan.advance(1, down=0, up=0, taken={})
    assert (
        sorted(task.client for task in begun) == sorted(task.client for task in counted) == [0, 1]
    )


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 5),
    more=st.integers(0, 4),
    population=st.integers(9, 30),
    dropout=st.sampled_from([0.0, 0.3]),
    share=st.sampled_from([1.0, 0.4]),
    quota=st.sampled_from([None, 2]),
)
def test_what_holds_of_every_schedule(
    size: int, more: int, population: int, dropout: float, share: float, quota: int | None
) -> None:
    plan, clock = schedule(
        size=size,
        concurrency=size + more,
        population=population,
        quota=quota,
        shares=(0.5, 0.5),
        step_seconds=(5.0, 60.0),
        upload=(1e3, 1e3),
        download=(1e3, 1e3),
        jitter=0.5,
        dropout=dropout,
        available_share=share,
        period_seconds=200.0,
        deadline_seconds=400.0,
    )
    given: Counter[int] = Counter()
    tasks: set[tuple[int, int]] = set()
    counted_before: set[tuple[int, int]] = set()
    now = 0.0
    for server_round in range(1, 9):
        begun, counted = plan.advance(server_round, down=40, up=40, taken={})
        clients = [task.client for task in begun]
        assert len(clients) == len(set(clients))
        given.update(clients)
        tasks |= {(task.client, task.server_round) for task in begun}
        names = {(task.client, task.server_round) for task in counted}
        assert names <= tasks
        assert not names & counted_before
        counted_before |= names
        assert len(counted) == size or quota is not None or dropout > 0
        assert plan.in_flight <= size + more
        assert all(task.answers and now <= task.ends <= plan.now for task in counted)
        assert plan.now >= now
        now = plan.now
    if quota is not None:
        assert max(given.values()) <= quota
    del clock


def test_participations_that_the_ledger_knows_of_count_too() -> None:
    plan, _ = schedule(size=2, concurrency=2, population=4, quota=3)
    begun, _ = plan.advance(1, down=0, up=0, taken={0: 3, 2: 3})
    assert {task.client for task in begun} == {1, 3}


def test_weights_by_age() -> None:
    polynomial = BufferSection(size=1, concurrency=1, exponent=0.5)
    assert [staleness_weight(polynomial, age) for age in (0, 3, 8)] == [1.0, 0.5, 1 / 3]
    assert staleness_weight(BufferSection(exponent=2.0), 1) == 0.25
    assert staleness_weight(BufferSection(staleness="constant"), 9) == 1.0
    with pytest.raises(InvalidValue, match="age"):
        staleness_weight(polynomial, -1)


def test_a_step_is_the_weighted_mean_of_numpy() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(4, SIZE)).astype(np.float32)
    vectors[3, 0] = np.nan
    buffer = UpdateBuffer(BufferSection(size=5, concurrency=5, exponent=0.7), size=SIZE)
    rounds = [5, 3, 1, 4]
    for client, (vector, number) in enumerate(zip(vectors, rounds, strict=True)):
        holder = buffer.holder(number)
        holder.of(client)
        holder.add(vector)
        assert holder.release() is None
    # The fifth answered with a failure: its place is empty, and it is not in the divisor.
    counted = [
        Task(ends=1.0, client=client, server_round=number, answers=True)
        for client, number in enumerate([*rounds, 5])
    ]
    aggregate, age = buffer.release(counted, server_round=5)
    weights = (1.0 + 5 - np.array(rounds)) ** -0.7
    rows = np.nan_to_num(vectors.astype(np.float64), nan=0.0)
    rows[3] = 0.0
    assert aggregate is not None
    assert aggregate.count == 4
    assert aggregate.vector == pytest.approx((weights[:, None] * rows).sum(axis=0) / 4)
    assert age == pytest.approx(np.mean(5 - np.array(rounds)))
    assert buffer.tensors() == {}
    assert buffer.release([], server_round=6) == (None, 0.0)


def test_a_checkpoint_that_is_not_of_this_run_is_refused() -> None:
    plan, _ = schedule(size=1, concurrency=1, population=1)
    with pytest.raises(NotResumable):
        plan.restore({})
    buffer = UpdateBuffer(BufferSection(), size=SIZE)
    for name, size in (("x.1", SIZE), ("1", SIZE), ("1.2", SIZE + 1)):
        with pytest.raises(NotResumable):
            buffer.restore({name: np.zeros(size, dtype=np.float32)})


def honest(client: int, instruction: Instruction) -> RecordDict:
    """Pull the adapter towards a client's own number; it depends on the version it was given."""
    goal = np.sin(np.arange(SIZE) + client)
    return update(instruction, 0.3 * (goal - instruction.vector), stage="plain")


def test_a_buffer_of_everybody_is_the_synchronous_run_bit_for_bit(tmp_path: Path) -> None:
    everybody = ("privacy.mode=none", *MIXED, "clients.cohort=12.0", "run.rounds=4")
    buffer = ("buffer.size=12", "buffer.concurrency=12", "server.optimizer=momentum")
    whole, told, _, _ = run(tmp_path, honest, *everybody, *buffer)
    (tmp_path / "sync").mkdir()
    sync, other, _, _ = run(tmp_path / "sync", honest, *everybody, "server.optimizer=momentum")
    assert np.array_equal(whole.vector, sync.vector)
    times = [[r["simulated_seconds"] for r in seen.records] for seen in (told, other)]
    assert times[0] == times[1]
    assert all(record["staleness"] == 0.0 for record in told.records)


def test_every_update_is_computed_on_the_version_its_client_was_given(tmp_path: Path) -> None:
    """Replay with numpy: versions, weights and means from what the clients were told."""
    told: list[tuple[int, int, np.ndarray]] = []

    def answer(client: int, instruction: Instruction) -> RecordDict:
        told.append((client, instruction.server_round, np.array(instruction.vector)))
        return honest(client, instruction)

    federated, observer, _, _ = run(tmp_path, answer, *BUFFERED, "run.rounds=6")
    ages = [record["staleness"] for record in observer.records]
    assert max(ages) > 0
    assert len({(client, number) for client, number, _ in told}) == len(told)
    versions = {number: vector for _, number, vector in told}
    assert all(np.array_equal(vector, versions[number]) for _, number, vector in told)
    assert federated.vector.shape == (SIZE,)
    assert all(record["answered"] == 3 for record in observer.records)
    # A clock and schedule of its own say again who is counted when; numpy does the rest.
    config = federated.setup.config
    clock = SimulatedClock(config.clock, seed=config.run.seed, local_steps=1)
    plan = BufferedSchedule(clock, config.buffer, population=POPULATION, seed=config.run.seed)
    vector = np.array(federated.initial_vector)
    seen = {(client, number): given for client, number, given in told}
    down = up = 4 * SIZE
    for record in observer.records:
        number = record["round"]
        _, counted = plan.advance(number, down=down, up=up, taken={})
        down, up = record["bytes_down_per_client"], record["bytes_up_per_client"]
        assert plan.now == record["simulated_seconds"]
        total = np.zeros(SIZE)
        for task in counted:
            goal = np.sin(np.arange(SIZE) + task.client)
            given = seen[task.client, task.server_round]
            change = (0.3 * (goal - given)).astype(np.float32)
            total += change / np.sqrt(1 + number - task.server_round)
        vector = (vector + total / 3).astype(np.float32)
    assert federated.vector == pytest.approx(vector, abs=1e-6)


@pytest.mark.parametrize("killed", [1, 2, 4])
def test_a_killed_run_goes_on_to_the_same_adapter(tmp_path: Path, killed: int) -> None:
    alive = 0

    def answer(client: int, instruction: Instruction) -> RecordDict:
        nonlocal alive
        if instruction.server_round == killed:
            alive += 1
            if alive == 1:
                raise KeyboardInterrupt
        return honest(client, instruction)

    said = (*BUFFERED, "run.rounds=6", "clock.dropout=0.2", "clock.deadline_seconds=30.0")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, answer, *said)
    resumed, observer, _, config = run(tmp_path, answer, *said)
    assert [record["round"] for record in observer.records] == list(range(killed, 7))
    (tmp_path / "whole").mkdir()
    whole, told, _, _ = run(tmp_path / "whole", honest, *said)
    assert np.array_equal(resumed.vector, whole.vector)
    keys = ("simulated_seconds", "staleness", "in_flight", "answered", "cohort")
    for again, once in zip(observer.records, told.records[killed - 1 :], strict=True):
        assert {key: again[key] for key in keys} == {key: once[key] for key in keys}
    folders = (tmp_path, tmp_path / "whole")
    left = [read_checkpoint(folder, config_digest=config.digest()) for folder in folders]
    assert left[0] is not None
    assert left[1] is not None
    assert left[0].waiting
    assert set(left[0].waiting) == set(left[1].waiting)
    assert left[0].asynchronous == left[1].asynchronous


@pytest.mark.parametrize("source", ["seeded-simulation", "os-entropy"])
def test_each_participation_is_charged_once(tmp_path: Path, source: str) -> None:
    """Mode example with late, lost and failed answers: charges are what the schedule began."""

    def answer(client: int, instruction: Instruction) -> RecordDict:
        if client == 3:
            return encode_failure("unexpected")
        return update(instruction, np.zeros(SIZE), stage="noised")

    said = (
        "privacy.mode=example",
        f"privacy.noise_source={source}",
        *BUFFERED[1:],
        "run.rounds=6",
        "clock.dropout=0.3",
        "clock.deadline_seconds=12.0",
        "clients.max_participations=3",
    )
    federated, observer, plan, config = run(tmp_path, answer, *said)
    clock = SimulatedClock(config.clock, seed=config.run.seed, local_steps=1)
    again = BufferedSchedule(
        clock, config.buffer, population=POPULATION, seed=config.run.seed, quota=3
    )
    begun: Counter[int] = Counter()
    down = up = 4 * SIZE
    for record in observer.records:
        tasks, _ = again.advance(record["round"], down=down, up=up, taken={})
        assert record["cohort"] == len(tasks)
        begun.update(task.client for task in tasks)
        if record["bytes_up_per_client"]:
            down, up = record["bytes_down_per_client"], record["bytes_up_per_client"]
    assert max(begun.values()) == 3
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        subjects = [name for name, scope in ledger.subjects() if scope == "test"]
        charged = {name: ledger.spent(name, "test").releases for name in subjects}
    assert charged == {f"client-{client}": count for client, count in begun.items()}
    assert plan.max_participations == 3
    assert federated.finished_rounds == 6


def test_too_few_answers_in_a_buffer_stop_the_run(tmp_path: Path) -> None:
    def answer(client: int, instruction: Instruction) -> RecordDict:
        del client, instruction
        return encode_failure("unexpected")

    with pytest.raises(QuorumNotReached, match="0 of 3"):
        run(tmp_path, answer, *BUFFERED, "server.quorum=0.5")
