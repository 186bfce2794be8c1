"""A program for ExecuTorch computes PEFT's model token by token; oracle: PEFT and transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapterfit import spec_of
from client.edge.etprogram import quiet_executorch
from client.exports.etgraph import PROGRAM, WEIGHTS, write_program
from client.model import load_base
from server.adapters import write_adapter
from shared.errors import InvalidValue, UnsupportedModel
from simulations.exportfolder import verify_export
from simulations.exportrun import executorch_export
from simulations.exportsource import find_source
from tests.client.conftest import MakeAdapted
from tests.client.exports.conftest import IDS, Adapted, MakeAdaptedFolder

CONTEXT = 32


class Loaded:
    """A program on ExecuTorch's Python runtime."""

    def __init__(self, program: Path, weights: Path) -> None:
        with quiet_executorch():
            from executorch.runtime import Runtime

            self._program: Any = Runtime.get().load_program(program, data_path=weights)
        self._method: Any = self._program.load_method("forward")

    def logits(self, ids: list[int], first: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
        rows = [
            self._method.execute([torch.tensor([[token]]), torch.tensor([first + place])])[0][0]
            for place, token in enumerate(ids)
        ]
        return np.asarray(torch.stack(rows).double().numpy())


def error(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Return the mean squared error relative to the mean square."""
    return float(((found - truth) ** 2).sum() / (truth**2).sum())


def export(case: Adapted, folder: Path, *, quantization: str, weights: bool) -> dict[str, Any]:
    base = case.load()
    write_adapter(
        folder / "peft",
        spec=spec_of(base, case.factors, case.terms),
        factors=case.factors,
        base_model="tiny",
        dropout=0.0,
        manifest={"base_digest": base.digest},
    )
    source = find_source(folder / "peft")
    done = executorch_export(
        source,
        folder / "out",
        base=str(case.folder),
        context=CONTEXT,
        quantization=quantization,
        weights=weights,
    )
    assert verify_export(folder / "out").record["adapter"] == source.digest
    return dict(done.record)


@pytest.mark.slow
def test_logits_and_greedy_tokens_are_those_of_peft_and_a_round_brings_the_program_alone(
    adapted_base: MakeAdaptedFolder, tmp_path: Path
) -> None:
    case = adapted_base("qwen2", tie_word_embeddings=True, rslora=True)
    record = export(case, tmp_path / "one", quantization="none", weights=True)
    assert (record["format"], record["context"]) == ("executorch", CONTEXT)
    out = tmp_path / "one" / "out"
    loaded = Loaded(out / PROGRAM, out / WEIGHTS)
    for _ in range(2):  # the second text finds what the first left in the cache
        assert error(loaded.logits(IDS), case.logits()) < 1e-9
        written = [int(loaded.logits(IDS)[-1].argmax())]
        while len(written) < 16:
            place = len(IDS) + len(written) - 1
            written.append(int(loaded.logits(written[-1:], place)[0].argmax()))
        assert written == case.greedy(16)
    # Another adapter, on the weights that are there.
    other = replace(case, factors={name: 2 * value for name, value in case.factors.items()})
    again = export(other, tmp_path / "two", quantization="none", weights=False)
    assert [entry["name"] for entry in again["files"]] == [PROGRAM]
    listed = {entry["name"]: entry["sha256"] for entry in record["files"]}
    assert again["weights"] == record["weights"] == listed[WEIGHTS]
    found = Loaded(tmp_path / "two" / "out" / PROGRAM, out / WEIGHTS).logits(IDS)
    assert error(found, other.logits()) < 1e-9
    assert error(found, case.logits()) > 1e-3


@pytest.mark.slow
def test_a_base_in_eight_bits_answers_almost_alike(
    adapted_base: MakeAdaptedFolder, tmp_path: Path
) -> None:
    case = adapted_base("llama", tie_word_embeddings=False)
    export(case, tmp_path, quantization="int8", weights=True)
    out = tmp_path / "out"
    found = Loaded(out / PROGRAM, out / WEIGHTS).logits(IDS)
    assert error(found, case.logits()) < 5e-3
    parameters = sum(p.numel() for p in case.load().model.parameters())
    assert (out / WEIGHTS).stat().st_size < 1.4 * parameters
    assert str(Path.cwd()).encode() not in (out / PROGRAM).read_bytes()


def test_what_was_not_tried_is_refused(
    tmp_path: Path, adapted: MakeAdapted, adapted_base: MakeAdaptedFolder
) -> None:
    other = adapted("gpt2")
    factors = other.factors()
    with pytest.raises(UnsupportedModel, match="gpt2"):
        write_program(tmp_path, other.release(), factors, other.spec)
    case = adapted_base("mistral", sliding_window=8)
    loaded = case.load()
    spec = spec_of(loaded, case.factors, case.terms)
    with pytest.raises(UnsupportedModel, match="sliding window"):
        write_program(tmp_path, loaded, case.factors, spec)
    small = load_base(str(case.folder), quantization="int8")
    with pytest.raises(InvalidValue, match="expected 'none'"):
        write_program(tmp_path, small, case.factors, spec)
    plain = adapted_base("llama").load()
    with pytest.raises(InvalidValue, match="expected one of"):
        write_program(tmp_path, plain, case.factors, spec, quantization="int3")
    for context in (1, 65):
        with pytest.raises(InvalidValue, match="tokens"):
            write_program(tmp_path, plain, case.factors, spec, context=context)
    assert not list(tmp_path.iterdir())
