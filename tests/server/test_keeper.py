"""Orders, progress and outcomes of runs, carried out against a SuperLink that is a small object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import keeper as keeping
from server.fleetdb import FleetDatabase
from server.fleetruns import (
    LOCK,
    OUTCOME,
    FleetRuns,
    Outcome,
    RunProgress,
    write_outcome,
)
from server.home import ServerHome
from server.keeper import MOST_ATTEMPTS, Keeper
from server.prepared import IDENTITY, METRICS, describe_run
from server.superlinkclient import FlowerNode, FlowerRun
from shared.bundle import BUNDLE_DIGEST
from shared.canonical import sha256_hex
from shared.errors import NotResumable, OutOfDisk, QuorumNotReached, SchemaMismatch, UsageError
from shared.lora import AdapterSpec, Factor
from shared.privatefiles import held
from shared.scenarioplan import plan_of
from tests.client.device import scenario
from tests.server.fleetkit import enrolled, make_home


class SmallSuperLink:
    """Holds nodes and runs as the real one does, in memory."""

    def __init__(self) -> None:
        self.registered: dict[bytes, int] = {}
        self.found: dict[int, FlowerRun] = {}
        self.configs: list[dict[str, str]] = []

    def nodes(self) -> tuple[FlowerNode, ...]:
        return tuple(
            FlowerNode(node_id=number, public_key=key, status="online")
            for key, number in self.registered.items()
        )

    def register_node(self, public_key: bytes) -> int | None:
        return self.registered.setdefault(public_key, len(self.registered) + 1)

    def unregister_node(self, node_id: int) -> None:
        self.registered = {k: n for k, n in self.registered.items() if n != node_id}

    def start_run(self, bundle: bytes, run_config: Mapping[str, str]) -> int:
        assert sha256_hex(bundle) == BUNDLE_DIGEST
        self.configs.append(dict(run_config))
        number = len(self.configs)
        self.found[number] = FlowerRun(run_id=number, status="running", outcome="")
        return number

    def stop_run(self, run_id: int) -> None:
        self.end(run_id, "stopped")

    def runs(self) -> tuple[FlowerRun, ...]:
        return tuple(self.found.values())

    def end(self, run_id: int, outcome: str) -> None:
        self.found[run_id] = replace(self.found[run_id], status="finished", outcome=outcome)


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path)


@pytest.fixture
def flower() -> SmallSuperLink:
    return SmallSuperLink()


@pytest.fixture
def keeper(home: ServerHome, flower: SmallSuperLink) -> Keeper:
    return Keeper(home, flower, FleetDatabase(home.fleet_database))


@pytest.fixture
def runs(home: ServerHome) -> FleetRuns:
    """One run was ordered."""
    config = scenario("none")
    plan = plan_of(config, population=2)
    factors = tuple(Factor(name=f"q.{kind}", shape=(2, 2), kind=kind) for kind in ("A", "B"))
    spec = AdapterSpec(r=2, lora_alpha=4.0, target_modules=("q",), factors=factors)
    folder = home.run_folder("one")
    folder.mkdir()
    (folder / IDENTITY).write_text(json.dumps(describe_run(config, plan, spec, 2)))
    made = FleetRuns(home)
    made.order("one", base_model="demo", base_digest="0" * 64)
    return made


def finish_rounds(runs: FleetRuns, count: int) -> None:
    records = [json.dumps({"round": n + 1, "loss": None, "epsilon": None}) for n in range(count)]
    (runs.folder("one") / METRICS).write_text("\n".join(records) + "\n")


def end(runs: FleetRuns, flower: SmallSuperLink, *, code: str = "", rounds: int = 0) -> None:
    state = "failed" if code else "completed"
    outcome = Outcome(state=state, code=code, message=f"said {code}", rounds=rounds)  # type: ignore[arg-type]
    write_outcome(runs.folder("one"), outcome)
    flower.end(len(flower.configs), "failed" if code else "completed")


def test_the_enrolled_are_registered_and_the_revoked_are_not(
    home: ServerHome, keeper: Keeper, flower: SmallSuperLink
) -> None:
    first, second = enrolled(home, "a"), enrolled(home, "b")
    keeper.step(now=0.0)
    assert set(flower.registered) == {first.public, second.public}
    FleetDatabase(home.fleet_database).revoke("a", "lost")
    keeper.step(now=0.5)
    assert set(flower.registered) == {second.public}


def test_a_superlink_that_forgot_is_told_again(
    home: ServerHome, keeper: Keeper, flower: SmallSuperLink
) -> None:
    identity = enrolled(home, "a")
    keeper.step(now=0.0)
    flower.registered.clear()
    keeper.step(now=31.0)
    assert set(flower.registered) == {identity.public}


def test_an_order_is_handed_over_with_nothing_about_the_servers_folders(
    home: ServerHome, keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    keeper.step(now=0.0)
    assert runs.progress("one").state == "running"
    [config] = flower.configs
    assert config["run-folder"] == "runs/one"
    assert (config["ledger"], config["fleet"]) == ("ledger.sqlite", "fleet.sqlite")
    assert str(home.path) not in json.dumps(config)


def test_a_finished_run_is_over(keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink) -> None:
    keeper.step(now=0.0)
    end(runs, flower)
    keeper.step(now=1.0)
    keeper.step(now=2.0)
    assert runs.view("one").state == "completed"
    assert len(flower.configs) == 1
    with pytest.raises(UsageError, match="is over"):
        runs.want("one", "stopped")


def test_a_run_whose_app_died_goes_on(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    """It was at work, then nobody holds its folder and nobody said anything."""
    keeper.step(now=0.0)
    with held(runs.folder("one") / LOCK):
        keeper.step(now=1.0)
    for now in (2.0, 3.0, 6.0):
        keeper.step(now=now)
    assert flower.found[1].outcome == "stopped"
    assert runs.progress("one").state == "waiting"
    keeper.step(now=8.0)
    assert runs.progress("one").state == "running"
    assert len(flower.configs) == 2


def test_a_run_that_flower_lost_goes_on(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    keeper.step(now=0.0)
    flower.found.clear()
    keeper.step(now=1.0)
    keeper.step(now=3.0)
    assert len(flower.configs) == 2


def test_nothing_is_handed_over_while_somebody_works_in_the_folder(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    with held(runs.folder("one") / LOCK):
        keeper.step(now=0.0)
        assert flower.configs == []
    keeper.step(now=1.0)
    assert len(flower.configs) == 1


def test_a_lack_of_nodes_is_waited_out_longer_each_time(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    now, pauses = 0.0, []
    for _ in range(4):
        keeper.step(now=now)
        end(runs, flower, code=QuorumNotReached.code)
        keeper.step(now=now)
        progress = runs.progress("one")
        pauses.append(progress.next_try - now)
        keeper.step(now=now + pauses[-1] / 2)
        assert runs.progress("one").state == "waiting"
        now = progress.next_try
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_a_run_is_given_up_after_many_attempts_without_a_round(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    now = 0.0
    while runs.progress("one").state != "failed":
        keeper.step(now=now)
        end(runs, flower, code=QuorumNotReached.code)
        keeper.step(now=now)
        now += 1000.0
    assert len(flower.configs) == MOST_ATTEMPTS
    assert "released nothing" in runs.view("one").reason


def test_a_full_disk_is_waited_for_as_long_as_it_takes(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the app could still say so, or died of it."""
    now, free = 0.0, 0
    monkeypatch.setattr(keeping, "disk_usage", lambda path: SimpleNamespace(free=free))
    for attempt in range(3 * MOST_ATTEMPTS):
        keeper.step(now=now)
        assert runs.view("one").state == "running"
        if attempt % 2:
            end(runs, flower, code=OutOfDisk.code)
        else:
            flower.end(len(flower.configs), "failed")
        keeper.step(now=now + 1)
        view = runs.view("one")
        assert view.state == "waiting"
        assert "disk is full" in view.reason or "said out-of-disk" in view.reason
        now += 40
    free = 1 << 30
    for _ in range(MOST_ATTEMPTS):
        keeper.step(now=now)
        flower.end(len(flower.configs), "failed")
        keeper.step(now=now + 1)
        now += 200
    assert runs.view("one").state == "failed"


def test_rounds_reset_the_count(keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink) -> None:
    now = 0.0
    for attempt in range(2 * MOST_ATTEMPTS):
        keeper.step(now=now)
        finish_rounds(runs, attempt + 1)
        end(runs, flower, code=QuorumNotReached.code, rounds=attempt + 1)
        keeper.step(now=now)
        assert runs.progress("one").state == "waiting"
        now += 1000.0


def test_what_will_not_get_better_fails_at_once(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    keeper.step(now=0.0)
    end(runs, flower, code=SchemaMismatch.code)
    keeper.step(now=1.0)
    view = runs.view("one")
    assert (view.state, view.reason) == ("failed", "said schema-mismatch")


def test_a_run_stops_by_order_and_goes_on_by_order(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    keeper.step(now=0.0)
    assert runs.want("one", "stopped").wanted == "stopped"
    keeper.step(now=1.0)
    assert runs.progress("one").state == "stopped"
    assert flower.found[1].outcome == "stopped"
    keeper.step(now=2.0)
    runs.want("one", "running")
    keeper.step(now=3.0)
    assert runs.progress("one").state == "running"
    assert len(flower.configs) == 2


def test_a_failed_run_can_be_tried_again_by_order(
    keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    keeper.step(now=0.0)
    end(runs, flower, code=SchemaMismatch.code)
    keeper.step(now=1.0)
    assert runs.progress("one").state == "failed"
    runs.want("one", "running")
    keeper.step(now=2.0)
    assert runs.progress("one").state == "running"
    assert not (runs.folder("one") / OUTCOME).exists()


def test_one_damaged_run_does_not_hold_up_the_others(
    home: ServerHome, keeper: Keeper, runs: FleetRuns, flower: SmallSuperLink
) -> None:
    bad = home.run_folder("bad")
    bad.mkdir()
    (bad / "order.json").write_text("{")
    keeper.step(now=0.0)
    assert runs.progress("bad").state == "failed"
    assert runs.progress("one").state == "running"
    assert [view.name for view in runs.all()] == ["one"]
    written = (bad / "fleet.json").stat().st_mtime_ns
    keeper.step(now=1.0)
    assert (bad / "fleet.json").stat().st_mtime_ns == written


def test_what_was_not_prepared_or_ordered_is_refused(home: ServerHome, runs: FleetRuns) -> None:
    with pytest.raises(NotResumable):
        runs.order("two", base_model="demo", base_digest="0" * 64)
    with pytest.raises(UsageError, match="no run 'two'") as refused:
        runs.view("two")
    assert refused.value.hint == "Known: one."
    assert runs.progress("one") == RunProgress()
