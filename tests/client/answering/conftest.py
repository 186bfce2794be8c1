"""A device whose server exported the base for ONNX Runtime; the demo tokenizer, a tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from client.adapterstore import AdapterStore
from client.home import DeviceHome, NodeConfig
from server.adapters import write_adapter
from server.registry import AdapterRegistry
from simulations.exportrun import gguf_export, onnx_export
from simulations.exportsource import find_source
from tests.adapterkit import SIGNER, files_of, open_registry, report_about
from tests.client.exports.conftest import Adapted, MakeAdaptedFolder, adapted_base

__all__ = ["adapted_base"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A registry with a version in use, a device that installed it, and the version's base."""

    case: Adapted
    root: Path
    registry: AdapterRegistry
    home: DeviceHome

    def export(self, name: str, *, base_type: str | None = None, **form: str) -> Path:
        """Return an export with the base in it, signed by the registry's key."""
        to = self.root / name
        if not to.exists():
            key = self.root / "adapter.key"
            if not key.exists():
                key.write_bytes(b"\x07" * 32)
                key.chmod(0o600)
            source = find_source(self.root / "registry", key=key)
            base = str(self.case.folder)
            if base_type is None:
                onnx_export(source, to, base=base, graph=True, **form)
            else:
                gguf_export(source, to, base=base, dtype="f32", base_type=base_type)
        return to


def make_field(root: Path, case: Adapted) -> Field:
    """Release an adapter and install it on a device."""
    from client.adapterfit import spec_of

    base = case.load()
    registry = open_registry(root / "registry")
    weights = write_adapter(
        root / "adapter",
        spec=spec_of(base, case.factors, case.terms),
        factors=case.factors,
        base_model="tiny",
        dropout=0.0,
        manifest={},
    )
    version = registry.add(
        root / "adapter", name="tiny", base_digest=base.digest, audit=report_about(weights)
    )
    registry.promote(version.digest)
    config = NodeConfig(
        name="clinic-7",
        fleet="127.0.0.1:9092",
        control="127.0.0.1:9093",
        base=str(case.folder),
        adapter_key=SIGNER.public_key,
    )
    home = DeviceHome.create(root / "home", config)
    store = AdapterStore(home.adapters, trusted_key=SIGNER.public_key, base_digest=base.digest)
    store.install(version.manifest_bytes, version.signature, files_of(registry, version))
    return Field(case=case, root=root, registry=registry, home=home)


def enrolled(folder: Path, step: Path, digest: str, **more: object) -> DeviceHome:
    """Return a device that holds an exported step."""
    said: dict[str, object] = {
        "name": "phone-1",
        "fleet": "127.0.0.1:9092",
        "control": "127.0.0.1:9093",
        "base": str(step),
        "runtime": "onnx",
        "step": digest,
        "adapter_key": SIGNER.public_key,
        **more,
    }
    return DeviceHome.create(folder, NodeConfig.of(said))


@pytest.fixture(scope="module")
def field(
    adapted_base: MakeAdaptedFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Field:
    return make_field(tmp_path_factory.mktemp("field"), adapted_base("qwen2", rslora=True))
