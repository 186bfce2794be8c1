"""Answers by llama.cpp: the GGUF base of ``fedslm export gguf --base-type``, and no torch.

A device's own verified adapter is written as GGUF for the moment in which llama.cpp reads it, so
that a device that fetches adapters needs the base once and no further export.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.answering.chat import ExportedChat
from client.answering.engine import Logits, with_begin
from client.exports.ggufadapter import write_adapter_gguf
from client.exports.layout import Layout, require_gguf
from shared.errors import (
    AdapterIncompatible,
    BaseModelMismatch,
    InvalidValue,
    MissingDependency,
    UnsupportedModel,
    UsageError,
)

if TYPE_CHECKING:
    from client.answering.program import Program
    from shared.lora import Factors
    from shared.loraconfig import LoraTerms

INSTALL = "pip install 'fedslm[llama]'"
LONGEST = 4096
"""The most tokens of a text: llama.cpp sets the memory of the whole window aside at the start."""

_BLOCK = 32


class LlamaEngine:
    """A base model on llama.cpp.

    Args:
        program: verified.
        kv_cache: "none" (16-bit floats), "q8_0" or "q4_0".
        threads: that one call uses; None for llama.cpp's choice.

    Raises:
        MissingDependency: if llama-cpp-python is not installed.
        UsageError: if the model's heads cannot be cut into blocks of such a cache.
        BaseModelMismatch: if llama.cpp cannot load the file.
    """

    def __init__(
        self, program: Program, *, kv_cache: str = "none", threads: int | None = None
    ) -> None:
        self.library = _library()
        self._facts = program.facts
        self._chat = ExportedChat(program.folder)
        self._layout = Layout.of_folder(program.folder)
        if kv_cache != "none" and self._layout.head_dim % _BLOCK:
            msg = f"--kv-cache {kv_cache} with heads of {self._layout.head_dim} dimensions."
            raise UsageError(msg, hint=f"{_BLOCK} must divide them; leave --kv-cache out.")
        kinds = {"q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}
        kind = None if kv_cache == "none" else getattr(self.library, kinds[kv_cache])
        self._options: dict[str, Any] = {
            "model_path": str(program.path),
            "n_ctx": self.window,
            "n_threads": threads,
            "n_threads_batch": threads,
            "type_k": kind,
            "type_v": kind,
            # Quantised values need it.
            "flash_attn": kind is not None,
            "verbose": False,
        }
        self.model = self._open()
        self.owner: LlamaTurn | None = None

    @property
    def window(self) -> int:
        """Return the most tokens of a text."""
        return min(self._facts.window or LONGEST, self._layout.context, LONGEST)

    @property
    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text."""
        return frozenset(self._facts.ends)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, cut by llama.cpp itself."""
        ids = self.model.tokenize(text.encode("utf-8"), add_bos=False, special=False)
        return with_begin([int(token) for token in ids], self._facts.bos, self._facts.eos)

    def ask(self, question: str) -> list[int]:
        """Return the tokens of a question as a user's turn."""
        turn = self._chat.turn(question).encode("utf-8")
        return [int(token) for token in self.model.tokenize(turn, add_bos=False, special=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text."""
        found: bytes = self.model.detokenize(list(ids), special=True)
        return found.decode("utf-8", errors="replace")

    def wear(self, factors: Factors, terms: LoraTerms) -> None:
        """Put an adapter on the base.

        llama.cpp reads adapters from files alone: it is written into a folder that only this user
        may open, and removed as soon as it was read.

        Raises:
            AdapterIncompatible: if it is not one of this base's layers, or no pairs of factors.
        """
        terms.require_pairs("llama.cpp")
        if terms.mixture is not None:
            msg = "The adapter is a mixture, whose gates llama.cpp does not have."
            raise AdapterIncompatible(msg, hint="Answer with torch.")
        with tempfile.TemporaryDirectory(prefix="fedslm-") as folder:
            path = Path(folder) / "adapter.gguf"
            try:
                write_adapter_gguf(path, factors, terms, self._layout, name="adapter", facts={})
            except (UnsupportedModel, InvalidValue) as error:
                msg = "The adapter's factors are not those of the base's layers."
                raise AdapterIncompatible(msg) from error
            fresh = self._open(path)
        self.model.close()
        self.model, self.owner = fresh, None

    def turn(self) -> LlamaTurn:
        """Begin a text."""
        return LlamaTurn(self)

    def _open(self, adapter: Path | None = None) -> Any:  # noqa: ANN401
        """Load the model, with an adapter."""
        path = None if adapter is None else str(adapter)
        reason = ""
        try:
            return self.library.Llama(**self._options, lora_path=path)
        except (ValueError, RuntimeError, OSError) as error:
            reason = type(error).__name__
        if path is not None:
            msg = f"llama.cpp cannot put the adapter on the base ({reason})."
            raise AdapterIncompatible(msg)
        msg = f"llama.cpp cannot load the base ({reason})."
        raise BaseModelMismatch(msg, hint="Export it again.")


class LlamaTurn:
    """One text. llama.cpp keeps the cache of one: another text's turn makes it read this again."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine = engine
        self._ids: list[int] = []

    def feed(self, ids: Sequence[int]) -> Logits:
        """Take further tokens; return the numbers of the next one.

        Raises:
            BaseModelMismatch: if llama.cpp fails.
        """
        engine, new = self._engine, list(ids)
        model = engine.model
        if engine.owner is not self:
            model.reset()
            new = [*self._ids, *new]
            engine.owner = self
        self._ids += ids
        reason = ""
        try:
            model.eval(new)
        except RuntimeError as error:
            reason = type(error).__name__
        if reason:
            engine.owner = None
            msg = f"llama.cpp cannot go on ({reason})."
            raise BaseModelMismatch(msg, hint="Export the base again.")
        found = engine.library.llama_get_logits_ith(model.ctx, -1)
        return np.ctypeslib.as_array(found, shape=(model.n_vocab(),)).copy()


def _library() -> Any:  # noqa: ANN401  (an optional package)
    """Return llama-cpp-python."""
    require_gguf()
    try:
        import llama_cpp
    except ImportError as error:
        msg = "Answers of a GGUF base need llama-cpp-python, which is not installed."
        raise MissingDependency(msg, hint=INSTALL) from error
    return llama_cpp
