"""rsLoRA: the scale is alpha / sqrt(r), in our layers, in PEFT's, and in what is exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel, adapt
from client.losses import collate, per_sequence_losses
from client.model import load_base, quiet
from server.adapters import read_adapter, write_adapter
from shared.lora import AdapterSpec
from shared.loraconfig import read_lora_config
from tests.client.conftest import MakeFolder, make_examples, relative_error


@pytest.fixture
def model(model_folder: MakeFolder) -> AdaptedModel:
    base = load_base(str(model_folder()))
    found = adapt(base, r=4, alpha=8, target_modules="all-linear", rslora=True)
    rng = np.random.default_rng(3)
    found.load_vector(0.1 * rng.standard_normal(found.spec.size(), dtype=np.float32), "AB")
    return found


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def test_losses_and_gradients_equal_pefts_own(model: AdaptedModel) -> None:
    batch = collate(make_examples(4), 0)
    parameters = [parameter for _, parameter in model.trainable]

    def run() -> torch.Tensor:
        losses = per_sequence_losses(model.peft_model, batch)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        return torch.cat([losses.detach(), *(g.reshape(-1) for g in gradients)])

    ours = run()
    with model.plain_peft():
        theirs = run()
    assert relative_error(ours, theirs) <= 2e-6


def test_it_is_the_sum_with_the_square_root(model: AdaptedModel, model_folder: MakeFolder) -> None:
    """Weights W0 + alpha / sqrt(r) B A in numpy, in a plain transformers model."""
    from transformers import AutoModelForCausalLM

    ids = torch.from_numpy(make_examples(1)[0].ids).unsqueeze(0)
    loader: Any = AutoModelForCausalLM
    with quiet():
        plain = loader.from_pretrained(model_folder()).eval()
    factors = model.factors()
    for name, a in factors.items():
        if ".lora_A." in name:
            own = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            change = 8 / math.sqrt(4) * factors[name.replace("lora_A", "lora_B")] @ a
            plain.get_submodule(own).weight.data += torch.from_numpy(change)
    assert relative_error(logits(model.peft_model, ids), logits(plain, ids)) <= 1e-5
    assert model.spec.scale == 8 / math.sqrt(4)


def test_an_exported_folder_loads_with_plain_peft(
    model: AdaptedModel, model_folder: MakeFolder, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_adapter(
        tmp_path,
        spec=model.spec,
        factors=model.factors(),
        base_model="tiny",
        dropout=0.0,
        manifest={},
    )
    loader: Any = AutoModelForCausalLM
    with quiet(), torch.random.fork_rng(devices=[]):
        theirs: Any = PeftModel.from_pretrained(loader.from_pretrained(model_folder()), tmp_path)
    ids = torch.from_numpy(make_examples(1)[0].ids).unsqueeze(0)
    assert relative_error(logits(model.peft_model, ids), logits(theirs.eval(), ids)) <= 1e-6
    assert read_lora_config((tmp_path / "adapter_config.json").read_bytes()).rslora
    read = read_adapter(tmp_path, model.spec)
    assert all(np.array_equal(read[name], value) for name, value in model.factors().items())


def test_a_specification_says_it_only_where_it_is_so(model: AdaptedModel) -> None:
    told = model.spec.to_json()
    assert AdapterSpec.from_json(told) == model.spec
    del told["rslora"]
    plain = AdapterSpec.from_json(told)
    assert not plain.rslora
    assert "rslora" not in plain.to_json()
    assert plain.digest() != model.spec.digest()
    assert plain.scale == 8 / 4
