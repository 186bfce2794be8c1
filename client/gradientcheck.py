"""Before the first private record is touched: does training reach the adapter at all?

A layer that stopped being differentiable leaves an adapter without a gradient, and a client would
upload nothing but noise, round after round, without any other sign. On CPUs with AVX512-BF16,
bitsandbytes' own NF4 layer does so after its first evaluation. So the check evaluates first, and
then takes one gradient.

It runs on a fixed row of tokens and never on a record: whether a client goes on must not depend on
its text. A gradient on private text may be zero for good reasons (an empty Poisson batch), and
stopping there would tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.clipping import gradients_of
from client.examples import Example
from client.losses import collate, per_sequence_losses
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from client.adapter import AdaptedModel

_TOKENS = 8


def require_gradient(model: AdaptedModel) -> None:
    """Require a gradient, not zero, of each trainable factor whose partner is not zero.

    The gradient of B is zero where A is, and that of A where B is: such factors are passed over, as
    is a router where every B is zero.
    A classifier is not looked at: it is never quantised.

    Args:
        model: with the factors that the round starts from; nothing of it is changed.

    Raises:
        UnsupportedModel: if a factor gets none, or zeros; names the layer.
    """
    if model.base.head:
        return
    batch = collate([public_row(model)], 0).to(model.device)
    with torch.no_grad():
        per_sequence_losses(model.peft_model, batch)
    gradients = gradients_of(model, per_sequence_losses(model.peft_model, batch).sum())
    # NaN is not zero: what is not finite is dealt with where it is clipped.
    still = [
        name
        for (name, _), gradient in zip(model.trainable, gradients, strict=True)
        if bool((gradient == 0).all())
    ]
    factors = model.factors() if still else {}
    for name in still:
        # Vectors that rescale, and a prompt, have no partner that could hold them at zero.
        if model.spec.method is not None or any(
            bool((factors[partner] != 0).any()) for partner in _partners(name, factors)
        ):
            msg = f"{name} gets a gradient of zeros: training would not reach it."
            raise UnsupportedModel(msg, hint="Use model.quantization = 'none' for this model.")


def public_row(model: AdaptedModel) -> Example:
    """Return the row that is looked at: a few different tokens, the same for everybody."""
    count = len(model.base.tokenizer)
    ids = np.linspace(0, count - 1, _TOKENS).astype(np.int64)
    return Example(ids=ids, labels=ids.copy())


def _partners(name: str, names: Iterable[str]) -> list[str]:
    """Return the other factor of a layer, or every B for a router: without it, nothing is left."""
    if ".lora_A." in name:
        return [name.replace(".lora_A.", ".lora_B.")]
    if ".lora_B." in name:
        return [name.replace(".lora_B.", ".lora_A.")]
    return [other for other in names if ".lora_B." in other]
