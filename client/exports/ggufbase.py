"""A base model as GGUF, for llama.cpp: written once, and used under the adapter of every round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.exports.ggufvocab import Vocabulary, read_vocabulary
from client.exports.layout import Array, Layout, require_gguf
from client.model import BaseModel
from shared.errors import InvalidValue

TYPES = ("f32", "f16", "q8_0", "q4_0")
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
_EMBEDDINGS = ("token_embd.weight", "output.weight")


def write_base_gguf(
    path: Path, base: BaseModel, *, dtype: str = "f16", facts: Mapping[str, str]
) -> dict[str, int]:
    """Write a base model with its tokenizer.

    Vectors (norms, biases) stay in float32. Matrices whose rows are no multiple of 32 stay in f16
    where they cannot be quantised. Under "q4_0" the embeddings are "q8_0". Quantised, answers are
    near those of the original, not equal.

    Args:
        path: a new file.
        base: the model, not quantised.
        dtype: of the matrices: "f32", "f16", "q8_0" or "q4_0".
        facts: further strings to record, by their GGUF keys.

    Returns:
        How many tensors there are of each type.

    Raises:
        InvalidValue: for another type, a quantised base, or a weight that "f16" cannot hold.
        UnsupportedModel: if llama.cpp has no such model or tokenizer.
        MissingDependency: if gguf is not installed.
    """
    gguf = require_gguf()
    if dtype not in TYPES:
        msg = f"dtype={dtype!r}, expected one of: {', '.join(TYPES)}."
        raise InvalidValue(msg)
    if base.quantization != "none":
        msg = f"quantization={base.quantization!r}, expected 'none': GGUF quantises by itself."
        raise InvalidValue(msg)
    model: Any = base.model
    layout = Layout.of(model.config.to_dict())
    vocabulary = read_vocabulary(base.tokenizer, int(model.get_input_embeddings().weight.shape[0]))
    writer = gguf.GGUFWriter(path, layout.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(base.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    for key, value in facts.items():
        writer.add_string(key, value)
    _add_shape(writer, layout, len(vocabulary.tokens))
    _add_vocabulary(writer, vocabulary)
    counts = _add_tensors(writer, model, layout, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return counts


def _add_shape(writer: Any, layout: Layout, rows: int) -> None:  # noqa: ANN401
    """Record the numbers that llama.cpp builds the model from."""
    config = layout.config
    writer.add_block_count(layout.blocks)
    writer.add_context_length(layout.context)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.kv_heads)
    writer.add_key_length(layout.head_dim)
    writer.add_value_length(layout.head_dim)
    writer.add_rope_freq_base(layout.rope_base)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(rows)
    if layout.arch == "llama":
        writer.add_rope_dimension_count(layout.head_dim)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:  # noqa: ANN401
    """Record the tokenizer."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    for add, token in (
        (writer.add_bos_token_id, vocabulary.bos),
        (writer.add_eos_token_id, vocabulary.eos),
        (writer.add_unk_token_id, vocabulary.unk),
        (writer.add_pad_token_id, vocabulary.pad),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocabulary.bos is not None)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _add_tensors(writer: Any, model: Any, layout: Layout, dtype: str) -> dict[str, int]:  # noqa: ANN401
    """Add every weight once; a tied output embedding is the input's."""
    gguf = require_gguf()
    counts: Counter[str] = Counter()
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for name, tensor in sorted(model.state_dict().items()):
        if tied and name == "lm_head.weight":
            continue
        label = layout.name(name)
        values = layout.ordered(label, tensor.float().cpu().numpy())
        kind = _kind(label, values, dtype)
        if kind in {"f32", "f16"}:
            writer.add_tensor(label, _plain(label, values, kind))
        else:
            target = gguf.GGMLQuantizationType[kind.upper()]
            writer.add_tensor(label, gguf.quants.quantize(values, target), raw_dtype=target)
        counts[kind] += 1
    return dict(sorted(counts.items()))


def _kind(label: str, values: Array, dtype: str) -> str:
    """Return how a tensor is stored."""
    if values.ndim < len("dd") or dtype == "f32":
        return "f32"
    if dtype == "f16" or values.shape[-1] % 32:
        return "f16"
    return "q8_0" if label in _EMBEDDINGS else dtype


def _plain(label: str, values: Array, kind: str) -> Any:  # noqa: ANN401  (one of two array types)
    """Return a tensor as floats, finite as it was."""
    if kind == "f32":
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not bool(np.isfinite(half).all()):
        msg = f"{label} of the base does not fit into f16."
        raise InvalidValue(msg, hint="Write it as f32.")
    return half
