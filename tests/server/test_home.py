"""The operator's folder: what is in it, who may read it, and settings that are refused."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server.home import ServerConfig, ServerHome
from shared.errors import FleetError, InvalidValue, RunFolderExists
from shared.pki import read_certificate

CONFIG = ServerConfig(name="test", hosts=("fleet.example", "192.0.2.7"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    return ServerHome.create(tmp_path_factory.mktemp("made") / "server", CONFIG)


def test_secrets_are_for_their_owner_alone(home: ServerHome) -> None:
    secrets = [*home.keys.iterdir(), *home.pki.glob("*.key")]
    assert {path.name for path in secrets} == {
        "adapter.key",
        "audit.key",
        "ca.key",
        "control.secret",
        "ledger.key",
        "server.key",
        "session.key",
        "superexec.secret",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    folders = [home.path, *(path for path in home.path.iterdir() if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_it_opens_with_the_settings_it_was_made_with(home: ServerHome) -> None:
    assert ServerHome.open(home.path).config == CONFIG


def test_the_certificate_is_for_the_server(home: ServerHome) -> None:
    facts = read_certificate(home.server_certificate.read_bytes())
    assert (facts.not_after - facts.not_before).days == CONFIG.certificate_days + 30
    authority = read_certificate(home.ca_certificate.read_bytes())
    assert authority.name == "test authority"


def test_a_server_is_not_made_twice(home: ServerHome) -> None:
    with pytest.raises(RunFolderExists):
        ServerHome.create(home.path, CONFIG)


def test_a_half_made_folder_is_no_server_and_can_be_finished(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path / "server", CONFIG)
    key = home.ledger_key.read_bytes()
    home.config_path.unlink()
    with pytest.raises(FleetError, match="holds no server"):
        ServerHome.open(home.path)
    again = ServerHome.create(home.path, CONFIG)
    assert again.ledger_key.read_bytes() == key


@pytest.mark.parametrize("name", ["keys/ledger.key", "pki/ca.key", "keys/control.secret"])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, name: str) -> None:
    home = ServerHome.create(tmp_path / "server", CONFIG)
    (home.path / name).chmod(0o640)
    with pytest.raises(FleetError, match=name):
        ServerHome.open(home.path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", '"Clinic 7"'),
        ("name", '"../up"'),
        ("hosts", "[]"),
        ("hosts", '["a b"]'),
        ("bind", '"localhost"'),
        ("fleet_port", "0"),
        ("fleet_port", "true"),
        ("max_message_bytes", "1"),
        ("requests_per_minute", "nan"),
        ("token_hours", "inf"),
        ("token_hours", "-1.0"),
        ("unknown", "1"),
    ],
)
def test_wrong_settings_are_named(key: str, value: str) -> None:
    text = "\n".join(
        line for line in CONFIG.to_toml().splitlines() if not line.startswith(f"{key} =")
    )
    with pytest.raises(InvalidValue, match=key):
        ServerConfig.from_toml(f"{text}\n{key} = {value}\n")


def test_settings_are_written_as_they_are_read() -> None:
    assert ServerConfig.from_toml(CONFIG.to_toml()) == CONFIG


@pytest.mark.parametrize("name", ["", "..", "a/b", "a..b", ".hidden", "-x", "a\n", "x" * 101])
def test_a_run_name_cannot_leave_the_folder(home: ServerHome, name: str) -> None:
    with pytest.raises(InvalidValue):
        home.run_folder(name)


def test_ipv6_addresses_get_brackets() -> None:
    config = ServerConfig(name="test", hosts=("2001:db8::1",))
    assert config.fleet_address == "[2001:db8::1]:9092"


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, server.home; print([m for m in sys.modules if m in {'flwr','torch'}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
