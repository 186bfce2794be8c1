"""The tensors of llama.cpp's own converter, as a known answer.

Written by ``convert_lora_to_gguf.py --outtype f32`` of the llama.cpp
that the sources of llama-cpp-python 0.3.36 hold; the digest is over name, type, shape and bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from client.adapterspec import adapter_spec
from client.exports.ggufadapter import write_adapter_gguf
from client.exports.layout import Layout
from client.inference import base_folder
from client.model import load_base
from shared.loraconfig import LoraTerms

CONVERTED = "9e1bf53951d575613017a3cd40823e9ffd40fa3b7ecc89c95d2a35298262d539"


def digest_of(path: Path) -> str:
    """Return the SHA-256 over all tensors of a GGUF file, by name."""
    reader: Any = gguf.GGUFReader(path)
    found = hashlib.sha256()
    for tensor in sorted(reader.tensors, key=lambda tensor: str(tensor.name)):
        shape = [int(n) for n in tensor.shape]
        found.update(f"{tensor.name} {tensor.tensor_type.name} {shape}\n".encode())
        found.update(tensor.data.tobytes())
    return found.hexdigest()


def test_an_adapter_of_the_demo_model_is_converted_alike(tmp_path: Path) -> None:
    folder = base_folder("demo")
    spec = adapter_spec(load_base(str(folder)), r=4, alpha=8, target_modules="all-linear")
    rng = np.random.default_rng(1)
    factors = {
        f.name: (0.1 * rng.standard_normal(f.shape)).astype(np.float32) for f in spec.factors
    }
    terms = LoraTerms(r=4, lora_alpha=8.0, target_modules=spec.target_modules)
    layout = Layout.of_folder(folder)
    write_adapter_gguf(tmp_path / "a.gguf", factors, terms, layout, name="demo", facts={})
    assert digest_of(tmp_path / "a.gguf") == CONVERTED
