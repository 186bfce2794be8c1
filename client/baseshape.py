"""The shape of a base model, from its ``config.json`` alone: no weight is read or allocated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.adapterspec import adapter_spec
from client.families import family_of
from client.model import quiet
from client.quantization import linear_modules
from shared.baseshape import BaseShape
from shared.errors import ModelNotFound, UnsupportedModel
from shared.lora import AdapterSpec
from shared.mixture import Mixture

if TYPE_CHECKING:
    import torch


def read_shape(
    base: str,
    *,
    revision: str | None = None,
    r: int,
    alpha: float,
    target_modules: str | Sequence[str],
    rslora: bool = False,
    mixture: Mixture | None = None,
    method: str = "",
    prompt_tokens: int = 8,
) -> tuple[BaseShape, AdapterSpec]:
    """Return the shape of a base and of the adapter that a scenario puts on it.

    Args:
        base: a transformers folder or a hub id; of a hub id only ``config.json`` is fetched.
        revision: of a hub id.
        r: rank.
        alpha: ``lora_alpha``.
        target_modules: as in :func:`client.adapter.adapter_spec`.
        rslora: as there.
        mixture: as there.
        method: as there.
        prompt_tokens: as there.

    Raises:
        ModelNotFound: if there is no such configuration.
        UnsupportedModel: if the architecture is not supported, or a target matches no layer.
    """
    config = _config(base, revision)
    family_of(config.to_dict())
    model = _without_weights(config)
    spec = adapter_spec(
        model,
        r=r,
        alpha=alpha,
        target_modules=target_modules,
        rslora=rslora,
        mixture=mixture,
        method=method,
        prompt_tokens=prompt_tokens,
    )
    return _shape(model, config), spec


def _config(base: str, revision: str | None) -> Any:  # noqa: ANN401  (transformers' own class)
    """Read a model's configuration."""
    from transformers import AutoConfig

    local = Path(base).expanduser().is_dir()
    try:
        with quiet():
            return AutoConfig.from_pretrained(
                base, revision=revision, local_files_only=local, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        msg = f"The configuration of model {Path(base).name!r} cannot be read."
        hint = "Give a transformers folder, a hub id that can be reached, or 'demo'."
        raise ModelNotFound(msg, hint=hint) from error


def _without_weights(config: Any) -> torch.nn.Module:  # noqa: ANN401
    """Build a model whose tensors have shapes and no storage."""
    import torch
    from transformers import AutoModelForCausalLM

    maker: Any = AutoModelForCausalLM
    try:
        with quiet(), torch.device("meta"):
            model: torch.nn.Module = maker.from_config(config)
    except (ValueError, KeyError, RuntimeError) as error:
        msg = f"A model of type {config.model_type!r} cannot be built ({type(error).__name__})."
        raise UnsupportedModel(msg) from error
    return model


def _shape(model: torch.nn.Module, config: Any) -> BaseShape:  # noqa: ANN401
    """Measure a model without weights; whatever its configuration calls things."""
    from transformers.pytorch_utils import Conv1D

    linears = []
    for _, module in linear_modules(model):
        weight: Any = module.weight
        rows, columns = weight.shape
        turned = isinstance(module, Conv1D)
        linears.append((int(columns), int(rows)) if turned else (int(rows), int(columns)))
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    shared_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    total = sum(parameter.numel() for parameter in model.parameters())
    return BaseShape(
        linears=tuple(linears),
        other_parameters=total - sum(rows * columns for rows, columns in linears),
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        attention=heads * head,
        key_value=shared_heads * head,
        inner=int(inner or 4 * hidden),
        vocabulary=int(config.vocab_size),
    )
