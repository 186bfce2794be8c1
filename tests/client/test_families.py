"""Every listed family: load, adapt, one private step, and PEFT reads the adapter back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.families import FAMILIES, family_of
from client.losses import collate
from client.model import frozen_digest, quiet
from client.training import TrainSettings, train_private
from shared.errors import UnsupportedModel
from shared.privacy.noise import NoiseSource
from tests.client.conftest import CONFIGS, MakeAdapted, MakeFolder, make_examples


def test_every_family_has_a_tiny_configuration() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_private_step_and_the_way_through_peft(
    adapted: MakeAdapted, model_folder: MakeFolder, tmp_path: Path, family: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = adapted(family)
    before, start = frozen_digest(model.peft_model), model.read_vector("AB")
    settings = TrainSettings(local_steps=1, batch_size=3, learning_rate=0.1)
    steps = train_private(
        model,
        make_examples(4),
        settings,
        max_grad_norm=1.0,
        noise_multiplier=0.1,
        sampling_probability=0.9,
        source=NoiseSource.seeded(1),
    )
    assert steps == 1
    assert not np.array_equal(model.read_vector("AB"), start)
    assert frozen_digest(model.peft_model) == before

    model.peft_model.save_pretrained(str(tmp_path))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(stored) == [factor.name for factor in model.spec.factors]
    assert all(stored[factor.name].shape == factor.shape for factor in model.spec.factors)

    batch = collate(make_examples(3), 0)
    loader: Any = AutoModelForCausalLM
    with quiet(), torch.no_grad():
        base = loader.from_pretrained(model_folder(family), dtype=torch.float32)
        read_back = PeftModel.from_pretrained(base, tmp_path).eval()
        expected = read_back(input_ids=batch.ids, use_cache=False).logits
        found = model.peft_model(input_ids=batch.ids, use_cache=False).logits
    assert torch.allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_listed_linear_modules_are_the_ones_there_are(
    adapted: MakeAdapted, family: str
) -> None:
    model = adapted(family)
    assert sorted(FAMILIES[family].linear) == list(model.spec.target_modules)


@pytest.mark.parametrize(
    ("model_type", "needs"),
    [
        ("bert", "causal decoder"),
        ("t5", "encoder-decoder"),
        ("mamba", "recurrent scan"),
        ("mixtral", "expert routing"),
        ("gemma3", "text-only"),
        ("something-new", "client/families.py"),
    ],
)
def test_an_unsupported_family_says_what_it_would_need(model_type: str, needs: str) -> None:
    with pytest.raises(UnsupportedModel, match=needs) as caught:
        family_of({"model_type": model_type})
    assert "llama" in caught.value.hint


def test_code_from_a_repository_is_never_an_option() -> None:
    with pytest.raises(UnsupportedModel, match="never runs"):
        family_of({"model_type": "custom", "auto_map": {"AutoModel": "evil.Model"}})


@pytest.mark.parametrize("config", [{}, {"model_type": ""}, {"model_type": 3}])
def test_a_config_without_model_type_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="no model_type"):
        family_of(config)


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        family_of({"model_type": "qwen33"})
    assert "Did you mean 'qwen3'?" in caught.value.hint
