from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import fleetruns, prepared
from server.audit import verify
from server.control import runstates
from server.control.refusals import NotThere
from server.control.runstates import RunStates
from server.fleetruns import FleetRuns, RunProgress
from server.home import ServerHome
from simulations import runfolder
from tests.ledgers import plan_of
from tests.server.control.service import make_home

ROUND = {
    "round": 1,
    "cohort": 20,
    "answered": 19,
    "epsilon": 0.5,
    "epsilon_rdp": 0.6,
    "delta": 1e-4,
    "cap": 8.0,
    "releases": 1,
    "seconds": 2.5,
    "bytes_up_per_client": 10,
    "bytes_down_per_client": 11,
    "loss": 3.0,
}


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path / "server")


def add_run(home: ServerHome, name: str, rounds: int = 0, *, completed: bool = False) -> Path:
    folder = home.run_folder(name)
    folder.mkdir()
    identity = {"config_digest": "c" * 64, "plan": plan_of(cap=8.0).to_json(), "population": 100}
    (folder / "run.json").write_text(json.dumps(identity))
    lines = [json.dumps({**ROUND, "round": n, "epsilon": 0.5 * n}) for n in range(1, rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if completed:
        (folder / "summary.json").write_text('{"status": "completed"}')
        (folder / "audit.json").write_text('{"verdict": "consistent"}')
        (folder / "audit.sig.json").write_text("{}")
    return folder


def test_the_names_of_files_are_those_that_runs_write() -> None:
    assert (runstates.SUMMARY, runstates.AUDIT) == (runfolder.SUMMARY, runfolder.AUDIT)
    assert (runstates.IDENTITY, runstates.METRICS) == (prepared.IDENTITY, prepared.METRICS)
    assert (runstates.ORDER, runstates.PROGRESS) == (fleetruns.ORDER, fleetruns.STATE)
    assert runstates.SIGNATURE == verify.SIGNATURE


def test_a_run_goes_through_its_states(home: ServerHome) -> None:
    runs = RunStates(home)
    assert runs.names() == []
    folder = add_run(home, "first")
    state = runs.state("first")
    assert (state.state, state.rounds_done, state.rounds_planned) == ("prepared", 0, 6)
    assert (state.epsilon, state.delta, state.unit) == (None, 1e-4, "client")
    assert (state.relation, state.cap, state.mode) == ("add-or-remove-one", 8.0, "client-central")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(ROUND) + "\n" + '{"round": 2, "coh')
    state = runs.state("first")
    assert (state.state, state.rounds_done, state.epsilon) == ("running", 1, 0.5)
    (folder / "summary.json").write_text('{"status": "completed"}')
    assert runs.state("first").state == "completed"


def test_a_run_on_the_fleet_is_where_its_keeper_says(home: ServerHome) -> None:
    folder = add_run(home, "first", rounds=2)
    runs = FleetRuns(home)
    runs.order("first", base_model="demo", base_digest="d" * 64)
    states = RunStates(home)
    assert states.state("first").state == "ordered"
    told: set[str] = set()
    for state in get_args(fleetruns.State):
        runs.set_progress("first", RunProgress(state=state, reason=f"it is {state}"))
        assert states.state("first").state == state
        told.add(state)
    assert told | {"prepared", "damaged"} == set(get_args(runstates.State))
    (folder / "fleet.json").write_text('{"state": "prepared"}')
    assert states.state("first").state == "ordered"


def test_infinite_and_missing_numbers_are_absent(home: ServerHome) -> None:
    folder = add_run(home, "none")
    (folder / "run.json").write_text(json.dumps({"plan": {"mode": "none", "rounds": 2}}))
    record = '{"round": 1, "epsilon": Infinity, "releases": true, "cap": "8"}\n'
    (folder / "metrics.jsonl").write_text(record)
    state = RunStates(home).state("none")
    assert (state.mode, state.epsilon, state.delta, state.cap) == ("none", None, None, None)
    assert state.releases is None


def test_the_newest_come_first(home: ServerHome) -> None:
    for n, name in enumerate(["b", "a", "c"]):
        folder = add_run(home, name)
        for file in folder.iterdir():
            os.utime(file, (1000 + n, 1000 + n))
    runs = RunStates(home)
    assert runs.names() == ["a", "b", "c"]
    assert [run.name for run in runs.newest(2)] == ["c", "a"]


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "a/b", "a\x00b", "a\nb", "/etc", "~", "x" * 200, "a..b", "é"]
)
def test_names_that_could_leave_the_folder_are_no_runs(name: str, home: ServerHome) -> None:
    (home.path / "run.json").write_text("{}")
    with pytest.raises(NotThere):
        RunStates(home).state(name)
    with pytest.raises(NotThere):
        RunStates(home).audit(name)


def test_links_are_no_runs_and_no_files(home: ServerHome, tmp_path: Path) -> None:
    real = add_run(home, "real", completed=True)
    (home.runs / "link").symlink_to(real)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (real / "audit.json").unlink()
    (real / "audit.json").symlink_to(secret)
    runs = RunStates(home)
    assert runs.names() == ["real"]
    with pytest.raises(NotThere):
        runs.state("link")
    with pytest.raises(NotThere):
        runs.audit("real")


def test_a_pipe_in_place_of_a_file_holds_nobody_up(home: ServerHome) -> None:
    folder = add_run(home, "piped")
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    assert RunStates(home).state("piped").rounds_done == 0


def test_a_report_is_given_byte_for_byte(home: ServerHome) -> None:
    folder = add_run(home, "done", completed=True)
    (folder / "audit.json").write_bytes(b'{ "verdict":  "consistent" }\n')
    assert RunStates(home).audit("done") == (b'{ "verdict":  "consistent" }\n', b"{}")
    (folder / "audit.sig.json").unlink()
    assert RunStates(home).audit("done")[1] == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(content=st.binary(max_size=200), name=st.sampled_from(["run.json", "metrics.jsonl"]))
def test_any_content_is_read_or_left_out(home: ServerHome, content: bytes, name: str) -> None:
    folder = home.run_folder("fuzzed")
    if not folder.exists():
        add_run(home, "fuzzed", 2)
    (folder / name).write_bytes(content)
    assert RunStates(home).state("fuzzed").state in {"damaged", "prepared", "running"}


def test_deeply_nested_json_is_left_out(home: ServerHome) -> None:
    folder = add_run(home, "deep")
    (folder / "run.json").write_text('{"plan":' + "[" * 200_000)
    assert RunStates(home).state("deep").state == "damaged"
