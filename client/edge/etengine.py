"""One example's gradient by ExecuTorch's Python runtime: for devices with torch, and for tests.

ExecuTorch itself needs no torch, but its Python runtime is linked against it. Without torch the
same two files run by ExecuTorch's own libraries (docs/edge.md, "Less memory: ExecuTorch").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.edge.engine import padded
from client.edge.program import PTD, PTE, StepManifest
from shared.errors import BaseModelMismatch, MissingDependency
from shared.lora import Vector

if TYPE_CHECKING:
    from client.examples import Example

_LONG, _FLOAT = 4, 6  # ExecuTorch's numbers of int64 and float32


class ExecutorchStep:
    """The exported step on ExecuTorch.

    Args:
        folder: of the step, already compared with its manifest
            (:func:`client.edge.program.load_step`).
        manifest: what the step is.
        threads: of the process's kernels.

    Raises:
        MissingDependency: if ExecuTorch or torch is not installed.
        BaseModelMismatch: if the program is none, or takes or gives something else than the
            manifest says.
    """

    def __init__(self, folder: Path, manifest: StepManifest, *, threads: int = 1) -> None:
        self.manifest = manifest
        self._method = _method(folder, threads)
        _require_interface(self._method.metadata, manifest)
        self._names = [factor.name for factor in manifest.adapter.factors]

    def gradient(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """Return one example's gradient; see :meth:`client.edge.engine.OnnxStep.gradient`."""
        found = self._run(example, factors)
        return np.concatenate([gradient.numpy().reshape(-1) for gradient in found[2:]])

    def loss(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> float:
        """Return one example's mean loss; see :meth:`client.edge.engine.OnnxStep.loss`."""
        return float(self._run(example, factors)[0])

    def _run(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> list[Any]:
        """Call the program on one example."""
        import torch

        ids, labels = padded(self.manifest, example)
        said = [ids, labels, *(factors[name] for name in self._names)]
        tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in said]
        reason = ""
        try:
            found = self._method.execute(tensors)
        except RuntimeError as error:
            reason = type(error).__name__
        if reason:
            raise _broken()
        return list(found)


def _method(folder: Path, threads: int) -> Any:  # noqa: ANN401  (untyped)
    """Return the loaded program."""
    try:
        from client.edge.etprogram import quiet_executorch

        with quiet_executorch():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
    except ImportError as error:
        msg = f"ExecuTorch's Python runtime needs {error.name}, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[export]'") from error
    weights = folder / PTD
    try:
        portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(
            folder / PTE, data_path=weights if weights.stat().st_size else None
        )
        method = program.load_method("forward")
    except (KeyError, OSError, RuntimeError):
        method = None
    if method is None:
        raise _broken()
    return method


def _require_interface(found: Any, manifest: StepManifest) -> None:  # noqa: ANN401
    """Refuse a program that takes or gives something else than its manifest says."""
    row = ((1, manifest.length), _LONG)
    takes = [row, row, *((tuple(f.shape), _FLOAT) for f in manifest.adapter.factors)]
    trained = manifest.adapter.of_kind(manifest.trained)
    gives: list[tuple[tuple[int, ...], int]] = [((), _FLOAT), ((), _FLOAT)]
    gives += [(tuple(factor.shape), _FLOAT) for factor in trained]
    told = [found.input_tensor_meta(i) for i in range(found.num_inputs())]
    gave = [found.output_tensor_meta(i) for i in range(found.num_outputs())]
    for metas, expected in ((told, takes), (gave, gives)):
        if [(tuple(meta.sizes()), meta.dtype()) for meta in metas] != expected:
            msg = f"{PTE} takes or gives something else than its manifest says."
            raise BaseModelMismatch(msg, hint="Export the step again.")


def _broken() -> BaseModelMismatch:
    """Return the error of a program that does not run, without what the runtime says."""
    hint = "Export the step again; executorch's version is pinned."
    return BaseModelMismatch(f"ExecuTorch cannot run {PTE}.", hint=hint)
