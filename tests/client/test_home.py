"""The folder of a device: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.home import DeviceHome, NodeConfig, default_home
from shared.errors import AlreadyRunning, FleetError, InvalidValue, UnknownKey

CONFIG = NodeConfig(
    name="clinic-7",
    client_index=3,
    fleet="fleet.example.org:9092",
    control="[::1]:9093",
    data="/data/my.jsonl",
    ledger_key="0f" * 32,
)
paths = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=60
)


@given(data=paths, base=paths, index=st.none() | st.integers(0, 10**6))
def test_what_is_written_is_read_back(data: str, base: str, index: int | None) -> None:
    config = CONFIG.model_copy(update={"data": data, "base": base, "client_index": index})
    text = config.to_toml()
    assert tomllib.loads(text)["data"] == data
    assert NodeConfig.from_toml(text) == config


def test_every_setting_is_explained() -> None:
    text = CONFIG.to_toml()
    for name, field in NodeConfig.model_fields.items():
        assert field.description
        assert field.description in text
        assert f"{field.alias or name} " in text


@pytest.mark.parametrize(
    ("line", "error", "match"),
    [
        ('name = "../x"', InvalidValue, "name"),
        ('name = "a\\n"', InvalidValue, "name"),
        ('fleet = "no-port"', InvalidValue, "fleet"),
        ('control = "http://a:1"', InvalidValue, "control"),
        ('ledger_key = "0F"', InvalidValue, "ledger_key"),
        ("client_index = -1", InvalidValue, "client_index"),
        ("client_index = true", InvalidValue, "client_index"),
        ("schema = 2", InvalidValue, "schema"),
        ("poll_seconds = 0.0", InvalidValue, "poll_seconds"),
        ("poll_seconds = inf", InvalidValue, "poll_seconds"),
        ("heartbeat_seconds = 5.0", InvalidValue, "heartbeat_seconds"),
        ("max_message_mb = 4096", InvalidValue, "max_message_mb"),
        ('role = "root"', InvalidValue, "role"),
        ("poll_second = 3.0", UnknownKey, "poll_seconds"),
        ("x = [", InvalidValue, "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named(line: str, error: type[Exception], match: str) -> None:
    key = line.split(" =")[0]
    kept = [found for found in CONFIG.to_toml().splitlines() if not found.startswith(f"{key} =")]
    with pytest.raises(error, match=match):
        NodeConfig.from_toml("\n".join([*kept, line]))


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InvalidValue, match="3 problems") as caught:
        NodeConfig.from_toml('name = "A"\nfleet = "x"')
    assert {problem.key for problem in caught.value.problems} == {"name", "fleet", "control"}


def test_the_folder_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = DeviceHome.create(tmp_path / "home", CONFIG)
        home.mark_left()
        with home.running():
            pass
    finally:
        os.umask(before)
    for path in [home.path, *home.path.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name


def test_a_folder_is_made_once_and_opened(tmp_path: Path) -> None:
    home = DeviceHome.create(tmp_path / "home", CONFIG)
    assert DeviceHome.open(tmp_path / "home") == home
    with pytest.raises(FleetError, match="exists already"):
        DeviceHome.create(tmp_path / "home", CONFIG)
    home.node_file.chmod(0o644)
    with pytest.raises(FleetError, match="mode 644"):
        DeviceHome.open(tmp_path / "home")


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no enrolled device"):
        DeviceHome.open(tmp_path)
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "node.toml").chmod(0o600)
    with pytest.raises(InvalidValue, match="UTF-8"):
        DeviceHome.open(tmp_path)


def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"data": "/data/\udcff"})
    with pytest.raises(InvalidValue, match="UTF-8"):
        DeviceHome.create(tmp_path / "home", config)
    assert not (tmp_path / "home" / "node.toml").exists()


def test_leaving_is_a_mark_that_can_be_taken_back(tmp_path: Path) -> None:
    home = DeviceHome.create(tmp_path / "home", CONFIG)
    assert not home.left
    home.mark_left()
    home.mark_left()
    assert DeviceHome.open(tmp_path / "home").left
    home.unmark_left()
    home.unmark_left()
    assert not home.left


def test_one_node_runs_from_a_folder(tmp_path: Path) -> None:
    home = DeviceHome.create(tmp_path / "home", CONFIG)
    with home.running(), pytest.raises(AlreadyRunning), home.running():
        pass
    with home.running():
        pass


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDSLM_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_home() == tmp_path / "fedslm"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home() == tmp_path / ".local" / "share" / "fedslm"
    monkeypatch.setenv("FEDSLM_HOME", str(tmp_path / "other"))
    assert default_home() == tmp_path / "other"
