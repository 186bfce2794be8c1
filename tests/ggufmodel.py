"""A transformer computed from GGUF files by the rules of llama.cpp, in numpy and float64.

It shares no code with the exporter: names, shapes and numbers come from the files alone. Rotary
positions turn neighbouring dimensions in the architecture "llama", halves in "qwen2" and "qwen3"; a
LoRA adds ``alpha / r`` times ``B A``, with r from the file's tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the keys and the tensors, rows first, of a GGUF file."""
    reader: Any = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        .reshape([int(n) for n in reversed(tensor.shape)])
        .astype(np.float64)
        for tensor in reader.tensors
    }
    return fields, tensors


def types(path: Path) -> dict[str, str]:
    """Return the type of every tensor of a GGUF file."""
    reader: Any = gguf.GGUFReader(path)
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


class GgufModel:
    """A base from its GGUF file, with the adapter of another one."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        self.fields, self.tensors = read(base)
        self.arch = self.fields["general.architecture"]
        if adapter is not None:
            self._add(*read(adapter))

    def _add(self, fields: dict[str, Any], factors: dict[str, Array]) -> None:
        assert fields["general.type"] == "adapter"
        assert fields["adapter.type"] == "lora"
        assert fields["general.architecture"] == self.arch
        for name in [name for name in factors if name.endswith(".lora_a")]:
            stem = name.removesuffix(".lora_a")
            a, b = factors[name], factors[f"{stem}.lora_b"]
            self.tensors[stem] = self.tensors[stem] + fields["adapter.lora.alpha"] / len(a) * b @ a

    def key(self, name: str) -> Any:
        return self.fields[f"{self.arch}.{name}"]

    def logits(self, ids: list[int]) -> Array:
        """Return the logits at every place, ``(T, V)``."""
        x = self.tensors["token_embd.weight"][ids]
        for block in range(self.key("block_count")):
            x = x + self._attention(block, self._norm(x, f"blk.{block}.attn_norm"))
            h = self._norm(x, f"blk.{block}.ffn_norm")
            gate, up = (self._linear(h, f"blk.{block}.ffn_{which}") for which in ("gate", "up"))
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"blk.{block}.ffn_down")
        x = self._norm(x, "output_norm")
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        found: Array = x @ head.T
        return found

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Return the likeliest continuation."""
        found = list(ids)
        for _ in range(count):
            found.append(int(self.logits(found)[-1].argmax()))
        return found[len(ids) :]

    def _attention(self, block: int, x: Array) -> Array:
        heads, groups = self.key("attention.head_count"), self.key("attention.head_count_kv")
        q, k, v = (self._linear(x, f"blk.{block}.attn_{which}") for which in "qkv")
        q, k, v = (
            array.reshape(len(x), -1, self.key("attention.key_length")) for array in (q, k, v)
        )
        for which, array in (("q", q), ("k", k)):
            if f"blk.{block}.attn_{which}_norm.weight" in self.tensors:
                array[:] = self._norm(array, f"blk.{block}.attn_{which}_norm")
        q, k = self._turn(q), self._turn(k)
        k, v = (np.repeat(array, heads // groups, axis=1) for array in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return self._linear(mixed, f"blk.{block}.attn_output")

    def _turn(self, x: Array) -> Array:
        width = x.shape[-1]
        angles = np.outer(
            np.arange(len(x)), self.key("rope.freq_base") ** (-np.arange(0, width, 2) / width)
        )[:, None, :]
        cos, sin = np.cos(angles), np.sin(angles)
        result = np.empty_like(x)
        half = slice(None, width // 2), slice(width // 2, None)
        pair = slice(0, None, 2), slice(1, None, 2)
        first, second = pair if self.arch == "llama" else half
        result[..., first] = x[..., first] * cos - x[..., second] * sin
        result[..., second] = x[..., second] * cos + x[..., first] * sin
        return result

    def _norm(self, x: Array, name: str) -> Array:
        epsilon = self.key("attention.layer_norm_rms_epsilon")
        scaled: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
        return scaled * self.tensors[f"{name}.weight"]

    def _linear(self, x: Array, name: str) -> Array:
        bias = self.tensors.get(f"{name}.bias", np.zeros(1))
        found: Array = x @ self.tensors[f"{name}.weight"].T + bias
        return found
