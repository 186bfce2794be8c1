from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from server.dashboard.store import USERS, UserFile
from server.dashboard.users import STRONG, UserStore
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from shared.errors import AccessDenied, FedSLMError, InvalidValue, UsageError
from simulations.user_cli import user_app
from tests.server.dashboard.homes import PASSWORD, empty_home

app = typer.Typer()
app.add_typer(user_app, name="user")


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return empty_home(tmp_path / "home")


def run(home: ServerHome, *arguments: str, typed: str = "") -> Result:
    command = ["user", *arguments, "--dir", str(home.path)]
    return CliRunner().invoke(app, command, input=typed)


def given(tmp_path: Path, text: str) -> str:
    path = tmp_path / "password"
    path.write_text(text)
    return str(path)


def store(home: ServerHome) -> UserStore:
    return UserStore(UserFile(home.path / USERS))


def test_a_person_is_added_listed_and_removed(home: ServerHome, tmp_path: Path) -> None:
    file = given(tmp_path, f"{PASSWORD}\nand no second line\n")
    added = run(home, "add", "ada", "--role", "operator", "--password-file", file, "--json")
    assert json.loads(added.stdout) == {"name": "ada", "role": "operator"}
    assert store(home).check("ada", PASSWORD) is not None
    listed: dict[str, Any] = json.loads(run(home, "list", "--json").stdout)
    assert [(u["name"], u["role"]) for u in listed["users"]] == [("ada", "operator")]
    assert "operator" in run(home, "list").stdout
    assert run(home, "remove", "ada").exit_code == 0
    assert store(home).users() == ()
    with FleetDatabase(home.fleet_database) as fleet:
        assert [event.kind for event in fleet.events(9)] == ["user-removed", "user-added"]


def test_a_password_is_asked_for_twice_and_not_shown(home: ServerHome) -> None:
    typed = f"{PASSWORD}\n{PASSWORD}\n"
    done = run(home, "add", "ada", "--role", "viewer", typed=typed)
    assert done.exit_code == 0
    assert PASSWORD not in done.output
    changed = "another eleven otters"
    done = run(home, "password", "ada", typed=f"{changed}\n{changed}\n")
    assert done.exit_code == 0
    assert store(home).check("ada", changed) is not None
    assert store(home).check("ada", PASSWORD) is None


def test_the_command_line_hashes_at_full_cost(home: ServerHome, tmp_path: Path) -> None:
    file = given(tmp_path, PASSWORD)
    run(home, "add", "ada", "--role", "viewer", "--password-file", file)
    db = sqlite3.connect(home.path / USERS)
    assert db.execute("SELECT n, r, p FROM users").fetchall() == [(STRONG.n, STRONG.r, STRONG.p)]
    db.close()


@pytest.mark.parametrize(
    ("arguments", "text", "error"),
    [
        (["add", "ada", "--role", "operator"], "short", InvalidValue),
        (["add", "ada", "--role", "root"], PASSWORD, InvalidValue),
        (["add", "Ada!", "--role", "viewer"], PASSWORD, InvalidValue),
        (["password", "nobody"], PASSWORD, AccessDenied),
    ],
)
def test_what_is_wrong_is_refused(
    home: ServerHome, tmp_path: Path, arguments: list[str], text: str, error: type[FedSLMError]
) -> None:
    done = run(home, *arguments, "--password-file", given(tmp_path, text))
    assert isinstance(done.exception, error)
    assert store(home).users() == ()


def test_a_password_file_that_is_not_there_is_said(home: ServerHome, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    done = run(home, "add", "ada", "--role", "viewer", "--password-file", missing)
    assert isinstance(done.exception, UsageError)


def test_a_role_must_be_said(home: ServerHome, tmp_path: Path) -> None:
    done = run(home, "add", "ada", "--password-file", given(tmp_path, PASSWORD))
    assert done.exit_code == 2
