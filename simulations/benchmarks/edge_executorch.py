"""The runtime ``executorch`` of the benchmark ``edge``: the exported step by its Python runtime.

That runtime is linked against torch, so the memory of a process is mostly torch's; ``work`` says
what the step itself takes.
"""

from __future__ import annotations

from pathlib import Path

from shared.errors import UnsupportedModel
from simulations.benchmarks import edge_onnx
from simulations.benchmarks.edge_runtimes import Answer, Step


def prepare(what: str, base: Path, quantization: str, folder: Path) -> None:
    """Export the step."""
    del what
    edge_onnx.export(base, quantization, folder, runtime="executorch")


def imports(what: str) -> None:
    """Import what a worker imports that runs such a step."""
    import executorch.runtime
    import tokenizers
    import torch

    import client.app
    import client.edge.runtime
    import client.fleet.worker  # noqa: F401

    del what, executorch, tokenizers
    torch.set_num_threads(1)


def trainer(folder: Path, quantization: str) -> Step:
    """Load the step; each gradient is measured and clipped again, as the device does."""
    return edge_onnx.trainer(folder, quantization)


def speaker(folder: Path, quantization: str) -> Answer:
    """Refuse: only the step is measured.

    Raises:
        UnsupportedModel: always.
    """
    del folder, quantization
    msg = "The benchmark measures no answers by ExecuTorch."
    raise UnsupportedModel(msg)
