"""What runs a model on a device: the runtimes of the benchmark ``edge``, and how each is asked.

A runtime is a module of this package with the functions of :class:`Module`; one more is one more
entry of :data:`RUNTIMES`. All are called in a process of their own
(:mod:`simulations.benchmarks.edge_case`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import MappingProxyType
from typing import Final, Protocol, cast

LENGTH: Final = 64
"""Tokens of an example; none is padding."""
PROMPT: Final = 32
TOKENS: Final = 32
"""Tokens of an answer."""
RANK: Final = 8
ALPHA: Final = 16.0
TARGETS: Final = ("q_proj", "v_proj")
MAX_GRAD_NORM: Final = 1.0
SEED: Final = 7
SIZE_OF_FACTORS: Final = 0.02

Step = Callable[[Sequence[int]], float]
"""One example's ids in, the L2 norm of its clipped gradient out."""
Answer = Callable[[Sequence[int], int], Iterator[int]]
"""A prompt's ids and how many tokens in, the likeliest tokens out, one after the other."""


class Module(Protocol):
    """What a module of a runtime has."""

    def prepare(self, what: str, base: Path, quantization: str, folder: Path) -> None:
        """Make what the device is given, where everything is installed.

        Args:
            what: ``"train"`` or ``"answer"``.
            base: folder of the base model, in half precision.
            quantization: how the frozen weights are stored.
            folder: where it goes; does not exist.
        """
        ...

    def imports(self, what: str) -> None:
        """Import what the worker of such a device imports before its first round."""
        ...

    def trainer(self, folder: Path, quantization: str) -> Step:
        """Load what was prepared, and return what computes one example's clipped gradient."""
        ...

    def speaker(self, folder: Path, quantization: str) -> Answer:
        """Load what was prepared, and return what writes on from a prompt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime.

    Attributes:
        module: of this package.
        trains: how bases are stored that it trains on.
        answers: how bases are stored that it writes from.
        needs: packages without which it cannot be measured.
        extra: of fedslm, which brings them.
        torch: whether the device needs torch.
        tools: programs without which it cannot be measured.
    """

    module: str
    trains: tuple[str, ...]
    answers: tuple[str, ...]
    needs: tuple[str, ...] = ()
    extra: str = "export"
    torch: bool = False
    tools: tuple[str, ...] = ()

    def load(self) -> Module:
        """Import the module."""
        return cast("Module", import_module(f"{__package__}.{self.module}"))

    def missing(self) -> str | None:
        """Return what is needed and not installed first, with what brings it."""
        name = next((name for name in self.needs if find_spec(name) is None), None)
        if name is not None:
            return f"no {name}: pip install 'fedslm[{self.extra}]'"
        tool = next((name for name in self.tools if which(name) is None), None)
        return None if tool is None else f"no {tool}"

    def bases(self, what: str) -> tuple[str, ...]:
        """Return the storages that are measured."""
        return self.trains if what == "train" else self.answers


REFERENCE: Final = ("pytorch", "fp32")
"""What every ratio is over."""

RUNTIMES: Final[Mapping[str, Runtime]] = MappingProxyType(
    {
        "pytorch": Runtime(
            module="edge_torch",
            trains=("fp32", "bf16", "int8", "int4", "nf4"),
            answers=("fp32", "bf16", "int8", "int4", "nf4"),
            needs=("torch", "bitsandbytes"),
            torch=True,
        ),
        "onnx": Runtime(
            module="edge_onnx",
            trains=("fp32", "int8", "int4"),
            answers=("fp32", "int8", "int4"),
            needs=("onnx", "onnxscript", "onnxruntime"),
        ),
        "executorch": Runtime(
            module="edge_executorch",
            trains=("fp32", "int8", "int4"),
            answers=(),
            needs=("torch", "executorch"),
            torch=True,
        ),
        "native": Runtime(
            module="edge_native",
            trains=("fp32", "int8", "int4"),
            answers=(),
            needs=("executorch",),
            tools=("make", "g++"),
        ),
        "llama": Runtime(
            module="edge_llama",
            trains=(),
            answers=("f16", "q8_0", "q4_0"),
            needs=("gguf", "llama_cpp"),
            extra="llama",
        ),
    }
)
