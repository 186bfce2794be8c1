"""Synchronous rounds on the simulated clock: who is counted, who is charged, when a round ends."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from server.collect import Traffic, collect_updates
from server.timing import (
    RankParts,
    RoundTimer,
    clock_of,
    refuse_in_fleet,
    refuse_without_clock,
    wanted_answers,
)
from shared.clock import SimulatedClock
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import ConflictingSettings, QuorumNotReached
from shared.mixedranks import MixedRanks
from shared.privacy.ledger import Ledger
from shared.scenarioplan import plan_of
from shared.seeding import data_rng
from shared.wire import Instruction, encode_failure
from simulations.engine import InProcessGrid
from simulations.fleetprepare import start_run
from tests.adapterkit import small_spec
from tests.integration.scenario import TABLES
from tests.server.fleetkit import make_home
from tests.server.test_strategy import POPULATION, SIZE, run, update

CLOCK = (
    "clock.shares=[0.5, 0.5]",
    "clock.step_seconds=[1.0, 10.0]",
    "clock.upload=[100.0, 100.0]",
    "clock.download=[400.0, 400.0]",
    "clock.jitter=0.3",
    "evaluation.every=9",
)
NONE = ("privacy.mode=none", "clients.cohort=6.0", "server.over_selection=2.0", "server.quorum=0.0")


def config(*said: str) -> RunConfig:
    return resolve(TABLES, said, source="test").config


def timer(*said: str, size: int = SIZE) -> tuple[RoundTimer, SimulatedClock]:
    clock = clock_of(config("privacy.mode=none", *CLOCK, *said))
    assert clock is not None
    return RoundTimer(clock, size=size), clock


def expected_arrivals(said: RunConfig, server_round: int, begin: float) -> dict[int, float]:
    """Recompute the arrivals of a first round from the streams that the docstrings name."""
    found = {}
    for client in range(POPULATION):
        kind = int(data_rng(said.run.seed, "clock", "device", client).random() >= 0.5)
        rng = data_rng(said.run.seed, "clock", "answer", client, server_round)
        if rng.random() < said.clock.dropout:
            continue
        slowness = np.exp(said.clock.jitter * rng.standard_normal())
        moved = 4 * SIZE / 400.0 + 4 * SIZE / 100.0
        found[client] = begin + (1.0, 10.0)[kind] * slowness + moved
    return found


def test_the_first_to_answer_are_the_mean_and_the_last_of_them_ends_the_round(
    tmp_path: Path,
) -> None:
    asked: list[int] = []

    def answer(client: int, instruction: Instruction) -> RecordDict:
        asked.append(client)
        return update(instruction, np.full(SIZE, float(client)), stage="plain")

    federated, observer, _, said = run(tmp_path, answer, *NONE, *CLOCK, "run.rounds=1")
    arrivals = expected_arrivals(said, 1, 0.0)
    first = sorted(arrivals, key=lambda client: arrivals[client])[:6]
    assert sorted(asked) == sorted(first)
    assert federated.vector == pytest.approx(np.full(SIZE, np.mean(first)))
    record = observer.records[0]
    assert (record["cohort"], record["answered"]) == (12, 6)
    assert record["simulated_seconds"] == pytest.approx(arrivals[first[-1]])


def test_who_fails_is_replaced_by_the_next_to_answer(tmp_path: Path) -> None:
    order: list[int] = []

    def answer(client: int, instruction: Instruction) -> RecordDict:
        order.append(client)
        if len(order) <= 2:
            return encode_failure("no-usable-text")
        return update(instruction, np.full(SIZE, float(client)), stage="plain")

    federated, observer, _, said = run(tmp_path, answer, *NONE, *CLOCK, "run.rounds=1")
    arrivals = expected_arrivals(said, 1, 0.0)
    in_turn = sorted(arrivals, key=lambda client: arrivals[client])
    assert set(order) == set(in_turn[:8])
    assert federated.vector[0] == pytest.approx(np.mean(order[2:]))
    assert observer.records[0]["answered"] == 6
    assert observer.records[0]["simulated_seconds"] == pytest.approx(arrivals[in_turn[7]])


def test_everybody_who_was_asked_is_charged_once_counted_or_not(tmp_path: Path) -> None:
    """Mode example, three rounds, 12 asked and the first 6 counted: 3 charges for every client."""

    def answer(client: int, instruction: Instruction) -> RecordDict:
        del client
        return update(instruction, np.zeros(SIZE), stage="noised")

    example = ("privacy.mode=example", *NONE[1:], *CLOCK)
    _, observer, _, _ = run(tmp_path, answer, *example)
    assert [(r["cohort"], r["answered"]) for r in observer.records] == [(12, 6)] * 3
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        spent = [ledger.spent(f"client-{client}", "test").releases for client in range(12)]
        assert spent == [3] * 12


def test_under_a_client_level_guarantee_only_the_deadline_cuts_off(tmp_path: Path) -> None:
    """All 12 are sampled; whoever meets the deadline is in the sum, however many there are."""
    asked: list[int] = []

    def answer(client: int, instruction: Instruction) -> RecordDict:
        asked.append(client)
        return update(instruction, np.zeros(SIZE))

    central = ("privacy.mode=client-central", *NONE[1:], *CLOCK, "clock.deadline_seconds=14.0")
    _, observer, plan, said = run(tmp_path, answer, *central, "run.rounds=1")
    arrivals = expected_arrivals(said, 1, 0.0)
    in_time = [client for client, at in arrivals.items() if at <= 14.0]
    assert 6 < len(in_time) < 12
    assert asked == in_time
    assert plan.sampling_probability == 1.0
    assert observer.records[0]["simulated_seconds"] == 14.0
    assert wanted_answers(said, 12) is None


def test_a_count_never_cuts_off_a_sum_of_the_server() -> None:
    plan = plan_of(config(), population=12)
    with pytest.raises(ConflictingSettings, match="must not decide whose is counted"):
        collect_updates(
            None,  # type: ignore[arg-type]
            {},
            None,  # type: ignore[arg-type]
            aggregator=None,  # type: ignore[arg-type]
            plan=plan,
            on_answer=lambda answered: None,
            enough=3,
        )


def test_devices_that_are_away_are_not_asked_and_time_waits_for_the_first() -> None:
    """Phases are known: a round of one client begins when its window opens."""
    timed, clock = timer(
        "clock.available_share=0.25", "clock.period_seconds=100.0", "clock.deadline_seconds=50.0"
    )
    away = next(client for client in range(50) if not clock.is_there(client, 0.0))
    opens = 100.0 - clock.device(away).phase
    plan = timed.schedule(1, [away], size=SIZE)
    assert plan.begin == pytest.approx(opens)
    there = next(client for client in range(50) if clock.is_there(client, 0.0))
    assert timed.present([away, there]) == [there]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rounds=st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=5),
    removed=st.integers(0, 11),
)
def test_one_client_more_or_less_moves_nobody_else(
    seed: int, rounds: list[set[int]], removed: int
) -> None:
    """Neighbouring runs under a client-level guarantee: all others are counted alike."""
    said = config(
        "privacy.mode=none",
        *CLOCK,
        "clock.available_share=0.5",
        "clock.period_seconds=40.0",
        "clock.dropout=0.1",
        "clock.deadline_seconds=25.0",
    )
    clock = SimulatedClock(said.clock, seed=seed, local_steps=1)
    with_it = counted(RoundTimer(clock, size=SIZE, steady=True), rounds, without=None)
    without = counted(RoundTimer(clock, size=SIZE, steady=True), rounds, without=removed)
    assert [cohort - {removed} for cohort in with_it] == without


def counted(
    timed: RoundTimer, rounds: Sequence[Collection[int]], *, without: int | None
) -> list[set[int]]:
    """Return who is counted in each round, with updates of other lengths where one is left out."""
    found = []
    for number, cohort in enumerate(rounds, start=1):
        asked = sorted(set(cohort) - {without})

        def ask(clients: Sequence[int], before: int) -> tuple[int, Traffic]:
            del before
            return len(clients), Traffic(up=len(clients), down=9 * len(clients))

        plan = timed.schedule(number, asked, size=SIZE)
        timed.run(plan, ask, enough=None, size=SIZE)
        found.append(set(plan.arrivals))
    return found


def test_a_timer_that_is_not_steady_lets_one_client_move_others() -> None:
    """So the property above can fail: over 60 seeds the presence of client 0 moves somebody."""
    said = config(
        "privacy.mode=none",
        *CLOCK,
        "clock.available_share=0.5",
        "clock.period_seconds=40.0",
        "clock.deadline_seconds=25.0",
    )
    moved = False
    rounds = [{0, 1, 2, 3}] * 3
    for seed in range(60):
        clock = SimulatedClock(said.clock, seed=seed, local_steps=1)
        both = (
            counted(RoundTimer(clock, size=SIZE), rounds, without=removed) for removed in (None, 0)
        )
        with_it, without = both
        moved = moved or [cohort - {0} for cohort in with_it] != without
    assert moved


def test_cohorts_are_drawn_among_those_who_are_there(tmp_path: Path) -> None:
    """Of 12 clients half are there, 3 are wanted: 100 cohorts have 3 expected.

    A cohort's size is Poisson binomial with variance below 3, so the mean of 100 has a standard
    deviation below 0.18: off by 0.9 less than once in a million. Without the correction it is 1.5.
    """

    def answer(client: int, instruction: Instruction) -> RecordDict:
        del client
        return update(instruction, np.zeros(SIZE), stage="plain")

    said = (
        "privacy.mode=none",
        "clients.cohort=3.0",
        "server.quorum=0.0",
        *CLOCK[:-2],
        "clock.available_share=0.5",
        "clock.period_seconds=97.0",
        "clock.deadline_seconds=60.0",
        "evaluation.every=999",
        "run.rounds=100",
    )
    _, observer, _, _ = run(tmp_path, answer, *said)
    sizes = [record["cohort"] for record in observer.records]
    assert np.mean(sizes) == pytest.approx(3.0, abs=0.9)


def test_a_missing_answer_is_waited_for_until_the_deadline() -> None:
    timed, _ = timer("clock.dropout=0.9", "clock.deadline_seconds=60.0")
    plan = timed.schedule(1, range(POPULATION), size=SIZE)
    assert len(plan.arrivals) < POPULATION
    assert plan.close == 60.0

    def ask(clients: Sequence[int], before: int) -> tuple[int, Traffic]:
        assert before == 0
        return len(clients), Traffic(up=7, down=9)

    answered, traffic = timed.run(plan, ask, enough=None, size=SIZE)
    assert (answered, traffic) == (len(plan.arrivals), Traffic(up=7, down=9))
    assert timed.now == 60.0


def test_a_killed_run_goes_on_at_the_same_time_to_the_same_adapter(tmp_path: Path) -> None:
    failing = True

    def answer(client: int, instruction: Instruction) -> RecordDict:
        if failing and instruction.server_round == 3:
            raise KeyboardInterrupt
        return update(instruction, np.full(SIZE, client / 100), stage="plain")

    said = (*NONE, *CLOCK, "clock.dropout=0.2", "clock.deadline_seconds=30.0", "run.rounds=5")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, answer, *said)
    failing = False
    resumed, observer, _, _ = run(tmp_path, answer, *said)
    assert [record["round"] for record in observer.records] == [3, 4, 5]
    (tmp_path / "whole").mkdir()
    whole, other, _, _ = run(tmp_path / "whole", answer, *said)
    assert np.array_equal(resumed.vector, whole.vector)
    times = [record["simulated_seconds"] for record in other.records]
    assert [record["simulated_seconds"] for record in observer.records] == times[2:]
    assert times == sorted(times)


def test_the_quorum_is_of_those_who_are_wanted(tmp_path: Path) -> None:
    """12 asked, 6 wanted: 3 answers are half of them; 2 are not."""
    answers = 3

    def answer(client: int, instruction: Instruction) -> RecordDict:
        if client >= answers:
            return encode_failure("unexpected")
        return update(instruction, np.zeros(SIZE), stage="plain")

    said = (*NONE[:3], "server.quorum=0.5", *CLOCK, "run.rounds=1")
    run(tmp_path, answer, *said)
    answers = 2
    (tmp_path / "two").mkdir()
    with pytest.raises(QuorumNotReached, match="2 of 6"):
        run(tmp_path / "two", answer, *said)


def test_where_time_is_simulated_and_where_not(tmp_path: Path) -> None:
    plain, timed = config(), config("privacy.mode=none", *CLOCK)
    refuse_in_fleet(plain)
    with pytest.raises(ConflictingSettings, match="real devices"):
        refuse_in_fleet(timed)
    ordered = resolve(TABLES, ["privacy.mode=none", *CLOCK], source="test")
    with pytest.raises(ConflictingSettings, match="real devices"):
        start_run(make_home(tmp_path), ordered)
    over = config("privacy.mode=none", "server.over_selection=1.5")
    refuse_in_fleet(over)
    refuse_without_clock(plain)
    with pytest.raises(ConflictingSettings, match="needs a clock in a simulation"):
        refuse_without_clock(over)
    late = config("privacy.mode=none", "buffer.size=2", "buffer.concurrency=2")
    refuse_in_fleet(late)
    with pytest.raises(ConflictingSettings, match=r"buffer\.size needs a clock in a simulation"):
        refuse_without_clock(late)
    refuse_without_clock(config("privacy.mode=none", "server.over_selection=1.5", *CLOCK))


class FleetGrid(InProcessGrid):
    """Nodes of a fleet: each reply is there by itself, or not at all before the deadline."""

    nodes_are_clients = False
    late = frozenset({1, 2, 5})

    def __init__(self, app: ClientApp, population: int) -> None:
        super().__init__(app, population)
        self._sent: dict[str, Message] = {}
        self.asked: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep messages by their id."""
        sent = list(messages)
        names = super().push_messages(sent)
        self._queue.clear()
        self._sent |= dict(zip(names, sent, strict=True))
        self.asked += [m.metadata.dst_node_id for m in sent if m.metadata.message_type == "train"]
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer, but for the late nodes' training."""
        found = []
        for name in message_ids:
            message = self._sent.get(name)
            if message is None:
                continue
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if kind != "train" or node - 1 not in self.late:
                found.append(self._call(self._sent.pop(name)))
        return found


def test_real_nodes_that_are_late_are_not_waited_for(tmp_path: Path) -> None:
    """Twelve are asked, three never answer; the round ends with the sixth, not the deadline."""
    counted: list[int] = []

    def answer(client: int, instruction: Instruction) -> RecordDict:
        counted.append(client)
        return update(instruction, np.full(SIZE, float(client)), stage="noised")

    said = ("privacy.mode=example", *NONE[1:], "server.deadline_seconds=60.0", "run.rounds=2")
    began = time.monotonic()
    federated, observer, _, _ = run(tmp_path, answer, *said, grid=FleetGrid)
    assert time.monotonic() - began < 30
    assert [(r["cohort"], r["answered"]) for r in observer.records] == [(12, 6)] * 2
    assert not set(counted) & FleetGrid.late
    means = np.mean(counted[:6]) + np.mean(counted[-6:])
    assert federated.vector == pytest.approx(np.full(SIZE, means), rel=1e-5)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        charged = [ledger.spent(f"client-{client}", "test").releases for client in range(12)]
        assert charged == [2] * 12


def test_without_a_clock_a_fleet_stops_at_the_count(tmp_path: Path) -> None:
    """As a fleet's messenger yields answers: the first six of twelve are counted."""
    asked: list[int] = []

    def answer(client: int, instruction: Instruction) -> RecordDict:
        asked.append(client)
        return update(instruction, np.full(SIZE, float(client)), stage="plain")

    federated, observer, _, _ = run(tmp_path, answer, *NONE, "run.rounds=2")
    assert asked == [0, 1, 2, 3, 4, 5] * 2
    assert federated.vector == pytest.approx(np.full(SIZE, 5.0))
    assert [record["answered"] for record in observer.records] == [6, 6]


def test_a_thin_adapter_arrives_earlier_and_its_bytes_do_not_shorten_the_others() -> None:
    """Bytes in proportion to the numbers; the largest rank's are told by any rank's."""
    one = ("shares=[1.0]", "step_seconds=[1.0]", "upload=[100.0]", "download=[400.0]", "jitter=0.0")
    clock = clock_of(config("privacy.mode=none", *(f"clock.{value}" for value in one)))
    assert clock is not None
    spec = small_spec(r=4)
    parts = RankParts(MixedRanks(spec, np.array([1, 4, 4])), "B")
    size = spec.size("B")
    mixed = RoundTimer(clock, size=size, parts=parts)
    plain = RoundTimer(clock, size=size)
    thin, wide = (mixed.schedule(1, [0, 1], size=size).arrivals[c] for c in (0, 1))
    assert wide == plain.schedule(1, [0, 1], size=size).arrivals[1]
    # Three quarters of four bytes a number, at 100 bytes a second up and 400 down.
    assert wide - thin == pytest.approx(3 * size * (1 / 100 + 1 / 400))
    of_thin = Traffic(up=size, down=size, by_rank={1: (size, size)})
    for known in (mixed, plain):
        known.restore({"simulated_seconds": 0.0, **_line(of_thin)}, size=size)
    assert mixed.schedule(2, [1], size=size).arrivals[1] == pytest.approx(wide)
    assert plain.schedule(2, [1], size=size).arrivals[1] < wide


def _line(traffic: Traffic) -> dict[str, Any]:
    """Return what a metrics line says of traffic."""
    said = {"bytes_up_per_client": traffic.up, "bytes_down_per_client": traffic.down}
    return {**said, **traffic.notes()}
