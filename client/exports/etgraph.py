"""A base model and an adapter as a program for ExecuTorch that keeps its own key-value cache.

One call takes one token and its place, and gives the logits of the next::

    (ids (1, 1), position (1,)) -> logits (1, V)

The cache is state of the loaded program: a new text begins by position 0, and what is behind the
position is never read. The program (``model.pte``) holds the adapter, the weights of the base are a
file of their own (``base.ptd``): each round replaces the program alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from client.edge.etprogram import lower, quiet_executorch, weights_file
from client.edge.export import require_exporter
from client.edge.fewbits import quantise_graph
from client.edge.program import QUANTIZATIONS
from client.exports.onnxgraph import FAMILIES
from client.exports.onnxnames import factor_inputs
from client.model import BaseModel, quiet
from shared.errors import InvalidValue, UnsupportedModel
from shared.lora import AdapterSpec, Factors, plain_name
from shared.registry import suggestion

PROGRAM = "model.pte"
WEIGHTS = "base.ptd"
CONTEXT = 256
_FACTOR = "factor_"
# Far below any score, and finite.
_HIDDEN = -30000.0


def write_program(
    folder: Path,
    base: BaseModel,
    factors: Factors,
    spec: AdapterSpec,
    *,
    context: int = CONTEXT,
    quantization: str = "none",
    weights: bool = True,
) -> Mapping[str, Any]:
    """Write a base model with an adapter as ``model.pte``, and its weights as ``base.ptd``.

    Args:
        folder: an existing folder.
        base: not quantised, without an adapter; of no use afterwards.
        factors: of the adapter, by PEFT's names.
        spec: of the adapter.
        context: tokens that the cache has room for.
        quantization: of the base's weights: ``"none"``, ``"int8"`` or ``"int4"``.
        weights: write ``base.ptd``; it is the same for every adapter of this base.

    Returns:
        What the program takes: ``context``, ``quantization``, ``vocabulary``, and ``weights``, the
        SHA-256 of the ``base.ptd`` that it runs with.

    Raises:
        InvalidValue: if the base is quantised, or a number or word is out of range.
        UnsupportedModel: for a family that was not tried, or that cannot be exported.
        MissingDependency: if ExecuTorch is not installed.
    """
    require_exporter("executorch")
    _require_plain(base, context, quantization)
    graph = _Graph(base.model, factor_inputs(factors, spec.scale), context).eval()
    example = (torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    with quiet_executorch(), quiet(), torch.no_grad():
        exported = torch.export.export(graph, example, strict=False)
        if quantization != "none":
            exported = _quantised(exported, example, 8 if quantization == "int8" else 4)
        lowered = lower(exported, inside=_is_factor)
        with (folder / PROGRAM).open("wb") as stream:
            lowered.write_to_file(stream)
    data = weights_file(lowered)
    if weights:
        (folder / WEIGHTS).write_bytes(data)
    return {
        "context": context,
        "quantization": quantization,
        "vocabulary": int(base.model.config.vocab_size),
        "weights": hashlib.sha256(data).hexdigest(),
    }


def _require_plain(base: BaseModel, context: int, quantization: str) -> None:
    """Refuse what was not tried."""
    if base.quantization != "none":
        msg = f"quantization={base.quantization!r}, expected 'none' to export."
        raise InvalidValue(msg)
    if quantization not in QUANTIZATIONS:
        msg = f"quantization={quantization!r}, expected one of {', '.join(QUANTIZATIONS)}."
        raise InvalidValue(msg, hint=suggestion(quantization, QUANTIZATIONS))
    config: Any = base.model.config
    windows = ("sliding_window", "use_sliding_window")
    if base.family not in FAMILIES or any(getattr(config, name, None) for name in windows):
        msg = f"Family {base.family!r} has no ExecuTorch export, or not with a sliding window."
        raise UnsupportedModel(msg, hint="Use: fedslm export merged")
    if not 2 <= context <= config.max_position_embeddings:
        msg = f"context={context}, the model reads 2 to {config.max_position_embeddings} tokens."
        raise InvalidValue(msg)


def _quantised(
    exported: torch.export.ExportedProgram, example: tuple[torch.Tensor, ...], bits: int
) -> torch.export.ExportedProgram:
    """Return the same program with the matrices of its base in few bits."""
    # With layers written out as products, and constants as attributes.
    plain: Any = exported.run_decompositions().module(check_guards=False)
    if not quantise_graph(plain, bits=bits, skip=_is_factor):
        msg = "No product of this model has a constant matrix that can be quantised."
        raise UnsupportedModel(msg, hint="Export it with --quantization none.")
    return torch.export.export(plain, example, strict=False)


def _is_factor(name: str) -> bool:
    """Tell whether a constant of the program belongs to the adapter."""
    return _FACTOR in name


class _Adapted(torch.nn.Module):
    """A linear layer that adds ``B (A x)``; B has the scale in it."""

    factor_a: torch.Tensor
    factor_b: torch.Tensor

    def __init__(self, layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer(f"{_FACTOR}a", a)
        self.register_buffer(f"{_FACTOR}b", b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer and its low-rank change."""
        found: torch.Tensor = self.layer(x)
        return found + functional.linear(functional.linear(x, self.factor_a), self.factor_b)


class _Cache:
    """Keys and values of a fixed number of places, as transformers' layers ask for them."""

    is_compileable = False

    def __init__(self, kept: list[torch.Tensor], seen: torch.Tensor, here: torch.Tensor) -> None:
        self.kept = kept
        self.seen = seen[None, None, :, None]
        self.here = here[None, None, :, None]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return 0: positions and mask are given."""
        del layer
        return 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *rest: object, **more: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a token's key and value in their place; return those of every place."""
        del rest, more
        found = []
        for new, old in zip((key, value), self.kept[2 * layer : 2 * layer + 2], strict=True):
            # Not what an earlier text left behind, nor memory that nobody has written to.
            past = torch.where(self.seen, old, 0.0)
            found.append(torch.where(self.here, new, past))
            old.copy_(found[-1])
        return found[0], found[1]


class _Graph(torch.nn.Module):
    """What is exported: a token and its place in, logits out, keys and values kept."""

    def __init__(self, model: Any, factors: Mapping[str, Any], context: int) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model
        self.context = context
        config = model.config
        config._attn_implementation = "eager"
        for name in sorted(factors):
            if ".lora_A." in name:
                _adapt(model, plain_name(name).removesuffix(".lora_A.weight"), factors)
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        self.places = 2 * config.num_hidden_layers
        for place in range(self.places):
            self.register_buffer(f"cache_{place}", torch.zeros(1, heads, context, width))

    def forward(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Compute the logits that follow a token."""
        places = torch.arange(self.context, dtype=torch.int64)
        kept = [self.get_buffer(f"cache_{place}") for place in range(self.places)]
        cache: Any = _Cache(kept, places < position, places == position)
        mask = torch.where(places <= position, 0.0, _HIDDEN)[None, None, None]
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position[None],
            past_key_values=cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _adapt(model: Any, name: str, factors: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Put an adapter's factors beside a layer."""
    a, b = (torch.from_numpy(factors[f"{name}.lora_{kind}.weight"]) for kind in "AB")
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, _Adapted(model.get_submodule(name), a, b))
