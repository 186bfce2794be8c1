"""A verified adapter and a base model of torch: whether it fits, and the two as one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.adapter import adapt
from client.adapterspec import adapter_spec
from shared.errors import AdapterIncompatible, ConfigError, ModelError

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.model import BaseModel
    from shared.lora import AdapterSpec, Factors
    from shared.loraconfig import LoraTerms


def spec_of(base: BaseModel, factors: Factors, terms: LoraTerms) -> AdapterSpec:
    """Return the specification of an adapter on a base; the base is not touched.

    Raises:
        AdapterIncompatible: if its factors are not those of this base's layers.
    """
    try:
        spec = adapter_spec(base, **_said(terms))
    except (AdapterIncompatible, ConfigError, ModelError) as error:
        msg = "The base has no such layers as the adapter's."
        raise AdapterIncompatible(msg) from error
    expected = {factor.name: factor.shape for factor in spec.factors}
    if {name: values.shape for name, values in factors.items()} != expected:
        msg = "The adapter's factors are not those of the base's layers."
        raise AdapterIncompatible(msg)
    return spec


def fit(base: BaseModel, factors: Factors, terms: LoraTerms) -> AdaptedModel:
    """Put an adapter on a base.

    Raises:
        AdapterIncompatible: as :func:`spec_of`; the base is as it was then.
    """
    spec_of(base, factors, terms)
    model = adapt(base, **_said(terms))
    model.load(factors)
    return model


def _said(terms: LoraTerms) -> dict[str, Any]:
    """Return what an adapter's own terms say of its layers."""
    return {
        "r": terms.r,
        "alpha": terms.lora_alpha,
        "target_modules": terms.target_modules,
        "rslora": terms.rslora,
        "mixture": terms.mixture,
        "method": terms.method,
        "prompt_tokens": terms.prompt_tokens or 1,
    }
