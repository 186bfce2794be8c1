"""``fedslm server``: make a server, order runs, look at them; nothing needs to run for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.fleetdb import FleetDatabase
from server.fleetruns import FleetRuns
from server.home import ServerHome
from server.prepared import read_setup
from shared.errors import EmptyPopulation, FedSLMError, InvalidValue, RunFolderExists, UsageError
from simulations.server_cli import server_app
from tests.integration.fleetnode import TABLES
from tests.server.fleetkit import enrolled

PORTS = ["--fleet-port", "21290", "--superlink-port", "21291"]


def cli(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Run a command with --json; returns its exit code and what it printed."""
    capsys.readouterr()
    code = 0
    try:
        server_app([*map(str, words), "--json"])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    printed = capsys.readouterr().out
    return code, json.loads(printed) if printed.strip() else None


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> ServerHome:
    folder = tmp_path / "server"
    code, made = cli(capsys, "init", folder, "--name", "north", "--host", "fleet.example", *PORTS)
    assert code == 0
    assert made["config"]["hosts"] == ["fleet.example"]
    return ServerHome.open(folder)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    lines = []
    for section, table in TABLES.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_server_is_made_once(home: ServerHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert (home.config.name, home.config.fleet_port) == ("north", 21290)
    with pytest.raises(RunFolderExists):
        cli(capsys, "init", home.path)


@pytest.mark.parametrize("words", [["--name", "North Pole"], ["--fleet-port", "0"]])
def test_wrong_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(InvalidValue):
        cli(capsys, "init", tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


def test_a_server_that_does_not_run_says_so(
    home: ServerHome, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolled(home, "clinic-1")
    code, status = cli(capsys, "status", "--dir", home.path)
    assert code == 1
    assert status["state"] == "stopped"
    assert status["nodes"] == {"enrolled": 1, "revoked": 0, "seen_lately": 0}


@pytest.mark.slow
def test_a_run_is_ordered_stopped_and_resumed(
    home: ServerHome, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolled(home, "clinic-1")
    code, started = cli(capsys, "start-run", scenario, "--name", "one", "--dir", home.path)
    assert code == 0
    assert (started["state"], started["population"], started["enrolled"]) == ("ordered", 2, 1)
    assert any("rounds wait until 2" in warning for warning in started["warnings"])
    setup = read_setup(home.run_folder("one"))
    assert setup.population == 2
    assert FleetRuns(home).read_order("one").base_digest
    _, stopped = cli(capsys, "stop-run", "one", "--dir", home.path)
    assert stopped["wanted"] == "stopped"
    _, resumed = cli(capsys, "resume-run", "one", "--dir", home.path)
    assert resumed["wanted"] == "running"
    _, shown = cli(capsys, "rounds", "one", "--dir", home.path)
    assert shown["records"] == []
    with pytest.raises(RunFolderExists):
        cli(capsys, "start-run", scenario, "--name", "one", "--dir", home.path)
    kinds = [event.kind for event in FleetDatabase(home.fleet_database).events(10)]
    assert "run-ordered" in kinds


def test_a_run_for_nobody_is_refused(
    home: ServerHome, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = scenario.read_text().replace("population = 2\n", "").replace('"iid"', '"natural"')
    scenario.write_text(text.replace('text = "note"', 'text = "note"\nclient = "who"'))
    with pytest.raises(EmptyPopulation):
        cli(capsys, "start-run", scenario, "--dir", home.path)
    assert not any(home.runs.iterdir())


def test_a_run_that_is_not_there_is_named(
    home: ServerHome, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("stop-run", "resume-run", "rounds"):
        with pytest.raises(UsageError, match="no run 'two'"):
            cli(capsys, command, "two", "--dir", home.path)
    with pytest.raises(FedSLMError):
        cli(capsys, "rounds", "../two", "--dir", home.path)


def test_people_get_tables(home: ServerHome, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        server_app(["status", "--dir", str(home.path)])
    assert "server: stopped" in capsys.readouterr().out
