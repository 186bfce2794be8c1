"""The native client takes the adapter that a real control service hands out, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.canonical import sha256_hex
from shared.crypto import SigningKey
from shared.privatefiles import make_private_folder, replace_private
from tests.client.native.build import run, sanitized
from tests.client.native.test_conditions import CONF
from tests.server.control.registries import BASE, add_adapter, registry_of
from tests.server.control.service import Service, make_home, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", name="service")
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(make_home(tmp_path_factory.mktemp("fetch") / "server")) as running:
        yield running


class Phone:
    """A device's folder as enrolment and preparation leave it."""

    def __init__(self, service: Service, folder: Path, *, base: str = BASE) -> None:
        identity = service.identity(folder.name)
        self.folder = folder
        key = SigningKey.load_or_create(service.home.adapter_key).public_key
        make_private_folder(folder)
        (folder / "step").mkdir()
        step = json.dumps({"base_digest": base})
        (folder / "step" / "step.json").write_text(step, encoding="utf-8")
        replace_private(folder / "node.key", identity.key)
        replace_private(folder / "node.crt", identity.certificate)
        replace_private(folder / "ca.crt", identity.ca)
        self.device = {
            "name": folder.name,
            "client_index": "0",
            "server": "localhost:9092",
            "control": service.address,
            "ca": "ca.crt",
            "key": "node.key",
            "certificate": "node.crt",
            "adapter_key": key,
        }
        self.conf = CONF.replace("server = localhost:9092\n", "").replace(
            "step_digest = " + "0" * 64, "step_digest = " + sha256_hex(step)
        )

    def fetch(self, **keys: str) -> tuple[int, str]:
        """Fetch, with other lines in the owner's or the device's file."""
        rules = {name: value for name, value in keys.items() if name not in self.device}
        device = {name: keys.get(name, value) for name, value in self.device.items()}
        for name, text, lines in (("client.conf", self.conf, rules), ("device.conf", "", device)):
            said = "".join(f"{key} = {value}\n" for key, value in lines.items())
            replace_private(self.folder / name, (text + said).encode())
        status, told, _ = run("fetch", str(self.folder / "client.conf"), client=sanitized())
        return status, told

    @property
    def kept(self) -> set[str]:
        folder = self.folder / "adapters" / "versions"
        return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_the_adapter_in_use_is_fetched_and_kept(service: Service, tmp_path: Path) -> None:
    phone = Phone(service, tmp_path / "phone-1")
    assert phone.fetch() == (0, "no adapter is in use yet\n")
    first = add_adapter(service.home, number=1, width=20_000)
    status, told = phone.fetch()
    folder = phone.folder / "adapters" / "versions" / first.digest
    assert (status, told) == (0, f"adapter {first.digest} in {folder}\n")
    source = service.home.path / "adapter-1" / "adapter_model.safetensors"
    assert (folder / "adapter_model.safetensors").read_bytes() == source.read_bytes()
    assert phone.fetch() == (0, f"adapter {first.digest} is the newest\n")
    # What is damaged on the device is fetched anew.
    replace_private(folder / "adapter_model.safetensors", b"nothing")
    assert phone.fetch()[1].startswith(f"adapter {first.digest} in ")
    second = add_adapter(service.home, number=2)
    assert phone.fetch()[0] == 0
    assert phone.kept == {first.digest, second.digest}
    registry_of(service.home).rollback()
    assert phone.fetch()[1].startswith(f"adapter {first.digest} in ")
    state = phone.folder / "adapters" / "state.json"
    newest = state.read_bytes()
    # An order that is older than the one that was taken last is not believed.
    later = json.loads(newest) | {"order": 9}
    replace_private(state, json.dumps(later).encode())
    assert phone.fetch()[0] == 43
    replace_private(state, b"{}")
    assert phone.fetch()[0] == 42


def test_what_the_owner_would_not_take_is_not_fetched(service: Service, tmp_path: Path) -> None:
    add_adapter(service.home, number=3)
    phone = Phone(service, tmp_path / "phone-2")
    refused = {
        "adapter_key": "ab" * 32,
        "adapter_verdicts": "consistent",  # the report has no findings: inconclusive
        "adapter_audit_key": "ab" * 32,
    }
    for name, value in refused.items():
        status, told = phone.fetch(**{name: value})
        assert (status, told.split(":")[0]) == (43, "adapter-untrusted"), name
    assert phone.fetch(adapter_verdicts="violation")[0] == 10
    other = Phone(service, tmp_path / "phone-3", base="a" * 64)
    assert other.fetch()[0] == 43
    assert phone.kept == other.kept == set()
    assert phone.fetch(adapter_max_megabytes="1")[0] == 0
