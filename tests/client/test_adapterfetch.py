"""From the registry of a running service into the folder of a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.adapterfetch import fetch_adapter
from client.adapterstore import AdapterStore
from client.control import ControlClient
from server.home import ServerHome
from shared.crypto import SigningKey
from shared.errors import AdapterError, AdapterUntrusted, ServerUnreachable
from shared.sealingkeys import find_sealer, rotate_key_file
from tests.server.control.registries import BASE, add_adapter, registry_of
from tests.server.control.service import Service, make_home, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    home = make_home(tmp_path_factory.mktemp("fetch") / "server")
    # Sealed at rest: the service opens what it gives out.
    rotate_key_file(home.keys / "sealing.keys")
    return home


@pytest.fixture(scope="module", name="running")
def _running(home: ServerHome) -> Iterator[Service]:
    with serving(home) as service:
        yield service


@pytest.fixture(name="store")
def _store(home: ServerHome, tmp_path: Path) -> AdapterStore:
    trusted = SigningKey.load_or_create(home.adapter_key).public_key
    return AdapterStore(tmp_path / "adapters", trusted_key=trusted, base_digest=BASE)


@pytest.fixture(scope="module", name="client")
def _client(running: Service) -> Iterator[ControlClient]:
    with running.client("clinic-1") as client:
        yield client


def test_before_the_first_order_there_is_nothing(
    client: ControlClient, store: AdapterStore
) -> None:
    assert fetch_adapter(client, store) is None
    assert store.current() is None


def test_the_ordered_version_arrives_and_replaces_the_one_before(
    home: ServerHome, client: ControlClient, store: AdapterStore
) -> None:
    sealer = find_sealer(home.keys / "sealing.keys", {})
    first = add_adapter(home, number=1, width=20_000, sealer=sealer)
    installed = fetch_adapter(client, store)
    assert installed is not None
    assert installed.digest == first.digest
    factors = store.load(first.digest).factors
    assert all(np.all(array == 1) for array in factors.values())
    assert list((store.folder / "incoming").iterdir()) == []
    again = fetch_adapter(client, store)
    assert again is not None
    assert again.digest == first.digest
    second = add_adapter(home, number=2, sealer=sealer)
    newer = fetch_adapter(client, store)
    assert newer is not None
    assert newer.digest == second.digest
    assert store.candidates() == (second.digest, first.digest)
    registry_of(home, sealer=sealer).rollback()
    back = fetch_adapter(client, store)
    assert back is not None
    assert back.digest == first.digest


def test_a_damaged_installation_is_fetched_anew(
    home: ServerHome, client: ControlClient, store: AdapterStore
) -> None:
    add_adapter(home, number=3, sealer=find_sealer(home.keys / "sealing.keys", {}))
    installed = fetch_adapter(client, store)
    assert installed is not None
    weights = installed.folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.chmod(0o600)
    weights.write_bytes(content[:-1] + b"\x01")
    repaired = fetch_adapter(client, store)
    assert repaired is not None
    assert (repaired.folder / "adapter_model.safetensors").read_bytes() == content


def test_a_download_that_was_cut_off_is_finished_later(
    home: ServerHome, client: ControlClient, store: AdapterStore
) -> None:
    sealer = find_sealer(home.keys / "sealing.keys", {})
    version = add_adapter(home, number=4, width=50_000, sealer=sealer)
    entry = version.facts.file("adapter_model.safetensors")
    content = registry_of(home, sealer=sealer).read(entry.sha256, 0, 300_000)
    store.incoming(entry.sha256).write_bytes(content)
    installed = fetch_adapter(client, store)
    assert installed is not None
    assert installed.digest == version.digest


def test_an_adapter_of_another_base_or_key_is_not_fetched(
    home: ServerHome, client: ControlClient, store: AdapterStore, tmp_path: Path
) -> None:
    add_adapter(home, number=5, sealer=find_sealer(home.keys / "sealing.keys", {}))
    for key, base in ((store.trusted_key, "a" * 64), ("a" * 64, BASE)):
        other = AdapterStore(tmp_path / key[:4] / base[:4], trusted_key=key, base_digest=base)
        with pytest.raises(AdapterUntrusted):
            fetch_adapter(client, other)
        assert other.current() is None
        assert not list(other.folder.glob("incoming/*"))


def test_files_that_are_gone_leave_what_was_in_use(
    home: ServerHome, client: ControlClient, store: AdapterStore
) -> None:
    sealer = find_sealer(home.keys / "sealing.keys", {})
    good = add_adapter(home, number=6, sealer=sealer)
    assert fetch_adapter(client, store) is not None
    bad = add_adapter(home, number=7, sealer=sealer)
    for blob in (home.adapters / "blobs").glob("*/*"):
        if blob.name.startswith(bad.facts.file("adapter_model.safetensors").sha256):
            blob.unlink()
    with pytest.raises(AdapterError):
        fetch_adapter(client, store)
    current = store.current()
    assert current is not None
    assert current.digest == good.digest
    registry_of(home, sealer=sealer).rollback()


def test_a_server_that_is_killed_on_the_way_is_waited_for(
    home: ServerHome, store: AdapterStore
) -> None:
    sealer = find_sealer(home.keys / "sealing.keys", {})
    version = add_adapter(home, number=8, width=300_000, sealer=sealer)
    kept: list[Service] = []
    with serving(home) as first:
        who = first.identity("clinic-8")
        ports = {
            "control_port": first.settings.control_port,
            "control_address": first.settings.control_address,
        }
        with ControlClient(who, attempts=2, pause=lambda seconds: None) as client:
            manifest = client.manifest()
            assert manifest.digest == version.digest
            first.process.kill()
            first.process.wait()
            with pytest.raises(ServerUnreachable):
                fetch_adapter(client, store)
        kept.append(first)
    with serving(home, **ports) as second:
        assert second.process.pid != kept[0].process.pid
        with ControlClient(who) as client:
            installed = fetch_adapter(client, store)
    assert installed is not None
    assert installed.digest == version.digest
