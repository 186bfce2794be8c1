"""``fedslm export``: what is verified first, what travels along, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from client.adapterspec import adapter_spec
from client.exports.record import EXPORT, EXPORT_SIGNATURE
from client.inference import base_folder
from client.model import load_base
from server.adapters import write_adapter
from server.home import ServerConfig, ServerHome
from server.registry import AdapterRegistry, server_registry
from server.registry.export import export_version
from shared.crypto import SigningKey
from shared.errors import (
    AdapterCorrupt,
    AdapterError,
    AdapterIncompatible,
    AdapterUntrusted,
    BaseModelMismatch,
    InvalidValue,
    ModelNotFound,
    ReleaseRefused,
    RunFolderExists,
    UsageError,
)
from shared.lora import AdapterSpec, Factors
from shared.manifest import PEFT_CONFIG, REPORT, RUN_MANIFEST, WEIGHTS
from simulations.export_adapters_cli import add_commands
from simulations.exportfolder import verify_export
from tests.adapterkit import STRANGER, report_about, rewrite
from tests.ggufmodel import GgufModel, read

IDS = [0, 17, 4, 250, 33]
export_app = typer.Typer()
add_commands(export_app)


def export(*arguments: object, code: int = 0) -> str:
    """Run a command and return its output; an error of ours is raised."""
    done = CliRunner().invoke(export_app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return str(done.output)


def as_json(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(export(*arguments, "--json"))
    return found


class Demo:
    """An adapter of the demo model, and its shape."""

    def __init__(self) -> None:
        base = load_base(str(base_folder("demo")))
        self.digest = base.digest
        self.spec: AdapterSpec = adapter_spec(
            base, r=2, alpha=4.0, target_modules=["q_proj", "v_proj", "down_proj"]
        )

    def factors(self, seed: int) -> Factors:
        rng = np.random.default_rng(seed)
        return {
            f.name: (0.3 * rng.standard_normal(f.shape)).astype(np.float32)
            for f in self.spec.factors
        }

    def write(self, folder: Path, seed: int = 1, *, base: str | None = None) -> str:
        facts = {"base_digest": base or self.digest, "plan_digest": "1a" * 32}
        return write_adapter(
            folder,
            spec=self.spec,
            factors=self.factors(seed),
            base_model="demo",
            dropout=0.0,
            manifest={**facts, "ledger_head": "1e" * 32},
        )


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


@pytest.fixture
def server(tmp_path: Path, demo: Demo) -> Path:
    """A server's folder with two versions, the first of them in use."""
    home = ServerHome.create(tmp_path / "server", ServerConfig(name="test"))
    registry = server_registry(home)
    for seed in (1, 2):
        add(registry, demo, tmp_path / f"a{seed}", seed)
    registry.promote(registry.versions()[-1].digest)
    return home.path


def add(
    registry: AdapterRegistry, demo: Demo, folder: Path, seed: int, verdict: str = "consistent"
) -> str:
    weights = demo.write(folder, seed)
    return registry.add(
        folder,
        name="stories",
        base_digest=demo.digest,
        audit=report_about(weights, verdict),
        withheld=verdict == "violation",
    ).digest


def opened(server: Path) -> AdapterRegistry:
    return server_registry(ServerHome.open(server))


def test_the_version_in_use_goes_out_as_gguf_with_manifest_and_signature(
    server: Path, tmp_path: Path, demo: Demo
) -> None:
    out = tmp_path / "out"
    found = as_json("gguf", server, "--to", out, "--base-type", "f32")
    current = next(v for v in opened(server).versions() if v.state == "current")
    assert (found["adapter"], found["audit_verdict"]) == (current.digest, "consistent")
    assert (found["type"], found["tensors"], found["base_tensors"]) == ("f32", 24, {"f32": 38})
    assert found["privacy"]["epsilon"] == current.facts.privacy.epsilon
    assert found["warnings"] == []
    assert {f["name"] for f in found["files"]} == {
        "adapter.gguf",
        "base-f32.gguf",
        "config.json",
    }
    assert (out / "adapter" / "manifest.json").read_bytes() == current.manifest_bytes
    key = current.signature.public_key
    assert verify_export(out, public_key=key).signed_by == found["signed_by"] == key
    facts, _ = read(out / "adapter.gguf")
    assert facts["fedslm.adapter"] == current.digest
    assert facts["fedslm.base"] == demo.digest == read(out / "base-f32.gguf")[0]["fedslm.base"]
    assert json.loads(facts["fedslm.privacy"])["delta"] == current.facts.privacy.delta
    bare = GgufModel(out / "base-f32.gguf").logits(IDS)
    assert (
        np.abs(GgufModel(out / "base-f32.gguf", out / "adapter.gguf").logits(IDS) - bare).max() > 1
    )


def test_a_version_is_named_and_one_that_nobody_uses_must_be(server: Path, tmp_path: Path) -> None:
    newest = opened(server).versions()[0].digest
    found = as_json("gguf", server, "--version", newest[:10], "--to", tmp_path / "new")
    assert found["adapter"] == newest
    empty = ServerHome.create(tmp_path / "empty", ServerConfig(name="test"))
    server_registry(empty)
    with pytest.raises(AdapterError, match="No version"):
        export("gguf", empty.path, "--to", tmp_path / "none")
    with pytest.raises(UsageError, match="no adapter registry"):
        export("gguf", tmp_path / "a1", "--version", newest, "--to", tmp_path / "none")


def test_a_violation_never_leaves(server: Path, tmp_path: Path, demo: Demo) -> None:
    digest = add(opened(server), demo, tmp_path / "bad", 3, verdict="violation")
    run = tmp_path / "run"
    weights = demo.write(run / "adapter", 4)
    (run / REPORT).write_text(json.dumps(report_about(weights, "violation")))
    for command in ("gguf", "onnx", "executorch", "merged"):
        with pytest.raises(ReleaseRefused, match="verdict=violation"):
            export(command, server, "--version", digest, "--to", tmp_path / "out")
        with pytest.raises(ReleaseRefused, match="verdict=violation"):
            export(command, run, "--to", tmp_path / "out")
    assert ReleaseRefused.code == "release-refused"
    assert not (tmp_path / "out").exists()


def test_a_signed_copy_is_verified_and_a_strangers_key_refused(
    server: Path, tmp_path: Path
) -> None:
    registry = opened(server)
    version = registry.versions()[0]
    export_version(registry, version.digest, tmp_path / "copy")
    key = version.signature.public_key
    found = as_json("gguf", tmp_path / "copy", "--public-key", key, "--to", tmp_path / "one")
    assert (found["adapter"], found["signed_by"], found["warnings"]) == (version.digest, None, [])
    said = export("gguf", tmp_path / "copy", "--to", tmp_path / "two")
    assert "Nothing says that key" in said
    with pytest.raises(AdapterUntrusted, match="not of the trusted key"):
        export(
            "gguf", tmp_path / "copy", "--public-key", STRANGER.public_key, "--to", tmp_path / "no"
        )
    (tmp_path / "copy" / WEIGHTS).write_bytes(b"\0" * 8)
    with pytest.raises(AdapterCorrupt):
        export("gguf", tmp_path / "copy", "--to", tmp_path / "three")
    (tmp_path / "copy" / "signature.json").write_text("[]")
    with pytest.raises(AdapterCorrupt, match="damaged"):
        export("gguf", tmp_path / "copy", "--to", tmp_path / "three")


def test_a_run_and_a_loose_folder_are_exported_with_a_warning(tmp_path: Path, demo: Demo) -> None:
    weights = demo.write(tmp_path / "run" / "adapter", 5)
    (tmp_path / "run" / REPORT).write_text(json.dumps(report_about(weights)))
    found = as_json("gguf", tmp_path / "run", "--type", "f16", "--to", tmp_path / "one")
    assert (found["adapter"], found["audit_verdict"], found["type"]) == (
        weights,
        "consistent",
        "f16",
    )
    assert any("no signed manifest" in warning for warning in found["warnings"])
    assert (tmp_path / "one" / "adapter" / REPORT).exists()
    assert "The export is not signed." in verify_export(tmp_path / "one").warnings
    with pytest.raises(AdapterUntrusted, match="not signed"):
        verify_export(tmp_path / "one", public_key=STRANGER.public_key)
    demo.write(tmp_path / "loose", 6)
    (tmp_path / "loose" / RUN_MANIFEST).unlink()
    said = export("gguf", tmp_path / "loose", "--to", tmp_path / "two")
    assert "Nothing says which base" in said
    assert "was not audited" in said
    rewrite(tmp_path / "loose" / PEFT_CONFIG, {"base_model_name_or_path": "elsewhere/model"})
    with pytest.raises(UsageError, match="base model is not here"):
        export("gguf", tmp_path / "loose", "--to", tmp_path / "three")


def test_a_changed_export_is_noticed(server: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    key = as_json("gguf", server, "--to", out)["signed_by"]
    assert "holds" in export("verify", out, "--public-key", key)
    data = (out / "adapter.gguf").read_bytes()
    (out / "adapter.gguf").write_bytes(data[:-1] + b"\1")
    with pytest.raises(AdapterCorrupt, match=r"adapter\.gguf"):
        export("verify", out)
    (out / "adapter.gguf").write_bytes(data)
    (out / "more.gguf").write_bytes(b"x")
    with pytest.raises(AdapterCorrupt, match="other files"):
        export("verify", out)
    (out / "more.gguf").unlink()
    rewrite(out / EXPORT, {"audit_verdict": "consistent", "name": "other"})
    with pytest.raises(AdapterUntrusted, match="does not hold"):
        export("verify", out, "--public-key", key)
    (out / EXPORT_SIGNATURE).unlink()
    rewrite(out / EXPORT, {"adapter": "0" * 64})
    with pytest.raises(AdapterCorrupt, match="another adapter"):
        export("verify", out)
    rewrite(out / EXPORT, {"files": [{"name": "../x", "size": 1, "sha256": "0" * 64}]})
    with pytest.raises(AdapterCorrupt, match="no record"):
        export("verify", out)


def test_another_base_and_other_kinds_of_adapters_are_refused(tmp_path: Path, demo: Demo) -> None:
    demo.write(tmp_path / "other", base="ba" * 32)
    with pytest.raises(BaseModelMismatch, match="trained on base baba"):
        export("gguf", tmp_path / "other", "--to", tmp_path / "out")
    with pytest.raises(ModelNotFound):
        export("gguf", tmp_path / "other", "--base", tmp_path / "no", "--to", tmp_path / "out")
    demo.write(tmp_path / "kind")
    rewrite(tmp_path / "kind" / PEFT_CONFIG, {"peft_type": "FEDSLM_MIXTURE"})
    with pytest.raises(AdapterIncompatible, match="no other runtime"):
        export("gguf", tmp_path / "kind", "--to", tmp_path / "out")
    rewrite(tmp_path / "kind" / PEFT_CONFIG, {"peft_type": "LORA", "task_type": "SEQ_CLS"})
    with pytest.raises(AdapterIncompatible, match="no language model"):
        export("merged", tmp_path / "kind", "--to", tmp_path / "out")
    rewrite(tmp_path / "kind" / PEFT_CONFIG, {"task_type": "CAUSAL_LM", "use_dora": True})
    with pytest.raises(AdapterIncompatible, match="plain LoRA"):
        export("merged", tmp_path / "kind", "--to", tmp_path / "out")
    write_adapter(
        tmp_path / "zero",
        spec=demo.spec,
        factors={n: v * (".lora_A." in n) for n, v in demo.factors(1).items()},
        base_model="demo",
        dropout=0.0,
        manifest={"base_digest": demo.digest},
    )
    with pytest.raises(AdapterIncompatible, match="every B is zero"):
        export("gguf", tmp_path / "zero", "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path, demo: Demo) -> None:
    demo.write(tmp_path / "a")
    with pytest.raises(InvalidValue, match="expected one of"):
        export("gguf", tmp_path / "a", "--type", "q2", "--to", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    found = as_json("merged", tmp_path / "a", "--to", tmp_path / "out")
    assert (found["format"], found["type"]) == ("merged", "f32")
    assert "holds" in export("verify", tmp_path / "out")
    with pytest.raises(RunFolderExists):
        export("merged", tmp_path / "a", "--to", tmp_path / "out")


def test_the_version_in_use_goes_out_for_onnx_runtime(server: Path, tmp_path: Path) -> None:
    small = as_json("onnx", server, "--to", tmp_path / "one")
    assert [f["name"] for f in small["files"]] == ["adapter.onnx_adapter"]
    assert (small["graph"], small["r"], small["signed_by"] is None) == (False, 2, False)
    assert "holds" in export("verify", tmp_path / "one", "--public-key", small["signed_by"])


def test_a_key_file_signs_the_export_of_a_bare_registry(tmp_path: Path, demo: Demo) -> None:
    key = tmp_path / "keys" / "signing.key"
    key.parent.mkdir(mode=0o700)
    registry = AdapterRegistry(tmp_path / "registry", signer=SigningKey.load_or_create(key))
    add(registry, demo, tmp_path / "a", 1)
    digest = registry.versions()[0].digest
    found = as_json(
        "gguf", registry.root, "--version", digest, "--key", key, "--to", tmp_path / "out"
    )
    assert found["signed_by"] == registry.trusted
    read_only = as_json(
        "gguf",
        registry.root,
        *("--version", digest, "--public-key", registry.trusted, "--to", tmp_path / "two"),
    )
    assert read_only["signed_by"] is None
