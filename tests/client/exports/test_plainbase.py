"""Bases that are stored in few bits are exported as what their codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from client.adapterfit import spec_of
from client.basedigest import base_digest
from client.exports.plainbase import load_plain
from client.int4store import save_int4
from client.model import load_base, quiet
from server.adapters import write_adapter
from simulations.exportrun import gguf_export, merged_export
from simulations.exportsource import find_source
from tests.client.conftest import MakeFolder
from tests.client.exports.conftest import IDS, MakeAdaptedFolder, adapted_folder

ROWS = torch.tensor([IDS])


def stored_int4(folder: Path, to: Path) -> Path:
    """Return a folder that holds a base in 4 bits."""
    base = load_base(str(folder), quantization="int4")
    to.mkdir()
    model: Any = base.model
    with quiet():
        save_int4(model, base.tokenizer, to)
    return to


def logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=rows).logits
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_a_stored_base_is_what_its_codes_stand_for(
    tmp_path: Path, model_folder: MakeFolder, family: str
) -> None:
    folder = stored_int4(model_folder(family), tmp_path / "int4")
    plain = load_plain(folder)
    assert plain.quantization == "none"
    assert plain.digest == base_digest(folder)
    rows = torch.tensor([[3, 9, 4, 30, 12]])
    truth = logits(load_base(str(folder), quantization="int4").model, rows)
    assert torch.allclose(logits(plain.model, rows), truth, atol=1e-5)
    whole = logits(load_base(str(model_folder(family))).model, rows)
    assert not torch.allclose(truth, whole, atol=1e-3)
    assert {p.dtype for p in plain.model.parameters()} == {torch.float32}


def test_a_base_in_full_precision_is_left_alone(model_folder: MakeFolder) -> None:
    found = load_plain(model_folder("llama")).model.state_dict()
    truth = load_base(str(model_folder("llama"))).model.state_dict()
    assert found.keys() == truth.keys()
    assert all(bool((found[name] == truth[name]).all()) for name in truth)


def test_adapters_of_a_compressed_base_are_exported(
    tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    """Merged in transformers, and the base in GGUF: oracle, the base in 4 bits under PEFT."""
    import gguf

    small = stored_int4(adapted_base("qwen2").folder, tmp_path / "int4")
    case = adapted_folder(small, quantization="int4")
    base = case.load()
    write_adapter(
        tmp_path / "peft",
        spec=spec_of(base, case.factors, case.terms),
        factors=case.factors,
        base_model="tiny",
        dropout=0.0,
        manifest={"base_digest": base.digest},
    )
    source = find_source(tmp_path / "peft")
    merged_export(source, tmp_path / "merged", base=str(small), dtype="f32")
    found = logits(load_base(str(tmp_path / "merged")).model, ROWS)[0]
    truth = torch.from_numpy(case.logits())
    assert (found - truth).abs().max() < 1e-4 * truth.abs().max()
    done = gguf_export(source, tmp_path / "gguf", base=str(small), dtype="f32", base_type="f32")
    assert done.record["base_digest"] == base.digest
    reader = gguf.GGUFReader(tmp_path / "gguf" / "base-f32.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    weight: Any = load_plain(small).model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert torch.equal(torch.from_numpy(tensors["blk.0.ffn_up.weight"].copy()), weight)
