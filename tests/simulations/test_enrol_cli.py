"""The commands of enrolment, in a process of their own, against a real control service."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.home import DeviceHome
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from shared.enrolment import EnrolmentToken
from shared.errors import AccessDenied, EnrolmentRefused, FleetError, ModelNotFound
from simulations.enrol_cli import add_commands, server_enroll, server_nodes, server_revoke
from tests.server.control.service import Service, make_home, serving

app = typer.Typer()
server_app, client_app = typer.Typer(), typer.Typer()
app.add_typer(server_app, name="server")
app.add_typer(client_app, name="client")
for name, command in (
    ("enroll", server_enroll),
    ("nodes", server_nodes),
    ("revoke", server_revoke),
):
    server_app.command(name)(command)
add_commands(client_app)


def run(*arguments: str, fails: type[Exception] | None = None, stdin: str = "") -> Any:
    """Run a command; return its JSON, or the error that it raised."""
    found = CliRunner().invoke(app, [*arguments, "--json"], input=stdin)
    if fails is not None:
        assert isinstance(found.exception, fails), found.output
        return found.exception
    assert found.exit_code == 0, (found.output, found.exception)
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(make_home(tmp_path_factory.mktemp("server") / "home")) as found:
        yield found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my.jsonl"
    path.write_text('{"text": "mine"}\n', encoding="utf-8")
    return path


def token_of(service: Service, name: str, role: str = "node") -> str:
    """Let the operator make a token; the service of the test has another port than the default."""
    where = ("--dir", str(service.home.path))
    made = run("server", "enroll", "--name", name, "--role", role, *where)
    return replace(EnrolmentToken.from_text(made["token"]), address=service.enrol).to_text()


def node_of(service: Service, name: str) -> dict[str, Any]:
    nodes = run("server", "nodes", "--dir", str(service.home.path))["nodes"]
    return next(node for node in reversed(nodes) if node["name"] == name)


@pytest.mark.slow
def test_a_device_comes_renews_leaves_and_is_forgotten(
    service: Service, tmp_path: Path, data: Path
) -> None:
    text, where = token_of(service, "clinic-7"), ("--home", str(tmp_path / "device"))
    done = run("client", "enroll", text, "--data", str(data), *where)
    assert (done["name"], done["role"]) == ("clinic-7", "node")
    home = DeviceHome.open(tmp_path / "device")
    assert home.config.client_index == done["client_index"]
    assert home.config.control == service.address
    assert (Path(home.config.base) / "config.json").is_file()
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    node = node_of(service, "clinic-7")
    assert (node["client_index"], node["revoked_at"]) == (done["client_index"], None)

    before = home.certificate.read_bytes()
    assert run("client", "renew", "--if-due", *where) == {"renewed": False}
    assert home.certificate.read_bytes() == before
    assert run("client", "renew", *where)["renewed"]
    assert home.certificate.read_bytes() != before

    left = run("client", "leave", *where)
    assert left == {"name": "clinic-7", "left": True, "server_told": True, "why_not": None}
    assert home.left
    assert node_of(service, "clinic-7")["revoked_reason"] == "left by itself"
    again = run("client", "leave", *where)
    assert again["why_not"]["error"] == AccessDenied.code

    forgotten = run("client", "forget", "--yes", *where)
    assert not home.key.exists()
    assert home.policy.exists()
    assert str(home.key) in forgotten["removed"]
    assert data.read_text(encoding="utf-8") == '{"text": "mine"}\n'


@pytest.mark.slow
def test_a_token_works_once_and_comes_from_stdin(
    service: Service, tmp_path: Path, data: Path
) -> None:
    text = token_of(service, "clinic-8")
    arguments = ("client", "enroll", "-", "--data", str(data), "--home")
    run(*arguments, str(tmp_path / "one"), stdin=text + "\n")
    error = run(*arguments, str(tmp_path / "two"), stdin=text, fails=EnrolmentRefused)
    assert "used already" in str(error)
    assert node_of(service, "clinic-8")["flags"][0]["code"] == "token-replayed"
    assert not (tmp_path / "two" / "node.toml").exists()
    # Forgetting tells the server by itself.
    run("client", "forget", "--yes", "--ledger-too", "--home", str(tmp_path / "one"))
    assert node_of(service, "clinic-8")["revoked_at"] is not None


@pytest.mark.slow
def test_a_token_for_another_server_is_refused(
    service: Service, tmp_path: Path, data: Path
) -> None:
    token = EnrolmentToken.from_text(token_of(service, "clinic-9"))
    text = replace(token, fingerprint="0f" * 32).to_text()
    where = ("--home", str(tmp_path / "device"))
    error = run("client", "enroll", text, "--data", str(data), *where, fails=EnrolmentRefused)
    assert "not the one that the token names" in str(error)
    with service.fleet() as fleet:
        assert fleet.node_by_name("clinic-9") is None


@pytest.mark.slow
def test_a_revoked_device_is_out_at_once(service: Service, tmp_path: Path, data: Path) -> None:
    text, where = token_of(service, "clinic-10"), ("--home", str(tmp_path / "device"))
    run("client", "enroll", text, "--data", str(data), *where)
    run("server", "revoke", "clinic-10", "--reason", "lost", "--dir", str(service.home.path))
    run("client", "renew", *where, fails=AccessDenied)
    run("client", "enroll", text, "--data", str(data), *where, fails=FleetError)
    run("client", "leave", *where)
    error = run("client", "enroll", text, "--data", str(data), *where, fails=EnrolmentRefused)
    assert "used already" in str(error)


@pytest.mark.slow
def test_an_operator_gets_no_policy(service: Service, tmp_path: Path) -> None:
    text = token_of(service, "dr-who", role="operator")
    done = run("client", "enroll", text, "--home", str(tmp_path / "device"))
    assert (done["role"], done["client_index"], done["policy"]) == ("operator", None, None)


@pytest.fixture
def server(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path / "server")


def test_the_token_is_alone_on_stdout(server: ServerHome) -> None:
    where = ("--dir", str(server.path))
    found = CliRunner().invoke(app, ["server", "enroll", "--name", "a", "--hours", "2", *where])
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert len(lines) == 1
    token = EnrolmentToken.from_text(lines[0])
    assert token.fingerprint == server.authority().fingerprint
    assert "Works once, for a, until" in found.stderr
    for bad in (("--hours", "0"), ("--hours", "nan"), ("--role", "root")):
        refused = CliRunner().invoke(app, ["server", "enroll", "--name", "b", *bad, *where])
        assert refused.exit_code != 0


def test_the_list_is_readable(server: ServerHome) -> None:
    with FleetDatabase(server.fleet_database) as fleet:
        for number, who in enumerate(("clinic-7", "clinic-8")):
            token = fleet.new_token(who, valid_seconds=60)
            fleet.redeem(token, bytes([number + 1]) * 97)
        fleet.activated(b"\x01" * 97, 2**64 - 1)
        fleet.flag("clinic-7", "late")
        fleet.revoke("clinic-8", "[red]stolen[/red]")
    found = CliRunner().invoke(app, ["server", "nodes", "--dir", str(server.path)])
    assert found.exit_code == 0
    assert "late x1" in found.stdout
    assert "revoked: [red]stolen[/red]" in found.stdout
    nodes = run("server", "nodes", "--dir", str(server.path))["nodes"]
    assert nodes[0]["flower_node_id"] == str(2**64 - 1)


def test_revoking_says_what_it_did(server: ServerHome) -> None:
    where = ("--dir", str(server.path))
    run("server", "enroll", "--name", "a", *where)
    found = CliRunner().invoke(app, ["server", "revoke", "a", "--reason", "mistake", *where])
    assert "its open token is void" in found.stdout
    run("server", "revoke", "a", "--reason", "again", *where, fails=AccessDenied)


def test_forgetting_asks_first(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir(mode=0o700)
    key = tmp_path / "device" / "node.key"
    key.write_bytes(b"x")
    arguments = ["client", "forget", "--ledger-too", "--home", str(tmp_path / "device")]
    found = CliRunner().invoke(app, arguments, input="n\n")
    assert found.exit_code == 1
    assert key.exists()
    assert "nothing calls it back" in found.stderr
    assert "WITHOUT ITS LEDGER" in found.stderr
    assert CliRunner().invoke(app, arguments, input="y\n").exit_code == 0
    assert not key.exists()


def test_a_base_that_is_no_model_is_refused(tmp_path: Path, data: Path) -> None:
    arguments = ("--data", str(data), "--base", str(tmp_path), "--home", str(tmp_path / "device"))
    run("client", "enroll", "x", *arguments, fails=ModelNotFound)


def test_enrolling_needs_neither_torch_nor_flower() -> None:
    program = (
        "import sys, client.enrolling, client.leaving, client.control, simulations.enrol_cli\n"
        "heavy = {'torch', 'flwr', 'transformers', 'scipy', 'dp_accounting'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
