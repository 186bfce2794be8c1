"""A fleet's run that dies in the middle of rounds: nobody is asked one twice, each is paid once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.budget import RunBudget
from server.fleetdb import FleetDatabase
from server.fleetdirectory import FleetDirectory
from server.lostrounds import LOST, NAME, Begun, begin_round, begun_round
from server.prepared import FolderObserver, read_metrics, settle_metrics
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.configfile import resolve
from shared.errors import NotResumable, QuorumNotReached
from shared.privacy.ledger import Ledger
from shared.scenarioplan import plan_of
from shared.wire import decode_instruction
from simulations.engine import InProcessGrid
from tests.hostile.replies import honest
from tests.hostile.test_updates import POPULATION, enroll
from tests.integration.scenario import TABLES
from tests.server.test_strategy import SIZE, SPEC

ROUNDS = 6
SETTINGS = (
    f"clients.population={POPULATION}",
    f"clients.cohort={POPULATION}.0",
    "server.optimizer=mean",
    "server.quorum=0.5",
    f"run.rounds={ROUNDS}",
    "privacy.sampling_probability=1.0",
    'privacy.noise_source="os-entropy"',
    "privacy.cap=1000.0",
)
CORRELATED = (
    'privacy.mechanism="correlated"',
    "clients.cohort=2.0",
)
POINTS = ("mark", "charge", "send", "reply", "quorum", "keep", "checkpoint", "commit", "metrics")
"""Where a server may die: before the round is marked, ..., before its metrics line is written."""


class Killed(BaseException):
    """What stands for the death of a process: nobody catches it."""


class Place:
    """A run folder, its ledger and its nodes; every attempt is another server."""

    def __init__(self, folder: Path, *changes: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.config = resolve(TABLES, [*SETTINGS, *changes], source="test").config
        self.plan = plan_of(self.config, population=POPULATION)
        self.database = FleetDatabase(folder / "fleet.sqlite")
        enroll(self.database)
        self.asked: Counter[tuple[int, int]] = Counter()
        self.silent: set[int] = set()
        self.dies = ""

    def die(self, point: str) -> None:
        """Die here, if this is the point."""
        if point == self.dies:
            raise Killed

    def attempt(self, *deaths: tuple[int, str]) -> FederatedRun:
        """Run on from the checkpoint; die at the first of the points that is reached."""
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            client = int(context.node_config["partition-id"])
            told = decode_instruction(message.content)
            self.asked[client, told.server_round] += 1
            if client == 1:
                self.die("reply")
            if client in self.silent:
                return Message(RecordDict(), reply_to=message)
            return Message(honest(told, np.full(SIZE, 0.01), "clipped"), reply_to=message)

        with Ledger(self.folder / "ledger.sqlite") as ledger, pytest.MonkeyPatch.context() as patch:
            run = FederatedRun(
                RunSetup(
                    run_id="r",
                    config=self.config,
                    plan=self.plan,
                    spec=SPEC,
                    population=POPULATION,
                    folder=self.folder,
                ),
                budget=RunBudget(ledger, plan=self.plan, run_id="r", scope="test"),
                observer=FolderObserver(self.folder),
                directory=FleetDirectory(self.database),
            )
            if run.restore():
                settle_metrics(self.folder, run.finished_rounds, run.last_record)
            self._arm(run, patch, dict(deaths))
            run.train(run.connect(InProcessGrid(app, POPULATION)))
            return run

    def _arm(self, run: FederatedRun, patch: pytest.MonkeyPatch, deaths: dict[int, str]) -> None:
        """Put a death before what is done at each point."""
        places = {
            "charge": (run._budget, "reserve"),
            "send": (run._releaser, "release"),
            "keep": (run._recorder, "keep"),
            "checkpoint": (run._recorder, "publish"),
            "commit": (run._budget, "commit"),
            "metrics": (run._observer, "finished"),
        }
        for point, (owner, name) in places.items():
            before = getattr(owner, name)

            def instead(*args: object, before=before, point=point, **named: object) -> object:  # type: ignore[no-untyped-def]  # noqa: ANN001
                self.die(point)
                return before(*args, **named)

            patch.setattr(owner, name, instead)
        cohort = run._cohort

        def chosen(server_round: int) -> list[int]:
            self.dies = deaths.get(server_round, "")
            self.silent = set(range(3)) if self.dies == "quorum" else set()
            self.die("mark")
            return cohort(server_round)

        patch.setattr(run, "_cohort", chosen)

    def books(self) -> tuple[list[int], list[int], list[int]]:
        """Return which rounds were lost, charged and committed; the ledger is whole."""
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            ledger.verify()
            charges = ledger.charges("test")
        records = read_metrics(self.folder)
        assert [record["round"] for record in records] == list(range(1, len(records) + 1))
        lost = [record["round"] for record in records if record["aborted"]]
        charged = [c.server_round for c in charges if c.state != "abandoned"]
        committed = [c.server_round for c in charges if c.state == "committed"]
        return lost, charged, committed


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deaths=st.lists(
        st.tuples(st.integers(1, ROUNDS), st.sampled_from(POINTS)),
        max_size=5,
        unique_by=lambda d: d[0],
    )
)
@pytest.mark.slow
def test_whenever_it_dies_each_round_is_asked_and_paid_once(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, str]]
) -> None:
    place = Place(tmp_path_factory.mktemp("run"))
    for death in sorted(deaths):
        with pytest.raises((Killed, QuorumNotReached)):
            place.attempt(death)
    run = place.attempt()
    assert run.finished_rounds == ROUNDS
    lost, charged, committed = place.books()
    # Before its charge nobody was asked; after its checkpoint a round is done.
    begun = {"send", "reply", "quorum", "keep"}
    assert lost == sorted(number for number, point in deaths if point in begun)
    assert len(charged) == len(set(charged))
    assert set(charged) == set(range(1, ROUNDS + 1))
    assert set(committed) <= set(charged) - set(lost)
    assert max(place.asked.values()) == 1
    assert run.last_record["releases"] == len(charged)


@pytest.mark.parametrize("point", ["mark", "charge", "send", "keep", "checkpoint"])
def test_a_run_that_is_paid_for_as_a_whole_is_never_run_unpaid(tmp_path: Path, point: str) -> None:
    """Correlated noise: the first round pays for the run, so its charge may not be lost with it."""
    place = Place(tmp_path / "run", *CORRELATED)
    with pytest.raises(Killed):
        place.attempt((1, point))
    run = place.attempt()
    lost, charged, _ = place.books()
    assert charged == [1]
    assert lost == ([1] if point in {"send", "keep"} else [])
    assert run.last_record["epsilon"] > 0
    assert max(place.asked.values()) == 1


def test_a_lost_round_leaves_the_adapter_as_it_was_and_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path / "run")
    with pytest.raises(Killed):
        place.attempt((2, "reply"))
    before = read_metrics(place.folder)
    assert [record["round"] for record in before] == [1]
    with pytest.raises(Killed):
        place.attempt((3, "mark"))
    one, two = read_metrics(place.folder)
    assert one == before[0]
    assert (two["aborted"], two["answered"], two["cohort"]) == (LOST, 0, POPULATION)
    assert two["releases"] == 2
    assert two["epsilon"] > one["epsilon"]
    files = {path.name for path in (place.folder / "releases").iterdir()}
    assert "round-00001.safetensors" in files
    assert not any("00002" in name for name in files)


def test_the_file_of_the_round_under_way_is_read_back_or_refused(tmp_path: Path) -> None:
    assert begun_round(tmp_path) is None
    begun = Begun(server_round=3, cohort=7)
    begin_round(tmp_path, begun)
    assert begun_round(tmp_path) == begun
    damaged = (
        "",
        "{",
        "[]",
        "{}",
        '{"server_round": "3", "cohort": 7}',
        '{"server_round": -1, "cohort": 7}',
    )
    for text in damaged:
        (tmp_path / NAME).write_text(text, encoding="utf-8")
        with pytest.raises(NotResumable, match="underway"):
            begun_round(tmp_path)
