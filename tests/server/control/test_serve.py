"""The process: how it starts, stops, and takes new certificates."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client.firstcontact import authority_behind
from server.control.__main__ import main
from server.control.endpoints import EVERYONE, OPERATORS, for_certificates, for_tokens
from server.control.serve import PORTS, hold
from server.control.settings import ControlSettings, enrol_address, listen_on
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from server.settings import ServerConfig
from shared.control.methods import METHODS
from shared.errors import FleetError, UsageError
from tests.server.control.service import Service, make_home, serving


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path / "server")


def test_every_method_is_served_on_exactly_one_port(home: ServerHome) -> None:
    settings = ControlSettings.of(home.config)
    with FleetDatabase(home.fleet_database) as fleet:
        held = hold(home, fleet)
        ports = for_certificates(held, settings), for_tokens(held, settings)
    served = [e.method.path for port in ports for e in port if "fedslm" in e.method.service]
    assert sorted(served) == sorted(method.path for method in METHODS.values())
    assert {e.method.path for e in ports[1] if not e.roles} == {e.method.path for e in ports[1]}
    assert all(e.roles for e in ports[0])


def test_only_operators_act(home: ServerHome) -> None:
    with FleetDatabase(home.fleet_database) as fleet:
        port = for_certificates(hold(home, fleet), ControlSettings.of(home.config))
    roles = {e.method.name: e.roles for e in port}
    assert roles["Revoke"] == roles["NewToken"] == OPERATORS
    assert roles["GetOwn"] == EVERYONE
    assert "node" not in roles["ListBudgets"] | roles["ListNodes"]


def test_addresses() -> None:
    config = ServerConfig(name="test", hosts=("fleet.example.org", "::1"))
    assert enrol_address(config) == "fleet.example.org:9096"
    six = ServerConfig(name="test", hosts=("2001:db8::1",))
    assert enrol_address(six) == "[2001:db8::1]:9096"
    # Two servers on one machine need name only one port each.
    other = ControlSettings.of(ServerConfig(name="test", control_port=21_300))
    assert (other.enrol_port, other.metrics_port) == (21_303, 21_304)
    assert other.enrol_address == "localhost:21303"
    last = ControlSettings.of(ServerConfig(name="test", control_port=65_535))
    assert (last.enrol_port, last.metrics_port) == (65_532, 65_531)
    assert (listen_on("127.0.0.1", 1), listen_on("::", 2)) == ("127.0.0.1:1", "[::]:2")


def test_the_command_wants_a_server_s_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == UsageError.exit_code
    assert main([str(tmp_path)]) == FleetError.exit_code
    assert "fedslm server init" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_ends_it_in_time(home: ServerHome) -> None:
    with serving(home) as running:
        ports = json.loads((home.run / PORTS).read_text())
        assert ports["pid"] == running.process.pid
        assert (ports["control"], ports["enrol"]) == (
            running.settings.control_port,
            running.settings.enrol_port,
        )
        with running.client("clinic-1") as client:
            client.own_budget()
            started = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(timeout=15) == 0
            assert time.monotonic() - started < 8
    assert not (home.run / PORTS).exists()
    assert [line["event"] for line in running.log()][-1] == "stopped"


@pytest.mark.slow
def test_a_renewed_certificate_needs_no_restart(home: ServerHome) -> None:
    def shown(running: Service) -> bytes:
        host, port = running.enrol.split(":")
        return ssl.get_server_certificate((host, int(port))).encode()

    with serving(home) as running:
        before = shown(running)
        assert before.split() == home.server_certificate.read_bytes().split()
        home.issue_server_certificate()
        for path in (home.server_key, home.server_certificate):
            os.utime(path, (2_000_000_000, 2_000_000_000))
        after = shown(running)
        assert after.split() == home.server_certificate.read_bytes().split() != before.split()
        # A key that is not the certificate's: what was there stays in use.
        home.server_certificate.write_bytes(before)
        assert shown(running) == after
        fingerprint = home.authority().fingerprint
        assert authority_behind(running.enrol, fingerprint, timeout=5)


@pytest.mark.slow
def test_it_starts_as_a_module(home: ServerHome) -> None:
    """With the folder's own ports, which may be taken on this machine: then it says so."""
    command = [sys.executable, "-m", "server.control", str(home.path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while process.poll() is None and not (home.run / PORTS).exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        if process.poll() is None:
            mode = stat.S_IMODE((home.logs / "control.jsonl").stat().st_mode)
            assert mode == 0o600
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        else:
            assert "cannot be opened" in (process.stderr.read() if process.stderr else "")
    finally:
        process.kill()
        process.communicate()


def test_settings_come_from_the_folder() -> None:
    config = ServerConfig(name="test", token_hours=2.0, requests_per_minute=77)
    settings = ControlSettings.of(config)
    assert (settings.token_seconds, settings.requests_per_minute) == (7200, 77)
    assert settings.control_address == "localhost:9093"
    assert replace(settings, metrics_port=None).metrics_port is None


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("server.control.serve", ("flwr", "torch", "scipy", "fastapi")),
        ("client.control", ("flwr", "torch", "numpy", "server")),
    ],
)
def test_what_is_imported_is_light(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(m for m in {unwanted!r} if m in sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_a_taken_metrics_port_stops_nobody(home: ServerHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        with serving(home, metrics_port=port) as running, running.client("clinic-1") as client:
            assert client.own_budget().name == "clinic-1"
            assert running.metrics is None
            (line,) = [line for line in running.log() if line["event"] == "failure"]
    assert line["method"] == "metrics"
