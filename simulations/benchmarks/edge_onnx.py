"""The runtime ``onnx`` of the benchmark ``edge``: the exported step, and the exported graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from simulations.benchmarks.edge_runtimes import (
    ALPHA,
    LENGTH,
    MAX_GRAD_NORM,
    RANK,
    SEED,
    SIZE_OF_FACTORS,
    TARGETS,
    Answer,
    Step,
)

_QUANTIZATIONS = {"fp32": "none"}


def prepare(what: str, base: Path, quantization: str, folder: Path) -> None:
    """Export the step, or the graph that answers."""
    if what == "train":
        export(base, quantization, folder, runtime="onnx")
        return
    from client.adapterspec import adapter_spec
    from client.exports.onnxgraph import write_graph
    from client.model import load_base

    loaded = load_base(str(base))
    spec = adapter_spec(loaded, r=RANK, alpha=ALPHA, target_modules=TARGETS)
    folder.mkdir()
    stored = _QUANTIZATIONS.get(quantization, quantization)
    write_graph(folder, loaded, spec, {}, quantization=stored)


def export(
    base: Path, quantization: str, folder: Path, *, runtime: str, trained: str = "AB"
) -> None:
    """Export the step for a runtime."""
    from client.edge.export import export_step
    from client.model import load_base
    from simulations.benchmarks.edge_torch import adapted

    model = adapted(load_base(str(base)))
    model.set_trainable(trained)
    export_step(
        model,
        folder,
        length=LENGTH,
        max_grad_norm=MAX_GRAD_NORM,
        quantization=_QUANTIZATIONS.get(quantization, quantization),
        runtime=runtime,
    )


def imports(what: str) -> None:
    """Import what a worker without torch imports."""
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401

    import client.app
    import client.edge.runtime
    import client.fleet.worker  # noqa: F401

    del what


def trainer(folder: Path, quantization: str) -> Step:
    """Load the step; each gradient is measured and clipped again, as the device does."""
    import numpy as np

    from client.edge.adapter import EdgeAdapter
    from client.edge.engines import open_engine
    from client.edge.program import load_step
    from client.examples import Example

    del quantization
    manifest = load_step(folder)
    adapter = EdgeAdapter(open_engine(folder, manifest), manifest.trained)
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal(adapter.spec.size("AB"), dtype=np.float32)
    adapter.load(np.float32(SIZE_OF_FACTORS) * drawn, "AB")

    def step(ids: Sequence[int]) -> float:
        row = np.asarray(ids, dtype=np.int64)
        total = adapter.sum_of([Example(ids=row, labels=row)], MAX_GRAD_NORM)
        return float(np.linalg.norm(total))

    return step


def speaker(folder: Path, quantization: str) -> Answer:
    """Load the graph; an answer is the likeliest token each time, from its own cache."""
    import numpy as np
    import onnxruntime

    # The module of the graph imports torch, which must not be in this process.

    del quantization
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # As client.answering.withonnx.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    pasts = [one for one in session.get_inputs() if one.name.startswith("past_")]
    empty = {one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in pasts}

    def answer(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        step, cache = np.asarray([prompt], dtype=np.int64), dict(empty)
        for _ in range(tokens):
            logits, *kept = session.run(None, {"input_ids": step, **cache})
            cache = dict(zip(cache, kept, strict=True))
            token = int(np.asarray(logits)[0, -1].argmax())
            yield token
            step = np.asarray([[token]], dtype=np.int64)

    return answer
