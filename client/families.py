"""The decoder families that fedslm trains, and what any other would need.

A family is listed once its tiny random configuration passes ``tests/client/test_families.py``:
load, adapt, one private step, and the adapter read back by PEFT with equal logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shared.errors import UnsupportedModel
from shared.registry import suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What differs between decoder families as far as LoRA is concerned.

    Attributes:
        model_type: ``model_type`` of the model's ``config.json``.
        conv1d: the linear layers are transformers' ``Conv1D``, which stores ``(d_in, d_out)``.
        linear: the linear modules of one block, in order, for help texts.
    """

    model_type: str
    conv1d: bool = False
    linear: tuple[str, ...]


_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_PHI = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
_PHI3 = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            Family(model_type="gemma", linear=_LLAMA),
            Family(model_type="gemma2", linear=_LLAMA),
            Family(model_type="gemma3_text", linear=_LLAMA),
            Family(model_type="gpt2", linear=("c_attn", "c_proj", "c_fc"), conv1d=True),
            Family(model_type="gpt_neox", linear=_NEOX),
            Family(model_type="llama", linear=_LLAMA),
            Family(model_type="mistral", linear=_LLAMA),
            Family(model_type="olmo2", linear=_LLAMA),
            Family(model_type="phi", linear=_PHI),
            Family(model_type="phi3", linear=_PHI3),
            Family(model_type="qwen2", linear=_LLAMA),
            Family(model_type="qwen3", linear=_LLAMA),
        )
    }
)

ENCODERS: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            Family(model_type="bert", linear=("query", "key", "value", "dense")),
            Family(
                model_type="distilbert",
                linear=("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
            ),
            Family(model_type="mobilebert", linear=("query", "key", "value", "dense")),
        )
    }
)
"""The encoders that classify texts, once they pass ``tests/client/test_classification.py``."""

_ENCODER = "a causal decoder: this one is an encoder and predicts no next token"
_PAIR = "a decoder-only model: this one is an encoder-decoder with two inputs per example"
_MIXTURE = (
    "per-example gradients through expert routing, where the tokens of a batch share the experts"
)
_RECURRENT = (
    "a differentiable recurrent scan, and a quantised form that leaves the projections "
    "used as raw weights alone"
)
_MULTIMODAL = "its text-only checkpoint: this one also has an image or audio tower"

_NEEDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "deberta-v2"), _ENCODER),
        **dict.fromkeys(("albert", "modernbert", "xlm-roberta"), _ENCODER),
        **dict.fromkeys(("t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper"), _PAIR),
        **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe"), _MIXTURE),
        **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba"), _RECURRENT),
        **dict.fromkeys(("gemma3", "gemma3n", "llava", "qwen2_vl", "mllama"), _MULTIMODAL),
    }
)


def family_of(config: Mapping[str, Any], *, classifies: bool = False) -> Family:
    """Return the family of a model from its ``config.json``.

    Args:
        config: the parsed ``config.json``.
        classifies: look among the encoders.

    Returns:
        The family with this ``model_type``.

    Raises:
        UnsupportedModel: for a family that is not listed; says what it would need.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        msg = "The model's config.json has no model_type, expected one of: " + _known() + "."
        raise UnsupportedModel(msg, hint="Save the model with transformers' save_pretrained.")
    if classifies and model_type in ENCODERS:
        return ENCODERS[model_type]
    if classifies:
        msg = f"model_type={model_type!r} is not supported for classification."
        raise UnsupportedModel(msg, hint=f"Supported: {', '.join(sorted(ENCODERS))}.")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if "auto_map" in config:
        needs = "code from the model's own repository, which fedslm never runs"
    else:
        needs = _NEEDS.get(
            model_type,
            "an entry in client/families.py that passes the tests of tests/client/test_families.py",
        )
    msg = f"model_type={model_type!r} is not supported. It would need {needs}."
    hint = f"Supported: {_known()}. {suggestion(model_type, FAMILIES)}".strip()
    raise UnsupportedModel(msg, hint=hint)


def _known() -> str:
    """Return the supported model types for messages."""
    return ", ".join(sorted(FAMILIES))
