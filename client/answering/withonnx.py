"""Answers by ONNX Runtime: the graph of ``fedslm export onnx --graph``, and no torch.

Each token is one call with the keys and values of all before it, so that an answer's work grows
with its tokens and not with their square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from client.answering.chat import ExportedChat
from client.answering.engine import Logits
from client.answering.tokens import ProgramTokenizer
from client.exports.onnxnames import IDS, LOGITS, TOKENIZER, factor_inputs
from client.onnxfailures import onnx_failures
from shared.errors import AdapterIncompatible, BaseModelMismatch, MissingDependency

if TYPE_CHECKING:
    from client.answering.program import Program
    from shared.lora import Factors
    from shared.loraconfig import LoraTerms

Array = NDArray[Any]
_KINDS = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
_PAST = "past_"
_CACHE_RANK = 4


class OnnxEngine:
    """A base model on ONNX Runtime.

    Args:
        program: verified.
        threads: that one call uses; 0 for all of the machine's.

    Raises:
        MissingDependency: if onnxruntime or tokenizers is not installed.
        BaseModelMismatch: if the program cannot be run, or is not of the form of an export.
    """

    def __init__(self, program: Program, *, threads: int = 0) -> None:
        self._facts = program.facts
        self._tokenizer = ProgramTokenizer(program.folder / TOKENIZER, program.facts)
        self._chat = ExportedChat(program.folder)
        self._session = _session(str(program.path), threads)
        takes = self._session.get_inputs()
        self._empty: dict[str, Array] = {v.name: _nothing(v) for v in takes if v.name != IDS}
        gives = [value.name for value in self._session.get_outputs()]
        if gives != [LOGITS, *(name.removeprefix(_PAST) for name in self._empty)]:
            _not_ours()
        shapes = self._session.get_overridable_initializers()
        self._takes = {value.name: tuple(value.shape) for value in shapes}
        self._adapter: dict[str, Array] = {}

    @property
    def window(self) -> int | None:
        """Return the most tokens of a text."""
        return self._facts.window

    @property
    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text."""
        return frozenset(self._facts.ends)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt."""
        return self._tokenizer.encode(text)

    def ask(self, question: str) -> list[int]:
        """Return the tokens of a question as a user's turn."""
        return self._tokenizer.encode_turn(self._chat.turn(question))

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text."""
        return self._tokenizer.decode(ids)

    def wear(self, factors: Factors, terms: LoraTerms) -> None:
        """Put an adapter on the base; its factors are inputs of every call.

        Raises:
            AdapterIncompatible: if it is not one of the layers and the rank of the graph, or no
                pairs of factors.
        """
        terms.require_pairs("the graph")
        if terms.mixture is not None:
            msg = "The adapter is a mixture, whose gates the graph does not have."
            raise AdapterIncompatible(msg, hint="Answer with torch.")
        scale = terms.lora_alpha / (math.sqrt(terms.r) if terms.rslora else terms.r)
        given = factor_inputs(factors, scale)
        if {name: values.shape for name, values in given.items()} != self._takes:
            msg = "The adapter has other layers, or another rank, than the exported graph."
            raise AdapterIncompatible(
                msg, hint="Export the graph again: fedslm export onnx --graph"
            )
        self._adapter = {**given}

    def turn(self) -> OnnxTurn:
        """Begin a text."""
        return OnnxTurn(self._session, self._adapter, self._empty)


class OnnxTurn:
    """One text, with the cache of its keys and values."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401  (ONNX Runtime has no types)
        adapter: dict[str, Array],
        empty: dict[str, Array],
    ) -> None:
        self._session = session
        self._adapter = adapter
        self._past = empty

    def feed(self, ids: Sequence[int]) -> Logits:
        """Take further tokens; return the numbers of the next one.

        Raises:
            BaseModelMismatch: if the program fails.
        """
        said = {IDS: np.array([list(ids)], dtype=np.int64), **self._past, **self._adapter}
        with onnx_failures("the exported graph", "Export it again"):
            logits, *cache = self._session.run(None, said)
        self._past = dict(zip(self._past, cache, strict=True))
        found: Logits = np.asarray(logits[0, -1], dtype=np.float32)
        return found


def _session(path: str, threads: int) -> Any:  # noqa: ANN401
    """Return a session that keeps little memory and says little."""
    try:
        import onnxruntime
    except ImportError as error:
        msg = "Answers of an exported graph need ONNX Runtime, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[edge]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # An arena keeps the most that any call needed, for the life of the process.
    options.enable_cpu_mem_arena = False
    # Every call has another length, so that no plan of the memory would be used twice.
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    with onnx_failures("the exported graph", "Export it again"):
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _nothing(value: Any) -> Array:  # noqa: ANN401
    """Return the cache of a block before the first token, ``(1, heads, 0, width)``."""
    shape = list(value.shape)
    if len(shape) != _CACHE_RANK or not value.name.startswith(_PAST) or value.type not in _KINDS:
        _not_ours()
    if shape[0] != 1 or not all(isinstance(shape[axis], int) for axis in (1, 3)):
        _not_ours()
    return np.zeros((1, shape[1], 0, shape[3]), dtype=_KINDS[value.type])


def _not_ours() -> NoReturn:
    """Raise the error of a graph that fedslm export did not write."""
    msg = "The exported graph takes or gives something else than fedslm export writes."
    raise BaseModelMismatch(msg, hint="Export it again.")
