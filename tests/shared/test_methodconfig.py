"""PEFT configurations of IA3 and of prompts from anyone: read within limits, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.adaptermethod import Method, peft_config
from shared.errors import AdapterIncompatible
from shared.loraconfig import LoraTerms, check_factors, read_lora_config
from shared.tensorfile import Tensor

IA3 = peft_config(
    Method(name="ia3", feedforward=("down_proj",)),
    targets=("down_proj", "q_proj"),
    fan_in_fan_out=False,
    shape=(8, 1),
)
PROMPT = peft_config(Method(name="prompt"), targets=(), fan_in_fan_out=False, shape=(5, 8))


def read(config: dict[str, Any], **change: Any) -> LoraTerms:
    return read_lora_config(json.dumps({"task_type": "CAUSAL_LM", **config, **change}).encode())


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, dtype="F32", shape=shape, start=0, stop=0)


def test_what_fedslm_writes_is_read() -> None:
    found = read(IA3)
    assert (found.method, found.target_modules) == ("ia3", ("down_proj", "q_proj"))
    prompt = read(PROMPT)
    assert (prompt.method, prompt.prompt_tokens, prompt.target_modules) == ("prompt", 5, ())


@pytest.mark.slow
def test_what_peft_writes_is_read() -> None:
    from peft import IA3Config, PromptTuningConfig

    def written(config: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            json.dumps(
                {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()},
                default=str,
            )
        )
        return found

    ia3 = IA3Config(
        target_modules=["q_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    )
    assert sorted(read(written(ia3)).target_modules) == ["down_proj", "q_proj"]
    prompt = PromptTuningConfig(num_virtual_tokens=3, token_dim=8, task_type="CAUSAL_LM")
    assert read(written(prompt)).prompt_tokens == 3


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (IA3, {"r": 4}),
        (IA3, {"modules_to_save": ["lm_head"]}),
        (IA3, {"task_type": "SEQ_CLS"}),
        (IA3, {"init_ia3_weights": 1}),
        (IA3, {"from_the_future": True}),
        (IA3, {"feedforward_modules": []}),
        (IA3, {"feedforward_modules": ["q_proj"]}),
        (IA3, {"feedforward_modules": "down_proj"}),
        (IA3, {"target_modules": ".*"}),
        (IA3, {"target_modules": [".*"], "feedforward_modules": None}),
        (IA3, {"target_modules": [], "feedforward_modules": []}),
        (IA3, {"target_modules": [["q_proj"]]}),
        (PROMPT, {"num_transformer_submodules": 2}),
        (PROMPT, {"num_virtual_tokens": 0}),
        (PROMPT, {"num_virtual_tokens": True}),
        (PROMPT, {"num_virtual_tokens": 4097}),
        (PROMPT, {"num_virtual_tokens": None}),
        (PROMPT, {"target_modules": ["q_proj"]}),
        (PROMPT, {"encoder_hidden_size": 9}),
    ],
)
def test_what_is_more_or_less_is_refused(config: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(AdapterIncompatible, match="no plain"):
        read(config, **change)


def test_a_classifier_with_vectors_is_refused() -> None:
    with pytest.raises(AdapterIncompatible, match="no plain LoRA"):
        read_lora_config(json.dumps({**IA3, "task_type": "SEQ_CLS"}).encode(), whole=["score"])


def test_tensors_must_be_the_methods_own() -> None:
    check_factors([tensor("m.q_proj.ia3_l", 8, 1), tensor("m.down_proj.ia3_l", 1, 9)], read(IA3))
    check_factors([tensor("prompt_embeddings", 5, 8)], read(PROMPT))
    for wrong in ([], [tensor("m.q_proj.ia3_l", 8, 2)], [tensor("m.q_proj.lora_A.weight", 1, 8)]):
        with pytest.raises(AdapterIncompatible):
            check_factors(wrong, read(IA3))
    for wrong in ([], [tensor("prompt_embeddings", 4, 8)], [tensor("prompt_embeddings", 5)]):
        with pytest.raises(AdapterIncompatible):
            check_factors(wrong, read(PROMPT))


def test_a_program_of_pairs_refuses_vectors_and_says_where_they_go() -> None:
    with pytest.raises(AdapterIncompatible, match="'ia3', which the graph") as refused:
        read(IA3).require_pairs("the graph")
    assert "export merged" in (refused.value.hint or "")
    with pytest.raises(AdapterIncompatible, match="'prompt'"):
        read(PROMPT).require_pairs("the graph")
    LoraTerms(r=2, lora_alpha=4.0, target_modules=("q_proj",)).require_pairs("the graph")
