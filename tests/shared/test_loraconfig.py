"""PEFT configurations from anyone: a plain LoRA within limits, or a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.loraconfig import LARGEST_CONFIG, LoraTerms, check_factors, read_lora_config
from shared.tensorfile import Tensor

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "use_dora": False,
    "modules_to_save": None,
}
TERMS = LoraTerms(r=4, lora_alpha=8.0, target_modules=("q_proj", "v_proj"))


def read(**change: Any) -> LoraTerms:
    return read_lora_config(json.dumps({**PLAIN, **change}).encode())


def test_rank_scale_and_layers_are_taken_and_nothing_else() -> None:
    assert read() == read(base_model_name_or_path="/some/where", peft_version="9") == TERMS


@pytest.mark.slow
def test_what_peft_writes_is_read() -> None:
    from peft import LoraConfig

    found = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    data = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in found.to_dict().items()  # type: ignore[no-untyped-call]
    }
    assert read_lora_config(json.dumps(data, default=str).encode()).target_modules == ("q_proj",)


WRONG: dict[str, dict[str, Any]] = {
    "another kind": {"peft_type": "ADALORA"},
    "another task": {"task_type": "SEQ_CLS"},
    "trained biases": {"bias": "all"},
    "DoRA": {"use_dora": True},
    "a scale that is nearly rank-stabilised": {"use_rslora": 1},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "ranks by layer": {"rank_pattern": {"a": 2}},
    "started from the base": {"init_lora_weights": "pissa"},
    "a number that is nearly true": {"init_lora_weights": 1},
    "what is not known": {"from_the_future": 1},
    "no rank": {"r": None},
    "rank 0": {"r": 0},
    "a boolean rank": {"r": True},
    "a huge rank": {"r": 1025},
    "scale 0": {"lora_alpha": 0},
    "a huge scale": {"lora_alpha": 1e7},
    "no number": {"lora_alpha": float("nan")},
    "infinite": {"lora_alpha": float("inf")},
    "one name": {"target_modules": "all-linear"},
    "no names": {"target_modules": []},
    "a pattern": {"target_modules": [".*"]},
    "a list inside": {"target_modules": [["q_proj"]]},
    "many names": {"target_modules": ["q"] * 513},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_plain_lora_is_refused(name: str) -> None:
    with pytest.raises(AdapterIncompatible, match="no plain LoRA"):
        read(**WRONG[name])


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 9000, b" " * 300_000])
def test_what_is_no_configuration_is_refused(data: bytes) -> None:
    with pytest.raises(AdapterCorrupt, match=r"adapter_config\.json"):
        read_lora_config(data)


def test_a_configuration_that_is_too_long_is_not_parsed() -> None:
    assert len(json.dumps({**PLAIN, "revision": "x" * LARGEST_CONFIG})) > LARGEST_CONFIG
    with pytest.raises(AdapterCorrupt, match="expected at most"):
        read(revision="x" * LARGEST_CONFIG)


@given(
    st.dictionaries(
        st.sampled_from([*PLAIN, "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=4), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_settings_are_a_plain_lora_or_refused(change: dict[str, Any]) -> None:
    try:
        terms = read(**change)
    except (AdapterIncompatible, AdapterCorrupt):
        return
    assert 1 <= terms.r <= 1024
    assert 0 < terms.lora_alpha <= 1e6
    assert terms.target_modules


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, dtype="F32", shape=shape, start=0, stop=0)


PAIR = (tensor("m.q_proj.lora_A.weight", 4, 9), tensor("m.q_proj.lora_B.weight", 7, 4))


def test_pairs_of_the_rank_pass() -> None:
    check_factors(PAIR, TERMS)


@pytest.mark.parametrize(
    "tensors",
    [
        PAIR[:1],
        PAIR[1:],
        (*PAIR, tensor("lm_head.weight", 4, 4)),
        (PAIR[0], tensor("m.q_proj.lora_B.weight", 4, 7)),
        (PAIR[0], tensor("m.q_proj.lora_B.weight", 4)),
        (tensor("m.q_proj.lora_A.weight", 9, 4), PAIR[1]),
        (*PAIR, tensor("m.k_proj.lora_A.weight", 4, 9)),
        (*PAIR, tensor("m.q_proj.lora_embedding_A", 4, 9)),
    ],
)
def test_anything_else_is_refused(tensors: tuple[Tensor, ...]) -> None:
    with pytest.raises(AdapterIncompatible):
        check_factors(tensors, TERMS)
