"""Where a scale per channel can move from a layer's input into what makes that input.

``W x = (W diag(s)) (x / s)``: the columns of W are multiplied by s, and the division goes into the
norm (or the linear layer) before it. In exact arithmetic the model does not change, so that a
channel can be made easy to quantise for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from shared.errors import UnsupportedModel
from simulations.compress.blocks import matrix_of


@dataclass(frozen=True, slots=True)
class Pair:
    """A module whose outputs go into linear layers and nowhere else.

    Attributes:
        source: its name in the block.
        users: the linear layers' names in the block.
        offset: what the norm adds to its stored weight (Gemma's adds 1).
    """

    source: str
    users: tuple[str, ...]
    offset: float = 0.0


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
# `down` sees act(gate) * up: a scale on the outputs of `up` passes through to it unchanged.
_DOWN = Pair("mlp.up_proj", ("mlp.down_proj",))
_LLAMA = (_DOWN, Pair("input_layernorm", _QKV), Pair("post_attention_layernorm", _GATED))
_GEMMA = (_DOWN, Pair("input_layernorm", _QKV, 1.0), Pair("post_attention_layernorm", _GATED, 1.0))
_GEMMA2 = (
    _DOWN,
    Pair("input_layernorm", _QKV, 1.0),
    Pair("pre_feedforward_layernorm", _GATED, 1.0),
)

PAIRS: Mapping[str, tuple[Pair, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
        "gemma": _GEMMA,
        "gemma2": _GEMMA2,
        "gemma3_text": _GEMMA2,
        "gpt2": (Pair("ln_1", ("attn.c_attn",)), Pair("ln_2", ("mlp.c_fc",))),
        "gpt_neox": (
            Pair("input_layernorm", ("attention.query_key_value",)),
            Pair("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
        ),
        "phi": (Pair("input_layernorm", (*_QKV, "mlp.fc1")),),
        "phi3": (
            Pair("input_layernorm", ("self_attn.qkv_proj",)),
            Pair("post_attention_layernorm", ("mlp.gate_up_proj",)),
        ),
    }
)
"""The pairs of a block by family; those that read a layer's outputs come before its inputs'."""


def pairs_of(family: str) -> tuple[Pair, ...]:
    """Return the pairs of a family.

    Raises:
        UnsupportedModel: if it has none, such as OLMo 2, whose norms come after its layers.
    """
    if family in PAIRS:
        return PAIRS[family]
    msg = f"model_type={family!r} has no norm before its layers that a scale could move into."
    raise UnsupportedModel(msg, hint="Use method 'gptq' for 4 bits, 'int8' for 8.")


def fold(block: torch.nn.Module, pair: Pair, scale: torch.Tensor) -> None:
    """Multiply the columns of a pair's users by a scale and divide its source by it, in place.

    Args:
        block: holds the modules.
        pair: which.
        scale: ``(d_in,)``, > 0.
    """
    source: Any = block.get_submodule(pair.source)
    with torch.no_grad():
        for user in pair.users:
            matrix_of(block.get_submodule(user)).mul_(scale)
        if source.weight.dim() == 2:
            matrix_of(source).div_(scale[:, None])
        else:
            source.weight.add_(pair.offset).div_(scale).sub_(pair.offset)
        if getattr(source, "bias", None) is not None:
            source.bias.div_(scale)
