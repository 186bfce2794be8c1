"""GGUF files compute what transformers computes, by llama.cpp's rules; oracle: numpy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from client.exports.ggufadapter import write_adapter_gguf
from client.exports.ggufbase import write_base_gguf
from client.exports.layout import Layout
from shared.errors import AdapterIncompatible, InvalidValue, UnsupportedModel
from shared.loraconfig import LoraTerms
from tests.client.conftest import MakeFolder
from tests.client.exports.conftest import IDS, Adapted, MakeAdaptedFolder
from tests.ggufmodel import GgufModel, read, types

FAMILIES = ["demo", "llama", "mistral", "qwen2", "qwen3"]


def write(case: Adapted, folder: Path, *, base: str = "f32", adapter: str = "f32") -> GgufModel:
    layout = Layout.of_folder(case.folder)
    write_base_gguf(folder / "base.gguf", case.load(), dtype=base, facts={})
    write_adapter_gguf(
        folder / "adapter.gguf",
        case.factors,
        case.terms,
        layout,
        name="tiny",
        facts={"fedslm.adapter": "ab" * 32},
        dtype=adapter,
    )
    return GgufModel(folder / "base.gguf", folder / "adapter.gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_adapter_give_the_logits_of_transformers(
    family: str, tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base(family)
    found = write(case, tmp_path).logits(IDS)
    truth = case.logits()
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
    bare = GgufModel(tmp_path / "base.gguf").logits(IDS)
    assert np.abs(bare - truth).max() > 0.1 * np.abs(truth).max()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_scale_of_rslora_is_kept(
    family: str, tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base(family, rslora=True)
    found, truth = write(case, tmp_path).logits(IDS), case.logits()
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
    # alpha / sqrt(r) = (alpha * sqrt(r)) / r, with alpha 8 and r 4
    assert read(tmp_path / "adapter.gguf")[0]["adapter.lora.alpha"] == 16.0


@pytest.mark.parametrize("family", ["demo", "qwen2"])
def test_half_precision_writes_the_same_tokens(
    family: str, tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base(family)
    assert write(case, tmp_path, base="f16").greedy(IDS, 24) == case.greedy(24)


def test_separate_output_embeddings_are_written(
    tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base("llama", tie_word_embeddings=False)
    found, truth = write(case, tmp_path).logits(IDS), case.logits()
    assert "output.weight" in read(tmp_path / "base.gguf")[1]
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()


@pytest.mark.parametrize(("dtype", "bound"), [("q8_0", 0.03), ("q4_0", 0.6)])
def test_quantised_bases_are_near(
    dtype: str, bound: float, tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base("demo")
    truth = case.logits()
    error = np.linalg.norm(write(case, tmp_path, base=dtype).logits(IDS) - truth)
    assert error < bound * np.linalg.norm(truth)
    found = types(tmp_path / "base.gguf")
    assert found["blk.0.attn_q.weight"] == dtype.upper()
    assert found["token_embd.weight"] == "Q8_0"
    # rows of 344, which 32 does not divide
    assert found["blk.0.ffn_down.weight"] == "F16"
    assert found["blk.0.attn_norm.weight"] == "F32"


def test_the_shape_is_recorded_by_llama_cpps_keys(
    tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    write(adapted_base("demo"), tmp_path)
    fields, tensors = read(tmp_path / "base.gguf")
    expected = {
        "general.architecture": "llama",
        "llama.block_count": 4,
        "llama.context_length": 256,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 344,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": 1280,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    assert {key: fields[key] for key in expected} == expected
    assert len(tensors) == 4 * 9 + 2
    factors, _ = read(tmp_path / "adapter.gguf")
    assert factors["fedslm.adapter"] == "ab" * 32


def test_the_same_adapter_gives_the_same_bytes(
    tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(adapted_base("llama"), tmp_path / name)
        for file in ("base.gguf", "adapter.gguf"):
            digests.add(hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest())
    assert len(digests) == 2


def test_rows_of_queries_and_keys_are_reordered_head_by_head() -> None:
    layout = Layout.of(
        {
            "model_type": "llama",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "max_position_embeddings": 8,
        }
    )
    rows = np.arange(8, dtype=np.float32)[:, None]
    q = layout.ordered("blk.0.attn_q.weight", rows).ravel().tolist()
    k = layout.ordered("blk.0.attn_k.weight", rows[:4]).ravel().tolist()
    assert q == [0, 2, 1, 3, 4, 6, 5, 7]
    assert k == [0, 2, 1, 3]
    assert layout.ordered("blk.0.attn_v.weight", rows[:4]) is not None
    assert layout.ordered("blk.0.attn_v.weight", rows[:4]).ravel().tolist() == [0, 1, 2, 3]


def test_a_factor_that_does_not_fit_is_refused(
    tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    case = adapted_base("llama")
    layout = Layout.of_folder(case.folder)
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    wrong = {
        f"{stem}A.weight": np.zeros((4, 32), np.float32),
        f"{stem}B.weight": np.zeros((30, 4), np.float32),
    }
    with pytest.raises(AdapterIncompatible, match="30 rows"):
        write_adapter_gguf(
            tmp_path / "a.gguf", wrong, case.terms, layout, name="a", facts={}, dtype="f32"
        )
    large = {name: np.full_like(values, 1e6) for name, values in case.factors.items()}
    with pytest.raises(InvalidValue, match="does not fit into f16"):
        write_adapter_gguf(
            tmp_path / "b.gguf", large, case.terms, layout, name="a", facts={}, dtype="f16"
        )
    with pytest.raises(InvalidValue, match="expected one of"):
        write_adapter_gguf(
            tmp_path / "c.gguf", {}, case.terms, layout, name="a", facts={}, dtype="q4"
        )
    other = {name.replace("q_proj", "router"): values for name, values in wrong.items()}
    with pytest.raises(UnsupportedModel, match="no tensor like"):
        write_adapter_gguf(tmp_path / "d.gguf", other, _terms(), layout, name="a", facts={})


@pytest.mark.parametrize("family", ["gemma", "gpt2", "gpt_neox", "phi3", "olmo2"])
def test_other_families_are_refused_with_what_there_is(
    family: str, model_folder: MakeFolder
) -> None:
    with pytest.raises(UnsupportedModel, match="llama, mistral, qwen2, qwen3"):
        Layout.of_folder(model_folder(family))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "divide evenly"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    change: dict[str, object], message: str
) -> None:
    config = {
        "model_type": "llama",
        "num_attention_heads": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    Layout.of(config)
    with pytest.raises(UnsupportedModel, match=message):
        Layout.of({**config, **change})


def test_within_a_sliding_window_attention_is_plain() -> None:
    config = {
        "model_type": "mistral",
        "num_attention_heads": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    assert Layout.of({**config, "sliding_window": 16}).context == 16
    assert Layout.of({**config, "sliding_window": None}).context == 64


def test_a_quantised_base_and_an_unknown_type_are_refused(
    tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    from client.model import load_base

    case = adapted_base("llama")
    with pytest.raises(InvalidValue, match="expected one of"):
        write_base_gguf(tmp_path / "a", case.load(), dtype="q3", facts={})
    small = load_base(str(case.folder), quantization="int8")
    with pytest.raises(InvalidValue, match="expected 'none'"):
        write_base_gguf(tmp_path / "a", small, facts={})


def _terms() -> LoraTerms:
    return LoraTerms(r=4, lora_alpha=8.0, target_modules=("router",))
