"""A base model as an ONNX graph with a key-value cache, whose LoRA factors can be exchanged.

The factors are inputs that have default values (zeros), so that one graph serves every round: ONNX
Runtime's own ``LoraAdapter`` brings the factors of an adapter, scaled, and without one the graph is
the bare base. One call takes new tokens and the cache of all before them::

    (input_ids (1, T), past_key_0, past_value_0, ...) -> (logits (1, 1, V), key_0, value_0, ...)

with the logits of the token after the last, and each cache ``(1, heads, tokens so far, head
dimension)``; none so far at the first call. With ``kv_cache="int8"`` keys and values are kept as
codes of 8 bits, ``past_key_0``, and one float32 scale for each token and head, ``past_key_scale_0``
``(1, heads, tokens so far, 1)``; one block's at a time are numbers in full precision again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from client.edge.export import require_exporter
from client.exports.onnxnames import (
    GRAPH,
    IDS,
    LOGITS,
    WEIGHTS,
    cache_names,
    factor_inputs,
    factor_names,
)
from client.model import BaseModel, quiet
from shared.errors import InvalidValue, UnsupportedModel
from shared.lora import AdapterSpec, Factors, plain_name
from shared.registry import suggestion

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
QUANTIZATIONS = ("none", "int8", "int4")
KV_CACHES = ("none", "int8")
_CODES = 127.0
_INLINE = 256  # bytes; smaller constants are part of the graph, not of the weights' file


class _Lora(torch.nn.Module):
    """A linear layer that adds ``B (A x)`` with the factors of the current call."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.a: torch.Tensor | None = None
        self.b: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer and its low-rank change."""
        found: torch.Tensor = self.layer(x)
        if self.a is None or self.b is None:
            return found
        return found + functional.linear(functional.linear(x, self.a), self.b)


class _Graph(torch.nn.Module):
    """What is exported: tokens, caches and factors in, logits and caches out."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        layers: list[_Lora],
        blocks: int,
        *,
        scaled: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.blocks = blocks
        self.scaled = scaled

    def forward(
        self, input_ids: torch.Tensor, past: list[torch.Tensor], factors: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute the logits of new tokens after those in the cache."""
        from transformers import DynamicCache

        for index, layer in enumerate(self.layers):
            layer.a, layer.b = factors[2 * index], factors[2 * index + 1]
        plain = past
        if self.scaled:
            plain = [past[i].float() * past[i + 1] for i in range(0, len(past), 2)]
        pairs = [(plain[2 * i], plain[2 * i + 1]) for i in range(self.blocks)]
        cache: Any = DynamicCache(pairs)
        before, new = past[0].shape[2], input_ids.shape[1]
        places = torch.arange(before, before + new, dtype=torch.int64)
        seen = torch.arange(before + new, dtype=torch.int64)[None, :] <= places[:, None]
        least = torch.finfo(torch.float32).min
        mask = torch.where(seen, 0.0, least)[None, None]
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=places[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        for layer in self.layers:
            layer.a = layer.b = None
        kept = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
        if self.scaled:
            kept = [
                joined
                for index, whole in enumerate(kept)
                for joined in _joined(past[2 * index], past[2 * index + 1], whole[:, :, before:])
            ]
        return (output.logits, *kept)


def _joined(
    codes: torch.Tensor, scales: torch.Tensor, new: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales of what was kept and of new rows; a row's largest is 127."""
    scale = new.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _CODES
    rounded = torch.round(new / scale).clamp(-_CODES, _CODES).to(torch.int8)
    return torch.cat([codes, rounded], dim=2), torch.cat([scales, scale], dim=2)


def write_graph(
    folder: Path,
    base: BaseModel,
    spec: AdapterSpec,
    facts: Mapping[str, str],
    *,
    quantization: str = "none",
    kv_cache: str = "none",
) -> None:
    """Write a base model as ``model.onnx`` with its weights in ``model.onnx.data``.

    Args:
        folder: an existing folder.
        base: not quantised, without an adapter; of no use afterwards.
        spec: which layers have factors, and of which rank; their values do not matter.
        facts: strings to record.
        quantization: of the weights: "none", or "int8" or "int4" in blocks of 32, as
            :func:`client.edge.nbits.quantised`.
        kv_cache: how keys and values are kept between calls: "none" or "int8".

    Raises:
        InvalidValue: if the base is quantised, or for another quantisation.
        UnsupportedModel: for a family that was not tried, or that cannot be exported.
        MissingDependency: if the exporter's packages are not installed.
    """
    require_exporter()
    _require_known("quantization", quantization, QUANTIZATIONS)
    _require_known("kv_cache", kv_cache, KV_CACHES)
    if base.quantization != "none":
        msg = f"quantization={base.quantization!r}, expected 'none' to export."
        raise InvalidValue(msg)
    if base.family not in FAMILIES:
        msg = f"Family {base.family!r} has no ONNX export, expected one of: {', '.join(FAMILIES)}."
        raise UnsupportedModel(msg, hint="Use: fedslm export merged")
    model: Any = base.model
    if getattr(model.config, "sliding_window", None) or getattr(
        model.config, "use_sliding_window", False
    ):
        msg = "The model's attention has a sliding window, which the graph's mask does not have."
        raise UnsupportedModel(msg, hint="Use: fedslm export merged")
    names = factor_names(spec)
    graph, example = _prepare(model, spec, scaled=kv_cache == "int8")
    program = _program(graph, example, names)
    if quantization != "none":
        from client.edge.nbits import quantised

        # Before the factors have defaults, so that no default is taken for a weight.
        # Products of integers: otherwise each token unpacks every matrix of 8 bits.
        program = quantised(program, bits=8 if quantization == "int8" else 4, integers=True)
    _default_to_zero(program, names, example[2])
    program.metadata_props.update(facts)
    import onnx_ir

    onnx_ir.save(program, folder / GRAPH, external_data=WEIGHTS, size_threshold_bytes=_INLINE)


def write_adapter_onnx(path: Path, factors: Factors, spec: AdapterSpec) -> None:
    """Write an adapter that ONNX Runtime's ``LoraAdapter`` loads for the graph of its base.

    Args:
        path: a new file.
        factors: by PEFT's names; the scale goes into B.
        spec: of the adapter.

    Raises:
        MissingDependency: if onnxruntime is not installed.
    """
    require_exporter()
    import onnxruntime

    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in factor_inputs(factors, spec.scale).items()
    }
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))


def _require_known(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse an unknown word."""
    if value not in known:
        msg = f"{name}={value!r}, expected one of: {', '.join(known)}."
        raise InvalidValue(msg, hint=suggestion(value, known))


def _prepare(
    model: Any,  # noqa: ANN401
    spec: AdapterSpec,
    *,
    scaled: bool,
) -> tuple[_Graph, tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]]:
    """Put the layers that take factors into the model; return it with inputs to trace it by."""
    config = model.config
    config._attn_implementation = "eager"
    layers, factors = [], []
    for factor in spec.of_kind("A"):
        name = plain_name(factor.name).removesuffix(".lora_A.weight")
        layer: Any = model.get_submodule(name)
        layers.append(_Lora(layer))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layers[-1])
        factors += [torch.zeros(spec.r, layer.in_features), torch.zeros(layer.out_features, spec.r)]
    heads, blocks = config.num_key_value_heads, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Neither 0 nor 1, which the exporter would take for constants.
    past = [torch.zeros(1, heads, 3, width) for _ in range(2 * blocks)]
    if scaled:
        past = [part for one in past for part in (one.to(torch.int8), one[..., :1].clone())]
    ids = torch.zeros(1, 5, dtype=torch.int64)
    return _Graph(model, layers, blocks, scaled=scaled).eval(), (ids, past, factors)


def _program(graph: _Graph, example: Any, names: list[str]) -> Any:  # noqa: ANN401
    """Translate the graph, with any number of new and of past tokens."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    free = torch.export.Dim.DYNAMIC
    caches = [{2: free} for _ in example[1]]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            verbose=False,
            optimize=True,
            dynamic_shapes=({1: free}, caches, [None] * len(example[2])),
            input_names=[IDS, *cache_names(graph.blocks, "past_", scaled=graph.scaled), *names],
            output_names=[LOGITS, *cache_names(graph.blocks, scaled=graph.scaled)],
        )
    if program is None:
        msg = "PyTorch made no graph of the model."
        raise UnsupportedModel(msg)
    # Metadata of nodes hold the exporter's stack, with the paths of the machine that exported.
    return ClearMetadataAndDocStringPass()(program.model).model


def _default_to_zero(program: Any, names: list[str], factors: list[torch.Tensor]) -> None:  # noqa: ANN401
    """Give the factors default values, so that the graph alone is the bare base."""
    import onnx_ir

    inputs = {value.name: value for value in program.graph.inputs}
    for name, factor in zip(names, factors, strict=True):
        value = inputs[name]
        value.const_value = onnx_ir.tensor(factor.numpy(), name=name)
        program.graph.initializers[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice off stderr."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    finally:
        registration.setLevel(level)
