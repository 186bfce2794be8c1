"""Leaving needs nobody's consent; forgetting removes what is ours and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.enrolling import enroll
from client.home import DeviceHome
from client.keyring import load_identity
from client.leaving import forget, forgettable, leave
from client.state import DeviceState
from shared.errors import AccessDenied, AlreadyRunning, FleetError, ServerUnreachable
from tests.client.fleetserver import Answers, token_text


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    data = tmp_path / "home" / "my.jsonl"
    data.parent.mkdir(mode=0o700)
    data.write_text('{"text": "mine"}\n', encoding="utf-8")
    done = enroll(token_text(), path=tmp_path / "home", data=data, base="b", call=Answers())
    DeviceState(done.home.state).close()
    load_identity(done.home.state)
    (done.home.adapters / "v1").mkdir()
    (done.home.adapters / "v1" / "weights.safetensors").write_bytes(b"x")
    done.home.log.write_text("{}\n", encoding="utf-8")
    return done.home


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


LEDGER = {"state/ledger.sqlite", "state/device.sqlite", "state/ledger.key"}


def test_leaving_tells_the_server_after_stopping(home: DeviceHome) -> None:
    seen: list[bool] = []
    left = leave(home, tell=lambda device: seen.append(device.left))
    assert seen == [True]
    assert (left.name, left.refused) == ("clinic-7", None)
    assert home.left
    assert home.key.exists()
    assert names(home.path) >= LEDGER


@pytest.mark.parametrize("error", [ServerUnreachable("away"), AccessDenied("revoked")])
def test_leaving_needs_no_server(home: DeviceHome, error: FleetError) -> None:
    def tell(device: DeviceHome) -> None:
        raise error

    assert leave(home, tell=tell).refused is error
    assert DeviceHome.open(home.path).left


def test_forgetting_keeps_records_policy_and_ledger(home: DeviceHome) -> None:
    with DeviceState(home.state, create=False) as state:
        before = state.verify()
    found = forgettable(home.path, ledger_too=False)
    assert forget(home.path, ledger_too=False) == found
    assert names(home.path) == {"my.jsonl", "policy.toml", *LEDGER}
    with DeviceState(home.state, create=False) as state:
        assert state.verify() == before
    with pytest.raises(FleetError, match="no enrolled device"):
        DeviceHome.open(home.path)


def test_forgetting_the_ledger_too(home: DeviceHome) -> None:
    forget(home.path, ledger_too=True)
    assert names(home.path) == {"my.jsonl", "policy.toml"}
    assert not home.state.exists()


def test_what_is_announced_is_what_is_removed(home: DeviceHome) -> None:
    before = names(home.path)
    found = forgettable(home.path, ledger_too=False)
    assert names(home.path) == before
    # The most secret thing goes first, and what makes the folder whole last.
    assert found.remove[0] == home.key
    assert found.remove[-1] == home.node_file
    assert {path.name for path in found.keep} == {
        "policy.toml",
        "ledger.sqlite",
        "device.sqlite",
        "ledger.key",
    }
    assert not set(found.remove) & set(found.keep)


def test_nothing_is_forgotten_while_a_node_runs(home: DeviceHome) -> None:
    before = names(home.path)
    with home.running(), pytest.raises(AlreadyRunning):
        forget(home.path, ledger_too=True)
    assert names(home.path) >= before


def test_links_are_removed_and_what_they_name_stays(home: DeviceHome, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x", encoding="utf-8")
    (home.adapters / "link").symlink_to(outside)
    (home.state / "link").symlink_to(outside)
    home.log.unlink()
    home.log.symlink_to(outside / "precious")
    forget(home.path, ledger_too=True)
    assert (outside / "precious").read_text(encoding="utf-8") == "x"
    assert not home.log.is_symlink()


def test_a_linked_adapter_folder_is_not_emptied(home: DeviceHome, tmp_path: Path) -> None:
    shutil.rmtree(home.adapters)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    home.adapters.symlink_to(outside)
    forget(home.path, ledger_too=False)
    assert (outside / "precious").exists()
    assert not home.adapters.is_symlink()


def test_an_enrolment_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    data = tmp_path / "my.jsonl"
    data.touch()
    with pytest.raises(ServerUnreachable):
        enroll(token_text(), path=tmp_path / "home", data=data, base="b", call=Answers(lose=1))
    forget(tmp_path / "home", ledger_too=False)
    assert list((tmp_path / "home").iterdir()) == []


def test_where_nothing_is_nothing_is_forgotten(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FleetError, match="nothing of a device"):
            forget(folder, ledger_too=True)
