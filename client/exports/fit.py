"""Whether an adapter is one of a base model's own layers."""

from __future__ import annotations

from client.adapterspec import adapter_spec
from client.model import BaseModel
from shared.errors import AdapterIncompatible, ConfigError, ModelError
from shared.lora import AdapterSpec, Factors
from shared.loraconfig import LoraTerms


def spec_of(base: BaseModel, factors: Factors, terms: LoraTerms) -> AdapterSpec:
    """Return the specification of an adapter on a base.

    Raises:
        AdapterIncompatible: if its factors are not those of this base's layers.
    """
    try:
        spec = adapter_spec(
            base,
            r=terms.r,
            alpha=terms.lora_alpha,
            target_modules=terms.target_modules,
            rslora=terms.rslora,
            method=terms.method,
            prompt_tokens=terms.prompt_tokens or 1,
        )
    except (ConfigError, ModelError) as error:
        msg = "The base has no such layers as the adapter's."
        raise AdapterIncompatible(msg) from error
    expected = {factor.name: factor.shape for factor in spec.factors}
    if {name: values.shape for name, values in factors.items()} != expected:
        msg = "The adapter's factors are not those of the base's layers."
        raise AdapterIncompatible(msg)
    return spec
