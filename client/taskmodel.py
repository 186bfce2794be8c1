"""A scenario's base model with its adapter, for whatever task: the one way to load them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.adapter import AdaptedModel, adapt
from client.model import load_base
from shared.adaptermethod import PROMPT
from shared.adapterterms import adapter_terms
from shared.errors import ConflictingSettings

if TYPE_CHECKING:
    from shared.config import RunConfig


def load_adapted(config: RunConfig, base: str, *, revision: str | None = None) -> AdaptedModel:
    """Load the frozen base of a scenario and attach the adapter.

    Args:
        config: the scenario.
        base: path of a transformers folder, or a hub id.
        revision: of a hub id.

    Raises:
        ConflictingSettings: if the scenario's texts are longer than a classifier reads, or than
            the model reads behind a prompt.
        ModelError: as :func:`client.model.load_base`.
    """
    loaded = load_base(
        base,
        quantization=config.model.quantization,
        revision=revision,
        device=config.performance.device,
        cache_dequantized=config.performance.cache_dequantized,
        labels=len(config.task.labels) if config.task.classifies else 0,
        compute_dtype=config.model.products,
    )
    longest = getattr(loaded.model.config, "max_position_embeddings", None)
    if config.task.classifies and longest is not None and config.data.max_length > longest:
        msg = f"data.max_length={config.data.max_length}, and the model reads {longest} tokens."
        raise ConflictingSettings(msg, hint=f"Set data.max_length to at most {longest}.")
    terms = adapter_terms(config)
    ahead = terms.prompt_tokens if terms.method == PROMPT else 0
    if longest is not None and ahead and config.data.max_length + ahead > longest:
        msg = (
            f"data.max_length={config.data.max_length} behind a prompt of {ahead} tokens, and the "
        )
        msg += f"model reads {longest}."
        raise ConflictingSettings(msg, hint=f"Set data.max_length to at most {longest - ahead}.")
    return adapt(
        loaded,
        r=terms.r,
        alpha=terms.alpha,
        target_modules=terms.target_modules,
        dropout=config.lora.dropout,
        rslora=terms.rslora,
        mixture=terms.mixture,
        frozen_router=terms.frozen_router,
        method=terms.method,
        prompt_tokens=terms.prompt_tokens,
    )
