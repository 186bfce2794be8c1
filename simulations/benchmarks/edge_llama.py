"""The runtime ``llama`` of the benchmark ``edge``: answers by llama.cpp of an exported base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shared.errors import UnsupportedModel
from simulations.benchmarks.edge_runtimes import PROMPT, TOKENS, Answer, Step

_FILE = "base.gguf"


def prepare(what: str, base: Path, quantization: str, folder: Path) -> None:
    """Write the base as ``fedslm export gguf --base-type`` does."""
    from client.exports.ggufbase import write_base_gguf
    from client.model import load_base

    del what
    folder.mkdir()
    write_base_gguf(folder / _FILE, load_base(str(base)), dtype=quantization, facts={})


def imports(what: str) -> None:
    """Import what a device's worker imports, and llama.cpp, which needs no torch."""
    import llama_cpp  # noqa: F401

    import client.answering.withllama
    import client.app
    import client.fleet.worker  # noqa: F401

    del what


def trainer(folder: Path, quantization: str) -> Step:
    """Refuse: llama.cpp answers.

    Raises:
        UnsupportedModel: always.
    """
    del folder, quantization
    msg = "llama.cpp trains no step."
    raise UnsupportedModel(msg)


def speaker(folder: Path, quantization: str) -> Answer:
    """Load the base as a device does; an answer is the likeliest token each time."""
    import llama_cpp

    del quantization
    model = llama_cpp.Llama(
        str(folder / _FILE),
        n_ctx=PROMPT + TOKENS,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )

    def answer(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        step = list(prompt)
        model.reset()
        for _ in range(tokens):
            model.eval(step)
            found = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            token = int(np.ctypeslib.as_array(found, shape=(model.n_vocab(),)).argmax())
            yield token
            step = [token]

    return answer
