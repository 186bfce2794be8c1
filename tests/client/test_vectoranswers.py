"""IA3 and prompts from the registry to a device's answers; oracles: PEFT's own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapterfit import fit
from client.adapterspec import adapter_spec
from client.adapterstore import AdapterStore
from client.exports.merged import merge
from client.home import DeviceHome, NodeConfig
from client.inference import LocalModel
from client.model import BaseModel, load_base, quiet
from server.adapters import write_adapter
from shared.errors import AdapterIncompatible
from shared.lora import AdapterSpec, Factors
from shared.loraconfig import LoraTerms
from simulations.exportsource import find_source
from tests.adapterkit import SIGNER, files_of, open_registry, report_about
from tests.client.conftest import MakeFolder

IDS = torch.tensor([[5, 9, 11, 3, 7]])
SHARES = {"ia3": ["q_proj", "down_proj"], "prompt": ["q_proj"]}


def made(base: BaseModel, method: str, *, targets: Any = None) -> tuple[AdapterSpec, Factors]:
    """Return an adapter of a method whose numbers are far from where they start."""
    spec = adapter_spec(
        base,
        r=1,
        alpha=1.0,
        target_modules=targets or SHARES[method],
        method=method,
        prompt_tokens=3,
    )
    rng = np.random.default_rng(7)
    return spec, {
        f.name: (1.0 + 0.5 * rng.standard_normal(f.shape)).astype(np.float32) for f in spec.factors
    }


def write(
    folder: Path, spec: AdapterSpec, factors: Factors, facts: dict[str, Any] | None = None
) -> str:
    """Write an adapter as a run does; return the digest of its weights."""
    return write_adapter(
        folder, spec=spec, factors=factors, base_model="b", dropout=0.0, manifest=facts or {}
    )


def peft_logits(base: BaseModel, folder: Path) -> torch.Tensor:
    """Return what PEFT itself computes of a folder; a prompt's own places are cut off."""
    from peft import PeftModel

    with quiet():
        model: Any = PeftModel.from_pretrained(base.model, str(folder))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits[:, -IDS.shape[1] :]


@pytest.mark.parametrize("method", ["ia3", "prompt"])
def test_a_device_answers_with_what_the_registry_hands_out(
    method: str, tmp_path: Path, model_folder: MakeFolder
) -> None:
    folder = model_folder("llama")
    base = load_base(str(folder))
    spec, factors = made(base, method)
    facts = {"base_digest": base.digest}
    digest = write(tmp_path / "a", spec, factors, facts)
    registry = open_registry(tmp_path / "registry")
    version = registry.add(
        tmp_path / "a",
        name=method,
        base_digest=base.digest,
        audit=report_about(digest),
    )
    home = DeviceHome.create(
        tmp_path / "home",
        NodeConfig(
            name="clinic-7",
            fleet="127.0.0.1:9092",
            control="127.0.0.1:9093",
            base=str(folder),
            adapter_key=SIGNER.public_key,
        ),
    )
    store = AdapterStore(home.adapters, trusted_key=SIGNER.public_key, base_digest=base.digest)
    store.install(version.manifest_bytes, version.signature, files_of(registry, version))
    verified = store.load(version.digest)
    assert verified.terms.method == method
    assert digest in {entry.sha256 for entry in verified.manifest.files}

    model = LocalModel.load(home.path)
    answer = model.generate("w1 w2 w3", max_tokens=6, temperature=0.0)
    bare = LocalModel.load(home.path, base_only=True)
    assert answer.text != bare.generate("w1 w2 w3", max_tokens=6, temperature=0.0).text

    truth = peft_logits(load_base(str(folder)), tmp_path / "a")
    adapted = fit(load_base(str(folder)), verified.factors, verified.terms)
    with torch.no_grad():
        torch.testing.assert_close(
            adapted.peft_model(input_ids=IDS).logits, truth, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_ia3_is_the_base_with_its_vectors(
    family: str, tmp_path: Path, model_folder: MakeFolder
) -> None:
    folder = str(model_folder(family))
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}[family]
    spec, factors = made(load_base(folder), "ia3", targets=targets)
    write(tmp_path / "a", spec, factors)
    truth = peft_logits(load_base(folder), tmp_path / "a")
    source = find_source(tmp_path / "a")
    base = load_base(folder)
    with torch.no_grad():
        before = base.model(input_ids=IDS).logits
        merge(base, source.factors, source.terms)
        found = base.model(input_ids=IDS).logits
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, truth, rtol=1e-2)


def test_what_cannot_be_merged_or_changes_nothing_is_refused(
    tmp_path: Path, model_folder: MakeFolder
) -> None:
    base = load_base(str(model_folder("llama")))
    spec, factors = made(base, "prompt")
    terms = LoraTerms(r=1, lora_alpha=1.0, target_modules=(), method="prompt", prompt_tokens=3)
    with pytest.raises(AdapterIncompatible, match="is a prompt"):
        merge(base, factors, terms)
    with pytest.raises(AdapterIncompatible, match="not those"):
        fit(base, {name: v[:, :-1] for name, v in factors.items()}, terms)
    write(tmp_path / "p", spec, factors)
    assert find_source(tmp_path / "p").terms == terms
    spec, factors = made(base, "ia3")
    ones = {name: np.ones_like(v) for name, v in factors.items()}
    write(tmp_path / "a", spec, ones)
    with pytest.raises(AdapterIncompatible, match="every vector is one"):
        find_source(tmp_path / "a")
