"""A base model as an ONNX graph with a key-value cache, whose LoRA factors can be exchanged.

The factors are inputs that have default values (zeros), so that one graph serves every round: ONNX
Runtime's own ``LoraAdapter`` brings the factors of an adapter, scaled, and without one the graph is
the bare base. One call takes new tokens and the cache of all before them::

    (input_ids (1, T), past_key_0, past_value_0, ...) -> (logits (1, T, V), key_0, value_0, ...)

with each cache ``(1, heads, tokens so far, head dimension)``; none so far at the first call.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from client.edge.export import require_exporter
from client.model import BaseModel, plain_name, quiet
from shared.errors import InvalidValue, UnsupportedModel
from shared.lora import AdapterSpec, Factors

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
ADAPTER = "adapter.onnx_adapter"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
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

    def __init__(self, model: Any, layers: list[_Lora], blocks: int) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.blocks = blocks

    def forward(
        self, input_ids: torch.Tensor, past: list[torch.Tensor], factors: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute the logits of new tokens after those in the cache."""
        from transformers import DynamicCache

        for index, layer in enumerate(self.layers):
            layer.a, layer.b = factors[2 * index], factors[2 * index + 1]
        pairs = [(past[2 * i], past[2 * i + 1]) for i in range(self.blocks)]
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
        )
        for layer in self.layers:
            layer.a = layer.b = None
        kept = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
        return (output.logits, *kept)


def write_graph(folder: Path, base: BaseModel, spec: AdapterSpec, facts: Mapping[str, str]) -> None:
    """Write a base model as ``model.onnx`` with its weights in ``model.onnx.data``.

    Args:
        folder: an existing folder.
        base: not quantised, without an adapter; of no use afterwards.
        spec: which layers have factors, and of which rank; their values do not matter.
        facts: strings to record.

    Raises:
        InvalidValue: if the base is quantised.
        UnsupportedModel: for a family that was not tried, or that cannot be exported.
        MissingDependency: if the exporter's packages are not installed.
    """
    require_exporter()
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
    graph, example = _prepare(model, spec)
    program = _program(graph, example, names)
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
        for name, array in factor_inputs(factors, spec).items()
    }
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))


def factor_inputs(
    factors: Factors, spec: AdapterSpec
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return what the graph takes for an adapter: A, and B times the scale, by input."""
    return {
        plain_name(name): np.ascontiguousarray(
            values * np.float32(spec.scale if ".lora_B." in name else 1.0)
        )
        for name, values in factors.items()
    }


def factor_names(spec: AdapterSpec) -> list[str]:
    """Return the graph's inputs for factors, A and B of a layer one after the other."""
    return [
        plain_name(factor.name).replace(".lora_A.", f".lora_{kind}.")
        for factor in spec.of_kind("A")
        for kind in "AB"
    ]


def cache_names(blocks: int, prefix: str = "") -> list[str]:
    """Return the names of the caches, keys and values of a block one after the other."""
    return [f"{prefix}{kind}_{block}" for block in range(blocks) for kind in ("key", "value")]


def _prepare(
    model: Any,  # noqa: ANN401
    spec: AdapterSpec,
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
    ids = torch.zeros(1, 5, dtype=torch.int64)
    return _Graph(model, layers, blocks).eval(), (ids, past, factors)


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
            input_names=["input_ids", *cache_names(graph.blocks, "past_"), *names],
            output_names=["logits", *cache_names(graph.blocks)],
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
