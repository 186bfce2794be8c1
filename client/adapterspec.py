"""The names, shapes and order of the factors that an adapter on a base has."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from client.encoders import head_factors, untouched
from client.injection import is_conv1d, matches, resolve, widths
from client.mixture import router_factor
from client.model import BaseModel
from client.quantization import linear_modules
from client.softprompt import embedding_spread, prompt_width
from shared.adaptermethod import (
    FEEDFORWARD,
    IA3,
    PROMPT,
    PROMPT_TENSOR,
    VECTOR,
    Method,
    nearest_power_of_two,
)
from shared.errors import UnsupportedModel
from shared.lora import AdapterSpec, Factor
from shared.mixture import Mixture
from shared.validate import positive, positive_integer

_PREFIX = "base_model.model."
"""What PEFT puts before the base's own names."""


def adapter_spec(
    base: BaseModel | torch.nn.Module,
    *,
    r: int,
    alpha: float,
    target_modules: str | Sequence[str],
    rslora: bool = False,
    mixture: Mixture | None = None,
    frozen_router: bool = False,
    method: str = "",
    prompt_tokens: int = 8,
) -> AdapterSpec:
    """Return names, shapes and order of the factors that :func:`adapt` would make.

    Args:
        base: a base model; it is not changed.
        r: rank of a pair of factors; that of all adapters of a mixture together.
        alpha: ``lora_alpha``, the numerator of the scale.
        target_modules: ``"all-linear"`` (every linear layer but the output embedding), or names as
            PEFT takes them: the last components of a module's dotted name.
        rslora: scale by ``alpha / sqrt(r)`` and not by ``alpha / r``.
        mixture: make several adapters of it, and a router.
        frozen_router: count the router among what stays as it is drawn, with A.
        method: ``"ia3"`` or ``"prompt"``, which have no rank, scale or mixture; ``""`` is LoRA.
        prompt_tokens: number of vectors of a prompt.

    Raises:
        UnsupportedModel: if a name matches no linear layer; lists the ones there are.
        InvalidValue: if ``r`` or ``alpha`` is out of range.
        AdapterIncompatible: if ``r`` is no multiple of the number of adapters.
    """
    positive_integer(r=r)
    positive(alpha=alpha)
    model = base.model if isinstance(base, BaseModel) else base
    if method:
        return _without_rank(base, method, target_modules, prompt_tokens)
    head = base.head if isinstance(base, BaseModel) else ""
    identities = base.identities if isinstance(base, BaseModel) else ()
    kept_whole = untouched(model, head, identities)
    layers = {n: m for n, m in linear_modules(model) if n not in kept_whole}
    targets = resolve(layers, target_modules)
    factors = []
    for name, module in layers.items():
        if any(matches(name, target) for target in targets):
            d_in, d_out = widths(module)
            stem = f"{_PREFIX}{name}.lora_"
            factors.append(Factor(name=f"{stem}A.weight", kind="A", shape=(r, d_in)))
            factors.append(Factor(name=f"{stem}B.weight", kind="B", shape=(d_out, r)))
    factors.extend(head_factors(model, head, _PREFIX))
    if mixture is not None:
        factors.append(router_factor(model, mixture, _PREFIX, frozen=frozen_router))
    return AdapterSpec(
        factors=tuple(sorted(factors, key=lambda factor: factor.name)),
        r=r,
        lora_alpha=float(alpha),
        target_modules=targets,
        fan_in_fan_out=is_conv1d(model),
        rslora=rslora,
        head=head,
        identities=identities,
        mixture=mixture,
    )


def _without_rank(
    base: BaseModel | torch.nn.Module,
    method: str,
    target_modules: str | Sequence[str],
    prompt_tokens: int,
) -> AdapterSpec:
    """Return the specification of IA3 vectors, or of a prompt."""
    model = base.model if isinstance(base, BaseModel) else base
    if isinstance(base, BaseModel) and base.head:
        msg = f"lora.variant={method!r} and a classifier: its head is trained beside pairs alone."
        raise UnsupportedModel(msg, hint='Use lora.variant "lora".')
    if method == PROMPT:
        positive_integer(prompt_tokens=prompt_tokens)
        spread = nearest_power_of_two(embedding_spread(model))
        shape = (prompt_tokens, prompt_width(model))
        return AdapterSpec(
            factors=(Factor(name=PROMPT_TENSOR, kind="B", shape=shape),),
            r=1,
            lora_alpha=1.0,
            target_modules=(),
            method=Method(name=PROMPT, spread=spread),
        )
    layers = dict(linear_modules(model))
    targets = resolve(layers, target_modules)
    inner = tuple(target for target in targets if target in FEEDFORWARD)
    factors = []
    for name, module in layers.items():
        if any(matches(name, target) for target in targets):
            d_in, d_out = widths(module)
            # PEFT goes by the end of the name alone.
            shape = (1, d_in) if name.endswith(inner) else (d_out, 1)
            factors.append(Factor(name=f"{_PREFIX}{name}.{VECTOR}", kind="B", shape=shape))
    return AdapterSpec(
        factors=tuple(sorted(factors, key=lambda factor: factor.name)),
        r=1,
        lora_alpha=1.0,
        target_modules=targets,
        fan_in_fan_out=is_conv1d(model),
        method=Method(name=IA3, feedforward=inner),
    )
