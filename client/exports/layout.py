"""How llama.cpp names and orders the tensors of the base models that it shares with us.

transformers keeps each head's rotary dimensions as two halves, ``(0 .. d/2, d/2 .. d)``; llama.cpp
turns neighbours, ``(0, 1), (2, 3) ..``, in the architecture "llama", and halves in "qwen2" and
"qwen3". Rows of the query and key projections are therefore reordered for "llama": the scores of
attention are sums over a head's dimensions, and do not depend on their order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import MissingDependency, UnsupportedModel

Array = NDArray[np.float32]
CONFIG = "config.json"
INSTALL = "pip install 'fedslm[export]'"
_ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_PERMUTED = (".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias")


def require_gguf() -> Any:  # noqa: ANN401  (the package has no annotations)
    """Return the module ``gguf``.

    Raises:
        MissingDependency: if it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        msg = "GGUF needs the package gguf, which is not installed."
        raise MissingDependency(msg, hint=INSTALL) from error
    return gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A base model as llama.cpp sees it.

    Attributes:
        arch: llama.cpp's name of the architecture.
        config: the parsed ``config.json``.
        blocks: how many transformer blocks there are.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: dimensions of a head.
        context: longest sequence, in tokens, at which llama.cpp computes what transformers does.
        rope_base: base of the rotary frequencies.
    """

    arch: str
    config: Mapping[str, Any]
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_base: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Layout:
        """Read a model's configuration.

        Raises:
            UnsupportedModel: for an architecture, activation or rotary scaling that is not covered.
        """
        model_type = str(config.get("model_type"))
        if model_type not in _ARCHITECTURES:
            known = ", ".join(sorted(_ARCHITECTURES))
            msg = f"model_type={model_type!r} has no GGUF export, expected one of: {known}."
            raise UnsupportedModel(msg, hint="Use: fedslm export merged, and llama.cpp's converter")
        _require_plain(config)
        heads, width = _count(config, "num_attention_heads"), _count(config, "hidden_size")
        kv_heads = _count(config, "num_key_value_heads", heads)
        head_dim = _count(config, "head_dim", width // heads)
        if head_dim % 2 or heads % kv_heads:
            msg = "The heads of the model's attention do not divide evenly."
            raise UnsupportedModel(msg)
        return cls(
            arch=_ARCHITECTURES[model_type],
            config=config,
            blocks=_count(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context=_context(config),
            rope_base=_rope_base(config),
        )

    @classmethod
    def of_folder(cls, folder: Path) -> Layout:
        """Read a model folder's ``config.json``; errors as :meth:`of`."""
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"Model folder {folder.name!r} has no readable config.json."
            raise UnsupportedModel(msg) from error
        return cls.of(config if isinstance(config, dict) else {})

    def name(self, name: str) -> str:
        """Return llama.cpp's name of a tensor.

        Args:
            name: transformers' name, such as ``model.layers.0.self_attn.q_proj.weight``.

        Raises:
            UnsupportedModel: if llama.cpp has no such tensor.
        """
        gguf = require_gguf()
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        table = gguf.get_tensor_name_map(arch, self.blocks)
        found: str | None = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            msg = f"llama.cpp's architecture {self.arch!r} has no tensor like {name}."
            raise UnsupportedModel(msg, hint="Export it merged: fedslm export merged")
        return found

    def ordered(self, name: str, values: Array) -> Array:
        """Return a tensor with its rows in llama.cpp's order.

        Args:
            name: llama.cpp's name of the tensor, or of the layer whose factor B this is.
            values: its values, rows first.
        """
        if self.arch != "llama" or not name.endswith(_PERMUTED):
            return values
        heads = self.heads if ".attn_q." in name else self.kv_heads
        halves = values.reshape(heads, 2, self.head_dim // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _require_plain(config: Mapping[str, Any]) -> None:
    """Refuse what would be computed otherwise by llama.cpp."""
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        msg = f"hidden_act={activation!r}, expected 'silu' for a GGUF export."
        raise UnsupportedModel(msg)
    if config.get("use_sliding_window"):
        msg = "use_sliding_window is set, which llama.cpp's architecture does not have."
        raise UnsupportedModel(msg)


def _context(config: Mapping[str, Any]) -> int:
    """Return the longest sequence; within a sliding window there is no difference to attention."""
    longest = _count(config, "max_position_embeddings")
    window = config.get("sliding_window") if config.get("model_type") == "mistral" else None
    return longest if window is None else min(longest, int(window))


def _rope_base(config: Mapping[str, Any]) -> float:
    """Return the base of the rotary frequencies, which must not be scaled."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind != "default":
        msg = f"rope_type={kind!r}, expected 'default' for a GGUF export."
        raise UnsupportedModel(msg, hint="Use: fedslm export merged, and llama.cpp's converter")
    base = float(nested.get("rope_theta", config.get("rope_theta", 10000.0)))
    if not (math.isfinite(base) and base > 0):
        msg = "rope_theta is no finite number above 0."
        raise UnsupportedModel(msg)
    return base


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a positive integer of a configuration."""
    found = config.get(key)
    value = default if found is None else found
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        msg = f"config.json has no {key}, expected an integer of at least 1."
        raise UnsupportedModel(msg)
    return value
