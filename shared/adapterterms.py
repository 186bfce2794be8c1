"""The terms of a scenario's adapter: of one, or of those of a mixture together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.adaptermethod import METHODS
from shared.config import RunConfig
from shared.mixture import Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTerms:
    """What a scenario says about its adapter, or about its adapters together.

    Attributes:
        r: rank of a pair: that of one adapter times their number.
        alpha: numerator that gives a pair the scale of one adapter.
        target_modules: as the scenario says.
        rslora: whether the scale is ``alpha / sqrt(r)``.
        mixture: None for one adapter.
        frozen_router: whether the router stays as it is drawn.
        method: ``"ia3"``, ``"prompt"``, or ``""`` for pairs of factors.
        prompt_tokens: number of vectors of a prompt.
    """

    r: int
    alpha: float
    target_modules: str | tuple[str, ...]
    rslora: bool
    mixture: Mixture | None
    frozen_router: bool
    method: str = ""
    prompt_tokens: int = 8


def adapter_terms(config: RunConfig) -> AdapterTerms:
    """Return the terms of a scenario's adapter."""
    lora, said = config.lora, config.mixture
    mixture = None
    if said.adapters > 1:
        mixture = Mixture(adapters=said.adapters, sharpness=said.sharpness)
    rslora = lora.variant == "rslora"
    return AdapterTerms(
        r=lora.r * said.adapters,
        alpha=lora.alpha * (math.sqrt(said.adapters) if rslora else said.adapters),
        target_modules=lora.target_modules,
        rslora=rslora,
        mixture=mixture,
        frozen_router=mixture is not None and said.router == "frozen",
        method=lora.variant if lora.variant in METHODS else "",
        prompt_tokens=lora.prompt_tokens,
    )
