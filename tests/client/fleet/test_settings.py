"""What a node takes from a device's folder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from client.fleet.node import run_node
from client.fleet.settings import settings_of
from client.home import DeviceHome, NodeConfig
from shared.bundle import BUNDLE_DIGEST
from shared.errors import AlreadyRunning, FleetError
from shared.pki import Authority, new_key
from shared.privatefiles import create_private


def make_home(folder: Path, **changes: object) -> DeviceHome:
    config = {
        "name": "clinic-7",
        "client_index": 3,
        "fleet": "127.0.0.1:9",
        "control": "127.0.0.1:9",
        "data": "/data/notes.jsonl",
        "base": "/models/base",
        **changes,
    }
    home = DeviceHome.create(folder / "device", NodeConfig.model_validate(config))
    create_private(home.key, new_key())
    create_private(home.ca, Authority.create("test", days=1).certificate)
    return home


def test_the_clients_settings_are_the_devices(tmp_path: Path) -> None:
    home = make_home(tmp_path, max_message_mb=64, poll_seconds=2.0)
    found = settings_of(home)
    assert dict(found.node_config) == {
        "partition-id": 3,
        "data-path": "/data/notes.jsonl",
        "base-path": "/models/base",
        "policy-path": str(home.policy),
        "state-path": str(home.state),
    }
    assert (found.endpoint.host, found.endpoint.port) == ("127.0.0.1", 9)
    assert found.endpoint.ca == home.ca
    assert found.limits.message_bytes == 64 << 20
    assert found.bundles == frozenset({BUNDLE_DIGEST})
    assert settings_of(home, base="/other").node_config["base-path"] == "/other"
    assert not found.left()
    home.mark_left()
    assert found.left()


def test_a_device_without_torch_names_its_step(tmp_path: Path) -> None:
    found = settings_of(make_home(tmp_path, runtime="onnx", step="a" * 64)).node_config
    assert (found["runtime"], found["step-digest"]) == ("onnx", "a" * 64)
    (tmp_path / "other").mkdir()
    with pytest.raises(FleetError, match="no step"):
        settings_of(make_home(tmp_path / "other", runtime="onnx"))


@pytest.mark.parametrize("change", [{"client_index": None}, {"data": None}], ids=str)
def test_a_device_that_is_no_node_is_refused(tmp_path: Path, change: dict[str, None]) -> None:
    with pytest.raises(FleetError):
        settings_of(make_home(tmp_path, **change))


def test_a_folder_runs_one_node_and_none_that_left(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    events: list[str] = []

    def run() -> None:
        run_node(
            home,
            stop=threading.Event(),
            conditions=lambda: (),
            on_event=lambda event: events.append(event["event"]),
        )

    with home.running(), pytest.raises(AlreadyRunning):
        run()
    home.mark_left()
    run()
    assert events == ["starting", "stopped"]


def test_a_server_that_is_away_does_not_end_the_node(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    home.policy.write_text("schema = 1\n", encoding="utf-8")
    stop = threading.Event()
    events: list[str] = []

    def on_event(event: object) -> None:
        assert isinstance(event, dict)
        events.append(event["event"])
        if event["event"] == "away":
            threading.Timer(1.0, stop.set).start()

    run_node(home, stop=stop, conditions=lambda: (), on_event=on_event)
    assert events == ["starting", "away", "stopped"]
