"""A merged model is the base with its adapter; oracle: PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from client.adapterfit import spec_of
from client.exports.merged import merge, write_merged
from client.model import load_base, quiet
from shared.errors import AdapterIncompatible, InvalidValue
from tests.client.conftest import MakeAdapted, MakeFolder
from tests.client.exports.conftest import IDS, MakeAdaptedFolder


def reloaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    with quiet():
        return loader.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", ["demo", "llama", "qwen2"])
def test_the_folder_writes_the_tokens_of_base_and_adapter(
    family: str, tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base(family)
    write_merged(tmp_path, case.load(), case.folder, case.factors, case.terms, dtype="f32")
    model = reloaded(tmp_path)
    out = model.generate(
        input_ids=torch.tensor([IDS]),
        attention_mask=torch.ones((1, len(IDS)), dtype=torch.long),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert [int(token) for token in out[0, len(IDS) :]] == case.greedy(24)
    with torch.no_grad():
        found = model(input_ids=torch.tensor([IDS])).logits[0].double().numpy()
    assert np.abs(found - case.logits()).max() < 1e-4 * np.abs(case.logits()).max()
    assert load_base(str(tmp_path)).tokenizer("It was.").input_ids  # fedslm loads it as a base


def test_transposed_layers_are_merged_too(model_folder: MakeFolder, adapted: MakeAdapted) -> None:
    model = adapted("gpt2")
    ids = torch.tensor([[5, 9, 11, 3]])
    with torch.no_grad(), model.plain_peft():
        truth = model.peft_model(input_ids=ids).logits
    from shared.loraconfig import LoraTerms

    terms = LoraTerms(r=4, lora_alpha=8.0, target_modules=model.spec.target_modules)
    base = load_base(str(model_folder("gpt2")))
    merge(base, model.factors(), terms)
    with torch.no_grad():
        found = base.model(input_ids=ids).logits
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_stored_as_such(tmp_path: Path, adapted_base: MakeAdaptedFolder) -> None:
    case = adapted_base("llama")
    write_merged(tmp_path, case.load(), case.folder, case.factors, case.terms, dtype="bf16")
    assert reloaded(tmp_path).dtype == torch.bfloat16
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118


def test_what_does_not_fit_is_refused(tmp_path: Path, adapted_base: MakeAdaptedFolder) -> None:
    case = adapted_base("llama")
    base = case.load()
    with pytest.raises(InvalidValue, match="expected one of"):
        write_merged(tmp_path, base, case.folder, case.factors, case.terms, dtype="f16")
    name = next(iter(case.factors))
    wrong = {**case.factors, name: case.factors[name][:, :-1]}
    with pytest.raises(AdapterIncompatible, match="not those"):
        merge(base, wrong, case.terms)
    from dataclasses import replace

    with pytest.raises(AdapterIncompatible, match="no such layers"):
        spec_of(base, case.factors, replace(case.terms, target_modules=("router",)))
    small = load_base(str(case.folder), quantization="int8")
    with pytest.raises(InvalidValue, match="to merge into"):
        merge(small, case.factors, case.terms)
