"""One example's gradient by ONNX Runtime: the exported step, loaded and called.

Each call is given one example and the adapter, and the program keeps nothing between calls, so a
gradient cannot depend on another example. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.edge.program import PROGRAM, StepManifest
from client.examples import IGNORED
from client.onnxfailures import onnx_failures
from shared.errors import BaseModelMismatch, InvalidValue, MissingDependency
from shared.lora import Vector

if TYPE_CHECKING:
    from client.examples import Example


class StepEngine(Protocol):
    """Computes one example's gradient."""

    @property
    def manifest(self) -> StepManifest:
        """Return what the step is."""

    def gradient(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """Return one example's gradient of the factors that train, flat in canonical order."""

    def loss(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> float:
        """Return one example's mean loss over its label tokens."""


class OnnxStep:
    """The exported step on ONNX Runtime.

    Args:
        folder: of the step, already compared with its manifest
            (:func:`client.edge.program.load_step`).
        manifest: what the step is.
        threads: that one call uses.

    Raises:
        MissingDependency: if ONNX Runtime is not installed.
        BaseModelMismatch: if the program is none, or takes or gives something else than the
            manifest says.
    """

    def __init__(self, folder: Path, manifest: StepManifest, *, threads: int = 1) -> None:
        self.manifest = manifest
        self._session = _session(folder / PROGRAM, threads)
        _require_interface(self._session, manifest)
        self._inputs = [found.name for found in self._session.get_inputs()]
        self._names = [factor.name for factor in manifest.adapter.factors]

    def gradient(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """Return one example's gradient.

        Args:
            example: of at most ``manifest.length`` tokens.
            factors: every factor of the adapter by name.

        Returns:
            float32, ``manifest.adapter.size(manifest.trained)`` elements. Clipped by the program
            where the manifest says so, which whoever uses it does not rely on.

        Raises:
            InvalidValue: if the example is too long or has an id that the model does not embed.
            BaseModelMismatch: if the program fails.
        """
        found = self._run(None, example, factors)
        return np.concatenate([np.asarray(g, dtype=np.float32).reshape(-1) for g in found[2:]])

    def loss(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> float:
        """Return one example's mean loss over its label tokens, 0 without any, in nats.

        Args:
            example: of at most ``manifest.length`` tokens.
            factors: every factor of the adapter by name.

        Raises:
            InvalidValue: if the example is too long or has an id that the model does not embed.
            BaseModelMismatch: if the program fails.
        """
        return float(self._run(["loss"], example, factors)[0])

    def _run(
        self,
        outputs: list[str] | None,
        example: Example,
        factors: Mapping[str, NDArray[np.float32]],
    ) -> list[Any]:
        """Call the program on one example; None for all that it gives."""
        ids, labels = padded(self.manifest, example)
        said = [ids, labels, *(factors[name] for name in self._names)]
        with onnx_failures(PROGRAM, "Export the step again"):
            found = self._session.run(outputs, dict(zip(self._inputs, said, strict=True)))
        return list(found)


def padded(manifest: StepManifest, example: Example) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an example as a step takes it.

    Args:
        manifest: of the step.
        example: of at most ``manifest.length`` tokens.

    Returns:
        Ids and labels, ``(1, T)``, padded on the right with id 0, where no label is.

    Raises:
        InvalidValue: if the example is too long or has an id that the model does not embed.
    """
    length, size = manifest.length, example.ids.size
    if not size <= length or example.labels.shape != example.ids.shape:
        msg = f"An example has {size} tokens, the exported step takes {length}."
        raise InvalidValue(msg, hint="Export it with the scenario's data.max_length.")
    known = (example.ids >= 0) & (example.ids < manifest.vocabulary)
    targets = (example.labels == IGNORED) | (example.labels == example.ids)
    if not bool((known & targets).all()):
        msg = "An example has ids or labels that the model does not know."
        raise InvalidValue(msg, hint="The tokenizer must be the one of the exported step.")
    ids = np.zeros((1, length), dtype=np.int64)
    labels = np.full((1, length), IGNORED, dtype=np.int64)
    ids[0, :size], labels[0, :size] = example.ids, example.labels
    return ids, labels


def input_names(manifest: StepManifest) -> list[str]:
    """Return the names of a program's inputs, in order."""
    return ["ids", "labels", *(factor.name for factor in manifest.adapter.factors)]


def output_names(factors: Sequence[str]) -> list[str]:
    """Return the names of a program's outputs, in order, from those of the factors that train."""
    return ["loss", "norm", *(f"gradient:{name}" for name in factors)]


def _session(path: Path, threads: int) -> Any:  # noqa: ANN401  (ONNX Runtime has no types)
    """Return a session that keeps little memory and says little."""
    try:
        import onnxruntime
    except ImportError as error:
        msg = "An exported step needs ONNX Runtime, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[edge]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # An arena keeps the most that any call needed, for the life of the process.
    options.enable_cpu_mem_arena = False
    # One block for all that a call needs, planned ahead, is larger than its parts and slower.
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    with onnx_failures(PROGRAM, "Export the step again"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _require_interface(session: Any, manifest: StepManifest) -> None:  # noqa: ANN401
    """Refuse a program that takes or gives something else than its manifest says."""
    row = [1, manifest.length]
    factors = manifest.adapter.factors
    takes = [("ids", row, "int64"), ("labels", row, "int64")]
    takes += [(factor.name, list(factor.shape), "float") for factor in factors]
    trained = manifest.adapter.of_kind(manifest.trained)
    gives: list[tuple[str, list[int], str]] = [("loss", [], "float"), ("norm", [], "float")]
    gives += [(f"gradient:{factor.name}", list(factor.shape), "float") for factor in trained]
    for found, expected in ((session.get_inputs(), takes), (session.get_outputs(), gives)):
        told = [(one.name, list(one.shape), one.type) for one in found]
        if told != [(name, shape, f"tensor({kind})") for name, shape, kind in expected]:
            msg = f"{PROGRAM} takes or gives something else than its manifest says."
            raise BaseModelMismatch(msg, hint="Export the step again.")
