"""What ``client.answering.withllama`` uses of llama-cpp-python, computed in numpy from GGUF files.

It stands in where the library is not built: same calls, tokens and numbers by
:class:`tests.ggufmodel.GgufModel`, which shares no code with what wrote the files. As llama.cpp, it
keeps one text at a time, and refuses an adapter whose factors are not those of its layers.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from client.inference import base_folder
from tests.ggufmodel import GgufModel

GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 = 8, 2
OPEN: list[Llama] = []


class Llama:
    """A base model in GGUF with at most one adapter."""

    def __init__(self, *, model_path: str, lora_path: str | None, n_ctx: int, **more: Any) -> None:
        assert set(more) == {
            "n_threads",
            "n_threads_batch",
            "type_k",
            "type_v",
            "flash_attn",
            "verbose",
        }
        self.model = GgufModel(Path(model_path), None if lora_path is None else Path(lora_path))
        self.tokenizer = Tokenizer.from_file(str(base_folder("demo") / "tokenizer.json"))
        self.n_ctx = n_ctx
        self.ids: list[int] = []
        self.last = np.zeros(0, dtype=np.float32)
        OPEN.append(self)

    @property
    def ctx(self) -> Llama:
        return self

    def n_vocab(self) -> int:
        return len(self.model.tensors["token_embd.weight"])

    def tokenize(self, text: bytes, *, add_bos: bool, special: bool) -> list[int]:
        assert not add_bos
        self.tokenizer.encode_special_tokens = not special
        found: list[int] = self.tokenizer.encode(text.decode(), add_special_tokens=False).ids
        return found

    def detokenize(self, ids: list[int], *, special: bool) -> bytes:
        return str(self.tokenizer.decode(ids, skip_special_tokens=not special)).encode()

    def reset(self) -> None:
        self.ids = []

    def eval(self, ids: list[int]) -> None:
        if len(self.ids) + len(ids) > self.n_ctx:
            msg = "llama_decode returned 1"
            raise RuntimeError(msg)
        self.ids += ids
        self.last = self.model.logits(self.ids)[-1].astype(np.float32)

    def close(self) -> None:
        OPEN.remove(self)


def llama_get_logits_ith(model: Llama, place: int) -> Any:
    """Return a pointer, as the library does."""
    assert place == -1
    return model.last.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
