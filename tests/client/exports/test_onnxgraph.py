"""An ONNX graph with exchangeable factors computes PEFT's model; oracle: PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from client.adapterfit import spec_of
from client.exports.onnxgraph import write_graph
from client.exports.onnxnames import ADAPTER, GRAPH, WEIGHTS, cache_names
from client.model import load_base
from server.adapters import write_adapter
from shared.errors import InvalidValue, UnsupportedModel, UsageError
from simulations.exportfolder import verify_export
from simulations.exportrun import onnx_export
from simulations.exportsource import find_source
from tests.client.conftest import MakeAdapted
from tests.client.exports.conftest import IDS, Adapted, MakeAdaptedFolder


def run(session: Any, ids: list[int], cache: list[Any], options: Any = None) -> list[Any]:
    names = cache_names(len(cache) // 2, "past_")
    feed = {"input_ids": np.array([ids], dtype=np.int64), **dict(zip(names, cache, strict=True))}
    found: list[Any] = session.run(None, feed, options)
    return found


def empty(session: Any) -> list[Any]:
    caches = [value for value in session.get_inputs() if value.name.startswith("past_")]
    return [np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for value in caches]


def adapter_options(path: Path) -> Any:
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(path))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return options, adapter


@pytest.fixture(scope="module", params=["qwen2"])
def exported(
    request: pytest.FixtureRequest,
    adapted_base: MakeAdaptedFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Adapted, Path]:
    case = adapted_base(request.param, tie_word_embeddings=False, rslora=True)
    folder = tmp_path_factory.mktemp("graph")
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
    done = onnx_export(source, folder / "onnx", base=str(case.folder), graph=True)
    assert (done.record["graph"], done.record["r"]) == (True, case.terms.r)
    assert verify_export(folder / "onnx").record["adapter"] == source.digest
    with pytest.raises(UsageError, match="of the graph"):
        onnx_export(source, folder / "x", base=str(case.folder), graph=False, kv_cache="int8")
    return case, folder / "onnx"


@pytest.mark.slow
def test_logits_and_greedy_tokens_are_those_of_peft(exported: tuple[Adapted, Path]) -> None:
    case, folder = exported
    session = onnxruntime.InferenceSession(folder / GRAPH)
    options, _kept = adapter_options(folder / ADAPTER)
    logits, *cache = run(session, IDS, empty(session), options)
    truth = case.logits()
    assert logits.shape == (1, 1, truth.shape[1])
    assert np.abs(logits[0, 0] - truth[-1]).max() < 1e-4 * np.abs(truth).max()
    # token by token, each call with the cache of the calls before
    written = [int(logits[0, -1].argmax())]
    while len(written) < 16:
        logits, *cache = run(session, written[-1:], cache, options)
        written.append(int(logits[0, -1].argmax()))
    assert written == case.greedy(16)


@pytest.mark.slow
def test_without_an_adapter_the_graph_is_the_base(exported: tuple[Adapted, Path]) -> None:
    import torch

    case, folder = exported
    session = onnxruntime.InferenceSession(folder / GRAPH)
    logits = run(session, IDS, empty(session))[0]
    model: Any = case.load().model
    with torch.no_grad():
        truth = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(logits[0, 0] - truth[-1]).max() < 1e-4 * np.abs(truth).max()
    assert np.abs(logits[0, 0] - case.logits()[-1]).max() > 0.1 * np.abs(truth).max()
    # Factors are inputs with default values: the weights' file never changes with the adapter.
    assert {value.name for value in session.get_overridable_initializers()} >= {
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.1.mlp.down_proj.lora_B.weight",
    }
    found = session.get_modelmeta().custom_metadata_map
    assert found["fedslm.base"] == case.load().digest
    parameters = sum(p.numel() for p in model.parameters())
    assert (folder / WEIGHTS).stat().st_size >= 4 * parameters
    assert str(Path.cwd()).encode() not in (folder / GRAPH).read_bytes()


def test_other_families_windows_and_quantised_bases_are_refused(
    tmp_path: Path, adapted: MakeAdapted, adapted_base: MakeAdaptedFolder
) -> None:
    other = adapted("gpt2")
    base = other.release()
    with pytest.raises(UnsupportedModel, match="llama, mistral"):
        write_graph(tmp_path, base, other.spec, {})
    case = adapted_base("mistral", sliding_window=8)
    loaded = case.load()
    spec = spec_of(loaded, case.factors, case.terms)
    with pytest.raises(UnsupportedModel, match="sliding window"):
        write_graph(tmp_path, loaded, spec, {})
    small = load_base(str(case.folder), quantization="int8")
    with pytest.raises(InvalidValue, match="expected 'none'"):
        write_graph(tmp_path, small, spec, {})
    for form in ({"quantization": "int3"}, {"kv_cache": "q8_0"}):
        with pytest.raises(InvalidValue, match="expected one of"):
            write_graph(tmp_path, loaded, spec, {}, **form)
