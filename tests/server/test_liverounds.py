"""Asynchronous rounds on devices: what is counted, who is charged, and what a kill costs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.budget import RunBudget
from server.checkpoint import read_checkpoint
from server.liverounds import LiveRounds
from server.lostrounds import LOST
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import NotResumable, QuorumNotReached
from shared.privacy.ledger import Ledger
from shared.scenarioplan import plan_of
from shared.wire import Instruction, decode_instruction, encode_failure
from simulations.engine import InProcessGrid
from tests.integration.scenario import TABLES
from tests.server.test_strategy import POPULATION, SIZE, SPEC, Quiet, update

SAID = (
    "buffer.size=3",
    "buffer.concurrency=5",
    "run.rounds=6",
    "server.optimizer=mean",
    "server.deadline_seconds=30.0",
    "server.quorum=0.5",
)
NONE = ("privacy.mode=none", *SAID)
EXAMPLE = ("privacy.mode=example", *SAID)


class Directory:
    """Enrolment: client 0 has node 1, and so on; some are away."""

    def __init__(self, away: frozenset[int] = frozenset()) -> None:
        self.away = away
        self.flags: list[tuple[int, str]] = []

    def clients_of(self, nodes: Sequence[int]) -> Mapping[int, int]:
        return {node: node - 1 for node in nodes if node - 1 not in self.away}

    def flag(self, client: int, code: str) -> None:
        self.flags.append((client, code))


class Devices(InProcessGrid):
    """Real nodes: a slow one answers when the server is so many steps further, or never."""

    nodes_are_clients = False

    def __init__(self, app: ClientApp, slow: Mapping[int, int]) -> None:
        super().__init__(app, POPULATION)
        self._slow = slow
        self._sent: dict[str, Message] = {}
        self._step = 0
        self.asked: list[tuple[int, int]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        names = super().push_messages(sent)
        self._queue.clear()
        self._sent |= dict(zip(names, sent, strict=True))
        for message in sent:
            self._step = int(message.metadata.group_id)
            self.asked.append((message.metadata.dst_node_id - 1, self._step))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = []
        for name in message_ids:
            message = self._sent[name]
            client = message.metadata.dst_node_id - 1
            if self._step >= int(message.metadata.group_id) + self._slow.get(client, 0):
                found.append(self._call(self._sent[name]))
        return found


class Fleet:
    """One asynchronous run in a folder, in one or several attempts."""

    def __init__(self, folder: Path, *said: str, slow: Mapping[int, int] | None = None) -> None:
        self.folder = folder
        self.config: RunConfig = resolve(TABLES, said, source="test").config
        self.plan = plan_of(self.config, population=POPULATION)
        self.slow = slow or {}
        self.directory = Directory()
        self.failing: frozenset[int] = frozenset()
        self.asked: list[tuple[int, int]] = []
        self.came: list[tuple[int, int, np.ndarray]] = []

    def answer(self, client: int, told: Instruction) -> RecordDict:
        if client in self.failing:
            return encode_failure("policy-refused")
        change = (0.3 * (np.sin(np.arange(SIZE) + client) - told.vector)).astype(np.float32)
        self.came.append((client, told.server_round, change))
        stage = "plain" if self.plan.mode == "none" else "noised"
        return update(told, change, stage=stage)

    def attempt(self, *, kill_after: int | None = None) -> tuple[FederatedRun, Quiet]:
        """Run what is left; killed when the answer of a number has arrived, before it is kept."""
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            client = int(context.node_config["partition-id"])
            told = decode_instruction(message.content)
            return Message(self.answer(client, told), reply_to=message)

        observer = Mortal(kill_after)
        grid = Devices(app, self.slow)
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            budget = RunBudget(ledger, plan=self.plan, run_id="r", scope="test")
            setup = RunSetup(
                run_id="r",
                config=self.config,
                plan=self.plan,
                spec=SPEC,
                population=POPULATION,
                folder=self.folder,
            )
            run = FederatedRun(setup, budget=budget, observer=observer, directory=self.directory)
            run.restore()
            try:
                run.train(run.connect(grid))
            finally:
                self.asked += grid.asked
        return run, observer

    def charged(self) -> Counter[tuple[str, int]]:
        """Return how often each client was charged for each step."""
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            assert ledger.verify().entries >= 0
            charges = ledger.charges("test")
        return Counter((s, c.server_round) for c in charges for s in c.subjects)


class Mortal(Quiet):
    """Kills the server, as a power cut does, when so many answers have arrived."""

    def __init__(self, kill_after: int | None) -> None:
        super().__init__()
        self._left = kill_after

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def replayed(start: np.ndarray, steps: Mapping[int, Sequence[tuple[int, int, np.ndarray]]]) -> Any:
    """Move an adapter by FedBuff's rule, with numpy."""
    vector = np.array(start)
    for number, answers in sorted(steps.items()):
        total = np.zeros(SIZE)
        for _, given, change in answers:
            total += change.astype(np.float64) / np.sqrt(1 + number - given)
        vector = (vector + total / len(answers)).astype(np.float32)
    return vector


def test_answers_are_counted_as_they_come_weighted_by_their_age(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, *NONE, slow={0: 2, 1: 3})
    run, observer = fleet.attempt()
    assert [r["answered"] for r in observer.records] == [3] * 6
    assert max(r["staleness"] for r in observer.records) > 0
    assert all(r["in_flight"] <= 5 for r in observer.records)
    assert all("simulated_seconds" not in r for r in observer.records)
    # Each answer was computed once, in the order in which it arrived.
    steps = {n: fleet.came[3 * (n - 1) : 3 * n] for n in range(1, 7)}
    assert run.vector == pytest.approx(replayed(run.initial_vector, steps), abs=1e-6)
    ages = [np.mean([n - given for _, given, _ in steps[n]]) for n in range(1, 7)]
    assert [r["staleness"] for r in observer.records] == pytest.approx(ages)
    assert len(set(fleet.asked)) == len(fleet.asked)


def test_who_is_at_work_or_away_is_not_asked(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, *NONE, slow={0: 99, 1: 99})
    fleet.directory.away = frozenset(range(6, POPULATION))
    _, observer = fleet.attempt()
    count = Counter(client for client, _ in fleet.asked)
    assert set(count) <= set(range(6))
    assert max(count[0], count[1]) <= 1
    assert [r["answered"] for r in observer.records] == [3] * 6
    assert observer.records[-1]["in_flight"] >= count[0] + count[1]


@pytest.mark.parametrize("killed", [1, 5, 8, 9])
def test_a_killed_server_asks_and_charges_nobody_twice(tmp_path: Path, killed: int) -> None:
    """Eight answers: two steps and one answer that was kept; the eighth was not kept in time."""
    fleet = Fleet(tmp_path, *EXAMPLE, slow={0: 1, 3: 2})
    with pytest.raises(KeyboardInterrupt):
        fleet.attempt(kill_after=killed)
    before, done = list(fleet.came[:killed]), (killed - 1) // 3
    fleet.came.clear()
    checkpoint = read_checkpoint(tmp_path, config_digest=fleet.config.digest())
    kept = [] if checkpoint is None else list(checkpoint.waiting)
    assert len(kept) == (killed - 1) % 3
    run, observer = fleet.attempt()
    lost = done + 1
    assert [r["round"] for r in observer.records] == list(range(lost, 7))
    assert observer.records[0]["aborted"] == LOST
    assert all(r["aborted"] is None for r in observer.records[1:])
    # What had arrived and was kept is counted first; nobody computes it again.
    answers = [*before[: killed - 1], *fleet.came]
    steps = {n: answers[3 * (n - 1) : 3 * n] for n in range(1, lost)}
    later = answers[3 * done :]
    for place, number in enumerate(range(lost + 1, 7)):
        steps[number] = later[3 * place : 3 * place + 3]
    assert run.vector == pytest.approx(replayed(run.initial_vector, steps), abs=1e-6)
    assert len(set(fleet.asked)) == len(fleet.asked)
    charged = fleet.charged()
    assert max(charged.values()) == 1
    assert {(f"client-{client}", number) for client, number in fleet.asked} <= set(charged)


def test_no_client_is_asked_more_often_than_it_allows(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, *EXAMPLE, "clients.max_participations=2", "run.rounds=5")
    fleet.attempt()
    assert max(Counter(client for client, _ in fleet.asked).values()) == 2
    assert max(Counter(subject for subject, _ in fleet.charged()).values()) == 2


def test_failures_fill_their_places_and_too_few_answers_are_no_step(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, *NONE, "server.quorum=0.9")
    fleet.failing = frozenset(range(POPULATION))
    with pytest.raises(QuorumNotReached, match=r"0 of 3 answers came, needed 3"):
        fleet.attempt()
    (tmp_path / "some").mkdir()
    some = Fleet(tmp_path / "some", *NONE, "server.quorum=0.3")
    some.failing = frozenset({2, 5, 8})
    run, observer = some.attempt()
    released = [r for r in observer.records if r["aborted"] is None]
    assert min(r["answered"] for r in released) < 3
    assert np.isfinite(run.vector).all()


def test_who_never_answers_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = (*NONE, "server.deadline_seconds=0.4", "run.rounds=1", "server.quorum=0.3")
    fleet = Fleet(tmp_path, *said, slow=dict.fromkeys(range(2, POPULATION), 99))
    fleet.directory.away = frozenset(range(5, POPULATION))
    with caplog.at_level(logging.WARNING, logger="fedslm.server"):
        _, observer = fleet.attempt()
    assert (observer.records[0]["answered"], observer.records[0]["in_flight"]) == (2, 0)
    assert "did not answer in time" in caplog.text


def test_a_checkpoint_that_is_not_of_this_run_is_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, *NONE)
    setup = RunSetup(
        run_id="r",
        config=fleet.config,
        plan=fleet.plan,
        spec=SPEC,
        population=POPULATION,
        folder=tmp_path,
    )
    rounds = LiveRounds(setup, size=SIZE)
    vector = np.zeros(SIZE, dtype=np.float32)
    rounds.restore({"live": [[3, 1]]}, {"3.1": vector})
    assert rounds.state() == {"live": [[3, 1]]}
    for state, tensors in (
        ({"live": []}, {"3.1": vector}),
        ({"live": [[3, 1]]}, {}),
        ({"live": [[3]]}, {"3.1": vector}),
        ({"now": 1.0}, {}),
    ):
        with pytest.raises(NotResumable):
            rounds.restore(state, tensors)
