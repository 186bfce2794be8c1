"""Which engine runs an exported step: what its manifest says it was exported for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.edge.engine import OnnxStep

if TYPE_CHECKING:
    from client.edge.engine import StepEngine
    from client.edge.program import StepManifest


def open_engine(folder: Path, manifest: StepManifest) -> StepEngine:
    """Load an exported step for its runtime.

    Args:
        folder: of the step, already compared with its manifest.
        manifest: what the step is.

    Raises:
        MissingDependency: if the runtime is not installed.
        BaseModelMismatch: if the program cannot be used.
    """
    if manifest.runtime == "executorch":
        from client.edge.etengine import ExecutorchStep

        return ExecutorchStep(folder, manifest)
    return OnnxStep(folder, manifest)
