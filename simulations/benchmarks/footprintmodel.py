"""A base model of random weights in a common shape, and the device that trains it, on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.config import RunConfig
from shared.configfile import resolve

SEQUENCE = 256
RANK = 4
RECORDS = 12
_TOKENIZER = Path(__file__).parents[1] / "assets" / "demo"
_WORDS = "the visit was short and the patient felt well again after a quiet night at home"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of a llama-like model.

    Attributes:
        hidden: width.
        inner: width inside the feed-forward part.
        layers: number of layers.
        heads: attention heads.
        kv_heads: heads of keys and values.
        vocabulary: rows of the embedding, which is also the output's.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Return the number of weights."""
        matrices = sum(rows * columns for rows, columns in self.linear.values())
        norms = (2 * self.layers + 1) * self.hidden
        return self.vocabulary * self.hidden + self.layers * matrices + norms

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Return (d_out, d_in) of each linear layer of one block."""
        keys = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    @property
    def adapter_size(self) -> int:
        """Return how many values an update of the B factors has."""
        return self.layers * RANK * sum(rows for rows, _ in self.linear.values())


# As SmolLM2-135M, and a small one.
M135 = Shape(hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152)
SMALL = Shape(hidden=128, inner=344, layers=4, heads=4, kv_heads=2, vocabulary=4_096)


def write_base(folder: Path, shape: Shape, *, seed: int = 1) -> None:
    """Write a base model of random weights in half precision, with the demo model's tokenizer."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        drawn = rng.standard_normal((rows, columns), dtype=np.float32)
        return (0.02 * drawn).astype(np.float16)

    ones = np.ones(shape.hidden, dtype=np.float16)
    tensors = {
        "model.embed_tokens.weight": matrix(shape.vocabulary, shape.hidden),
        "model.norm.weight": ones,
    }
    for layer in range(shape.layers):
        stem = f"model.layers.{layer}."
        for name, (rows, columns) in shape.linear.items():
            tensors[f"{stem}{name}.weight"] = matrix(rows, columns)
        tensors[f"{stem}input_layernorm.weight"] = ones
        tensors[f"{stem}post_attention_layernorm.weight"] = ones
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in _TOKENIZER.glob("*token*"):
        shutil.copy(file, folder / file.name)
    config = {
        **json.loads((_TOKENIZER / "config.json").read_text(encoding="utf-8")),
        "dtype": "float16",
        "head_dim": shape.hidden // shape.heads,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "max_position_embeddings": 2048,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_records(path: Path) -> None:
    """Write records that fill a sequence; they say nothing."""
    text = " ".join([_WORDS] * (2 * SEQUENCE // len(_WORDS.split())))
    lines = [json.dumps({"note": f"{number} {text}"}) for number in range(RECORDS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def scenario(quantization: str) -> RunConfig:
    """Return the scenario of a round of DP-SGD with long sequences; other settings are defaults."""
    tables: dict[str, Any] = {
        "run": {"name": "footprint", "rounds": 4},
        "model": {"base": "a folder on the device", "quantization": quantization},
        "lora": {"r": RANK},
        "data": {
            "path": "notes.jsonl",
            "text": "note",
            "max_length": SEQUENCE,
            "partitioner": "iid",
        },
        "clients": {
            "population": 10,
            "cohort": 5.0,
            "local_steps": 2,
            "batch_size": 4,
            "learning_rate": 0.1,
        },
        "privacy": {
            "mode": "example",
            "neighboring_relation": "add-or-remove-one",
            "noise_multiplier": 1.0,
            "delta": 1e-4,
            "clipping_norm": 0.5,
            "max_grad_norm": 0.5,
            "sampling_probability": 0.5,
        },
    }
    return resolve(tables, source="footprint").config


def policy_text(digest: str) -> str:
    """Return a policy that allows the scenario, many times over."""
    return f"""\
schema = 1
modes = ["example"]
base_models = ["{digest}"]
aggregation = ["ffa"]
max_rounds = 4

[example]
max_epsilon = 500.0
delta = 1e-4
neighboring_relation = "add-or-remove-one"
min_noise_multiplier = 0.5
max_sampling_probability = 0.5
"""
