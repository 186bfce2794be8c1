"""Frozen linear layers whose weights are stored in 8 or 4 bits.

bitsandbytes quantises and stores the weights: ``nf4`` with double quantisation (about half a byte
per weight), ``int8`` row by row (1 byte per weight). ``int4`` is ours (:mod:`client.int4`, 0.56
bytes per weight), ``torchao-int8`` is torchao's int8 weight-only (:mod:`client.torchaoint8`, 1 byte
per weight), and neither needs another library. The matrix product is done here, on the dequantised
float32 weight, forwards and backwards, which has three consequences that training under
differential privacy relies on:

- **Gradients always flow.** On CPUs with AVX512-BF16, bitsandbytes' own NF4 layer repacks its
  weight in the first evaluation and is not differentiable from then on; adapters then get no
  gradient and a client would upload nothing but noise.
- **Examples stay separable.** Activations are never quantised, so no scale or outlier column is
  shared between the examples of a batch (LLM.int8 picks its outlier columns from all of them).
- **The result is exact**: it equals the same model with the dequantised weights written in float32,
  which is what the tests compare with.

The dequantised weight lives for one product and is made again in the backward pass, unless
``cache_dequantized`` keeps it: the numbers are the same bit for bit, for 4 bytes per weight more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from client.int4 import Int4Linear, replace_linear
from client.torchaoint8 import TorchaoInt8Linear
from shared.errors import ConflictingSettings, InvalidValue, MissingDependency, UnsupportedModel
from shared.registry import suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTIZATIONS = ("none", "int8", "torchao-int8", "int4", "nf4")
_STORAGE = {
    "int8": torch.int8,
    "torchao-int8": torch.int8,
    "int4": torch.uint8,
    "nf4": torch.uint8,
}
_OWN: dict[str, type[Int4Linear | TorchaoInt8Linear]] = {
    "int4": Int4Linear,
    "torchao-int8": TorchaoInt8Linear,
}
_CACHE = "_fedslm_dequantized"
_HALF = "_fedslm_half"
COMPUTE_DTYPES = ("float32", "bfloat16")


def check_quantization(quantization: str) -> None:
    """Require a known quantisation.

    Raises:
        InvalidValue: for an unknown name.
    """
    if quantization not in QUANTIZATIONS:
        msg = f"quantization={quantization!r}, expected one of: {', '.join(QUANTIZATIONS)}."
        raise InvalidValue(msg, hint=suggestion(quantization, QUANTIZATIONS))


def require_quantizer(quantization: str) -> None:
    """Import bitsandbytes where a storage is its.

    Args:
        quantization: one of :data:`QUANTIZATIONS`.

    Raises:
        MissingDependency: if bitsandbytes is needed and not installed.
    """
    if quantization == "none" or quantization in _OWN:
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        msg = f"quantization={quantization!r} needs bitsandbytes, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[client]'") from error


def check_compute_dtype(quantization: str, compute_dtype: str) -> None:
    """Require a known precision of products, and a quantised base for one below float32.

    Raises:
        InvalidValue: for an unknown name.
        ConflictingSettings: for bfloat16 with a base that is not quantised.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        msg = f"compute_dtype={compute_dtype!r}, expected one of: {', '.join(COMPUTE_DTYPES)}."
        raise InvalidValue(msg, hint=suggestion(compute_dtype, COMPUTE_DTYPES))
    if compute_dtype != "float32" and quantization == "none":
        msg = f"compute_dtype={compute_dtype!r} and quantization='none': only a quantised layer's "
        msg += "products are taken here."
        raise ConflictingSettings(msg, hint="Quantise the base, or use compute_dtype='float32'.")


def loading_options(quantization: str, device: str) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to quantise while it loads.

    Args:
        quantization: one of :data:`QUANTIZATIONS`.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:0"``.

    Raises:
        MissingDependency: if bitsandbytes is needed and not installed.
    """
    require_quantizer(quantization)
    if quantization == "none" or quantization in _OWN:
        return {}
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    if quantization == "int8":
        options = make(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        options = make(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return {"quantization_config": options, "device_map": {"": device}}


def linear_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield name and module of every linear layer except the output embedding.

    The input embedding is no linear layer, and the output embedding is left alone because it is
    often tied to it.
    """
    from transformers.pytorch_utils import Conv1D

    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name, module


def finish_quantized(model: PreTrainedModel, quantization: str) -> None:
    """Check that every linear layer was quantised, and quantise those that load in full precision.

    Their products are the library's until :func:`client.frozenproduct.take_products` is called.

    Args:
        model: a model that was just loaded; for ``"int4"`` and ``"torchao-int8"`` in full
            precision or stored that way, and quantised here where it is not.
        quantization: what was asked for; ``"none"`` does nothing.

    Raises:
        UnsupportedModel: if some layer was left in full precision.
    """
    if quantization == "none":
        return
    if quantization in _OWN:
        replace_linear(model, [name for name, _ in linear_modules(model)], _OWN[quantization])
    kind = _layer_type(quantization)
    layers = list(linear_modules(model))
    left = [
        name
        for name, module in layers
        if not isinstance(module, kind) or module.weight.dtype != _STORAGE[quantization]
    ]
    if left or not layers:
        some = ", ".join(sorted(left)[:3]) or "no linear layer at all"
        msg = (
            f"quantization={quantization!r} left {len(left)} of {len(layers)} linear layers in "
            f"full precision ({some})."
        )
        raise UnsupportedModel(msg, hint="Use quantization='none' for this model.")
    if quantization == "nf4":
        for _, module in layers:
            # Second line of defence: state_dict() and others look at the flag too.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _layer_type(quantization: str) -> type[torch.nn.Module]:
    """Return the class of layers that a quantisation makes."""
    if quantization in _OWN:
        return _OWN[quantization]
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    kind: type[torch.nn.Module] = (
        layers.Linear8bitLt if quantization == "int8" else layers.Linear4bit
    )
    return kind


def dequantize(module: torch.nn.Module) -> torch.Tensor:
    """Return the float32 weight ``(d_out, d_in)`` that a quantised layer stands for.

    Args:
        module: an :class:`~client.int4.Int4Linear`, a
            :class:`~client.torchaoint8.TorchaoInt8Linear`, or a bitsandbytes ``Linear4bit`` or
            ``Linear8bitLt`` with quantised weights.
    """
    if isinstance(module, Int4Linear | TorchaoInt8Linear):
        return module.dequantized()
    weight: Any = module.weight
    with torch.no_grad():
        if weight.dtype == torch.int8:
            # Converted first: a product of mixed types takes half as long again.
            codes: torch.Tensor = weight.data.float()
            return codes.mul_(weight.SCB.view(-1, 1) * (1.0 / 127.0))
        return _dequantize_nf4(weight)


def _dequantize_nf4(weight: Any) -> torch.Tensor:  # noqa: ANN401  (bitsandbytes has no types)
    """Return the float32 weight of an NF4 parameter, whatever its width.

    bitsandbytes' CPU kernel starts a new block at every row, although blocks run on across rows:
    where the width is no multiple of the block size (352, say) a part of the weights comes out
    with a neighbour's scale. Told that every row is one block, it is right.
    """
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    state = weight.quant_state
    shape, block = tuple(state.shape), int(state.blocksize)
    if math.prod(shape) % block == 0:
        by_block = copy.copy(state)
        by_block.shape = torch.Size((math.prod(shape) // block, block))
        whole: torch.Tensor = dequantize_4bit(weight.data, by_block)
        return whole.to(torch.float32).view(shape)
    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    packed = weight.data.view(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1).long()[: math.prod(shape)]
    values: torch.Tensor = state.code[codes].float()
    spread: torch.Tensor = scales.float().repeat_interleave(block)[: values.numel()]
    return values.mul_(spread).view(shape)


def stored_weight(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the float32 weight ``(d_out, d_in)`` and the bias of any linear layer.

    Args:
        module: a ``torch.nn.Linear``, a transformers ``Conv1D``, or a quantised layer.
    """
    bias: Any = module.bias
    weight: Any = module.weight
    if weight.dtype in {torch.int8, torch.uint8}:
        cached: torch.Tensor | None = getattr(module, _CACHE, None)
        # What is cached for products in bfloat16 has lost the last bits.
        if cached is None or cached.dtype != torch.float32:
            cached = dequantize(module)
        return cached, bias
    return (weight if isinstance(module, torch.nn.Linear) else weight.t()), bias


def hold(module: torch.nn.Module, *, half: bool, cache: bool) -> None:
    """Say how a quantised layer's products are taken, and whether its weight is kept for them.

    Args:
        module: as :func:`dequantize` takes it.
        half: in bfloat16.
        cache: keep the dequantised weight (the same numbers, more memory, less time).
    """
    setattr(module, _HALF, half)
    if cache:
        setattr(module, _CACHE, half_weight(module) if half else dequantize(module))


def is_half(module: torch.nn.Module) -> bool:
    """Tell whether a layer's products are taken in bfloat16."""
    return bool(getattr(module, _HALF, False))


def half_weight(module: torch.nn.Module) -> torch.Tensor:
    """Return the weight ``(d_out, d_in)`` of a quantised layer, rounded to bfloat16.

    Args:
        module: as :func:`dequantize` takes it.
    """
    cached: torch.Tensor | None = getattr(module, _CACHE, None)
    return dequantize(module).to(torch.bfloat16) if cached is None else cached


def makes_copy(module: torch.nn.Module) -> bool:
    """Tell whether :func:`stored_weight` makes a tensor that the caller may write to.

    Args:
        module: as there.
    """
    weight: Any = module.weight
    return weight.dtype in {torch.int8, torch.uint8} and getattr(module, _CACHE, None) is None


def quantized_storage(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a quantised layer that are neither parameters nor buffers.

    Scales and codebooks hang on the weight as attributes; a digest of the frozen model that left
    them out would miss a change of the model.
    """
    # PEFT's wrapper shows its base layer's weight as its own; it counts once, where it is stored.
    weight: Any = dict(module.named_parameters(recurse=False)).get("weight")
    scale = getattr(weight, "SCB", None)
    if isinstance(scale, torch.Tensor):
        yield "weight.SCB", scale
    state = getattr(weight, "quant_state", None)
    if state is not None:
        for name, value in sorted(state.as_dict(packed=True).items()):
            yield f"weight.{name}", value
    cached = getattr(module, _CACHE, None)
    if isinstance(cached, torch.Tensor):
        yield "weight.dequantized", cached
